"""From webhook to launch: one at a time, a thousand at once, and a thousand starts and ends of jobs."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from benchmarks.children import Child
from benchmarks.figures import Figure, at_least, at_most, percentile, shown
from benchmarks.payloads import Deliveries
from benchmarks.sender import Answer, Sender
from benchmarks.site import GITLAB_REPO, Secrets
from benchmarks.stage import Stage, stage

NAME = "latency"
CONNECTIONS = 32
PAUSE_S = 0.03
NO_POLL = "1h"
"""Listings would find jobs before their webhook is sent."""
PACED_S = 70.0
MINTS_PER_MINUTE = 180


async def run(*, is_quick: bool) -> list[Figure]:
    """webhook received to launch called, one by one and 1,000 at once; 2,000 events of jobs that run"""
    single, many, paced_s = (40, 200, 15.0) if is_quick else (200, 1_000, PACED_S)
    round_trip, taken_s = await _baseline(single, many)
    async with stage(lifted=False, is_tapped=True, poll=NO_POLL) as on:
        figures = await _single(on, single, round_trip)
    async with stage(lifted=True, is_tapped=True, poll=NO_POLL) as on:
        figures += await _burst(on, many, taken_s)
    async with stage(lifted=False, is_tapped=True, poll=NO_POLL) as on:
        figures += await _paced(on, many, paced_s)
    return figures


async def _baseline(single: int, many: int) -> tuple[list[float], float]:
    """A bare handler with one fsynced insert: seconds of each of `single` requests in turn, and of `many` at once."""
    known = Secrets.fresh()
    deliveries = Deliveries(known.webhook)
    with tempfile.TemporaryDirectory(prefix="bench-bare-") as folder:
        bare, ready = await Child.start("bare_child", log=Path(folder) / "log", folder=folder, secret=known.webhook)
        try:
            answers = []
            sender = await Sender.connect(ready["port"], connections=1)
            for request in deliveries.take(single, "/durable"):
                answers += await sender.send([request])
                await asyncio.sleep(PAUSE_S)
            await sender.aclose()
            burst = await _send(ready["port"], deliveries.take(many, "/durable"))
        finally:
            await bare.stop()
    return [answer.took_s for answer in answers], _span_s(burst)


# --------------------------------------------------------------------------- one at a time


async def _single(on: Stage, count: int, round_trip: Sequence[float]) -> list[Figure]:
    github = await _one_by_one(on, "github", count)
    gitlab = await _one_by_one(on, "gitlab", count)
    read = await _read_times(on, count)
    bare = f"bare durable handler: {_ms(round_trip, 0.5):.1f} / {_ms(round_trip, 0.99):.1f} ms"
    both = f"{bare}, plus a REST read: {_ms(read, 0.5):.1f} / {_ms(read, 0.99):.1f} ms"
    return [
        at_most(NAME, "GitHub webhook to launch, p50", _ms(github, 0.5), 50, "ms", baseline=bare),
        at_most(NAME, "GitHub webhook to launch, p99", _ms(github, 0.99), 250, "ms", baseline=bare),
        at_most(
            NAME, "GitLab webhook to launch, p50", _ms(gitlab, 0.5), round(50 + _ms(read, 0.5)), "ms", baseline=both
        ),
        at_most(
            NAME, "GitLab webhook to launch, p99", _ms(gitlab, 0.99), round(250 + _ms(read, 0.99)), "ms", baseline=both
        ),
    ]


async def _one_by_one(on: Stage, forge: str, count: int) -> list[float]:
    """Seconds from sending each webhook until its launch was called. The jobs stay queued, so that each needs one."""
    await on.forges.call("submit", forge=forge, jobs=count)
    took = []
    before = len(on.launches)
    sender = await Sender.connect(on.daemon_port, connections=1)
    for number, request in enumerate(await on.tap.take(count), 1):
        (answer,) = await sender.send([request])
        launched = await on.launched(before + number, within_s=30)
        took.append(launched[-1]["at"] - answer.sent_at)
        await asyncio.sleep(PAUSE_S)
    await sender.aclose()
    return took


async def _read_times(on: Stage, count: int) -> list[float]:
    """Seconds of one plain REST read of a GitLab job, from a client of its own."""
    took = []
    headers = {"PRIVATE-TOKEN": on.known.token}
    project = f"{on.gitlab_url}/api/v4/projects/{quote(GITLAB_REPO, safe='')}/jobs"
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(project) as listed:
            number = (await listed.json())[0]["id"]
        for _ in range(count):
            started = time.monotonic()
            async with session.get(f"{project}/{number}") as answer:
                await answer.read()
            took.append(time.monotonic() - started)
    return took


def _ms(seconds: Sequence[float], share: float) -> float:
    return percentile(seconds, share) * 1000


# --------------------------------------------------------------------------- a thousand at once


async def _burst(on: Stage, count: int, taken_s: float) -> list[Figure]:
    """Queue them all, let every machine register, then let all start and all end."""
    await on.forges.call("submit", forge="github", jobs=count)
    queued = await on.tap.take(count)
    async with on.booting(job_s=0.0):
        answers = await _send(on.daemon_port, queued)
        launches = await on.launched(count, within_s=60)
        last_s = launches[-1]["at"] - min(answer.sent_at for answer in answers)
        await on.forges_until(lambda state: state["at_take"] == count, within_s=120, what="every runner up")
        started, started_s = await _event_burst(
            on, "take", count, lambda state: state["jobs"].get("running", 0) == count
        )
        ended, ended_s = await _event_burst(on, "finish", count, lambda state: state["ended"] >= count)
    usage = await on.daemon.usage()
    per_s = 2 * count / (started_s + ended_s)
    slowest = max(answer.took_s for answer in (*started, *ended))
    bare = f"bare durable handler: {count / taken_s:,.0f} per s"
    return [
        at_most(
            NAME,
            f"{count:,} jobs queued at once, last launch called",
            last_s,
            5,
            "s",
            baseline=f"bare durable handler has them after {taken_s:.2f} s",
        ),
        at_least(NAME, f"{2 * count:,} in_progress and completed, in effect", per_s, 500, "per s", baseline=bare),
        at_most(NAME, "slowest answer among these", slowest, 1, "s"),
        at_most(NAME, "until all in_progress were in effect", started_s, count / 500, "s"),
        at_most(NAME, "until all completed were in effect", ended_s, count / 500, "s"),
        at_most(NAME, f"peak RSS of the daemon with {count:,} machines", usage.peak_rss_mb, 300, "MB"),
    ]


async def _event_burst(
    on: Stage, gate: str, count: int, is_in_effect: Callable[[dict[str, Any]], bool]
) -> tuple[list[Answer], float]:
    """Open a gate, send what that caused at once; the answers, and seconds until the daemon's rows show it all."""
    await on.forges.call("open_gate", name=gate)
    events = await on.tap.take(count)
    answers = await _send(on.daemon_port, events)
    await on.daemon_until(is_in_effect, within_s=60, what=f"the effect of {count} events")
    return answers, time.monotonic() - min(answer.sent_at for answer in answers)


