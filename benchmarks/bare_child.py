"""Child: the baseline server. A bare aiohttp handler that checks the HMAC and parses; on another path it also makes
one row durable before it answers."""

import hashlib
import hmac
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web


async def start(*, folder: str, secret: str) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
    key = secret.encode()
    connection = sqlite3.connect(Path(folder) / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE inbox (delivery TEXT PRIMARY KEY, job INTEGER)")

    async def checked(request: web.Request) -> Any:
        body = await request.read()
        expected = "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, request.headers["X-Hub-Signature-256"]):
            raise web.HTTPUnauthorized
        return json.loads(body)

    async def bare(request: web.Request) -> web.Response:
        await checked(request)
        return web.Response(status=202)

    async def durable(request: web.Request) -> web.Response:
        payload = await checked(request)
        row = (request.headers["X-GitHub-Delivery"], payload["workflow_job"]["id"])
        connection.execute("INSERT INTO inbox VALUES (?, ?)", row)  # one fsync, since each statement is a transaction
        return web.Response(status=202)

    app = web.Application()
    app.router.add_post("/bare", bare)
    app.router.add_post("/durable", durable)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    return {"port": runner.addresses[0][1]}, {}, runner.cleanup
