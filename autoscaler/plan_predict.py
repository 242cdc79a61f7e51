"""Part of plan: how long each job that is seen for the first time will wait, and how likely beyond its pool's target.

Pure. Said once, from the plan that serves the job, and never corrected: it is scored against what happens. Forges hand
the oldest job to the next runner, so that a job starts when as many machines have come as there are jobs up to it,
whichever machine was meant for it:

    covered      a registered runner may take it: it starts in seconds
    the others   in order of age; the k-th of a pool starts with the k-th machine to come, of those that are ready,
                 on their way, launched by this plan, launched once what blocks them passes (`Blocked`), and launched
                 for the jobs that come meanwhile

Each machine has a curve: the chance that it has come by a time. Nothing here is done for jobs that have a prediction:
the cost follows new jobs and the pools that they are in.
"""

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from autoscaler.boots import PRIOR, Boots, lognormal, pool_boots
from autoscaler.cooling import Closures
from autoscaler.model import (
    Action,
    Blocked,
    BlockedBy,
    Instance,
    InstanceState,
    Job,
    JobId,
    JobState,
    Launch,
    Pool,
    Prediction,
    Rules,
    SeenBy,
    Snapshot,
)
from autoscaler.placement import Openings, ranking_of
from autoscaler.plan_frees import freed
from autoscaler.plan_minting import Minting, minting
from autoscaler.plan_tally import Part, Tally
from autoscaler.plan_unseen import Unseen, unseen
from autoscaler.risk import USUAL_LIFE_H
from autoscaler.spi import CapacityType, ForgeName, InstanceId, Labels, PoolName, ProviderName, Scope
from autoscaler.spill import Curve, Outlook, after

PICKUP = lognormal(median_s=1.5, sigma=0.6)
"""From a runner that is up to the job's start, as its forge tells."""
PICKUP_S = 1.0
"""The same in one number."""
REFILL_S = 1.0
"""How late a registration is asked for that the budget had no room for."""
REGISTRATION = lognormal(median_s=3.0, sigma=0.6)
"""From a machine that stands ready to a job's start on it."""
LONGEST_S = 3600.0
"""What is said of a job for which no machine is in sight."""
LATELY = timedelta(minutes=5)
"""Jobs come at the rate of this time ..."""
USUAL_RUNS = 3
"""... but for runs of more than so many times the usual number of jobs: those are not to be expected again."""
FREES_WEIGHT = 50.0
"""How many samples it is worth what is known of the ends of running jobs."""
AGES = 24
"""Machines on their way are told apart by their age in steps of a 24th of a second at first, and of a 24th of
their age later."""
COMING_S = 10.0
"""Of a run whose jobs were queued so long ago everything is seen."""
DISTINCT = 12
"""So many different times left to the target are told apart in one pool; more are rounded."""
GRID_S = (0.5, 1, 2, 3, 4, 6, 8, 11, 15, 20, 26, 33, 41, 50, 60, 75, 95, 120, 150, 190, 240, 300, 420, 600, 1200, 3600)

Chance = Callable[[float], float]
"""Of seconds from now: the chance to have come by then."""
_Key = tuple[ForgeName, Scope, Labels]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coming:
    """Machines that come alike. `weight` is how many samples their curve rests on."""

    count: int
    by: Chance
    weight: float


