"""GitLab webhooks: both kinds of proof, the recorded payloads, and what older and broken senders do."""

import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoscaler.spi import (
    BadSignature,
    Conclusion,
    ForgeJob,
    ForgeName,
    JobStatus,
    MalformedWebhook,
    RunEvent,
    Scope,
    Secret,
    Webhook,
)
from runners.gitlab_settings import WebhookKeys
from runners.gitlab_times import parse_instant
from runners.gitlab_webhooks import WebhookReader
from tests.shared import SHARED, require_shared

TOKEN = "example-secret"
KEY = b"0123456789abcdef0123456789abcdef"
SENT_AT = datetime(2021, 2, 23, 2, 41, 40, tzinfo=UTC)
FIXTURES = SHARED / "fixtures/gitlab"
JOB_FIXTURES = sorted(path.name for path in FIXTURES.glob("job_*.json"))


class StoppedClock:
    """A clock that shows one instant."""

    def __init__(self, at: datetime = SENT_AT) -> None:
        self._at = at

    def now(self) -> datetime:
        return self._at

    def monotonic(self) -> float:
        return self._at.timestamp()

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here waits")


def reader(
    *, signing: tuple[bytes, ...] = (), plain: tuple[str, ...] = (TOKEN,), at: datetime = SENT_AT, serves: str = ""
) -> WebhookReader:
    return WebhookReader(
        ForgeName("gl"),
        WebhookKeys(signing=signing, plain=tuple(Secret(token) for token in plain)),
        StoppedClock(at),
        base_url="https://gitlab.example.com",
        scope_of=lambda repo: Scope("scope") if repo.startswith(serves) else None,
    )


def signature(body: bytes, *, identifier: str = "id-1", at: datetime = SENT_AT, key: bytes = KEY) -> dict[str, str]:
    timestamp = str(int(at.timestamp()))
    proof = hmac.digest(key, f"{identifier}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": identifier,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(proof).decode(),
    }


def job_event(**changes: Any) -> dict[str, Any]:
    event: dict[str, Any] = {
        "object_kind": "build",
        "ref": "main",
        "tag": False,
        "build_id": 1977,
        "build_name": "test",
        "build_status": "pending",
        "build_created_at": "2021-02-23T02:41:37.886Z",
        "build_started_at": None,
        "build_finished_at": None,
        "build_queued_duration": None,
        "build_failure_reason": "unknown_failure",
        "pipeline_id": 2366,
        "runner": None,
        "project": {
            "path_with_namespace": "group/sub/project",
            "web_url": "https://gitlab.example.com/group/sub/project",
        },
    }
    event.update(changes)
    return event


def receive(payload: object, headers: Mapping[str, str] | None = None, *, of: WebhookReader | None = None) -> Webhook:
    return (of or reader()).read({"x-gitlab-token": TOKEN, **(headers or {})}, json.dumps(payload).encode())


def job_of(webhook: Webhook) -> ForgeJob:
    (job,) = webhook.jobs
    return job


def lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


# -- authentication


@pytest.mark.parametrize("variant", ["secret_token_variant", "signing_token_variant"])
def test_recorded_headers_prove_the_recorded_body(variant: str) -> None:
    require_shared()
    vector = json.loads((FIXTURES / "webhook_headers.json").read_text())[variant]
    body = (FIXTURES / "job_pending.json").read_bytes()
    if variant == "secret_token_variant":
        of = reader(plain=(vector["secret_token"],))
    else:
        key = base64.b64decode(vector["signing_token"].removeprefix("whsec_"))
        of = reader(signing=(key,), plain=(), at=datetime.fromtimestamp(1614048100, UTC))
    webhook = of.read(lower(vector["headers"]), body)
    assert webhook.delivery_id == "a5461c4d-9c7f-4af9-add6-cddebe3c426f"
    assert job_of(webhook).status is JobStatus.QUEUED
    with pytest.raises(BadSignature):
        reader(signing=(b"other",), plain=("other",)).read(lower(vector["headers"]), body)


