"""REST routes of the sandbox's GitLab for those who own runners: create, list, pause, delete (spec 2.1, 2.2)."""

from aiohttp import web

from autoscaler.sandbox.gitlab_access import as_bool, as_int, as_words, paginate, parameters
from autoscaler.sandbox.gitlab_model import GitLabRefusal, Group, Project, Runner, RunnerType
from autoscaler.sandbox.gitlab_payloads import Json, rest_machine, rest_runner, rest_runner_details
from autoscaler.sandbox.gitlab_runners import RunnerRequest, runner_status
from autoscaler.sandbox.gitlab_site import Site

_READ = ("api", "read_api", "manage_runner")
_WRITE = ("api", "manage_runner")
_SCOPE_KEYS = {RunnerType.GROUP: "group_id", RunnerType.PROJECT: "project_id"}


class RunnerRoutes:
    """Handlers over one Site; `add_to` registers them."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Register every route under /api/v4."""
        runner = r"/api/v4/runners/{runner:\d+}"
        router.add_post("/api/v4/user/runners", self.create)
        router.add_get("/api/v4/runners", self.list_all)
        router.add_get("/api/v4/runners/all", self.list_all)
        router.add_get("/api/v4/projects/{project}/runners", self.list_of_project)
        router.add_get("/api/v4/groups/{group}/runners", self.list_of_group)
        router.add_get(runner, self.show)
        router.add_put(runner, self.edit)
        router.add_delete(runner, self.delete)
        router.add_get(f"{runner}/managers", self.list_machines)
        router.add_get(f"{runner}/jobs", self.list_jobs)

    async def create(self, request: web.Request) -> web.Response:
        """POST /user/runners: 201 with the token, which is shown only here."""
        self._site.tokens.require(request, "api", "create_runner")
        given = await parameters(request)
        try:
            runner_type = RunnerType(str(given.get("runner_type")))
        except ValueError:
            raise GitLabRefusal(400, "runner_type does not have a valid value") from None
        scope_key = _SCOPE_KEYS.get(runner_type)
        scope = given.get(scope_key) if scope_key else given.get("group_id", given.get("project_id"))
        timeout = given.get("maximum_timeout")
        runner = self._site.world.create_runner(
            RunnerRequest(
                runner_type=runner_type,
                scope_id=None if scope is None else as_int(scope, scope_key or "group_id"),
                description=str(given.get("description", "")),
                tags=as_words(given.get("tag_list", [])),
                run_untagged=as_bool(given.get("run_untagged", True), "run_untagged"),
                locked=as_bool(given.get("locked", False), "locked"),
                paused=as_bool(given.get("paused", False), "paused"),
                access_level=str(given.get("access_level", "not_protected")),
                maximum_timeout=None if timeout is None else as_int(timeout, "maximum_timeout"),
                maintenance_note=str(given.get("maintenance_note", "")),
            ),
            self._site.clock(),
        )
        return web.json_response({"id": runner.id, "token": runner.token, "token_expires_at": None}, status=201)

    async def list_all(self, request: web.Request) -> web.Response:
        """GET /runners and /runners/all with type, status, paused and tag_list filters."""
        self._site.tokens.require(request, *_READ)
        return self._list(request, self._site.world.list_runners())

    async def list_of_project(self, request: web.Request) -> web.Response:
        """GET /projects/:id/runners: those that may take the project's jobs."""
        self._site.tokens.require(request, *_READ)
        world, project = self._site.world, self._site.project(request)
        return self._list(request, [r for r in world.list_runners() if world.reaches(r, project)])

    async def list_of_group(self, request: web.Request) -> web.Response:
        """GET /groups/:id/runners: those of the group itself."""
        self._site.tokens.require(request, *_READ)
        found = self._site.world.list_runners(runner_type=RunnerType.GROUP, scope_id=self._site.group(request).id)
        return self._list(request, found)

    def _list(self, request: web.Request, runners: list[Runner]) -> web.Response:
        query, now = request.query, self._site.clock()
        if "type" in query:
            if query["type"] not in set(RunnerType):
                raise GitLabRefusal(400, "type does not have a valid value")
            runners = [runner for runner in runners if runner.runner_type == query["type"]]
        if "status" in query:
            if query["status"] not in {"online", "offline", "stale", "never_contacted"}:
                raise GitLabRefusal(400, "status does not have a valid value")
            runners = [runner for runner in runners if runner_status(runner, now) == query["status"]]
        if "paused" in query:
            paused = as_bool(query["paused"], "paused")
            runners = [runner for runner in runners if runner.paused is paused]
        tags = [*query.getall("tag_list[]", []), *as_words(query.get("tag_list", ""))]
        runners = [runner for runner in runners if runner.tags.issuperset(tags)]
        return paginate(request, runners, self._show, base_url=self._site.world.base_url)

    def _show(self, runner: Runner) -> Json:
        return rest_runner(runner, busy=self._site.world.is_busy(runner), now=self._site.clock())

    def _details(self, runner: Runner) -> Json:
        world = self._site.world
        projects: dict[int, Project] = world.projects
        groups: dict[int, Group] = world.groups
        busy = world.is_busy(runner)
        return rest_runner_details(world.base_url, runner, projects, groups, busy=busy, now=self._site.clock())

    async def show(self, request: web.Request) -> web.Response:
        """GET /runners/:id."""
        self._site.tokens.require(request, *_READ)
        return web.json_response(self._details(self._site.runner(request)))

    async def edit(self, request: web.Request) -> web.Response:
        """PUT /runners/:id: paused (or its old inverse `active`), description, tag_list, run_untagged, locked."""
        self._site.tokens.require(request, *_WRITE)
        world, runner, given = self._site.world, self._site.runner(request), await parameters(request)
        world.edit_runner(
            runner.id,
            description=str(given["description"]) if "description" in given else None,
            tags=as_words(given["tag_list"]) if "tag_list" in given else None,
            run_untagged=as_bool(given["run_untagged"], "run_untagged") if "run_untagged" in given else None,
            locked=as_bool(given["locked"], "locked") if "locked" in given else None,
        )
        if "paused" in given:
            world.pause_runner(runner.id, paused=as_bool(given["paused"], "paused"))
        elif "active" in given:
            world.pause_runner(runner.id, paused=not as_bool(given["active"], "active"))
        return web.json_response(self._details(runner))

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /runners/:id."""
        self._site.tokens.require(request, *_WRITE)
        self._site.world.delete_runner(self._site.runner(request).id)
        return web.Response(status=204)

    async def list_machines(self, request: web.Request) -> web.Response:
        """GET /runners/:id/managers."""
        self._site.tokens.require(request, *_READ)
        world, runner, now = self._site.world, self._site.runner(request), self._site.clock()
        running = {job.system_id for job in world.runner_jobs(runner, status="running")}
        system_ids = sorted(runner.machines, key=lambda system_id: -runner.machines[system_id].id)
        return paginate(
            request,
            system_ids,
            lambda system_id: rest_machine(runner, system_id, busy=system_id in running, now=now),
            base_url=world.base_url,
        )

    async def list_jobs(self, request: web.Request) -> web.Response:
        """GET /runners/:id/jobs?status=&system_id=; pending is not a status here (spec 1.4)."""
        self._site.tokens.require(request, *_READ)
        world, now, status = self._site.world, self._site.clock(), request.query.get("status")
        if status not in {None, "running", "success", "failed", "canceled"}:
            raise GitLabRefusal(400, "status does not have a valid value")
        jobs = world.runner_jobs(self._site.runner(request), status=status, system_id=request.query.get("system_id"))
        return paginate(request, jobs, lambda job: world.show_job(job, now), base_url=world.base_url)
