"""Have forges run lost jobs again, once per loss, end runs that nothing can serve, and settle what became of it.

Part of apply: the rows say what is lost before a call, and what came of it after. Every failure gets a time before
which its action is not tried again.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from autoscaler.backoff import Backoff
from autoscaler.cut_off import was_cancelled_since
from autoscaler.facts import Fact, JobRead
from autoscaler.forge_line import ForgeLine, one_line
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import Abandon, CancelRun, EndReason, Job, JobState, LedgerEntry, Requeue, job_id
from autoscaler.plan_requeue import unsettled_until
from autoscaler.sightings import (
    HANGING,
    REQUEUED,
    SPARED,
    Sightings,
    dump_hanging,
    dump_requeued,
    dump_spared,
    heritage_of,
    run_key,
    work_key,
)
from autoscaler.spi import (
    AlreadyRequeued,
    Clock,
    Conclusion,
    Forge,
    ForgeError,
    ForgeJob,
    ForgeRefusedForGood,
    JobNotFound,
    JobStatus,
    NotYet,
    RequeueResult,
)
from autoscaler.why_words import listed

Call = Callable[[], Coroutine[Any, Any, None]]
FINISHED_LATE = timedelta(minutes=15)
"""GitHub's lease of a runner that is gone ends within this time (specs: github-rest B8)."""
LONGEST_PATIENCE = timedelta(minutes=5)
PARTIAL = timedelta(seconds=2)
"""The facts about the others come with the next tick; this is for those that never come."""
LATER = timedelta(seconds=20)
"""The end of the attempt that goes first is announced by a webhook; this is how long a lost one may cost."""
NAMED = 20
"""Jobs that are named in one line of the ledger."""


