"""What agents may ask of the daemon: hello, assignment (long poll), events. See docs/agent-protocol.md.

Owns claims and the registrations that wait for their machine; both live in memory only, the claim's hash also on the
row. Handlers authenticate first, write at most a fact, and wake the loop; they never move a row. A call that fails
authentication changes nothing.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog
from pydantic import ValidationError

from autoscaler.facts import (
    AgentNoticed,
    AgentReported,
    AgentSaidHello,
    AssignmentAsked,
    ClaimDisputed,
    Fact,
    HookEnded,
)
from autoscaler.http.agent_bodies import AssignmentBody, EventBody, EventsBody, HelloBody, HookBody, last_line
from autoscaler.http.identities import Alarms, Strangers, mismatch
from autoscaler.http.limits import Bucket, Refusals
from autoscaler.live import LiveRows
from autoscaler.model import Instance, InstanceState, LedgerEntry, Rules
from autoscaler.spi import (
    BatchToken,
    Clock,
    Evidence,
    IdentityRefused,
    InstanceId,
    NoticeKind,
    PoolName,
    Provider,
    ProviderError,
    ProviderId,
    ProviderName,
    Registration,
)
from autoscaler.store import StoreError

log = structlog.get_logger()

POLL_S = 25.0
IDENTIFY_S = 10.0
HEARTBEAT_S = 5.0
CONSUMED_S = 8.0
"""How long events wait to be durable before they are answered: less than the 10 s after which an agent gives up."""
CALLS_PER_S, CALLS_BURST = 10.0, 50.0
POLLS_AT_ONCE = 2
"""Assignment calls of one machine: the one that waits, and one more while a broken one is not noticed yet."""

_TOLD_KINDS = frozenset({NoticeKind.RECLAIM, NoticeKind.REBALANCE, NoticeKind.MAINTENANCE})
_AWAITED = (InstanceState.REQUESTED, InstanceState.LAUNCHED)
_RUNNING = (InstanceState.IDLE, InstanceState.BUSY, InstanceState.DRAINING)
"""The registration arrived, also where an earlier process of ours handed it out."""
_HELD = (InstanceState.REGISTERING, InstanceState.IDLE, InstanceState.BUSY, InstanceState.DRAINING)


@dataclass(slots=True, kw_only=True)
class _Contact:
    """What one agent has told so far: events up to number `taken`, of which a restart remembers those up to `durable`;
    `told` is the last that was more than a heartbeat."""

    last_at: datetime
    calls: Bucket
    taken: int = 0
    told: int = 0
    durable: int = 0
    polls: int = 0
    is_claim_durable: bool = False
    is_disputed: bool = False
    has_assignment: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class AgentDesk:
    """The counter between machines and the core. `rules` gives max_job_runtime; `report` takes facts; `consumed`
    returns once all facts reported so far were taken in and what they changed is durable. `address_of` is a machine's
    address as its cloud lists it, "" where it does not."""

    def __init__(
        self,
        rows: LiveRows,
        providers: Mapping[ProviderName, Provider],
        clock: Clock,
        *,
        rules: Callable[[], Rules],
        report: Callable[[Fact], None],
        consumed: Callable[[], Awaitable[None]] | None = None,
        refusals: Refusals | None = None,
        address_of: Callable[[InstanceId], str] = lambda _: "",
    ) -> None:
        self._rows = rows
        self._providers = providers
        self._clock = clock
        self._rules = rules
        self._report = report
        self._consumed = consumed
        self.refusals = refusals or Refusals()
        self.alarms = Alarms(clock)
        self._address_of = address_of
        self._strangers = Strangers()
        self._registrations: dict[InstanceId, Registration] = {}
        self._contacts: dict[InstanceId, _Contact] = {}
        self.minting: set[InstanceId] = set()
        self._open_pools: set[PoolName] = set()
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

    def awaited_batch(self, body: bytes) -> str:
        """The batch that a hello names, if a machine of it has not said hello yet; else ""."""
        try:
            batch = HelloBody.model_validate_json(body).batch
        except ValidationError:
            return ""
        rows = self._rows.of_token(BatchToken(batch))
        return batch if any(not row.claim and row.state in _AWAITED for row in rows) else ""

    async def hello(self, body: bytes, peer_address: str) -> tuple[int, dict[str, Any]]:
        """Answer a hello: (status, body). 503 asks the agent to repeat; 403 is final and says nothing more."""
        try:
            hello = HelloBody.model_validate_json(body)
        except ValidationError:
            self._refuse("hello", "malformed")
            return 400, {"error": "not a hello"}
        provider = self._providers.get(ProviderName(hello.provider))
        if provider is None:
            self._refuse("hello", "unknown_provider", provider=hello.provider)
            return 403, {}
        evidence = Evidence(
            claim=hello.claim,
            document=hello.evidence,
            received_at=self._clock.now(),
            peer_address=peer_address,
        )
        try:
            async with asyncio.timeout(IDENTIFY_S):
                identity = await provider.identify(evidence)
        except IdentityRefused as error:
            self._refuse("hello", f"identity_{error.reason}", provider=provider.name, why=str(error))
            return 403, {}
        except (ProviderError, TimeoutError):
            return 503, {}
        row = self._rows.by_provider_id(provider.name, identity.provider_id)
        if row is None or row.token != BatchToken(hello.batch):
            return self._not_known(provider.name, identity.provider_id, evidence.received_at)
        self._strangers.forget(provider.name, identity.provider_id)
        reason = mismatch(identity, row, address=self._address_of(row.id), now=evidence.received_at)
        if reason:
            self._refuse("hello", f"identity_{reason}", instance=row.id)
            self.alarms.identity_refused(row, reason, identity)
            return 403, {}
        return await self._claim(row, hello)

    def _not_known(self, provider: ProviderName, id_: ProviderId, now: datetime) -> tuple[int, dict[str, Any]]:
        """It may have been launched a moment ago, and its launch's answer be on its way: it may ask again."""
        if (provider, id_) in self._rows.ended_machines or self._strangers.is_overdue(provider, id_, now):
            self._refuse("hello", "identity_unknown", provider=provider, machine=id_)
            return 403, {}
        return 503, {}

    async def _claim(self, row: Instance, hello: HelloBody) -> tuple[int, dict[str, Any]]:
        """First valid claim owns the machine; the same one again gets the same answer; another is disputed."""
        if row.state in (InstanceState.TERMINATING, InstanceState.TERMINATED):
            return 403, {}
        contact = self._contact(row.id)
        if row.claim and row.claim != hello.claim:
            self._refuse("hello", "disputed", instance=row.id)
            if not contact.is_disputed:
                contact.is_disputed = True
                is_handed_out = row.id in self._registrations or contact.has_assignment or row.state in _RUNNING
                self._note_dispute(row, was_handed_out=is_handed_out)
            return 403, {}
        if not row.claim:
            row = self._rows.amend(row, claim=hello.claim)
        if not contact.is_claim_durable:
            try:
                await self._rows.flush()
            except StoreError:
                return 503, {}
            contact.is_claim_durable = True
        self._hear_about(row, hello)
        runner = hello.runner.name if hello.runner is not None and hello.runner.state == "running" else ""
        if row.state is InstanceState.LAUNCHED or runner != row.runner_name:
            self._report(AgentSaidHello(instance=row.id, runner_name=runner))
        return 200, {"instance": row.id, "heartbeat_s": HEARTBEAT_S}

    def _hear_about(self, row: Instance, hello: HelloBody) -> None:
        """Said once for each pool: an image without the firewall rules shows itself only here."""
        if hello.agent.metadata == "open" and row.pool not in self._open_pools:
            self._open_pools.add(row.pool)
            log.warning("jobs_reach_metadata_service", pool=row.pool, provider=row.provider, instance=row.id)

    def _refuse(self, call: str, reason: str, **about: str) -> None:
        self.refusals.count(call, reason, self._clock.monotonic(), **about)

    def _note_dispute(self, row: Instance, *, was_handed_out: bool) -> None:
        if was_handed_out:
            self.alarms.second_claim(row)
        self._rows.note(
            LedgerEntry(
                at=self._clock.now(),
                actor="agent",
                action="claim",
                subject=row.id,
                pool=row.pool,
                reason="a second claim with valid evidence for one machine",
                outcome="refused; the machine is replaced unless a job runs on it",
            )
        )
        self._report(ClaimDisputed(instance=row.id))

    async def assignment(self, body: bytes, key: str) -> tuple[int, dict[str, Any]]:
        """Wait up to 25 s for this machine's registration."""
        try:
            asked = AssignmentBody.model_validate_json(body)
        except ValidationError:
            return 400, {"error": "not an assignment request"}
        row = self._authenticate(key, asked.instance)
        if row is None:
            return self._unknown(key)
        contact = self._contact(row.id)
        if contact.polls >= POLLS_AT_ONCE or not contact.calls.spend(self._clock.monotonic()):
            self._refuse("assignment", "rate", instance=row.id)
            return 429, {}
        contact.polls += 1
        try:
            return await self._wait_for_assignment(row, contact)
        finally:
            contact.polls -= 1

    async def _wait_for_assignment(self, row: Instance, contact: _Contact) -> tuple[int, dict[str, Any]]:
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
        """Take an agent's events. Repeats are dropped by their number; acknowledged is what a restart remembers."""
        try:
            told = EventsBody.model_validate_json(body)
        except ValidationError:
            return 400, {"error": "not events"}
        row = self._authenticate(key, told.instance)
        if row is None:
            return self._unknown(key)
        contact = self._contact(row.id)
        contact.last_at = self._clock.now()
        if not contact.calls.spend(self._clock.monotonic()):
            self._refuse("events", "rate", instance=row.id)
            return 429, {}
        for event in sorted(told.events, key=lambda event: event.seq):
            if event.seq > contact.taken:
                contact.taken = event.seq
                contact.told = contact.told if event.kind == "heartbeat" else event.seq
                self._take(row, contact, event)
        await self._until_durable(contact)
        now = self._rows.instances.get(row.id)
        is_ending = now is None or now.state is InstanceState.TERMINATING
        return 200, {"acknowledged": contact.durable, "command": "end" if is_ending else ""}

    async def _until_durable(self, contact: _Contact) -> None:
        """What a kill -9 would lose is not acknowledged: the agent repeats it."""
        taken = contact.taken
        if contact.told > contact.durable and self._consumed is not None:
            try:
                async with asyncio.timeout(CONSUMED_S):
                    await self._consumed()
            except TimeoutError:
                return
        contact.durable = max(contact.durable, taken)

    def _take(self, row: Instance, contact: _Contact, event: EventBody) -> None:
        match event.kind:
            case "heartbeat":
                return
            case "assignment_received":
                contact.has_assignment = True
                self._registrations.pop(row.id, None)
            case "notice":
                self._take_notice(row, event)
                return
            case "hook_ended":
                self._take_hook(row, event)
                return
        cause = event.detail.get("cause", event.detail.get("exit_code", ""))[:200]
        log.info("agent_reported", instance=row.id, kind=event.kind, cause=cause)
        ran_job = event.detail.get("ran_job") == "true"
        at = _instant(event.at)
        output = last_line(event.detail.get("output", ""))
        self._report(
            AgentReported(instance=row.id, kind=event.kind, cause=cause, ran_job=ran_job, at=at, output=output)
        )

    def _take_notice(self, row: Instance, event: EventBody) -> None:
        """A warning that cannot be read is no reason to refuse the events beside it."""
        kind, reclaim_at = event.detail.get("kind", NoticeKind.RECLAIM), _instant(event.detail.get("reclaim_at", ""))
        if kind not in _TOLD_KINDS or reclaim_at is None:
            self._refuse("events", "notice", instance=row.id)
            return
        log.info("agent_noticed", instance=row.id, kind=kind, reclaim_at=reclaim_at.isoformat())
        self._report(AgentNoticed(instance=row.id, kind=NoticeKind(kind), reclaim_at=reclaim_at))

    def _take_hook(self, row: Instance, event: EventBody) -> None:
        try:
            told = HookBody.model_validate(event.detail)
        except ValidationError:
            self._refuse("events", "hook", instance=row.id)
            return
        log.info("agent_hook_ended", instance=row.id, seconds=told.seconds, outcome=told.outcome)
        code = "" if told.exit_code in (None, 0) else str(told.exit_code)
        self._report(HookEnded(instance=row.id, seconds=told.seconds, outcome=told.outcome, exit_code=code))

    # ------------------------------------------------------------------ claims

    def refusal_of(self, key: str) -> int | None:
        """The status to refuse a key with before its body is read; None for the key of a live machine."""
        return None if self._rows.by_claim(claim_of(key)) is not None else self._unknown(key)[0]

    def _authenticate(self, key: str, instance: str) -> Instance | None:
        """The machine whose claim this key opens. The key is only ever compared by its hash."""
        row = self._rows.by_claim(claim_of(key))
        return row if row is not None and row.id == instance else None

    def _unknown(self, key: str) -> tuple[int, dict[str, Any]]:
        """410 for a machine that ended, so that it goes away; 401 makes any other say hello again."""
        return (410, {}) if claim_of(key) in self._rows.ended_claims else (401, {})

    def _contact(self, instance: InstanceId) -> _Contact:
        contact = self._contacts.get(instance)
        if contact is None:
            calls = Bucket.full(CALLS_PER_S, CALLS_BURST, self._clock.monotonic())
            contact = self._contacts[instance] = _Contact(last_at=self._clock.now(), calls=calls)
        return contact


def _instant(seconds: str | float) -> datetime | None:
    """Epoch seconds as a machine tells them; None for what is no time of this century."""
    try:
        at = float(seconds)
    except ValueError:
        return None
    return datetime.fromtimestamp(at, UTC) if 1e9 < at < 4e9 else None


def claim_of(key: str) -> str:
    try:
        return hashlib.sha256(bytes.fromhex(key)).hexdigest()
    except ValueError:
        return ""
