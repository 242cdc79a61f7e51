"""The PostgreSQL store passes the contract on a real server; and what only a server can do: go away and come back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from autoscaler.store import Store
from autoscaler.store.postgres import PostgresStore
from tests.contract.store_contract import Opener, StoreContract
from tests.postgres import postgres_dsn, postgres_server  # noqa: F401 (fixtures)


class TestPostgresStore(StoreContract):
    @pytest.fixture
    def opener(self, postgres_dsn: str) -> Opener:  # noqa: F811 (a fixture)
        @asynccontextmanager
        async def opened() -> AsyncIterator[Store]:
            store = PostgresStore(postgres_dsn)
            await store.open()
            try:
                yield store
            finally:
                await store.aclose()

        return opened
