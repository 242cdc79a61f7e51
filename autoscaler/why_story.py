"""What happened to a job so far, oldest first: its own dates, its machines' moves, our decisions, over all attempts.

Pure. A job that was lost and queued again is one piece of work: whichever of its attempts one asks for, the story is
that of all of them (`Story.chain`, oldest attempt first).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from autoscaler.model import InstanceMove, Interruption, Job, JobState, LedgerEntry, SeenBy
from autoscaler.spi import InstanceId
from autoscaler.why_words import MOVE_WORDS, because, clock, taker

_LEDGER_WORDS = {
    "requeue": "Queued again",
    "abandon": "Given up",
    "tell": "People were told",
    "interruption": "Its cloud takes the machine",
    "interruption_corrected": "Its cloud was more exact",
    "interruption_hook": "",
    "requeue_landed": "",
    "runner_stolen": "",
    "cancel_run": "Its run was cancelled",
}
_TOLD_BY_MOVES = frozenset(("terminate", "launch", "ended"))
"""Ledger lines of a machine that say what its moves say already."""
_PLAIN = frozenset(("", "ok", "done", "asked", "told", "requeued"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """One line of a job's or a machine's life. `kind` is "job", "machine", "decision" or "loss"; `attempt` counts from
    1; `instance` is the machine that the line is about."""

    at: datetime
    kind: str
    text: str
    attempt: int = 1
    instance: InstanceId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What is known of one piece of work. `moves` and `interruptions` are of the machines of all attempts, `ledger` is
    by subject, job or machine, oldest first."""

    chain: Sequence[Job]
    moves: Mapping[InstanceId, Sequence[InstanceMove]] = field(default_factory=dict)
    ledger: Mapping[str, Sequence[LedgerEntry]] = field(default_factory=dict)
    interruptions: Mapping[InstanceId, Interruption] = field(default_factory=dict)


def timeline(story: Story) -> tuple[TimelineEntry, ...]:
    """All of it in order. What happened at the same instant keeps the order of cause and effect."""
    lines: list[TimelineEntry] = []
    for job in story.chain:
        lines += _of_job(job)
        lines += _of_machine(job, story)
        lines += [_of_decision(entry, job) for entry in story.ledger.get(job.id, ())]
    return tuple(sorted(lines, key=lambda line: line.at))


def _of_job(job: Job) -> list[TimelineEntry]:
    def line(at: datetime, text: str) -> TimelineEntry:
        return TimelineEntry(at=at, kind="job", text=text, attempt=job.attempt)

    seen = "a webhook" if job.seen_by is SeenBy.WEBHOOK else "polling"
    again = f" again, attempt {job.attempt}" if job.attempt > 1 else ""
    lines = [
        line(job.queued_at, f"Queued{again} at {job.forge}"),
        line(job.first_seen_at, f"We learned of it by {seen}"),
    ]
    if job.started_at:
        lines.append(line(job.started_at, f"Started on {job.runner_name}" if job.runner_name else "Started"))
    if job.finished_at:
        is_unsure = job.state is JobState.RUNNING
        lines.append(line(job.finished_at, "Its forge gave it up" if is_unsure else f"Ended: {_end(job)}"))
    return lines


def _end(job: Job) -> str:
    match job.state:
        case JobState.ABANDONED:
            return f"not run again{because(job.reason or job.unserved)}"
        case JobState.LOST | JobState.REQUEUED:
            return "lost with its machine"
        case _:
            return str(job.conclusion or job.state)


def _of_machine(job: Job, story: Story) -> list[TimelineEntry]:
    if job.instance is None:
        return []
    name = job.instance

    def line(at: datetime, kind: str, text: str) -> TimelineEntry:
        return TimelineEntry(at=at, kind=kind, text=text, attempt=job.attempt, instance=name)

    lines = [
        line(move.at, "machine", f"Machine {name} {MOVE_WORDS[move.to_state]}: {move.cause}")
        for move in story.moves.get(name, ())
    ]
    taken = story.interruptions.get(name)
    if taken is not None:
        lines.append(line(taken.noticed_at, "loss", _loss(taken)))
    told = _TOLD_BY_MOVES | ({"interruption"} if taken is not None else frozenset())
    lines += [
        line(entry.at, "decision", ledger_text(entry))
        for entry in story.ledger.get(name, ())
        if entry.action not in told
    ]
    return lines


def _loss(taken: Interruption) -> str:
    """Infrastructure, not the job: who took the machine, and who told of it."""
    if not taken.is_announced:
        return f"{taker(taken)} took machine {taken.instance} back without a notice ({taken.told_by})"
    when = f" at {clock(taken.reclaim_at)}" if taken.reclaim_at is not None else ""
    return f"{taker(taken)} announced that it takes machine {taken.instance} back{when} ({taken.told_by})"


def _of_decision(entry: LedgerEntry, job: Job) -> TimelineEntry:
    return TimelineEntry(at=entry.at, kind="decision", text=ledger_text(entry), attempt=job.attempt)


def ledger_text(entry: LedgerEntry) -> str:
    """A line of the ledger in words; who did it where that was not the autoscaler."""
    verb = _LEDGER_WORDS.get(entry.action, entry.action.replace("_", " ").capitalize())
    outcome = "" if entry.outcome in _PLAIN else entry.outcome
    who = f" (by {entry.actor})" if entry.actor not in ("autoscaler", "plan", "agent") else ""
    words = ": ".join(part for part in (verb, entry.reason.rstrip("."), outcome) if part) + who
    return words[:1].upper() + words[1:]
