"""What the sandbox's clouds have to give: capacity pools with slots and prices over time, quotas, addresses.

Pure values and counts; `now` is epoch seconds. A series steps from value to value and begins anew at its end.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from autoscaler.spi import CapacityPool, CapacityType


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
        return self._value(self._tick(now))

    def next_step(self, now: float) -> float:
        """The next moment at which the value may be another one; always later than `now`."""
        following = self._tick(now) + 1
        at = self._begin(following)
        # A tick's beginning, rounded, may lie a hair before what counts as in it.
        return at if at > now else self._begin(following + 1)

    def played(self, since: float, *, speed: float) -> "Series":
        """The same where what belongs to the epoch comes at `since`, and time runs `speed` times as fast from there."""
        return Series(values=self.values, gap_s=self.gap_s / speed, offset_s=self.offset_s / speed - since)

    def between(self, start: float, end: float) -> list[tuple[float, float]]:
        """(since when, value) of every change in a period, the value at its beginning first."""
        first, last = self._tick(start), self._tick(end)
        found = [(start, self._value(first))]
        for tick in range(first + 1, last + 1):
            if (value := self._value(tick)) != found[-1][1]:
                found.append((self._begin(tick), value))
        return found

    def _tick(self, now: float) -> int:
        return int((now + self.offset_s) // self.gap_s)

    def _begin(self, tick: int) -> float:
        return tick * self.gap_s - self.offset_s

    def _value(self, tick: int) -> float:
        return self.values[tick % len(self.values)]


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
    _fullest: float = field(init=False, repr=False, default=0.0)

    def __post_init__(self) -> None:
        if self.availability is not None:  # a trace has thousands of values, and a launch asks for its room
            object.__setattr__(self, "_fullest", max(self.availability.values))

    def played(self, since: float, *, speed: float) -> "Supply":
        """The same on another clock: see `Series.played`. What an hour costs stays what it is."""
        return replace(
            self,
            availability=self.availability and self.availability.played(since, speed=speed),
            prices=self.prices and self.prices.played(since, speed=speed),
            hazard_per_hour=self.hazard_per_hour * speed,
        )

    def price_at(self, now: float) -> float:
        return self.price_usd_hour if self.prices is None else self.prices.at(now)

    def slots_at(self, now: float) -> int:
        return self._slots_of(self.availability.at(now)) if self.availability is not None else self.slots

    def slots_until(self, now: float, ahead_s: float) -> int:
        """The fewest slots of a time ahead: a step down bounds launches as soon as it is announced."""
        if self.availability is None:
            return self.slots
        return min(self._slots_of(value) for _, value in self.availability.between(now, now + ahead_s))

    def _slots_of(self, value: float) -> int:
        return math.floor(value / self._fullest * self.slots) if self._fullest > 0 else 0


@dataclass(slots=True, kw_only=True)
class Capacity:
    """All supplies of an account and what is in use. `quotas` are vCPUs by region and capacity type, `addresses` free
    addresses by zone; what is not named has no limit. Mutable: tests change what they like between calls."""

    supplies: dict[CapacityPool, Supply]
    quotas: dict[tuple[str, CapacityType], float] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    exhausted: set[CapacityPool] = field(default_factory=set)
    """Pools that refuse whatever their slots say."""
    ahead_s: float = 0.0
    """How long before a step down launches see its lower number: the account's notice."""
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
        if pool in self.exhausted or self._machines[pool] >= supply.slots_until(now, self.ahead_s):
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
        return max(0, supply.slots_until(now, self.ahead_s) - self._machines[pool])

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
