"""How likely a capacity pool takes its machines back, and what a job there is expected to cost.

Pure. Evidence is our own: instance hours, interruptions, launches asked and refused, each losing half its weight in a
half-life, so that it needs no history and survives a restart as four numbers. The rate is the mean of a gamma
posterior: a prior worth PRIOR_HOURS, from what the cloud publishes or else PRIOR_PER_HOUR, and the evidence (measured:
specs, policy 6: (n + 0.5) / (T + 10 h), half-life 24 h).
"""

import math
from dataclasses import replace
from datetime import datetime, timedelta

from autoscaler.model import CapacityEvidence
from autoscaler.spi import CapacityPool, CapacityType, Offering

PRIOR_HOURS = 10.0
PRIOR_PER_HOUR = 0.05
"""Half an interruption in the prior's ten hours: an unknown capacity pool is worth a try, not a fleet."""
USUAL_LIFE_H = 300 / 3600
"""How long a machine lives for one job while nothing is known of its pool's jobs."""
DELAY_H = 300 / 3600
"""What an interruption costs beside the lost work: the wait for the next machine, valued like machine time."""
FORGOTTEN_AFTER = 10
"""Half-lives after which evidence is a thousandth of what it was, and not worth a row."""


def decayed(evidence: CapacityEvidence, now: datetime, *, half_life: timedelta) -> CapacityEvidence:
    """The same evidence as it counts now."""
    if now <= evidence.at:
        return evidence
    share: float = 0.5 ** ((now - evidence.at) / half_life)
    return replace(
        evidence,
        at=now,
        hours=evidence.hours * share,
        interruptions=evidence.interruptions * share,
        asked=evidence.asked * share,
        refused=evidence.refused * share,
    )


def no_evidence(capacity_pool: CapacityPool, now: datetime) -> CapacityEvidence:
    return CapacityEvidence(capacity_pool=capacity_pool, at=now)


def prior_per_hour(offering: Offering) -> float:
    """Interruptions per hour of a machine before we know better."""
    if offering.capacity_pool.capacity_type is CapacityType.ON_DEMAND:
        return 0.0
    published = offering.published_interruptions_per_hour
    return PRIOR_PER_HOUR if published is None else published


def risk_per_hour(offering: Offering, evidence: CapacityEvidence | None) -> float:
    """Expected interruptions per hour of a machine there."""
    if offering.capacity_pool.capacity_type is CapacityType.ON_DEMAND:
        return 0.0
    prior = prior_per_hour(offering)
    if evidence is None:
        return prior
    return (evidence.interruptions + prior * PRIOR_HOURS) / (evidence.hours + PRIOR_HOURS)


def expected_cost_usd(offering: Offering, *, risk: float, life_h: float) -> float:
    """What running one job of `life_h` there costs: price, and with the chance of an interruption the run again, half
    of the work lost and the delay. The lost time is worth what the machine costs on demand."""
    price = offering.price_usd_hour
    if risk <= 0.0:
        return price * life_h
    worth = price if offering.on_demand_usd_hour is None else offering.on_demand_usd_hour
    chance = 1.0 - math.exp(-risk * life_h)
    return price * life_h + chance * (price * life_h + worth * (life_h / 2 + DELAY_H))
