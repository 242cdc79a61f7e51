"""Why a job waits, in one sentence, and what happened to it so far. The answer people otherwise dig out of logs.

Pure: reads a snapshot, the rules and the last plan's `blocked`; no clock, no I/O. Sentences are for people who wait
for CI: they name the thing in the way and since when or until when, never an internal state word alone.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

from autoscaler.demand import NearestPool
from autoscaler.demand import nearest_pool as nearest_of
from autoscaler.model import (
    Blocked,
    Demand,
    Instance,
    InstanceMove,
    InstanceState,
    Job,
    JobId,
    JobState,
    LedgerEntry,
    Pool,
    PoolControl,
    Rules,
    SeenBy,
    Snapshot,
)
from autoscaler.spi import PoolName

_COVERING = (
    InstanceState.IDLE,
    InstanceState.REGISTERING,
    InstanceState.READY,
    InstanceState.LAUNCHED,
    InstanceState.REQUESTED,
)
"""The states of a machine on its way to a job, nearest first."""


_MOVE_WORDS = {
    InstanceState.REQUESTED: "was asked for",
    InstanceState.LAUNCHED: "was launched",
    InstanceState.READY: "is ready",
    InstanceState.REGISTERING: "gets a runner's registration",
    InstanceState.IDLE: "has its runner online",
    InstanceState.BUSY: "took the job",
    InstanceState.DRAINING: "is being reclaimed",
    InstanceState.STOPPING: "is being stopped",
    InstanceState.STOPPED: "was stopped",
    InstanceState.STARTING: "is being started",
    InstanceState.TERMINATING: "is being ended",
    InstanceState.TERMINATED: "ended",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """One line of a job's life. `kind` is "job", "machine" or "decision"."""

    at: datetime
    kind: str
    text: str


def why(
    job: Job,
    snapshot: Snapshot,
    rules: Rules,
    blocked: Sequence[Blocked],
    now: datetime,
    *,
    expected: Mapping[JobId, Instance] | None = None,
) -> str:
    """One sentence: where the job stands and, while it waits, what it waits for.

    Pass `expected` (of `expected_machines`) when asking for many jobs of one snapshot; it is worked out otherwise.
    """
    match job.state:
        case JobState.QUEUED:
            machines = expected_machines(snapshot) if expected is None else expected
            return _why_queued(job, snapshot, rules, blocked, now, machine=machines.get(job.id))
        case JobState.RUNNING:
            where = f" on {job.instance or job.runner_name}" if job.instance or job.runner_name else ""
            return f"It has been running{where} for {ago(now - (job.started_at or now))}."
        case JobState.LOST:
            return _why_lost(job, now)
        case JobState.REQUEUED:
            successor = f" as {job.successor}" if job.successor else ""
            return f"Its machine was interrupted, and it was queued again{successor}{_because(job.reason)}."
        case JobState.DONE:
            return f"It is done: {job.conclusion or 'conclusion unknown'}{_because(job.reason)}."
        case JobState.ABANDONED:
            return f"It was given up{_because(job.reason or job.unserved)}."
        case _:
            assert_never(job.state)


def nearest_pool(job: Job, rules: Rules) -> NearestPool | None:
    """The pool that comes closest to serving a job, as `demand` says it."""
    return nearest_of(forge=job.forge, repo=job.repo, labels=job.labels, run_id=job.run_id, pools=rules.pools.values())


