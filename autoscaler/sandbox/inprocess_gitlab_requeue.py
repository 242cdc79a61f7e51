"""Running lost jobs again at the sandbox's GitLab without HTTP: what `runners.gitlab_requeue` does with calls."""

from collections.abc import Callable, Collection, Sequence

from autoscaler.sandbox.gitlab_model import GitLabRefusal, Job
from autoscaler.sandbox.gitlab_model import JobStatus as Word
from autoscaler.sandbox.gitlab_world import GitLabWorld
from autoscaler.spi import ForgeError, ForgeRefusedForGood, NotYet, RequeueResult
from runners.gitlab_pipelines import Retries, was_cancelled_by_somebody

CANCELING_RETRY_AFTER_S = 30.0
FORCED_RETRY_AFTER_S = 1.0


class Requeues:
    """`now` is the world's time."""

    def __init__(self, world: GitLabWorld, now: Callable[[], float]) -> None:
        self._world = world
        self._now = now

    def ask(self, jobs: Sequence[Job], forge_job_ids: Sequence[str], *, spared: Collection[str]) -> RequeueResult:
        """`jobs` are those of the ids, all of one pipeline. Raises what `spi.Forge.requeue` does."""
        if any(self._successor(job) is None for job in jobs):
            self._check_wanted(jobs[0].pipeline_id, forge_job_ids, spared)
        retries = Retries()
        for id_, job in zip(forge_job_ids, jobs, strict=True):
            try:
                known = self._successor(job)
                successor, is_made = (known, False) if known is not None else self._retry(job)
            except ForgeError as error:
                retries.failed(id_, error)
            else:
                retries.found(id_, successor, is_made=is_made)
        return retries.result(forge_job_ids)

    def _check_wanted(self, pipeline_id: int, forge_job_ids: Sequence[str], spared: Collection[str]) -> None:
        listed = self._world.list_pipeline_jobs(self._world.pipeline(pipeline_id), include_retried=True)
        rows = {str(job.id): self._world.show_job(job, self._now()) for job in listed}
        if was_cancelled_by_somebody(rows, forge_job_ids, spared=spared):
            raise ForgeRefusedForGood(f"somebody cancelled pipeline {pipeline_id} after machines of it were lost")

    def _successor(self, job: Job) -> str | None:
        newest = self._world.pipeline(job.pipeline_id).latest[job.spec.key]
        return str(newest) if newest > job.id else None

    def _retry(self, job: Job) -> tuple[str, bool]:
        now = self._now()
        if job.status in (Word.CREATED, Word.PENDING):
            return str(job.id), False
        if job.status is Word.RUNNING:
            self._world.cancel_job(job.id, now)
        try:
            return str(self._world.retry_job(job.id, now).id), True
        except GitLabRefusal as error:
            if job.status not in (Word.CANCELING, Word.RUNNING):
                raise ForgeRefusedForGood(str(error)) from error
            wait_s = CANCELING_RETRY_AFTER_S
            if job.status is Word.CANCELING:
                self._world.cancel_job(job.id, now, force=True)
                wait_s = FORCED_RETRY_AFTER_S
            raise NotYet(f"job {job.id} is still {job.status}", retry_after_s=wait_s) from error
