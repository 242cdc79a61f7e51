"""Launches of AWS that made less than was asked for, and whose answers were lost: the repeat gets the lost answer."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from autoscaler.spi import CapacityType, CapacityUnavailable, LaunchResult, Offering, OutcomeUnknown, Shape
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


def _ids(result: LaunchResult) -> set[str]:
    return {one.provider_id for one in result.instances}
