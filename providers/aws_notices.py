"""Notices from AWS: one SQS queue for each region, fed by EventBridge (docs/deploy-aws.md has the rule).

    receive -> parse -> drop and delete, or keep -> notices() -> ack() -> delete

A message is deleted when the core has made all of it durable, so that a daemon that dies finds it again. What is not
for us, said before, late or unreadable is counted and deleted at once: a queue gets the events of every machine in the
account and region. A queue that fails is asked again with a growing pause, and shown; machines are listed all the same.
"""

import asyncio
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from autoscaler.spi import Clock, Gates, Notice, NoticeKind, ProviderId
from providers.aws_events import Announcement, Event, Malformed, parse_event
from providers.aws_queue import BATCH, VISIBILITY_S, Message, Queue, QueueFailed, Received
from providers.aws_silence import Silence

_log = structlog.get_logger(__name__)

_WAIT_S = 20.0
_AGAIN = timedelta(seconds=30)
"""A notice that was handed out and not acknowledged is handed out again after this."""
_LATE = timedelta(minutes=5)
"""Events are sent within seconds: neither an older one nor one that far ahead is a warning of now."""
_DUPLICATE_FOR = timedelta(minutes=10)
"""The same said of the same machine in this time is said twice; later it is a machine that was started again."""
_SKEW = timedelta(seconds=30)
_REMEMBERED = 20_000
_PAUSE_S, _PAUSE_MOST_S = 1.0, 60.0
_CHECK_AGAIN = timedelta(minutes=5)
_LAST_DELETES_S = 3.0


@dataclass(slots=True, kw_only=True)
class _Held:
    """A message of which some notices are not acknowledged yet."""

    queue: Queue
    message: Message
    open: set[ProviderId] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class _Pending:
    notice: Notice
    held: _Held
    handed_at: datetime | None = None


