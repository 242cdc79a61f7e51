"""SQS standard queues: visibility timeout, retention, receipt handles, long polls, at-least-once delivery.

A queue gives a received message back once its visibility timeout has passed; it forgets what is older than its
retention. Order is as sent unless the sender chooses otherwise.
"""

import asyncio
import hashlib
import json
import secrets
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from autoscaler.sandbox.aws_access import Caller
from autoscaler.sandbox.aws_json import Json
from autoscaler.sandbox.aws_query import AwsError

BATCH = 10
_LONGEST_WAIT_S = 20
_LONGEST_HIDDEN_S = 43_200


@dataclass(slots=True, kw_only=True)
class Message:
    """One message in a queue; times in epoch seconds."""

    id: str
    body: str
    sent_at: float
    visible_at: float
    receive_count: int = 0
    first_received_at: float = 0.0
    handles: set[str] = field(default_factory=set)


class Queue:
    """One queue. `policy` is the resource policy as JSON text, empty: none. `retention_s` as in specs A3."""

    def __init__(
        self, name: str, *, account: str, region: str, now: float, policy: str = "", retention_s: float = 300.0
    ) -> None:
        self.name = name
        self.arn = f"arn:aws:sqs:{region}:{account}:{name}"
        self.policy = policy
        self.retention_s = retention_s
        self.visibility_s = 30
        self.created_at = now
        self.messages: dict[str, Message] = {}
        self._arrived = asyncio.Event()

    def send(self, body: str, now: float, *, delay_s: float = 0.0) -> Message:
        message = Message(id=str(uuid.uuid4()), body=body, sent_at=now, visible_at=now + delay_s)
        self.messages[message.id] = message
        self._arrived.set()
        return message

    def receive(self, now: float, *, most: int, visibility_s: float) -> list[tuple[Message, str]]:
        """Up to `most` visible messages, each with a new receipt handle; they are hidden for a while."""
        for message in list(self.messages.values()):
            if message.sent_at + self.retention_s <= now:
                del self.messages[message.id]
        received: list[tuple[Message, str]] = []
        for message in self.messages.values():
            if message.visible_at <= now and len(received) < most:
                received.append((message, self._hand_out(message, now, visibility_s)))
        return received

    def _hand_out(self, message: Message, now: float, visibility_s: float) -> str:
        message.receive_count += 1
        message.first_received_at = message.first_received_at or now
        message.visible_at = now + visibility_s
        handle = f"{message.id}:{secrets.token_urlsafe(24)}"
        message.handles.add(handle)
        return handle

    def delete(self, handle: str) -> bool:
        """False: no handle that this queue ever gave. Deleting again, or what has expired, succeeds."""
        id_, separator, seal = handle.partition(":")
        if not separator or not seal:
            return False
        message = self.messages.get(id_)
        if message is not None and handle in message.handles:
            del self.messages[id_]
        return True

    async def wait(self, now: float, timeout_s: float) -> None:
        """Until a message may be there: one was sent, or one that is hidden comes back."""
        self._arrived.clear()
        hidden = min((m.visible_at - now for m in self.messages.values() if m.visible_at > now), default=timeout_s)
        try:
            async with asyncio.timeout(max(0.0, min(timeout_s, hidden))):
                await self._arrived.wait()
        except TimeoutError:
            return

    def counts(self, now: float) -> tuple[int, int]:
        """Visible and hidden messages."""
        visible = sum(1 for message in self.messages.values() if message.visible_at <= now)
        return visible, len(self.messages) - visible


_Handler = Callable[[Caller, Queue, Json], Awaitable[Json]]


