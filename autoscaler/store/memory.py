"""The store in plain Python, for simulations and tests. Passes the same contract suite as the engines.

A `MemoryDisk` is what survives a crash; each daemon life opens a `MemoryStore` over it. Every call yields to the loop
once before and, where it writes, once after its effect, which happens at once and as a whole: a crash at an await thus
finds the write done or not begun, and may find it done but never acknowledged.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from heapq import nlargest
from itertools import chain, islice
from operator import itemgetter
from typing import Any, TypeVar

from autoscaler.model import (
    CapacityEvidence,
    CostLine,
    Instance,
    InstanceMove,
    InstanceState,
    Interruption,
    Job,
    JobId,
    LedgerEntry,
    PoolControl,
    Use,
)
from autoscaler.spi import CapacityPool, ForgeName, InstanceId, PoolName, Webhook
from autoscaler.states import is_live, is_live_job
from autoscaler.store import (
    Changes,
    Conflict,
    CostSum,
    InboxRow,
    Learned,
    LeaseLost,
    Sample,
    Stored,
    StoreError,
    StoreStats,
)
from autoscaler.store.rows import Versioned, ended_at, last_versions, repo_run

K = TypeVar("K")
_PRUNE_ROWS = 2_000


@dataclass(slots=True)
class MemoryDisk:
    """The tables. `owner` is the store that holds the lease, `epoch` fences all earlier holders off."""

    jobs: dict[JobId, Job] = field(default_factory=dict)
    instances: dict[InstanceId, Instance] = field(default_factory=dict)
    moves: dict[InstanceId, list[tuple[int, InstanceMove]]] = field(default_factory=dict)
    ledger: dict[int, LedgerEntry] = field(default_factory=dict)
    inbox: dict[int, InboxRow] = field(default_factory=dict)
    deliveries: dict[tuple[ForgeName, str], tuple[int, datetime]] = field(default_factory=dict)
    samples: dict[tuple[datetime, PoolName], Sample] = field(default_factory=dict)
    costs: dict[tuple[InstanceId, Use], CostLine] = field(default_factory=dict)
    interruptions: dict[InstanceId, Interruption] = field(default_factory=dict)
    evidence: dict[CapacityPool, CapacityEvidence] = field(default_factory=dict)
    learned: dict[str, Learned] = field(default_factory=dict)
    controls: dict[PoolName, PoolControl] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    last_seq: int = 0
    last_entry: int = 0
    last_move: int = 0
    held_instances: bool = False
    epoch: int = 0
    owner: object | None = None


class MemoryStore:
    """One daemon's view of a disk; of a disk of its own when none is given."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self.disk = MemoryDisk() if disk is None else disk
        self._epoch: int | None = None
        self._is_open = False
        self._stats = StoreStats()

    @property
    def stats(self) -> StoreStats:
        return self._stats

    async def open(self) -> None:
        await asyncio.sleep(0)
        self._is_open = True
        self._stats = StoreStats()

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self._is_open = False
        if self.disk.owner is self:
            self.disk.owner = None
        self._epoch = None

    def break_lease(self) -> None:
        """What a kill -9 does: whoever holds the lease is gone without a word, the next taker gets it."""
        self.disk.owner = None

    async def acquire_lease(self, holder: str) -> bool:
        await self._step()
        if self.disk.owner is self:
            return True
        if self.disk.owner is not None:
            return False
        self.disk.owner = self
        self.disk.epoch += 1
        self._epoch = self.disk.epoch
        return True

    async def holds_lease(self) -> bool:
        await self._step()
        return self.disk.owner is self and self._epoch == self.disk.epoch

    async def load(self) -> Stored:
        await self._step()
        disk = self.disk
        jobs = sorted(filter(is_live_job, disk.jobs.values()), key=lambda job: (job.first_seen_at, job.id))
        instances = sorted(filter(is_live, disk.instances.values()), key=lambda row: (row.created_at, row.id))
        return Stored(
            jobs=jobs,
            instances=instances,
            inbox=[disk.inbox[seq] for seq in sorted(disk.inbox)],
            controls=dict(disk.controls),
            settings=dict(disk.settings),
            interruptions=[one for one in _by_notice(disk.interruptions.values()) if one.ended_at is None],
            is_new=not disk.held_instances,
            evidence=[disk.evidence[pool] for pool in sorted(disk.evidence, key=lambda pool: pool.key)],
            learned=[disk.learned[name] for name in sorted(disk.learned)],
        )

    async def accept(self, forge: ForgeName, webhook: Webhook, received_at: datetime) -> int | None:
        await self._step()
        disk, delivery = self.disk, (forge, webhook.delivery_id)
        if delivery in disk.deliveries:
            return None
        disk.last_seq += 1
        seq = disk.last_seq
        disk.inbox[seq] = InboxRow(seq=seq, forge=forge, received_at=received_at, webhook=webhook)
        disk.deliveries[delivery] = (seq, received_at)
        self._count(1)
        await asyncio.sleep(0)
        return seq

    async def commit(self, changes: Changes) -> None:
        await self._step()
        disk = self.disk
        if self._epoch is None or self._epoch != disk.epoch:
            raise LeaseLost("another daemon took the store over")
        jobs = _checked(changes.jobs, disk.jobs)
        instances = _checked(changes.instances, disk.instances)
        disk.jobs.update(jobs)
        disk.instances.update(instances)
        disk.held_instances = disk.held_instances or bool(instances)
        for move in changes.moves:
            disk.last_move += 1
            disk.moves.setdefault(move.instance, []).append((disk.last_move, move))
        for entry in changes.ledger:
            disk.last_entry += 1
            disk.ledger[disk.last_entry] = entry
        for seq in changes.consumed:
            disk.inbox.pop(seq, None)
        disk.samples.update({(sample.at, sample.pool): sample for sample in changes.samples})
        disk.controls.update(changes.controls or {})
        for name, value in (changes.settings or {}).items():
            if value:
                disk.settings[name] = value
            else:
                disk.settings.pop(name, None)
        disk.interruptions.update({one.instance: one for one in changes.interruptions})
        disk.evidence.update({one.capacity_pool: one for one in changes.evidence})
        for lesson in changes.learned:
            if lesson.value:
                disk.learned[lesson.key] = lesson
            else:
                disk.learned.pop(lesson.key, None)
        for line in changes.costs:
            disk.costs[line.instance, line.use] = line
        for instance, use in (changes.job_uses or {}).items():
            for before in (Use.JOB, Use.LOST):
                if (turned := disk.costs.pop((instance, before), None)) is not None:
                    disk.costs[instance, use] = replace(turned, use=use)
        self._count(len(jobs) + len(instances) + _other_rows(changes))
        await asyncio.sleep(0)

    async def job(self, job: JobId) -> Job | None:
        await self._step()
        return self.disk.jobs.get(job)

    async def jobs_by_ids(self, ids: Sequence[JobId]) -> Sequence[Job]:
        await self._step()
        return [self.disk.jobs[wanted] for wanted in ids if wanted in self.disk.jobs]

    async def jobs_of_run(self, repo: str, run_id: str, *, limit: int) -> Sequence[Job]:
        await self._step()
        wanted = repo_run(repo, run_id)
        found = (job for job in self.disk.jobs.values() if repo_run(job.repo, job.run_id) == wanted)
        return sorted(found, key=lambda job: (job.first_seen_at, job.id))[:limit]

    async def recent_jobs(self, *, limit: int, pool: PoolName | None = None, state: str = "") -> Sequence[Job]:
        await self._step()
        found = (job for job in self.disk.jobs.values() if (not pool or pool == job.pool) and state in ("", job.state))
        return sorted(found, key=lambda job: (job.first_seen_at, job.id), reverse=True)[:limit]

    async def ended_jobs(self, *, limit: int) -> Sequence[Job]:
        await self._step()
        ended = (job for job in self.disk.jobs.values() if not is_live_job(job))
        return nlargest(limit, ended, key=lambda job: (ended_at(job), job.id))

    async def instance(self, instance: InstanceId) -> Instance | None:
        await self._step()
        return self.disk.instances.get(instance)

    async def recent_instances(self, *, limit: int, pool: PoolName | None = None) -> Sequence[Instance]:
        await self._step()
        found = (row for row in self.disk.instances.values() if not pool or pool == row.pool)
        return sorted(found, key=lambda row: (row.created_at, row.id), reverse=True)[:limit]

    async def instance_moves(self, instance: InstanceId) -> Sequence[InstanceMove]:
        await self._step()
        return [move for _, move in self.disk.moves.get(instance, ())]

    async def recent_moves(self, *, limit: int) -> Sequence[InstanceMove]:
        await self._step()
        numbered = chain.from_iterable(self.disk.moves.values())
        return [move for _, move in nlargest(limit, numbered, key=itemgetter(0))]

    async def interruption(self, instance: InstanceId) -> Interruption | None:
        await self._step()
        return self.disk.interruptions.get(instance)

    async def recent_interruptions(self, *, limit: int) -> Sequence[Interruption]:
        await self._step()
        return _by_notice(self.disk.interruptions.values())[: -limit - 1 : -1]

    async def ledger(
        self, *, limit: int, subject: str = "", before: int | None = None
    ) -> Sequence[tuple[int, LedgerEntry]]:
        await self._step()
        newest_first = reversed(self.disk.ledger.items())
        wanted = (
            (seq, entry)
            for seq, entry in newest_first
            if (before is None or seq < before) and subject in ("", entry.subject)
        )
        return list(islice(wanted, limit))

    async def samples(self, since: datetime) -> Sequence[Sample]:
        await self._step()
        keys = sorted(self.disk.samples)
        return [self.disk.samples[key] for key in keys[bisect_left(keys, (since, PoolName(""))) :]]

    async def costs(self, since: datetime, until: datetime) -> Sequence[CostSum]:
        await self._step()
        sums: dict[tuple[str, ...], list[CostLine]] = {}
        for line in self.disk.costs.values():
            if since <= line.ended_at < until:
                day = f"{line.ended_at:%Y-%m-%d}"
                place = (day, line.provider, line.pool, line.capacity_type, line.repo, line.workflow, line.use)
                sums.setdefault(place, []).append(line)
        return [_added_up(place[0], lines) for place, lines in sorted(sums.items())]

    async def prune(self, *, before: datetime, deliveries_before: datetime, samples_before: datetime) -> int:
        await self._step()
        disk = self.disk
        jobs = [job.id for job in disk.jobs.values() if not is_live_job(job) and ended_at(job) < before]
        instances = [
            row.id for row in disk.instances.values() if row.state is InstanceState.TERMINATED and row.since < before
        ]
        entries = [seq for seq, entry in disk.ledger.items() if entry.at < before]
        deliveries = [
            delivery
            for delivery, (seq, received_at) in disk.deliveries.items()
            if received_at < deliveries_before and seq not in disk.inbox
        ]
        samples = [key for key in disk.samples if key[0] < samples_before]
        evidence = [key for key, one in disk.evidence.items() if one.at < before]
        learned = [name for name, one in disk.learned.items() if one.at < before]
        costs = [key for key, line in disk.costs.items() if line.ended_at < before]
        interruptions = [
            id_ for id_, one in disk.interruptions.items() if one.ended_at is not None and one.noticed_at < before
        ]
        for instance in instances[:_PRUNE_ROWS]:
            disk.moves.pop(instance, None)
        gone = sum(
            (
                _drop(disk.jobs, jobs),
                _drop(disk.instances, instances),
                _drop(disk.ledger, entries),
                _drop(disk.deliveries, deliveries),
                _drop(disk.samples, samples),
                _drop(disk.costs, costs),
                _drop(disk.interruptions, interruptions),
                _drop(disk.evidence, evidence),
                _drop(disk.learned, learned),
            )
        )
        await asyncio.sleep(0)
        return gone

    async def _step(self) -> None:
        await asyncio.sleep(0)
        if not self._is_open:
            raise StoreError("the store is not open")

    def _count(self, rows: int) -> None:
        self._stats = StoreStats(commits=self._stats.commits + 1, rows=self._stats.rows + rows)


