"""What just happened, and why: one line per step of a machine's life and per decision, newest first.

The store holds each step up to three times: the intent (`requested`, `terminating`), what the cloud said of it
(`launched`, `terminated`) and the ledger's entry. Here they become one line, whose words change as the step goes on:

    requested, launched        "Launching i-1, i-2 for linux"    then "Launched ..."   why: the plan's reason
    ready                      "i-1 is ready"                    left out when a job came within seconds
    busy                       "i-1 took build of acme/shop"     why: how long the boot and the job's wait were
    draining                   "i-1 is being reclaimed"
    terminating, terminated    "i-1 is ending"                   then "i-1 ended"      why: the cause, the outcome

`registering` and `idle` are left to the machine's own page. Pure: rows in, lines out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from autoscaler.http.documents import Document, instant
from autoscaler.model import Instance, InstanceMove, InstanceState, Job, JobId, LedgerEntry
from autoscaler.spi import InstanceId
from autoscaler.why_words import ago

AT_ONCE = timedelta(seconds=3)
"""A machine that gets its job this soon after it was ready tells of both in one line."""
MACHINES_NAMED = 3
_S = InstanceState
_ORDER = ("launched", "ready", "took", "reclaimed", "ended")
_ACTIONS = {
    "sweep": "Removed what nobody owns:",
    "abandon": "Gave up",
    "requeue": "Put back in its queue:",
    "register": "No registration for",
    "release": "Still needed:",
    "hold_queue": "Keeps the queue open:",
    "launch": "Launch:",
    "control": "Pool",
    "interruption": "Taken back:",
    "interruption_corrected": "Taken back earlier:",
    "tell": "People were told of",
    "cancel_run": "Cancelled the run of",
    "error_budget": "Error budget of",
    "interruption_hook": "Hook before the reclaim of",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a line; a job's or a machine's name leads to its page."""

    text: str
    job: str = ""
    machine: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One line. `key` stays the same while its words change; `kind` is launched, ready, took, reclaimed, ended or
    decision."""

    key: str
    at: datetime
    kind: str
    parts: tuple[Part, ...]
    why: str
    pool: str


@dataclass(slots=True)
class _Life:
    """A machine's moves, as far as they are known: the first of each kind."""

    first: dict[InstanceState, InstanceMove] = field(default_factory=dict)
    again: list[InstanceMove] = field(default_factory=list)

    def add(self, move: InstanceMove) -> None:
        if move.to_state in self.first:
            self.again.append(move)
        self.first.setdefault(move.to_state, move)

    def span(self, start: InstanceState, end: InstanceState) -> timedelta | None:
        if start not in self.first or end not in self.first:
            return None
        return self.first[end].at - self.first[start].at


def happenings(
    moves: Sequence[InstanceMove],
    ledger: Sequence[tuple[int, LedgerEntry]],
    *,
    machines: Mapping[InstanceId, Instance],
    jobs: Mapping[JobId, Job],
) -> list[Happening]:
    """Newest first. `moves` and `ledger` come newest first, as the store gives them; `machines` and `jobs` are the
    rows that they speak of, as far as they are known."""
    lives: dict[InstanceId, _Life] = {}
    for move in reversed(moves):
        lives.setdefault(move.instance, _Life()).add(move)
    lines = _launches(lives, machines)
    for name, life in lives.items():
        row = machines.get(name)
        lines += _life_lines(name, life, row, jobs.get(row.job) if row and row.job else None)
    tokens = {str(row.token) for row in machines.values()}
    lines += [
        _decision(seq, entry, machines, jobs)
        for seq, entry in ledger
        if not (entry.action == "launch" and entry.subject in tokens) and not _is_told(entry, lives)
    ]
    return sorted(lines, key=_newest, reverse=True)


def happening_document(line: Happening) -> Document:
    return {
        "key": line.key,
        "at": instant(line.at),
        "kind": line.kind,
        "parts": [{"text": part.text, "job": part.job, "machine": part.machine} for part in line.parts],
        "why": line.why,
        "pool": line.pool,
    }


def _newest(line: Happening) -> tuple[datetime, int, str]:
    return line.at, _ORDER.index(line.kind) if line.kind in _ORDER else -1, line.key


def _is_told(entry: LedgerEntry, lives: Mapping[InstanceId, _Life]) -> bool:
    """Whether a machine's own lines tell of this already: its end was asked for, or its cloud takes it."""
    life = lives.get(InstanceId(entry.subject))
    state = {"terminate": _S.TERMINATING, "interruption": _S.DRAINING}.get(entry.action)
    if entry.action == "ended":
        return True
    return state is not None and life is not None and state in life.first


