"""What latency and life play on: the forges and the daemon in processes of their own, webhooks caught on the way.

forges child --webhooks--> tap (here) --when the benchmark says so--> daemon child
     ^------------------------- REST ------------------------------------'
machines (in the forges child) <-- launches, relayed here --- null provider (in the daemon child)
"""

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from benchmarks.children import Child
from benchmarks.sender import post
from benchmarks.site import Cloud, Secrets, write_config

_KEPT_HEADERS = ("content-type", "user-agent", "idempotency-key")


class Tap:
    """Takes the forges' webhooks and keeps them as requests for the daemon, byte for byte."""

    def __init__(self) -> None:
        self.port = 0
        self._held: list[bytes] = []
        self._server: web.AppRunner | None = None

    async def open(self) -> None:
        app = web.Application(client_max_size=0)
        app.router.add_post("/webhooks/{forge}", self._take)
        self._server = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._server.setup()
        await web.TCPSite(self._server, "127.0.0.1", 0, backlog=1024).start()
        self.port = self._server.addresses[0][1]

    async def take(self, count: int, *, within_s: float = 60.0) -> list[bytes]:
        """The next `count` webhooks about jobs, once they are there."""
        await until(lambda: _done(len(self._held) >= count), within_s=within_s, what=f"{count} webhooks")
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    async def aclose(self) -> None:
        if self._server is not None:
            await self._server.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() in _KEPT_HEADERS or name.lower().startswith(("x-git", "x-hub", "webhook-"))
        }
        if _is_news(request, body):
            self._held.append(post(request.path, headers, body))
        return web.Response(status=202)


def _is_news(request: web.Request, body: bytes) -> bool:
    """Whether it is about a job that may run: neither a run's event nor a GitLab job that only came into being."""
    if "X-GitHub-Event" in request.headers:
        return request.headers["X-GitHub-Event"] == "workflow_job"
    return bool(json.loads(body).get("build_status") != "created")


async def _done(value: bool) -> bool:
    return value


async def until(is_so: Callable[[], Awaitable[bool]], *, within_s: float, what: str, look_s: float = 0.01) -> None:
    """Poll. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while not await is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}")
        await asyncio.sleep(look_s)


@dataclass(kw_only=True)
class Stage:
    """The running parts. `launches` are all so far, in order."""

    forges: Child
    daemon: Child
    daemon_port: int
    tap: Tap
    known: Secrets
    github_url: str
    gitlab_url: str
    launches: list[dict[str, Any]] = field(default_factory=list)

    @property
    def daemon_url(self) -> str:
        return f"http://127.0.0.1:{self.daemon_port}"

    async def launched(self, count: int, *, within_s: float) -> list[dict[str, Any]]:
        """The first `count` launches, once they were called. Raises TimeoutError."""
        deadline = time.monotonic() + within_s
        while len(self.launches) < count:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"{len(self.launches)} of {count} launches within {within_s:.0f} s")
            self.launches += await self.daemon.call("launched", after=len(self.launches), wait_s=left_s)
        return self.launches[:count]

    @contextlib.asynccontextmanager
    async def booting(self, *, job_s: float) -> AsyncIterator[None]:
        """Meanwhile every launched machine comes to life at once."""
        booted = 0

        async def relay() -> None:
            nonlocal booted
            while True:
                fresh = await self.daemon.call("launched", after=booted, wait_s=1.0)
                booted += len(fresh)
                if fresh:
                    await self.forges.call("boot", machines=fresh, daemon_url=self.daemon_url, job_s=job_s)

        relaying = asyncio.create_task(relay())
        try:
            yield
        finally:
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)

    async def daemon_until(self, is_so: Callable[[dict[str, Any]], bool], *, within_s: float, what: str) -> None:
        """Poll the daemon's state."""

        async def look() -> bool:
            return is_so(await self.daemon.call("state"))

        await until(look, within_s=within_s, what=what)

    async def forges_until(self, is_so: Callable[[dict[str, Any]], bool], *, within_s: float, what: str) -> None:
        """Poll the forges' state."""

        async def look() -> bool:
            return is_so(await self.forges.call("state"))

        await until(look, within_s=within_s, what=what, look_s=0.1)


@contextlib.asynccontextmanager
async def stage(
    *,
    lifted: bool,
    is_tapped: bool,
    poll: str = "60s",
    cloud: Cloud | None = None,
    forges_module: str = "forges_child",
    daemon_module: str = "",
    forges_options: Mapping[str, Any] = {},
    pool_lines: str = "",
    **options: Any,
) -> AsyncIterator[Stage]:
    """Start everything, and end it. Without a tap the daemon gets the webhooks from the forges themselves. With a
    `cloud` the daemon is one with real machines of it, a `fleet_child`, started with the `options`."""
    module = daemon_module or ("daemon_child" if cloud is None else "fleet_child")
    known, tap = Secrets.fresh(), Tap()
    with tempfile.TemporaryDirectory(prefix="bench-stage-") as name:
        folder = Path(name)
        await tap.open()
        forges, urls = await Child.start(
            forges_module,
            log=folder / "forges.log",
            webhook_secret=known.webhook,
            token=known.token,
            **forges_options,
        )
        try:
            config = write_config(folder, known=known, poll=poll, cloud=cloud, pool_lines=pool_lines, **urls)
            daemon, ready = await Child.start(
                module, log=folder / "daemon.log", config_path=str(config), lifted=lifted, **options
            )
            try:
                await forges.call("hook", url=f"http://127.0.0.1:{tap.port if is_tapped else ready['port']}")
                on = Stage(forges=forges, daemon=daemon, daemon_port=ready["port"], tap=tap, known=known, **urls)
                # A first listing that is still under way would find jobs before their webhook is sent.
                await on.daemon_until(lambda state: state["is_settled"], within_s=30, what="every forge listed")
                yield on
            finally:
                await daemon.stop()
        finally:
            await forges.stop()
            await tap.aclose()
