"""Part of plan: machines for queued jobs, and machines that nobody needs.

Pure. Per pool, oldest job first or in turn where not all can be served (`plan_shares`), each queued job is covered by
at most one machine and each machine covers at most one job: a registered runner that may take it, then a ready machine
(which gets a registration for exactly this demand), then a machine that is still coming, then a new launch, as far as
the caps and the forge's registration budget go (`plan_launch`). Jobs left over are explained in `blocked`. Machines
left over cover lost jobs that will be queued again and jobs that are foreseen; then they are surplus.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby

from autoscaler.cooling import Closures
from autoscaler.model import (
    Blocked,
    BlockedBy,
    Demand,
    EndReason,
    Foreseen,
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
from autoscaler.plan_attempts import set_apart
from autoscaler.plan_cover import Key, ahead_of, counted, cover, cover_coming, late_after
from autoscaler.plan_launch import Needs, place_in_turn, wanted
from autoscaler.plan_limits import Limits, limits_of
from autoscaler.plan_requeue import expected_boot, replacements
from autoscaler.plan_shares import Turn, in_turn, is_short
from autoscaler.plan_tick import Fleet, Supply, Tick
from autoscaler.plan_words import seconds
from autoscaler.spi import InstanceId, PoolName, ProviderName

UNTOLD = timedelta(minutes=2)
"""A runner may be seen busy before its job is seen running: so long it stands for one queued job of its labels, unless
a listing of jobs that was asked for later does not show which."""
LISTED_AFTER = timedelta(seconds=10)
"""A listing of jobs may be behind what its forge says of runners by this much."""


def plan_supply(snapshot: Snapshot, rules: Rules, now: datetime, *, leaving: set[InstanceId]) -> Supply:
    """Registrations, launches and surplus for every pool. Pools of higher priority draw on the caps first; among those
    of equal priority the one with the fewest machines registers its jobs first, and launches are shared."""
    supply = Supply()
    tick = Tick(
        snapshot=snapshot,
        rules=rules,
        now=now,
        limits=limits_of(snapshot, rules, now),
        supply=supply,
        closures=Closures(snapshot, now),
    )
    demand = _demand_of(tick)
    fleets: dict[PoolName, Fleet] = defaultdict(Fleet)
    times = late_after(snapshot.arrivals)
    for instance in snapshot.instances.values():
        _count(fleets[instance.pool], instance, leaving, times, tick)
    pools = sorted(rules.pools.values(), key=lambda pool: (-pool.priority, fleets[pool.name].live, pool.name))
    for _, equals in groupby(pools, key=lambda pool: pool.priority):
        place_in_turn(tick, [_supply_pool(pool, demand[pool.name], fleets[pool.name], tick) for pool in equals])
    for name, fleet in fleets.items():
        everything = {f"{forge}/jobs" for forge in snapshot.forges}
        if name not in rules.pools and snapshot.complete.issuperset(everything):
            _release_surplus(fleet.registered, fleet.ready, now, timedelta(0), "its pool left the config", supply)
    return supply


@dataclass(slots=True)
class _Demand:
    """What a pool's machines are for: `queued` jobs, and those that will be by the time that a machine is up."""

    queued: list[Job] = field(default_factory=list)
    lost: list[Job] = field(default_factory=list)
    foreseen: list[Foreseen] = field(default_factory=list)


def _demand_of(tick: Tick) -> dict[PoolName, _Demand]:
    snapshot, found = tick.snapshot, defaultdict[PoolName, _Demand](_Demand)
    for job in snapshot.jobs.values():
        if job.state is JobState.QUEUED and job.pool is not None and job.forge in snapshot.forges:
            found[job.pool].queued.append(job)
    replaced = replacements(snapshot, tick.rules, tick.now)
    tick.supply.wake(replaced.wake_at)
    for name, wants in replaced.wants.items():
        found[name].lost += [want.job for want in wants if want.job is not None]
    for one in snapshot.foreseen:
        pool = tick.rules.pools.get(one.pool)
        if pool is None or one.forge not in snapshot.forges:
            continue
        starts_at, ends_at = one.due_at - expected_boot(pool, snapshot), one.due_at + pool.idle_timeout
        if starts_at <= tick.now < ends_at:
            found[pool.name].foreseen.append(one)
            tick.supply.wake(ends_at)
        elif tick.now < starts_at:
            tick.supply.wake(starts_at)
    for demand in found.values():
        demand.queued.sort(key=lambda job: (job.queued_at, job.id))
        demand.foreseen.sort(key=lambda one: (one.due_at, one.repo, one.run_id, one.labels))
    return found


def _count(
    fleet: Fleet,
    instance: Instance,
    leaving: set[InstanceId],
    times: Mapping[tuple[PoolName, ProviderName], tuple[timedelta, timedelta]],
    tick: Tick,
) -> None:
    fleet.rows.append(instance)
    fleet.live += 1
    if instance.id in leaving:
        return
    match instance.state:
        case InstanceState.REGISTERING | InstanceState.IDLE:
            fleet.registered.append(instance)
        case InstanceState.BUSY if instance.job is None and _may_be_queued(instance, tick):
            fleet.untold.append(instance)
        case InstanceState.READY:
            fleet.ready.append(instance)
        case InstanceState.REQUESTED | InstanceState.LAUNCHED if not instance.adopted:
            fleet.coming += 1
            if (known := times.get((instance.pool, instance.provider))) is not None:
                late_at, overdue_at = (instance.created_at + after for after in known)
                fleet.overdue += tick.now >= overdue_at
                if tick.now >= late_at:
                    fleet.late += 1
                    if (place := instance.capacity_pool) is not None:
                        fleet.late_zones.add((place.provider, place.zone))
                if tick.now < overdue_at:
                    tick.supply.wake(overdue_at if tick.now >= late_at else late_at)
        case _:
            pass


