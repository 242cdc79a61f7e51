"""The SQLite store passes the contract; and what only a file can do: grow, fill up, lock, lose its process."""

import asyncio
import contextlib
import re
import resource
import sqlite3
import stat
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from autoscaler.store import Changes, Store, StoreError, open_store
from autoscaler.store.queries import queries
from autoscaler.store.sqlite import SqliteStore
from tests.contract.store_builders import BEFORE_RUNS, HUB, T0, a_job, a_webhook, an_entry
from tests.contract.store_contract import Opener, StoreContract, outcome
from tests.contract.store_durability import acknowledged_until_killed, waiting_deliveries


@asynccontextmanager
async def opened_store(path: Path, *, busy_timeout_s: float = 5.0) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(str(path), busy_timeout_s=busy_timeout_s)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "store.db"

    @pytest.fixture
    def opener(self, path: Path) -> Opener:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Store]:
            async with opened_store(path) as store:
                yield store

        self.lock_path = Path(f"{path}.lock")
        return opened

    async def lose_lease(self, holder: Store) -> None:
        """Somebody tidies the folder up: the lock file goes, and the next daemon locks a new one."""
        self.lock_path.unlink()


# --------------------------------------------------------------------------- opening


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no folder .*nowhere"):
        await SqliteStore(str(tmp_path / "nowhere" / "store.db")).open()


