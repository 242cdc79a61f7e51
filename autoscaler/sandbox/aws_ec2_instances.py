"""Instances of the sandbox's EC2: describing them in pages, ending, stopping and starting them, tagging them.

One unknown id fails a whole call and is named in its error, as on AWS. A machine that the world does not show yet is
unknown here too.
"""

from collections.abc import Callable, Mapping, Sequence

from autoscaler.sandbox.aws_access import Caller, tag_context
from autoscaler.sandbox.aws_ec2_launch import Launcher
from autoscaler.sandbox.aws_ec2_render import STATES, Rendered
from autoscaler.sandbox.aws_ec2_specification import parse_tag_list
from autoscaler.sandbox.aws_filters import Filters, page
from autoscaler.sandbox.aws_limits import AwsMeter
from autoscaler.sandbox.aws_query import AwsError, Parameters, Raw, Xml
from autoscaler.sandbox.aws_world import AwsWorld, Launched
from autoscaler.sandbox.cloud_machines import Machine
from autoscaler.spi import CapacityType, MachineState

_PAGES = (5, 1000)
_MOST_ENDED = 1000

_READERS: Mapping[str, Callable[[Machine], str]] = {
    "instance-id": lambda one: one.id,
    "instance-state-name": lambda one: STATES[one.state][1],
    "instance-state-code": lambda one: str(STATES[one.state][0]),
    "instance-type": lambda one: one.capacity_pool.machine_type,
    "image-id": lambda one: one.wish.image,
    "availability-zone": lambda one: one.capacity_pool.zone,
    "instance-lifecycle": lambda one: "spot" if one.capacity_pool.capacity_type is CapacityType.SPOT else "",
    "spot-instance-request-id": lambda one: one.spot_request_id,
    "private-ip-address": lambda one: one.address,
    "state-reason-code": lambda one: one.reason,
}


