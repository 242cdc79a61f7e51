"""What launches and machines teach of capacity pools: cooldowns, evidence of interruptions, how long machines live.

Owns `Sightings.cooldowns` and `scope_cooldowns`, and the evidence in the rows; `observe` tells it of every launch that
was answered and every machine that ended. Cooldowns live in memory alone: after a restart a capacity pool that refuses
says so again. Evidence is durable, written at most once a minute. Nothing here grows with history: one small row per
capacity pool that was ever used, until what it says is a thousandth of what it was.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from autoscaler.cooling import cooled, is_forgotten, scope_cooled
from autoscaler.facts import LaunchAnswered
from autoscaler.live import LiveRows
from autoscaler.model import CapacityEvidence, EndReason, Instance
from autoscaler.risk import FORGOTTEN_AFTER, USUAL_LIFE_H, decayed, no_evidence
from autoscaler.sightings import Sightings
from autoscaler.spi import (
    CapacityPool,
    CapacityType,
    CapacityUnavailable,
    InvalidRequest,
    Offering,
    PoolName,
    ProviderError,
    ProviderName,
    QuotaExceeded,
    Throttled,
    Unauthorized,
)

FAILURES_IN_A_ROW = 3
"""So many launches that fail for no known reason cool what they asked for, as refusals do (karpenter issue 9616: an API
that answers with errors for an hour kept a fleet from the capacity next door)."""
KEEP_EVERY = timedelta(minutes=1)
SHOW_EVERY = timedelta(seconds=30)
"""Rankings are made anew when evidence is replaced; what must act at once is a cooldown."""
LIFE_WEIGHT = 0.05
"""The share of the newest machine in the mean life of a pool's machines: about the last twenty."""
REBALANCE_WEIGHT = 0.25
"""A recommendation to leave is not a loss: most machines outlive it."""


