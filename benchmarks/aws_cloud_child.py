"""Child: the sandbox's AWS on the network, at AWS's documented rates; filled, reclaimed from and counted on request."""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import boto3
from aiohttp import web
from botocore.config import Config

from autoscaler.sandbox.aws_face import AwsFace
from autoscaler.sandbox.aws_setup import Image, Subnet
from autoscaler.sandbox.aws_site import AwsSite
from autoscaler.sandbox.cloud_account import CloudAccount
from autoscaler.sandbox.cloud_capacity import Capacity
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.spi import MachineState
from benchmarks.clouds import POOL_LINES, CallLog, supplies, times
from providers.aws_tags import BATCH, DEPLOYMENT, POOL

NAME, DEPLOYED_AS, POOL_NAME = "aws", "bench", "linux"
ACCOUNT, REGION = "123456789012", "us-east-1"
ZONES = {f"{REGION}{letter}": REGION for letter in "abc"}
MACHINE_TYPES = ("m7i.xlarge", "m7a.xlarge", "m6i.xlarge")
AMI, GROUP, VPC = "ami-0b3a0000000000001", "sg-0b3a0000000000001", "vpc-0b3a0000000000001"
ACCESS_KEY = "AKIABENCHBENCHBENCHB"
BATCH_SIZE = 100


def subnet_of(zone: str) -> str:
    return f"subnet-0b3a00000000000{list(ZONES).index(zone)}"


def client(service: str, url: str, secret: str) -> Any:
    """A plain boto3 client of this account, without retries."""
    return boto3.Session().client(
        service,
        region_name=REGION,
        endpoint_url=url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=60),
    )


def make_template(ec2: Any) -> str:
    """A launch template as long as the adapter's; its id."""
    document = {
        "ImageId": AMI,
        "UserData": base64.b64encode(b"#!/bin/sh\n" + b"#" * 8_000).decode(),
        "SecurityGroupIds": [GROUP],
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled"},
        "BlockDeviceMappings": [
            {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 40, "VolumeType": "gp3", "Encrypted": True}}
        ],
    }
    made = ec2.create_launch_template(LaunchTemplateName=secrets.token_hex(8), LaunchTemplateData=document)
    return str(made["LaunchTemplate"]["LaunchTemplateId"])


def launch(ec2: Any, template: str, count: int) -> list[str]:
    """One instant fleet of spot machines over all capacity pools; the ids."""
    token = f"b-{secrets.token_hex(6)}"
    tags = {DEPLOYMENT: DEPLOYED_AS, POOL: POOL_NAME, BATCH: token, "Name": f"autoscaler-{DEPLOYED_AS}-{POOL_NAME}"}
    answer = ec2.create_fleet(
        Type="instant",
        ClientToken=token,
        SpotOptions={"AllocationStrategy": "price-capacity-optimized"},
        LaunchTemplateConfigs=[
            {
                "LaunchTemplateSpecification": {"LaunchTemplateId": template, "Version": "1"},
                "Overrides": [
                    {"InstanceType": machine_type, "SubnetId": subnet_of(zone)}
                    for machine_type in MACHINE_TYPES
                    for zone in ZONES
                ],
            }
        ],
        TargetCapacitySpecification={"TotalTargetCapacity": count, "DefaultTargetCapacityType": "spot"},
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
        ],
    )
    return [id_ for group in answer["Instances"] for id_ in group["InstanceIds"]]


async def _name_of(request: web.Request) -> tuple[str, int]:
    if target := request.headers.get("X-Amz-Target"):
        return target.rpartition(".")[2], 0
    fields = parse_qs((await request.read()).decode())
    machines = fields.get("TargetCapacitySpecification.TotalTargetCapacity", ["0"])[0]
    return fields.get("Action", [""])[0], int(machines)


