"""Who ended a machine and on what evidence, or what it is for while it lives.

Pure. One sentence for people, one word for who it was, and the evidence as it was written down: the record of the
reclaim, the last move, the ledger's lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from autoscaler.end_lines import AGENT, AUTOSCALER, MACHINE
from autoscaler.model import EndReason, Instance, InstanceMove, InstanceState, Interruption, Job, JobState, LedgerEntry
from autoscaler.states import is_live
from autoscaler.why_story import TimelineEntry, ledger_text
from autoscaler.why_words import MOVE_WORDS, ago, because, clock, taker, where


class EndedBy(StrEnum):
    CLOUD = "cloud"
    """Its cloud took it, refused it, or lost it."""
    AUTOSCALER = "autoscaler"
    AGENT = "agent"
    """The machine's own agent, by one of its timers or because its runner ended."""
    OPERATOR = "operator"
    GAME_DAY = "game_day"
    UNKNOWN = "unknown"
    """It was gone, and nobody said why."""


_BY = {
    EndReason.JOB_DONE: EndedBy.AUTOSCALER,
    EndReason.REFUSED: EndedBy.CLOUD,
    EndReason.BOOT_TIMEOUT: EndedBy.AUTOSCALER,
    EndReason.SURPLUS: EndedBy.AUTOSCALER,
    EndReason.STALE_IMAGE: EndedBy.AUTOSCALER,
    EndReason.INTERRUPTED: EndedBy.CLOUD,
    EndReason.VANISHED: EndedBy.UNKNOWN,
    EndReason.MAX_RUNTIME: EndedBy.AUTOSCALER,
    EndReason.SELF_ENDED: EndedBy.AGENT,
    EndReason.OPERATOR: EndedBy.OPERATOR,
    EndReason.CHAOS: EndedBy.GAME_DAY,
    EndReason.DISPUTED: EndedBy.AUTOSCALER,
    EndReason.NO_CONTACT: EndedBy.AGENT,
    EndReason.MAX_LIFETIME: EndedBy.AUTOSCALER,
}
"""Whose doing an end is where no line of the ledger says it."""
_WHY = {
    EndReason.JOB_DONE: "its job was done",
    EndReason.BOOT_TIMEOUT: "it did not come up in time",
    EndReason.SURPLUS: "nobody needed it",
    EndReason.STALE_IMAGE: "its image was replaced by a newer one",
    EndReason.MAX_RUNTIME: "its job ran longer than max_job_runtime",
    EndReason.DISPUTED: "two agents claimed to be it",
    EndReason.NO_CONTACT: "it did not reach us, and no job ran",
    EndReason.MAX_LIFETIME: "it got older than its pool allows",
    EndReason.SELF_ENDED: "it powered itself off",
}
_HEADS = {
    EndedBy.CLOUD: "{provider} took it back",
    EndedBy.AUTOSCALER: "We ended it",
    EndedBy.AGENT: "Its own agent ended it",
    EndedBy.OPERATOR: "An operator ended it",
    EndedBy.GAME_DAY: "A game day ended it",
    EndedBy.UNKNOWN: "It was gone from {provider} without a word",
}
_STATES = {
    InstanceState.REQUESTED: "was asked of {provider} and has no answer yet",
    InstanceState.LAUNCHED: "is booting",
    InstanceState.READY: "is up and has no runner",
    InstanceState.REGISTERING: "gets its runner's registration",
    InstanceState.IDLE: "has its runner online and no job",
    InstanceState.BUSY: "runs a job",
    InstanceState.DRAINING: "is being taken back by {provider} while it runs a job",
    InstanceState.STOPPING: "is being stopped",
    InstanceState.STOPPED: "is stopped, and can be started again",
    InstanceState.STARTING: "is being started again",
    InstanceState.TERMINATING: "is being ended",
}


_LOST = (JobState.LOST, JobState.REQUEUED)
_OF_ENDS = ("ended", "terminate", "release", "interruption", "sweep")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One thing that was written down when it happened: when, by whom, what."""

    at: datetime
    source: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineAnswer:
    """`ended_by` is None while nothing ends it."""

    sentence: str
    ended_by: EndedBy | None
    evidence: Sequence[Evidence]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineStory:
    """What is known of one machine, oldest first."""

    row: Instance
    moves: Sequence[InstanceMove] = ()
    ledger: Sequence[LedgerEntry] = ()
    taken: Interruption | None = None
    job: Job | None = None


def machine_answer(story: MachineStory, now: datetime) -> MachineAnswer:
    row = story.row
    by = ended_by(story) if not is_live(row) or row.ending is not None else None
    return MachineAnswer(
        sentence=_ended(story, by, now) if by is not None else _living(story, now),
        ended_by=by,
        evidence=_evidence(story) if by is not None else (),
    )


def ended_by(story: MachineStory) -> EndedBy:
    """Whose doing it was. The record of a reclaim beats our own end of what was being taken anyway; a game day and an
    operator are told by the reason that they ended it for; else the ledger's line of its end names who it was."""
    row = story.row
    if row.ending in (EndReason.CHAOS, EndReason.OPERATOR):
        return _BY[row.ending]
    if story.taken is not None and story.taken.is_game_day:
        return EndedBy.GAME_DAY
    if story.taken is not None and row.ending in (EndReason.INTERRUPTED, EndReason.VANISHED, None):
        return EndedBy.CLOUD
    if row.ending in (EndReason.VANISHED, EndReason.INTERRUPTED, EndReason.REFUSED):
        return _BY[row.ending]
    ended = next((entry for entry in reversed(story.ledger) if entry.action in ("ended", "terminate")), None)
    if ended is not None and ended.actor in (AGENT, MACHINE):
        return EndedBy.AGENT
    if ended is not None and ended.actor == AUTOSCALER:
        return EndedBy.AUTOSCALER
    return _BY[row.ending] if row.ending is not None else EndedBy.UNKNOWN


