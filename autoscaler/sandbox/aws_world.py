"""The machines, capacity and networks behind the sandbox's AWS: pure, seeded, `now` in epoch seconds.

    PENDING --boot--> RUNNING --stop--> STOPPING --> STOPPED --start--> PENDING
       |                 |  notice ... reclaim_at
       +--- terminate, reclaim, power off, failed launch ---> TERMINATING --> TERMINATED --kept_s--> forgotten

Everything that happens to a machine leaves a `Happening` in the outbox, for EventBridge and for what runs on machines.
Stopped machines hold no slot and no vCPUs of a quota.
"""

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from autoscaler.sandbox.aws_ec2_specification import Specification
from autoscaler.sandbox.aws_query import AwsError
from autoscaler.sandbox.aws_setup import AwsSetup, MachineType, Subnet
from autoscaler.spi import CapacityPool, CapacityType, MachineState

_UP = (MachineState.PENDING, MachineState.RUNNING)
_HOLDING = (*_UP, MachineState.STOPPING, MachineState.TERMINATING)
_ENDED = (MachineState.TERMINATING, MachineState.TERMINATED)
_SLOW_FACTOR = 5

BY_OWNER = "Client.UserInitiatedShutdown"
BY_ITSELF = "Client.InstanceInitiatedShutdown"
RECLAIMED = "Server.SpotInstanceTermination"
RECLAIMED_STOPPED = "Server.SpotInstanceShutdown"


class HappeningKind(StrEnum):
    STATE = "state"
    WARNING = "warning"
    REBALANCE = "rebalance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something about one machine; `state` is its state then."""

    kind: HappeningKind
    machine: "Machine"
    state: MachineState
    at: float


