"""The store in memory passes the contract; and what only it does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from autoscaler.store import Changes, LeaseLost, Store
from autoscaler.store.memory import MemoryDisk, MemoryStore
from tests.contract.store_builders import HUB, T0, a_job, a_webhook
from tests.contract.store_contract import Opener, StoreContract


class TestMemoryStore(StoreContract):
    groups_writes = False

    async def lose_lease(self, holder: Store) -> None:
        assert isinstance(holder, MemoryStore)
        holder.break_lease()

    @pytest.fixture
    def opener(self) -> Opener:
        disk = MemoryDisk()

        @asynccontextmanager
        async def opened() -> AsyncIterator[Store]:
            store = MemoryStore(disk)
            await store.open()
            try:
                yield store
            finally:
                await store.aclose()

        return opened


async def test_after_a_break_the_next_life_takes_over_and_the_dead_one_can_change_nothing() -> None:
    disk = MemoryDisk()
    dead, alive = MemoryStore(disk), MemoryStore(disk)
    await dead.open()
    await alive.open()
    assert await dead.acquire_lease("dead")
    await dead.commit(Changes(jobs=[a_job(1)]))
    alive.break_lease()
    assert await alive.acquire_lease("alive")
    assert not await dead.holds_lease()
    with pytest.raises(LeaseLost):
        await dead.commit(Changes(jobs=[a_job(2)]))
    assert [job.id for job in (await alive.load()).jobs] == ["hub:1"]


async def test_one_store_object_serves_one_life_after_another() -> None:
    store = MemoryStore()
    for number in (1, 2):
        await store.open()
        assert await store.acquire_lease("again")
        await store.commit(Changes(jobs=[a_job(number)]))
        await store.aclose()
    await store.open()
    assert len((await store.load()).jobs) == 2


@pytest.mark.parametrize(("steps", "is_written"), [(1, False), (2, True)])
async def test_a_crash_finds_a_webhook_written_or_not_begun(steps: int, is_written: bool) -> None:
    store = MemoryStore()
    await store.open()
    accepting = asyncio.ensure_future(store.accept(HUB, a_webhook("d"), T0))
    for _ in range(steps):
        await asyncio.sleep(0)
    accepting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await accepting
    assert bool((await store.load()).inbox) == is_written
