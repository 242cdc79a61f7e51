"""Part of plan: machines for queued jobs, and machines that nobody needs.

Pure. Per pool, oldest job first, each queued job is covered by at most one machine and each machine covers at most
one job: a registered runner that may take it, then a ready machine (which gets a registration for exactly this
demand), then a machine that is still coming, then a new launch, as far as the caps and the forge's registration
budget go (`plan_launch`). Jobs left over are explained in `blocked`.
"""

from collections import defaultdict
from datetime import datetime, timedelta

from autoscaler.cooling import Closures
from autoscaler.model import (
    Blocked,
    BlockedBy,
    Demand,
    EndReason,
    Instance,
    InstanceState,
    Job,
    JobId,
    JobState,
    Pool,
    PoolControl,
    Register,
    Release,
    Rules,
    Snapshot,
    Terminate,
)
from autoscaler.plan_launch import launch
from autoscaler.plan_limits import Limits, limits_of
from autoscaler.plan_tick import Fleet, Supply, Tick
from autoscaler.plan_words import seconds
from autoscaler.spi import ForgeName, InstanceId, Labels, PoolName, Scope

UNTOLD = timedelta(minutes=2)
"""A runner may be seen busy before its job is seen running: so long it stands for one queued job of its labels."""

_Key = tuple[ForgeName, Scope, Labels]


def plan_supply(snapshot: Snapshot, rules: Rules, now: datetime, *, leaving: set[InstanceId]) -> Supply:
    """Registrations, launches and surplus for every pool; pools of higher priority draw on the caps first."""
    queued: dict[PoolName, list[Job]] = defaultdict(list)
    for job in snapshot.jobs.values():
        if job.state is JobState.QUEUED and job.pool is not None and job.forge in snapshot.forges:
            queued[job.pool].append(job)
    fleets: dict[PoolName, Fleet] = defaultdict(Fleet)
    for instance in snapshot.instances.values():
        _count(fleets[instance.pool], instance, leaving, now)
    supply = Supply()
    tick = Tick(
        snapshot=snapshot,
        rules=rules,
        now=now,
        limits=limits_of(snapshot, rules, now),
        supply=supply,
        closures=Closures(snapshot, now),
    )
    for pool in sorted(rules.pools.values(), key=lambda pool: (-pool.priority, pool.name)):
        jobs = sorted(queued.get(pool.name, ()), key=lambda job: (job.queued_at, job.id))
        _supply_pool(pool, jobs, fleets[pool.name], tick)
    for name, fleet in fleets.items():
        everything = {f"{forge}/jobs" for forge in snapshot.forges}
        if name not in rules.pools and snapshot.complete.issuperset(everything):
            _release_surplus(fleet.registered, fleet.ready, now, timedelta(0), "its pool left the config", supply)
    return supply


def _count(fleet: Fleet, instance: Instance, leaving: set[InstanceId], now: datetime) -> None:
    fleet.rows.append(instance)
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


def _supply_pool(pool: Pool, jobs: list[Job], fleet: Fleet, tick: Tick) -> None:
    snapshot, rules, now, limits, supply = tick.snapshot, tick.rules, tick.now, tick.limits, tick.supply
    takers = _takers(fleet.registered, jobs, snapshot, rules, now, supply)
    uncovered, spare_runners = _cover(_cover(jobs, fleet.untold)[0], takers)
    control = snapshot.controls.get(pool.name, PoolControl.ACTIVE)
    ready = sorted(fleet.ready, key=lambda instance: (instance.since, instance.id))
    waiting, spare_ready = _register(pool, uncovered, ready, limits, snapshot, now, supply)
    unserved = _cover_coming(waiting, fleet.coming, limits)
    spare_coming = max(0, fleet.coming - len(waiting))
    standing = len(takers) + len(ready) + fleet.coming
    if control is PoolControl.ACTIVE:
        launch(tick, pool, unserved, standing, fleet)
    elif unserved:
        word = "paused" if control is PoolControl.PAUSED else "draining"
        tick.block(
            Blocked(
                pool=pool.name,
                jobs=len(unserved),
                reason=f"pool {pool.name} is {word} by an operator",
                by=BlockedBy.OPERATOR,
                ids=tuple(job.id for job in unserved),
            )
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
    held: dict[tuple[str, datetime], list[JobId]] = defaultdict(list)
    for job in jobs:
        limits.mint_soon[job.forge] -= 1
        demand = Demand(forge=job.forge, scope=job.scope, group=pool.runner_group, labels=job.labels)
        again_at = max(snapshot.retry_after.get(key, now) for key in (demand.forge_key, demand.key))
        if again_at > now:
            reason = f"{job.forge} registered no runner for {job.scope}; tried again in {seconds(again_at, now)}"
        else:
            reason = f"the registration budget of {job.forge} is used up; it refills by the second"
            again_at = now + timedelta(seconds=1)
        supply.wake(again_at)
        held[reason, again_at].append(job.id)
    for (reason, again_at), ids in held.items():
        blocked = Blocked(
            pool=pool.name, jobs=len(ids), reason=reason, by=BlockedBy.BUDGET, ids=tuple(ids), again_at=again_at
        )
        supply.blocked.append(blocked)


def _can_register(demand: Demand, limits: Limits, snapshot: Snapshot, now: datetime) -> bool:
    if limits.mint_now.get(demand.forge, 0) < 1:
        return False
    keys = (demand.forge_key, demand.key)
    return all(snapshot.retry_after.get(key, now) <= now for key in keys)


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
