"""A cloud without HTTP: a pure world of machines, the driver that lets them boot, and an `spi.Provider` over it.

    PENDING --boot--> RUNNING --terminate--> TERMINATING --stop--> TERMINATED --kept_s--> forgotten
       +-- terminate, dies ---+-- dies, powers itself off ------------^

`CloudWorld` knows no clock: each method takes `now` in epoch seconds, chance is seeded. A machine proves itself as a
local one does: an HMAC over its id, the time and the hash of its claim key, with a key of its own.
"""

import hashlib
import hmac
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TypeVar

from autoscaler.sandbox.inprocess import (
    AnswerLost,
    ClearRoad,
    Limited,
    RequestLost,
    Road,
    WorldTimer,
    travel,
)
from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    CapacityUnavailable,
    Clock,
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
    OutcomeUnknown,
    PoolName,
    ProviderError,
    ProviderId,
    ProviderName,
    ProviderStatus,
    ProviderTraits,
    Refusal,
    Shape,
    Throttled,
)

EVIDENCE_WINDOW_S = 60.0
_LIVE = frozenset({MachineState.PENDING, MachineState.RUNNING})
_R = TypeVar("_R")


@dataclass(slots=True, kw_only=True)
class CloudPolicy:
    """How this cloud behaves; times in seconds, shares from 0 to 1. Mutable, so that faults can be ended.

    `slow_share` of boots take five times as long; `silent_share` of machines boot and never say a word;
    `refuse_share` of machines asked for are refused although there is room. A machine shows up in listings
    `shown_after` seconds after its launch, and `kept_s` after its end no more.
    """

    boot: tuple[float, float] = (2.0, 6.0)
    stop: tuple[float, float] = (0.5, 3.0)
    shown_after: tuple[float, float] = (0.0, 0.0)
    kept_s: float = 600.0
    slow_share: float = 0.0
    silent_share: float = 0.0
    refuse_share: float = 0.0
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Machine:
    """One machine. `key` is what proves it; `is_silent` ones never run their agent."""

    provider_id: ProviderId
    deployment: str
    provider: ProviderName
    token: BatchToken
    pool: PoolName
    capacity_pool: CapacityPool
    price_usd_hour: float
    launched_at: float
    shown_at: float
    due_at: float
    user_data: str
    key: bytes = field(repr=False)
    is_silent: bool = False
    state: MachineState = MachineState.PENDING
    ended_at: float | None = None
    end_detail: str = ""

    @property
    def is_up(self) -> bool:
        return self.state in _LIVE


