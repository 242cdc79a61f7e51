"""Preemptions as the cloud tells them unasked: by polling operations, while spot machines live.

The operation comes at or after the stop, so that this is detection: the notice before it reaches the agent alone. Each
loss is told until it is acknowledged. What is not ours, was told before or is old is dropped and counted.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from datetime import timedelta

import structlog

from autoscaler.spi import Clock, Notice, NoticeKind, ProviderError
from providers.gce_clients import GceClients
from providers.gce_machines import GceMachines
from providers.gce_operations import Ending, Operations

_log = structlog.get_logger(__name__)

_POLL_S = 2.0
_WAIT_S = 20.0
_LATE = timedelta(minutes=5)
_OVERLAP = timedelta(minutes=10)
"""An operation may be listed well after its own time."""
_AWAY = timedelta(hours=1)
"""The first look goes back further: what became of machines while no daemon ran, nothing else tells any more."""
_REMEMBERED = 20_000


class GceNotices:
    def __init__(
        self, clients: GceClients, machines: GceMachines, operations: Operations, clock: Clock, *, name_prefix: str
    ) -> None:
        self._clients = clients
        self._machines = machines
        self._operations = operations
        self._clock = clock
        self._name_prefix = name_prefix
        self._dropped: Counter[str] = Counter()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._pending: dict[str, Notice] = {}
        self._trouble = ""
        self._has_looked = False

    @property
    def dropped(self) -> Mapping[str, int]:
        return dict(self._dropped)

    @property
    def troubles(self) -> tuple[str, ...]:
        return (self._trouble,) if self._trouble else ()

    async def notices(self) -> Sequence[Notice]:
        """See `Provider.notices`."""
        deadline = self._clock.monotonic() + _WAIT_S
        while True:
            # At first also without: a machine may have been taken while no daemon ran.
            if self._machines.has_spot() or not self._has_looked:
                await self._look()
            if self._pending or self._clock.monotonic() + _POLL_S >= deadline:
                return tuple(self._pending.values())
            await self._clock.sleep(_POLL_S)

    async def ack(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            self._pending.pop(notice.receipt, None)

    async def _look(self) -> None:
        is_first = not self._has_looked
        try:
            losses = await self._operations.losses(self._clients.google_now() - (_AWAY if is_first else _OVERLAP))
        except ProviderError as error:
            if not self._trouble:
                _log.warning("notices_not_read", error=str(error))
            self._trouble = f"notices: preemptions cannot be read: {error}"
            return
        self._trouble = ""
        self._has_looked = True
        for loss in losses:
            self._take(loss, latest=_AWAY if is_first else _LATE)

    def _take(self, loss: Ending, *, latest: timedelta) -> None:
        if loss.operation in self._seen:
            return  # each poll reads the last minutes again
        self._seen[loss.operation] = None
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        name = loss.provider_id.partition("/")[2]
        known = self._machines.known(loss.provider_id)
        if not name.startswith(self._name_prefix) or (known is not None and known.numeric_id != loss.target_id):
            self._dropped["foreign"] += 1
        elif self._clients.google_now() - loss.at > latest:
            self._dropped["late"] += 1
        elif any(one.provider_id == loss.provider_id for one in self._pending.values()):
            self._dropped["duplicate"] += 1
        else:
            at = loss.at - self._clients.clock_error  # by our own clock, as the core's instants are
            self._pending[loss.operation] = Notice(
                provider_id=loss.provider_id,
                kind=NoticeKind.RECLAIM if loss.is_reclaim else NoticeKind.STATE_CHANGE,
                reclaim_at=at,
                receipt=loss.operation,
                source="operation",
                noticed_at=at,
            )
