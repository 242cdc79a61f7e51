"""Owns the reading of GitLab webhooks: authentication over the raw body first, then jobs and pipelines.

Job hooks carry no job tags (`labels` is None: read them over REST), their `runner.tags` are the runner's, and
`build_failure_reason` means nothing unless the job failed. Events come late and out of order; the core orders them.
Their `commit` is the pipeline: where it is said to be finished, a run event comes with the job, so that pipeline hooks
need not be configured.

Authentication (Standard Webhooks, GitLab 19): where a signing token is configured and the delivery is signed, the
signature alone decides. Otherwise X-Gitlab-Token is compared with the plain tokens. Nothing configured refuses all.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from autoscaler.spi import (
    BadSignature,
    Clock,
    ForgeJob,
    ForgeName,
    JobStatus,
    MalformedWebhook,
    RunEvent,
    RunnerId,
    Scope,
    Webhook,
)
from runners.gitlab_jobs import conclusion_of, queued_at, status_of, workflow_of
from runners.gitlab_settings import WebhookKeys
from runners.gitlab_times import parse_instant

CLOCK_TOLERANCE_S = 300
_PROOFS = ("webhook-id", "webhook-timestamp", "webhook-signature", "x-gitlab-token")
_FINISHED_PIPELINES = frozenset({"success", "failed", "canceled", "skipped"})


class WebhookReader:
    """Webhooks of one forge. Pure but for the clock."""

    def __init__(
        self,
        forge: ForgeName,
        keys: WebhookKeys,
        clock: Clock,
        *,
        base_url: str,
        scope_of: Callable[[str], Scope | None],
    ) -> None:
        self._forge = forge
        self._keys = keys
        self._clock = clock
        self._base_path = urlsplit(base_url).path
        self._scope_of = scope_of

    def read(self, headers: Mapping[str, str], body: bytes) -> Webhook:
        """What an authenticated delivery says. Raises BadSignature, then MalformedWebhook."""
        is_signed = self._authenticate(headers, body)
        try:
            payload = json.loads(body)
        except ValueError as error:  # Also UnicodeDecodeError.
            raise MalformedWebhook("the body is not JSON", reason="json") from error
        except RecursionError as error:
            raise MalformedWebhook("the body is nested too deeply", reason="json") from error
        if not isinstance(payload, dict):
            raise MalformedWebhook("the body is not an object", reason="shape")
        delivery = _delivery_id(headers, body, is_signed=is_signed)
        kind = payload.get("object_kind")
        event = headers.get("x-gitlab-event") or str(kind or "unknown")
        try:
            match kind:
                case "build":
                    return self._job_hook(delivery, event, payload)
                case "pipeline":
                    return self._pipeline_hook(delivery, event, payload)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise MalformedWebhook(f"not a {kind} event as documented: {error!r}", reason="shape") from error
        return Webhook(delivery_id=delivery, outcome="ignored_event", event=event)

    def _authenticate(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether the signature was what proved it. Raises BadSignature."""
        if not all(headers.get(name, "").isascii() for name in _PROOFS):
            raise BadSignature("a header of the proof is not ASCII", reason="missing")
        if self._keys.signing and "webhook-signature" in headers:
            self._check_signature(headers, body)
            return True
        token = headers.get("x-gitlab-token")
        if token is None:
            raise BadSignature("neither a signature nor a token that could be checked", reason="missing")
        if not any(secret.matches(token) for secret in self._keys.plain):
            raise BadSignature("X-Gitlab-Token is not a configured one", reason="token")
        return False

    def _check_signature(self, headers: Mapping[str, str], body: bytes) -> None:
        identifier, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        if not identifier or not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
            raise BadSignature("webhook-id or webhook-timestamp is missing or unreadable", reason="missing")
        signed = f"{identifier}.{timestamp}.".encode() + body
        expected = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in self._keys.signing]
        given = [
            value.removeprefix("v1,").encode()
            for value in headers["webhook-signature"].split()
            if value.startswith("v1,")
        ]
        if not any(hmac.compare_digest(one, other) for one in expected for other in given):
            raise BadSignature("webhook-signature does not match", reason="signature")
        if abs(self._clock.now().timestamp() - int(timestamp)) > CLOCK_TOLERANCE_S:
            raise BadSignature("webhook-timestamp is more than 300 s away", reason="timestamp")

    def _job_hook(self, delivery: str, event: str, payload: dict[str, Any]) -> Webhook:
        repo = self._repo(payload)
        if self._scope_of(repo) is None:
            return Webhook(delivery_id=delivery, outcome="out_of_scope", event=event)
        job = self._job(repo, payload)
        pipeline = payload.get("commit") or {}
        is_last = job.status is JobStatus.DONE and pipeline.get("status") in _FINISHED_PIPELINES
        runs = (self._run(repo, job.run_id, is_finished=True),) if is_last else ()
        return Webhook(delivery_id=delivery, outcome="accepted", event=event, jobs=(job,), runs=runs)

    def _job(self, repo: str, payload: dict[str, Any]) -> ForgeJob:
        word = _text(payload["build_status"])
        status = status_of(word)
        runner = payload.get("runner") or {}
        started_at = _instant(payload, "build_started_at")
        now = self._clock.now()
        job_id = str(int(payload["build_id"]))
        return ForgeJob(
            forge=self._forge,
            forge_job_id=job_id,
            repo=repo,
            run_id=str(int(payload["pipeline_id"])),
            run_attempt=1,
            workflow=workflow_of(str(payload.get("ref") or ""), bool(payload.get("tag"))),
            name=_text(payload["build_name"]),
            status=status,
            labels=None,
            conclusion=conclusion_of(word),
            queued_at=queued_at(
                status,
                queued_s=payload.get("build_queued_duration"),
                # A pending event is sent the moment the job became ready.
                created_at=now if status is JobStatus.QUEUED else None,
                started_at=started_at,
                now=now,
            ),
            started_at=started_at,
            finished_at=_instant(payload, "build_finished_at"),
            runner_name=str(runner.get("description") or ""),
            runner_id=RunnerId(str(int(runner["id"]))) if runner else None,
            url=_job_url(payload, job_id),
            failure_reason=str(payload.get("build_failure_reason") or "") if word == "failed" else "",
            commit=str(payload.get("sha") or ""),
        )

    def _pipeline_hook(self, delivery: str, event: str, payload: dict[str, Any]) -> Webhook:
        repo = self._repo(payload)
        if self._scope_of(repo) is None:
            return Webhook(delivery_id=delivery, outcome="out_of_scope", event=event)
        attributes = payload["object_attributes"]
        is_finished = _text(attributes["status"]) in _FINISHED_PIPELINES
        run = self._run(repo, str(int(attributes["id"])), is_finished=is_finished)
        return Webhook(delivery_id=delivery, outcome="accepted", event=event, runs=(run,))

    def _run(self, repo: str, run_id: str, *, is_finished: bool) -> RunEvent:
        return RunEvent(forge=self._forge, repo=repo, run_id=run_id, run_attempt=1, is_finished=is_finished)

    def _repo(self, payload: dict[str, Any]) -> str:
        """The project's full path. `project_name` may be display names; before `project` came, only URLs tell."""
        project = payload.get("project") or {}
        if project.get("path_with_namespace"):
            return _text(project["path_with_namespace"])
        homepage = _text((payload.get("repository") or {})["homepage"])
        path = urlsplit(homepage).path.removeprefix(self._base_path).strip("/")
        if not path:
            raise ValueError("no project path")
        return path


def _delivery_id(headers: Mapping[str, str], body: bytes, *, is_signed: bool) -> str:
    """Unique per delivery, the same when it is sent again. Of a signed one, only the signed id can be believed."""
    if is_signed:
        return headers["webhook-id"]
    named = headers.get("idempotency-key") or headers.get("webhook-id")
    if named:
        return named
    event = headers.get("x-gitlab-event-uuid", "").encode()
    return "sha256:" + hashlib.sha256(hashlib.sha256(body).digest() + event).hexdigest()


def _instant(payload: dict[str, Any], key: str) -> datetime | None:
    return parse_instant(payload.get(f"{key}_iso")) or parse_instant(payload.get(key))


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"a text is missing, got {type(value).__name__}")
    return value


def _job_url(payload: dict[str, Any], job_id: str) -> str:
    web_url = (payload.get("project") or {}).get("web_url") or (payload.get("repository") or {}).get("homepage")
    return f"{web_url}/-/jobs/{job_id}" if web_url else ""
