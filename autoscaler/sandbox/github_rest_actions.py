"""REST handlers of the sandbox's GitHub API: runners, runs, jobs, reruns, annotations.

Each handler reads or changes the world and renders; authentication, limits, ETags and error bodies are the
middlewares' in `github_face`.
"""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable

from aiohttp import web

from autoscaler.sandbox import github_payloads as payloads
from autoscaler.sandbox.github_auth import Caller
from autoscaler.sandbox.github_http import CALLER, answer, integer, json_body, page, urls
from autoscaler.sandbox.github_model import GitHubError, Job, Json, Repository, Run, Runner, RunnerGroup
from autoscaler.sandbox.github_world import DEFAULT_GROUP, RUNNER_VERSION, GitHubWorld

REGISTRATION_LIFE_S = 3600
STATUSES = ("queued", "in_progress", "waiting", "pending", "requested", "completed")


class ActionsApi:
    """`seal(runner)` gives the secret by which the broker knows the runner; `changed()` says the world moved."""

    def __init__(
        self,
        world: GitHubWorld,
        *,
        clock: Callable[[], float],
        changed: Callable[[], None],
        seal: Callable[[int], str],
        renew_s: float,
    ) -> None:
        self._world = world
        self._clock = clock
        self._changed = changed
        self._seal = seal
        self._renew_s = renew_s
        self._log_key = secrets.token_bytes(32)

    def routes(self, prefix: str) -> list[web.RouteDef]:
        repo = prefix + "/repos/{owner}/{repo}"
        run = repo + "/actions/runs/{run_id}"
        job = repo + "/actions/jobs/{job_id}"
        groups = prefix + "/orgs/{org}/actions/runner-groups"
        routes = [
            web.get(repo + "/actions/runs", self.list_runs),
            web.get(run, self.get_run),
            web.get(run + "/jobs", self.list_jobs),
            web.get(run + "/attempts/{attempt}", self.get_run),
            web.get(run + "/attempts/{attempt}/jobs", self.list_attempt_jobs),
            web.post(run + "/rerun", self.rerun),
            web.post(run + "/rerun-failed-jobs", self.rerun_failed),
            web.post(run + "/cancel", self.cancel),
            web.post(run + "/force-cancel", self.force_cancel),
            web.get(job, self.get_job),
            web.get(job + "/logs", self.get_logs),
            web.post(job + "/rerun", self.rerun_job),
            web.get(repo + "/check-runs/{job_id}/annotations", self.list_annotations),
            web.get(groups, self.list_groups),
            web.get(groups + "/{group_id}", self.get_group),
            web.get(groups + "/{group_id}/runners", self.list_group_runners),
        ]
        for scope in (prefix + "/orgs/{org}", repo):
            runners = scope + "/actions/runners"
            routes += [
                web.get(runners, self.list_runners),
                web.post(runners + "/generate-jitconfig", self.generate_jitconfig),
                web.post(runners + "/registration-token", self.create_token),
                web.post(runners + "/remove-token", self.create_token),
                web.get(runners + "/downloads", self.list_downloads),
                web.get(runners + "/{runner_id}", self.get_runner),
                web.delete(runners + "/{runner_id}", self.delete_runner),
            ]
        return routes

    # -- runners ----------------------------------------------------------------------------------------------

    async def list_runners(self, request: web.Request) -> web.Response:
        rows = self._world.runners_of(self._scope(request), name=request.query.get("name"))
        return page(request, rows, payloads.runner, key="runners")

    async def get_runner(self, request: web.Request) -> web.Response:
        return answer(200, payloads.runner(self._runner(request)))

    async def delete_runner(self, request: web.Request) -> web.Response:
        self._world.delete_runner(self._scope(request), integer(request, "runner_id"), self._clock())
        self._changed()
        return web.Response(status=204)

    async def generate_jitconfig(self, request: web.Request) -> web.Response:
        scope, body = self._scope(request), await json_body(request)
        name, group, labels = body.get("name"), body.get("runner_group_id"), body.get("labels")
        work_folder = body.get("work_folder", "_work")
        listed = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        if not isinstance(name, str) or type(group) is not int or not listed or not isinstance(work_folder, str):
            raise GitHubError(422, "Invalid request.")
        assert isinstance(labels, list)
        runner = self._world.generate_jitconfig(scope, name, group, labels, self._clock())
        self._changed()
        config = self._jit_config(runner, str(request.url.origin()), work_folder)
        return answer(201, {"runner": payloads.runner(runner), "encoded_jit_config": config})

    async def list_downloads(self, request: web.Request) -> web.Response:
        self._scope(request)
        return answer(200, [_download(request, arch) for arch in ("x64", "arm64")])

    async def create_token(self, request: web.Request) -> web.Response:
        self._scope(request)
        expires = payloads.iso(self._clock() + REGISTRATION_LIFE_S)
        return answer(201, {"token": secrets.token_hex(15).upper(), "expires_at": expires})

    async def list_groups(self, request: web.Request) -> web.Response:
        groups: list[RunnerGroup] = list(self._world.groups[self._scope(request)].values())
        visible_to = request.query.get("visible_to_repository")
        if visible_to is not None:
            full = f"{request.match_info['org']}/{visible_to.rpartition('/')[2]}"
            groups = [group for group in groups if group.repos is None or full in group.repos]
        return page(request, groups, lambda row: payloads.runner_group(row, urls(request)), key="runner_groups")

    async def get_group(self, request: web.Request) -> web.Response:
        return answer(200, payloads.runner_group(self._group(request), urls(request)))

    async def list_group_runners(self, request: web.Request) -> web.Response:
        group = self._group(request)
        rows = [runner for runner in self._world.runners_of(group.org) if runner.group_id == group.id]
        return page(request, rows, payloads.runner, key="runners")

    # -- runs and jobs ----------------------------------------------------------------------------------------

    async def list_runs(self, request: web.Request) -> web.Response:
        repo, query = self._repo(request), request.query
        rows = self._world.runs_of(repo.full_name)
        status = query.get("status")
        if status in STATUSES:
            rows = [row for row in rows if row.status == status]
        elif status:
            rows = [row for row in rows if row.conclusion == status]
        if branch := query.get("branch"):
            rows = [row for row in rows if row.spec.ref == branch]
        if sha := query.get("head_sha"):
            rows = [row for row in rows if row.head_sha == sha]
        if event := query.get("event"):
            rows = [row for row in rows if event == "push"]
        if created := query.get("created"):
            rows = [row for row in rows if _created_within(payloads.iso(row.created_at), created)]
        return page(request, rows[:1000], lambda row: payloads.run(row, repo, urls(request)), key="workflow_runs")

    async def get_run(self, request: web.Request) -> web.Response:
        run = self._run(request)
        if "attempt" in request.match_info and not 1 <= integer(request, "attempt") <= run.attempt:
            raise GitHubError(404, "Not Found")
        return answer(200, payloads.run(run, self._repo(request), urls(request)))

    async def list_jobs(self, request: web.Request) -> web.Response:
        """`latest` (the default) lists the newest attempt's own jobs, so only the rerun ones (specs B6)."""
        run = self._run(request)
        newest_only = request.query.get("filter", "latest") == "latest"
        rows = [job for job in run.history if not newest_only or (job.attempt == run.attempt and not job.is_copy)]
        return self._job_page(request, run, rows)

    async def list_attempt_jobs(self, request: web.Request) -> web.Response:
        run = self._run(request)
        ids = run.attempts.get(integer(request, "attempt"))
        if ids is None:
            raise GitHubError(404, "Not Found")
        return self._job_page(request, run, [self._world.jobs[job_id] for job_id in ids])

    async def get_job(self, request: web.Request) -> web.Response:
        job = self._job(request)
        return answer(200, _rest_job(job, self._world.runs[job.run_id], urls(request)))

    async def get_logs(self, request: web.Request) -> web.Response:
        job = self._job(request)
        if job.log is None:
            raise GitHubError(404, "Not Found")
        location = f"{request.url.origin()}/_logs/{job.id}/{self._log_seal(job.id)}"
        return web.Response(status=302, headers={"Location": location})

    async def serve_log(self, request: web.Request) -> web.Response:
        """Where `get_logs` points to: no token, only a sealed address."""
        job = self._world.job(integer(request, "job_id"))
        if job.log is None or not hmac.compare_digest(request.match_info["seal"], self._log_seal(job.id)):
            raise GitHubError(404, "Not Found")
        return web.Response(text=job.log)

    async def list_annotations(self, request: web.Request) -> web.Response:
        job = self._job(request)
        sha = self._world.runs[job.run_id].head_sha
        return page(
            request, job.annotations, lambda text: payloads.annotation(text, urls(request), job.repo, sha), key=None
        )

    async def rerun_job(self, request: web.Request) -> web.Response:
        await json_body(request)
        self._world.rerun_job(self._job(request).id, self._clock())
        return self._accepted(201)

    async def rerun_failed(self, request: web.Request) -> web.Response:
        await json_body(request)
        self._world.rerun_failed_jobs(self._run(request).id, self._clock())
        return self._accepted(201)

    async def rerun(self, request: web.Request) -> web.Response:
        await json_body(request)
        self._world.rerun(self._run(request).id, self._clock())
        return self._accepted(201)

    async def cancel(self, request: web.Request) -> web.Response:
        self._world.cancel(self._run(request).id, self._clock())
        return self._accepted(202)

    async def force_cancel(self, request: web.Request) -> web.Response:
        self._world.cancel(self._run(request).id, self._clock(), force=True)
        return self._accepted(202)

    # -- parts ------------------------------------------------------------------------------------------------

    def _accepted(self, status: int) -> web.Response:
        self._changed()
        return answer(status, {})

    def _job_page(self, request: web.Request, run: Run, rows: list[Job]) -> web.Response:
        return page(request, rows, lambda row: _rest_job(row, run, urls(request)), key="jobs")

    def _scope(self, request: web.Request) -> str:
        if "repo" in request.match_info:
            return self._repo(request).full_name
        org = request.match_info["org"]
        if org not in self._world.accounts or not may_see(request[CALLER], org):
            raise GitHubError(404, "Not Found")
        return org

    def _repo(self, request: web.Request) -> Repository:
        return visible_repo(self._world, request)

    def _run(self, request: web.Request) -> Run:
        run = self._world.run(integer(request, "run_id"))
        if run.spec.repo != self._repo(request).full_name:
            raise GitHubError(404, "Not Found")
        return run

    def _job(self, request: web.Request) -> Job:
        job = self._world.job(integer(request, "job_id"))
        if job.repo != self._repo(request).full_name:
            raise GitHubError(404, "Not Found")
        return job

    def _runner(self, request: web.Request) -> Runner:
        runner = self._world.runner(integer(request, "runner_id"))
        if runner.scope != self._scope(request):
            raise GitHubError(404, "Not Found")
        return runner

    def _group(self, request: web.Request) -> RunnerGroup:
        group = self._world.groups[self._scope(request)].get(integer(request, "group_id"))
        if group is None:
            raise GitHubError(404, "Not Found")
        return group

    def _log_seal(self, job_id: int) -> str:
        return hmac.new(self._log_key, str(job_id).encode(), hashlib.sha256).hexdigest()

    def _jit_config(self, runner: Runner, origin: str, work_folder: str) -> str:
        """Base64 JSON of {file: base64}, as the runner program unpacks it into its root (specs C1)."""
        files: dict[str, Json] = {
            ".runner": {
                "AgentId": runner.id,
                "AgentName": runner.name,
                "PoolId": DEFAULT_GROUP if "/" in runner.scope else runner.group_id,
                "PoolName": runner.group_name,
                "Ephemeral": "True",
                "DisableUpdate": "True",
                "ServerUrl": origin,
                "ServerUrlV2": f"{origin}/_broker/{runner.id}",
                "GitHubUrl": f"{origin}/{runner.scope}",
                "WorkFolder": work_folder,
                "UseV2Flow": "true",
                "LeaseRenewSeconds": self._renew_s,
            },
            ".credentials": {"Scheme": "OAuthAccessToken", "Data": {"token": self._seal(runner.id)}},
            ".credentials_rsaparams": {"modulus": secrets.token_urlsafe(256), "exponent": "AQAB"},
        }
        packed = {name: base64.b64encode(json.dumps(body).encode()).decode() for name, body in files.items()}
        return base64.b64encode(json.dumps(packed).encode()).decode()


