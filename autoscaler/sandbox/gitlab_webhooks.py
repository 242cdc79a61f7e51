"""Delivery of the sandbox GitLab's webhooks: who gets one, the documented headers, the signature, one attempt only.

GitLab does not resend a failed webhook (spec 1.3), so neither does this; that is what the poll beside it is for.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

import aiohttp

from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.gitlab_model import GitLabRefusal, Project, WebhookDelivery

USER_AGENT = "GitLab/19.4.0"
TIMEOUT_S = 10.0
_SENDERS = 8


def signing_key(secret: str) -> bytes:
    """The HMAC key of a `whsec_<base64>` signing token. Raises ValueError for anything else."""
    if not secret.startswith("whsec_"):
        raise ValueError("a signing token starts with whsec_")
    return base64.b64decode(secret.removeprefix("whsec_"), validate=True)


def signature(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    """`v1,<base64 HMAC-SHA256 over id.timestamp.body>` (Standard Webhooks; GitLab spec 1.3)."""
    message = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(signing_key(secret), message, hashlib.sha256).digest()).decode()


@dataclass(slots=True, kw_only=True, repr=False)
class Hook:
    """Where to send. With neither project nor group it hears every project."""

    id: int
    url: str
    project_id: int | None = None
    group_id: int | None = None
    job_events: bool = False
    token: str | None = None
    signing_token: str | None = None
    name: str = ""


def delivery_headers(
    hook: Hook, delivery: WebhookDelivery, *, instance: str, body: bytes, now: float
) -> dict[str, str]:
    """The headers of one delivery to one hook."""
    key = str(uuid.uuid5(uuid.UUID(delivery.idempotency_key), f"hook/{hook.id}"))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "X-Gitlab-Event": "Job Hook",
        "X-Gitlab-Instance": instance,
        "X-Gitlab-Webhook-UUID": str(uuid.uuid4()),
        "X-Gitlab-Event-UUID": delivery.event_uuid,
        "Idempotency-Key": key,
    }
    if hook.token is not None:
        headers["X-Gitlab-Token"] = hook.token
    if hook.signing_token is not None:
        timestamp = str(int(now))
        headers["webhook-id"] = key
        headers["webhook-timestamp"] = timestamp
        headers["webhook-signature"] = signature(hook.signing_token, key, timestamp, body)
    return headers


class Webhooks:
    """The hooks and the tasks that send. `sent`, `failed` and `lost` count deliveries for the report."""

    def __init__(
        self,
        projects: Mapping[int, Project],
        *,
        clock: Callable[[], float],
        faults: Faults,
        instance: Callable[[], str],
        in_group: Callable[[Project, int], bool],
    ) -> None:
        self.hooks: dict[int, Hook] = {}
        self.sent = self.failed = self.lost = 0
        self._projects = projects
        self._clock = clock
        self._faults = faults
        self._dice = faults.dice("gitlab/lost_webhook")
        self._instance = instance
        self._in_group = in_group
        self._ids = count(1)
        self._queue: asyncio.Queue[tuple[Hook, WebhookDelivery]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None

    def add(
        self,
        url: str,
        *,
        project_id: int | None = None,
        group_id: int | None = None,
        job_events: bool = True,
        token: str | None = None,
        signing_token: str | None = None,
        name: str = "",
    ) -> Hook:
        """Configure a hook. GitLabRefusal 422 for a bad URL or signing token."""
        hook = Hook(id=next(self._ids), url=url, project_id=project_id, group_id=group_id, name=name)
        hook.job_events, hook.token, hook.signing_token = job_events, token, signing_token
        self.check(hook)
        self.hooks[hook.id] = hook
        return hook

    @staticmethod
    def check(hook: Hook) -> None:
        """GitLabRefusal 422 for what GitLab would not store."""
        if not hook.url.startswith(("http://", "https://")):
            raise GitLabRefusal(422, "Invalid url given")
        if hook.signing_token is not None:
            try:
                signing_key(hook.signing_token)
            except ValueError as error:
                raise GitLabRefusal(422, f"Invalid signing token: {error}") from None

    def start(self) -> None:
        """Begin sending; needs a running event loop."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout)
        self._tasks = [asyncio.create_task(self._send_forever(self._session)) for _ in range(_SENDERS)]

    async def aclose(self) -> None:
        """Stop; what was not sent is lost, as in a GitLab that goes down."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._session is not None:
            await self._session.close()

    def enqueue(self, delivery: WebhookDelivery) -> None:
        """Send to every hook that hears this project, unless the fault eats it."""
        project = self._projects[delivery.project_id]
        for hook in self.hooks.values():
            if not hook.job_events or not self._hears(hook, project):
                continue
            if self._faults.lost_webhook > 0 and self._dice.random() < self._faults.lost_webhook:
                self.lost += 1
            else:
                self._queue.put_nowait((hook, delivery))

    def _hears(self, hook: Hook, project: Project) -> bool:
        if hook.project_id is not None:
            return hook.project_id == project.id
        return hook.group_id is None or self._in_group(project, hook.group_id)

    async def flush(self) -> None:
        """Wait until everything enqueued so far was tried."""
        await self._queue.join()

    async def _send_forever(self, session: aiohttp.ClientSession) -> None:
        while True:
            hook, delivery = await self._queue.get()
            body = json.dumps(delivery.payload).encode()
            headers = delivery_headers(hook, delivery, instance=self._instance(), body=body, now=self._clock())
            try:
                async with session.post(hook.url, data=body, headers=headers, allow_redirects=False) as answer:
                    self.sent += answer.status < 400
                    self.failed += answer.status >= 400
            except (aiohttp.ClientError, TimeoutError, OSError):
                self.failed += 1
            finally:
                self._queue.task_done()