def _ended(story: MachineStory, by: EndedBy, now: datetime) -> str:
    row = story.row
    if row.ending is EndReason.REFUSED:
        return f"{row.provider} did not give it to us{because(_cause(story))}: it never ran."
    head = _HEADS[by].format(provider=row.provider)
    if is_live(row):
        head = f"It is being ended. {head}"
    words = _WHY.get(row.ending, "") if by in (EndedBy.AUTOSCALER, EndedBy.AGENT) and row.ending is not None else ""
    cause = _cause(story)
    is_said = bool(words and words in cause) or (by in (EndedBy.CLOUD, EndedBy.GAME_DAY) and story.taken is not None)
    told = "" if is_said else because(cause)
    when = "" if is_live(row) else f" {ago(now - row.since)} ago, at {clock(row.since)}"
    reason = f" because {words}" if words else ""
    return f"{head}{when}{reason}{told}{_taken_words(story, by)}{_job_words(story)}."


def _cause(story: MachineStory) -> str:
    """What the move that began its end says; the agent's own word where it left one."""
    ends = [move for move in story.moves if move.to_state in (InstanceState.TERMINATING, InstanceState.TERMINATED)]
    cause = ends[0].cause if ends else ""
    return "" if cause == "its job is done" else cause or story.row.detail


def _taken_words(story: MachineStory, by: EndedBy) -> str:
    taken = story.taken
    if taken is None or by not in (EndedBy.CLOUD, EndedBy.GAME_DAY):
        return ""
    if not taken.is_announced:
        return " without a notice"
    ahead = ago(taken.reclaim_at - taken.noticed_at) if taken.reclaim_at is not None else ""
    return f" after a notice{f' {ahead} ahead' if ahead else ''}"


def _job_words(story: MachineStory) -> str:
    job = story.job
    if job is None:
        return "; it had run no job" if not is_live(story.row) and story.row.job is None else ""
    lost = ", which was lost with it" if story.row.is_job_lost else ""
    return f"; its job was {job.name} of {job.repo}{lost}"


def _living(story: MachineStory, now: datetime) -> str:
    row = story.row
    state = _STATES.get(row.state, str(row.state)).format(provider=row.provider)
    job = f": {story.job.name} of {story.job.repo}" if story.job is not None else ""
    taken = f"; {taker(story.taken)} takes it back ({story.taken.told_by})" if story.taken is not None else ""
    return f"It {state}{job}, for {ago(now - row.since)} now ({where(row)}){taken}."


def _evidence(story: MachineStory) -> tuple[Evidence, ...]:
    """The cloud's and the agent's words, and the ledger's lines of its end with what was known then; its history where
    the ledger has none."""
    found = []
    if (taken := story.taken) is not None:
        when = f", for {clock(taken.reclaim_at)}" if taken.reclaim_at is not None else ""
        kind = "notice of a reclaim" if taken.is_announced else "reclaim found without a notice"
        found += [Evidence(at=taken.noticed_at, source=source, text=f"{kind}{when}") for source in taken.sources]
    lines = [entry for entry in story.ledger if entry.action in _OF_ENDS]
    found += [
        Evidence(
            at=entry.at, source=entry.actor, text="; ".join(part for part in (entry.reason, entry.evidence) if part)
        )
        for entry in lines
    ]
    if not lines:
        ends = (InstanceState.DRAINING, InstanceState.TERMINATING, InstanceState.TERMINATED)
        moves = (move for move in story.moves if move.to_state in ends)
        found += [
            Evidence(at=move.at, source="history", text=f"{MOVE_WORDS[move.to_state]}: {move.cause}") for move in moves
        ]
    return tuple(sorted(found, key=lambda one: one.at))


def machine_timeline(story: MachineStory) -> tuple[TimelineEntry, ...]:
    """Its life, oldest first."""
    moved = {move.to_state for move in story.moves}
    lines = [
        TimelineEntry(at=move.at, kind="machine", text=f"{_capital(MOVE_WORDS[move.to_state])}: {move.cause}")
        for move in story.moves
    ]
    lines += [
        TimelineEntry(at=entry.at, kind="decision", text=ledger_text(entry))
        for entry in story.ledger
        if not (entry.action == "terminate" and InstanceState.TERMINATING in moved)
        and not (entry.action == "ended" and InstanceState.TERMINATED in moved)
        and not (entry.action == "interruption" and story.taken is not None)
    ]
    if (taken := story.taken) is not None:
        how = "announced that it takes it back" if taken.is_announced else "took it back without a notice"
        lines.append(TimelineEntry(at=taken.noticed_at, kind="loss", text=f"{taker(taken)} {how} ({taken.told_by})"))
    job = story.job
    if job is not None and job.finished_at is not None:
        told = f"{job.name} {'was lost with it' if job.state in _LOST else f'ended: {job.conclusion or job.state}'}"
        lines.append(TimelineEntry(at=job.finished_at, kind="job", text=told, attempt=job.attempt))
    return tuple(sorted(lines, key=lambda line: line.at))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
