"""Choose where a pool's next machines may be launched.

Pure. A filter chain over offerings, each filter with an answer for what it leaves out:

    allowed        the pool's providers, its capacity types, its price limit      (`exclusion`)
    fits           the shape                                                      (`exclusion`)
    not cooling    no refusal, quota or failing provider closes it                (`cooling.Closures`)
    not dear       spot above the cheapest on_demand that the pool may use        (`walk`)
    within caps    the dearest offering of a batch is what each machine may cost  (`affordable`)
    diversified    no capacity pool holds too large a share of the pool's spot    (`shared_out`)
    ranked         cheapest expected cost first: price and learned risk           (`ranking_of`)

A batch holds offerings of one provider and one capacity type whose expected cost is near the best one's: the cloud
chooses among them by what it knows of its capacity.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from operator import attrgetter

from autoscaler.cooling import Closure, Closures, Outage, Place, place_of
from autoscaler.model import CapacityEvidence, Pool
from autoscaler.risk import USUAL_LIFE_H, expected_cost_usd, risk_per_hour
from autoscaler.spi import CapacityPool, CapacityType, Offering, PoolName, ProviderName, Shape

NEAR = 1.5
"""A batch's offerings cost at most so many times what the best one is expected to cost. One machine type's price
differs between the zones of a region by 1.1 to 1.6 times, so a batch keeps its zones and sheds the silly sizes."""
BATCH_TYPES = 60
BATCH_OFFERINGS = 240
"""What one launch may name: clouds bound the overrides of one call to a few hundred."""
FAR = 2.0
"""To keep the spread, offerings at up to so many times the best one's expected cost are used."""
SAME = 1.05
"""Machines for jobs of different lengths are asked for together where that costs each length at most this much more."""
AS_SAFE = 1.25
"""The risks of a batch for jobs that were lost before differ by at most this factor."""
FEW = 4
"""So many machines may share a capacity pool whatever the spread: nothing is gained by splitting a handful."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """An offering as one pool sees it. `cost_usd` is what one job there is expected to cost."""

    offering: Offering
    place: Place
    risk: float
    cost_usd: float
    order: tuple[float, float, float, Place]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What a pool may ever use, best first, and why it never uses the rest of what it is offered."""

    spot: tuple[Ranked, ...]
    on_demand: tuple[Ranked, ...]
    excluded: Mapping[Place, tuple[Offering, str]] = field(default_factory=dict)


# --------------------------------------------------------------------------- allowed, fits, ranked


def length_class(hours: float) -> float:
    """The length, in steps of a factor of four, that jobs of so many hours are placed by: a ranking each is enough, as
    their costs differ by risk alone."""
    return 4.0 ** min(2, max(-3, round(math.log(max(hours, 1 / 60), 4))))


def exclusion(pool: Pool, offering: Offering) -> str:
    """Why a pool never uses an offering, whatever cools; empty when it may."""
    where = offering.capacity_pool
    if where.provider not in pool.providers:
        return f"{where.provider} is no provider of the pool"
    unfit = _misfit(pool.shape, offering)
    if unfit:
        return unfit
    if where.capacity_type is CapacityType.ON_DEMAND:
        is_usable = not pool.spot_enabled or pool.spill_enabled or pool.on_demand_from <= pool.requeue_attempts
        return "" if is_usable else "spill is off: on_demand is not used"
    if not pool.spot_enabled:
        return "spot is off"
    limit = pool.max_spot_price_usd_hour
    if limit is not None and offering.price_usd_hour > limit:
        return f"it costs more than spot.max_price ({limit:g} USD/h)"
    return ""


def _misfit(shape: Shape, offering: Offering) -> str:
    """Why a machine type is not of a shape. Providers offer what fits; after a reload their last answer is older."""
    name = offering.capacity_pool.machine_type
    if offering.arch != shape.arch:
        return f"its arch is {offering.arch}"
    if not shape.cpus.admits(offering.cpus):
        return f"{offering.cpus:g} cpus are not within the shape"
    if not shape.memory_gib.admits(offering.memory_gib):
        return f"{offering.memory_gib:g} GiB of memory are not within the shape"
    if offering.gpus < shape.gpus:
        return f"it has {offering.gpus} of {shape.gpus} gpus"
    if shape.types and not any(fnmatchcase(name, glob) for glob in shape.types):
        return "its machine type is not listed"
    if any(fnmatchcase(name, glob) for glob in shape.exclude):
        return "its machine type is excluded"
    return ""


