"""Part of plan: runs that wait for machines which no pool will ever have, where the nearest pool says to cancel them.

Pure. A run is cancelled only when nothing else of it is alive: jobs that can be served are never ended for one that
cannot. What is not cancelled stays queued and is explained by `why`.
"""

from collections import defaultdict
from datetime import datetime, timedelta

from autoscaler.demand import asked_labels, nearest_pool
from autoscaler.model import Action, CancelRun, Job, JobState, Pool, Rules, Snapshot
from autoscaler.spi import ForgeName, Labels

GRACE = timedelta(minutes=10)
"""How long a job may be unserved first: a configuration that was reloaded by mistake is put right within it."""

_Run = tuple[ForgeName, str, str]


def plan_unservable(snapshot: Snapshot, rules: Rules, now: datetime) -> tuple[list[Action], datetime | None]:
    """Runs to cancel now, and when the next one will be due."""
    if not any(pool.cancels_unservable for pool in rules.pools.values()):
        return [], None
    actions: list[Action] = []
    wake_at: datetime | None = None
    nearest = _Nearest(rules)
    for (forge, repo, run_id), jobs in sorted(_unserved_runs(snapshot).items()):
        due_at = max(snapshot.unserved_since.get(job.id, now) for job in jobs) + GRACE
        pools = [nearest.to(job) for job in jobs] if forge in snapshot.forges else []
        if not pools or not all(pool is not None and pool.cancels_unservable for pool in pools):
            continue
        if due_at > now:
            wake_at = due_at if wake_at is None else min(wake_at, due_at)
            continue
        reason = (
            f"unservable: {jobs[0].unserved}; nothing could serve it for {GRACE.seconds // 60} minutes, and pool "
            f'{pools[0].name if pools[0] else ""} cancels such runs (unservable = "cancel_run"): give the job labels '
            "that a pool has, or a pool the labels that it asks for, and run it again"
        )
        ids = tuple(job.id for job in jobs)
        actions.append(CancelRun(forge=forge, repo=repo, run_id=run_id, jobs=ids, reason=reason))
    return actions, wake_at


def _unserved_runs(snapshot: Snapshot) -> dict[_Run, list[Job]]:
    """Runs all of whose live jobs no pool serves, with these jobs, oldest first."""
    unserved: dict[_Run, list[Job]] = defaultdict(list)
    alive: set[_Run] = set()
    for job in snapshot.jobs.values():
        run = job.forge, job.repo, job.run_id
        if job.state is JobState.QUEUED and job.pool is None:
            unserved[run].append(job)
        else:
            alive.add(run)
    return {
        run: sorted(jobs, key=lambda job: (job.queued_at, job.id)) for run, jobs in unserved.items() if run not in alive
    }


class _Nearest:
    """The pool nearest to each job. A matrix of thousands asks for the same labels: each is looked up once a tick."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._known: dict[tuple[ForgeName, str, Labels], Pool | None] = {}

    def to(self, job: Job) -> Pool | None:
        key = job.forge, job.repo, asked_labels(job.labels, run_id=job.run_id)
        if key not in self._known:
            pools = self._rules.pools
            near = nearest_pool(forge=job.forge, repo=job.repo, labels=key[2], run_id=job.run_id, pools=pools.values())
            self._known[key] = pools[near.pool] if near is not None else None
        return self._known[key]