@pytest.mark.parametrize("headers", [{}, {"x-gitlab-token": ""}, {"x-gitlab-token": "wrong"}, {"x-gitlab-token": "é"}])
def test_wrong_or_missing_token_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(BadSignature):
        reader().read(headers, json.dumps(job_event()).encode())


def test_nothing_configured_refuses_everything() -> None:
    body = json.dumps(job_event()).encode()
    with pytest.raises(BadSignature):
        reader(plain=()).read({"x-gitlab-token": "", **signature(body)}, body)


def test_bad_signature_does_not_fall_back_to_a_good_token() -> None:
    body = json.dumps(job_event()).encode()
    headers = {"x-gitlab-token": TOKEN, **signature(body, key=b"another key")}
    with pytest.raises(BadSignature) as refusal:
        reader(signing=(KEY,)).read(headers, body)
    assert refusal.value.reason == "signature"


def test_unsigned_delivery_needs_a_plain_token_where_both_are_configured() -> None:
    body = json.dumps(job_event()).encode()
    assert reader(signing=(KEY,)).read({"x-gitlab-token": TOKEN}, body).outcome == "accepted"
    with pytest.raises(BadSignature):
        reader(signing=(KEY,), plain=()).read({"x-gitlab-token": TOKEN}, body)


def test_any_of_several_signatures_and_keys_is_enough() -> None:
    body = json.dumps(job_event()).encode()
    old, new = signature(body, key=b"old"), signature(body, key=b"new")
    both = {**new, "webhook-signature": f"v2,x {old['webhook-signature']} {new['webhook-signature']}"}
    assert reader(signing=(b"new",), plain=()).read(both, body).outcome == "accepted"
    assert reader(signing=(b"next", b"old"), plain=()).read(old, body).outcome == "accepted"


@pytest.mark.parametrize(("age_s", "is_good"), [(300, True), (-300, True), (302, False), (-302, False)])
def test_signature_holds_for_five_minutes_either_way(age_s: int, is_good: bool) -> None:
    body = json.dumps(job_event()).encode()
    of = reader(signing=(KEY,), plain=(), at=SENT_AT + timedelta(seconds=age_s))
    if is_good:
        assert of.read(signature(body), body).outcome == "accepted"
    else:
        with pytest.raises(BadSignature) as refusal:
            of.read(signature(body), body)
        assert refusal.value.reason == "timestamp"


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": ""},
        {"webhook-id": "id-2"},
        {"webhook-timestamp": "soon"},
        {"webhook-timestamp": "²"},
        {"webhook-timestamp": "9" * 400},
        {"webhook-signature": ""},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,\udcff"},
    ],
)
def test_damaged_proof_is_refused(change: dict[str, str]) -> None:
    body = json.dumps(job_event()).encode()
    with pytest.raises(BadSignature):
        reader(signing=(KEY,), plain=()).read({**signature(body), **change}, body)


@settings(deadline=None)
@given(flip=st.integers(min_value=0, max_value=10_000))
def test_signature_covers_every_byte_of_the_body(flip: int) -> None:
    body = json.dumps(job_event()).encode()
    at = flip % len(body)
    forged = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
    with pytest.raises(BadSignature):
        reader(signing=(KEY,), plain=()).read(signature(body), forged)


# -- identity of a delivery


def test_delivery_id_is_the_idempotency_key_then_the_webhook_id() -> None:
    named = {"idempotency-key": "key-1", "webhook-id": "hook-1"}
    assert receive(job_event(), named).delivery_id == "key-1"
    assert receive(job_event(), {"webhook-id": "hook-1"}).delivery_id == "hook-1"


def test_signed_delivery_is_known_by_its_signed_id() -> None:
    body = json.dumps(job_event()).encode()
    headers = {**signature(body, identifier="signed"), "idempotency-key": "changed on the way"}
    assert reader(signing=(KEY,)).read(headers, body).delivery_id == "signed"


def test_old_gitlab_gets_a_digest_that_is_stable_over_retries() -> None:
    event = {"x-gitlab-event-uuid": "9cebe914"}
    first = receive(job_event(), {**event, "x-gitlab-webhook-uuid": "1"})
    again = receive(job_event(), {**event, "x-gitlab-webhook-uuid": "2"})
    assert first.delivery_id == again.delivery_id
    others = [receive(job_event(build_id=1978), event), receive(job_event(), {"x-gitlab-event-uuid": "other"})]
    assert len({first.delivery_id, *(other.delivery_id for other in others)}) == 3


