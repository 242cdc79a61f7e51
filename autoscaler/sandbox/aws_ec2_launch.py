"""What CreateFleet and RunInstances share: from a specification and a place to a machine, or to why not."""

import secrets
from collections.abc import Sequence

from autoscaler.sandbox.aws_access import Caller, tag_context
from autoscaler.sandbox.aws_ec2_specification import Specification
from autoscaler.sandbox.aws_ec2_spot import SpotRequests
from autoscaler.sandbox.aws_ec2_templates import LaunchTemplate
from autoscaler.sandbox.aws_limits import AwsMeter, limit_exceeded
from autoscaler.sandbox.aws_query import AwsError
from autoscaler.sandbox.aws_setup import Image
from autoscaler.sandbox.aws_small_services import Ssm, parameter_arn
from autoscaler.sandbox.aws_sts import Iam, role_arn
from autoscaler.sandbox.aws_world import AwsWorld, Launched, Made, Place, Refused
from autoscaler.spi import CapacityType

_MACHINES = "launched machines"
_MADE = ("instance", "volume", "network-interface", "spot-instances-request")


class Launcher:
    """Makes machines in the world, with the spot requests behind them."""

    def __init__(self, world: AwsWorld, meter: AwsMeter, *, iam: Iam, ssm: Ssm) -> None:
        self.spot_requests = SpotRequests()
        self.world = world
        self._meter = meter
        self._iam = iam
        self._ssm = ssm

    def place(self, caller: Caller, specification: Specification, *, capacity_type: CapacityType) -> Place:
        """Where a specification would launch. Raises AwsError in EC2's words: what it names must exist, and what it
        tags must be made."""
        if capacity_type is CapacityType.ON_DEMAND and specification.tags.get("spot-instances-request"):
            raise AwsError("InvalidParameterValue", "Tags for Spot requests need a Spot request")
        setup, region = self.world.setup, caller.region
        if specification.subnet_id:
            subnet = setup.subnet(region, specification.subnet_id)
        elif specification.zone:
            subnet = setup.subnet_in(region, specification.zone)
        else:
            raise AwsError("MissingInput", "No subnets found for the default VPC. Please specify a subnet.")
        if specification.zone not in ("", subnet.zone):
            message = f"The subnet {subnet.id} is not in the Availability Zone {specification.zone}"
            raise AwsError("InvalidParameterCombination", message)
        image = self._image(caller, specification.image_id)
        for group in specification.groups:
            setup.check_group(region, group)
        _check_disks(specification, image)
        self._check_profile(specification.instance_profile)
        pool = setup.pool(region, subnet.zone, specification.machine_type, capacity_type)
        if (arch := setup.capacity.supplies[pool].arch) != image.arch:
            message = f"The architecture '{arch}' of the specified instance type does not match the architecture "
            raise AwsError("InvalidParameterValue", f"{message}'{image.arch}' of the specified AMI.")
        return Place(capacity_pool=pool, subnet=subnet, image=image, specification=specification)

    def need_launch(
        self,
        caller: Caller,
        specification: Specification,
        *,
        template: LaunchTemplate | None,
        is_spot: bool,
        is_dry_run: bool = False,
    ) -> None:
        """The permissions of making instances, resource by resource: what is made, what it is made from, its tags, the
        role of its profile."""
        if is_spot:
            self._need_spot_role(caller)
        ec2 = f"arn:aws:ec2:{caller.region}:{caller.account}"
        for kind in _MADE if is_spot else _MADE[:-1]:
            tags = specification.tags.get(kind, {})
            context = tag_context(tags, kind="RequestTag")
            caller.need("ec2:RunInstances", resource=f"{ec2}:{kind}/*", context=context, is_dry_run=is_dry_run)
            if tags:
                context = {**context, "ec2:CreateAction": "RunInstances"}
                caller.need("ec2:CreateTags", resource=f"{ec2}:{kind}/*", context=context, is_dry_run=is_dry_run)
        used = []
        if specification.image_id.startswith("ami-"):
            used.append(f"arn:aws:ec2:{caller.region}::image/{specification.image_id}")
        used += [f"{ec2}:subnet/{specification.subnet_id}"] if specification.subnet_id else []
        used += [f"{ec2}:security-group/{group}" for group in specification.groups]
        for arn in used:
            caller.need("ec2:RunInstances", resource=arn, is_dry_run=is_dry_run)
        if template is not None:
            arn, context = f"{ec2}:launch-template/{template.id}", tag_context(template.tags, kind="ResourceTag")
            caller.need("ec2:RunInstances", resource=arn, context=context, is_dry_run=is_dry_run)
        if role := self._iam.instance_profiles.get(specification.instance_profile.rpartition("/")[2]):
            context = {"iam:PassedToService": "ec2.amazonaws.com"}
            arn = role_arn(caller.account, role)
            caller.need("iam:PassRole", resource=arn, context=context, is_dry_run=is_dry_run)

    def _need_spot_role(self, caller: Caller) -> None:
        """The first spot launch of an account makes the role that spot needs."""
        if self._iam.has_spot_role:
            return
        arn = role_arn(caller.account, "aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot")
        try:
            context = {"iam:AWSServiceName": "spot.amazonaws.com"}
            caller.need("iam:CreateServiceLinkedRole", resource=arn, context=context)
        except AwsError:
            message = "The provided credentials do not have permission to create the service-linked role for EC2 Spot "
            code = "AuthFailure.ServiceLinkedRoleCreationNotPermitted"
            raise AwsError(code, message + "Instances.", status=403) from None
        self._iam.has_spot_role = True

    def _image(self, caller: Caller, reference: str) -> Image:
        """By id, or by the parameter that holds it: "resolve:ssm:/path"."""
        name = reference.removeprefix("resolve:ssm:")
        if name == reference:
            return self.world.setup.image(caller.region, reference)
        caller.need("ssm:GetParameters", resource=parameter_arn(caller, name))
        found = self._ssm.parameters.get((caller.region, name))
        if found is None:
            raise AwsError("InvalidParameterValue", f"The SSM parameter {name} cannot be resolved to an image id")
        return self.world.setup.image(caller.region, found)

    def launch(
        self,
        caller: Caller,
        places: Sequence[Place],
        *,
        count: int,
        at_least: int = 0,
        client_token: str = "",
        spread: bool = False,
    ) -> tuple[Made, Refused]:
        """Up to `count` machines over the places in their order, or `spread` evenly over them, and the places that
        refused; below `at_least`, none are made. The account's rate of new machines is one more refusal."""
        bucket = self._meter.limits.launched_machines
        allowed = min(count, self._meter.whole_tokens(caller.region, _MACHINES, bucket))
        if places and allowed < max(1, at_least):
            return [], [(place, limit_exceeded()) for place in places]
        made, refused = self.world.launch(places, count=allowed, at_least=at_least, spread=spread, now=caller.now)
        self._meter.take(caller.region, _MACHINES, bucket, len(made))
        if allowed < count and len(made) == allowed:
            refused += [(place, limit_exceeded()) for place in places]
        self._remember(made, client_token=client_token)
        for place, machine in made:
            if machine.spot_request_id:
                self.spot_requests.open(machine, place, now=caller.now)
        return made, refused

    def _remember(self, made: Made, *, client_token: str = "") -> None:
        reservations: dict[int, str] = {}
        for index, (place, machine) in enumerate(made):
            reservation = reservations.setdefault(id(place), f"r-{secrets.token_hex(9)[:17]}")
            self.world.launched[machine.id] = Launched(
                place=place,
                reservation=reservation,
                index=index,
                cpus=self.world.setup.capacity.supplies[place.capacity_pool].cpus,
                client_token=client_token,
            )

    def fulfil(self, now: float) -> None:
        """Persistent requests that nobody cancelled launch again for an instance that is gone."""
        for request in self.spot_requests.persistent.values():
            if request.wants_another:
                made, _ = self.world.launch([request.place], count=1, now=now)
                self._remember(made)
                for _, machine in made:
                    machine.spot_request_id = request.id
                    request.machine = machine

    def forget_gone(self) -> list[str]:
        """Ids that the world no longer knows, and now we neither."""
        gone = self.world.forget_gone()
        if gone:
            self.spot_requests.forget(set(gone))
        return gone

    def _check_profile(self, profile: str) -> None:
        name = profile.rpartition("/")[2]
        if name and name not in self._iam.instance_profiles:
            message = f"Value ({name}) for parameter iamInstanceProfile.name is invalid. "
            raise AwsError("InvalidParameterValue", message + "Invalid IAM Instance Profile name")


def _check_disks(specification: Specification, image: Image) -> None:
    for one in specification.block_devices:
        size = one.volume.get("VolumeSize", "")
        if one.device == image.root and size and int(size) < image.disk_gib:
            message = f"Volume of size {size}GB is smaller than the image's snapshot, expect size >= {image.disk_gib}GB"
            raise AwsError("InvalidBlockDeviceMapping", message)
