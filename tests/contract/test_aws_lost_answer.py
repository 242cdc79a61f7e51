"""Launches of AWS that made less than was asked for, and whose answers were lost: the repeat gets the lost answer."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from autoscaler.spi import (
    CapacityType,
    CapacityUnavailable,
    LaunchBatch,
    LaunchResult,
    Offering,
    OutcomeUnknown,
    Shape,
)
from tests.aws_site import QUICK
from tests.contract.aws_driver import AwsDriver, aws_driver


@pytest.fixture
async def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsDriver]:
    async with aws_driver(tmp_path, monkeypatch) as one:
        yield one


async def one_place(driver: AwsDriver) -> Offering:
    return next(
        one
        for one in await driver.provider.offerings(Shape(types=("m7i.large",)))
        if one.capacity_pool.capacity_type is CapacityType.SPOT
    )


async def half_launched(driver: AwsDriver) -> None:
    """More is asked for than there is room, with a template that exists already: the fleet's answer alone is lost."""
    offering = await one_place(driver)
    (first,) = (await driver.provider.launch(driver.batch("b-0", count=1, offerings=[offering]))).instances
    await driver.provider.terminate([first.provider_id])
    driver.served.site.faults.lost_answer = 1.0
    with pytest.raises(OutcomeUnknown):
        await driver.provider.launch(driver.batch("b-1", count=driver.slots + 2, offerings=[offering]))
    driver.served.site.faults.lost_answer = 0.0


async def test_the_repeat_of_a_launch_that_fell_short_knows_why(driver: AwsDriver) -> None:
    await half_launched(driver)
    batch = driver.batch("b-1", count=driver.slots + 2, offerings=[await one_place(driver)])
    result = await driver.provider.launch(batch)
    made = [one for one in driver.served.site.cloud.machines.values() if one.id in _ids(result)]
    assert 0 < len(made) == len(result.instances) < batch.count
    assert {type(refusal.error) for refusal in result.refusals} == {CapacityUnavailable}


async def test_a_repeat_with_another_choice_makes_nothing_and_is_not_settled(driver: AwsDriver) -> None:
    await half_launched(driver)
    before = set(driver.served.site.cloud.machines)
    offering = await one_place(driver)
    other = replace(offering, capacity_pool=replace(offering.capacity_pool, machine_type="m7i.xlarge"))
    with pytest.raises(OutcomeUnknown):
        await driver.provider.launch(driver.batch("b-1", count=driver.slots + 2, offerings=[other]))
    assert set(driver.served.site.cloud.machines) == before


@pytest.fixture
async def slow_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsDriver]:
    """New machines are not listed yet, for as long as a test lasts."""
    times = replace(QUICK, shown_after=(600.0, 600.0))
    async with aws_driver(tmp_path, monkeypatch, times=times) as one:
        yield one


async def lost(driver: AwsDriver, action: str, batch: LaunchBatch) -> set[str]:
    """A launch that took effect and was never answered: the machines that it made."""
    driver.served.face.troubles.next_lost[action] = 1
    with pytest.raises(OutcomeUnknown):
        await driver.provider.launch(batch)
    made = set(driver.served.site.cloud.machines)
    assert len(made) == batch.count
    return made


@pytest.mark.parametrize("is_restarted", [False, True], ids=["same process", "restarted"])
async def test_the_repeat_finds_machines_that_nothing_shows_yet(slow_to_show: AwsDriver, is_restarted: bool) -> None:
    driver = slow_to_show
    batch = driver.batch("b-1", count=2, offerings=[await one_place(driver)])
    made = await lost(driver, "CreateFleet", batch)
    provider = driver.restarted() if is_restarted else driver.provider
    result = await provider.launch(replace(batch, is_repeat=True))
    assert _ids(result) == made == set(driver.served.site.cloud.machines)


async def test_a_restarted_daemon_that_chooses_otherwise_waits_until_they_show(slow_to_show: AwsDriver) -> None:
    driver = slow_to_show
    offering = await one_place(driver)
    made = await lost(driver, "CreateFleet", driver.batch("b-1", count=2, offerings=[offering]))
    other = replace(offering, capacity_pool=replace(offering.capacity_pool, machine_type="m7i.xlarge"))
    provider = driver.restarted()
    repeat = driver.batch("b-1", count=2, offerings=[other], is_repeat=True)
    with pytest.raises(OutcomeUnknown, match="do not show yet"):
        await provider.launch(repeat)
    assert set(driver.served.site.cloud.machines) == made
    for machine in driver.served.site.cloud.machines.values():
        machine.shown_at = 0.0
    assert _ids(await provider.launch(repeat)) == made


async def test_stoppable_machines_are_not_launched_where_there_was_no_room_before(slow_to_show: AwsDriver) -> None:
    driver = slow_to_show
    first, second = [
        one
        for one in await driver.provider.offerings(Shape(types=("m7i.large",)))
        if one.capacity_pool.capacity_type is CapacityType.SPOT
    ]
    exhausted = driver.served.site.cloud.capacity.exhausted
    exhausted.add(first.capacity_pool)
    batch = driver.batch("b-1", count=2, offerings=[first, second], is_stoppable=True)
    made = await lost(driver, "RunInstances", batch)
    exhausted.clear()
    result = await driver.provider.launch(replace(batch, is_repeat=True))
    assert _ids(result) == made == set(driver.served.site.cloud.machines)
    assert {one.capacity_pool for one in result.instances} == {second.capacity_pool}


def _ids(result: LaunchResult) -> set[str]:
    return {one.provider_id for one in result.instances}
