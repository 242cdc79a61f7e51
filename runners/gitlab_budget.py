"""Owns what we may call: three families, learned from headers where GitLab sends them.

| family | limit | known from |
|---|---|---|
| core | the user's API limit | RateLimit-* headers; until seen, 2000 a minute is assumed |
| jobs | 600 a minute for project job lists | documented, application level: no header shows it |
| registration | runner create, pause, delete | core, or the own limit of `runner_token` where one is configured |

An assumed limit paces listings and is shown, but never refuses a call: most self-managed servers have none. A
learned or documented limit does, and so does a 429 until its wait is over, because hammering prolongs it.
"""

import math

from autoscaler.calls import TokenBucket, WindowLimit
from autoscaler.spi import Clock, RateBudget, RateLimited
from runners.gitlab_errors import Refused, retry_after_s

ASSUMED_PER_MINUTE = 2000.0
JOB_LISTS_PER_MINUTE = 600


class Budgets:
    """The families of one forge. Used on the event loop only."""

    def __init__(self, clock: Clock, *, has_runner_token: bool) -> None:
        self._clock = clock
        self._core = self._assumed()
        self._registration = self._assumed() if has_runner_token else self._core
        self._job_lists = WindowLimit(limit=JOB_LISTS_PER_MINUTE, window_s=60.0)
        self._learned: set[int] = set()

    def spend(self, family: str, *, uses_runner_token: bool) -> None:
        """Account for one call before it is made. Raises RateLimited when the limit is known to be used up."""
        now = self._clock.monotonic()
        bucket = self._bucket(uses_runner_token)
        if bucket.wait_s(0, now) > 0 or (id(bucket) in self._learned and bucket.wait_s(1, now) > 0):
            wait_s = max(bucket.wait_s(0, now), bucket.wait_s(1, now))
            raise RateLimited(
                f"the {family} budget is used up, again in {wait_s:.0f} s",
                retry_after_s=wait_s if math.isfinite(wait_s) else 60.0,
                family=family,
            )
        if family == "jobs" and not self._job_lists.take(now):
            wait_s = self._job_lists.wait_s(now)
            raise RateLimited(
                f"the job list budget is used up, again in {wait_s:.0f} s", retry_after_s=wait_s, family=family
            )
        bucket.take(min(1.0, bucket.level(now)), now)

    def learn(self, headers: dict[str, str], *, uses_runner_token: bool) -> None:
        """Take over RateLimit-Limit, -Remaining and -Reset (Unix seconds) where an answer carries all three."""
        numbers = [headers.get(f"ratelimit-{name}", "") for name in ("limit", "remaining", "reset")]
        if not all(number.isdigit() for number in numbers):
            return
        limit, remaining, reset = (float(number) for number in numbers)
        now = self._clock.monotonic()
        bucket = self._bucket(uses_runner_token)
        resets_in_s = max(0.0, reset - self._clock.now().timestamp())
        self._learned.add(id(bucket))
        bucket.refill_per_s = limit / 60.0
        bucket.observe(remaining=remaining, limit=limit, resets_in_s=resets_in_s, now=now)

    def block(self, refused: Refused, family: str, *, uses_runner_token: bool) -> None:
        """A 429 came: give nothing before its wait is over. Without RateLimit headers it is the family's own limit."""
        now = self._clock.monotonic()
        wait_s = retry_after_s(refused.headers, self._clock.now().timestamp())
        if family == "jobs" and "ratelimit-limit" not in refused.headers:
            self._job_lists.block(wait_s, now)
        else:
            self._bucket(uses_runner_token).block(wait_s, now)

    def job_lists_left(self) -> int:
        """How many project job lists may be asked now, keeping a fifth of the core budget for other calls."""
        now = self._clock.monotonic()
        spare = self._core.level(now) - 0.2 * self._core.capacity
        return max(0, min(self._job_lists.level(now), int(spare)))

    def snapshot(self) -> tuple[RateBudget, ...]:
        """All families now."""
        now = self._clock.monotonic()
        return (
            _shown("core", self._core, now),
            RateBudget(
                family="jobs",
                limit=float(self._job_lists.limit),
                remaining=float(self._job_lists.level(now)),
                refill_per_s=self._job_lists.refill_per_s,
            ),
            _shown("registration", self._registration, now),
        )

    def _bucket(self, uses_runner_token: bool) -> TokenBucket:
        return self._registration if uses_runner_token else self._core

    def _assumed(self) -> TokenBucket:
        return TokenBucket(
            capacity=ASSUMED_PER_MINUTE, refill_per_s=ASSUMED_PER_MINUTE / 60.0, now=self._clock.monotonic()
        )


def _shown(family: str, bucket: TokenBucket, now: float) -> RateBudget:
    return RateBudget(
        family=family, limit=bucket.capacity, remaining=bucket.level(now), refill_per_s=bucket.refill_per_s
    )
