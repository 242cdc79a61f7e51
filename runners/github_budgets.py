"""GitHub's rate limits as we know them: what headers say, what secondary limits forbid, what launches may use.

Owns all pacing of this forge. Nothing here waits: a call that may not be made now is an error with a time.
Facts: specs github-rest B9.
"""

from autoscaler.calls import TokenBucket, WindowLimit
from autoscaler.spi import Clock, RateBudget, RateLimited
from runners.github_errors import Answer, Purpose, is_rate_limit, rate_limited

CORE = "core"
REGISTRATION = "registration"
CONTENT = "content"
"""What people see appear. GitHub limits it on its own: 80 a minute and 500 an hour (specs B9)."""

# The secondary limit gives 900 points a minute to an endpoint and a POST costs 5 of them.
MINTS_PER_MINUTE = 180

# The least hourly limit of an installation; believed only until the first answer says better.
_ASSUMED_LIMIT = 5000.0
_HOUR_S = 3600.0

# Less than GitHub's limits of content: reruns and cancels count too, and go first.
CONTENT_PER_MINUTE = 40
CONTENT_PER_HOUR = 300

# What people are told waits while less than this share of the primary limit is left.
CONTENT_RESERVE = 0.2

# Listings stop at this share of the primary limit, so that registering, deregistering and requeueing go on.
READ_RESERVE = 0.1

# Listings together stay under the 900 points a minute that each of their endpoints has.
LISTINGS_PER_MINUTE = 800

# Without a retry-after header wait a minute, then twice as long each time (specs B9).
_FIRST_PAUSE_S = 60.0
_LONGEST_PAUSE_S = 900.0