class Experience:
    """See the module docstring."""

    def __init__(self, rows: LiveRows, sightings: Sightings) -> None:
        self._rows = rows
        self._seen = sightings
        self._half_life = timedelta(hours=24)
        self._fresh: dict[CapacityPool, CapacityEvidence] = dict(rows.evidence)
        self._unkept: set[CapacityPool] = set()
        self._kept_at: datetime | None = None
        self._shown: Mapping[CapacityPool, CapacityEvidence] = {}
        self._shown_at: datetime | None = None
        self._failures: defaultdict[tuple[ProviderName, str], int] = defaultdict(int)
        self._lives_h: dict[PoolName, float] = {}

    # ------------------------------------------------------------------ launches

    def launch_answered(self, fact: LaunchAnswered, now: datetime) -> None:
        """Machines reset what their capacity pools had coming; refusals cool; failures in a row do too."""
        if fact.failure is not None:
            self._refused(fact.offerings, fact.failure, now)
        if fact.result is None:
            return
        made = {machine.capacity_pool for machine in fact.result.instances}
        for machine in fact.result.instances:
            self._failures.pop((machine.provider, machine.capacity_pool.region), None)
            self._add(machine.capacity_pool, now, asked=1)
        for capacity_pool in made:
            before = self._seen.cooldowns.get(capacity_pool)
            if before is not None and before.until <= now:  # one that cools was refused since this was asked for
                del self._seen.cooldowns[capacity_pool]
            for key, one in list(self._seen.scope_cooldowns.items()):
                is_over = one.provider == capacity_pool.provider and one.until <= now
                if is_over and one.scope.covers(capacity_pool):  # a fleet at its quota gets each machine that is freed
                    del self._seen.scope_cooldowns[key]
        unexplained: dict[str, list[Offering]] = defaultdict(list)
        errors: dict[str, ProviderError] = {}
        for refusal in fact.result.refusals:
            if _is_unexplained(refusal.error):
                unexplained[refusal.offering.capacity_pool.region].append(refusal.offering)
                errors[refusal.offering.capacity_pool.region] = refusal.error
            else:
                self._refused((refusal.offering,), refusal.error, now)
                self._unfit(refusal.offering, refusal.error, now)
        for offerings in unexplained.values():
            self._failed(offerings, errors[offerings[0].capacity_pool.region], now)
        if not fact.result.instances and not fact.result.refusals:
            self._failed(fact.offerings, ProviderError("no machine, and no reason"), now)

    def _refused(self, offerings: tuple[Offering, ...], error: ProviderError, now: datetime) -> None:
        if _is_unexplained(error):
            self._failed(offerings, error, now)
        elif isinstance(error, QuotaExceeded):
            for provider in {offering.capacity_pool.provider for offering in offerings}:
                key = provider, error.scope
                self._seen.scope_cooldowns[key] = scope_cooled(
                    provider, error.scope, before=self._seen.scope_cooldowns.get(key), now=now, reason=str(error)
                )
        elif isinstance(error, CapacityUnavailable):
            for offering in offerings:
                self._cool(offering.capacity_pool, now, str(error), is_lasting=error.is_lasting)
                self._add(offering.capacity_pool, now, asked=1, refused=1)

    def _unfit(self, offering: Offering, error: ProviderError, now: datetime) -> None:
        """One offering of several cannot be launched as configured: the image does not boot there, a permission is
        missing. Where all cannot, the launch itself fails, and the pool is held."""
        if isinstance(error, InvalidRequest | Unauthorized):
            self._cool(offering.capacity_pool, now, str(error))

    def _failed(self, offerings: "tuple[Offering, ...] | list[Offering]", error: ProviderError, now: datetime) -> None:
        """A launch failed and nobody knows why: one failure for each region that it asked."""
        regions = {(offering.capacity_pool.provider, offering.capacity_pool.region) for offering in offerings}
        for key in regions:
            self._failures[key] += 1
        for offering in offerings:
            where = offering.capacity_pool
            failures = self._failures[where.provider, where.region]
            if failures >= FAILURES_IN_A_ROW:
                self._cool(where, now, f"{failures} launches in {where.region} failed in a row: {error}")

    def _cool(self, capacity_pool: CapacityPool, now: datetime, reason: str, *, is_lasting: bool = False) -> None:
        before = self._seen.cooldowns.get(capacity_pool)
        text = " ".join(reason.split()).removeprefix(f"{capacity_pool.key}: ")[:300] or "it was refused"
        self._seen.cooldowns[capacity_pool] = cooled(
            capacity_pool, before=before, now=now, reason=text, is_lasting=is_lasting
        )

    # ------------------------------------------------------------------ machines

    def machine_ended(self, row: Instance, now: datetime) -> None:
        """Its hours are evidence, and where it was reclaimed, so is that. What never was a machine says nothing."""
        if row.provider_id is None or row.capacity_pool is None:
            return
        life_h = max(0.0, (now - row.created_at).total_seconds() / 3600)
        if row.job is not None:
            mean_h = self._lives_h.get(row.pool, USUAL_LIFE_H)
            self._lives_h[row.pool] = mean_h + LIFE_WEIGHT * (life_h - mean_h)
        if row.capacity_pool.capacity_type is not CapacityType.SPOT:
            return
        self._add(row.capacity_pool, now, hours=life_h)
        if row.ending is EndReason.INTERRUPTED:
            self._add(row.capacity_pool, now, interruptions=1)
            if row.capacity_pool not in self._seen.cooldowns:  # else its notice has cooled it: one loss is one refusal
                self.note_interrupted(row.capacity_pool, now)

    def note_interrupted(self, capacity_pool: CapacityPool, now: datetime) -> None:
        """A machine there is being taken, or was: where one goes others follow within minutes, and a new one would be
        the next. The many of one reclaim are one outage."""
        if capacity_pool.capacity_type is CapacityType.SPOT:
            self._cool(capacity_pool, now, "the cloud takes machines back there")

    def note_explained(self, capacity_pool: CapacityPool, now: datetime) -> None:
        """A machine that had ended for no known reason was taken, as is told now: its hours count already."""
        if capacity_pool.capacity_type is CapacityType.SPOT:
            self._add(capacity_pool, now, interruptions=1)

    def note_rebalance(self, capacity_pool: CapacityPool, now: datetime) -> None:
        """The cloud says that a machine there is at a higher risk than usual."""
        if capacity_pool.capacity_type is CapacityType.SPOT:
            self._add(capacity_pool, now, interruptions=REBALANCE_WEIGHT)

    def _add(self, capacity_pool: CapacityPool, now: datetime, **amounts: float) -> None:
        known = self._fresh.get(capacity_pool) or no_evidence(capacity_pool, now)
        known = decayed(known, now, half_life=self._half_life)
        self._fresh[capacity_pool] = replace(
            known, **{name: getattr(known, name) + amount for name, amount in amounts.items()}
        )
        self._unkept.add(capacity_pool)

    # ------------------------------------------------------------------ what plan sees, what survives

    def evidence(self, now: datetime) -> Mapping[CapacityPool, CapacityEvidence]:
        """All evidence as it counts now, the same object for half a minute."""
        if self._shown_at is None or now >= self._shown_at + SHOW_EVERY:
            self._shown = {key: decayed(one, now, half_life=self._half_life) for key, one in self._fresh.items()}
            self._shown_at = now
        return self._shown

    def expected_life_h(self) -> dict[PoolName, float]:
        """How long machines of each pool live, in steps of a factor of two: a step makes all rankings anew."""
        return {pool: 2.0 ** round(math.log2(max(life_h, 1 / 60))) for pool, life_h in self._lives_h.items()}

    def keep(self, now: datetime, *, half_life: timedelta, is_last: bool = False) -> None:
        """Write evidence that changed, at most once a minute, and forget what says nothing any more."""
        self._half_life = half_life
        if not is_last and self._kept_at is not None and now < self._kept_at + KEEP_EVERY:
            return
        self._kept_at = now
        for capacity_pool in sorted(self._unkept):
            self._rows.keep_evidence(self._fresh[capacity_pool])
        self._unkept.clear()
        oldest = now - FORGOTTEN_AFTER * half_life
        self._fresh = {key: one for key, one in self._fresh.items() if one.at > oldest}
        seen = self._seen
        seen.cooldowns = {key: one for key, one in seen.cooldowns.items() if not is_forgotten(one, now)}
        seen.scope_cooldowns = {key: one for key, one in seen.scope_cooldowns.items() if not is_forgotten(one, now)}


def _is_unexplained(error: ProviderError) -> bool:
    """Neither capacity nor quota, throttle, configuration or permission: an API that fails."""
    known = (CapacityUnavailable, QuotaExceeded, Throttled, InvalidRequest, Unauthorized)
    return not isinstance(error, known)