class CloudWorld:
    """Machines of every deployment on one account. `slots` is the room of each offering."""

    def __init__(
        self,
        offerings: Sequence[Offering],
        *,
        slots: Mapping[CapacityPool, int],
        images: frozenset[str],
        policy: CloudPolicy | None = None,
    ) -> None:
        self.policy = policy or CloudPolicy()
        self.offerings = tuple(offerings)
        self.images = images
        self.machines: dict[ProviderId, Machine] = {}
        self.made_of: dict[tuple[str, BatchToken], list[ProviderId]] = {}
        self._slots = dict(slots)
        self._dice = random.Random(f"{self.policy.seed}/cloud")  # noqa: S311 - repeatable, no secret
        self._ids = itertools.count(1)

    def launch(self, deployment: str, batch: LaunchBatch, now: float) -> tuple[list[Machine], list[Offering]]:
        """The machines of the batch's token, up to its count, and the offerings that refused. ValueError: bad image."""
        for reference in batch.image.values():
            if reference not in self.images:
                raise ValueError(f"no image {reference}")
        made = self.made_of.setdefault((deployment, batch.token), [])
        refused: list[Offering] = []
        for offering in batch.offerings:
            while len(made) < batch.count:
                if self._room(offering.capacity_pool) <= 0 or self._dice.random() < self.policy.refuse_share:
                    refused.append(offering)
                    break
                made.append(self._make(deployment, batch, offering, now).provider_id)
        return [self.machines[id_] for id_ in made if id_ in self.machines], refused

    def _room(self, capacity_pool: CapacityPool) -> int:
        used = sum(1 for m in self.machines.values() if m.capacity_pool == capacity_pool and m.ended_at is None)
        return self._slots.get(capacity_pool, 0) - used

    def _make(self, deployment: str, batch: LaunchBatch, offering: Offering, now: float) -> Machine:
        number = next(self._ids)
        boot_s = self._between(self.policy.boot) * (5 if self._dice.random() < self.policy.slow_share else 1)
        machine = Machine(
            provider_id=ProviderId(f"m-{number:05}"),
            deployment=deployment,
            provider=offering.capacity_pool.provider,
            token=batch.token,
            pool=batch.pool,
            capacity_pool=offering.capacity_pool,
            price_usd_hour=offering.price_usd_hour,
            launched_at=now,
            shown_at=now + self._between(self.policy.shown_after),
            due_at=now + boot_s,
            user_data=batch.user_data,
            key=hashlib.sha256(f"{self.policy.seed}/{number}/machine".encode()).digest(),
            is_silent=self._dice.random() < self.policy.silent_share,
        )
        self.machines[machine.provider_id] = machine
        return machine

    def _between(self, bounds: tuple[float, float]) -> float:
        return self._dice.uniform(*bounds)

    def terminate(self, id_: ProviderId, now: float, *, detail: str = "terminated") -> None:
        """The machine loses power now; it is listed as terminating for a moment."""
        machine = self.machines[id_]
        if machine.is_up:
            machine.state, machine.end_detail = MachineState.TERMINATING, detail
            machine.due_at = now + self._between(self.policy.stop)

    def die(self, id_: ProviderId, now: float, *, detail: str) -> None:
        """The machine is gone at once: taken away, or powered off by itself."""
        machine = self.machines[id_]
        if machine.ended_at is None:
            machine.state, machine.end_detail, machine.ended_at = MachineState.TERMINATED, detail, now
            machine.due_at = now + self.policy.kept_s

    def listed(self, deployment: str, provider: ProviderName, now: float) -> list[Machine]:
        return [
            machine
            for machine in self.machines.values()
            if (machine.deployment, machine.provider) == (deployment, provider) and machine.shown_at <= now
        ]

    def next_due(self) -> float | None:
        """When `advance` has something to do."""
        return min((m.due_at for m in self.machines.values() if m.due_at < float("inf")), default=None)

    def advance(self, now: float) -> list[Machine]:
        """Let boots and stops end; the machines that have booted by now."""
        booted = []
        for machine in list(self.machines.values()):
            if machine.due_at > now:
                continue
            match machine.state:
                case MachineState.PENDING:
                    machine.state, machine.due_at = MachineState.RUNNING, float("inf")
                    booted.append(machine)
                case MachineState.TERMINATING:
                    machine.state, machine.ended_at = MachineState.TERMINATED, now
                    machine.due_at = now + self.policy.kept_s
                case _:
                    del self.machines[machine.provider_id]
        return booted


class Cloud:
    """A world on a clock. `booted` starts what runs on a machine, `gone` ends it at once."""

    def __init__(
        self,
        world: CloudWorld,
        clock: Clock,
        *,
        booted: Callable[[Machine], None] = lambda _: None,
        gone: Callable[[Machine], None] = lambda _: None,
    ) -> None:
        self.world = world
        self.clock = clock
        self._booted = booted
        self._gone = gone
        self._timer = WorldTimer(clock, next_at=world.next_due, due=self.settle)

    @property
    def now(self) -> float:
        return self.clock.now().timestamp()

    def settle(self) -> None:
        """Call after every change of the world."""
        for machine in self.world.advance(self.now):
            if not machine.is_silent:
                self._booted(machine)
        self._timer.reset()

    def terminate(self, id_: ProviderId) -> None:
        machine = self.world.machines[id_]
        was_up = machine.is_up
        self.world.terminate(id_, self.now)
        if was_up:
            self._gone(machine)
        self.settle()

    def die(self, id_: ProviderId, detail: str) -> None:
        """Taken away without a word, or powered off by itself ("exit 0")."""
        machine = self.world.machines.get(id_)
        if machine is None or machine.ended_at is not None:
            return
        self.world.die(id_, self.now, detail=detail)
        self._gone(machine)
        self.settle()

    def stop(self) -> None:
        self._timer.stop()


def evidence_of(machine: Machine, claim: str, at: float) -> dict[str, str]:
    """What the machine sends to prove itself, at epoch seconds."""
    moment = str(int(at))
    message = f"{machine.provider_id}|{moment}|{claim}".encode()
    signed = hmac.new(machine.key, message, hashlib.sha256).hexdigest()
    return {"instance_id": machine.provider_id, "time": moment, "signature": signed}


