"""What machines cost, by use. Pure: from an instance's row to cost lines, in whole nano-dollars so that sums are exact.

Each second of a machine between its launch and its end goes to one use, by the state it was in:

    boot      launched, starting          from the cloud's launch, whenever we hear of it, to the agent's hello
    idle      ready, registering, idle, terminating; and what a billing minimum adds to a short life
    job       busy, draining
    lost      what was job, once the job was lost with the machine
    stopped   stopping, stopped           the disk of a stopped machine

A row carries the seconds (`accrued`); its end turns them into lines (`cost_lines`), which the store keeps and may turn
from job to lost, or back, for as long as the job's fate is open. Billing rules come from the provider's traits; sources
in docs/decisions.md.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from autoscaler.model import CostLine, Instance, InstanceState, Use
from autoscaler.spi import CapacityType, ProviderTraits

NANO = 1_000_000_000
_HOUR_US = 3_600_000_000
_SECOND_US = 1_000_000

_S = InstanceState
_USES = {
    _S.LAUNCHED: Use.BOOT,
    _S.STARTING: Use.BOOT,
    _S.READY: Use.IDLE,
    _S.REGISTERING: Use.IDLE,
    _S.IDLE: Use.IDLE,
    _S.TERMINATING: Use.IDLE,
    _S.BUSY: Use.JOB,
    _S.DRAINING: Use.JOB,
    _S.STOPPING: Use.STOPPED,
    _S.STOPPED: Use.STOPPED,
}


def accrued(row: Instance, now: datetime) -> Instance:
    """The row with the time in its present state added to its uses, as of `now`. Call when it leaves the state."""
    use = _USES.get(row.state)
    if use is None or row.provider_id is None:
        return row
    spent = max(0, (now - row.since) // timedelta(microseconds=1))
    match use:
        case Use.BOOT:
            return replace(row, boot_us=row.boot_us + spent)
        case Use.JOB:
            return replace(row, job_us=row.job_us + spent)
        case Use.STOPPED:
            return replace(row, stopped_us=row.stopped_us + spent)
        case _:
            return replace(row, idle_us=row.idle_us + spent)


def cost_lines(row: Instance, traits: ProviderTraits, at: datetime) -> tuple[CostLine, ...]:
    """The lines of an accrued row that ended, or would end, at `at`; one per use that took time.

    A machine that its cloud ended within its free time, before we or its agent did, costs nothing but what it stood
    stopped.
    """
    if row.provider_id is None:
        return ()
    minimum = round(traits.minimum_billed_s * _SECOND_US) * max(1, row.starts)
    running = row.boot_us + row.idle_us + row.job_us
    free = row.is_ended_by_cloud and running <= traits.reclaimed_free_s * _SECOND_US
    added = max(0, minimum - running) if running and not free else 0
    price, on_demand = row.price_usd_hour, _on_demand_usd_hour(row)
    resting = traits.stopped_share * on_demand
    times = (
        (Use.BOOT, row.boot_us, price),
        (Use.IDLE, row.idle_us + added, price),
        (Use.JOB, row.job_us, price),
        (Use.STOPPED, row.stopped_us, resting),
    )
    return tuple(
        CostLine(
            instance=row.id,
            use=use,
            ended_at=at,
            provider=row.provider,
            pool=row.pool,
            capacity_type=row.capacity_pool.capacity_type if row.capacity_pool else CapacityType.SPOT,
            repo=row.repo,
            workflow=row.workflow,
            milliseconds=spent // 1000,
            usd_nano=0 if free and use is not Use.STOPPED else _nano(usd_hour, spent),
            on_demand_usd_nano=_nano(resting if use is Use.STOPPED else on_demand, spent),
        )
        for use, spent, usd_hour in times
        if spent
    )


def _on_demand_usd_hour(row: Instance) -> float:
    """What the machine costs on demand; its own price where nobody says, so that it saves nothing."""
    return row.price_usd_hour if row.on_demand_usd_hour is None else row.on_demand_usd_hour


def _nano(usd_hour: float, microseconds: int) -> int:
    return round(usd_hour * NANO * microseconds / _HOUR_US)
