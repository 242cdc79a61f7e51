"""Money and machine time of a demo, from the histories of its machines. Pure.

A machine is billed per second from its launch, whenever we heard of it, until it is terminated; one that the end found
alive, until then. What it was used for follows from its states: booting, working for a job, the rest is idle. A life
shorter than its provider's minimum pays for the minimum, one that its cloud ended early enough pays nothing. The daemon
counts the same as it goes (`money`); this is separate code on purpose.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from autoscaler.model import Instance, InstanceMove, InstanceState, JobState
from autoscaler.sandbox.demo_records import DemoRecords, JobRecord
from autoscaler.spi import CapacityType, InstanceId

USES = ("job", "idle", "boot", "lost", "stopped")
_DIGITS = 9
_BOOTING = (InstanceState.REQUESTED, InstanceState.LAUNCHED, InstanceState.STARTING)
_WORKING = (InstanceState.BUSY, InstanceState.DRAINING)
_STOPPED = (InstanceState.STOPPING, InstanceState.STOPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class BilledSpan:
    """What a machine cost in one of its states."""

    use: str
    capacity_type: CapacityType
    seconds: float
    usd: float


def capacity_type_of(row: Instance) -> CapacityType:
    return CapacityType.SPOT if row.capacity_pool is None else row.capacity_pool.capacity_type


def billed_spans(records: DemoRecords) -> Iterator[BilledSpan]:
    lost = {job.id for job in records.stored_jobs if job.state in (JobState.LOST, JobState.REQUEUED)}
    lost |= {job.id for job in records.stored_jobs if job.state is JobState.ABANDONED and job.started_at is not None}
    traits = records.traits
    for row in records.instances:
        if row.provider_id is None:
            continue
        states = list(_billed_states(row, records.moves.get(row.id, ()), records.ended_at))
        running = math.fsum(seconds for state, seconds in states if state not in _STOPPED)
        is_free = row.is_ended_by_cloud and running <= traits.reclaimed_free_s
        missing = traits.minimum_billed_s - running
        if missing > 0 and running > 0 and not is_free:
            states.append((InstanceState.IDLE, missing))
        for state, seconds in states:
            price = 0.0 if is_free else row.price_usd_hour
            yield BilledSpan(
                use=_use(state, was_lost=row.job in lost),
                capacity_type=capacity_type_of(row),
                seconds=seconds,
                usd=seconds * price / 3600,
            )


def _billed_states(
    row: Instance, moves: Sequence[InstanceMove], ended_at: float
) -> Iterator[tuple[InstanceState, float]]:
    """Each state from the launch on, with the seconds in it; what we did not know of yet was its boot."""
    billed = [move for move in moves if move.to_state is not InstanceState.REQUESTED]
    if row.launched_at is not None and billed:
        yield InstanceState.LAUNCHED, max(0.0, (billed[0].at - row.launched_at).total_seconds())
    ends = [move.at.timestamp() for move in billed[1:]] + [ended_at]
    for move, end in zip(billed, ends, strict=False):
        if move.to_state is not InstanceState.TERMINATED:
            yield move.to_state, max(0.0, end - move.at.timestamp())


def _use(state: InstanceState, *, was_lost: bool) -> str:
    if state in _BOOTING:
        return "boot"
    if state in _WORKING:
        return "lost" if was_lost else "job"
    return "stopped" if state in _STOPPED else "idle"


def cost_document(spans: Iterable[BilledSpan]) -> dict[str, float]:
    """`cost_usd` of the report: the uses add up to the total, and so do spot and on_demand."""
    by_use: dict[str, list[float]] = defaultdict(list)
    by_type: dict[CapacityType, list[float]] = defaultdict(list)
    for span in spans:
        by_use[span.use].append(span.usd)
        by_type[span.capacity_type].append(span.usd)
    return {
        "total": round(math.fsum(usd for amounts in by_use.values() for usd in amounts), _DIGITS),
        **{use: round(math.fsum(by_use[use]), _DIGITS) for use in USES},
        "spot": round(math.fsum(by_type[CapacityType.SPOT]), _DIGITS),
        "on_demand": round(math.fsum(by_type[CapacityType.ON_DEMAND]), _DIGITS),
    }


def ran_s(job: JobRecord) -> float:
    """Seconds of the attempt that counts."""
    last = job.attempts[-1] if job.attempts else None
    if job.conclusion is None or last is None or last.started_at is None or last.finished_at is None:
        return 0.0
    return max(0.0, last.finished_at - last.started_at)


def lost_s(job: JobRecord) -> float:
    """Seconds of work in attempts that did not count."""
    return math.fsum(
        max(0.0, one.finished_at - one.started_at)
        for one in job.attempts[:-1]
        if one.started_at is not None and one.finished_at is not None
    )


def shares(records: DemoRecords) -> tuple[float, float]:
    """`on_demand_share` of useful seconds and `wasted_share` of all job seconds."""
    by_runner = {row.runner_name: row for row in records.instances if row.runner_name}
    useful = on_demand = lost = 0.0
    for job in records.jobs:
        seconds = ran_s(job)
        useful += seconds
        lost += lost_s(job)
        machine = by_runner.get(job.runners[-1]) if job.runners else None
        if machine is not None and capacity_type_of(machine) is CapacityType.ON_DEMAND:
            on_demand += seconds
    worked = useful + lost
    return (on_demand / useful if useful else 0.0), (lost / worked if worked else 0.0)


def cost_ratio(records: DemoRecords, total_usd: float) -> float | None:
    """Total over the useful job hours at the price of the cheapest on-demand pool that fits; None without a price."""
    due: list[float] = []
    for job in records.jobs:
        pool = records.pools.get(records.pool_name(job))
        if pool is not None and pool.on_demand_usd_hour is not None:
            due.append(ran_s(job) / 3600 * pool.on_demand_usd_hour)
    needed = math.fsum(due)
    return round(total_usd / needed, 4) if needed > 0 else None


def lives(records: DemoRecords) -> Iterator[tuple[str, float, float]]:
    """(pool, from, to) of every row, from the moment that it counted against the caps."""
    for row in records.instances:
        moves = records.moves.get(row.id, ())
        if not moves:
            continue
        ended = moves[-1].to_state is InstanceState.TERMINATED
        yield row.pool, moves[0].at.timestamp(), moves[-1].at.timestamp() if ended else records.ended_at


def peak(spans: Iterable[tuple[str, float, float]]) -> int:
    """The most machines at one time."""
    live = most = 0
    for _, change in sorted((at, change) for _, start, end in spans for at, change in ((start, 1), (end, -1))):
        live += change
        most = max(most, live)
    return most


def caps_exceeded_s(records: DemoRecords) -> float:
    """Seconds above a cap, added up over the pools' and the deployment's."""
    spans = list(lives(records))
    over = [_over_s([span for span in spans if span[0] == pool.name], pool.max) for pool in records.pools.values()]
    if records.cap_instances is not None:
        over.append(_over_s(spans, records.cap_instances))
    return round(math.fsum(over), 3)


def _over_s(spans: Sequence[tuple[str, float, float]], cap: int) -> float:
    edges = sorted((at, change) for _, start, end in spans for at, change in ((start, 1), (end, -1)))
    live, since, over = 0, 0.0, []
    for at, change in edges:
        if live > cap:
            over.append(at - since)
        live += change
        since = at
    return math.fsum(over)


def launches(rows: Iterable[Instance], moves: Mapping[InstanceId, Sequence[InstanceMove]]) -> dict[str, int]:
    """Launches by outcome. `started` are starts of stopped machines."""
    found = {"spot": 0, "on_demand": 0, "started": 0, "refused": 0}
    for row in rows:
        if row.provider_id is None:
            found["refused"] += row.ending == "refused"
            continue
        found["spot" if capacity_type_of(row) is CapacityType.SPOT else "on_demand"] += 1
        found["started"] += sum(1 for move in moves.get(row.id, ()) if move.from_state is InstanceState.STARTING)
    return found