def _launches(lives: Mapping[InstanceId, _Life], machines: Mapping[InstanceId, Instance]) -> list[Happening]:
    """One line per launch: the machines that were asked for together, for the same reason."""
    together: dict[tuple[datetime, str, str], list[InstanceId]] = {}
    for name, life in lives.items():
        asked = life.first.get(_S.REQUESTED)
        if asked is not None:
            row = machines.get(name)
            together.setdefault((asked.at, row.pool if row else "", asked.cause), []).append(name)
    lines = []
    for (at, pool, cause), names in together.items():
        verb = _launch_verb([lives[name] for name in names])
        row = machines.get(names[0])
        place = row.capacity_pool if row else None
        where = f" ({place.machine_type} in {place.zone})" if place else ""
        parts = [Part(text=f"{verb} "), *_names(names)]
        parts.append(Part(text=f" for {pool}{where}" if pool else where))
        lines.append(
            Happening(key=f"launch {names[0]}", at=at, kind="launched", parts=tuple(parts), why=_tidy(cause), pool=pool)
        )
    return lines


def _launch_verb(lives: Sequence[_Life]) -> str:
    if any(_S.LAUNCHED in life.first for life in lives):
        return "Launched"
    return "Asked for" if all(_S.TERMINATED in life.first for life in lives) else "Launching"


def _names(names: Sequence[InstanceId]) -> Iterable[Part]:
    for index, name in enumerate(names[:MACHINES_NAMED]):
        if index:
            yield Part(text=", ")
        yield _machine(name)
    if len(names) > MACHINES_NAMED:
        yield Part(text=f" and {len(names) - MACHINES_NAMED} more")


def _life_lines(name: InstanceId, life: _Life, row: Instance | None, job: Job | None) -> Iterable[Happening]:
    pool = row.pool if row else ""

    def line(kind: str, move: InstanceMove, *words: Part, why: str = "", key: str = "") -> Happening:
        return Happening(
            key=f"{key or kind} {name}",
            at=move.at,
            kind=kind,
            parts=(_machine(name), *words),
            why=_tidy(why),
            pool=pool,
        )

    ready, busy = life.first.get(_S.READY), life.first.get(_S.BUSY)
    if ready is not None and (busy is None or busy.at - ready.at > AT_ONCE):
        boot = life.span(_S.REQUESTED, _S.READY)
        yield line("ready", ready, Part(text=" is ready"), why=f"{ago(boot)} after it was asked for" if boot else "")
    if busy is not None:
        yield line("took", busy, *_taken(job), why=_took_why(life, job) or busy.cause)
    if (draining := life.first.get(_S.DRAINING)) is not None:
        yield line("reclaimed", draining, Part(text=" is being reclaimed"), why=draining.cause)
    for index, move in enumerate(move for move in life.again if move.to_state is _S.READY):
        yield line("ready", move, Part(text=" stands by again"), why=move.cause, key=f"again {index}")
    ending, ended = life.first.get(_S.TERMINATING), life.first.get(_S.TERMINATED)
    told = ending or ended
    if told is not None:
        why = told.cause if job is None or busy is None else _end_why(told.cause, job)
        yield line("ended", told, Part(text=_end_words(life)), why=why)


def _end_words(life: _Life) -> str:
    if _S.TERMINATED not in life.first:
        return " is ending"
    return " ended" if _S.LAUNCHED in life.first or _S.REQUESTED not in life.first else " did not come"


def _taken(job: Job | None) -> tuple[Part, ...]:
    if job is None:
        return (Part(text=" took a job"),)
    return Part(text=" took "), Part(text=job.name, job=job.id), Part(text=f" of {job.repo}")


def _took_why(life: _Life, job: Job | None) -> str:
    boot = life.span(_S.REQUESTED, _S.READY)
    words = [f"up in {ago(boot)}"] if boot else []
    if job is not None and job.started_at is not None:
        words.append(f"the job waited {ago(job.started_at - job.queued_at)}")
    return ", ".join(words)


def _end_why(cause: str, job: Job) -> str:
    if job.conclusion is None:
        return cause
    ran = f" after {ago(job.finished_at - job.started_at)}" if job.finished_at and job.started_at else ""
    return f"{cause}: {job.conclusion}{ran}"


def _decision(
    seq: int, entry: LedgerEntry, machines: Mapping[InstanceId, Instance], jobs: Mapping[JobId, Job]
) -> Happening:
    verb = _ACTIONS.get(entry.action, f"{entry.action.replace('_', ' ').capitalize()}:")
    if (job := jobs.get(JobId(entry.subject))) is not None:
        subject = [Part(text=job.name, job=job.id), Part(text=f" of {job.repo}")]
    elif InstanceId(entry.subject) in machines:
        subject = [_machine(InstanceId(entry.subject))]
    else:
        subject = [Part(text=entry.subject)]
    plain = entry.outcome in ("", "ok", "done", "asked")
    return Happening(
        key=f"ledger {seq}",
        at=entry.at,
        kind="decision",
        parts=(Part(text=f"{verb} "), *subject, Part(text="" if plain else f": {entry.outcome}")),
        why=_tidy(entry.reason),
        pool=entry.pool,
    )


def _machine(name: InstanceId) -> Part:
    return Part(text=name, machine=name)


def _tidy(words: str) -> str:
    return words.strip().rstrip(".")
