"""The demo on the sandbox's AWS: the real adapter with boto3, machines that boot by their user data."""

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoscaler.sandbox.aws_face import AwsFace
from autoscaler.sandbox.aws_setup import Image, Subnet
from autoscaler.sandbox.aws_site import AwsSite
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_identity import AwsNotary
from autoscaler.sandbox.demo_cloud import IMAGE, CloudConfig, CloudFaultShares
from autoscaler.sandbox.demo_cloud_world import (
    SHOWN_AS,
    DemoWorld,
    Make,
    account_of,
    hosts_of,
    size_of,
    supplies_of,
    types_of,
)
from autoscaler.sandbox.demo_pools import DemoPool
from autoscaler.sandbox.imds_face import ImdsSites
from autoscaler.spi import ProviderId

NAME = "aws"
ACCOUNT = "123456789012"
REGION = "us-east-1"
ZONES = {f"{REGION}{letter}": REGION for letter in "abc"}
MAKES = {
    "m7i.xlarge": ("m7i.xlarge", "m7a.xlarge", "m6i.xlarge"),
    "m7i.2xlarge": ("m7i.2xlarge", "m7a.2xlarge", "m6i.2xlarge"),
    "r7i.xlarge": ("r7i.xlarge", "r7a.xlarge", "r6i.xlarge"),
}
_AMI = "ami-0d3a0000000000001"
_GROUP = "sg-0d3a0000000000001"
_VPC = "vpc-0d3a0000000000001"
_SUBNET = "subnet-0d3a00000000000"
_ACCESS_KEY = "AKIADEMODEMODEMODEMO"


class AwsCloud:
    """See `demo_cloud.DemoCloud`."""

    kind = "aws"

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._world: DemoWorld | None = None
        self._face: AwsFace | None = None
        self._notary = AwsNotary((REGION,))

    async def start(
        self, folder: Path, pools: Sequence[DemoPool], *, faults: CloudFaultShares, seed: int
    ) -> CloudConfig:
        makes = [Make(name=name, of=one) for one in types_of(pools) for name in MAKES[one.name]]
        supplies = supplies_of(NAME, makes, ZONES)
        driver = CloudDriver(account_of(supplies, faults=faults, seed=seed, account=ACCOUNT))
        site = AwsSite(driver)
        for number, zone in enumerate(ZONES):
            site.setup.add_subnet(REGION, Subnet(id=f"{_SUBNET}{number}", zone=zone, vpc_id=_VPC))
        site.setup.add_group(REGION, _GROUP, vpc_id=_VPC)
        site.setup.add_image(REGION, Image(id=_AMI))
        queue = site.add_queue(REGION, f"autoscaler-{self._deployment}")
        secret = secrets.token_urlsafe(30)
        site.access.grant(_ACCESS_KEY, secret)
        self._face = AwsFace(site)
        url = await self._face.start()
        hosts = hosts_of(driver, folder, name=NAME, metadata=ImdsSites(driver, self._notary))
        self._world = DemoWorld(driver=driver, hosts=hosts, supplies=supplies)
        anchors = self._notary.write_anchors(folder)
        return CloudConfig(
            provider=NAME,
            sections=_sections(url, queue_url=site.sqs.url(queue), anchors=anchors),
            environ={
                "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": secret,
                "AWS_EC2_METADATA_DISABLED": "true",
            },
        )

    def shape_of(self, pool: DemoPool) -> str:
        return size_of(pool)

    def capacity_pools(self, pools: Sequence[DemoPool]) -> list[dict[str, object]]:
        return self._world.described() if self._world is not None else []

    async def reclaim(self, machine: ProviderId, *, notice_s: float) -> None:
        if self._face is not None:
            self._face.site.reclaim(machine, notice_s=notice_s)

    def end_faults(self) -> None:
        if self._world is not None:
            self._world.end_faults()

    async def aclose(self) -> None:
        if self._world is not None:
            await self._world.aclose()
        if self._face is not None:
            await self._face.aclose()


def _sections(url: str, *, queue_url: str, anchors: Mapping[str, Path]) -> str:
    subnets = [f"{_SUBNET}{number}" for number in range(len(ZONES))]
    return f"""[[provider]]
name = "{NAME}"
kind = "aws"
account = "{ACCOUNT}"
regions = ["{REGION}"]
endpoint_url = "{url}"
networks = {{ {REGION} = {{ subnets = {json.dumps(subnets)}, security_groups = ["{_GROUP}"] }} }}
notices = {{ {REGION} = "{queue_url}" }}
trust_anchors = {{ {REGION} = {json.dumps(str(anchors[REGION]))} }}

[[image]]
name = "{IMAGE}"
[image.references.aws]
ami = "{_AMI}"
github_runner = "{SHOWN_AS["github_runner"]}"
gitlab_runner = "{SHOWN_AS["gitlab_runner"]}"
"""
