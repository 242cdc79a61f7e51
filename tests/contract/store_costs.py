"""What every store must do with cost lines. Part of `StoreContract`."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

from autoscaler.model import Use
from autoscaler.spi import CapacityType, InstanceId, ProviderName
from autoscaler.store import Changes, CostSum, Store
from tests.contract.store_builders import LINUX, T0, a_cost

Opener = Callable[[], AbstractAsyncContextManager[Store]]

DAY = (T0 - timedelta(hours=1), T0 + timedelta(hours=1))


class StoreCostsContract:
    async def test_cost_lines_add_up_exactly_by_everything_they_differ_in(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            huge = 2**53 + 1  # floats would lose the last digit
            lines = [
                a_cost("i-1", usd_nano=huge),
                a_cost("i-2"),
                a_cost("i-2", use=Use.BOOT),
                a_cost("i-3", repo="a/b"),
            ]
            await store.commit(Changes(costs=lines))
            assert list(await store.costs(*DAY)) == [
                the_sum(repo="a/b", use=Use.JOB, instances=1, usd_nano=7),
                the_sum(repo="org/repo", use=Use.BOOT, instances=1, usd_nano=7),
                the_sum(repo="org/repo", use=Use.JOB, instances=2, usd_nano=huge + 7),
            ]

    async def test_costs_are_of_machines_that_ended_in_the_period(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(
                Changes(costs=[a_cost("i-1", minute=1), a_cost("i-2", minute=2), a_cost("i-3", minute=3)])
            )
            found = await store.costs(T0 + timedelta(minutes=2), T0 + timedelta(minutes=3))
            assert [one.instances for one in found] == [1]

    async def test_time_with_a_job_turns_into_lost_and_back(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            both = [a_cost("i-1"), a_cost("i-1", use=Use.BOOT)]
            await store.commit(Changes(costs=both, job_uses={InstanceId("i-1"): Use.LOST}))
            assert [one.use for one in await store.costs(*DAY)] == [Use.BOOT, Use.LOST]
            await store.commit(Changes(job_uses={InstanceId("i-1"): Use.JOB, InstanceId("i-9"): Use.LOST}))
            assert [one.use for one in await store.costs(*DAY)] == [Use.BOOT, Use.JOB]

    async def test_costs_are_pruned_by_their_age(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(costs=[a_cost("i-1", minute=1), a_cost("i-2", minute=9, repo="a/b")]))
            cut = T0 + timedelta(minutes=5)
            while await store.prune(before=cut, deliveries_before=cut, samples_before=cut):
                pass
            assert [one.repo for one in await store.costs(*DAY)] == ["a/b"]


def the_sum(*, repo: str, use: Use, instances: int, usd_nano: int) -> CostSum:
    return CostSum(
        day="2026-11-21",
        provider=ProviderName("cloud"),
        pool=LINUX,
        capacity_type=CapacityType.SPOT,
        repo=repo,
        workflow="ci",
        use=use,
        instances=instances,
        milliseconds=61_000 * instances,
        usd_nano=usd_nano,
        on_demand_usd_nano=3 * usd_nano,
    )
