"""What a cloud's API lets us call, by family: token buckets that all pools of a provider share.

Each family has a bucket of its own, so that listing and cleaning up never starve launching. A call waits where its
turn comes soon and is refused as `Throttled` where it does not, before the cloud has to. When the cloud throttles
anyway (the account is shared, or its limits are lower than documented) the believed budget of that family is halved,
down to a sixteenth, and doubles again every 20 quiet seconds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autoscaler.calls import TokenBucket
from autoscaler.spi import Clock, RateBudget, Throttled

LONGEST_WAIT_S = 5.0
_SHORTEST_WAIT_S = 0.005
"""Rounding may leave a hair's breadth to wait, which no clock shows."""
_LEAST_SHARE = 1 / 16
_DOUBLES_IN_S = 20.0
_ONE_BURST_S = 5.0
"""Throttles that follow each other so closely are of one burst, and say one thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`limit` calls at once, refilled at `refill_per_s`. Calls that can wait leave `reserve` for those that cannot."""

    limit: float
    refill_per_s: float
    reserve: float = 0.0


class RateBudgets:
    def __init__(self, families: Mapping[str, Family], clock: Clock) -> None:
        self._clock = clock
        now = clock.monotonic()
        self._families = {
            name: _Believed(
                family=family,
                bucket=TokenBucket(capacity=family.limit, refill_per_s=family.refill_per_s, now=now),
            )
            for name, family in families.items()
        }

    async def take(self, family: str, cost: float = 1.0, *, can_wait: bool = False) -> None:
        """Take `cost` calls of a family; a cost beyond its limit counts as the limit. `can_wait` leaves the reserve to
        others. Raises Throttled when the turn would come later than in `LONGEST_WAIT_S`."""
        believed = self._families[family]
        deadline = self._clock.monotonic() + LONGEST_WAIT_S
        while True:
            now = self._clock.monotonic()
            wait_s = believed.take_or_wait_s(cost, now, can_wait=can_wait)
            if wait_s <= 0:
                return
            if now + wait_s > deadline:
                raise Throttled(
                    f"the rate budget of {family} is used up for {wait_s:.0f} s: nothing was asked of the cloud",
                    retry_after_s=wait_s,
                )
            await self._clock.sleep(max(wait_s, _SHORTEST_WAIT_S))

    def give_back(self, family: str, cost: float) -> None:
        """What was taken of a family, and the cloud did not count."""
        self._families[family].bucket.give_back(cost, self._clock.monotonic())

    def throttled(self, family: str, retry_after_s: float) -> None:
        """The cloud refused a call of this family for its rate."""
        self._families[family].throttled(retry_after_s, self._clock.monotonic())

    def budgets(self) -> tuple[RateBudget, ...]:
        now = self._clock.monotonic()
        return tuple(believed.shown(name, now) for name, believed in sorted(self._families.items()))


@dataclass(slots=True, kw_only=True)
class _Believed:
    """A family's bucket, at the share of its documented rate that the cloud was seen to grant."""

    family: Family
    bucket: TokenBucket
    share: float = 1.0
    share_since: float = 0.0
    halved_at: float = -math.inf

    def take_or_wait_s(self, cost: float, now: float, *, can_wait: bool) -> float:
        """Takes and returns 0.0, or takes nothing and returns the seconds until it could."""
        self._adapt(now)
        reserve = self.family.reserve if can_wait else 0.0
        needed = min(cost + reserve, self.bucket.capacity)
        wait_s = self.bucket.wait_s(needed, now)
        if wait_s <= 0:
            self.bucket.take(min(cost, needed), now)
        return wait_s

    def throttled(self, retry_after_s: float, now: float) -> None:
        self._adapt(now)
        if now >= self.halved_at + _ONE_BURST_S:
            self.share = max(_LEAST_SHARE, self.share / 2)
            self.share_since = self.halved_at = now
            self._believe()
        self.bucket.level(now)  # no more than it holds from now on
        self.bucket.block(retry_after_s, now)

    def _believe(self) -> None:
        self.bucket.refill_per_s = self.family.refill_per_s * self.share
        self.bucket.capacity = max(1.0, self.family.limit * self.share)

    def shown(self, name: str, now: float) -> RateBudget:
        self._adapt(now)
        return RateBudget(
            family=name,
            limit=self.bucket.capacity,
            remaining=self.bucket.level(now),
            refill_per_s=self.bucket.refill_per_s,
        )

    def _adapt(self, now: float) -> None:
        """What came in since is counted at the old rate, then the rate recovers."""
        self.bucket.level(now)
        if self.share < 1:
            self.share = min(1.0, self.share * 2 ** ((now - self.share_since) / _DOUBLES_IN_S))
            self.share_since = now
            self._believe()