# -- jobs


@pytest.mark.parametrize("name", JOB_FIXTURES)
def test_recorded_job_event_is_read(name: str) -> None:
    require_shared()
    payload = json.loads((FIXTURES / name).read_text())
    job = job_of(receive(payload, {"x-gitlab-event": "Job Hook"}))
    assert (job.repo, job.run_id) == ("gitlab-org/gitlab-test", "2366")
    assert job.forge_job_id == str(payload["build_id"])
    assert job.labels is None
    assert (job.failure_reason != "") == (payload["build_status"] == "failed")
    assert (job.runner_id is None) == (payload["runner"] is None)
    assert (job.conclusion is not None) == (job.status is JobStatus.DONE)
    assert job.url.endswith(f"/-/jobs/{job.forge_job_id}")


def test_recorded_interruption_names_runner_and_reason() -> None:
    require_shared()
    payload = json.loads((FIXTURES / "job_failed_runner_interrupted.json").read_text())
    job = job_of(receive(payload))
    assert (job.runner_name, job.runner_id) == ("spot-runner-i-0abc123", "380987")
    assert (job.conclusion, job.failure_reason) == (Conclusion.FAILURE, "runner_interrupted")


@pytest.mark.parametrize(
    ("word", "status", "conclusion"),
    [
        ("created", JobStatus.CREATED, None),
        ("waiting_for_resource", JobStatus.CREATED, None),
        ("preparing", JobStatus.CREATED, None),
        ("waiting_for_callback", JobStatus.CREATED, None),
        ("manual", JobStatus.CREATED, None),
        ("scheduled", JobStatus.CREATED, None),
        ("invented_next_year", JobStatus.CREATED, None),
        ("pending", JobStatus.QUEUED, None),
        ("running", JobStatus.RUNNING, None),
        ("canceling", JobStatus.RUNNING, None),
        ("success", JobStatus.DONE, Conclusion.SUCCESS),
        ("failed", JobStatus.DONE, Conclusion.FAILURE),
        ("canceled", JobStatus.DONE, Conclusion.CANCELLED),
        ("skipped", JobStatus.DONE, Conclusion.SKIPPED),
    ],
)
def test_every_status_has_its_place(word: str, status: JobStatus, conclusion: Conclusion | None) -> None:
    job = job_of(receive(job_event(build_status=word)))
    assert (job.status, job.conclusion) == (status, conclusion)


def test_queued_at_is_reckoned_from_how_long_it_waited() -> None:
    pending = job_of(receive(job_event(build_queued_duration=2.5)))
    assert pending.queued_at == SENT_AT - timedelta(seconds=2.5)
    started = "2021-02-23T02:41:39Z"
    running = job_of(receive(job_event(build_status="running", build_started_at=started, build_queued_duration=1.0)))
    assert running.queued_at == datetime(2021, 2, 23, 2, 41, 38, tzinfo=UTC)
    assert job_of(receive(job_event())).queued_at == SENT_AT
    assert job_of(receive(job_event(build_status="created"))).queued_at is None


@pytest.mark.parametrize(
    "text", ["2016-08-12 15:23:28 UTC", "2016-08-12T15:23:28Z", "2016-08-12T15:23:28.000Z", "2016-08-12T17:23:28+02:00"]
)
def test_all_ways_to_write_an_instant_are_the_same(text: str) -> None:
    assert parse_instant(text) == datetime(2016, 8, 12, 15, 23, 28, tzinfo=UTC)


@pytest.mark.parametrize("value", [None, "", "yesterday", 5, "0001-01-01T00:00:00+23:59"])
def test_unreadable_instant_is_no_answer(value: object) -> None:
    assert parse_instant(value) is None


