"""Child: the daemon with a null provider. Listener, handlers, core, store and forge adapters are the shipped ones.

`lifted` leaves out GitHub's limit of 180 registrations a minute, to show what is behind it.
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

import runners.github_budgets
from autoscaler import logs
from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.config import Config, load
from autoscaler.core import Core, make_launcher
from autoscaler.health import Health
from autoscaler.http.agent_routes import make_agent_routes
from autoscaler.http.health import make_health_routes
from autoscaler.http.webhooks import make_webhook_routes
from autoscaler.metrics import Metrics
from autoscaler.reloading import config_secrets
from autoscaler.spi import Clock, Provider, ProviderName
from autoscaler.store import open_store
from benchmarks.null_provider import NullProvider
from benchmarks.site import make_real_forges
from runners.bootstrap import boot_document, build_agent

LIFTED_MINTS_PER_MINUTE = 1_000_000
MakeProviders = Callable[[Config, Clock, Calls], Mapping[ProviderName, Provider]]


class Daemon:
    """What the benchmark asks of it."""

    def __init__(self, core: Core, provider: NullProvider) -> None:
        self._core = core
        self._provider = provider

    async def launched(self, *, after: int, wait_s: float) -> list[dict[str, Any]]:
        """Launches from number `after` on, as soon as there is one."""
        if len(self._provider.launched) <= after:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._provider.more.wait()
        return [asdict(one) for one in self._provider.launched[after:]]

    async def state(self) -> dict[str, Any]:
        return state_of(self._core)


def state_of(core: Core) -> dict[str, Any]:
    """Live rows by state, jobs that ended, and whether every forge was listed and considered once."""
    rows, tick = core.rows, core.loop.last_tick
    is_listed = all(f"{forge.name}/jobs" in core.sightings.complete for forge in core.config.forges)
    return {
        "jobs": Counter(job.state for job in rows.jobs.values()),
        "instances": Counter(row.state for row in rows.instances.values()),
        "ended": len(rows.ended_jobs),
        "is_clean": rows.is_clean,
        "is_settled": is_listed and tick is not None,
        "ill": [condition.detail for condition in core.conditions() if not condition.is_well],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningDaemon:
    """A daemon's parts at work; `aclose` ends them all."""

    core: Core
    port: int
    aclose: Callable[[], Awaitable[None]]


async def open_daemon(config_path: str, *, lifted: bool, make: MakeProviders) -> RunningDaemon:
    """Bring a daemon up with the providers that `make` makes."""
    if lifted:
        runners.github_budgets.MINTS_PER_MINUTE = LIFTED_MINTS_PER_MINUTE
    config = load(Path(config_path))
    logs.configure(level="info", secrets=config_secrets(config))
    clock, calls, metrics = SystemClock(), Calls(), Metrics()
    store = open_store(config.autoscaler.store)
    await store.open()
    await store.acquire_lease("bench")
    forges = make_real_forges(config, clock, calls)
    providers = make(config, clock, calls)
    core = Core(
        config=config,
        store=store,
        forges=forges,
        providers=providers,
        launcher=make_launcher(
            lambda: config, user_data_of=boot_document, new_id=lambda kind: f"{kind}-{secrets.token_hex(6)}"
        ),
        clock=clock,
        metrics=metrics,
        health=Health(clock),
    )
    await core.prepare()
    app = web.Application(client_max_size=0)
    app.add_routes(make_webhook_routes(forges, store, metrics, clock, core.accepted))
    app.add_routes(make_agent_routes(core.desk, build_agent().data))
    app.add_routes(make_health_routes(core))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    running = asyncio.create_task(core.run())

    async def aclose() -> None:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        core.desk.close()
        await runner.cleanup()
        await core.aclose(grace_s=1)
        for forge in forges.values():
            await forge.aclose()
        for provider in providers.values():
            await provider.aclose()
        await calls.aclose()
        await store.aclose()

    return RunningDaemon(core=core, port=runner.addresses[0][1], aclose=aclose)


async def start(*, config_path: str, lifted: bool) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
    provider = NullProvider(ProviderName("here"))
    running = await open_daemon(config_path, lifted=lifted, make=lambda *_: {provider.name: provider})
    daemon = Daemon(running.core, provider)
    handlers = {"launched": daemon.launched, "state": daemon.state}
    return {"port": running.port}, handlers, running.aclose
