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

ASSUMED_PER_MINUTE = 2000
JOB_LISTS_PER_MINUTE = 600
UNKNOWN_WAIT_S = 60.0


class _Allowance:
    """What one token may call: what GitLab told about it, else the assumed limit a minute."""

    def __init__(self) -> None:
        self._assumed = WindowLimit(limit=ASSUMED_PER_MINUTE, window_s=60.0)
        self._told: TokenBucket | None = None
        self._blocked_until = -math.inf

    def shown(self, family: str, now: float) -> RateBudget:
        """The allowance as a budget of this name."""
        source = self._told or self._assumed
        limit = self._told.capacity if self._told else self._assumed.limit
        remaining = 0 if now < self._blocked_until else source.level(now)
        return RateBudget(
            family=family, limit=float(limit), remaining=float(remaining), refill_per_s=source.refill_per_s
        )

    def wait_s(self, now: float) -> float:
        """Seconds until a call may be made; 0.0 if now."""
        wait_s = max(0.0, self._blocked_until - now)
        if self._told is not None:
            wait_s = max(wait_s, self._told.wait_s(1, now))
        return wait_s if math.isfinite(wait_s) else UNKNOWN_WAIT_S

    def take(self, now: float) -> None:
        """Account for one call."""
        if self._told is None:
            self._assumed.take(now)
        else:
            self._told.take(1, now)

    def tell(self, *, limit: float, remaining: float, resets_in_s: float, now: float) -> None:
        """Believe GitLab from now on."""
        if self._told is None:
            self._told = TokenBucket(capacity=limit, refill_per_s=limit / 60.0, now=now)
        self._told.refill_per_s = limit / 60.0
        self._told.observe(remaining=remaining, limit=limit, resets_in_s=resets_in_s, now=now)

    def block(self, seconds: float, now: float) -> None:
        """Give nothing before `now + seconds`."""
        self._blocked_until = max(self._blocked_until, now + seconds)


class Budgets:
    """The families of one forge. Used on the event loop only."""

    def __init__(self, clock: Clock, *, has_runner_token: bool) -> None:
        self._clock = clock
        self._core = _Allowance()
        self._registration = _Allowance() if has_runner_token else self._core
        self._job_lists = WindowLimit(limit=JOB_LISTS_PER_MINUTE, window_s=60.0)

    def spend(self, family: str, *, uses_runner_token: bool) -> None:
        """Account for one call before it is made. Raises RateLimited when the limit is known to be used up."""
        now = self._clock.monotonic()
        allowance = self._allowance(uses_runner_token)
        wait_s = allowance.wait_s(now)
        if family == "jobs":
            wait_s = max(wait_s, self._job_lists.wait_s(now))
        if wait_s > 0:
            text = f"the budget {family} is used up, again in {wait_s:.0f} s"
            raise RateLimited(text, retry_after_s=wait_s, family=family)
        allowance.take(now)
        if family == "jobs":
            self._job_lists.take(now)

    def learn(self, headers: dict[str, str], *, uses_runner_token: bool) -> None:
        """Take over RateLimit-Limit, -Remaining and -Reset (Unix seconds) where an answer carries all three."""
        numbers = [headers.get(f"ratelimit-{name}", "") for name in ("limit", "remaining", "reset")]
        if not all(number.isascii() and number.isdigit() for number in numbers):
            return
        limit, remaining, reset = (float(number) for number in numbers)
        self._allowance(uses_runner_token).tell(
            limit=limit,
            remaining=remaining,
            resets_in_s=max(0.0, reset - self._clock.now().timestamp()),
            now=self._clock.monotonic(),
        )

    def block(self, refused: Refused, family: str, *, uses_runner_token: bool) -> None:
        """A 429 came: give nothing before its wait is over. Without RateLimit headers it is the family's own limit."""
        now = self._clock.monotonic()
        wait_s = retry_after_s(refused.headers, self._clock.now().timestamp())
        if family == "jobs" and "ratelimit-limit" not in refused.headers:
            self._job_lists.block(wait_s, now)
        else:
            self._allowance(uses_runner_token).block(wait_s, now)

    def job_lists_left(self) -> int:
        """How many project job lists may be asked now, keeping a fifth of the core budget for other calls."""
        now = self._clock.monotonic()
        return max(0, min(self._job_lists.level(now), self.spare_calls()))

    def spare_calls(self) -> int:
        """How many calls may be made now by what can wait: a fifth of the core budget is for everything else."""
        core = self._core.shown("core", self._clock.monotonic())
        return max(0, int(core.remaining - 0.2 * core.limit))

    def snapshot(self) -> tuple[RateBudget, ...]:
        """All families now."""
        now = self._clock.monotonic()
        job_lists = RateBudget(
            family="jobs",
            limit=float(self._job_lists.limit),
            remaining=float(self._job_lists.level(now)),
            refill_per_s=self._job_lists.refill_per_s,
        )
        return self._core.shown("core", now), job_lists, self._registration.shown("registration", now)

    def _allowance(self, uses_runner_token: bool) -> _Allowance:
        return self._registration if uses_runner_token else self._core
