"""Have forges run lost jobs again, once per loss, and settle what became of each request.

Part of apply: the rows say what is lost before a call, and what came of it after. Every failure gets a time before
which its action is not tried again.
"""

from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from autoscaler.backoff import Backoff
from autoscaler.facts import Fact, JobRead
from autoscaler.forge_line import ForgeLine, one_line
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import Job, JobState, LedgerEntry, Requeue, job_id
from autoscaler.sightings import REQUEUED, Sightings, dump_requeued, work_key
from autoscaler.spi import (
    AlreadyRequeued,
    Clock,
    Conclusion,
    Forge,
    ForgeError,
    ForgeRefusedForGood,
    JobNotFound,
    JobStatus,
    NotYet,
)

Call = Callable[[], Coroutine[Any, Any, None]]


class RequeueCalls:
    """Executes Requeue for the Applier."""

    def __init__(
        self,
        *,
        rows: LiveRows,
        sightings: Sightings,
        line: ForgeLine,
        clock: Clock,
        metrics: Metrics,
        report: Callable[[Fact], None],
    ) -> None:
        self._rows = rows
        self._seen = sightings
        self._line = line
        self._clock = clock
        self._metrics = metrics
        self._report = report
        self._backoff = Backoff(sightings, clock)

    def intend(self, action: Requeue) -> Call:
        return partial(self._requeue, action)

    async def _requeue(self, action: Requeue) -> None:
        jobs = [job for id_ in action.jobs if (job := self._rows.jobs.get(id_)) and job.state is JobState.LOST]
        if not jobs:
            return
        if not (jobs := await self._still_lost(jobs, action)):
            return
        ids = [job.forge_job_id for job in jobs]
        successors: Mapping[str, str] = {}
        outcome = "requeued"
        try:
            result = await self._line.call(
                action.forge,
                "requeue",
                lambda forge: forge.requeue(action.repo, action.run_id, ids, with_failures=action.with_failures),
            )
            successors = result.successors
        except AlreadyRequeued as error:
            outcome = "already requeued"
            successors = {ids[0]: error.successor} if error.successor and len(ids) == 1 else {}
        except NotYet as error:
            self._backoff.worked(action.key)
            retry_at = self._clock.now() + timedelta(seconds=error.retry_after_s)
            for job in jobs:
                if (current := self._rows.jobs.get(job.id)) is not None and current.state is JobState.LOST:
                    self._rows.amend_job(current, retry_at=retry_at, reason=one_line(error))
            await self._rows.flush()
            return
        except (JobNotFound, ForgeRefusedForGood) as error:
            self._backoff.worked(action.key)
            self._give_up(jobs, one_line(error))
            await self._rows.flush()
            return
        except ForgeError as error:
            self._backoff.failed(action.key, error)
            return
        self._backoff.worked(action.key)
        self._requeued(jobs, successors, action, outcome)
        await self._rows.flush()

    async def _still_lost(self, jobs: list[Job], action: Requeue) -> list[Job]:
        """Those that the forge does not know to have ended well, or to be gone: a job that succeeded is not run again,
        and the facts settle the others."""
        lost = []
        for job in jobs:
            try:
                seen = await self._line.call(job.forge, "get_job", _reading(job))
            except JobNotFound:
                self._report(JobRead(job=job.id, seen=None))
            except ForgeError as error:
                self._backoff.failed(action.key, error)
                return []
            else:
                if seen.conclusion is Conclusion.SUCCESS or seen.status is JobStatus.QUEUED:
                    self._report(JobRead(job=job.id, seen=seen))
                else:
                    lost.append(job)
        return lost

    def _give_up(self, jobs: list[Job], why: str) -> None:
        """The forge will never run these again, whatever we ask."""
        for job in jobs:
            current = self._rows.jobs.get(job.id)
            if current is not None and current.state is JobState.LOST:
                reason = f"superseded: the forge refuses to run it again: {why}"
                self._rows.move_job(current, JobState.ABANDONED, reason=reason, finished_at=self._clock.now())
                self._note("requeue", job.id, job.pool or "", why, "refused for good")
                self._metrics.requeues_total.labels(pool=job.pool or "", outcome="refused").inc()

    def _requeued(self, jobs: list[Job], successors: Mapping[str, str], action: Requeue, outcome: str) -> None:
        for job in jobs:
            current = self._rows.jobs.get(job.id)
            if current is None or current.state is not JobState.LOST:
                continue
            new = successors.get(job.forge_job_id)
            successor = job_id(job.forge, new) if new else None
            if successor == job.id:  # its forge put the very same job back into the queue
                self._rows.move_job(
                    current, JobState.QUEUED, started_at=None, runner_name="", instance=None, reason=action.reason
                )
                continue
            self._rows.move_job(current, JobState.REQUEUED, successor=successor, reason=action.reason)
            self._seen.requeued[work_key(job.forge, job.repo, job.run_id, job.name)] = job.attempt
            self._note("requeue", job.id, job.pool or "", action.reason, outcome)
            self._metrics.requeues_total.labels(pool=job.pool or "", outcome="requeued").inc()
        self._rows.set_setting(REQUEUED, dump_requeued(self._seen.requeued))

    def _note(self, action: str, subject: str, pool: str, reason: str, outcome: str) -> None:
        self._rows.note(
            LedgerEntry(
                at=self._clock.now(),
                actor="autoscaler",
                action=action,
                subject=subject,
                pool=pool,
                reason=reason,
                outcome=outcome,
            )
        )


def _reading(job: Job) -> Callable[[Forge], Any]:
    return lambda forge: forge.get_job(job.repo, job.forge_job_id)
