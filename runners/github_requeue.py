"""Running lost jobs again, and ending runs, at GitHub. What to do is decided by `github_reruns`; this asks and calls.

One lost job: that job is re-run. Several, or one whose siblings GitHub cancelled because of it: the failed jobs of the
run, once. Before that the attempts are compared, because GitHub would re-run a newer attempt as gladly. A run of which
only dead jobs are left is cancelled first, and ended by force if that does not help.
"""

from collections.abc import Collection, Sequence

from autoscaler.spi import Clock, ForgeRefusedForGood, JobNotFound, NotYet, RequeueResult
from runners.github_errors import Answer, Purpose, refusal
from runners.github_payloads import JobPayload, JobsPagePayload, RunPayload
from runners.github_reruns import ASK_AGAIN_S, Endings, EndRun, Rerun, check_nothing_else_lives, next_step, not_dead_yet
from runners.github_rest import Rest, parsed

_READ = Purpose(does="read a run", permission="repository permission Actions: read")
_WRITE = "repository permission Actions: write"


class Requeuer:
    """Asks GitHub to run lost jobs again, and to end runs."""

    def __init__(self, rest: Rest, clock: Clock) -> None:
        self._rest = rest
        self._clock = clock
        self._endings = Endings()

    async def requeue(
        self,
        repo: str,
        run_id: str,
        job_ids: Sequence[str],
        *,
        with_failures: bool = True,
        spared: Collection[str] = (),
    ) -> RequeueResult:
        """Raises NotYet while the run runs, AlreadyRequeued when newer attempts ran all of them, JobNotFound."""
        if not job_ids:
            return RequeueResult(successors={})
        account = repo.partition("/")[0]
        path = f"/repos/{repo}/actions/runs/{run_id}"
        run = await self._rest.read(path, RunPayload, account=account, purpose=_READ)
        listed = await self._listed(repo, run_id) if run is not None else []
        step = next_step(repo, run, listed, job_ids, with_failures=with_failures, spared=spared)
        if isinstance(step, EndRun):
            raise await self._end(repo, run_id, step)
        self._endings.forget(run_id)
        await self._rerun(repo, run_id, step)
        return RequeueResult(successors=step.successors, later=step.later, rode_along=step.rode_along)

    async def cancel_run(self, repo: str, run_id: str, job_ids: Collection[str]) -> None:
        """A run that is over is success. Raises NotYet while another job of it is alive: GitHub's own runners, or
        somebody else's, may run it."""
        account, path = repo.partition("/")[0], f"/repos/{repo}/actions/runs/{run_id}"
        run = await self._rest.read(path, RunPayload, account=account, purpose=_READ)
        if run is None:
            raise JobNotFound(f"{repo} has no run {run_id}")
        if run.status == "completed":
            return
        check_nothing_else_lives(repo, run_id, await self._listed(repo, run_id), job_ids)
        purpose = Purpose(does=f"cancel run {run_id} in {repo}", permission=_WRITE, is_write=True)
        answer = await self._post(repo, f"runs/{run_id}/cancel", purpose)
        if answer.status == 404:
            raise JobNotFound(f"{repo} has no run {run_id}")
        if answer.status not in (202, 409):
            raise refusal(answer, purpose)

    async def _end(self, repo: str, run_id: str, step: EndRun) -> NotYet:
        now = self._clock.monotonic()
        call = self._endings.due(run_id, step.attempt, now)
        if call:
            purpose = Purpose(does=f"end run {run_id} in {repo}", permission=_WRITE, is_write=True)
            answer = await self._post(repo, f"runs/{run_id}/{call}", purpose)
            # It ended meanwhile (409), or this server cannot end runs by force (404): GitHub's own time-out will.
            if answer.status not in (202, 409) and not (call == "force-cancel" and answer.status == 404):
                raise refusal(answer, purpose)
            self._endings.asked(run_id, now)
        return not_dead_yet(repo, run_id, step, call)

    async def _rerun(self, repo: str, run_id: str, step: Rerun) -> None:
        purpose = Purpose(
            does=f"run lost jobs of run {run_id} in {repo} again",
            permission=_WRITE,
            is_write=True,
        )
        path = f"jobs/{step.job}/rerun" if step.job is not None else f"runs/{run_id}/rerun-failed-jobs"
        answer = await self._post(repo, path, purpose)
        if answer.status == 403 and step.were_all_cancelled and "cannot be retried" in answer.message.lower():
            answer = await self._post(repo, f"runs/{run_id}/rerun", purpose)
        if answer.status in (201, 202):
            return
        if answer.status == 404:
            raise JobNotFound(f"{repo} has no run {run_id} with job {step.job or ''}")
        if answer.status == 403 and _tells_of_attempts(answer.message.lower()):
            raise NotYet(f"run {run_id} of {repo}: {answer.message}", retry_after_s=ASK_AGAIN_S)
        if answer.status == 403 and _is_for_good(answer.message.lower()):
            raise ForgeRefusedForGood(f"GitHub does not re-run run {run_id} of {repo} any more: {answer.message}")
        raise refusal(answer, purpose)

    async def _listed(self, repo: str, run_id: str) -> list[JobPayload]:
        """The jobs of all attempts: without the filter GitHub lists what the newest one ran, and one before that may
        have run a lost job again. Looked at again and again while the run runs: unchanged pages cost nothing."""
        pages = await self._rest.pages(
            f"/repos/{repo}/actions/runs/{run_id}/jobs?filter=all&per_page=100",
            lambda answer: parsed(JobsPagePayload, answer, _READ).jobs,
            account=repo.partition("/")[0],
            purpose=_READ,
            remembered=True,
        )
        return [job for page in pages for job in page.value]

    async def _post(self, repo: str, path: str, purpose: Purpose) -> Answer:
        account = repo.partition("/")[0]
        return await self._rest.call("POST", f"/repos/{repo}/actions/{path}", account=account, purpose=purpose, body={})


def _tells_of_attempts(text: str) -> bool:
    return "already running" in text or "only jobs from the current attempt" in text


def _is_for_good(text: str) -> bool:
    return "over a month ago" in text or "cannot be retried" in text
