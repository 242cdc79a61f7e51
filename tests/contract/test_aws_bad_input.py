"""What goes wrong between the AWS adapter and its account: each fault has its error, its remedy, and no machine leaks.

Real boto3 against the sandbox's EC2; the faults are committed by the cloud's side.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoscaler.sandbox.aws_access import all_but
from autoscaler.spi import (
    CapacityType,
    CapacityUnavailable,
    Finding,
    InvalidRequest,
    Offering,
    OutcomeUnknown,
    ProviderError,
    ProviderId,
    QuotaExceeded,
    Shape,
    Throttled,
    Unauthorized,
    Verdict,
)
from tests.aws_site import ACCESS_KEY, AMI, GROUP, REGION, SECRET, subnet
from tests.contract.aws_driver import AwsDriver, aws_driver
from tests.polling import until

SPOT, ON_DEMAND = CapacityType.SPOT, CapacityType.ON_DEMAND


@pytest.fixture
async def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsDriver]:
    async with aws_driver(tmp_path, monkeypatch) as one:
        yield one


async def offered(driver: AwsDriver, capacity_type: CapacityType = SPOT) -> list[Offering]:
    every = await driver.provider.offerings(Shape())
    return [one for one in every if one.capacity_pool.capacity_type is capacity_type]


def machines(driver: AwsDriver) -> int:
    return sum(1 for one in driver.served.site.cloud.machines.values() if one.is_up)


async def refused_by_check(driver: AwsDriver, **options: Any) -> list[Finding]:
    """What the check refuses; each with a remedy."""
    provider = driver.make("ours", **options) if options else driver.provider
    findings = await provider.check({"runner": {"ami": AMI}})
    refused = [one for one in findings if one.verdict is Verdict.REFUSED]
    assert all(one.remedy for one in refused)
    return refused


async def test_a_sound_configuration_is_refused_nothing(driver: AwsDriver) -> None:
    assert await refused_by_check(driver) == []


# --------------------------------------------------------------------------- found by the check


@pytest.mark.parametrize(
    ("spoil", "key"),
    [
        (lambda site: site.setup.subnets_by_id.pop((REGION, subnet("b"))), f"networks.{REGION}.subnets"),
        (lambda site: site.setup.groups.pop((REGION, GROUP)), f"networks.{REGION}.security_groups"),
        (lambda site: site.setup.images_by_id.pop((REGION, AMI)), "image runner"),
        (lambda site: site.cloud.capacity.quotas.update({(REGION, SPOT): 0.0}), "regions"),
        (lambda site: site.sqs.queues.clear(), f"notices.{REGION}"),
        (lambda site: setattr(site.sqs.queues[REGION, "notices"], "policy", ""), f"notices.{REGION}"),
        (lambda site: setattr(site.faults, "clock_skew_s", 600.0), "credentials"),
        (lambda site: setattr(site.faults, "clock_skew_s", 270.0), "credentials"),
        (lambda site: site.access.grant(ACCESS_KEY, "another secret"), "credentials"),
        (lambda site: site.access.grant(ACCESS_KEY, SECRET, allows=all_but("ec2:RunInstances")), "credentials"),
        (lambda site: site.access.grant(ACCESS_KEY, SECRET, allows=all_but("ec2:TerminateInstances")), "credentials"),
        (
            lambda site: site.access.grant(ACCESS_KEY, SECRET, allows=all_but("ec2:DescribeSubnets")),
            f"networks.{REGION}.subnets",
        ),
        (lambda site: site.access.grant(ACCESS_KEY, SECRET, allows=all_but("sqs:*")), "notices"),
    ],
    ids=[
        "missing subnet",
        "missing security group",
        "missing image",
        "quota zero",
        "missing queue",
        "queue without policy",
        "clock ten minutes off",
        "clock nearly too far off",
        "wrong secret",
        "may not launch",
        "may not end",
        "may not see subnets",
        "may not hear",
    ],
)
async def test_the_check_finds_what_is_wrong(driver: AwsDriver, spoil: Any, key: str) -> None:
    spoil(driver.served.site)
    refused = await refused_by_check(driver)
    assert key in {one.key for one in refused}, refused


async def test_the_check_warns_of_a_queue_that_strangers_may_send_to(driver: AwsDriver) -> None:
    async def warned() -> list[Finding]:
        found = await driver.provider.check({"runner": {"ami": AMI}})
        return [one for one in found if one.key == f"notices.{REGION}" and one.verdict is Verdict.WARNING]

    assert await warned() == []
    queue = driver.served.site.sqs.queues[REGION, "notices"]
    policy = json.loads(queue.policy)
    del policy["Statement"][0]["Condition"]
    queue.policy = json.dumps(policy)
    (one,) = await warned()
    assert "any AWS account" in one.message
    assert "aws:SourceArn" in one.remedy


@pytest.mark.parametrize(
    "permission",
    [
        *("ec2:CreateFleet", "ec2:CreateLaunchTemplate", "ec2:CreateTags", "ec2:StopInstances", "ec2:StartInstances"),
        *("ec2:DescribeInstances", "ec2:DescribeSpotInstanceRequests", "ec2:DescribeLaunchTemplates"),
        *("ec2:DescribeSpotPriceHistory", "ec2:DescribeInstanceTypes", "ec2:DescribeImages"),
    ],
)
async def test_the_check_names_a_permission_that_is_missing(driver: AwsDriver, permission: str) -> None:
    driver.served.site.access.grant(ACCESS_KEY, SECRET, allows=all_but(permission))
    refused = await refused_by_check(driver)
    assert any(permission in f"{one.message} {one.remedy}" for one in refused), refused
    assert driver.served.site.ec2.templates.templates == {}
    assert driver.served.site.cloud.machines == {}


async def test_the_check_finds_another_account_and_a_profile_that_is_not_there(driver: AwsDriver) -> None:
    assert {one.key for one in await refused_by_check(driver, account="999999999999")} == {"account"}
    assert "instance_profile" in {one.key for one in await refused_by_check(driver, instance_profile="nothing")}


async def test_a_region_that_the_account_does_not_have_is_found(driver: AwsDriver) -> None:
    elsewhere = "me-south-1"
    refused = await refused_by_check(
        driver,
        regions=(elsewhere,),
        networks={elsewhere: {"subnets": [subnet("a")], "security_groups": [GROUP]}},
        notices={},
        trust_anchors={},
    )
    assert f"networks.{elsewhere}.subnets" in {one.key for one in refused}


# --------------------------------------------------------------------------- met by a launch


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda site: site.setup.subnets_by_id.clear(), "subnet"),
        (lambda site: site.setup.groups.clear(), GROUP),
        (lambda site: site.setup.images_by_id.clear(), AMI),
    ],
    ids=["subnet", "security group", "image"],
)
async def test_a_launch_with_something_missing_is_invalid_and_says_what(
    driver: AwsDriver, spoil: Any, text: str
) -> None:
    offerings = await offered(driver)
    spoil(driver.served.site)
    with pytest.raises(InvalidRequest, match=text):
        await driver.provider.launch(driver.batch("b1", count=1, offerings=offerings))
    assert machines(driver) == 0


async def test_user_data_over_sixteen_kilobytes_is_invalid_before_anything_is_made(driver: AwsDriver) -> None:
    batch = replace(
        driver.batch("b1", count=1, offerings=await offered(driver)), user_data='{"x": "' + "é" * 9000 + '"}'
    )
    with pytest.raises(InvalidRequest, match=r"user data is \d+ bytes, EC2 takes 16384"):
        await driver.provider.launch(batch)
    assert machines(driver) == 0
    assert driver.served.site.ec2.templates.templates == {}


async def test_a_throttled_launch_makes_nothing_and_says_when_to_come_again(driver: AwsDriver) -> None:
    offerings = await offered(driver)
    await driver.provider.launch(driver.batch("b0", count=1, offerings=offerings))
    driver.served.site.faults.throttle = 1.0
    with pytest.raises(Throttled) as caught:
        await driver.provider.launch(driver.batch("b1", count=1, offerings=offerings))
    assert caught.value.retry_after_s > 0
    assert machines(driver) == 1
    driver.served.site.faults.throttle = 0.0


async def test_a_launch_that_broke_at_their_side_is_asked_again_with_the_same_token(driver: AwsDriver) -> None:
    offerings = await offered(driver)
    await driver.provider.launch(driver.batch("b0", count=1, offerings=offerings))
    driver.served.site.faults.internal_error = 1.0
    with pytest.raises(OutcomeUnknown, match="InternalError"):
        await driver.provider.launch(driver.batch("b1", count=2, offerings=offerings))
    driver.served.site.faults.internal_error = 0.0
    result = await driver.provider.launch(driver.batch("b1", count=2, offerings=offerings, is_repeat=True))
    assert len(result.instances) == 2
    assert machines(driver) == 3


async def test_no_quota_is_a_refusal_of_the_region_s_spot(driver: AwsDriver) -> None:
    offerings = await offered(driver)
    driver.served.site.cloud.capacity.quotas[REGION, SPOT] = 0.0
    result = await driver.provider.launch(driver.batch("b1", count=2, offerings=offerings))
    assert result.instances == ()
    errors = [one.error for one in result.refusals]
    assert errors
    for error in errors:
        assert isinstance(error, QuotaExceeded)
        assert error.scope is not None
        assert (error.scope.region, error.scope.capacity_type) == (REGION, SPOT)
        assert all(error.scope.covers(one.capacity_pool) for one in offerings)


async def test_a_subnet_without_addresses_closes_its_zone(driver: AwsDriver) -> None:
    offerings = await offered(driver)
    driver.served.site.setup.subnet(REGION, subnet("a")).free_addresses = 0
    result = await driver.provider.launch(driver.batch("b1", count=6, offerings=offerings))
    assert {one.capacity_pool.zone for one in result.instances} == {f"{REGION}b"}
    zones = {one.offering.capacity_pool.zone for one in result.refusals if isinstance(one.error, QuotaExceeded)}
    assert zones == {f"{REGION}a"}


async def test_dry_pools_are_refusals_by_name(driver: AwsDriver) -> None:
    offerings = await offered(driver)
    cheapest = offerings[0].capacity_pool
    driver.served.site.cloud.capacity.exhausted.update(one.capacity_pool for one in offerings)
    result = await driver.provider.launch(driver.batch("b1", count=1, offerings=offerings))
    dry = {one.offering.capacity_pool for one in result.refusals if isinstance(one.error, CapacityUnavailable)}
    assert cheapest in dry
    assert dry == {one.capacity_pool for one in offerings}


async def test_machines_that_spot_refused_do_not_count_against_on_demand_ones(driver: AwsDriver) -> None:
    spot, on_demand = await offered(driver), await offered(driver, ON_DEMAND)
    driver.served.site.cloud.capacity.exhausted.update(one.capacity_pool for one in spot)
    for number in range(3):
        result = await driver.provider.launch(driver.batch(f"b{number}", count=900, offerings=spot))
        assert result.instances == ()
        assert {type(one.error) for one in result.refusals} == {CapacityUnavailable}
    result = await driver.provider.launch(driver.batch("b3", count=3, offerings=on_demand))
    assert len(result.instances) == 3
    left = {one.family: one.remaining for one in driver.provider.status().budgets}
    assert 990 < left["machines"] < 1000


async def test_a_template_that_somebody_deleted_is_made_anew(driver: AwsDriver) -> None:
    offerings = await offered(driver)
    await driver.provider.launch(driver.batch("b1", count=1, offerings=offerings))
    driver.served.site.ec2.templates.templates.clear()
    result = await driver.provider.launch(driver.batch("b2", count=1, offerings=offerings))
    assert len(result.instances) == 1


async def test_a_template_that_somebody_changed_is_not_what_machines_are_made_from(driver: AwsDriver) -> None:
    offerings = await offered(driver)
    await driver.provider.launch(driver.batch("b1", count=1, offerings=offerings))
    templates = driver.served.site.ec2.templates
    ((id_, template),) = templates.templates.items()
    changed = type(template.versions[0])(image_id="ami-00000000000000bad")
    templates.change(id_, changed)
    result = await driver.provider.launch(driver.batch("b2", count=1, offerings=offerings))
    (machine,) = await driver.served.machines(InstanceIds=[result.instances[0].provider_id])
    assert machine["ImageId"] == AMI
    assert machine["MetadataOptions"]["HttpTokens"] == "required"


async def test_a_launch_whose_answer_is_lost_is_found_by_its_repeat_and_not_doubled(driver: AwsDriver) -> None:
    offerings = await offered(driver)
    driver.served.face.troubles.next_lost["CreateFleet"] = 1
    with pytest.raises(OutcomeUnknown):
        await driver.provider.launch(driver.batch("b1", count=2, offerings=offerings))
    assert machines(driver) == 2
    result = await driver.restarted().launch(driver.batch("b1", count=2, offerings=offerings))
    assert len(result.instances) == 2
    assert machines(driver) == 2


async def test_a_repeat_with_other_offerings_after_a_lost_answer_launches_nothing_more(driver: AwsDriver) -> None:
    offerings = await offered(driver)
    driver.served.face.troubles.next_lost["CreateFleet"] = 1
    with pytest.raises(OutcomeUnknown):
        await driver.provider.launch(driver.batch("b1", count=2, offerings=offerings))
    result = await driver.provider.launch(driver.batch("b1", count=2, offerings=offerings[1:]))
    assert len(result.instances) == 2
    assert machines(driver) == 2


# --------------------------------------------------------------------------- met by listing and ending


async def test_a_listing_that_fails_on_page_three_lists_nothing(
    driver: AwsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("providers.aws_machines.PAGE", 5)
    offerings = await offered(driver)
    for number in range(4):
        await driver.provider.launch(driver.batch(f"b{number}", count=3, offerings=offerings))
    instances = driver.served.site.ec2.instances
    instances.failing_page = 3
    with pytest.raises(ProviderError):
        await driver.provider.list_instances()
    instances.failing_page = None
    assert len(await driver.provider.list_instances()) == 12


async def test_unknown_ids_do_not_keep_others_from_ending(driver: AwsDriver) -> None:
    made = (await driver.provider.launch(driver.batch("b1", count=2, offerings=await offered(driver)))).instances
    strangers = [ProviderId(f"i-0000000000000000{n}") for n in range(3)]
    await driver.provider.terminate([strangers[0], *(one.provider_id for one in made), *strangers[1:]])
    await until(lambda: machines(driver) == 0)
    await driver.provider.terminate(strangers)


async def test_a_clock_that_is_off_stops_nothing_but_is_said(driver: AwsDriver) -> None:
    driver.served.site.faults.clock_skew_s = 600.0
    with pytest.raises(ProviderError) as caught:
        await driver.provider.list_instances()
    assert "clock" in str(caught.value)


async def test_a_permission_that_was_taken_away_is_named(driver: AwsDriver) -> None:
    made = (await driver.provider.launch(driver.batch("b1", count=1, offerings=await offered(driver)))).instances
    driver.served.site.access.grant(ACCESS_KEY, SECRET, allows=all_but("ec2:TerminateInstances"))
    with pytest.raises(Unauthorized, match="ec2:TerminateInstances"):
        await driver.provider.terminate([made[0].provider_id])
    driver.served.site.access.grant(ACCESS_KEY, SECRET, allows=all_but("ec2:DescribeInstances"))
    with pytest.raises(Unauthorized, match="ec2:DescribeInstances"):
        await driver.provider.list_instances()
