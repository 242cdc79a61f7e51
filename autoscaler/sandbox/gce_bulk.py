"""A bulk insert's request: how many machines, of which types and in which zones, under which names."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from autoscaler.sandbox.gce_body import BULK_FIELDS, MachineBody, check_fields, check_name, read_body, whole_number
from autoscaler.sandbox.gce_wire import Json, invalid, last_part, required

_PATTERN = re.compile(r"([a-z][-a-z0-9]*?)(#+)([-a-z0-9]*)")
_MOST = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkRequest:
    """`ranks` are machine types, those of the best rank first; `names` are given, or made from `pattern`."""

    body: MachineBody
    count: int
    least: int
    names: tuple[str, ...]
    pattern: str
    zones: tuple[str, ...]
    is_single_zone: bool
    ranks: tuple[tuple[str, ...], ...]

    def free_names(self, taken: Collection[str]) -> Iterator[str]:
        """Names in order: those given, or numbers of the pattern that nobody has."""
        if self.names:
            yield from self.names
            return
        found = _PATTERN.fullmatch(self.pattern)
        assert found is not None
        number = 0
        while True:
            number += 1
            name = f"{found[1]}{number:0{len(found[2])}}{found[3]}"
            if name not in taken:
                yield name


def read_bulk(body: Json, zones: Sequence[str], *, knows_notice: bool) -> BulkRequest:
    """`zones` are those of the region. Raises GceError(400)."""
    check_fields(body, BULK_FIELDS, "resource")
    if "instanceProperties" not in body:
        raise required("resource.instanceProperties")
    names = tuple(check_name(name, "resource.perInstanceProperties") for name in body.get("perInstanceProperties", ()))
    count = whole_number(body.get("count", len(names) or None), "resource.count")
    if not count or count > _MOST:
        raise invalid("resource.count", count, f"It must be from 1 to {_MOST}.")
    pattern = body.get("namePattern", "")
    if bool(names) == bool(pattern):
        raise invalid("resource.namePattern", pattern, "Give either namePattern or perInstanceProperties.")
    if pattern and not _PATTERN.fullmatch(pattern):
        raise invalid("resource.namePattern", pattern, "It must hold one run of #.")
    if names and len(names) != count:
        raise invalid("resource.count", count, "It must be the number of perInstanceProperties.")
    least = whole_number(body.get("minCount", count), "resource.minCount")
    if least is None or least > count:
        raise invalid("resource.minCount", least, "It must not be more than count.")
    policy = body.get("locationPolicy", {})
    return BulkRequest(
        body=read_body(body["instanceProperties"], "resource.instanceProperties", knows_notice=knows_notice),
        count=count,
        least=least,
        names=names,
        pattern=pattern,
        zones=_zones(policy, zones),
        is_single_zone=_shape(policy) == "ANY_SINGLE_ZONE",
        ranks=_ranks(body),
    )


def _shape(policy: Json) -> str:
    shape: str = policy.get("targetShape", "ANY_SINGLE_ZONE")
    if shape not in ("ANY", "ANY_SINGLE_ZONE", "BALANCED"):
        raise invalid("resource.locationPolicy.targetShape", shape, "Must be one of ANY, ANY_SINGLE_ZONE, BALANCED.")
    return shape


def _zones(policy: Json, zones: Sequence[str]) -> tuple[str, ...]:
    """A zone that is not mentioned is allowed."""
    denied: set[str] = set()
    for name, one in policy.get("locations", {}).items():
        zone = last_part(name)
        if zone not in zones:
            raise invalid("resource.locationPolicy.locations", name, "It is no zone of this region.")
        if one.get("preference", "ALLOW") == "DENY":
            denied.add(zone)
    allowed = tuple(zone for zone in zones if zone not in denied)
    if not allowed:
        raise invalid("resource.locationPolicy.locations", "", "Every zone is denied.")
    return allowed


def _ranks(body: Json) -> tuple[tuple[str, ...], ...]:
    single = body["instanceProperties"].get("machineType", "")
    selections = body.get("instanceFlexibilityPolicy", {}).get("instanceSelections", {})
    if single and selections:
        raise invalid("resource.instanceProperties.machineType", single, "Not with an instanceFlexibilityPolicy.")
    if not single and not selections:
        raise required("resource.instanceProperties.machineType")
    if single:
        if "/" in single:
            raise invalid("resource.instanceProperties.machineType", single, "It must be a name only.")
        return ((single,),)
    ranked: dict[int, list[str]] = {}
    for name, selection in selections.items():
        where = f"resource.instanceFlexibilityPolicy.instanceSelections.{name}"
        rank = whole_number(selection.get("rank", 0), f"{where}.rank") or 0
        if not selection.get("machineTypes"):
            raise required(f"{where}.machineTypes")
        ranked.setdefault(rank, []).extend(selection["machineTypes"])
    return tuple(tuple(types) for _, types in sorted(ranked.items()))
