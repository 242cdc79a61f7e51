"""Part of plan: when the machines that a cap counts end, and the next one may be launched and come.

Pure. A machine that works is done when its job is, as long as its kind runs; one that has not begun works after it has
come. Then it is ended, and its place boots anew, for the next job in line; and so on, a few times over. Machines of
about the same age and length are one group: the cost does not follow their number.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from statistics import median

from autoscaler.boots import Boots
from autoscaler.model import Instance, InstanceState, Job, Pool, Snapshot
from autoscaler.risk import USUAL_LIFE_H

TEARDOWN_S = 4.0
"""From a job's end until its machine is known to be gone."""
SPREAD = 0.4
"""How far run times of the same work differ, in logarithms (specs, policy 2: 0.3 beside what the median hides)."""
UNKNOWN_SPREAD = 0.8
ROUNDS = 4

_S = InstanceState
_DONE = (_S.TERMINATING, _S.TERMINATED)
_QUARTERS = (-1.15, -0.32, 0.32, 1.15)
"""The middles of four equal parts of a normal distribution."""


def freed(
    rows: Sequence[Instance],
    snapshot: Snapshot,
    pool: Pool,
    now: datetime,
    *,
    boots: Boots,
    waiting: Sequence[Job],
) -> Iterator[tuple[Callable[[float], float], int]]:
    """Groups of machines that come in the places of those that end, and of these: their curve and their number.
    `waiting` are the jobs that they will run."""
    boot_s, boot_sd = _moments([boots.quantile(share) for share in (0.125, 0.375, 0.625, 0.875)])
    known = [hours for job in waiting if (hours := snapshot.hours.get(job.work)) is not None]
    lives_s = snapshot.expected_life_h.get(pool.name, USUAL_LIFE_H) * 3600
    mean_s = median(known) * 3600 if known else max(5.0, lives_s - boot_s)
    groups: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        ends = _ends(row, snapshot, now, boot_s=boot_s, boot_sd=boot_sd, mean_s=mean_s)
        groups[_class(ends[0]), _class(ends[1])].append(ends)
    cycle_s = mean_s + TEARDOWN_S + boot_s
    for members in groups.values():
        ends_s = math.fsum(mean for mean, _ in members) / len(members)
        ends_sd = math.fsum(sd for _, sd in members) / len(members)
        for number in range(ROUNDS):
            comes_s = ends_s + TEARDOWN_S + boot_s + number * cycle_s
            variance = ends_sd**2 + boot_sd**2 + number * ((mean_s * 0.8) ** 2 + boot_sd**2)
            yield _by(comes_s, math.sqrt(variance)), len(members)


def _ends(
    row: Instance, snapshot: Snapshot, now: datetime, *, boot_s: float, boot_sd: float, mean_s: float
) -> tuple[float, float]:
    """In how many seconds a machine is done, and how far that may be off."""
    if row.state in _DONE:
        return 1.0, 1.0
    job = snapshot.jobs.get(row.job) if row.job is not None else None
    run_s, spread = _run_s(job, snapshot, mean_s)
    if job is not None and job.started_at is not None:
        return _left(run_s, spread, max(0.0, (now - job.started_at).total_seconds()))
    mean, deviation = _left(run_s, spread, 0.0)
    if row.state in (_S.REQUESTED, _S.LAUNCHED):
        age_s = (now - row.created_at).total_seconds()
        mean += max(boot_s * 0.2, boot_s - age_s)
        deviation = math.hypot(deviation, boot_sd)
    return mean, deviation


def _run_s(job: Job | None, snapshot: Snapshot, mean_s: float) -> tuple[float, float]:
    hours = snapshot.hours.get(job.work) if job is not None else None
    return (hours * 3600, SPREAD) if hours is not None else (mean_s, UNKNOWN_SPREAD)


def _left(median_s: float, spread: float, elapsed_s: float) -> tuple[float, float]:
    """Mean and deviation of what is left of a lognormal run time."""
    times = [max(0.5, median_s) * math.exp(spread * at) for at in _QUARTERS]
    left = [time - elapsed_s for time in times if time > elapsed_s]
    if not left:
        return max(1.0, 0.3 * elapsed_s), max(1.0, 0.3 * elapsed_s)
    return _moments(left)


def _moments(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return mean, max(math.sqrt(variance), 0.1 * mean)


def _class(seconds: float) -> int:
    return round(3 * math.log2(max(1.0, seconds)))


def _by(mean: float, deviation: float) -> Callable[[float], float]:
    """A lognormal of these moments."""
    variance = math.log1p((deviation / mean) ** 2)
    middle, spread = math.log(mean) - variance / 2, math.sqrt(variance)

    def by(seconds: float) -> float:
        if seconds <= 0.0:
            return 0.0
        return 0.5 * math.erfc((middle - math.log(seconds)) / (spread * math.sqrt(2.0)))

    return by
