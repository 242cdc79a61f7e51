"""The routes of the public listener for agents: who is read at all, and how much. What is answered is the desk's."""

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any

from aiohttp import web

from autoscaler.http.agents import AgentDesk, claim_of
from autoscaler.http.limits import BodyBudget, BodyRefused, HelloLimits, Network, peer_address, read_body
from autoscaler.http.listener import know_caller

HELLO_LIMIT = 16 * 1024
BODY_LIMIT = 64 * 1024
RETRY_S = "0.2"
"""A hello may come before the launch's answer is on the row: that is settled within a tick."""

_Call = Callable[[bytes, str], Awaitable[tuple[int, dict[str, Any]]]]


def make_agent_routes(
    desk: AgentDesk, archive: bytes, bodies: BodyBudget | None = None, trusted: Sequence[Network] = ()
) -> list[web.RouteDef]:
    """The routes of the public listener for agents. `archive` is the agent itself, which machines may fetch; `bodies`
    is the budget of the listener; X-Forwarded-For of `trusted` proxies is believed."""
    routes = _Routes(desk, archive, bodies or BodyBudget(), trusted)
    return [
        web.post("/agent/v1/hello", routes.hello),
        web.post("/agent/v1/assignment", routes.assignment),
        web.post("/agent/v1/events", routes.events),
        web.get("/agent/v1/agent.pyz", routes.agent),
    ]


class _Routes:
    """Who may be read at all: a hello by the rate of its batch or address, any other call by its key."""

    def __init__(self, desk: AgentDesk, archive: bytes, bodies: BodyBudget, trusted: Sequence[Network]) -> None:
        self._desk = desk
        self._archive = archive
        self._bodies = bodies
        self._trusted = trusted
        self._hellos = HelloLimits()

    async def hello(self, request: web.Request) -> web.Response:
        peer = peer_address(request, self._trusted)
        try:
            body = await read_body(request, HELLO_LIMIT, self._bodies)
        except BodyRefused as refused:
            return self._not_read("hello", refused)
        wait_s = self._hellos.wait_s(peer, monotonic(), batch=self._desk.awaited_batch(body))
        if wait_s > 0:
            self._desk.refusals.count("hello", "rate", monotonic(), address=peer)
            return _answer(429, {}, retry_after=str(math.ceil(wait_s)))
        status, answer = await self._desk.hello(body, peer)
        if status in (400, 403):
            self._hellos.refused(peer, monotonic())
        return _answer(status, answer)

    async def assignment(self, request: web.Request) -> web.Response:
        return await self._with_key(request, "assignment", HELLO_LIMIT, self._desk.assignment)

    async def events(self, request: web.Request) -> web.Response:
        return await self._with_key(request, "events", BODY_LIMIT, self._desk.events)

    async def agent(self, _: web.Request) -> web.Response:
        return web.Response(body=self._archive, content_type="application/zip")

    async def _with_key(self, request: web.Request, call: str, limit: int, answer: _Call) -> web.Response:
        key = _bearer(request)
        if (status := self._desk.refusal_of(key)) is not None:
            self._desk.refusals.count(call, "unknown_key" if status == 401 else "ended", monotonic())
            return _answer(status, {})
        know_caller(request, claim_of(key))
        try:
            body = await read_body(request, limit, self._bodies)
        except BodyRefused as refused:
            return self._not_read(call, refused)
        return _answer(*await answer(body, key))

    def _not_read(self, call: str, refused: BodyRefused) -> web.Response:
        self._desk.refusals.count(call, refused.outcome, monotonic())
        return _answer(refused.status, {"error": refused.outcome}, retry_after="5" if refused.status == 503 else "")


def _bearer(request: web.Request) -> str:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


def _answer(status: int, body: dict[str, Any], *, retry_after: str = "") -> web.Response:
    if status == 204:
        return web.Response(status=204)
    after = retry_after or {503: RETRY_S, 429: "1"}.get(status, "")
    headers = {"Retry-After": after} if after else None
    return web.Response(status=status, text=json.dumps(body), content_type="application/json", headers=headers)
