"""EC2 of the sandbox: which actions there are, their request limits, and the parts that answer them."""

from collections.abc import Callable, Mapping

from autoscaler.sandbox.aws_access import Caller
from autoscaler.sandbox.aws_ec2_catalogue import Catalogue
from autoscaler.sandbox.aws_ec2_fleet import Fleets
from autoscaler.sandbox.aws_ec2_instances import Instances
from autoscaler.sandbox.aws_ec2_launch import Launcher
from autoscaler.sandbox.aws_ec2_run import Runs
from autoscaler.sandbox.aws_ec2_templates import LaunchTemplates
from autoscaler.sandbox.aws_idempotency import ClientTokens
from autoscaler.sandbox.aws_limits import AwsMeter
from autoscaler.sandbox.aws_query import AwsError, Parameters, Xml
from autoscaler.sandbox.aws_small_services import Ssm
from autoscaler.sandbox.aws_sts import Iam
from autoscaler.sandbox.aws_world import AwsWorld

Handler = Callable[[Caller, Parameters], dict[str, Xml]]
_SELECTING = ("Filter.", "InstanceId.", "MaxResults", "SpotInstanceRequestId.", "LaunchTemplate", "InstanceType.")


class Ec2:
    """The actions that our adapter calls; others are invalid, as they would be in an older EC2."""

    def __init__(self, world: AwsWorld, meter: AwsMeter, *, iam: Iam, ssm: Ssm, account: str) -> None:
        self.templates = LaunchTemplates()
        self.launcher = Launcher(world, meter, iam=iam, ssm=ssm)
        self.instances = Instances(world, self.launcher, meter, account=account)
        self._meter = meter
        tokens = ClientTokens()
        self._catalogue = Catalogue(world.setup)
        self._handlers: Mapping[str, Handler] = {
            "CreateFleet": Fleets(self.launcher, self.templates, tokens).create,
            "RunInstances": Runs(self.launcher, self.templates, tokens).run,
            "DescribeInstances": self.instances.describe,
            "TerminateInstances": self.instances.terminate,
            "StopInstances": self.instances.stop,
            "StartInstances": self.instances.start,
            "CreateTags": self.instances.tag,
            "CreateLaunchTemplate": self.templates.create,
            "DescribeLaunchTemplates": self.templates.describe,
            "DescribeLaunchTemplateVersions": self.templates.describe_versions,
            "DeleteLaunchTemplate": self.templates.delete,
            "DescribeSpotInstanceRequests": self.launcher.spot_requests.describe,
            "CancelSpotInstanceRequests": self.launcher.spot_requests.cancel,
            **self._catalogue.handlers,
        }

    def forget_gone(self) -> None:
        """What the world no longer knows is no longer described."""
        for id_ in self.launcher.forget_gone():
            self.instances.forget(id_)

    def answer(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        action = parameters.action
        handler = self._handlers.get(action)
        if handler is None:
            raise AwsError("InvalidAction", f"The action {action} is not valid for this web service.")
        limits = self._meter.limits
        if not action.startswith("Describe"):
            self._meter.charge(caller.region, action, limits.mutate)
        elif parameters.has_any(_SELECTING):
            self._meter.charge(caller.region, action, limits.describe)
        else:
            self._meter.charge(caller.region, f"{action} of all", limits.describe_all)
        if action in self._catalogue.handlers:
            caller.need(f"ec2:{action}")
        answer = handler(caller, parameters)
        parameters.complete()
        return answer
