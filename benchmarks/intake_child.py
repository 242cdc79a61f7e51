"""Child: the daemon's webhook intake and nothing behind it: routes, GitHub adapter, SQLite store with fsync."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from autoscaler import logs
from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.config import load
from autoscaler.http.webhooks import make_webhook_routes
from autoscaler.metrics import Metrics
from autoscaler.spi import ForgeName, Webhook
from autoscaler.store import open_store
from benchmarks.site import Secrets, make_real_forges, write_config


async def start(*, folder: str, secret: str) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
    config = load(write_config(Path(folder), known=Secrets(webhook=secret, token="unused")))
    logs.configure(level="info")
    clock, calls = SystemClock(), Calls()
    forges = make_real_forges(config, clock, calls)
    store = open_store(config.autoscaler.store)
    await store.open()
    accepted = 0

    def count(seq: int, forge: ForgeName, webhook: Webhook) -> None:
        nonlocal accepted
        accepted += 1

    app = web.Application(client_max_size=0)
    app.add_routes(make_webhook_routes(forges, store, Metrics(), clock, count))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()

    async def stats() -> dict[str, int]:
        return {"commits": store.stats.commits, "rows": store.stats.rows, "accepted": accepted}

    async def close() -> None:
        await runner.cleanup()
        for forge in forges.values():
            await forge.aclose()
        await calls.aclose()
        await store.aclose()

    return {"port": runner.addresses[0][1]}, {"stats": stats}, close
