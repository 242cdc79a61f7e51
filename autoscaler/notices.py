"""What clouds say unasked, and machines that fell silent: heard at once, acknowledged once durable, looked at by id.

Owns two tasks for each provider. One takes notices as long as the daemon lives: each becomes a fact, and is
acknowledged only when the tick that consumed it is durable; what fails is repeated later and shown as a warning, and
never holds up a tick. The other asks the cloud about single machines, all that are due in one call:

    a notice said that its state changed      at the next look
    its agent is not heard any more           every few seconds, ever rarer while the cloud says that it runs
    its reclaim is past and it is still here  likewise

Nothing here moves a row.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from autoscaler.facts import MachinesDescribed, NoticeArrived
from autoscaler.http.view import Trouble
from autoscaler.live import LiveRows
from autoscaler.loop import Loop
from autoscaler.model import Instance, InstanceState
from autoscaler.spi import Clock, InstanceId, MachineState, Notice, NoticeKind, Provider, ProviderId, ProviderName

log = structlog.get_logger()

NOTICES_S = 60.0
ACK_S = 30.0
DESCRIBE_S = 10.0
PAUSE_S = 1.0
"""Between two answers without a notice of a provider that does not wait for one."""
ACKS_AT_ONCE = 10
LOOK_EVERY_S = 1.0
LOOK_LIMIT = 500
"""Machines asked for in one call."""
SILENT_AFTER = timedelta(seconds=11)
"""Two heartbeats and a second."""
SILENT_EVERY = timedelta(seconds=2)
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=4), timedelta(seconds=64)
PAST_RECLAIM = timedelta(seconds=5)

_S = InstanceState
_HEARD = frozenset({_S.READY, _S.REGISTERING, _S.IDLE, _S.BUSY, _S.DRAINING})
"""States in which an agent was accepted and calls each few seconds."""


@dataclass(slots=True)
class _Look:
    """When a machine may be asked for again, and how long to wait after that."""

    at: datetime
    wait: timedelta = FIRST_WAIT


class NoticeWatch:
    """See the module docstring. `heard_at` is when a machine's agent called last; None: not yet, in this process."""

    def __init__(
        self,
        *,
        loop: Loop,
        rows: LiveRows,
        providers: Mapping[ProviderName, Provider],
        heard_at: Callable[[InstanceId], datetime | None],
        clock: Clock,
    ) -> None:
        self._loop = loop
        self._rows = rows
        self._providers = providers
        self._heard_at = heard_at
        self._clock = clock
        self._began = clock.now()
        self._troubles: dict[ProviderName, str] = {}
        self._changed: dict[ProviderName, set[ProviderId]] = defaultdict(set)
        self._looks: dict[InstanceId, _Look] = {}
        self._looked_at: dict[ProviderName, datetime] = {}

    def start(self, group: asyncio.TaskGroup) -> None:
        """Start both tasks of every provider in a group."""
        for name in self._providers:
            group.create_task(self._listen(name))
            group.create_task(self._look(name))

    def troubles(self) -> Sequence[Trouble]:
        """What the operator should know of providers, of their own and of hearing their notices."""
        own = [
            Trouble(target=name, text=text)
            for name, provider in self._providers.items()
            for text in provider.status().troubles
        ]
        return [*own, *(Trouble(target=name, text=text) for name, text in self._troubles.items())]

    # ------------------------------------------------------------------ notices

    async def _listen(self, name: ProviderName) -> None:
        places = asyncio.Semaphore(ACKS_AT_ONCE)
        failures = 0
        async with asyncio.TaskGroup() as acks:
            while True:
                started = self._clock.monotonic()
                try:
                    async with asyncio.timeout(NOTICES_S):
                        found = await self._providers[name].notices()
                except Exception as error:
                    failures += 1
                    self._note_failure(name, error, failures)
                    await self._clock.sleep(min(30.0, 0.5 * 2.0 ** min(failures, 6)))
                    continue
                failures = 0
                self._troubles.pop(name, None)
                if found:
                    self._take(name, found)
                    await places.acquire()
                    acks.create_task(self._acknowledge(name, found, places))
                elif self._clock.monotonic() - started < PAUSE_S:
                    await self._clock.sleep(PAUSE_S)

    def _note_failure(self, name: ProviderName, error: Exception, failures: int) -> None:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        if failures > 1:  # one failure is repeated within a second
            self._troubles[name] = (
                f"notices cannot be heard, losses are found later by heartbeats and listings: {text}; "
                "check the queue's permissions and that it can be reached"
            )
        log.warning("notices_failed", provider=name, failures=failures, kind=type(error).__name__, error=text)

    def _take(self, name: ProviderName, found: Sequence[Notice]) -> None:
        for notice in found:
            self._loop.report(NoticeArrived(provider=name, notice=notice))
            if notice.kind is NoticeKind.STATE_CHANGE:
                self._changed[name].add(notice.provider_id)

    async def _acknowledge(self, name: ProviderName, found: Sequence[Notice], places: asyncio.Semaphore) -> None:
        """Never before what they changed is durable: a daemon that dies in between hears them again."""
        try:
            await self._loop.consumed()
            async with asyncio.timeout(ACK_S):
                await self._providers[name].ack(found)
        except Exception as error:
            log.warning("notices_not_acknowledged", provider=name, notices=len(found), error=str(error)[:300])
        finally:
            places.release()

    # ------------------------------------------------------------------ single machines

    async def _look(self, name: ProviderName) -> None:
        failures = 0
        while True:
            await self._clock.sleep(min(30.0, LOOK_EVERY_S * 2.0 ** min(failures, 5)))
            asked, silent = self._due(name, self._clock.now())
            if asked:
                failures = 0 if await self._describe(name, asked, silent) else failures + 1

    def _due(self, name: ProviderName, now: datetime) -> tuple[dict[ProviderId, InstanceId], frozenset[ProviderId]]:
        """The machines to ask for now, and which of them are silent."""
        due: dict[ProviderId, InstanceId] = {}
        changed = self._changed.pop(name, set())
        for id_ in sorted(changed):
            if (row := self._rows.by_provider_id(name, id_)) is not None:
                due[id_] = row.id
        silent: set[ProviderId] = set()
        may_ask = self._looked_at.get(name, now - SILENT_EVERY) + SILENT_EVERY <= now
        suspects: set[InstanceId] = set()
        for row in self._rows.instances.values():
            if row.provider != name or row.provider_id is None:
                continue
            is_silent = self._is_silent(row, now)
            if not is_silent and not self._is_overdue(row, now):
                continue
            suspects.add(row.id)
            if is_silent:
                silent.add(row.provider_id)
            look = self._looks.get(row.id)
            if may_ask and (look is None or look.at <= now) and len(due) < LOOK_LIMIT:
                due[row.provider_id] = row.id
        for well in [one for one in self._looks if one not in suspects]:
            if (known := self._rows.instances.get(well)) is None or known.provider == name:
                del self._looks[well]
        return due, frozenset(silent & due.keys())

    def _is_silent(self, row: Instance, now: datetime) -> bool:
        if not row.claim or row.state not in _HEARD:
            return False
        heard = self._heard_at(row.id) or self._began
        return heard + SILENT_AFTER < now

    def _is_overdue(self, row: Instance, now: datetime) -> bool:
        interruption = self._rows.interruptions.get(row.id)
        return interruption is not None and interruption.taken_by + PAST_RECLAIM < now

    async def _describe(
        self, name: ProviderName, asked: Mapping[ProviderId, InstanceId], silent: frozenset[ProviderId]
    ) -> bool:
        """One call; a failure changes nothing."""
        started_at = self._looked_at[name] = self._clock.now()
        try:
            async with asyncio.timeout(DESCRIBE_S):
                shown = await self._providers[name].describe(sorted(asked))
        except Exception as error:
            log.warning("describe_failed", provider=name, machines=len(asked), error=str(error)[:300])
            return False
        running = {machine.provider_id for machine in shown if machine.state is MachineState.RUNNING}
        for provider_id, id_ in asked.items():
            look = self._looks.setdefault(id_, _Look(at=started_at))
            look.at = started_at + look.wait
            if provider_id in running:
                look.wait = min(2 * look.wait, LONGEST_WAIT)
        self._loop.report(
            MachinesDescribed(
                provider=name,
                asked=frozenset(asked),
                silent=silent,
                instances=tuple(shown),
                started_at=started_at,
            )
        )
        return True
