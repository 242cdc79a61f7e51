"""Owns running a lost job again, by the steps of specs "GitLab", section 3.5.

Jobs of one pipeline are read in one listing, with the retried ones. Per job:

    a newer job of the same name ........ somebody requeued it: that is the successor
    created .. pending .................. it is back in the queue by itself
    running ............................. cancel (GitLab notices a dead runner only after an hour), then retry
    canceling, success, failed, canceled  retry

A retry is refused by GitLab when the job was retried already, so two can never run through one old job. Hence no
grace period before it: losing the race against the user's own `retry:` shows as that refusal, and the successor is
looked up. The same look-up settles a retry without an answer.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from autoscaler.spi import (
    ForgeError,
    ForgeOutcomeUnknown,
    ForgeRefused,
    ForgeRefusedForGood,
    JobNotFound,
    JobStatus,
    NotYet,
    RequeueResult,
)
from runners.gitlab_errors import Absent, Forbidden, NotRetryable, Operation
from runners.gitlab_jobs import status_of
from runners.gitlab_pipelines import Retries, check_nothing_else_lives, was_cancelled_by_somebody
from runners.gitlab_rest import Rest, Row
from runners.gitlab_scopes import project_path

_LIST = Operation(doing="list a pipeline's jobs", needs="scope api and the role Reporter in the project")
_CANCEL = Operation(doing="cancel a lost job", needs="scope api and the role Developer in the project", is_write=True)
_FORCE = Operation(
    doing="cancel a lost job by force", needs="scope api and the role Maintainer in the project", is_write=True
)
_END = Operation(
    doing="cancel a pipeline that no runner can serve",
    needs="scope api and the role Developer in the project",
    is_write=True,
)
_RETRY = Operation(
    doing="retry a job",
    needs="scope api and the role Developer in the project (for a protected branch: the right to push or merge there)",
    is_write=True,
)
CANCELING_RETRY_AFTER_S = 30.0
FORCED_RETRY_AFTER_S = 1.0


class Requeuer:
    """Retries of one forge."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    async def requeue(
        self, repo: str, run_id: str, forge_job_ids: Sequence[str], *, spared: Collection[str] = ()
    ) -> RequeueResult:
        """Run each job again that nobody did. Raises AlreadyRequeued where that was none of them, and JobNotFound,
        NotYet and the like where it holds for all of them.

        May be repeated after any failure: what was retried before is found as a successor.
        """
        pipeline = await self._pipeline(repo, run_id)
        is_open = any(_successor(pipeline, job_id) is None for job_id in forge_job_ids)
        if is_open and was_cancelled_by_somebody(pipeline, forge_job_ids, spared=spared):
            raise ForgeRefusedForGood(f"somebody cancelled pipeline {run_id} of {repo} after machines of it were lost")
        retries = Retries()
        for job_id in forge_job_ids:
            try:
                known, was_ours = await self._run_again(repo, run_id, pipeline, job_id)
            except ForgeError as error:
                if not retries.failed(job_id, error):
                    break
            else:
                retries.found(job_id, known, is_made=was_ours)
        return retries.result(forge_job_ids)

    async def end_job(self, repo: str, job_id: str) -> None:
        """Cancel a job whose runner is dead: GitLab notices that after an hour. Raises JobNotFound."""
        try:
            row = await self._rest.post(f"{project_path(repo)}/jobs/{job_id}/cancel", _CANCEL)
        except Absent as error:
            raise JobNotFound(str(error)) from error
        except ForgeRefused:
            return  # It ended meanwhile.
        if row.get("status") == "canceling":
            await self._force(repo, job_id)

    async def cancel_run(self, repo: str, run_id: str, job_ids: Collection[str]) -> None:
        """GitLab says yes whatever state the pipeline is in. Raises JobNotFound, and NotYet while another job of it is
        alive, which somebody else's runner may run."""
        check_nothing_else_lives(await self._pipeline(repo, run_id), run_id, job_ids)
        try:
            await self._rest.post(f"{project_path(repo)}/pipelines/{run_id}/cancel", _END)
        except Absent as error:
            raise JobNotFound(str(error)) from error

    async def _pipeline(self, repo: str, run_id: str) -> Mapping[str, Row]:
        """All jobs of a pipeline by id, retried ones included."""
        path = f"{project_path(repo)}/pipelines/{run_id}/jobs"
        try:
            rows = await self._rest.list(path, _LIST, {"include_retried": "true"})
        except Absent as error:
            raise JobNotFound(str(error)) from error
        return {str(row["id"]): row for row in rows if isinstance(row.get("id"), int)}

    async def _run_again(self, repo: str, run_id: str, pipeline: Mapping[str, Row], job_id: str) -> tuple[str, bool]:
        """The successor's id, and whether this call made it."""
        if job_id not in pipeline:
            raise JobNotFound(f"{self._rest.name}: pipeline {run_id} of {repo} has no job {job_id}")
        known = _successor(pipeline, job_id)
        return (known, False) if known is not None else await self._retry(repo, run_id, pipeline[job_id])

    async def _retry(self, repo: str, run_id: str, row: Row) -> tuple[str, bool]:
        """The successor's id, and whether this call made it."""
        job_id, path = str(row["id"]), f"{project_path(repo)}/jobs/{row['id']}"
        match status_of(str(row.get("status"))):
            case JobStatus.CREATED | JobStatus.QUEUED:
                return job_id, False
            case JobStatus.RUNNING if row.get("status") == "running":
                with contextlib.suppress(ForgeRefused):  # It ended meanwhile: the retry will tell.
                    await self._rest.post(f"{path}/cancel", _CANCEL)
        try:
            return _new_id(await self._rest.post(f"{path}/retry", _RETRY)), True
        except Absent as error:
            raise JobNotFound(str(error)) from error
        except (NotRetryable, ForgeOutcomeUnknown) as error:
            return await self._settle(repo, run_id, job_id, error)

    async def _settle(self, repo: str, run_id: str, job_id: str, error: ForgeError) -> tuple[str, bool]:
        """What became of a retry that was refused, or had no answer: its successor tells."""
        pipeline = await self._pipeline(repo, run_id)
        successor = _successor(pipeline, job_id)
        if successor is not None:
            return successor, isinstance(error, ForgeOutcomeUnknown)
        status = str(pipeline.get(job_id, {}).get("status"))
        if not isinstance(error, NotRetryable):
            raise error
        if status not in ("canceling", "running"):
            raise ForgeRefusedForGood(str(error)) from error
        is_forced = status == "canceling" and await self._force(repo, job_id)
        wait_s = FORCED_RETRY_AFTER_S if is_forced else CANCELING_RETRY_AFTER_S
        raise NotYet(f"{self._rest.name}: job {job_id} of {repo} is still {status}", retry_after_s=wait_s) from error

    async def _force(self, repo: str, job_id: str) -> bool:
        """End a `canceling` job whose runner is dead; whether that was done. Older versions need it, and it needs
        Maintainer: without that GitLab ends the job by itself, later."""
        try:
            await self._rest.post(f"{project_path(repo)}/jobs/{job_id}/cancel", _FORCE, query={"force": "true"})
        except (Forbidden, ForgeRefused):
            return False
        return True


def _successor(pipeline: Mapping[str, Row], job_id: str) -> str | None:
    """The newest job of the same name that came after this one."""
    name = pipeline[job_id].get("name") if job_id in pipeline else None
    newer = [int(other) for other, row in pipeline.items() if row.get("name") == name and int(other) > int(job_id)]
    return str(max(newer)) if newer else None


def _new_id(row: Mapping[str, Any]) -> str:
    if not isinstance(row.get("id"), int):
        raise ForgeOutcomeUnknown("the answer to a retry has no job id")
    return str(row["id"])