def timeline(job: Job, moves: Sequence[InstanceMove], ledger: Sequence[LedgerEntry] = ()) -> tuple[TimelineEntry, ...]:
    """The job's life so far, oldest first: the job's own dates, its machine's moves, our decisions about it."""
    seen = "a webhook" if job.seen_by is SeenBy.WEBHOOK else "polling"
    lines = [
        TimelineEntry(at=job.queued_at, kind="job", text=f"Queued at {job.forge}"),
        TimelineEntry(at=job.first_seen_at, kind="job", text=f"We learned of it by {seen}"),
    ]
    if job.started_at:
        on = f" on {job.runner_name}" if job.runner_name else ""
        lines.append(TimelineEntry(at=job.started_at, kind="job", text=f"Started{on}"))
    if job.finished_at:
        is_unsure = job.state is JobState.RUNNING
        text = "Its forge gave it up" if is_unsure else f"Ended: {job.conclusion or job.state}"
        lines.append(TimelineEntry(at=job.finished_at, kind="job", text=text))
    lines += [
        TimelineEntry(
            at=move.at, kind="machine", text=f"Machine {move.instance} {_MOVE_WORDS[move.to_state]}: {move.cause}"
        )
        for move in moves
    ]
    lines += [
        TimelineEntry(
            at=entry.at,
            kind="decision",
            text=": ".join(part for part in (entry.action.replace("_", " "), entry.reason, entry.outcome) if part),
        )
        for entry in ledger
    ]
    return tuple(sorted(lines, key=lambda line: line.at))


def ago(span: timedelta) -> str:
    """A duration in at most two units: "12 s", "3 min 20 s", "2 h 5 min", "4 d 1 h"."""
    seconds = max(0, round(span.total_seconds()))
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = seconds % size // smaller_size
            return f"{seconds // size} {unit} {rest} {smaller}" if rest else f"{seconds // size} {unit}"
    return f"{seconds} s"


def sentence(words: str) -> str:
    """A reason as one sentence: a capital letter first, a full stop last."""
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _why_queued(
    job: Job, snapshot: Snapshot, rules: Rules, blocked: Sequence[Blocked], now: datetime, *, machine: Instance | None
) -> str:
    if job.pool is None:
        return _why_unserved(job, rules)
    pool = rules.pools.get(job.pool)
    if pool is None:
        return f"Its pool {job.pool} is no longer configured; it is matched again at the next tick."
    control = snapshot.controls.get(pool.name, PoolControl.ACTIVE)
    if machine is not None and control is not PoolControl.DRAINING:
        return _why_coming(job, machine, pool, now)
    match control:
        case PoolControl.PAUSED:
            return f"An operator paused pool {pool.name}: it launches nothing until it is resumed."
        case PoolControl.DRAINING:
            return f"An operator is draining pool {pool.name}: it takes no new jobs until it is resumed."
        case PoolControl.ACTIVE:
            return _why_no_machine(job, pool, snapshot, rules, blocked, now)
        case _:
            assert_never(control)


def _why_unserved(job: Job, rules: Rules) -> str:
    if job.unserved:
        return sentence(job.unserved)
    near = nearest_pool(job, rules)
    if near is None:
        return f"No pool serves {job.forge}."
    if near.missing:
        lacks = f"lacks {', '.join(near.missing)}"
        aside = near.aside(job.repo)
        if aside:
            return f"No pool that serves {job.repo} has all of its labels: the nearest, {near.pool}, {lacks}; {aside}."
        unserved = "" if near.is_repo_served else f" and does not serve {job.repo}"
        return f"No pool has all of its labels: the nearest, {near.pool}, {lacks}{unserved}."
    return f"Pool {near.pool} has its labels but does not serve {job.repo}."


def expected_machines(snapshot: Snapshot) -> Mapping[JobId, Instance]:
    """The machine that each queued job will most likely get; jobs beyond the last machine are absent.

    Forges serve the oldest matching job first, so the n-th job of a pool gets its n-th machine on its way. A runner
    that is registered already counts for jobs of its own demand only.
    """
    unregistered: dict[PoolName, deque[Instance]] = {}
    registered: dict[PoolName, dict[Demand, deque[Instance]]] = {}
    coming = (row for row in snapshot.instances.values() if row.state in _COVERING)
    for row in sorted(coming, key=lambda row: (_COVERING.index(row.state), row.since, row.id)):
        if row.demand is None:
            unregistered.setdefault(row.pool, deque()).append(row)
        else:
            registered.setdefault(row.pool, {}).setdefault(row.demand, deque()).append(row)
    queued = (job for job in snapshot.jobs.values() if job.state is JobState.QUEUED and job.pool is not None)
    expected: dict[JobId, Instance] = {}
    for job in sorted(queued, key=lambda job: (job.queued_at, job.id)):
        if job.pool is None:
            continue
        rows = _own_runners(job, registered.get(job.pool, {})) or unregistered.get(job.pool)
        if rows:
            expected[job.id] = rows.popleft()
    return expected


