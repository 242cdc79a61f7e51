"""The findings of `autoscaler plan`, as a JSON document and as text. Pure."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, assert_never

from autoscaler.model import (
    Abandon,
    Action,
    CancelRun,
    HoldQueue,
    Instance,
    Job,
    JobState,
    Launch,
    Plan,
    Register,
    Release,
    Requeue,
    Rules,
    Seal,
    Settle,
    Snapshot,
    SweepInstances,
    SweepRunner,
    Tell,
    Terminate,
    Withdraw,
)
from autoscaler.spi import Offering

_NAMES = {
    Launch: "launch",
    Register: "register",
    Withdraw: "withdraw",
    Release: "release",
    Terminate: "terminate",
    Seal: "seal",
    Settle: "settle",
    SweepInstances: "sweep",
    SweepRunner: "sweep",
    HoldQueue: "hold queue",
    Requeue: "requeue",
    Abandon: "abandon",
    Tell: "tell",
    CancelRun: "cancel run",
}
_REMEMBERED = (Seal, HoldQueue)
"""Actions whose doing a daemon remembers in memory alone."""
_SHOWN = 20
"""Rows of one list in the text; the document has all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFailure:
    """A read that failed and what that means: `means` says what cannot be judged."""

    target: str
    call: str
    message: str
    means: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything a dry run found. `adopted` are machines that an empty store would take over."""

    deployment: str
    now: datetime
    is_new_store: bool
    snapshot: Snapshot
    rules: Rules
    planned: Plan
    warnings: tuple[ReadFailure, ...]
    adopted: tuple[Instance, ...]

    @property
    def unserved(self) -> list[Job]:
        jobs = (job for job in self.snapshot.jobs.values() if job.pool is None and job.state is JobState.QUEUED)
        return sorted(jobs, key=lambda job: (job.queued_at, job.id))


def document(found: Findings) -> dict[str, Any]:
    """For `--json`. Instants are RFC 3339 in UTC, money USD."""
    snapshot, planned = found.snapshot, found.planned
    states = Counter(job.state.value for job in snapshot.jobs.values())
    return {
        "deployment": found.deployment,
        "now": found.now.isoformat(),
        "store_is_new": found.is_new_store,
        "jobs": dict(sorted(states.items())),
        "instances": dict(sorted(Counter(row.state.value for row in snapshot.instances.values()).items())),
        "actions": [_action_document(action) for action in planned.actions],
        "blocked": [{"pool": one.pool, "jobs": one.jobs, "reason": one.reason} for one in planned.blocked],
        "unserved": [_unserved_document(job) for job in found.unserved],
        "adopted": [{"provider": row.provider, "id": row.provider_id, "pool": row.pool} for row in found.adopted],
        "orphans": [
            *(
                {"kind": "instance", "at": one.instance.provider, "id": one.instance.provider_id}
                for one in snapshot.orphan_instances
            ),
            *({"kind": "runner", "at": one.forge, "id": one.runner.name} for one in snapshot.orphan_runners),
        ],
        "warnings": [
            {
                "target": one.target,
                "call": one.call,
                "message": one.message,
                "means": one.means,
                "remedy": one.remedy,
            }
            for one in found.warnings
        ],
        "next_change_at": planned.wake_at.isoformat() if planned.wake_at else None,
    }


def _unserved_document(job: Job) -> dict[str, Any]:
    return {
        "job": job.id,
        "repo": job.repo,
        "name": job.name,
        "labels": list(job.labels),
        "reason": job.unserved,
        "url": job.url,
    }


def _action_document(action: Action) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "action": _NAMES[type(action)].replace(" ", "_"),
        "subject": _subject(action),
        "what": _what(action),
        "reason": action.reason,
    }
    if isinstance(action, Launch):
        fields |= {"count": action.count, "offerings": [_offering_document(one) for one in action.offerings]}
    return fields


def _offering_document(offering: Offering) -> dict[str, Any]:
    return {"capacity_pool": offering.capacity_pool.key, "usd_per_hour": offering.price_usd_hour}


def _subject(action: Action) -> str:
    match action:
        case Launch() | HoldQueue():
            return action.pool
        case Register() | Withdraw() | Release() | Seal():
            return action.instance
        case Terminate():
            return ", ".join(action.instances)
        case Settle() | Abandon():
            return action.job
        case SweepInstances():
            return action.provider
        case SweepRunner():
            return action.runner.name
        case Requeue() | CancelRun():
            return f"{action.repo}/{action.run_id}"
        case Tell():
            return f"{action.telling.forge}:{action.telling.forge_job_id}"
        case _:
            assert_never(action)


def _what(action: Action) -> str:
    """What the action comes to, beside its name and subject."""
    match action:
        case Launch():
            first = action.offerings[0]
            machines = "1 machine" if action.count == 1 else f"{action.count} machines"
            others = f" or {len(action.offerings) - 1} dearer" if len(action.offerings) > 1 else ""
            return f"{machines}, {first.capacity_pool.key} at {first.price_usd_hour:g} USD/h{others}"
        case Register():
            return f"as a runner of {action.demand.scope} at {action.demand.forge} [{', '.join(action.demand.labels)}]"
        case Release() | Terminate():
            return f"ends: {action.end_reason}"
        case HoldQueue():
            return f"at {action.forge}, {action.scope} [{', '.join(action.labels)}]"
        case SweepInstances():
            return ", ".join(action.ids)
        case SweepRunner():
            return f"at {action.forge}"
        case Requeue() | CancelRun():
            return f"{len(action.jobs)} jobs at {action.forge}"
        case Tell():
            return action.telling.title
        case Settle():
            return "ask its forge how it stands"
        case Withdraw() | Seal() | Abandon():
            return ""
        case _:
            assert_never(action)


def text(found: Findings) -> str:
    """For people."""
    return "\n".join(_lines(found))


def _lines(found: Findings) -> Iterator[str]:
    jobs = Counter(job.state for job in found.snapshot.jobs.values())
    yield f"{found.deployment}, {found.now:%Y-%m-%d %H:%M:%S} UTC: nothing was changed."
    yield (
        f"Seen: {_jobs(jobs[JobState.QUEUED])} queued, {jobs[JobState.RUNNING]} running, {jobs[JobState.LOST]} lost; "
        f"instances: {len(found.snapshot.instances)}; the store is {'new' if found.is_new_store else 'in use'}."
    )
    for warning in found.warnings:
        yield ""
        yield f"warning: {warning.target}, {warning.call}: {warning.message}"
        yield f"  {warning.means}"
        if warning.remedy:
            yield f"  -> {warning.remedy}"
    yield from _actions(found.planned)
    blocked = [f"{one.pool}: {_jobs(one.jobs)}: {one.reason}" for one in found.planned.blocked]
    yield from _section("Blocked", blocked)
    unserved = [
        f"{job.id} {job.name} of {job.repo} [{', '.join(job.labels)}]: {job.unserved}" for job in found.unserved
    ]
    yield from _section("Served by no pool", unserved)
    yield from _section(
        "Would be adopted, because the store is new", [f"{row.provider_id} at {row.provider}" for row in found.adopted]
    )
    orphans = [f"{one.instance.provider_id} at {one.instance.provider}" for one in found.snapshot.orphan_instances]
    orphans += [f"{one.runner.name} at {one.forge}" for one in found.snapshot.orphan_runners]
    yield from _section("Known to no row; removed once two complete listings showed them", orphans)


def _actions(planned: Plan) -> Iterator[str]:
    yield ""
    if not planned.actions:
        yield "Would do now: nothing."
        return
    yield f"Would do now ({len(planned.actions)}):"
    rows = [(_NAMES[type(one)], _subject(one), _what(one), one.reason) for one in planned.actions[:_SHOWN]]
    wide = max(len(row[0]) for row in rows)
    wider = min(40, max(len(row[1]) for row in rows))
    for name, subject, what, reason in rows:
        yield f"  {name:{wide}}  {subject:{wider}}  {what}".rstrip()
        yield f"  {'':{wide}}  because {reason}"
    if len(planned.actions) > _SHOWN:
        yield f"  and {len(planned.actions) - _SHOWN} more (--json has them all)"
    if any(isinstance(one, _REMEMBERED) for one in planned.actions):
        yield "A running daemon may have sealed or held these already: its memory alone knows; a repeat is harmless."


def _section(title: str, rows: list[str]) -> Iterator[str]:
    if not rows:
        return
    yield ""
    yield f"{title}:"
    for row in rows[:_SHOWN]:
        yield f"  {row}"
    if len(rows) > _SHOWN:
        yield f"  and {len(rows) - _SHOWN} more (--json has them all)"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
