"""A world of a file as boto3 sees it: its prices over time in the history, its capacity in refused launches."""

import asyncio
import json
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from autoscaler.sandbox.demo_cloud import CloudFaultShares
from autoscaler.sandbox.demo_cloud_aws import AwsCloud
from autoscaler.sandbox.demo_pools import STANDARD_POOLS
from autoscaler.sandbox.demo_world_file import recorded_world
from tests.polling import until

WORLD = """use_trace_prices = true
[boot]
cold = { min_s = 1200, max_s = 1200 }
""" + "".join(
    f"""[[capacity_pool]]
provider = "aws"
region = "us-east-1"
zone = "us-east-1{letter}"
machine_type = "m7i.xlarge"
cpus = 4
memory_gib = 16
capacity_type = "spot"
price_usd_hour = 0.07
trace = "{letter}.json"
slots = 2
"""
    for letter in "ab"
)
TRACES = {
    # An hour each, and a second each at the speed of the test.
    "a": {"metadata": {"gap_seconds": 3600}, "data": [1] * 9, "prices": [0.05, 0.06, 0.07] * 3},
    "b": {"metadata": {"gap_seconds": 3_600_000}, "data": [0, 1], "prices": [0.04, 0.04]},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The running cloud as its users find it."""

    ec2: Any
    subnets: list[str]
    image: str
    since: datetime

    async def history(self) -> set[tuple[str, str]]:
        """Zone and price of what was in force since the test began."""
        found = await asyncio.to_thread(self.ec2.describe_spot_price_history, StartTime=self.since)
        return {(one["AvailabilityZone"][-1], one["SpotPrice"]) for one in found["SpotPriceHistory"]}

    async def launch(self, subnet: str) -> str:
        """The refusal's code, or nothing."""
        try:
            await asyncio.to_thread(
                self.ec2.run_instances,
                ImageId=self.image,
                InstanceType="m7i.xlarge",
                MinCount=1,
                MaxCount=1,
                SubnetId=subnet,
                InstanceMarketOptions={"MarketType": "spot"},
            )
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return ""


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    (tmp_path / "world.toml").write_text(WORLD)
    for name, trace in TRACES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(trace))
    world = recorded_world(tmp_path / "world.toml", kind="aws", speed=3600.0)
    cloud = AwsCloud("test", lambda _: None, world)
    try:
        made = await cloud.start(tmp_path, STANDARD_POOLS, faults=CloudFaultShares(), seed=1)
        document = tomllib.loads(made.sections)
        provider, (image,) = document["provider"][0], document["image"]
        ec2 = boto3.client(
            "ec2",
            region_name="us-east-1",
            endpoint_url=provider["endpoint_url"],
            aws_access_key_id=made.environ["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=made.environ["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"total_max_attempts": 1}),
        )
        subnets = provider["networks"]["us-east-1"]["subnets"]
        yield Served(ec2=ec2, subnets=subnets, image=image["references"]["aws"]["ami"], since=datetime.now(UTC))
    finally:
        await cloud.aclose()


async def test_prices_and_capacity_of_traces_are_what_boto3_meets(served: Served) -> None:
    dearer = {("a", "0.050000"), ("a", "0.060000"), ("a", "0.070000"), ("b", "0.040000")}

    async def has_stepped() -> bool:
        try:
            return await served.history() >= dearer
        except ClientError as error:  # asked too often: this cloud has EC2's limits
            if error.response["Error"]["Code"] != "RequestLimitExceeded":
                raise
            return False

    await until(has_stepped)
    some, none = served.subnets
    assert [await served.launch(some) for _ in range(3)] == ["", "", "InsufficientInstanceCapacity"]
    assert await served.launch(none) == "InsufficientInstanceCapacity"
