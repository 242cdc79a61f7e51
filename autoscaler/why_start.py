"""When a waiting job will start, as far as anybody can know: which machine it will most likely get, and how long
machines of its pool took.

Pure. An estimate is two instants: it starts by the first one in half of all such cases, by the second one in 95 of 100.
Where nothing is known it says what is not known; a guess that nobody can check helps nobody.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from autoscaler.boots import cold_floor, pool_boots
from autoscaler.model import Demand, Instance, InstanceState, Job, JobId, JobState, Pool, Snapshot
from autoscaler.spi import PoolName, ProviderName

COVERING = (
    InstanceState.IDLE,
    InstanceState.REGISTERING,
    InstanceState.READY,
    InstanceState.LAUNCHED,
    InstanceState.REQUESTED,
)
"""The states of a machine on its way to a job, nearest first."""
HALF, MOST = 0.5, 0.95
TOO_LATE = 0.97
"""A machine of which so many of its kind had come by its age is late: nothing that is known says when it comes."""
AT_ONCE = (timedelta(seconds=2), timedelta(seconds=15))
"""A forge gives a job to a runner that is online within seconds."""
REQUEUED_IN = timedelta(seconds=2)
"""What a forge takes to queue a lost job again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`at` and `by` (see the module) and on what they rest; or both None, and `note` says what is not known."""

    at: datetime | None = None
    by: datetime | None = None
    note: str = ""

    def after(self, wait: timedelta, note: str) -> "Estimate":
        if self.at is None or self.by is None:
            return self
        return Estimate(at=self.at + wait, by=self.by + wait, note=note)


def expected_machines(snapshot: Snapshot, *, without: frozenset[JobId] = frozenset()) -> Mapping[JobId, Instance]:
    """The machine that each queued job will most likely get; jobs beyond the last machine, and those `without` one by
    the plan's own word, are absent.

    Forges serve the oldest matching job first, so the n-th job of a pool gets its n-th machine on its way. A runner
    that is registered already counts for jobs of its own demand only.
    """
    unregistered: dict[PoolName, deque[Instance]] = {}
    registered: dict[PoolName, dict[Demand, deque[Instance]]] = {}
    coming = (row for row in snapshot.instances.values() if row.state in COVERING)
    for row in sorted(coming, key=lambda row: (COVERING.index(row.state), row.since, row.id)):
        if row.demand is None:
            unregistered.setdefault(row.pool, deque()).append(row)
        else:
            registered.setdefault(row.pool, {}).setdefault(row.demand, deque()).append(row)
    queued = (
        job
        for job in snapshot.jobs.values()
        if job.state is JobState.QUEUED and job.pool is not None and job.id not in without
    )
    expected: dict[JobId, Instance] = {}
    for job in sorted(queued, key=lambda job: (job.queued_at, job.id)):
        if job.pool is None:
            continue
        rows = _own_runners(job, registered.get(job.pool, {})) or unregistered.get(job.pool)
        if rows:
            expected[job.id] = rows.popleft()
    return expected


def _own_runners(job: Job, registered: Mapping[Demand, deque[Instance]]) -> deque[Instance] | None:
    for demand, rows in registered.items():
        same_place = (demand.forge, demand.scope) == (job.forge, job.scope)
        if rows and same_place and set(job.labels) <= set(demand.labels):
            return rows
    return None


# --------------------------------------------------------------------------- estimates


def with_machine(machine: Instance, pool: Pool, snapshot: Snapshot, now: datetime) -> Estimate:
    """When a job starts on a machine of its pool that is on its way."""
    if machine.state is InstanceState.IDLE:
        return Estimate(at=now + AT_ONCE[0], by=now + AT_ONCE[1], note="its runner is online")
    boots = pool_boots(pool, machine.provider, snapshot.arrivals)
    age_s = max(0.0, (now - machine.created_at).total_seconds())
    gone = boots.by(age_s)
    if gone > TOO_LATE:
        return Estimate(note=f"machine {machine.id} takes longer than such machines do")
    half_s, most_s = (boots.quantile(gone + share * (1 - gone)) - age_s for share in (HALF, MOST))
    return _span(now, half_s, most_s, _rests_on(pool, (machine.provider,), snapshot))


def with_new_machine(pool: Pool, snapshot: Snapshot, at: datetime) -> Estimate:
    """When a job starts on a machine that its pool asks for at an instant."""
    half_s, most_s = cold_floor(pool, snapshot.arrivals)
    return _span(at, half_s, most_s, _rests_on(pool, pool.providers, snapshot))


def _rests_on(pool: Pool, providers: Sequence[ProviderName], snapshot: Snapshot) -> str:
    known = [snapshot.arrivals[key] for key in ((pool.name, name) for name in providers) if key in snapshot.arrivals]
    count = sum(len(arrivals.seconds) for arrivals in known)
    if count == 1:
        return f"by the only machine of pool {pool.name} so far"
    return f"by the last {count} machines of pool {pool.name}" if count else "by what machines usually take"


def ends_of_running(snapshot: Snapshot, now: datetime) -> Mapping[PoolName | None, Sequence[datetime]]:
    """When the jobs that run now will have ended, soonest first, as far as their earlier runs tell: by pool, and under
    None those of all pools."""
    ends: dict[PoolName | None, list[datetime]] = {None: []}
    for job in snapshot.jobs.values():
        if job.state is not JobState.RUNNING or job.started_at is None:
            continue
        hours = snapshot.hours.get(job.work)
        if hours is None and job.pool is not None:
            hours = snapshot.expected_life_h.get(job.pool)
        if hours is not None:
            end = max(now, job.started_at + timedelta(hours=hours))
            for pool in {None, job.pool}:
                ends.setdefault(pool, []).append(end)
    return {pool: sorted(found) for pool, found in ends.items()}


def _span(start: datetime, half_s: float, most_s: float, note: str) -> Estimate:
    half_s, most_s = max(0.0, half_s), max(0.0, most_s)
    return Estimate(at=start + timedelta(seconds=half_s), by=start + timedelta(seconds=most_s), note=note)
