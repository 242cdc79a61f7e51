"""What the status page shows, as one JSON text, built at most once per change and shared by every stream.

Lists are capped (the page says "and n more"); ages are left to the page, which knows the server's clock from `now`,
so that nothing is sent while nothing changes.
"""

import asyncio
import json
import math
from collections import deque
from datetime import datetime, timedelta

from autoscaler.http.documents import Document, condition_document, instant, instant_or_none, pool_documents
from autoscaler.http.view import DaemonView
from autoscaler.model import Instance, InstanceMove, Job, JobState, Rules
from autoscaler.spi import InstanceId
from autoscaler.store import StoreError
from autoscaler.why import expected_machines, nearest_pool, why

JOBS_SHOWN = 50
UNSERVED_SHOWN = 20
MACHINES_SHOWN = 400
HAPPENINGS_SHOWN = 60
SHORTEST_INTERVAL_S = 0.5
STALE_AFTER = timedelta(seconds=4)
MOVES_READ = 12
"""Machines whose history is read per refresh; in a burst the older ones are left to their own pages."""


class LiveState:
    """The page's state. `current(number)` is cheap for all but the first who asks for a change number."""

    def __init__(self, view: DaemonView) -> None:
        self._view = view
        self._happenings = _Happenings(view)
        self._lock = asyncio.Lock()
        self._number = -1
        self._built_at: datetime | None = None
        self._next_at = 0.0
        self._text = b""

    def has_waiting(self) -> bool:
        """Whether any sentence on the page speaks of time that passes."""
        return any(job.state is not JobState.RUNNING for job in self._view.snapshot().jobs.values())

    async def current(self, number: int) -> bytes:
        """The state as of change `number` or later, a few seconds old at most, as one line of JSON.

        Waits while the last one is too young: at most two a second are built, whatever the number of streams, and
        building takes a twentieth of the loop's time at most.
        """
        loop = asyncio.get_running_loop()
        async with self._lock:
            is_stale = self._view.now() - self._built_at >= STALE_AFTER if self._built_at else True
            if is_stale or number > self._number:
                await asyncio.sleep(self._next_at - loop.time())
                started = loop.time()
                document = state_document(self._view)
                self._next_at = started + max(SHORTEST_INTERVAL_S, 20 * (loop.time() - started))
                document["happenings"] = await self._happenings.newest()
                self._text = json.dumps(document, separators=(",", ":")).encode()
                self._number, self._built_at = max(number, self._number), self._view.now()
            return self._text


def state_document(view: DaemonView) -> Document:
    """Everything of the page but the happenings."""
    snapshot, rules, now = view.snapshot(), view.rules(), view.now()
    jobs = snapshot.jobs.values()
    unserved = sorted((job for job in jobs if job.pool is None and job.state is JobState.QUEUED), key=_by_age)
    waiting = [job for job in jobs if job.pool is not None and job.state in (JobState.QUEUED, JobState.LOST)]
    waiting.sort(key=lambda job: -_urgency(job, rules, now))
    running = sorted((job for job in jobs if job.state is JobState.RUNNING), key=_by_age)
    machines = sorted(snapshot.instances.values(), key=lambda row: (row.pool, row.created_at, row.id))
    conditions, tick = view.conditions(), view.last_tick()
    expected = expected_machines(snapshot)
    reasons = {
        job.id: why(job, snapshot, rules, view.blocked(), now, expected=expected) for job in waiting[:JOBS_SHOWN]
    }
    return {
        "now": instant(now),
        "deployment": view.deployment,
        "ready": all(condition.is_well for condition in conditions),
        "conditions": [condition_document(condition) for condition in conditions if not condition.is_well],
        "tick_at": instant_or_none(tick.at if tick else None),
        "spent_today_usd": round(math.fsum(snapshot.spent_today_usd.values()), 2),
        "pools": pool_documents(view),
        "waiting": [_waiting_document(job, rules, reasons[job.id]) for job in waiting[:JOBS_SHOWN]],
        "waiting_total": len(waiting),
        "running": [_job_line(job) for job in running[:JOBS_SHOWN]],
        "running_total": len(running),
        "unserved": [_unserved_document(job, rules) for job in unserved[:UNSERVED_SHOWN]],
        "unserved_total": len(unserved),
        "machines": [_machine_document(row) for row in machines[:MACHINES_SHOWN]],
        "machines_total": len(machines),
    }