def _own_runners(job: Job, registered: Mapping[Demand, deque[Instance]]) -> deque[Instance] | None:
    for demand, rows in registered.items():
        same_place = (demand.forge, demand.scope) == (job.forge, job.scope)
        if rows and same_place and set(job.labels) <= set(demand.labels):
            return rows
    return None


def _why_coming(job: Job, machine: Instance, pool: Pool, now: datetime) -> str:
    spent = ago(now - machine.since)
    match machine.state:
        case InstanceState.IDLE:
            name = machine.runner_name or machine.id
            return f"Runner {name} has been online for {spent}; {job.forge} has not assigned the job to it yet."
        case InstanceState.REGISTERING:
            return f"Its runner on machine {machine.id} has been registering at {job.forge} for {spent}."
        case InstanceState.READY:
            return f"Machine {machine.id} has been up for {spent} and gets its runner's registration next."
        case InstanceState.LAUNCHED:
            limit = ago(pool.boot_timeout)
            return f"Machine {machine.id} has been booting for {spent} ({_where(machine)}); it may take up to {limit}."
        case _:
            return f"A machine was asked of {machine.provider} {spent} ago ({_where(machine)}); no answer yet."


def _why_no_machine(
    job: Job, pool: Pool, snapshot: Snapshot, rules: Rules, blocked: Sequence[Blocked], now: datetime
) -> str:
    held = [snapshot.held_back.get((pool.name, provider), "") for provider in pool.providers]
    if all(held):
        return f"Pool {pool.name} cannot launch now: {'; '.join(text.rstrip('.') for text in held)}."
    planned = next((entry.reason for entry in blocked if entry.pool == pool.name), "")
    if planned:
        return sentence(planned)
    live = sum(1 for row in snapshot.instances.values() if row.pool == pool.name)
    if live >= pool.max:
        return f"Pool {pool.name} is at its limit: {live} of max {pool.max} machines live."
    total = len(snapshot.instances)
    if rules.caps.instances is not None and total >= rules.caps.instances:
        return f"The deployment is at its limit: {total} of {rules.caps.instances} machines live."
    cooling = _why_cooling(pool, snapshot, now)
    if cooling:
        return cooling
    forge = snapshot.forges.get(job.forge)
    if forge is not None and not forge.is_healthy:
        return f"{job.forge} does not answer as it should, so that no runner can be registered there now."
    if forge is not None and forge.registrations_left < 1:
        return (
            f"The registration budget of {job.forge} is used up; it refills {forge.registrations_per_s:.1f} a second."
        )
    return f"Pool {pool.name} asks for a machine at its next tick; it was queued {ago(now - job.queued_at)} ago."


def _why_cooling(pool: Pool, snapshot: Snapshot, now: datetime) -> str:
    offerings = snapshot.offerings.get(pool.name, ())
    if not offerings:
        return f"No provider of pool {pool.name} offers a machine of its shape."
    ends = []
    for offering in offerings:
        cooldown = snapshot.cooldowns.get(offering.capacity_pool)
        if cooldown is None or cooldown.until <= now:
            return ""
        ends.append(cooldown)
    first = min(ends, key=lambda cooldown: cooldown.until)
    what = f"All {len(offerings)} offerings of pool {pool.name} were" if len(offerings) > 1 else "The only offering was"
    return f"{what} refused lately ({first.reason}); the next try is in {ago(first.until - now)}."


def _why_lost(job: Job, now: datetime) -> str:
    again = ""
    if job.retry_at is not None and job.retry_at > now:
        again = f"; next try in {ago(job.retry_at - now)}"
    return f"Its machine was interrupted{_because(job.reason)}; it is queued again once the run allows{again}."


def _where(machine: Instance) -> str:
    if machine.capacity_pool is None:
        return str(machine.provider)
    return f"{machine.capacity_pool.machine_type} in {machine.capacity_pool.zone}"


def _because(reason: str) -> str:
    return f" ({reason.rstrip('.')})" if reason else ""
