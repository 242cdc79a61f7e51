"""The SQLite store passes the contract; and what only a file can do: grow, fill up, lock, lose its process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from autoscaler.store import Store
from autoscaler.store.sqlite import SqliteStore
from tests.contract.store_contract import Opener, StoreContract


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Store]:
            store = SqliteStore(str(tmp_path / "store.db"))
            await store.open()
            try:
                yield store
            finally:
                await store.aclose()

        return opened
