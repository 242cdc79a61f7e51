"""Telling people at GitHub what happened to a job: a check run of our own, or a commit status.

A GitHub App writes a check run on the job's commit: neutral, so that it blocks no merge, with the whole text, and with
the telling's key as its `external_id`. Only Apps may do that (specs github-rest B10). With a token it is a commit
status: of its four states only `success` neither blocks a merge nor turns the commit red, and the words say what it
is; its key is the fragment of its address. Either is looked for before it is written, among the newest hundred; only
what we wrote ourselves counts, as any workflow can write the like.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from autoscaler.spi import ForgeRefusedForGood, ForgeUnauthorized, JobNotFound, Telling
from runners.github_auth import Auth
from runners.github_budgets import CONTENT, Budgets
from runners.github_errors import Answer, Purpose, refusal
from runners.github_payloads import (
    CheckRunPayload,
    CheckRunsPagePayload,
    JobPayload,
    StatusesPayload,
    StatusPayload,
    UserPayload,
)
from runners.github_rest import Rest, parsed

CHECKS = "repository permission Checks: write"
STATUSES = "repository permission Commit statuses: write"

_DESCRIPTION_LIMIT = 140
_TITLE_LIMIT = 255
_WHO = Purpose(does="learn whose token it is", permission="no permission")
_READ = Purpose(does="read a job", permission="repository permission Actions: read")


class Teller:
    """Writes tellings onto commits. `web_url` is where people see repositories."""

    def __init__(self, rest: Rest, *, auth: Auth, budgets: Budgets, web_url: str) -> None:
        self._rest = rest
        self._auth = auth
        self._budgets = budgets
        self._web_url = web_url
        self._user_id: int | None = None

    async def tell(self, telling: Telling) -> None:
        """Raises JobNotFound and ForgeRefusedForGood where nobody can be told, ForgeUnauthorized without the
        permission, RateLimited where others need the budget more."""
        account = telling.repo.partition("/")[0]
        permission = CHECKS if self._auth.is_app else STATUSES
        does = f"tell people of {telling.repo} that {telling.job_name} was interrupted"
        self._budgets.admit_content(self._auth.budget_of(account), Purpose(does=does, permission=permission))
        sha = telling.commit or await self._commit_of(telling)
        looking = Purpose(does=f"look whether people of {telling.repo} were told", permission=permission)
        writing = Purpose(does=does, permission=permission, is_write=True)
        if self._auth.is_app:
            await self._check_run(telling, sha, looking, writing)
        else:
            await self._status(telling, sha, looking, writing)

    async def problem(self, account: str) -> str:
        """Why people of an account cannot be told, with the remedy; "" where they can, as far as anybody knows: what a
        token may do shows only when it does it."""
        if not self._auth.is_app:
            return ""
        await self._auth.header(account)
        granted = self._auth.permissions_of(account)
        if granted is None or granted.get("checks") == "write":
            return ""
        has = f"has checks: {granted['checks']}" if "checks" in granted else "has no access to checks"
        return f"the App {has} at {account}: grant {CHECKS} in the App's settings, and accept it at {account}"

    async def _commit_of(self, telling: Telling) -> str:
        path = f"/repos/{telling.repo}/actions/jobs/{telling.forge_job_id}"
        job = await self._rest.read(path, JobPayload, account=telling.repo.partition("/")[0], purpose=_READ)
        if job is None:
            raise JobNotFound(f"{telling.repo} has no job {telling.forge_job_id}")
        if not job.head_sha:
            raise ForgeRefusedForGood(f"GitHub does not say which commit job {telling.forge_job_id} tests")
        return job.head_sha

    async def _check_run(self, telling: Telling, sha: str, looking: Purpose, writing: Purpose) -> None:
        name = f"Runner interrupted: {telling.job_name}"
        query = f"check_name={quote(name, safe='')}&filter=all&per_page=100"
        answer = await self._look(telling, f"commits/{sha}/check-runs?{query}", looking)
        known = parsed(CheckRunsPagePayload, answer, looking).check_runs
        if any(one.external_id == telling.key and self._is_ours(one) for one in known):
            return
        body: dict[str, Any] = {
            "name": name,
            "head_sha": sha,
            "status": "completed",
            "conclusion": "neutral",
            "external_id": telling.key,
            "output": {"title": telling.title[:_TITLE_LIMIT], "summary": telling.text},
        }
        if telling.url:
            body["details_url"] = telling.url
        await self._write(telling, "check-runs", body, writing)

    def _is_ours(self, check_run: CheckRunPayload) -> bool:
        """Any App can write our key, the one of workflows as well: it would keep people from being told."""
        return check_run.app is not None and self._auth.wrote(check_run.app.id, check_run.app.client_id)

    async def _status(self, telling: Telling, sha: str, looking: Purpose, writing: Purpose) -> None:
        answer = await self._look(telling, f"commits/{sha}/statuses?per_page=100", looking)
        page = f"{self._web_url}/{telling.repo}/actions/runs/{telling.run_id}/job/{telling.forge_job_id}"
        mark = f"#autoscaler-{quote(telling.key, safe='')}"
        known = parsed(StatusesPayload, answer, looking).root
        marked = [one for one in known if (one.target_url or "").endswith(mark)]
        if marked and await self._set_any(marked, telling):
            return
        body = {
            "state": "success",
            "context": f"autoscaler/interrupted: {telling.job_name}",
            "description": telling.title[:_DESCRIPTION_LIMIT],
            "target_url": (telling.url or page) + mark,
        }
        await self._write(telling, f"statuses/{sha}", body, writing)

    async def _set_any(self, statuses: Sequence[StatusPayload], telling: Telling) -> bool:
        """Whether one of them is ours; so are all where GitHub does not say who we are."""
        if self._user_id is None:
            account = telling.repo.partition("/")[0]
            answer = await self._rest.call("GET", "/user", account=account, purpose=_WHO, is_listing=True)
            if answer.status != 200:
                return True
            self._user_id = parsed(UserPayload, answer, _WHO).id
        return any(one.creator is not None and one.creator.id == self._user_id for one in statuses)

    async def _look(self, telling: Telling, path: str, purpose: Purpose) -> Answer:
        account = telling.repo.partition("/")[0]
        answer = await self._rest.call(
            "GET", f"/repos/{telling.repo}/{path}", account=account, purpose=purpose, is_listing=True
        )
        if answer.status != 200:
            raise _refused(answer, purpose)
        return answer

    async def _write(self, telling: Telling, path: str, body: dict[str, Any], purpose: Purpose) -> None:
        account = telling.repo.partition("/")[0]
        answer = await self._rest.call(
            "POST", f"/repos/{telling.repo}/{path}", account=account, purpose=purpose, body=body, family=CONTENT
        )
        if answer.status != 201:
            raise _refused(answer, purpose)


def _refused(answer: Answer, purpose: Purpose) -> Exception:
    """A repository or commit that is gone, or one that it may not be written onto, stays so; a permission may come."""
    if answer.status in (404, 410, 422):
        what = answer.message or "there is no such repository or commit, or it is not shown to us"
        return ForgeRefusedForGood(f"GitHub cannot {purpose.does}: {answer.status} {what}")
    if answer.status == 403:
        said = f"GitHub refused to {purpose.does}: 403 {answer.message or '(no message)'}"
        return ForgeUnauthorized(f"{said}. Grant {purpose.permission}.")
    return refusal(answer, purpose)