class AwsNotices:
    """`queues` are their URLs by region. `knows` says whether a machine is ours; None where that is not known yet."""

    def __init__(
        self,
        queues: Mapping[str, str],
        *,
        account: str,
        client: Callable[[str], object],
        knows: Callable[[ProviderId], bool | None],
        gates: Gates,
        clock: Clock,
        name: str,
        visibility_s: int = VISIBILITY_S,
    ) -> None:
        self._queues = [
            Queue(url, region=region, client=client, gates=gates, name=name, visibility_s=visibility_s)
            for region, url in queues.items()
        ]
        self._account = account
        self._knows = knows
        self._clock = clock
        self._name = name
        self._dropped: Counter[str] = Counter()
        self._held: dict[str, _Held] = {}
        self._pending: dict[str, _Pending] = {}
        self._seen: OrderedDict[str, datetime] = OrderedDict()
        self._arrived = asyncio.Event()
        self._troubles: dict[str, str] = {}
        self._silence = Silence(clock, regions=queues)
        self._to_delete: dict[str, asyncio.Queue[str]] = {region: asyncio.Queue() for region in queues}
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------------ for the adapter

    @property
    def dropped(self) -> Mapping[str, int]:
        return dict(self._dropped)

    def troubles(self) -> tuple[str, ...]:
        """What the operator should know, each with its remedy."""
        return (*self._troubles.values(), *self._silence.troubles())

    def ended(self, provider_id: ProviderId, at: datetime, *, region: str) -> None:
        """A machine of ours ended, or is being reclaimed: a message of it must come, or none ever does."""
        self._silence.expect(provider_id, at, region=region)

    async def notices(self) -> Sequence[Notice]:
        """See `Provider.notices`. The first call starts to listen."""
        for task in self._tasks:
            if task.done():
                await self._stop()
                task.result()  # a fault of ours: the caller tells it, and calls again
        if not self._tasks:
            for queue in self._queues:
                self._tasks.append(asyncio.create_task(self._listen(queue), name=f"{self._name}-{queue.region}"))
                self._tasks.append(asyncio.create_task(self._sweep(queue), name=f"{self._name}-{queue.region}-sweep"))
        if not self._due():
            self._arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), self._wait_s())
        now = self._clock.now()
        due = self._due()
        for one in due:
            one.handed_at = now
        return tuple(one.notice for one in due)

    async def ack(self, notices: Sequence[Notice]) -> None:
        """See `Provider.ack`. A message goes when all that it said is acknowledged."""
        for notice in notices:
            pending = self._pending.pop(notice.receipt, None)
            if pending is None:
                continue
            held = pending.held
            held.open.discard(notice.provider_id)
            if not held.open:
                self._held.pop(held.message.message_id, None)
                self._delete(held.queue, held.message)

    async def aclose(self) -> None:
        """Stop listening; what is acknowledged is deleted, if that is quick."""
        for queue in self._queues:
            with suppress(TimeoutError, QueueFailed):
                await asyncio.wait_for(self._delete_some(queue), _LAST_DELETES_S)
        await self._stop()

    async def _stop(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _due(self) -> list[_Pending]:
        again = self._clock.now() - _AGAIN
        return [one for one in self._pending.values() if one.handed_at is None or one.handed_at <= again]

    def _wait_s(self) -> float:
        """Until something must be handed out again, and never above what the seam allows."""
        handed = [one.handed_at for one in self._pending.values() if one.handed_at is not None]
        if not handed:
            return _WAIT_S
        return max(0.1, min(_WAIT_S, (min(handed) + _AGAIN - self._clock.now()).total_seconds()))

    # ------------------------------------------------------------------ one queue

    async def _listen(self, queue: Queue) -> None:
        """Receive for ever; full batches follow each other without a pause."""
        pause_s = _PAUSE_S
        checked_at: datetime | None = None
        while True:
            try:
                if checked_at is None or (
                    queue.region in self._troubles and self._clock.now() - checked_at > _CHECK_AGAIN
                ):
                    checked_at = self._clock.now()
                    self._say(queue, await queue.problem())
                received = await queue.receive()
            except QueueFailed as error:
                self._silence.pause(queue.region)
                self._say(queue, str(error))
                checked_at = None
                await self._clock.sleep(pause_s * (0.5 + random.random() / 2))  # noqa: S311 - jitter, not a secret
                pause_s = min(pause_s * 2, _PAUSE_MOST_S)
                continue
            pause_s = _PAUSE_S
            self._silence.listening(queue.region)
            self._take(queue, received)

    def _say(self, queue: Queue, problem: str) -> None:
        if not problem:
            self._troubles.pop(queue.region, None)
            return
        if queue.region not in self._troubles:
            _log.warning("notices_troubled", provider=self._name, region=queue.region, problem=problem)
        self._troubles[queue.region] = f"notices: {problem}"

    async def _sweep(self, queue: Queue) -> None:
        """Delete what is done. What could not be deleted comes again, is a duplicate then, and is deleted."""
        while True:
            try:
                await self._delete_some(queue, waits=True)
            except QueueFailed as error:
                _log.warning("messages_not_deleted", provider=self._name, region=queue.region, problem=str(error))

    async def _delete_some(self, queue: Queue, *, waits: bool = False) -> None:
        """Delete up to all that is there now, ten at a time; `waits` for the first."""
        handles = [await self._to_delete[queue.region].get()] if waits else []
        while True:
            while len(handles) < BATCH and not self._to_delete[queue.region].empty():
                handles.append(self._to_delete[queue.region].get_nowait())
            if not handles:
                return
            if failed := await queue.delete(handles):
                _log.warning("messages_not_deleted", provider=self._name, region=queue.region, count=failed)
            handles = []

    def _delete(self, queue: Queue, message: Message) -> None:
        self._to_delete[queue.region].put_nowait(message.handle)

    # ------------------------------------------------------------------ messages

    def _take(self, queue: Queue, received: Received) -> None:
        """Sort messages: each is kept, or dropped for one reason and deleted."""
        ours = self._clock.now()
        theirs = received.answered_at or ours
        # Our own clock may be wrong by minutes: ages are measured with the cloud's.
        skew = theirs - ours if abs(theirs - ours) > _SKEW else timedelta()
        for message in received.messages:
            held = self._held.get(message.message_id)
            if held is not None:
                held.message = message  # it took us too long: only its newest handle can delete it
                continue
            reason = self._keep(queue, message, theirs, skew)
            if reason:
                self._dropped[reason] += 1
                self._delete(queue, message)
        if self._due():
            self._arrived.set()

    def _keep(self, queue: Queue, message: Message, now: datetime, skew: timedelta) -> str:
        """Why the message is dropped; empty: it became notices."""
        try:
            event = parse_event(message.body)
        except Malformed as error:
            _log.warning("message_malformed", provider=self._name, region=queue.region, problem=str(error))
            return "malformed"
        if event.account not in ("", self._account):
            return "foreign"
        ours = [one for one in event.announcements if self._knows(one.provider_id) is not False]
        self._silence.heard(queue.region, [one.provider_id for one in ours])
        if event.announcements and not ours:
            return "foreign"
        told = [one for one in ours if one.kind is not None]
        if not told:
            return "irrelevant"
        if now - event.at > _LATE:
            return "late"
        if event.at - now > _LATE:
            return "future"  # a forged one would keep its machine draining until then
        if not self._is_new(event.event_id, now):
            return "duplicate"
        fresh = [one for one in told if self._is_new(one.key, now)]
        if not fresh:
            return "duplicate"
        self._hold(queue, message, event, fresh, skew)
        return ""

    def _hold(
        self, queue: Queue, message: Message, event: Event, fresh: Iterable[Announcement], skew: timedelta
    ) -> None:
        held = _Held(queue=queue, message=message)
        self._held[message.message_id] = held
        for one in fresh:
            receipt = f"{message.message_id}/{one.provider_id}"
            held.open.add(one.provider_id)
            notice = Notice(
                provider_id=one.provider_id,
                kind=one.kind or NoticeKind.STATE_CHANGE,
                reclaim_at=one.reclaim_at - skew,
                receipt=receipt,
                source="queue",
                noticed_at=event.at - skew,
            )
            self._pending[receipt] = _Pending(notice=notice, held=held)

    def _is_new(self, key: str, now: datetime) -> bool:
        """Remember it, among the last 20,000."""
        seen_at = self._seen.pop(key, None)
        is_new = seen_at is None or now - seen_at > _DUPLICATE_FOR
        self._seen[key] = now if seen_at is None or is_new else seen_at
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return is_new
