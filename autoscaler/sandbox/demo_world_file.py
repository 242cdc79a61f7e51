"""The world of `--world`: a file's capacity pools, traces and times in place of the demo's own.

Owns the choice of what in the file is this cloud's, its names where it was another cloud's, its clock, and what the
demo's pools ask for in it. The format is `cloud_world_file`'s. The file's beginning is the demo's.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoscaler.sandbox.cloud_account import CloudTimes
from autoscaler.sandbox.cloud_capacity import Supply
from autoscaler.sandbox.cloud_spans import limits
from autoscaler.sandbox.cloud_world_file import WorldError, load_world
from autoscaler.sandbox.demo_cloud import BOOT_S, NOTICE_S, Pace
from autoscaler.sandbox.demo_options import DemoError
from autoscaler.sandbox.demo_pools import SMALL, DemoPool
from autoscaler.spi import CapacityPool, ProviderName

USUAL = CloudTimes(boot=BOOT_S, shown_after=(0.0, 1.0), notice_s=NOTICE_S, kept_s=30.0)
"""The demo's own times, also for what a file does not say."""
_ARCH = "x86_64"
"""Of the demo's image, and so of its pools."""
_LONG_BOOT_S = 15.0
_LONGEST_AREA = 5
"""Letters of the first word of a region on AWS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudWorld:
    """What there is of a cloud. `unannounced` is the share of reclaims without a notice; `file` is "" for the demo's
    own world."""

    supplies: Sequence[Supply]
    times: CloudTimes
    unannounced: float = 0.0
    file: str = ""
    speed: float = 1.0

    @property
    def pace(self) -> Pace:
        return Pace(boot_s=limits(self.times.boot), notice_s=self.times.notice_s)


def recorded_world(path: Path, *, kind: str, speed: float) -> CloudWorld:
    """The file's capacity pools of this kind of cloud; where it knows only others, all of them, renamed. Its time
    starts now and runs `speed` times as fast. Raises DemoError."""
    try:
        world = load_world(path, usual=USUAL, speed=speed)
    except WorldError as error:
        raise DemoError(f"--world: {error}") from error
    own = [one for one in world.supplies if one.pool.provider == kind]
    named = own or [_renamed(one, kind) for one in world.supplies]
    if not named:
        raise DemoError(f"--world: {path} has no capacity pools: add [[capacity_pool]] tables")
    for one in named:
        _check_place(path, one.pool, kind)
    since = time.time()
    return CloudWorld(
        supplies=[one.played(since, speed=speed) for one in named],
        times=world.times,
        unannounced=world.unannounced,
        file=path.name,
        speed=speed,
    )


def expectations(world: CloudWorld) -> list[str]:
    """What a person should know of a recorded world before they wait for it."""
    zones = {one.pool.zone for one in world.supplies}
    pace = world.pace
    (least, most), speed = pace.boot_s, world.speed
    found = [
        f"world {world.file}: {len(world.supplies)} capacity pools in {len(zones)} zones, {speed:g}x as fast; machines "
        f"boot in {least:.3g} to {most:.3g} s, notices come {pace.notice_s:.3g} s ahead"
    ]
    if most > _LONG_BOOT_S:
        found.append(
            f"expect jobs to wait for such boots and the demo to take minutes beyond its --duration; "
            f"--speed {speed * most / BOOT_S[1]:.0f} makes boots as short as in the demo's own world"
        )
    return found


# --------------------------------------------------------------------------- names


def _renamed(supply: Supply, kind: str) -> Supply:
    """Regions, zones and machine types in the other cloud's spelling."""
    pool = supply.pool
    letter = pool.zone.removeprefix(pool.region).strip("-")
    if kind == "gce":
        region = re.sub(r"-(\d+)$", r"\1", pool.region)
        zone, machine_type = f"{region}-{letter}", re.sub(r"[^a-z0-9]+", "-", pool.machine_type.lower())
    else:
        area, _, rest = re.sub(r"(?<=[a-z])(\d+)$", r"-\1", pool.region).partition("-")
        region = f"{area if len(area) <= _LONGEST_AREA else area[:2]}-{rest}"
        zone, machine_type = f"{region}{letter}", pool.machine_type
    renamed = replace(pool, provider=ProviderName(kind), region=region, zone=zone, machine_type=machine_type)
    return replace(supply, pool=renamed)


_PLACES = {
    "aws": (re.compile(r"[a-z]{2,5}(-[a-z]+)+-[0-9]+"), "{region}[a-z]", "us-east-1 and us-east-1a"),
    "gce": (re.compile(r"[a-z]+(-[a-z]+)+[0-9]+"), "{region}-[a-z]", "us-central1 and us-central1-a"),
}


def _check_place(path: Path, pool: CapacityPool, kind: str) -> None:
    regions, zones, example = _PLACES[kind]
    is_zone = re.fullmatch(zones.format(region=re.escape(pool.region)), pool.zone)
    if not regions.fullmatch(pool.region) or not is_zone:
        raise DemoError(
            f"--world: {path}: region {pool.region!r} with zone {pool.zone!r}: write a region and one of its zones as "
            f"{kind} names them, as in {example}"
        )


# --------------------------------------------------------------------------- shapes


def shape_in(world: CloudWorld, pool: DemoPool, say: Callable[[str], None]) -> str:
    """What a pool asks for: at least its nominal size; where the world has none so large, at least what the smallest
    pool asks for. Raises DemoError."""
    nominal, least = pool.machine_type, SMALL.cpus
    if _has(world, cpus=nominal.cpus, memory_gib=nominal.memory_gib):
        return f'cpus = "{nominal.cpus}.."\nmemory = "{nominal.memory_gib}GiB.."'
    if not _has(world, cpus=least, memory_gib=0):
        raise DemoError(
            f"--world: nothing in {world.file} fits the pool {pool.name}: it needs a capacity pool of {_ARCH} with "
            f"{least} CPUs or more and no GPU"
        )
    say(
        f"pool {pool.name} takes any machine of {least} CPUs or more: {world.file} has none of {nominal.cpus} CPUs and "
        f"{nominal.memory_gib} GiB"
    )
    return f'cpus = "{least}.."'


def _has(world: CloudWorld, *, cpus: int, memory_gib: int) -> bool:
    return any(
        one.cpus >= cpus and one.memory_gib >= memory_gib and one.arch == _ARCH and not one.gpus
        for one in world.supplies
    )
