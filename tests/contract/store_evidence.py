"""What every store must do with what is known of capacity pools. Part of `StoreContract`."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta

from autoscaler.model import CapacityEvidence
from autoscaler.spi import CapacityPool, CapacityType, ProviderName
from autoscaler.store import Changes, Store
from tests.contract.store_builders import T0

Opener = Callable[[], AbstractAsyncContextManager[Store]]

PLACE = CapacityPool(
    provider=ProviderName("cloud"),
    region="r",
    zone="r-a",
    machine_type="m.large",
    capacity_type=CapacityType.SPOT,
)


def known(machine_type: str, *, minute: int = 0, hours: float = 0.1 + 0.2) -> CapacityEvidence:
    at = T0 + timedelta(minutes=minute)
    place = replace(PLACE, machine_type=machine_type)
    return CapacityEvidence(capacity_pool=place, at=at, hours=hours, interruptions=0.25, asked=3.0, refused=1e-9)


class StoreEvidenceContract:
    async def test_evidence_is_there_after_reopening_to_the_last_digit(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(evidence=[known("b"), known("a")]))
        async with opener() as store:
            assert list((await store.load()).evidence) == [known("a"), known("b")]

    async def test_the_last_word_on_a_capacity_pool_counts(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(evidence=[known("a", hours=1.0), known("b")]))
            await store.commit(Changes(evidence=[known("a", minute=1, hours=2.0)]))
            assert list((await store.load()).evidence) == [known("a", minute=1, hours=2.0), known("b")]

    async def test_evidence_is_pruned_by_its_age(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(evidence=[known("a", minute=1), known("b", minute=9)]))
            cut = T0 + timedelta(minutes=5)
            while await store.prune(before=cut, deliveries_before=cut, samples_before=cut):
                pass
            assert list((await store.load()).evidence) == [known("b", minute=9)]
