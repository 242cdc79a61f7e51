"""What an account of the sandbox's AWS has to work with: machine types and prices by its capacity, networks, images.

Owns networks, images and scripted refusals, which tests and worlds change while they run; no machine. What can be
launched where, and at what price, is read from the account's capacity. Lookups fail in EC2's words.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaler.sandbox.aws_query import AwsError
from autoscaler.sandbox.cloud_capacity import Capacity, Supply
from autoscaler.spi import CapacityPool, CapacityType


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """One machine type in a region, put together from its supplies."""

    name: str
    cpus: int
    memory_gib: float
    arch: str
    gpus: int
    zones: tuple[str, ...]
    capacity_types: frozenset[CapacityType]


@dataclass(slots=True, kw_only=True)
class Subnet:
    """One subnet; `free_addresses` goes down as machines take them, and up as they end."""

    id: str
    zone: str
    vpc_id: str
    cidr: str = "10.80.0.0/16"
    free_addresses: int = 65_531
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One machine image of a region."""

    id: str
    name: str = "runner"
    arch: str = "x86_64"
    disk_gib: int = 8
    root: str = "/dev/xvda"
    tags: Mapping[str, str] = field(default_factory=dict)


class AwsSetup:
    """By region. `refusals` make one capacity pool answer a code of AWS's choosing until they are taken out."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.refusals: dict[CapacityPool, str] = {}
        self.subnets_by_id: dict[tuple[str, str], Subnet] = {}
        self.groups: dict[tuple[str, str], str] = {}
        self.images_by_id: dict[tuple[str, str], Image] = {}

    def add_subnet(self, region: str, subnet: Subnet) -> None:
        self.subnets_by_id[region, subnet.id] = subnet

    def add_group(self, region: str, id_: str, *, vpc_id: str) -> None:
        self.groups[region, id_] = vpc_id

    def add_image(self, region: str, image: Image) -> None:
        self.images_by_id[region, image.id] = image

    # -- capacity -----------------------------------------------------------------------------------------------

    @property
    def regions(self) -> list[str]:
        return sorted({pool.region for pool in self.capacity.supplies} | {region for region, _ in self.subnets_by_id})

    def zones(self, region: str) -> list[str]:
        offered = {pool.zone for pool in self.capacity.supplies if pool.region == region}
        return sorted(offered | {one.zone for one in self.subnets(region)})

    def supplies(self, region: str) -> list[Supply]:
        return [supply for pool, supply in self.capacity.supplies.items() if pool.region == region]

    def types(self, region: str) -> list[MachineType]:
        """Sorted by name."""
        by_name: dict[str, list[Supply]] = {}
        for supply in self.supplies(region):
            by_name.setdefault(supply.pool.machine_type, []).append(supply)
        return [
            MachineType(
                name=name,
                cpus=found[0].cpus,
                memory_gib=found[0].memory_gib,
                arch=found[0].arch,
                gpus=found[0].gpus,
                zones=tuple(sorted({one.pool.zone for one in found})),
                capacity_types=frozenset(one.pool.capacity_type for one in found),
            )
            for name, found in sorted(by_name.items())
        ]

    def pool(self, region: str, zone: str, machine_type: str, capacity_type: CapacityType) -> CapacityPool:
        """Raises AwsError: no such type, or not there."""
        is_known = False
        for pool in self.capacity.supplies:
            if pool.region != region or pool.machine_type != machine_type:
                continue
            is_known = True
            if (pool.zone, pool.capacity_type) == (zone, capacity_type):
                return pool
        if is_known:
            raise unsupported(machine_type, zone)
        raise AwsError("InvalidParameterValue", f"Invalid value '{machine_type}' for InstanceType.")

    def quota(self, region: str, capacity_type: CapacityType) -> float:
        """In vCPUs; unlimited where nothing is said."""
        return self.capacity.quotas.get((region, capacity_type), float("inf"))

    # -- networks and images ------------------------------------------------------------------------------------

    def subnets(self, region: str) -> list[Subnet]:
        return [one for (where, _), one in self.subnets_by_id.items() if where == region]

    def subnet(self, region: str, id_: str) -> Subnet:
        try:
            return self.subnets_by_id[region, id_]
        except KeyError:
            raise AwsError("InvalidSubnetID.NotFound", f"The subnet ID '{id_}' does not exist") from None

    def subnet_in(self, region: str, zone: str) -> Subnet:
        """Any subnet of a zone, as the default one. Raises AwsError."""
        for one in self.subnets(region):
            if one.zone == zone:
                return one
        raise AwsError("MissingInput", f"No subnets found for the default VPC in {zone}.")

    def groups_of(self, region: str) -> dict[str, str]:
        """Security groups with the VPC of each."""
        return {id_: vpc for (where, id_), vpc in self.groups.items() if where == region}

    def check_group(self, region: str, id_: str) -> None:
        if (region, id_) not in self.groups:
            raise AwsError("InvalidGroup.NotFound", f"The security group '{id_}' does not exist")

    def images(self, region: str) -> list[Image]:
        return [one for (where, _), one in self.images_by_id.items() if where == region]

    def image(self, region: str, id_: str) -> Image:
        if not id_.startswith("ami-"):
            raise AwsError("InvalidAMIID.Malformed", f'Invalid id: "{id_}" (expecting "ami-...")')
        try:
            return self.images_by_id[region, id_]
        except KeyError:
            raise AwsError("InvalidAMIID.NotFound", f"The image id '[{id_}]' does not exist") from None


def unsupported(machine_type: str, zone: str) -> AwsError:
    message = f"Your requested instance type ({machine_type}) is not supported in your requested Availability Zone"
    return AwsError("Unsupported", f"{message} ({zone}).")
