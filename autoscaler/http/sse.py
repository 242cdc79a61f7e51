"""GET /events: the status page's live stream. One `state` event per change, at most two a second; else a `still` every
few seconds, by which the page knows that the stream lives.

A stream ends by itself after a while, so that an ended session does not go on watching; the browser connects again.
All streams end at once when the application shuts down.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from aiohttp import web

from autoscaler.http.live import LiveState
from autoscaler.http.view import DaemonView

MAX_STREAMS = 64
KEEP_ALIVE_S = 5.0
"""Also how often the state is sent anew while jobs wait, since the sentences about them speak of passing time."""
LIFETIME_S = 600.0
WRITE_TIMEOUT_S = 10.0
Awaited = TypeVar("Awaited")


class Events:
    """The streams of one admin application."""

    def __init__(self, view: DaemonView, state: LiveState) -> None:
        self._view = view
        self._state = state
        self._open = 0
        self._closing = asyncio.Event()

    @property
    def open_streams(self) -> int:
        return self._open

    async def close(self, _: web.Application) -> None:
        """End every stream; for the application's `on_shutdown`."""
        self._closing.set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self._open >= MAX_STREAMS or self._closing.is_set():
            return web.Response(status=503, text="too many open pages", headers={"Retry-After": "10"})
        self._open += 1
        try:
            return await self._stream(request)
        finally:
            self._open -= 1

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        loop = asyncio.get_running_loop()
        until = loop.time() + LIFETIME_S
        seen = -1
        try:
            await self._write(response, b"retry: 1000\n\n")
            while not self._closing.is_set() and loop.time() < until:
                changed = await self._unless_closing(self._view.wait_change(seen), KEEP_ALIVE_S)
                if changed is None and not self._state.has_waiting():
                    await self._write(response, b"event: still\ndata:0\n\n")
                else:
                    seen = seen if changed is None else changed
                    await self._send_state(response, seen)
        except (TimeoutError, ConnectionError):
            pass
        return response

    async def _send_state(self, response: web.StreamResponse, number: int) -> None:
        state = await self._unless_closing(self._state.current(number), WRITE_TIMEOUT_S)
        if state is not None:
            await self._write(response, b"event: state\ndata: " + state + b"\n\n")

    async def _write(self, response: web.StreamResponse, text: bytes) -> None:
        """A reader that does not read loses its stream."""
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await response.write(text)

    async def _unless_closing(self, wait: Awaitable[Awaited], timeout_s: float) -> Awaited | None:
        """The awaited value, or None after `timeout_s` or when the application closes, whatever comes first."""
        waiting = asyncio.ensure_future(wait)
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait({waiting, closing}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else None
        finally:
            waiting.cancel()
            closing.cancel()