def predictions(
    snapshot: Snapshot,
    rules: Rules,
    now: datetime,
    *,
    actions: Sequence[Action],
    blocked: Sequence[Blocked],
    leaving: Collection[InstanceId],
) -> dict[JobId, Prediction]:
    """For each queued job of a pool that has none yet."""
    queued: dict[PoolName, list[Job]] = defaultdict(list)
    fresh: set[PoolName] = set()
    for job in snapshot.jobs.values():
        if job.state is JobState.QUEUED and job.pool in rules.pools and job.pool is not None:
            queued[job.pool].append(job)
            if job.prediction is None:
                fresh.add(job.pool)
    if not fresh:
        return {}
    rows: dict[PoolName, list[Instance]] = defaultdict(list)
    for row in snapshot.instances.values():
        if row.id not in leaving:
            rows[row.pool].append(row)
    lately: dict[PoolName, Counter[str]] = defaultdict(Counter)
    for job in snapshot.jobs.values():
        is_known = job.prediction is not None and job.first_seen_at > now - LATELY
        if is_known and job.pool in fresh and job.pool is not None:
            lately[job.pool][job.run_id] += 1
    closures = Closures(snapshot, now)
    found: dict[JobId, Prediction] = {}
    for name in sorted(fresh):
        queue = _Queue(
            pool=rules.pools[name],
            jobs=sorted(queued[name], key=lambda job: (job.queued_at, job.id)),
            rows=rows[name],
            lately=lately[name],
            snapshot=snapshot,
            closures=closures,
            now=now,
        )
        launches = [action for action in actions if isinstance(action, Launch) and action.pool == name]
        queue.supply(launches, [one for one in blocked if one.pool == name])
        found.update(queue.predict())
    return found


