"""The fault `reclaim`: of the jobs that start, a share loses its machine while it runs, with or without a notice.

Watches the forges' own records for jobs that start, finds the machine by its runner's name, which only the daemon
knows, and has the cloud take it at a random moment of the job.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from autoscaler.names import instance_named
from autoscaler.sandbox.demo_daemon import DaemonChild
from autoscaler.sandbox.demo_forges import DemoForges
from autoscaler.sandbox.demo_records import JobRecord
from autoscaler.spi import ProviderId

LOOK_S = 0.2
ASK_AGAIN_S = 0.3


@dataclass(slots=True, kw_only=True)
class Reclaimed:
    """How many machines were taken, and how many of them without a word."""

    machines: int = 0
    unannounced: int = 0


class DemoReclaims:
    """Runs until cancelled. `take` is the cloud's `reclaim`."""

    def __init__(
        self,
        forges: DemoForges,
        daemon: DaemonChild,
        take: Callable[[ProviderId, float], Awaitable[None]],
        *,
        share: float,
        no_notice: float,
        notice_s: float,
        seed: int,
    ) -> None:
        self.count = Reclaimed()
        self._forges = forges
        self._daemon = daemon
        self._take = take
        self._share = share
        self._no_notice = no_notice
        self._notice_s = notice_s
        self._dice = random.Random(f"{seed}/reclaim")  # noqa: S311 - repeatable faults, not secrets
        self._seen: set[str] = set()

    async def run(self) -> None:
        if self._share <= 0:
            return
        async with asyncio.TaskGroup() as group:
            while True:
                for job in self._forges.jobs():
                    if job.is_running and job.runners and job.runners[-1] not in self._seen:
                        self._seen.add(job.runners[-1])
                        if self._dice.random() < self._share:
                            group.create_task(self._reclaim(job))
                await asyncio.sleep(LOOK_S)

    async def _reclaim(self, job: JobRecord) -> None:
        """Early enough that the job still runs when its machine is gone, most of the time."""
        notice_s = 0.0 if self._dice.random() < self._no_notice else self._notice_s
        await asyncio.sleep(self._dice.uniform(0.0, 0.6) * job.duration_s)
        machine = await self._machine_of(job.runners[-1])
        if machine is not None:
            self.count.machines += 1
            self.count.unannounced += notice_s == 0
            await self._take(machine, notice_s)

    async def _machine_of(self, runner: str) -> ProviderId | None:
        """The daemon may be down at this moment: asked until it answers. None when it knows no such machine."""
        instance = instance_named(runner)
        while True:
            if await self._daemon.ask("/healthz") is not None:
                found = await self._daemon.ask(f"/api/v1/instances/{instance}")
                return ProviderId(found["provider_id"]) if found and found["provider_id"] else None
            await asyncio.sleep(ASK_AGAIN_S)
