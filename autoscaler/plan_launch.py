"""Part of plan: launches for the jobs that no machine covers, and for `min`.

Pure. What is missing goes to the cheapest spot for its risk, in batches that keep the spread and every cap; to
on_demand where configuration says so: pools without spot (base), jobs that were lost too often (attempt), and when no
spot offering can be used at all (spill; each launch names what is in the way). When a cooldown ends the next plan finds
spot open again: nothing has to switch back.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from autoscaler.cooling import Closing, Closures, Outage, Place, place_of
from autoscaler.model import Action, Blocked, Instance, InstanceState, Job, Launch, Pool, Rules, Snapshot
from autoscaler.placement import (
    FAR,
    FEW,
    Openings,
    Ranked,
    Ranking,
    affordable,
    most_in_one,
    ranking_of,
    shared_out,
)
from autoscaler.plan_limits import Limits, Room, runtime_h_of
from autoscaler.plan_words import seconds, without_machine
from autoscaler.spi import BatchToken, CapacityType, ProviderName

GATHER = timedelta(seconds=0.1)
LONGEST_GATHER = timedelta(seconds=1)
GATHERED_OVER = timedelta(seconds=10)
"""Each batch of the last 10 s delays a pool's next one by 0.1 s, up to 1 s: the first job of a burst is asked for at
once, and a thousand jobs that come over some seconds need a dozen calls instead of one per tick."""


@dataclass(slots=True)
class Supply:
    """What was decided for all pools so far."""

    actions: list[Action] = field(default_factory=list)
    blocked: list[Blocked] = field(default_factory=list)
    wake_at: datetime | None = None

    def wake(self, at: datetime | None) -> None:
        if at is not None and (self.wake_at is None or at < self.wake_at):
            self.wake_at = at


@dataclass(slots=True)
class Fleet:
    """One pool's machines: all live ones, and those that can still serve a job, by how far they are."""

    rows: list[Instance] = field(default_factory=list)
    registered: list[Instance] = field(default_factory=list)
    untold: list[Instance] = field(default_factory=list)
    ready: list[Instance] = field(default_factory=list)
    coming: int = 0
    live: int = 0


class Launching:
    """Launches of one tick, pool after pool; all draw on the same limits."""

    def __init__(self, snapshot: Snapshot, rules: Rules, now: datetime, limits: Limits, supply: Supply) -> None:
        self.snapshot = snapshot
        self.rules = rules
        self.now = now
        self.limits = limits
        self.supply = supply
        self.closures = Closures(snapshot, now)

    def launch(self, pool: Pool, unserved: Sequence[Job], standing: int, fleet: Fleet) -> None:
        """Launch for the jobs that no machine covers, and until `min` machines stand free of a job."""
        jobs = self._within_budget(pool, unserved)
        asked = len(jobs) + max(0, pool.min - standing - len(jobs))
        if asked:
            asked, held = self._within_hold(pool, asked, standing, fleet)
            if held:
                self._block(pool, max(0, len(jobs) - asked), held)
        if asked:
            _Placing(self, pool, fleet, jobs).place(asked)

    def _block(self, pool: Pool, jobs: int, reason: str) -> None:
        self.supply.blocked.append(Blocked(pool=pool.name, jobs=jobs, reason=reason))

    def _within_budget(self, pool: Pool, unserved: Sequence[Job]) -> list[Job]:
        """The jobs whose forges can register a runner by the time that a machine is up."""
        mint_soon, within = self.limits.mint_soon, []
        for job in unserved:
            if mint_soon.get(job.forge, 0.0) >= 1:
                mint_soon[job.forge] -= 1
                within.append(job)
        if len(within) < len(unserved):
            self.supply.wake(self.now + timedelta(seconds=1))
            forges = ", ".join(sorted({job.forge for job in unserved}))
            reason = f"the registration budget of {forges} is used up; it refills by the second"
            self._block(pool, len(unserved) - len(within), reason)
        return within

    def _within_hold(self, pool: Pool, asked: int, standing: int, fleet: Fleet) -> tuple[int, str]:
        """How many launches a pool's recent machines leave, and why not all."""
        spoilage = self.snapshot.spoilage.get(pool.name)
        if spoilage is not None and spoilage.count >= 2:
            what = f"the last {spoilage.count} machines of pool {pool.name} were of no use ({spoilage.reason})"
            if spoilage.until > self.now:
                self.supply.wake(spoilage.until)
                return 0, f"{what}; the next one is tried in {seconds(spoilage.until, self.now)}"
            one = min(asked, max(0, 1 - standing))
            return one, f"{what}; one machine at a time is tried until one takes a job"
        again_at = self._gathered_at(fleet)
        if again_at > self.now and asked < self.rules.batch_limit:
            self.supply.wake(again_at)
            return 0, "machines were asked for a moment ago; those for the jobs that came since are asked for together"
        return asked, ""

    def _gathered_at(self, fleet: Fleet) -> datetime:
        """When the next small batch of a pool may go."""
        recent: dict[BatchToken, datetime] = {}
        for row in fleet.rows:
            if row.created_at + GATHERED_OVER > self.now and not row.adopted:
                recent[row.token] = row.created_at
        if not recent:
            return self.now
        return max(recent.values()) + min(GATHER * len(recent), LONGEST_GATHER)