class Budgets:
    """The budgets of one forge. Each account (installation or token) has a primary limit of its own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._core: dict[str, TokenBucket] = {}
        # A second more than GitHub's window: how long a call travels differs from call to call.
        self._mints = WindowLimit(limit=MINTS_PER_MINUTE, window_s=61)
        self._content: dict[str, tuple[WindowLimit, WindowLimit]] = {}
        self._listings: dict[str, WindowLimit] = {}
        self._limits_in_a_row: dict[str, int] = {}

    def admit(self, account: str, purpose: Purpose, *, is_listing: bool = False) -> None:
        """Raise RateLimited where a call now would break a limit; listings leave a reserve and are paced."""
        bucket, now = self._bucket(account), self._clock.monotonic()
        kept = READ_RESERVE * bucket.capacity if is_listing else 0.0
        wait_s = bucket.wait_s(1 + kept, now)
        if wait_s > 0:
            raise rate_limited(purpose, retry_after_s=wait_s, family=CORE, why="the budget is used up")
        window = self._listings.get(account)
        if is_listing and window is not None and not window.take(now):
            raise rate_limited(purpose, retry_after_s=window.wait_s(now), family=CORE, why="800 listings a minute")

    def admit_mint(self, purpose: Purpose) -> None:
        """Take one registration from the budget, or raise RateLimited."""
        now = self._clock.monotonic()
        if not self._mints.take(now):
            raise rate_limited(
                purpose, retry_after_s=self._mints.wait_s(now), family=REGISTRATION, why="180 registrations a minute"
            )

    def admit_content(self, account: str, purpose: Purpose) -> None:
        """Take what one thing that people see costs, or raise RateLimited: it is paced, and everything else comes
        first."""
        now, bucket = self._clock.monotonic(), self._bucket(account)
        wait_s = bucket.wait_s(1 + CONTENT_RESERVE * bucket.capacity, now)
        windows = self._content_of(account)
        wait_s = max(wait_s, *(window.wait_s(now) for window in windows))
        if wait_s > 0:
            raise rate_limited(purpose, retry_after_s=wait_s, family=CONTENT, why="others need the budget")
        for window in windows:
            window.take(now)

    def _content_of(self, account: str) -> tuple[WindowLimit, WindowLimit]:
        if account not in self._content:
            minute = WindowLimit(limit=CONTENT_PER_MINUTE, window_s=60)
            self._content[account] = minute, WindowLimit(limit=CONTENT_PER_HOUR, window_s=3600)
        return self._content[account]

    def learn(self, account: str, answer: Answer, purpose: Purpose, *, family: str = CORE) -> RateLimited | None:
        """Take over what an answer's headers say; the error where the answer is itself a rate limit."""
        now = self._clock.monotonic()
        resets_in_s = self._observe(account, answer, now)
        if not is_rate_limit(answer):
            self._limits_in_a_row.pop(account, None)
            return None
        retry_after = _number(answer.headers.get("retry-after"))
        if retry_after is not None:
            pause_s, why = retry_after, "retry-after"
        elif answer.headers.get("x-ratelimit-remaining") == "0" and resets_in_s is not None:
            pause_s, why = resets_in_s, "primary limit"
        else:
            count = self._limits_in_a_row.get(account, 0)
            self._limits_in_a_row[account] = count + 1
            pause_s, why = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(count, 10)), "secondary limit"
        pause_s = max(1.0, pause_s)
        if family == CONTENT and why != "primary limit":
            # What people see is limited on its own: runners and lost jobs do not wait for it.
            for window in self._content_of(account):
                window.block(pause_s, now)
        else:
            self._bucket(account).block(pause_s, now)
        if family == REGISTRATION:
            self._mints.block(pause_s, now)
        return rate_limited(purpose, retry_after_s=pause_s, family=family, why=why)

    def spendable(self, account: str, over_s: float) -> float:
        """Reads that may be spent in `over_s` seconds so that the primary limit lasts until it resets.

        While more than half of it is left, a hundredth of it may be spent at once.
        """
        bucket, now = self._bucket(account), self._clock.monotonic()
        level = bucket.level(now)
        spare = max(0.0, level - READ_RESERVE * bucket.capacity)
        even = spare * min(1.0, over_s / max(over_s, bucket.resets_in_s(now, default=_HOUR_S)))
        return max(even, bucket.capacity / 100) if level > bucket.capacity / 2 else even

    def listed(self) -> list[RateBudget]:
        """The budgets as the core sees them; of several accounts the tightest speaks for "core"."""
        now = self._clock.monotonic()
        mints = RateBudget(
            family=REGISTRATION,
            limit=MINTS_PER_MINUTE,
            remaining=self._mints.level(now),
            refill_per_s=self._mints.refill_per_s,
        )
        buckets = list(self._core.values()) or [self._new_bucket(now)]
        tightest = min(buckets, key=lambda bucket: bucket.level(now) / bucket.capacity)
        core = RateBudget(
            family=CORE,
            limit=tightest.capacity,
            remaining=tightest.level(now),
            refill_per_s=tightest.capacity / _HOUR_S,
        )
        return [core, mints]

    def _observe(self, account: str, answer: Answer, now: float) -> float | None:
        """Seconds until the primary limit resets, where the headers say so (GHES sends none by default)."""
        if answer.headers.get("x-ratelimit-resource", CORE) != CORE:
            return None
        limit = _number(answer.headers.get("x-ratelimit-limit"))
        remaining = _number(answer.headers.get("x-ratelimit-remaining"))
        reset = _number(answer.headers.get("x-ratelimit-reset"))
        if not limit or remaining is None or reset is None:
            return None
        # Only who counts limits at all is paced: GHES by default does not.
        self._listings.setdefault(account, WindowLimit(limit=LISTINGS_PER_MINUTE, window_s=60))
        resets_in_s = max(0.0, reset - self._clock.now().timestamp())
        self._bucket(account).observe(remaining=remaining, limit=limit, resets_in_s=resets_in_s, now=now)
        return resets_in_s

    def _bucket(self, account: str) -> TokenBucket:
        if account not in self._core:
            self._core[account] = self._new_bucket(self._clock.monotonic())
        return self._core[account]

    @staticmethod
    def _new_bucket(now: float) -> TokenBucket:
        return TokenBucket(capacity=_ASSUMED_LIMIT, refill_per_s=_ASSUMED_LIMIT / _HOUR_S, now=now)


def _number(text: str | None) -> float | None:
    """A header's number; None for absent and for nonsense."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < 1e12 else None
