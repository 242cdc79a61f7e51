"""A served AWS account of the sandbox and real boto3 clients for it, for tests of the face and of the adapter."""

import asyncio
import base64
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import boto3
from botocore.config import Config

from autoscaler.sandbox.aws_face import AwsFace
from autoscaler.sandbox.aws_limits import AwsLimits
from autoscaler.sandbox.aws_setup import Image, Subnet
from autoscaler.sandbox.aws_site import AwsSite
from autoscaler.sandbox.cloud_account import CloudAccount, CloudTimes
from autoscaler.sandbox.cloud_capacity import Capacity, Supply
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_faults import CloudFaults
from autoscaler.spi import CapacityPool, CapacityType, ProviderName
from tests.aws_law import LawfulAws

_R = TypeVar("_R")
REGION = "us-east-1"
ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET = "secret-of-the-tests"
AMI = "ami-0123456789abcdef0"
ARM_AMI = "ami-0fedcba9876543210"
GROUP = "sg-0123456789abcdef0"
QUICK = CloudTimes(boot=(0.02, 0.05), start=(0.02, 0.05), end=(0.02, 0.05), stop=(0.02, 0.05), notice_s=1.0)


def supply(
    machine_type: str,
    zone: str = "us-east-1a",
    capacity_type: CapacityType = CapacityType.SPOT,
    *,
    cpus: int = 2,
    usd_hour: float = 0.04,
    **more: Any,
) -> Supply:
    pool = CapacityPool(
        provider=ProviderName("aws"),
        region=zone[:-1],
        zone=zone,
        machine_type=machine_type,
        capacity_type=capacity_type,
    )
    return Supply(pool=pool, cpus=cpus, memory_gib=cpus * 4.0, price_usd_hour=usd_hour, **more)


def usual_supplies(region: str = REGION) -> list[Supply]:
    """Three types in two zones, spot and on demand; an ARM type too."""
    return [
        supply(
            name,
            f"{region}{letter}",
            kind,
            cpus=cpus,
            usd_hour=usd * (1.0 if kind is CapacityType.SPOT else 2.5),
            **more,
        )
        for name, cpus, usd, more in (
            ("m7i.large", 2, 0.04, {}),
            ("m7i.xlarge", 4, 0.08, {}),
            ("c7i.large", 2, 0.036, {}),
            ("m7g.large", 2, 0.03, {"arch": "arm64"}),
        )
        for letter in "ab"
        for kind in CapacityType
    ]


def make_site(
    supplies: Iterable[Supply] | None = None,
    *,
    times: CloudTimes = QUICK,
    faults: CloudFaults | None = None,
    limits: AwsLimits | None = None,
    regions: Iterable[str] = (REGION,),
) -> AwsSite:
    """An account with networks, images, a queue per region and one key that may do anything."""
    if supplies is None:
        supplies = [one for region in regions for one in usual_supplies(region)]
    account = CloudAccount(Capacity.of(supplies), times=times, faults=faults)
    site = AwsSite(CloudDriver(account), limits=limits)
    for region in regions:
        for letter in "ab":
            site.setup.add_subnet(region, Subnet(id=subnet(letter), zone=f"{region}{letter}", vpc_id="vpc-0a1b2c3d"))
        site.setup.add_group(region, GROUP, vpc_id="vpc-0a1b2c3d")
        site.setup.add_image(region, Image(id=AMI))
        site.setup.add_image(region, Image(id=ARM_AMI, arch="arm64"))
        site.add_queue(region, "notices")
    site.access.grant(ACCESS_KEY, SECRET)
    return site


def subnet(letter: str) -> str:
    return f"subnet-0000000000000000{letter}"