class Sqs:
    """The queues of an account, by region and name. `origin` is the URL that the face is reached at."""

    def __init__(self) -> None:
        self.origin = ""
        self.queues: dict[tuple[str, str], Queue] = {}
        self._handlers: Mapping[str, _Handler] = {
            "ReceiveMessage": self._receive,
            "SendMessage": self._send,
            "DeleteMessage": self._delete,
            "DeleteMessageBatch": self._delete_batch,
            "ChangeMessageVisibility": self._change_visibility,
            "GetQueueAttributes": self._attributes,
        }

    def url(self, queue: Queue) -> str:
        account = queue.arn.split(":")[4]
        return f"{self.origin}/{account}/{queue.name}"

    async def answer(self, caller: Caller, action: str, document: Json) -> Json:
        if action == "GetQueueUrl":
            queue = self._queue(caller, str(document.get("QueueName", "")))
            caller.need("sqs:GetQueueUrl", resource=queue.arn)
            return {"QueueUrl": self.url(queue)}
        handler = self._handlers.get(action)
        if handler is None:
            raise AwsError("UnknownOperationException", f"The sandbox's SQS does not know {action}", status=404)
        queue = self._queue(caller, str(document.get("QueueUrl", "")).rpartition("/")[2])
        permission = action.removesuffix("Batch")
        caller.need(f"sqs:{permission}", resource=queue.arn)
        return await handler(caller, queue, document)

    def _queue(self, caller: Caller, name: str) -> Queue:
        queue = self.queues.get((caller.region, name))
        if queue is None:
            raise AwsError(
                "QueueDoesNotExist",
                "The specified queue does not exist.",
                query_code="AWS.SimpleQueueService.NonExistentQueue",
            )
        return queue

    async def _receive(self, caller: Caller, queue: Queue, document: Json) -> Json:
        most = _within(document, "MaxNumberOfMessages", 1, (1, BATCH))
        wait_s = _within(document, "WaitTimeSeconds", 0, (0, _LONGEST_WAIT_S))
        visibility_s = _within(document, "VisibilityTimeout", queue.visibility_s, (0, _LONGEST_HIDDEN_S))
        deadline = caller.now + wait_s
        received = queue.receive(caller.now, most=most, visibility_s=visibility_s)
        while not received and caller.now < deadline:
            await queue.wait(caller.now, deadline - caller.now)
            received = queue.receive(caller.now, most=most, visibility_s=visibility_s)
        wanted = {*document.get("AttributeNames", ()), *document.get("MessageSystemAttributeNames", ())}
        if not received:
            return {}
        return {"Messages": [_received(message, handle, wanted) for message, handle in received]}

    async def _send(self, caller: Caller, queue: Queue, document: Json) -> Json:
        body = document.get("MessageBody", "")
        if not body:
            raise AwsError("MissingParameter", "The request must contain the parameter MessageBody.")
        delay_s = _within(document, "DelaySeconds", 0, (0, 900))
        message = queue.send(body, caller.now, delay_s=delay_s)
        return {"MessageId": message.id, "MD5OfMessageBody": _md5(body)}

    async def _delete(self, caller: Caller, queue: Queue, document: Json) -> Json:
        if not queue.delete(str(document.get("ReceiptHandle", ""))):
            raise _bad_handle()
        return {}

    async def _delete_batch(self, caller: Caller, queue: Queue, document: Json) -> Json:
        entries = document.get("Entries", [])
        if not entries or len(entries) > BATCH:
            code, about = ("EmptyBatchRequest", "no") if not entries else ("TooManyEntriesInBatchRequest", "too many")
            query_code = f"AWS.SimpleQueueService.{code}"
            raise AwsError(code, f"There are {about} entries in the batch request.", query_code=query_code)
        if len({entry["Id"] for entry in entries}) < len(entries):
            query_code = "AWS.SimpleQueueService.BatchEntryIdsNotDistinct"
            raise AwsError("BatchEntryIdsNotDistinct", "Ids are repeated.", query_code=query_code)
        answer: Json = {"Successful": [], "Failed": []}
        for entry in entries:
            if queue.delete(entry["ReceiptHandle"]):
                answer["Successful"].append({"Id": entry["Id"]})
            else:
                error = _bad_handle()
                failed = {"Id": entry["Id"], "SenderFault": True, "Code": error.code, "Message": error.message}
                answer["Failed"].append(failed)
        return answer

    async def _change_visibility(self, caller: Caller, queue: Queue, document: Json) -> Json:
        handle = str(document.get("ReceiptHandle", ""))
        message = queue.messages.get(handle.partition(":")[0])
        if message is None or handle not in message.handles:
            raise _bad_handle()
        message.visible_at = caller.now + _within(document, "VisibilityTimeout", 0, (0, _LONGEST_HIDDEN_S))
        return {}

    async def _attributes(self, caller: Caller, queue: Queue, document: Json) -> Json:
        visible, hidden = queue.counts(caller.now)
        known = {
            "ApproximateNumberOfMessages": visible,
            "ApproximateNumberOfMessagesNotVisible": hidden,
            "ApproximateNumberOfMessagesDelayed": 0,
            "CreatedTimestamp": int(queue.created_at),
            "LastModifiedTimestamp": int(queue.created_at),
            "DelaySeconds": 0,
            "MaximumMessageSize": 1_048_576,
            "MessageRetentionPeriod": int(queue.retention_s),
            "QueueArn": queue.arn,
            "ReceiveMessageWaitTimeSeconds": 0,
            "SqsManagedSseEnabled": "true",
            "VisibilityTimeout": queue.visibility_s,
        }
        if queue.policy:
            known["Policy"] = queue.policy
        wanted = document.get("AttributeNames", [])
        for name in wanted:
            if name not in ("All", "Policy", *known):
                raise AwsError("InvalidAttributeName", f"Unknown Attribute {name}.")
        shown = {name: str(value) for name, value in known.items() if "All" in wanted or name in wanted}
        return {"Attributes": shown} if shown else {}


