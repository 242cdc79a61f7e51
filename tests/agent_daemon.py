"""A daemon that speaks docs/agent-protocol.md strictly, for tests of the agent: what the document forbids is noted.

`Memory` is the daemon's store and outlives the server, so that a test can restart the daemon with or without it.
"""

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from runners.bootstrap import build_agent

_EVENT_KINDS = frozenset(
    (
        *("assignment_received", "runner_started", "job_started", "job_completed", "runner_exited"),
        *("runner_stopping", "notice", "heartbeat", "ending", "hook_ended"),
    )
)
_CAUSES = frozenset(
    (
        *("job_done", "not_needed", "refused", "boot_timeout", "max_runtime", "no_contact", "runner_failed"),
        *("reclaimed", "max_lifetime"),
    )
)


@dataclass(slots=True, kw_only=True)
class Memory:
    """What the daemon knows: claims, hellos as they came, events by number."""

    claims: dict[str, str] = field(default_factory=dict)
    hellos: list[dict[str, Any]] = field(default_factory=list)
    events: dict[int, dict[str, Any]] = field(default_factory=dict)
    heartbeats: int = 0
    assignment: dict[str, Any] | None = None
    is_unneeded: bool = False
    command: str = ""

    def kinds(self) -> list[str]:
        """The kinds of the events so far, in order, without heartbeats."""
        return [e["kind"] for _, e in sorted(self.events.items()) if e["kind"] != "heartbeat"]

    def detail(self, kind: str) -> dict[str, str]:
        found = [e["detail"] for e in self.events.values() if e["kind"] == kind]
        assert len(found) == 1, f"{len(found)} events of kind {kind}"
        return dict(found[0])


class AgentDaemon:
    """The server. `violations` must stay empty; `lose_answers` answers are done but never sent."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.violations: list[str] = []
        self.hello_statuses: list[int] = []
        self.lose_answers = 0
        self.repeats = 0
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=64 * 1024)
        app.router.add_get("/agent/v1/agent.pyz", self._agent)
        app.router.add_post("/agent/v1/hello", self._hello)
        app.router.add_post("/agent/v1/assignment", self._assignment)
        app.router.add_post("/agent/v1/events", self._events)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # ------------------------------------------------------------------ calls

    async def _agent(self, _: web.Request) -> web.Response:
        return web.Response(body=build_agent().data)

    async def _hello(self, request: web.Request) -> web.Response:
        body = await self._body(request, {"provider", "batch", "claim", "evidence", "agent", "runner"})
        self._require(len(body["claim"]) == 64, "claim is not the hex of 32 bytes")
        self._require(isinstance(body["agent"].get("version"), str), "agent.version")
        self._require(all(isinstance(v, str) for v in body["evidence"].values()), "evidence is not text")
        runner = body["runner"]
        self._require(runner is None or (set(runner) == {"name", "state"}), "runner")
        self.memory.hellos.append(body)
        if self.hello_statuses and (status := self.hello_statuses.pop(0)) != 200:
            return web.json_response({}, status=status, headers={"Retry-After": "0.1"} if status in (429, 503) else {})
        instance = self.memory.claims.setdefault(body["claim"], "i-1")
        return await self._answer(request, {"instance": instance, "heartbeat_s": 0.1})

    async def _assignment(self, request: web.Request) -> web.Response:
        body = await self._body(request, {"instance"})
        if not self._is_known(request, body["instance"]):
            return web.Response(status=401)
        for _ in range(10):
            if self.memory.is_unneeded or "assignment_received" in self.memory.kinds():
                return web.Response(status=410)
            if self.memory.assignment is not None:
                return await self._answer(request, self.memory.assignment)
            await asyncio.sleep(0.02)
        return web.Response(status=204)

    async def _events(self, request: web.Request) -> web.Response:
        body = await self._body(request, {"instance", "events"})
        if not self._is_known(request, body["instance"]):
            return web.Response(status=401)
        for event in body["events"]:
            self._require(set(event) == {"seq", "at", "kind", "detail"}, f"keys of an event: {sorted(event)}")
            self._require(event["kind"] in _EVENT_KINDS, f"event kind {event['kind']}")
            self._require(event["kind"] != "ending" or event["detail"]["cause"] in _CAUSES, "cause")
            self._require(isinstance(event["seq"], int) and event["seq"] >= 1, "seq")
            if event["kind"] == "heartbeat":
                self.memory.heartbeats += 1
                continue
            known = self.memory.events.setdefault(event["seq"], event)
            self.repeats += known is not event
            self._require(known["kind"] == event["kind"], "a number was used twice")
        acknowledged = max(self.memory.events, default=0)
        return await self._answer(request, {"acknowledged": acknowledged, "command": self.memory.command})

    # ------------------------------------------------------------------ strictness

    async def _body(self, request: web.Request, keys: set[str]) -> dict[str, Any]:
        self._require(request.content_type == "application/json", "content type")
        body = json.loads(await request.read())
        self._require(set(body) == keys, f"{request.path}: keys {sorted(body)}")
        return dict(body)

    def _is_known(self, request: web.Request, instance: str) -> bool:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        self._require(scheme == "Bearer" and len(key) == 64, "authorization")
        claim = hashlib.sha256(bytes.fromhex(key)).hexdigest()
        return self.memory.claims.get(claim) == instance

    def _require(self, is_met: bool, what: str) -> None:
        if not is_met:
            self.violations.append(what)

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        if self.lose_answers > 0:
            self.lose_answers -= 1
            if request.transport is not None:
                request.transport.abort()
        return web.json_response(body)
