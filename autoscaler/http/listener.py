"""A listening socket that keeps only so many connections, and none that never asks for anything.

aiohttp closes idle connections by itself (`KEEP_ALIVE_S`); what it lacks is a bound on their number and an early end
for those whose first request never comes.
"""

import asyncio
import ssl
from typing import Any

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from autoscaler.config_types import Address
from autoscaler.http.limits import ConnectionLimits

KEEP_ALIVE_S = 75.0
"""Longer than proxies keep theirs (nginx: 60 s), so that none sends a delivery into a connection just closed."""
CLOSE_S = 1.0

log = structlog.get_logger(__name__)


class _Connection(RequestHandler):
    """One connection of a listener with limits."""

    __slots__ = ("_caller", "_head_timer", "_limits", "_peer")

    def __init__(self, server: web.Server, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._limits = limits
        self._peer: str | None = None
        self._caller = ""
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        name = transport.get_extra_info("peername")
        peer = str(name[0]) if isinstance(name, tuple) else ""
        if not self._limits.admit(peer):
            self._manager = None  # never made known to the server: connection_lost has nothing to take back
            self._force_close = True
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
            return
        self._peer = peer
        self._head_timer = self._loop.call_later(self._limits.head_timeout_s, self._end_if_mute)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._peer is not None:
            self._limits.leave(self._peer, self._caller)
            self._peer = None
        if self._head_timer is not None:
            self._head_timer.cancel()
        super().connection_lost(exc)

    def know(self, caller: str) -> None:
        """The caller has shown who it is."""
        if self._peer is not None and not self._caller and self._limits.know(self._peer, caller):
            self._caller = caller

    def _end_if_mute(self) -> None:
        """No complete head of a request has come."""
        if self._request_count == 0 and self.transport is not None:
            self.transport.abort()


class _Site(web.TCPSite):
    def __init__(self, runner: web.AppRunner, address: Address, tls: ssl.SSLContext | None, limits: ConnectionLimits):
        super().__init__(runner, address.host, address.port, ssl_context=tls, backlog=1024)
        self._limits = limits

    async def start(self) -> None:
        await web.BaseSite.start(self)
        server, limits = self._runner.server, self._limits
        if not isinstance(server, web.Server):
            raise RuntimeError("the runner is not set up")
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(server, limits, **server._kwargs),
            self._host,
            self._port,
            ssl=self._ssl_context,
            backlog=self._backlog,
            ssl_handshake_timeout=limits.head_timeout_s if self._ssl_context is not None else None,
        )


def know_caller(request: web.Request, caller: str) -> None:
    """Who asks has shown who it is: its connection counts for it, and no longer for its address."""
    if isinstance(request.protocol, _Connection):
        request.protocol.know(caller)


async def listen(
    app: web.Application, address: Address, *, tls: ssl.SSLContext | None, name: str, limits: ConnectionLimits
) -> web.AppRunner:
    """Serve an application at an address until the runner is cleaned up. Raises OSError when the address is taken."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_S, keepalive_timeout=KEEP_ALIVE_S)
    await runner.setup()
    try:
        await _Site(runner, address, tls, limits).start()
    except OSError:
        await runner.cleanup()
        raise
    log.info("listening", listener=name, address=str(address))
    return runner
