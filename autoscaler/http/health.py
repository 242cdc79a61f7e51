"""GET /healthz and /readyz, the same on both listeners: alive, and ready or why not.

Liveness fails only if the loop cannot answer. Readiness lists every condition that is not well, since when, and what
to do about it; a daemon that stands by for the lease is alive and not ready.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from aiohttp import web

from autoscaler.http.documents import condition_document
from autoscaler.http.view import Condition

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Conditions(Protocol):
    def conditions(self) -> Sequence[Condition]: ...


def make_health_routes(view: Conditions) -> Sequence[web.RouteDef]:
    """The two routes, for any listener."""

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def readyz(_: web.Request) -> web.Response:
        unwell = [condition for condition in view.conditions() if not condition.is_well]
        document = {"ready": not unwell, "reasons": [condition_document(condition) for condition in unwell]}
        return web.json_response(document, status=503 if unwell else 200)

    return [web.get("/healthz", healthz), web.get("/readyz", readyz)]
