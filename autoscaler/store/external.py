"""Tells a virtual-time loop that somebody outside of it (a thread, a server) owes an answer."""

import asyncio
from contextlib import AbstractContextManager, nullcontext
from typing import cast


def external_work() -> AbstractContextManager[None]:
    """Held while waiting for another thread or process: the running loop's `external()` if it has one (a virtual-time
    loop would otherwise jump past the wait), nothing otherwise."""
    external = getattr(asyncio.get_running_loop(), "external", None)
    return nullcontext() if external is None else cast(AbstractContextManager[None], external())
