"""Part of plan: machines for queued jobs, and machines that nobody needs.

Pure. Per pool, oldest job first, each queued job is covered by at most one machine and each machine covers at most
one job: a registered runner that may take it, then a ready machine (which gets a registration for exactly this
demand), then a machine that is still coming, then a new launch, as far as the caps and the forge's registration
budget go. Jobs left over are explained in `blocked`.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from autoscaler.model import (
    Action,
    Blocked,
    Demand,
    EndReason,
    Instance,
    InstanceState,
    Job,
    JobId,
    JobState,
    Launch,
    Pool,
    PoolControl,
    Register,
    Release,
    Rules,
    Snapshot,
    Terminate,
)
from autoscaler.placement import choose_offerings
from autoscaler.plan_limits import Limits, limits_of, runtime_h_of
from autoscaler.spi import ForgeName, InstanceId, Labels, Offering, PoolName, ProviderName, Scope

UNTOLD = timedelta(minutes=2)
"""A runner may be seen busy before its job is seen running: so long it stands for one queued job of its labels."""

_Key = tuple[ForgeName, Scope, Labels]


@dataclass(slots=True)
class Supply:
    actions: list[Action] = field(default_factory=list)
    blocked: list[Blocked] = field(default_factory=list)
    wake_at: datetime | None = None

    def wake(self, at: datetime | None) -> None:
        if at is not None and (self.wake_at is None or at < self.wake_at):
            self.wake_at = at


@dataclass(slots=True)
class _Fleet:
    """One pool's machines that can still serve a job, by how far they are."""

    registered: list[Instance] = field(default_factory=list)
    untold: list[Instance] = field(default_factory=list)
    ready: list[Instance] = field(default_factory=list)
    coming: int = 0
    live: int = 0


def plan_supply(snapshot: Snapshot, rules: Rules, now: datetime, *, leaving: set[InstanceId]) -> Supply:
    """Registrations, launches and surplus for every pool; pools of higher priority draw on the caps first."""
    queued: dict[PoolName, list[Job]] = defaultdict(list)
    for job in snapshot.jobs.values():
        if job.state is JobState.QUEUED and job.pool is not None and job.forge in snapshot.forges:
            queued[job.pool].append(job)
    fleets: dict[PoolName, _Fleet] = defaultdict(_Fleet)
    for instance in snapshot.instances.values():
        _count(fleets[instance.pool], instance, leaving, now)
    limits = limits_of(snapshot, rules, now)
    supply = Supply()
    for pool in sorted(rules.pools.values(), key=lambda pool: (-pool.priority, pool.name)):
        jobs = sorted(queued.get(pool.name, ()), key=lambda job: (job.queued_at, job.id))
        _supply_pool(pool, jobs, fleets[pool.name], limits, snapshot, rules, now, supply)
    for name, fleet in fleets.items():
        everything = {f"{forge}/jobs" for forge in snapshot.forges}
        if name not in rules.pools and snapshot.complete.issuperset(everything):
            _release_surplus(fleet.registered, fleet.ready, now, timedelta(0), "its pool left the config", supply)
    return supply


def _count(fleet: _Fleet, instance: Instance, leaving: set[InstanceId], now: datetime) -> None:
    fleet.live += 1
    if instance.id in leaving:
        return
    match instance.state:
        case InstanceState.REGISTERING | InstanceState.IDLE:
            fleet.registered.append(instance)
        case InstanceState.BUSY if instance.job is None and now < instance.since + UNTOLD:
            fleet.untold.append(instance)
        case InstanceState.READY:
            fleet.ready.append(instance)
        case InstanceState.REQUESTED | InstanceState.LAUNCHED if not instance.adopted:
            fleet.coming += 1
        case _:
            pass


