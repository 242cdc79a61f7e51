"""A cloud without HTTP: an account's machines as `spi.Provider`s see them, their keys, and the account on a clock.

    InProcessProvider (one for each deployment) -> CloudWorld -> CloudAccount, which owns every machine's life
    Cloud: lets the account's time pass on the clock it is given, and says what boots and what loses power

A machine proves itself as a local one does: an HMAC over its id, the time and the hash of its claim key, with a key of
its own.
"""

import asyncio
import hashlib
import hmac
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from autoscaler.sandbox.cloud_account import CloudAccount
from autoscaler.sandbox.cloud_capacity import Shortage, Supply
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_machines import Event, Happening, Machine, Wish
from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    Clock,
    LaunchBatch,
    Notice,
    NoticeKind,
    Offering,
    PoolName,
    ProviderId,
    ProviderName,
)

HIDDEN_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A machine and what its deployment launched it for. `key` is what proves it."""

    machine: Machine
    deployment: str
    token: BatchToken
    pool: PoolName
    key: bytes = field(repr=False)

    @property
    def provider_id(self) -> ProviderId:
        return ProviderId(self.machine.id)

    @property
    def provider(self) -> ProviderName:
        return self.machine.capacity_pool.provider

    @property
    def user_data(self) -> str:
        return self.machine.wish.user_data

    @property
    def is_up(self) -> bool:
        return self.machine.is_up


class CloudWorld:
    """Machines of every deployment on one account. Pure but for what it is told of the account's events."""

    def __init__(self, account: CloudAccount, *, seed: int = 0) -> None:
        self.account = account
        self.made_of: dict[tuple[str, BatchToken], list[ProviderId]] = {}
        self._launched: dict[ProviderId, Launched] = {}
        self._seed = seed
        self._ids = itertools.count(1)
        self._receipts = itertools.count(1)
        self._notices: dict[str, Notice] = {}
        self._hidden: dict[str, float] = {}

    @property
    def machines(self) -> dict[ProviderId, Launched]:
        """All that the cloud has not forgotten."""
        known = self.account.machines
        return {id_: launched for id_, launched in self._launched.items() if id_ in known}

    def machine(self, id_: ProviderId) -> Launched | None:
        return self._launched.get(id_) if id_ in self.account.machines else None

    def offerings(self, provider: ProviderName, now: float) -> list[Offering]:
        return [
            Offering(
                capacity_pool=supply.pool,
                cpus=supply.cpus,
                memory_gib=supply.memory_gib,
                arch=supply.arch,
                gpus=supply.gpus,
                price_usd_hour=supply.price_at(now),
            )
            for supply in self.account.capacity.supplies.values()
            if supply.pool.provider == provider
        ]

    def launch(
        self, deployment: str, batch: LaunchBatch, now: float
    ) -> tuple[list[Launched], list[tuple[Offering, Shortage]]]:
        """The machines of the batch's token, up to its count, and the offerings that refused. ValueError: bad image."""
        for reference in batch.image.values():
            if reference not in self.account.images:
                raise ValueError(f"no image {reference}")
        self._launched = self.machines
        image = next(iter(batch.image.values()), "")
        made = self.made_of.setdefault((deployment, batch.token), [])
        refused: list[tuple[Offering, Shortage]] = []
        for offering in batch.offerings:
            while len(made) < batch.count:
                wish = Wish(image=image, user_data=batch.user_data, id=f"m-{next(self._ids):05}")
                machine = self.account.launch(offering.capacity_pool, wish, now)
                if isinstance(machine, Shortage):
                    refused.append((offering, machine))
                    break
                made.append(self._keep(machine, deployment, batch).provider_id)
        return [found for id_ in made if (found := self.machine(id_)) is not None], refused

    def _keep(self, machine: Machine, deployment: str, batch: LaunchBatch) -> Launched:
        launched = Launched(
            machine=machine,
            deployment=deployment,
            token=batch.token,
            pool=batch.pool,
            key=hashlib.sha256(f"{self._seed}/{machine.id}/machine".encode()).digest(),
        )
        self._launched[launched.provider_id] = launched
        return launched

    def listed(self, deployment: str, provider: ProviderName, now: float) -> list[Launched]:
        return [
            launched
            for machine in self.account.listed(now)
            if (launched := self._launched.get(ProviderId(machine.id))) is not None
            and (launched.deployment, launched.provider) == (deployment, provider)
        ]

    # ------------------------------------------------------------------ notices

    def note(self, event: Event) -> None:
        """Keep what the cloud says of a machine until its deployment has it. Said again, it is another message."""
        machine = event.machine
        kind = {Happening.WARNED: NoticeKind.RECLAIM, Happening.REBALANCE: NoticeKind.REBALANCE}.get(event.kind)
        if kind is None:
            return
        receipt = f"{machine.id}/{machine.life}/{kind}/{next(self._receipts)}"
        self._notices[receipt] = Notice(
            provider_id=ProviderId(machine.id),
            kind=kind,
            reclaim_at=datetime.fromtimestamp(machine.reclaim_at or event.at, UTC),
            receipt=receipt,
            source="queue",
            noticed_at=datetime.fromtimestamp(event.at, UTC),
        )

    def notices(self, deployment: str, provider: ProviderName, now: float) -> list[Notice]:
        """Those not yet acknowledged and not handed out lately, oldest first."""
        return [
            notice
            for notice in self._notices.values()
            if self._hidden.get(notice.receipt, now) <= now
            and (launched := self._launched.get(notice.provider_id)) is not None
            and (launched.deployment, launched.provider) == (deployment, provider)
        ]

    def hand_out(self, deployment: str, provider: ProviderName, now: float) -> list[Notice]:
        """The same, which come again unless they are acknowledged in time."""
        found = self.notices(deployment, provider, now)
        self._hidden.update((notice.receipt, now + HIDDEN_S) for notice in found)
        return found

    def forget(self, notices: Iterable[Notice]) -> None:
        for notice in notices:
            self._notices.pop(notice.receipt, None)
            self._hidden.pop(notice.receipt, None)

    @property
    def has_notices(self) -> bool:
        return bool(self._notices)


