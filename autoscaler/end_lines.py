"""What the ledger says of the ends of machines: who ended each, why, and on what evidence.

Pure. There are two lines of one end: `terminate`, written with the intent where we ended it, and `ended`, written for
every machine when it is known to be gone: also for one that ended by itself, was taken, refused, or vanished.
"""

from datetime import UTC, datetime

from autoscaler.model import EndReason, Instance, InstanceState, Interruption, JobState, LedgerEntry
from autoscaler.states import TIMER_ENDS, WORKING_STATES

AUTOSCALER, AGENT, MACHINE = "autoscaler", "agent", "machine"
"""Who may have ended a machine, beside its cloud, which is named as its provider is."""

_WHY = {
    EndReason.REFUSED: "it was never made",
    EndReason.INTERRUPTED: "its cloud took it back",
    EndReason.CHAOS: "its cloud took it for a game day",
    EndReason.VANISHED: "it is gone, and nobody said why",
    EndReason.SELF_ENDED: "it powered itself off",
    EndReason.MAX_LIFETIME: "it got older than its pool allows",
}
_SAID = {
    "job_done": "its job is done",
    "not_needed": "it was told that nobody needs it",
    "refused": "the daemon refused it",
    "reclaimed": "its cloud takes it back",
    "boot_timeout": "no hello of it was accepted within boot_timeout",
    "no_contact": "the daemon did not answer, and no job ran",
    "max_runtime": "its job ran longer than max_job_runtime",
    "max_lifetime": "it got older than its pool allows",
}


def terminate_line(
    row: Instance,
    now: datetime,
    *,
    end_reason: EndReason,
    reason: str,
    said: str,
    job: JobState | None,
    interruption: Interruption | None,
    is_let_go: bool,
) -> LedgerEntry:
    """That we are about to end a machine. `row` is as it was before; `job` the state of its job where it has one;
    `said` its agent's word for its end; `is_let_go`: its forge let its runner go first."""
    known = [f"{row.state} since {_at(row.since)}"]
    if row.job is not None and row.state in WORKING_STATES:
        known.append(f"job {row.job} is {job.value if job is not None else 'over'}")
    if is_let_go:
        known.append(f"its forge let runner {row.runner_name} go" if row.runner_name else "it holds no registration")
    elif row.state in (InstanceState.LAUNCHED, InstanceState.READY):
        known.append("it holds no registration")
    return LedgerEntry(
        at=now,
        actor=AUTOSCALER,
        action="terminate",
        subject=row.id,
        pool=row.pool,
        reason=f"{end_reason}: {reason}",
        outcome="asked",
        evidence="; ".join([*known, *_words(said, interruption)]),
    )


def ended_line(
    before: Instance,
    ended: Instance,
    now: datetime,
    *,
    cause: str,
    said: str,
    interruption: Interruption | None,
    heard_at: datetime | None,
) -> LedgerEntry:
    """That a machine is gone. `cause` is what showed it, `said` its agent's word for its end, `heard_at` when its agent
    called last where it had none."""
    ending = ended.ending or EndReason.VANISHED
    actor, why = _who(before, ending, said)
    known = [cause, f"{before.state} since {_at(before.since)}", *_words(said, interruption)]
    if heard_at is not None:
        known.append(f"its agent was heard last at {_at(heard_at)}")
    return LedgerEntry(
        at=now,
        actor=actor,
        action="ended",
        subject=ended.id,
        pool=ended.pool,
        reason=f"{ending}: {why}",
        outcome=ending,
        evidence="; ".join(known),
    )


def _who(before: Instance, ending: EndReason, said: str) -> tuple[str, str]:
    """Whose doing it was, and why they did it."""
    is_asked = before.state is InstanceState.TERMINATING
    if ending in (EndReason.INTERRUPTED, EndReason.CHAOS):
        return before.provider, "its cloud takes it back, and we had it ended before" if is_asked else _WHY[ending]
    if is_asked and not (said and ending in TIMER_ENDS):
        return AUTOSCALER, "we had its cloud end it"
    if said:
        return AGENT, _SAID.get(said, said)
    if ending is EndReason.SELF_ENDED or ending in TIMER_ENDS:
        return MACHINE, _WHY.get(ending, "its own timer ran out")
    return before.provider, _WHY.get(ending, ending)


def _words(said: str, interruption: Interruption | None) -> list[str]:
    """What its agent and its cloud had told of its end."""
    words = [f"its agent said: {said}"] if said else []
    if interruption is not None:
        announced = "announced" if interruption.is_announced else "found"
        words.append(f"reclaim {announced} at {_at(interruption.noticed_at)}, {interruption.told_by}")
    return words


def _at(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
