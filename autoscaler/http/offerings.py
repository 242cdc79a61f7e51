"""GET /api/v1/offerings: every capacity pool that a pool may use, with price, learned risk, cooldown and rank.

Thousands are possible, so that by default only those are told that somebody may want to see: where machines are, what
cools, and the best of each pool. Reads the snapshot through the same ranking and closures as `plan`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from datetime import datetime

from autoscaler.cooling import Closures, Place, place_of
from autoscaler.http.documents import Document, capacity_pool_document, instant
from autoscaler.http.view import DaemonView
from autoscaler.model import CapacityEvidence, ScopeCooldown, Snapshot
from autoscaler.placement import Ranking, ranking_of
from autoscaler.risk import prior_per_hour, risk_per_hour
from autoscaler.spi import CapacityPool, Offering, PoolName

BEST = 50
"""So many of each pool and capacity type are told unasked."""
IN_USE_TOLD = COOLING_TOLD = 100
POOLS_TOLD = 6
"""So many pools are named with each offering unasked, those that rank it highest first."""


def offerings_document(
    view: DaemonView, *, pool: PoolName | None = None, everything: bool = False, best: int = BEST
) -> Document:
    """The offerings of one pool or of all, best first; `total` counts those that were left out too."""
    snapshot, now = view.snapshot(), view.now()
    rankings = {name: ranking for name, ranking in _rankings(view).items() if pool in (None, name)}
    told = _Told(snapshot, rankings, now)
    rows = told.rows(everything=everything, best=best)
    return {
        "now": instant(now),
        "total": len(told.places),
        "offerings": rows,
        "scopes": [_scope_document(one) for one in snapshot.scope_cooldowns if one.until > now],
    }


def _rankings(view: DaemonView) -> Mapping[PoolName, Ranking]:
    snapshot = view.snapshot()
    return {
        name: ranking_of(
            pool,
            snapshot.offerings.get(name, ()),
            evidence=snapshot.evidence,
            life_h=snapshot.expected_life_h.get(name),
        )
        for name, pool in sorted(view.rules().pools.items())
    }


_Standing = tuple[float, PoolName, float | None, str]
"""How a pool sees an offering: its rank among those of its capacity type (infinite: it never uses it), the pool, what a
job there is expected to cost, and why it never uses it."""


class _Told:
    """What one answer is made of."""

    def __init__(self, snapshot: Snapshot, rankings: Mapping[PoolName, Ranking], now: datetime) -> None:
        self._snapshot = snapshot
        self._rankings = rankings
        self._closures = Closures(snapshot, now)
        self._cooling = {place_of(one.capacity_pool): one for one in snapshot.cooldowns.values() if one.until > now}
        self._machines = Counter(
            place_of(row.capacity_pool) for row in snapshot.instances.values() if row.capacity_pool is not None
        )
        self.places: set[Place] = set()
        for ranking in rankings.values():
            self.places.update(one.place for one in ranking.spot)
            self.places.update(one.place for one in ranking.on_demand)

    def rows(self, *, everything: bool, best: int) -> list[Document]:
        chosen = None if everything else self._worth_telling(best)
        offered: dict[Place, Offering] = {}
        standings: dict[Place, list[_Standing]] = defaultdict(list)
        for name, ranking in self._rankings.items():
            for ranked in (ranking.spot, ranking.on_demand):
                for rank, one in enumerate(ranked, start=1):
                    if chosen is None or one.place in chosen:
                        offered.setdefault(one.place, one.offering)
                        standings[one.place].append((rank, name, one.cost_usd, ""))
            for place, (offering, why) in ranking.excluded.items():
                if chosen is None or place in chosen:
                    offered.setdefault(place, offering)
                    standings[place].append((math.inf, name, None, why))
        for found in standings.values():
            found.sort()
        told = sorted(offered, key=lambda place: (standings[place][0][0], offered[place].price_usd_hour, place))
        named = None if everything else POOLS_TOLD
        return [self._row(place, offered[place], standings[place][:named]) for place in told]

    def _worth_telling(self, best: int) -> Collection[Place]:
        first_cooling = sorted(self._cooling, key=lambda place: (self._cooling[place].until, place))[:COOLING_TOLD]
        chosen = {place for place, _ in self._machines.most_common(IN_USE_TOLD)} | set(first_cooling)
        for ranking in self._rankings.values():
            for ranked in (ranking.spot, ranking.on_demand):
                chosen.update(one.place for one in ranked[:best])
        return chosen

    def _row(self, place: Place, offering: Offering, standings: list[_Standing]) -> Document:
        where = offering.capacity_pool
        evidence = self._snapshot.evidence.get(where)
        return {
            **capacity_pool_document(where),
            "cpus": offering.cpus,
            "memory_gib": offering.memory_gib,
            "arch": offering.arch,
            "gpus": offering.gpus,
            "price_usd_hour": offering.price_usd_hour,
            "on_demand_usd_hour": offering.on_demand_usd_hour,
            "risk_per_hour": round(risk_per_hour(offering, evidence), 6),
            "prior_per_hour": prior_per_hour(offering),
            "evidence": _evidence_document(evidence),
            "cooling": self._cooling_document(place, where),
            "machines": self._machines.get(place, 0),
            "pools": [
                {
                    "pool": pool,
                    "rank": None if excluded else int(rank),
                    "expected_job_usd": None if cost_usd is None else round(cost_usd, 6),
                    "excluded": excluded,
                }
                for rank, pool, cost_usd, excluded in standings
            ],
        }

    def _cooling_document(self, place: Place, where: CapacityPool) -> Document | None:
        closure = self._closures.of(place, where)
        if closure is None:
            return None
        own = self._cooling.get(place)
        return {
            "kind": closure.kind.value,
            "until": instant(closure.until),
            "reason": closure.reason,
            "failures": own.failures if own is not None else 0,
        }


def _evidence_document(evidence: CapacityEvidence | None) -> Document:
    """Weights, not counts: what is a half-life old counts half."""
    if evidence is None:
        return {"hours": 0.0, "interruptions": 0.0, "asked": 0.0, "refused": 0.0}
    return {
        "hours": round(evidence.hours, 3),
        "interruptions": round(evidence.interruptions, 3),
        "asked": round(evidence.asked, 3),
        "refused": round(evidence.refused, 3),
    }


def _scope_document(cooldown: ScopeCooldown) -> Document:
    scope = cooldown.scope
    return {
        "provider": cooldown.provider,
        "region": scope.region,
        "zone": scope.zone,
        "machine_type": scope.machine_type,
        "capacity_type": scope.capacity_type.value if scope.capacity_type else None,
        "until": instant(cooldown.until),
        "reason": cooldown.reason,
        "failures": cooldown.failures,
    }
