"""What the in-process faces share: the road that calls travel on, and webhooks on their way out.

The faces (`inprocess_github`, `inprocess_gitlab`, `inprocess_cloud`) are `spi` adapters over the same pure worlds that
the HTTP faces serve, for simulations: no sockets, no threads, time only through the clock they are given. What goes
wrong on the way is the road's business, so that the worlds stay true and a simulation decides what is lost.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeVar

from autoscaler.spi import Clock

_R = TypeVar("_R")
HANGS_S = 3600.0
"""How long an unanswered call would wait: longer than any deadline of the daemon."""


class Fate(StrEnum):
    """What becomes of one call: it arrives; its request or its answer is lost; it is refused as too many; no answer
    comes at all, before or after it took effect."""

    FINE = "fine"
    REQUEST_LOST = "request_lost"
    ANSWER_LOST = "answer_lost"
    LIMITED = "limited"
    SILENT_BEFORE = "silent_before"
    SILENT_AFTER = "silent_after"


class Road(Protocol):
    """Between the daemon and one face. `target` is the face's name, `call` the method of its contract."""

    async def there(self, target: str, call: str) -> Fate:
        """Takes the time of the way there, and says what becomes of the call."""
        ...

    async def back(self, target: str, call: str) -> None:
        """Takes the time of the way back."""
        ...


class ClearRoad:
    """Nothing is lost and nothing takes time."""

    async def there(self, target: str, call: str) -> Fate:
        await asyncio.sleep(0)
        return Fate.FINE

    async def back(self, target: str, call: str) -> None:
        await asyncio.sleep(0)


class RequestLost(Exception):
    """The call did not arrive."""


class AnswerLost(Exception):
    """The call took effect; its answer did not arrive."""


class Limited(Exception):
    """The call was refused as one too many; nothing was changed."""


async def travel(road: Road, target: str, call: str, effect: Callable[[], _R]) -> _R:
    """One call: there, its effect at once and as a whole, and back. Raises RequestLost, AnswerLost, Limited and what
    the effect raises."""
    match await road.there(target, call):
        case Fate.REQUEST_LOST:
            raise RequestLost(f"{target}: {call}: 502 Bad Gateway")
        case Fate.LIMITED:
            raise Limited(f"{target}: {call}: too many requests")
        case Fate.SILENT_BEFORE:
            await asyncio.sleep(HANGS_S)
            raise RequestLost(f"{target}: {call}: timed out")
        case Fate.SILENT_AFTER:
            effect()
            await asyncio.sleep(HANGS_S)
            raise AnswerLost(f"{target}: {call}: timed out")
        case Fate.ANSWER_LOST:
            effect()
            await road.back(target, call)
            raise AnswerLost(f"{target}: {call}: connection reset")
        case Fate.FINE:
            result = effect()
            await road.back(target, call)
            return result


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundWebhook:
    """One delivery of a forge to the daemon. `headers` have lower-case names."""

    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    delivery_id: str
    sent_at: datetime


class WorldTimer:
    """Wakes a world when time alone changes it, on whatever loop runs. `next_at` gives epoch seconds or None."""

    def __init__(self, clock: Clock, *, next_at: Callable[[], float | None], due: Callable[[], None]) -> None:
        self._clock = clock
        self._next_at = next_at
        self._due = due
        self._handle: asyncio.TimerHandle | None = None
        self._set_for: float | None = None

    def reset(self) -> None:
        """Call after every change of the world."""
        at = self._next_at()
        if at == self._set_for:
            return
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._set_for = at
        if at is not None:
            wait_s = max(0.0, at - self._clock.now().timestamp())
            self._handle = asyncio.get_running_loop().call_later(wait_s + 0.001, self._ring)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._set_for = None, None

    def _ring(self) -> None:
        self._handle, self._set_for = None, None
        self._due()
