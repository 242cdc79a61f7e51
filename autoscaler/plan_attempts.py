"""Part of plan: which jobs only an on_demand machine shall cover, because they were lost too often on spot.

Pure. Such a job waits for a machine of its own kind that is ready, coming, or can be bought; where none can, it takes
what there is. With a label of its run's own no other job's machine ever stands in for it at its forge.
"""

from dataclasses import dataclass, field

from autoscaler.cooling import place_of
from autoscaler.model import Instance, InstanceState, Job, Pool
from autoscaler.plan_limits import runtime_h_of
from autoscaler.plan_tick import Fleet, Tick
from autoscaler.spi import CapacityType


@dataclass(slots=True)
class Apart:
    """`jobs` are those that only on_demand shall cover: `ready` machines of that kind, then so many that are `coming`.
    The others are for what there is."""

    jobs: list[Job] = field(default_factory=list)
    ready: list[Instance] = field(default_factory=list)
    coming: int = 0
    other_jobs: list[Job] = field(default_factory=list)
    other_ready: list[Instance] = field(default_factory=list)


def set_apart(tick: Tick, pool: Pool, fleet: Fleet, jobs: list[Job], ready: list[Instance]) -> Apart:
    """Split a pool's uncovered jobs and its ready machines."""
    due = [job for job in jobs if job.attempt >= pool.on_demand_from] if pool.spot_enabled else []
    if not due:
        return Apart(other_jobs=jobs, other_ready=ready)
    able = [machine for machine in ready if _is_on_demand(machine)]
    coming = sum(1 for row in fleet.rows if row.state in _COMING and _is_on_demand(row) and not row.adopted)
    if not _can_buy(tick, pool, fleet):
        due = due[: len(able) + coming]
    chosen, kept = {job.id for job in due}, {machine.id for machine in able[: len(due)]}
    return Apart(
        jobs=due,
        ready=able[: len(due)],
        coming=coming,
        other_jobs=[job for job in jobs if job.id not in chosen],
        other_ready=[machine for machine in ready if machine.id not in kept],
    )


_COMING = (InstanceState.REQUESTED, InstanceState.LAUNCHED)


def _is_on_demand(machine: Instance) -> bool:
    return machine.capacity_pool is not None and machine.capacity_pool.capacity_type is CapacityType.ON_DEMAND


def _can_buy(tick: Tick, pool: Pool, fleet: Fleet) -> bool:
    """Whether an on_demand machine could be launched now: a job that waits for one must not wait in vain beside a
    machine that could take it."""
    spoilage = tick.snapshot.spoilage.get(pool.name)
    if fleet.live >= pool.max or (spoilage is not None and spoilage.count >= 2):
        return False
    runtime_h = runtime_h_of(pool)
    for one in tick.snapshot.offerings.get(pool.name, ()):
        place = one.capacity_pool
        if place.capacity_type is not CapacityType.ON_DEMAND:
            continue
        if tick.closures.of(place_of(place), place) or tick.closures.provider(pool, place.provider):
            continue
        rooms = tick.limits.rooms(place.provider, spill_of=pool.name)
        if min(bound for room in rooms for bound, _ in room.bounds(one.price_usd_hour, runtime_h)) >= 1:
            return True
    return False