@dataclass(slots=True, kw_only=True)
class WorldPolicy:
    """How this world behaves; times in seconds as ranges, shares from 0 to 1. Mutable, so that faults can be ended.

    A machine shows up in describes `shown_after` seconds after its launch and, once ended, for `kept_s`.
    `refuse_share` of the spot machines asked for are refused although there is room; `slow_share` of boots take five
    times as long; `failing_share` of launches end as pending, for one of `failures`. `refusals` make one capacity pool
    answer a code of AWS's choosing until they are taken out.
    """

    boot: tuple[float, float] = (2.0, 6.0)
    stop: tuple[float, float] = (0.5, 3.0)
    shown_after: tuple[float, float] = (0.0, 0.0)
    kept_s: float = 3600.0
    refuse_share: float = 0.0
    slow_share: float = 0.0
    failing_share: float = 0.0
    failures: Sequence[str] = (
        "Server.InsufficientInstanceCapacity",
        "Server.InternalError",
        "Client.VolumeLimitExceeded",
    )
    refusals: dict[CapacityPool, str] = field(default_factory=dict)
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Machine:
    """One instance. `reason` is the code of its last change; `noticed_at` and `reclaim_at` are set by a notice."""

    id: str
    capacity_pool: CapacityPool
    machine_type: MachineType
    specification: Specification
    tags: dict[str, str]
    price_usd_hour: float
    address: str
    subnet: Subnet
    launched_at: float
    changed_at: float
    shown_at: float
    spot_request_id: str = ""
    state: MachineState = MachineState.PENDING
    reason: str = ""
    failure: str = ""
    due_at: float = math.inf
    noticed_at: float | None = None
    reclaim_at: float | None = None

    @property
    def arch(self) -> str:
        return self.machine_type.arch

    @property
    def cpus(self) -> float:
        return self.machine_type.cpus

    @property
    def is_up(self) -> bool:
        return self.state in _UP


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A capacity pool and the subnet in it that a launch may use, with the whole specification there."""

    capacity_pool: CapacityPool
    subnet: Subnet
    specification: Specification


Made = list[tuple[Place, Machine]]
Refused = list[tuple[Place, AwsError]]


class AwsWorld:
    """Machines of one account over what is set up in it."""

    def __init__(self, setup: AwsSetup, *, policy: WorldPolicy | None = None) -> None:
        self.setup = setup
        self.policy = policy or WorldPolicy()
        self.all_machines: dict[str, Machine] = {}
        self.outbox: list[Happening] = []
        self._used: Counter[CapacityPool] = Counter()
        self._used_cpus: Counter[tuple[str, CapacityType]] = Counter()
        self._due: list[tuple[float, int, str]] = []
        self._count = itertools.count(1)
        self._dice = random.Random(f"{self.policy.seed}/aws-world")  # noqa: S311 - repeatable, no secret

    # -- launching ----------------------------------------------------------------------------------------------

    def launch(
        self,
        places: Sequence[Place],
        *,
        count: int,
        now: float,
        at_least: int = 0,
        spread: bool = False,
        spot_request_id: str = "",
    ) -> tuple[Made, Refused]:
        """Up to `count` machines, filling the places in order or `spread` evenly; and the places that refused."""
        open_places, refused, planned = list(places), list[tuple[Place, AwsError]](), Counter[int]()
        for place in places:
            if place.capacity_pool.capacity_type is CapacityType.SPOT and self._hits(self.policy.refuse_share):
                open_places.remove(place)
                refused.append((place, _no_capacity(place.capacity_pool)))
        while open_places and planned.total() < count:
            place = min(open_places, key=lambda one: planned[id(one)]) if spread else open_places[0]
            error = self._refusal(place, planned, places, now)
            if error is None:
                planned[id(place)] += 1
            else:
                open_places.remove(place)
                refused.append((place, error))
        if planned.total() < at_least:
            return [], refused
        made = [(place, self._make(place, now, spot_request_id)) for place in places for _ in range(planned[id(place)])]
        return made, refused

    def _refusal(self, place: Place, planned: Counter[int], places: Sequence[Place], now: float) -> AwsError | None:
        """Why one more machine cannot be had there, given those planned already."""
        pool, setup = place.capacity_pool, self.setup
        if code := self.policy.refusals.get(pool):
            return AwsError(code, f"{code}: {pool.key}", status=500)
        if pool not in setup.offered:
            return _unsupported(pool)
        is_spot = pool.capacity_type is CapacityType.SPOT
        price, most = self.price(pool, now), place.specification.max_price
        if is_spot and most and float(most) < price:
            return AwsError("SpotMaxPriceTooLow", f"Your Spot request price of {most} is lower than {price:.6f}.")
        same = [one for one in places if one.capacity_pool == pool]
        if self.free(pool) - sum(planned[id(one)] for one in same) <= 0:
            return _no_capacity(pool)
        region_cpus = sum(
            planned[id(one)] * setup.type_of(one.capacity_pool).cpus
            for one in places
            if one.capacity_pool.capacity_type is pool.capacity_type
        )
        cpus = region_cpus + setup.type_of(pool).cpus + self._used_cpus[pool.region, pool.capacity_type]
        if cpus > setup.quota(pool.region, pool.capacity_type):
            return _over_quota(pool, setup.quota(pool.region, pool.capacity_type))
        if place.subnet.free_addresses <= sum(planned[id(one)] for one in places if one.subnet is place.subnet):
            message = f"There are not enough free addresses in subnet '{place.subnet.id}' to satisfy the requested"
            return AwsError("InsufficientFreeAddressesInSubnet", f"{message} number of instances.")
        return None

    def _make(self, place: Place, now: float, spot_request_id: str) -> Machine:
        pool, policy = place.capacity_pool, self.policy
        slow = _SLOW_FACTOR if self._hits(policy.slow_share) else 1
        is_spot = pool.capacity_type is CapacityType.SPOT
        machine = Machine(
            id=f"i-0{self._dice.getrandbits(64):016x}",
            capacity_pool=pool,
            machine_type=self.setup.type_of(pool),
            specification=place.specification,
            tags=dict(place.specification.tags.get("instance", {})),
            price_usd_hour=self.price(pool, now),
            address=place.subnet.take_address(),
            subnet=place.subnet,
            launched_at=now,
            changed_at=now,
            shown_at=now + self._between(policy.shown_after),
            spot_request_id=(spot_request_id or f"sir-{next(self._count):08x}") if is_spot else "",
            failure=self._dice.choice(policy.failures) if self._hits(policy.failing_share) else "",
        )
        self.all_machines[machine.id] = machine
        self._hold(machine, 1)
        self._tell(HappeningKind.STATE, machine, now)
        self._set_due(machine, now + self._between(policy.boot) * slow)
        return machine

    # -- looking ------------------------------------------------------------------------------------------------

    def machines(self, region: str, now: float) -> list[Machine]:
        """Those of a region that are shown, oldest first."""
        return [one for one in self.all_machines.values() if one.capacity_pool.region == region and one.shown_at <= now]

    def machine(self, region: str, id_: str, now: float) -> Machine | None:
        """One that is shown, or nothing."""
        machine = self.all_machines.get(id_)
        if machine is None or machine.capacity_pool.region != region or machine.shown_at > now:
            return None
        return machine

    def free(self, pool: CapacityPool) -> int:
        """How many more machines the capacity pool has."""
        return self.setup.slots.get(pool, 0) - self._used[pool]

    def price(self, pool: CapacityPool, now: float) -> float:
        return self.setup.price(pool, now)

    # -- changing -----------------------------------------------------------------------------------------------

    def terminate(self, id_: str, now: float) -> None:
        self._end(self.all_machines[id_], now, reason=BY_OWNER)

    def power_off(self, id_: str, now: float) -> None:
        """The machine shut itself down; it ends or stops as its launch said."""
        machine = self.all_machines[id_]
        if machine.is_up and machine.specification.shutdown != "terminate":
            self._stop(machine, now, reason=BY_ITSELF)
        elif machine.is_up:
            self._end(machine, now, reason=BY_ITSELF)

    def stop(self, id_: str, now: float) -> None:
        machine = self.all_machines[id_]
        if machine.is_up:
            self._stop(machine, now, reason=BY_OWNER)

    def check_start(self, machines: Sequence[Machine], *, now: float) -> None:
        """Raises AwsError where a stopped machine's capacity pool or quota has no room for it."""
        wanted = Counter(one.capacity_pool for one in machines)
        for pool, count in wanted.items():
            if code := self.policy.refusals.get(pool):
                raise AwsError(code, f"{code}: {pool.key}", status=500)
            if self.free(pool) < count:
                raise _no_capacity(pool)
            cpus = self._used_cpus[pool.region, pool.capacity_type] + count * self.setup.type_of(pool).cpus
            if cpus > self.setup.quota(pool.region, pool.capacity_type):
                raise _over_quota(pool, self.setup.quota(pool.region, pool.capacity_type))

    def start(self, id_: str, now: float) -> None:
        machine = self.all_machines[id_]
        machine.launched_at, machine.reason = now, ""
        machine.noticed_at = machine.reclaim_at = None
        machine.state, machine.changed_at = MachineState.PENDING, now
        machine.price_usd_hour = self.price(machine.capacity_pool, now)
        self._hold(machine, 1)
        self._tell(HappeningKind.STATE, machine, now)
        self._set_due(machine, now + self._between(self.policy.boot) / 2)

    def tag(self, id_: str, tags: Mapping[str, str]) -> None:
        self.all_machines[id_].tags |= tags

    def rebalance(self, id_: str, now: float) -> None:
        """The cloud thinks that it may have to take the machine."""
        self._tell(HappeningKind.REBALANCE, self.all_machines[id_], now)

    def reclaim(self, id_: str, now: float, *, notice_s: float) -> None:
        """Takes a machine that is up, `notice_s` from now; 0: at once, without a word."""
        machine = self.all_machines.get(id_)
        if machine is None or not machine.is_up or machine.reclaim_at is not None:
            return
        if notice_s <= 0:
            self._reclaim(machine, now)
            return
        machine.noticed_at, machine.reclaim_at = now, now + notice_s
        self._tell(HappeningKind.WARNING, machine, now)
        self._set_due(machine, min(machine.due_at, machine.reclaim_at))

    def reclaim_pool(self, pool: CapacityPool, now: float, *, notice_s: float) -> list[str]:
        """Takes every machine of a capacity pool and its room with them; their ids."""
        self.setup.slots[pool] = 0
        ids = [one.id for one in self.all_machines.values() if one.capacity_pool == pool and one.is_up]
        for id_ in ids:
            self.reclaim(id_, now, notice_s=notice_s)
        return ids

    def _reclaim(self, machine: Machine, now: float) -> None:
        if machine.specification.interruption == "stop":
            self._stop(machine, now, reason=RECLAIMED_STOPPED)
        else:
            self._end(machine, now, reason=RECLAIMED)

    def _end(self, machine: Machine, now: float, *, reason: str) -> None:
        if machine.state in _ENDED:
            return
        if machine.state is MachineState.STOPPED:
            self._hold(machine, 1)
        self._change(machine, MachineState.TERMINATING, now, reason=reason)

    def _stop(self, machine: Machine, now: float, *, reason: str) -> None:
        self._change(machine, MachineState.STOPPING, now, reason=reason)

    def _change(self, machine: Machine, state: MachineState, now: float, *, reason: str) -> None:
        machine.state, machine.reason, machine.changed_at = state, reason, now
        machine.reclaim_at = None
        self._tell(HappeningKind.STATE, machine, now)
        self._set_due(machine, now + self._between(self.policy.stop))

    # -- time ---------------------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """When `advance` has something to do."""
        while self._due and self._is_stale(self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def advance(self, now: float) -> None:
        """Let boots, stops, reclaims and ends happen that are due."""
        while (at := self.next_due()) is not None and at <= now:
            _, _, id_ = heapq.heappop(self._due)
            machine = self.all_machines[id_]
            machine.due_at = math.inf
            self._fall_due(machine, at)

    def _fall_due(self, machine: Machine, at: float) -> None:
        if machine.is_up and machine.reclaim_at is not None and machine.reclaim_at <= at:
            self._reclaim(machine, at)
            return
        match machine.state:
            case MachineState.PENDING if machine.failure:
                self._settle(machine, MachineState.TERMINATED, at, reason=machine.failure)
            case MachineState.PENDING:
                machine.state, machine.changed_at = MachineState.RUNNING, at
                self._tell(HappeningKind.STATE, machine, at)
                if machine.reclaim_at is not None:
                    self._set_due(machine, machine.reclaim_at)
            case MachineState.STOPPING:
                self._settle(machine, MachineState.STOPPED, at, reason=machine.reason)
            case MachineState.TERMINATING:
                self._settle(machine, MachineState.TERMINATED, at, reason=machine.reason)
            case MachineState.TERMINATED:
                del self.all_machines[machine.id]
            case _:
                return

    def _settle(self, machine: Machine, state: MachineState, at: float, *, reason: str) -> None:
        machine.state, machine.reason, machine.changed_at = state, reason, at
        self._hold(machine, -1)
        self._tell(HappeningKind.STATE, machine, at)
        if state is MachineState.TERMINATED:
            machine.subnet.free_addresses += 1
            self._set_due(machine, at + self.policy.kept_s)

    def _hold(self, machine: Machine, amount: int) -> None:
        """A slot and the vCPUs of a quota, taken (1) or given back (-1)."""
        pool = machine.capacity_pool
        self._used[pool] += amount
        self._used_cpus[pool.region, pool.capacity_type] += math.ceil(machine.cpus) * amount

    def _set_due(self, machine: Machine, at: float) -> None:
        machine.due_at = at
        heapq.heappush(self._due, (at, next(self._count), machine.id))

    def _is_stale(self, entry: tuple[float, int, str]) -> bool:
        machine = self.all_machines.get(entry[2])
        return machine is None or machine.due_at != entry[0]

    def _tell(self, kind: HappeningKind, machine: Machine, at: float) -> None:
        self.outbox.append(Happening(kind=kind, machine=machine, state=machine.state, at=at))

    def _between(self, bounds: tuple[float, float]) -> float:
        return self._dice.uniform(*bounds)

    def _hits(self, share: float) -> bool:
        return share > 0 and self._dice.random() < share


def _unsupported(pool: CapacityPool) -> AwsError:
    message = f"Your requested instance type ({pool.machine_type}) is not supported in your requested Availability Zone"
    return AwsError("Unsupported", f"{message} ({pool.zone}).")


def _no_capacity(pool: CapacityPool) -> AwsError:
    message = f"We currently do not have sufficient {pool.machine_type} capacity in the Availability Zone you requested"
    return AwsError("InsufficientInstanceCapacity", f"{message} ({pool.zone}).", status=500)


def _over_quota(pool: CapacityPool, limit: float) -> AwsError:
    if pool.capacity_type is CapacityType.SPOT:
        return AwsError("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
    message = f"You have requested more vCPU capacity than your current vCPU limit of {limit:g} allows"
    return AwsError("VcpuLimitExceeded", f"{message} for the instance bucket of {pool.machine_type}.")
