"""REST routes of the sandbox's GitLab for API clients: projects, groups, hooks, pipelines, jobs (spec 1.2, 1.4, 3)."""

from aiohttp import web

from autoscaler.sandbox.gitlab_access import as_bool, keyset, paginate, parameters
from autoscaler.sandbox.gitlab_model import ALL_STATUSES, GitLabRefusal, Job, Pipeline, Project, iso
from autoscaler.sandbox.gitlab_payloads import Json, pipeline_status, rest_group, rest_project, rest_user
from autoscaler.sandbox.gitlab_site import Site
from autoscaler.sandbox.gitlab_webhooks import Hook
from autoscaler.sandbox.gitlab_world import BOT

VERSION = {"version": "19.4.0", "revision": "sandbox0"}
_READ = ("api", "read_api")


class RestRoutes:
    """Handlers over one Site; `add_to` registers them."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Register every route under /api/v4."""
        api, project, group = "/api/v4", "/api/v4/projects/{project}", "/api/v4/groups/{group}"
        job = project + r"/jobs/{job:\d+}"
        pipeline = project + r"/pipelines/{pipeline:\d+}"
        router.add_get(f"{api}/version", self.version)
        router.add_get(f"{api}/metadata", self.version)
        router.add_get(f"{api}/user", self.user)
        router.add_get(f"{api}/personal_access_tokens/self", self.own_token)
        router.add_get(f"{api}/projects", self.list_projects)
        router.add_get(project, self.show_project)
        router.add_get(f"{api}/groups", self.list_groups)
        router.add_get(group, self.show_group)
        router.add_get(f"{group}/projects", self.list_group_projects)
        router.add_get(f"{project}/pipelines", self.list_pipelines)
        router.add_get(pipeline, self.show_pipeline)
        router.add_get(f"{pipeline}/jobs", self.list_pipeline_jobs)
        router.add_post(f"{pipeline}/cancel", self.cancel_pipeline)
        router.add_get(f"{project}/jobs", self.list_jobs)
        router.add_get(job, self.show_job)
        router.add_get(f"{job}/trace", self.show_trace)
        router.add_post(f"{job}/retry", self.retry)
        router.add_post(f"{job}/cancel", self.cancel)
        for owner in (project, group):
            router.add_get(f"{owner}/hooks", self.list_hooks)
            router.add_post(f"{owner}/hooks", self.add_hook)
            router.add_get(owner + r"/hooks/{hook:\d+}", self.show_hook)
            router.add_put(owner + r"/hooks/{hook:\d+}", self.edit_hook)
            router.add_delete(owner + r"/hooks/{hook:\d+}", self.delete_hook)

    # -- who and what

    async def version(self, request: web.Request) -> web.Response:
        """GET /version and /metadata."""
        self._site.tokens.scopes(request)
        return web.json_response(VERSION)

    async def user(self, request: web.Request) -> web.Response:
        """GET /user: the bot that every token belongs to."""
        self._site.tokens.require(request, *_READ, "read_user")
        return web.json_response(rest_user(self._site.world.base_url, BOT))

    async def own_token(self, request: web.Request) -> web.Response:
        """GET /personal_access_tokens/self: the scopes of the caller."""
        scopes = sorted(self._site.tokens.scopes(request))
        body = {"id": 1, "name": "sandbox", "revoked": False, "scopes": scopes, "user_id": BOT.id, "active": True}
        return web.json_response(body | {"created_at": iso(0.0), "expires_at": None})

    # -- projects and groups

    async def list_projects(self, request: web.Request) -> web.Response:
        """GET /projects."""
        self._site.tokens.require(request, *_READ)
        world = self._site.world
        return paginate(request, list(reversed(world.projects.values())), self._show_project, base_url=world.base_url)

    async def show_project(self, request: web.Request) -> web.Response:
        """GET /projects/:id."""
        self._site.tokens.require(request, *_READ)
        return web.json_response(self._show_project(self._site.project(request)))

    async def list_groups(self, request: web.Request) -> web.Response:
        """GET /groups."""
        self._site.tokens.require(request, *_READ)
        base_url = self._site.world.base_url
        groups = list(self._site.world.groups.values())
        return paginate(request, groups, lambda group: rest_group(base_url, group), base_url=base_url)

    async def show_group(self, request: web.Request) -> web.Response:
        """GET /groups/:id."""
        self._site.tokens.require(request, *_READ)
        return web.json_response(rest_group(self._site.world.base_url, self._site.group(request)))

    async def list_group_projects(self, request: web.Request) -> web.Response:
        """GET /groups/:id/projects?include_subgroups=&archived=. No project of the sandbox is archived."""
        self._site.tokens.require(request, *_READ)
        nested = as_bool(request.query.get("include_subgroups", "false"), "include_subgroups")
        archived = as_bool(request.query.get("archived", "false"), "archived")
        world = self._site.world
        found = [] if archived else world.projects_of(self._site.group(request), include_subgroups=nested)
        return paginate(request, found, self._show_project, base_url=world.base_url)

    def _show_project(self, project: Project) -> Json:
        world = self._site.world
        return rest_project(world.base_url, project, world.groups[project.group_id])

    # -- pipelines and jobs

    def _pipeline(self, request: web.Request) -> Pipeline:
        pipeline = self._site.world.pipeline(int(request.match_info["pipeline"]))
        if pipeline.project_id != self._site.project(request).id:
            raise GitLabRefusal(404, "404 Pipeline Not Found")
        return pipeline

    def _show_pipeline(self, pipeline: Pipeline) -> Json:
        world = self._site.world
        newest = [world.job(job_id) for job_id in pipeline.latest.values()]
        path = world.projects[pipeline.project_id].path
        return {
            "id": pipeline.id,
            "iid": pipeline.id,
            "project_id": pipeline.project_id,
            "status": pipeline_status(newest),
            "source": "push",
            "ref": pipeline.ref,
            "sha": pipeline.sha,
            "name": pipeline.workflow,
            "web_url": f"{world.base_url}/{path}/-/pipelines/{pipeline.id}",
            "created_at": iso(pipeline.created_at),
            "user": rest_user(world.base_url, pipeline.user),
        }

    async def list_pipelines(self, request: web.Request) -> web.Response:
        """GET /projects/:id/pipelines, newest first."""
        self._site.tokens.require(request, *_READ)
        world, project = self._site.world, self._site.project(request)
        return paginate(request, world.list_pipelines(project.id), self._show_pipeline, base_url=world.base_url)

    async def show_pipeline(self, request: web.Request) -> web.Response:
        """GET /projects/:id/pipelines/:pipeline."""
        self._site.tokens.require(request, *_READ)
        return web.json_response(self._show_pipeline(self._pipeline(request)))

    async def cancel_pipeline(self, request: web.Request) -> web.Response:
        """POST /projects/:id/pipelines/:pipeline/cancel: 200, whatever state it is in."""
        self._site.tokens.require(request, "api")
        pipeline = self._site.world.cancel_pipeline(self._pipeline(request).id, self._site.clock())
        return web.json_response(self._show_pipeline(pipeline))

    async def list_pipeline_jobs(self, request: web.Request) -> web.Response:
        """GET /projects/:id/pipelines/:pipeline/jobs?include_retried=&scope[]=."""
        self._site.tokens.require(request, *_READ)
        world = self._site.world
        retried = as_bool(request.query.get("include_retried", "false"), "include_retried")
        scopes = _scopes(request)
        jobs = world.list_pipeline_jobs(self._pipeline(request), include_retried=retried)
        jobs = [job for job in jobs if not scopes or job.status in scopes]
        return paginate(request, jobs, self._show_job, base_url=world.base_url)

    async def list_jobs(self, request: web.Request) -> web.Response:
        """GET /projects/:id/jobs?scope[]=: newest first, offset or keyset pages, never counted (spec 1.4)."""
        site = self._site
        site.tokens.require(request, *_READ)
        limit, caller = site.limits.jobs_per_minute, site.tokens.presented(request) or ""
        if limit is not None and site.windows.count("project_jobs", caller) > limit:
            raise GitLabRefusal(429, {"error": "This endpoint has been requested too many times. Try again later."})
        jobs = site.world.list_jobs(site.project(request).id, scopes=_scopes(request))
        if request.query.get("sort", "desc") == "asc":
            jobs.reverse()
        base_url = site.world.base_url
        if request.query.get("pagination") == "keyset":
            return keyset(request, jobs, self._show_job, base_url=base_url, key=lambda job: job.id)
        return paginate(request, jobs, self._show_job, base_url=base_url, totals=False)

    async def show_job(self, request: web.Request) -> web.Response:
        """GET /projects/:id/jobs/:job."""
        self._site.tokens.require(request, *_READ)
        return web.json_response(self._show_job(self._site.job(request)))

    async def show_trace(self, request: web.Request) -> web.Response:
        """GET /projects/:id/jobs/:job/trace: the log so far."""
        self._site.tokens.require(request, *_READ)
        return web.Response(body=bytes(self._site.job(request).trace), content_type="text/plain")

    async def retry(self, request: web.Request) -> web.Response:
        """POST /projects/:id/jobs/:job/retry: 201 with the clone."""
        self._site.tokens.require(request, "api")
        clone = self._site.world.retry_job(self._site.job(request).id, self._site.clock())
        return web.json_response(self._show_job(clone), status=201)

    async def cancel(self, request: web.Request) -> web.Response:
        """POST /projects/:id/jobs/:job/cancel?force=."""
        self._site.tokens.require(request, "api")
        force = as_bool((await parameters(request)).get("force", False), "force")
        job = self._site.world.cancel_job(self._site.job(request).id, self._site.clock(), force=force)
        return web.json_response(self._show_job(job), status=201)

    def _show_job(self, job: Job) -> Json:
        return self._site.world.show_job(job, self._site.clock())

    # -- hooks

    def _owner(self, request: web.Request) -> tuple[int | None, int | None]:
        """(project id, group id) of the path, one of them None."""
        if "project" in request.match_info:
            return self._site.project(request).id, None
        return None, self._site.group(request).id

    def _hook(self, request: web.Request) -> Hook:
        hook = self._site.webhooks.hooks.get(int(request.match_info["hook"]))
        if hook is None or (hook.project_id, hook.group_id) != self._owner(request):
            raise GitLabRefusal(404, "404 Not found")
        return hook

    async def list_hooks(self, request: web.Request) -> web.Response:
        """GET .../hooks."""
        self._site.tokens.require(request, *_READ)
        owner = self._owner(request)
        hooks = [hook for hook in self._site.webhooks.hooks.values() if (hook.project_id, hook.group_id) == owner]
        return paginate(request, hooks, _show_hook, base_url=self._site.world.base_url)

    async def show_hook(self, request: web.Request) -> web.Response:
        """GET .../hooks/:hook."""
        self._site.tokens.require(request, *_READ)
        return web.json_response(_show_hook(self._hook(request)))

    async def add_hook(self, request: web.Request) -> web.Response:
        """POST .../hooks. Secrets are taken and never shown."""
        self._site.tokens.require(request, "api")
        project_id, group_id = self._owner(request)
        given = await parameters(request)
        if "url" not in given:
            raise GitLabRefusal(400, "400 Bad request - url is missing")
        hook = self._site.webhooks.add(
            str(given["url"]),
            project_id=project_id,
            group_id=group_id,
            job_events=as_bool(given.get("job_events", False), "job_events"),
            token=_text(given.get("token")),
            signing_token=_text(given.get("signing_token")),
            name=str(given.get("name", "")),
        )
        return web.json_response(_show_hook(hook), status=201)

    async def edit_hook(self, request: web.Request) -> web.Response:
        """PUT .../hooks/:hook."""
        self._site.tokens.require(request, "api")
        hook, given = self._hook(request), await parameters(request)
        new = Hook(
            id=hook.id,
            project_id=hook.project_id,
            group_id=hook.group_id,
            url=str(given.get("url", hook.url)),
            job_events=as_bool(given.get("job_events", hook.job_events), "job_events"),
            token=_text(given.get("token")) or hook.token,
            signing_token=_text(given.get("signing_token")) or hook.signing_token,
            name=str(given.get("name", hook.name)),
        )
        self._site.webhooks.check(new)
        self._site.webhooks.hooks[hook.id] = new
        return web.json_response(_show_hook(new))

    async def delete_hook(self, request: web.Request) -> web.Response:
        """DELETE .../hooks/:hook."""
        self._site.tokens.require(request, "api")
        del self._site.webhooks.hooks[self._hook(request).id]
        return web.Response(status=204)


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)


def _show_hook(hook: Hook) -> Json:
    owner: Json = {"project_id": hook.project_id} if hook.group_id is None else {"group_id": hook.group_id}
    return owner | {
        "id": hook.id,
        "url": hook.url,
        "name": hook.name,
        "job_events": hook.job_events,
        "push_events": False,
        "pipeline_events": False,
        "enable_ssl_verification": True,
        "alert_status": "executable",
        "token_present": hook.token is not None,
        "signing_token_present": hook.signing_token is not None,
    }


def _scopes(request: web.Request) -> list[str]:
    scopes = [*request.query.getall("scope[]", []), *request.query.getall("scope", [])]
    if any(scope not in ALL_STATUSES for scope in scopes):
        raise GitLabRefusal(400, "scope does not have a valid value")
    return scopes
