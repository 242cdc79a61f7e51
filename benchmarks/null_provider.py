"""A cloud that launches at once, costs a fixed price and writes down when it was asked. Implements `spi.Provider`."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    CloudInstance,
    Evidence,
    Finding,
    Identity,
    IdentityRefused,
    InvalidRequest,
    LaunchBatch,
    LaunchResult,
    MachineState,
    Notice,
    Offering,
    PoolName,
    ProviderError,
    ProviderId,
    ProviderName,
    ProviderStatus,
    ProviderTraits,
    Shape,
)

PRICE_USD_HOUR = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """One machine and when its launch was called (monotonic seconds)."""

    provider_id: ProviderId
    batch: BatchToken
    pool: PoolName
    at: float


class NullProvider:
    """See the module docstring. `launched` is in order; `more` is set at each launch."""

    def __init__(self, name: ProviderName) -> None:
        self.name = name
        self.launched: list[Launched] = []
        self.more = asyncio.Event()
        self._machines: dict[ProviderId, CloudInstance] = {}
        self._batches: dict[BatchToken, list[ProviderId]] = {}

    @property
    def traits(self) -> ProviderTraits:
        return ProviderTraits()

    async def offerings(self, shape: Shape) -> Sequence[Offering]:
        pool = CapacityPool(
            provider=self.name, region="here", zone="here-a", machine_type="null", capacity_type=CapacityType.SPOT
        )
        return [Offering(capacity_pool=pool, cpus=4, memory_gib=16, arch="x86_64", price_usd_hour=PRICE_USD_HOUR)]

    async def launch(self, batch: LaunchBatch) -> LaunchResult:
        at = time.monotonic()
        ids = self._batches.get(batch.token)
        if ids is None:
            ids = self._batches[batch.token] = [self._make(batch, at) for _ in range(batch.count)]
            self.more.set()
            self.more = asyncio.Event()
        return LaunchResult(instances=tuple(self._machines[id_] for id_ in ids))

    def _make(self, batch: LaunchBatch, at: float) -> ProviderId:
        id_ = ProviderId(f"null-{len(self.launched)}")
        offering = batch.offerings[0]
        self._machines[id_] = CloudInstance(
            provider=self.name,
            provider_id=id_,
            token=batch.token,
            pool=batch.pool,
            state=MachineState.RUNNING,
            capacity_pool=offering.capacity_pool,
            price_usd_hour=offering.price_usd_hour,
            launched_at=datetime.now(UTC),
        )
        self.launched.append(Launched(provider_id=id_, batch=batch.token, pool=batch.pool, at=at))
        return id_

    async def list_instances(self) -> Sequence[CloudInstance]:
        return list(self._machines.values())

    async def describe(self, ids: Sequence[ProviderId]) -> Sequence[CloudInstance]:
        return [self._machines[id_] for id_ in ids if id_ in self._machines]

    async def terminate(self, ids: Sequence[ProviderId]) -> None:
        for id_ in ids:
            if id_ in self._machines:
                self._machines[id_] = replace(self._machines[id_], state=MachineState.TERMINATED)

    async def identify(self, evidence: Evidence) -> Identity:
        id_ = ProviderId(evidence.document.get("provider_id", ""))
        if id_ not in self._machines:
            raise IdentityRefused("no machine of ours", reason="unknown")
        return Identity(provider_id=id_)

    async def stop(self, ids: Sequence[ProviderId]) -> None:
        raise InvalidRequest("machines of this cloud cannot be stopped")

    async def start(self, ids: Sequence[ProviderId]) -> Mapping[ProviderId, ProviderError]:
        raise InvalidRequest("machines of this cloud cannot be stopped")

    def status(self) -> ProviderStatus:
        return ProviderStatus()

    async def check(self, images: Mapping[str, Mapping[str, str]]) -> Sequence[Finding]:
        return []

    async def notices(self) -> Sequence[Notice]:
        return []

    async def ack(self, notices: Sequence[Notice]) -> None:
        pass

    async def interrupt(self, ids: Sequence[ProviderId], *, is_announced: bool = True) -> None:
        await self.terminate(ids)

    async def aclose(self) -> None:
        pass
