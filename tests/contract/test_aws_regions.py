"""What AWS knows is missing in part: a region, the price list, the right time; the rest goes on."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from autoscaler.sandbox.aws_access import Call
from autoscaler.spi import CapacityType, ProviderError, ProviderId, Shape, Unauthorized, Verdict
from tests.aws_site import ACCESS_KEY, GROUP, REGION, SECRET, subnet
from tests.contract.aws_driver import AwsDriver, aws_driver
from tests.polling import until

CLOSED = "eu-west-9"
"""The account has not opted in to it."""


@pytest.fixture
async def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsDriver]:
    async with aws_driver(tmp_path, monkeypatch) as one:
        yield one


def network() -> dict[str, list[str]]:
    return {"subnets": [subnet("a"), subnet("b")], "security_groups": [GROUP]}


async def test_a_region_that_never_answered_leaves_the_others_their_offerings(driver: AwsDriver) -> None:
    both = driver.make("ours", regions=(CLOSED, REGION), networks={REGION: network(), CLOSED: network()})
    found = await both.offerings(Shape())
    assert {one.capacity_pool.region for one in found} == {REGION}


async def test_a_launch_goes_on_where_a_better_region_fails(driver: AwsDriver) -> None:
    both = driver.make("ours", regions=(CLOSED, REGION), networks={REGION: network(), CLOSED: network()})
    open_ = next(one for one in await both.offerings(Shape()) if one.capacity_pool.capacity_type is CapacityType.SPOT)
    place = replace(open_.capacity_pool, region=CLOSED, zone=f"{CLOSED}a")
    closed = replace(open_, capacity_pool=place)
    result = await both.launch(driver.batch("b-1", count=2, offerings=[closed, open_]))
    assert {one.capacity_pool for one in result.instances} == {open_.capacity_pool}
    assert [(one.offering, type(one.error)) for one in result.refusals] == [(closed, Unauthorized)]
    with pytest.raises(Unauthorized):
        await both.launch(driver.batch("b-2", count=1, offerings=[closed]))


async def test_without_any_region_there_is_no_answer(driver: AwsDriver) -> None:
    lost = driver.make("ours", regions=(CLOSED,), networks={CLOSED: network()}, notices={}, trust_anchors={})
    with pytest.raises(ProviderError):
        await lost.offerings(Shape())


async def test_spot_is_offered_while_the_price_list_is_closed(driver: AwsDriver) -> None:
    def allows(call: Call) -> bool:
        return call.permission != "pricing:GetProducts"

    driver.served.site.access.grant(ACCESS_KEY, SECRET, allows=allows)
    found = await driver.provider.offerings(Shape())
    assert {one.capacity_pool.capacity_type for one in found} == {CapacityType.SPOT}
    assert all(one.on_demand_usd_hour is None for one in found)


async def test_a_price_list_that_hangs_keeps_nobody_from_looking_at_machines(
    driver: AwsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("providers.aws_clients._READ_THREADS", 1)
    provider = driver.make("ours")
    driver.served.face.troubles.next_hung["GetProducts"] = 1
    asking = asyncio.create_task(provider.offerings(Shape()))

    async def hangs() -> bool:
        return driver.served.face.troubles.next_hung["GetProducts"] == 0

    await until(hangs)
    async with asyncio.timeout(5):
        assert await provider.describe([ProviderId("i-00000000000000000")]) == []
    assert not asking.done()
    asking.cancel()


@pytest.mark.parametrize("ahead_s", [600.0, -600.0, 270.0])
async def test_the_check_names_the_clock_and_not_the_credentials(driver: AwsDriver, ahead_s: float) -> None:
    driver.served.site.faults.clock_skew_s = ahead_s
    findings = await driver.provider.check({})
    (refused,) = [one for one in findings if one.verdict is Verdict.REFUSED]
    assert "clock" in refused.message
    assert "Synchronise the clock" in refused.remedy
