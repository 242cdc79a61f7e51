"""The daemon process: lease, listeners, signals. Everything that decides is in `core`.

    load config -> open store -> wait for the lease (stand by) -> core.prepare -> listeners -> core.run
                                        ^                                                    |
                                        +---------------- the lease was lost ----------------+

SIGTERM and SIGINT stop: listeners first, then running calls within a grace time, then the store. Stopping never
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
from autoscaler.spi import Forge, ForgeName, Provider, ProviderName, Secret, Surroundings
from autoscaler.store import LeaseLost, Store, StoreError, open_store
from runners.bootstrap import boot_document, build_agent

log = structlog.get_logger()

GRACE_S = 20.0
STANDBY_S = 1.0
LISTENER_CLOSE_S = 1.0


async def run_daemon(path: Path) -> None:
    """Run until a signal. Raises ConfigError, StoreError, OSError (a listener's address is taken), or a bug."""
    config = load(path)
    logs.configure(level=os.environ.get("AUTOSCALER_LOG_LEVEL", "info"), secrets=config_secrets(config))
    for warning in config.warnings:
        log.warning("config_warning", key=warning.key, message=warning.message)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_or_exit, stop)
    store = open_store(config.autoscaler.store)
    await store.open()
    try:
        while not stop.is_set():
            if not await _wait_for_lease(store, stop):
                return
            try:
                await _serve(path, config, store, stop)
            except LeaseLost as error:
                log.error("lease_lost", error=str(error))
    finally:
        await store.aclose()
        log.info("daemon_stopped")


def _stop_or_exit(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(1)
    stop.set()


async def _wait_for_lease(store: Store, stop: asyncio.Event) -> bool:
    """Stand by until the store is ours; False when a signal came first."""
    holder = f"{socket.gethostname()}/{os.getpid()}"
    is_announced = False
    while not stop.is_set():
        try:
            if await store.acquire_lease(holder):
                log.info("lease_acquired", holder=holder)
                return True
        except StoreError as error:
            log.error("store_failed", error=str(error))
        if not is_announced:
            is_announced = True
            log.warning("standing_by", reason="another daemon works on this store, or the store does not answer")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STANDBY_S):
                await stop.wait()
    return False


async def _serve(path: Path, config: Config, store: Store, stop: asyncio.Event) -> None:
    """Be the one daemon of this store until a signal comes or the lease goes."""
    clock, calls = SystemClock(), Calls()
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
        runners.append(await _listen(_public_app(core, forges), section.listen, _tls(config), "public"))
        runners.append(
            await _listen(make_admin_app(core, metrics, section.admin_tokens), section.admin_listen, None, "admin")
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, path, core)
        await _until_stopped(core, stop)
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        await _close(core, runners, forges, providers, calls)


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


async def _close(
    core: Core,
    runners: list[web.AppRunner],
    forges: Mapping[ForgeName, Forge],
    providers: Mapping[ProviderName, Provider],
    calls: Calls,
) -> None:
    core.desk.close()
    for runner in runners:
        await runner.cleanup()
    await core.aclose(grace_s=GRACE_S)
    with contextlib.suppress(StoreError):
        await core.rows.flush()
    for forge in forges.values():
        await forge.aclose()
    for provider in providers.values():
        await provider.aclose()
    await calls.aclose(grace_s=2.0)


def _public_app(core: Core, forges: Mapping[ForgeName, Forge]) -> web.Application:
    app = web.Application(client_max_size=0)
    app.add_routes(make_webhook_routes(forges, core.store, core.metrics, SystemClock(), core.accepted))
    app.add_routes(make_agent_routes(core.desk, build_agent().data))
    app.add_routes(make_health_routes(core))
    return app


async def _listen(app: web.Application, address: Address, tls: ssl.SSLContext | None, name: str) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=LISTENER_CLOSE_S)
    await runner.setup()
    site = web.TCPSite(runner, address.host, address.port, ssl_context=tls, backlog=1024)
    await site.start()
    log.info("listening", listener=name, address=str(address))
    return runner


def _tls(config: Config) -> ssl.SSLContext | None:
    files = config.autoscaler.tls
    if files is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.private_key)
    return context


def _reload(path: Path, core: Core) -> None:
    """SIGHUP: a bad file keeps the old configuration and says why."""
    try:
        config = load(path)
    except ConfigError as error:
        log.error("config_reload_refused", problems=[f"{p.key}: {p.message}" for p in error.problems])
        return
    logs.configure(level=os.environ.get("AUTOSCALER_LOG_LEVEL", "info"), secrets=config_secrets(config))
    before = core.config
    fixed = ("forges", "providers")
    kept = [part for part in fixed if getattr(config, part) != getattr(before, part)]
    if config.autoscaler.store != before.autoscaler.store or config.autoscaler.listen != before.autoscaler.listen:
        kept.append("autoscaler.store and listeners")
    core.reload(config)
    log.info("config_reloaded", pools=len(config.pools), needs_restart=kept)


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