class _Placing:
    """The launches of one pool."""

    def __init__(self, tick: Launching, pool: Pool, fleet: Fleet, jobs: Sequence[Job]) -> None:
        self._tick = tick
        self._pool = pool
        self._fleet = fleet
        self._jobs = jobs
        self._runtime_h = runtime_h_of(pool)
        self._ranking: Ranking = ranking_of(
            pool,
            tick.snapshot.offerings.get(pool.name, ()),
            evidence=tick.snapshot.evidence,
            life_h=tick.snapshot.expected_life_h.get(pool.name),
        )
        self._cap = ""
        """The cap that binds, in words."""

    def place(self, asked: int) -> None:
        """Launch as many as possible of what is asked; explain the rest."""
        pool, jobs = self._pool, self._jobs
        why = without_machine(len(jobs)) if jobs else f"min = {pool.min}"
        on_demand = self._openings(CapacityType.ON_DEMAND)
        if not pool.spot_enabled:
            missing = self._place(on_demand, asked, why)
            self._explain(missing, on_demand.outage() if missing == asked else None)
            return
        retried = sum(1 for job in jobs if job.attempt >= pool.on_demand_from)
        missing = asked
        if retried:
            reason = f"{why}; on_demand from attempt {pool.on_demand_from} on"
            missing -= retried - self._place(on_demand, retried, reason, spill="attempt")
        spot = self._openings(CapacityType.SPOT, ceiling=self._on_demand_price(on_demand))
        wanted = missing
        missing = self._place(spot, missing, why)
        if missing < wanted or not missing or self._cap:
            self._explain(missing, None)
            return
        outage, for_jobs = spot.outage(), min(missing, len(jobs))
        if for_jobs and pool.spill_enabled and not outage.is_waiting:  # `min` alone is no reason to pay more
            left = self._place(on_demand, for_jobs, f"{why}; on_demand because {outage}", spill=outage.label)
            if left == for_jobs and not self._cap:
                outage = outage.without(on_demand.outage())
            missing, for_jobs = missing - for_jobs + left, left
        self._explain(missing, outage, jobs=for_jobs)

    def _openings(self, word: CapacityType, *, ceiling: float | None = None) -> Openings:
        ranked = self._ranking.spot if word is CapacityType.SPOT else self._ranking.on_demand
        return Openings(pool=self._pool, ranked=ranked, closures=self._tick.closures, word=word, ceiling=ceiling)

    def _on_demand_price(self, on_demand: Openings) -> float | None:
        """What a machine costs that the pool could have on demand at once instead."""
        if not self._pool.spill_enabled:
            return None
        for one in on_demand.walk():
            price = one.offering.price_usd_hour
            rooms = self._rooms(one.offering.capacity_pool.provider, is_spill=True)
            if min(bound for room in rooms for bound, _ in room.bounds(price, self._runtime_h)) >= 1:
                return price
        return None

    def _rooms(self, provider: ProviderName, *, is_spill: bool) -> list[Room]:
        return self._tick.limits.rooms(provider, spill_of=self._pool.name if is_spill else None)

    # ------------------------------------------------------------------ batches

    def _place(self, openings: Openings, wanted: int, why: str, *, spill: str = "") -> int:
        """Launch up to so many machines on open offerings, the best provider first. Returns how many are missing."""
        is_spot = openings.word is CapacityType.SPOT
        held = self._spot_held() if is_spot and self._fleet.live + wanted > FEW else Counter()
        most = most_in_one(held.total() + wanted, self._pool.spot_spread) if is_spot else wanted
        missing, best = wanted, None
        asked, spent, full = set[ProviderName](), set[ProviderName](), set[Place]()
        chosen: dict[tuple[Ranked, ...], int] = {}
        while missing and (batch := openings.batch(spent, full)):
            provider = batch[0].offering.capacity_pool.provider
            best = batch[0].cost_usd if best is None else best
            if provider in asked:
                batch = [one for one in batch if one.cost_usd <= FAR * best]
                if not batch:
                    break
            asked.add(provider)
            usable, count = self._affordable(batch, missing, is_spill=bool(spill))
            parts, unspread = shared_out(usable, count, held=held, most=most) if count else ([], 0)
            if count < missing:
                spent.add(provider)
            full.update(one.place for one in batch)
            for part, size in parts:
                self._charge(part, size, is_spill=bool(spill))
                chosen[part] = size
            missing -= count - unspread
        note = ""
        if missing and full and (batch := openings.batch(spent)):
            usable, count = self._affordable(batch, missing, is_spill=bool(spill))
            if count:
                if len(openings.ranked) * self._pool.spot_spread >= 1:  # else it can never be kept, and everybody knows
                    note = f"; spread {self._pool.spot_spread:g} is passed: too few capacity pools are open"
                self._charge(usable, count, is_spill=bool(spill))
                chosen[tuple(usable)] = chosen.get(tuple(usable), 0) + count
            missing -= count
        for part, count in chosen.items():
            self._emit(part, count, why + note, spill)
        return missing

    def _spot_held(self) -> Counter[Place]:
        """The pool's spot machines by capacity pool; one in flight counts for the best of its batch."""
        return Counter(
            place_of(row.capacity_pool)
            for row in self._fleet.rows
            if row.capacity_pool is not None
            and row.capacity_pool.capacity_type is CapacityType.SPOT
            and row.state is not InstanceState.TERMINATING
        )

    def _affordable(self, batch: Sequence[Ranked], wanted: int, *, is_spill: bool) -> tuple[list[Ranked], int]:
        pool, live = self._pool, self._fleet.live
        rooms = self._rooms(batch[0].offering.capacity_pool.provider, is_spill=is_spill)

        def bounds(price: float) -> list[tuple[float, str]]:
            found = [(float(pool.max - live), f"pool {pool.name} is at its max of {pool.max} instances")]
            return found + [bound for room in rooms for bound in room.bounds(price, self._runtime_h)]

        usable, count = affordable(batch, wanted, lambda price: min(bounds(price))[0])
        if count < wanted and not self._cap:
            cheapest = min(one.offering.price_usd_hour for one in batch)
            self._cap = min(bounds(cheapest), key=lambda bound: bound[0])[1]
        return usable, count

    def _charge(self, part: Sequence[Ranked], count: int, *, is_spill: bool) -> None:
        dearest = max(one.offering.price_usd_hour for one in part)
        for room in self._rooms(part[0].offering.capacity_pool.provider, is_spill=is_spill):
            room.charge(count, dearest, self._runtime_h)
        self._fleet.live += count

    def _emit(self, part: Sequence[Ranked], count: int, reason: str, spill: str) -> None:
        offerings = tuple(one.offering for one in part)
        for size in _batches(count, self._tick.rules.batch_limit):
            self._tick.supply.actions.append(
                Launch(pool=self._pool.name, count=size, offerings=offerings, reason=reason, spill=spill)
            )

    # ------------------------------------------------------------------ what is missing

    def _explain(self, missing: int, outage: Outage | None, *, jobs: int | None = None) -> None:
        """Say why machines are missing: a cap, or what keeps every offering from being used."""
        if not missing:
            return
        reason = self._cap
        if outage is not None and not reason:
            self._tick.supply.wake(outage.again_at)
            reason = self._because(outage)
        self._tick.supply.blocked.append(
            Blocked(pool=self._pool.name, jobs=min(missing, len(self._jobs)) if jobs is None else jobs, reason=reason)
        )

    def _because(self, outage: Outage) -> str:
        again_at, now = outage.again_at, self._tick.now
        if again_at is None:
            return str(outage)
        kinds = {closure.kind for closure in outage.closures}
        if kinds <= {Closing.WAITING, Closing.FAILING} and not outage.dear:
            first = outage.first
            return f"{first.reason}; tried again in {seconds(again_at, now)}"
        return f"{outage}; the next try is in {seconds(again_at, now)}"


def _batches(count: int, limit: int) -> Iterable[int]:
    while count > 0:
        yield min(count, limit)
        count -= limit
