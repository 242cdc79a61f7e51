"""What agents may ask: the first valid claim owns a machine, a repeat gets the same answer, everything else nothing.

Longer than others: what one desk may be asked, and by whom, is read against one set of builders.
"""

import asyncio
import hashlib
import json
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import aiohttp
import pytest
import structlog
from aiohttp import web

from autoscaler.facts import (
    AgentNoticed,
    AgentReported,
    AgentSaidHello,
    AssignmentAsked,
    ClaimDisputed,
    Fact,
    HookEnded,
)
from autoscaler.http import agent_routes, agents, limits
from autoscaler.http.agent_routes import BODY_LIMIT, HELLO_LIMIT, make_agent_routes
from autoscaler.http.agents import AgentDesk
from autoscaler.live import LiveRows
from autoscaler.model import EndReason, Instance, InstanceState
from autoscaler.spi import (
    Evidence,
    Identity,
    IdentityRefused,
    InstanceId,
    NoticeKind,
    Provider,
    ProviderError,
    ProviderId,
    ProviderName,
    Registration,
    RunnerId,
    RunnerRef,
    Secret,
)
from autoscaler.store import Changes, LeaseLost, StoreError
from autoscaler.store.memory import MemoryStore
from tests.admin_world import LINUX, instance, pool, rules_of
from tests.unit.observing import NOW, SCOPE, provider_id

S = InstanceState
CLOUD = ProviderName("aws")
KEY, OTHER_KEY = "11" * 32, "22" * 32
SECRET = "jit-config-of-the-desk-tests"


def claim_of(key: str) -> str:
    return hashlib.sha256(bytes.fromhex(key)).hexdigest()


class Notary:
    """The part of a provider that hellos use: `valid` documents prove the machine that they name."""

    name = CLOUD

    def __init__(self) -> None:
        self.fails: ProviderError | None = None
        self.says: dict[str, Any] = {}

    async def identify(self, evidence: Evidence) -> Identity:
        if self.fails is not None:
            raise self.fails
        if evidence.document.get("proof") != "valid":
            raise IdentityRefused("the signature does not fit", reason="signature")
        return Identity(provider_id=ProviderId(evidence.document["id"]), **self.says)


class BreakableStore(MemoryStore):
    failure: StoreError | None = None

    async def commit(self, changes: Changes) -> None:
        if self.failure is not None:
            raise self.failure
        await super().commit(changes)


class CountedRefusals(limits.Refusals):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Tally[tuple[str, str]] = Tally()

    def count(self, call: str, reason: str, now: float, **about: str) -> None:
        self.counts[call, reason] += 1
        super().count(call, reason, now, **about)


