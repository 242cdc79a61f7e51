"""Part of plan: where a pool's new machines are launched: spot or on demand, in which capacity pools, within the caps.

Pure. What is wanted goes to the cheapest spot for its risk, in batches that keep the spread and every cap; to
on_demand where configuration says so: pools without spot (base), jobs that were lost too often (attempt), and when no
spot offering can be used at all (spill; each launch names what is in the way). When a cooldown ends the next plan finds
spot open again: nothing has to switch back.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from autoscaler.cooling import Closing, Outage, Place, place_of
from autoscaler.model import Blocked, BlockedBy, InstanceState, Launch, Pool
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
from autoscaler.plan_limits import Room, runtime_h_of
from autoscaler.plan_tick import Fleet, Tick, Want
from autoscaler.plan_words import seconds, without_machine
from autoscaler.spi import CapacityType, ProviderName


class Placing:
    """The launches of one pool."""

    def __init__(self, tick: Tick, pool: Pool, fleet: Fleet, wants: Sequence[Want]) -> None:
        self._tick = tick
        self._pool = pool
        self._fleet = fleet
        self._wants = wants
        self._jobs = [want.job for want in wants if want.job is not None]
        self._runtime_h = runtime_h_of(pool)
        self._ranking: Ranking = ranking_of(
            pool,
            tick.snapshot.offerings.get(pool.name, ()),
            evidence=tick.snapshot.evidence,
            life_h=tick.snapshot.expected_life_h.get(pool.name),
        )
        self._cap = ""
        """The cap that binds, in words."""

    def place(self) -> None:
        """Launch as many as possible of what is wanted; explain the rest."""
        pool, jobs, asked = self._pool, self._jobs, len(self._wants)
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
        reason, by, again_at = self._cap, BlockedBy.CAP, None
        if outage is not None and not reason:
            reason, by, again_at = self._because(outage), BlockedBy.CAPACITY, outage.again_at
        count = min(missing, len(self._jobs)) if jobs is None else jobs
        ids = tuple(job.id for job in self._jobs[len(self._jobs) - count :])
        self._tick.block(Blocked(pool=self._pool.name, jobs=count, reason=reason, by=by, ids=ids, again_at=again_at))

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
