"""The demo on the sandbox's AWS: the real adapter with boto3, machines that boot by their user data."""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoscaler.sandbox.aws_access import anything
from autoscaler.sandbox.aws_face import AwsFace
from autoscaler.sandbox.aws_setup import Image, Subnet
from autoscaler.sandbox.aws_site import AwsSite
from autoscaler.sandbox.aws_sqs import Queue
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_identity import AwsNotary
from autoscaler.sandbox.demo_cloud import IMAGE, CloudConfig, CloudFaultShares, Pace
from autoscaler.sandbox.demo_cloud_world import (
    SHOWN_AS,
    DemoWorld,
    Make,
    account_of,
    hosts_of,
    own_world,
    places_of,
    size_of,
    types_of,
)
from autoscaler.sandbox.demo_pools import DemoPool
from autoscaler.sandbox.demo_world_file import CloudWorld, shape_in
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
_SUBNET = "subnet-0d3a{:013x}"
_ACCESS_KEY = "AKIADEMODEMODEMODEMO"
_FIS_ROLE = f"arn:aws:iam::{ACCOUNT}:role/autoscaler-demo-fis"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Region:
    subnets: list[str]
    queue: Queue


class AwsCloud:
    """See `demo_cloud.DemoCloud`."""

    kind = "aws"

    def __init__(self, deployment: str, say: Callable[[str], None], recorded: CloudWorld | None = None) -> None:
        self._deployment = deployment
        self._say = say
        self._recorded = recorded
        self._world: DemoWorld | None = None
        self._face: AwsFace | None = None
        self.pace = recorded.pace if recorded is not None else Pace()

    async def start(
        self, folder: Path, pools: Sequence[DemoPool], *, faults: CloudFaultShares, seed: int
    ) -> CloudConfig:
        world = self._recorded or own_world(NAME, _makes(pools), ZONES)
        driver = CloudDriver(account_of(world, faults=faults, seed=seed, account=ACCOUNT))
        site = AwsSite(driver)
        regions = {region: self._set_up(site, region, zones) for region, zones in places_of(world.supplies).items()}
        secret = secrets.token_urlsafe(30)
        site.access.grant(_ACCESS_KEY, secret)
        site.access.roles[_FIS_ROLE] = anything
        self._face = AwsFace(site)
        url = await self._face.start()
        notary = AwsNotary(tuple(regions))
        hosts = hosts_of(driver, folder, name=NAME, metadata=ImdsSites(driver, notary))
        self._world = DemoWorld(driver=driver, hosts=hosts, world=world)
        return CloudConfig(
            provider=NAME,
            sections=_sections(site, url, regions, anchors=notary.write_anchors(folder)),
            environ={
                "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": secret,
                "AWS_EC2_METADATA_DISABLED": "true",
            },
        )

    def _set_up(self, site: AwsSite, region: str, zones: Sequence[str]) -> "_Region":
        """What a person has to make in a region before machines can run in it."""
        taken = len(site.setup.subnets_by_id)
        subnets = [Subnet(id=_SUBNET.format(taken + n), zone=zone, vpc_id=_VPC) for n, zone in enumerate(zones)]
        for subnet in subnets:
            site.setup.add_subnet(region, subnet)
        site.setup.add_group(region, _GROUP, vpc_id=_VPC)
        site.setup.add_image(region, Image(id=_AMI))
        queue = site.add_queue(region, f"autoscaler-{self._deployment}")
        return _Region(subnets=[one.id for one in subnets], queue=queue)

    def shape_of(self, pool: DemoPool) -> str:
        return shape_in(self._recorded, pool, self._say) if self._recorded is not None else size_of(pool)

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


def _makes(pools: Sequence[DemoPool]) -> list[Make]:
    return [Make(name=name, of=one) for one in types_of(pools) for name in MAKES[one.name]]


def _sections(site: AwsSite, url: str, regions: Mapping[str, _Region], *, anchors: Mapping[str, Path]) -> str:
    networks = ", ".join(
        f'{name} = {{ subnets = {json.dumps(one.subnets)}, security_groups = ["{_GROUP}"] }}'
        for name, one in regions.items()
    )
    queues = ", ".join(f"{name} = {json.dumps(site.sqs.url(one.queue))}" for name, one in regions.items())
    trusted = ", ".join(f"{name} = {json.dumps(str(path))}" for name, path in anchors.items())
    return f"""[[provider]]
name = "{NAME}"
kind = "aws"
account = "{ACCOUNT}"
regions = {json.dumps(list(regions))}
endpoint_url = "{url}"
networks = {{ {networks} }}
notices = {{ {queues} }}
trust_anchors = {{ {trusted} }}
fis_role = "{_FIS_ROLE}"

[[image]]
name = "{IMAGE}"
[image.references.aws]
ami = "{_AMI}"
github_runner = "{SHOWN_AS["github_runner"]}"
gitlab_runner = "{SHOWN_AS["gitlab_runner"]}"
"""