class Instances:
    """The actions about machines that exist. `failing_page` n: a describe fails at its page n (1 is the first)."""

    def __init__(self, world: AwsWorld, launcher: Launcher, meter: AwsMeter, *, account: str) -> None:
        self.failing_page: int | None = None
        self._world = world
        self._launcher = launcher
        self._meter = meter
        self._rendered = Rendered(account)

    def describe(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        caller.need("ec2:DescribeInstances")
        ids = parameters.texts("InstanceId")
        if ids and parameters.text("MaxResults"):
            message = "The parameter instancesSet cannot be used with the parameter maxResults"
            raise AwsError("InvalidParameterCombination", message)
        found = self._named(caller, ids) if ids else self._world.machines(caller.region, caller.now)
        found = Filters(parameters).apply(found, self._readers(), tags=lambda one: one.tags)
        rows, following, number = page(parameters, found, bounds=_PAGES)
        if self.failing_page == number + 1:
            raise AwsError("InternalError", "An internal error has occurred", status=500)
        launched = self._world.launched
        return {
            "reservationSet": self._rendered.reservations([(one, launched[one.id]) for one in rows]),
            "nextToken": following,
        }

    def rendered(self, machine: Machine, launched: Launched) -> Raw:
        """One machine's part of the answer, from memory where nothing changed."""
        return self._rendered.instance(machine, launched)

    def forget(self, machine_id: str) -> None:
        self._rendered.forget(machine_id)

    def _readers(self) -> Mapping[str, Callable[[Machine], str]]:
        launched = self._world.launched
        return {
            **_READERS,
            "subnet-id": lambda one: launched[one.id].place.subnet.id,
            "vpc-id": lambda one: launched[one.id].place.subnet.vpc_id,
            "client-token": lambda one: launched[one.id].client_token,
            "reservation-id": lambda one: launched[one.id].reservation,
        }

    def _named(self, caller: Caller, ids: Sequence[str]) -> list[Machine]:
        """Raises AwsError that names every unknown id."""
        for id_ in ids:
            if not (id_.startswith("i-") and len(id_) in (10, 19)):
                raise AwsError("InvalidInstanceID.Malformed", f'Invalid id: "{id_}"')
        found = {id_: self._world.machine(caller.region, id_, caller.now) for id_ in ids}
        unknown = [id_ for id_, machine in found.items() if machine is None]
        if unknown:
            if len(unknown) == 1:
                message = f"The instance ID '{unknown[0]}' does not exist"
            else:
                message = f"The instance IDs '{', '.join(unknown)}' do not exist"
            raise AwsError("InvalidInstanceID.NotFound", message)
        return [machine for machine in found.values() if machine is not None]

    def terminate(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        machines = self._asked(caller, parameters, "ec2:TerminateInstances")
        limits = self._meter.limits
        self._meter.charge(caller.region, "ended machines", limits.ended_machines, len(machines))
        return self._change(machines, lambda one: self._world.account.terminate(one.id, caller.now))

    def stop(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        machines = self._asked(caller, parameters, "ec2:StopInstances")
        for machine in machines:
            if machine.state in (MachineState.TERMINATING, MachineState.TERMINATED, MachineState.PENDING):
                raise _wrong_state(machine, "stopped")
            request = self._launcher.spot_requests.requests.get(machine.spot_request_id)
            if request is not None and not request.is_persistent:
                message = (
                    f"You can't stop the Spot Instance '{machine.id}' because it is associated with a one-time Spot "
                    "Instance request. You can only stop Spot Instances associated with persistent Spot Instance "
                    "requests."
                )
                raise AwsError("UnsupportedOperation", message)
        return self._change(machines, lambda one: self._world.account.stop(one.id, caller.now))

    def start(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        """All of them, or an error and none."""
        machines = self._asked(caller, parameters, "ec2:StartInstances")
        for machine in machines:
            if machine.state not in (MachineState.STOPPED, MachineState.RUNNING, MachineState.PENDING):
                raise _wrong_state(machine, "started")
        stopped = [one for one in machines if one.state is MachineState.STOPPED]
        for machine in stopped:
            request = self._launcher.spot_requests.requests.get(machine.spot_request_id)
            if request is not None and request.cancelled_at is not None:
                message = f"The Spot Instance request of '{machine.id}' was cancelled"
                raise AwsError("IncorrectSpotRequestState", message)
        before = {one.id: one.state for one in machines}
        self._world.start(stopped, caller.now)
        return {"instancesSet": [_show_change(one, before[one.id]) for one in machines]}

    def tag(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        ids = parameters.texts("ResourceId")
        tags = parse_tag_list(parameters.structures("Tag"))
        machines = self._named(caller, [id_ for id_ in ids if id_.startswith("i-")])
        for machine in machines:
            context = tag_context(machine.tags, kind="ResourceTag") | tag_context(tags, kind="RequestTag")
            caller.need("ec2:CreateTags", resource=_arn(caller, machine.id), context=context)
        parameters.complete()
        for machine in machines:
            machine.tags.update(tags)
        return {"return": True}

    def _asked(self, caller: Caller, parameters: Parameters, permission: str) -> list[Machine]:
        """The machines that a changing call names, allowed and known. Raises AwsError."""
        ids = parameters.texts("InstanceId")
        for known in ("Force", "Hibernate", "SkipOsShutdown"):
            parameters.flag(known)
        if not ids:
            raise AwsError("MissingParameter", "The request must contain the parameter InstanceId")
        if len(ids) > _MOST_ENDED:
            raise AwsError("InvalidParameterValue", f"At most {_MOST_ENDED} instances in one call")
        is_dry_run = parameters.flag("DryRun")
        try:
            machines = self._named(caller, list(dict.fromkeys(ids)))
        except AwsError:
            caller.need(permission, resource=_arn(caller, ids[0]), is_dry_run=is_dry_run, names_nothing=True)
            raise
        allowed: set[tuple[tuple[str, str], ...]] = set()
        for machine in machines:
            tags = tuple(sorted(machine.tags.items()))
            if tags not in allowed:
                allowed.add(tags)
                context = tag_context(machine.tags, kind="ResourceTag")
                caller.need(permission, resource=_arn(caller, machine.id), context=context, is_dry_run=is_dry_run)
        parameters.complete()
        return machines

    def _change(self, machines: Sequence[Machine], change: Callable[[Machine], None]) -> dict[str, Xml]:
        before = {one.id: one.state for one in machines}
        for machine in machines:
            change(machine)
        return {"instancesSet": [_show_change(one, before[one.id]) for one in machines]}


def _show_change(machine: Machine, before: MachineState) -> Xml:
    shown: dict[str, Xml] = {}
    for name, state in (("currentState", machine.state), ("previousState", before)):
        code, text = STATES[state]
        shown[name] = {"code": code, "name": text}
    return {"instanceId": machine.id, **shown}


def _wrong_state(machine: Machine, wanted: str) -> AwsError:
    message = f"The instance '{machine.id}' is not in a state from which it can be {wanted}."
    return AwsError("IncorrectInstanceState", message)


def _arn(caller: Caller, id_: str) -> str:
    return f"arn:aws:ec2:{caller.region}:{caller.account}:instance/{id_}"
