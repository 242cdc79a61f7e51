"""REST routes of the sandbox's GitLab for merge requests, and the notes under them."""

from aiohttp import web

from autoscaler.sandbox.gitlab_access import paginate, parameters
from autoscaler.sandbox.gitlab_merge_requests import MergeRequest, Note
from autoscaler.sandbox.gitlab_model import GitLabRefusal, iso
from autoscaler.sandbox.gitlab_payloads import Json, rest_user
from autoscaler.sandbox.gitlab_site import Site
from autoscaler.sandbox.gitlab_world import BOT, DEVELOPER

_READ = ("api", "read_api")


class MergeRequestRoutes:
    """Handlers over one Site; `add_to` registers them."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Register every route under /api/v4."""
        project = "/api/v4/projects/{project}"
        one = project + r"/merge_requests/{iid:\d+}"
        router.add_get(f"{project}/repository/commits/{{sha}}/merge_requests", self.list_of_commit)
        router.add_get(one, self.show)
        router.add_get(f"{one}/notes", self.list_notes)
        router.add_post(f"{one}/notes", self.add_note)

    async def list_of_commit(self, request: web.Request) -> web.Response:
        """GET /projects/:id/repository/commits/:sha/merge_requests."""
        self._site.tokens.require(request, *_READ)
        world, project = self._site.world, self._site.project(request)
        found = world.merge_requests.of_commit(project.id, request.match_info["sha"])
        return paginate(request, found, self._show, base_url=world.base_url)

    async def show(self, request: web.Request) -> web.Response:
        """GET /projects/:id/merge_requests/:iid."""
        self._site.tokens.require(request, *_READ)
        return web.json_response(self._show(self._merge_request(request)))

    async def list_notes(self, request: web.Request) -> web.Response:
        """GET /projects/:id/merge_requests/:iid/notes?sort=&order_by=: newest first unless asked otherwise."""
        self._site.tokens.require(request, *_READ)
        if request.query.get("order_by", "created_at") not in ("created_at", "updated_at"):
            raise GitLabRefusal(400, "order_by does not have a valid value")
        of, is_rising = self._merge_request(request), request.query.get("sort", "desc") == "asc"
        notes = of.notes if is_rising else of.notes[::-1]
        return paginate(request, notes, lambda note: self._show_note(of, note), base_url=self._site.world.base_url)

    async def add_note(self, request: web.Request) -> web.Response:
        """POST /projects/:id/merge_requests/:iid/notes."""
        self._site.tokens.require(request, "api")
        to, given = self._merge_request(request), await parameters(request)
        if "body" not in given:
            raise GitLabRefusal(400, "body is missing")
        note = self._site.world.merge_requests.add_note(to, str(given["body"]), BOT, self._site.clock())
        return web.json_response(self._show_note(to, note), status=201)

    def _merge_request(self, request: web.Request) -> MergeRequest:
        project = self._site.project(request)
        return self._site.world.merge_requests.get(project.id, int(request.match_info["iid"]))

    def _show(self, one: MergeRequest) -> Json:
        world = self._site.world
        path = world.projects[one.project_id].path
        return {
            "id": one.project_id * 1000 + one.iid,
            "iid": one.iid,
            "project_id": one.project_id,
            "title": one.source_branch,
            "state": "opened" if one.is_open else "closed",
            "source_branch": one.source_branch,
            "target_branch": "main",
            "author": rest_user(world.base_url, DEVELOPER),
            "web_url": f"{world.base_url}/{path}/-/merge_requests/{one.iid}",
        }

    def _show_note(self, of: MergeRequest, note: Note) -> Json:
        return {
            "id": note.id,
            "type": None,
            "body": note.body,
            "author": rest_user(self._site.world.base_url, note.author),
            "created_at": iso(note.created_at),
            "updated_at": iso(note.created_at),
            "system": False,
            "noteable_id": of.project_id * 1000 + of.iid,
            "noteable_iid": of.iid,
            "noteable_type": "MergeRequest",
            "project_id": of.project_id,
            "resolvable": False,
            "confidential": False,
            "internal": False,
        }
