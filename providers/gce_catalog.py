"""What can be launched: zones and machine types as the API lists them, at the prices of the configuration.

Loaded at the first question and once a day; while a reload fails the last one serves. Launches ask it for the zones of
a region only. Types without a price are not offered.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import structlog

from autoscaler.spi import CapacityPool, CapacityType, Clock, Offering, ProviderError, Shape
from providers.gce_clients import GceClients, Sdk
from providers.gce_errors import Context
from providers.gce_settings import GceSettings, region_of

_log = structlog.get_logger(__name__)

_FRESH = timedelta(hours=24)
_AFTER_FAILURE = timedelta(minutes=5)
_LISTING = Context(doing="list machine types", permission="compute.machineTypes.list", family="lists")
_ARCHITECTURES = {"ARM64": "arm64", "X86_64": "x86_64"}
_GONE = frozenset({"OBSOLETE", "DELETED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    name: str
    zone: str
    cpus: float
    memory_gib: float
    arch: str
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """`zones` are all zones of the configured regions that are up, used or not."""

    zones: frozenset[str]
    types: tuple[MachineType, ...]
    loaded_at: datetime


class GceCatalog:
    def __init__(self, settings: GceSettings, clients: GceClients, clock: Clock) -> None:
        self._settings = settings
        self._clients = clients
        self._clock = clock
        self._loading = asyncio.Lock()
        self._catalogue: Catalogue | None = None
        self._types_in: dict[str, tuple[datetime, tuple[MachineType, ...]]] = {}
        self._not_before: datetime | None = None

    async def offerings(self, shape: Shape) -> Sequence[Offering]:
        catalogue = await self.load()
        found = [
            offering
            for machine_type in catalogue.types
            if _fits(machine_type, shape)
            for offering in self._offerings_of(machine_type)
        ]
        return sorted(found, key=lambda offering: (offering.price_usd_hour, offering.capacity_pool))

    async def zones_of(self, region: str) -> frozenset[str]:
        """Every zone of a region that is up: those that a launch does not name must be denied."""
        return frozenset(zone for zone in (await self.load()).zones if region_of(zone) == region)

    @property
    def some_zone(self) -> str:
        """One that is up; "" before the first loading."""
        return min(self._catalogue.zones, default="") if self._catalogue is not None else ""

    async def load(self) -> Catalogue:
        async with self._loading:
            now, last = self._clock.now(), self._catalogue
            if last is not None and (now - last.loaded_at < _FRESH or (self._not_before or now) > now):
                return last
            try:
                self._catalogue = await self._read(now)
            except ProviderError as error:
                if last is None:
                    raise
                self._not_before = now + _AFTER_FAILURE
                _log.warning("catalogue_not_loaded", provider=self._settings.name, error=str(error))
                return last
            return self._catalogue

    async def _read(self, now: datetime) -> Catalogue:
        """Zone by zone: what was read before a failure is not read again."""
        zones = await self._clients.read(self._read_zones, _LISTING)
        for zone in sorted(zones):
            read_at, _ = self._types_in.get(zone, (None, ()))
            if self._settings.uses_zone(zone) and (read_at is None or now - read_at >= _FRESH):
                self._types_in[zone] = now, await self._clients.read(partial(self._read_types, zone), _LISTING)
        types = tuple(one for zone in sorted(zones) for one in self._types_in.get(zone, (now, ()))[1])
        _log.info("catalogue_loaded", provider=self._settings.name, zones=len(zones), types=len(types))
        return Catalogue(zones=zones, types=types, loaded_at=now)

    def _read_zones(self, sdk: Sdk) -> frozenset[str]:
        return frozenset(
            item["name"]
            for page in sdk.pages("zones")
            for item in page.get("items", ())
            if region_of(item["name"]) in self._settings.regions and item.get("status", "UP") == "UP"
        )

    def _read_types(self, zone: str, sdk: Sdk) -> tuple[MachineType, ...]:
        return tuple(
            parsed
            for page in sdk.pages(f"zones/{zone}/machineTypes")
            for item in page.get("items", ())
            if item["name"] in self._settings.priced_types
            if (parsed := _parse(item, zone)) is not None
        )

    def _offerings_of(self, machine_type: MachineType) -> list[Offering]:
        region, name = region_of(machine_type.zone), machine_type.name
        on_demand = self._settings.price(region, name, CapacityType.ON_DEMAND)
        offerings: list[Offering] = []
        for capacity_type in CapacityType:
            price = self._settings.price(region, name, capacity_type)
            if price is None:
                continue
            is_spot = capacity_type is CapacityType.SPOT
            capacity_pool = CapacityPool(
                provider=self._settings.name,
                region=region,
                zone=machine_type.zone,
                machine_type=name,
                capacity_type=capacity_type,
            )
            offerings.append(
                Offering(
                    capacity_pool=capacity_pool,
                    cpus=machine_type.cpus,
                    memory_gib=machine_type.memory_gib,
                    arch=machine_type.arch,
                    gpus=machine_type.gpus,
                    price_usd_hour=price,
                    on_demand_usd_hour=on_demand,
                    published_interruptions_per_hour=self._settings.interruptions_per_hour(name) if is_spot else None,
                )
            )
        return offerings


def _parse(item: Mapping[str, Any], zone: str) -> MachineType | None:
    """None for a type that is no longer offered."""
    if item.get("deprecated", {}).get("state") in _GONE:
        return None
    return MachineType(
        name=item["name"],
        zone=zone,
        cpus=float(item["guestCpus"]),
        memory_gib=item["memoryMb"] / 1024,
        arch=_ARCHITECTURES.get(item.get("architecture", ""), "x86_64"),
        gpus=sum(one.get("guestAcceleratorCount", 0) for one in item.get("accelerators", ())),
    )


def _fits(machine_type: MachineType, shape: Shape) -> bool:
    is_named = any(fnmatchcase(machine_type.name, glob) for glob in shape.types)
    return (
        shape.cpus.admits(machine_type.cpus)
        and shape.memory_gib.admits(machine_type.memory_gib)
        and shape.arch == machine_type.arch
        and shape.gpus <= machine_type.gpus
        # A GPU that nobody asked for is paid for.
        and (machine_type.gpus == 0 or shape.gpus > 0 or is_named)
        and (is_named or not shape.types)
        and not any(fnmatchcase(machine_type.name, glob) for glob in shape.exclude)
    )