@dataclass
class Durability:
    """What `Loop.consumed` is to the desk: done at once, unless held up."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def consumed(self) -> None:
        await self.gate.wait()


class WallClock:
    def now(self) -> Any:
        return NOW

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class Counter:
    """A desk behind its routes, over real rows."""

    store: BreakableStore
    rows: LiveRows
    desk: AgentDesk
    notary: Notary
    durability: Durability = field(default_factory=Durability)
    facts: list[Fact] = field(default_factory=list)
    addresses: dict[InstanceId, str] = field(default_factory=dict)
    refused: Tally[tuple[str, str]] = field(default_factory=Tally)
    url: str = ""
    client: Any = None

    async def post(self, call: str, body: Any, *, key: str = "", raw: bytes | None = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        data = json.dumps(body).encode() if raw is None else raw
        async with self.client.post(f"{self.url}/agent/v1/{call}", data=data, headers=headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text.startswith("{") else text

    async def hello(self, key: str = KEY, *, machine: int = 1, **changes: Any) -> tuple[int, Any]:
        body = {
            "provider": "aws",
            "batch": f"b-{machine}",
            "claim": claim_of(key),
            "evidence": {"proof": "valid", "id": f"p-{machine}"},
            "agent": {"version": "1"},
            "runner": None,
        }
        return await self.post("hello", {**body, **changes})

    async def assignment(self, key: str = KEY, *, machine: int = 1) -> tuple[int, Any]:
        return await self.post("assignment", {"instance": f"i-{machine:04x}"}, key=key)

    async def tell(self, *kinds: str, key: str = KEY, first: int = 1, machine: int = 1) -> tuple[int, Any]:
        told = [{"seq": first + n, "at": 1.0, "kind": kind, "detail": {}} for n, kind in enumerate(kinds)]
        return await self.post("events", {"instance": f"i-{machine:04x}", "events": told}, key=key)

    def have(self, number: int = 1, state: InstanceState = S.LAUNCHED, **changes: Any) -> Instance:
        row = instance(number, NOW, state, version=0, provider_id=provider_id(number), **changes)
        return self.rows.add_instance(row, cause="test")

    def row(self, number: int = 1) -> Instance:
        return self.rows.instances[InstanceId(f"i-{number:04x}")]

    def move(self, state: InstanceState, number: int = 1, **changes: Any) -> Instance:
        return self.rows.move(self.row(number), state, now=NOW, cause="test", **changes)

    def hand_over(self, number: int = 1) -> None:
        self.move(S.READY, number)
        self.move(S.REGISTERING, number)
        ref = RunnerRef(scope=SCOPE, runner_id=RunnerId("9"), name="ours--1")
        registration = Registration(ref=ref, kind="github", secret=Secret(SECRET), parameters={"url": "http://x"})
        self.desk.hand_over(self.row(number).id, registration)

    def told(self, kind: type[Fact]) -> Sequence[Fact]:
        return [fact for fact in self.facts if isinstance(fact, kind)]


@pytest.fixture
async def counter(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Counter]:
    monkeypatch.setattr(agents, "POLL_S", 0.2)
    monkeypatch.setattr(agents, "CONSUMED_S", 0.2)
    store = BreakableStore()
    await store.open()
    await store.acquire_lease("test")
    rows, notary, facts = LiveRows(store), Notary(), list[Fact]()
    rules = rules_of(pool(LINUX, "linux"))
    providers = {CLOUD: cast(Provider, notary)}
    durability = Durability()
    addresses: dict[InstanceId, str] = {}
    counted = CountedRefusals()
    desk = AgentDesk(
        rows,
        providers,
        WallClock(),
        rules=lambda: rules,
        report=facts.append,
        consumed=durability.consumed,
        refusals=counted,
        address_of=lambda machine: addresses.get(machine, ""),
    )
    one = Counter(
        store=store,
        rows=rows,
        desk=desk,
        notary=notary,
        durability=durability,
        facts=facts,
        addresses=addresses,
        refused=counted.counts,
    )
    app = web.Application(client_max_size=0)
    app.add_routes(make_agent_routes(desk, b"PK the agent"))
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as one.client:
        yield one
    await runner.cleanup()


# ---------------------------------------------------------------------- hello


async def test_the_first_valid_claim_owns_the_machine(counter: Counter) -> None:
    counter.have()
    status, answer = await counter.hello()
    assert (status, answer["instance"]) == (200, "i-0001")
    assert counter.row().claim == claim_of(KEY)
    assert counter.told(AgentSaidHello)
    stored = await counter.store.instance(counter.row().id)
    assert stored is not None
    assert stored.claim == claim_of(KEY), "the claim is durable before it is answered"


async def test_the_same_claim_again_gets_the_same_answer(counter: Counter) -> None:
    counter.have()
    first = await counter.hello()
    assert await counter.hello() == first
    assert not counter.told(ClaimDisputed)


async def test_another_claim_with_valid_evidence_is_refused_noted_and_alarming(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    assert await counter.hello(OTHER_KEY) == (403, {})
    assert counter.row().claim == claim_of(KEY)
    assert counter.told(ClaimDisputed)
    await counter.rows.flush()
    ((_, entry),) = await counter.store.ledger(limit=5)
    assert (entry.action, entry.subject) == ("claim", "i-0001")


@pytest.mark.parametrize(
    "changes",
    [
        {"evidence": {"proof": "forged", "id": "p-1"}},
        {"evidence": {}},
        {"provider": "unknown"},
        {"provider": ""},
    ],
)
async def test_invalid_evidence_is_refused_and_changes_nothing(counter: Counter, changes: dict[str, Any]) -> None:
    counter.have()
    before = counter.row()
    assert await counter.hello(**changes) == (403, {})
    assert counter.row() == before
    assert not counter.facts


async def test_valid_evidence_of_a_machine_that_is_not_known_yet_comes_again(counter: Counter) -> None:
    status, answer = await counter.hello()
    assert (status, answer) == (503, {})
    assert not counter.rows.instances
    counter.have()
    assert (await counter.hello())[0] == 200


async def test_a_machine_of_another_batch_gets_nothing(counter: Counter) -> None:
    counter.have()
    assert (await counter.hello(batch="b-other"))[0] == 503
    assert not counter.row().claim


async def test_a_machine_that_is_being_ended_is_refused(counter: Counter) -> None:
    counter.have()
    counter.move(S.TERMINATING, ending=EndReason.SURPLUS)
    assert await counter.hello() == (403, {})


async def test_an_identity_service_that_fails_is_asked_again(counter: Counter) -> None:
    counter.have()
    counter.notary.fails = ProviderError("throttled")
    assert (await counter.hello())[0] == 503
    counter.notary.fails = None
    assert (await counter.hello())[0] == 200


@pytest.mark.parametrize("failure", [StoreError("disk is full"), LeaseLost("gone")])
async def test_a_claim_that_is_not_durable_is_not_answered(counter: Counter, failure: StoreError) -> None:
    counter.have()
    await counter.rows.flush()
    counter.store.failure = failure
    assert await counter.hello() == (503, {})
    assert not counter.told(AgentSaidHello)
    counter.store.failure = None
    assert (await counter.hello())[0] == 200


GARBAGE: list[bytes] = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b"{}",
    b'{"provider": 1}',
    b'{"provider": "aws", "batch": "b-1", "claim": "zz", "evidence": {}}',
    b'{"provider": "aws", "batch": "b-1", "claim": null, "evidence": {"a": {"b": 1}}}',
    b'{"provider": "\\ud800", "batch": "b-1", "claim": "' + b"0" * 64 + b'", "evidence": {}}',
    b"[" * 9_000,
    b"9" * 9_000,
]


@pytest.mark.parametrize("call", ["hello", "assignment", "events"])
@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_is_a_bad_request_and_changes_nothing(counter: Counter, call: str, body: bytes) -> None:
    counter.have(claim=claim_of(KEY))
    before = counter.row()
    status, _ = await counter.post(call, None, key=KEY, raw=body)
    assert status == 400
    assert counter.row() == before
    assert not counter.facts


@pytest.mark.parametrize(
    ("call", "limit"), [("hello", HELLO_LIMIT), ("assignment", HELLO_LIMIT), ("events", BODY_LIMIT)]
)
async def test_an_oversized_body_is_refused(counter: Counter, call: str, limit: int) -> None:
    counter.have(claim=claim_of(KEY))
    status, _ = await counter.post(call, None, key=KEY, raw=b" " * (limit + 1))
    assert status == 413


async def test_an_oversized_body_without_an_announcement_is_refused_on_the_way(counter: Counter) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 1024

    async with counter.client.post(f"{counter.url}/agent/v1/hello", data=chunks()) as answer:
        assert answer.status == 413


# ---------------------------------------------------------------------- assignment


async def test_a_machine_with_nothing_to_do_is_told_to_ask_again(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    assert (await counter.assignment())[0] == 204
    assert counter.told(AssignmentAsked)


async def test_a_registration_reaches_the_waiting_machine(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    waiting = asyncio.create_task(counter.assignment())
    while not counter.told(AssignmentAsked):
        await asyncio.sleep(0.005)
    counter.hand_over()
    status, answer = await waiting
    assert status == 200
    assert (answer["kind"], answer["runner_name"], answer["secret"]) == ("github", "ours--1", SECRET)
    assert answer["max_job_runtime_s"] == 6 * 3600


async def test_an_assignment_that_was_not_acknowledged_is_answered_the_same_again(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    counter.hand_over()
    first = await counter.assignment()
    assert first[0] == 200
    assert await counter.assignment() == first


async def test_after_its_receipt_the_secret_is_forgotten(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    counter.hand_over()
    await counter.assignment()
    assert (await counter.tell("assignment_received"))[0] == 200
    status, answer = await counter.assignment()
    assert (status, answer) == (410, {})


async def test_a_registration_that_was_taken_back_is_handed_to_nobody(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    counter.hand_over()
    counter.desk.take_back(counter.row().id)
    assert (await counter.assignment())[0] == 204


@pytest.mark.parametrize("key", ["", OTHER_KEY, "not hex", "11" * 31, "é" * 64])
@pytest.mark.parametrize("call", ["assignment", "events"])
async def test_a_wrong_key_gets_nothing(counter: Counter, call: str, key: str) -> None:
    counter.have()
    await counter.hello()
    counter.hand_over()
    counter.facts.clear()
    headers = {"Authorization": f"Bearer {key}".encode().decode("latin-1")}
    body = {"instance": "i-0001", "events": [{"seq": 1, "at": 1, "kind": "ending", "detail": {"cause": "x"}}]}
    async with counter.client.post(f"{counter.url}/agent/v1/{call}", json=body, headers=headers) as answer:
        assert answer.status == 401
        assert SECRET not in await answer.text()
    assert not counter.facts


async def test_a_key_opens_its_own_machine_only(counter: Counter) -> None:
    counter.have(1)
    counter.have(2)
    await counter.hello(KEY, machine=1)
    await counter.hello(OTHER_KEY, machine=2)
    counter.hand_over(1)
    assert (await counter.assignment(OTHER_KEY, machine=1))[0] == 401
    assert (await counter.tell("ending", key=OTHER_KEY, machine=1))[0] == 401
    assert (await counter.assignment(KEY, machine=1))[0] == 200


async def test_an_ended_machine_is_told_to_go(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    counter.move(S.TERMINATED, ending=EndReason.VANISHED)
    counter.desk.forget_ended()
    assert (await counter.assignment())[0] == 410
    assert (await counter.tell("heartbeat"))[0] == 410


async def test_a_machine_that_is_being_ended_gets_no_assignment_and_the_command_to_end(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    counter.hand_over()
    counter.move(S.TERMINATING, ending=EndReason.SURPLUS)
    assert (await counter.assignment())[0] == 410
    status, answer = await counter.tell("heartbeat")
    assert (status, answer["command"]) == (200, "end")


# ---------------------------------------------------------------------- events


async def test_events_are_taken_once_and_in_order(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    counter.facts.clear()
    status, answer = await counter.tell("runner_started", "job_started", first=3)
    assert (status, answer) == (200, {"acknowledged": 4, "command": ""})
    assert (await counter.tell("runner_started", "job_started", first=3))[1]["acknowledged"] == 4
    told = [fact.kind for fact in counter.facts if isinstance(fact, AgentReported)]
    assert told == ["runner_started", "job_started"]


async def test_a_heartbeat_is_no_news(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    counter.facts.clear()
    await counter.tell("heartbeat", "heartbeat")
    assert not counter.facts
    assert counter.desk.last_contact(counter.row().id) == NOW


async def test_unknown_words_of_an_agent_reach_the_core_as_they_are(counter: Counter) -> None:
    """A newer agent may say more; what it says of others is a hint at most."""
    counter.have()
    await counter.hello()
    assert (await counter.tell("sang_a_song"))[0] == 200


async def test_no_answer_and_no_repr_shows_a_secret(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    counter.hand_over()
    assert SECRET not in repr(vars(counter.desk))
    for answer in (await counter.hello(), await counter.tell("heartbeat"), await counter.hello(OTHER_KEY)):
        assert SECRET not in json.dumps(answer)


async def test_the_agent_itself_can_be_fetched(counter: Counter) -> None:
    async with counter.client.get(f"{counter.url}/agent/v1/agent.pyz") as answer:
        assert (answer.status, await answer.read()) == (200, b"PK the agent")


# ---------------------------------------------------------------------- what strangers and floods get


async def test_what_a_crash_would_lose_is_not_acknowledged(counter: Counter) -> None:
    counter.have(claim=claim_of(KEY))
    await counter.tell("runner_started")
    counter.durability.gate.clear()
    assert (await counter.tell("runner_exited", first=2))[1]["acknowledged"] == 1
    assert (await counter.tell("heartbeat", first=3))[1]["acknowledged"] == 1
    counter.durability.gate.set()
    assert (await counter.tell("runner_exited", first=2))[1]["acknowledged"] == 3
    assert [fact.kind for fact in counter.facts if isinstance(fact, AgentReported)] == [
        "runner_started",
        "runner_exited",
    ]


async def test_heartbeats_wait_for_nothing(counter: Counter) -> None:
    counter.have(claim=claim_of(KEY))
    counter.durability.gate.clear()
    assert (await counter.tell("heartbeat"))[1]["acknowledged"] == 1


@pytest.mark.parametrize("call", ["assignment", "events"])
async def test_the_body_of_an_unknown_key_is_not_read(counter: Counter, call: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b" "
        await asyncio.Event().wait()

    request = counter.client.post(
        f"{counter.url}/agent/v1/{call}", data=endless(), headers={"Authorization": f"Bearer {OTHER_KEY}"}
    )
    async with asyncio.timeout(5), request as answer:
        assert answer.status == 401


async def test_a_body_that_does_not_come_is_given_up(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b" "
        await asyncio.Event().wait()

    monkeypatch.setattr(limits, "BODY_TIMEOUT_S", 0.1)
    async with asyncio.timeout(5), counter.client.post(f"{counter.url}/agent/v1/hello", data=endless()) as answer:
        assert answer.status == 408


async def test_an_identical_hello_is_no_news(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    counter.move(S.READY)
    counter.facts.clear()
    counter.store.failure = StoreError("no commit is needed")
    assert (await counter.hello())[0] == 200
    assert not counter.facts
    assert (await counter.hello(runner={"name": "ours--1", "state": "running"}))[0] == 200
    assert [fact.runner_name for fact in counter.facts if isinstance(fact, AgentSaidHello)] == ["ours--1"]


async def test_a_dispute_is_noted_once(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    for _ in range(3):
        assert (await counter.hello(OTHER_KEY))[0] == 403
    await counter.rows.flush()
    assert len(await counter.store.ledger(limit=10)) == 1
    assert len(counter.told(ClaimDisputed)) == 1


async def test_one_address_cannot_flood_with_hellos(counter: Counter) -> None:
    answers = [await counter.post("hello", None, raw=b"{") for _ in range(260)]
    assert {status for status, _ in answers} == {400, 429}
    assert [status for status, _ in answers[:200]] == [400] * 200


async def test_one_machine_cannot_flood_with_calls(counter: Counter) -> None:
    counter.have(claim=claim_of(KEY))
    counter.have(2, claim=claim_of(OTHER_KEY))
    answers = [(await counter.tell("heartbeat", first=n))[0] for n in range(1, 100)]
    assert set(answers) == {200, 429}
    assert (await counter.tell("heartbeat", key=OTHER_KEY, machine=2))[0] == 200


async def test_one_machine_holds_few_assignment_calls_open(counter: Counter) -> None:
    counter.have(claim=claim_of(KEY))
    answers = await asyncio.gather(*(counter.assignment() for _ in range(5)))
    assert sorted(status for status, _ in answers) == [204, 204, 429, 429, 429]


# ---------------------------------------------------------------------- what an identity must agree with


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"machine_type": "x99.huge"}, "type"),
        ({"zone": "us-west-2c"}, "zone"),
        ({"address": "10.0.0.66"}, "address"),
        ({"started_at": NOW - timedelta(hours=1)}, "window"),
        ({"started_at": NOW + timedelta(minutes=2)}, "window"),
    ],
)
async def test_identity_that_is_not_what_was_launched_is_refused_and_the_caller_is_told_nothing(
    counter: Counter, said: dict[str, Any], reason: str
) -> None:
    counter.have()
    counter.addresses[counter.row().id] = "10.0.0.5"
    counter.notary.says = said
    before = counter.row()
    assert await counter.hello() == (403, {})
    assert counter.row() == before
    assert not counter.facts
    assert counter.refused[("hello", f"identity_{reason}")] == 1
    (trouble,) = counter.desk.alarms.troubles()
    assert ("clock" in trouble.text) == (reason == "window")


async def test_identity_that_agrees_with_its_row_in_everything_is_taken(counter: Counter) -> None:
    row = counter.have()
    counter.addresses[row.id] = "10.0.0.5"
    place = row.capacity_pool
    assert place is not None
    counter.notary.says = {
        "machine_type": place.machine_type,
        "zone": place.zone,
        "address": "10.0.0.5",
        "started_at": row.created_at + timedelta(seconds=3),
    }
    assert (await counter.hello())[0] == 200
    assert not counter.desk.alarms.troubles()


async def test_what_neither_side_says_is_not_held_against_a_machine(counter: Counter) -> None:
    counter.have()
    counter.notary.says = {"address": "10.0.0.66"}
    assert (await counter.hello())[0] == 200


async def test_machine_that_stays_unknown_is_refused_after_two_minutes(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await counter.hello())[0] == 503
    assert (await counter.hello(machine=2))[0] == 503
    later = NOW + timedelta(minutes=2)
    monkeypatch.setattr(WallClock, "now", lambda _: later)
    assert await counter.hello() == (403, {})
    assert counter.refused[("hello", "identity_unknown")] == 1


async def test_replayed_hello_with_the_same_claim_gets_the_same_answer_and_no_secret(counter: Counter) -> None:
    counter.have()
    first = await counter.hello()
    counter.hand_over()
    assert await counter.hello() == first
    assert SECRET not in str(first)


async def test_replayed_evidence_with_another_claim_gets_nothing_and_the_machine_is_replaced(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    assert await counter.hello(OTHER_KEY) == (403, {})
    assert counter.told(ClaimDisputed)
    assert not counter.desk.alarms.troubles(), "no job can have run there"


async def test_second_claim_after_the_registration_was_handed_out_is_alarming(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    counter.hand_over()
    await counter.assignment()
    await counter.tell("assignment_received")
    assert await counter.hello(OTHER_KEY) == (403, {})
    (trouble,) = counter.desk.alarms.troubles()
    assert counter.row().id in trouble.text
    await counter.rows.flush()
    ((_, entry),) = await counter.store.ledger(limit=5)
    assert (entry.action, entry.subject) == ("claim", "i-0001")


@pytest.mark.parametrize("state", [S.IDLE, S.BUSY])
async def test_second_claim_is_alarming_also_where_a_former_process_handed_the_registration_out(
    counter: Counter, state: InstanceState
) -> None:
    counter.have(state=state, claim=claim_of(KEY))
    assert await counter.hello(OTHER_KEY) == (403, {})
    assert len(counter.desk.alarms.troubles()) == 1


async def test_replay_after_the_machine_was_terminated_gets_nothing(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    counter.move(S.READY)
    counter.move(S.TERMINATED, ending=EndReason.VANISHED)
    for key in (KEY, OTHER_KEY):
        assert await counter.hello(key) == (403, {})


async def test_a_flood_from_a_machines_own_address_keeps_no_machine_out(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = time.monotonic()
    monkeypatch.setattr(agent_routes, "monotonic", lambda: at)  # no bucket fills while this looks at it
    counter.have(1, S.BUSY, claim=claim_of(OTHER_KEY))
    counter.have(2)
    while (await counter.hello(machine=1, evidence={}))[0] != 429:
        pass
    assert (await counter.hello(machine=3))[0] == 429, "nor by the name of a batch that nobody launched"
    assert (await counter.hello(machine=2))[0] == 200
    assert (await counter.hello(machine=2))[0] == 429, "nobody is awaited in it any more"


async def test_a_pool_whose_jobs_reach_the_metadata_service_is_told_once(counter: Counter) -> None:
    with structlog.testing.capture_logs() as lines:
        for number, metadata in enumerate(("closed", "open", "open"), start=1):
            counter.have(number)
            status, _ = await counter.hello(f"{number:02}" * 32, machine=number, agent={"metadata": metadata})
            assert status == 200
    told = [line for line in lines if line["event"] == "jobs_reach_metadata_service"]
    assert [(line["pool"], line["instance"]) for line in told] == [("linux", "i-0002")]


# ---------------------------------------------------------------------- notices


async def test_notice_of_an_agent_reaches_the_core_with_its_kind_and_time(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    at = NOW + timedelta(minutes=2)
    detail = {"reclaim_at": f"{at.timestamp():.3f}", "kind": "reclaim", "source": "aws"}
    event = {"seq": 1, "at": NOW.timestamp(), "kind": "notice", "detail": detail}
    await counter.post("events", {"instance": "i-0001", "events": [event]}, key=KEY)
    (fact,) = counter.told(AgentNoticed)
    assert isinstance(fact, AgentNoticed)
    assert (fact.kind, fact.reclaim_at) == (NoticeKind.RECLAIM, at)


@pytest.mark.parametrize(
    "detail",
    [
        {},
        {"reclaim_at": "soon"},
        {"reclaim_at": "nan"},
        {"reclaim_at": "1e300"},
        {"kind": "surprise", "reclaim_at": "2e9"},
    ],
)
async def test_notice_that_cannot_be_read_is_counted_and_the_events_beside_it_are_taken(
    counter: Counter, detail: dict[str, str]
) -> None:
    counter.have()
    await counter.hello()
    events = [
        {"seq": 1, "at": 1.0, "kind": "notice", "detail": detail},
        {"seq": 2, "at": 1.0, "kind": "job_started", "detail": {}},
    ]
    status, answer = await counter.post("events", {"instance": "i-0001", "events": events}, key=KEY)
    assert (status, answer["acknowledged"]) == (200, 2)
    assert not counter.told(AgentNoticed)
    assert len(counter.told(AgentReported)) == 1
    assert counter.refused[("events", "notice")] == 1


async def test_how_long_a_hook_ran_reaches_the_core(counter: Counter) -> None:
    counter.have()
    await counter.hello()
    detail = {"seconds": "3.250", "outcome": "failed", "exit_code": "3"}
    event = {"seq": 1, "at": NOW.timestamp(), "kind": "hook_ended", "detail": detail}
    await counter.post("events", {"instance": "i-0001", "events": [event]}, key=KEY)
    (fact,) = counter.told(HookEnded)
    assert isinstance(fact, HookEnded)
    assert (fact.seconds, fact.outcome, fact.exit_code) == (3.25, "failed", "3")


@pytest.mark.parametrize(
    "detail",
    [
        {},
        {"seconds": "long", "outcome": "ok"},
        {"seconds": "nan", "outcome": "ok"},
        {"seconds": "-1", "outcome": "ok"},
        {"seconds": "1e9", "outcome": "ok"},
        {"seconds": "1", "outcome": "surprise"},
        {"seconds": "1", "outcome": "failed", "exit_code": "many"},
    ],
)
async def test_a_hooks_end_that_cannot_be_read_is_counted_and_no_more(counter: Counter, detail: dict[str, str]) -> None:
    counter.have()
    await counter.hello()
    event = {"seq": 1, "at": 1.0, "kind": "hook_ended", "detail": detail}
    status, answer = await counter.post("events", {"instance": "i-0001", "events": [event]}, key=KEY)
    assert (status, answer["acknowledged"]) == (200, 1)
    assert not counter.told(HookEnded)
    assert counter.refused[("events", "hook")] == 1
