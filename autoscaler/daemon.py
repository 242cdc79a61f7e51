"""The daemon process: lease, listeners, signals. Everything that decides is in `core`.

    load config -> open store -> wait for the lease (stand by) -> core.prepare -> listeners -> core.run
                                        ^                                                    |
                                        +------- the lease was lost, the store failed -------+

While it stands by, the listeners answer 503 and say why (unless the daemon that works has them: same host, same
file). SIGTERM and SIGINT stop: listeners first, then running calls within a grace time, then the store. Stopping never
terminates a machine. A second signal exits at once. SIGHUP reads the configuration again; a bad file keeps the old one.
A daemon that lost its lease asks nothing of anybody any more: running calls are broken off at once.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog
from aiohttp import web

from autoscaler import logs
from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.config import Config, ConfigError, load
from autoscaler.core import Core, make_launcher, runner_prefix
from autoscaler.health import Health
from autoscaler.http.admin import make_admin_app
from autoscaler.http.agent_routes import make_agent_routes
from autoscaler.http.health import make_health_routes
from autoscaler.http.limits import (
    PER_ADDRESS,
    BodyBudget,
    ConnectionLimits,
    Network,
    Refusals,
    networks,
    raise_file_limit,
)
from autoscaler.http.listener import listen
from autoscaler.http.webhooks import make_webhook_routes
from autoscaler.metrics import Metrics
from autoscaler.plugins import make_forges, make_providers
from autoscaler.reloading import Certificate, config_secrets, keys_that_need_a_restart
from autoscaler.spi import Forge, ForgeName, Secret, Surroundings
from autoscaler.store import LeaseLost, Store, StoreError, open_store
from runners.bootstrap import boot_document, build_agent

log = structlog.get_logger()

GRACE_S = 20.0
STANDBY_S = 1.0
MEND = "make the store work: this daemon goes on by itself"
PREPARING = "this daemon has the store and is reading it and its clouds' offerings"
ADMIN_SHARE = 8
"""The admin listener may have an eighth of the connections: strangers on the public one cannot take them."""


async def run_daemon(path: Path) -> None:
    """Run until a signal. Raises ConfigError, StoreError, OSError (a listener's address is taken), or a bug."""
    config = load(path)
    process = _Process(path, config)
    for warning in config.warnings:
        log.warning("config_warning", key=warning.key, message=warning.message)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stop_or_exit)
    loop.add_signal_handler(signal.SIGHUP, process.reload)
    store = open_store(config.autoscaler.store)
    await store.open()
    try:
        while await _wait_for_lease(store, process):
            try:
                await _serve(store, process)
            except StoreError as error:
                log.error("lease_lost" if isinstance(error, LeaseLost) else "store_failed", error=str(error))
                process.lost = str(error)
    finally:
        await store.aclose()
        log.info("daemon_stopped")


class _Process:
    """What signals change: whether to stop, and the configuration, of the running core where there is one."""

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        self._secrets: set[Secret] = set()
        self.config = self._started = config
        self.certificate = Certificate(config.autoscaler.tls)
        self.connections = raise_file_limit() // 2
        self.stop = asyncio.Event()
        self.core: Core | None = None
        self.lost = ""
        """Why this process serves no longer, when it did before."""
        self._scrub(config)

    def begin(self) -> Config:
        """The configuration to serve with from now on; later changes of some keys wait for the next time."""
        self._started = self.config
        if (self.certificate.context is None) != (self.config.autoscaler.tls is None):
            self.certificate = Certificate(self.config.autoscaler.tls)
        return self.config

    def stop_or_exit(self) -> None:
        if self.stop.is_set():
            os._exit(1)
        self.stop.set()

    async def stopped_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stop.wait()

    def reload(self) -> None:
        """SIGHUP: a bad file keeps the old configuration and says why."""
        try:
            config = load(self._path)
            self.certificate.reload(config.autoscaler.tls)
        except ConfigError as error:
            log.error("config_reload_refused", problems=[f"{p.key}: {p.message}" for p in error.problems])
            return
        except OSError as error:
            log.error("config_reload_refused", problems=[f"autoscaler.tls: {error.strerror or error}"])
            return
        self._scrub(config)
        self.config = config
        if self.core is not None:
            self.core.reload(config)
        kept = keys_that_need_a_restart(self._started, config)
        log.info("config_reloaded", pools=len(config.pools), needs_restart=kept)

    def _scrub(self, config: Config) -> None:
        """Logs show no secret of this configuration, nor of any before it: those may still be in use."""
        self._secrets.update(config_secrets(config))
        logs.configure(level=os.environ.get("AUTOSCALER_LOG_LEVEL", "info"), secrets=self._secrets)

    async def listen(self, app: web.Application, name: str, refusals: Refusals | None = None) -> web.AppRunner:
        """Serve at the address of the listener of this name. Raises OSError."""
        section = self.config.autoscaler
        is_admin = name == "admin"
        total = self.connections // ADMIN_SHARE if is_admin else self.connections
        limits = ConnectionLimits(
            total=total,
            per_address=min(PER_ADDRESS, total // 2),
            trusted=networks(section.trusted_proxies),
            refusals=refusals or Refusals(),
        )
        return await listen(
            app,
            section.admin_listen if is_admin else section.listen,
            tls=None if is_admin else self.certificate.context,
            name=name,
            limits=limits,
        )


async def _wait_for_lease(store: Store, process: _Process) -> bool:
    """Stand by until the store is ours; False when a signal came first."""
    holder = f"{socket.gethostname()}/{os.getpid()}"
    health = Health(SystemClock())
    async with contextlib.AsyncExitStack() as listeners:
        if process.lost:
            health.ill("leader", process.lost, remedy=MEND)
            await _listen_standing_by(listeners, process, health)
            await process.stopped_within(STANDBY_S)
        while not process.stop.is_set():
            reason, remedy = (
                "another daemon works on this store",
                "nothing to do: this one takes over when that one ends",
            )
            try:
                if await store.acquire_lease(holder):
                    log.info("lease_acquired", holder=holder)
                    return True
            except StoreError as error:
                log.error("store_failed", error=str(error))
                reason, remedy = str(error), MEND
            if not health.conditions():
                log.warning("standing_by", reason=reason)
                await _listen_standing_by(listeners, process, health)
            health.ill("leader", reason, remedy=remedy)
            await process.stopped_within(STANDBY_S)
    return False


async def _listen_standing_by(listeners: contextlib.AsyncExitStack, process: _Process, health: Health) -> None:
    """Answer 503 on both listeners, so that forges and agents come again and /readyz says why."""

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=503, text="standing by", headers={"Retry-After": "5"})

    for name in ("public", "admin"):
        app = web.Application(client_max_size=0)
        health_routes = make_health_routes(health, is_public=name == "public")
        app.add_routes([*health_routes, web.route("*", "/{rest:.*}", refuse)])
        try:
            runner = await process.listen(app, name)
        except OSError as error:
            log.info("listener_not_bound", listener=name, reason=str(error))
        else:
            listeners.push_async_callback(runner.cleanup)


