"""Several regions of AWS, and repeats of launches in them: no listing shows yet what the first try made, and none of
them makes more; what fails in one region does not hold up the others."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from autoscaler.sandbox.aws_face import throttled
from autoscaler.sandbox.aws_query import AwsError
from autoscaler.sandbox.aws_setup import Image, Subnet
from autoscaler.spi import CapacityType, LaunchBatch, Offering, OutcomeUnknown, Shape, Throttled
from providers.aws import AwsProvider
from tests.aws_site import AMI, GROUP, QUICK, REGION, subnet, usual_supplies
from tests.contract.aws_driver import AwsDriver, aws_driver, few_slots

OTHER = "us-west-2"


@pytest.fixture
async def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsDriver]:
    """Two regions; new machines are not listed for as long as a test lasts."""
    times = replace(QUICK, shown_after=(600.0, 600.0))
    supplies = few_slots([*usual_supplies(), *usual_supplies(OTHER)])
    async with aws_driver(tmp_path, monkeypatch, supplies=supplies, times=times) as one:
        setup = one.served.site.setup
        for letter in "ab":
            setup.add_subnet(OTHER, Subnet(id=subnet(letter), zone=f"{OTHER}{letter}", vpc_id="vpc-0a1b2c3d"))
        setup.add_group(OTHER, GROUP, vpc_id="vpc-0a1b2c3d")
        setup.add_image(OTHER, Image(id=AMI))
        yield one


def both_regions(driver: AwsDriver) -> AwsProvider:
    network = {"subnets": [subnet("a"), subnet("b")], "security_groups": [GROUP]}
    return driver.make("ours", regions=(REGION, OTHER), networks={REGION: network, OTHER: network})


async def spot_of_both(provider: AwsProvider) -> tuple[Offering, Offering]:
    found = await provider.offerings(Shape(types=("m7i.large",)))
    spot = {one.capacity_pool.region: one for one in found if one.capacity_pool.capacity_type is CapacityType.SPOT}
    return spot[REGION], spot[OTHER]


async def lost(driver: AwsDriver, provider: AwsProvider, action: str, batch: LaunchBatch) -> set[str]:
    """A launch that took effect and was never answered: the machines that it made."""
    driver.served.face.troubles.next_lost[action] = 1
    with pytest.raises(OutcomeUnknown):
        await provider.launch(batch)
    made = set(driver.served.site.cloud.machines)
    assert len(made) == batch.count
    return made


@pytest.mark.parametrize(
    "error",
    [throttled("ec2"), AwsError("UnauthorizedOperation", "not now", status=403), AwsError("Strange", "unheard of")],
    ids=["throttled", "unauthorized", "unknown"],
)
async def test_a_repeat_that_is_refused_to_speak_asks_no_other_region(driver: AwsDriver, error: AwsError) -> None:
    provider = both_regions(driver)
    batch = driver.batch("b-1", count=2, offerings=await spot_of_both(provider))
    made = await lost(driver, provider, "CreateFleet", batch)
    driver.served.face.troubles.fail_next("CreateFleet", error)
    with pytest.raises(OutcomeUnknown):
        await provider.launch(replace(batch, is_repeat=True))
    assert set(driver.served.site.cloud.machines) == made
    result = await provider.launch(replace(batch, is_repeat=True))
    assert {one.provider_id for one in result.instances} == made == set(driver.served.site.cloud.machines)


async def test_a_repeat_looks_into_regions_that_it_is_not_offered_any_more(driver: AwsDriver) -> None:
    provider = both_regions(driver)
    here, there = await spot_of_both(provider)
    made = await lost(driver, provider, "CreateFleet", driver.batch("b-1", count=2, offerings=[there]))
    for machine in driver.served.site.cloud.machines.values():
        machine.shown_at = 0.0
    restarted = both_regions(driver)
    result = await restarted.launch(driver.batch("b-1", count=2, offerings=[here], is_repeat=True))
    assert {one.provider_id for one in result.instances} == made == set(driver.served.site.cloud.machines)


async def test_a_repeat_begins_with_the_part_whose_answer_was_lost(driver: AwsDriver) -> None:
    """The part before it was throttled at the first try: now it would launch."""
    provider = both_regions(driver)
    batch = driver.batch("b-1", count=2, offerings=await spot_of_both(provider))
    await provider.launch(driver.batch("b-0", count=1, offerings=batch.offerings[:1]))
    await provider.launch(driver.batch("b-00", count=1, offerings=batch.offerings[1:]))
    before = set(driver.served.site.cloud.machines)
    driver.served.face.troubles.fail_next("CreateFleet", AwsError("Strange", "unheard of"))
    driver.served.face.troubles.next_lost["CreateFleet"] = 1
    with pytest.raises(OutcomeUnknown):
        await provider.launch(batch)
    made = set(driver.served.site.cloud.machines) - before
    assert len(made) == 2
    result = await provider.launch(replace(batch, is_repeat=True))
    assert {one.provider_id for one in result.instances} == made == set(driver.served.site.cloud.machines) - before


async def test_a_template_that_was_gone_does_not_make_the_repeat_of_a_lost_launch_a_new_one(driver: AwsDriver) -> None:
    here, _ = await spot_of_both(both_regions(driver))
    await driver.provider.launch(driver.batch("b-0", count=1, offerings=[here]))
    driver.served.site.ec2.templates.templates.clear()
    before = set(driver.served.site.cloud.machines)
    batch = driver.batch("b-1", count=2, offerings=[here])
    driver.served.face.troubles.next_lost["CreateFleet"] = 1
    with pytest.raises(OutcomeUnknown):
        await driver.provider.launch(batch)
    made = set(driver.served.site.cloud.machines) - before
    assert len(made) == 2
    result = await driver.provider.launch(replace(batch, is_repeat=True))
    assert {one.provider_id for one in result.instances} == made == set(driver.served.site.cloud.machines) - before


async def test_a_stoppable_launch_whose_repeat_is_throttled_stays_as_it_was(driver: AwsDriver) -> None:
    provider = both_regions(driver)
    here, there = await spot_of_both(provider)
    exhausted = driver.served.site.cloud.capacity.exhausted
    exhausted.add(here.capacity_pool)
    batch = driver.batch("b-1", count=2, offerings=[here, there], is_stoppable=True)
    made = await lost(driver, provider, "RunInstances", batch)
    exhausted.clear()
    driver.served.face.troubles.fail_next("RunInstances", throttled("ec2"))
    with pytest.raises(OutcomeUnknown):
        await provider.launch(replace(batch, is_repeat=True))
    result = await provider.launch(replace(batch, is_repeat=True))
    assert {one.provider_id for one in result.instances} == made == set(driver.served.site.cloud.machines)


async def test_stoppable_machines_are_launched_where_the_template_was_deleted(driver: AwsDriver) -> None:
    here, _ = await spot_of_both(both_regions(driver))
    await driver.provider.launch(driver.batch("b-0", count=1, offerings=[here], is_stoppable=True))
    driver.served.site.ec2.templates.templates.clear()
    result = await driver.provider.launch(driver.batch("b-1", count=1, offerings=[here], is_stoppable=True))
    assert len(result.instances) == 1


async def test_a_region_that_fails_does_not_keep_the_machines_of_others_alive(driver: AwsDriver) -> None:
    provider = both_regions(driver)
    made = []
    for number, offering in enumerate(await spot_of_both(provider)):
        made += (await provider.launch(driver.batch(f"b-{number}", count=1, offerings=[offering]))).instances
    here, there = made
    machines = driver.served.site.cloud.machines
    for machine in machines.values():
        machine.shown_at = 0.0
    driver.served.face.troubles.fail_next("TerminateInstances", throttled("ec2"))
    with pytest.raises(Throttled):
        await provider.terminate([here.provider_id, there.provider_id])
    assert not machines[there.provider_id].is_up
    assert machines[here.provider_id].is_up
