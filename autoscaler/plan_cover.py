"""Part of plan: which jobs have a machine already: registered, or on its way.

Pure. Jobs and machines are paired only to count each of them once; the forge decides who runs what.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

from autoscaler.model import Arrivals, Foreseen, Instance, Job, JobId
from autoscaler.plan_limits import Limits
from autoscaler.plan_tick import Fleet
from autoscaler.spi import ForgeName, InstanceId, Labels, PoolName, ProviderName, Scope

ENOUGH = 8
"""So many machines must have arrived before one that has not is called late."""
LATE = 0.95
WORTH_A_RACE = 1.5
"""A machine is late that takes longer than this share of its kind did, and so many times what is usual: where all boots
are alike, the last one in twenty comes long before the one that would race it."""
OVERDUE = 1.5
"""It likely never comes when it took so many times longer than the slowest one known."""
RACED_SHARE = 10
"""One in so many of a pool's coming machines may be raced at a time; one always."""

Key = tuple[ForgeName, Scope, Labels]
Asking = TypeVar("Asking", bound=Job | Foreseen)


# --------------------------------------------------------------------------- registered runners


def cover(jobs: list[Asking], runners: list[Instance]) -> tuple[list[Asking], list[Instance]]:
    """Jobs that no registered runner may take, and runners that no job needs. Exact label sets first."""
    if not runners:
        return jobs, []
    exact: dict[Key, list[Instance]] = defaultdict(list)
    unknown: list[Instance] = []
    for runner in sorted(runners, key=lambda runner: (runner.since, runner.id)):
        demand = runner.demand
        if demand is None:
            unknown.append(runner)
        else:
            exact[demand.forge, demand.scope, demand.labels].append(runner)
    uncovered: list[Asking] = []
    for job in jobs:
        same = exact.get((job.forge, job.scope, job.labels))
        if same:
            same.pop()
        else:
            uncovered.append(job)
    spare = [runner for runners_left in exact.values() for runner in runners_left]
    if spare and uncovered:
        uncovered, spare = _cover_wider(uncovered, spare)
    return uncovered, sorted([*spare, *unknown], key=lambda runner: (runner.since, runner.id))


def _cover_wider(jobs: list[Asking], runners: list[Instance]) -> tuple[list[Asking], list[Instance]]:
    """A runner with more labels than the job asks for may take it too. Runners are looked up by the job's rarest label:
    thousands that are bound to runs of their own cost nothing."""
    left = {runner.id: runner for runner in runners}
    having: dict[tuple[ForgeName, Scope, str], dict[InstanceId, Labels]] = defaultdict(dict)
    for runner in runners:
        if (demand := runner.demand) is not None:
            for label in ("", *demand.labels):
                having[demand.forge, demand.scope, label][runner.id] = demand.labels
    uncovered: list[Asking] = []
    tried: set[Key] = set()
    for job in jobs:
        key = (job.forge, job.scope, job.labels)
        found = None
        if key not in tried:
            wanted = set(job.labels)
            fewest = min((having[job.forge, job.scope, label] for label in ("", *job.labels)), key=len)
            found = next(((id_, labels) for id_, labels in fewest.items() if wanted.issubset(labels)), None)
        if found is None:
            tried.add(key)
            uncovered.append(job)
            continue
        id_, labels = found
        del left[id_]
        for label in ("", *labels):
            del having[job.forge, job.scope, label][id_]
    return uncovered, list(left.values())


# --------------------------------------------------------------------------- machines on their way


def cover_coming(jobs: list[Job], coming: int, limits: Limits) -> list[Job]:
    """Jobs that no machine on its way covers. Those that can be registered soon have the first claim: otherwise a job
    of a forge without budget would hold the machine that was launched for another forge's job, time and again."""
    promised: set[JobId] = set()
    for job in jobs:
        if len(promised) < coming and limits.mint_soon.get(job.forge, 0.0) >= 1:
            limits.mint_soon[job.forge] -= 1
            promised.add(job.id)
    return [job for job in jobs if job.id not in promised][coming - len(promised) :]


def late_after(
    arrivals: Mapping[tuple[PoolName, ProviderName], Arrivals],
) -> dict[tuple[PoolName, ProviderName], tuple[timedelta, timedelta]]:
    """After what time a machine that has not come is late, and overdue."""
    found = {}
    for key, known in arrivals.items():
        if (count := len(known.seconds)) >= ENOUGH:
            late_s = max(known.seconds[math.ceil(LATE * count) - 1], WORTH_A_RACE * known.seconds[count // 2])
            found[key] = timedelta(seconds=late_s), timedelta(seconds=OVERDUE * known.seconds[-1])
    return found


def not_counted(fleet: Fleet) -> int:
    """How many machines on their way cover no job, as they may never come: each lets one more machine be launched.

    Late ones are raced, whichever comes first takes the job. Nothing is remembered, so the number of those that do not
    count is bounded by the number of those that come: a tenth of them, or half of them when they are overdue. When all
    boots become slow at once that ends at twice the machines, and does not go on."""
    raced = min(fleet.late, max(1, fleet.coming // RACED_SHARE))
    return max(raced, min(fleet.overdue, fleet.coming // 2))


def counted(fleet: Fleet) -> int:
    """How many machines on their way cover a job."""
    return fleet.coming - not_counted(fleet)


def ahead_of(replaced: Sequence[Job], foreseen: Sequence[Foreseen]) -> list[Job | Foreseen]:
    """One entry for each machine that is wanted before its job is queued, the surest first."""
    return [*replaced, *(one for one in foreseen for _ in range(one.count))]
