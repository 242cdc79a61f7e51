"""Running lost jobs again. GitHub re-runs only whole attempts of finished runs (specs github-rest B7).

One lost job: that job is re-run. Several: the failed jobs of the run, once, since a second re-run must wait for
the new attempt to end. Before that the attempt is compared, because GitHub would re-run a newer attempt as gladly.
A newer attempt that somebody else began keeps the jobs that it does not run again as they were: of those, lost ones
are lost still, and are run again once it is over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoscaler.spi import AlreadyRequeued, ForgeRefusedForGood, JobNotFound, NotYet, RequeueResult
from runners.github_errors import Answer, Purpose, refusal
from runners.github_payloads import JobPayload, JobsPagePayload, RunPayload
from runners.github_rest import Rest, parsed

# The run's end is announced by a webhook; this is how long a lost one may cost.
_ASK_AGAIN_S = 20.0

_READ = Purpose(does="read a run", permission="repository permission Actions: read")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Newest:
    """Lost jobs in the newest attempt of their run. `kept` were not run again: by id, the id as a job of this attempt,
    "" where it is none and so cannot be re-run alone. `successors` are the new ids of those that were."""

    kept: Mapping[str, str]
    successors: Mapping[str, str]


class Requeuer:
    """Asks GitHub to run lost jobs again."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    async def requeue(self, repo: str, run_id: str, job_ids: Sequence[str]) -> RequeueResult:
        """Raises NotYet while the run runs, AlreadyRequeued when a newer attempt ran all of them, JobNotFound."""
        if not job_ids:
            return RequeueResult(successors={})
        purpose = Purpose(
            does=f"run lost jobs of run {run_id} in {repo} again",
            permission="repository permission Actions: write",
            is_write=True,
        )
        successors: Mapping[str, str] = {}
        if len(job_ids) == 1:
            answer = await self._post(repo, f"jobs/{job_ids[0]}/rerun", purpose)
            if _tells_of_attempts(answer):
                # Also said when somebody else has re-run it: only the attempts tell.
                newest = await self._newest(repo, run_id, job_ids)
                if newest is None:
                    raise NotYet(f"run {run_id} of {repo}: {answer.message}", retry_after_s=_ASK_AGAIN_S)
                answer = await self._rerun_kept(repo, run_id, newest, purpose)
        else:
            newest = await self._newest(repo, run_id, job_ids) or _Newest(
                kept=dict.fromkeys(job_ids, ""), successors={}
            )
            successors = newest.successors
            answer = await self._rerun_kept(repo, run_id, newest, purpose)
        if answer.status in (201, 202):
            return RequeueResult(successors=successors)
        if answer.status == 404:
            raise JobNotFound(f"{repo} has no run {run_id} with job {job_ids[0]}")
        if _tells_of_attempts(answer):
            raise NotYet(f"run {run_id} of {repo}: {answer.message}", retry_after_s=_ASK_AGAIN_S)
        if answer.status == 403 and _is_for_good(answer.message.lower()):
            raise ForgeRefusedForGood(f"GitHub does not re-run run {run_id} of {repo} any more: {answer.message}")
        raise refusal(answer, purpose)

    async def _rerun_kept(self, repo: str, run_id: str, newest: _Newest, purpose: Purpose) -> Answer:
        if len(newest.kept) == 1 and (alone := next(iter(newest.kept.values()))):
            return await self._post(repo, f"jobs/{alone}/rerun", purpose)
        answer = await self._post(repo, f"runs/{run_id}/rerun-failed-jobs", purpose)
        if answer.status == 403 and await self._has_bad_end(answer, repo, list(newest.kept)):
            # Reported of runs whose lost jobs all ended as cancelled; GitHub takes a re-run of the whole run.
            answer = await self._post(repo, f"runs/{run_id}/rerun", purpose)
        return answer

    async def _has_bad_end(self, answer: Answer, repo: str, job_ids: Sequence[str]) -> bool:
        """Whether GitHub sees no failed jobs although one of ours did not end well: then all were cancelled."""
        if "cannot be retried" not in answer.message.lower():
            return False
        for job_id in job_ids:
            job = await self._job(repo, job_id)
            if job is not None and job.conclusion not in ("success", "skipped", "neutral"):
                return True
        return False

    async def _newest(self, repo: str, run_id: str, job_ids: Sequence[str]) -> _Newest | None:
        """What became of lost jobs by the end of the newest attempt; None if theirs is the newest.

        Raises AlreadyRequeued if newer ones run or ran all of them, NotYet while the newest one runs.
        """
        account = repo.partition("/")[0]
        run = await self._rest.read(f"/repos/{repo}/actions/runs/{run_id}", RunPayload, account=account, purpose=_READ)
        jobs = [await self._job(repo, job_id) for job_id in job_ids]
        lost = [job for job in jobs if job is not None]
        if run is None or len(lost) < len(jobs):
            raise JobNotFound(f"{repo} has no run {run_id} with jobs {', '.join(job_ids)}")
        attempt = run.run_attempt or 1
        is_newer = attempt > min(job.run_attempt or 1 for job in lost)
        newest = _compared(lost, await self._listed(repo, run_id), attempt=attempt) if is_newer else None
        if newest is not None and not newest.kept:
            successor = newest.successors[job_ids[0]]
            raise AlreadyRequeued(f"run {run_id} of {repo} is in attempt {attempt}", successor=successor)
        if run.status != "completed":
            raise NotYet(f"attempt {attempt} of run {run_id} of {repo} is {run.status}", retry_after_s=_ASK_AGAIN_S)
        return newest

    async def _job(self, repo: str, job_id: str) -> JobPayload | None:
        path = f"/repos/{repo}/actions/jobs/{job_id}"
        return await self._rest.read(path, JobPayload, account=repo.partition("/")[0], purpose=_READ)

    async def _listed(self, repo: str, run_id: str) -> list[JobPayload]:
        """The jobs of all attempts: without the filter GitHub lists what the newest one ran, and one before that may
        have run a lost job again."""
        pages = await self._rest.pages(
            f"/repos/{repo}/actions/runs/{run_id}/jobs?filter=all&per_page=100",
            lambda answer: parsed(JobsPagePayload, answer, _READ).jobs,
            account=repo.partition("/")[0],
            purpose=_READ,
        )
        return [job for page in pages for job in page.value]

    async def _post(self, repo: str, path: str, purpose: Purpose) -> Answer:
        account = repo.partition("/")[0]
        return await self._rest.call("POST", f"/repos/{repo}/actions/{path}", account=account, purpose=purpose, body={})


