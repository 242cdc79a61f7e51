"""Game days on AWS: boto3's client against the sandbox's FIS and EC2."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from botocore.config import Config

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.sandbox.aws_access import only
from autoscaler.sandbox.aws_face import AwsFace
from autoscaler.sandbox.aws_setup import AwsSetup, Image, MachineType, Subnet
from autoscaler.sandbox.aws_site import ACCOUNT, AwsSite
from autoscaler.spi import InvalidRequest, ProviderId, Unauthorized
from providers.aws_fis import AwsFis
from tests.polling import until

REGION = "us-east-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/autoscaler-x-fis"


@dataclass(slots=True, kw_only=True)
class Cloud:
    site: AwsSite
    url: str
    fis: AwsFis

    def client(self, service: str) -> Any:
        return client(self.url, service, REGION)

    def launch(self, count: int, *, market: str = "spot") -> list[ProviderId]:
        options = {"InstanceMarketOptions": {"MarketType": "spot"}} if market == "spot" else {}
        made = self.client("ec2").run_instances(
            ImageId="ami-1", InstanceType="m7i.large", SubnetId="subnet-1", MinCount=count, MaxCount=count, **options
        )
        return [ProviderId(one["InstanceId"]) for one in made["Instances"]]

    def states(self, ids: list[ProviderId]) -> set[str]:
        found = self.client("ec2").describe_instances(InstanceIds=ids)["Reservations"]
        return {one["State"]["Name"] for reservation in found for one in reservation["Instances"]}


def client(url: str, service: str, region: str) -> Any:
    return boto3.client(
        service,
        region_name=region,
        endpoint_url=url,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": 1}),
    )


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    setup, clock, calls = AwsSetup(), SystemClock(), Calls()
    setup.add_type(
        REGION, MachineType(name="m7i.large", cpus=2, memory_gib=8, zones=("us-east-1a",)), slots=20,
        spot_usd=0.03, on_demand_usd=0.1,
    )  # fmt: skip
    setup.add_subnet(REGION, Subnet(id="subnet-1", zone="us-east-1a", vpc_id="vpc-1", network="10.1"))
    setup.add_image(REGION, Image(id="ami-1"))
    site = AwsSite(clock, setup, notice_s=0.2)
    site.access.grant("key", "secret")
    site.access.roles[ROLE] = only("ec2:*")
    face = AwsFace(site)
    url = await face.start()
    fis = AwsFis(
        role=ROLE,
        account=ACCOUNT,
        deployment="x",
        client=lambda region: client(url, "fis", region),
        gates=calls,
        clock=clock,
        name="aws",
    )
    yield Cloud(site=site, url=url, fis=fis)
    await calls.aclose(grace_s=2)
    await face.aclose()


async def test_spot_machines_are_taken_in_experiments_of_five_and_no_template_stays(cloud: Cloud) -> None:
    ids = await asyncio.to_thread(cloud.launch, 7)
    await until(lambda: asyncio.to_thread(lambda: cloud.states(ids) == {"running"}))
    await cloud.fis.interrupt(REGION, ids)
    await until(lambda: asyncio.to_thread(lambda: cloud.states(ids) <= {"shutting-down", "terminated"}))
    experiments = list(cloud.site.fis.experiments.values())
    assert sorted(len(one.body["targets"]["machines"]["resourceArns"]) for one in experiments) == [2, 5]
    assert all(one.tags == {"autoscaler-deployment": "x"} for one in experiments)
    assert cloud.site.fis.templates == {}


async def test_a_machine_that_is_no_spot_machine_is_an_error_and_no_template_stays(cloud: Cloud) -> None:
    ids = await asyncio.to_thread(cloud.launch, 1, market="")
    await until(lambda: asyncio.to_thread(lambda: cloud.states(ids) == {"running"}))
    with pytest.raises(InvalidRequest, match="empty set"):
        await cloud.fis.interrupt(REGION, ids)
    assert cloud.site.fis.templates == {}
    assert await asyncio.to_thread(cloud.states, ids) == {"running"}


async def test_a_missing_permission_is_named(cloud: Cloud) -> None:
    ids = await asyncio.to_thread(cloud.launch, 1)
    cloud.site.access.grant("key", "secret", allows=only("ec2:*", "fis:Create*", "fis:Delete*", "fis:TagResource"))
    with pytest.raises(Unauthorized, match="iam:PassRole"):
        await cloud.fis.interrupt(REGION, ids)
    allowed = only("ec2:*", "fis:Create*", "fis:Delete*", "fis:TagResource", "iam:PassRole")
    cloud.site.access.grant("key", "secret", allows=allowed)
    with pytest.raises(Unauthorized, match="allow fis:StartExperiment"):
        await cloud.fis.interrupt(REGION, ids)
    assert cloud.site.fis.templates == {}


async def test_without_a_role_nothing_is_tried(cloud: Cloud) -> None:
    roleless = AwsFis(
        role="",
        account=ACCOUNT,
        deployment="x",
        client=lambda region: client(cloud.url, "fis", region),
        gates=Calls(),
        clock=SystemClock(),
        name="aws",
    )
    with pytest.raises(InvalidRequest, match="fis_role"):
        await roleless.interrupt(REGION, [ProviderId("i-0123456789abcdef0")])
    assert cloud.site.access.calls == []
