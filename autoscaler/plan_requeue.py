"""Part of plan: what becomes of lost jobs: they are queued again, or given up for good and on record.

Pure. All lost jobs of one run go together, as soon as their forge can; what may not run again is abandoned with its
reason as the first word. Those that will be queued again need machines by then: `replacements` says which, and
`plan_launch` launches them with everything else that a pool wants.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from autoscaler.model import Abandon, Action, Interruption, Job, JobState, Pool, Requeue, Rules, Snapshot
from autoscaler.plan_tick import Purpose, Want
from autoscaler.spi import ForgeName, PoolName

USUAL_BOOT = timedelta(seconds=60)
"""How long a pool's machines are taken to boot until some of them did."""
SETTLED_WITHIN = timedelta(minutes=2)
"""How long the lost jobs of a run wait for the word on another one that its forge gave up: lost too, most likely."""
SPARED_AFTER = timedelta(seconds=30)
"""A machine that its cloud has not taken by then is not being taken: its job needs no other one."""


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
    unsettled: dict[tuple[ForgeName, str, str], datetime] = {}
    for job in snapshot.jobs.values():
        if (until := unsettled_until(job, now)) is not None:
            run = job.forge, job.repo, job.run_id
            unsettled[run] = max(until, unsettled.get(run, until))
        if job.state is not JobState.LOST:
            continue
        if (refusal := not_requeued(job, rules)) is not None:
            made.actions.append(Abandon(job=job.id, reason=refusal))
        else:
            runs[job.forge, job.repo, job.run_id].append(job)
    for (forge, repo, run_id), jobs in sorted(runs.items()):
        # All of a run together: once it is run again for one of them, GitHub refuses the others.
        if all(job.retry_at is not None and job.retry_at > now for job in jobs):
            made.wake(min(job.retry_at for job in jobs if job.retry_at is not None))
            continue
        until = unsettled.get((forge, repo, run_id))
        if until is not None and not _goes_alone(snapshot, forge):
            made.wake(until)
            continue
        ids = tuple(sorted(job.id for job in jobs))
        several = f"{len(ids)} jobs of the run lost their machines"
        reason = "1 job of the run lost its machine" if len(ids) == 1 else several
        made.actions.append(
            Requeue(
                forge=forge,
                repo=repo,
                run_id=run_id,
                jobs=ids,
                reason=reason,
                with_failures=all(rules.pools[job.pool].requeues_failures for job in jobs if job.pool is not None),
            )
        )
    return made


def unsettled_until(job: Job, now: datetime) -> datetime | None:
    """Until when a job that its forge gave up, and of which nobody knows yet whether its machine was gone first, keeps
    lost jobs of its run waiting: GitHub runs them again together or one after the other."""
    if job.state is not JobState.RUNNING or job.finished_at is None:
        return None
    until = job.finished_at + SETTLED_WITHIN
    return until if until > now else None


def _goes_alone(snapshot: Snapshot, forge: ForgeName) -> bool:
    return forge in snapshot.forges and snapshot.forges[forge].traits.requeues_at_once


def not_requeued(job: Job, rules: Rules) -> str | None:
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


# --------------------------------------------------------------------------- machines for what will be queued again


@dataclass(slots=True)
class Replacements:
    """Machines to launch before the job that needs them is queued; at `wake_at` there will be more."""

    wants: dict[PoolName, list[Want]] = field(default_factory=lambda: defaultdict(list))
    wake_at: datetime | None = None


def replacements(snapshot: Snapshot, rules: Rules, now: datetime) -> Replacements:
    """Per pool the lost jobs, and those whose machine is being taken, that will be queued again by the time that a
    machine launched now is up: oldest first. A forge that runs jobs again at once needs their machines now; elsewhere
    they are needed when the run ends, and nobody knows when a run without `run_ends` does.

    Each job is here until it is requeued; its successor is a queued job like any other from then on.
    """
    made = Replacements()
    for job in sorted(_going(snapshot, now), key=lambda job: (job.queued_at, job.id)):
        pool = rules.pools.get(job.pool) if job.pool is not None else None
        if pool is None or job.forge not in snapshot.forges or not_requeued(job, rules) is not None:
            continue
        if not snapshot.forges[job.forge].traits.requeues_at_once:
            ends_at = snapshot.run_ends.get((job.forge, job.repo, job.run_id))
            if ends_at is None:
                continue
            due_at = ends_at - expected_boot(pool, snapshot)
            if due_at > now:
                made.wake_at = due_at if made.wake_at is None else min(made.wake_at, due_at)
                continue
        hours, attempt = snapshot.hours.get(job.work), job.attempt + 1
        made.wants[pool.name].append(Want(purpose=Purpose.REPLACEMENT, job=job, hours=hours, attempt=attempt))
    return made


def _going(snapshot: Snapshot, now: datetime) -> Iterator[Job]:
    """Jobs that lost their machine, or will have lost it soon."""
    yield from (job for job in snapshot.jobs.values() if job.state is JobState.LOST)
    for known in snapshot.interruptions.values():
        job = _job_of(known, snapshot)
        if job is not None and job.state is JobState.RUNNING and now < known.taken_by + SPARED_AFTER:
            yield job


def _job_of(known: Interruption, snapshot: Snapshot) -> Job | None:
    machine = snapshot.instances.get(known.instance)
    id_ = machine.job if machine is not None and machine.job is not None else known.job
    return snapshot.jobs.get(id_) if id_ is not None else None


def expected_boot(pool: Pool, snapshot: Snapshot) -> timedelta:
    """The median of how long its machines took until they could take a job, whichever provider they are of."""
    known = [snapshot.arrivals[pool.name, name] for name in pool.providers if (pool.name, name) in snapshot.arrivals]
    took = sorted(seconds for arrivals in known for seconds in arrivals.seconds)
    return timedelta(seconds=took[len(took) // 2]) if took else USUAL_BOOT
