"""CreateFleet of type instant: many overrides, an allocation strategy, partial success with Errors[].

    request -> token known? -> template versions -> places by override -> strategy -> launch -> Instances[], Errors[]

The answer is HTTP 200 even when nothing was launched; Errors[] speaks of overrides, not of machines.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoscaler.sandbox.aws_access import Caller, tag_context
from autoscaler.sandbox.aws_ec2_launch import Launcher
from autoscaler.sandbox.aws_ec2_render import zone_id
from autoscaler.sandbox.aws_ec2_specification import Specification, check_tag_keys, parse_tags
from autoscaler.sandbox.aws_ec2_templates import LaunchTemplate, LaunchTemplates
from autoscaler.sandbox.aws_idempotency import ClientTokens
from autoscaler.sandbox.aws_query import AwsError, Parameters, Xml
from autoscaler.sandbox.aws_world import AwsWorld, Place
from autoscaler.sandbox.cloud_machines import Machine
from autoscaler.spi import CapacityType

SPOT_STRATEGIES = (
    "lowest-price",
    "diversified",
    "capacity-optimized",
    "capacity-optimized-prioritized",
    "price-capacity-optimized",
)
ON_DEMAND_STRATEGIES = ("lowest-price", "prioritized")
_LARGEST = 10_000
_LIFECYCLES = {CapacityType.SPOT: "spot", CapacityType.ON_DEMAND: "on-demand"}
_CALL_LEVEL = frozenset({"InvalidParameterCombination", "MissingInput"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Override:
    """One override with the template version it belongs to; `shown` is its echo in the answer."""

    template: LaunchTemplate
    version: int
    specification: Specification
    priority: float
    shown: Mapping[str, Xml]

    def echo(self) -> dict[str, Xml]:
        template = {
            "launchTemplateId": self.template.id,
            "launchTemplateName": self.template.name,
            "version": str(self.version),
        }
        return {"launchTemplateSpecification": template, "overrides": self.shown}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """So many machines of one capacity type, by one strategy."""

    capacity_type: CapacityType
    count: int
    strategy: str
    at_least: int


class Fleets:
    """Instant fleets; the fleet objects themselves are not kept, as nobody asks for them."""

    def __init__(self, launcher: Launcher, templates: LaunchTemplates, tokens: ClientTokens) -> None:
        self._launcher = launcher
        self._templates = templates
        self._tokens = tokens

    def create(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        if parameters.required("Type") != "instant":
            raise AwsError("UnsupportedOperation", "The sandbox knows fleets of type instant only")
        wishes = _parse_wishes(parameters)
        tags = parse_tags(parameters)
        self._need_fleet(caller, tags.get("fleet", {}))
        overrides = [
            override
            for config in parameters.structures("LaunchTemplateConfigs")
            for override in self._parse_config(caller, config, tags)
        ]
        if not overrides:
            raise AwsError("MissingParameter", "The request must contain the parameter LaunchTemplateConfigs")
        parameters.text("ClientToken"), parameters.text("Context")
        self._need_templates(caller, {one.template.id: one.template for one in overrides})
        parameters.complete()
        known = self._tokens.begin(caller, parameters)
        if known is not None:
            return known
        answer = self._launch(caller, overrides, wishes, client_token=parameters.text("ClientToken"))
        return self._tokens.succeed(caller, parameters, answer)

    def _parse_config(
        self, caller: Caller, config: Parameters, tags: Mapping[str, Mapping[str, str]]
    ) -> list[_Override]:
        named = config.structure("LaunchTemplateSpecification")
        template = self._templates.find(
            caller.region, id_=named.text("LaunchTemplateId"), name=named.text("LaunchTemplateName")
        )
        number, specification = template.version(named.text("Version"))
        whole = specification.with_wishes(Specification(tags={k: v for k, v in tags.items() if k != "fleet"}))
        check_tag_keys(whole)
        rows = config.structures("Overrides") or [config.structure("Overrides.0")]
        return [_parse_override(template, number, whole, row) for row in rows]

    def _need_fleet(self, caller: Caller, tags: Mapping[str, str]) -> None:
        arn = f"arn:aws:ec2:{caller.region}:{caller.account}:fleet/*"
        context = tag_context(tags, kind="RequestTag")
        caller.need("ec2:CreateFleet", resource=arn, context=context)
        if tags:
            caller.need("ec2:CreateTags", resource=arn, context={**context, "ec2:CreateAction": "CreateFleet"})

    def _need_templates(self, caller: Caller, templates: Mapping[str, LaunchTemplate]) -> None:
        for id_, template in templates.items():
            arn = f"arn:aws:ec2:{caller.region}:{caller.account}:launch-template/{id_}"
            caller.need("ec2:CreateFleet", resource=arn, context=tag_context(template.tags, kind="ResourceTag"))

    def _launch(
        self, caller: Caller, overrides: Sequence[_Override], wishes: Sequence[_Wish], *, client_token: str
    ) -> dict[str, Xml]:
        made: list[tuple[_Override, Place, Machine]] = []
        errors: list[Xml] = []
        for wish in wishes:
            places, refused = self._places(caller, overrides, wish)
            _check_one_subnet_per_zone(places)
            ordered = _in_order(places, wish, self._launcher.world, caller.now)
            by_place = {id(place): override for place, override in places}
            try:
                launched, more = self._launcher.launch(
                    caller,
                    ordered,
                    count=wish.count,
                    at_least=wish.at_least,
                    client_token=client_token,
                    spread=wish.strategy == "diversified",
                )
            except AwsError as error:
                launched, more = [], [(place, error) for place in ordered]
            made += [(by_place[id(place)], place, machine) for place, machine in launched]
            refused += [(by_place[id(place)], error) for place, error in more]
            errors += [_show_error(override, wish.capacity_type, error) for override, error in refused]
        fleet_id = f"fleet-{secrets.token_hex(4)}-{secrets.token_hex(2)}-{secrets.token_hex(6)}"
        return {"fleetId": fleet_id, "errorSet": errors, "fleetInstanceSet": _show_made(made)}

    def _places(
        self, caller: Caller, overrides: Sequence[_Override], wish: _Wish
    ) -> tuple[list[tuple[Place, _Override]], list[tuple[_Override, AwsError]]]:
        """Where each override would launch; those that cannot anywhere, with the error that Errors[] gives."""
        places: list[tuple[Place, _Override]] = []
        refused: list[tuple[_Override, AwsError]] = []
        for override in overrides:
            specification = override.specification
            try:
                is_spot = wish.capacity_type is CapacityType.SPOT
                self._launcher.need_launch(caller, specification, template=override.template, is_spot=is_spot)
                place = self._launcher.place(caller, specification, capacity_type=wish.capacity_type)
            except AwsError as error:
                if error.code in _CALL_LEVEL:
                    raise
                refused.append((override, error))
            else:
                places.append((place, override))
        return places, refused


def _parse_wishes(parameters: Parameters) -> list[_Wish]:
    """On-demand first, as AWS does. Raises AwsError."""
    target = parameters.structure("TargetCapacitySpecification")
    total = target.integer("TotalTargetCapacity")
    if not 1 <= total <= _LARGEST:
        raise AwsError("InvalidTargetCapacitySpecification", f"TotalTargetCapacity must be 1 to {_LARGEST}")
    default = target.text("DefaultTargetCapacityType", "on-demand")
    spot, on_demand = target.integer("SpotTargetCapacity"), target.integer("OnDemandTargetCapacity")
    rest = total - spot - on_demand
    if rest < 0 or default not in ("spot", "on-demand"):
        raise AwsError("InvalidTargetCapacitySpecification", "The capacities do not add up to TotalTargetCapacity")
    spot, on_demand = (spot + rest, on_demand) if default == "spot" else (spot, on_demand + rest)
    wishes = []
    for kind, count, name, known in (
        (CapacityType.ON_DEMAND, on_demand, "OnDemandOptions", ON_DEMAND_STRATEGIES),
        (CapacityType.SPOT, spot, "SpotOptions", SPOT_STRATEGIES),
    ):
        options = parameters.structure(name)
        strategy = options.text("AllocationStrategy", "lowest-price")
        if strategy not in known:
            raise AwsError("InvalidParameterValue", f"Invalid value '{strategy}' for AllocationStrategy")
        if options.text("InstanceInterruptionBehavior", "terminate") != "terminate":
            raise AwsError("InvalidParameterCombination", "Instant fleets terminate what is interrupted")
        at_least = options.integer("MinTargetCapacity")
        options.flag("SingleInstanceType"), options.flag("SingleAvailabilityZone")
        if count:
            wishes.append(_Wish(capacity_type=kind, count=count, strategy=strategy, at_least=at_least))
    return wishes


def _parse_override(template: LaunchTemplate, version: int, whole: Specification, row: Parameters) -> _Override:
    wishes = Specification(
        machine_type=row.text("InstanceType"),
        subnet_id=row.text("SubnetId"),
        zone=row.text("AvailabilityZone"),
        image_id=row.text("ImageId"),
        max_price=row.text("MaxPrice"),
    )
    priority = row.text("Priority")
    shown: dict[str, Xml] = {
        "instanceType": wishes.machine_type or None,
        "subnetId": wishes.subnet_id or None,
        "availabilityZone": wishes.zone or None,
        "imageId": wishes.image_id or None,
        "maxPrice": wishes.max_price or None,
        "priority": float(priority) if priority else None,
    }
    return _Override(
        template=template,
        version=version,
        specification=whole.with_wishes(wishes),
        priority=float(priority) if priority else float("inf"),
        shown=shown,
    )


def _check_one_subnet_per_zone(places: Sequence[tuple[Place, _Override]]) -> None:
    subnets: dict[str, str] = {}
    for place, _ in places:
        if subnets.setdefault(place.subnet.zone, place.subnet.id) != place.subnet.id:
            message = f"Two subnets of the Availability Zone {place.subnet.zone} are in one request"
            raise AwsError("InvalidParameterCombination", message)


def _in_order(places: Sequence[tuple[Place, _Override]], wish: _Wish, world: AwsWorld, now: float) -> list[Place]:
    """The order in which the strategy fills the places."""

    def key(pair: tuple[Place, _Override]) -> tuple[float, ...]:
        place, override = pair
        account, pool = world.account, place.capacity_pool
        price, free = account.price(pool, now), account.capacity.free(pool, now)
        match wish.strategy:
            case "prioritized":
                return (override.priority, price)
            case "capacity-optimized":
                return (-free, price)
            case "capacity-optimized-prioritized":
                return (-free, override.priority)
            case "price-capacity-optimized":
                return (0 if free >= wish.count else 1, price)
            case _:
                return (price,)

    return [place for place, _ in sorted(places, key=key)]


def _show_made(made: Sequence[tuple[_Override, Place, Machine]]) -> list[Xml]:
    """Grouped by override, as AWS does."""
    grouped: dict[tuple[int, CapacityType], list[tuple[_Override, Place, Machine]]] = {}
    for override, place, machine in made:
        grouped.setdefault((id(override), place.capacity_pool.capacity_type), []).append((override, place, machine))
    return [_show_group(group) for group in grouped.values()]


def _show_group(group: Sequence[tuple[_Override, Place, Machine]]) -> Xml:
    override, place, _ = group[0]
    pool = place.capacity_pool
    return {
        "launchTemplateAndOverrides": override.echo(),
        "lifecycle": _LIFECYCLES[pool.capacity_type],
        "instanceIds": [machine.id for _, _, machine in group],
        "instanceType": pool.machine_type,
        "availabilityZone": pool.zone,
        "availabilityZoneId": zone_id(pool.zone),
        "subnetId": place.subnet.id,
    }


def _show_error(override: _Override, kind: CapacityType, error: AwsError) -> Xml:
    return {
        "launchTemplateAndOverrides": override.echo(),
        "lifecycle": _LIFECYCLES[kind],
        "errorCode": error.code,
        "errorMessage": error.message,
    }
