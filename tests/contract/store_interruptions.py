"""What every store must do with interruptions. Part of `StoreContract`."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta

from autoscaler.spi import InstanceId
from autoscaler.store import Changes, Store
from tests.contract.store_builders import T0, an_interruption

Opener = Callable[[], AbstractAsyncContextManager[Store]]


class StoreInterruptionsContract:
    async def test_an_interruption_is_there_after_reopening_as_it_was_written(self, opener: Opener) -> None:
        told = an_interruption("i-1")
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(interruptions=[told]))
        async with opener() as store:
            assert await store.interruption(InstanceId("i-1")) == told
            assert await store.interruption(InstanceId("i-2")) is None
            assert list((await store.load()).interruptions) == [told]

    async def test_a_later_word_on_the_same_loss_replaces_the_earlier_one(self, opener: Opener) -> None:
        first = an_interruption("i-1")
        later = replace(first, sources=(*first.sources, "listing"), ended_at=T0 + timedelta(minutes=9))
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(interruptions=[first]))
            await store.commit(Changes(interruptions=[later]))
            assert list(await store.recent_interruptions(limit=10)) == [later]
            assert not (await store.load()).interruptions, "its machine has ended"

    async def test_recent_interruptions_come_newest_first(self, opener: Opener) -> None:
        told = [an_interruption(f"i-{minute}", minute=minute) for minute in (2, 1, 3)]
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(interruptions=told))
            assert [one.instance for one in await store.recent_interruptions(limit=2)] == ["i-3", "i-2"]
            assert [one.instance for one in (await store.load()).interruptions] == ["i-1", "i-2", "i-3"]

    async def test_interruptions_of_ended_machines_are_pruned_by_their_age(self, opener: Opener) -> None:
        ended = T0 + timedelta(minutes=2)
        told = [
            an_interruption("i-old", minute=1, ended_at=ended),
            an_interruption("i-new", minute=9, ended_at=ended),
            an_interruption("i-live", minute=1),
        ]
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(interruptions=told))
            cut = T0 + timedelta(minutes=5)
            while await store.prune(before=cut, deliveries_before=cut, samples_before=cut):
                pass
            assert [one.instance for one in await store.recent_interruptions(limit=9)] == ["i-new", "i-live"]
