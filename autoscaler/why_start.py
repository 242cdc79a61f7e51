"""When a waiting job will start, as far as anybody can know: which machine it will most likely get, and how long
machines of its pool took.

Pure. An estimate is two instants: it starts by the first one in half of all such cases, by the second one in 95 of 100.
Where nothing is known it says what is not known; a guess that nobody can check helps nobody.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from autoscaler.model import Demand, Instance, InstanceState, Job, JobId, JobState, Snapshot
from autoscaler.spi import PoolName

COVERING = (
    InstanceState.IDLE,
    InstanceState.REGISTERING,
    InstanceState.READY,
    InstanceState.LAUNCHED,
    InstanceState.REQUESTED,
)
"""The states of a machine on its way to a job, nearest first."""
ENOUGH = 5
"""So many machines of a pool must have come before their times say more than what is usual anywhere."""
USUAL_S = (60.0, 110.0)
"""Half of the machines of a cloud can take a job after the first, 95 of 100 after the second time. Measured: specs,
policy 6."""
AT_ONCE = (timedelta(seconds=2), timedelta(seconds=15))
"""A forge gives a job to a runner that is online within seconds."""
REQUEUED_IN = timedelta(seconds=2)
"""What a forge takes to queue a lost job again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`at` and `by` (see the module) and on what they rest; or both None, and `note` says what is not known."""

    at: datetime | None = None
    by: datetime | None = None
    note: str = ""

    def after(self, wait: timedelta, note: str) -> "Estimate":
        if self.at is None or self.by is None:
            return self
        return Estimate(at=self.at + wait, by=self.by + wait, note=note)


def expected_machines(snapshot: Snapshot, *, without: frozenset[JobId] = frozenset()) -> Mapping[JobId, Instance]:
    """The machine that each queued job will most likely get; jobs beyond the last machine, and those `without` one by
    the plan's own word, are absent.

    Forges serve the oldest matching job first, so the n-th job of a pool gets its n-th machine on its way. A runner
    that is registered already counts for jobs of its own demand only.
    """
    unregistered: dict[PoolName, deque[Instance]] = {}
    registered: dict[PoolName, dict[Demand, deque[Instance]]] = {}
    coming = (row for row in snapshot.instances.values() if row.state in COVERING)
    for row in sorted(coming, key=lambda row: (COVERING.index(row.state), row.since, row.id)):
        if row.demand is None:
            unregistered.setdefault(row.pool, deque()).append(row)
        else:
            registered.setdefault(row.pool, {}).setdefault(row.demand, deque()).append(row)
    queued = (
        job
        for job in snapshot.jobs.values()
        if job.state is JobState.QUEUED and job.pool is not None and job.id not in without
    )
    expected: dict[JobId, Instance] = {}
    for job in sorted(queued, key=lambda job: (job.queued_at, job.id)):
        if job.pool is None:
            continue
        rows = _own_runners(job, registered.get(job.pool, {})) or unregistered.get(job.pool)
        if rows:
            expected[job.id] = rows.popleft()
    return expected


def _own_runners(job: Job, registered: Mapping[Demand, deque[Instance]]) -> deque[Instance] | None:
    for demand, rows in registered.items():
        same_place = (demand.forge, demand.scope) == (job.forge, job.scope)
        if rows and same_place and set(job.labels) <= set(demand.labels):
            return rows
    return None


# --------------------------------------------------------------------------- estimates


def with_machine(machine: Instance, snapshot: Snapshot, now: datetime) -> Estimate:
    """When a job starts on a machine that is on its way."""
    if machine.state is InstanceState.IDLE:
        return Estimate(at=now + AT_ONCE[0], by=now + AT_ONCE[1], note="its runner is online")
    took = _arrivals(machine.pool, (machine.provider,), snapshot)
    age_s = max(0.0, (now - machine.created_at).total_seconds())
    if len(took) >= ENOUGH:
        left = took[bisect_right(took, age_s) :]
        if not left:
            return Estimate(note=f"machine {machine.id} takes longer than any of the last {len(took)} of its pool did")
        note = f"by the last {len(took)} machines of pool {machine.pool}"
        return _span(now, _at(left, 0.5) - age_s, _at(left, 0.95) - age_s, note)
    half, most = USUAL_S
    if age_s >= most:
        return Estimate(note=f"machine {machine.id} takes longer than machines usually do")
    return _span(now, max(half - age_s, (most - age_s) / 2), most - age_s, "by what machines usually take")


def with_new_machine(pool: PoolName, providers: Sequence[str], snapshot: Snapshot, at: datetime) -> Estimate:
    """When a job starts on a machine that is asked for at an instant."""
    took = _arrivals(pool, providers, snapshot)
    if len(took) >= ENOUGH:
        return _span(at, _at(took, 0.5), _at(took, 0.95), f"by the last {len(took)} machines of pool {pool}")
    return _span(at, *USUAL_S, "by what machines usually take")


def ends_of_running(snapshot: Snapshot, now: datetime) -> Mapping[PoolName | None, Sequence[datetime]]:
    """When the jobs that run now will have ended, soonest first, as far as their earlier runs tell: by pool, and under
    None those of all pools."""
    ends: dict[PoolName | None, list[datetime]] = {None: []}
    for job in snapshot.jobs.values():
        if job.state is not JobState.RUNNING or job.started_at is None:
            continue
        hours = snapshot.hours.get(job.work)
        if hours is None and job.pool is not None:
            hours = snapshot.expected_life_h.get(job.pool)
        if hours is not None:
            end = max(now, job.started_at + timedelta(hours=hours))
            for pool in {None, job.pool}:
                ends.setdefault(pool, []).append(end)
    return {pool: sorted(found) for pool, found in ends.items()}


def _arrivals(pool: PoolName, providers: Sequence[str], snapshot: Snapshot) -> list[float]:
    """How long machines of a pool took, ascending, over its providers."""
    found = [known.seconds for (name, provider), known in snapshot.arrivals.items() if name == pool]
    own = [known.seconds for (name, by), known in snapshot.arrivals.items() if name == pool and by in providers]
    return sorted(seconds for part in (own or found) for seconds in part)


def _at(ascending: Sequence[float], quantile: float) -> float:
    return ascending[min(len(ascending) - 1, max(0, math.ceil(quantile * len(ascending)) - 1))]


def _span(start: datetime, half_s: float, most_s: float, note: str) -> Estimate:
    half_s, most_s = max(0.0, half_s), max(0.0, most_s)
    return Estimate(at=start + timedelta(seconds=half_s), by=start + timedelta(seconds=most_s), note=note)
