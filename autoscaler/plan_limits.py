"""Part of plan: what may still be launched and registered in this tick: caps on machines and money, forges' budgets.

Pure. Everything is counted anew from the snapshot; `plan_supply` draws on it, pool after pool.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from autoscaler.model import Caps, Instance, InstanceState, Pool, Rules, Snapshot
from autoscaler.spi import CapacityType, ForgeName, PoolName, ProviderName

REGISTRATION_HORIZON = timedelta(seconds=60)
"""Machines are launched ahead of the registration budget by what it refills in about one boot."""

_NO_CAPS = Caps()


@dataclass(slots=True)
class Room:
    """What one set of caps still allows, and what to call it when it binds."""

    owner: str
    machines: float
    usd_per_hour: float
    usd_today: float

    def bounds(self, price: float, runtime_h: float) -> list[tuple[float, str]]:
        """How many machines of a price fit, by each cap."""
        bounds = [(self.machines, f"{self.owner} is at its cap of instances")]
        if price > 0:
            bounds.append((self.usd_per_hour / price, f"{self.owner} reached its cap usd_per_hour"))
            bounds.append((self.usd_today / (price * runtime_h), f"{self.owner} reached its cap usd_per_day"))
        return bounds

    def charge(self, count: int, price: float, runtime_h: float) -> None:
        self.machines -= count
        self.usd_per_hour -= count * price
        self.usd_today -= count * price * runtime_h


@dataclass(slots=True)
class Limits:
    """What may still be launched or minted in this tick, over all pools."""

    deployment: Room
    providers: dict[ProviderName, Room]
    spills: dict[PoolName, Room]
    """What a pool with spot may still spend on on_demand."""
    mint_now: dict[ForgeName, float]
    mint_soon: dict[ForgeName, float]

    def rooms(self, provider: ProviderName, *, spill_of: PoolName | None = None) -> list[Room]:
        """Every set of caps that a machine of a provider draws on; `spill_of`: an on_demand one in a pool with spot."""
        rooms = [self.deployment]
        if (own := self.providers.get(provider)) is not None:
            rooms.append(own)
        if spill_of is not None and (spill := self.spills.get(spill_of)) is not None:
            rooms.append(spill)
        return rooms


def limits_of(snapshot: Snapshot, rules: Rules, now: datetime) -> Limits:
    """All of it at the beginning of a tick."""
    horizon_s = REGISTRATION_HORIZON.total_seconds()
    rows, spent = list(snapshot.instances.values()), snapshot.spent_today_usd
    capped = {
        name: _room(
            f"provider {name}",
            caps,
            [row for row in rows if row.provider == name] if caps != _NO_CAPS else (),
            spent.get(name, 0.0),
            rules,
            now,
        )
        for name, caps in rules.provider_caps.items()
    }
    minting = _minting(snapshot)
    left = {name: forge.registrations_left - minting[name] for name, forge in snapshot.forges.items()}
    return Limits(
        deployment=_room("the deployment", rules.caps, rows, math.fsum(spent.values()), rules, now),
        providers=capped,
        spills={
            pool.name: _spill_room(pool, snapshot, rules, now)
            for pool in rules.pools.values()
            if pool.spot_enabled and pool.spill_caps != _NO_CAPS
        },
        mint_now={name: float(math.floor(count)) for name, count in left.items()},
        mint_soon={name: left[name] + forge.registrations_per_s * horizon_s for name, forge in snapshot.forges.items()},
    )


def _minting(snapshot: Snapshot) -> Counter[ForgeName]:
    """Registrations asked for whose answer is not there: the forge's budget may not show them yet."""
    return Counter(
        row.demand.forge
        for row in snapshot.instances.values()
        if row.state is InstanceState.REGISTERING and row.runner_id is None and row.demand is not None
    )


def _room(owner: str, caps: Caps, rows: Sequence[Instance], spent_usd: float, rules: Rules, now: datetime) -> Room:
    """Money is capped at commitment: an hour by the prices of what lives, a day by what was spent, what live machines
    have cost so far, and the longest that they may still run."""
    if caps == _NO_CAPS:
        return Room(owner=owner, machines=math.inf, usd_per_hour=math.inf, usd_today=math.inf)
    committed = math.fsum(
        row.price_usd_hour * ((now - row.created_at).total_seconds() / 3600 + runtime_h_of(rules.pools.get(row.pool)))
        for row in rows
    )
    hourly = math.fsum(row.price_usd_hour for row in rows)
    return Room(
        owner=owner,
        machines=math.inf if caps.instances is None else caps.instances - len(rows),
        usd_per_hour=math.inf if caps.usd_per_hour is None else caps.usd_per_hour - hourly,
        usd_today=math.inf if caps.usd_per_day is None else caps.usd_per_day - spent_usd - committed,
    )


def _spill_room(pool: Pool, snapshot: Snapshot, rules: Rules, now: datetime) -> Room:
    rows = [
        row
        for row in snapshot.instances.values()
        if row.pool == pool.name
        and row.capacity_pool is not None
        and row.capacity_pool.capacity_type is CapacityType.ON_DEMAND
    ]
    spent_usd = snapshot.on_demand_today_usd.get(pool.name, 0.0)
    return _room(f"the spill of pool {pool.name}", pool.spill_caps, rows, spent_usd, rules, now)


def runtime_h_of(pool: Pool | None) -> float:
    """The longest that a job of a pool may run, in hours."""
    return pool.max_job_runtime.total_seconds() / 3600 if pool is not None else 0.0
