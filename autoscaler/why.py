"""Why a job waits, in one sentence, when it will start and what to do about it. The answer people otherwise dig out of
logs.

Pure: reads an `Outlook`; no clock, no I/O. Sentences are for people who wait for CI: they name the thing in the way and
since when or until when, never an internal state word alone. Files beside this one: `why_start` (when), `why_unserved`
(jobs that no pool serves), `why_story` (what happened to it so far), `why_machine` (who ended a machine), `why_words`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

from autoscaler.model import (
    Blocked,
    BlockedBy,
    Instance,
    InstanceMove,
    InstanceState,
    Interruption,
    Job,
    JobState,
    Pool,
    PoolControl,
)
from autoscaler.spi import CapacityType, InstanceId
from autoscaler.why_outlook import Outlook
from autoscaler.why_start import REQUEUED_IN, Estimate, with_machine, with_new_machine
from autoscaler.why_unserved import advice_of, why_unserved
from autoscaler.why_words import ago, because, clock, sentence, taker, where


@dataclass(frozen=True, slots=True, kw_only=True)
class Spill:
    """That a job's machine is on demand in a pool with spot: since when, and why, in words."""

    since: datetime
    reason: str
    machine: InstanceId


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`sentence` says where the job stands; `start` when a waiting one will start; `advice` what somebody has to change
    before it can; `spill` why its machine costs more; `expected` is the machine that it will most likely get."""

    sentence: str
    start: Estimate
    advice: str = ""
    spill: Spill | None = None
    expected: InstanceId | None = None


def answer(
    job: Job,
    outlook: Outlook,
    *,
    machine_moves: Sequence[InstanceMove] = (),
    taken: Interruption | None = None,
    latest: Job | None = None,
    failed: Instance | None = None,
) -> Answer:
    """Where a job stands and, while it waits, what for. `machine_moves` are of the machine that it has or will most
    likely get, `taken` the record of that machine's loss, `latest` the newest attempt at the same work, `failed` its
    pool's last machine that was of no use, as far as they are known: many answers for a list do without."""
    expected = outlook.expected.get(job.id) if job.state is JobState.QUEUED else None
    own = outlook.snapshot.instances.get(job.instance) if job.instance is not None else None
    machine = expected or own
    spill = spill_of(machine, machine_moves, outlook) if machine is not None else None
    return Answer(
        sentence=_sentence(job, outlook, spill, taken, latest),
        start=estimate(job, outlook),
        advice=_advice(job, outlook, failed) if job.state is JobState.QUEUED else "",
        spill=spill,
        expected=expected.id if expected is not None else None,
    )


def why(job: Job, outlook: Outlook) -> str:
    """The sentence alone."""
    return answer(job, outlook).sentence


def are_boots_failing(job: Job, outlook: Outlook) -> bool:
    """Whether a job waits because its pool's machines do not come up."""
    blocked = outlook.blocked_by(job) if job.state is JobState.QUEUED else None
    return blocked is not None and blocked.by is BlockedBy.BOOTS


def _advice(job: Job, outlook: Outlook, failed: Instance | None) -> str:
    """What somebody has to do before the job can run; "" where it will by itself."""
    if job.pool is None:
        return advice_of(job, outlook)
    if outlook.control(job.pool) is not PoolControl.ACTIVE and job.id not in outlook.expected:
        return f"When it may work again: autoscaler resume {job.pool}"
    if not are_boots_failing(job, outlook):
        return ""
    image = "If a new image or a change of its start brought this, go back to the one before."
    if failed is None:
        return image
    cloud = f", and its console at {failed.provider} ({failed.provider_id})" if failed.provider_id is not None else ""
    return f"The last one to fail was {failed.id}: autoscaler why {failed.id}{cloud} may say more. {image}"


def spill_of(machine: Instance, moves: Sequence[InstanceMove], outlook: Outlook) -> Spill | None:
    """Why a machine is on demand in a pool with spot; the reason that it was launched for tells."""
    pool, place = outlook.rules.pools.get(machine.pool), machine.capacity_pool
    if pool is None or not pool.spot_enabled or place is None or place.capacity_type is not CapacityType.ON_DEMAND:
        return None
    cause = next((move.cause for move in moves if move.to_state is InstanceState.REQUESTED), "")
    _, _, told = cause.partition("on_demand ")
    return Spill(since=machine.created_at, reason=(told or cause).strip(), machine=machine.id)


# --------------------------------------------------------------------------- sentences


