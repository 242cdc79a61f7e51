"""The PostgreSQL store passes the contract on a real server; and what only a server can do: go away and come back."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg  # type: ignore[import-untyped]
import pytest

from autoscaler.store import Changes, LeaseLost, Store, StoreError
from autoscaler.store.migrations import migrations
from autoscaler.store.postgres import PostgresStore
from autoscaler.store.queries import queries
from tests.contract.store_builders import BEFORE_RUNS, HUB, T0, a_job, a_webhook
from tests.contract.store_contract import Opener, StoreContract, outcome
from tests.contract.store_durability import acknowledged_until_killed, waiting_deliveries
from tests.postgres import postgres_dsn, postgres_server, running_postgres  # noqa: F401 (fixtures)

HISTORY = "jobs|instances|instance_moves|ledger|inbox|samples"


@asynccontextmanager
async def opened_store(dsn: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(dsn)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


class TestPostgresStore(StoreContract):
    @pytest.fixture
    def opener(self, postgres_dsn: str) -> Opener:  # noqa: F811 (a fixture)
        @asynccontextmanager
        async def opened() -> AsyncIterator[Store]:
            async with opened_store(postgres_dsn) as store:
                yield store

        self.dsn = postgres_dsn
        return opened

    async def lose_lease(self, holder: Store) -> None:
        """The server ends the connection that holds the lock, as a failover or an idle-connection reaper does."""
        async with connected(self.dsn) as connection:
            killed = await connection.fetch(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        assert [row[0] for row in killed] == [True]


async def test_a_newer_schema_is_refused(postgres_dsn: str) -> None:  # noqa: F811
    async with opened_store(postgres_dsn):
        pass
    async with connected(postgres_dsn) as connection:
        await connection.execute("INSERT INTO schema_version (version, name) VALUES (99, 'later')")
    with pytest.raises(StoreError, match="schema 99 is newer"):
        await PostgresStore(postgres_dsn).open()


async def test_daemons_that_start_together_migrate_once(postgres_dsn: str) -> None:  # noqa: F811
    stores = [PostgresStore(postgres_dsn) for _ in range(4)]
    try:
        await asyncio.gather(*(store.open() for store in stores))
        async with connected(postgres_dsn) as connection:
            assert await connection.fetchval("SELECT count(*) FROM schema_version") == len(migrations("postgres"))
    finally:
        await asyncio.gather(*(store.aclose() for store in stores))


async def test_jobs_from_before_runs_were_indexed_are_found_by_their_run(postgres_dsn: str) -> None:  # noqa: F811
    old, deep = replace(a_job(1), repo="Org/Repo"), replace(a_job(2), repo="g/" + "deep/" * 60 + "app")
    broken = replace(a_job(3), name="half a character \ud83d")
    async with opened_store(postgres_dsn) as store:
        await store.acquire_lease("a")
        await store.commit(Changes(jobs=[old, deep, broken]))
    async with connected(postgres_dsn) as connection:
        await connection.execute(BEFORE_RUNS)
    async with opened_store(postgres_dsn) as store:
        assert list(await store.jobs_of_run("org/repo", "77", limit=9)) == [old, broken]
        assert await store.job(deep.id) == deep


async def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        await PostgresStore("postgresql://someone:hunter2@/db?host=/nonexistent").open()
    assert "hunter2" not in str(caught.value)


async def test_two_deployments_share_a_database_in_schemas_of_their_own(postgres_dsn: str) -> None:  # noqa: F811
    async with connected(postgres_dsn) as connection:
        await connection.execute("CREATE SCHEMA one; CREATE SCHEMA two")
    dsns = [f"{postgres_dsn}{'&' if '?' in postgres_dsn else '?'}search_path={schema}" for schema in ("one", "two")]
    async with opened_store(dsns[0]) as one, opened_store(dsns[1]) as two:
        assert await one.acquire_lease("one")
        assert await two.acquire_lease("two")
        await one.commit(Changes(jobs=[a_job(1)]))
        assert not (await two.load()).jobs


async def test_no_query_reads_a_whole_history_table(postgres_dsn: str) -> None:  # noqa: F811
    parameters = {"bigint": 0, "integer": 0, "text": ""}
    plans = {}
    async with opened_store(postgres_dsn), connected(postgres_dsn) as connection:
        await connection.execute("SET enable_seqscan = off")
        for name, text in queries("postgres").items():
            if not text.startswith(("SELECT body", "SELECT seq", "SELECT id", "UPDATE", "DELETE")):
                continue
            kinds = [kind.name for kind in (await connection.prepare(text)).get_parameters()]
            arguments = [[] if kind.endswith("[]") else parameters.get(kind, 0) for kind in kinds]
            plans[name] = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {text}", *arguments))
    assert len(plans) > 20
    assert {name for name, plan in plans.items() if re.search(rf"Seq Scan on ({HISTORY})", plan)} == set()
    for name in (
        "recent_jobs",
        "recent_jobs_of_pool_in_state",
        "recent_instances_of_pool",
        "ledger_of_subject",
        "ended_jobs",
        "recent_moves",
    ):
        assert "Sort" not in plans[name], plans[name]


async def test_the_database_goes_away_and_comes_back() -> None:
    with running_postgres() as server:
        async with opened_store(server.dsn) as store:
            assert await store.acquire_lease("a")
            assert await store.accept(HUB, a_webhook("before"), T0) is not None
            server.stop("immediate")
            assert await outcome(store.accept(HUB, a_webhook("during"), T0)) is StoreError
            assert not await store.holds_lease()
            assert await outcome(store.load()) is StoreError
            assert await outcome(store.acquire_lease("a")) is StoreError
            assert await outcome(store.commit(Changes(jobs=[a_job(1)]))) is LeaseLost
            server.start()
            assert await store.accept(HUB, a_webhook("after"), T0) is not None
            assert await store.acquire_lease("a")
            await store.commit(Changes(jobs=[a_job(1)]))
            stored = await store.load()
            assert [row.webhook.delivery_id for row in stored.inbox] == ["before", "after"]
            assert len(stored.jobs) == 1


async def test_a_connection_that_breaks_during_commit_costs_the_lease(postgres_dsn: str) -> None:  # noqa: F811
    """Whether it took effect is unknown, so what the daemon holds in memory may be stale."""
    async with opened_store(postgres_dsn) as store, connected(postgres_dsn) as connection:
        assert await store.acquire_lease("a")
        await connection.execute(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END';"
            " CREATE CONSTRAINT TRIGGER die AFTER INSERT ON jobs DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION die()"
        )
        calls = (store.accept(HUB, a_webhook("d"), T0), store.commit(Changes(jobs=[a_job(1)])))
        assert await asyncio.gather(*(outcome(call) for call in calls)) == [StoreError, LeaseLost]
        assert not await store.holds_lease()
        with pytest.raises(LeaseLost):
            await store.commit(Changes(jobs=[a_job(1)]))
        await connection.execute("DROP TRIGGER die ON jobs")
        assert await store.acquire_lease("a")
        assert not (await store.load()).jobs
        await store.commit(Changes(jobs=[a_job(1)]))
        assert await store.accept(HUB, a_webhook("d"), T0) is not None


async def test_every_acknowledged_webhook_survives_a_crash_of_the_server() -> None:
    with running_postgres(fsync=True) as server:

        async def kill(child: asyncio.subprocess.Process) -> None:
            await asyncio.to_thread(server.stop, "immediate")

        acknowledged = await acknowledged_until_killed(server.dsn, kill)
        server.start()
        assert len(acknowledged) >= 400
        assert acknowledged <= await waiting_deliveries(server.dsn)