def lets_events_send(queue: Queue) -> bool:
    """Whether the queue's policy lets EventBridge's rules send to it. Source: EventBridge's guide to SQS targets."""
    statements = json.loads(queue.policy or "{}").get("Statement", [])
    return any(
        statement.get("Effect") == "Allow"
        and "events.amazonaws.com" in _listed(_listed_principal(statement))
        and {"sqs:SendMessage", "sqs:*", "SQS:SendMessage"} & set(_listed(statement.get("Action", [])))
        for statement in statements
    )


def _listed_principal(statement: Json) -> object:
    principal = statement.get("Principal", {})
    return principal.get("Service", []) if isinstance(principal, dict) else []


def _listed(value: object) -> list[str]:
    return [value] if isinstance(value, str) else list(value) if isinstance(value, list) else []


def _within(document: Json, name: str, default: int, bounds: tuple[int, int]) -> int:
    value = document.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or not bounds[0] <= value <= bounds[1]:
        message = f"Value {value} for parameter {name} is invalid. Reason: Must be between {bounds[0]} and {bounds[1]}."
        raise AwsError("InvalidParameterValueException", message, query_code="InvalidParameterValue")
    return value


def _received(message: Message, handle: str, wanted: set[str]) -> Json:
    known = {
        "SenderId": "AIDAEVENTS",
        "SentTimestamp": str(int(message.sent_at * 1000)),
        "ApproximateReceiveCount": str(message.receive_count),
        "ApproximateFirstReceiveTimestamp": str(int(message.first_received_at * 1000)),
    }
    shown = {name: value for name, value in known.items() if "All" in wanted or name in wanted}
    row: Json = {"MessageId": message.id, "ReceiptHandle": handle, "MD5OfBody": _md5(message.body)}
    return row | {"Body": message.body} | ({"Attributes": shown} if shown else {})


def _md5(body: str) -> str:
    return hashlib.md5(body.encode(), usedforsecurity=False).hexdigest()


def _bad_handle() -> AwsError:
    return AwsError("ReceiptHandleIsInvalid", "The input receipt handle is invalid.", status=400)
