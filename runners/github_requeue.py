"""Running lost jobs again. GitHub re-runs only whole attempts of finished runs (specs github-rest B7).

One lost job: that job is re-run. Several: the failed jobs of the run, once, since a second re-run must wait for
the new attempt to end. Before that the attempt is compared, because GitHub would re-run a newer attempt as gladly.
"""

from collections.abc import Sequence

from autoscaler.spi import AlreadyRequeued, ForgeRefused, JobNotFound, NotYet, RequeueResult
from runners.github_errors import Answer, Purpose, refusal
from runners.github_payloads import JobPayload, JobsPagePayload, RunPayload
from runners.github_rest import Rest, parsed

# The run's end is announced by a webhook; this is how long a lost one may cost.
_ASK_AGAIN_S = 20.0

_READ = Purpose(does="read a run", permission="repository permission Actions: read")


class Requeuer:
    """Asks GitHub to run lost jobs again."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    async def requeue(self, repo: str, run_id: str, job_ids: Sequence[str]) -> RequeueResult:
        """Raises NotYet while the run runs, AlreadyRequeued when a newer attempt exists, JobNotFound."""
        if not job_ids:
            return RequeueResult(successors={})
        purpose = Purpose(
            does=f"run lost jobs of run {run_id} in {repo} again",
            permission="repository permission Actions: write",
            is_write=True,
        )
        if len(job_ids) == 1:
            answer = await self._post(repo, f"jobs/{job_ids[0]}/rerun", purpose)
        else:
            await self._check_attempt(repo, run_id, job_ids[0])
            answer = await self._post(repo, f"runs/{run_id}/rerun-failed-jobs", purpose)
            if answer.status == 403 and await self._has_bad_end(answer, repo, job_ids):
                # Reported of runs whose lost jobs all ended as cancelled; GitHub takes a re-run of the whole run.
                answer = await self._post(repo, f"runs/{run_id}/rerun", purpose)
        if answer.status in (201, 202):
            return RequeueResult(successors={})
        if answer.status == 404:
            raise JobNotFound(f"{repo} has no run {run_id} with job {job_ids[0]}")
        await self._explain(answer, repo, run_id, job_ids[0])
        raise refusal(answer, purpose)

    async def _has_bad_end(self, answer: Answer, repo: str, job_ids: Sequence[str]) -> bool:
        """Whether GitHub sees no failed jobs although one of ours did not end well: then all were cancelled."""
        if "cannot be retried" not in answer.message.lower():
            return False
        for job_id in job_ids:
            path = f"/repos/{repo}/actions/jobs/{job_id}"
            job = await self._rest.read(path, JobPayload, account=repo.partition("/")[0], purpose=_READ)
            if job is not None and job.conclusion not in ("success", "skipped", "neutral"):
                return True
        return False

    async def _explain(self, answer: Answer, repo: str, run_id: str, job_id: str) -> None:
        """Raise what GitHub's text means; return where it is a plain refusal."""
        text = answer.message.lower()
        if answer.status != 403:
            return
        if "already running" in text or "only jobs from the current attempt" in text:
            # Also said when somebody else has re-run it: only the attempts tell.
            await self._check_attempt(repo, run_id, job_id)
            raise NotYet(f"run {run_id} of {repo}: {answer.message}", retry_after_s=_ASK_AGAIN_S)
        if "over a month ago" in text or "cannot be retried" in text:
            raise ForgeRefused(f"GitHub does not re-run run {run_id} of {repo} any more: {answer.message}")

    async def _check_attempt(self, repo: str, run_id: str, job_id: str) -> None:
        """Raise AlreadyRequeued if the run is in a newer attempt than the job, NotYet if it still runs."""
        account = repo.partition("/")[0]
        job = await self._rest.read(f"/repos/{repo}/actions/jobs/{job_id}", JobPayload, account=account, purpose=_READ)
        run = await self._rest.read(f"/repos/{repo}/actions/runs/{run_id}", RunPayload, account=account, purpose=_READ)
        if job is None or run is None:
            raise JobNotFound(f"{repo} has no run {run_id} with job {job_id}")
        if (run.run_attempt or 1) > (job.run_attempt or 1):
            successor = await self._successor_of(job, repo, run_id)
            raise AlreadyRequeued(f"run {run_id} of {repo} is in attempt {run.run_attempt}", successor=successor)
        if run.status != "completed":
            raise NotYet(f"run {run_id} of {repo} is {run.status}", retry_after_s=_ASK_AGAIN_S)

    async def _successor_of(self, job: JobPayload, repo: str, run_id: str) -> str:
        """The id of the job of this name in the newest attempt, "" if it is not there (yet)."""
        pages = await self._rest.pages(
            f"/repos/{repo}/actions/runs/{run_id}/jobs?per_page=100",
            lambda answer: parsed(JobsPagePayload, answer, _READ).jobs,
            account=repo.partition("/")[0],
            purpose=_READ,
        )
        newer = [
            other
            for page in pages
            for other in page.value
            if other.name == job.name and (other.run_attempt or 1) > (job.run_attempt or 1)
        ]
        return str(max(newer, key=lambda other: other.run_attempt or 1).id) if newer else ""

    async def _post(self, repo: str, path: str, purpose: Purpose) -> Answer:
        account = repo.partition("/")[0]
        return await self._rest.call("POST", f"/repos/{repo}/actions/{path}", account=account, purpose=purpose, body={})
