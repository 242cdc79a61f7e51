"""One account of a sandbox cloud: machines on capacity pools, their boots, stops, reclaims and ends. Pure.

Owns every change of a `Machine`. It knows no clock: each method takes `now` in epoch seconds, chance is seeded. What
happens is written into an outbox of events; whoever drives it (`cloud_driver`) calls `advance` when `next_due` says so
and drains. Faces speak for it in their cloud's words; what only a protocol knows (templates, operations) is theirs.
"""

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from autoscaler.sandbox.cloud_capacity import Capacity, Shortage
from autoscaler.sandbox.cloud_faults import CloudFaults
from autoscaler.sandbox.cloud_machines import (
    BY_ITSELF,
    BY_USER,
    TAKEN,
    TAKEN_AND_STOPPED,
    Event,
    Happening,
    Machine,
    Wish,
)
from autoscaler.sandbox.cloud_spans import Span, drawn
from autoscaler.spi import CapacityPool, CapacityType, MachineState

_S = MachineState
_BEYOND_S = 1e-6
"""Just after a step: a moment computed as one may lie a hair before it."""


@dataclass(slots=True, kw_only=True)
class CloudTimes:
    """How long things take, in seconds. `shown_after` is the describe lag of new machines, `kept_s` how long ended ones
    are still listed, `notice_s` what lies between a notice and its reclaim, `rebalance_s` how long before a notice a
    rebalance recommendation comes for a single machine, where one comes. `notice_s` stays as it is for the whole life
    of an account."""

    boot: Span = (2.0, 6.0)
    start: Span = (1.0, 2.0)
    end: Span = (0.3, 1.5)
    stop: Span = (0.5, 1.5)
    shown_after: Span = (0.0, 0.0)
    notice_s: float = 120.0
    rebalance_s: float = 0.0
    kept_s: float = 600.0


