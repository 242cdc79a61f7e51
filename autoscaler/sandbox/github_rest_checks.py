"""REST handlers of the sandbox's GitHub API for what is written onto commits: check runs and statuses.

Only an installation of the App writes check runs, and only with the permission; a token writes statuses. The check runs
of jobs are listed with the others, as GitHub lists them.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from autoscaler.sandbox import github_payloads as payloads
from autoscaler.sandbox.github_auth import AppIdentity
from autoscaler.sandbox.github_http import CALLER, answer, integer, json_body, page, urls
from autoscaler.sandbox.github_model import CheckRun, CommitStatus, GitHubError, Job, Json
from autoscaler.sandbox.github_rest_actions import visible_repo
from autoscaler.sandbox.github_world import GitHubWorld

ACTIONS_APP = 15368
NOT_PERMITTED = "Resource not accessible by integration"


class ChecksApi:
    """`permissions` are what installations of the App were granted."""

    def __init__(
        self,
        world: GitHubWorld,
        *,
        app: AppIdentity | None,
        clock: Callable[[], float],
        permissions: Mapping[str, str],
    ) -> None:
        self._world = world
        self._app = app
        self._clock = clock
        self._permissions = permissions

    def routes(self, prefix: str) -> list[web.RouteDef]:
        repo = prefix + "/repos/{owner}/{repo}"
        return [
            web.post(repo + "/check-runs", self.create_check_run),
            web.get(repo + "/check-runs/{check_run_id}", self.get_check_run),
            web.get(repo + "/commits/{sha}/check-runs", self.list_check_runs),
            web.post(repo + "/statuses/{sha}", self.create_status),
            web.get(repo + "/commits/{sha}/statuses", self.list_statuses),
            web.get(repo + "/statuses/{sha}", self.list_statuses),  # an older name of the same, which PyGithub uses
            web.get(repo + "/commits/{sha}", self.get_commit),
            web.get(prefix + "/user", self.get_user),
        ]

    async def create_check_run(self, request: web.Request) -> web.Response:
        repo, body = visible_repo(self._world, request), await json_body(request)
        self._check(request, "checks", "write")
        if request[CALLER].kind != "installation":
            raise GitHubError(403, "You must authenticate via a GitHub App.")
        output = body.get("output") or {}
        texts: dict[str, Any] = {key: body.get(key) or "" for key in ("name", "head_sha", "external_id", "details_url")}
        texts |= {key: output.get(key) or "" for key in ("title", "summary")} if isinstance(output, dict) else {}
        if not all(isinstance(text, str) for text in texts.values()) or (output and not texts.get("summary")):
            raise GitHubError(422, "Invalid request.")
        made = self._world.checks.add_check_run(
            repo.full_name,
            texts.pop("head_sha"),
            status=str(body.get("status") or "queued"),
            conclusion=body.get("conclusion"),
            now=self._clock(),
            **texts,
        )
        return answer(201, self._shown(made, urls(request)))

    async def get_check_run(self, request: web.Request) -> web.Response:
        repo, number = visible_repo(self._world, request), integer(request, "check_run_id")
        self._check(request, "checks", "read")
        for made in self._world.checks.everything():
            if (made.repo, made.id) == (repo.full_name, number):
                return answer(200, self._shown(made, urls(request)))
        job = self._world.job(number)
        if job.repo != repo.full_name:
            raise GitHubError(404, "Not Found")
        return answer(200, self._of_job(job, urls(request)))

    async def list_check_runs(self, request: web.Request) -> web.Response:
        """`latest` (the default) lists the newest one of each name."""
        repo, sha = visible_repo(self._world, request), request.match_info["sha"]
        self._check(request, "checks", "read")
        where, query = urls(request), request.query
        rows = [self._shown(made, where) for made in self._world.checks.check_runs(repo.full_name, sha)]
        jobs = [job for run in self._world.runs_of(repo.full_name) if run.head_sha == sha for job in run.history]
        rows += [self._of_job(job, where) for job in reversed(jobs)]
        rows = [row for row in rows if query.get("check_name", row["name"]) == row["name"]]
        rows = [row for row in rows if query.get("status", row["status"]) == row["status"]]
        if query.get("filter", "latest") == "latest":
            rows = list({row["name"]: row for row in reversed(rows)}.values())
        return page(request, rows, lambda row: row, key="check_runs")

    async def create_status(self, request: web.Request) -> web.Response:
        repo, body = visible_repo(self._world, request), await json_body(request)
        self._check(request, "statuses", "write")
        texts = {key: body.get(key) or "" for key in ("state", "description", "target_url")}
        made = self._world.checks.add_status(
            repo.full_name,
            request.match_info["sha"],
            context=body.get("context") or "default",
            now=self._clock(),
            **texts,
        )
        return answer(201, _status(made, urls(request)))

    async def list_statuses(self, request: web.Request) -> web.Response:
        repo = visible_repo(self._world, request)
        self._check(request, "statuses", "read")
        rows = self._world.checks.statuses(repo.full_name, request.match_info["sha"])
        return page(request, rows, lambda row: _status(row, urls(request)))

    async def get_user(self, request: web.Request) -> web.Response:
        """Whose token it is: the sandbox has one person. An App is none."""
        if request[CALLER].kind != "token":
            raise GitHubError(403, NOT_PERMITTED)
        return answer(200, payloads.sender(urls(request)))

    async def get_commit(self, request: web.Request) -> web.Response:
        """As much of a commit as leads clients to what was written onto it."""
        repo, sha = visible_repo(self._world, request), request.match_info["sha"]
        if not self._world.has_commit(repo.full_name, sha):
            raise GitHubError(422, f"No commit found for SHA: {sha}")
        url = f"{urls(request).api}/repos/{repo.full_name}/commits/{sha}"
        body: Json = {"sha": sha, "node_id": payloads.node_id("C", repo.id), "url": url, "parents": [], "files": []}
        return answer(200, {**body, "html_url": f"{urls(request).html}/{repo.full_name}/commit/{sha}"})

    # -- parts ------------------------------------------------------------------------------------------------

    def _check(self, request: web.Request, what: str, needed: str) -> None:
        granted = self._permissions.get(what)
        if request[CALLER].kind == "installation" and granted not in (needed, "write"):
            raise GitHubError(403, NOT_PERMITTED)

    def _shown(self, made: CheckRun, where: payloads.Urls) -> Json:
        at, app = payloads.iso(made.created_at), self._app_of(made)
        output = {"title": made.title or None, "summary": made.summary or None, "text": None}
        return {
            **_frame(made.repo, made.id, app["id"] if app is not None else 0, made.head_sha, where),
            "head_sha": made.head_sha,
            "external_id": made.external_id,
            "details_url": made.details_url,
            "html_url": f"{where.html}/{made.repo}/runs/{made.id}",
            "status": made.status,
            "conclusion": made.conclusion,
            "started_at": at,
            "completed_at": at if made.status == "completed" else None,
            "name": made.name,
            "app": app,
            "output": {**output, **_annotations(made.repo, made.id, 0, where)},
        }

    def _app_of(self, made: CheckRun) -> Json | None:
        if made.app_id is not None:
            return {"id": made.app_id, "slug": "another"}
        own = self._app
        return {"id": own.app_id, "slug": own.slug, "client_id": own.client_id} if own is not None else None

    def _of_job(self, job: Job, where: payloads.Urls) -> Json:
        row = payloads.job(job, self._world.runs[job.run_id], where)
        output = {"title": None, "summary": None, "text": None}
        taken = ("head_sha", "status", "conclusion", "started_at", "completed_at", "name", "html_url")
        return {
            **_frame(job.repo, job.id, ACTIONS_APP, row["head_sha"], where),
            **{key: row[key] for key in taken},
            "external_id": "",
            "details_url": row["html_url"],
            "app": {"id": ACTIONS_APP, "slug": "github-actions"},
            "output": {**output, **_annotations(job.repo, job.id, len(job.annotations), where)},
        }


def _frame(repo: str, number: int, app_id: int, sha: str, where: payloads.Urls) -> Json:
    """An App's check runs on one commit are one suite."""
    suite = zlib.crc32(f"{repo}/{app_id}/{sha}".encode())
    return {
        "id": number,
        "node_id": payloads.node_id("CR", number),
        "url": f"{where.api}/repos/{repo}/check-runs/{number}",
        "check_suite": {"id": suite},
        "pull_requests": [],
    }


def _annotations(repo: str, number: int, count: int, where: payloads.Urls) -> Json:
    return {
        "annotations_count": count,
        "annotations_url": f"{where.api}/repos/{repo}/check-runs/{number}/annotations",
    }


def _status(row: CommitStatus, where: payloads.Urls) -> Json:
    return {
        "url": f"{where.api}/repos/{row.repo}/statuses/{row.sha}",
        "avatar_url": None,
        "id": row.id,
        "node_id": payloads.node_id("SC", row.id),
        "state": row.state,
        "description": row.description or None,
        "target_url": row.target_url or None,
        "context": row.context,
        "created_at": payloads.iso(row.created_at),
        "updated_at": payloads.iso(row.created_at),
        "creator": payloads.user(row.creator, row.id, where) if row.creator else payloads.sender(where),
    }
