"""Rate limits of the sandbox's GitHub API: the hourly budget and the secondary points per minute (specs B9)."""

from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 3600
_READS = ("GET", "HEAD", "OPTIONS")


@dataclass(slots=True, kw_only=True)
class Limits:
    """`primary_per_hour` None is GHES: no limits, no headers. Mutable, so that a test can tighten them.

    Points: 1 for a read, 5 for a write, per endpoint and caller. `status` is what a refusal answers: 403 or 429.
    """

    primary_per_hour: int | None = 5000
    secondary: bool = False
    points_per_minute: int = 900
    concurrent: int = 100
    retry_after_s: int = 60
    status: int = 403


@dataclass(slots=True)
class _Window:
    used: int
    reset_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a call was refused; `retry_after_s` None means: wait for the reset."""

    message: str
    status: int
    retry_after_s: int | None


class RateLimiter:
    """Counts calls per caller's budget. Never sleeps."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.in_flight = 0
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._minutes: dict[tuple[str, str], _Window] = {}

    def charge(self, budget: str, method: str, endpoint: str) -> Refusal | None:
        """Takes one call from the budget, or says why not. A refused call is not counted."""
        limits = self.limits
        if limits.primary_per_hour is None:
            return None
        window = self._window(budget)
        if window.used >= limits.primary_per_hour:
            message = f"API rate limit exceeded for {budget}."
            return Refusal(message=message, status=limits.status, retry_after_s=None)
        if limits.secondary and not self._spend_points(budget, method, endpoint):
            message = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
            return Refusal(message=message, status=limits.status, retry_after_s=limits.retry_after_s)
        window.used += 1
        return None

    def refund(self, budget: str) -> None:
        """A 304 does not count against the hourly budget."""
        if self.limits.primary_per_hour is not None:
            window = self._window(budget)
            window.used = max(0, window.used - 1)

    def state(self, budget: str) -> dict[str, int]:
        """limit, remaining, reset (epoch seconds) and used, as /rate_limit writes them; empty without limits."""
        limit = self.limits.primary_per_hour
        if limit is None:
            return {}
        window = self._window(budget)
        remaining = max(0, limit - window.used)
        return {"limit": limit, "remaining": remaining, "reset": int(window.reset_at), "used": window.used}

    def headers(self, budget: str) -> dict[str, str]:
        state = self.state(budget)
        if not state:
            return {}
        return {f"x-ratelimit-{key}": str(value) for key, value in state.items()} | {"x-ratelimit-resource": "core"}

    def _spend_points(self, budget: str, method: str, endpoint: str) -> bool:
        if self.in_flight > self.limits.concurrent:
            return False
        now = self._clock()
        minute = self._minutes.get((budget, endpoint))
        if minute is None or minute.reset_at <= now:
            minute = self._minutes[budget, endpoint] = _Window(0, now + 60)
        points = 1 if method in _READS else 5
        if minute.used + points > self.limits.points_per_minute:
            return False
        minute.used += points
        return True

    def _window(self, budget: str) -> _Window:
        now = self._clock()
        window = self._windows.get(budget)
        if window is None or window.reset_at <= now:
            window = self._windows[budget] = _Window(0, now + WINDOW_S)
        return window
