"""What AWS offers: machine types in the zones of our subnets, their spot and on-demand prices.

    subnets (zones)  x  types per zone  x  attributes of types       each day
    spot price history, on-demand prices                             each five minutes, each twelve hours

Everything is kept and refreshed when somebody asks and it is old; what cannot be refreshed stays as it was. No launch
waits for any of it but the first.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import structlog

from autoscaler.spi import CapacityPool, CapacityType, Clock, InvalidRequest, Offering, ProviderError, Shape
from providers.aws_clients import PAGE, PRICING_REGION, AwsClients, Sdk, pages
from providers.aws_errors import Context
from providers.aws_settings import AwsSettings

_log = structlog.get_logger(__name__)

_TYPES_FRESH = timedelta(hours=24)
_SPOT_FRESH = timedelta(minutes=5)
_ON_DEMAND_FRESH = timedelta(hours=12)
_AFTER_FAILURE = timedelta(minutes=2)
_AFTER_FIRST_FAILURE = timedelta(seconds=10)
"""Of on-demand prices, which spot can do without, so that no listing waits each time for a service that hangs."""
_LOAD_S = 120.0
_LINUX = "Linux/UNIX"
_ARCHITECTURES = {"x86_64": "x86_64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    name: str
    cpus: float
    memory_gib: float
    arch: str
    gpus: int
    is_metal: bool
    is_current: bool
    usage: frozenset[CapacityType]


@dataclass(slots=True, kw_only=True)
class _Kept:
    """One kind of knowledge about one region, and when it was had or last asked for in vain."""

    value: Any = None
    loaded_at: datetime | None = None
    not_before: datetime | None = None


@dataclass(slots=True, kw_only=True)
class _Region:
    zones: Mapping[str, str] = field(default_factory=dict)
    """Zone name -> the one subnet that is used there."""
    types: Mapping[str, MachineType] = field(default_factory=dict)
    offered: frozenset[tuple[str, str]] = frozenset()
    """(machine type, zone)."""


class AwsCatalog:
    def __init__(self, settings: AwsSettings, clients: AwsClients, clock: Clock) -> None:
        self._settings = settings
        self._clients = clients
        self._clock = clock
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    async def offerings(self, shape: Shape) -> Sequence[Offering]:
        """A region keeps what it had while it does not answer; one that never did is left out. Raises ProviderError
        when none ever answered."""
        regions = self._settings.regions
        found = await asyncio.gather(*(self._offerings_in(one, shape) for one in regions), return_exceptions=True)
        every: list[Offering] = []
        failed: list[BaseException] = []
        for region, one in zip(regions, found, strict=True):
            if isinstance(one, list):
                every += one
                continue
            if not isinstance(one, ProviderError):
                raise one
            failed.append(one)
            _log.warning("region_left_out", provider=self._settings.name, region=region, error=str(one))
        if len(failed) == len(regions):
            raise failed[0]
        return sorted(every, key=lambda offering: (offering.price_usd_hour, offering.capacity_pool))

    async def subnets(self, region: str) -> Mapping[str, str]:
        """The subnet of each zone."""
        return (await self._region(region)).zones

    def price(self, place: CapacityPool) -> float:
        """What a machine there costs by the hour, as far as it is known now; 0.0 where nothing is."""
        if place.capacity_type is CapacityType.ON_DEMAND:
            return float(self._on_demand_now(place.region).get(place.machine_type, 0.0))
        kept = self._kept.get(("spot", place.region))
        prices: Mapping[tuple[str, str], float] = kept.value if kept is not None and kept.value else {}
        return float(prices.get((place.machine_type, place.zone), 0.0))

    async def load_prices(self) -> None:
        """See to it that `price` has an answer. What cannot be had is logged, and had later."""
        for region in self._settings.regions:
            try:
                await self._prices(region)
            except ProviderError as error:
                _log.warning("prices_not_loaded", provider=self._settings.name, region=region, error=str(error))

    async def _offerings_in(self, region: str, shape: Shape) -> list[Offering]:
        known = await self._region(region)
        spot, on_demand = await self._prices(region)
        found: list[Offering] = []
        for name, zone in sorted(known.offered):
            machine_type = known.types.get(name)
            if machine_type is None or zone not in known.zones or not _fits(machine_type, shape):
                continue
            for capacity_type in sorted(machine_type.usage):
                is_spot = capacity_type is CapacityType.SPOT
                price = spot.get((name, zone)) if is_spot else on_demand.get(name)
                if price is None:
                    continue  # without a price no cap would hold
                found.append(
                    Offering(
                        capacity_pool=CapacityPool(
                            provider=self._settings.name,
                            region=region,
                            zone=zone,
                            machine_type=name,
                            capacity_type=capacity_type,
                        ),
                        cpus=machine_type.cpus,
                        memory_gib=machine_type.memory_gib,
                        arch=machine_type.arch,
                        gpus=machine_type.gpus,
                        price_usd_hour=price,
                        on_demand_usd_hour=on_demand.get(name),
                        published_interruptions_per_hour=(
                            self._settings.interruptions_per_hour(region, name) if is_spot else None
                        ),
                    )
                )
        return found

    async def _region(self, region: str) -> _Region:
        found: _Region = await self._fresh("types", region, _TYPES_FRESH, lambda sdk: self._read_region(sdk, region))
        return found

    async def _prices(self, region: str) -> tuple[Mapping[tuple[str, str], float], Mapping[str, float]]:
        spot = await self._fresh("spot", region, _SPOT_FRESH, lambda sdk: self._read_spot(sdk, region))
        if self._settings.prices is None:
            try:
                await self._fresh("on_demand", region, _ON_DEMAND_FRESH, lambda sdk: _read_on_demand(sdk, region))
            except ProviderError as error:  # spot has prices of its own, from its own region
                _log.warning("on_demand_prices_unknown", provider=self._settings.name, error=str(error))
        return spot, self._on_demand_now(region)

    def _on_demand_now(self, region: str) -> Mapping[str, float]:
        if self._settings.prices is not None:
            return self._settings.prices
        kept = self._kept.get(("on_demand", region))
        prices: Mapping[str, float] = kept.value if kept is not None and kept.value else {}
        return prices

    async def _fresh(self, kind: str, region: str, life: timedelta, read: Any) -> Any:
        """The kept value, read anew when it is old. A failure keeps the old one; without any it is raised."""
        key = (kind, region)
        async with self._locks.setdefault(key, asyncio.Lock()):
            kept, now = self._kept.setdefault(key, _Kept()), self._clock.now()
            is_fresh = kept.loaded_at is not None and now < kept.loaded_at + life
            if is_fresh:
                return kept.value
            if kept.not_before is not None and now < kept.not_before:
                return kept.value
            permission = _PERMISSIONS[kind]
            context = Context(doing=f"read {kind} of {region}", permission=permission, region=region)
            try:
                kept.value = await self._clients.read(read, context, timeout_s=_LOAD_S, is_long=True)
            except ProviderError as error:
                if kept.value is None:
                    if kind == "on_demand":
                        kept.not_before = self._clock.now() + _AFTER_FIRST_FAILURE
                    raise
                kept.not_before = self._clock.now() + _AFTER_FAILURE
                _log.warning("catalogue_not_loaded", provider=self._settings.name, what=kind, error=str(error))
            else:
                kept.loaded_at, kept.not_before = now, None
            return kept.value

    def _read_region(self, sdk: Sdk, region: str) -> _Region:
        ec2 = sdk.client("ec2", region)
        zones: dict[str, str] = {}
        subnets = list(self._settings.networks[region].subnets)
        for subnet in pages(ec2.describe_subnets, "Subnets", SubnetIds=subnets):
            zone = subnet["AvailabilityZone"]
            if zone in zones:
                raise InvalidRequest(
                    f"networks.{region}.subnets: {zones[zone]} and {subnet['SubnetId']} are both in {zone}; a fleet "
                    "cannot use two subnets of one zone: keep one"
                )
            zones[zone] = subnet["SubnetId"]
        offered = frozenset(
            (one["InstanceType"], one["Location"])
            for one in pages(
                ec2.describe_instance_type_offerings,
                "InstanceTypeOfferings",
                LocationType="availability-zone",
                Filters=[{"Name": "location", "Values": sorted(zones)}],
                MaxResults=PAGE,
            )
        )
        parsed = (_parse_type(one) for one in pages(ec2.describe_instance_types, "InstanceTypes", MaxResults=100))
        types = {one.name: one for one in parsed if one is not None}
        _log.info("catalogue_loaded", provider=self._settings.name, region=region, zones=len(zones), types=len(types))
        return _Region(zones=zones, types=types, offered=offered)

    def _read_spot(self, sdk: Sdk, region: str) -> dict[tuple[str, str], float]:
        """The latest price of each type and zone: a history from now on holds what is in force."""
        prices: dict[tuple[str, str], tuple[datetime, float]] = {}
        history = pages(
            sdk.client("ec2", region).describe_spot_price_history,
            "SpotPriceHistory",
            ProductDescriptions=[_LINUX],
            StartTime=self._clock.now(),
            MaxResults=PAGE,
        )
        for one in history:
            key = (one["InstanceType"], one["AvailabilityZone"])
            if key not in prices or prices[key][0] < one["Timestamp"]:
                prices[key] = (one["Timestamp"], float(one["SpotPrice"]))
        return {key: price for key, (_, price) in prices.items()}


_PERMISSIONS = {
    "types": "ec2:DescribeSubnets, ec2:DescribeInstanceTypes and ec2:DescribeInstanceTypeOfferings",
    "spot": "ec2:DescribeSpotPriceHistory",
    "on_demand": "pricing:GetProducts",
}


def _read_on_demand(sdk: Sdk, region: str) -> dict[str, float]:
    """Linux, shared tenancy, nothing pre-installed; by machine type."""
    terms = {
        "regionCode": region,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
        "productFamily": "Compute Instance",
    }
    products = pages(
        sdk.client("pricing", PRICING_REGION).get_products,
        "PriceList",
        ServiceCode="AmazonEC2",
        Filters=[{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in terms.items()],
        MaxResults=100,
    )
    return dict(_parse_products(products))


def _parse_products(products: Iterable[str]) -> Iterable[tuple[str, float]]:
    for text in products:
        product = json.loads(text)
        for term in product.get("terms", {}).get("OnDemand", {}).values():
            for dimension in term.get("priceDimensions", {}).values():
                usd = float(dimension.get("pricePerUnit", {}).get("USD", 0.0))
                if usd > 0:
                    yield product["product"]["attributes"]["instanceType"], usd


def _parse_type(item: Mapping[str, Any]) -> MachineType | None:
    """None for architectures that no runner is made for."""
    arch = next((_ARCHITECTURES[a] for a in item["ProcessorInfo"]["SupportedArchitectures"] if a in _ARCHITECTURES), "")
    if not arch:
        return None
    usage = {"spot": CapacityType.SPOT, "on-demand": CapacityType.ON_DEMAND}
    return MachineType(
        name=item["InstanceType"],
        cpus=float(item["VCpuInfo"]["DefaultVCpus"]),
        memory_gib=item["MemoryInfo"]["SizeInMiB"] / 1024,
        arch=arch,
        gpus=sum(gpu.get("Count", 0) for gpu in item.get("GpuInfo", {}).get("Gpus", ())),
        is_metal=bool(item.get("BareMetal", False)),
        is_current=bool(item.get("CurrentGeneration", True)),
        usage=frozenset(usage[one] for one in item.get("SupportedUsageClasses", ()) if one in usage),
    )


def _fits(machine_type: MachineType, shape: Shape) -> bool:
    is_named = any(fnmatchcase(machine_type.name, glob) for glob in shape.types)
    return (
        shape.cpus.admits(machine_type.cpus)
        and shape.memory_gib.admits(machine_type.memory_gib)
        and shape.arch == machine_type.arch
        and shape.gpus <= machine_type.gpus
        # A GPU, bare metal or a type of yesterday that nobody asked for is not what somebody wants.
        and (machine_type.gpus == 0 or shape.gpus > 0 or is_named)
        and ((machine_type.is_current and not machine_type.is_metal) or is_named)
        and (is_named or not shape.types)
        and not any(fnmatchcase(machine_type.name, glob) for glob in shape.exclude)
    )
