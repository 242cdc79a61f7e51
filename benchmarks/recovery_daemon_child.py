"""Child: the daemon of `daemon_child` on a null cloud that has several capacity pools and takes machines back."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from autoscaler.spi import (
    CapacityPool,
    CapacityType,
    MachineState,
    Notice,
    NoticeKind,
    Offering,
    ProviderId,
    ProviderName,
    Shape,
)
from benchmarks.daemon_child import Daemon, open_daemon
from benchmarks.null_provider import PRICE_USD_HOUR, NullProvider

ZONES = 12
ON_DEMAND_FACTOR = 3.0


class ReclaimingProvider(NullProvider):
    """Announced reclaims are told at once by its queue; one that is not shows in a listing only, as a machine that
    ended, for no reason given."""

    def __init__(self, name: ProviderName) -> None:
        super().__init__(name)
        self._told: list[Notice] = []
        self._news = asyncio.Event()
        self._ending: set[asyncio.Task[None]] = set()

    async def offerings(self, shape: Shape) -> Sequence[Offering]:
        return [
            Offering(
                capacity_pool=CapacityPool(
                    provider=self.name, region="here", zone=f"here-{zone}", machine_type="null", capacity_type=kind
                ),
                cpus=4,
                memory_gib=16,
                arch="x86_64",
                price_usd_hour=PRICE_USD_HOUR * (1 + zone / 100) * factor,
            )
            for kind, factor in ((CapacityType.SPOT, 1.0), (CapacityType.ON_DEMAND, ON_DEMAND_FACTOR))
            for zone in range(ZONES)
        ]

    async def notices(self) -> Sequence[Notice]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                await self._news.wait()
        self._news.clear()
        return list(self._told)

    async def ack(self, notices: Sequence[Notice]) -> None:
        self._told = [one for one in self._told if one not in notices]

    async def reclaim(self, *, ids: list[str], notice_s: float) -> None:
        """Take machines; 0 is without notice."""
        machines = [ProviderId(id_) for id_ in ids]
        if notice_s <= 0:
            self._end(machines, is_reclaimed=False)
            return
        now = datetime.now(UTC)
        reclaim_at = now + timedelta(seconds=notice_s)
        for id_ in machines:
            self._machines[id_] = replace(self._machines[id_], is_reclaimed=True, reclaim_at=reclaim_at)
            told = Notice(
                provider_id=id_, kind=NoticeKind.RECLAIM, reclaim_at=reclaim_at, noticed_at=now, source="queue"
            )
            self._told.append(told)
        self._news.set()
        task = asyncio.create_task(self._end_later(machines, notice_s))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def aclose(self) -> None:
        for task in list(self._ending):
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _end_later(self, ids: Sequence[ProviderId], after_s: float) -> None:
        await asyncio.sleep(after_s)
        self._end(ids, is_reclaimed=True)

    def _end(self, ids: Sequence[ProviderId], *, is_reclaimed: bool) -> None:
        for id_ in ids:
            self._machines[id_] = replace(
                self._machines[id_], state=MachineState.TERMINATED, is_reclaimed=is_reclaimed, reclaim_at=None
            )


async def start(*, config_path: str, lifted: bool) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
    provider = ReclaimingProvider(ProviderName("here"))
    running = await open_daemon(config_path, lifted=lifted, make=lambda *_: {provider.name: provider})
    daemon = Daemon(running.core, provider)
    handlers = {"launched": daemon.launched, "state": daemon.state, "reclaim": provider.reclaim}
    return {"port": running.port}, handlers, running.aclose