def _supply_pool(
    pool: Pool,
    jobs: list[Job],
    fleet: _Fleet,
    limits: Limits,
    snapshot: Snapshot,
    rules: Rules,
    now: datetime,
    supply: Supply,
) -> None:
    takers = _takers(fleet.registered, jobs, snapshot, rules, now, supply)
    uncovered, spare_runners = _cover(_cover(jobs, fleet.untold)[0], takers)
    control = snapshot.controls.get(pool.name, PoolControl.ACTIVE)
    ready = sorted(fleet.ready, key=lambda instance: (instance.since, instance.id))
    waiting, spare_ready = _register(pool, uncovered, ready, limits, snapshot, now, supply)
    unserved = _cover_coming(waiting, fleet.coming, limits)
    spare_coming = max(0, fleet.coming - len(waiting))
    standing = len(takers) + len(ready) + fleet.coming
    if control is PoolControl.ACTIVE:
        _launch(pool, unserved, standing, fleet, limits, snapshot, rules, now, supply)
    elif unserved:
        word = "paused" if control is PoolControl.PAUSED else "draining"
        supply.blocked.append(
            Blocked(pool=pool.name, jobs=len(unserved), reason=f"pool {pool.name} is {word} by an operator")
        )
    listings = {f"{forge}/jobs" for forge in snapshot.forges if forge in (pool.forges or snapshot.forges)}
    listings.update(row.provider for row in (*spare_runners, *spare_ready))
    if not snapshot.complete.issuperset(listings):
        return  # a forge that cannot be read may hold jobs that need these machines
    keep = 0 if control is PoolControl.DRAINING else pool.min
    patience = timedelta(0) if control is PoolControl.DRAINING else pool.idle_timeout
    covering = standing - len(spare_runners) - len(spare_ready) - spare_coming
    kept_ready = max(0, keep - covering - spare_coming)
    kept_runners = max(0, kept_ready - len(spare_ready))
    word = "pool is draining" if control is PoolControl.DRAINING else f"idle for {pool.idle_timeout}"
    _release_surplus(spare_runners[kept_runners:], spare_ready[kept_ready:], now, patience, word, supply)


def _takers(
    runners: list[Instance], jobs: list[Job], snapshot: Snapshot, rules: Rules, now: datetime, supply: Supply
) -> list[Instance]:
    """Runners that may still take a job. One that is online and leaves a job that it could take for take_timeout is
    not what it seems (frozen, removed by the forge, sealed, in a group that does not see the repo): it is released."""
    oldest: dict[_Key, datetime] = {}
    for job in jobs:
        oldest.setdefault((job.forge, job.scope, job.labels), job.queued_at)
    takers = []
    for runner in runners:
        demand = runner.demand
        waiting = oldest.get((demand.forge, demand.scope, demand.labels)) if demand is not None else None
        if runner.state is not InstanceState.IDLE or waiting is None or runner.id in snapshot.started:
            takers.append(runner)
            continue
        deadline = max(runner.since, waiting) + rules.take_timeout
        if now < deadline:
            supply.wake(deadline)
            takers.append(runner)
        else:
            why = (
                f"its runner was online for {rules.take_timeout} and was given no job although one waits: "
                "does its runner group admit the repo?"
            )
            supply.actions.append(
                Release(instance=runner.id, end_reason=EndReason.SURPLUS, reason=why, is_spoiled=True)
            )
    return takers


def _cover(jobs: list[Job], runners: list[Instance]) -> tuple[list[Job], list[Instance]]:
    """Jobs that no registered runner may take, and runners that no queued job needs. Exact label sets first."""
    if not runners:
        return jobs, []
    exact: dict[_Key, list[Instance]] = defaultdict(list)
    unknown: list[Instance] = []
    for runner in sorted(runners, key=lambda runner: (runner.since, runner.id)):
        demand = runner.demand
        if demand is None:
            unknown.append(runner)
        else:
            exact[demand.forge, demand.scope, demand.labels].append(runner)
    uncovered: list[Job] = []
    for job in jobs:
        same = exact.get((job.forge, job.scope, job.labels))
        if same:
            same.pop()
        else:
            uncovered.append(job)
    spare = [runner for runners_left in exact.values() for runner in runners_left]
    if spare and uncovered:
        uncovered, spare = _cover_wider(uncovered, spare)
    return uncovered, sorted([*spare, *unknown], key=lambda runner: (runner.since, runner.id))


def _cover_coming(jobs: list[Job], coming: int, limits: Limits) -> list[Job]:
    """Jobs that no machine on its way covers. Those that can be registered soon have the first claim: otherwise a job
    of a forge without budget would hold the machine that was launched for another forge's job, time and again."""
    promised: set[JobId] = set()
    for job in jobs:
        if len(promised) < coming and limits.mint_soon.get(job.forge, 0.0) >= 1:
            limits.mint_soon[job.forge] -= 1
            promised.add(job.id)
    return [job for job in jobs if job.id not in promised][coming - len(promised) :]