class Cloud:
    """A world on a clock. `booted` starts what runs on a machine, `gone` ends it at once. `warned` tells it of a
    reclaim, and says after how many seconds each copy of the message about it is in the queue."""

    def __init__(
        self,
        world: CloudWorld,
        clock: Clock,
        *,
        booted: Callable[[Launched], None] = lambda _: None,
        gone: Callable[[Launched], None] = lambda _: None,
        warned: Callable[[Launched], Sequence[float]] = lambda _: (0.0,),
    ) -> None:
        self.world = world
        self.clock = clock
        self._booted = booted
        self._gone = gone
        self._warned = warned
        self._driver = CloudDriver(world.account, clock=lambda: clock.now().timestamp())
        self._driver.listen(self._hear)

    @property
    def now(self) -> float:
        return self._driver.now

    def settle(self) -> None:
        """Call after every change of the world."""
        self._driver.settle()

    def _hear(self, event: Event) -> None:
        launched = self.world.machine(ProviderId(event.machine.id))
        if launched is not None and event.kind is Happening.WARNED:
            for delay_s in self._warned(launched):
                asyncio.get_running_loop().call_later(delay_s, self.world.note, event)
        else:
            self.world.note(event)
        if launched is not None and event.kind is Happening.BOOTED:
            self._booted(launched)
        elif launched is not None and event.kind is Happening.POWER_LOST:
            self._gone(launched)

    def terminate(self, id_: ProviderId) -> None:
        self.world.account.terminate(id_, self.now)
        self.settle()

    def power_off(self, id_: ProviderId) -> None:
        """It powers itself off in good order."""
        self.world.account.power_off_by_itself(id_, self.now)
        self.settle()

    def fail(self, id_: ProviderId, reason: str) -> None:
        """It is gone without a word, and the cloud does not say that it took it."""
        self.world.account.fail(id_, self.now, reason)
        self.settle()

    def reclaim(self, id_: ProviderId, *, notice_s: float | None = None) -> None:
        """The cloud takes it back, with its usual notice or the given one; 0.0: without a word."""
        self.world.account.reclaim(id_, self.now, notice_s=notice_s)
        self.settle()

    def stop(self) -> None:
        self._driver.close()


def evidence_of(launched: Launched, claim: str, at: float) -> dict[str, str]:
    """What the machine sends to prove itself, at epoch seconds."""
    moment = str(int(at))
    message = f"{launched.provider_id}|{moment}|{claim}".encode()
    signed = hmac.new(launched.key, message, hashlib.sha256).hexdigest()
    return {"instance_id": launched.provider_id, "time": moment, "signature": signed}


def local_supplies(
    provider: ProviderName,
    prices: Mapping[str, float],
    on_demand: Mapping[str, float] | None = None,
    *,
    slots: Mapping[str, int],
) -> list[Supply]:
    """Capacity pools of machines with two cores each, by machine type: spot, and where it is priced so, on demand."""
    return [
        Supply(
            pool=CapacityPool(
                provider=provider, region="here", zone="here", machine_type=name, capacity_type=capacity_type
            ),
            cpus=2,
            memory_gib=8,
            price_usd_hour=price,
            slots=slots[name],
        )
        for capacity_type, priced in ((CapacityType.SPOT, prices), (CapacityType.ON_DEMAND, on_demand or {}))
        for name, price in sorted(priced.items())
    ]
