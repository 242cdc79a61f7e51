"""What live runs will likely queue next, and when runs with lost jobs end: `Snapshot.foreseen` and `run_ends`.

Memory beside the rows: the jobs of each run that has live ones or had some a minute ago, and the shapes of the last
runs of each workflow, kept by `lessons`. A run is reckoned anew only when one of its jobs moved. After a restart the
jobs that ended before it are not known: of such a run nothing is learned, and nothing is said that they could belie.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from autoscaler.learned_texts import Unkept, is_nameable, take_rows
from autoscaler.model import Arrivals, Foreseen, Job, JobId, JobState, Pool, Work
from autoscaler.run_shapes import (
    RUNS_KEPT,
    Expectation,
    Kind,
    Shape,
    expectations,
    kind_of,
    shape_of,
    shapes_from,
    weight_of,
)
from autoscaler.run_shapes import shapes_text as text_of
from autoscaler.spi import Conclusion, ForgeName, Labels, PoolName, ProviderName, Scope
from autoscaler.states import is_live_job
from autoscaler.store import Learned

QUIET = timedelta(minutes=1)
"""A run without live jobs for so long is over, whether its forge said so or not."""
LATE_BY = timedelta(seconds=10)
"""What was foreseen is given up when it took twice as long, and this much longer, than it should have."""
FORESEEN_FOR = timedelta(days=1)
MANY = 200
MANY_EVERY = timedelta(seconds=1)
"""Runs of many jobs are reckoned anew no oftener: each of thousands that ends would mean a look at all others."""
WORKFLOWS_KEPT = 5000
WEIGHT_KEPT = 1_000_000
"""Kinds of job in all shapes together, and what each of them follows: some 75 MB. A run in 64 steps, five times, counts
for ten thousand, and who may name workflows may make up many of those."""
KINDS_REMEMBERED = 10_000
USUAL_ARRIVAL_S = 60.0

RunKey = tuple[ForgeName, str, str]
_Workflow = tuple[ForgeName, str, str]
_J = JobState


@dataclass(slots=True)
class _Alike:
    """The jobs of one kind in a run."""

    live: dict[JobId, Job] = field(default_factory=dict)
    ended: dict[JobId, Job] = field(default_factory=dict)
    queued: int = 0
    lost: int = 0
    failed: int = 0

    def put(self, job: Job) -> None:
        if job.id in self.live or job.id in self.ended:
            self.take(job.id)
        if job.state is _J.QUEUED:
            self.live[job.id] = job
            self.queued += 1
        elif job.state is _J.RUNNING:
            self.live[job.id] = job
        else:
            self.ended[job.id] = job
            self.lost += job.state is _J.LOST
            self.failed += _is_failed(job)

    def take(self, id_: JobId) -> None:
        if (was := self.live.pop(id_, None)) is not None:
            self.queued -= was.state is _J.QUEUED
        elif (was := self.ended.pop(id_, None)) is not None:
            self.lost -= was.state is _J.LOST
            self.failed -= _is_failed(was)

    @property
    def open(self) -> int:
        """Jobs that are not over, or will run again."""
        return len(self.live) + self.lost

    @property
    def size(self) -> int:
        return len(self.live) + len(self.ended)

    @property
    def is_blocking(self) -> bool:
        """What comes after these will not come as things stand."""
        return bool(self.lost or self.failed)

    @property
    def last_end(self) -> datetime:
        return max(job.finished_at or job.queued_at for job in self.ended.values())


@dataclass(slots=True)
class _Run:
    """A run with live jobs, or one that may go on. `is_whole`: all of it was seen, and it went as its file says."""

    workflow: _Workflow
    scope: Scope
    is_whole: bool
    kinds: dict[Kind, _Alike] = field(default_factory=dict)
    open: int = 0
    size: int = 0
    is_finished: bool = False
    reckoned_at: datetime | None = None

    def waits(self, now: datetime) -> bool:
        """Whether it has so many jobs that it is looked at only now and then."""
        return self.size > MANY and self.reckoned_at is not None and now < self.reckoned_at + MANY_EVERY


class Stages:
    """See the module docstring. `hours` is what is known of run times, `arrivals` of machines, both kept by others."""

    def __init__(
        self,
        learned: MutableMapping[str, Learned],
        *,
        hours: Mapping[Work, float],
        arrivals: Callable[[], Mapping[tuple[PoolName, ProviderName], Arrivals]],
    ) -> None:
        self.unkept = Unkept[_Workflow]("stages", self._text)
        self._hours = hours
        self._arrivals = arrivals
        self._shapes: OrderedDict[_Workflow, list[Shape]] = OrderedDict()
        self._weights: dict[_Workflow, int] = {}
        self._weight = 0
        self._expected: dict[_Workflow, tuple[Expectation, ...]] = {}
        self._runs: dict[RunKey, _Run] = {}
        self._kinds: dict[tuple[str, PoolName, Labels], Kind] = {}
        self._quiet: OrderedDict[RunKey, datetime] = OrderedDict()
        self._moved: dict[RunKey, None] = {}
        self._by_run: dict[RunKey, tuple[Foreseen, ...]] = {}
        self._late: list[tuple[datetime, RunKey]] = []
        self.foreseen: tuple[Foreseen, ...] = ()
        self.run_ends: Mapping[RunKey, datetime] = {}
        take_rows(learned, "stages", self._read)

    def _read(self, parts: tuple[str, ...], value: Any) -> None:
        forge, repo, workflow = parts
        self._remember((ForgeName(forge), repo, workflow), shapes_from(value))

    # ------------------------------------------------------------------ news

    def recall(self, jobs: Mapping[JobId, Job], now: datetime) -> None:
        """After a restart: live jobs are known, what ended before is not."""
        for job in jobs.values():
            self.job_moved(job, now)
            if (run := self._runs.get(_run_of(job))) is not None:
                run.is_whole = False

    def job_moved(self, job: Job, now: datetime) -> None:
        if job.pool is None:
            return
        key = _run_of(job)
        run = self._runs.get(key)
        if run is None:
            if not is_live_job(job):
                return  # it ends so late that its run was over
            run = self._runs[key] = _Run(workflow=(job.forge, job.repo, job.workflow), scope=job.scope, is_whole=True)
        if job.state is _J.LOST or job.state is _J.ABANDONED or job.attempt > 1 or job.run_attempt > 1:
            run.is_whole = False
        kind = self._kind_of(job, job.pool)
        alike = run.kinds.get(kind)
        if alike is None:
            alike = run.kinds[kind] = _Alike()
        before = alike.open, alike.size
        if job.state is _J.REQUEUED:
            alike.take(job.id)  # its successor stands in its place
        else:
            alike.put(job)
        run.open += alike.open - before[0]
        run.size += alike.size - before[1]
        self._moved[key] = None
        if run.open:
            if key in self._quiet:
                del self._quiet[key]
        else:
            self._quiet[key] = now
            self._quiet.move_to_end(key)

    def _kind_of(self, job: Job, pool: PoolName) -> Kind:
        """The same object for all jobs that are alike in all that makes a kind, but for labels that name their run."""
        alike = job.name, pool, job.labels
        known = self._kinds.get(alike)
        if known is None:
            known = kind_of(job, pool)
            if known.labels == tuple(sorted(job.labels)):
                if len(self._kinds) > KINDS_REMEMBERED:
                    self._kinds.clear()
                self._kinds[alike] = known
        return known

    def run_finished(self, forge: ForgeName, repo: str, run_id: str) -> None:
        """Its forge says so; webhooks of its last jobs may still come."""
        if (run := self._runs.get((forge, repo, run_id))) is not None:
            run.is_finished = True
            self._moved[forge, repo, run_id] = None

    def reckon(self, pools: Mapping[PoolName, Pool], now: datetime) -> None:
        """Bring what plan sees up to date. Costs what moved since it was called last."""
        self._end_quiet(now)
        while self._late and self._late[0][0] <= now:
            self._moved[heapq.heappop(self._late)[1]] = None
        if not self._moved:
            return
        moved, self._moved = self._moved, {}
        ends = dict(self.run_ends)
        changed = False
        for key in moved:
            run = self._runs.get(key)
            if run is not None and run.waits(now):
                self._moved[key] = None
                continue
            found, late_at = self._foresee(key, run, pools, now) if run is not None else ((), now)
            if _put(self._by_run, key, found or None):
                changed = True
                if found:
                    heapq.heappush(self._late, (late_at, key))
            _put(ends, key, self._end_of(run, now) if run is not None else None)
        if changed:
            self.foreseen = tuple(one for found in self._by_run.values() for one in found)
        if ends != self.run_ends:
            self.run_ends = ends

    # ------------------------------------------------------------------ what is likely

    def _foresee(
        self, key: RunKey, run: _Run, pools: Mapping[PoolName, Pool], now: datetime
    ) -> tuple[tuple[Foreseen, ...], datetime]:
        """And when the first of it is too late to come."""
        run.reckoned_at = now
        found: list[Foreseen] = []
        first_late_at = now + FORESEEN_FOR
        for one in self._expected.get(run.workflow, ()):
            if one.kind in run.kinds or one.kind.pool not in pools:
                continue
            due = self._due(one, run)
            if due is None:
                continue
            due_at, late_at, last = due
            if late_at <= now:
                continue
            first_late_at = min(first_late_at, late_at)
            many = f"{one.count} jobs {one.kind.stem}" if one.count > 1 else f"a job {one.kind.stem}"
            found.append(
                Foreseen(
                    forge=key[0],
                    scope=run.scope,
                    repo=key[1],
                    run_id=key[2],
                    pool=one.kind.pool,
                    labels=one.kind.labels_in(key[2]),
                    count=one.count,
                    due_at=due_at,
                    hours=None if one.run_s is None else one.run_s / 3600,
                    reason=f"{last.stem} of {key[1]} is usually followed by {many}",
                )
            )
        return tuple(found), first_late_at

    def _due(self, one: Expectation, run: _Run) -> tuple[datetime, datetime, Kind] | None:
        """When a kind is due, when it is too late to come, and what it will come after; None while nobody knows. All
        that it follows must have been seen and be running or well over: then it cannot have come before a restart."""
        if not one.after <= run.kinds.keys():
            return None
        ends: list[tuple[datetime, datetime, Kind]] = []
        for kind in one.after:
            alike = run.kinds[kind]
            if alike.is_blocking or alike.queued or not (alike.live or alike.ended):
                return None
            for job in alike.live.values():
                end = self._job_end(job, kind, run)
                if end is None or job.started_at is None:
                    return None
                ends.append((end, job.started_at, kind))
            if not alike.live:
                last = alike.last_end
                ends.append((last, last, kind))
        end, began, last_kind = max(ends)
        due_at = end + timedelta(seconds=one.pause_s)
        return due_at, due_at + max(due_at - began, LATE_BY), last_kind

    def _job_end(self, job: Job, kind: Kind, run: _Run) -> datetime | None:
        """When a running job will likely be over."""
        hours = self._hours.get(job.work)
        run_s = hours * 3600 if hours is not None else self._run_s(kind, run)
        if job.started_at is None or run_s is None:
            return None
        return job.started_at + timedelta(seconds=run_s)

    def _run_s(self, kind: Kind, run: _Run) -> float | None:
        """How long jobs of a kind ran in the workflow's last runs: a matrix has new names now and then."""
        times = [
            one.run_s
            for shape in self._shapes.get(run.workflow, ())
            if (one := shape.kinds.get(kind)) is not None and one.run_s is not None
        ]
        return median(times) if times else None

    def _end_of(self, run: _Run, now: datetime) -> datetime | None:
        """When all that can still run in a run with lost jobs will be over; None where it has none, or nobody knows."""
        if not any(alike.lost for alike in run.kinds.values()):
            return None
        ends: dict[Kind, datetime] = {}
        blocked = {kind for kind, alike in run.kinds.items() if alike.is_blocking}
        for kind, alike in run.kinds.items():
            for job in alike.live.values():
                end = (
                    self._job_end(job, kind, run) if job.state is _J.RUNNING else self._queued_end(job, kind, run, now)
                )
                if end is None:
                    return None
                ends[kind] = max(end, ends.get(kind, end))
            if alike.ended:
                ends[kind] = max(alike.last_end, ends.get(kind, alike.last_end))
        coming = [one for one in self._expected.get(run.workflow, ()) if one.kind not in run.kinds]
        while coming:  # each stage after those before it
            ready = [one for one in coming if one.after <= ends.keys() | blocked]
            if not ready:
                break
            for one in ready:
                coming.remove(one)
                if one.after & blocked:
                    blocked.add(one.kind)
                elif one.run_s is None:
                    return None
                else:
                    waits_s = one.pause_s + self._arrival_s(one.kind.pool) + one.run_s
                    ends[one.kind] = max(ends[kind] for kind in one.after) + timedelta(seconds=waits_s)
        return max(ends.values(), default=None)

    def _queued_end(self, job: Job, kind: Kind, run: _Run, now: datetime) -> datetime | None:
        hours = self._hours.get(job.work)
        run_s = hours * 3600 if hours is not None else self._run_s(kind, run)
        if run_s is None:
            return None
        starts_at = max(now, job.queued_at + timedelta(seconds=self._arrival_s(kind.pool)))
        return starts_at + timedelta(seconds=run_s)

    def _arrival_s(self, pool: PoolName) -> float:
        known = [median(one.seconds) for (name, _), one in self._arrivals().items() if name == pool and one.seconds]
        return min(known, default=USUAL_ARRIVAL_S)

    # ------------------------------------------------------------------ what is learned

    def _end_quiet(self, now: datetime) -> None:
        finished = [key for key in self._moved if (run := self._runs.get(key)) and run.is_finished and not run.open]
        for key in finished:
            self._learn_from(key, now)
        while self._quiet and next(iter(self._quiet.values())) + QUIET <= now:
            self._learn_from(next(iter(self._quiet)), now)

    def _learn_from(self, key: RunKey, now: datetime) -> None:
        """A run is over."""
        self._quiet.pop(key, None)
        run = self._runs.pop(key)
        self._moved[key] = None
        shape = shape_of({kind: tuple(one.ended.values()) for kind, one in run.kinds.items() if one.ended})
        if shape is None or not run.is_whole or not is_nameable(run.workflow):
            return
        if not all(is_nameable((kind.stem, *kind.labels)) for kind in shape.kinds):
            return
        known = self._shapes.get(run.workflow)
        if known is None and not any(one.after for one in shape.kinds.values()):
            return  # nothing follows anything: most workflows are like that
        self._remember(run.workflow, [*(known or ()), shape])
        self.unkept.add(run.workflow, now)

    def _remember(self, workflow: _Workflow, shapes: list[Shape]) -> None:
        self._shapes[workflow] = shapes[-RUNS_KEPT:]
        self._shapes.move_to_end(workflow)
        self._expected[workflow] = expectations(self._shapes[workflow])
        self._weight -= self._weights.get(workflow, 0)
        self._weights[workflow] = weight = sum(map(weight_of, self._shapes[workflow]))
        self._weight += weight
        while len(self._shapes) > WORKFLOWS_KEPT or self._weight > WEIGHT_KEPT:
            oldest, _ = self._shapes.popitem(last=False)
            self._weight -= self._weights.pop(oldest)
            del self._expected[oldest]
            self.unkept.forget(oldest)

    def _text(self, workflow: _Workflow) -> Any:
        known = self._shapes.get(workflow)
        return text_of(known) if known is not None else None


def _run_of(job: Job) -> RunKey:
    return job.forge, job.repo, job.run_id


def _is_failed(job: Job) -> bool:
    return job.state is _J.ABANDONED or (job.state is _J.DONE and job.conclusion is not Conclusion.SUCCESS)


def _put(memory: dict[RunKey, Any], key: RunKey, value: Any) -> bool:
    """Set or drop an entry; whether that changed anything."""
    if memory.get(key) == value:
        return False
    if value is None:
        del memory[key]
    else:
        memory[key] = value
    return True
