"""Clouds at size: a thousand launches, ten thousand machines listed again and again, fifty taken in a second.

The daemon runs the shipped adapter against the sandbox's cloud in another process, which limits calls as the real one
does. Baselines are the cloud's own client alone, on the same cloud, in the same run.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from benchmarks import fleets_bare as bare
from benchmarks import fleets_bare_gce as bare_gce
from benchmarks.children import Child
from benchmarks.figures import Figure, at_least, at_most, percentile, shown
from benchmarks.fleets_bare import Spent
from benchmarks.fleets_cloud import AWS, GCE, NO_POLL, Kind, RunningCloud, knowing_daemon, running
from benchmarks.sender import Sender
from benchmarks.stage import stage, until

CONNECTIONS = 32
BATCH = 100
NOTICE_S = 3.0
TAKEN, TAKEN_WITHIN_S = 50, 1.0
LISTINGS, LIST_EVERY_S = 3, 30.0


async def run_aws(*, is_quick: bool) -> list[Figure]:
    """AWS by boto3: 1,000 launches, listings of 10,000 machines, 50 reclaims in a second"""
    jobs, machines, steady_s = _size(is_quick)
    return [*await _launches(AWS, jobs, bare.fleets_in_turn), *await _standing(machines, steady_s)]


async def run_gce(*, is_quick: bool) -> list[Figure]:
    """Google Cloud by google-cloud-compute: 1,000 launches, listings of 10,000 machines"""
    jobs, machines, steady_s = _size(is_quick)
    return [*await _launches(GCE, jobs, bare_gce.bulks_in_turn), *await _standing_gce(machines, steady_s)]


def _size(is_quick: bool) -> tuple[int, int, float]:
    """Jobs, machines, and how long the daemon is left alone."""
    return (200, 2_000, 30.0) if is_quick else (1_000, 10_000, 60.0)


# --------------------------------------------------------------------------- a thousand launches


async def _launches(kind: Kind, count: int, in_turn: Callable[..., Spent]) -> list[Figure]:
    """All webhooks at once, no budget of registrations in the way: machines asked for, and by when."""
    async with running(kind) as cloud:
        alone = await cloud.bare(in_turn, batch=BATCH, total=count)
    async with (
        running(kind) as cloud,
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
    asked = [(at, machines) for at, name, machines in calls if name in kind.launches]
    others = Counter(name for _, name, _ in calls if name not in kind.launches)
    baseline = f"{kind.sdk}, {BATCH} at a time, one after the other: {alone.wall_s:.1f} s"
    return [
        at_most(
            kind.benchmark,
            f"{count:,} jobs at once: {kind.launch} calls",
            len(asked),
            20,
            "calls",
            baseline=f"{count // BATCH} of {BATCH} each",
        ),
        shown(kind.benchmark, "machines that each asked for", ", ".join(str(machines) for _, machines in asked)),
        at_most(
            kind.benchmark,
            "all machines requested, after the last webhook",
            max(0.0, asked[-1][0] - last_webhook),
            10,
            "s",
            baseline=baseline,
        ),
        shown(kind.benchmark, "all answers taken in, after the last webhook", f"{last_answer - last_webhook:.1f} s"),
        at_most(kind.benchmark, f"machines beyond the {count:,}", up - count, 0, "machines"),
        shown(kind.benchmark, f"other calls of {kind.of} meanwhile", _counted(others)),
        shown(kind.benchmark, "the event loop's worst lag meanwhile", f"{lag_s * 1000:.0f} ms"),
    ]


def _counted(calls: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(calls.items()))


# --------------------------------------------------------------------------- a fleet that stands


async def _standing(count: int, steady_s: float) -> list[Figure]:
    """Fill a cloud, hear and list it with boto3 alone, then let a daemon that knows it do both."""
    async with running(AWS) as cloud:
        await cloud.child.call("fill", count=count + TAKEN)
        machines = await cloud.child.call("machines")
        alone_s = await _heard_alone(cloud, [one["id"] for one in machines[count:]])
        machines = machines[:count]
        await cloud.bare(bare.describe_leanly)  # the cloud itself writes an answer more slowly the first time
        by_boto3, leanly = await cloud.bare(bare.describe_by_boto3), await cloud.bare(bare.describe_leanly)
        async with knowing_daemon(cloud, machines) as daemon:
            figures = await _listings(cloud, daemon, by_boto3, leanly, count)
            figures += await _steady(cloud, daemon, steady_s, count)
            figures += await _reclaims(cloud, daemon, [one["id"] for one in machines[:TAKEN]], alone_s)
    return [*figures, _parsers(AWS, by_boto3, leanly)]


async def _standing_gce(count: int, steady_s: float) -> list[Figure]:
    """Fill a cloud, list it with google-cloud-compute alone, then let a daemon that knows it do so."""
    async with running(GCE) as cloud:
        await cloud.child.call("fill", count=count)
        machines = await cloud.child.call("machines")
        await cloud.bare(bare_gce.list_leanly)  # the cloud itself writes an answer more slowly the first time
        before = await cloud.child.call("answered_bytes")
        leanly = await cloud.bare(bare_gce.list_leanly)
        each_kb = (await cloud.child.call("answered_bytes") - before) / leanly.count / 1000
        by_sdk = await cloud.bare(bare_gce.list_by_sdk)
        async with knowing_daemon(cloud, machines) as daemon:
            figures = await _listings(cloud, daemon, by_sdk, leanly, count)
            figures += await _steady(cloud, daemon, steady_s, count)
    size = shown(GCE.benchmark, "JSON of a machine in a listing, on average", f"{each_kb:.1f} KB")
    return [*figures, _parsers(GCE, by_sdk, leanly), size]


def _parsers(kind: Kind, by_sdk: Spent, leanly: Spent) -> Figure:
    return at_least(
        kind.benchmark,
        f"CPU of {kind.sdk}'s parser over ours, {leanly.count:,} machines",
        by_sdk.cpu_s / leanly.cpu_s,
        2,
        "x",
        baseline=f"{by_sdk.cpu_s:.2f} s against {leanly.cpu_s:.2f} s",
    )


async def _listings(cloud: RunningCloud, daemon: Child, by_sdk: Spent, leanly: Spent, count: int) -> list[Figure]:
    name = cloud.kind.benchmark
    first = await daemon.call("list_once")  # prices are read, threads and connections made
    await daemon.call("worst_lag")
    before = len(await cloud.calls())
    found = [await daemon.call("list_once") for _ in range(LISTINGS)]
    calls = Counter(called for _, called, _ in (await cloud.calls())[before:])
    lag_s = await daemon.call("worst_lag")
    worst = max(found, key=lambda one: float(one["all_s"]))
    listed_s = min(one["listed_s"] for one in found)
    return [
        at_most(
            name,
            f"{count:,} machines: list, observe and plan",
            worst["all_s"],
            6,
            "s",
            baseline=f"{cloud.kind.sdk} alone, listing only: {by_sdk.wall_s:.1f} s",
        ),
        shown(
            name,
            "of it the listing, at best",
            f"{listed_s:.2f} s",
            baseline=f"the first one: {first['listed_s']:.2f} s",
        ),
        shown(
            name,
            "the adapter's reader without a daemon",
            f"{leanly.wall_s:.1f} s, {leanly.cpu_s:.1f} s of it its own: the rest is the cloud's and the wire's",
        ),
        shown(
            name,
            f"calls of {LISTINGS} listings and what ran beside",
            _counted(calls),
        ),
        shown(name, "the event loop's worst lag meanwhile", f"{lag_s * 1000:.0f} ms"),
    ]


async def _steady(cloud: RunningCloud, daemon: Child, steady_s: float, count: int) -> list[Figure]:
    """The daemon left alone."""
    name = cloud.kind.benchmark
    state = await daemon.call("state")
    before, calls, begun = await daemon.usage(), len(await cloud.calls()), time.monotonic()
    await asyncio.sleep(steady_s)
    after, took_s = await daemon.usage(), time.monotonic() - begun
    made = Counter(called for _, called, _ in (await cloud.calls())[calls:])
    pages, cpu_s = made[cloud.kind.listing], after.cpu_s - before.cpu_s
    standing = ", ".join(f"{n:,} {held}" for held, n in sorted(state["instances"].items()))
    return [
        at_most(
            name, f"CPU of the daemon with {count:,} machines, {took_s:.0f} s", 100 * cpu_s / took_s, 30, "% of a core"
        ),
        shown(name, "machines that it held", standing),
        shown(
            name,
            f"calls of {cloud.kind.of} in these {took_s:.0f} s",
            _counted(made),
            baseline=f"{pages / (took_s / LIST_EVERY_S):.0f} pages each {LIST_EVERY_S:.0f} s",
        ),
        shown(name, "the event loop's worst lag meanwhile", f"{(await daemon.call('worst_lag')) * 1000:.0f} ms"),
        shown(name, "peak RSS of the daemon", f"{after.peak_rss_mb:,.0f} MB"),
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
            AWS.benchmark,
            f"{len(ids)} reclaimed in {TAKEN_WITHIN_S:.0f} s: notice to record, the slowest",
            max(took),
            5,
            "s",
            baseline=f"bare receive and delete: {max(alone_s):.2f} s",
        ),
        shown(
            AWS.benchmark,
            "the same, p50",
            f"{percentile(took, 0.5):.2f} s",
            baseline=f"bare receive and delete: {percentile(alone_s, 0.5):.2f} s",
        ),
        at_most(AWS.benchmark, "interruptions of machines that nobody took", others, 0, "machines"),
        shown(
            AWS.benchmark,
            "queue empty again, doubles and state changes too",
            f"{drained_s:.1f} s after the last notice",
        ),
        shown(
            AWS.benchmark, "the event loop's worst lag meanwhile", f"{(await daemon.call('worst_lag')) * 1000:.0f} ms"
        ),
    ]
