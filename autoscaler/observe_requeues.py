"""What becomes of lost work: which job runs it again, when, on what, and what the loss cost.

Owns the passive move to lost, the heritage of successors (attempt, predecessor, time of the loss), the times at which
lost jobs are tried again because something of their run ended, and the metrics and ledger lines of recoveries.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from autoscaler.cut_off import was_cancelled_since
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import Instance, Interruption, Job, JobId, JobState, LedgerEntry, Rules
from autoscaler.sightings import (
    HANGING,
    REQUEUED,
    SPARED,
    Requeued,
    Sightings,
    dump_hanging,
    dump_requeued,
    dump_spared,
    heritage_of,
    load_hanging,
    load_requeued,
    load_spared,
    run_key,
    work_key,
)
from autoscaler.spi import CapacityType, Conclusion, Forge, ForgeJob, ForgeName

CUT_OFF = "its machine ended before it did"


class Recoveries:
    """See the module docstring."""

    def __init__(
        self, rows: LiveRows, sightings: Sightings, forges: Mapping[ForgeName, Forge], metrics: Metrics
    ) -> None:
        self._rows = rows
        self._seen = sightings
        self._forges = forges
        self._metrics = metrics
        self._noticed: dict[JobId, datetime] = {}
        """When the cloud announced the loss of what a queued successor runs again. For a metric only: in memory."""

    def load(self) -> None:
        """After a restart."""
        self._seen.requeued = load_requeued(self._rows.settings.get(REQUEUED, ""))
        self._seen.hanging = load_hanging(self._rows.settings.get(HANGING, ""))
        self._seen.spared = load_spared(self._rows.settings.get(SPARED, ""))

    # ------------------------------------------------------------------ losses

    def lost(self, job: Job, now: datetime, **fields: Any) -> Job:
        """Its machine is gone, and its work with it."""
        known = self._interruption_of(job)
        lost_at = known.cutoff_at if known is not None and known.cutoff_at is not None else job.finished_at or now
        lost_at = min(now, max(lost_at, job.started_at or lost_at))
        if job.started_at is not None:
            self._metrics.lost_work_seconds_total.inc((lost_at - job.started_at).total_seconds())
        reason = CUT_OFF if known is None else f"its cloud took its machine, {known.told_by}"
        return self._rows.move_job(job, JobState.LOST, lost_at=lost_at, reason=reason, **fields)

    def _interruption_of(self, job: Job) -> Interruption | None:
        return self._rows.interruption_of(job.instance) if job.instance is not None else None

    def settled(self, job: Job) -> None:
        """It is lost no longer, whatever it is now."""
        if job.id in self._seen.hanging:
            del self._seen.hanging[job.id]
            self._rows.set_setting(HANGING, dump_hanging(self._seen.hanging))

    def back_in_queue(self, job: Job, now: datetime) -> None:
        """Its forge queued the very same job again: what was lost runs again without us."""
        if job.state is JobState.LOST:
            self._note(job, now, action="requeue", reason="its forge put it back into its queue", outcome="requeued")
            self._metrics.requeues_total.labels(pool=job.pool or "", outcome="by_others").inc()
            self.settled(job)

    def spared(self, job: Job) -> None:
        """A timer of ours ended it: nothing that we ask for may run it again, for others of its run either."""
        self._seen.note_spared(run_key(job.forge, job.repo, job.run_id), job.forge_job_id)
        self._rows.set_setting(SPARED, dump_spared(self._seen.spared))

    def given_up(self, job: Job, conclusion: Conclusion, finished_at: datetime | None, now: datetime) -> None:
        """Its forge failed or cancelled a lost job: it may run again now, unless somebody cancelled it since."""
        if job.id not in self._seen.hanging and was_cancelled_since(job, conclusion, finished_at):
            self.abandoned(job, "superseded: it was cancelled at its forge after its machine was lost", now)
        elif job.retry_at is not None and job.retry_at > now:
            self._rows.amend_job(job, retry_at=now)

    def succeeded(self, job: Job) -> None:
        """It counted as lost, and had done its work before."""
        self._metrics.requeues_total.labels(pool=job.pool or "", outcome="late_success").inc()
        self.settled(job)

    def abandoned(self, job: Job, reason: str, now: datetime) -> None:
        """What its forge says leaves nothing to run again."""
        self._rows.move_job(job, JobState.ABANDONED, finished_at=now, reason=reason)
        self._note(job, now, action="abandon", reason=reason, outcome="done")
        self._metrics.requeues_total.labels(pool=job.pool or "", outcome="abandoned").inc()
        self.settled(job)

    def run_ended(self, forge: ForgeName, repo: str, run_id: str, now: datetime) -> None:
        """Lost jobs of a run that ended are tried again now."""
        for job in self._lost_of(forge, repo, run_id):
            self._rows.amend_job(job, retry_at=now)

    def job_ended(self, seen: ForgeJob, now: datetime) -> None:
        """It may have been the last one alive of a run that holds lost jobs."""
        lost = self._lost_of(seen.forge, seen.repo, seen.run_id)
        if not lost or all(job.retry_at is None or job.retry_at <= now for job in lost):
            return
        run, own = (seen.forge, seen.repo, seen.run_id), seen.forge_job_id
        for job in self._rows.jobs.values():
            is_alive = job.state is not JobState.LOST and job.forge_job_id != own
            if is_alive and (job.forge, job.repo, job.run_id) == run:
                return
        for job in lost:
            self._rows.amend_job(job, retry_at=now)

    def _lost_of(self, forge: ForgeName, repo: str, run_id: str) -> list[Job]:
        lost = [self._rows.jobs[id_] for id_ in sorted(self._rows.lost)]
        return [job for job in lost if (job.forge, job.repo, job.run_id) == (forge, repo, run_id)]

    # ------------------------------------------------------------------ successors

    def heritage(self, seen: ForgeJob, id_: JobId, now: datetime) -> Requeued | None:
        """What a new job takes over from the lost one that it replaces; that one is thereby requeued, whoever asked for
        it. None for a job that replaces none."""
        found = None
        for job in [self._rows.jobs[lost] for lost in sorted(self._rows.lost)]:
            if job.id != id_ and self._is_successor(seen, job):
                found = self._replaced(job, id_, now)
                break
        else:
            found = self._seen.take_requeued(work_key(seen.forge, seen.repo, seen.run_id, seen.name))
            if found is not None:
                self._rows.set_setting(REQUEUED, dump_requeued(self._seen.requeued))
        if found is not None and found.noticed_at is not None:
            self._noticed[id_] = found.noticed_at
        return found

    def _replaced(self, job: Job, successor: JobId, now: datetime) -> Requeued:
        """Its successor is here before our call was answered, or without one."""
        is_ours = job.id in self._seen.requeuing
        reason = "its successor appeared" if is_ours else "its successor appeared, for which this process did not ask"
        self._rows.move_job(job, JobState.REQUEUED, successor=successor, reason=reason)
        self._note(job, now, action="requeue", reason=reason, outcome="requeued")
        outcome = "requeued" if is_ours else "by_others"
        self._metrics.requeues_total.labels(pool=job.pool or "", outcome=outcome).inc()
        self.settled(job)
        return heritage_of(job, self._interruption_of(job))

    def _is_successor(self, seen: ForgeJob, job: Job) -> bool:
        if (seen.forge, seen.repo, seen.run_id, seen.name) != (job.forge, job.repo, job.run_id, job.name):
            return False
        if self._forges[seen.forge].traits.counts_attempts:
            return seen.run_attempt > job.run_attempt
        return _number(seen.forge_job_id) > _number(job.forge_job_id)

    def started(self, job: Job) -> None:
        """It runs, for the first time since its work was lost, if it ever was."""
        if job.lost_at is not None and job.started_at is not None:
            self._metrics.recovery_seconds.observe(max(0.0, (job.started_at - job.lost_at).total_seconds()))

    def placed(self, job: Job, machine: Instance, rules: Rules, now: datetime) -> None:
        """It is known which machine runs it."""
        noticed_at = self._noticed.pop(job.id, None)
        if noticed_at is not None and machine.launched_at is not None:
            ready_at = machine.launched_at + timedelta(microseconds=machine.boot_us)
            self._metrics.replace_seconds.observe(max(0.0, (ready_at - noticed_at).total_seconds()))
        pool = rules.pools.get(job.pool) if job.pool is not None else None
        place = machine.capacity_pool
        if pool is None or place is None or not pool.spot_enabled or job.attempt < pool.on_demand_from:
            return
        on_demand = place.capacity_type is CapacityType.ON_DEMAND
        where = f"on_demand: {place.key}" if on_demand else f"spot: its forge gave it to {machine.id} in {place.key}"
        reason = f"attempt {job.attempt} was to run on demand (on_demand_from = {pool.on_demand_from})"
        self._note(job, now, action="requeue_landed", reason=reason, outcome=where)

    def _note(self, job: Job, now: datetime, *, action: str, reason: str, outcome: str) -> None:
        self._rows.note(
            LedgerEntry(
                at=now,
                actor="autoscaler",
                action=action,
                subject=job.id,
                pool=job.pool or "",
                reason=reason,
                outcome=outcome,
            )
        )


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
