"""The policies of deploy/aws, in force while the AWS adapter does everything that it does: enough, and no more."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from autoscaler.sandbox.aws_access import anything, permissions
from autoscaler.sandbox.aws_policy import policy_of
from autoscaler.sandbox.aws_sts import role_arn
from autoscaler.spi import CapacityType, MachineState, Offering, Shape, Unauthorized, Verdict
from providers.aws import AwsProvider
from tests.aws_site import ACCESS_KEY, AMI, REGION, SECRET
from tests.contract.aws_driver import AwsDriver, aws_driver
from tests.polling import until

DEPLOY = Path(__file__).parents[2] / "deploy" / "aws"
POLICIES = ("controller-policy.json", "game-day-policy.json", "instance-profile-policy.json")
DEPLOYMENT = "ours"
PARAMETER = f"/autoscaler-{DEPLOYMENT}/image"
PROFILE = f"autoscaler-{DEPLOYMENT}-runner"
FREE = {"sts:GetCallerIdentity"}
"""Needs no permission."""


@pytest.fixture
async def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsDriver]:
    async with aws_driver(tmp_path, monkeypatch) as one:
        site = one.served.site
        site.add_queue(REGION, f"autoscaler-{DEPLOYMENT}")
        site.iam.instance_profiles[PROFILE] = PROFILE
        site.ssm.parameters[REGION, PARAMETER] = AMI
        site.access.roles[role_arn(site.account, f"autoscaler-{DEPLOYMENT}-fis")] = anything
        yield one


def put_in_force(driver: AwsDriver, *names: str) -> None:
    documents = [(DEPLOY / name).read_text() for name in names]
    variables = {"partition": "aws", "account": driver.served.site.account, "deployment": DEPLOYMENT}
    driver.served.site.access.grant(ACCESS_KEY, SECRET, allows=policy_of(documents, **variables))


def configured(driver: AwsDriver, **options: Any) -> AwsProvider:
    site = driver.served.site
    return driver.make(
        DEPLOYMENT,
        notices={REGION: f"{driver.served.url}/{site.account}/autoscaler-{DEPLOYMENT}"},
        fis_role=role_arn(site.account, f"autoscaler-{DEPLOYMENT}-fis"),
        **options,
    )


def of_type(offerings: list[Offering], capacity_type: CapacityType) -> list[Offering]:
    return [one for one in offerings if one.capacity_pool.capacity_type is capacity_type]


async def launch_and_end(driver: AwsDriver, provider: AwsProvider) -> None:
    """Spot, on demand, stoppable; listed, stopped, started, reclaimed, heard of, ended."""
    offerings = list(await provider.offerings(Shape()))
    spot, on_demand = (of_type(offerings, kind) for kind in (CapacityType.SPOT, CapacityType.ON_DEMAND))
    one = await provider.launch(driver.batch("b1", count=2, offerings=spot))
    two = await provider.launch(driver.batch("b2", count=1, offerings=on_demand))
    parameter = {"ami": f"resolve:ssm:{PARAMETER}"}
    four = await provider.launch(driver.batch("b4", count=1, offerings=on_demand, image=parameter))
    three = await provider.launch(driver.batch("b3", count=1, offerings=spot, is_stoppable=True))
    made = [len(result.instances) for result in (one, two, three, four)]
    assert made == [2, 1, 1, 1], [result.refusals for result in (one, two, three, four)]
    stoppable = three.instances[0].provider_id
    await in_state(provider, stoppable, MachineState.RUNNING)
    await provider.stop([stoppable])
    await in_state(provider, stoppable, MachineState.STOPPED)
    assert await provider.start([stoppable]) == {}
    for machine in one.instances:
        await in_state(provider, machine.provider_id, MachineState.RUNNING)
    await provider.interrupt([one.instances[0].provider_id])
    await provider.ack(await provider.notices())
    listed = await provider.list_instances()
    await provider.terminate([machine.provider_id for machine in listed])
    assert {machine.provider_id for machine in await provider.describe([stoppable])} == {stoppable}


async def in_state(provider: AwsProvider, id_: Any, state: MachineState) -> None:
    async def is_there() -> bool:
        return [machine.state for machine in await provider.describe([id_])] == [state]

    await until(is_there)


async def clean_up(driver: AwsDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two days later the templates of ours that nobody used go with a listing."""
    later = configured(driver)
    monkeypatch.setattr(later, "_cleaned_at", datetime.now(UTC) - timedelta(days=1))
    for template in driver.served.site.ec2.templates.templates.values():
        template.created_at -= timedelta(days=2).total_seconds()
    await later.list_instances()
    assert driver.served.site.ec2.templates.templates == {}


async def test_the_deployed_policies_allow_what_the_adapter_does_and_nothing_else(
    driver: AwsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_force(driver, *POLICIES)
    access = driver.served.site.access
    driver.served.site.iam.has_spot_role = driver.served.site.fis.has_role = False
    provider = configured(driver, instance_profile=PROFILE)
    findings = await provider.check({"runner": {"ami": AMI}})
    assert [one for one in findings if one.verdict is Verdict.REFUSED] == []
    await launch_and_end(driver, provider)
    await clean_up(driver, monkeypatch)
    used = permissions(access.calls) - FREE
    denied = [call for call in access.calls if call.access_key == ACCESS_KEY and not access.allows(call)]
    assert denied == []
    assert not_used(used) == set()


def not_used(used: set[str]) -> set[str]:
    """Actions of the policies that nothing needed."""
    granted = {
        action
        for name in POLICIES
        for statement in json.loads((DEPLOY / name).read_text())["Statement"]
        for action in listed(statement["Action"])
    }
    return {action for action in granted if not any(fnmatchcase(one, action) for one in used)}


def listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize(
    ("permission", "text"),
    [
        ("ec2:CreateFleet", "CreateFleet"),
        ("ec2:RunInstances", "RunInstances"),
        ("ec2:CreateLaunchTemplate", "CreateLaunchTemplate"),
    ],
)
async def test_a_launch_without_a_permission_names_it(driver: AwsDriver, permission: str, text: str) -> None:
    provider = configured(driver)
    offerings = of_type(list(await provider.offerings(Shape())), CapacityType.SPOT)
    driver.served.site.access.grant(ACCESS_KEY, SECRET, allows=lambda call: call.permission != permission)
    with pytest.raises(Unauthorized, match=text):
        await provider.launch(driver.batch("b1", count=1, offerings=offerings))
    assert driver.served.site.cloud.machines == {}


async def test_the_policies_do_not_let_one_deployment_end_another_ones_machines(driver: AwsDriver) -> None:
    theirs = driver.foreign()
    offerings = of_type(list(await theirs.offerings(Shape())), CapacityType.SPOT)
    made = (await theirs.launch(driver.batch("b1", count=1, offerings=offerings))).instances
    put_in_force(driver, *POLICIES)
    with pytest.raises(Exception, match="UnauthorizedOperation"):
        await driver.served.ec2("terminate_instances", InstanceIds=[made[0].provider_id])
