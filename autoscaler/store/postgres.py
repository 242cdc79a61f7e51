"""The store in PostgreSQL: the same queries, a small pool, one writer task that commits in groups.

The lease is a session advisory lock on a connection of its own, so the server frees it however the holder dies, and the
epoch that each commit compares, so that a holder whose connection died unknowingly can change nothing. When a
connection breaks inside COMMIT nobody knows whether it took effect: the lease is given up and the caller gets
LeaseLost, so that it takes the lease again and reads everything anew; a webhook gets StoreError, and its delivery id
makes the repeat harmless.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]  # it ships no types

from autoscaler.model import (
    CapacityEvidence,
    Instance,
    InstanceMove,
    Interruption,
    Job,
    JobId,
    LedgerEntry,
    PoolControl,
)
from autoscaler.spi import ForgeName, InstanceId, PoolName, Webhook
from autoscaler.store import Changes, Conflict, CostSum, Learned, LeaseLost, Sample, Stored, StoreError, StoreStats
from autoscaler.store import rows as encoding
from autoscaler.store.external import external_work
from autoscaler.store.migrations import Migration, migrations
from autoscaler.store.postgres_faults import FAULTS, failure, in_doubt, translated
from autoscaler.store.postgres_work import Accept, Commit, settle, transposed
from autoscaler.store.queries import queries
from autoscaler.store.rows import Columns, cost_sum, inbox_row, key, micros, read, repo_run, text

T = TypeVar("T")
_POOL_SIZE = 4
_TIMEOUT_S = 30.0
_LEASE_TIMEOUT_S = 5.0
_BATCH_LIMIT = 500
_PRUNE_ROWS = 2_000
_LAST_SEQ = 2**63 - 1
_SERVER_SETTINGS = {
    "application_name": "autoscaler",
    "tcp_keepalives_idle": "10",  # a holder's dead host frees the lease within half a minute
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


class PostgresStore:
    """See the Store contract. `dsn` is a postgresql:// URL; its password never appears in an error."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._sql = queries("postgres")
        self._pool: Any = None
        self._queue: asyncio.Queue[Accept | Commit | None] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None
        self._lock: Any = None
        self._epoch: int | None = None
        self._stats = StoreStats()

    @property
    def stats(self) -> StoreStats:
        return self._stats

    async def open(self) -> None:
        if self._pool is not None:
            return
        with translated("cannot be reached; check the address, the role and that the server runs"):
            self._pool = await asyncpg.create_pool(
                self._dsn,
                min_size=1,
                max_size=_POOL_SIZE,
                timeout=_TIMEOUT_S,
                command_timeout=_TIMEOUT_S,
                server_settings=_SERVER_SETTINGS,
            )
        try:
            await self._migrate()
        except BaseException:
            await self._close_pool()
            raise
        self._queue = asyncio.Queue()
        self._stats = StoreStats()
        self._writer = asyncio.create_task(self._write_groups(), name="store-writer")

    async def aclose(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._queue.put_nowait(None)
            await writer
        await self._release()
        await self._close_pool()

    async def _close_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            with external_work():
                try:
                    await asyncio.wait_for(pool.close(), _LEASE_TIMEOUT_S)
                except FAULTS:
                    pool.terminate()

    # ------------------------------------------------------------------ lease

    async def acquire_lease(self, holder: str) -> bool:
        if await self.holds_lease():
            return True
        await self._release()
        with translated("cannot be reached"):
            lock = await asyncpg.connect(
                self._dsn,
                timeout=_LEASE_TIMEOUT_S,
                command_timeout=_LEASE_TIMEOUT_S,
                server_settings=_SERVER_SETTINGS,
            )
            try:
                is_ours = await lock.fetchval(self._sql["try_lock"])
                if is_ours:
                    self._epoch = await lock.fetchval(self._sql["take_lease"], text(holder), timeout=_TIMEOUT_S)
                    self._lock, lock = lock, None
            finally:
                if lock is not None:
                    with contextlib.suppress(*FAULTS):
                        await lock.close(timeout=_LEASE_TIMEOUT_S)
        return bool(is_ours)

    async def holds_lease(self) -> bool:
        lock, epoch = self._lock, self._epoch
        if lock is None or epoch is None or lock.is_closed():
            return False
        try:
            with external_work():
                return bool(await lock.fetchval(self._sql["peek_epoch"]) == epoch)
        except FAULTS:
            await self._release()
            return False

    async def _release(self) -> None:
        lock, self._lock, self._epoch = self._lock, None, None
        if lock is not None:
            with external_work(), contextlib.suppress(*FAULTS):
                await lock.close(timeout=_LEASE_TIMEOUT_S)

    # ------------------------------------------------------------------ writes

    async def accept(self, forge: ForgeName, webhook: Webhook, received_at: datetime) -> int | None:
        columns = encoding.accept_columns(forge, webhook, received_at)
        return await self._queued(lambda answer: Accept(columns, answer))

    async def commit(self, changes: Changes) -> None:
        epoch = self._epoch
        if epoch is None or self._lock is None or self._lock.is_closed():
            raise LeaseLost("this daemon does not hold the store")
        writes = encoding.writes(changes)
        await self._queued(lambda answer: Commit(writes, epoch, answer))

    async def _queued(self, member: Callable[[asyncio.Future[T]], Any]) -> T:
        if self._writer is None:
            raise StoreError("the store is not open")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with external_work():
            self._queue.put_nowait(member(answer))
            return await answer

    async def _write_groups(self) -> None:
        """Take what queued up while the last transaction ran, commit it as one; until `aclose`."""
        is_open = True
        while is_open:
            batch = [await self._queue.get()]
            while len(batch) < _BATCH_LIMIT and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            is_open = None not in batch
            members = [member for member in batch if member is not None]
            if members:
                await self._group(members)

    async def _group(self, members: Sequence[Accept | Commit]) -> None:
        """One transaction for all. A broken one fails all; a broken COMMIT also ends the lease, see the module."""
        is_committing = False
        try:
            async with self._pool.acquire(timeout=_TIMEOUT_S) as connection:
                transaction = connection.transaction()
                await transaction.start()
                try:
                    outcomes, rows = await self._run(connection, members)
                except BaseException:
                    with contextlib.suppress(*FAULTS):
                        await transaction.rollback()
                    raise
                is_committing = True
                await transaction.commit()
        except Exception as error:
            is_unknown = is_committing and any(isinstance(member, Commit) for member in members)
            if is_unknown:
                await self._release()
            for member in members:
                is_in_doubt = is_unknown and isinstance(member, Commit)
                settle(member.answer, in_doubt(error) if is_in_doubt else failure(error))
            return
        if rows:
            self._stats = StoreStats(commits=self._stats.commits + 1, rows=self._stats.rows + rows)
        for member, outcome in zip(members, outcomes, strict=True):
            settle(member.answer, outcome)

    async def _run(
        self, connection: Any, members: Sequence[Accept | Commit]
    ) -> tuple[list[int | StoreError | None], int]:
        """What each member comes to once the transaction is committed, and how many rows that wrote."""
        accepts = [member for member in members if isinstance(member, Accept)]
        seqs = await self._accept_all(connection, accepts) if accepts else {}
        rows = len(seqs)
        outcomes: list[int | StoreError | None] = []
        for member in members:
            if isinstance(member, Accept):
                outcomes.append(seqs.pop(member.columns[:2], None))
                continue
            try:
                async with connection.transaction():
                    await self._apply(connection, member)
            except (Conflict, LeaseLost, asyncpg.DataError) as error:
                outcomes.append(error if isinstance(error, StoreError) else failure(error))
            else:
                outcomes.append(None)
                rows += member.writes.rows
        return outcomes, rows

    async def _accept_all(self, connection: Any, accepts: Sequence[Accept]) -> dict[Columns, int]:
        """The seq of each delivery that is new."""
        found = await connection.fetch(self._sql["accept"], *transposed([accept.columns for accept in accepts]))
        return {(forge, delivery): seq for seq, forge, delivery in found}

    async def _apply(self, connection: Any, commit: Commit) -> None:
        sql, writes = self._sql, commit.writes
        if await connection.fetchval(sql["lease_epoch"]) != commit.epoch:
            raise LeaseLost("another daemon took the store over")
        for query, rows in (
            ("insert_job", writes.job_inserts),
            ("update_job", writes.job_updates),
            ("insert_instance", writes.instance_inserts),
            ("update_instance", writes.instance_updates),
        ):
            if rows:
                written = {row[0] for row in await connection.fetch(sql[query], *transposed(rows))}
                for columns in rows:
                    if columns[0] not in written:
                        raise Conflict(f"{columns[0]} is not at version {int(columns[1]) - 1}")
        if writes.instance_inserts:
            await connection.execute(sql["note_instances"])
        if writes.consumed:
            await connection.execute(sql["consume"], writes.consumed)
        for query, rows in (
            ("insert_move", writes.moves),
            ("insert_ledger", writes.ledger),
            ("insert_cost", writes.costs),
        ):
            if rows:
                await connection.execute(sql[query], *transposed(rows))
        few: tuple[tuple[str, Sequence[Columns]], ...] = (
            ("turn_cost", writes.job_uses),
            ("put_interruption", writes.interruptions),
            ("put_sample", writes.samples),
            ("put_evidence", writes.evidence),
            ("put_learned", writes.learned),
            ("delete_learned", [(name,) for name in writes.dropped_learned]),
            ("put_control", writes.controls),
            ("put_setting", writes.settings),
            ("delete_setting", [(name,) for name in writes.dropped_settings]),
        )
        for query, rows in few:
            if rows:
                await connection.executemany(sql[query], rows)

    async def prune(self, *, before: datetime, deliveries_before: datetime, samples_before: datetime) -> int:
        sql = self._sql

        async def delete(connection: Any) -> int:
            gone = 0
            async with connection.transaction():
                for query, age in (
                    ("prune_jobs", before),
                    ("prune_ledger", before),
                    ("prune_costs", before),
                    ("prune_interruptions", before),
                    ("prune_evidence", before),
                    ("prune_learned", before),
                    ("prune_inbox", deliveries_before),
                    ("prune_samples", samples_before),
                ):
                    gone += len(await connection.fetch(sql[query], micros(age), _PRUNE_ROWS))
                ended = await connection.fetch(sql["ended_instances"], micros(before), _PRUNE_ROWS)
                ids = [row[0] for row in ended]
                await connection.execute(sql["delete_moves"], ids)
                await connection.execute(sql["delete_instance"], ids)
            return gone + len(ids)

        return await self._with_connection(delete)

    # ------------------------------------------------------------------ reads

    async def load(self) -> Stored:
        sql = self._sql

        async def everything(connection: Any) -> Stored:
            async def values(kind: type[T], query: str) -> list[T]:
                return [read(kind, row[0]) for row in await connection.fetch(sql[query])]

            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return Stored(
                    jobs=await values(Job, "live_jobs"),
                    instances=await values(Instance, "live_instances"),
                    inbox=[inbox_row(*row) for row in await connection.fetch(sql["waiting_inbox"])],
                    controls={PoolName(p): PoolControl(c) for p, c in await connection.fetch(sql["controls"])},
                    settings=dict(await connection.fetch(sql["settings"])),
                    interruptions=await values(Interruption, "live_interruptions"),
                    evidence=[read(CapacityEvidence, row[0]) for row in await connection.fetch(sql["evidence"])],
                    learned=[read(Learned, row[0]) for row in await connection.fetch(sql["learned"])],
                    is_new=await connection.fetchval(sql["held_instances"]) == 0,
                )

        return await self._with_connection(everything)

    async def job(self, job: JobId) -> Job | None:
        found = await self._values(Job, "job", key(job))
        return found[0] if found else None

    async def jobs_by_ids(self, ids: Sequence[JobId]) -> Sequence[Job]:
        found = {job.id: job for job in await self._values(Job, "jobs_by_ids", [key(job) for job in ids])}
        return [found[job] for job in ids if job in found]

    async def jobs_of_run(self, repo: str, run_id: str, *, limit: int) -> Sequence[Job]:
        return await self._values(Job, "jobs_of_run", limit, key(repo_run(repo, run_id)))

    async def recent_jobs(self, *, limit: int, pool: PoolName | None = None, state: str = "") -> Sequence[Job]:
        query = "recent_jobs" + ("_of_pool" if pool else "") + ("_in_state" if state else "")
        return await self._values(Job, query, limit, *(key(value) for value in (pool, state) if value))

    async def ended_jobs(self, *, limit: int) -> Sequence[Job]:
        return await self._values(Job, "ended_jobs", limit)

    async def instance(self, instance: InstanceId) -> Instance | None:
        found = await self._values(Instance, "instance", key(instance))
        return found[0] if found else None

    async def recent_instances(self, *, limit: int, pool: PoolName | None = None) -> Sequence[Instance]:
        if not pool:
            return await self._values(Instance, "recent_instances", limit)
        return await self._values(Instance, "recent_instances_of_pool", limit, key(pool))

    async def instance_moves(self, instance: InstanceId) -> Sequence[InstanceMove]:
        return await self._values(InstanceMove, "moves", key(instance))

    async def recent_moves(self, *, limit: int) -> Sequence[InstanceMove]:
        return await self._values(InstanceMove, "recent_moves", limit)

    async def interruption(self, instance: InstanceId) -> Interruption | None:
        found = await self._values(Interruption, "interruption", key(instance))
        return found[0] if found else None

    async def recent_interruptions(self, *, limit: int) -> Sequence[Interruption]:
        return await self._values(Interruption, "recent_interruptions", limit)

    async def ledger(
        self, *, limit: int, subject: str = "", before: int | None = None
    ) -> Sequence[tuple[int, LedgerEntry]]:
        query, filters = ("ledger_of_subject", (key(subject),)) if subject else ("ledger", ())
        found = await self._fetch(query, limit, _LAST_SEQ if before is None else before, *filters)
        return [(seq, read(LedgerEntry, body)) for seq, body in found]

    async def samples(self, since: datetime) -> Sequence[Sample]:
        return await self._values(Sample, "samples", micros(since))

    async def costs(self, since: datetime, until: datetime) -> Sequence[CostSum]:
        return [cost_sum(row) for row in await self._fetch("costs", micros(since), micros(until))]

    # ------------------------------------------------------------------ plumbing

    async def _values(self, kind: type[T], query: str, *parameters: object) -> list[T]:
        return [read(kind, row[0]) for row in await self._fetch(query, *parameters)]

    async def _fetch(self, query: str, *parameters: object) -> Sequence[Sequence[Any]]:
        async def fetch(connection: Any) -> Any:
            return await connection.fetch(self._sql[query], *parameters)

        found: Sequence[Sequence[Any]] = await self._with_connection(fetch)
        return found

    async def _with_connection(self, run: Callable[[Any], Awaitable[T]]) -> T:
        if self._pool is None:
            raise StoreError("the store is not open")
        with translated("failed"):
            async with self._pool.acquire(timeout=_TIMEOUT_S) as connection:
                return await run(connection)

    async def _migrate(self) -> None:
        known = migrations("postgres")

        async def step(connection: Any) -> bool:
            """Whether there was a migration to apply. Another daemon may apply them at the same time."""
            async with connection.transaction():
                await connection.execute(self._sql["lock_migrations"])
                await connection.execute(self._sql["create_schema_version"])
                version = int(await connection.fetchval(self._sql["schema_version"]))
                if version < len(known):
                    await self._step(connection, known[version])
            if version > len(known):
                raise StoreError(
                    f"the database's schema {version} is newer than this program's ({len(known)}); "
                    "run the newer program, or restore the copy made before its first start"
                )
            return version < len(known)

        while await self._with_connection(step):
            pass

    async def _step(self, connection: Any, migration: Migration) -> None:
        for statement in migration.statements:
            await connection.execute(statement)
        await connection.execute(self._sql["record_migration"], migration.version, migration.name)