async def _send(port: int, requests: Sequence[bytes]) -> list[Answer]:
    sender = await Sender.connect(port, connections=CONNECTIONS)
    answers = await sender.send(requests)
    await sender.aclose()
    if wrong := [answer.status for answer in answers if answer.status != 202]:
        raise RuntimeError(f"{len(wrong)} of {len(answers)} webhooks were answered {wrong[0]}")
    return answers


def _span_s(answers: Sequence[Answer]) -> float:
    return max(a.answered_at for a in answers) - min(a.sent_at for a in answers)


# --------------------------------------------------------------------------- the registration budget


async def _paced(on: Stage, count: int, for_s: float) -> list[Figure]:
    """The same burst with GitHub's limit in force, for a while."""
    await on.forges.call("submit", forge="github", jobs=count)
    queued = await on.tap.take(count)
    async with on.booting(job_s=0.0):
        answers = await _send(on.daemon_port, queued)
        began = min(answer.sent_at for answer in answers)
        await asyncio.sleep(began + for_s - time.monotonic())
        launches = [one["at"] - began for one in await on.daemon.call("launched", after=0, wait_s=0)]
        minted = [at - began for at in (await on.forges.call("counted"))["registered_at"]]
    ahead = max(number - sum(at <= launch for at in minted) for number, launch in enumerate(launches, 1))
    in_a_minute = max(sum(at <= other < at + 60 for other in minted) for at in minted)
    steps = [for_s * share / 4 for share in (1, 2, 3, 4)]
    course = ", ".join(
        f"{sum(at <= step for at in minted)} / {sum(at <= step for at in launches)} by {step:.0f} s" for step in steps
    )
    return [
        at_most(NAME, "registrations in any minute, budget in force", in_a_minute, MINTS_PER_MINUTE, "per minute"),
        at_most(NAME, "machines ahead of their registration", ahead, 2 * MINTS_PER_MINUTE, "machines"),
        shown(NAME, f"minted / launched of {count:,}", course),
    ]
