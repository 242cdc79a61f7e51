"""Tell people at their job what happened to it. Part of apply, and the last in everything.

A telling is durable before it is said and forgotten after (`outbox`); a repeat is harmless, because forges are looked
at before they are written to. It takes two of a forge's calls at most, and its failures are no condition of readiness:
nothing else ever waits for it. A missing permission is one trouble for the operator, tried again now and then.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog

from autoscaler.forge_line import ForgeLine, one_line
from autoscaler.http.view import Trouble
from autoscaler.live import LiveRows
from autoscaler.model import Tell
from autoscaler.outbox import Outbox
from autoscaler.sightings import Sightings
from autoscaler.spi import (
    Clock,
    ForgeError,
    ForgeName,
    ForgeOutcomeUnknown,
    ForgeRefusedForGood,
    ForgeUnauthorized,
    JobNotFound,
    RateLimited,
)

log = structlog.get_logger()

AT_ONCE = 2
"""Calls of one forge at a time: it can do sixteen, and the others are for runners and lost jobs."""
FORBIDDEN_FOR = timedelta(minutes=10)
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=1), timedelta(minutes=15)
SETTLING = timedelta(seconds=5)
"""What was written without an answer shows by then, so that it is found and not written again."""

Call = Callable[[], Coroutine[Any, Any, None]]


class TellCalls:
    """Executes Tell for the Applier."""

    def __init__(self, *, rows: LiveRows, outbox: Outbox, sightings: Sightings, line: ForgeLine, clock: Clock) -> None:
        self._rows = rows
        self._outbox = outbox
        self._seen = sightings
        self._line = line
        self._clock = clock
        self._slots: defaultdict[ForgeName, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))
        self._forbidden: dict[str, Trouble] = {}

    def troubles(self) -> Sequence[Trouble]:
        """Where nobody can be told for want of a permission, once for each owner of repos."""
        return [self._forbidden[key] for key in sorted(self._forbidden)]

    def intend(self, action: Tell) -> Call:
        return partial(self._tell, action)

    async def _tell(self, action: Tell) -> None:
        telling = action.telling
        async with self._slots[telling.forge]:
            since = self._outbox.waiting_since(telling.key)
            if since is None or self._is_held(action):
                return
            try:
                await self._line.call(telling.forge, "tell", lambda forge: forge.tell(telling), is_vital=False)
            except (JobNotFound, ForgeRefusedForGood) as error:
                self._outbox.settle(telling.key, f"not told: {one_line(error)}", self._clock.now())
            except ForgeError as error:
                self._failed(action, error, since)
                return
            else:
                self._forbidden.pop(action.owner_key, None)
                self._outbox.settle(telling.key, "told", self._clock.now())
        await self._rows.flush()

    def _is_held(self, action: Tell) -> bool:
        now = self._clock.now()
        return any(self._seen.retry_after.get(key, now) > now for key in (action.owner_key, action.forge_key))

    def _failed(self, action: Tell, error: ForgeError, since: datetime) -> None:
        now = self._clock.now()
        log.warning("telling_failed", telling=action.telling.key, kind=type(error).__name__, error=one_line(error))
        match error:
            case RateLimited():
                self._seen.retry_after[action.forge_key] = now + timedelta(seconds=max(1.0, error.retry_after_s))
            case ForgeUnauthorized():
                text = f"people are not told why their jobs were interrupted: {one_line(error)}"
                remedy = f'Or set tell = false for forge "{action.telling.forge}".'
                self._forbidden[action.owner_key] = Trouble(target=action.telling.forge, text=f"{text} {remedy}")
                self._seen.retry_after[action.owner_key] = now + FORBIDDEN_FOR
            case _:
                # A tenth of its age: soon at first, seldom later, and the same after a restart.
                wait = min(max((now - since) / 10, FIRST_WAIT), LONGEST_WAIT)
                if isinstance(error, ForgeOutcomeUnknown):
                    wait = max(wait, SETTLING)
                self._seen.retry_after[action.key] = now + wait
