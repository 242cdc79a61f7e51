"""Launch templates: one for each content, made once, named by a digest of it.

The user data is the same for all machines of a pool, so templates are few. Version 1 is pinned: whatever somebody adds
to a template later is not used. One that is gone is made anew, once per launch. Those of ours that nobody used for a
day, in this process's life, are deleted.
"""

import asyncio
import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from autoscaler.spi import Clock, InvalidRequest, LaunchBatch, ProviderError
from providers.aws_clients import AwsClients, Sdk, pages
from providers.aws_errors import Context, NotFound, TemplateGone
from providers.aws_images import AwsImages, RootDisk, image_of
from providers.aws_settings import AwsSettings
from providers.aws_tags import DEPLOYMENT, specifications
from providers.boot_script import boot_script

_log = structlog.get_logger(__name__)

USER_DATA_LIMIT = 16 * 1024
VERSION = "1"
_UNUSED = timedelta(days=1)
_TAKEN = "InvalidLaunchTemplateName.AlreadyExistsException"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    name: str
    content: Mapping[str, Any]


class AwsTemplates:
    def __init__(
        self, settings: AwsSettings, clients: AwsClients, images: AwsImages, clock: Clock, *, deployment: str
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._images = images
        self._clock = clock
        self._deployment = deployment
        self._made: dict[tuple[str, str], datetime] = {}
        """When each template that we know to exist was used last, by (region, name)."""
        self._making = asyncio.Lock()

    async def name_for(self, batch: LaunchBatch, region: str, *, is_spot: bool) -> str:
        """The name of a template that exists, for the machines of a batch in a region."""
        template = await self.template(batch, region, is_spot=is_spot)
        async with self._making:
            if (region, template.name) not in self._made:
                await self._make(template, region)
            self._made[region, template.name] = self._clock.now()
        return template.name

    async def template(self, batch: LaunchBatch, region: str, *, is_spot: bool) -> Template:
        """Raises InvalidRequest for an image without a reference and for user data that is too long."""
        image = image_of(batch.image, region)
        user_data = boot_script(batch.user_data, evidence="aws").encode()
        if len(user_data) > USER_DATA_LIMIT:
            raise InvalidRequest(
                f"the user data is {len(user_data)} bytes, EC2 takes {USER_DATA_LIMIT}: "
                "shorten the certificates of autoscaler.tls"
            )
        root = await self._images.root(image, region)
        content = self._content(image, user_data, region, root=root, disk_gib=batch.disk_gib)
        if is_spot:
            # A fleet request cannot tag spot requests, a template can: their listing goes by this tag. EC2 fails
            # launches of on-demand machines from a template that tags what they do not have.
            tags = [{"Key": DEPLOYMENT, "Value": self._deployment}]
            content["TagSpecifications"] = specifications(tags, ["spot-instances-request"])
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        return Template(name=f"autoscaler-{self._deployment}-{digest}", content=content)

    def forget(self, region: str, name: str) -> None:
        """It turned out not to exist."""
        self._made.pop((region, name), None)

    async def clean(self) -> None:
        """Delete templates of ours that nobody used for a day. Failures are for next time."""
        for region in self._settings.regions:
            try:
                await self._clean(region)
            except ProviderError as error:
                _log.info("templates_not_cleaned", provider=self._settings.name, region=region, error=str(error))

    def _content(self, image: str, user_data: bytes, region: str, *, root: RootDisk, disk_gib: float) -> dict[str, Any]:
        settings = self._settings
        disk: dict[str, Any] = {"Encrypted": True, "DeleteOnTermination": True, "VolumeType": "gp3"}
        if settings.kms_key:
            disk["KmsKeyId"] = settings.kms_key
        content: dict[str, Any] = {
            "ImageId": image,
            "UserData": base64.b64encode(user_data).decode(),
            "SecurityGroupIds": list(settings.networks[region].security_groups),
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {
                "HttpTokens": "required",
                "HttpEndpoint": "enabled",
                "HttpPutResponseHopLimit": settings.metadata_hops,
                "InstanceMetadataTags": "enabled",
            },
        }
        if disk_gib:
            disk["VolumeSize"] = max(root.size_gib, math.ceil(disk_gib))  # EC2 refuses less than the image holds
        content["BlockDeviceMappings"] = [{"DeviceName": root.name, "Ebs": disk}]
        if settings.instance_profile:
            content["IamInstanceProfile"] = {"Name": settings.instance_profile}
        return content

    async def _make(self, template: Template, region: str) -> None:
        context = Context(
            doing=f"make launch template {template.name}",
            permission="ec2:CreateLaunchTemplate and ec2:CreateTags",
            region=region,
            is_write=True,
            family="changes",
        )
        tags = [{"Key": DEPLOYMENT, "Value": self._deployment}, {"Key": "Name", "Value": template.name}]

        def create(sdk: Sdk) -> None:
            ec2 = sdk.client("ec2", region)
            try:
                ec2.create_launch_template(
                    LaunchTemplateName=template.name,
                    LaunchTemplateData=template.content,
                    TagSpecifications=specifications(tags, ["launch-template"]),
                )  # no client token: after a deletion behind our back EC2 would answer as the first time, and make none
            except ec2.exceptions.ClientError as error:
                if error.response["Error"]["Code"] != _TAKEN:
                    raise

        await self._clients.write(create, context)
        _log.info("launch_template_made", provider=self._settings.name, region=region, template=template.name)

    async def _clean(self, region: str) -> None:
        filters = [{"Name": f"tag:{DEPLOYMENT}", "Values": [self._deployment]}]
        context = Context(doing="list launch templates", permission="ec2:DescribeLaunchTemplates", region=region)

        def listed(sdk: Sdk) -> list[tuple[str, str, datetime]]:
            method = sdk.client("ec2", region).describe_launch_templates
            return [
                (one["LaunchTemplateId"], one["LaunchTemplateName"], one["CreateTime"])
                for one in pages(method, "LaunchTemplates", Filters=filters, MaxResults=200)
            ]

        now = self._clock.now()
        for id_, name, made_at in await self._clients.read(listed, context, can_wait=True):
            if max(made_at, self._made.get((region, name), made_at)) + _UNUSED < now:
                await self._delete(id_, region)
                self._made.pop((region, name), None)

    async def _delete(self, id_: str, region: str) -> None:
        context = Context(
            doing=f"delete launch template {id_}",
            permission="ec2:DeleteLaunchTemplate",
            region=region,
            is_write=True,
            family="changes",
        )
        try:
            await self._clients.write(
                lambda sdk: sdk.client("ec2", region).delete_launch_template(LaunchTemplateId=id_), context
            )
        except (TemplateGone, NotFound):
            return