def _sentence(job: Job, outlook: Outlook, spill: Spill | None, taken: Interruption | None, latest: Job | None) -> str:
    match job.state:
        case JobState.QUEUED:
            return _why_queued(job, outlook, spill)
        case JobState.RUNNING:
            return _why_running(job, outlook, taken)
        case JobState.LOST:
            return _why_lost(job, outlook, taken)
        case JobState.REQUEUED:
            again = latest.id if latest is not None and latest.id != job.id else job.successor
            told = f"{_loss(job, taken)}, and it was queued again{f' as {again}' if again else ''}."
            return f"{told} {_sentence(latest, outlook, None, None, None)}" if latest is not None else told
        case JobState.DONE:
            return f"It is done: {job.conclusion or 'conclusion unknown'}{because(job.reason)}."
        case JobState.ABANDONED:
            return _why_given_up(job, taken)
        case _:
            assert_never(job.state)


def _why_queued(job: Job, outlook: Outlook, spill: Spill | None) -> str:
    if job.pool is None:
        return why_unserved(job, outlook)
    pool, now = outlook.rules.pools.get(job.pool), outlook.now
    if pool is None:
        return f"Its pool {job.pool} is no longer configured; it is matched again at the next tick."
    control, machine = outlook.control(pool.name), outlook.expected.get(job.id)
    if machine is not None and control is not PoolControl.DRAINING:
        return _why_coming(job, machine, pool, now, spill)
    match control:
        case PoolControl.PAUSED:
            return f"An operator paused pool {pool.name}: it launches nothing until it is resumed."
        case PoolControl.DRAINING:
            return f"An operator is draining pool {pool.name}: it takes no new jobs until it is resumed."
        case PoolControl.ACTIVE:
            return _why_no_machine(job, pool, outlook)
        case _:
            assert_never(control)


def _why_coming(job: Job, machine: Instance, pool: Pool, now: datetime, spill: Spill | None) -> str:
    spent, bought = ago(now - machine.since), ""
    if spill is not None and spill.reason:
        bought = f" It is on demand since {clock(spill.since)} {spill.reason.rstrip('.')}."
    match machine.state:
        case InstanceState.IDLE:
            name = machine.runner_name or machine.id
            told = f"Runner {name} has been online for {spent}; {job.forge} has not assigned the job to it yet."
        case InstanceState.REGISTERING:
            told = f"Its runner on machine {machine.id} has been registering at {job.forge} for {spent}."
        case InstanceState.READY:
            told = f"Machine {machine.id} has been up for {spent} and gets its runner's registration next."
        case InstanceState.LAUNCHED:
            limit = ago(pool.boot_timeout)
            told = f"Machine {machine.id} has been booting for {spent} ({where(machine)}); it may take up to {limit}."
        case _:
            told = f"A machine was asked of {machine.provider} {spent} ago ({where(machine)}); no answer yet."
    return told + bought


def _why_no_machine(job: Job, pool: Pool, outlook: Outlook) -> str:
    snapshot, now = outlook.snapshot, outlook.now
    held = [snapshot.held_back.get((pool.name, provider), "") for provider in pool.providers]
    if all(held):
        return f"Pool {pool.name} cannot launch now: {'; '.join(text.rstrip('.') for text in held)}."
    blocked = outlook.blocked_by(job)
    if blocked is not None and blocked.reason:
        return _why_blocked(blocked, pool, outlook)
    if outlook.live.get(pool.name, 0) >= pool.max:
        live = outlook.live[pool.name]
        return f"Pool {pool.name} is at its limit: {live} of max {pool.max} machines live{_held_by(pool, outlook)}."
    total = len(snapshot.instances)
    if outlook.rules.caps.instances is not None and total >= outlook.rules.caps.instances:
        limit = outlook.rules.caps.instances
        return f"The deployment is at its limit: {total} of {limit} machines live{_held_by(None, outlook)}."
    if cooling := _why_cooling(pool, outlook):
        return cooling
    forge = snapshot.forges.get(job.forge)
    if forge is not None and not forge.is_healthy:
        return f"{job.forge} does not answer as it should, so that no runner can be registered there now."
    if forge is not None and forge.registrations_left < 1:
        return (
            f"The registration budget of {job.forge} is used up; it refills {forge.registrations_per_s:.1f} a second."
        )
    return f"Pool {pool.name} asks for a machine at its next tick; it was queued {ago(now - job.queued_at)} ago."