def _may_be_queued(runner: Instance, tick: Tick) -> bool:
    """Whether what a busy runner runs may be one of the jobs that we still take for queued."""
    listed_at = tick.snapshot.jobs_listed.get(runner.demand.forge) if runner.demand is not None else None
    is_listed = listed_at is not None and listed_at >= runner.since + LISTED_AFTER
    return tick.now < runner.since + UNTOLD and not is_listed


def _supply_pool(pool: Pool, demand: _Demand, fleet: Fleet, tick: Tick) -> Turn:
    """Registers the pool's ready machines, ends what nobody needs. Returns what it wants launched."""
    jobs, turn = demand.queued, Turn(pool=pool, fleet=fleet, jobs=demand.queued)
    takers = _takers(fleet.registered, jobs, tick)
    uncovered, spare_runners = cover(cover(jobs, fleet.untold)[0], takers)
    if is_short(tick, pool, fleet, uncovered):
        turn.is_short, left = True, {job.id for job in uncovered}
        uncovered = in_turn(uncovered, fleet, [job for job in jobs if job.id not in left])
    ready = sorted(fleet.ready, key=lambda instance: (instance.since, instance.id))
    apart = set_apart(tick, pool, fleet, uncovered, ready)
    held, spare_apart = _register(pool, apart.jobs, apart.ready, tick)
    waiting, spare_ready = _register(pool, apart.other_jobs, [*apart.other_ready, *spare_apart], tick)
    unserved_apart = cover_coming(held, apart.coming, tick.limits)
    promised = len(held) - len(unserved_apart)
    unserved, coming = cover_coming(waiting, max(0, counted(fleet) - promised), tick.limits), fleet.coming - promised
    raced = unserved[: len(unserved) - max(0, len(waiting) - coming)]
    spare_coming = max(0, coming - len(waiting))
    ahead = ahead_of(demand.lost, demand.foreseen)
    needs = Needs(
        jobs=[*unserved_apart, *unserved[len(raced) :]],
        raced=raced,
        ahead=cover(ahead, spare_runners)[0][len(spare_ready) + spare_coming :],
    )
    standing = len(takers) + len(ready) + fleet.coming
    control = tick.snapshot.controls.get(pool.name, PoolControl.ACTIVE)
    if control is PoolControl.ACTIVE:
        turn.wants = wanted(tick, pool, needs, standing=standing, fleet=fleet)
    elif needs.jobs:
        _explain_control(pool, needs.jobs, control, tick)
    covering = standing - len(spare_runners) - len(spare_ready) - spare_coming
    _end_surplus(pool, control, spare_runners, spare_ready, max(pool.min - covering, len(ahead)) - spare_coming, tick)
    return turn


def _explain_control(pool: Pool, jobs: Sequence[Job], control: PoolControl, tick: Tick) -> None:
    word = "paused" if control is PoolControl.PAUSED else "draining"
    reason = f"pool {pool.name} is {word} by an operator"
    ids = tuple(job.id for job in jobs)
    tick.block(Blocked(pool=pool.name, jobs=len(ids), reason=reason, by=BlockedBy.OPERATOR, ids=ids))


def _end_surplus(
    pool: Pool, control: PoolControl, runners: list[Instance], ready: list[Instance], kept: int, tick: Tick
) -> None:
    """Of machines that no queued job needs, `kept` stay, ready ones first: for `min`, and for jobs that will come."""
    snapshot = tick.snapshot
    listings = {f"{forge}/jobs" for forge in snapshot.forges if forge in (pool.forges or snapshot.forges)}
    listings.update(row.provider for row in (*runners, *ready))
    if not snapshot.complete.issuperset(listings):
        return  # a forge that cannot be read may hold jobs that need these machines
    is_draining = control is PoolControl.DRAINING
    patience = timedelta(0) if is_draining else pool.idle_timeout
    kept_ready = 0 if is_draining else max(0, kept)
    kept_runners = max(0, kept_ready - len(ready))
    word = "pool is draining" if is_draining else f"idle for {pool.idle_timeout}"
    _release_surplus(runners[kept_runners:], ready[kept_ready:], tick.now, patience, word, tick.supply)


def _takers(runners: list[Instance], jobs: list[Job], tick: Tick) -> list[Instance]:
    """Runners that may still take a job. One that is online and leaves a job that it could take for take_timeout is
    not what it seems (frozen, removed by the forge, sealed, in a group that does not see the repo): it is released."""
    snapshot, rules, now, supply = tick.snapshot, tick.rules, tick.now, tick.supply
    oldest: dict[Key, datetime] = {}
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


def _register(pool: Pool, jobs: list[Job], ready: list[Instance], tick: Tick) -> tuple[list[Job], list[Instance]]:
    """Give ready machines to the first uncovered jobs. Returns the jobs and the ready machines left over.

    A job whose forge is out of budget or failing comes after those that can be registered now; it keeps its claim on
    a ready machine that is left, and gets it as soon as it can.
    """
    limits, snapshot, now, supply = tick.limits, tick.snapshot, tick.now, tick.supply
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
    _explain_held(pool, held[: len(left)], tick)
    return held[len(left) :], list(reversed(left))[len(held) :]


def _explain_held(pool: Pool, jobs: list[Job], tick: Tick) -> None:
    """Jobs that have a ready machine and cannot have it registered yet, by what holds them."""
    limits, snapshot, now, supply = tick.limits, tick.snapshot, tick.now, tick.supply
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
