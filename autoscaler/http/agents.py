"""What agents may ask of the daemon: hello, assignment (long poll), events. See docs/agent-protocol.md.

Owns claims and the registrations that wait for their machine; both live in memory only, the claim's hash also on the
row. Handlers authenticate first, write at most a fact, and wake the loop; they never move a row. A call that fails
authentication changes nothing.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from autoscaler.facts import AgentReported, AgentSaidHello, AssignmentAsked, ClaimDisputed, Fact
from autoscaler.live import LiveRows
from autoscaler.model import Instance, InstanceState, LedgerEntry, Rules
from autoscaler.spi import (
    BatchToken,
    Clock,
    Evidence,
    IdentityRefused,
    InstanceId,
    Provider,
    ProviderError,
    ProviderName,
    Registration,
)
from autoscaler.store import StoreError

log = structlog.get_logger()

HELLO_LIMIT = 16 * 1024
BODY_LIMIT = 64 * 1024
POLL_S = 25.0
IDENTIFY_S = 10.0
HEARTBEAT_S = 5.0
RETRY_S = "0.2"
"""A hello may come before the launch's answer is on the row: that is settled within a tick."""

Text = Annotated[str, StringConstraints(max_length=8192)]
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_HELD = (InstanceState.REGISTERING, InstanceState.IDLE, InstanceState.BUSY, InstanceState.DRAINING)


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Runner(_Body):
    name: Text
    state: Text = ""


class _Hello(_Body):
    provider: Text
    batch: Text
    claim: Hex
    evidence: dict[Text, Text] = Field(max_length=32)
    runner: _Runner | None = None


class _Assignment(_Body):
    instance: Text


class _Event(_Body):
    seq: int = Field(ge=0)
    at: float
    kind: Annotated[str, StringConstraints(max_length=64)]
    detail: dict[Text, Text] = Field(default_factory=dict, max_length=32)


class _Events(_Body):
    instance: Text
    events: list[_Event] = Field(max_length=256)


