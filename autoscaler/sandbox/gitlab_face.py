"""A GitLab over HTTP: /api/v4 for API clients and for runners, and the webhooks it sends, over one GitLabWorld.

    request -> latency -> forge_error fault -> API rate limit -> route -> world
                                                                  |
             webhooks to the daemon, long polls woken <- settle <-+<- ticker (what GitLab does by itself)

python-gitlab and gitlab-runner work against it unmodified. Knows how GitLab answers; what happens is the world's.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

from aiohttp import web

from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.gitlab_access import AccessTokens, GitLabLimits, Windows
from autoscaler.sandbox.gitlab_model import GitLabRefusal, Project
from autoscaler.sandbox.gitlab_protocol import ProtocolRoutes
from autoscaler.sandbox.gitlab_rest import RestRoutes
from autoscaler.sandbox.gitlab_rest_merge_requests import MergeRequestRoutes
from autoscaler.sandbox.gitlab_rest_runners import RunnerRoutes
from autoscaler.sandbox.gitlab_site import Site, refusal
from autoscaler.sandbox.gitlab_webhooks import Webhooks
from autoscaler.sandbox.gitlab_world import GitLabWorld
from autoscaler.sandbox.workload import RunSpec

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
TICK_S = 1.0
MAX_BODY = 8 << 20


class GitLabFace:
    """Serves a world. `tokens` maps access tokens to their scopes; `webhook_url` makes one hook for all projects.

    `signing_secret` (whsec_...) and `webhook_token` may both be given: GitLab then sends both kinds of proof.
    Everything runs on one event loop; call `submit` from there.
    """

    def __init__(
        self,
        world: GitLabWorld,
        *,
        tokens: Mapping[str, Iterable[str]],
        clock: Callable[[], float] = time.time,
        webhook_url: str | None = None,
        webhook_token: str | None = None,
        signing_secret: str | None = None,
        faults: Faults | None = None,
        limits: GitLabLimits | None = None,
    ) -> None:
        self.world = world
        self._faults = faults or Faults()
        self._error_dice = self._faults.dice("gitlab/forge_error")
        windows = Windows(clock)
        self.webhooks = Webhooks(
            world.projects,
            clock=clock,
            faults=self._faults,
            instance=lambda: world.base_url,
            in_group=self._in_group,
        )
        if webhook_url is not None:
            self.webhooks.add(webhook_url, token=webhook_token, signing_token=signing_secret)
        self._site = Site(
            world=world,
            clock=clock,
            tokens=AccessTokens(tokens),
            windows=windows,
            limits=limits or GitLabLimits(),
            webhooks=self.webhooks,
        )
        self._runner: web.AppRunner | None = None
        self._ticker: asyncio.Task[None] | None = None

    def _in_group(self, project: Project, group_id: int) -> bool:
        return project in self.world.projects_of(self.world.groups[group_id], include_subgroups=True)

    def app(self) -> web.Application:
        """The application, for a server of one's own; `start` makes one itself."""
        app = web.Application(middlewares=[self._answer], client_max_size=MAX_BODY)
        api = (RunnerRoutes(self._site), RestRoutes(self._site), MergeRequestRoutes(self._site))
        for routes in (ProtocolRoutes(self._site), *api):
            routes.add_to(app.router)
        app.on_startup.append(self._begin)
        app.on_cleanup.append(self._end)
        return app

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Serve, and return the URL, which becomes the world's `base_url`."""
        runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        self._runner = runner
        self.world.base_url = f"http://{host}:{runner.addresses[0][1]}"
        return self.world.base_url

    async def aclose(self) -> None:
        """Stop serving and sending. Safe to call twice."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def submit(self, run: RunSpec) -> int:
        """Start a pipeline and announce it; returns its id."""
        pipeline_id = self.world.submit(run, self._site.clock())
        self._site.publish()
        return pipeline_id

    def settle(self) -> None:
        """Let the world catch up with the clock and send what that caused; the face does so by itself each second."""
        self._site.settle()

    async def _begin(self, app: web.Application) -> None:
        self.webhooks.start()
        self._ticker = asyncio.create_task(self._tick_forever())

    async def _end(self, app: web.Application) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        await self.webhooks.aclose()

    async def _tick_forever(self) -> None:
        while True:
            self._site.settle()
            due_at = self.world.next_event_at()
            wait_s = TICK_S if due_at is None else min(TICK_S, max(0.01, due_at - self._site.clock()))
            await asyncio.sleep(wait_s)

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        site = self._site
        if site.limits.latency_s > 0:
            await asyncio.sleep(site.limits.latency_s)
        if self._faults.forge_error > 0 and self._error_dice.random() < self._faults.forge_error:
            return web.Response(
                status=502, text="<html><body><h1>502 Bad Gateway</h1></body></html>", content_type="text/html"
            )
        limit, caller = site.limits.api_per_minute, AccessTokens.presented(request)
        headers: dict[str, str] = {}
        if limit is not None and caller is not None:
            observed = site.windows.count("api", caller)
            headers = site.windows.headers(limit, observed)
            if observed > limit:
                return web.Response(status=429, text="Retry later\n", headers=headers)
        answer = await self._route(request, handler)
        answer.headers.update(headers)
        return answer

    async def _route(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except GitLabRefusal as error:
            return refusal(error)
        except web.HTTPNotFound:
            return web.json_response({"error": "404 Not Found"}, status=404)
        except web.HTTPMethodNotAllowed:
            return web.json_response({"error": "405 Not Allowed"}, status=405)
        finally:
            self._site.publish()
