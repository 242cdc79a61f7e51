"""GitHub webhooks: signatures, the recorded payloads, and every documented misbehaviour."""

import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest

from autoscaler.spi import (
    BadSignature,
    Conclusion,
    ForgeName,
    JobStatus,
    MalformedWebhook,
    Scope,
    Secret,
    Webhook,
)
from runners.github_webhooks import WebhookReader
from tests.shared import SHARED, require_shared

SECRET = "It's a Secret to Everybody"
ALL_FIXTURES = sorted(path.name for path in (SHARED / "fixtures/github/webhooks").glob("*.*.json"))


def sign(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def reader(*secrets: str, serves: Callable[[str], bool] = lambda repo: True) -> WebhookReader:
    return WebhookReader(
        forge=ForgeName("gh"),
        secrets=tuple(Secret(secret) for secret in secrets or (SECRET,)),
        scope_of=lambda repo: Scope("acme") if serves(repo) else None,
    )


def headers(body: bytes, *, event: str = "workflow_job", **more: str) -> dict[str, str]:
    return {
        "x-github-event": event,
        "x-github-delivery": "d-1",
        "content-type": "application/json",
        "x-hub-signature-256": sign(body),
        **{name.replace("_", "-"): value for name, value in more.items()},
    }


def receive(payload: object, *, event: str = "workflow_job", of: WebhookReader | None = None) -> Webhook:
    body = json.dumps(payload).encode()
    return (of or reader()).read(headers(body, event=event), body)


def job_event(action: str = "queued", **job: Any) -> dict[str, Any]:
    return {
        "action": action,
        "workflow_job": {
            "id": 7,
            "run_id": 9,
            "run_attempt": 2,
            "name": "build",
            "workflow_name": "CI",
            "status": "queued",
            "labels": ["Linux", "self-hosted"],
            "created_at": "2026-03-01T10:00:00Z",
            "started_at": "2026-03-01T10:00:00Z",
            **job,
        },
        "repository": {"full_name": "acme/web"},
    }


def fixture(name: str) -> dict[str, Any]:
    path = require_shared() / "fixtures/github/webhooks" / name
    payload: dict[str, Any] = json.loads(path.read_text())
    return payload


def test_signature_vector_of_the_documentation_is_accepted() -> None:
    body = b"Hello, World!"
    documented = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"

    received = reader().read(headers(body, event="ping", x_hub_signature_256=documented), body)

    assert received.outcome == "ping"


@pytest.mark.parametrize(
    "signature", ["", "sha256=", "sha1=00", "sha256=" + "0" * 64, "sha256=é", "\udcff", "x" * 9999]
)
def test_wrong_signature_is_refused_before_the_body_is_read(signature: str) -> None:
    body = b"{this is no JSON"

    with pytest.raises(BadSignature):
        reader().read(headers(body, x_hub_signature_256=signature), body)


def test_changed_body_is_refused() -> None:
    body = json.dumps(job_event()).encode()

    with pytest.raises(BadSignature):
        reader().read(headers(body), body + b" ")


def test_both_secrets_count_while_one_replaces_the_other() -> None:
    body = json.dumps(job_event()).encode()

    for secret in ("old", "new"):
        received = reader("old", "new").read(headers(body, x_hub_signature_256=sign(body, secret)), body)
        assert received.outcome == "accepted"
    with pytest.raises(BadSignature):
        reader("old", "new").read(headers(body, x_hub_signature_256=sign(body, "other")), body)


def test_forge_without_a_secret_takes_no_webhook() -> None:
    closed = WebhookReader(forge=ForgeName("gh"), secrets=(), scope_of=lambda repo: Scope("acme"))
    body = json.dumps(job_event()).encode()

    with pytest.raises(BadSignature):
        closed.read(headers(body, x_hub_signature_256=sign(body, "")), body)


def test_refusals_show_no_secret() -> None:
    with pytest.raises(BadSignature) as refused:
        reader().read(headers(b"", x_hub_signature_256="sha256=0"), b"x")

    assert SECRET not in repr(refused.value)


def test_queued_job_is_demand_with_canonical_labels_and_an_aware_time() -> None:
    (job,) = receive(job_event(labels=["Linux", "self-hosted", "linux "])).jobs

    assert (job.forge_job_id, job.run_id, job.run_attempt, job.repo) == ("7", "9", 2, "acme/web")
    assert job.status is JobStatus.QUEUED
    assert job.labels == ("linux", "self-hosted")
    assert job.queued_at == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert job.started_at is None


def test_offset_in_a_timestamp_is_turned_into_utc() -> None:
    (job,) = receive(job_event(created_at="2026-03-01T12:00:00+02:00")).jobs

    assert job.queued_at == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert job.queued_at.tzinfo is UTC


@pytest.mark.parametrize("runner", [{"runner_id": 0, "runner_name": ""}, {"runner_id": None, "runner_name": None}, {}])
@pytest.mark.parametrize("action", ["queued", "completed"])
def test_unassigned_runner_is_no_runner_in_all_its_spellings(action: str, runner: dict[str, Any]) -> None:
    (job,) = receive(job_event(action, conclusion="cancelled", **runner)).jobs

    assert (job.runner_id, job.runner_name) == (None, "")


def test_queued_job_has_no_runner_even_where_the_payload_names_one() -> None:
    (job,) = receive(job_event(runner_id=5, runner_name="left over")).jobs

    assert (job.runner_id, job.runner_name) == (None, "")


def test_running_job_names_its_runner() -> None:
    (job,) = receive(job_event("in_progress", runner_id=5, runner_name="r", started_at="2026-03-01T10:01:00Z")).jobs

    assert job.status is JobStatus.RUNNING
    assert (job.runner_id, job.runner_name) == ("5", "r")
    assert job.started_at == datetime(2026, 3, 1, 10, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("word", "conclusion"),
    [
        ("success", Conclusion.SUCCESS),
        ("failure", Conclusion.FAILURE),
        ("timed_out", Conclusion.FAILURE),
        ("cancelled", Conclusion.CANCELLED),
        ("skipped", Conclusion.SKIPPED),
        ("a new word", Conclusion.UNKNOWN),
        (None, Conclusion.UNKNOWN),
    ],
)
def test_conclusions(word: str | None, conclusion: Conclusion) -> None:
    (job,) = receive(job_event("completed", conclusion=word)).jobs

    assert (job.status, job.conclusion) == (JobStatus.DONE, conclusion)


def test_action_decides_and_not_the_status_inside() -> None:
    (job,) = receive(fixture("workflow_job.queued.2.json")).jobs

    assert job.status is JobStatus.QUEUED


def test_waiting_job_is_not_served_yet() -> None:
    (job,) = receive(fixture("workflow_job.waiting.1.json")).jobs

    assert job.status is JobStatus.CREATED


def test_null_job_is_taken_and_carries_nothing() -> None:
    received = receive({"action": "completed", "workflow_job": None, "repository": {"full_name": "acme/web"}})

    assert (received.outcome, received.jobs) == ("null_job", ())


@pytest.mark.parametrize(
    ("event", "outcome"), [("ping", "ping"), ("installation", "ignored_event"), ("x", "ignored_event")]
)
def test_other_events_carry_nothing(event: str, outcome: str) -> None:
    assert receive({"action": "created"}, event=event).outcome == outcome


@pytest.mark.parametrize("event", ["workflow_job", "workflow_run"])
def test_unknown_action_carries_nothing(event: str) -> None:
    payload = job_event("reticulated") | {"workflow_run": {"id": 9}}

    assert receive(payload, event=event).outcome == "ignored_event"


def test_foreign_repository_is_out_of_scope() -> None:
    received = receive(job_event(), of=reader(serves=lambda repo: repo != "acme/web"))

    assert (received.outcome, received.jobs) == ("out_of_scope", ())


@pytest.mark.parametrize(("action", "is_finished"), [("requested", False), ("in_progress", False), ("completed", True)])
def test_run_is_finished_when_its_action_says_so(action: str, is_finished: bool) -> None:
    payload = {"action": action, "workflow_run": {"id": 9, "status": "queued"}, "repository": {"full_name": "acme/web"}}

    (run,) = receive(payload, event="workflow_run").runs

    assert (run.run_id, run.run_attempt, run.is_finished) == ("9", 1, is_finished)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"action":"queued","workflow_job":[],"repository":{"full_name":"a/b"}}',
        b'{"action":"queued","workflow_job":{"id":"x","run_id":1},"repository":{"full_name":"a/b"}}',
        b'{"action":"queued","workflow_job":{"id":1,"run_id":1},"repository":null}',
        b'{"action":"queued","workflow_job":{"id":1,"run_id":1,"labels":7},"repository":{"full_name":"a/b"}}',
        b'{"action":"queued","workflow_job":{"id":1,"run_id":1,"created_at":"soon"},"repository":{"full_name":"a/b"}}',
        json.dumps(job_event()).encode()[:-20],
        b'{"a":' * 5000,
    ],
)
def test_authentic_nonsense_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedWebhook):
        reader().read(headers(body), body)


