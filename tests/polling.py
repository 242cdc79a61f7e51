"""Waiting for what other processes do: bounded polling of a condition, never a fixed sleep."""

import asyncio
import time
from collections.abc import Callable
from inspect import isawaitable
from typing import Any


async def until(condition: Callable[[], Any], *, timeout_s: float = 15.0) -> Any:
    """The condition's value (awaited if it can be) once it is true. Raises TimeoutError with the last value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"still {value!r} after {timeout_s:g} s")
        await asyncio.sleep(0.02)
