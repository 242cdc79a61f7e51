"""Clouds at size: a thousand launches, ten thousand machines listed again and again, fifty taken in a second.

The daemon runs the shipped adapter against the sandbox's cloud in another process, which limits calls as the real one
does. Baselines are the cloud's own client alone, on the same cloud, in the same run.
"""

import asyncio
import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import fleets_bare as bare
from benchmarks.aws_cloud_child import REGION
from benchmarks.children import Child
from benchmarks.figures import Figure, at_least, at_most, percentile, shown
from benchmarks.fleet_rows import store_fleet
from benchmarks.sender import Sender
from benchmarks.site import Cloud, Secrets, write_config
from benchmarks.stage import stage, until

NAME = "fleets"
NO_POLL = "1h"
"""Listings would find jobs before their webhook is sent."""
CONNECTIONS = 32
BATCH = 100
NOTICE_S = 3.0
TAKEN, TAKEN_WITHIN_S = 50, 1.0
LISTINGS, LIST_EVERY_S = 3, 30.0


async def run(*, is_quick: bool) -> list[Figure]:
    """AWS by boto3: 1,000 launches, listings of 10,000 machines, 50 reclaims in a second"""
    jobs, machines, steady_s = (200, 2_000, 30.0) if is_quick else (1_000, 10_000, 60.0)
    return [*await _launches(jobs), *await _standing(machines, steady_s)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCloud:
    """A sandbox's cloud in a process of its own."""

    child: Child
    url: str
    secret: str
    queue_url: str
    cloud: Cloud
    environ: Mapping[str, str]

    async def calls(self) -> list[tuple[float, str, int]]:
        """When (epoch seconds), which, for how many machines."""
        return [(at, name, machines) for at, name, machines in await self.child.call("counted")]

    async def bare(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """A baseline, in a thread."""
        return await asyncio.to_thread(work, self.url, self.secret, *arguments, **named)


@contextlib.asynccontextmanager
async def aws() -> AsyncIterator[RunningCloud]:
    with tempfile.TemporaryDirectory(prefix="bench-cloud-") as folder:
        child, ready = await Child.start("aws_cloud_child", log=Path(folder) / "log")
        try:
            yield RunningCloud(child=child, **{**ready, "cloud": Cloud(**ready["cloud"])})
        finally:
            await child.stop()


# --------------------------------------------------------------------------- a thousand launches


async def _launches(count: int) -> list[Figure]:
    """All webhooks at once, no budget of registrations in the way: fleets asked for, and by when."""
    async with aws() as cloud:
        alone = await cloud.bare(bare.fleets_in_turn, batch=BATCH, total=count)
    async with (
        aws() as cloud,
        stage(lifted=True, is_tapped=True, poll=NO_POLL, cloud=cloud.cloud, environ=cloud.environ) as on,
    ):
        await on.forges.call("submit", forge="github", jobs=count)
        queued = await on.tap.take(count)
        await on.daemon.call("worst_lag")
        sender = await Sender.connect(on.daemon_port, connections=CONNECTIONS)
        await sender.send(queued)
        last_webhook = time.time()
        await sender.aclose()

        async def all_launched() -> bool:
            return bool((await on.daemon.call("state"))["instances"].get("launched", 0) >= count)

        await until(all_launched, within_s=90, what=f"{count} machines launched", look_s=0.1)
        last_answer = time.time()
        lag_s = await on.daemon.call("worst_lag")
        calls = await cloud.calls()
        up = len(await cloud.child.call("machines"))
    fleets = [(at, machines) for at, name, machines in calls if name == "CreateFleet"]
    others = Counter(name for _, name, _ in calls if name != "CreateFleet")
    in_turn = f"boto3, {BATCH} at a time, one after the other: {alone.wall_s:.1f} s"
    sizes = ", ".join(str(machines) for _, machines in fleets)
    return [
        at_most(
            NAME,
            f"{count:,} jobs at once: CreateFleet calls",
            len(fleets),
            20,
            "calls",
            baseline=f"{count // BATCH} of the same size",
        ),
        shown(NAME, "machines that each asked for", sizes),
        at_most(
            NAME,
            "all machines requested, after the last webhook",
            max(0.0, fleets[-1][0] - last_webhook),
            10,
            "s",
            baseline=in_turn,
        ),
        shown(NAME, "all answers taken in, after the last webhook", f"{last_answer - last_webhook:.1f} s"),
        at_most(NAME, f"machines beyond the {count:,}", up - count, 0, "machines"),
        shown(NAME, "other calls of AWS meanwhile", ", ".join(f"{name} {n}" for name, n in sorted(others.items()))),
        shown(NAME, "the event loop's worst lag meanwhile", f"{lag_s * 1000:.0f} ms"),
    ]


# --------------------------------------------------------------------------- a fleet that stands


async def _standing(count: int, steady_s: float) -> list[Figure]:
    """Fill a cloud, hear and list it with boto3 alone, then let a daemon that knows it do both."""
    async with aws() as cloud:
        await cloud.child.call("fill", count=count + TAKEN)
        machines = await cloud.child.call("machines")
        alone_s = await _heard_alone(cloud, [one["id"] for one in machines[count:]])
        machines = machines[:count]
        await cloud.bare(bare.describe_leanly)  # the cloud itself writes an answer more slowly the first time
        by_boto3, leanly = await cloud.bare(bare.describe_by_boto3), await cloud.bare(bare.describe_leanly)
        async with _daemon(cloud, machines) as daemon:
            figures = await _listings(cloud, daemon, by_boto3, leanly, count)
            figures += await _steady(cloud, daemon, steady_s, count)
            figures += await _reclaims(cloud, daemon, [one["id"] for one in machines[:TAKEN]], alone_s)
    ratio = by_boto3.cpu_s / leanly.cpu_s
    return [
        *figures,
        at_least(
            NAME,
            f"CPU of boto3's parser over ours, {leanly.count:,} machines",
            ratio,
            2,
            "x",
            baseline=f"{by_boto3.cpu_s:.2f} s against {leanly.cpu_s:.2f} s",
        ),
    ]


@contextlib.asynccontextmanager
async def _daemon(cloud: RunningCloud, machines: list[dict[str, Any]]) -> AsyncIterator[Child]:
    """A daemon whose store knows the machines. No forge is there: its jobs wait."""
    with tempfile.TemporaryDirectory(prefix="bench-fleet-") as name:
        folder = Path(name)
        path = write_config(folder, known=Secrets.fresh(), poll=NO_POLL, cloud=cloud.cloud)
        await store_fleet(path, provider=cloud.cloud.provider, region=REGION, machines=machines)
        daemon, _ = await Child.start(
            "fleet_child", log=folder / "log", config_path=str(path), lifted=True, environ=dict(cloud.environ)
        )
        try:
            yield daemon
        finally:
            await daemon.stop()


async def _listings(
    cloud: RunningCloud, daemon: Child, by_boto3: bare.Spent, leanly: bare.Spent, count: int
) -> list[Figure]:
    first = await daemon.call("list_once")  # prices are read, threads and connections made
    await daemon.call("worst_lag")
    before = len(await cloud.calls())
    found = [await daemon.call("list_once") for _ in range(LISTINGS)]
    calls = Counter(name for _, name, _ in (await cloud.calls())[before:])
    lag_s = await daemon.call("worst_lag")
    worst = max(found, key=lambda one: float(one["all_s"]))
    listed_s = min(one["listed_s"] for one in found)
    return [
        at_most(
            NAME,
            f"{count:,} machines: list, observe and plan",
            worst["all_s"],
            6,
            "s",
            baseline=f"boto3's paginator, listing only: {by_boto3.wall_s:.1f} s",
        ),
        shown(
            NAME,
            "of it the listing, at best",
            f"{listed_s:.2f} s",
            baseline=f"the first one: {first['listed_s']:.2f} s",
        ),
        shown(
            NAME,
            "the adapter's reader without a daemon",
            f"{leanly.wall_s:.1f} s, {leanly.cpu_s:.1f} s of it its own: the rest is the cloud's and the wire's",
        ),
        shown(
            NAME,
            f"calls of {LISTINGS} listings and what ran beside",
            ", ".join(f"{name} {n}" for name, n in sorted(calls.items())),
        ),
        shown(NAME, "the event loop's worst lag meanwhile", f"{lag_s * 1000:.0f} ms"),
    ]


async def _steady(cloud: RunningCloud, daemon: Child, steady_s: float, count: int) -> list[Figure]:
    """The daemon left alone."""
    state = await daemon.call("state")
    before, calls, begun = await daemon.usage(), len(await cloud.calls()), time.monotonic()
    await asyncio.sleep(steady_s)
    after, took_s = await daemon.usage(), time.monotonic() - begun
    made = Counter(name for _, name, _ in (await cloud.calls())[calls:])
    pages, cpu_s = made["DescribeInstances"], after.cpu_s - before.cpu_s
    standing = ", ".join(f"{n:,} {name}" for name, n in sorted(state["instances"].items()))
    return [
        at_most(
            NAME, f"CPU of the daemon with {count:,} machines, {took_s:.0f} s", 100 * cpu_s / took_s, 30, "% of a core"
        ),
        shown(NAME, "machines that it held", standing),
        shown(
            NAME,
            f"calls of AWS in these {took_s:.0f} s",
            ", ".join(f"{name} {n}" for name, n in sorted(made.items())),
            baseline=f"{pages / (took_s / LIST_EVERY_S):.0f} pages each {LIST_EVERY_S:.0f} s",
        ),
        shown(NAME, "the event loop's worst lag meanwhile", f"{(await daemon.call('worst_lag')) * 1000:.0f} ms"),
        shown(NAME, "peak RSS of the daemon", f"{after.peak_rss_mb:,.0f} MB"),
    ]


# --------------------------------------------------------------------------- machines taken


async def _heard_alone(cloud: RunningCloud, ids: list[str]) -> list[float]:
    """Seconds from each notice until a bare loop had received and deleted it."""
    listening = asyncio.create_task(cloud.bare(bare.hear, cloud.queue_url, count=len(ids), within_s=60.0))
    sent = await cloud.child.call("reclaim", ids=ids, within_s=TAKEN_WITHIN_S, notice_s=NOTICE_S)
    heard = await listening
    await asyncio.sleep(NOTICE_S + 1)  # until the machines are gone
    await cloud.bare(bare.hear, cloud.queue_url, count=0, within_s=30.0)
    return [heard[id_] - at for id_, at in sent.items()]


async def _reclaims(cloud: RunningCloud, daemon: Child, ids: list[str], alone_s: list[float]) -> list[Figure]:
    """Every event doubled, state changes of the same machines behind them."""
    await daemon.call("worst_lag")
    sent = await cloud.child.call("reclaim", ids=ids, within_s=TAKEN_WITHIN_S, notice_s=NOTICE_S)

    async def all_on_record() -> bool:
        return not sent.keys() - (await daemon.call("interrupted")).keys()

    async def is_drained() -> bool:
        return bool(await cloud.child.call("queued") == 0)

    await until(all_on_record, within_s=60, what="every interruption on record", look_s=0.1)
    found = await daemon.call("interrupted")
    await asyncio.sleep(NOTICE_S)
    await until(is_drained, within_s=60, what="every message deleted", look_s=0.1)
    drained_s = time.time() - max(sent.values())
    took = [found[id_] - at for id_, at in sent.items()]
    others = len(found.keys() - sent.keys())
    return [
        at_most(
            NAME,
            f"{len(ids)} reclaimed in {TAKEN_WITHIN_S:.0f} s: notice to record, the slowest",
            max(took),
            5,
            "s",
            baseline=f"bare receive and delete: {max(alone_s):.2f} s",
        ),
        shown(
            NAME,
            "the same, p50",
            f"{percentile(took, 0.5):.2f} s",
            baseline=f"bare receive and delete: {percentile(alone_s, 0.5):.2f} s",
        ),
        at_most(NAME, "interruptions of machines that nobody took", others, 0, "machines"),
        shown(NAME, "queue empty again, doubles and state changes too", f"{drained_s:.1f} s after the last notice"),
        shown(NAME, "the event loop's worst lag meanwhile", f"{(await daemon.call('worst_lag')) * 1000:.0f} ms"),
    ]
