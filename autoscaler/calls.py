"""Bounded threads for blocking SDKs, and rate limits as pure values.

Owns the bridge between asyncio and synchronous client libraries (one named `CallGate` per provider or forge, reads
and writes apart) and the limiters that adapters share. It must not retry: a call has one retry owner, the core.

A thread cannot be cancelled: after a timeout or a cancellation the function may still take effect. Its slot stays
taken until the function really returns, so a hanging SDK cannot pile up threads. The threads are daemon threads:
neither `Calls.aclose` nor the end of the interpreter waits for a stuck one.
"""

import asyncio
import contextvars
import functools
import math
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import structlog

_log = structlog.get_logger(__name__)


class GateBusy(TimeoutError):
    """No thread of the gate became free in time: the function was not called, so nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckCall:
    """A call whose thread had not returned when its gate closed."""

    gate: str
    function: str
    running_s: float


class CallGate:
    """Up to `threads` concurrent calls into one blocking SDK; further callers wait in asyncio, cancellable."""

    def __init__(self, name: str, *, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"gate {name}: threads is {threads}, must be at least 1")
        self.name = name
        self._limit = threads
        self._slots = asyncio.Semaphore(threads)
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = 0
        self._running: dict[asyncio.Future[Any], tuple[str, float]] = {}
        self._is_closed = False

    async def call(self, function: Any, /, *arguments: Any, timeout_s: float, **keywords: Any) -> Any:
        """The result of `function(*arguments, **keywords)`, run in a thread of this gate.

        Raises GateBusy when no thread got free within `timeout_s` (nothing was called), TimeoutError when the
        function did not return within it (it may go on), and whatever the function raises.
        """
        if self._is_closed:
            raise RuntimeError(f"gate {self.name} is closed")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError:
            raise GateBusy(f"{self.name}: no free thread within {timeout_s:g} s") from None
        if self._is_closed:
            self._slots.release()
            raise RuntimeError(f"gate {self.name} is closed")
        answer = self._submit(functools.partial(function, *arguments, **keywords), loop)
        # asyncio.wait leaves the future alone on timeout and on cancellation: its slot is freed when it is done.
        await asyncio.wait({answer}, timeout=max(0.0, deadline - loop.time()))
        if not answer.done():
            raise TimeoutError(f"{self.name}: {_name_of(function)} took longer than {timeout_s:g} s")
        return answer.result()

    def _submit(self, function: functools.partial[Any], loop: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:
        """Hand the function to a thread; the slot and the loop's external mark are freed when it returns."""
        held = ExitStack()
        # A virtual-time loop must not jump ahead while work outside of it is in flight.
        external = getattr(loop, "external", None)
        if external is not None:
            held.enter_context(external())
        result: Future[Any] = Future()
        answer = asyncio.wrap_future(result, loop=loop)
        self._running[answer] = (_name_of(function.func), loop.time())

        def finished(done: asyncio.Future[Any]) -> None:
            del self._running[done]
            held.close()
            self._slots.release()
            if not done.cancelled():
                done.exception()  # Read it: after a timeout nobody else does.

        answer.add_done_callback(finished)
        context = contextvars.copy_context()
        self._work.put(functools.partial(context.run, _settle, result, function))
        if self._started < min(self._limit, len(self._running)):
            self._started += 1
            threading.Thread(target=self._serve, name=f"{self.name}-{self._started}", daemon=True).start()
        return answer

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    async def aclose(self, grace_s: float) -> list[StuckCall]:
        """Refuse new calls, wait up to `grace_s` for running ones, end the threads; what is stuck is returned."""
        self._is_closed = True
        if self._running:
            await asyncio.wait(set(self._running), timeout=grace_s)
        now = asyncio.get_running_loop().time()
        for _ in range(self._started):
            self._work.put(None)
        return [
            StuckCall(gate=self.name, function=name, running_s=now - since) for name, since in self._running.values()
        ]


def _settle(result: Future[Any], function: functools.partial[Any]) -> None:
    """Run the function and keep its outcome; whatever it raises belongs to the caller, not to the thread."""
    result.set_running_or_notify_cancel()
    try:
        value = function()
    except BaseException as error:
        outcome = error if isinstance(error, Exception) else RuntimeError(f"{_name_of(function.func)}: {error!r}")
        _notify(lambda: result.set_exception(outcome))
    else:
        _notify(lambda: result.set_result(value))


def _notify(settle: Callable[[], None]) -> None:
    try:
        settle()
    except RuntimeError:  # The loop was closed while the thread was stuck: nobody waits for the outcome.
        _log.debug("late_call_dropped")


def _name_of(function: Any) -> str:
    if isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__name__)