def ranking_of(
    pool: Pool,
    offerings: tuple[Offering, ...],
    *,
    evidence: Mapping[CapacityPool, CapacityEvidence],
    life_h: float | None = None,
) -> Ranking:
    """Everything that a pool may use, best first, for jobs of so many hours.

    Remembered until pool, offerings or evidence are other objects: with thousands of offerings it is too dear for every
    tick. Most capacity pools have no evidence, so that only the others are judged anew when evidence changes."""
    key = pool.name, life_h
    known = _remembered.get(key)
    is_same = known is not None and known.pool is pool and known.offerings is offerings
    if known is not None and is_same and known.evidence is evidence:
        return known.ranking
    if known is None or not is_same:
        known = _Known(pool=pool, offerings=offerings, plain=_rank(pool, offerings, life_h))
    if len(_remembered) >= _REMEMBERED:
        _remembered.clear()
    known.evidence, known.ranking = evidence, _judged(known.plain, evidence, life_h)
    _remembered[key] = known
    return known.ranking


@dataclass(slots=True, kw_only=True)
class _Known:
    """A ranking and what it was made of; `plain` is the one without any evidence."""

    pool: Pool
    offerings: tuple[Offering, ...]
    plain: Ranking
    evidence: Mapping[CapacityPool, CapacityEvidence] = field(default_factory=dict)
    ranking: Ranking = Ranking(spot=(), on_demand=())


_remembered: dict[tuple[PoolName, float | None], _Known] = {}
"""By identity of what is never changed: a cache, not a state."""
_REMEMBERED = 1000


def _rank(pool: Pool, offerings: Sequence[Offering], life_h: float | None) -> Ranking:
    found: dict[CapacityType, list[Ranked]] = {CapacityType.SPOT: [], CapacityType.ON_DEMAND: []}
    excluded: dict[Place, tuple[Offering, str]] = {}
    bought = {
        _machine_of(offering): offering.price_usd_hour
        for offering in offerings
        if offering.capacity_pool.capacity_type is CapacityType.ON_DEMAND
    }
    for offering in offerings:
        where = offering.capacity_pool
        if offering.on_demand_usd_hour is None:
            offering = replace(offering, on_demand_usd_hour=bought.get(_machine_of(offering)))
        if why := exclusion(pool, offering):
            excluded[place_of(where)] = offering, why
        else:
            found[where.capacity_type].append(_ranked(offering, place_of(where), None, life_h))
    for ranked in found.values():
        ranked.sort(key=_ORDER)
    spot, on_demand = found[CapacityType.SPOT], found[CapacityType.ON_DEMAND]
    return Ranking(spot=tuple(spot), on_demand=tuple(on_demand), excluded=excluded)


def _machine_of(offering: Offering) -> tuple[str, str, str]:
    """What one on_demand price is for."""
    where = offering.capacity_pool
    return where.provider, where.region, where.machine_type


def _judged(plain: Ranking, evidence: Mapping[CapacityPool, CapacityEvidence], life_h: float | None) -> Ranking:
    known = {place_of(capacity_pool): one for capacity_pool, one in evidence.items()}
    if not known:
        return plain
    spot = [
        one if one.place not in known else _ranked(one.offering, one.place, known[one.place], life_h)
        for one in plain.spot
    ]
    spot.sort(key=_ORDER)
    return replace(plain, spot=tuple(spot))


def _ranked(offering: Offering, place: Place, evidence: CapacityEvidence | None, life_h: float | None) -> Ranked:
    risk = risk_per_hour(offering, evidence)
    cost_usd = expected_cost_usd(offering, risk=risk, life_h=USUAL_LIFE_H if life_h is None else life_h)
    order = cost_usd, offering.price_usd_hour, risk, place
    return Ranked(offering=offering, place=place, risk=risk, cost_usd=cost_usd, order=order)


_ORDER = attrgetter("order")


def batch_again(pool: Pool, offerings: tuple[Offering, ...]) -> tuple[Offering, ...]:
    """What a launch that was decided before a restart may use: at most one call's worth, the best first."""
    ranking = _rank(pool, offerings, None)
    return tuple(one.offering for one in (ranking.spot or ranking.on_demand)[:BATCH_TYPES])


# --------------------------------------------------------------------------- not cooling, not dear


