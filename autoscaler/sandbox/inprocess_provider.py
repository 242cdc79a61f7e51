"""A cloud of a simulation as `spi.Provider`, without HTTP. Owns the words of the contract; machines are the world's."""

import hmac
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TypeVar, assert_never

from autoscaler.sandbox.cloud_capacity import Shortage
from autoscaler.sandbox.cloud_machines import BY_ITSELF
from autoscaler.sandbox.inprocess import AnswerLost, ClearRoad, Limited, RequestLost, Road, travel
from autoscaler.sandbox.inprocess_cloud import Cloud, Launched, evidence_of
from autoscaler.spi import (
    CapacityScope,
    CapacityUnavailable,
    CloudInstance,
    Evidence,
    Finding,
    Identity,
    IdentityRefused,
    InvalidRequest,
    LaunchBatch,
    LaunchResult,
    Notice,
    NoticeKind,
    Offering,
    OutcomeUnknown,
    ProviderError,
    ProviderId,
    ProviderName,
    ProviderStatus,
    ProviderTraits,
    QuotaExceeded,
    Refusal,
    Shape,
    Throttled,
)

EVIDENCE_WINDOW_S = 60.0
_R = TypeVar("_R")


class InProcessProvider:
    """`spi.Provider` over a cloud, for one deployment. `road` carries its calls.

    `on_launch`, `on_terminate` and `on_acknowledge` hear of each effect at the moment it happens, for invariants.
    """

    def __init__(
        self,
        cloud: Cloud,
        *,
        name: ProviderName,
        deployment: str,
        road: Road | None = None,
        on_launch: Callable[[LaunchBatch, Sequence[Launched]], None] = lambda _batch, _made: None,
        on_terminate: Callable[[Launched], None] = lambda _: None,
        on_acknowledge: Callable[[Launched], None] = lambda _: None,
    ) -> None:
        self._cloud = cloud
        self._world = cloud.world
        self._name = name
        self._deployment = deployment
        self._road = road or ClearRoad()
        self._on_launch = on_launch
        self._on_terminate = on_terminate
        self._on_acknowledge = on_acknowledge

    @property
    def name(self) -> ProviderName:
        return self._name

    @property
    def traits(self) -> ProviderTraits:
        return ProviderTraits()

    async def offerings(self, shape: Shape) -> Sequence[Offering]:
        def read() -> list[Offering]:
            return [o for o in self._world.offerings(self._name, self._cloud.now) if _fits(o, shape)]

        return await self._call("offerings", read)

    async def launch(self, batch: LaunchBatch) -> LaunchResult:
        def make() -> LaunchResult:
            try:
                made, refused = self._world.launch(self._deployment, batch, self._cloud.now)
            except ValueError as error:
                raise InvalidRequest(str(error)) from error
            self._on_launch(batch, made)
            refusals = (Refusal(offering=offering, error=_error(shortage, offering)) for offering, shortage in refused)
            return LaunchResult(instances=tuple(map(_shown, made)), refusals=tuple(refusals))

        return await self._call("launch", make)

    async def list_instances(self) -> Sequence[CloudInstance]:
        def read() -> list[CloudInstance]:
            return [_shown(m) for m in self._world.listed(self._deployment, self._name, self._cloud.now)]

        return await self._call("list_instances", read)

    async def describe(self, ids: Sequence[ProviderId]) -> Sequence[CloudInstance]:
        return await self._call("describe", lambda: [_shown(machine) for machine in self._ours(ids)])

    def _ours(self, ids: Sequence[ProviderId]) -> list[Launched]:
        found = (self._world.machine(id_) for id_ in ids)
        return [m for m in found if m is not None and (m.deployment, m.provider) == (self._deployment, self._name)]

    async def terminate(self, ids: Sequence[ProviderId]) -> None:
        def end() -> None:
            for machine in self._ours(ids):
                if machine.is_up:
                    self._on_terminate(machine)
                    self._cloud.terminate(machine.provider_id)

        await self._call("terminate", end)

    async def identify(self, evidence: Evidence) -> Identity:
        document = evidence.document
        try:
            id_, moment, signed = ProviderId(document["instance_id"]), document["time"], document["signature"]
            at = datetime.fromtimestamp(int(moment), UTC)
        except (KeyError, ValueError) as error:
            raise IdentityRefused("not evidence", reason="signature") from error
        ours = self._ours([id_])
        if not ours or not ours[0].is_up:
            raise IdentityRefused(f"no such machine {id_}", reason="unknown")
        expected = evidence_of(ours[0], evidence.claim, int(moment))["signature"]
        if not hmac.compare_digest(expected.encode(), signed.encode()):
            raise IdentityRefused("the signature does not match", reason="signature")
        if abs((evidence.received_at - at).total_seconds()) > EVIDENCE_WINDOW_S:
            raise IdentityRefused("the evidence is too old", reason="window")
        return Identity(provider_id=id_)

    async def stop(self, ids: Sequence[ProviderId]) -> None:
        raise InvalidRequest(f"{self._name}: machines cannot be stopped")

    async def start(self, ids: Sequence[ProviderId]) -> Mapping[ProviderId, ProviderError]:
        raise InvalidRequest(f"{self._name}: machines cannot be stopped")

    def status(self) -> ProviderStatus:
        return ProviderStatus()

    async def check(self, images: Mapping[str, Mapping[str, str]]) -> Sequence[Finding]:
        return []

    async def notices(self) -> Sequence[Notice]:
        """At once what there is; only what there is travels."""
        if not self._world.notices(self._deployment, self._name, self._cloud.now):
            return ()
        return await self._call("notices", lambda: self._world.hand_out(self._deployment, self._name, self._cloud.now))

    async def ack(self, notices: Sequence[Notice]) -> None:
        def forget() -> None:
            for launched in self._ours([notice.provider_id for notice in notices if notice.kind is NoticeKind.RECLAIM]):
                self._on_acknowledge(launched)
            self._world.forget(notices)

        await self._call("ack", forget)

    async def interrupt(self, ids: Sequence[ProviderId], *, is_announced: bool = True) -> None:
        def take() -> None:
            for launched in self._ours(ids):
                self._cloud.reclaim(launched.provider_id, notice_s=None if is_announced else 0.0)

        await self._call("interrupt", take)

    async def aclose(self) -> None:
        """Nothing is held open."""

    async def _call(self, call: str, effect: Callable[[], _R]) -> _R:
        """One call; the road's troubles in the words of the contract."""
        try:
            return await travel(self._road, self._name, call, lambda: self._settled(effect))
        except Limited as error:
            raise Throttled(str(error), retry_after_s=2.0) from error
        except (RequestLost, AnswerLost) as error:
            if call in ("launch", "terminate"):
                raise OutcomeUnknown(str(error)) from error
            raise ProviderError(str(error)) from error

    def _settled(self, effect: Callable[[], _R]) -> _R:
        self._cloud.settle()
        try:
            return effect()
        finally:
            self._cloud.settle()