@pytest.mark.parametrize("missing", ["x-github-delivery", "x-github-event"])
def test_missing_header_is_malformed(missing: str) -> None:
    body = json.dumps(job_event()).encode()

    with pytest.raises(MalformedWebhook):
        reader().read({name: value for name, value in headers(body).items() if name != missing}, body)


def test_form_payload_is_read_and_its_raw_body_is_what_is_signed() -> None:
    body = urlencode({"payload": json.dumps(job_event(name="bäuen"))}).encode()

    received = reader().read(headers(body, content_type="application/x-www-form-urlencoded; charset=utf-8"), body)

    assert [job.name for job in received.jobs] == ["bäuen"]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/plain", b"{}"),
        ("", b"{}"),
        ("application/x-www-form-urlencoded", b"other=1"),
        ("application/x-www-form-urlencoded", b"\xff"),
        ("application/x-www-form-urlencoded", b"&".join([b"a=1"] * 100)),
    ],
)
def test_wrong_content_type_is_malformed(content_type: str, body: bytes) -> None:
    with pytest.raises(MalformedWebhook):
        reader().read(headers(body, content_type=content_type), body)


@pytest.mark.parametrize("name", ALL_FIXTURES)
def test_recorded_payload_is_read(name: str) -> None:
    event, action, _, _ = name.split(".") if name.count(".") == 3 else (name.split(".")[0], "", "", "")
    payload = fixture(name)

    received = receive(payload, event=event)

    match event:
        case "workflow_job":
            (job,) = received.jobs
            assert received.outcome == "accepted"
            assert job.forge_job_id == str(payload["workflow_job"]["id"])
            assert job.status.value == {"in_progress": "running", "completed": "done", "waiting": "created"}.get(
                action, action
            )
            assert job.queued_at is not None
        case "workflow_run":
            (run,) = received.runs
            assert run.run_id == str(payload["workflow_run"]["id"])
            assert run.is_finished is (action == "completed")
        case "ping":
            assert received.outcome == "ping"
        case _:
            assert received.outcome == "ignored_event"


def test_old_payload_without_attempt_and_creation_time_is_read() -> None:
    payload = fixture("workflow_job.in_progress.1.json")
    assert "run_attempt" not in payload["workflow_job"]

    (job,) = receive(payload).jobs

    assert (job.run_attempt, job.workflow) == (1, "")
    assert job.labels == ("db-app", "dc-03", "gpu")
    assert job.queued_at == datetime(2021, 6, 15, 19, 22, 27, tzinfo=UTC)