def test_iso_keys_are_preferred() -> None:
    event = job_event(
        build_status="success",
        build_finished_at="2021-02-23 02:45:00 +0000",
        build_finished_at_iso="2021-02-23T02:45:01Z",
    )
    assert job_of(receive(event)).finished_at == datetime(2021, 2, 23, 2, 45, 1, tzinfo=UTC)


def test_optional_keys_may_all_be_missing() -> None:
    event = job_event()
    for key in ("ref", "tag", "build_queued_duration", "build_failure_reason", "runner", "build_started_at"):
        del event[key]
    assert job_of(receive(event)).status is JobStatus.QUEUED


def test_project_is_found_in_its_address_where_old_gitlab_names_it_nowhere_else() -> None:
    event = job_event(repository={"homepage": "https://gitlab.example.com/group/sub/project"}, project_name="G / P")
    del event["project"]
    assert job_of(receive(event)).repo == "group/sub/project"


def test_display_name_is_no_path() -> None:
    event = job_event(project_name="Group / Project")
    del event["project"]
    with pytest.raises(MalformedWebhook):
        receive(event)


def test_project_out_of_scope_carries_nothing() -> None:
    webhook = receive(job_event(), of=reader(serves="elsewhere/"))
    assert (webhook.outcome, webhook.jobs) == ("out_of_scope", ())


@pytest.mark.parametrize(
    ("ref", "tag", "workflow"),
    [("main", False, "branch"), ("v1", True, "tag"), ("refs/merge-requests/3/head", False, "merge_request")],
)
def test_workflow_is_the_kind_of_ref(ref: str, tag: bool, workflow: str) -> None:
    assert job_of(receive(job_event(ref=ref, tag=tag))).workflow == workflow


# -- pipelines and the rest


def test_recorded_pipeline_event_is_a_finished_run() -> None:
    require_shared()
    webhook = receive(json.loads((FIXTURES / "pipeline_success.json").read_text()))
    assert webhook.runs == (
        RunEvent(forge=ForgeName("gl"), repo="gitlab-org/gitlab-test", run_id="31", run_attempt=1, is_finished=True),
    )


def test_last_job_of_a_pipeline_announces_its_end() -> None:
    (run,) = receive(job_event(build_status="success", commit={"id": 2366, "status": "failed"})).runs
    assert (run.run_id, run.is_finished) == ("2366", True)
    for earlier in (
        job_event(build_status="success", commit={"id": 2366, "status": "running"}),
        job_event(build_status="pending", commit={"id": 2366, "status": "success"}),
        job_event(build_status="success", commit=None),
    ):
        assert receive(earlier).runs == ()


@pytest.mark.parametrize("status", ["created", "pending", "running", "manual", "canceling"])
def test_pipeline_that_may_go_on_is_not_finished(status: str) -> None:
    event = {**job_event(), "object_kind": "pipeline", "object_attributes": {"id": 31, "status": status}}
    (run,) = receive(event).runs
    assert not run.is_finished


@pytest.mark.parametrize("payload", [{}, {"object_kind": "push"}, {"object_kind": None}, {"object_kind": []}])
def test_other_events_are_ignored(payload: object) -> None:
    assert receive(payload).outcome == "ignored_event"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"5", b"[" * 100_000, b'{"object_kind": "build"}']
)
def test_unreadable_body_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedWebhook):
        reader().read({"x-gitlab-token": TOKEN}, body)


@pytest.mark.parametrize("key", ["build_id", "build_name", "build_status", "pipeline_id", "runner", "project"])
@pytest.mark.parametrize("value", ["", [], {"id": []}, "x", 1e999])
def test_nonsense_in_a_needed_key_is_malformed_or_read_never_a_crash(key: str, value: object) -> None:
    try:
        webhook = receive(job_event(**{key: value}))
    except MalformedWebhook:
        return
    assert webhook.outcome == "accepted"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from([*job_event(), "object_attributes", "repository", "commit"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "path"]), inner),
            max_leaves=5,
        ),
    )
)
def test_no_payload_crashes_the_reader(changes: dict[str, Any]) -> None:
    outcomes = {"accepted", "ignored_event"}
    with contextlib.suppress(MalformedWebhook):
        assert receive(job_event(**changes)).outcome in outcomes
