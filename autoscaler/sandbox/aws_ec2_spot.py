"""Spot requests of the sandbox's EC2: the request behind each spot instance, and what becomes of persistent ones.

    one-time:    active --notice--> closed (instance-terminated-no-capacity) while the instance still runs
                        --terminated by its owner--> closed (instance-terminated-by-user)
    persistent:  active --stopped--> disabled --started--> active
                        --its instance ends--> open --capacity--> active with ANOTHER instance
                        --cancelled--> cancelled, the instance goes on

A persistent request that is not cancelled launches again: what forgets that leaks machines.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from autoscaler.sandbox.aws_access import Caller
from autoscaler.sandbox.aws_ec2_specification import Specification, Tags
from autoscaler.sandbox.aws_filters import Filters, page, tag_rows
from autoscaler.sandbox.aws_query import AwsError, Parameters, Xml, instant
from autoscaler.sandbox.aws_world import Place
from autoscaler.sandbox.cloud_machines import TAKEN, TAKEN_AND_STOPPED, Machine
from autoscaler.spi import MachineState

_PAGES = (5, 1000)
_RECLAIMED = frozenset({TAKEN, TAKEN_AND_STOPPED})


@dataclass(slots=True, kw_only=True)
class SpotRequest:
    """One request; `machine` is the instance that fulfils it now, or did last."""

    id: str
    machine: Machine
    place: Place
    created_at: float
    tags: Tags
    cancelled_at: float | None = None

    @property
    def specification(self) -> Specification:
        return self.place.specification

    @property
    def is_persistent(self) -> bool:
        return self.specification.spot_type == "persistent"

    @property
    def wants_another(self) -> bool:
        """Nobody cancelled it and its instance is gone."""
        return self.is_persistent and self.cancelled_at is None and self.machine.state is MachineState.TERMINATED

    def standing(self) -> tuple[str, str, float]:
        """State, status code and since when."""
        machine, since = self.machine, self.machine.changed_at
        is_up = machine.state in (MachineState.PENDING, MachineState.RUNNING)
        if self.cancelled_at is not None:
            code = "request-canceled-and-instance-running" if is_up else "instance-terminated-by-user"
            return "cancelled", code, self.cancelled_at
        if is_up and machine.noticed_at is not None:
            stops = self.specification.interruption == "stop"
            return ("active", "marked-for-stop", machine.noticed_at) if stops else _taken(machine.noticed_at)
        match machine.state:
            case MachineState.PENDING | MachineState.RUNNING:
                return "active", "fulfilled", since
            case MachineState.STOPPING | MachineState.STOPPED:
                by_cloud = machine.reason in _RECLAIMED
                return "disabled", "instance-stopped-no-capacity" if by_cloud else "instance-stopped-by-user", since
            case _ if self.is_persistent:
                return "open", "pending-evaluation", since
            case _ if machine.reason in _RECLAIMED:
                return _taken(since)
            case _:
                return "closed", "instance-terminated-by-user", since


def _taken(since: float) -> tuple[str, str, float]:
    return "closed", "instance-terminated-no-capacity", since


class SpotRequests:
    """Every request of the account."""

    def __init__(self) -> None:
        self.requests: dict[str, SpotRequest] = {}
        self.persistent: dict[str, SpotRequest] = {}

    def open(self, machine: Machine, place: Place, *, now: float) -> SpotRequest:
        request = SpotRequest(
            id=machine.spot_request_id,
            machine=machine,
            place=place,
            created_at=now,
            tags=place.specification.tags.get("spot-instances-request", {}),
        )
        self.requests[request.id] = request
        if request.is_persistent:
            self.persistent[request.id] = request
        return request

    def forget(self, machine_ids: set[str]) -> None:
        """Requests that are closed and whose instances nobody knows any more are gone too (specs A2)."""
        for request in list(self.requests.values()):
            if request.machine.id in machine_ids and not request.wants_another:
                del self.requests[request.id]
                self.persistent.pop(request.id, None)

    def describe(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        caller.need("ec2:DescribeSpotInstanceRequests")
        ids = parameters.texts("SpotInstanceRequestId")
        found = [self._find(caller, id_) for id_ in ids] or self._of(caller.region)
        readers = {
            "spot-instance-request-id": lambda one: one.id,
            "instance-id": lambda one: one.machine.id,
            "state": lambda one: one.standing()[0],
            "status-code": lambda one: one.standing()[1],
            "type": lambda one: one.specification.spot_type or "one-time",
        }
        found = Filters(parameters).apply(found, readers, tags=lambda one: one.tags)
        rows, following, _ = page(parameters, found, bounds=_PAGES)
        return {"spotInstanceRequestSet": [_show(one) for one in rows], "nextToken": following}

    def cancel(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        requests = [self._find(caller, id_) for id_ in parameters.texts("SpotInstanceRequestId")]
        for request in requests:
            arn = f"arn:aws:ec2:{caller.region}:{caller.account}:spot-instances-request/{request.id}"
            context = {f"aws:ResourceTag/{key}": value for key, value in request.tags.items()}
            caller.need("ec2:CancelSpotInstanceRequests", resource=arn, context=context)
        if not requests:
            raise AwsError("MissingParameter", "The request must contain the parameter SpotInstanceRequestId")
        parameters.complete()
        for request in requests:
            request.cancelled_at = request.cancelled_at or caller.now
        rows: list[Xml] = [{"spotInstanceRequestId": one.id, "state": "cancelled"} for one in requests]
        return {"spotInstanceRequestSet": rows}

    def _of(self, region: str) -> list[SpotRequest]:
        return [one for one in self.requests.values() if one.place.capacity_pool.region == region]

    def _find(self, caller: Caller, id_: str) -> SpotRequest:
        request = self.requests.get(id_)
        if request is None or request.place.capacity_pool.region != caller.region:
            message = f"The spot instance request ID '{id_}' does not exist"
            raise AwsError("InvalidSpotInstanceRequestID.NotFound", message)
        return request


def _show(request: SpotRequest) -> Xml:
    state, code, since = request.standing()
    specification, zone = request.specification, request.place.capacity_pool.zone
    launch: Mapping[str, Xml] = {
        "imageId": specification.image_id,
        "instanceType": request.place.capacity_pool.machine_type,
        "placement": {"availabilityZone": zone},
        "groupSet": [{"groupId": group, "groupName": f"name-of-{group}"} for group in specification.groups],
        "monitoring": {"enabled": specification.monitoring == "true"},
    }
    return {
        "spotInstanceRequestId": request.id,
        "spotPrice": specification.max_price or f"{request.machine.price_usd_hour * 3:.6f}",
        "type": specification.spot_type or "one-time",
        "state": state,
        "status": {"code": code, "updateTime": instant(since), "message": code.replace("-", " ")},
        "launchSpecification": launch,
        "instanceId": request.machine.id,
        "createTime": instant(request.created_at),
        "productDescription": "Linux/UNIX",
        "launchedAvailabilityZone": zone,
        "tagSet": tag_rows(request.tags),
        "instanceInterruptionBehavior": specification.interruption or "terminate",
    }
