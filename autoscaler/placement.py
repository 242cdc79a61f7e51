"""Choose where a pool's next machines may be launched.

Pure: a filter chain over offerings (allowed -> not cooling -> cheapest). Each filter keeps the order; an empty
result is an answer with a reason, never an exception.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from autoscaler.model import Cooldown, Pool
from autoscaler.spi import CapacityPool, CapacityType, Offering

FIRST_COOLDOWN = timedelta(seconds=15)
LONGEST_COOLDOWN = timedelta(seconds=120)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Ranked offerings, or none and the reason; `again_at` is when the first cooling one may be tried."""

    offerings: tuple[Offering, ...]
    reason: str = ""
    again_at: datetime | None = None


def is_allowed(pool: Pool, offering: Offering) -> bool:
    """Whether configuration lets a pool use an offering: on_demand is the fall-back of pools without spot."""
    if offering.capacity_pool.provider not in pool.providers:
        return False
    if offering.capacity_pool.capacity_type is CapacityType.ON_DEMAND:
        return not pool.spot_enabled
    limit = pool.max_spot_price_usd_hour
    return pool.spot_enabled and (limit is None or offering.price_usd_hour <= limit)


def choose_offerings(
    pool: Pool, offerings: Sequence[Offering], *, cooldowns: Mapping[CapacityPool, Cooldown], now: datetime
) -> Choice:
    """The offerings a launch of this pool may use now, cheapest first."""
    allowed = [offering for offering in offerings if is_allowed(pool, offering)]
    if not allowed:
        return Choice(offerings=(), reason="no machine type of its providers fits the shape and the price limit")
    cooling = [cooldowns[o.capacity_pool] for o in allowed if o.capacity_pool in cooldowns]
    cooling = [cooldown for cooldown in cooling if cooldown.until > now]
    closed = {cooldown.capacity_pool for cooldown in cooling}
    choices = [offering for offering in allowed if offering.capacity_pool not in closed]
    if not choices:
        first = min(cooling, key=lambda cooldown: cooldown.until)
        wait_s = (first.until - now).total_seconds()
        return Choice(
            offerings=(),
            reason=f"every capacity pool refuses; the next try is in {wait_s:.0f} s ({first.reason})",
            again_at=first.until,
        )
    choices.sort(key=lambda offering: (offering.price_usd_hour, offering.capacity_pool))
    return Choice(offerings=tuple(choices))


def cooled(capacity_pool: CapacityPool, *, before: Cooldown | None, now: datetime, reason: str) -> Cooldown:
    """The cooldown after one more refusal: 15 s, doubling to 120 s while refusals follow each other.

    Refusals are in a row when the next one comes within twice the last cooldown of its end."""
    failures = 1
    if before is not None and now <= before.until + 2 * _length(before.failures):
        failures = before.failures + 1
    return Cooldown(capacity_pool=capacity_pool, until=now + _length(failures), failures=failures, reason=reason)


def _length(failures: int) -> timedelta:
    doublings: int = min(failures - 1, 8)
    return min(FIRST_COOLDOWN * (1 << doublings), LONGEST_COOLDOWN)
