"""Part of plan: where a pool's new machines are launched: spot or on demand, in which capacity pools, within the caps.

Pure. What is wanted goes to the cheapest spot for its risk and its jobs' length, in batches that keep the spread and
every cap. On_demand has four reasons, and each launch says which: configuration (pools without spot: base), a job that
was lost too often (attempt), an error budget that burns (error_budget), and a wait target that is likelier to be met
with it (spill: `spill`). The second attempt of a job goes to the safest spot. When a cooldown ends the next plan finds
spot open again: nothing has to switch back.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from autoscaler.boots import Boots, pool_boots
from autoscaler.cooling import Closing, Outage, Place, place_of
from autoscaler.model import Blocked, BlockedBy, InstanceState, Launch, Pool
from autoscaler.placement import (
    FAR,
    FEW,
    SAME,
    Openings,
    Ranked,
    Ranking,
    affordable,
    length_class,
    most_in_one,
    ranking_of,
    shared_out,
)
from autoscaler.plan_limits import Room, runtime_h_of
from autoscaler.plan_tick import Fleet, Purpose, Tick, Want
from autoscaler.plan_words import seconds, wanted
from autoscaler.risk import expected_cost_usd
from autoscaler.spi import CapacityType, ProviderName
from autoscaler.spill import Odds, Outlook

LOOK_AGAIN = timedelta(seconds=2)
"""So often it is decided anew whether jobs should go on waiting for spot."""
WAITING_PURPOSES = (Purpose.JOB, Purpose.REPLACEMENT)
"""What on_demand may be paid for: somebody waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cause:
    """Why a launch is what it is. `spill` is its metric label, "" for what is no spill."""

    reason: str
    spill: str = ""
    odds: Odds | None = None


