"""What the ledger says of a runner that took another job than one of those it was registered for.

Pure. A forge gives a runner any job that its labels allow, whatever we launched it for. Nothing needs to be undone:
demand is counted anew in each tick, so the job that has lost its runner has a machine launched in the next one. That it
happened is on record, because it costs somebody a wait and nobody would know why.
"""

from datetime import datetime

from autoscaler.model import Demand, Instance, Job, LedgerEntry
from autoscaler.spi import ForgeJob


def stolen_line(machine: Instance, seen: ForgeJob, job: Job | None, now: datetime) -> LedgerEntry | None:
    """None where the job is one of those that the machine's runner was registered for. `machine` is as it was before;
    `job` is the row of what it runs, None where that ended before we heard of it."""
    demand = machine.demand
    if demand is None or not (why := _difference(machine, demand, job, now)):
        return None
    return LedgerEntry(
        at=now,
        actor=demand.forge,
        action="runner_stolen",
        subject=machine.id,
        pool=machine.pool,
        reason=f"its runner, registered for {_named(demand)}, was given {seen.name} of {seen.repo}, {why}",
        outcome="the job it was registered for is counted again",
        evidence=f"{seen.forge} says that {seen.runner_name} runs job {seen.forge_job_id}",
    )


def _difference(machine: Instance, demand: Demand, job: Job | None, now: datetime) -> str:
    if job is None or job.first_seen_at >= now:
        return "which we had not seen queued"
    if job.pool is None:
        return "which no pool serves"
    if job.pool != machine.pool:
        return f"which is pool {job.pool}'s"
    if (job.forge, job.scope, job.labels) != (demand.forge, demand.scope, demand.labels):
        return f"which asks for {', '.join(job.labels)}"
    return ""


def _named(demand: Demand) -> str:
    return f"{', '.join(demand.labels)} in {demand.scope}"
