"""What deciding costs: `plan` at four sizes, a tick with nothing new, and memory."""

import asyncio
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.children import Child, memory_mb
from benchmarks.figures import Figure, at_most, shown
from benchmarks.site import Secrets, write_config
from benchmarks.stage import until

NAME = "plan"
POOLS = 50
SIZES = (1_000, 2_000, 5_000, 10_000)


async def run(*, is_quick: bool) -> list[Figure]:
    """plan and tick for up to 10,000 jobs and 10,000 machines over 50 pools"""
    sizes = SIZES[:2] if is_quick else SIZES
    found = {size: await _measure(size, rounds=5 if is_quick else 15) for size in sizes}
    largest = found[sizes[-1]]
    what = f"{sizes[-1]:,} jobs and machines"
    figures = [_growth(size, one) for size, one in found.items()]
    steepest = max(found[size]["plan_ms"] / size for size in sizes) / min(
        found[size]["plan_ms"] / size for size in sizes
    )
    baseline = f"group and sort: {largest['baseline_ms']:.1f} ms, ratio {_ratio(largest):.1f}"
    return [
        *figures,
        at_most(NAME, "cost per row, dearest size over cheapest", steepest, 2.0, "x"),
        at_most(NAME, f"plan, {what}", largest["plan_ms"], 100, "ms", baseline=baseline),
        at_most(NAME, f"tick with nothing new, {what}", largest["idle_tick_ms"], 10, "ms"),
        shown(NAME, f"plan when no idle runner fits any job, {what}", f"{largest['worst_ms']:.1f} ms"),
        shown(NAME, f"plan that sees all jobs for the first time, {what}", f"{largest['first_sight_ms']:.1f} ms"),
        shown(NAME, f"tick that plans it all, {what}", f"{largest['full_tick_ms']:.1f} ms"),
        at_most(NAME, f"peak RSS, {what}", largest["rss_mb"], 300, "MB"),
        await _idle(5.0 if is_quick else 15.0),
    ]


def _growth(size: int, one: dict[str, Any]) -> Figure:
    per_thousand = one["plan_ms"] * 1000 / size
    return shown(
        NAME,
        f"plan, {size:,} jobs and machines",
        f"{one['plan_ms']:.1f} ms, {per_thousand:.2f} ms per 1,000",
        baseline=f"group and sort: {one['baseline_ms']:.1f} ms, ratio {_ratio(one):.1f}",
    )


def _ratio(one: dict[str, Any]) -> float:
    return float(one["plan_ms"] / one["baseline_ms"])


async def _measure(size: int, *, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as folder:
        child, _ = await Child.start("core_child", log=Path(folder) / "log", folder=folder, size=size, pool_count=POOLS)
        try:
            measured: dict[str, Any] = await child.call("measure", rounds=rounds)
            return measured
        finally:
            await child.stop()


async def _idle(for_s: float) -> Figure:
    """`autoscaler run` itself with both forges and nothing to do; beside it what its server library needs alone."""
    known = Secrets.fresh()
    with tempfile.TemporaryDirectory(prefix="bench-idle-") as name:
        folder = Path(name)
        forges, urls = await Child.start(
            "forges_child", log=folder / "forges.log", webhook_secret=known.webhook, token=known.token
        )
        bare, _ = await Child.start("bare_child", log=folder / "bare.log", folder=name, secret=known.webhook)
        try:
            listen = f"127.0.0.1:{_free_port()}"
            config = write_config(folder, known=known, listen=listen, public_url=f"http://{listen}", **urls)
            rss_mb = await _peak_of_daemon(config, f"http://{listen}/readyz", for_s)
            baseline = f"bare aiohttp handler: {(await bare.usage()).peak_rss_mb:.0f} MB"
        finally:
            await bare.stop()
            await forges.stop()
    return at_most(NAME, f"peak RSS of an idle daemon in {for_s:.0f} s", rss_mb, 120, "MB", baseline=baseline)


async def _peak_of_daemon(config: Path, ready_url: str, for_s: float) -> float:
    command = (sys.executable, "-m", "autoscaler", "run", "--config", str(config))
    with (config.parent / "daemon.log").open("ab") as log:
        daemon = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=log)
    try:
        async with aiohttp.ClientSession() as session:

            async def is_ready() -> bool:
                try:
                    async with session.get(ready_url) as answer:
                        return answer.status == 200
                except aiohttp.ClientError:
                    return False

            await until(is_ready, within_s=30, what="a ready daemon", look_s=0.1)
        await asyncio.sleep(for_s)
        return memory_mb(daemon.pid)[1]
    finally:
        daemon.terminate()
        await daemon.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
