"""The sandbox's github.com over HTTP: what PyGithub and the stand-in runner see of a `GitHubWorld`.

    request -> fault? -> latency -> who calls? -> rate limit -> handler -> ETag -> rate-limit headers

Serves the REST API at `/` and, as GitHub Enterprise Server does, at `/api/v3`; the runners' broker at `/_broker`.
One event loop changes the world, so nothing is locked. A background task lets time pass in the world and hands its
webhooks to the sender. Not for the Internet: plain HTTP, everything in memory.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from aiohttp import web
from aiohttp.typedefs import Middleware

from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.github_auth import AppIdentity, Authenticator, Caller
from autoscaler.sandbox.github_broker import LONG_POLL_S, Broker
from autoscaler.sandbox.github_deliveries import TIMEOUT_S, Deliveries
from autoscaler.sandbox.github_http import CALLER, GHES_PREFIX, failure, with_etag
from autoscaler.sandbox.github_limits import Limits, RateLimiter, Refusal
from autoscaler.sandbox.github_model import GitHubError
from autoscaler.sandbox.github_rest_actions import ActionsApi
from autoscaler.sandbox.github_rest_app import PERMISSIONS, AppApi
from autoscaler.sandbox.github_rest_checks import ChecksApi
from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.workload import RunSpec

RENEW_S = 60.0
_IDLE_S = 1.0
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class GitHubFace:
    """Serves one world. `limits`, `faults` and `latency_s` may be changed while it runs.

    `webhook_url` gets the App's hook (everything of every repository), signed with `webhook_secret`; without it there
    is only what is made through the API. `tokens` are personal tokens that may do everything. `renew_s` is how often
    runners renew their lease: keep it well under the world's `lease_s`. `middlewares` go around everything.
    """

    def __init__(
        self,
        world: GitHubWorld,
        *,
        clock: Callable[[], float] = time.time,
        webhook_url: str | None = None,
        webhook_secret: str = "",
        app: AppIdentity | None = None,
        tokens: Iterable[str] = (),
        faults: Faults | None = None,
        limits: Limits | None = None,
        latency_s: float = 0,
        renew_s: float = RENEW_S,
        long_poll_s: float = LONG_POLL_S,
        webhook_timeout_s: float = TIMEOUT_S,
        minimum_runner_version: str = "0",
        middlewares: Sequence[Middleware] = (),
    ) -> None:
        if renew_s >= world.policy.lease_s:
            raise ValueError(f"renew_s {renew_s} must be below the world's lease_s {world.policy.lease_s}")
        self.world = world
        self.faults = faults or Faults()
        self.latency_s = latency_s
        self._clock = clock
        self._middlewares = middlewares
        self._dice = self.faults.dice("answers")
        self.permissions = dict(PERMISSIONS)
        """What the App was granted everywhere; tests take some of it away."""
        self.authenticator = Authenticator(app, tokens, clock)
        self.limiter = RateLimiter(limits or Limits(), clock)
        self.deliveries = Deliveries(
            world.hooks,
            clock=clock,
            faults=self.faults,
            app_id=0 if app is None else app.app_id,
            timeout_s=webhook_timeout_s,
        )
        self._broker = Broker(
            world,
            clock=clock,
            changed=self._changed,
            long_poll_s=long_poll_s,
            minimum_version=minimum_runner_version,
        )
        self._actions = ActionsApi(world, clock=clock, changed=self._changed, seal=self._broker.seal, renew_s=renew_s)
        self._app_api = AppApi(
            world,
            app=app,
            clock=clock,
            changed=self._changed,
            authenticator=self.authenticator,
            sent=self.deliveries,
            limiter=self.limiter,
            permissions=self.permissions,
        )
        self._checks = ChecksApi(world, app=app, clock=clock, permissions=self.permissions)
        self._moved = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._pump: asyncio.Task[None] | None = None
        if webhook_url is not None:
            world.add_hook(None, webhook_url, secret=webhook_secret.encode(), now=clock())

    def app(self) -> web.Application:
        """The application, for a server of the caller's. While it is served, time passes and webhooks go out."""
        application = web.Application(middlewares=[*self._middlewares, self._middleware], client_max_size=25 * 1024**2)
        for prefix in ("", GHES_PREFIX):
            application.add_routes(self._actions.routes(prefix))
            application.add_routes(self._app_api.routes(prefix))
            application.add_routes(self._checks.routes(prefix))
        application.add_routes(self._broker.routes())
        application.router.add_get("/_logs/{job_id}/{seal}", self._actions.serve_log)
        application.on_startup.append(self._begin)
        application.on_shutdown.append(self._end)
        return application

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listens and gives the base URL, without a slash at the end."""
        self._runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        return f"http://{host}:{self._runner.addresses[0][1]}"

    async def aclose(self) -> None:
        """Stops listening and sending; runners see their connection refused."""
        if self._runner is not None:
            await self._runner.cleanup()
        await self.deliveries.aclose()

    def submit(self, spec: RunSpec) -> int:
        """Starts a run, with its webhooks, and gives its id."""
        run_id = self.world.submit(spec, self._clock())
        self._changed()
        return run_id

    async def webhooks_settled(self) -> None:
        """Returns when every webhook so far is delivered, failed or lost."""
        self._send_webhooks()
        await self.deliveries.settled()

    # -- time and webhooks --------------------------------------------------------------------------------------

    async def _begin(self, _: web.Application) -> None:
        self._pump = asyncio.create_task(self._let_time_pass())

    async def _end(self, _: web.Application) -> None:
        self._broker.close()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)

    def _changed(self) -> None:
        self._moved.set()

    def _send_webhooks(self) -> None:
        for webhook in self.world.drain_webhooks():
            self.deliveries.send(webhook)

    async def _let_time_pass(self) -> None:
        while True:
            self.world.advance(self._clock())
            self._send_webhooks()
            self._broker.wake()
            deadline = self.world.next_deadline()
            wait_s = _IDLE_S if deadline is None else min(_IDLE_S, max(0.01, deadline - self._clock()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._moved.wait()
            self._moved.clear()

    # -- every request ------------------------------------------------------------------------------------------

    @web.middleware
    async def _middleware(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            if request.path.startswith(("/_broker/", "/_logs/")):
                return await handler(request)
            return await self._api_call(request, handler)
        except GitHubError as error:
            return failure(error.status, error.message)
        except web.HTTPNotFound:
            return failure(404, "Not Found")
        except web.HTTPMethodNotAllowed:
            return failure(405, "Method Not Allowed")

    async def _api_call(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        self.limiter.in_flight += 1
        try:
            if self.faults.forge_error > self._dice.random():
                return web.Response(status=502, text="<html><body>Unicorn!</body></html>", content_type="text/html")
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            return await self._charged(request, handler)
        finally:
            self.limiter.in_flight -= 1

    async def _charged(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        self.world.advance(self._clock())
        caller = self.authenticator.identify(request.headers.get("Authorization"))
        request[CALLER] = caller
        free = request.path.removeprefix(GHES_PREFIX) == "/rate_limit"
        refusal = None if free else self.limiter.charge(caller.budget, request.method, _endpoint(request))
        response = _refused(refusal) if refusal else await self._answered(request, handler, caller)
        response.headers.update(self.limiter.headers(caller.budget))
        return response

    async def _answered(self, request: web.Request, handler: _Handler, caller: Caller) -> web.StreamResponse:
        try:
            response = await handler(request)
        except GitHubError as error:
            return failure(error.status, error.message)
        if request.method == "GET" and response.status == 200 and isinstance(response, web.Response):
            response = _with_links(with_etag(request, response), response)
            if response.status == 304:
                self.limiter.refund(caller.budget)
        return response


def _with_links(response: web.Response, original: web.Response) -> web.Response:
    """A 304 says where the next page is, too."""
    if "Link" in original.headers:
        response.headers["Link"] = original.headers["Link"]
    return response


def _refused(refusal: Refusal) -> web.Response:
    response = failure(refusal.status, refusal.message)
    if refusal.retry_after_s is not None:
        response.headers["Retry-After"] = str(refusal.retry_after_s)
    return response


def _endpoint(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return request.path if resource is None else resource.canonical
