"""How long machines take until their runner can take a job: what counts of it, and what does not."""

from dataclasses import replace
from datetime import timedelta

import pytest

from autoscaler.arrivals import ARRIVALS_KEPT
from autoscaler.model import EndReason, Instance, InstanceState
from autoscaler.spi import PoolName, ProviderName
from tests.admin_world import LINUX, instance
from tests.unit.observing import CLOUD, Observing, provider_id

S = InstanceState
KEY: tuple[PoolName, ProviderName] = (LINUX, CLOUD)


@pytest.fixture
async def world() -> Observing:
    return await Observing().start()


async def requested(world: Observing, number: int) -> Instance:
    row = instance(number, world.now, S.REQUESTED, version=0, created_at=world.now, capacity_pool=None)
    return await world.have(row)


async def step(world: Observing, row: Instance, to: InstanceState, after_s: float) -> Instance:
    world.wait(after_s)
    row = world.rows.instances[row.id]
    fields = {}
    if to is S.LAUNCHED:
        fields = {"provider_id": provider_id(int(row.id[2:], 16)), "launched_at": world.now}
    ending = EndReason.BOOT_TIMEOUT if to is S.TERMINATING else None
    moved = world.rows.move(row, to, now=world.now, cause="test", ending=ending, **fields)
    await world.see()
    return moved


async def arrive(world: Observing, number: int, *, boot_s: float = 40, stood_s: float = 0, start_s: float = 5) -> None:
    row = await requested(world, number)
    row = await step(world, row, S.LAUNCHED, 2)
    row = await step(world, row, S.READY, boot_s)
    row = await step(world, row, S.REGISTERING, stood_s)
    await step(world, row, S.IDLE, start_s)


def times(world: Observing) -> tuple[float, ...]:
    return world.snapshot().arrivals[KEY].seconds


async def test_launch_boot_and_registration_count_from_the_decision_on(world: Observing) -> None:
    await arrive(world, 1, boot_s=40, start_s=5)
    await arrive(world, 2, boot_s=30, start_s=5)
    assert times(world) == (37, 47)


async def test_the_time_a_machine_stands_ready_unneeded_does_not_count(world: Observing) -> None:
    await arrive(world, 1, boot_s=40, stood_s=600, start_s=5)
    await arrive(world, 2, boot_s=40, stood_s=0.5, start_s=5)
    assert times(world) == (47.5, 48)


async def test_a_machine_that_never_arrives_counts_as_the_whole_boot_timeout(world: Observing) -> None:
    row = await requested(world, 1)
    row = await step(world, row, S.LAUNCHED, 2)
    await step(world, row, S.TERMINATING, world.rules.pools[LINUX].boot_timeout.total_seconds())
    assert times(world) == (302,)
    again = await requested(world, 2)
    again = await step(world, again, S.LAUNCHED, 2)
    again = await step(world, again, S.READY, 40)
    again = await step(world, again, S.REGISTERING, 0)
    await step(world, again, S.TERMINATING, 120)
    assert times(world) == (300, 302)


async def test_a_machine_that_is_registered_a_second_time_arrived_once(world: Observing) -> None:
    await arrive(world, 1)
    row = await step(world, world.rows.instances[instance(1, world.now, S.IDLE).id], S.READY, 10)
    row = await step(world, row, S.REGISTERING, 10)
    await step(world, row, S.IDLE, 5)
    assert times(world) == (47,)


async def test_the_newest_times_replace_the_oldest(world: Observing) -> None:
    for number in range(1, ARRIVALS_KEPT + 3):
        await arrive(world, number, boot_s=number)
    assert len(times(world)) == ARRIVALS_KEPT
    assert times(world)[0] == 2 + 3 + 5


async def test_arrivals_are_the_same_object_until_another_machine_arrives(world: Observing) -> None:
    await arrive(world, 1)
    before = world.snapshot().arrivals
    await world.see()
    assert world.snapshot().arrivals is before
    await arrive(world, 2)
    assert world.snapshot().arrivals is not before
    assert len(before[KEY].seconds) == 1


async def test_arrivals_survive_a_restart(world: Observing) -> None:
    await arrive(world, 1)
    world.wait(61)
    await world.see()
    assert times(await world.restarted()) == (47,)


async def test_an_adopted_machine_says_nothing_of_a_launch_of_ours(world: Observing) -> None:
    row = instance(1, world.now, S.REGISTERING, version=0, provider_id=provider_id(1))
    row = await world.have(replace(row, adopted=True, created_at=world.now - timedelta(hours=3)))
    await step(world, row, S.IDLE, 5)
    assert KEY not in world.snapshot().arrivals
