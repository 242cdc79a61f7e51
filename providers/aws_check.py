"""Look for every fault of the configuration that AWS can tell. Dry runs and reads only; raises nothing.

Order: who we are (account, clock), then for each region its subnets and groups, machine types and prices, images,
quotas, permissions to launch and to end, the notice queue; at last the certificates.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from autoscaler.spi import Clock, Finding, InvalidRequest, ProviderError, Shape, Unauthorized, Verdict
from providers.aws_catalog import AwsCatalog
from providers.aws_clients import AwsClients, Sdk
from providers.aws_errors import Context, NotFound
from providers.aws_identity import AwsIdentity
from providers.aws_images import AwsImages, image_of
from providers.aws_queue import strangers_may_send
from providers.aws_settings import AwsSettings
from providers.aws_tags import DEPLOYMENT, specifications
from providers.aws_template import VERSION

_SKEW = timedelta(minutes=4)
"""AWS refuses requests that are five minutes off."""
_QUOTAS = (
    ("L-34B43A08", "spot", "All Standard Spot Instance Requests"),
    ("L-1216C47A", "on_demand", "Running On-Demand Standard instances"),
)
_DRY = "DryRunOperation"
_NO_IMAGE = "ami-00000000000000000"
_GRANT = "Grant what deploy/aws/controller-policy.json lists, or correct the role"


class AwsCheck:
    def __init__(
        self,
        settings: AwsSettings,
        clients: AwsClients,
        catalog: AwsCatalog,
        images: AwsImages,
        identity: AwsIdentity,
        clock: Clock,
        *,
        deployment: str,
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._catalog = catalog
        self._images = images
        self._identity = identity
        self._clock = clock
        self._deployment = deployment

    async def findings(self, images: Mapping[str, Mapping[str, str]]) -> list[Finding]:
        """Stops early where nobody can sign in: all else would say the same."""
        found = await self._guarded("credentials", self._sign_in)
        if any(one.verdict is Verdict.REFUSED for one in found):
            return found
        for region in self._settings.regions:
            looks: list[tuple[str, Callable[[], Awaitable[list[Finding]]]]] = [
                (f"networks.{region}.subnets", partial(self._subnets, region)),
                (f"networks.{region}.security_groups", partial(self._groups, region)),
                *((f"image {name}", partial(self._image, region, name, one)) for name, one in images.items()),
                ("regions", partial(self._quotas, region)),
                ("credentials", partial(self._permissions, region)),
                ("notices", partial(self._queue, region)),
            ]
            for key, look in looks:
                found += await self._guarded(key, look)
        found += await self._guarded("prices", self._offered)
        if self._settings.instance_profile:
            found += await self._guarded("instance_profile", self._profile)
        return [*found, *self._identity.problems()]

    async def _guarded(self, key: str, look: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
        try:
            return await look()
        except Unauthorized as error:
            return [_refused(key, str(error), _GRANT)]
        except InvalidRequest as error:
            return [_refused(key, str(error), f"Correct {key}")]
        except ProviderError as error:
            return [_warning(key, f"could not be looked at: {error}", "Try again; see what AWS answered")]
        except Exception as error:
            return [_warning(key, f"could not be looked at: {type(error).__name__}", "Try again, and report this")]

    async def _sign_in(self) -> list[Finding]:
        region, account = self._settings.regions[0], self._settings.account

        dated: list[datetime] = []

        def ask(sdk: Sdk) -> tuple[str, str]:
            try:
                answer = sdk.client("sts", region).get_caller_identity()
            except ClientError as error:
                dated.extend(_date_of(error.response))
                raise
            dated.extend(_date_of(answer))
            return answer["Account"], answer["Arn"]

        context = Context(doing="sign in", permission="sts:GetCallerIdentity", region=region)
        try:
            actual, arn = await self._clients.read(ask, context)
        except Unauthorized:
            if skewed := self._skewed(dated):
                return skewed  # and not the credentials, whatever AWS calls it
            raise
        if actual != account:
            message = f"the credentials are of account {actual}, the configuration says {account}"
            return [_refused("account", message, "Correct account, or give the provider other credentials")]
        found = [Finding(verdict=Verdict.OK, key="credentials", message=f"signed in as {arn}")]
        return [*found, *self._skewed(dated)]

    def _skewed(self, dated: Sequence[datetime]) -> list[Finding]:
        """Whether our clock is off what AWS dated its answer with."""
        found = []
        for said in dated:
            off_s = abs((said - self._clock.now()).total_seconds())
            if off_s > _SKEW.total_seconds():
                message = f"this host's clock is {off_s:.0f} s off AWS's"
                remedy = "Synchronise the clock: identity checks and signatures need it"
                found.append(_refused("credentials", message, remedy))
        return found

    async def _subnets(self, region: str) -> list[Finding]:
        key = f"networks.{region}.subnets"
        wanted = list(self._settings.networks[region].subnets)
        context = Context(doing=f"look at {', '.join(wanted)}", permission="ec2:DescribeSubnets", region=region)
        answer = await self._clients.read(
            lambda sdk: sdk.client("ec2", region).describe_subnets(SubnetIds=wanted)["Subnets"], context
        )
        found = [Finding(verdict=Verdict.OK, key=key, message=f"{len(answer)} subnets in {len(_zones(answer))} zones")]
        found += [
            _warning(key, f"{one['SubnetId']} has no free address", "Use a larger subnet, or end what is in it")
            for one in answer
            if one.get("AvailableIpAddressCount", 1) == 0
        ]
        if len(_zones(answer)) < len(answer):
            found.append(_refused(key, "two of them are in one zone", "Keep one subnet for each zone"))
        if len({one["VpcId"] for one in answer}) > 1:
            found.append(_refused(key, "they are in several VPCs", "Use subnets of the security groups' VPC"))
        return found

    async def _groups(self, region: str) -> list[Finding]:
        wanted = list(self._settings.networks[region].security_groups)
        context = Context(doing=f"look at {', '.join(wanted)}", permission="ec2:DescribeSecurityGroups", region=region)
        await self._clients.read(
            lambda sdk: sdk.client("ec2", region).describe_security_groups(GroupIds=wanted), context
        )
        return []

    async def _image(self, region: str, name: str, references: Mapping[str, str]) -> list[Finding]:
        if not any(key == "ami" or key.startswith("ami.") for key in references):
            return []  # an image of other providers
        image = image_of(references, region)
        try:
            found = await self._images.describe(image, region)
        except InvalidRequest as error:
            return [_refused(f"image {name}", str(error), f"Correct its reference for {region}")]
        if found.get("State", "available") != "available":
            return [
                _refused(f"image {name}", f"{region} has no usable {image}", "Bake it anew, or correct the reference")
            ]
        arch = found.get("Architecture", "")
        return [Finding(verdict=Verdict.OK, key=f"image {name}", message=f"{image} is there ({arch}, {region})")]

    async def _quotas(self, region: str) -> list[Finding]:
        def ask(sdk: Sdk) -> list[tuple[str, str, float]]:
            client = sdk.client("service-quotas", region)
            return [
                (kind, title, client.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"])
                for code, kind, title in _QUOTAS
            ]

        context = Context(doing="read quotas", permission="servicequotas:GetServiceQuota", region=region)
        try:
            quotas = await self._clients.read(ask, context)
        except (Unauthorized, NotFound) as error:
            remedy = "Grant servicequotas:GetServiceQuota to see quotas here; launches do not need it"
            return [_warning("regions", f"quotas of {region} cannot be read: {error}", remedy)]
        return [
            _refused("regions", f"{region}: the quota of {kind} is 0 vCPUs", f'Ask AWS to raise "{title}"')
            if value <= 0
            else Finding(verdict=Verdict.OK, key="regions", message=f"{region}: {value:g} vCPUs of {kind}")
            for kind, title, value in quotas
        ]

    async def _permissions(self, region: str) -> list[Finding]:
        """Rehearse what the daemon will do, each call by itself. A dry run that would succeed is an error of its own
        kind; a call that got as far as looking at what we made up is allowed."""
        found = []
        for permission, method, request in [*self._listings(), *await self._rehearsals(region)]:
            context = Context(doing=f"rehearse {permission}", permission=permission, region=region, family="changes")
            try:
                with suppress(InvalidRequest, NotFound):
                    await self._clients.read(partial(_rehearse, method, region, request), context)
            except Unauthorized as error:
                found.append(_refused("credentials", str(error), _GRANT))
            else:
                message = f"may call {permission} in {region}"
                found.append(Finding(verdict=Verdict.OK, key="credentials", message=message))
        return found

    def _listings(self) -> list[tuple[str, str, dict[str, Any]]]:
        ours = {"Filters": [{"Name": f"tag:{DEPLOYMENT}", "Values": [self._deployment]}]}
        return [
            ("ec2:DescribeInstances", "describe_instances", {**ours, "MaxResults": 5}),
            ("ec2:DescribeSpotInstanceRequests", "describe_spot_instance_requests", {**ours, "MaxResults": 5}),
            ("ec2:DescribeLaunchTemplates", "describe_launch_templates", {**ours, "MaxResults": 200}),
        ]

    async def _rehearsals(self, region: str) -> list[tuple[str, str, dict[str, Any]]]:
        subnets = await self._catalog.subnets(region)
        tags = [{"Key": DEPLOYMENT, "Value": self._deployment}]
        offered = await self._catalog.offerings(Shape())
        here = (one.capacity_pool.machine_type for one in offered if one.capacity_pool.region == region)
        machine = {"InstanceType": next(here, "m7i.large"), "SubnetId": next(iter(subnets.values()))}
        nothing = {"InstanceIds": ["i-00000000000000000"], "DryRun": True}
        made_up = f"autoscaler-{self._deployment}-rehearsal"
        template = {
            "LaunchTemplateName": made_up,
            "LaunchTemplateData": {"ImageId": _NO_IMAGE},
            "TagSpecifications": specifications(tags, ["launch-template"]),
            "DryRun": True,
        }
        fleet = {
            "Type": "instant",
            "LaunchTemplateConfigs": [
                {
                    "LaunchTemplateSpecification": {"LaunchTemplateName": made_up, "Version": VERSION},
                    "Overrides": [machine],
                }
            ],
            "TargetCapacitySpecification": {"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "spot"},
            "TagSpecifications": specifications(tags, ("fleet", "instance", "volume", "network-interface")),
            "DryRun": True,
        }
        one = {
            **{"ImageId": _NO_IMAGE, "MinCount": 1, "MaxCount": 1, **machine},
            "TagSpecifications": specifications(tags, ("instance", "volume", "network-interface")),
            "DryRun": True,
        }
        return [
            ("ec2:CreateLaunchTemplate", "create_launch_template", template),
            ("ec2:CreateFleet", "create_fleet", fleet),
            ("ec2:RunInstances", "run_instances", one),
            ("ec2:TerminateInstances", "terminate_instances", nothing),
            ("ec2:StopInstances", "stop_instances", nothing),
            ("ec2:StartInstances", "start_instances", nothing),
        ]

    async def _queue(self, region: str) -> list[Finding]:
        url = self._settings.queues.get(region)
        if not url:
            message = f"{region} has no notice queue: losses are found by the agents and by listing, up to 30 s later"
            return [_warning("notices", message, "Make the queue and its rule with deploy/aws, and name it here")]
        context = Context(doing=f"look at {url}", permission="sqs:GetQueueAttributes", region=region)

        def ask(sdk: Sdk) -> Mapping[str, str]:
            client = sdk.client("sqs", region)
            attributes: Mapping[str, str] = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"]).get(
                "Attributes", {}
            )
            return attributes

        key = f"notices.{region}"
        try:
            attributes = await self._clients.read(ask, context)
        except (InvalidRequest, NotFound) as error:
            return [_refused(key, str(error), "Make the queue with deploy/aws, or correct its URL")]
        if "events.amazonaws.com" not in attributes.get("Policy", ""):
            message = "the queue's policy does not let events.amazonaws.com send: nothing will ever arrive"
            return [_refused(key, message, "Give it the policy of deploy/aws/main.tf")]
        if strangers_may_send(attributes["Policy"]):
            message = "rules of any AWS account may send to the queue: strangers could have our machines drained"
            return [_warning(key, message, "Give its policy the condition on aws:SourceArn of deploy/aws/main.tf")]
        retention = attributes.get("MessageRetentionPeriod", "")
        if retention.isdigit() and int(retention) > 3600:
            message = f"messages are kept for {retention} s: after a pause old warnings are read first"
            return [_warning(key, message, "Set its retention to 300 s")]
        return [Finding(verdict=Verdict.OK, key=key, message="the queue is there and may be sent to")]

    async def _offered(self) -> list[Finding]:
        offered = await self._catalog.offerings(Shape())
        types = {one.capacity_pool.machine_type for one in offered}
        if not offered:
            return [_refused("prices", "no machine type has a price", "Grant pricing:GetProducts, or write prices")]
        return [Finding(verdict=Verdict.OK, key="prices", message=f"{len(types)} machine types have prices")]

    async def _profile(self) -> list[Finding]:
        name, region = self._settings.instance_profile, self._settings.regions[0]
        context = Context(doing=f"look at {name}", permission="iam:GetInstanceProfile", region=region)
        try:
            await self._clients.read(
                lambda sdk: sdk.client("iam", region).get_instance_profile(InstanceProfileName=name), context
            )
        except NotFound as error:
            return [_refused("instance_profile", str(error), "Make it with deploy/aws, or leave the key out")]
        message = "machines get a role: every job can do what it may"
        return [_warning("instance_profile", message, "Fine while the role has no permissions; best is none")]


def _rehearse(method: str, region: str, request: Mapping[str, Any], sdk: Sdk) -> None:
    try:
        getattr(sdk.client("ec2", region), method)(**request)
    except ClientError as error:
        if error.response["Error"]["Code"] != _DRY:
            raise


def _date_of(answer: Mapping[str, Any]) -> list[datetime]:
    said = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    return [parsedate_to_datetime(said)] if said else []


def _zones(subnets: list[Mapping[str, Any]]) -> set[str]:
    return {one["AvailabilityZone"] for one in subnets}


def _refused(key: str, message: str, remedy: str) -> Finding:
    return Finding(verdict=Verdict.REFUSED, key=key, message=message, remedy=remedy)


def _warning(key: str, message: str, remedy: str) -> Finding:
    return Finding(verdict=Verdict.WARNING, key=key, message=message, remedy=remedy)