class RequeueCalls:
    """Executes Requeue and CancelRun for the Applier."""

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

    def intend(self, action: Requeue | CancelRun) -> Call:
        if isinstance(action, CancelRun):
            return partial(self._cancel_run, action)
        return partial(self._requeue, action)

    # ------------------------------------------------------------------ lost jobs

    def abandon(self, action: Abandon, now: datetime) -> Call | None:
        """Give a lost job up; its forge need not take it for running any longer."""
        job = self._rows.jobs.get(action.job)
        if job is None or job.state is not JobState.LOST:
            return None
        self._rows.move_job(job, JobState.ABANDONED, reason=action.reason, finished_at=now)
        self._note("abandon", job.id, job.pool or "", action.reason, "done")
        self._count(job, "abandoned")
        self._spare(job)
        self._not_hanging(job)
        return partial(self._end, job)

    async def _end(self, job: Job) -> None:
        """Once, as a courtesy: a forge that does not hear it gives the job up by itself, later."""
        with contextlib.suppress(ForgeError):
            await self._line.call(job.forge, "end_job", lambda forge: forge.end_job(job.repo, job.forge_job_id))

    def _spare(self, job: Job) -> None:
        """For good: others of its run may be lost long after it."""
        self._seen.note_spared(run_key(job.forge, job.repo, job.run_id), job.forge_job_id)
        self._rows.set_setting(SPARED, dump_spared(self._seen.spared))

    async def _requeue(self, action: Requeue) -> None:
        jobs = [job for id_ in action.jobs if (job := self._rows.jobs.get(id_)) and job.state is JobState.LOST]
        if not self._line.runs_jobs_alone(action.forge) and await self._is_partial(action):
            self._not_yet(jobs, PARTIAL, "what became of another job of its run is not known yet")
            return
        if not (jobs := await self._still_lost(jobs, action)):
            return
        self._seen.requeuing.update(job.id for job in jobs)
        try:
            await self._ask(jobs, action)
        finally:
            self._seen.requeuing.difference_update(job.id for job in jobs)

    async def _ask(self, jobs: list[Job], action: Requeue) -> None:
        ids = [job.forge_job_id for job in jobs]
        spared = self._spared_of(action)
        result, outcome = RequeueResult(successors={}), "requeued"
        try:
            result = await self._line.call(
                action.forge,
                "requeue",
                lambda forge: forge.requeue(
                    action.repo, action.run_id, ids, with_failures=action.with_failures, spared=spared
                ),
            )
        except AlreadyRequeued as error:
            outcome = "already requeued"
            if error.successor and len(ids) == 1:
                result = RequeueResult(successors={ids[0]: error.successor})
        except NotYet as error:
            wait = timedelta(seconds=error.retry_after_s)
            for job in jobs:
                self._not_yet([job], self._patience(job, wait) if error.is_told else wait, one_line(error))
            jobs = []
        except (JobNotFound, ForgeRefusedForGood) as error:
            if running := [job for job in self._others_of(action) if job.state is JobState.RUNNING]:
                # The run is over, and what a job of it ended as decides whether somebody else ended it.
                await asyncio.gather(*(self._look_at(job) for job in running))
                self._not_yet(jobs, LATER, one_line(error))
            else:
                self._give_up(jobs, one_line(error))
            jobs = []
        except ForgeError as error:
            self._backoff.failed(action.key, error)
            return
        self._backoff.worked(action.key)
        self._settle(jobs, result, action, outcome)
        await self._rows.flush()

    def _others_of(self, action: Requeue) -> list[Job]:
        """The other live jobs of the run."""
        run, asked = (action.forge, action.repo, action.run_id), frozenset(action.jobs)
        rows = self._rows.jobs.values()
        return [job for job in rows if (job.forge, job.repo, job.run_id) == run and job.id not in asked]

    def _spared_of(self, action: Requeue) -> list[str]:
        """What must not run again with the jobs of this action: for good, or as far as is known by now."""
        unsure = [job.forge_job_id for job in self._others_of(action) if job.finished_at is not None]
        return [*self._seen.spared.get(run_key(action.forge, action.repo, action.run_id), ()), *unsure]

    async def _is_partial(self, action: Requeue) -> bool:
        """Whether another job of the run was lost since, or may have been: its machine is gone or going, and what its
        forge says of it may be news."""
        others, now = self._others_of(action), self._clock.now()
        if any(job.state is JobState.LOST or unsettled_until(job, now) is not None for job in others):
            return True
        going = [job for job in others if job.state is JobState.RUNNING and self._is_going(job)]
        return any(await asyncio.gather(*(self._look_at(job) for job in going)))

    def _is_going(self, job: Job) -> bool:
        if job.instance is None or job.finished_at is not None:
            return False
        return job.instance in self._rows.interruptions or job.instance not in self._rows.instances

    async def _look_at(self, job: Job) -> bool:
        """Whether it is over, which is a fact then."""
        seen = await self._read(job)
        if isinstance(seen, ForgeError) or seen.status is not JobStatus.DONE:
            return False
        self._report(JobRead(job=job.id, seen=seen))
        return True

    async def _still_lost(self, jobs: Sequence[Job], action: Requeue) -> list[Job]:
        """Those that the forge does not know to have ended well, or to be gone: a job that succeeded is not run again,
        and the facts settle the others."""
        answers = await asyncio.gather(*(self._read(job) for job in jobs))
        lost, hanging = [], False
        for job, seen in zip(jobs, answers, strict=True):
            if isinstance(seen, JobNotFound):
                self._report(JobRead(job=job.id, seen=None))
            elif isinstance(seen, ForgeError):
                self._backoff.failed(action.key, seen)
                return []
            elif self._is_settled(job, seen):
                self._report(JobRead(job=job.id, seen=seen))
            elif seen.status is JobStatus.RUNNING and self._may_have_finished(job):
                self._not_yet([job], LATER, "its runner said that it finished: its forge may be late to say so too")
            else:
                lost.append(job)
                if seen.status is JobStatus.RUNNING and job.id not in self._seen.hanging:
                    self._seen.hanging[job.id], hanging = None, True
        if hanging:
            # Its forge may end it now: after a crash its cancellation must not look like a person's.
            self._rows.set_setting(HANGING, dump_hanging(self._seen.hanging))
            await self._rows.flush()
        return [job for job in lost if self._rows.jobs.get(job.id) is not None]

    def _may_have_finished(self, job: Job) -> bool:
        """Whether its runner finished a job that its forge calls running. To end it would take its result away, so
        it is left alone until its forge would have given up a runner that is gone."""
        machine = self._rows.ended_runners.get(job.runner_name)
        if machine is None or machine.ending is not EndReason.JOB_DONE or job.lost_at is None:
            return False
        return self._clock.now() < job.lost_at + FINISHED_LATE

    async def _read(self, job: Job) -> ForgeJob | ForgeError:
        try:
            seen: ForgeJob = await self._line.call(job.forge, "get_job", _reading(job))
        except ForgeError as error:
            return error
        return seen

    def _is_settled(self, job: Job, seen: ForgeJob) -> bool:
        if seen.conclusion is Conclusion.SUCCESS or seen.status is JobStatus.QUEUED:
            return True
        was_cancelled = was_cancelled_since(job, seen.conclusion or Conclusion.UNKNOWN, seen.finished_at)
        return was_cancelled and job.id not in self._seen.hanging

    def _patience(self, job: Job, wait: timedelta) -> timedelta:
        """How long to leave a forge alone that will say when its run has ended: each try costs a call per lost job, and
        a run may go on for hours beside them."""
        lost_for = self._clock.now() - job.lost_at if job.lost_at is not None else wait
        return max(wait, min(lost_for / 4, LONGEST_PATIENCE))

    def _not_yet(self, jobs: Sequence[Job], wait: timedelta, why: str) -> None:
        for job in jobs:
            if (current := self._lost(job)) is not None:
                self._rows.amend_job(current, retry_at=self._clock.now() + wait, reason=why)

    def _give_up(self, jobs: Sequence[Job], why: str) -> None:
        """The forge will never run these again, whatever we ask."""
        for job in jobs:
            if (current := self._lost(job)) is not None:
                reason = f"superseded: {why}"
                self._rows.move_job(current, JobState.ABANDONED, reason=reason, finished_at=self._clock.now())
                self._note("requeue", job.id, job.pool or "", why, "refused for good")
                self._count(job, "refused")
                self._not_hanging(job)

    def _settle(self, jobs: Sequence[Job], result: RequeueResult, action: Requeue, outcome: str) -> None:
        for job in jobs:
            if (current := self._lost(job)) is None:
                continue
            if (refusal := result.refused.get(job.forge_job_id)) is not None:
                self._give_up([current], refusal)
                continue
            if job.forge_job_id in result.later:
                why = f"{action.reason}; it goes after others of its run, with which its forge could not run it again"
                self._not_yet([current], timedelta(seconds=result.later_s), why)
                continue
            self._requeued(current, result.successors.get(job.forge_job_id), action, outcome)
        if result.rode_along:
            names = listed(list(result.rode_along), most=NAMED)
            why = f"{len(result.rode_along)} jobs of the run that had failed by themselves run again with it: {names}"
            self._note("ride_along", action.jobs[0], jobs[0].pool or "", why, "asked")
        self._rows.set_setting(REQUEUED, dump_requeued(self._seen.requeued))

    def _requeued(self, job: Job, new: str | None, action: Requeue, outcome: str) -> None:
        self._not_hanging(job)
        successor = job_id(job.forge, new) if new else None
        if successor == job.id:  # its forge put the very same job back into the queue
            self._rows.move_job(
                job, JobState.QUEUED, started_at=None, runner_name="", instance=None, reason=action.reason
            )
            return
        known = self._rows.interruption_of(job.instance) if job.instance is not None else None
        self._rows.move_job(job, JobState.REQUEUED, successor=successor, reason=action.reason)
        heritage, row = heritage_of(job, known), self._rows.jobs.get(successor) if successor is not None else None
        if row is None:
            self._seen.note_requeued(work_key(job.forge, job.repo, job.run_id, job.name), heritage)
        elif row.predecessor is None:
            # A rule or a person was faster than our knowledge of the loss, and it seemed to be a first attempt.
            self._rows.amend_job(row, attempt=heritage.attempt + 1, predecessor=job.id, lost_at=heritage.lost_at)
        self._note("requeue", job.id, job.pool or "", action.reason, outcome)
        self._count(job, "requeued" if outcome == "requeued" else "by_others")

    def _lost(self, job: Job) -> Job | None:
        """The row as it is by now, if it is lost still."""
        current = self._rows.jobs.get(job.id)
        return current if current is not None and current.state is JobState.LOST else None

    def _not_hanging(self, job: Job) -> None:
        if job.id in self._seen.hanging:
            del self._seen.hanging[job.id]
            self._rows.set_setting(HANGING, dump_hanging(self._seen.hanging))

    # ------------------------------------------------------------------ runs that nothing can serve

    async def _cancel_run(self, action: CancelRun) -> None:
        ids = [job.forge_job_id for id_ in action.jobs if (job := self._rows.jobs.get(id_)) is not None]
        try:
            await self._line.call(
                action.forge, "cancel_run", lambda forge: forge.cancel_run(action.repo, action.run_id, ids)
            )
        except NotYet as error:
            self._seen.retry_after[action.key] = self._clock.now() + timedelta(seconds=error.retry_after_s)
            return
        except (JobNotFound, ForgeRefusedForGood) as error:
            outcome = one_line(error)
        except ForgeError as error:
            self._backoff.failed(action.key, error)
            return
        else:
            outcome = "cancelled"
        self._backoff.worked(action.key)
        now = self._clock.now()
        for id_ in action.jobs:
            job = self._rows.jobs.get(id_)
            if job is not None and job.state is JobState.QUEUED and job.pool is None:
                self._rows.move_job(job, JobState.ABANDONED, reason=action.reason, finished_at=now)
                self._note("cancel_run", id_, "", action.reason, outcome)
        await self._rows.flush()

    def _count(self, job: Job, outcome: str) -> None:
        self._metrics.requeues_total.labels(pool=job.pool or "", outcome=outcome).inc()

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
