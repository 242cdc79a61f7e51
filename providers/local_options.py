"""The options of a `kind = "local"` provider section: parsed once, with errors that name the key.

state_dir       folder of all local machines (default: $XDG_STATE_HOME/ci-runner-autoscaler, /var/lib/... as root)
slots           machines at most, for each capacity pool
boot            {min_s, max_s}: pretended boot time; slow_share of boots takes slow_factor times as long; seed
refuse_share    share of launches on spot refused, as by a cloud that runs dry
notice_s        warning time of `interrupt`; 0: none
isolation       auto | bwrap | unshare | process
binds           folders and files of this host that machines under bwrap see as well, read-only
limits          whether machines are bounded: processes, and memory where their capacity pool says memory_gib
keep_ended_s    how long ended machines stay in listings
capacity_pools  nominal pools: [{machine_type, zone, cpus, memory_gib, arch, slots, price_usd_hour,
                on_demand_price_usd_hour}]; default: one, as large as this host, for nothing
"""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoscaler.spi import CapacityPool, CapacityType, Offering, ProviderSettings, SettingsError
from providers.local_isolation import RUNGS
from providers.local_view import problem_with_bind

_KEYS = frozenset(
    (
        *("state_dir", "slots", "boot", "slow_share", "slow_factor", "seed", "notice_s", "isolation", "keep_ended_s"),
        *("capacity_pools", "binds", "limits", "refuse_share"),
    )
)
_POOL_KEYS = frozenset(
    (
        *("machine_type", "zone", "cpus", "memory_gib", "arch", "slots"),
        *("price_usd_hour", "on_demand_price_usd_hour"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    state_dir: Path
    isolation: str
    binds: tuple[Path, ...]
    has_limits: bool
    boot_min_s: float
    boot_max_s: float
    slow_share: float
    slow_factor: float
    refuse_share: float
    seed: int
    notice_s: float
    keep_ended_s: float
    offerings: tuple[Offering, ...]
    slots: Mapping[CapacityPool, int]
    memory_gib: Mapping[CapacityPool, float]
    """Of the capacity pools that say it."""

    def boot_delay_s(self, name: str) -> float:
        """The pretended boot time of one machine: the same for the same seed and name."""
        dice = random.Random(f"{self.seed}/{name}")  # noqa: S311 - repeatable delays, not secrets
        delay = dice.uniform(self.boot_min_s, self.boot_max_s)
        return delay * self.slow_factor if dice.random() < self.slow_share else delay

    def is_refused(self, place: CapacityPool, token: str) -> bool:
        """Whether a launch there is refused: the same for the same seed and batch, so that a repeat changes nothing."""
        if place.capacity_type is not CapacityType.SPOT:
            return False
        dice = random.Random(f"{self.seed}/{token}/{place.key}")  # noqa: S311 - repeatable refusals, not secrets
        return dice.random() < self.refuse_share


def parse(settings: ProviderSettings) -> LocalOptions:
    """Raises SettingsError."""
    options = settings.options
    if unknown := sorted(set(options) - _KEYS):
        raise SettingsError(f"unknown option; allowed are {', '.join(sorted(_KEYS))}", key=unknown[0])
    isolation = str(options.get("isolation", "auto"))
    if isolation not in ("auto", *RUNGS):
        raise SettingsError(f"must be auto, {', '.join(RUNGS)}", key="isolation")
    boot = options.get("boot", {})
    if not isinstance(boot, Mapping) or not set(boot) <= {"min_s", "max_s"}:
        raise SettingsError("must be a table { min_s, max_s }", key="boot")
    boot_min_s = _number(boot, "min_s", 0.0, where="boot.")
    boot_max_s = _number(boot, "max_s", boot_min_s, where="boot.")
    if boot_max_s < boot_min_s:
        raise SettingsError("must not be less than min_s", key="boot.max_s")
    slow_share, refuse_share = _share(options, "slow_share"), _share(options, "refuse_share")
    has_limits = options.get("limits", True)
    if not isinstance(has_limits, bool):
        raise SettingsError("must be true or false", key="limits")
    offerings, slots = _capacity(settings)
    return LocalOptions(
        state_dir=Path(str(options.get("state_dir") or _default_state_dir())).expanduser().absolute(),
        isolation=isolation,
        binds=_binds(options.get("binds", [])),
        has_limits=has_limits,
        boot_min_s=boot_min_s,
        boot_max_s=boot_max_s,
        slow_share=slow_share,
        slow_factor=_number(options, "slow_factor", 5.0),
        refuse_share=refuse_share,
        seed=int(_number(options, "seed", 0)),
        notice_s=_number(options, "notice_s", 120.0),
        keep_ended_s=_number(options, "keep_ended_s", 600.0),
        offerings=offerings,
        slots=slots,
        memory_gib=_stated_memory(settings.options.get("capacity_pools") or [], offerings),
    )


def _share(options: Mapping[str, Any], key: str) -> float:
    share = _number(options, key, 0.0)
    if share > 1:
        raise SettingsError("must be a share from 0 to 1", key=key)
    return share


def _binds(value: Any) -> tuple[Path, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(one, str) for one in value):
        raise SettingsError("must be a list of absolute paths", key="binds")
    for index, one in enumerate(value):
        if problem := problem_with_bind(Path(one)):
            raise SettingsError(problem, key=f"binds[{index}]")
    return tuple(Path(one) for one in value)


def _stated_memory(tables: Sequence[Mapping[str, Any]], offerings: Sequence[Offering]) -> dict[CapacityPool, float]:
    stated = {str(table.get("machine_type", "host")) for table in tables if "memory_gib" in table}
    return {one.capacity_pool: one.memory_gib for one in offerings if one.capacity_pool.machine_type in stated}


def _capacity(settings: ProviderSettings) -> tuple[tuple[Offering, ...], dict[CapacityPool, int]]:
    tables = settings.options.get("capacity_pools") or [{}]
    default_slots = int(_number(settings.options, "slots", 4.0 * (os.cpu_count() or 1)))
    region = settings.regions[0] if settings.regions else "local"
    offerings: list[Offering] = []
    slots: dict[CapacityPool, int] = {}
    for index, table in enumerate(tables):
        where = f"capacity_pools[{index}]."
        if not isinstance(table, Mapping):
            raise SettingsError("must be a table", key=f"capacity_pools[{index}]")
        if unknown := sorted(set(table) - _POOL_KEYS):
            raise SettingsError(f"unknown key; allowed are {', '.join(sorted(_POOL_KEYS))}", key=where + unknown[0])
        spot_price = _number(table, "price_usd_hour", 0.0, where=where)
        prices = {
            CapacityType.SPOT: spot_price,
            CapacityType.ON_DEMAND: _number(table, "on_demand_price_usd_hour", spot_price, where=where),
        }
        for capacity_type, price in prices.items():
            capacity_pool = CapacityPool(
                provider=settings.name,
                region=region,
                zone=str(table.get("zone", region)),
                machine_type=str(table.get("machine_type", "host")),
                capacity_type=capacity_type,
            )
            if capacity_pool in slots:
                raise SettingsError("this machine type and zone occur twice", key=where + "machine_type")
            slots[capacity_pool] = int(_number(table, "slots", default_slots, where=where))
            offerings.append(
                Offering(
                    capacity_pool=capacity_pool,
                    cpus=_number(table, "cpus", os.cpu_count() or 1, where=where),
                    memory_gib=_number(table, "memory_gib", _host_memory_gib(), where=where),
                    arch=str(table.get("arch", _host_arch())),
                    price_usd_hour=price,
                )
            )
    return tuple(offerings), slots


def _number(table: Mapping[str, Any], key: str, default: float, *, where: str = "") -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise SettingsError("must be a number, 0 or more", key=where + key)
    return float(value)


def _default_state_dir() -> str:
    if os.getuid() == 0:
        return "/var/lib/ci-runner-autoscaler/local"
    state_home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return f"{state_home}/ci-runner-autoscaler/local"


def _host_memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _host_arch() -> str:
    machine = os.uname().machine
    return {"aarch64": "arm64", "amd64": "x86_64"}.get(machine, machine)