class Calls:
    """All gates of a process, by name. Implements `spi.Gates`."""

    def __init__(self) -> None:
        self._gates: dict[str, CallGate] = {}

    def gate(self, name: str, *, threads: int) -> CallGate:
        """The gate of this name, made with `threads` threads at its first use."""
        if name not in self._gates:
            self._gates[name] = CallGate(name, threads=threads)
        return self._gates[name]

    async def aclose(self, *, grace_s: float = 5.0) -> list[StuckCall]:
        """Close every gate at once; stuck calls are logged and returned, never waited for beyond `grace_s`."""
        closing = [gate.aclose(grace_s) for gate in self._gates.values()]
        stuck = [call for calls in await asyncio.gather(*closing) for call in calls]
        self._gates.clear()
        for call in stuck:
            _log.warning("call_stuck", gate=call.gate, function=call.function, running_s=round(call.running_s, 3))
        return stuck


class TokenBucket:
    """A budget that refills steadily, or at once when an observed window resets. Pure: `now` is monotonic seconds.

    `observe` takes over what a server says in its headers (limit, remaining, seconds to reset); from then on the
    level stays what was said minus what was taken, and is full again when the window resets.
    """

    def __init__(self, *, capacity: float, refill_per_s: float, now: float) -> None:
        self.capacity = capacity
        self.refill_per_s = refill_per_s
        self._level = capacity
        self._at = now
        self._resets_at: float | None = None
        self._blocked_until = -math.inf

    def level(self, now: float) -> float:
        """Tokens there are at `now`; 0 while blocked."""
        self._advance(now)
        return 0.0 if now < self._blocked_until else self._level

    def wait_s(self, count: float, now: float) -> float:
        """Seconds until `count` tokens can be taken, 0.0 if they can now, infinity if they never can."""
        self._advance(now)
        blocked = max(0.0, self._blocked_until - now)
        missing = count - self._level
        if missing <= 0:
            return blocked
        if self._resets_at is not None:
            return max(blocked, self._resets_at - now) if count <= self.capacity else math.inf
        if self.refill_per_s <= 0 or count > self.capacity:
            return math.inf
        return max(blocked, missing / self.refill_per_s)

    def take(self, count: float, now: float) -> bool:
        """Take `count` tokens if they are there."""
        if self.wait_s(count, now) > 0:
            return False
        self._level -= count
        return True

    def give_back(self, count: float, now: float) -> None:
        """Tokens that were taken and not used."""
        self._advance(now)
        self._level = min(self.capacity, self._level + count)

    def observe(self, *, remaining: float, limit: float, resets_in_s: float, now: float) -> None:
        """Believe the server: `remaining` of `limit` until the window resets."""
        self._advance(now)
        self.capacity = limit
        self._level = min(remaining, limit)
        self._resets_at = now + max(0.0, resets_in_s)

    def resets_in_s(self, now: float, *, default: float) -> float:
        """Seconds until the observed window resets; `default` where none was observed."""
        self._advance(now)
        return default if self._resets_at is None else self._resets_at - now

    def block(self, seconds: float, now: float) -> None:
        """Give nothing before `now + seconds` (a server asked for a pause)."""
        self._blocked_until = max(self._blocked_until, now + seconds)

    def _advance(self, now: float) -> None:
        elapsed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        if self._resets_at is None:
            self._level = min(self.capacity, self._level + elapsed * self.refill_per_s)
        elif now >= self._resets_at:
            self._level, self._resets_at = self.capacity, None


class WindowLimit:
    """At most `limit` takes in any stretch of `window_s` seconds. Pure: `now` is monotonic seconds.

    For servers that count per minute: a bucket of the same rate could spend its store and its refill in one
    window, twice what is allowed.
    """

    def __init__(self, *, limit: int, window_s: float) -> None:
        self.limit = limit
        self.window_s = window_s
        self._taken: deque[float] = deque()
        self._blocked_until = -math.inf

    @property
    def refill_per_s(self) -> float:
        return self.limit / self.window_s

    def level(self, now: float) -> int:
        """Takes there are at `now`; 0 while blocked."""
        self._forget(now)
        return 0 if now < self._blocked_until else self.limit - len(self._taken)

    def wait_s(self, now: float) -> float:
        """Seconds until one can be taken; 0.0 if it can now."""
        self._forget(now)
        blocked = max(0.0, self._blocked_until - now)
        if len(self._taken) < self.limit:
            return blocked
        return max(blocked, self._taken[0] + self.window_s - now)

    def take(self, now: float) -> bool:
        """Take one if there is one."""
        if self.wait_s(now) > 0:
            return False
        self._taken.append(now)
        return True

    def block(self, seconds: float, now: float) -> None:
        """Give nothing before `now + seconds` (a server asked for a pause)."""
        self._blocked_until = max(self._blocked_until, now + seconds)

    def _forget(self, now: float) -> None:
        while self._taken and self._taken[0] + self.window_s <= now:
            self._taken.popleft()
