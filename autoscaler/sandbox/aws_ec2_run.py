"""RunInstances: one type in one zone, all or enough of it, or the call fails; spot by request, persistent or not."""

from autoscaler.sandbox.aws_access import Caller
from autoscaler.sandbox.aws_ec2_launch import Launcher
from autoscaler.sandbox.aws_ec2_render import show_instance
from autoscaler.sandbox.aws_ec2_specification import Specification, check_tag_keys, parse_specification
from autoscaler.sandbox.aws_ec2_templates import LaunchTemplate, LaunchTemplates
from autoscaler.sandbox.aws_idempotency import ClientTokens
from autoscaler.sandbox.aws_query import AwsError, Parameters, Xml
from autoscaler.spi import CapacityType


class Runs:
    """RunInstances over templates, tokens and the launcher."""

    def __init__(self, launcher: Launcher, templates: LaunchTemplates, tokens: ClientTokens) -> None:
        self._launcher = launcher
        self._templates = templates
        self._tokens = tokens

    def run(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        least, most = parameters.integer("MinCount"), parameters.integer("MaxCount")
        if not 1 <= least <= most:
            raise AwsError("InvalidParameterValue", f"MinCount {least} and MaxCount {most} must be 1 or more, in order")
        template, specification = self._whole(caller, parameters)
        is_dry_run = parameters.flag("DryRun")
        self._launcher.need_launch(
            caller, specification, template=template, is_spot=specification.market == "spot", is_dry_run=is_dry_run
        )
        check_tag_keys(specification)
        capacity_type = CapacityType.SPOT if specification.market == "spot" else CapacityType.ON_DEMAND
        _check_spot(specification)
        token = parameters.text("ClientToken")
        if is_dry_run:
            self._launcher.place(caller, specification, capacity_type=capacity_type)
        parameters.complete()
        known = self._tokens.begin(caller, parameters)
        if known is not None:
            return known
        place = self._launcher.place(caller, specification, capacity_type=capacity_type)
        made, refused = self._launcher.launch(caller, [place], count=most, at_least=least, client_token=token)
        if not made:
            raise refused[0][1]
        machines, launched = [machine for _, machine in made], self._launcher.world.launched
        rows: list[Xml] = [show_instance(machine, launched[machine.id], account=caller.account) for machine in machines]
        reservation = launched[machines[0].id].reservation
        answer: dict[str, Xml] = {"reservationId": reservation, "ownerId": caller.account, "instancesSet": rows}
        return self._tokens.succeed(caller, parameters, answer)

    def _whole(self, caller: Caller, parameters: Parameters) -> tuple[LaunchTemplate | None, Specification]:
        own = parse_specification(parameters)
        named = parameters.structure("LaunchTemplate")
        if not named:
            return None, own
        template = self._templates.find(
            caller.region, id_=named.text("LaunchTemplateId"), name=named.text("LaunchTemplateName")
        )
        return template, template.version(named.text("Version"))[1].with_wishes(own)


def _check_spot(specification: Specification) -> None:
    """Raises AwsError: only a persistent request may stop what is interrupted."""
    if specification.market not in ("", "spot"):
        raise AwsError("InvalidParameterValue", f"Invalid MarketType {specification.market}")
    is_persistent = specification.spot_type == "persistent"
    if specification.interruption in ("stop", "hibernate") and not is_persistent:
        message = "Instance interruption behavior stop needs a persistent Spot Instance request"
        raise AwsError("InvalidParameterCombination", message)
    if specification.spot_type and not specification.market:
        raise AwsError("InvalidParameterCombination", "SpotOptions need MarketType spot")
