"""What the sandbox's clouds have to give: capacity pools with slots and prices over time, quotas, addresses.

Pure values and counts; `now` is epoch seconds. The format of series and worlds is that of docs/simulation: a series
steps from value to value and begins anew at its end.
"""

import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from autoscaler.spi import CapacityPool, CapacityType, ProviderName


class Shortage(StrEnum):
    """Why there is no machine."""

    CAPACITY = "capacity"
    QUOTA = "quota"
    ADDRESSES = "addresses"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Values over time, one each `gap_s`, repeated for ever. `offset_s` is where in it the epoch lies."""

    values: tuple[float, ...]
    gap_s: float
    offset_s: float = 0.0

    def at(self, now: float) -> float:
        return self.values[int((now + self.offset_s) // self.gap_s) % len(self.values)]

    def next_step(self, now: float) -> float:
        """The next moment at which the value may be another one."""
        return ((now + self.offset_s) // self.gap_s + 1) * self.gap_s - self.offset_s

    def between(self, start: float, end: float) -> list[tuple[float, float]]:
        """(since when, value) of every change in a period, the value at its beginning first."""
        found, at = [(start, self.at(start))], self.next_step(start)
        while at <= end:
            if (value := self.at(at)) != found[-1][1]:
                found.append((at, value))
            at = self.next_step(at)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """One capacity pool: what its machines are like, what they cost, how many there are.

    `availability` scales `slots`: the largest value of the series stands for all of them. `hazard_per_hour` is the rate
    at which single machines are taken back, beside what the series takes."""

    pool: CapacityPool
    cpus: int
    memory_gib: float
    arch: str = "x86_64"
    gpus: int = 0
    price_usd_hour: float = 0.0
    slots: int = 100
    availability: Series | None = None
    prices: Series | None = None
    hazard_per_hour: float = 0.0

    def price_at(self, now: float) -> float:
        return self.price_usd_hour if self.prices is None else self.prices.at(now)

    def slots_at(self, now: float) -> int:
        if self.availability is None:
            return self.slots
        most = max(self.availability.values)
        return math.floor(self.availability.at(now) / most * self.slots) if most > 0 else 0


@dataclass(slots=True, kw_only=True)
class Capacity:
    """All supplies of an account and what is in use. `quotas` are vCPUs by region and capacity type, `addresses` free
    addresses by zone; what is not named has no limit. Mutable: tests change what they like between calls."""

    supplies: dict[CapacityPool, Supply]
    quotas: dict[tuple[str, CapacityType], float] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    exhausted: set[CapacityPool] = field(default_factory=set)
    """Pools that refuse whatever their slots say."""
    _machines: Counter[CapacityPool] = field(default_factory=Counter)
    _cpus: Counter[tuple[str, CapacityType]] = field(default_factory=Counter)
    _in_zone: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, supplies: Iterable[Supply]) -> "Capacity":
        return cls(supplies={supply.pool: supply for supply in supplies})

    def shortage(self, pool: CapacityPool, now: float) -> Shortage | None:
        """What one more machine there would lack."""
        supply = self.supplies.get(pool)
        if supply is None:
            return Shortage.UNSUPPORTED
        if pool in self.exhausted or self._machines[pool] >= supply.slots_at(now):
            return Shortage.CAPACITY
        kind = (pool.region, pool.capacity_type)
        if kind in self.quotas and self._cpus[kind] + supply.cpus > self.quotas[kind]:
            return Shortage.QUOTA
        if pool.zone in self.addresses and self._in_zone[pool.zone] >= self.addresses[pool.zone]:
            return Shortage.ADDRESSES
        return None

    def free(self, pool: CapacityPool, now: float) -> int:
        """How many more machines of this pool there is room for; quotas are not asked."""
        supply = self.supplies.get(pool)
        if supply is None or pool in self.exhausted:
            return 0
        return max(0, supply.slots_at(now) - self._machines[pool])

    def take(self, pool: CapacityPool) -> None:
        self._count(pool, 1)

    def give_back(self, pool: CapacityPool) -> None:
        self._count(pool, -1)

    def used(self, pool: CapacityPool) -> int:
        return self._machines[pool]

    def used_cpus(self, region: str, capacity_type: CapacityType) -> int:
        return self._cpus[region, capacity_type]

    def _count(self, pool: CapacityPool, change: int) -> None:
        supply = self.supplies.get(pool)
        self._machines[pool] += change
        self._cpus[pool.region, pool.capacity_type] += change * (supply.cpus if supply is not None else 0)
        self._in_zone[pool.zone] += change


class WorldError(ValueError):
    """A world file is wrong; the text names the table and the key."""


def load_supplies(path: Path, *, provider: ProviderName | None = None) -> list[Supply]:
    """The capacity pools of a world file (TOML, section 3 of the simulation's formats), traces read from beside it.
    `provider` renames theirs. Raises WorldError."""
    try:
        world = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise WorldError(f"{path}: {error}") from error
    use_prices = bool(world.get("use_trace_prices", False))
    return [
        _supply(table, index, path, provider=provider, use_prices=use_prices)
        for index, table in enumerate(world.get("capacity_pool", []))
    ]


def _supply(
    table: Mapping[str, object], index: int, path: Path, *, provider: ProviderName | None, use_prices: bool
) -> Supply:
    try:
        pool = CapacityPool(
            provider=provider or ProviderName(str(table["provider"])),
            region=str(table["region"]),
            zone=str(table["zone"]),
            machine_type=str(table["machine_type"]),
            capacity_type=CapacityType(str(table["capacity_type"])),
        )
        availability = prices = None
        if "trace" in table:
            offset_s = float(str(table.get("trace_offset_s", 0.0)))
            availability, prices = read_trace(path.parent / str(table["trace"]), offset_s=offset_s)
        return Supply(
            pool=pool,
            cpus=int(str(table["cpus"])),
            memory_gib=float(str(table["memory_gib"])),
            arch=str(table.get("arch", "x86_64")),
            price_usd_hour=float(str(table["price_usd_hour"])),
            slots=int(str(table.get("slots", 100))),
            availability=availability,
            prices=prices if use_prices else None,
            hazard_per_hour=float(str(table.get("hazard_per_hour", 0.0))),
        )
    except (KeyError, ValueError) as error:
        raise WorldError(f"{path}: capacity_pool[{index}]: {error}") from error


def read_trace(path: Path, *, offset_s: float = 0.0) -> tuple[Series, Series | None]:
    """Availability over time, and prices where the trace has them. Raises WorldError."""
    try:
        trace = json.loads(path.read_text(encoding="utf-8"))
        gap_s = float(trace["metadata"]["gap_seconds"])
        values = _floats(trace["data"])
        prices = _floats(trace["prices"]) if trace.get("prices") else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorldError(f"{path}: {type(error).__name__}: {error}") from error
    if not values or gap_s <= 0:
        raise WorldError(f"{path}: no data")
    found = Series(values=values, gap_s=gap_s, offset_s=offset_s)
    return found, Series(values=prices, gap_s=gap_s, offset_s=offset_s) if prices else None


def _floats(values: Sequence[object]) -> tuple[float, ...]:
    return tuple(float(str(value)) for value in values)