@dataclass(slots=True)
class _Contact:
    """What one agent has told so far."""

    last_at: datetime
    acknowledged: int = 0
    has_assignment: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class AgentDesk:
    """The counter between machines and the core. `rules` gives max_job_runtime; `report` takes facts."""

    def __init__(
        self,
        rows: LiveRows,
        providers: Mapping[ProviderName, Provider],
        clock: Clock,
        *,
        rules: Callable[[], Rules],
        report: Callable[[Fact], None],
    ) -> None:
        self._rows = rows
        self._providers = providers
        self._clock = clock
        self._rules = rules
        self._report = report
        self._registrations: dict[InstanceId, Registration] = {}
        self._contacts: dict[InstanceId, _Contact] = {}
        self.minting: set[InstanceId] = set()
        self._closing = False

    # ------------------------------------------------------------------ for the core

    def hand_over(self, instance: InstanceId, registration: Registration) -> None:
        """A registration for a machine: its waiting or next assignment call gets it."""
        self._registrations[instance] = registration
        self.wake(instance)

    def take_back(self, instance: InstanceId) -> None:
        """The registration is void; a machine that has not fetched it will not."""
        self._registrations.pop(instance, None)

    def wake(self, instance: InstanceId) -> None:
        """Something changed for a machine: let its waiting call look again."""
        contact = self._contacts.get(instance)
        if contact is not None:
            contact.changed.set()

    def handed(self) -> set[InstanceId]:
        """Machines whose registration exists or is being minted."""
        received = {id_ for id_, contact in self._contacts.items() if contact.has_assignment}
        return received | self._registrations.keys() | self.minting

    def last_contact(self, instance: InstanceId) -> datetime | None:
        contact = self._contacts.get(instance)
        return contact.last_at if contact is not None else None

    def forget_ended(self) -> None:
        """Drop what belongs to machines that ended. Called once per tick."""
        for gone in [id_ for id_ in self._contacts if id_ not in self._rows.instances]:
            self._contacts.pop(gone).changed.set()
        for gone in [id_ for id_ in self._registrations if id_ not in self._rows.instances]:
            del self._registrations[gone]

    def close(self) -> None:
        """Let every waiting call answer now."""
        self._closing = True
        for contact in self._contacts.values():
            contact.changed.set()

    # ------------------------------------------------------------------ calls, free of HTTP

    async def hello(self, body: bytes, peer_address: str) -> tuple[int, dict[str, Any]]:
        """Answer a hello: (status, body). 503 asks the agent to repeat; 403 is final and says nothing more."""
        try:
            hello = _Hello.model_validate_json(body)
        except ValidationError:
            return 400, {"error": "not a hello"}
        provider = self._providers.get(ProviderName(hello.provider))
        if provider is None:
            return 403, {}
        evidence = Evidence(
            claim=hello.claim,
            document=hello.evidence,
            received_at=self._clock.now(),
            peer_address=peer_address,
        )
        try:
            async with asyncio.timeout(IDENTIFY_S):
                provider_id = await provider.identify(evidence)
        except IdentityRefused as error:
            log.warning("hello_refused", provider=hello.provider, reason=error.reason)
            return 403, {}
        except (ProviderError, TimeoutError):
            return 503, {}
        row = self._rows.by_provider_id(provider.name, provider_id)
        if row is None or row.token != BatchToken(hello.batch):
            return 503, {}
        return await self._claim(row, hello)

    async def _claim(self, row: Instance, hello: _Hello) -> tuple[int, dict[str, Any]]:
        """First valid claim owns the machine; the same one again gets the same answer; another is disputed."""
        if row.state in (InstanceState.TERMINATING, InstanceState.TERMINATED):
            return 403, {}
        if row.claim and row.claim != hello.claim:
            self._note_dispute(row)
            return 403, {}
        if not row.claim:
            self._rows.amend(row, claim=hello.claim)
        self._contact(row.id)
        try:
            await self._rows.flush()
        except StoreError:
            return 503, {}
        runner = hello.runner.name if hello.runner is not None and hello.runner.state == "running" else ""
        self._report(AgentSaidHello(instance=row.id, runner_name=runner))
        return 200, {"instance": row.id, "heartbeat_s": HEARTBEAT_S}

    def _note_dispute(self, row: Instance) -> None:
        log.error("claim_disputed", instance=row.id)
        self._rows.note(
            LedgerEntry(
                at=self._clock.now(),
                actor="agent",
                action="claim",
                subject=row.id,
                pool=row.pool,
                reason="a second claim with valid evidence for one machine",
                outcome="refused; the machine is replaced unless it already holds a registration",
            )
        )
        self._report(ClaimDisputed(instance=row.id))

    async def assignment(self, body: bytes, key: str) -> tuple[int, dict[str, Any]]:
        """Wait up to 25 s for this machine's registration."""
        try:
            asked = _Assignment.model_validate_json(body)
        except ValidationError:
            return 400, {"error": "not an assignment request"}
        row = self._authenticate(key, asked.instance)
        if row is None:
            return self._unknown(key)
        contact = self._contact(row.id)
        deadline = self._clock.monotonic() + POLL_S
        while True:
            contact.changed.clear()
            answer = self._assignment_of(row.id, contact)
            if answer is not None:
                return answer
            self._report(AssignmentAsked(instance=row.id))
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0 or self._closing:
                return 204, {}
            try:
                async with asyncio.timeout(left_s):
                    await contact.changed.wait()
            except TimeoutError:
                return 204, {}

    def _assignment_of(self, instance: InstanceId, contact: _Contact) -> tuple[int, dict[str, Any]] | None:
        row = self._rows.instances.get(instance)
        if row is None or row.state is InstanceState.TERMINATING or contact.has_assignment:
            return 410, {}
        registration = self._registrations.get(instance)
        if registration is None or row.state not in _HELD:
            return None
        pool = self._rules().pools.get(row.pool)
        return 200, {
            "kind": registration.kind,
            "runner_name": registration.ref.name,
            "secret": registration.secret.reveal(),
            "parameters": dict(registration.parameters),
            "max_job_runtime_s": pool.max_job_runtime.total_seconds() if pool is not None else 3600.0,
        }

    async def events(self, body: bytes, key: str) -> tuple[int, dict[str, Any]]:
        """Take an agent's events. Repeats are dropped by their number."""
        try:
            told = _Events.model_validate_json(body)
        except ValidationError:
            return 400, {"error": "not events"}
        row = self._authenticate(key, told.instance)
        if row is None:
            return self._unknown(key)
        contact = self._contact(row.id)
        contact.last_at = self._clock.now()
        for event in sorted(told.events, key=lambda event: event.seq):
            if event.seq <= contact.acknowledged:
                continue
            contact.acknowledged = event.seq
            self._take(row, contact, event)
        is_ending = row.state is InstanceState.TERMINATING
        return 200, {"acknowledged": contact.acknowledged, "command": "end" if is_ending else ""}

    def _take(self, row: Instance, contact: _Contact, event: _Event) -> None:
        match event.kind:
            case "heartbeat":
                return
            case "assignment_received":
                contact.has_assignment = True
                self._registrations.pop(row.id, None)
        cause = event.detail.get("cause", event.detail.get("exit_code", ""))[:200]
        log.info("agent_reported", instance=row.id, kind=event.kind, cause=cause)
        ran_job = event.detail.get("ran_job") == "true"
        self._report(AgentReported(instance=row.id, kind=event.kind, cause=cause, ran_job=ran_job))

    # ------------------------------------------------------------------ claims

    def _authenticate(self, key: str, instance: str) -> Instance | None:
        """The machine whose claim this key opens. The key is only ever compared by its hash."""
        row = self._rows.by_claim(_claim_of(key))
        return row if row is not None and row.id == instance else None

    def _unknown(self, key: str) -> tuple[int, dict[str, Any]]:
        """410 for a machine that ended, so that it goes away; 401 makes any other say hello again."""
        return (410, {}) if _claim_of(key) in self._rows.ended_claims else (401, {})

    def _contact(self, instance: InstanceId) -> _Contact:
        contact = self._contacts.get(instance)
        if contact is None:
            contact = self._contacts[instance] = _Contact(last_at=self._clock.now())
        return contact


