"""The AWS adapter's happy path against moto, an EC2 that we did not write.

moto knows no capacity, no prices and no interruption (the sandbox does); what it says is that our requests are EC2's
and that its answers, which lack some of the newer members, are understood.
"""

import base64
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, InstanceTypeBackend
from moto.ec2.models.spot_requests import SpotInstanceRequest
from moto.server import ThreadedMotoServer

from autoscaler.calls import Calls
from autoscaler.spi import (
    BatchToken,
    CapacityType,
    CloudInstance,
    LaunchBatch,
    LaunchResult,
    MachineState,
    NoticeKind,
    PoolName,
    ProviderId,
    ProviderName,
    ProviderSettings,
    Shape,
    Surroundings,
    Verdict,
)
from providers.aws import AwsProvider, create
from tests.aws_messages import warning
from tests.hurried_clock import HurriedClock
from tests.polling import until

REGION = "us-east-1"
ACCOUNT = "123456789012"
"""moto's own."""
FEW = ("m5.large", "m6i.large", "m6g.large")
ENDED = (MachineState.TERMINATING, MachineState.TERMINATED)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    teach_moto_a_filter(monkeypatch)
    show_few_types(monkeypatch)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        found = f"http://{host}:{port}"
        with urlopen(Request(f"{found}/moto-api/reset", method="POST"), timeout=10):
            pass  # moto's state is the process's: tests would meet each other's machines
        yield found
    finally:
        server.stop()


def show_few_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """moto takes seconds to show the hundreds that it knows."""
    few = [one for one in InstanceTypeBackend.instance_types if one["InstanceType"].startswith(FEW)]
    monkeypatch.setattr(InstanceTypeBackend, "instance_types", few)
    by_region = INSTANCE_TYPE_OFFERINGS["availability-zone"]
    few = [one for one in by_region[REGION] if one["InstanceType"].startswith(FEW)]
    monkeypatch.setitem(by_region, REGION, few)


def teach_moto_a_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """EC2 filters spot requests by status-code; moto, whose requests are all fulfilled, answers 500 to it."""
    known = SpotInstanceRequest.get_filter_value

    def get_filter_value(request: Any, filter_name: str, method_name: str | None = None) -> Any:
        return "fulfilled" if filter_name == "status-code" else known(request, filter_name, method_name)

    monkeypatch.setattr(SpotInstanceRequest, "get_filter_value", get_filter_value)


