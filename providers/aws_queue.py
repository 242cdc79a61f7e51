"""One SQS queue: receive, delete, and whether EventBridge may send to it. Blocking calls, each through a gate.

Owns the calls and their limits; what the messages say, and when one may be deleted, is not its business.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from autoscaler.spi import Gate, Gates

BATCH = 10
"""Messages in one call, at most: SQS's own limit, of receives and of deletes."""
WAIT_S = 3
"""How long a receive waits for a message. SQS allows 20; but a daemon that stops waits for it, as an abandoned receive
would take messages out of sight, and a million receives a month cost half a dollar."""
VISIBILITY_S = 30
"""How long a received message is out of sight: if we die with it, it is there again after that."""
_ANSWER_S = 15.0
_MISSING = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})
_SOURCE_OPERATORS = frozenset({"ArnEquals", "ArnLike", "StringEquals", "StringLike"})
_SOURCE_KEYS = frozenset({"aws:sourcearn", "aws:sourceaccount", "aws:sourceorgid", "aws:principalorgid"})
_FORBIDDEN = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})


class QueueFailed(Exception):
    """The queue did not do it; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """`handle` deletes it, as long as it is the last one that was given out."""

    message_id: str
    handle: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """Messages, and the cloud's own time where it says it: ours may be wrong."""

    messages: tuple[Message, ...]
    answered_at: datetime | None


class Queue:
    """`client` gives the region's SQS client (made in a thread, once); its read timeout must be above `WAIT_S`."""

    def __init__(
        self, url: str, *, region: str, client: Callable[[str], Any], gates: Gates, name: str, visibility_s: int
    ) -> None:
        self.url = url
        self.region = region
        self._visibility_s = visibility_s
        self._client = client
        self._receiving: Gate = gates.gate(f"{name}-notices-{region}", threads=1)
        self._deleting: Gate = gates.gate(f"{name}-notices-{region}-deletes", threads=1)

    async def receive(self) -> Received:
        """Up to 10 messages; waits for the first. Raises QueueFailed."""
        answer = await self._call(
            self._receiving,
            "receive_message",
            "sqs:ReceiveMessage",
            MaxNumberOfMessages=BATCH,
            WaitTimeSeconds=WAIT_S,
            VisibilityTimeout=self._visibility_s,
        )
        return Received(
            messages=tuple(
                Message(message_id=one["MessageId"], handle=one["ReceiptHandle"], body=one.get("Body", ""))
                for one in answer.get("Messages", ())
            ),
            answered_at=_date(answer),
        )

    async def delete(self, handles: Sequence[str]) -> int:
        """Delete up to 10 messages; how many were not (they come again). Raises QueueFailed."""
        entries = [{"Id": str(index), "ReceiptHandle": handle} for index, handle in enumerate(handles)]
        answer = await self._call(self._deleting, "delete_message_batch", "sqs:DeleteMessage", Entries=entries)
        return len(answer.get("Failed", ()))

    async def problem(self) -> str:
        """Why nothing can arrive, as far as the queue itself tells; empty: nothing is wrong with it."""
        try:
            answer = await self._call(
                self._deleting,
                "get_queue_attributes",
                "sqs:GetQueueAttributes",
                AttributeNames=["Policy"],
            )
        except QueueFailed as error:
            return str(error)
        if _lets_events_send(answer.get("Attributes", {}).get("Policy", "")):
            return ""
        return f"the policy of {self.url} does not let events.amazonaws.com do sqs:SendMessage: add that statement"

    async def _call(self, gate: Gate, method: str, permission: str, /, **arguments: Any) -> Any:
        def call() -> Any:
            return getattr(self._client(self.region), method)(QueueUrl=self.url, **arguments)

        try:
            return await gate.call(call, timeout_s=WAIT_S + _ANSWER_S)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _MISSING:
                raise QueueFailed(f"there is no queue {self.url}: correct notices.{self.region}") from None
            if code in _FORBIDDEN:
                raise QueueFailed(f"{code} for {self.url}: allow {permission} on it") from None
            raise QueueFailed(f"{code} from {self.url}: {_message(error)}") from None
        except (BotoCoreError, OSError) as error:
            raise QueueFailed(f"{self.url} is not reached: {str(error)[:200] or type(error).__name__}") from None


def _message(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message", ""))[:200]


def _date(answer: Any) -> datetime | None:
    """The Date header of an answer."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        date = parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError):
        return None
    return date.astimezone(UTC) if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _lets_events_send(policy: str) -> bool:
    """Whether a statement of the queue's policy allows EventBridge to send. Denials are not weighed: they come with
    conditions (no TLS, other accounts) that only AWS can judge."""
    try:
        statements = json.loads(policy)["Statement"]
        return any(_allows(one) for one in ([statements] if isinstance(statements, dict) else statements))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def strangers_may_send(policy: str) -> bool:
    """Whether rules of any account may: each service acts for whoever asks it, and only a condition on the source says
    for whom here (IAM user guide, "The confused deputy problem")."""
    try:
        statements = json.loads(policy)["Statement"]
        return any(
            _allows(one) and not _names_its_source(one.get("Condition", {}))
            for one in ([statements] if isinstance(statements, dict) else statements)
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _names_its_source(condition: Any) -> bool:
    positive = [keys for operator, keys in condition.items() if operator in _SOURCE_OPERATORS]
    return any(
        key.lower() in _SOURCE_KEYS and "*" not in _listed(value) for keys in positive for key, value in keys.items()
    )


def _allows(statement: Any) -> bool:
    principal = statement.get("Principal", {})
    services = _listed(principal.get("Service", ())) if isinstance(principal, dict) else _listed(principal)
    everybody = isinstance(principal, dict) and "*" in _listed(principal.get("AWS", ()))
    actions = {one.lower() for one in _listed(statement.get("Action", ()))}
    is_sender = everybody or "events.amazonaws.com" in services or "*" in services
    return statement.get("Effect") == "Allow" and is_sender and bool(actions & {"sqs:sendmessage", "sqs:*", "*"})


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [one for one in value if isinstance(one, str)]
