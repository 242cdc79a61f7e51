"""When on_demand is worth its money: where it lowers a job's chance to miss the wait target by the pool's margin.

Pure. For one machine to be launched, what is tried in which order, how likely each try is refused and how long the
machine then takes add up to a curve: the chance that it can take a job within so many seconds.

    on spot       open capacity pools batch by batch, or where all are closed the first that opens; then on_demand
    on_demand     open capacity pools batch by batch

A refusal costs a call. So spot that refuses costs a job little as long as another one is open; it costs a lot when all
are closed and the next opens in a minute. Where both boot equally late there is nothing to gain. A job that is late
already cannot gain anything, and yet must not wait for spot: it gets on_demand when nothing of spot opens within
seconds. Nothing is remembered: the next plan decides anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from autoscaler.boots import Boots
from autoscaler.cooling import Closing, Outage
from autoscaler.model import Job, Pool, Snapshot
from autoscaler.placement import Openings
from autoscaler.spi import CapacityPool, Offering, ProviderName

ROUND_S = 2.0
"""What a refused launch costs: its call, and the plan after it."""
ROUNDS = 3
SOON = timedelta(seconds=5)
"""A late job waits so long for spot."""
PATIENCE = timedelta(seconds=30)
"""A job waits so long for providers that ask for pauses of seconds, one after the other."""

PRIOR_ASKED = 5.0
PRIOR_REFUSED = 0.25
"""One launch in twenty, worth five: a capacity pool that nobody asked is likely to have room."""
REFUSED_AGAIN = {Closing.WAITING: 0.1, Closing.FAILING: 0.5, Closing.QUOTA: 0.7}
"""How likely the next try fails too; what was refused n times in a row is refused again with n / (n + 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One call: when, how likely it yields no machine, and how long a machine of it takes."""

    after_s: float
    refused: float
    boots: Boots


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What is tried until there is a machine, in order."""

    tries: tuple[Try, ...]

    def by(self, seconds: float) -> float:
        """The chance that the machine can take a job within so many seconds."""
        still, found = 1.0, 0.0
        for one in self.tries:
            if seconds <= one.after_s:
                break
            found += still * (1.0 - one.refused) * one.boots.by(seconds - one.after_s)
            still *= one.refused
        return found

    @property
    def weight(self) -> float:
        """How many samples it rests on."""
        return min((one.boots.weight for one in self.tries), default=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Odds:
    """How likely a job is to miss its wait target with a machine of either capacity type."""

    spot: float
    on_demand: float

    @property
    def gain(self) -> float:
        return self.spot - self.on_demand

    def said(self, pool: Pool) -> str:
        target_s = pool.target.total_seconds()
        return (
            f"predicted breach {self.spot:.2f} on spot, {self.on_demand:.2f} on demand, "
            f"target {target_s:g} s, margin {pool.spill_margin:g}"
        )


class Outlook:
    """The chances of one pool's launches at one instant."""

    def __init__(
        self,
        *,
        pool: Pool,
        spot: Openings,
        on_demand: Openings,
        snapshot: Snapshot,
        now: datetime,
        boots: Callable[[ProviderName], Boots],
    ) -> None:
        self._pool = pool
        self._snapshot = snapshot
        self._now = now
        self._boots = boots
        bought = self._open_tries(on_demand)
        first = self._open_tries(spot)
        self.outage: Outage | None = None
        """Why no spot can be used at all; None where some can."""
        self.opens_at: datetime | None = None
        """When the first spot opens, where all is closed."""
        if not first:
            self.outage = spot.outage()
            first = self._later_tries(spot)
        otherwise = after(first, bought) if first and pool.spill_enabled else ()
        self.spot = Curve(tries=(*first, *otherwise))
        self.on_demand = Curve(tries=bought)
        self._known: dict[int, Odds] = {}

    @property
    def usual(self) -> Curve:
        """What becomes of a machine that is asked for next, for a job that has just come."""
        target_s = self._pool.target.total_seconds()
        odds = Odds(spot=1.0 - self.spot.by(target_s), on_demand=1.0 - self.on_demand.by(target_s))
        is_spilled = self._pool.spill_enabled and self._is_worth(odds)
        return self.on_demand if is_spilled or not self._pool.spot_enabled else self.spot

    def odds(self, job: Job, *, is_new: bool = False) -> Odds:
        """For a job that waits since it was queued; `is_new`: it will be queued by the time that the machine is up."""
        age = timedelta(0) if is_new else self._now - job.queued_at
        half_s = round((self._pool.target - age).total_seconds() * 2)
        found = self._known.get(half_s)
        if found is None:
            left_s = half_s / 2
            found = Odds(spot=1.0 - self.spot.by(left_s), on_demand=1.0 - self.on_demand.by(left_s))
            self._known[half_s] = found
        return found

    def spills(self, job: Job, odds: Odds) -> bool:
        """Whether a job should have on_demand."""
        return self._is_worth(odds) and (odds.gain >= self._pool.spill_margin - 1e-9 or not self._is_pause(job))

    def _is_worth(self, odds: Odds) -> bool:
        if not self.on_demand.tries:
            return False
        if odds.gain >= self._pool.spill_margin - 1e-9:
            return True
        is_late = odds.on_demand > 1.0 - self._pool.spill_margin
        opens_soon = self.opens_at is not None and self.opens_at <= self._now + SOON
        return is_late and self.outage is not None and not opens_soon

    def try_of(self, offerings: Sequence[Offering]) -> Try:
        """A launch that names these offerings."""
        boots = self._boots(offerings[0].capacity_pool.provider)
        return Try(after_s=0.0, refused=self._refused([one.capacity_pool for one in offerings]), boots=boots)

    def _is_pause(self, job: Job) -> bool:
        """Nothing is dry, somebody asked for a pause of seconds. Pauses without end are no pause."""
        is_fresh = self._now <= job.first_seen_at + PATIENCE
        return self.outage is not None and self.outage.is_waiting and is_fresh

    # ------------------------------------------------------------------ what is tried

    def _open_tries(self, openings: Openings) -> tuple[Try, ...]:
        full = set[tuple[str, str, str, str]]()
        tries: list[Try] = []
        while len(tries) < ROUNDS and (batch := openings.batch((), full)):
            full.update(one.place for one in batch)
            first = self.try_of([one.offering for one in batch])
            tries.append(replace(first, after_s=len(tries) * ROUND_S))
        return tuple(tries)

    def _refused(self, batch: Sequence[CapacityPool]) -> float:
        """How likely all of a batch refuse. Those of one zone refuse together."""
        best: dict[tuple[str, str], float] = {}
        for where in batch:
            zone = where.provider, where.zone
            best[zone] = min(best.get(zone, 1.0), self._refused_by(where))
        chance = 1.0
        for value in best.values():
            chance *= value
        return chance

    def _refused_by(self, where: CapacityPool) -> float:
        known, cooldown = self._snapshot.evidence.get(where), self._snapshot.cooldowns.get(where)
        asked, refused = (known.asked, known.refused) if known is not None else (0.0, 0.0)
        chance = (refused + PRIOR_REFUSED) / (asked + PRIOR_ASKED)
        return chance if cooldown is None else max(chance, cooldown.failures / (cooldown.failures + 1))

    def _later_tries(self, openings: Openings) -> tuple[Try, ...]:
        """The first closed capacity pools that open again, at once with all that open in the same second."""
        closed = [(closure.until, one, closure) for one, closure in openings.closed()]
        if not closed:
            return ()
        self.opens_at = min(until for until, _, _ in closed)
        first = [(one, closure) for until, one, closure in closed if until <= self.opens_at + timedelta(seconds=1)]
        again = [
            REFUSED_AGAIN[closure.kind]
            if closure.kind is not Closing.REFUSED
            else self._refused_by(one.offering.capacity_pool)
            for one, closure in first
        ]
        boots = self._boots(first[0][0].offering.capacity_pool.provider)
        wait_s = max(0.0, (self.opens_at - self._now).total_seconds())
        return (Try(after_s=wait_s, refused=min(again), boots=boots),)


def after(first: Sequence[Try], then: Sequence[Try]) -> tuple[Try, ...]:
    """What is tried when everything before was refused."""
    begins_s = first[-1].after_s + ROUND_S
    return tuple(Try(after_s=begins_s + one.after_s, refused=one.refused, boots=one.boots) for one in then)
