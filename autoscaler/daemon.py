"""The daemon process: lease, listeners, signals. Everything that decides is in `core`.

    load config -> open store -> wait for the lease (stand by) -> core.prepare -> listeners -> core.run
                                        ^                                                    |
                                        +------- the lease was lost, the store failed -------+

While it stands by, the listeners answer 503 and say why (unless the daemon that works has them: same host, same
file). SIGTERM and SIGINT stop: listeners first, then running calls within a grace time, then the store. Stopping never
terminates a machine. A second signal exits at once. SIGHUP reads the configuration again; a bad file keeps the old one.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import structlog
from aiohttp import web

from autoscaler import logs
from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.config import Address, Config, ConfigError, load
from autoscaler.core import Core, make_launcher, runner_prefix
from autoscaler.health import Health
from autoscaler.http.admin import make_admin_app
from autoscaler.http.agents import make_agent_routes
from autoscaler.http.health import make_health_routes
from autoscaler.http.webhooks import make_webhook_routes
from autoscaler.metrics import Metrics
from autoscaler.plugins import make_forges, make_providers
from autoscaler.spi import Forge, ForgeName, Secret, Surroundings
from autoscaler.store import LeaseLost, Store, StoreError, open_store
from runners.bootstrap import boot_document, build_agent

log = structlog.get_logger()

GRACE_S = 20.0
LOST_GRACE_S = 1.0
"""Calls under way when the store is lost: another daemon may act already, so they are not waited for."""
STANDBY_S = 1.0
LISTENER_CLOSE_S = 1.0


async def run_daemon(path: Path) -> None:
    """Run until a signal. Raises ConfigError, StoreError, OSError (a listener's address is taken), or a bug."""
    config = load(path)
    logs.configure(level=os.environ.get("AUTOSCALER_LOG_LEVEL", "info"), secrets=config_secrets(config))
    for warning in config.warnings:
        log.warning("config_warning", key=warning.key, message=warning.message)
    process = _Process(path, config)
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
            except LeaseLost as error:
                log.error("lease_lost", error=str(error))
            except StoreError as error:
                log.error("store_failed", error=str(error))
                await process.stopped_within(STANDBY_S)
    finally:
        await store.aclose()
        log.info("daemon_stopped")


class _Process:
    """What signals change: whether to stop, and the configuration, of the running core where there is one."""

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        self.config = config
        self.stop = asyncio.Event()
        self.core: Core | None = None

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
        except ConfigError as error:
            log.error("config_reload_refused", problems=[f"{p.key}: {p.message}" for p in error.problems])
            return
        logs.configure(level=os.environ.get("AUTOSCALER_LOG_LEVEL", "info"), secrets=config_secrets(config))
        before, self.config = self.config, config
        kept = []
        if self.core is not None:
            kept = [part for part in ("forges", "providers") if getattr(config, part) != getattr(before, part)]
            self.core.reload(config)
        if config.autoscaler.store != before.autoscaler.store or config.autoscaler.listen != before.autoscaler.listen:
            kept.append("autoscaler.store and listeners")
        log.info("config_reloaded", pools=len(config.pools), needs_restart=kept)


async def _wait_for_lease(store: Store, process: _Process) -> bool:
    """Stand by until the store is ours; False when a signal came first."""
    holder = f"{socket.gethostname()}/{os.getpid()}"
    health = Health(SystemClock())
    async with contextlib.AsyncExitStack() as listeners:
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
                reason, remedy = str(error), "make the store work: this daemon goes on by itself"
            if not health.conditions():
                log.warning("standing_by", reason=reason)
                await _listen_standing_by(listeners, process.config, health)
            health.ill("leader", reason, remedy=remedy)
            await process.stopped_within(STANDBY_S)
    return False


async def _listen_standing_by(listeners: contextlib.AsyncExitStack, config: Config, health: Health) -> None:
    """Answer 503 on both listeners, so that forges and agents come again and /readyz says why."""

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=503, text="standing by", headers={"Retry-After": "5"})

    section = config.autoscaler
    for name, address, tls in (("public", section.listen, _tls(config)), ("admin", section.admin_listen, None)):
        app = web.Application(client_max_size=0)
        app.add_routes([*make_health_routes(health), web.route("*", "/{rest:.*}", refuse)])
        try:
            runner = await _listen(app, address, tls, name)
        except OSError as error:
            log.info("listener_not_bound", listener=name, reason=str(error))
        else:
            listeners.push_async_callback(runner.cleanup)


async def _serve(store: Store, process: _Process) -> None:
    """Be the one daemon of this store until a signal comes or the store is lost."""
    clock, calls = SystemClock(), Calls()
    config = process.config
    section = config.autoscaler
    surroundings = Surroundings(
        deployment=section.name,
        runner_prefix=runner_prefix(section.name),
        clock=clock,
        gates=calls,
        agent=build_agent().data,
    )
    forges = make_forges(config, surroundings)
    providers = make_providers(config, surroundings)
    health, metrics = Health(clock), Metrics()
    ca_pem = section.tls.certificate.read_text() if section.tls is not None else ""
    launcher = make_launcher(lambda: core.config, user_data_of=boot_document, new_id=_new_id, ca_pem=ca_pem)
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
        await core.prepare()
        process.core = core
        runners.append(await _listen(_public_app(core, forges), section.listen, _tls(config), "public"))
        runners.append(
            await _listen(make_admin_app(core, metrics, section.admin_tokens), section.admin_listen, None, "admin")
        )
        await _until_stopped(core, process.stop)
    finally:
        prepared, process.core = process.core, None
        if prepared is not None:
            await _close_core(prepared, runners, grace_s=GRACE_S if process.stop.is_set() else LOST_GRACE_S)
        for forge in forges.values():
            await forge.aclose()
        for provider in providers.values():
            await provider.aclose()
        await calls.aclose(grace_s=2.0)


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


async def _close_core(core: Core, runners: list[web.AppRunner], *, grace_s: float) -> None:
    core.desk.close()
    for runner in runners:
        await runner.cleanup()
    await core.aclose(grace_s=grace_s)
    with contextlib.suppress(StoreError):
        await core.rows.flush()


def _public_app(core: Core, forges: Mapping[ForgeName, Forge]) -> web.Application:
    app = web.Application(client_max_size=0)
    app.add_routes(make_webhook_routes(forges, core.store, core.metrics, SystemClock(), core.accepted))
    app.add_routes(make_agent_routes(core.desk, build_agent().data))
    app.add_routes(make_health_routes(core))
    return app


async def _listen(app: web.Application, address: Address, tls: ssl.SSLContext | None, name: str) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=LISTENER_CLOSE_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, address.host, address.port, ssl_context=tls, backlog=1024).start()
    except OSError:
        await runner.cleanup()
        raise
    log.info("listening", listener=name, address=str(address))
    return runner


def _tls(config: Config) -> ssl.SSLContext | None:
    files = config.autoscaler.tls
    if files is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.private_key)
    return context


def config_secrets(config: Config) -> list[Secret]:
    """Every secret of a configuration, so that logs can be scrubbed of them."""
    found = list(config.autoscaler.admin_tokens)
    for forge in config.forges:
        found.extend(forge.webhook_secrets)
        found.extend(value for value in (*forge.credentials.values(), *forge.options.values()) if _is_secret(value))
    for provider in config.providers:
        found.extend(value for value in provider.options.values() if _is_secret(value))
    return found


def _is_secret(value: object) -> TypeGuard[Secret]:
    return isinstance(value, Secret)


def _new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(6)}"
