"""The daemon as the demo's child: started, revived on the same store when it dies, killed on purpose, asked, ended."""

import asyncio
import contextlib
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from autoscaler.sandbox.demo_options import DemoError
from autoscaler.sandbox.demo_records import Decisions
from autoscaler.spi import Secret

REVIVE_S = 0.3
START_S = 30.0
END_S = 25.0
ASK_S = 2.0
_TICK = re.compile(rb'"event": "tick"')


class DaemonChild:
    """One daemon at a time, in a session of its own so that a terminal's Ctrl-C does not reach it."""

    def __init__(self, config: Path, log: Path, admin: str, token: Secret, *, say: Callable[[str], None]) -> None:
        self.admin = admin
        self.log = log
        self.crashes = 0
        self._config = config
        self._token = token
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._is_ending = False

    @property
    def pid(self) -> int | None:
        """Of the living daemon; None while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def page(self) -> str:
        """The status page's address; what stands after # stays in the browser and signs in."""
        return f"{self.admin}/login#token={self._token.reveal()}"

    async def start(self, stop: asyncio.Event) -> None:
        """Start it, wait until it answers or `stop` is set, and keep it alive from then on. Raises DemoError."""
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=ASK_S), headers={"Authorization": f"Bearer {self._token.reveal()}"}
        )
        self._keeper = asyncio.create_task(self._keep_alive())
        deadline = time.monotonic() + START_S
        while not stop.is_set():
            if await self.ask("/healthz") is not None:
                return
            if time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise DemoError(f"the daemon did not start within {START_S:.0f} s; its log ends with:\n{tail}")
            await asyncio.sleep(0.1)

    async def ask(self, path: str) -> Any:
        """A JSON document of the admin listener; None while it does not answer."""
        if self._session is None:
            return None
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with self._session.get(f"{self.admin}{path}") as answer:
                if answer.status == 200:
                    return await answer.json(content_type=None)
        return None

    async def crash_forever(self, per_minute: float, seed: int) -> None:
        """kill -9 at random times, so often on average. Runs until cancelled."""
        dice = random.Random(f"{seed}/crash")  # noqa: S311 - repeatable faults, not secrets
        while per_minute > 0:
            await asyncio.sleep(dice.expovariate(per_minute / 60.0))
            self.crash()

    def crash(self) -> None:
        """kill -9, once; nothing when it is down already."""
        if self._process is not None and self._process.returncode is None:
            self.crashes += 1
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def end(self, *, now: asyncio.Event) -> None:
        """Stop it politely, or with SIGKILL once `now` is set or it takes too long. Safe to call twice."""
        self._is_ending = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill() if now.is_set() else self._process.terminate()
            ended = asyncio.create_task(self._process.wait())
            hurry = asyncio.create_task(now.wait())
            await asyncio.wait({ended, hurry}, timeout=END_S, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            if not ended.done():
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            await ended
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _keep_alive(self) -> None:
        with self.log.open("ab") as log:
            while not self._is_ending:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "autoscaler", "run", "--config", str(self._config)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "AUTOSCALER_LOG_LEVEL": "info"},
                    start_new_session=True,
                )
                self._say(f"daemon pid {self._process.pid}, status page {self.page}")
                code = await self._process.wait()
                if self._is_ending:
                    return
                ended = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                self._say(f"the daemon {ended}: starting it again on the same store")
                await asyncio.sleep(REVIVE_S)


def decisions_of(log: Path) -> Decisions:
    """Plans that the daemon made, over all its lives, from its log's lines about ticks.

    Ticks are numbered from 1 in each life; those without news or action are counted but have no line.
    """
    plans = last = 0
    plan_ms: list[float] = []
    with log.open("rb") as lines:
        for line in lines:
            if _TICK.search(line) is None:
                continue
            try:
                tick = json.loads(line)
                number, took_ms = int(tick["tick"]), float(tick["plan_ms"])
            except (ValueError, KeyError):
                continue  # a line that a kill cut short
            if number <= last:
                plans += last
            last = number
            plan_ms.append(took_ms)
    return Decisions(plans=plans + last, plan_ms=plan_ms)