class AwsCloud:
    """What the benchmark asks of it."""

    def __init__(self, site: AwsSite, secret: str) -> None:
        self._site = site
        self._secret = secret
        self._log = CallLog(_name_of)
        self.counted = self._log.counted
        self.face = AwsFace(site, middlewares=[self._log.middleware])
        self.url = ""

    async def fill(self, *, count: int) -> None:
        """Launch so many machines by fleets, past all limits, and let them boot; nobody has heard of it later."""
        self._site.limits.are_on = False
        await asyncio.to_thread(self._fill, count)
        self._site.limits.are_on = True
        while any(one.state is MachineState.PENDING for one in self._site.cloud.machines.values()):
            await asyncio.sleep(0.2)
        for queue in self._site.sqs.queues.values():
            queue.messages.clear()
        self._log.calls.clear()

    def _fill(self, count: int) -> None:
        ec2 = client("ec2", self.url, self._secret)
        template = make_template(ec2)
        for first in range(0, count, BATCH_SIZE):
            launch(ec2, template, min(BATCH_SIZE, count - first))
        ec2.close()

    async def machines(self) -> list[dict[str, Any]]:
        """Those that are up."""
        return [
            {
                "id": one.id,
                "token": one.tags[BATCH],
                "zone": one.capacity_pool.zone,
                "machine_type": one.capacity_pool.machine_type,
                "launched_at": one.launched_at,
            }
            for one in self._site.cloud.machines.values()
            if one.state in (MachineState.PENDING, MachineState.RUNNING)
        ]

    async def reclaim(self, *, ids: list[str], within_s: float, notice_s: float) -> dict[str, float]:
        """Take machines, one after the other; when each notice was sent. Every event comes twice."""
        self._site.faults.doubled = 1.0
        begun, sent = time.time(), {}
        for number, id_ in enumerate(ids):
            await asyncio.sleep(max(0.0, begun + within_s * number / len(ids) - time.time()))
            sent[id_] = time.time()
            self._site.reclaim(id_, notice_s=notice_s)
        return sent

    async def queued(self) -> int:
        """Messages that nobody deleted yet."""
        return sum(len(queue.messages) for queue in self._site.sqs.queues.values())


async def start(**_: Any) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
    driver = CloudDriver(
        CloudAccount(Capacity.of(supplies(NAME, MACHINE_TYPES, ZONES)), times=times(), account=ACCOUNT)
    )
    site, secret = AwsSite(driver), secrets.token_urlsafe(30)
    for zone in ZONES:
        site.setup.add_subnet(REGION, Subnet(id=subnet_of(zone), zone=zone, vpc_id=VPC))
    site.setup.add_group(REGION, GROUP, vpc_id=VPC)
    site.setup.add_image(REGION, Image(id=AMI))
    queue = site.add_queue(REGION, "notices")
    site.access.grant(ACCESS_KEY, secret)
    cloud = AwsCloud(site, secret)
    cloud.url = await cloud.face.start()

    async def close() -> None:
        await cloud.face.aclose()
        driver.close()

    ready = {
        "url": cloud.url,
        "secret": secret,
        "queue_url": site.sqs.url(queue),
        "cloud": {"provider": NAME, "sections": _sections(cloud.url, site.sqs.url(queue)), "pool_lines": POOL_LINES},
        "environ": {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_EC2_METADATA_DISABLED": "true",
        },
    }
    handlers = {name: getattr(cloud, name) for name in ("fill", "machines", "reclaim", "queued", "counted")}
    return ready, handlers, close


def _sections(url: str, queue_url: str) -> str:
    return f"""
[[provider]]
name = "{NAME}"
kind = "aws"
account = "{ACCOUNT}"
regions = ["{REGION}"]
endpoint_url = "{url}"
networks = {{ {REGION} = {{ subnets = {json.dumps([subnet_of(zone) for zone in ZONES])}, security_groups = ["{GROUP}"] }} }}
notices = {{ {REGION} = "{queue_url}" }}

[[image]]
name = "runner"
[image.references.aws]
ami = "{AMI}"
github_runner = "/opt/actions-runner"
gitlab_runner = "/usr/bin/gitlab-runner"
"""  # noqa: E501 - a table of TOML is one line
