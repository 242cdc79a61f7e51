"""How long an action at a forge waits after a failure, by its key. The planner holds it back until then."""

from datetime import datetime, timedelta

import structlog

from autoscaler.sightings import Sightings
from autoscaler.spi import Clock, ForgeError, ForgeRefused, ForgeUnauthorized, RateLimited

log = structlog.get_logger()

AFTER_FAILURE = timedelta(seconds=0.5)
LONGEST_AFTER_FAILURE = timedelta(seconds=30)
FAILURES_APART = timedelta(seconds=60)
AFTER_UNAUTHORIZED = timedelta(seconds=10)
AFTER_REFUSED = timedelta(seconds=60)


class Backoff:
    """Failures that follow each other, by key; a success in between forgets them."""

    def __init__(self, sightings: Sightings, clock: Clock) -> None:
        self._seen = sightings
        self._clock = clock
        self._failures: dict[str, tuple[int, datetime]] = {}

    def failed(self, key: str, error: ForgeError) -> None:
        """Its call failed: not again before what the error asks for."""
        now = self._clock.now()
        log.warning(
            "forge_call_failed", action=key, kind=type(error).__name__, error=" ".join(str(error).split())[:300]
        )
        match error:
            case RateLimited():
                until = now + timedelta(seconds=max(0.05, error.retry_after_s))
            case ForgeUnauthorized():
                until = now + AFTER_UNAUTHORIZED
            case ForgeRefused():
                until = now + AFTER_REFUSED
            case _:
                self.again(key)
                return
        self._seen.retry_after[key] = until

    def again(self, key: str) -> None:
        """Half a second after the first failure, doubling to 30 s while they follow each other: one 5xx among many
        good answers must not hold a whole forge up. What fails while the key waits already ran beside the failure that
        made it wait, and counts with that one."""
        now = self._clock.now()
        self._failures = {known: last for known, last in self._failures.items() if last[1] + FAILURES_APART > now}
        count, until = self._failures.get(key, (0, now))
        if until <= now:
            until = now + min(AFTER_FAILURE * (1 << min(count, 8)), LONGEST_AFTER_FAILURE)
            self._failures[key] = count + 1, until
        self._seen.retry_after[key] = max(until, self._seen.retry_after.get(key, until))

    def worked(self, key: str) -> None:
        """Its call succeeded: the next failure is a first one. What was asked to wait still does."""
        self._failures.pop(key, None)
