"""Waits and counts over time: samples of the store, at most 60 points a pool, for the page's plot."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

from autoscaler.http.documents import Document, instant
from autoscaler.http.view import DaemonView
from autoscaler.store import Sample

POINTS = 60
SAMPLED_EVERY_S = 10.0
"""No step is shorter than what lies between two samples, or the plot would show gaps that are none."""
WINDOWS = (5, 15, 60)
"""In minutes. A young deployment's plot shows the shortest of them that holds all its samples."""


async def history_document(view: DaemonView, *, minutes: int | None = None) -> Document:
    """Points in equal steps that end now: per pool the longest wait, the largest counts of each step.

    A step without a sample is null, so that a plot shows a gap where the daemon was down. Without `minutes` the
    shortest of `WINDOWS` that holds every sample of the longest one.
    """
    now = view.now()
    samples = await view.store.samples(now - timedelta(minutes=minutes or WINDOWS[-1]))
    if minutes is None:
        minutes = _window(samples, now)
    since = now - timedelta(minutes=minutes)
    step_s = max(SAMPLED_EVERY_S, minutes * 60 / POINTS)
    count = math.ceil(minutes * 60 / step_s)
    pools: dict[str, list[Document | None]] = {name: [None] * count for name in sorted(view.rules().pools)}
    for sample in samples:
        column = pools.get(sample.pool)
        if column is not None:
            at = max(0, min(count - 1, int((sample.at - since).total_seconds() / step_s)))
            column[at] = _merged(column[at], sample)
    return {
        "since": instant(since),
        "until": instant(now),
        "minutes": minutes,
        "step_s": step_s,
        "pools": [
            {
                "name": name,
                "target_s": view.rules().pools[name].target.total_seconds(),
                "points": points,
            }
            for name, points in ((pool.name, pools[pool.name]) for pool in view.rules().pools.values())
        ],
    }


def _window(samples: Sequence[Sample], now: datetime) -> int:
    """`samples` oldest first."""
    age = now - samples[0].at if samples else timedelta(0)
    return next((minutes for minutes in WINDOWS if age <= timedelta(minutes=minutes)), WINDOWS[-1])


def _merged(point: Document | None, sample: Sample) -> Document:
    machines = sum(sample.instances.values())
    if point is None:
        point = {"wait_s": 0.0, "queued": 0, "running": 0, "instances": 0}
    return {
        "wait_s": max(point["wait_s"], round(sample.oldest_wait_s, 1)),
        "queued": max(point["queued"], sample.queued),
        "running": max(point["running"], sample.running),
        "instances": max(point["instances"], machines),
    }
