"""A cloud account on the clock: lets time pass in it, and hands what happens to whoever listens.

faces -> account.launch(...), then settle()        timer -> account.advance()
                  |                                      |
                  +------------ events ------------------+---> hosts (power), queues, operations
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from autoscaler.sandbox.cloud_account import CloudAccount
from autoscaler.sandbox.cloud_machines import Event


class Listener(Protocol):
    """Hears each event once, in order, on the loop's thread; must not block and must not raise."""

    def __call__(self, event: Event) -> None: ...


class CloudDriver:
    """See the module docstring. `clock` gives epoch seconds. Call `settle` after every change of the account."""

    def __init__(self, account: CloudAccount, *, clock: Callable[[], float] = time.time) -> None:
        self.account = account
        self._clock = clock
        self._listeners: list[Listener] = []
        self._timer: asyncio.TimerHandle | None = None
        self._is_settling = False
        self._is_closed = False

    @property
    def now(self) -> float:
        return self._clock()

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def settle(self) -> None:
        """Let what is due happen and tell it. A listener may change the account: that is told too."""
        if self._is_settling or self._is_closed:
            return
        self._is_settling = True
        try:
            self.account.advance(self.now)
            while events := self.account.drain():
                for event in events:
                    for listener in self._listeners:
                        listener(event)
        finally:
            self._is_settling = False
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.account.next_due()
        if due is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - self.now), self.settle)

    def close(self) -> None:
        """Time stands still from now on."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