def _claim_of(key: str) -> str:
    try:
        return hashlib.sha256(bytes.fromhex(key)).hexdigest()
    except ValueError:
        return ""


def make_agent_routes(desk: AgentDesk, archive: bytes) -> list[web.RouteDef]:
    """The routes of the public listener for agents. `archive` is the agent itself, which machines may fetch."""

    async def hello(request: web.Request) -> web.Response:
        body = await _read(request, HELLO_LIMIT)
        return _answer(*await desk.hello(body, request.remote or ""))

    async def assignment(request: web.Request) -> web.Response:
        body = await _read(request, HELLO_LIMIT)
        return _answer(*await desk.assignment(body, _bearer(request)))

    async def events(request: web.Request) -> web.Response:
        body = await _read(request, BODY_LIMIT)
        return _answer(*await desk.events(body, _bearer(request)))

    async def agent(_: web.Request) -> web.Response:
        return web.Response(body=archive, content_type="application/zip")

    return [
        web.post("/agent/v1/hello", hello),
        web.post("/agent/v1/assignment", assignment),
        web.post("/agent/v1/events", events),
        web.get("/agent/v1/agent.pyz", agent),
    ]


async def _read(request: web.Request, limit: int) -> bytes:
    if (request.content_length or 0) > limit:
        raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=request.content_length or 0)
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=len(body))
    return bytes(body)


def _bearer(request: web.Request) -> str:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


def _answer(status: int, body: dict[str, Any]) -> web.Response:
    if status == 204:
        return web.Response(status=204)
    headers = {"Retry-After": RETRY_S} if status == 503 else None
    return web.Response(status=status, text=json.dumps(body), content_type="application/json", headers=headers)