def _why_blocked(blocked: Blocked, pool: Pool, outlook: Outlook) -> str:
    """The plan's own words, and what they leave out: who holds what is short."""
    match blocked.by:
        case BlockedBy.CAP:
            return sentence(blocked.reason.rstrip(".") + _held_by(_capped(blocked, pool), outlook))
        case BlockedBy.BOOTS:
            seen = f"The machines of pool {pool.name} do not come up"
            return f"{seen}: {blocked.reason.rstrip('.')}."
        case BlockedBy.SHARE | BlockedBy.CAPACITY | BlockedBy.BUDGET | BlockedBy.OPERATOR | BlockedBy.MOMENT:
            return sentence(blocked.reason)
        case _:
            assert_never(blocked.by)


def _capped(blocked: Blocked, pool: Pool) -> Pool | None:
    """Whose cap it is: the pool's own, or one that pools share."""
    return pool if f"pool {pool.name} " in blocked.reason else None


def _held_by(pool: Pool | None, outlook: Outlook) -> str:
    holders = outlook.holders(pool.name if pool is not None else None)
    return f", held by {holders}" if holders else ""


def _why_cooling(pool: Pool, outlook: Outlook) -> str:
    offerings, now = outlook.snapshot.offerings.get(pool.name, ()), outlook.now
    if not offerings:
        return f"No provider of pool {pool.name} offers a machine of its shape."
    ends = []
    for offering in offerings:
        cooldown = outlook.snapshot.cooldowns.get(offering.capacity_pool)
        if cooldown is None or cooldown.until <= now:
            return ""
        ends.append(cooldown)
    first = min(ends, key=lambda cooldown: cooldown.until)
    what = f"All {len(offerings)} offerings of pool {pool.name} were" if len(offerings) > 1 else "The only offering was"
    return f"{what} refused lately ({first.reason}); the next try is in {ago(first.until - now)}."


def _why_running(job: Job, outlook: Outlook, taken: Interruption | None) -> str:
    on = f" on {job.instance or job.runner_name}" if job.instance or job.runner_name else ""
    told = f"It has been running{on} for {ago(outlook.now - (job.started_at or outlook.now))}."
    going = taken or (outlook.snapshot.interruptions.get(job.instance) if job.instance is not None else None)
    if going is None or going.ended_at is not None:
        return told
    when = f" at {clock(going.reclaim_at)}" if going.reclaim_at is not None else ""
    return f"{told} Its machine is taken back by {taker(going)}{when}: if it has not ended by then, it is queued again."


def _loss(job: Job, taken: Interruption | None) -> str:
    """What became of its machine: the infrastructure, not the job."""
    if taken is None:
        return "Its machine was interrupted"
    at = taken.cutoff_at or taken.ended_at or taken.noticed_at
    how = "after a notice" if taken.is_announced else "without a notice"
    who = f"A game day at {taken.provider}" if taken.is_game_day else str(taken.provider)
    return f"{who} took its machine {taken.instance} back {how} at {clock(at)}, which is no failure of the job"


def _why_given_up(job: Job, taken: Interruption | None) -> str:
    """The first word of the reason is its kind (`plan_requeue`), the rest says it in full."""
    kind, _, rest = (job.reason or job.unserved).rstrip(".").partition(": ")
    match kind:
        case "opted_out":
            told = f"it is not run again by itself ({rest}): run it again by hand if it may"
        case "attempts":
            told = f"all its attempts are used up ({rest}): run it again by hand"
        case "max_runtime":
            told = f"it ran longer than it may ({rest})"
        case "unservable" | "superseded" if rest:
            told = f"it is not run again: {rest}"
        case _:
            told = f"it was given up{because(job.reason or job.unserved)}"
    return f"{_loss(job, taken)}, and {told}." if taken is not None else sentence(told)


def _why_lost(job: Job, outlook: Outlook, taken: Interruption | None) -> str:
    now, forge = outlook.now, outlook.snapshot.forges.get(job.forge)
    told = f"{_loss(job, taken)}{because(job.reason)}"
    again = f"; next try in {ago(job.retry_at - now)}" if job.retry_at is not None and job.retry_at > now else ""
    if forge is not None and forge.traits.requeues_at_once:
        return f"{told}; it is queued again at once{again}."
    ends_at = outlook.snapshot.run_ends.get((job.forge, job.repo, job.run_id))
    if ends_at is None:
        return f"{told}; it is queued again once the rest of its run has ended{again}."
    soon = f"in about {ago(ends_at - now)}" if ends_at > now else "any moment"
    return f"{told}; it is queued again once the rest of its run has ended, {soon} by its earlier runs{again}."


