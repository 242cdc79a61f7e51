"""GitHub webhooks: authenticate the raw body, then read the few fields that matter. Pure, and cheap.

Order: signature, event name, content type, JSON, scope. Nothing of the body is looked at before its signature is
right. The top-level `action` decides, never the `status` inside (specs github-rest B2, B3).
"""

import hmac
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import parse_qs

from pydantic import ValidationError

from autoscaler.spi import (
    BadSignature,
    ForgeName,
    JobStatus,
    MalformedWebhook,
    RunEvent,
    Scope,
    Secret,
    Webhook,
)
from runners.github_payloads import JobEventPayload, RepositoryPayload, RunEventPayload, forge_job

_SIGNATURE_HEADER = "x-hub-signature-256"

_STATUS_OF_ACTION = {
    "queued": JobStatus.QUEUED,
    "waiting": JobStatus.CREATED,
    "in_progress": JobStatus.RUNNING,
    "completed": JobStatus.DONE,
}

P = TypeVar("P", JobEventPayload, RunEventPayload)

_RUN_ACTIONS = frozenset({"requested", "in_progress", "completed"})


class WebhookReader:
    """Reads the webhooks of one forge. Several secrets are valid at a time so that they can be rotated."""

    def __init__(
        self, *, forge: ForgeName, secrets: tuple[Secret, ...], scope_of: Callable[[str], Scope | None]
    ) -> None:
        self._forge = forge
        self._keys = tuple(secret.reveal().encode() for secret in secrets)
        self._scope_of = scope_of

    def read(self, headers: Mapping[str, str], body: bytes) -> Webhook:
        """The authenticated webhook. Raises BadSignature, then MalformedWebhook."""
        self._authenticate(headers.get(_SIGNATURE_HEADER, ""), body)
        delivery_id = headers.get("x-github-delivery", "")
        event = headers.get("x-github-event", "")
        if not delivery_id or not event:
            raise MalformedWebhook("no X-GitHub-Delivery or X-GitHub-Event header", reason="headers")
        match event:
            case "workflow_job":
                return self._read_job(delivery_id, _document(headers, body))
            case "workflow_run":
                return self._read_run(delivery_id, _document(headers, body))
            case "ping":
                return Webhook(delivery_id=delivery_id, outcome="ping", event=event)
            case _:
                return Webhook(delivery_id=delivery_id, outcome="ignored_event", event=event)

    def _authenticate(self, signature: str, body: bytes) -> None:
        if not signature:
            raise BadSignature("no X-Hub-Signature-256 header", reason="missing_signature")
        claimed = signature.encode(errors="replace")
        is_right = False
        for key in self._keys:  # All of them, always: the time must not tell which one matched.
            expected = b"sha256=" + hmac.digest(key, body, "sha256").hex().encode()
            is_right |= hmac.compare_digest(expected, claimed)
        if not is_right:
            raise BadSignature("the signature does not match the body", reason="bad_signature")

    def _read_job(self, delivery_id: str, document: bytes) -> Webhook:
        payload = _validated(JobEventPayload, document)
        if payload.workflow_job is None:
            return _carries_nothing(delivery_id, "workflow_job", "null_job")
        status = _STATUS_OF_ACTION.get(payload.action)
        if status is None:
            return _carries_nothing(delivery_id, "workflow_job", "ignored_event")
        repo = _repo_of(payload.repository)
        if self._scope_of(repo) is None:
            return _carries_nothing(delivery_id, "workflow_job", "out_of_scope")
        job = forge_job(payload.workflow_job, forge=self._forge, repo=repo, status=status)
        return Webhook(delivery_id=delivery_id, outcome="accepted", event="workflow_job", jobs=(job,))

    def _read_run(self, delivery_id: str, document: bytes) -> Webhook:
        payload = _validated(RunEventPayload, document)
        if payload.workflow_run is None:
            return _carries_nothing(delivery_id, "workflow_run", "null_job")
        if payload.action not in _RUN_ACTIONS:
            return _carries_nothing(delivery_id, "workflow_run", "ignored_event")
        repo = _repo_of(payload.repository)
        if self._scope_of(repo) is None:
            return _carries_nothing(delivery_id, "workflow_run", "out_of_scope")
        run = RunEvent(
            forge=self._forge,
            repo=repo,
            run_id=str(payload.workflow_run.id),
            run_attempt=payload.workflow_run.run_attempt or 1,
            is_finished=payload.action == "completed",
        )
        return Webhook(delivery_id=delivery_id, outcome="accepted", event="workflow_run", runs=(run,))


def _document(headers: Mapping[str, str], body: bytes) -> bytes:
    """The JSON text: the body itself, or its form field `payload`, as the hook's content type says."""
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/json":
        return body
    if content_type != "application/x-www-form-urlencoded":
        raise MalformedWebhook("content type is neither JSON nor a form", reason="content_type")
    try:
        fields = parse_qs(body.decode(), max_num_fields=8)
    except ValueError as error:
        raise MalformedWebhook("the form cannot be read", reason="form") from error
    if "payload" not in fields:
        raise MalformedWebhook("the form has no field payload", reason="form")
    return fields["payload"][0].encode(errors="replace")


def _validated(model: type[P], document: bytes) -> P:
    try:
        return model.model_validate_json(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise MalformedWebhook(f"{place or 'body'}: {first['msg']}", reason="payload") from None


def _repo_of(repository: RepositoryPayload | None) -> str:
    if repository is None:
        raise MalformedWebhook("repository: missing", reason="payload")
    return repository.full_name


def _carries_nothing(delivery_id: str, event: str, outcome: str) -> Webhook:
    return Webhook(delivery_id=delivery_id, outcome=outcome, event=event)