def _cover_wider(jobs: list[Job], runners: list[Instance]) -> tuple[list[Job], list[Instance]]:
    """A runner with more labels than the job asks for may take it too. Runners are looked up by the job's rarest label:
    thousands that are bound to runs of their own cost nothing."""
    left = {runner.id: runner for runner in runners}
    having: dict[tuple[ForgeName, Scope, str], dict[InstanceId, Labels]] = defaultdict(dict)
    for runner in runners:
        if (demand := runner.demand) is not None:
            for label in ("", *demand.labels):
                having[demand.forge, demand.scope, label][runner.id] = demand.labels
    uncovered: list[Job] = []
    tried: set[_Key] = set()
    for job in jobs:
        key = (job.forge, job.scope, job.labels)
        found = None
        if key not in tried:
            wanted = set(job.labels)
            fewest = min((having[job.forge, job.scope, label] for label in ("", *job.labels)), key=len)
            found = next(((id_, labels) for id_, labels in fewest.items() if wanted.issubset(labels)), None)
        if found is None:
            tried.add(key)
            uncovered.append(job)
            continue
        id_, labels = found
        del left[id_]
        for label in ("", *labels):
            del having[job.forge, job.scope, label][id_]
    return uncovered, list(left.values())


def _register(
    pool: Pool,
    jobs: list[Job],
    ready: list[Instance],
    limits: Limits,
    snapshot: Snapshot,
    now: datetime,
    supply: Supply,
) -> tuple[list[Job], list[Instance]]:
    """Give ready machines to the oldest uncovered jobs. Returns the jobs and the ready machines left over.

    A job whose forge is out of budget or failing comes after those that can be registered now; it keeps its claim on
    a ready machine that is left, and gets it as soon as it can.
    """
    left = list(reversed(ready))
    held: list[Job] = []
    for job in jobs:
        demand = Demand(forge=job.forge, scope=job.scope, group=pool.runner_group, labels=job.labels)
        if not left or not _can_register(demand, limits, snapshot, now):
            held.append(job)
            continue
        limits.mint_now[job.forge] -= 1
        limits.mint_soon[job.forge] -= 1
        reason = f"{job.name} of {job.repo} waits since {job.queued_at:%H:%M:%S}"
        supply.actions.append(Register(instance=left.pop().id, demand=demand, reason=reason))
    _explain_held(pool, held[: len(left)], limits, snapshot, now, supply)
    return held[len(left) :], list(reversed(left))[len(held) :]


def _explain_held(
    pool: Pool, jobs: list[Job], limits: Limits, snapshot: Snapshot, now: datetime, supply: Supply
) -> None:
    """Jobs that have a ready machine and cannot have it registered yet, by what holds them."""
    held: dict[str, int] = defaultdict(int)
    for job in jobs:
        limits.mint_soon[job.forge] -= 1
        demand = Demand(forge=job.forge, scope=job.scope, group=pool.runner_group, labels=job.labels)
        again_at = max(snapshot.retry_after.get(key, now) for key in (demand.forge_key, demand.key))
        if again_at > now:
            supply.wake(again_at)
            held[f"{job.forge} registered no runner for {job.scope}; tried again in {_seconds(again_at, now)}"] += 1
        else:
            supply.wake(now + timedelta(seconds=1))
            held[f"the registration budget of {job.forge} is used up; it refills by the second"] += 1
    for reason, count in held.items():
        supply.blocked.append(Blocked(pool=pool.name, jobs=count, reason=reason))


def _can_register(demand: Demand, limits: Limits, snapshot: Snapshot, now: datetime) -> bool:
    if limits.mint_now.get(demand.forge, 0) < 1:
        return False
    keys = (demand.forge_key, demand.key)
    return all(snapshot.retry_after.get(key, now) <= now for key in keys)


