"""Images on AWS: by id, or by the parameter that holds one; and the name of their root disk.

EC2 resolves a parameter itself at each launch. We look through it as well: a disk's size and encryption are given for
the root disk's name, and a parameter that leads nowhere is a fault of the configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from autoscaler.spi import Clock, InvalidRequest
from providers.aws_clients import AwsClients
from providers.aws_errors import Context

_ROOT = "/dev/xvda"
_PARAMETER = "resolve:ssm:"
_FRESH = timedelta(hours=1)
"""A parameter may lead to another image by then; an id never does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootDisk:
    """An image's root disk; `size_gib` is the least that it can have, 0 where EC2 does not say."""

    name: str
    size_gib: int


def image_of(references: Mapping[str, str], region: str) -> str:
    """`ami`, or the region's own. Raises InvalidRequest."""
    image = references.get(f"ami.{region}") or references.get("ami", "")
    if not image.startswith(("ami-", _PARAMETER)):
        raise InvalidRequest(
            f'the image has no reference for {region}: write ami = "ami-..." or "resolve:ssm:/path", '
            f'or "ami.{region}" for this region alone'
        )
    return image


class AwsImages:
    def __init__(self, clients: AwsClients, clock: Clock) -> None:
        self._clients = clients
        self._clock = clock
        self._roots: dict[tuple[str, str], tuple[RootDisk, datetime]] = {}
        """The root disk by (region, reference), and until when that is believed."""

    async def root(self, image: str, region: str) -> RootDisk:
        """The image's root disk. Raises InvalidRequest where there is no such image."""
        key, now = (region, image), self._clock.now()
        known = self._roots.get(key)
        if known is not None and now < known[1]:
            return known[0]
        root = _root_of(await self.describe(image, region))
        until = now + _FRESH if image.startswith(_PARAMETER) else datetime.max.replace(tzinfo=UTC)
        self._roots[key] = root, until
        return root

    async def describe(self, image: str, region: str) -> Mapping[str, Any]:
        """In EC2's words. Raises InvalidRequest where there is no such image."""
        id_ = await self._parameter(image, region) if image.startswith(_PARAMETER) else image
        context = Context(doing=f"look at {id_}", permission="ec2:DescribeImages", region=region)
        found = await self._clients.read(
            lambda sdk: sdk.client("ec2", region).describe_images(ImageIds=[id_])["Images"], context
        )
        if not found:
            raise InvalidRequest(f"{region} has no image {id_}: correct image.references.*.ami")
        described: Mapping[str, Any] = found[0]
        return described

    async def _parameter(self, image: str, region: str) -> str:
        """The id that a parameter holds."""
        name = image.removeprefix(_PARAMETER)
        context = Context(doing=f"read the parameter {name}", permission="ssm:GetParameters", region=region)
        found = await self._clients.read(
            lambda sdk: sdk.client("ssm", region).get_parameters(Names=[name])["Parameters"], context
        )
        id_ = str(found[0]["Value"]) if found else ""
        if not id_.startswith("ami-"):
            what = "holds no image's id" if found else "does not exist"
            raise InvalidRequest(f"{region}: the parameter {name} {what}: correct image.references.*.ami")
        return id_


def _root_of(image: Mapping[str, Any]) -> RootDisk:
    name = str(image.get("RootDeviceName") or _ROOT)
    disks = {one.get("DeviceName"): one.get("Ebs", {}) for one in image.get("BlockDeviceMappings", ())}
    return RootDisk(name=name, size_gib=int(disks.get(name, {}).get("VolumeSize", 0)))
