"""The last hour in numbers: samples of the store, at most 60 points a pool, for the page's plot."""

from datetime import datetime, timedelta

from autoscaler.http.documents import Document, instant
from autoscaler.http.view import DaemonView
from autoscaler.store import Sample

POINTS = 60


async def history_document(view: DaemonView, *, minutes: int) -> Document:
    """Points in `POINTS` equal steps that end now: per pool the longest wait, the largest counts of each step.

    A step without a sample is null, so that a plot shows a gap where the daemon was down.
    """
    now = view.now()
    since = now - timedelta(minutes=minutes)
    step_s = minutes * 60 / POINTS
    pools: dict[str, list[Document | None]] = {name: [None] * POINTS for name in sorted(view.rules().pools)}
    for sample in await view.store.samples(since):
        column = pools.get(sample.pool)
        if column is not None:
            at = _step(sample.at, since, step_s)
            column[at] = _merged(column[at], sample)
    return {
        "since": instant(since),
        "until": instant(now),
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


def _step(at: datetime, since: datetime, step_s: float) -> int:
    return max(0, min(POINTS - 1, int((at - since).total_seconds() / step_s)))


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
