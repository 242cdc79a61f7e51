"""Webhook intake over real HTTP: every bad input gets its status, is counted, and changes nothing."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from autoscaler.http import webhooks
from autoscaler.http.webhooks import MAX_BODY, make_webhook_routes
from autoscaler.metrics import Metrics
from autoscaler.spi import (
    BadSignature,
    Forge,
    ForgeJob,
    ForgeName,
    JobStatus,
    MalformedWebhook,
    Secret,
    Webhook,
)
from autoscaler.store import StoreError
from autoscaler.store.memory import MemoryStore

GITHUB = ForgeName("github")
SECRET = "It's a Secret to Everybody"


class SigningForge:
    """The part of a forge that intake uses: authenticates with HMAC over the raw body, then reads JSON."""

    name = GITHUB

    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> Webhook:
        signature = headers.get("x-hub-signature-256", "")
        if not signature:
            raise BadSignature("no signature", reason="signature_missing")
        expected = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        if not Secret(expected).matches(signature):
            raise BadSignature("the signature is not ours", reason="signature_wrong")
        event, delivery = headers["x-github-event"], headers["x-github-delivery"]
        if event != "workflow_job":
            outcome = "ping" if event == "ping" else "ignored_event"
            return Webhook(delivery_id=delivery, outcome=outcome, event=event)
        try:
            job = json.loads(body)["workflow_job"]
        except (ValueError, KeyError) as error:
            raise MalformedWebhook(f"secret detail {error}", reason="malformed") from error
        if job is None:
            return Webhook(delivery_id=delivery, outcome="null_job", event=event)
        return Webhook(delivery_id=delivery, outcome="accepted", event=event, jobs=(_job(str(job["id"])),))


def _job(number: str) -> ForgeJob:
    return ForgeJob(
        forge=GITHUB,
        forge_job_id=number,
        repo="acme/shop",
        run_id="1",
        run_attempt=1,
        workflow="ci",
        name="test",
        status=JobStatus.QUEUED,
        labels=("linux",),
    )


class FullDisk(MemoryStore):
    """A store whose disk is full."""

    async def accept(self, forge: ForgeName, webhook: Webhook, received_at: datetime) -> int | None:
        raise StoreError("disk is full: /secret/path")


class WallClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class Intake:
    """A listener with the routes, and what came of what was sent to it."""

    store: MemoryStore
    metrics: Metrics
    woken: list[tuple[int, ForgeName, str]] = field(default_factory=list)
    url: str = ""
    client: Any = None

    async def post(
        self, body: bytes | Any, *, event: str = "workflow_job", path: str = "/webhooks/github", **headers: str
    ) -> tuple[int, str, Mapping[str, str]]:
        sent = {
            "Content-Type": "application/json",
            "X-GitHub-Event": event,
            "X-GitHub-Delivery": "d-1",
            "X-Hub-Signature-256": signature(body) if isinstance(body, bytes) else "sha256=0",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        sent = {name: value for name, value in sent.items() if value}
        async with self.client.post(self.url + path, data=body, headers=sent) as answer:
            return answer.status, await answer.text(), answer.headers

    def count(self, outcome: str, forge: str = "github") -> float:
        found = self.metrics.registry.get_sample_value(
            "autoscaler_webhooks_total", {"forge": forge, "outcome": outcome}
        )
        return found or 0.0

    async def stored(self) -> int:
        return len((await self.store.load()).inbox)


def signature(body: bytes) -> str:
    return "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()


QUEUED = json.dumps({"action": "queued", "workflow_job": {"id": 7}, "padding": "x" * 12_000}).encode()


@pytest.fixture
async def intake() -> AsyncIterator[Intake]:
    async for one in _serve(MemoryStore()):
        yield one


@pytest.fixture
async def full_disk() -> AsyncIterator[Intake]:
    async for one in _serve(FullDisk()):
        yield one


async def _serve(store: MemoryStore) -> AsyncIterator[Intake]:
    await store.open()
    await store.acquire_lease("test")
    one = Intake(store=store, metrics=Metrics())
    forges = {GITHUB: cast(Forge, SigningForge())}
    app = web.Application()
    app.add_routes(
        make_webhook_routes(
            forges,
            store,
            one.metrics,
            WallClock(),
            lambda seq, forge, webhook: one.woken.append((seq, forge, webhook.delivery_id)),
        )
    )
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as one.client:
        yield one
    await runner.cleanup()
    await store.aclose()


async def test_a_signed_webhook_is_durable_before_it_is_acknowledged(intake: Intake) -> None:
    status, _, _ = await intake.post(QUEUED)
    assert status == 202
    (row,) = (await intake.store.load()).inbox
    assert row.webhook.jobs[0].forge_job_id == "7"
    assert intake.woken == [(row.seq, GITHUB, "d-1")]
    assert intake.count("accepted") == 1


async def test_a_replayed_delivery_is_acknowledged_and_changes_nothing(intake: Intake) -> None:
    await intake.post(QUEUED)
    status, _, _ = await intake.post(QUEUED)
    assert status == 202
    assert await intake.stored() == 1
    assert len(intake.woken) == 1
    assert intake.count("duplicate") == 1


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"X_Hub_Signature_256": ""}, "signature_missing"),
        ({"X_Hub_Signature_256": "sha256=" + "0" * 64}, "signature_wrong"),
        ({"X_Hub_Signature_256": signature(QUEUED + b" ")}, "signature_wrong"),
    ],
)
async def test_a_bad_signature_is_refused(intake: Intake, headers: dict[str, str], reason: str) -> None:
    status, _, _ = await intake.post(QUEUED, **headers)
    assert status == 401
    assert intake.count(reason) == 1
    assert await intake.stored() == 0


async def test_an_unsigned_body_is_never_parsed(intake: Intake) -> None:
    status, _, _ = await intake.post(b"{broken", X_Hub_Signature_256="sha256=" + "0" * 64)
    assert status == 401
    assert intake.count("malformed") == 0


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonish"])
async def test_a_wrong_content_type_is_refused(intake: Intake, kind: str) -> None:
    status, _, _ = await intake.post(QUEUED, Content_Type=kind)
    assert status == 415
    assert intake.count("content_type") == 1
    assert await intake.stored() == 0


async def test_a_content_type_with_a_charset_is_taken(intake: Intake) -> None:
    status, _, _ = await intake.post(QUEUED, Content_Type="Application/JSON; charset=utf-8")
    assert status == 202


async def test_thirty_megabytes_are_refused_by_their_announcement(intake: Intake) -> None:
    host, port = intake.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {30 << 20}"
    writer.write(f"{head}\r\n\r\n".encode())
    line = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    assert b" 413 " in line
    assert intake.count("too_large") == 1


async def test_thirty_megabytes_without_an_announcement_are_refused_on_the_way(intake: Intake) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * (1 << 20)

    try:
        status, _, _ = await intake.post(chunks())
        assert status == 413
    except aiohttp.ClientError:
        pass  # the listener may close the connection while we still send
    assert intake.count("too_large") == 1
    assert await intake.stored() == 0


async def test_a_body_of_the_largest_size_that_github_sends_is_taken(intake: Intake) -> None:
    frame = b'{"workflow_job": {"id": 8}, "p": "%s"}'
    body = frame % (b"x" * (MAX_BODY - len(frame) + 2))
    assert len(body) == MAX_BODY
    status, _, _ = await intake.post(body)
    assert status == 202


async def test_truncated_json_is_refused_without_detail(intake: Intake) -> None:
    status, text, _ = await intake.post(QUEUED[:-40])
    assert (status, text) == (400, "malformed")
    assert intake.count("malformed") == 1
    assert await intake.stored() == 0


@pytest.mark.parametrize(
    ("body", "event", "outcome"),
    [
        (b"{}", "ping", "ping"),
        (b"{}", "deployment_review", "ignored_event"),
        (b'{"workflow_job": null}', "workflow_job", "null_job"),
    ],
)
async def test_what_carries_nothing_is_acknowledged_and_not_stored(
    intake: Intake, body: bytes, event: str, outcome: str
) -> None:
    status, _, _ = await intake.post(body, event=event)
    assert status == 202
    assert intake.count(outcome) == 1
    assert await intake.stored() == 0
    assert intake.woken == []


async def test_an_unknown_forge_is_not_found_and_makes_no_label(intake: Intake) -> None:
    status, _, _ = await intake.post(QUEUED, path="/webhooks/gitea")
    assert status == 404
    assert intake.count("unknown_forge", forge="-") == 1
    assert b"gitea" not in intake.metrics.render()


async def test_a_full_disk_acknowledges_nothing_and_asks_to_come_again(full_disk: Intake) -> None:
    status, text, headers = await full_disk.post(QUEUED)
    assert status == 503
    assert int(headers["Retry-After"]) > 0
    assert "secret" not in text
    assert full_disk.woken == []
    assert full_disk.count("not_stored") == 1


async def test_a_body_that_never_comes_is_given_up(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "BODY_TIMEOUT_S", 0.05)
    host, port = intake.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = "POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100"
    writer.write(f"{head}\r\n\r\n{{".encode())
    line = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    assert b" 408 " in line
    assert intake.count("body_timeout") == 1


async def test_too_many_large_bodies_at_once_are_turned_away(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "LARGE_BODY", 1000)
    release = asyncio.Event()

    async def held_open() -> AsyncIterator[bytes]:
        yield b"x" * 2000
        await release.wait()

    sent = [asyncio.create_task(intake.post(held_open())) for _ in range(webhooks.LARGE_BODIES_AT_ONCE + 1)]
    turned_away, held = await asyncio.wait(sent, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    release.set()
    assert [task.result()[0] for task in turned_away] == [503]
    assert {status for status, _, _ in await asyncio.gather(*held)} == {401}
    assert intake.count("too_many_large") == 1