def _launch(
    pool: Pool,
    unserved: list[Job],
    standing: int,
    fleet: _Fleet,
    limits: Limits,
    snapshot: Snapshot,
    rules: Rules,
    now: datetime,
    supply: Supply,
) -> None:
    """Launch for the jobs that no machine covers, and until `min` machines stand free of a job, within every cap."""
    within_budget = []
    for job in unserved:
        if limits.mint_soon.get(job.forge, 0.0) >= 1:
            limits.mint_soon[job.forge] -= 1
            within_budget.append(job)
    if len(within_budget) < len(unserved):
        supply.wake(now + timedelta(seconds=1))
        forges = sorted({job.forge for job in unserved})
        supply.blocked.append(
            Blocked(
                pool=pool.name,
                jobs=len(unserved) - len(within_budget),
                reason=f"the registration budget of {', '.join(forges)} is used up; it refills by the second",
            )
        )
    for_min = max(0, pool.min - standing - len(within_budget))
    asked = len(within_budget) + for_min
    if asked == 0:
        return
    asked, held = _within_hold(pool, asked, standing, snapshot, now, supply)
    if held:
        supply.blocked.append(Blocked(pool=pool.name, jobs=max(0, len(within_budget) - asked), reason=held))
    if asked == 0:
        return
    choice = choose_offerings(pool, snapshot.offerings.get(pool.name, ()), cooldowns=snapshot.cooldowns, now=now)
    if not choice.offerings:
        supply.wake(choice.again_at)
        supply.blocked.append(Blocked(pool=pool.name, jobs=len(within_budget), reason=choice.reason))
        return
    runtime_h = runtime_h_of(pool)
    reason = _without_machine(len(within_budget)) if within_budget else f"min = {pool.min}"
    missing, cap = asked, ""
    for provider, offerings in _by_provider(choice.offerings).items():
        dearest = max(offering.price_usd_hour for offering in offerings)
        rooms = limits.rooms(provider)
        bounds = [(float(pool.max - fleet.live), f"pool {pool.name} is at its max of {pool.max} instances")]
        bounds += [bound for room in rooms for bound in room.bounds(dearest, runtime_h)]
        fits, tightest = min(bounds, key=lambda bound: bound[0])
        cap = cap or tightest
        count = missing if fits >= missing else max(0, math.floor(fits))
        for room in rooms:
            room.charge(count, dearest, runtime_h)
        fleet.live += count
        missing -= count
        for size in _batches(count, rules.batch_limit):
            supply.actions.append(Launch(pool=pool.name, count=size, offerings=offerings, reason=reason))
    if missing:
        supply.blocked.append(Blocked(pool=pool.name, jobs=min(missing, len(within_budget)), reason=cap))


def _within_hold(
    pool: Pool, asked: int, standing: int, snapshot: Snapshot, now: datetime, supply: Supply
) -> tuple[int, str]:
    """How many launches a pool's recent failures leave, and why not all."""
    again_at = snapshot.retry_after.get(f"launch/{pool.name}", now)
    if again_at > now:
        supply.wake(again_at)
        what = snapshot.held_back.get(pool.name, "the last launch failed")
        return 0, f"{what}; tried again in {_seconds(again_at, now)}"
    spoilage = snapshot.spoilage.get(pool.name)
    if spoilage is None or spoilage.count < 2:
        return asked, ""
    what = f"the last {spoilage.count} machines of pool {pool.name} were of no use ({spoilage.reason})"
    if spoilage.until > now:
        supply.wake(spoilage.until)
        return 0, f"{what}; the next one is tried in {_seconds(spoilage.until, now)}"
    return min(asked, max(0, 1 - standing)), f"{what}; one machine at a time is tried until one takes a job"


def _seconds(at: datetime, now: datetime) -> str:
    return f"{max(1, math.ceil((at - now).total_seconds()))} s"


def _without_machine(jobs: int) -> str:
    return "1 queued job has no machine" if jobs == 1 else f"{jobs} queued jobs have no machine"


def _by_provider(offerings: tuple[Offering, ...]) -> dict[ProviderName, tuple[Offering, ...]]:
    """Ranked offerings by provider, the provider of the best one first: a batch is asked of one provider."""
    found: dict[ProviderName, list[Offering]] = defaultdict(list)
    for offering in offerings:
        found[offering.capacity_pool.provider].append(offering)
    return {provider: tuple(ranked) for provider, ranked in found.items()}


def _batches(count: int, limit: int) -> Iterable[int]:
    while count > 0:
        yield min(count, limit)
        count -= limit


def _release_surplus(
    runners: list[Instance], ready: list[Instance], now: datetime, patience: timedelta, why: str, supply: Supply
) -> None:
    """End machines that nobody needs. A registering one is left alone: it is idle or gone in seconds."""
    expired = []
    for instance in ready:
        if instance.since + patience <= now:
            expired.append(instance.id)
        else:
            supply.wake(instance.since + patience)
    if expired:
        supply.actions.append(Terminate(instances=tuple(expired), end_reason=EndReason.SURPLUS, reason=why))
    for runner in runners:
        if runner.state is not InstanceState.IDLE:
            continue
        if runner.since + patience <= now:
            supply.actions.append(Release(instance=runner.id, end_reason=EndReason.SURPLUS, reason=why))
        else:
            supply.wake(runner.since + patience)
