"""The admin listener's application: health, metrics, the API, the status page, and who may use which of them.

    /healthz /readyz /login /assets    anybody who reaches the listener
    everything else                    a caller that `auth.Access` knows; writes also need to come from our own page

No inline script or style, no foreign resource, no framing: see `_SECURITY_HEADERS`.
"""

from collections.abc import Callable, Sequence

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from autoscaler.http.api import CALLER, make_api_routes
from autoscaler.http.auth import Access, is_same_site
from autoscaler.http.chaos import make_chaos_routes
from autoscaler.http.health import make_health_routes
from autoscaler.http.limits import Network
from autoscaler.http.live import LiveState
from autoscaler.http.pages import Pages
from autoscaler.http.sse import Events
from autoscaler.http.view import DaemonView
from autoscaler.metrics import CONTENT_TYPE, Metrics
from autoscaler.spi import Secret
from autoscaler.store import StoreError

EVENTS = web.AppKey("events", Events)
_OPEN = frozenset({"/healthz", "/readyz", "/login"})
_READS = frozenset({"GET", "HEAD"})
_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_log = structlog.get_logger(__name__)


def make_admin_app(
    view: DaemonView,
    metrics: Metrics,
    admin_tokens: tuple[Secret, ...] | Callable[[], tuple[Secret, ...]],
    trusted: Sequence[Network] = (),
) -> web.Application:
    """The application over a running daemon. Give its runner a short `shutdown_timeout`; streams end at shutdown.

    `admin_tokens` may be asked for with each request, so that a reload changes them; `trusted` are proxies."""
    access = Access(admin_tokens, view.now, trusted)
    pages = Pages(access)
    events = Events(view, LiveState(view))

    async def scrape(_: web.Request) -> web.Response:
        metrics.observe_snapshot(view.snapshot(), view.rules())
        metrics.observe_budgets(view.budgets())
        metrics.observe_providers(view.dropped_notices(), (trouble.target for trouble in view.troubles()))
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application(middlewares=[_failures_as_answers, _guard(access)], client_max_size=64 * 1024)
    app[EVENTS] = events
    app.add_routes(make_health_routes(view))
    app.add_routes(make_api_routes(view, access))
    app.add_routes(make_chaos_routes(view, access))
    app.add_routes(pages.routes())
    app.router.add_get("/metrics", scrape)
    app.router.add_get("/events", events.handle, allow_head=False)
    app.on_response_prepare.append(_add_security_headers)
    app.on_shutdown.append(events.close)
    return app


def _guard(access: Access) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_open = request.path in _OPEN or request.path.startswith("/assets/")
        caller = None if is_open else access.caller(request)
        if not is_open and caller is None:
            raise _refusal(request, access)
        if request.method not in _READS and not (caller and caller.is_bearer) and not is_same_site(request):
            raise web.HTTPForbidden(text="this must be asked for by the status page itself, or with a bearer token")
        if caller is not None:
            request[CALLER] = caller
        return await handler(request)

    return guard


def _refusal(request: web.Request, access: Access) -> web.HTTPException:
    if access.mode == "loopback_only":
        return web.HTTPForbidden(
            text="no admin token is configured, so that only this host may ask: set autoscaler.admin_tokens"
        )
    if request.path == "/" and request.method in _READS:
        return web.HTTPSeeOther("/login")
    return web.HTTPUnauthorized(text="a bearer token is needed", headers={"WWW-Authenticate": "Bearer"})


@web.middleware
async def _failures_as_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal of the API is JSON; nothing of an exception reaches the caller."""
    try:
        return await handler(request)
    except web.HTTPException as refused:
        if refused.status < 400 or not request.path.startswith("/api/"):
            raise
        headers = {
            name: refused.headers[name] for name in ("Retry-After", "WWW-Authenticate") if name in refused.headers
        }
        return web.json_response({"error": refused.text or refused.reason}, status=refused.status, headers=headers)
    except StoreError:
        _log.exception("admin_request_failed", path=request.path)
        return web.json_response({"error": "the store does not answer"}, status=503, headers={"Retry-After": "5"})


async def _add_security_headers(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in _SECURITY_HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault("Cache-Control", "no-store")
