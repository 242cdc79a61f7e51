"""World files: capacity pools, traces and times of the sandbox's clouds, read from TOML and JSON.

Owns the formats (a world names its traces relative to itself) and what is said when one is wrong. Values it does not
name keep their defaults; keys for other parts of a simulation (forges, billing) are left to those.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoscaler.sandbox.cloud_account import CloudTimes
from autoscaler.sandbox.cloud_capacity import Series, Supply
from autoscaler.sandbox.cloud_spans import Lognormal, Span, faster
from autoscaler.spi import CapacityPool, CapacityType, ProviderName


class WorldError(ValueError):
    """A world file is wrong; the text names the table and the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudWorldFile:
    """What a world file says of clouds. `unannounced` is the share of reclaims without a notice; `stoppable` the
    capacity types whose machines can be stopped."""

    supplies: tuple[Supply, ...]
    times: CloudTimes
    unannounced: float
    stoppable: frozenset[CapacityType]


def load_world(
    path: Path, *, provider: ProviderName | None = None, usual: CloudTimes | None = None, speed: float = 1.0
) -> CloudWorldFile:
    """A world file with the traces that it names. `provider` renames those of its capacity pools. Times that it does
    not name are the `usual` ones; those that it names are divided by `speed`. Raises WorldError."""
    world = _read(path)
    try:
        unannounced = float(world.get("unannounced", 0.0))
        stoppable = frozenset(CapacityType(one) for one in world.get("stoppable", CapacityType))
        times = _times(world, usual or CloudTimes(), speed)
    except (KeyError, TypeError, ValueError) as error:
        raise WorldError(f"{path}: {_text(error)}") from error
    if not 0 <= unannounced <= 1:
        raise WorldError(f"{path}: unannounced: {unannounced} is no share from 0 to 1")
    return CloudWorldFile(
        supplies=tuple(_supplies(world, path, provider)), times=times, unannounced=unannounced, stoppable=stoppable
    )


def load_supplies(path: Path, *, provider: ProviderName | None = None) -> list[Supply]:
    """The capacity pools of a world file alone. Raises WorldError."""
    return _supplies(_read(path), path, provider)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorldError(f"{path}: {error}") from error


def _supplies(world: Mapping[str, Any], path: Path, provider: ProviderName | None) -> list[Supply]:
    tables = world.get("capacity_pool", [])
    if not isinstance(tables, list):
        raise WorldError(f"{path}: capacity_pool must be an array of tables, [[capacity_pool]]")
    use_prices = bool(world.get("use_trace_prices", False))
    return [_supply(table, index, path, provider=provider, use_prices=use_prices) for index, table in enumerate(tables)]


def _times(world: Mapping[str, Any], usual: CloudTimes, speed: float) -> CloudTimes:
    boot = world.get("boot", {})
    named: dict[str, Any] = {}
    if "cold" in boot:
        named["boot"] = faster(_span(boot["cold"]), speed)
    if "start" in boot:
        named["start"] = faster(_span(boot["start"]), speed)
    if "stop_s" in boot:
        named["stop"] = faster((float(boot["stop_s"]), float(boot["stop_s"])), speed)
    if "notice_s" in world:
        named["notice_s"] = float(world["notice_s"]) / speed
    return replace(usual, **named)


def _span(table: Mapping[str, Any]) -> Span:
    least, most = float(table["min_s"]), float(table["max_s"])
    if not 0 <= least <= most:
        raise ValueError(f"min_s {least} and max_s {most} are no range")
    if "median_s" not in table:
        return least, most
    return Lognormal(median_s=float(table["median_s"]), sigma=float(table["sigma"]), min_s=least, max_s=most)


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
            gpus=int(str(table.get("gpus", 0))),
            price_usd_hour=float(str(table["price_usd_hour"])),
            slots=int(str(table.get("slots", 100))),
            availability=availability,
            prices=prices if use_prices else None,
            hazard_per_hour=float(str(table.get("hazard_per_hour", 0.0))),
        )
    except (KeyError, ValueError) as error:
        raise WorldError(f"{path}: capacity_pool[{index}]: {_text(error)}") from error


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


def _text(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
