"""The PostgreSQL store, only looked at: see `reading`."""

from typing import Any

from autoscaler.store.postgres import PostgresStore
from autoscaler.store.reading import check_version

_HAS_SCHEMA = "SELECT to_regclass('schema_version') IS NOT NULL"


class PostgresReading(PostgresStore):
    """Checks the schema where the store would migrate it."""

    async def _migrate(self) -> None:
        async def version(connection: Any) -> int:
            if not await connection.fetchval(_HAS_SCHEMA):
                return 0
            return int(await connection.fetchval(self._sql["schema_version"]))

        check_version(await self._with_connection(version), "postgres")
