"""What the status page shows, as one JSON text, built at most once per change and shared by every stream.

Lists are capped (the page says "and n more"); ages are left to the page, which knows the server's clock from `now`,
so that nothing is sent while nothing changes.
"""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from autoscaler.http.documents import (
    Document,
    condition_document,
    instant,
    instant_or_none,
    pool_documents,
    trouble_document,
)
from autoscaler.http.happenings import happening_document, happenings
from autoscaler.http.view import DaemonView
from autoscaler.model import Instance, InstanceMove, Job, JobId, JobState, LedgerEntry, Rules
from autoscaler.spi import InstanceId
from autoscaler.states import is_live, is_live_job
from autoscaler.store import StoreError
from autoscaler.why import answer
from autoscaler.why_outlook import Outlook
from autoscaler.why_unserved import nearest_pool

JOBS_SHOWN = 50
UNSERVED_SHOWN = 20
MACHINES_SHOWN = 400
HAPPENINGS_SHOWN = 60
ENDED_SHOWN = 30
SHORTEST_INTERVAL_S = 0.5
STALE_AFTER = timedelta(seconds=4)
MOVES_READ = 240
"""Six moves a machine: about as many as the happenings can tell of."""


class LiveState:
    """The page's state. `current(number)` is cheap for all but the first who asks for a change number."""

    def __init__(self, view: DaemonView) -> None:
        self._view = view
        self._recent = _Recent(view)
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
                document |= await self._recent.document()
                self._text = json.dumps(document, separators=(",", ":")).encode()
                self._number, self._built_at = max(number, self._number), self._view.now()
            return self._text


def state_document(view: DaemonView) -> Document:
    """Everything of the page but what the store knows."""
    snapshot, rules, now = view.snapshot(), view.rules(), view.now()
    jobs = snapshot.jobs.values()
    unserved = sorted((job for job in jobs if job.pool is None and job.state is JobState.QUEUED), key=_by_age)
    waiting = [job for job in jobs if job.pool is not None and job.state in (JobState.QUEUED, JobState.LOST)]
    waiting.sort(key=lambda job: -_urgency(job, rules, now))
    running = sorted((job for job in jobs if job.state is JobState.RUNNING), key=_by_age)
    machines = sorted(snapshot.instances.values(), key=lambda row: (row.pool, row.created_at, row.id))
    conditions, tick = view.conditions(), view.last_tick()
    outlook = Outlook(snapshot, rules, view.blocked(), now)
    return {
        "now": instant(now),
        "deployment": view.deployment,
        "ready": all(condition.is_well for condition in conditions),
        "conditions": [condition_document(condition) for condition in conditions if not condition.is_well],
        "troubles": [trouble_document(trouble) for trouble in view.troubles()],
        "tick_at": instant_or_none(tick.at if tick else None),
        "spent_today_usd": round(math.fsum(snapshot.spent_today_usd.values()), 2),
        "pools": pool_documents(view),
        "waiting": [_waiting_document(job, outlook) for job in waiting[:JOBS_SHOWN]],
        "waiting_total": len(waiting),
        "running": [_job_line(job) for job in running[:JOBS_SHOWN]],
        "running_total": len(running),
        "unserved": [_unserved_document(job, rules) for job in unserved[:UNSERVED_SHOWN]],
        "unserved_total": len(unserved),
        "machines": [_machine_document(row) for row in machines[:MACHINES_SHOWN]],
        "machines_total": len(machines),
    }


class _Recent:
    """What the store knows of the last minutes. Remembers the ended rows that the lines speak of, so that each is read
    once."""

    def __init__(self, view: DaemonView) -> None:
        self._view = view
        self._machines: dict[InstanceId, Instance] = {}
        self._jobs: dict[JobId, Job] = {}

    async def document(self) -> Document:
        """The happenings and the jobs that ended last, newest first. Empty where the store does not answer: the page
        lives on without them."""
        store = self._view.store
        try:
            moves, ledger = await store.recent_moves(limit=MOVES_READ), await store.ledger(limit=2 * HAPPENINGS_SHOWN)
            ended = await store.ended_jobs(limit=ENDED_SHOWN)
            machines = await self._machines_of(moves, ledger)
            jobs = await self._jobs_of(machines, ledger, ended)
        except StoreError:
            return {"happenings": [], "ended": []}
        lines = happenings(moves, ledger, machines=machines, jobs=jobs)
        return {
            "happenings": [happening_document(line) for line in lines[:HAPPENINGS_SHOWN]],
            "ended": [_ended_document(job) for job in ended],
        }

    async def _machines_of(
        self, moves: Sequence[InstanceMove], ledger: Sequence[tuple[int, LedgerEntry]]
    ) -> Mapping[InstanceId, Instance]:
        live = self._view.snapshot().instances
        named = dict.fromkeys([*(move.instance for move in moves), *(InstanceId(entry.subject) for _, entry in ledger)])
        moved = {move.instance for move in moves}
        found: dict[InstanceId, Instance] = {}
        for name in named:
            row = live.get(name) or self._machines.get(name)
            if row is None and name in moved:
                row = await self._view.store.instance(name)
            if row is not None:
                found[name] = row
        self._machines = {name: row for name, row in found.items() if not is_live(row)}
        return found

    async def _jobs_of(
        self,
        machines: Mapping[InstanceId, Instance],
        ledger: Sequence[tuple[int, LedgerEntry]],
        ended: Sequence[Job],
    ) -> Mapping[JobId, Job]:
        live, fresh = self._view.snapshot().jobs, {job.id: job for job in ended}
        named = {row.job for row in machines.values() if row.job is not None}
        named |= {JobId(entry.subject) for _, entry in ledger if ":" in entry.subject}
        found = {
            name: row
            for name in named
            if (row := live.get(name) or fresh.get(name) or self._jobs.get(name)) is not None
        }
        found |= {job.id: job for job in await self._view.store.jobs_by_ids(sorted(named - found.keys()))}
        self._jobs = {name: row for name, row in found.items() if not is_live_job(row)}
        return found


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


def _waiting_document(job: Job, outlook: Outlook) -> Document:
    pool = outlook.rules.pools.get(job.pool) if job.pool else None
    told = answer(job, outlook)
    return {
        **_job_line(job),
        "target_s": pool.target.total_seconds() if pool else None,
        "why": told.sentence,
        "estimated_start": instant_or_none(told.start.at),
        "estimated_start_p95": instant_or_none(told.start.by),
    }


def _ended_document(job: Job) -> Document:
    """`wait_s` until it ran, `took_s` from there on; null for a job that never ran."""
    started, finished = job.started_at, job.finished_at
    return {
        **_job_line(job),
        "conclusion": job.conclusion.value if job.conclusion else None,
        "ended_at": instant_or_none(finished),
        "wait_s": round((started - job.queued_at).total_seconds(), 1) if started else None,
        "took_s": round((finished - started).total_seconds(), 1) if started and finished else None,
    }


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