class _Happenings:
    """The newest decisions of the ledger and moves of machines, merged. Remembers row versions between refreshes,
    so that only machines that changed are read again."""

    def __init__(self, view: DaemonView) -> None:
        self._view = view
        self._versions: dict[InstanceId, int] = {}
        self._moves: deque[tuple[InstanceMove, str]] = deque(maxlen=HAPPENINGS_SHOWN)
        self._seen: set[tuple[InstanceId, datetime, str]] = set()

    async def newest(self) -> list[Document]:
        """Newest first. Empty parts where the store does not answer: the page lives on without them."""
        try:
            await self._read_moves()
            decisions = await self._view.store.ledger(limit=HAPPENINGS_SHOWN)
        except StoreError:
            decisions = ()
        lines = [_move_line(move, pool) for move, pool in self._moves]
        lines += [
            {
                "at": instant(entry.at),
                "kind": "decision",
                "what": entry.action.replace("_", " "),
                "subject": entry.subject,
                "pool": entry.pool,
                "text": entry.reason,
                "outcome": entry.outcome,
                "actor": entry.actor,
            }
            for _, entry in decisions
        ]
        return sorted(lines, key=lambda line: str(line["at"]), reverse=True)[:HAPPENINGS_SHOWN]

    async def _read_moves(self) -> None:
        rows = self._view.snapshot().instances
        gone = [name for name in self._versions if name not in rows][:MOVES_READ]
        changed = [row for row in rows.values() if self._versions.get(row.id) != row.version]
        changed.sort(key=lambda row: row.since, reverse=True)
        self._versions = {row.id: row.version for row in rows.values()}
        for name in [*gone, *(row.id for row in changed[:MOVES_READ])]:
            row = rows.get(name) or await self._view.store.instance(name)
            for move in await self._view.store.instance_moves(name):
                self._keep(move, row.pool if row else "")

    def _keep(self, move: InstanceMove, pool: str) -> None:
        key = (move.instance, move.at, move.to_state.value)
        if key in self._seen:
            return
        self._moves.append((move, pool))
        self._seen.add(key)
        if len(self._seen) > 20 * HAPPENINGS_SHOWN:
            self._seen = {(kept.instance, kept.at, kept.to_state.value) for kept, _ in self._moves}


def _move_line(move: InstanceMove, pool: str) -> Document:
    return {
        "at": instant(move.at),
        "kind": "machine",
        "what": move.to_state.value,
        "subject": move.instance,
        "pool": pool,
        "text": move.cause,
        "outcome": "",
        "actor": "",
    }


def _by_age(job: Job) -> tuple[datetime, str]:
    return job.queued_at, job.id


def _urgency(job: Job, rules: Rules, now: datetime) -> float:
    """Age in targets: what is furthest over its promise comes first."""
    pool = rules.pools.get(job.pool) if job.pool else None
    target_s = max(1.0, pool.target.total_seconds()) if pool else 60.0
    return (now - job.queued_at).total_seconds() / target_s


def _job_line(job: Job) -> Document:
    return {
        "id": job.id,
        "name": job.name,
        "repo": job.repo,
        "pool": job.pool,
        "state": job.state.value,
        "queued_at": instant(job.queued_at),
        "started_at": instant_or_none(job.started_at),
        "instance": job.instance,
        "attempt": job.attempt,
    }


def _waiting_document(job: Job, rules: Rules, reason: str) -> Document:
    pool = rules.pools.get(job.pool) if job.pool else None
    return {**_job_line(job), "target_s": pool.target.total_seconds() if pool else None, "why": reason}


def _unserved_document(job: Job, rules: Rules) -> Document:
    near = nearest_pool(job, rules)
    return {
        **_job_line(job),
        "labels": list(job.labels),
        "nearest": near.pool if near else None,
        "missing": list(near.missing) if near else [],
        "repo_served": bool(near and near.is_repo_served),
    }


def _machine_document(row: Instance) -> Document:
    place = row.capacity_pool
    return {
        "id": row.id,
        "pool": row.pool,
        "state": row.state.value,
        "since": instant(row.since),
        "where": f"{place.machine_type} in {place.zone}" if place else str(row.provider),
        "capacity_type": place.capacity_type.value if place else "",
    }