class _Queue:
    """One pool's queued jobs and what comes for them."""

    def __init__(
        self,
        *,
        pool: Pool,
        jobs: list[Job],
        rows: list[Instance],
        lately: Counter[str],
        snapshot: Snapshot,
        closures: Closures,
        now: datetime,
    ) -> None:
        self._pool = pool
        self._lately = lately
        self._snapshot = snapshot
        self._now = now
        self._rows = rows
        self._covered, self._waiting = _covered(jobs, rows, now)
        self._coming: list[Coming] = []
        self._is_open = True
        self._room = 0
        self._flow: tuple[float, float] | None = None
        ranking = ranking_of(
            pool,
            snapshot.offerings.get(pool.name, ()),
            evidence=snapshot.evidence,
            life_h=snapshot.expected_life_h.get(pool.name),
        )
        self._outlook = Outlook(
            pool=pool,
            spot=Openings(pool=pool, ranked=ranking.spot, closures=closures, word=CapacityType.SPOT),
            on_demand=Openings(pool=pool, ranked=ranking.on_demand, closures=closures, word=CapacityType.ON_DEMAND),
            snapshot=snapshot,
            now=now,
            boots=self._boots,
        )
        self._usual = self._outlook.usual

    def _boots(self, provider: ProviderName) -> Boots:
        return pool_boots(self._pool, provider, self._snapshot.arrivals)

    # ------------------------------------------------------------------ what comes

    def supply(self, launches: Sequence[Launch], blocked: Sequence[Blocked]) -> None:
        """Count everything that will come for the jobs that no runner covers."""
        states = Counter(row.state for row in self._rows)
        if ready := states[InstanceState.READY]:
            self._come(ready, REGISTRATION.by, REGISTRATION.weight)
        for rows in self._in_flight():
            self._come(len(rows), self._flight(rows[0]), self._boots(rows[0].provider).weight)
        for launch in launches:
            curve = self._launched(launch)
            self._come(launch.count, curve.by, curve.weight)
        launched = sum(launch.count for launch in launches)
        live = sum(1 for row in self._snapshot.instances.values() if row.pool == self._pool.name) + launched
        self._room = max(0, self._pool.max - live)
        for one in blocked:
            self._pass(one, min(max(one.jobs, len(one.ids)), self._missing()))
        if self._missing() and not any(one.by is BlockedBy.OPERATOR for one in blocked):
            self._launch_later(self._missing(), 1.0)
        if self._missing() and self._room == 0:
            self._is_open = False
            for chance, machines in self._frees():
                self._come(machines, chance, FREES_WEIGHT)

    def _launch_later(self, count: int, wait_s: float, *, weight: float | None = None) -> None:
        """Machines that are asked for in so many seconds, as far as the pool has room for them."""
        count = min(count, self._room)
        self._room -= count
        self._come(count, _delayed(self._usual.by, wait_s), self._usual.weight if weight is None else weight)

    def _come(self, count: int, by: Chance, weight: float) -> None:
        if count > 0:
            self._coming.append(Coming(count=count, by=by, weight=weight))

    def _spare(self) -> int:
        """Machines on their way that no job waits for: no machine is launched for the next jobs."""
        return max(0, sum(one.count for one in self._coming) - len(self._waiting)) if self._room else 0

    def _missing(self) -> int:
        return max(0, len(self._waiting) - sum(one.count for one in self._coming))

    def _in_flight(self) -> Iterator[list[Instance]]:
        """Machines on their way, in groups of about the same age."""
        found: dict[tuple[ProviderName, InstanceState, int], list[Instance]] = defaultdict(list)
        for row in self._rows:
            if row.state in (InstanceState.REQUESTED, InstanceState.LAUNCHED) and not row.adopted:
                age_s = (self._now - row.created_at).total_seconds()
                found[row.provider, row.state, round(AGES * math.log1p(age_s))].append(row)
        yield from found.values()

    def _flight(self, row: Instance) -> Chance:
        boots, age_s = self._boots(row.provider), (self._now - row.created_at).total_seconds()
        if row.state is InstanceState.LAUNCHED or not self._usual.tries:
            return lambda seconds: boots.within(seconds, age_s=age_s)
        refused, again = self._usual.tries[0].refused, self._usual.by
        return lambda seconds: (1.0 - refused) * boots.within(seconds, age_s=age_s) + refused * again(seconds - 1.0)

    def _launched(self, launch: Launch) -> Curve:
        is_spot = launch.offerings[0].capacity_pool.capacity_type is CapacityType.SPOT
        curve = self._outlook.spot if is_spot else self._outlook.on_demand
        first = self._outlook.try_of(launch.offerings)
        return Curve(tries=(first, *(curve.tries[1:] or after((first,), curve.tries))))

    def _pass(self, one: Blocked, count: int) -> None:
        """What comes for blocked jobs once that passes which blocks them."""
        wait_s = max(0.3, (one.again_at - self._now).total_seconds()) if one.again_at is not None else 1.0
        match one.by:
            case BlockedBy.MOMENT:
                self._launch_later(count, wait_s)
            case BlockedBy.BOOTS:
                self._launch_later(min(count, 1), wait_s, weight=2.0)
            case BlockedBy.BUDGET:
                size = max(1, math.ceil(count / 12))
                mints = [self._minting(name) for name in {job.forge for job in self._waiting}]
                for number in range(0, count, size):
                    grown_s = min(mint.grown_s(number + size / 2) for mint in mints)
                    self._launch_later(min(size, count - number), max(wait_s, grown_s))
            case BlockedBy.CAPACITY:
                self._launch_later(count, 0.0)
            case BlockedBy.CAP | BlockedBy.SHARE:
                self._room = 0
            case BlockedBy.OPERATOR:
                self._is_open = False

    def _minting(self, forge: ForgeName) -> Minting:
        """What the forge's budget makes of the machines that are counted so far."""
        means = [self._mean(seconds) for seconds in GRID_S]
        return minting(self._snapshot.forges[forge], lambda seconds: _at(means, seconds))

    def _frees(self) -> Iterator[tuple[Chance, int]]:
        """What the end of a machine makes room for: of this pool where its own cap binds, else of all."""
        own = [row for row in self._snapshot.instances.values() if row.pool == self._pool.name]
        rows = own if len(own) >= self._pool.max else list(self._snapshot.instances.values())
        boots = self._boots(self._pool.providers[0]) if self._pool.providers else PRIOR
        yield from freed(rows, self._snapshot, self._pool, self._now, boots=boots, waiting=self._waiting)

    # ------------------------------------------------------------------ what that means

    def predict(self) -> Iterator[tuple[JobId, Prediction]]:
        for job, chance in self._covered:
            if job.prediction is None:
                yield job.id, self._said(job, breach=1.0 - chance(self._left_s(job)), until_s=1.5)
        if all(job.prediction is not None for job in self._waiting):
            return
        means = [self._mean(seconds) for seconds in GRID_S]
        round_s, tallies = self._rounding(), dict[tuple[int, int], Tally]()
        rests, mints = self._rests(), dict[ForgeName, Minting]()
        ahead: Counter[ForgeName] = Counter()
        for number, job in enumerate(self._waiting, start=1):
            ahead[job.forge] += 1
            if job.prediction is not None:
                continue
            left_s, soonest_s = self._left_s(job), 0.0
            if ahead[job.forge] > self._snapshot.forges[job.forge].registrations_left:
                if job.forge not in mints:
                    mints[job.forge] = self._minting(job.forge)
                soonest_s = mints[job.forge].served_s(ahead[job.forge]) + REFILL_S
            breach = 1.0
            if left_s > soonest_s:
                step = math.ceil(left_s / round_s)
                breach = 0.0
                for one in rests:
                    if (step, one.more) not in tallies:
                        tallies[step, one.more] = self._tally(step * round_s, one.more)
                    breach += one.chance * (1.0 - tallies[step, one.more].at_least(number + one.older))
            yield job.id, self._said(job, breach=breach, until_s=max(soonest_s, _when(means, number - 0.5)))

    def _said(self, job: Job, *, breach: float, until_s: float) -> Prediction:
        return Prediction(
            wait_s=round(self._age_s(job) + until_s, 1),
            breach=round(min(1.0, max(0.0, breach)), 4),
            target_s=self._pool.target.total_seconds(),
        )

    def _age_s(self, job: Job) -> float:
        return max(0.0, (self._now - job.queued_at).total_seconds())

    def _left_s(self, job: Job) -> float:
        return self._pool.target.total_seconds() - self._age_s(job)

    def _rounding(self) -> float:
        """In which steps times left are told apart."""
        left = [self._left_s(job) for job in self._waiting if job.prediction is None]
        return max(0.25, (max(left) - max(0.0, min(left))) / DISTINCT)

    def _mean(self, seconds: float) -> float:
        """How many are expected to have come."""
        started_s = seconds - PICKUP_S
        return math.fsum(one.count * one.by(started_s) for one in self._coming) + self._extra(started_s)[0]

    def _tally(self, seconds: float, rest: int) -> Tally:
        """How many have come; `rest` are launched in a moment for jobs of the same run that are not seen yet."""
        started_s = seconds - PICKUP_S
        parts = [Part(count=one.count, chance=one.by(started_s), weight=one.weight) for one in self._coming]
        if rest:
            chance = self._usual.by(started_s - 0.5)
            parts.append(Part(count=rest, chance=chance, weight=self._usual.weight))
        extra, variance = self._extra(started_s)
        return Tally(parts, extra=extra, extra_variance=variance)

    def _extra(self, seconds: float) -> tuple[float, float]:
        """Mean and variance of the machines that come for jobs that are not there yet."""
        if self._flow is None:
            self._flow = self._rate()
        rate, burst = self._flow
        seconds -= self._spare() / rate if rate else 0.0  # the first of them are covered by what is spare
        extra = rate * self._integral(seconds) if rate and seconds > 0 else 0.0
        return extra, extra * burst

    def _rate(self) -> tuple[float, float]:
        """Machines a second that are launched for jobs still to come, and how many come at once: as lately. Jobs that
        are over are not among those that are seen: the time over which these came is the shorter for it."""
        if not self._is_open or not self._lately:
            return 0.0, 1.0
        sizes = list(self._lately.values())
        usual = sorted([*sizes, *[2] * (5 - len(sizes))])  # one train among few runs is no usual one
        most = max(4, USUAL_RUNS * usual[len(usual) // 2])
        sizes = [min(size, most) for size in sizes]
        boot_s = min(LATELY.total_seconds(), self._boot_s())
        run_s = max(5.0, self._snapshot.expected_life_h.get(self._pool.name, USUAL_LIFE_H) * 3600 - boot_s)
        seen_s = boot_s + run_s * (1.0 - math.exp((boot_s - LATELY.total_seconds()) / run_s))
        return sum(sizes) / seen_s, sum(size * size for size in sizes) / sum(sizes)

    def _rests(self) -> list[Unseen]:
        """What of the run whose jobs are just coming is likely not seen yet."""
        seen: dict[str, list[Job]] = defaultdict(list)
        for job in self._waiting:
            if job.prediction is None and job.seen_by is SeenBy.WEBHOOK and self._age_s(job) < COMING_S:
                seen[job.run_id].append(job)
        if not seen or not self._is_open:
            return [Unseen(chance=1.0)]
        run_id, jobs = max(seen.items(), key=lambda item: (len(item[1]), item[0]))
        one, size = jobs[0], len(jobs) + self._lately.get(run_id, 0)
        known = self._snapshot.run_sizes.get((one.forge, one.repo, one.workflow, self._pool.name), ())
        others = known or [other for run, other in self._lately.items() if run != run_id]
        return list(unseen(size, others, room=self._room, spare=self._spare()))

    def _boot_s(self) -> float:
        return _when([self._usual.by(seconds) for seconds in GRID_S], 0.5)

    def _integral(self, seconds: float) -> float:
        """Seconds times the mean chance of a machine that is launched within them."""
        steps = 6
        return seconds * math.fsum(self._usual.by(seconds * (step + 0.5) / steps) for step in range(steps)) / steps


def _covered(
    jobs: Sequence[Job], rows: Sequence[Instance], now: datetime
) -> tuple[list[tuple[Job, Chance]], list[Job]]:
    """Jobs that a registered runner may take, with their curve, and all others in order of age."""
    runners: dict[_Key, list[Instance]] = defaultdict(list)
    for row in rows:
        is_free = row.state in (InstanceState.REGISTERING, InstanceState.IDLE)
        is_untold = row.state is InstanceState.BUSY and row.job is None
        if (is_free or is_untold) and row.demand is not None:
            runners[row.demand.forge, row.demand.scope, row.demand.labels].append(row)
    for found in runners.values():
        found.sort(key=lambda row: (row.state is InstanceState.REGISTERING, row.since), reverse=True)
    covered: list[tuple[Job, Chance]] = []
    waiting: list[Job] = []
    for job in jobs:
        same = runners.get((job.forge, job.scope, job.labels))
        if not same:
            waiting.append(job)
            continue
        row = same.pop()
        if row.state is InstanceState.REGISTERING:
            age_s = (now - row.since).total_seconds()
            covered.append((job, partial(REGISTRATION.within, age_s=age_s)))
        else:
            covered.append((job, PICKUP.by))
    return covered, waiting


def _delayed(by: Chance, wait_s: float) -> Chance:
    return lambda seconds: by(seconds - wait_s)


def _at(means: Sequence[float], seconds: float) -> float:
    """What is expected between the times of the grid."""
    at = bisect_left(GRID_S, seconds)
    if at == 0 or at >= len(GRID_S):
        return means[min(at, len(GRID_S) - 1)] if at else means[0] * seconds / GRID_S[0]
    part = (seconds - GRID_S[at - 1]) / (GRID_S[at] - GRID_S[at - 1])
    return means[at - 1] + part * (means[at] - means[at - 1])


def _when(means: Sequence[float], count: float) -> float:
    """When so many are expected to have come, from their expected numbers on the grid."""
    at = bisect_left(means, count)
    if at >= len(means):
        return LONGEST_S
    if at == 0:
        return float(GRID_S[0])
    low, high = means[at - 1], means[at]
    return GRID_S[at - 1] + (GRID_S[at] - GRID_S[at - 1]) * (count - low) / max(1e-9, high - low)


__all__ = ["Coming", "predictions"]