class CloudAccount:
    """See the module docstring. `machines` are all that are not forgotten, by id."""

    def __init__(
        self,
        capacity: Capacity,
        *,
        times: CloudTimes | None = None,
        faults: CloudFaults | None = None,
        images: frozenset[str] = frozenset(),
        account: str = "123456789012",
        network: str = "10.80",
    ) -> None:
        self.capacity = capacity
        self.times = times or CloudTimes()
        capacity.ahead_s = self.times.notice_s
        self.faults = faults or CloudFaults()
        self.images = set(images)
        self.account = account
        self.machines: dict[str, Machine] = {}
        self._network = network
        self._numbers = itertools.count(1)
        self._order = itertools.count()
        self._due: list[tuple[float, int, str, str, int]] = []
        self._events: list[Event] = []
        self._stepped: set[CapacityPool] = set()

    # ------------------------------------------------------------------ asking

    def machine(self, id_: str, now: float) -> Machine | None:
        """A machine that the cloud shows by now; None for one that it does not know, or not yet."""
        found = self.machines.get(id_)
        return found if found is not None and found.shown_at <= now else None

    def listed(self, now: float) -> Iterator[Machine]:
        return (machine for machine in self.machines.values() if machine.shown_at <= now)

    def price(self, pool: CapacityPool, now: float) -> float:
        return self.capacity.supplies[pool].price_at(now)

    # ------------------------------------------------------------------ what users do

    def launch(self, pool: CapacityPool, wish: Wish, now: float) -> Machine | Shortage:
        """One machine, or why there is none."""
        shortage = self._shortage(pool, now)
        if shortage is not None:
            return shortage
        number = next(self._numbers)
        machine = Machine(
            id=wish.id or f"i-{self.faults.dice('ids').getrandbits(36) << 32 | number:017x}",
            number=number,
            capacity_pool=pool,
            wish=wish,
            price_usd_hour=self.price(pool, now),
            launched_at=now,
            started_at=now,
            shown_at=now + self._between(self.times.shown_after),
            address=f"{self._network}.{number // 250 % 250}.{number % 250 + 4}",
            tags=dict(wish.tags),
            arch=self.capacity.supplies[pool].arch,
            changed_at=now,
        )
        if pool.capacity_type is CapacityType.SPOT:
            machine.spot_request_id = f"sir-{number:08x}"
        self.machines[machine.id] = machine
        self.capacity.take(pool)
        self._watch_series(pool, now)
        self._power_on(machine, now, self.times.boot)
        return machine

    def _shortage(self, pool: CapacityPool, now: float) -> Shortage | None:
        found = self.capacity.shortage(pool, now)
        is_spot = pool.capacity_type is CapacityType.SPOT
        if found is None and is_spot and self.faults.strikes(self.faults.refuse, "refuse"):
            return Shortage.CAPACITY
        return found

    def terminate(self, id_: str, now: float) -> None:
        """Asked by its user: it loses power now, and is listed as going for a moment."""
        machine = self.machines[id_]
        if machine.is_up or machine.state in (_S.STOPPING, _S.STOPPED):
            self._power_off(machine, now)
            self._become(machine, _S.TERMINATING, now, BY_USER)
            self._plan(machine, "end", now + self._between(self.times.end))

    def stop(self, id_: str, now: float, *, reason: str = BY_USER) -> None:
        machine = self.machines[id_]
        if machine.is_up:
            self._power_off(machine, now)
            self._become(machine, _S.STOPPING, now, reason)
            self._plan(machine, "stopped", now + self._between(self.times.stop))

    def start(self, id_: str, now: float) -> Shortage | None:
        """Start a stopped machine anew, on a new slot of its capacity pool."""
        machine = self.machines[id_]
        if machine.state is not _S.STOPPED:
            return None
        shortage = self._shortage(machine.capacity_pool, now)
        if shortage is not None:
            return shortage
        self.capacity.take(machine.capacity_pool)
        machine.started_at, machine.stopped_at = now, None
        machine.price_usd_hour = self.price(machine.capacity_pool, now)
        machine.noticed_at = machine.reclaim_at = machine.rebalanced_at = machine.chosen_for = None
        machine.was_taken = False
        self._power_on(machine, now, self.times.start)
        return None

    # ------------------------------------------------------------------ what happens to machines

    def power_off_by_itself(self, id_: str, now: float) -> None:
        """What runs on it shut it down."""
        machine = self.machines.get(id_)
        if machine is None or not machine.is_up:
            return
        if machine.wish.powers_off_to_stop:
            self.stop(id_, now, reason=BY_ITSELF)
        else:
            self._gone(machine, now, BY_ITSELF)

    def reclaim(self, id_: str, now: float, *, notice_s: float | None = None) -> None:
        """The cloud wants it back: after a notice (the account's by default), or with 0.0 at once, without a word."""
        machine = self.machines.get(id_)
        if machine is None or not machine.is_up or machine.reclaim_at is not None:
            return
        notice_s = self.times.notice_s if notice_s is None else notice_s
        machine.reclaim_at = now + notice_s
        if notice_s <= 0:
            self._take(machine, now)
            return
        machine.noticed_at = now
        self._tell(Happening.WARNED, machine, now)
        self._plan(machine, "take", machine.reclaim_at)

    def reclaim_pool(self, pool: CapacityPool, now: float, *, notice_s: float | None = None) -> list[str]:
        """The cloud wants all machines of a capacity pool back at once, and has none left; the ids of those that go.
        Take the pool out of `capacity.exhausted` to let it recover."""
        self.capacity.exhausted.add(pool)
        going = [one.id for one in self._up_in(pool) if one.reclaim_at is None]
        for id_ in going:
            self.reclaim(id_, now, notice_s=notice_s)
        return going

    def rebalance(self, id_: str, now: float) -> None:
        """The cloud thinks that it may want it back soon."""
        machine = self.machines.get(id_)
        if machine is not None and machine.is_up and machine.rebalanced_at is None:
            machine.rebalanced_at = now
            self._tell(Happening.REBALANCE, machine, now)

    def fail(self, id_: str, now: float, reason: str) -> None:
        """It ends at once for a reason of the cloud's own."""
        machine = self.machines.get(id_)
        if machine is not None and not machine.has_ended:
            self._gone(machine, now, reason)

    def _take(self, machine: Machine, now: float) -> None:
        machine.was_taken = True
        if machine.wish.stops_when_taken:
            self.stop(machine.id, now, reason=TAKEN_AND_STOPPED)
        else:
            self._gone(machine, now, TAKEN)

    # ------------------------------------------------------------------ time

    def next_due(self) -> float | None:
        """When `advance` has something to do; it may turn out to be nothing."""
        return self._due[0][0] if self._due else None

    def advance(self, now: float) -> None:
        """Let everything happen that time alone brings."""
        while self._due and self._due[0][0] <= now:
            at, _, kind, id_, life = heapq.heappop(self._due)
            if kind == "series":
                self._step_down(id_, at)
                continue
            machine = self.machines.get(id_)
            if machine is not None and machine.life == life:
                self._happen(kind, machine, at)

    def drain(self) -> list[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _happen(self, kind: str, machine: Machine, at: float) -> None:
        match kind:
            case "boot" if machine.state is _S.PENDING:
                self._become(machine, _S.RUNNING, at)
                if not self.faults.strikes(self.faults.silent, "silent"):
                    self._tell(Happening.BOOTED, machine, at)
            case "stillborn" if machine.state is _S.PENDING:
                self._gone(machine, at, self.faults.dice("stillborn_reasons").choice(self.faults.stillborn_reasons))
            case "stopped" if machine.state is _S.STOPPING:
                machine.stopped_at = at
                self._become(machine, _S.STOPPED, at, machine.reason)
            case "end" if machine.state is _S.TERMINATING:
                self._gone(machine, at, machine.reason)
            case "take" if machine.is_up:
                self._take(machine, at)
            case "hazard" if machine.is_up and machine.chosen_for is None:
                self._choose(machine, at, at + self.times.rebalance_s + self.times.notice_s)
            case "warn" if machine.is_up:
                self.reclaim(machine.id, at)
            case "take_unannounced" if machine.is_up:
                self.reclaim(machine.id, at, notice_s=0.0)
            case "forget" if machine.has_ended:
                del self.machines[machine.id]
            case _:
                pass

    def _choose(self, victim: Machine, now: float, reclaim_at: float) -> None:
        """The cloud has chosen a machine: it is warned a notice ahead, or not; a recommendation comes before, or with
        the notice, or not at all."""
        victim.chosen_for = reclaim_at
        if self.faults.strikes(self.faults.rebalance, "rebalance"):
            self.rebalance(victim.id, now)
        if self.faults.strikes(self.faults.no_notice, "no_notice"):
            self._plan(victim, "take_unannounced", reclaim_at)
        elif reclaim_at - self.times.notice_s > now + _BEYOND_S:
            self._plan(victim, "warn", reclaim_at - self.times.notice_s)
        else:
            self.reclaim(victim.id, now, notice_s=reclaim_at - now)

    def _power_on(self, machine: Machine, now: float, range_s: Span) -> None:
        machine.life += 1
        self._become(machine, _S.PENDING, now)
        boot_s = self._between(range_s)
        if self.faults.strikes(self.faults.slow_boot, "slow_boot"):
            boot_s *= self.faults.slow_factor
        if self.faults.strikes(self.faults.stillborn, "stillborn"):
            self._plan(machine, "stillborn", now + boot_s / 2)
            return
        self._plan(machine, "boot", now + boot_s)
        hazard = self.capacity.supplies[machine.capacity_pool].hazard_per_hour
        if hazard > 0:
            self._plan(machine, "hazard", now + self.faults.dice("hazard").expovariate(hazard) * 3600)

    def _power_off(self, machine: Machine, now: float) -> None:
        """It gives its slot back; what runs on it is gone."""
        if machine.is_up:
            self.capacity.give_back(machine.capacity_pool)
            self._tell(Happening.POWER_LOST, machine, now)

    def _gone(self, machine: Machine, now: float, reason: str) -> None:
        self._power_off(machine, now)
        machine.ended_at = now
        self._become(machine, _S.TERMINATED, now, reason)
        self._plan(machine, "forget", now + self.times.kept_s)

    def _become(self, machine: Machine, state: MachineState, now: float, reason: str = "") -> None:
        machine.state, machine.changed_at, machine.reason = state, now, reason
        machine.history.append((now, state, reason))
        self._tell(Happening.STATE, machine, now)

    def _tell(self, kind: Happening, machine: Machine, at: float) -> None:
        self._events.append(Event(kind=kind, machine=machine, at=at, state=machine.state))

    def _plan(self, machine: Machine, kind: str, at: float) -> None:
        heapq.heappush(self._due, (at, next(self._order), kind, machine.id, machine.life))

    # ------------------------------------------------------------------ capacity over time

    def _watch_series(self, pool: CapacityPool, now: float) -> None:
        """From the first machine of a pool on, look at each step of its availability, a notice ahead."""
        series = self.capacity.supplies[pool].availability
        if series is None or pool in self._stepped:
            return
        self._stepped.add(pool)
        self._plan_step(pool, series.next_step(now + self.times.notice_s) - self.times.notice_s)

    def _plan_step(self, pool: CapacityPool, at: float) -> None:
        heapq.heappush(self._due, (at, next(self._order), "series", pool.key, 0))

    def _step_down(self, key: str, now: float) -> None:
        """Machines beyond what the pool has after the step are chosen at random, stopped ones among them: those are
        just lost now, the others at the step."""
        pool = next(one for one in self._stepped if one.key == key)
        supply, step = self.capacity.supplies[pool], now + self.times.notice_s
        staying = [one for one in self._up_in(pool) if one.chosen_for is None and one.reclaim_at is None]
        staying += [one for one in self.machines.values() if one.capacity_pool == pool and one.state is _S.STOPPED]
        room = supply.slots_at(step + _BEYOND_S)
        if room < supply.slots_at(step - _BEYOND_S) and len(staying) > room:
            for machine in self.faults.dice("victims").sample(staying, len(staying) - room):
                if machine.state is _S.STOPPED:
                    self._gone(machine, now, TAKEN)
                else:
                    self._choose(machine, now, step)
        if supply.availability is not None:
            self._plan_step(pool, supply.availability.next_step(step + _BEYOND_S) - self.times.notice_s)

    def _up_in(self, pool: CapacityPool) -> list[Machine]:
        return [one for one in self.machines.values() if one.capacity_pool == pool and one.is_up]

    def _between(self, span: Span) -> float:
        return drawn(span, self.faults.dice("times"))