class Placing:
    """The launches of one pool."""

    def __init__(self, tick: Tick, pool: Pool, fleet: Fleet, wants: Sequence[Want]) -> None:
        self._tick = tick
        self._pool = pool
        self._fleet = fleet
        self._wants = wants
        self._runtime_h = runtime_h_of(pool)
        self._ranking = self._ranked_for(None)
        self._why = wanted(Counter(want.purpose for want in wants), least=pool.min)
        self._held = self._spot_held()
        self._most = most_in_one(self._held.total() + len(wants), pool.spot_spread)
        self._is_spread = fleet.live + len(wants) > FEW
        self._cap = ""
        """The cap that binds, in words."""

    def place(self) -> None:
        """Launch as many as possible of what is wanted; explain the rest."""
        on_demand = self._openings(self._ranking, CapacityType.ON_DEMAND)
        if not self._pool.spot_enabled:
            missing = self._place(on_demand, self._wants, _Cause(reason=self._why))
            self._explain(missing, on_demand.outage() if len(missing) == len(self._wants) else None)
            return
        ceiling = self._on_demand_price(on_demand)
        spot = self._openings(self._ranking, CapacityType.SPOT, ceiling=ceiling)
        outlook = Outlook(
            pool=self._pool,
            spot=spot,
            on_demand=on_demand,
            snapshot=self._tick.snapshot,
            now=self._tick.now,
            boots=self._boots,
        )
        left = self._by_attempt(on_demand, self._wants)
        left = self._by_error_budget(on_demand, left)
        left = self._by_breach(on_demand, left, outlook)
        missing = self._on_spot(left, ceiling)
        outage = outlook.outage
        if outage is not None and any(want.purpose in WAITING_PURPOSES for want in missing) and not self._cap:
            outage = self._without_stand_in(outage, on_demand)
            if self._pool.spill_enabled and outlook.on_demand.tries:  # they wait for spot until it costs too much
                self._tick.supply.wake(self._tick.now + LOOK_AGAIN)
        self._explain(missing, outage)

    # ------------------------------------------------------------------ what is on_demand, and why

    def _by_attempt(self, on_demand: Openings, wants: Sequence[Want]) -> list[Want]:
        """Jobs that were lost too often for spot. Returns what is left to be placed."""
        due = [want for want in wants if want.attempt >= self._pool.on_demand_from]
        rest = [want for want in wants if want.attempt < self._pool.on_demand_from]
        if not due:
            return rest
        reason = f"{self._why}; on_demand from attempt {self._pool.on_demand_from} on"
        return [*self._place(on_demand, due, _Cause(reason=reason, spill="attempt")), *rest]

    def _by_error_budget(self, on_demand: Openings, wants: list[Want]) -> list[Want]:
        """What an error budget that burns too fast takes from spot, counted over all that lives."""
        burn = self._tick.snapshot.burns.get(self._pool.name)
        for_jobs = [want for want in wants if want.purpose in WAITING_PURPOSES]
        if burn is None or burn.spot_share >= 1.0 or not for_jobs or not self._pool.spill_enabled:
            return wants
        most_spot = math.floor(burn.spot_share * (self._fleet.live + len(for_jobs)) + 1e-9)
        count = len(for_jobs) - max(0, most_spot - self._held.total())
        if count <= 0:
            return wants
        reason = f"{self._why}; on_demand because at most {burn.spot_share:.0%} of the machines may be spot"
        if burn.reason:
            reason = f"{reason}: {burn.reason}"
        chosen, rest = for_jobs[:count], for_jobs[count:]
        unplaced = self._place(on_demand, chosen, _Cause(reason=reason, spill="error_budget"))
        return [*unplaced, *rest, *(want for want in wants if want.purpose not in WAITING_PURPOSES)]

    def _by_breach(self, on_demand: Openings, wants: list[Want], outlook: Outlook) -> list[Want]:
        """Jobs that are likelier to start within the wait target on demand, by the pool's margin or more."""
        if not self._pool.spill_enabled or not outlook.on_demand.tries:
            return wants
        chosen: list[tuple[Want, Odds]] = []
        rest: list[Want] = []
        for want in wants:
            odds = None
            if want.job is not None and want.purpose in WAITING_PURPOSES:
                odds = outlook.odds(want.job, is_new=want.purpose is Purpose.REPLACEMENT)
                odds = odds if outlook.spills(want.job, odds) else None
            if odds is None:
                rest.append(want)
            else:
                chosen.append((want, odds))
        if not chosen:
            return wants
        gaining = [one for one in chosen if one[1].gain >= self._pool.spill_margin - 1e-9]
        late = [one for one in chosen if one[1].gain < self._pool.spill_margin - 1e-9]
        unplaced: list[Want] = []
        for group in (late, gaining):  # those that wait longest first
            if group:
                cause = self._breach_cause([odds for _, odds in group], outlook)
                unplaced += self._place(on_demand, [want for want, _ in group], cause)
        return [*unplaced, *rest]

    def _breach_cause(self, found: Sequence[Odds], outlook: Outlook) -> _Cause:
        count = len(found)
        mean = Odds(
            spot=math.fsum(odds.spot for odds in found) / count,
            on_demand=math.fsum(odds.on_demand for odds in found) / count,
        )
        outage = outlook.outage
        because = f"{outage}; " if outage is not None else ""
        reason = f"{self._why}; on_demand because {because}{mean.said(self._pool)}"
        return _Cause(reason=reason, spill="breach" if outage is None else outage.label, odds=mean)

    def _without_stand_in(self, outage: Outage, on_demand: Openings) -> Outage:
        """What keeps on_demand from standing in, where it may."""
        if not self._pool.spill_enabled or next(iter(on_demand.walk()), None) is not None:
            return outage
        otherwise = on_demand.outage()
        is_same = outage.is_waiting and {one.reason for one in otherwise.closures} <= {
            one.reason for one in outage.closures
        }
        return outage if is_same else outage.without(otherwise)

    # ------------------------------------------------------------------ spot

    def _on_spot(self, wants: Sequence[Want], ceiling: float | None) -> list[Want]:
        """The rest goes to spot: jobs that were lost before to the safest, all others to the cheapest for their length.
        Returns what found no place."""
        why = f"{self._why}; {self._cap}, so no on_demand" if self._cap else self._why
        again = [want for want in wants if want.attempt > 1]
        missing: list[Want] = []
        if again:
            openings = self._openings(self._ranking, CapacityType.SPOT, ceiling=ceiling).safest()
            attempt = min(want.attempt for want in again)
            reason = f"{why}; on the safest spot for attempt {attempt}"
            missing += self._place(openings, again, _Cause(reason=reason))
        firsts = self._elsewhere([want for want in wants if want.attempt <= 1], ceiling, _Cause(reason=why))
        for openings, group in self._by_length(firsts, ceiling):
            missing += self._place(openings, group, _Cause(reason=why))
        # Whatever length a machine was chosen for, it serves whoever is first.
        order = {id(want): number for number, want in enumerate(self._wants)}
        return sorted(wants, key=lambda want: order[id(want)])[len(wants) - len(missing) :]

    def _elsewhere(self, wants: list[Want], ceiling: float | None, cause: _Cause) -> list[Want]:
        """What races a late machine goes to another zone, where there is one. Returns what is left to be placed."""
        races = [want for want in wants if want.purpose is Purpose.RACE]
        if not races:
            return wants
        openings = self._openings(self._ranking, CapacityType.SPOT, ceiling=ceiling)
        apart = [one for one in openings.ranked if one.place[:2] not in self._fleet.late_zones]
        left = self._place(replace(openings, ranked=tuple(apart)), races, cause)
        return [*left, *(want for want in wants if want.purpose is not Purpose.RACE)]

    def _by_length(self, wants: Sequence[Want], ceiling: float | None) -> list[tuple[Openings, list[Want]]]:
        """Groups of wants by expected length, as few as possible: what costs about the same in one batch shares it."""
        boot_h = self._boot_h() if any(want.hours is not None for want in wants) else 0.0
        groups: dict[float | None, list[Want]] = {}
        for want in wants:
            length = None if want.hours is None else length_class(want.hours + boot_h)
            groups.setdefault(length, []).append(want)
        found: list[tuple[Openings, list[Want]]] = []
        for length, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0] or 0.0)):
            openings = self._openings(self._ranked_for(length), CapacityType.SPOT, ceiling=ceiling)
            best = next(iter(openings.walk()), None)
            for known, members in found:
                if _is_as_cheap(next(iter(known.walk()), None), best, length):
                    members.extend(group)
                    break
            else:
                found.append((openings, list(group)))
        return found

    def _boot_h(self) -> float:
        boots = [self._boots(provider).quantile(0.5) for provider in self._pool.providers]
        return min(boots, default=0.0) / 3600

    # ------------------------------------------------------------------ offerings

    def _boots(self, provider: ProviderName) -> Boots:
        return pool_boots(self._pool, provider, self._tick.snapshot.arrivals)

    def _ranked_for(self, length_h: float | None) -> Ranking:
        snapshot = self._tick.snapshot
        return ranking_of(
            self._pool,
            snapshot.offerings.get(self._pool.name, ()),
            evidence=snapshot.evidence,
            life_h=snapshot.expected_life_h.get(self._pool.name) if length_h is None else length_h,
        )

    def _openings(self, ranking: Ranking, word: CapacityType, *, ceiling: float | None = None) -> Openings:
        ranked = ranking.spot if word is CapacityType.SPOT else ranking.on_demand
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

    def _place(self, openings: Openings, wants: Sequence[Want], cause: _Cause) -> list[Want]:
        """Launch up to so many machines on open offerings, the best provider first. Returns the wants, in their order,
        that no machine is launched for."""
        is_spread = openings.word is CapacityType.SPOT and self._is_spread
        held = self._held if is_spread else Counter[Place]()
        most = self._most if is_spread else len(wants)
        missing, best = len(wants), None
        asked, spent, full = set[ProviderName](), set[ProviderName](), set[Place]()
        chosen: dict[tuple[Ranked, ...], int] = {}
        is_spill = bool(cause.spill)
        while missing and (batch := openings.batch(spent, full)):
            provider = batch[0].offering.capacity_pool.provider
            best = batch[0].cost_usd if best is None else best
            if provider in asked:
                batch = [one for one in batch if one.cost_usd <= FAR * best]
                if not batch:
                    break
            asked.add(provider)
            usable, count = self._affordable(batch, missing, is_spill=is_spill)
            parts, unspread = shared_out(usable, count, held=held, most=most) if count else ([], 0)
            if count < missing and not unspread:
                spent.add(provider)
            full.update(one.place for one in batch)
            for part, size in parts:
                self._charge(part, size, is_spill=is_spill)
                chosen[part] = size
            missing -= count - unspread
        note = ""
        if missing and full and (batch := openings.batch(spent)):
            usable, count = self._affordable(batch, missing, is_spill=is_spill)
            if count:
                if len(openings.ranked) * self._pool.spot_spread >= 1:  # else it can never be kept, and everybody knows
                    note = f"; spread {self._pool.spot_spread:g} is passed: too few capacity pools are open"
                self._charge(usable, count, is_spill=is_spill)
                chosen[tuple(usable)] = chosen.get(tuple(usable), 0) + count
            missing -= count
        for part, count in chosen.items():
            self._emit(part, count, cause, note)
        return list(wants[len(wants) - missing :])

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

    def _emit(self, part: Sequence[Ranked], count: int, cause: _Cause, note: str) -> None:
        offerings = tuple(one.offering for one in part)
        if offerings[0].capacity_pool.capacity_type is CapacityType.SPOT:
            for one in part:  # the cloud may put all of them into any of these
                self._held[one.place] += count
        for size in _batches(count, self._tick.rules.batch_limit):
            self._tick.supply.actions.append(
                Launch(
                    pool=self._pool.name,
                    count=size,
                    offerings=offerings,
                    reason=cause.reason + note,
                    spill=cause.spill,
                    breach_spot=cause.odds.spot if cause.odds is not None else None,
                    breach_on_demand=cause.odds.on_demand if cause.odds is not None else None,
                )
            )

    # ------------------------------------------------------------------ what is missing

    def _explain(self, missing: Sequence[Want], outage: Outage | None) -> None:
        """Say why machines are missing: a cap, or what keeps every offering from being used."""
        again_at = outage.again_at if outage is not None else None
        if all(want.purpose in (Purpose.FORESEEN, Purpose.RACE) for want in missing):  # nobody waits for these
            self._tick.supply.wake(again_at)
            return
        if self._cap:
            reason, by = self._cap, BlockedBy.CAP
        elif outage is not None:
            reason, by = self._because(outage), BlockedBy.CAPACITY
        else:
            reason, by = "the rest is asked for in a moment", BlockedBy.MOMENT
        ids = tuple(want.job.id for want in missing if want.job is not None and want.purpose is Purpose.JOB)
        self._tick.block(Blocked(pool=self._pool.name, jobs=len(ids), reason=reason, by=by, ids=ids, again_at=again_at))

    def _because(self, outage: Outage) -> str:
        again_at, now = outage.again_at, self._tick.now
        if again_at is None:
            return str(outage)
        kinds = {closure.kind for closure in outage.closures}
        if kinds <= {Closing.WAITING, Closing.FAILING} and not outage.dear:
            first = outage.first
            return f"{first.reason}; tried again in {seconds(again_at, now)}"
        return f"{outage}; the next try is in {seconds(again_at, now)}"


def _is_as_cheap(known: Ranked | None, best: Ranked | None, length_h: float | None) -> bool:
    """Whether jobs of a length may as well go to the best offering of others."""
    if known is None or best is None:
        return known is best
    if known.place == best.place or length_h is None:
        return True
    costs = [expected_cost_usd(one.offering, risk=one.risk, life_h=length_h) for one in (known, best)]
    return costs[0] <= SAME * costs[1]


def _batches(count: int, limit: int) -> Iterable[int]:
    while count > 0:
        yield min(count, limit)
        count -= limit
