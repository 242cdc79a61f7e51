"""What both clouds of `fleets` offer: machine types, zones, their sizes and prices, and calls counted at the face."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from autoscaler.sandbox.cloud_account import CloudTimes
from autoscaler.sandbox.cloud_capacity import Supply
from autoscaler.spi import CapacityPool, CapacityType, ProviderName

POOL_LINES = """boot_timeout = "1h"
[pool.shape]
cpus = "4..4"
memory = "16GiB..16GiB"
"""
"""No machine of `fleets` comes to life: what is measured is what a fleet costs before its agents speak."""
SLOTS = 4_000
"""Of each capacity pool: 10,000 machines must be spread, and none is refused."""
SPOT_USD_HOUR, ON_DEMAND_USD_HOUR = 0.08, 0.2
KEPT_S = 5.0
"""How long ended machines are listed."""
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def times() -> CloudTimes:
    return CloudTimes(kept_s=KEPT_S)


def supplies(provider: str, machine_types: Sequence[str], zones: Mapping[str, str]) -> list[Supply]:
    """Spot and on-demand supplies of every type in every zone (zone -> region), of one size each."""
    return [
        Supply(
            pool=CapacityPool(
                provider=ProviderName(provider),
                region=region,
                zone=zone,
                machine_type=machine_type,
                capacity_type=capacity_type,
            ),
            cpus=4,
            memory_gib=16.0,
            price_usd_hour=SPOT_USD_HOUR if capacity_type is CapacityType.SPOT else ON_DEMAND_USD_HOUR,
            slots=SLOTS,
        )
        for machine_type in machine_types
        for zone, region in zones.items()
        for capacity_type in CapacityType
    ]


@dataclass(slots=True)
class CallLog:
    """Calls that a face took: when (epoch seconds), what was called, for how many machines. `name_of` reads it from
    the request; the body can be read twice."""

    name_of: Callable[[web.Request], Awaitable[tuple[str, int]]]
    calls: list[tuple[float, str, int]] = field(default_factory=list)
    answered_bytes: int = 0

    @property
    def middleware(self) -> Any:
        @web.middleware
        async def count(request: web.Request, handler: _Handler) -> web.StreamResponse:
            at = time.time()
            name, machines = await self.name_of(request)
            self.calls.append((at, name, machines))
            response = await handler(request)
            if isinstance(response, web.Response) and isinstance(response.body, bytes):
                self.answered_bytes += len(response.body)
            return response

        return count

    async def counted(self) -> list[tuple[float, str, int]]:
        return self.calls
