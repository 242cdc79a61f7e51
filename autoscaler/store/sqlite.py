"""The store in one SQLite file: write-ahead log, synchronous=FULL, one writer thread that commits in groups.

Reads go to a thread and a read-only connection of their own, so that a page that lists history never delays a webhook.
The lease is an operating-system lock on "<path>.lock", freed by the kernel however the holder dies, and an epoch in the
database that each commit compares, so that a holder that lost the lock unknowingly can change nothing.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

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
from autoscaler.store.migrations import Migration, migrations
from autoscaler.store.queries import queries
from autoscaler.store.rows import Columns, Writes, cost_sum, inbox_row, key, micros, read, repo_run, text
from autoscaler.store.threads import Connection, DatabaseThread

T = TypeVar("T")
_PRUNE_ROWS = 2_000
_VACUUM_PAGES = 4_000
_LOG_BYTES = 16 * 1024 * 1024
_LAST_SEQ = 2**63 - 1


class SqliteStore:
    """See the Store contract. `path` is a file whose folder exists; "<path>.lock" appears beside it.
    `busy_timeout_s` is how long another program (a backup) may lock the file before a write fails."""

    def __init__(self, path: str, *, busy_timeout_s: float = 5.0) -> None:
        self._path = Path(path)
        self._busy_timeout_s = busy_timeout_s
        self._sql = queries("sqlite")
        self._writer: DatabaseThread | None = None
        self._reader: DatabaseThread | None = None
        self._lock: int | None = None
        self._epoch: int | None = None

    @property
    def stats(self) -> StoreStats:
        writer = self._writer
        return StoreStats() if writer is None else StoreStats(commits=writer.commits, rows=writer.rows)

    async def open(self) -> None:
        if self._writer is not None:
            return
        folder = self._path.absolute().parent
        if not folder.is_dir():
            raise StoreError(f"store {self._path}: there is no folder {folder}; create it for the daemon's user")
        writer = DatabaseThread("store-writer", self._connect_writer, groups=True)
        try:
            await writer.call(self._migrate, alone=True)
        except BaseException:
            await writer.aclose()
            raise
        self._writer = writer
        self._reader = DatabaseThread("store-reader", self._connect_reader, groups=False)

    async def aclose(self) -> None:
        writer, reader = self._writer, self._reader
        self._writer = self._reader = self._epoch = None
        if reader is not None:
            await reader.aclose()
        if writer is not None:
            await writer.aclose()
        self._unlock()

    # ------------------------------------------------------------------ lease

    async def acquire_lease(self, holder: str) -> bool:
        if self._epoch is not None and await self.holds_lease():
            return True
        self._unlock()
        try:
            lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"store lock {self._path}.lock: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        try:
            self._epoch = await self._write(lambda at: self._number(at, "take_lease", text(holder)), rows=0)
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        return True

    async def holds_lease(self) -> bool:
        if self._lock is None or self._epoch is None:
            return False
        return await self._read(lambda at: self._number(at, "peek_epoch")) == self._epoch

    def _unlock(self) -> None:
        lock, self._lock, self._epoch = self._lock, None, None
        if lock is not None:
            os.close(lock)

    # ------------------------------------------------------------------ writes

    async def accept(self, forge: ForgeName, webhook: Webhook, received_at: datetime) -> int | None:
        columns = encoding.accept_columns(forge, webhook, received_at)

        def insert(connection: Connection) -> int | None:
            row = connection.execute(self._sql["accept"], columns).fetchone()
            return None if row is None else int(row[0])

        return await self._write(insert)

    async def commit(self, changes: Changes) -> None:
        epoch = self._epoch
        if epoch is None:
            raise LeaseLost("this daemon does not hold the store")
        writes = encoding.writes(changes)

        def write(connection: Connection) -> None:
            if self._number(connection, "lease_epoch") != epoch:
                raise LeaseLost("another daemon took the store over")
            self._apply(connection, writes)

        await self._write(write, rows=writes.rows, savepoint=True)

    def _apply(self, connection: Connection, writes: Writes) -> None:
        sql = self._sql
        for query, rows in (
            ("insert_job", writes.job_inserts),
            ("update_job", writes.job_updates),
            ("insert_instance", writes.instance_inserts),
            ("update_instance", writes.instance_updates),
        ):
            for columns in rows:
                if connection.execute(sql[query], columns).fetchone() is None:
                    raise Conflict(f"{columns[0]} is not at version {int(columns[1]) - 1}")
        if writes.instance_inserts:
            connection.execute(sql["note_instances"])
        many: tuple[tuple[str, Sequence[Columns]], ...] = (
            ("insert_move", writes.moves),
            ("insert_ledger", writes.ledger),
            ("insert_cost", writes.costs),
            ("turn_cost", writes.job_uses),
            ("put_interruption", writes.interruptions),
            ("consume", [(seq,) for seq in writes.consumed]),
            ("put_sample", writes.samples),
            ("put_evidence", writes.evidence),
            ("put_learned", writes.learned),
            ("delete_learned", [(name,) for name in writes.dropped_learned]),
            ("put_control", writes.controls),
            ("put_setting", writes.settings),
            ("delete_setting", [(name,) for name in writes.dropped_settings]),
        )
        for query, rows in many:
            connection.executemany(sql[query], rows)

    async def prune(self, *, before: datetime, deliveries_before: datetime, samples_before: datetime) -> int:
        sql = self._sql

        def delete(connection: Connection) -> int:
            gone = 0
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
                gone += len(connection.execute(sql[query], (micros(age), _PRUNE_ROWS)).fetchall())
            ended = connection.execute(sql["ended_instances"], (micros(before), _PRUNE_ROWS)).fetchall()
            connection.executemany(sql["delete_moves"], ended)
            connection.executemany(sql["delete_instance"], ended)
            return gone + len(ended)

        gone = await self._write(delete, rows=0, savepoint=True)
        await self._write(_vacuum, alone=True)
        return gone

    # ------------------------------------------------------------------ reads

    async def load(self) -> Stored:
        def everything(connection: Connection) -> Stored:
            connection.execute("BEGIN")  # one view of all tables
            try:
                return Stored(
                    jobs=self._values(connection, Job, "live_jobs"),
                    instances=self._values(connection, Instance, "live_instances"),
                    inbox=[inbox_row(*row) for row in connection.execute(self._sql["waiting_inbox"])],
                    controls={
                        PoolName(pool): PoolControl(control)
                        for pool, control in connection.execute(self._sql["controls"])
                    },
                    settings=dict(connection.execute(self._sql["settings"]).fetchall()),
                    interruptions=self._values(connection, Interruption, "live_interruptions"),
                    evidence=self._values(connection, CapacityEvidence, "evidence"),
                    learned=self._values(connection, Learned, "learned"),
                    is_new=self._number(connection, "held_instances") == 0,
                )
            finally:
                connection.execute("COMMIT")

        return await self._read(everything)

    async def job(self, job: JobId) -> Job | None:
        found = await self.jobs_by_ids([job])
        return found[0] if found else None

    async def jobs_by_ids(self, ids: Sequence[JobId]) -> Sequence[Job]:
        return await self._read(lambda at: [job for one in ids for job in self._values(at, Job, "job", key(one))])

    async def jobs_of_run(self, repo: str, run_id: str, *, limit: int) -> Sequence[Job]:
        return await self._read(lambda at: self._values(at, Job, "jobs_of_run", limit, key(repo_run(repo, run_id))))

    async def recent_jobs(self, *, limit: int, pool: PoolName | None = None, state: str = "") -> Sequence[Job]:
        query = "recent_jobs" + ("_of_pool" if pool else "") + ("_in_state" if state else "")
        filters = [key(value) for value in (pool, state) if value]
        return await self._read(lambda at: self._values(at, Job, query, limit, *filters))

    async def ended_jobs(self, *, limit: int) -> Sequence[Job]:
        return await self._read(lambda at: self._values(at, Job, "ended_jobs", limit))

    async def instance(self, instance: InstanceId) -> Instance | None:
        found = await self._read(lambda at: self._values(at, Instance, "instance", key(instance)))
        return found[0] if found else None

    async def recent_instances(self, *, limit: int, pool: PoolName | None = None) -> Sequence[Instance]:
        if not pool:
            return await self._read(lambda at: self._values(at, Instance, "recent_instances", limit))
        return await self._read(lambda at: self._values(at, Instance, "recent_instances_of_pool", limit, key(pool)))

    async def instance_moves(self, instance: InstanceId) -> Sequence[InstanceMove]:
        return await self._read(lambda at: self._values(at, InstanceMove, "moves", key(instance)))

    async def recent_moves(self, *, limit: int) -> Sequence[InstanceMove]:
        return await self._read(lambda at: self._values(at, InstanceMove, "recent_moves", limit))

    async def interruption(self, instance: InstanceId) -> Interruption | None:
        found = await self._read(lambda at: self._values(at, Interruption, "interruption", key(instance)))
        return found[0] if found else None

    async def recent_interruptions(self, *, limit: int) -> Sequence[Interruption]:
        return await self._read(lambda at: self._values(at, Interruption, "recent_interruptions", limit))

    async def ledger(
        self, *, limit: int, subject: str = "", before: int | None = None
    ) -> Sequence[tuple[int, LedgerEntry]]:
        query, filters = ("ledger_of_subject", (key(subject),)) if subject else ("ledger", ())
        parameters = (limit, _LAST_SEQ if before is None else before, *filters)

        def page(connection: Connection) -> list[tuple[int, LedgerEntry]]:
            found = connection.execute(self._sql[query], parameters)
            return [(seq, read(LedgerEntry, body)) for seq, body in found]

        return await self._read(page)

    async def samples(self, since: datetime) -> Sequence[Sample]:
        return await self._read(lambda at: self._values(at, Sample, "samples", micros(since)))

    async def costs(self, since: datetime, until: datetime) -> Sequence[CostSum]:
        def add_up(connection: Connection) -> list[CostSum]:
            return [cost_sum(row) for row in connection.execute(self._sql["costs"], (micros(since), micros(until)))]

        return await self._read(add_up)

    # ------------------------------------------------------------------ plumbing

    async def _write(
        self, run: Callable[[Connection], T], *, rows: int = 1, savepoint: bool = False, alone: bool = False
    ) -> T:
        if self._writer is None:
            raise StoreError("the store is not open")
        return await self._writer.call(run, rows=rows, savepoint=savepoint, alone=alone)

    async def _read(self, run: Callable[[Connection], T]) -> T:
        if self._reader is None:
            raise StoreError("the store is not open")
        return await self._reader.call(run)

    def _values(self, connection: Connection, kind: type[T], query: str, *parameters: str | int) -> list[T]:
        return [read(kind, body) for (body,) in connection.execute(self._sql[query], parameters)]

    def _number(self, connection: Connection, query: str, *parameters: str | int) -> int:
        return int(connection.execute(self._sql[query], parameters).fetchone()[0])

    def _connect_writer(self) -> Connection:
        self._make_private()
        connection = sqlite3.connect(self._path, timeout=self._busy_timeout_s, isolation_level=None)
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect before the first table only
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        return connection

    def _make_private(self) -> None:
        """A new database is readable by the daemon's user alone."""
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise StoreError(
                f"store {self._path}: {error.strerror}; the daemon's user must be able to write"
            ) from error

    def _connect_reader(self) -> Connection:
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, timeout=self._busy_timeout_s, isolation_level=None)

    def _migrate(self, connection: Connection) -> None:
        known = migrations("sqlite")
        connection.execute(self._sql["create_schema_version"])
        while self._migrate_one(connection, known):
            pass

    def _migrate_one(self, connection: Connection, known: Sequence[Migration]) -> bool:
        """Whether there was a migration to apply. Another daemon may apply them at the same time."""
        connection.execute("BEGIN IMMEDIATE")
        version = self._number(connection, "schema_version")
        if version < len(known):
            for statement in known[version].statements:
                connection.execute(statement)
            connection.execute(self._sql["record_migration"], (known[version].version, known[version].name))
        connection.execute("COMMIT")
        if version > len(known):
            raise StoreError(
                f"store {self._path}: its schema {version} is newer than this program's ({len(known)}); "
                "run the newer program, or restore the copy made before its first start"
            )
        return version < len(known)


def _vacuum(connection: Connection) -> None:
    """Give freed pages back to the file system, a bounded number at a time."""
    connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")  # `execute` would free one page only
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
