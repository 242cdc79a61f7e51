"""Part of plan: which machines a pool should launch: for the jobs that no machine covers, and for `min`.

Pure. What is wanted is cut to what the forges can register by then and to what the pool's last machines leave;
`plan_place` finds the rest a place.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from autoscaler.model import Blocked, BlockedBy, Job, Pool
from autoscaler.plan_place import Placing
from autoscaler.plan_tick import Fleet, Purpose, Tick, Want
from autoscaler.plan_words import seconds
from autoscaler.spi import BatchToken

GATHER = timedelta(seconds=0.1)
LONGEST_GATHER = timedelta(seconds=1)
GATHERED_OVER = timedelta(seconds=10)
"""Each batch of the last 10 s delays a pool's next one by 0.1 s, up to 1 s: the first job of a burst is asked for at
once, and a thousand jobs that come over some seconds need a dozen calls instead of one per tick."""


def launch(tick: Tick, pool: Pool, unserved: Sequence[Job], standing: int, fleet: Fleet) -> None:
    """Launch for the jobs that no machine covers, and until `min` machines stand free of a job."""
    jobs = _within_budget(tick, pool, unserved)
    wants = [_want(tick, job) for job in jobs]
    wants += [Want(purpose=Purpose.MIN)] * (pool.min - standing - len(jobs))
    if wants:
        wants = _within_hold(tick, pool, wants, standing, fleet)
    if wants:
        Placing(tick, pool, fleet, wants).place()


def _want(tick: Tick, job: Job) -> Want:
    return Want(purpose=Purpose.JOB, job=job, hours=tick.snapshot.hours.get(job.work), attempt=job.attempt)


def _within_budget(tick: Tick, pool: Pool, unserved: Sequence[Job]) -> list[Job]:
    """The jobs whose forges can register a runner by the time that a machine is up."""
    mint_soon, within, beyond = tick.limits.mint_soon, [], []
    for job in unserved:
        if mint_soon.get(job.forge, 0.0) >= 1:
            mint_soon[job.forge] -= 1
            within.append(job)
        else:
            beyond.append(job)
    if beyond:
        forges = ", ".join(sorted({job.forge for job in unserved}))
        tick.block(
            Blocked(
                pool=pool.name,
                jobs=len(beyond),
                reason=f"the registration budget of {forges} is used up; it refills by the second",
                by=BlockedBy.BUDGET,
                ids=tuple(job.id for job in beyond),
                again_at=tick.now + timedelta(seconds=1),
            )
        )
    return within


def _within_hold(tick: Tick, pool: Pool, wants: list[Want], standing: int, fleet: Fleet) -> list[Want]:
    """How many launches a pool's recent machines leave; says why not all."""
    spoilage, again_at, by = tick.snapshot.spoilage.get(pool.name), None, BlockedBy.BOOTS
    if spoilage is not None and spoilage.count >= 2:
        what = f"the last {spoilage.count} machines of pool {pool.name} were of no use ({spoilage.reason})"
        if spoilage.until > tick.now:
            again_at, left = spoilage.until, 0
            reason = f"{what}; the next one is tried in {seconds(spoilage.until, tick.now)}"
        else:
            left = min(len(wants), max(0, 1 - standing))
            reason = f"{what}; one machine at a time is tried until one takes a job"
    else:
        again_at = _gathered_at(tick, fleet)
        if again_at <= tick.now or len(wants) >= tick.rules.batch_limit:
            return wants
        left, by = 0, BlockedBy.MOMENT
        reason = "machines were asked for a moment ago; those for the jobs that came since are asked for together"
    held = tuple(want.job.id for want in wants[left:] if want.job is not None)
    tick.block(Blocked(pool=pool.name, jobs=len(held), reason=reason, by=by, ids=held, again_at=again_at))
    return wants[:left]


def _gathered_at(tick: Tick, fleet: Fleet) -> datetime:
    """When the next small batch of a pool may go."""
    recent: dict[BatchToken, datetime] = {}
    for row in fleet.rows:
        if row.created_at + GATHERED_OVER > tick.now and not row.adopted:
            recent[row.token] = row.created_at
    if not recent:
        return tick.now
    return max(recent.values()) + min(GATHER * len(recent), LONGEST_GATHER)