class InProcessProvider:
    """`spi.Provider` over a cloud, for one deployment. `road` carries its calls.

    `on_launch` and `on_terminate` hear of each effect at the moment it happens, for invariants.
    """

    def __init__(
        self,
        cloud: Cloud,
        *,
        name: ProviderName,
        deployment: str,
        road: Road | None = None,
        on_launch: Callable[[LaunchBatch, Sequence[Machine]], None] = lambda _batch, _made: None,
        on_terminate: Callable[[Machine], None] = lambda _: None,
    ) -> None:
        self._cloud = cloud
        self._world = cloud.world
        self._name = name
        self._deployment = deployment
        self._road = road or ClearRoad()
        self._on_launch = on_launch
        self._on_terminate = on_terminate

    @property
    def name(self) -> ProviderName:
        return self._name

    @property
    def traits(self) -> ProviderTraits:
        return ProviderTraits()

    async def offerings(self, shape: Shape) -> Sequence[Offering]:
        def read() -> list[Offering]:
            return [o for o in self._world.offerings if o.capacity_pool.provider == self._name and _fits(o, shape)]

        return await self._call("offerings", read)

    async def launch(self, batch: LaunchBatch) -> LaunchResult:
        def make() -> LaunchResult:
            try:
                made, refused = self._world.launch(self._deployment, batch, self._cloud.now)
            except ValueError as error:
                raise InvalidRequest(str(error)) from error
            self._on_launch(batch, made)
            refusals = (
                Refusal(offering=offering, error=CapacityUnavailable(f"no room for {offering.capacity_pool.key}"))
                for offering in refused
            )
            return LaunchResult(instances=tuple(map(_shown, made)), refusals=tuple(refusals))

        return await self._call("launch", make)

    async def list_instances(self) -> Sequence[CloudInstance]:
        def read() -> list[CloudInstance]:
            return [_shown(m) for m in self._world.listed(self._deployment, self._name, self._cloud.now)]

        return await self._call("list_instances", read)

    async def describe(self, ids: Sequence[ProviderId]) -> Sequence[CloudInstance]:
        return await self._call("describe", lambda: [_shown(machine) for machine in self._ours(ids)])

    def _ours(self, ids: Sequence[ProviderId]) -> list[Machine]:
        found = (self._world.machines.get(id_) for id_ in ids)
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
        """This cloud takes machines without a warning."""
        return ()

    async def ack(self, notices: Sequence[Notice]) -> None:
        """There are none to acknowledge."""

    async def interrupt(self, ids: Sequence[ProviderId]) -> None:
        def take() -> None:
            for machine in self._ours(ids):
                self._cloud.die(machine.provider_id, "interrupted")

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


def local_offerings(
    provider: ProviderName, prices: Mapping[str, float], on_demand: Mapping[str, float] | None = None
) -> list[Offering]:
    """Offerings of two cores each, by machine type: spot, and where it is priced so, on demand."""
    shape = Offering(
        capacity_pool=_capacity_pool(provider, "small", CapacityType.SPOT),
        cpus=2,
        memory_gib=8,
        arch="x86_64",
        price_usd_hour=0.0,
    )
    return [
        replace(shape, capacity_pool=_capacity_pool(provider, name, word), price_usd_hour=price)
        for word, priced in ((CapacityType.SPOT, prices), (CapacityType.ON_DEMAND, on_demand or {}))
        for name, price in sorted(priced.items())
    ]


def _capacity_pool(provider: ProviderName, machine_type: str, word: CapacityType) -> CapacityPool:
    return CapacityPool(provider=provider, region="here", zone="here", machine_type=machine_type, capacity_type=word)


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


def _shown(machine: Machine) -> CloudInstance:
    return CloudInstance(
        provider=machine.provider,
        provider_id=machine.provider_id,
        token=machine.token,
        pool=machine.pool,
        state=machine.state,
        capacity_pool=machine.capacity_pool,
        price_usd_hour=machine.price_usd_hour,
        launched_at=datetime.fromtimestamp(machine.launched_at, UTC),
        end_detail=machine.end_detail,
        ended_by_itself=machine.end_detail == "exit 0",
    )
