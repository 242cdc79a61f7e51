"""What every store must do with what history taught. Part of `StoreContract`."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

from autoscaler.store import Changes, Learned, Store
from tests.contract.store_builders import T0

Opener = Callable[[], AbstractAsyncContextManager[Store]]


def lesson(key: str, *, minute: int = 0, value: str = "[1.5]") -> Learned:
    return Learned(key=key, at=T0 + timedelta(minutes=minute), value=value)


class StoreLearnedContract:
    async def test_the_last_word_under_a_key_is_there_after_reopening(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(learned=[lesson("hours/b"), lesson("hours/a")]))
            await store.commit(Changes(learned=[lesson("hours/a", minute=1, value="[2]")]))
        async with opener() as store:
            assert list((await store.load()).learned) == [lesson("hours/a", minute=1, value="[2]"), lesson("hours/b")]

    async def test_what_nothing_was_added_to_is_pruned_by_its_age(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(learned=[lesson("a", minute=1), lesson("b", minute=9)]))
            cut = T0 + timedelta(minutes=5)
            while await store.prune(before=cut, deliveries_before=cut, samples_before=cut):
                pass
            assert list((await store.load()).learned) == [lesson("b", minute=9)]

    async def test_an_empty_text_forgets_and_the_last_word_of_a_transaction_counts(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(learned=[lesson("hours/a"), lesson("hours/b"), lesson("hours/c")]))
            gone, back = lesson("hours/a", value=""), [lesson("hours/b", value=""), lesson("hours/b", minute=1)]
            await store.commit(Changes(learned=[gone, *back, lesson("hours/d"), lesson("hours/d", value="")]))
        async with opener() as store:
            assert list((await store.load()).learned) == [lesson("hours/b", minute=1), lesson("hours/c")]