class Account:
    """An account at moto, whose VPC and image come with it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ec2: Any = boto3.client("ec2", region_name=REGION, endpoint_url=url)
        self._calls = Calls()
        subnets = self.ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"]
        self.subnets = [one["SubnetId"] for one in subnets][:3]
        groups = self.ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"]
        image = self.ec2.describe_images(Owners=["amazon"], Filters=[{"Name": "architecture", "Values": ["x86_64"]}])
        self.ami = image["Images"][0]["ImageId"]
        self.group = groups[0]["GroupId"]

    def provider(self, deployment: str = "ours", **more: Any) -> AwsProvider:
        options = {
            **more,
            "account": ACCOUNT,
            "networks": {REGION: {"subnets": self.subnets, "security_groups": [self.group]}},
            "prices": {"m5.large": 0.096, "m6i.large": 0.096},
        }
        settings = ProviderSettings(
            name=ProviderName("aws"), kind="aws", regions=(REGION,), endpoint_url=self.url, options=options
        )
        surroundings = Surroundings(
            deployment=deployment, runner_prefix=f"{deployment}--", clock=HurriedClock(), gates=self._calls
        )
        made = create(settings, surroundings)
        assert isinstance(made, AwsProvider)
        return made

    async def launch(
        self, provider: AwsProvider, token: str, *, count: int, capacity_type: CapacityType, **more: Any
    ) -> LaunchResult:
        offered = [
            one
            for one in await provider.offerings(Shape(types=("m5.large", "m6i.large")))
            if one.capacity_pool.capacity_type is capacity_type
        ]
        return await provider.launch(
            LaunchBatch(
                token=BatchToken(token),
                pool=PoolName("linux"),
                count=count,
                offerings=tuple(offered),
                image={"ami": self.ami},
                user_data="{}",
                max_lifetime=timedelta(hours=1),
                disk_gib=40.0,
                **more,
            )
        )

    def described(self, id_: ProviderId) -> Any:
        return self.ec2.describe_instances(InstanceIds=[id_])["Reservations"][0]["Instances"][0]

    async def aclose(self) -> None:
        await self._calls.aclose(grace_s=0.1)
        self.ec2.close()


@pytest.fixture
async def account(url: str) -> AsyncIterator[Account]:
    made = Account(url)
    try:
        yield made
    finally:
        await made.aclose()


def ids(machines: Iterable[CloudInstance]) -> list[ProviderId]:
    return sorted(one.provider_id for one in machines)


async def test_batches_are_launched_listed_repeated_and_ended(account: Account) -> None:
    provider = account.provider()
    spot = (await account.launch(provider, "b-1", count=3, capacity_type=CapacityType.SPOT)).instances
    on_demand = (await account.launch(provider, "b-2", count=1, capacity_type=CapacityType.ON_DEMAND)).instances
    assert [len(spot), len(on_demand)] == [3, 1]
    listed = {one.provider_id: one for one in await provider.list_instances()}
    assert set(listed) == {*ids(spot), *ids(on_demand)}
    for made in (*spot, *on_demand):
        one = listed[made.provider_id]
        assert (one.token, one.pool, one.capacity_pool) == (made.token, "linux", made.capacity_pool)
        assert one.price_usd_hour > 0
        assert one.address
    again = await account.launch(account.provider(), "b-1", count=3, capacity_type=CapacityType.SPOT, is_repeat=True)
    assert ids(again.instances) == ids(spot)
    theirs = account.provider("theirs")
    assert await theirs.list_instances() == []
    await theirs.terminate(ids(spot))
    assert {one.state for one in await provider.list_instances()} == {MachineState.RUNNING}
    await provider.terminate([*ids(spot), ProviderId("i-00000000000000000")])
    ended = {one.provider_id: one for one in await provider.list_instances() if one.state in ENDED}
    assert sorted(ended) == ids(spot)
    assert {one.end_detail for one in ended.values()} == {"Client.UserInitiatedShutdown"}


async def test_a_machine_carries_what_it_needs_and_no_more(account: Account) -> None:
    provider = account.provider()
    (machine,) = (await account.launch(provider, "b-1", count=1, capacity_type=CapacityType.SPOT)).instances
    described = account.described(machine.provider_id)
    tags = {tag["Key"]: tag["Value"] for tag in described["Tags"]}
    assert tags["autoscaler-deployment"] == "ours"
    assert tags["autoscaler-batch"] == "b-1"
    assert [group["GroupId"] for group in described["SecurityGroups"]] == [account.group]
    (template,) = account.ec2.describe_launch_templates()["LaunchTemplates"]
    (version,) = account.ec2.describe_launch_template_versions(LaunchTemplateId=template["LaunchTemplateId"])[
        "LaunchTemplateVersions"
    ]
    content = version["LaunchTemplateData"]
    assert content["MetadataOptions"]["HttpTokens"] == "required"
    assert content["InstanceInitiatedShutdownBehavior"] == "terminate"
    (disk,) = (mapping["Ebs"] for mapping in content["BlockDeviceMappings"])
    assert (disk["Encrypted"], disk["DeleteOnTermination"], disk["VolumeSize"]) == (True, True, 40)
    assert base64.b64decode(content["UserData"]).startswith(b"#!/bin/sh")
    account.ec2.delete_launch_template(LaunchTemplateId=template["LaunchTemplateId"])
    again = await account.launch(provider, "b-2", count=1, capacity_type=CapacityType.SPOT)
    assert len(again.instances) == 1  # from a template that was made anew


async def test_a_machine_is_stopped_and_started(account: Account) -> None:
    provider = account.provider()
    result = await account.launch(provider, "b-1", count=1, capacity_type=CapacityType.ON_DEMAND, is_stoppable=True)
    (id_,) = ids(result.instances)
    await provider.stop([id_])
    await until(lambda: _is(provider, id_, MachineState.STOPPED))
    assert await provider.start([id_]) == {}
    await until(lambda: _is(provider, id_, MachineState.RUNNING))


async def test_a_warning_in_the_queue_is_heard_until_it_is_acknowledged(account: Account) -> None:
    sqs = boto3.client("sqs", region_name=REGION, endpoint_url=account.url)
    queue = sqs.create_queue(QueueName="autoscaler-ours", Attributes={"VisibilityTimeout": "1"})["QueueUrl"]
    provider = account.provider(notices={REGION: queue})
    (machine,) = (await account.launch(provider, "b-1", count=1, capacity_type=CapacityType.SPOT)).instances
    await provider.list_instances()
    at = datetime.now(UTC).replace(microsecond=0)
    for instance_id in ("i-00000000000000bad", machine.provider_id):
        sqs.send_message(QueueUrl=queue, MessageBody=warning(instance_id, at=at, account=ACCOUNT))
    (notice,) = await until(provider.notices)
    assert (notice.provider_id, notice.kind) == (machine.provider_id, NoticeKind.RECLAIM)
    assert notice.reclaim_at == at + timedelta(minutes=2)
    await provider.ack([notice])

    def left() -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)

    await until(lambda: left() == 0)
    await provider.aclose()
    sqs.close()


async def test_the_check_finds_the_account_the_networks_and_the_image(account: Account) -> None:
    findings = await account.provider().check({"ubuntu": {"ami": account.ami}})
    fine = {one.key for one in findings if one.verdict is Verdict.OK}
    assert {"credentials", f"networks.{REGION}.subnets", "image ubuntu"} <= fine


async def _is(provider: AwsProvider, id_: ProviderId, state: MachineState) -> bool:
    return [one.state for one in await provider.describe([id_])] == [state]
