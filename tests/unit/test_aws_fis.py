"""Game days on AWS: boto3's client against the sandbox's FIS and EC2."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.sandbox.aws_access import only
from autoscaler.spi import InvalidRequest, ProviderId, Unauthorized
from providers.aws_fis import AwsFis
from tests.aws_site import ACCESS_KEY, AMI, REGION, SECRET, ServedAws, served_aws, subnet
from tests.polling import until


@dataclass(slots=True, kw_only=True)
class Cloud:
    served: ServedAws
    calls: Calls

    @property
    def role(self) -> str:
        return f"arn:aws:iam::{self.served.site.account}:role/autoscaler-x-fis"

    def fis(self, *, role: str | None = None) -> AwsFis:
        return AwsFis(
            role=self.role if role is None else role,
            account=self.served.site.account,
            deployment="x",
            client=lambda region: self.served.client("fis", region=region),
            gates=self.calls,
            clock=SystemClock(),
            name="aws",
        )

    async def launch(self, count: int, *, market: str = "spot") -> list[ProviderId]:
        """Machines that run."""
        options: dict[str, Any] = {"InstanceMarketOptions": {"MarketType": "spot"}} if market == "spot" else {}
        made = await self.served.ec2(
            "run_instances",
            **{"ImageId": AMI, "InstanceType": "m7i.large", "SubnetId": subnet("a"), "MinCount": count},
            MaxCount=count,
            **options,
        )
        ids = [ProviderId(one["InstanceId"]) for one in made["Instances"]]
        await until(lambda: self.are(ids, {"running"}))
        return ids

    async def are(self, ids: list[ProviderId], states: set[str]) -> bool:
        return {one["State"]["Name"] for one in await self.served.machines(InstanceIds=ids)} <= states


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    calls = Calls()
    async with served_aws() as served:
        one = Cloud(served=served, calls=calls)
        served.site.access.roles[one.role] = only("ec2:*")
        yield one
        await calls.aclose(grace_s=2)


async def test_spot_machines_are_taken_in_experiments_of_five_and_no_template_stays(cloud: Cloud) -> None:
    ids = await cloud.launch(7)
    await cloud.fis().interrupt(REGION, ids)
    await until(lambda: cloud.are(ids, {"shutting-down", "terminated"}))
    experiments = list(cloud.served.site.fis.experiments.values())
    assert sorted(len(one.body["targets"]["machines"]["resourceArns"]) for one in experiments) == [2, 5]
    assert all(one.tags == {"autoscaler-deployment": "x"} for one in experiments)
    assert cloud.served.site.fis.templates == {}


async def test_a_machine_that_is_no_spot_machine_is_an_error_and_no_template_stays(cloud: Cloud) -> None:
    ids = await cloud.launch(1, market="")
    with pytest.raises(InvalidRequest, match="empty set"):
        await cloud.fis().interrupt(REGION, ids)
    assert cloud.served.site.fis.templates == {}
    assert await cloud.are(ids, {"running"})


async def test_a_missing_permission_is_named(cloud: Cloud) -> None:
    ids = await cloud.launch(1)
    access = cloud.served.site.access
    allowed = ["ec2:*", "fis:Create*", "fis:Delete*", "fis:TagResource"]
    access.grant(ACCESS_KEY, SECRET, allows=only(*allowed))
    with pytest.raises(Unauthorized, match="iam:PassRole"):
        await cloud.fis().interrupt(REGION, ids)
    access.grant(ACCESS_KEY, SECRET, allows=only(*allowed, "iam:PassRole"))
    with pytest.raises(Unauthorized, match="allow fis:StartExperiment"):
        await cloud.fis().interrupt(REGION, ids)
    assert cloud.served.site.fis.templates == {}


async def test_without_a_role_nothing_is_tried(cloud: Cloud) -> None:
    with pytest.raises(InvalidRequest, match="fis_role"):
        await cloud.fis(role="").interrupt(REGION, [ProviderId("i-0123456789abcdef0")])
    assert cloud.served.site.access.calls == []
