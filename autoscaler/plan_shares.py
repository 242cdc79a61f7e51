"""Part of plan: who is served first when there is not enough for everybody.

Pure. While there is room the oldest job is first. When a cap binds, or jobs wait for long, repos take turns: the next
machine goes to the oldest job of the repo that has the fewest machines of the pool, so that one repo's matrix of
thousands of jobs holds up no other repo for longer than until the next machine is free. Pools of equal priority take
turns at what they share in the same way: the next machine goes to the pool that has the fewest.

What is registered goes to a registration scope and label set, not to a repo: within those the forge chooses.
"""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from autoscaler.model import Blocked, BlockedBy, Job, JobId, Pool
from autoscaler.placement import Ranking, ranking_of
from autoscaler.plan_limits import Room, runtime_h_of
from autoscaler.plan_tick import Fleet, Purpose, Tick, Want
from autoscaler.spi import ForgeName, ProviderName
from autoscaler.states import WORKING_STATES

LONG = timedelta(seconds=30)
"""A job that has no machine for so long, not even one that is coming, is in want of something: a cap on spill binds, or
nothing can be had."""
NAMED = 10
"""So many repos that wait for their turn are told apart; those beyond are told of together."""
BEHIND = 3


@dataclass(slots=True, kw_only=True)
class Turn:
    """One pool that takes its turn: its queued jobs, and what it wants launched after all else was given out."""

    pool: Pool
    fleet: Fleet
    jobs: list[Job]
    is_short: bool = False
    wants: list[Want] = field(default_factory=list)

    @property
    def urgent(self) -> int:
        """How many of the wants, which come first, somebody waits for."""
        return sum(1 for want in self.wants if want.purpose not in (Purpose.FORESEEN, Purpose.MIN))


# --------------------------------------------------------------------------- repos within a pool


def in_turn(jobs: Sequence[Job], fleet: Fleet, covered: Sequence[Job]) -> list[Job]:
    """Jobs, oldest first, in the order in which they are served when there is not enough: each counts the machines that
    its repo will have before it, and those with equal counts stay in their order. `covered` have a runner already."""
    has = _working(fleet)
    has.update(job.repo for job in covered)
    ranks = []
    for job in jobs:
        ranks.append(has[job.repo])
        has[job.repo] += 1
    order = sorted(range(len(jobs)), key=ranks.__getitem__)
    return [jobs[at] for at in order]


def _working(fleet: Fleet) -> Counter[str]:
    return Counter(row.repo for row in fleet.rows if row.state in WORKING_STATES and row.repo)


def is_short(tick: Tick, pool: Pool, fleet: Fleet, jobs: Sequence[Job]) -> bool:
    """Whether some of a pool's jobs without a runner, oldest first, may have to wait: because of a cap or a forge's
    budget, or as others do already, whatever is in the way."""
    having = len(fleet.ready) + fleet.coming
    if having < len(jobs):
        is_waiting = jobs[having].queued_at + LONG <= tick.now
        if is_waiting or _room(tick, pool, fleet, _price(tick, pool)) < len(jobs) - having:
            return True
    soon = tick.limits.mint_soon
    if not jobs or len(jobs) <= min(soon.values(), default=0.0):
        return False
    asked: Counter[ForgeName] = Counter(job.forge for job in jobs)
    return any(count > soon.get(forge, 0.0) for forge, count in asked.items())


def most_launches(tick: Tick, pool: Pool, fleet: Fleet) -> float:
    """How many machines a pool may launch at most by every cap, if it gets its cheapest ones."""
    price = 0.0
    if _is_capped_in_money(tick):
        ranking = _ranking(tick, pool)
        price = min((one.offering.price_usd_hour for one in (*ranking.spot, *ranking.on_demand)), default=0.0)
    return _room(tick, pool, fleet, price)


def _room(tick: Tick, pool: Pool, fleet: Fleet, price: float) -> float:
    limits, runtime_h = tick.limits, runtime_h_of(pool)
    owned = (
        _fitting(room, price, runtime_h) if (room := limits.providers.get(name)) is not None else math.inf
        for name in pool.providers
    )
    return min(pool.max - fleet.live, _fitting(limits.deployment, price, runtime_h), sum(owned))


def _fitting(room: Room, price: float, runtime_h: float) -> float:
    return min(bound for bound, _ in room.bounds(price, runtime_h)) + 1e-9


def _price(tick: Tick, pool: Pool) -> float:
    """What a machine of the pool costs an hour, roughly: nobody knows yet where it will be."""
    if not _is_capped_in_money(tick):
        return 0.0
    ranking = _ranking(tick, pool)
    best = (*ranking.spot[:1], *ranking.on_demand[:1])
    return max((one.offering.price_usd_hour for one in best), default=0.0)


def _ranking(tick: Tick, pool: Pool) -> Ranking:
    snapshot = tick.snapshot
    offerings, life_h = snapshot.offerings.get(pool.name, ()), snapshot.expected_life_h.get(pool.name)
    return ranking_of(pool, offerings, evidence=snapshot.evidence, life_h=life_h)


def _is_capped_in_money(tick: Tick) -> bool:
    rooms = (tick.limits.deployment, *tick.limits.providers.values())
    return not all(math.isinf(room.usd_per_hour) and math.isinf(room.usd_today) for room in rooms)