@dataclass(slots=True, kw_only=True)
class Openings:
    """The offerings of one capacity type that a pool may use now. `ceiling` is the price above which they are no use:
    what the same pool would pay on demand. `is_safest`: they are ranked by risk."""

    pool: Pool
    ranked: tuple[Ranked, ...]
    closures: Closures
    word: CapacityType
    ceiling: float | None = None
    is_safest: bool = False

    def safest(self) -> "Openings":
        """The same for jobs that were lost before: the lowest risk first, at equal risk the lowest cost."""
        ranked = sorted(self.ranked, key=lambda one: (round(one.risk, 4), one.order))
        return replace(self, ranked=tuple(ranked), is_safest=True)

    def walk(self, without: Collection[ProviderName] = (), full: Collection[Place] = ()) -> Iterator[Ranked]:
        """Open offerings, best first, of all providers but some and all capacity pools but some."""
        closed = {name: self.closures.provider(self.pool, name) is not None for name in self.pool.providers}
        for one in self.ranked:
            where = one.offering.capacity_pool
            if closed[where.provider] or where.provider in without or one.place in full or self._is_dear(one):
                continue
            if self.closures.of(one.place, where) is None:
                yield one

    def _is_dear(self, one: Ranked) -> bool:
        return self.ceiling is not None and one.offering.price_usd_hour > self.ceiling

    def batch(self, without: Collection[ProviderName] = (), full: Collection[Place] = ()) -> list[Ranked]:
        """The best offering and all of its provider that are near it."""
        found: list[Ranked] = []
        types: set[str] = set()
        for one in self.walk(without, full):
            where = one.offering.capacity_pool
            if not found:
                first, provider = one, where.provider
            elif self._is_beyond(one, first) or len(found) >= BATCH_OFFERINGS:
                break
            elif self.is_safest and one.cost_usd > first.cost_usd * NEAR:
                continue
            if where.provider == provider and (where.machine_type in types or len(types) < BATCH_TYPES):
                types.add(where.machine_type)
                found.append(one)
        return found

    def _is_beyond(self, one: Ranked, first: Ranked) -> bool:
        if self.is_safest:
            return one.risk > first.risk * AS_SAFE + 1e-4
        return one.cost_usd > first.cost_usd * NEAR

    def closed(self) -> Iterator[tuple[Ranked, Closure]]:
        """The offerings that would be open but for a cooldown, a quota or their provider, with what closes each."""
        for one in self.ranked:
            where = one.offering.capacity_pool
            closure = self.closures.of(one.place, where) or self.closures.provider(self.pool, where.provider)
            if closure is not None and not self._is_dear(one):
                yield one, closure

    def outage(self) -> Outage:
        """Why nothing is open."""
        closures = [closure for _, closure in self.closed()]
        dear = sum(1 for one in self.ranked if self._is_dear(one))
        return Outage(word=self.word.value, total=len(self.ranked), closures=closures, dear=dear)


# --------------------------------------------------------------------------- within caps, diversified


def affordable(batch: Sequence[Ranked], wanted: int, fits: Callable[[float], float]) -> tuple[list[Ranked], int]:
    """The offerings that a batch may use and how many machines it may have, when `fits(price)` machines of a price fit:
    each may turn out to be the dearest. Dear offerings are left out where that lets more machines fit."""
    prices = sorted({one.offering.price_usd_hour for one in batch})
    counts = {price: max(0, math.floor(min(wanted, fits(price)) + 1e-9)) for price in prices}
    most = counts[prices[0]]
    limit = max(price for price in prices if counts[price] == most)
    return [one for one in batch if one.offering.price_usd_hour <= limit], most


def most_in_one(total: int, spread: float) -> int:
    """How many of a pool's spot machines one capacity pool may hold."""
    return max(FEW, math.ceil(spread * total - 1e-9))


def shared_out(
    batch: Sequence[Ranked], count: int, *, held: Mapping[Place, int], most: int
) -> tuple[list[tuple[tuple[Ranked, ...], int]], int]:
    """A batch in parts that share no capacity pool, so that none comes to hold more than `most` wherever the cloud puts
    each part; and how many machines have no place so. `held` are machines by capacity pool, in flight or up. Capacity
    pools that are nearly full are left out: a part for the last machine of each would be a call for each."""
    left = [(one, most - held.get(one.place, 0)) for one in batch]
    left = [(one, room) for one, room in left if room >= min(count, max(FEW, most / 4))]
    parts: list[tuple[tuple[Ranked, ...], int]] = []
    missing = count
    while missing > 0 and left:
        size = min(missing, left[0][1])
        part = [one for one, room in left if room >= size][:: math.ceil(missing / size)]
        parts.append((tuple(part), size))
        taken = {one.place for one in part}
        left = [(one, room) for one, room in left if one.place not in taken]
        missing -= size
    return parts, missing
