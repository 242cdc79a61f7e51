"""GET /healthz and /readyz, on both listeners: alive, and ready or why not (in full on the admin listener only).

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


def make_health_routes(view: Conditions, *, is_public: bool = False) -> Sequence[web.RouteDef]:
    """The two routes, for any listener. A public one names what is not well and keeps the details to itself."""

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def readyz(_: web.Request) -> web.Response:
        unwell = [condition for condition in view.conditions() if not condition.is_well]
        reasons = [{"name": condition.name} if is_public else condition_document(condition) for condition in unwell]
        document = {"ready": not unwell, "reasons": reasons}
        return web.json_response(document, status=503 if unwell else 200)

    return [web.get("/healthz", healthz), web.get("/readyz", readyz)]
