"""Operations: what Google does later than it answers. Polled by short calls, never waited for in a thread.

    launches    the operation of a bulk insert says at its end what became of it: stockouts and quotas come here
    endings     operations of Google's own, at or after the end: a machine was preempted, its host failed, or its guest
                powered off

They tell what happened; none of them is a notice.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.cloud import compute_v1

from autoscaler.spi import Clock, ProviderError, ProviderId, Throttled, Unauthorized
from providers.gce_clients import GceClients, Sdk
from providers.gce_errors import Context, NotFound
from providers.gce_names import place_in

PREEMPTED = "compute.instances.preempted"
POWERED_OFF = "compute.instances.guestTerminate"
LOSSES = (PREEMPTED, "compute.instances.hostError", "compute.instances.terminateOnHostMaintenance")
_FIRST_POLL_S = 0.3
_SLOWER = 1.5
_SLOWEST_POLL_S = 4.0
_OLD = timedelta(minutes=15)
"""Operations stay listed for two weeks: reading stops at a page that is older than this."""

_READING = Context(doing="read an operation", permission="compute.regionOperations.get", family="operations")
_LISTING = Context(doing="list operations", permission="compute.globalOperations.list", family="lists")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a machine ended, by Google's own operation. `target_id` is the machine's numeric id."""

    operation: str
    kind: str
    target_id: str
    provider_id: ProviderId
    at: datetime

    @property
    def is_reclaim(self) -> bool:
        return self.kind == PREEMPTED

    @property
    def is_by_itself(self) -> bool:
        return self.kind == POWERED_OFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """An operation of a launch that was accepted."""

    name: str
    region: str


class Operations:
    def __init__(self, clients: GceClients, clock: Clock) -> None:
        self._clients = clients
        self._clock = clock

    async def finish(self, started: Started, deadline: float) -> compute_v1.Operation | None:
        """The finished operation of a region; None when it was not DONE by the deadline (the clock's monotonic
        seconds). A poll that fails is only late. Raises NotFound and Unauthorized."""

        def read(sdk: Sdk) -> compute_v1.Operation:
            return sdk.region_operations.get(
                project=sdk.project, region=started.region, operation=started.name, retry=None, timeout=5.0
            )

        return await self._finish(read, deadline)

    async def finish_in_zone(self, name: str, zone: str, deadline: float) -> compute_v1.Operation | None:
        """The same for an operation of a zone."""

        def read(sdk: Sdk) -> compute_v1.Operation:
            return sdk.zone_operations.get(project=sdk.project, zone=zone, operation=name, retry=None, timeout=5.0)

        return await self._finish(read, deadline)

    async def _finish(self, read: Any, deadline: float) -> compute_v1.Operation | None:
        pause_s = _FIRST_POLL_S
        while self._clock.monotonic() + pause_s < deadline:
            await self._clock.sleep(pause_s)
            pause_s = min(_SLOWEST_POLL_S, pause_s * _SLOWER)
            try:
                operation: compute_v1.Operation = await self._clients.read(read, _READING)
            except (NotFound, Unauthorized):
                raise
            except Throttled as error:
                pause_s = max(pause_s, error.retry_after_s)
            except ProviderError:
                continue
            else:
                if operation.status == compute_v1.Operation.Status.DONE:
                    return operation
        return None

    async def in_flight(self, request_ids: Collection[str]) -> list[Started]:
        """Operations of regions that an earlier try of ours, of this process or of one before it, has started and that
        still run: Google shows the request id of each."""

        def read(sdk: Sdk) -> list[Started]:
            return [
                Started(name=item["name"], region=item["region"].rpartition("/")[2])
                for page in sdk.pages("aggregated/operations", filter='status != "DONE"')
                for item in _operations_of(page)
                if item.get("clientOperationId") in request_ids and "region" in item
            ]

        return await self._clients.read(read, _LISTING)

    async def losses(self, since: datetime) -> Sequence[Ending]:
        """Machines of the whole project that the cloud took since then, newest first or nearly so."""
        return await self._clients.look_for_notices(self._endings(since, LOSSES), _LISTING)

    async def endings(self, since: datetime) -> Sequence[Ending]:
        """The same, with machines that powered themselves off."""
        return await self._clients.read(self._endings(since, (*LOSSES, POWERED_OFF)), _LISTING)

    @staticmethod
    def _endings(since: datetime, kinds: Sequence[str]) -> Callable[[Sdk], list[Ending]]:
        wanted = " OR ".join(f'(operationType = "{kind}")' for kind in kinds)
        horizon = since - _OLD

        def read(sdk: Sdk) -> list[Ending]:
            found: list[Ending] = []
            for page in sdk.pages("aggregated/operations", filter=wanted, orderBy="creationTimestamp desc"):
                items = [ending for item in _operations_of(page) if (ending := _ending_of(item)) is not None]
                found += [ending for ending in items if ending.at >= since]
                if items and all(ending.at < horizon for ending in items):
                    break
            return found

        return read


def failed_items(page: Mapping[str, Any]) -> list[str]:
    """The scopes of an aggregated listing that could not be read: an incomplete listing is none."""
    items: Mapping[str, Any] = page.get("items", {})
    unreached = [name for name, one in items.items() if one.get("warning", {}).get("code") == "UNREACHABLE"]
    return [*unreached, *page.get("unreachables", ())]


def moment(text: str) -> datetime:
    """An instant as the API writes it, with an offset, in UTC."""
    return datetime.fromisoformat(text).astimezone(UTC)


def _operations_of(page: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if unread := failed_items(page):
        raise ProviderError(f"operations of {', '.join(unread)} could not be listed")
    return [item for scope in page.get("items", {}).values() for item in scope.get("operations", ())]


def _ending_of(item: Mapping[str, Any]) -> Ending | None:
    """None for what is not about a machine."""
    place = place_in(item.get("targetLink", ""))
    at = item.get("insertTime") or item.get("startTime") or item.get("endTime")
    if place is None or at is None or item.get("operationType") not in (*LOSSES, POWERED_OFF):
        return None
    return Ending(
        operation=item["name"],
        kind=item["operationType"],
        target_id=str(item.get("targetId", "")),
        provider_id=place.provider_id,
        at=moment(at),
    )
