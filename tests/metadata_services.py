"""Small metadata services for tests of the agent, strict about their protocols: EC2's with tokens, Compute Engine's.

What a test wants to be seen goes into `values`, by path; what the protocols forbid is noted in `violations`.
"""

import asyncio
import contextlib
import secrets
from typing import Any

from aiohttp import web


class _Service:
    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.violations: list[str] = []
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        raise NotImplementedError


class Ec2Metadata(_Service):
    """IMDSv2 only. `forget` makes every token given so far unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: set[str] = set()
        self.refused = 0

    @property
    def environ(self) -> dict[str, str]:
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{self.port}"}

    def forget(self) -> None:
        self.tokens.clear()

    async def _answer(self, request: web.Request) -> web.Response:
        if request.path == "/latest/api/token":
            ttl = request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if request.method != "PUT" or not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
                self.violations.append(f"{request.method} token with ttl {ttl!r}")
                return web.Response(status=400)
            self.tokens.add(token := secrets.token_urlsafe(40))
            return web.Response(text=token, headers={"X-aws-ec2-metadata-token-ttl-seconds": ttl})
        if request.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            self.refused += 1
            return web.Response(status=401)
        value = self.values.get(request.path)
        return web.Response(status=404) if value is None else web.Response(text=value)


class GceMetadataServer(_Service):
    """`identity` makes the token for an audience; waits for changes as the real one does."""

    def __init__(self) -> None:
        super().__init__()
        self.values = {"preempted": "FALSE", "maintenance-event": "NONE"}
        self.audiences: list[str] = []
        self.waited = 0
        self._changed = asyncio.Condition()

    @property
    def environ(self) -> dict[str, str]:
        return {"GCE_METADATA_HOST": f"127.0.0.1:{self.port}"}

    async def change(self, path: str, value: str) -> None:
        async with self._changed:
            self.values[path] = value
            self._changed.notify_all()

    def _etag(self, path: str) -> str:
        return self.values[path].encode().hex()[:16]

    async def _answer(self, request: web.Request) -> web.Response:
        own: dict[str, Any] = {"headers": {"Metadata-Flavor": "Google"}}
        if request.headers.get("Metadata-Flavor") != "Google":
            self.violations.append("no Metadata-Flavor")
            return web.Response(status=403)
        path = request.path.removeprefix("/computeMetadata/v1/instance/")
        if path == "service-accounts/default/identity":
            self.audiences.append(request.query["audience"])
            if request.query.get("format") != "full":
                self.violations.append("the token is not asked for in full")
            return web.Response(text=f"token for {request.query['audience']}", **own)
        if path not in self.values:
            return web.Response(status=404, **own)
        if request.query.get("wait_for_change") == "true" and request.query.get("last_etag") == self._etag(path):
            self.waited += 1
            async with self._changed:
                changed = self._changed.wait_for(lambda: request.query["last_etag"] != self._etag(path))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed, float(request.query["timeout_sec"]))
        own["headers"]["ETag"] = self._etag(path)
        return web.Response(text=self.values[path], **own)