# --------------------------------------------------------------------------- pools of equal priority


def portions(tick: Tick, turns: Sequence[Turn]) -> list[int]:
    """How many of the machines that each pool wants it may launch before the others have had their turn. Where a cap
    may bind, what nobody waits for yet has to wait for that."""
    asking = [turn for turn in turns if turn.wants]
    if len(asking) < 2 or not _may_bind(tick, asking):
        return [len(turn.wants) for turn in turns]
    asked = [turn.urgent for turn in turns]
    shared = _Shared(tick)
    prices = [_price(tick, turn.pool) for turn in turns]
    given = [0] * len(turns)
    queue = [(turn.fleet.live, at) for at, turn in enumerate(turns) if asked[at]]
    heapq.heapify(queue)
    while queue:
        live, at = heapq.heappop(queue)
        pool = turns[at].pool
        if live < pool.max and shared.take(pool, prices[at]):
            given[at] += 1
            if given[at] < asked[at]:
                heapq.heappush(queue, (live + 1, at))
    return given


def _may_bind(tick: Tick, asking: Sequence[Turn]) -> bool:
    """Whether a cap that these pools share may bind in this tick."""
    price = max(_price(tick, turn.pool) for turn in asking)
    runtime_h = max(runtime_h_of(turn.pool) for turn in asking)
    wanted = sum(len(turn.wants) for turn in asking)
    if _fitting(tick.limits.deployment, price, runtime_h) < wanted:
        return True
    for name, room in tick.limits.providers.items():
        if _fitting(room, price, runtime_h) < sum(len(turn.wants) for turn in asking if name in turn.pool.providers):
            return True
    return False


class _Shared:
    """What pools share, drawn on one machine at a time. The real limits are drawn on when launches are decided."""

    def __init__(self, tick: Tick) -> None:
        self._deployment = replace(tick.limits.deployment)
        self._providers = {name: replace(room) for name, room in tick.limits.providers.items()}

    def take(self, pool: Pool, price: float) -> bool:
        runtime_h = runtime_h_of(pool)
        if _fitting(self._deployment, price, runtime_h) < 1:
            return False
        found = next((name for name in pool.providers if self._has_room(name, price, runtime_h)), None)
        if found is None:
            return False
        self._deployment.charge(1, price, runtime_h)
        if (room := self._providers.get(found)) is not None:
            room.charge(1, price, runtime_h)
        return True

    def _has_room(self, name: ProviderName, price: float, runtime_h: float) -> bool:
        room = self._providers.get(name)
        return room is None or _fitting(room, price, runtime_h) >= 1


# --------------------------------------------------------------------------- telling it


def told(turn: Turn, blocked: Sequence[Blocked]) -> list[Blocked]:
    """What keeps a pool's jobs from their machines, with those told apart that wait for their repo's turn."""
    if not turn.is_short or not any(one.by is BlockedBy.CAP and one.ids for one in blocked):
        return list(blocked)
    waiting = {id_ for one in blocked for id_ in one.ids}
    has = _working(turn.fleet)
    has.update(job.repo for job in turn.jobs if job.id not in waiting)
    known = (*turn.jobs, *(want.job for want in turn.wants if want.job is not None))
    repos = {job.id: job.repo for job in known if job.id in waiting}
    found: list[Blocked] = []
    for one in blocked:
        found += _apart(one, turn.pool, repos, has) if one.by is BlockedBy.CAP and one.ids else [one]
    return found


def _apart(one: Blocked, pool: Pool, repos: dict[JobId, str], has: Counter[str]) -> list[Blocked]:
    """A cap's entry as one for the repos that are next, and one for each repo that has more than those."""
    ids: dict[str, list[JobId]] = defaultdict(list)
    for id_ in one.ids:
        ids[repos.get(id_, "")].append(id_)
    least = min(has[repo] for repo in ids)
    waiting = sorted((repo for repo in ids if has[repo] > least), key=lambda repo: (-has[repo], repo))
    if not waiting:
        return [one]
    order = sorted(ids, key=lambda repo: (has[repo], repo))
    next_ids = tuple(id_ for id_ in one.ids if has[repos.get(id_, "")] == least)
    found = [replace(one, jobs=len(next_ids), ids=next_ids)]
    for repo in waiting[:NAMED]:
        before = [other for other in order if has[other] < has[repo]]
        reason = (
            f"{one.reason}; {repo} has {has[repo]} machines of pool {pool.name} and waits for its turn behind "
            f"{_some(before)}"
        )
        found.append(_turn_of(one, reason, ids[repo]))
    if rest := waiting[NAMED:]:
        reason = f"{one.reason}; {len(rest)} more repos have machines of pool {pool.name} and wait for their turn"
        found.append(_turn_of(one, reason, [id_ for repo in rest for id_ in ids[repo]]))
    return found


def _turn_of(one: Blocked, reason: str, ids: list[JobId]) -> Blocked:
    return replace(one, by=BlockedBy.SHARE, reason=reason, jobs=len(ids), ids=tuple(ids))


def _some(repos: Sequence[str]) -> str:
    more = len(repos) - BEHIND
    return ", ".join(repos[:BEHIND]) + (f" and {more} more" if more > 0 else "")
