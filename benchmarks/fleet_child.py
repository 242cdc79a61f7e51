"""Child: the daemon with a real cloud adapter, the shipped one. Its loop's lag is measured all the time."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from autoscaler.calls import Calls
from autoscaler.config import Config
from autoscaler.core import Core, runner_prefix
from autoscaler.plugins import make_providers
from autoscaler.spi import Clock, Provider, ProviderName, Surroundings
from benchmarks.daemon_child import open_daemon, state_of
from runners.bootstrap import build_agent

LAG_EVERY_S = 0.02
LOOK_EVERY_S = 0.01


class Fleet:
    """What the benchmark asks of it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lag_s = 0.0
        self._interrupted: dict[str, float] = {}
        self._watching = [asyncio.create_task(self._watch_lag()), asyncio.create_task(self._watch_interruptions())]

    async def state(self) -> dict[str, Any]:
        return state_of(self._core)

    async def list_once(self) -> dict[str, float]:
        """Seconds of one listing, and with it until a tick had taken it in, planned and made it durable."""
        (name,) = self._core.traits()
        started = time.monotonic()
        await self._core.polls.list_instances(name)
        listed_s = time.monotonic() - started
        await self._core.loop.consumed()
        return {"listed_s": listed_s, "all_s": time.monotonic() - started}

    async def worst_lag(self) -> float:
        """By how many seconds the loop was late at most, since it was asked last."""
        worst, self._lag_s = self._lag_s, 0.0
        return worst

    async def interrupted(self) -> dict[str, float]:
        """When (epoch seconds) each machine's interruption was on record, durably."""
        return self._interrupted

    async def aclose(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)

    async def _watch_lag(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_EVERY_S)
            self._lag_s = max(self._lag_s, time.monotonic() - before - LAG_EVERY_S)

    async def _watch_interruptions(self) -> None:
        rows = self._core.rows
        while True:
            found = [rows.instances[id_].provider_id for id_ in rows.interruptions if id_ in rows.instances]
            fresh = [id_ for id_ in found if id_ is not None and id_ not in self._interrupted]
            if fresh:
                await self._core.loop.consumed()  # only what is durable counts
                self._interrupted.update(dict.fromkeys(fresh, time.time()))
            await asyncio.sleep(LOOK_EVERY_S)


def _real_providers(config: Config, clock: Clock, calls: Calls) -> Mapping[ProviderName, Provider]:
    name = config.autoscaler.name
    surroundings = Surroundings(
        deployment=name,
        runner_prefix=runner_prefix(name),
        clock=clock,
        gates=calls,
        agent=build_agent().data,
        public_url=lambda: config.autoscaler.public_url,
    )
    return make_providers(config, surroundings)


async def start(
    *, config_path: str, lifted: bool, environ: dict[str, str]
) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
    os.environ.update(environ)
    running = await open_daemon(config_path, lifted=lifted, make=_real_providers)
    fleet = Fleet(running.core)

    async def close() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await fleet.aclose()
        await running.aclose()

    handlers = {name: getattr(fleet, name) for name in ("state", "list_once", "worst_lag", "interrupted")}
    return {"port": running.port}, handlers, close
