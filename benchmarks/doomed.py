"""Machines that their cloud takes: one that is warned ends its runner in time and says so, one that is not just stops.

They speak docs/agent-protocol.md like the machines of `machines`, and send heartbeats, as silence tells of a loss.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from benchmarks.machines import LOOK_S, Gates, Machine, RunnerSide

HEARTBEAT_S = 5.0
STOP_GRACE_S = 30.0


class Reclaimed(Exception):
    """Its time is up: the runner is ended now."""


class DoomedMachine(Machine):
    """`provider_id` and `runner_name` name it; `lost_at` is when its job was lost, in epoch seconds."""

    def __init__(
        self,
        launched: dict[str, Any],
        *,
        session: aiohttp.ClientSession,
        daemon_url: str,
        job_s: float,
        boot_s: float,
        make_runner: Callable[[dict[str, Any]], "EndedRunner"],
    ) -> None:
        super().__init__(
            launched,
            session=session,
            daemon_url=daemon_url,
            gates=Gates(),
            job_s=job_s,
            make_runner=make_runner,
        )
        self.provider_id: str = launched["provider_id"]
        self.runner_name = ""
        self.forge = ""
        self.has_job = False
        self.lost_at: float | None = None
        self._boot_s = boot_s
        self._runner: EndedRunner | None = None
        self._warned = asyncio.Event()
        self._reclaim_at = 0.0

    def warn(self, notice_s: float) -> None:
        self._reclaim_at = time.time() + notice_s
        self._warned.set()

    async def live(self) -> None:
        await asyncio.sleep(self._boot_s)
        self._instance = await self._say_hello()
        beating = asyncio.create_task(self._beat())
        try:
            async with asyncio.TaskGroup() as group:
                warning = group.create_task(self._heed())
                await self._work()
                warning.cancel()
        except* Reclaimed:
            await self._stop()
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    def die(self) -> None:
        """Without a word. The caller ends the task."""
        if self.has_job:
            self.lost_at = time.time()

    async def _beat(self) -> None:
        while True:
            await self._tell(("heartbeat", {}))
            await asyncio.sleep(HEARTBEAT_S)

    async def _heed(self) -> None:
        """The agent's own rule: the runner gets until some time before the reclaim."""
        await self._warned.wait()
        await self._tell(("notice", {"reclaim_at": f"{self._reclaim_at:.3f}", "source": "host"}))
        left_s = self._reclaim_at - time.time()
        await asyncio.sleep(max(0.0, left_s - min(STOP_GRACE_S, left_s / 2)) if self.has_job else 0.0)
        raise Reclaimed

    async def _work(self) -> None:
        assignment = await self._wait_for_assignment()
        if assignment is None:
            await self._tell(("ending", {"cause": "not_needed"}))
            return
        self.forge, self.runner_name = assignment["kind"], assignment["runner_name"]
        runner: RunnerSide = self._make_runner(assignment)
        assert isinstance(runner, EndedRunner)
        self._runner = runner
        await self._tell(("assignment_received", {}), ("runner_started", {}))
        while not runner.take():
            await asyncio.sleep(LOOK_S)
        self.has_job = True
        await self._tell(("job_started", {}))
        await asyncio.sleep(self._job_s)
        runner.finish()
        self.has_job = False
        await self._tell(
            ("job_completed", {}),
            ("runner_exited", {"exit_code": "0", "ran_job": "true"}),
            ("ending", {"cause": "job_done"}),
        )

    async def _stop(self) -> None:
        if self._runner is None:
            await self._tell(("ending", {"cause": "reclaimed"}))
            return
        await self._tell(("runner_stopping", {"cause": "reclaimed"}))
        if self.has_job:
            self.lost_at = time.time()
            self._runner.abort()
        ran_job = "true" if self.has_job else "false"
        await self._tell(
            ("runner_exited", {"exit_code": "143", "ran_job": ran_job}), ("ending", {"cause": "reclaimed"})
        )


class EndedRunner:
    """A runner that can be ended in the middle of its job. `side` is one of `machines`, `abort` what that comes to."""

    def __init__(self, side: RunnerSide, abort: Callable[[], None]) -> None:
        self._side = side
        self.abort = abort

    def take(self) -> bool:
        return self._side.take()

    def finish(self) -> None:
        self._side.finish()