def may_see(caller: Caller, login: str) -> bool:
    """Whether the caller's token reaches this account; an App's own JWT reaches none (403)."""
    if caller.kind == "app":
        raise GitHubError(403, "Resource not accessible by integration")
    return caller.login in (None, login)


def visible_repo(world: GitHubWorld, request: web.Request) -> Repository:
    full_name = f"{request.match_info['owner']}/{request.match_info['repo']}"
    repo = world.repos.get(full_name)
    if repo is None or not may_see(request[CALLER], repo.owner.login):
        raise GitHubError(404, "Not Found")
    return repo


def _download(request: web.Request, arch: str) -> Json:
    filename = f"actions-runner-linux-{arch}-{RUNNER_VERSION}.tar.gz"
    url = f"{request.url.origin()}/actions/runner/releases/download/v{RUNNER_VERSION}/{filename}"
    return {"os": "linux", "architecture": arch, "download_url": url, "filename": filename}


def _rest_job(job: Job, run: Run, where: payloads.Urls) -> Json:
    """As the webhook writes it, but an unassigned job has 0 and "" where the webhook has null (specs B2)."""
    row = payloads.job(job, run, where)
    if job.runner_id is None:
        row |= {"runner_id": 0, "runner_name": "", "runner_group_id": 0, "runner_group_name": ""}
    return row


def _created_within(created: str, wanted: str) -> bool:
    """The `created` filter: a date or time alone, >=, <=, >, < or a range with two dots."""
    low, dots, high = wanted.partition("..")
    if dots:
        return (low == "*" or created[: len(low)] >= low) and (high == "*" or created[: len(high)] <= high)
    for sign, holds in ((">=", str.__ge__), ("<=", str.__le__), (">", str.__gt__), ("<", str.__lt__)):
        if wanted.startswith(sign):
            bound = wanted.removeprefix(sign)
            return bool(holds(created[: len(bound)], bound))
    return created.startswith(wanted)
