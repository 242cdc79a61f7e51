"""The whole life of a thousand jobs on each forge: nobody served twice, and how much the forges are asked."""

import asyncio
from collections.abc import Mapping

from benchmarks.figures import Figure, at_most, shown
from benchmarks.stage import Stage, stage

NAME = "life"
WAVE = 3
WAVE_S = 0.05
"""A few at a time, so that GitLab's tags are read job by job: in one burst a listing would bring them all."""
JOB_S = 0.5
LIMITS = {"github": 3, "gitlab": 4}
LEAST = {
    "github": "the protocol's least: register",
    "gitlab": "the protocol's least: read the tags, register, pause, remove",
}


async def run(*, is_quick: bool) -> list[Figure]:
    """1,000 jobs on each forge from queued to done, with simulated agents"""
    count = 100 if is_quick else 1_000
    return [figure for forge in LIMITS for figure in await _life(forge, count)]


async def _life(forge: str, count: int) -> list[Figure]:
    async with stage(lifted=True, is_tapped=False) as on:
        for gate in ("take", "finish"):
            await on.forges.call("open_gate", name=gate)
        async with on.booting(job_s=JOB_S):
            for first in range(0, count, WAVE):
                await on.forges.call("submit", forge=forge, jobs=min(WAVE, count - first))
                await asyncio.sleep(WAVE_S)
            await on.forges_until(lambda state: state["succeeded"] == count, within_s=120, what="every job done")
            await on.daemon_until(lambda state: state["ended"] >= count, within_s=60, what="every job's row ended")
            await on.daemon_until(lambda state: not state["instances"], within_s=180, what="no machine left")
        return await _figures(on, forge, count)


async def _figures(on: Stage, forge: str, count: int) -> list[Figure]:
    state = await on.forges.call("state")
    calls: Mapping[str, int] = (await on.forges.call("counted"))["calls"][forge]
    own = {kind: number for kind, number in sorted(calls.items()) if kind != "listing"}
    kinds = ", ".join(f"{kind} {number / count:.2f}" for kind, number in own.items())
    return [
        at_most(NAME, f"{forge}: runners that one job had", state["most_runners_of_a_job"], 1, "runners"),
        at_most(
            NAME, f"{forge}: calls per job", sum(own.values()) / count, LIMITS[forge], "calls", baseline=LEAST[forge]
        ),
        shown(NAME, f"{forge}: of them", kinds),
        shown(NAME, f"{forge}: listings, for all jobs together", f"{calls.get('listing', 0)} requests"),
        at_most(NAME, f"{forge}: runners left at the forge", state["runners_left"], 0, "runners"),
        shown(
            NAME,
            f"{forge}: machines launched for {count:,} jobs",
            f"{len(await on.daemon.call('launched', after=0, wait_s=0)):,}",
        ),
    ]
