"""The demo's machines from outside the daemon: what the provider still lists, and which processes are still there.

A process belongs to the demo when it has no terminal and its command line, environment, working folder or mounts name
the demo's folder, or when it descends from such a one. (Somebody's `tail -f` of the log has a terminal; what we start
has none.) The demo itself does not count.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.config import Config
from autoscaler.core import runner_prefix
from autoscaler.plugins import make_providers
from autoscaler.spi import (
    CapacityType,
    MachineState,
    Offering,
    PoolName,
    Provider,
    ProviderError,
    ProviderTraits,
    Shape,
    Surroundings,
)

PROC = Path("/proc")
KILL_S = 10.0
_TRIES = 40
_TRY_AGAIN_S = 0.5


class DemoMachines:
    """The configured providers, beside the daemon's own."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._calls = Calls()
        name = config.autoscaler.name
        surroundings = Surroundings(
            deployment=name,
            runner_prefix=runner_prefix(name),
            clock=SystemClock(),
            gates=self._calls,
            public_url=lambda: config.autoscaler.public_url,
        )
        self._providers: Sequence[Provider] = list(make_providers(config, surroundings).values())

    async def living(self) -> int:
        """Machines that a provider lists and that have not ended."""
        listings = [await provider.list_instances() for provider in self._providers]
        return sum(1 for listing in listings for one in listing if one.state is not MachineState.TERMINATED)

    async def terminate_all(self) -> None:
        for provider in self._providers:
            listing = await provider.list_instances()
            await provider.terminate([one.provider_id for one in listing if one.state is not MachineState.TERMINATED])

    async def on_demand_prices(self) -> Mapping[PoolName, float | None]:
        """USD per hour of each pool's cheapest on-demand offering that fits."""
        prices: dict[PoolName, float | None] = {}
        for pool in self._config.pools:
            found = [
                offering.price_usd_hour
                for provider in self._providers
                if provider.name in pool.providers
                for offering in await _offerings(provider, pool.shape)
                if offering.capacity_pool.capacity_type is CapacityType.ON_DEMAND
            ]
            prices[pool.name] = min(found, default=None) or None
        return prices

    @property
    def traits(self) -> ProviderTraits:
        """How the demo's one provider bills."""
        return self._providers[0].traits

    async def aclose(self) -> None:
        for provider in self._providers:
            await provider.aclose()
        await self._calls.aclose()


async def _offerings(provider: Provider, shape: Shape) -> Sequence[Offering]:
    """The demo's own question: its faults befall it like the daemon's calls, so that it is asked again."""
    for _ in range(_TRIES):
        with contextlib.suppress(ProviderError):
            return await provider.offerings(shape)
        await asyncio.sleep(_TRY_AGAIN_S)
    return await provider.offerings(shape)


def processes_of(folder: Path) -> list[int]:
    """Processes of the demo whose folder this is, by pid. Blocking, some milliseconds."""
    needle = os.fsencode(folder)
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent, _, _, terminal = (entry / "stat").read_text().rpartition(")")[2].split()[:5]
            if state in ("Z", "X"):
                continue
            parents[pid] = int(parent)
            if terminal == "0" and _names(entry, needle):
                found.add(pid)
    found.discard(os.getpid())
    grows = True
    while grows:
        children = {pid for pid, parent in parents.items() if parent in found} - found - {os.getpid()}
        found |= children
        grows = bool(children)
    return sorted(found)


def _names(entry: Path, needle: bytes) -> bool:
    for name in ("cmdline", "environ", "mountinfo"):
        with contextlib.suppress(OSError):
            if needle in (entry / name).read_bytes():
                return True
    with contextlib.suppress(OSError):
        return needle in os.fsencode((entry / "cwd").readlink())
    return False


async def end_processes(folder: Path) -> int:
    """SIGKILL everything of the demo until nothing is left; returns how many could not be ended."""
    deadline = time.monotonic() + KILL_S
    while left := await asyncio.to_thread(processes_of, folder):
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return len(left)
        await asyncio.sleep(0.05)
    return 0
