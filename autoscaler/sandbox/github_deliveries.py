"""Sends the world's webhooks over HTTP and remembers each delivery, as github.com does.

Signs the exact bytes it posts; waits at most 10 s; never sends again by itself: a redelivery is asked for through
the API and carries the same GUID.
"""

import asyncio
import hashlib
import hmac
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.github_model import GitHubError, Hook, Json, Webhook
from autoscaler.sandbox.github_payloads import iso

TIMEOUT_S = 10.0
REDELIVERY_WINDOW_S = 3 * 86_400
KEPT = 10_000
_CONCURRENT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One attempt to deliver one webhook. `status_code` 0: no connection or no answer in time."""

    id: int
    webhook: Webhook
    delivered_at: float
    redelivery: bool
    duration_s: float
    status: str
    status_code: int
    request_headers: dict[str, str] = field(repr=False)
    response_headers: dict[str, str] = field(repr=False)
    response_text: str = field(repr=False)


def signature(secret: bytes, body: bytes) -> str:
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


class Deliveries:
    """The sender and its record. `hooks` is the world's, shared."""

    def __init__(
        self, hooks: dict[int, Hook], *, clock: Callable[[], float], faults: Faults, app_id: int, timeout_s: float
    ) -> None:
        self._hooks = hooks
        self._clock = clock
        self._faults = faults
        self._dice = faults.dice("webhooks")
        self._app_id = app_id
        self._timeout_s = timeout_s
        self._ids = itertools.count(12_345_678_001)
        self._records: dict[int, Delivery] = {}
        self._gate = asyncio.Semaphore(_CONCURRENT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._client: aiohttp.ClientSession | None = None
        self.lost = 0

    def send(self, webhook: Webhook, *, redelivery: bool = False) -> None:
        """Starts a delivery. A webhook lost by fault is neither sent nor remembered."""
        if not redelivery and self._faults.lost_webhook > self._dice.random():
            self.lost += 1
            return
        task = asyncio.create_task(self._deliver(webhook, redelivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def of_hook(self, hook_id: int, *, status: str | None = None) -> list[Delivery]:
        """Newest first; `status` success (200-399) or failure (400-599), which misses what got no answer."""
        ranges = {"success": range(200, 400), "failure": range(400, 600)}
        wanted = range(600) if status is None else ranges.get(status, range(0))
        rows = (row for row in self._records.values() if row.webhook.hook_id == hook_id)
        return [row for row in rows if row.status_code in wanted][::-1]

    def one(self, hook_id: int, delivery_id: int) -> Delivery:
        row = self._records.get(delivery_id)
        if row is None or row.webhook.hook_id != hook_id:
            raise GitHubError(404, "Not Found")
        return row

    def redeliver(self, hook_id: int, delivery_id: int) -> None:
        row = self.one(hook_id, delivery_id)
        if self._clock() - row.delivered_at > REDELIVERY_WINDOW_S:
            raise GitHubError(422, "The delivery is too old to be redelivered")
        self.send(row.webhook, redelivery=True)

    async def settled(self) -> None:
        """Returns when nothing is on its way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    async def _deliver(self, webhook: Webhook, redelivery: bool) -> None:
        hook = self._hooks[webhook.hook_id]
        body = json.dumps(webhook.payload, separators=(",", ":")).encode()
        headers = self._headers(hook, webhook, body)
        async with self._gate:
            started, delivered_at = time.monotonic(), self._clock()
            status, code, answer_headers, text = await self._post(hook.url, body, headers)
        row = Delivery(
            id=next(self._ids),
            webhook=webhook,
            delivered_at=delivered_at,
            redelivery=redelivery,
            duration_s=round(time.monotonic() - started, 3),
            status=status,
            status_code=code,
            request_headers=headers,
            response_headers=answer_headers,
            response_text=text,
        )
        self._records[row.id] = row
        if len(self._records) > KEPT:
            del self._records[next(iter(self._records))]

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> tuple[str, int, dict[str, str], str]:
        if self._client is None:
            self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_s))
        try:
            async with self._client.post(url, data=body, headers=headers, allow_redirects=False) as response:
                text = (await response.read())[:4096].decode(errors="replace")
                status = "OK" if response.status < 400 else f"Invalid HTTP Response: {response.status}"
                return status, response.status, dict(response.headers), text
        except TimeoutError:
            return "timed out", 0, {}, ""
        except (aiohttp.ClientError, OSError):
            return "failed to connect to host", 0, {}, ""

    def _headers(self, hook: Hook, webhook: Webhook, body: bytes) -> dict[str, str]:
        kind = "integration" if hook.scope is None else "repository" if "/" in hook.scope else "organization"
        headers = {
            "Accept": "*/*",
            "Content-Type": "application/json",
            "User-Agent": "GitHub-Hookshot/044aadd",
            "X-GitHub-Delivery": webhook.guid,
            "X-GitHub-Event": webhook.event,
            "X-GitHub-Hook-ID": str(hook.id),
            "X-GitHub-Hook-Installation-Target-ID": str(self._app_id if hook.scope is None else hook.id),
            "X-GitHub-Hook-Installation-Target-Type": kind,
        }
        if hook.secret:
            headers["X-Hub-Signature-256"] = signature(hook.secret, body)
        return headers


def item(row: Delivery) -> Json:
    """A delivery as the lists write it."""
    return {
        "id": row.id,
        "guid": row.webhook.guid,
        "delivered_at": iso(row.delivered_at),
        "redelivery": row.redelivery,
        "duration": row.duration_s,
        "status": row.status,
        "status_code": row.status_code,
        "event": row.webhook.event,
        "action": row.webhook.action or None,
        "installation_id": row.webhook.installation_id,
        "repository_id": row.webhook.repository_id,
        "throttled_at": None,
    }


def detail(row: Delivery) -> Json:
    return {
        **item(row),
        "url": "",
        "request": {"headers": row.request_headers, "payload": row.webhook.payload},
        "response": {"headers": row.response_headers, "payload": row.response_text},
    }
