"""What an account of the sandbox's AWS has to work with: machine types by zone, prices, quotas, networks, images.

Owns configuration that tests and worlds change while they run; no machine. Lookups fail in EC2's words.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autoscaler.sandbox.aws_query import AwsError
from autoscaler.spi import CapacityPool, CapacityType, ProviderName

AWS = ProviderName("aws")
Prices = Sequence[tuple[float, float]]
"""USD per hour from an epoch second on, in order of time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """One machine type in a region."""

    name: str
    cpus: float
    memory_gib: float
    zones: tuple[str, ...]
    arch: str = "x86_64"
    gpus: int = 0
    is_current: bool = True
    capacity_types: frozenset[CapacityType] = frozenset(CapacityType)


@dataclass(slots=True, kw_only=True)
class Subnet:
    """One subnet; `free_addresses` goes down as machines take them."""

    id: str
    zone: str
    vpc_id: str
    network: str
    """The first two numbers of its addresses: "10.1"."""
    free_addresses: int = 4091
    tags: Mapping[str, str] = field(default_factory=dict)
    taken: int = 3

    @property
    def cidr(self) -> str:
        return f"{self.network}.0.0/16"

    def take_address(self) -> str:
        self.free_addresses -= 1
        self.taken += 1
        return f"{self.network}.{self.taken // 256 % 256}.{self.taken % 256}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One machine image of a region."""

    id: str
    name: str = "runner"
    arch: str = "x86_64"
    disk_gib: int = 8
    tags: Mapping[str, str] = field(default_factory=dict)


class AwsSetup:
    """By region. Everything may be changed at any time; nothing is asked twice."""

    def __init__(self) -> None:
        self.types: dict[tuple[str, str], MachineType] = {}
        self.slots: dict[CapacityPool, int] = {}
        self.prices: dict[CapacityPool, Prices] = {}
        self.quotas: dict[tuple[str, CapacityType], float] = {}
        self.subnets_by_id: dict[tuple[str, str], Subnet] = {}
        self.groups: dict[tuple[str, str], str] = {}
        self.images_by_id: dict[tuple[str, str], Image] = {}

    @property
    def offered(self) -> Mapping[CapacityPool, int]:
        return self.slots

    @property
    def regions(self) -> list[str]:
        return sorted({region for region, _ in self.types} | {region for region, _ in self.subnets_by_id})

    def add_type(
        self, region: str, machine_type: MachineType, *, slots: int, spot_usd: float, on_demand_usd: float
    ) -> None:
        """A machine type in its zones, with the same room and price in each."""
        self.types[region, machine_type.name] = machine_type
        usd = {CapacityType.SPOT: spot_usd, CapacityType.ON_DEMAND: on_demand_usd}
        for zone in machine_type.zones:
            for capacity_type in machine_type.capacity_types:
                pool = aws_pool(region, zone, machine_type.name, capacity_type)
                self.slots[pool] = slots
                self.prices[pool] = [(0.0, usd[capacity_type])]

    def add_subnet(self, region: str, subnet: Subnet) -> None:
        self.subnets_by_id[region, subnet.id] = subnet

    def add_image(self, region: str, image: Image) -> None:
        self.images_by_id[region, image.id] = image

    # -- looking things up --------------------------------------------------------------------------------------

    def zones(self, region: str) -> list[str]:
        typed = {zone for (where, _), one in self.types.items() if where == region for zone in one.zones}
        return sorted(typed | {one.zone for one in self.subnets(region)})

    def types_of(self, region: str) -> list[MachineType]:
        return [one for (where, _), one in sorted(self.types.items(), key=lambda item: item[0]) if where == region]

    def type_of(self, pool: CapacityPool) -> MachineType:
        """Raises AwsError: AWS knows no such type."""
        try:
            return self.types[pool.region, pool.machine_type]
        except KeyError:
            raise AwsError("InvalidParameterValue", f"Invalid value '{pool.machine_type}' for InstanceType.") from None

    def price(self, pool: CapacityPool, at: float) -> float:
        """Raises AwsError: there is no such capacity pool."""
        series = self.prices.get(pool)
        if not series:
            return 0.0
        return series[max(0, bisect_right(series, at, key=lambda step: step[0]) - 1)][1]

    def prices_between(self, pool: CapacityPool, start: float, end: float) -> list[tuple[float, float]]:
        """The price in force at `start` with its own time, and every change until `end`."""
        series = list(self.prices.get(pool, ()))
        first = max(0, bisect_right(series, start, key=lambda step: step[0]) - 1)
        return [step for step in series[first:] if step[0] <= end]

    def spot_pools(self, region: str) -> list[CapacityPool]:
        return sorted(pool for pool in self.slots if pool.region == region and pool.capacity_type is CapacityType.SPOT)

    def quota(self, region: str, capacity_type: CapacityType) -> float:
        """In vCPUs; unlimited where nothing is said."""
        return self.quotas.get((region, capacity_type), float("inf"))

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


def aws_pool(region: str, zone: str, machine_type: str, capacity_type: CapacityType) -> CapacityPool:
    return CapacityPool(provider=AWS, region=region, zone=zone, machine_type=machine_type, capacity_type=capacity_type)
