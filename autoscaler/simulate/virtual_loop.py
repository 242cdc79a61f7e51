"""An event loop whose time is virtual: hours of a daemon's life pass as fast as its work can be computed.

`time()` stands still while anything is ready, and jumps to the next timer when nothing is. Nothing else of asyncio
changes, so the daemon runs unmodified. What another thread or process answers must be held by `external()`: then time
waits for it. With a seed, callbacks that are ready together run in a shuffled order, which is the same for the same
seed; `run_in_executor` is held by itself.

`_run_once`, `_ready` and `_scheduled` are private to asyncio: they are used in this file only, and a test guards them.
"""

import asyncio
import random
import selectors
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

EPOCH = datetime(2026, 1, 5, tzinfo=UTC)
"""When every virtual loop begins: a Monday at midnight."""

_R = TypeVar("_R")
_WAIT_S = 0.05
"""How long the real selector is waited for while external work is in flight."""


class Deadlock(RuntimeError):
    """Nothing is ready, no timer is set and no external work is in flight: the program would wait for ever."""


class _JumpingSelector(selectors.BaseSelector):
    """The real selector, but a wait with nothing external in flight is a jump of the loop's clock."""

    def __init__(self, jump: Callable[[float | None], bool]) -> None:
        self._real = selectors.DefaultSelector()
        self._jump = jump

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Any:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # One entry is the loop's own wake-up pipe: with nothing else there is nobody to hear.
        if len(self._real.get_map()) > 1 and (found := self._real.select(0)):
            return found
        if timeout is not None and timeout <= 0:
            return []
        if self._jump(timeout):
            return []
        return self._real.select(_WAIT_S)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module docstring. `steps` counts the callbacks run so far."""

    def __init__(self, *, shuffle_seed: int | str | None = None) -> None:
        self._virtual_s = 0.0
        self._in_flight = 0
        self._dice = random.Random(shuffle_seed) if shuffle_seed is not None else None  # noqa: S311 - an order, no secret
        self.is_shuffling = self._dice is not None
        super().__init__(_JumpingSelector(self._advance))
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._virtual_s

    @contextmanager
    def external(self) -> Iterator[None]:
        """Hold the time while somebody outside this loop works."""
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    # Narrower than the standard signature on purpose: a result is always waited for.
    def run_in_executor(self, executor: Any, func: Callable[..., _R], *args: Any) -> "asyncio.Future[_R]":  # type: ignore[override]
        self._in_flight += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: self._release())
        return future

    def _release(self) -> None:
        self._in_flight -= 1

    def _advance(self, timeout: float | None) -> bool:
        """Jump over a wait; False while external work must be waited for."""
        if self._in_flight:
            return False
        if timeout is None:
            raise Deadlock(f"nothing can happen any more at {self._virtual_s:.3f} s")
        self._virtual_s += timeout
        return True

    def _run_once(self) -> None:
        # A private part of the standard loop; a test guards it.
        ready: deque[Any] = self._ready  # type: ignore[attr-defined]
        if self._dice is not None and self.is_shuffling and len(ready) > 1:
            order = list(ready)
            self._dice.shuffle(order)
            ready.clear()
            ready.extend(order)
        # A private part of the standard loop; a test guards it.
        super()._run_once()  # type: ignore[misc]


class VirtualClock:
    """`spi.Clock` on a virtual loop: a fixed epoch plus the loop's time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._loop.time())

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


def run_virtually(main: Callable[[VirtualTimeLoop], Any], *, shuffle_seed: int | str | None = None) -> Any:
    """Run the coroutine that `main` makes on a fresh virtual loop, end what it left running, and return its result."""
    loop = VirtualTimeLoop(shuffle_seed=shuffle_seed)
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main(loop))
    finally:
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            asyncio.set_event_loop(None)
            loop.close()
