"""Part of plan: what becomes of lost jobs: they are queued again, or given up for good and on record.

Pure. All lost jobs of one run go together, as soon as their forge can; what may not run again is abandoned with its
reason as the first word.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime

from autoscaler.model import Abandon, Action, Job, JobState, Requeue, Rules, Snapshot
from autoscaler.spi import ForgeName


@dataclass(slots=True)
class Requeues:
    actions: list[Action] = field(default_factory=list)
    wake_at: datetime | None = None

    def wake(self, at: datetime) -> None:
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at


def plan_requeue(snapshot: Snapshot, rules: Rules, now: datetime) -> Requeues:
    """Requeues and abandonments that are due now."""
    made = Requeues()
    runs: dict[tuple[ForgeName, str, str], list[Job]] = defaultdict(list)
    for job in snapshot.jobs.values():
        if job.state is not JobState.LOST:
            continue
        if (refusal := _not_requeued(job, rules)) is not None:
            made.actions.append(Abandon(job=job.id, reason=refusal))
        else:
            runs[job.forge, job.repo, job.run_id].append(job)
    for (forge, repo, run_id), jobs in sorted(runs.items()):
        # All of a run together: once it is run again for one of them, GitHub refuses the others.
        if all(job.retry_at is not None and job.retry_at > now for job in jobs):
            made.wake(min(job.retry_at for job in jobs if job.retry_at is not None))
            continue
        ids = tuple(sorted(job.id for job in jobs))
        reason = f"{len(ids)} jobs of the run lost their machines"
        made.actions.append(Requeue(forge=forge, repo=repo, run_id=run_id, jobs=ids, reason=reason))
    return made


def _not_requeued(job: Job, rules: Rules) -> str | None:
    """Why a lost job stays lost, as the first word of its reason; None when it may be requeued."""
    pool = rules.pools.get(job.pool) if job.pool is not None else None
    if pool is None:
        return "unservable: no pool serves it any more"
    if not pool.requeue_enabled:
        return f"opted_out: pool {pool.name} does not requeue"
    if opted := set(job.labels).intersection(pool.opt_out_labels):
        return f"opted_out: label {', '.join(sorted(opted))}"
    if job.attempt >= pool.requeue_attempts:
        return f"attempts: {job.attempt} of {pool.requeue_attempts} made"
    return None