def _checked(rows: Sequence[Versioned], table: Mapping[Any, Versioned]) -> dict[Any, Versioned]:
    """The rows to store by id. Raises Conflict when the table holds another version than expected."""
    found: dict[Any, Versioned] = {}
    for row, expected in zip(*last_versions(rows), strict=True):
        stored = table.get(row.id)
        if (0 if stored is None else stored.version) != expected:
            raise Conflict(f"{row.id} is not at version {expected}")
        found[row.id] = row
    return found


def _other_rows(changes: Changes) -> int:
    history = len(changes.moves) + len(changes.ledger) + len(changes.consumed) + len(changes.samples)
    history += len(changes.costs) + len(changes.job_uses or {}) + len(changes.interruptions) + len(changes.evidence)
    history += len(changes.learned)
    return history + len(changes.controls or {}) + len(changes.settings or {})


def _by_notice(found: Iterable[Interruption]) -> list[Interruption]:
    return sorted(found, key=lambda one: (one.noticed_at, one.instance))


def _added_up(day: str, lines: Sequence[CostLine]) -> CostSum:
    first = lines[0]
    return CostSum(
        day=day,
        provider=first.provider,
        pool=first.pool,
        capacity_type=first.capacity_type,
        repo=first.repo,
        workflow=first.workflow,
        use=first.use,
        instances=len(lines),
        milliseconds=sum(line.milliseconds for line in lines),
        usd_nano=sum(line.usd_nano for line in lines),
        on_demand_usd_nano=sum(line.on_demand_usd_nano for line in lines),
    )


def _drop(table: MutableMapping[K, Any], keys: Iterable[K]) -> int:
    gone = list(islice(keys, _PRUNE_ROWS))
    for key in gone:
        del table[key]
    return len(gone)