# --------------------------------------------------------------------------- when


def estimate(job: Job, outlook: Outlook) -> Estimate:
    """When a waiting job will start; without a note for one that does not wait."""
    pool = outlook.rules.pools.get(job.pool) if job.pool is not None else None
    if job.state is JobState.LOST and pool is not None:
        return _start_of_lost(job, pool, outlook)
    if job.state is not JobState.QUEUED:
        return Estimate()
    if pool is None:
        return Estimate(note="no pool serves it" if job.pool is None else "its pool is no longer configured")
    control, machine = outlook.control(pool.name), outlook.expected.get(job.id)
    if control is PoolControl.DRAINING or (control is PoolControl.PAUSED and machine is None):
        return Estimate(note="an operator has to resume its pool first")
    if machine is not None:
        return with_machine(machine, pool, outlook.snapshot, outlook.now)
    blocked = outlook.blocked_by(job)
    if blocked is None:
        return with_new_machine(pool, outlook.snapshot, outlook.now)
    return _start_of_blocked(job, pool, blocked, outlook)


def _start_of_blocked(job: Job, pool: Pool, blocked: Blocked, outlook: Outlook) -> Estimate:
    snapshot, now = outlook.snapshot, outlook.now
    again_at = max(now, blocked.again_at) if blocked.again_at is not None else None
    match blocked.by:
        case BlockedBy.MOMENT:
            return with_new_machine(pool, snapshot, again_at or now)
        case BlockedBy.BUDGET:
            forge = snapshot.forges.get(job.forge)
            refill = forge.registrations_per_s if forge is not None else 0.0
            if refill <= 0:
                return Estimate(note=f"nobody knows when {job.forge} registers runners again")
            turn_at = (again_at or now) + timedelta(seconds=min(86400.0, outlook.place(job) / refill))
            return with_new_machine(pool, snapshot, turn_at)
        case BlockedBy.CAPACITY if again_at is not None:
            start = with_new_machine(pool, snapshot, again_at)
            return start.after(timedelta(0), "if there is a machine at the next try")
        case BlockedBy.CAPACITY:
            return Estimate(note="nobody knows when there will be a machine for it")
        case BlockedBy.CAP | BlockedBy.SHARE:
            return _start_after_others(job, pool, blocked, outlook)
        case BlockedBy.BOOTS:
            return Estimate(note="the machines of its pool have to come up first")
        case BlockedBy.OPERATOR:
            return Estimate(note="an operator has to resume its pool first")
        case _:
            assert_never(blocked.by)


def _start_after_others(job: Job, pool: Pool, blocked: Blocked, outlook: Outlook) -> Estimate:
    """Its turn comes when jobs that run now have ended."""
    if "usd_per_day" in blocked.reason:
        return Estimate(note="the money for this day is spent or promised; it is counted anew at midnight UTC")
    capped = _capped(blocked, pool)
    ends, place = outlook.ends.get(capped.name if capped is not None else None, ()), outlook.place(job)
    if place < len(ends):
        start = with_new_machine(pool, outlook.snapshot, ends[place])
        return start.after(timedelta(0), "when jobs that run now have ended, by their earlier runs")
    if job.prediction is not None and job.queued_at + timedelta(seconds=job.prediction.wait_s) > outlook.now:
        at = job.queued_at + timedelta(seconds=job.prediction.wait_s)
        return Estimate(at=at, note="as it was predicted when it was first seen")
    return Estimate(note="nobody knows when the jobs before it will have ended")


def _start_of_lost(job: Job, pool: Pool, outlook: Outlook) -> Estimate:
    forge, now = outlook.snapshot.forges.get(job.forge), outlook.now
    due_at = max(now, job.retry_at) if job.retry_at is not None else now
    if forge is None or not forge.traits.requeues_at_once:
        ends_at = outlook.snapshot.run_ends.get((job.forge, job.repo, job.run_id))
        if ends_at is None:
            return Estimate(note="nobody knows yet when the rest of its run ends")
        due_at = max(due_at, ends_at)
        start = with_new_machine(pool, outlook.snapshot, due_at)
        if start.by is None:
            return start
        # Its machine is launched ahead of that time.
        return Estimate(
            at=due_at + REQUEUED_IN, by=start.by, note="when the rest of its run has ended, by earlier runs"
        )
    return with_new_machine(pool, outlook.snapshot, due_at + REQUEUED_IN)