async def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="must be able to write"):
        await SqliteStore(str(tmp_path)).open()


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened_store(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("INSERT INTO schema_version (version, name) VALUES (99, 'later')")
    with pytest.raises(StoreError, match="schema 99 is newer"):
        await SqliteStore(str(path)).open()


async def test_jobs_from_before_runs_were_indexed_are_found_by_their_run(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    old, deep = replace(a_job(1), repo="Org/Repo"), replace(a_job(2), repo="g/" + "deep/" * 60 + "app")
    async with opened_store(path) as store:
        await store.acquire_lease("a")
        await store.commit(Changes(jobs=[old, deep]))
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.executescript(BEFORE_RUNS)
    async with opened_store(path) as store:
        assert list(await store.jobs_of_run("org/repo", "77", limit=9)) == [old]
        assert await store.job(deep.id) == deep


async def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database at all " * 500)
    with pytest.raises(StoreError, match="not a database"):
        await SqliteStore(str(path)).open()
    assert path.read_bytes().startswith(b"not a database")


async def test_the_files_are_the_daemons_alone(tmp_path: Path) -> None:
    async with opened_store(tmp_path / "store.db") as store:
        await store.acquire_lease("a")
        await store.accept(HUB, a_webhook("d"), T0)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert set(modes) >= {"store.db", "store.db-wal", "store.db.lock"}
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("url", ["sqlite:///:memory:", "sqlite:///", "sqlite://store.db", "mysql://x/y", ""])
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///"):
        open_store(url)


# --------------------------------------------------------------------------- cost


async def test_a_thousand_jobs_fit_into_a_tenth_of_a_second(tmp_path: Path) -> None:
    async with opened_store(tmp_path / "store.db") as store:
        await store.acquire_lease("a")
        taken = []
        for version in (1, 2, 3, 4):
            jobs = [a_job(number, version=version) for number in range(1_000)]
            started = time.process_time()
            await store.commit(Changes(jobs=jobs))
            taken.append(time.process_time() - started)
    assert min(taken) < 0.1


HISTORY = ("jobs", "instances", "instance_moves", "ledger", "inbox", "samples", "costs", "interruptions")


async def test_no_query_reads_a_whole_history_table(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened_store(path):
        pass
    plans = {}
    with contextlib.closing(sqlite3.connect(path)) as database:
        for name, text in queries("sqlite").items():
            count = max((int(number) for number in re.findall(r"\?(\d+)", text)), default=0)
            plan = database.execute(f"EXPLAIN QUERY PLAN {text}", [0] * count).fetchall()
            plans[name] = [row[3] for row in plan]
    whole = {
        name for name, plan in plans.items() for step in plan if re.fullmatch(rf"SCAN ({'|'.join(HISTORY)})", step)
    }
    assert whole == set()
    sorting = {name for name, plan in plans.items() for step in plan if "TEMP B-TREE" in step}
    assert sorting == {"costs"}, "it adds up the asked period only"
    walking = {name for name, plan in plans.items() for step in plan if step.startswith("SCAN ")}
    bounded_by_limit = {"recent_jobs", "ended_jobs", "recent_instances", "recent_interruptions"}
    live_rows_only = {"live_jobs", "live_instances", "live_interruptions", "waiting_inbox"}
    one_row_per_pool_or_key = {"controls", "settings", "schema_version", "evidence", "learned"}
    assert walking <= bounded_by_limit | live_rows_only | one_row_per_pool_or_key | {"prune_samples"}


async def test_pruning_gives_space_back(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    late = T0.replace(year=2027)
    async with opened_store(path) as store:
        await store.acquire_lease("a")
        for _ in range(4):
            await store.commit(Changes(ledger=[an_entry("s", "x" * 2_000) for _ in range(1_500)]))
        with contextlib.closing(sqlite3.connect(path)) as other:
            full = other.execute("PRAGMA page_count").fetchone()[0]
        while await store.prune(before=late, deliveries_before=late, samples_before=late):
            pass
    assert full * 4096 > 10_000_000
    assert path.stat().st_size < 1_000_000


# --------------------------------------------------------------------------- trouble


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """A full disk, as a write beyond `size` sees it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_on_a_full_disk_nothing_is_half_written_and_it_works_again_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened_store(path) as store:
        await store.acquire_lease("a")
        assert await store.accept(HUB, a_webhook("before"), T0) is not None
        log_size = Path(f"{path}-wal").stat().st_size
        with files_no_longer_than(log_size + 200_000):
            big = [a_webhook(f"d{number}", name="x" * 9_000) for number in range(100)]
            results = await asyncio.gather(*(outcome(store.accept(HUB, webhook, T0)) for webhook in big))
            late = await outcome(store.commit(Changes(jobs=[replace(a_job(1), name="x" * 900_000)])))
        assert late is StoreError
        assert StoreError in results
        acknowledged = {
            webhook.delivery_id for webhook, seq in zip(big, results, strict=True) if isinstance(seq, int)
        } | {"before"}
        assert {row.webhook.delivery_id for row in (await store.load()).inbox} == acknowledged
        await store.commit(Changes(jobs=[a_job(1)]))
        assert await store.accept(HUB, a_webhook("after"), T0) is not None
        assert await store.holds_lease()
    assert await waiting_deliveries(f"sqlite:///{path}") == acknowledged | {"after"}


async def test_a_file_locked_by_another_program_is_an_error_until_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened_store(path, busy_timeout_s=0.05) as store:
        await store.acquire_lease("a")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked"):
                await store.accept(HUB, a_webhook("d"), T0)
            with pytest.raises(StoreError, match="locked"):
                await store.commit(Changes(jobs=[a_job(1)]))
            assert not (await store.load()).inbox
            other.execute("ROLLBACK")
        assert await store.accept(HUB, a_webhook("d"), T0) is not None
        await store.commit(Changes(jobs=[a_job(1)]))


async def test_every_acknowledged_webhook_survives_a_kill(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"

    async def kill(child: asyncio.subprocess.Process) -> None:
        child.kill()

    acknowledged = await acknowledged_until_killed(url, kill)
    assert len(acknowledged) >= 400
    assert acknowledged <= await waiting_deliveries(url)


async def test_a_lease_is_free_the_moment_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    code = (
        "import asyncio, sys\n"
        "from autoscaler.store.sqlite import SqliteStore\n"
        "async def main():\n"
        "    store = SqliteStore(sys.argv[1])\n"
        "    await store.open()\n"
        "    print(await store.acquire_lease('child'), flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )

    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(path), stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    try:
        assert await child.stdout.readline() == b"True\n"
        async with opened_store(path) as store:
            assert not await store.acquire_lease("parent")
            child.kill()
            await child.wait()
            assert await store.acquire_lease("parent")
            await store.commit(Changes(jobs=[a_job(1)]))
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


# --------------------------------------------------------------------------- virtual time


class CountingLoop(asyncio.SelectorEventLoop):
    """Knows, as a virtual-time loop must, whether somebody outside of it works."""

    inside = 0
    entered = 0

    @contextmanager
    def external(self) -> Iterator[None]:
        self.inside += 1
        self.entered += 1
        try:
            yield
        finally:
            self.inside -= 1


def test_a_virtual_time_loop_is_told_while_a_thread_works(tmp_path: Path) -> None:
    loop = CountingLoop()

    async def use() -> int:
        async with opened_store(tmp_path / "store.db") as store:
            before = loop.entered
            accepting = asyncio.ensure_future(store.accept(HUB, a_webhook("d"), T0))
            await asyncio.sleep(0)
            assert loop.inside == 1 or accepting.done()
            await accepting
            await store.load()
            assert loop.inside == 0
            return loop.entered - before

    try:
        assert loop.run_until_complete(use()) == 2
        assert loop.inside == 0
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