@dataclass(slots=True, kw_only=True)
class ServedAws:
    """A face, its address and clients. Every exchange is held against botocore's models."""

    site: AwsSite
    face: AwsFace
    url: str
    law: LawfulAws
    clients: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def client(
        self,
        service: str,
        *,
        region: str = REGION,
        access_key: str = ACCESS_KEY,
        secret: str = SECRET,
        token: str = "",
        read_timeout_s: float = 30.0,
    ) -> Any:
        """A real boto3 client without retries."""
        name = (service, region, access_key, secret, token, str(read_timeout_s))
        if name not in self.clients:
            self.clients[name] = sdk().client(
                service,
                region_name=region,
                endpoint_url=self.url,
                aws_access_key_id=access_key,
                aws_secret_access_key=secret,
                aws_session_token=token or None,
                config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=read_timeout_s),
            )
        return self.clients[name]

    async def ask(self, service: str, operation: str, *, key: dict[str, str] | None = None, **parameters: Any) -> Any:
        """One call of a client's method, in a thread."""
        return await in_thread(getattr(self.client(service, **(key or {})), operation), **parameters)

    async def ec2(self, operation: str, **parameters: Any) -> Any:
        return await self.ask("ec2", operation, **parameters)

    async def template(self, name: str = "runners", **changed: Any) -> str:
        """A launch template as the adapter makes it; its id."""
        made = await self.ec2(
            "create_launch_template", LaunchTemplateName=name, LaunchTemplateData=template_document(**changed)
        )
        return str(made["LaunchTemplate"]["LaunchTemplateId"])

    async def fleet(self, template_id: str, *overrides: dict[str, Any], count: int = 1, **changed: Any) -> Any:
        """An instant fleet's answer."""
        return await self.ec2("create_fleet", **fleet_request(template_id, *overrides, count=count, **changed))

    async def machines(self, **parameters: Any) -> list[dict[str, Any]]:
        """Every instance, over all pages."""
        found: list[dict[str, Any]] = []
        token = None
        while True:
            more = {"NextToken": token} if token else {}
            answer = await self.ec2("describe_instances", **parameters, **more)
            found += [one for reservation in answer["Reservations"] for one in reservation["Instances"]]
            token = answer.get("NextToken")
            if not token:
                return found

    async def messages(self, *, wait_s: int = 1) -> list[dict[str, Any]]:
        """Up to ten messages of the queue; they are hidden then."""
        answer = await self.ask(
            "sqs", "receive_message", QueueUrl=self.queue_url(), MaxNumberOfMessages=10, WaitTimeSeconds=wait_s
        )
        return list(answer.get("Messages", []))

    def queue_url(self, region: str = REGION) -> str:
        return self.site.sqs.url(self.site.sqs.queues[region, "notices"])


@functools.cache
def sdk() -> boto3.Session:
    """One session for all tests: it keeps the service models that it has read."""
    return boto3.Session()


async def in_thread(call: Callable[..., _R], **parameters: Any) -> _R:
    return await asyncio.to_thread(call, **parameters)


@contextlib.asynccontextmanager
async def served_aws(site: AwsSite | None = None) -> AsyncIterator[ServedAws]:
    """Serves an account, and asserts at the end that every exchange was lawful."""
    site = site or make_site()
    law = LawfulAws()
    face = AwsFace(site, middlewares=[law.middleware])
    url = await face.start()
    served = ServedAws(site=site, face=face, url=url, law=law)
    try:
        yield served
    finally:
        for client in served.clients.values():
            client.close()
        await face.aclose()
        site.driver.close()
    assert not law.violations, law.violations[:3]


def template_document(**changed: Any) -> dict[str, Any]:
    """LaunchTemplateData as the adapter makes it."""
    document: dict[str, Any] = {
        "ImageId": AMI,
        "UserData": base64.b64encode(b"#!/bin/sh\nexit 0\n").decode(),
        "SecurityGroupIds": [GROUP],
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
            "HttpEndpoint": "enabled",
            "InstanceMetadataTags": "enabled",
        },
        "BlockDeviceMappings": [
            {
                "DeviceName": "/dev/xvda",
                "Ebs": {"VolumeSize": 40, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True},
            }
        ],
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": [{"Key": "autoscaler-deployment", "Value": "ci"}]}
            for kind in ("instance", "volume", "network-interface")
        ],
    }
    return document | changed


def override(machine_type: str = "m7i.large", letter: str = "a", **more: Any) -> dict[str, Any]:
    return {"InstanceType": machine_type, "SubnetId": subnet(letter), "AvailabilityZone": f"us-east-1{letter}", **more}


def fleet_request(template_id: str, *overrides: dict[str, Any], count: int = 1, **changed: Any) -> dict[str, Any]:
    """CreateFleet's parameters as the adapter sends them: spot, price-capacity-optimized."""
    request: dict[str, Any] = {
        "Type": "instant",
        "SpotOptions": {"AllocationStrategy": "price-capacity-optimized"},
        "LaunchTemplateConfigs": [
            {
                "LaunchTemplateSpecification": {"LaunchTemplateId": template_id, "Version": "1"},
                "Overrides": list(overrides) or [override()],
            }
        ],
        "TargetCapacitySpecification": {"TotalTargetCapacity": count, "DefaultTargetCapacityType": "spot"},
        "TagSpecifications": [
            {"ResourceType": "fleet", "Tags": [{"Key": "autoscaler-deployment", "Value": "ci"}]},
            {"ResourceType": "instance", "Tags": [{"Key": "autoscaler-batch", "Value": "b1"}]},
        ],
    }
    return request | changed


def ids_of(answer: dict[str, Any]) -> list[str]:
    """Every instance id of a fleet's answer."""
    return [id_ for group in answer["Instances"] for id_ in group["InstanceIds"]]


def errors_of(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """(machine type, code) of each error of a fleet's answer."""
    return [
        (error["LaunchTemplateAndOverrides"]["Overrides"]["InstanceType"], error["ErrorCode"])
        for error in answer["Errors"]
    ]
