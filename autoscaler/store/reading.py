"""A store that is only looked at: no lease, no migration, no file made. For `autoscaler plan` beside a live daemon.

`load` and `jobs_by_ids` work as in the Store contract; nothing that writes is started. What does not exist yet is an
empty store.
"""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from autoscaler.model import Job, JobId
from autoscaler.store import Stored, StoreError
from autoscaler.store.memory import MemoryStore
from autoscaler.store.migrations import migrations
from autoscaler.store.sqlite import SqliteStore
from autoscaler.store.threads import Connection, DatabaseThread

_HAS_SCHEMA = "SELECT count(*) FROM sqlite_master WHERE name = 'schema_version'"


class StoreReader(Protocol):
    """The reading part of a Store. Both raise StoreError."""

    async def load(self) -> Stored: ...

    async def jobs_by_ids(self, ids: Sequence[JobId]) -> Sequence[Job]: ...


class _Unused(Exception):
    """There is a database, and no daemon ever worked with it."""


@asynccontextmanager
async def reading_store(url: str) -> AsyncIterator[StoreReader]:
    """Look into the store at `url`. Raises StoreError when it is there and cannot be read."""
    store = _store(url)
    try:
        await store.open()
    except _Unused:
        await store.aclose()
        store = MemoryStore()
        await store.open()
    try:
        yield store
    finally:
        await store.aclose()


def _store(url: str) -> "MemoryStore | SqliteStore | _Openable":
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        path = Path(rest.removeprefix("/"))
        return SqliteReading(str(path)) if path.exists() else MemoryStore()
    if scheme in ("postgresql", "postgres"):
        from autoscaler.store.postgres_reading import PostgresReading

        return PostgresReading(url)
    return MemoryStore()


class _Openable(StoreReader, Protocol):
    async def open(self) -> None: ...

    async def aclose(self) -> None: ...


class SqliteReading(SqliteStore):
    """The reading connection alone. Raises StoreError from `open` for another program version's schema."""

    async def open(self) -> None:
        self._reader = DatabaseThread("store-reader", self._connect_reader, groups=False)
        try:
            version = await self._read(self._version)
        except BaseException:
            await self.aclose()
            raise
        check_version(version)

    def _version(self, connection: Connection) -> int:
        if not connection.execute(_HAS_SCHEMA).fetchone()[0]:
            return 0
        return self._number(connection, "schema_version")

    def _connect_reader(self) -> Connection:
        """A log beside the file means a daemon that lives or crashed: read through it. Without one the file is all
        there is, and is read as it lies: SQLite would make a log otherwise, perhaps as a user that the daemon is not.
        """
        is_at_rest = not Path(f"{self._path}-wal").exists()
        uri = f"{self._path.absolute().as_uri()}?mode=ro{'&immutable=1' if is_at_rest else ''}"
        return sqlite3.connect(uri, uri=True, timeout=self._busy_timeout_s, isolation_level=None)


def check_version(version: int, engine: str = "sqlite") -> None:
    """Raises what to do about a schema that this program's queries do not fit."""
    known = len(migrations(engine))
    if version == 0:
        raise _Unused
    if version != known:
        older = version < known
        remedy = "start the daemon of this version once" if older else "use the newer program"
        raise StoreError(f"the store's schema {version} is {'older' if older else 'newer'} than this program: {remedy}")
