"""Which machine types of AWS are offered for a shape, and at which prices."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from autoscaler.sandbox.aws_setup import Subnet
from autoscaler.spi import CapacityType, InvalidRequest, Offering, Shape
from tests.aws_site import GROUP, REGION, subnet, supply
from tests.contract.aws_driver import AwsDriver, aws_driver

SPOT, ON_DEMAND = CapacityType.SPOT, CapacityType.ON_DEMAND
SUPPLIES = [
    *(supply("m7i.large", f"{REGION}{letter}", kind) for letter in "ab" for kind in CapacityType),
    supply("m7g.large", arch="arm64"),
    supply("m4.large"),
    supply("m7i.metal-24xl", cpus=96, usd_hour=1.5),
    supply("g4dn.xlarge", cpus=4, usd_hour=0.2, gpus=1),
    supply("g4dn.12xlarge", cpus=48, usd_hour=1.2, gpus=4),
    supply("c7i.large", f"{REGION}c"),
]


@pytest.fixture
async def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsDriver]:
    async with aws_driver(tmp_path, monkeypatch, supplies=SUPPLIES) as one:
        yield one


async def types(driver: AwsDriver, **shape: object) -> list[str]:
    found = await driver.provider.offerings(Shape(**shape))  # type: ignore[arg-type]  # each test gives its own keys
    return sorted({one.capacity_pool.machine_type for one in found})


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({}, ["m7i.large"]),
        ({"arch": "arm64"}, ["m7g.large"]),
        ({"gpus": 1}, ["g4dn.12xlarge", "g4dn.xlarge"]),
        ({"gpus": 2}, ["g4dn.12xlarge"]),
        ({"types": ("g4dn.*",)}, ["g4dn.12xlarge", "g4dn.xlarge"]),
        ({"types": ("m4.*", "m7i.*")}, ["m4.large", "m7i.large", "m7i.metal-24xl"]),
        ({"types": ("m7i.*",), "exclude": ("*.metal*",)}, ["m7i.large"]),
        ({"types": ("c7i.*",)}, []),
    ],
    ids=["anything", "arm", "a GPU", "two GPUs", "GPUs by name", "old and metal by name", "without", "no subnet there"],
)
async def test_a_shape_gets_what_it_means(driver: AwsDriver, shape: dict[str, object], expected: list[str]) -> None:
    assert await types(driver, **shape) == expected


def price(offerings: list[Offering], zone: str, kind: CapacityType) -> tuple[float, float | None]:
    (one,) = [
        one
        for one in offerings
        if (one.capacity_pool.zone, one.capacity_pool.capacity_type) == (f"{REGION}{zone}", kind)
    ]
    return one.price_usd_hour, one.on_demand_usd_hour


async def test_prices_are_by_zone_for_spot_and_from_the_list_for_on_demand(driver: AwsDriver) -> None:
    every = list(await driver.provider.offerings(Shape()))
    assert price(every, "a", SPOT) == (0.04, 0.04)
    assert price(every, "b", ON_DEMAND) == (0.04, 0.04)
    told = driver.make("ours", prices={"m7i.large": 0.1})
    every = list(await told.offerings(Shape()))
    assert price(every, "a", SPOT) == (0.04, 0.1)
    assert price(every, "b", ON_DEMAND) == (0.1, 0.1)


async def test_what_has_no_price_is_not_offered_on_demand(driver: AwsDriver) -> None:
    told = driver.make("ours", prices={"c7i.large": 0.1})
    found = await told.offerings(Shape())
    assert {one.capacity_pool.capacity_type for one in found} == {SPOT}
    assert {one.on_demand_usd_hour for one in found} == {None}


async def test_published_frequencies_are_of_spot_alone(driver: AwsDriver) -> None:
    told = driver.make("ours", interruption_frequencies={"m7i.*": 20})
    known = {
        one.capacity_pool.capacity_type: one.published_interruptions_per_hour for one in await told.offerings(Shape())
    }
    assert known[ON_DEMAND] is None
    assert known[SPOT] == pytest.approx(0.000306, rel=0.01)


async def test_two_subnets_of_one_zone_are_refused_with_both_names(driver: AwsDriver) -> None:
    second = Subnet(id="subnet-00000000000000001", zone=f"{REGION}a", vpc_id="vpc-0a1b2c3d")
    driver.served.site.setup.add_subnet(REGION, second)
    network = {"subnets": [subnet("a"), second.id], "security_groups": [GROUP]}
    doubled = driver.make("ours", networks={REGION: network})
    with pytest.raises(InvalidRequest, match=rf"{subnet('a')} and {second.id}|{second.id} and {subnet('a')}"):
        await doubled.offerings(Shape())