def _fits(offering: Offering, shape: Shape) -> bool:
    name = offering.capacity_pool.machine_type
    return (
        shape.cpus.admits(offering.cpus)
        and shape.memory_gib.admits(offering.memory_gib)
        and shape.arch == offering.arch
        and shape.gpus == offering.gpus
        and (not shape.types or any(fnmatchcase(name, glob) for glob in shape.types))
        and not any(fnmatchcase(name, glob) for glob in shape.exclude)
    )


def _error(shortage: Shortage, offering: Offering) -> ProviderError:
    place = offering.capacity_pool
    match shortage:
        case Shortage.CAPACITY:
            return CapacityUnavailable(f"no room for {place.key}")
        case Shortage.UNSUPPORTED:
            return CapacityUnavailable(f"{place.key} is not offered", is_lasting=True)
        case Shortage.QUOTA:
            scope = CapacityScope(region=place.region, capacity_type=place.capacity_type)
            return QuotaExceeded(f"the vCPUs of {place.region} are in use", scope=scope)
        case Shortage.ADDRESSES:
            return QuotaExceeded(f"no free address in {place.zone}", scope=CapacityScope(zone=place.zone))
        case _:
            assert_never(shortage)


def _shown(launched: Launched) -> CloudInstance:
    machine = launched.machine
    is_warned = machine.is_up and machine.noticed_at is not None and machine.reclaim_at is not None
    return CloudInstance(
        provider=launched.provider,
        provider_id=launched.provider_id,
        token=launched.token,
        pool=launched.pool,
        state=machine.state,
        capacity_pool=machine.capacity_pool,
        price_usd_hour=machine.price_usd_hour,
        launched_at=datetime.fromtimestamp(machine.launched_at, UTC),
        end_detail=machine.reason,
        ended_by_itself=machine.reason == BY_ITSELF,
        is_reclaimed=machine.was_taken or is_warned,
        reclaim_at=datetime.fromtimestamp(machine.reclaim_at, UTC) if is_warned and machine.reclaim_at else None,
    )