async def _serve(store: Store, process: _Process) -> None:
    """Be the one daemon of this store until a signal comes or the store is lost."""
    clock, calls = SystemClock(), Calls()
    config = process.begin()
    section = config.autoscaler
    surroundings = Surroundings(
        deployment=section.name,
        runner_prefix=runner_prefix(section.name),
        clock=clock,
        gates=calls,
        agent=build_agent().data,
        public_url=lambda: process.config.autoscaler.public_url,
    )
    forges = make_forges(config, surroundings)
    providers = make_providers(config, surroundings)
    health, metrics = Health(clock), Metrics()
    launcher = make_launcher(
        lambda: core.config,
        user_data_of=lambda **parts: boot_document(**{**parts, "ca_pem": process.certificate.pem}),
        new_id=_new_id,
    )
    core = Core(
        config=config,
        store=store,
        forges=forges,
        providers=providers,
        launcher=launcher,
        clock=clock,
        metrics=metrics,
        health=health,
    )
    runners: list[web.AppRunner] = []
    try:
        if not await _prepare(core, process):
            return
        process.core = core
        if core.config is not process.config:
            core.reload(process.config)
        trusted = networks(section.trusted_proxies)
        runners.append(await process.listen(_public_app(core, forges, trusted), "public", core.desk.refusals))
        admin = make_admin_app(core, metrics, lambda: process.config.autoscaler.admin_tokens, trusted)
        runners.append(await process.listen(admin, "admin"))
        await _until_stopped(core, process.stop)
    finally:
        prepared, process.core = process.core, None
        if prepared is not None:
            await _close_core(prepared, runners, is_ours=process.stop.is_set())
        for forge in forges.values():
            await forge.aclose()
        for provider in providers.values():
            await provider.aclose()
        await calls.aclose(grace_s=2.0)


async def _prepare(core: Core, process: _Process) -> bool:
    """Prepare the core; False when a signal came first. Clouds that hang may make this last minutes: after a moment
    the listeners say so."""
    preparing = asyncio.create_task(core.prepare())
    stopping = asyncio.create_task(process.stop.wait())
    health = Health(SystemClock())
    async with contextlib.AsyncExitStack() as listeners:
        try:
            await asyncio.wait({preparing, stopping}, timeout=STANDBY_S, return_when=asyncio.FIRST_COMPLETED)
            if not preparing.done() and not stopping.done():
                health.ill("leader", PREPARING, remedy="nothing to do, unless a cloud or the store does not answer")
                await _listen_standing_by(listeners, process, health)
                await asyncio.wait({preparing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if preparing.done():
                preparing.result()
            return preparing.done()
        finally:
            for task in (preparing, stopping):
                task.cancel()
            await asyncio.gather(preparing, stopping, return_exceptions=True)


async def _until_stopped(core: Core, stop: asyncio.Event) -> None:
    running = asyncio.create_task(core.run())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if running.done():
        running.result()
        return
    log.info("daemon_stopping")
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def _close_core(core: Core, runners: list[web.AppRunner], *, is_ours: bool) -> None:
    """`is_ours`: the store still is. Else another daemon may act already, and running calls end first, and at once."""
    core.desk.close()
    if not is_ours:
        await core.aclose(grace_s=0.0)
    for runner in runners:
        await runner.cleanup()
    if is_ours:
        await core.aclose(grace_s=GRACE_S)
        with contextlib.suppress(StoreError):
            await core.rows.flush()


def _public_app(core: Core, forges: Mapping[ForgeName, Forge], trusted: Sequence[Network]) -> web.Application:
    app = web.Application(client_max_size=0)
    bodies = BodyBudget()
    app.add_routes(make_webhook_routes(forges, core.store, core.metrics, SystemClock(), core.accepted, bodies))
    app.add_routes(make_agent_routes(core.desk, build_agent().data, bodies, trusted))
    app.add_routes(make_health_routes(core, is_public=True))
    return app


def _new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(6)}"