def _tells_of_attempts(answer: Answer) -> bool:
    text = answer.message.lower()
    return answer.status == 403 and ("already running" in text or "only jobs from the current attempt" in text)


def _is_for_good(text: str) -> bool:
    return "over a month ago" in text or "cannot be retried" in text


def _compared(lost: Sequence[JobPayload], listed: Sequence[JobPayload], *, attempt: int) -> _Newest:
    kept, successors = {}, {}
    for job in lost:
        same = [other for other in listed if other.name == job.name]
        newer = [other for other in same if _ran_after(other, job)]
        if newer:
            successors[str(job.id)] = str(max(newer, key=lambda other: other.run_attempt or 1).id)
        else:
            # A job that an attempt keeps may be listed as its own, with a new id, the old results and the old runner.
            own = [other.id for other in same if (other.run_attempt or 1) == attempt and _is_copy(other, job)]
            kept[str(job.id)] = str(max(own)) if own else ""
    return _Newest(kept=kept, successors=successors)


def _ran_after(other: JobPayload, job: JobPayload) -> bool:
    """Whether it was made by a newer attempt, and is not one from before that the attempt kept."""
    if (other.run_attempt or 1) <= (job.run_attempt or 1):
        return False
    return other.started_at is None or job.completed_at is None or other.started_at >= job.completed_at


def _is_copy(other: JobPayload, job: JobPayload) -> bool:
    return other.id == job.id or (bool(other.runner_name) and other.runner_name == job.runner_name)
