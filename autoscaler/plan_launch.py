"""Part of plan: which machines a pool should launch, in the order in which they are to be served.

    jobs            queued, and no machine covers them
    replacements    for lost jobs that will be queued again by the time that the machine is up (`plan_requeue`)
    races           beside a machine that is late: whichever comes first takes the job, the other one is surplus
    foreseen        for jobs that a live run will likely queue by then
    min             so many stand free of a job

Pure. What is wanted is cut to what the forges can register by then and to what the pool's last machines leave; then
pools of equal priority take turns (`plan_shares`), and `plan_place` finds each machine a place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from autoscaler.model import Blocked, BlockedBy, Foreseen, Job, Pool
from autoscaler.plan_place import Placing
from autoscaler.plan_shares import Turn, most_launches, portions, told
from autoscaler.plan_tick import Fleet, Purpose, Tick, Want
from autoscaler.plan_words import seconds
from autoscaler.spi import BatchToken

GATHER = timedelta(seconds=0.1)
LONGEST_GATHER = timedelta(seconds=1)
GATHERED_OVER = timedelta(seconds=10)
"""Each batch of the last 10 s delays a pool's next one by 0.1 s, up to 1 s: the first job of a burst is asked for at
once, and a thousand jobs that come over some seconds need a dozen calls instead of one per tick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What of a pool's needs no machine covers."""

    jobs: Sequence[Job]
    raced: Sequence[Job]
    """Jobs whose machine is late."""
    ahead: Sequence[Job | Foreseen]
    """Jobs that will be queued by the time that a machine launched now is up: lost ones, then foreseen ones."""


def wanted(tick: Tick, pool: Pool, needs: Needs, *, standing: int, fleet: Fleet) -> list[Want]:
    """The machines to launch for these needs, and until `min` machines stand free of a job, most urgent first."""
    wants = [_for_job(tick, job) for job in _within_budget(tick, pool, needs.jobs, fleet)]
    wants += [_for_lost(tick, job) for job in needs.ahead if isinstance(job, Job)]
    wants += [Want(purpose=Purpose.RACE, hours=tick.snapshot.hours.get(job.work)) for job in needs.raced]
    wants += [Want(purpose=Purpose.FORESEEN, hours=one.hours) for one in needs.ahead if isinstance(one, Foreseen)]
    wants += [Want(purpose=Purpose.MIN)] * (pool.min - standing - len(wants))
    return _within_hold(tick, pool, wants, standing, fleet) if wants else wants


def place_in_turn(tick: Tick, turns: Sequence[Turn]) -> None:
    """Find a place for what pools of equal priority want: for each as much as its turns give it, then for all others
    that somebody waits for, as some may have left what they could have had, and then for the rest."""
    blocked = tick.supply.blocked
    told_before = len(blocked)
    given = portions(tick, turns)
    cuts = [(0, count, max(count, turn.urgent), len(turn.wants)) for turn, count in zip(turns, given, strict=True)]
    for part in range(3):
        for turn, cut in zip(turns, cuts, strict=True):
            if wants := turn.wants[cut[part] : cut[part + 1]]:
                Placing(tick, turn.pool, turn.fleet, wants).place()
    fresh = blocked[told_before:]
    del blocked[told_before:]
    for turn in turns:
        blocked += told(turn, [one for one in fresh if one.pool == turn.pool.name])


def _for_job(tick: Tick, job: Job) -> Want:
    return Want(purpose=Purpose.JOB, job=job, hours=tick.snapshot.hours.get(job.work), attempt=job.attempt)


def _for_lost(tick: Tick, job: Job) -> Want:
    hours = tick.snapshot.hours.get(job.work)
    return Want(purpose=Purpose.REPLACEMENT, job=job, hours=hours, attempt=job.attempt + 1)


def _within_budget(tick: Tick, pool: Pool, unserved: Sequence[Job], fleet: Fleet) -> list[Job]:
    """The jobs whose forges can register a runner by the time that a machine is up. What the caps leave no machine for
    draws on no budget, as other pools would miss it."""
    mint_soon, within, beyond = tick.limits.mint_soon, list[Job](), list[Job]()
    drawing = most_launches(tick, pool, fleet) if unserved else 0.0
    for job in unserved:
        if len(within) >= drawing:
            within.append(job)
        elif mint_soon.get(job.forge, 0.0) >= 1:
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
    held = tuple(want.job.id for want in wants[left:] if want.job is not None and want.purpose is Purpose.JOB)
    if held or by is BlockedBy.BOOTS:
        tick.block(Blocked(pool=pool.name, jobs=len(held), reason=reason, by=by, ids=held, again_at=again_at))
    tick.supply.wake(again_at)
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
