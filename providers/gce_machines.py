"""Machines of our deployment as Google lists them, and what they mean to us.

    PROVISIONING, STAGING, PENDING            pending
    RUNNING, REPAIRING                        running
    STOPPING, PENDING_STOP, SUSPENDING        stopping where we asked for it, else terminating
    TERMINATED, STOPPED, SUSPENDED            stopped where we asked for it, else terminated

Google's TERMINATED is a machine that is off and still has its disk: an agent that powered off, or a preemption whose
action is STOP. Unless we stopped it to start it again, such a machine has ended, and its remains are deleted here.
Why it is off, an operation of Google's own tells, at once or a little later: until then it is terminating. Machines
that are gone stay in our listing for a while, so that the core hears how they ended.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    Clock,
    CloudInstance,
    MachineState,
    PoolName,
    ProviderError,
    ProviderId,
)
from providers.gce_clients import PAGE, GceClients, Sdk
from providers.gce_errors import Context, NotFound
from providers.gce_names import BATCH, DEPLOYMENT, POOL, STOPPABLE, Place, label, place_of
from providers.gce_operations import Ending, Operations, failed_items, moment
from providers.gce_settings import GceSettings, region_of

_FEW = 10
"""So many machines are asked for one by one; for more a whole listing is cheaper."""
_KEEP_ENDED = timedelta(minutes=10)
_DELETE_AGAIN = timedelta(seconds=60)
_UNEXPLAINED = timedelta(seconds=45)
"""So long after a machine is off Google may still tell why."""
_LISTING_S = 110.0
_LISTING = Context(doing="list instances", permission="compute.instances.list", family="lists")
_OFF = frozenset({"TERMINATED", "STOPPED", "SUSPENDED"})
_ON = frozenset({"RUNNING", "REPAIRING"})
_STATES: Mapping[str, MachineState] = {
    **dict.fromkeys(("PROVISIONING", "STAGING", "PENDING"), MachineState.PENDING),
    **dict.fromkeys(_ON, MachineState.RUNNING),
    **dict.fromkeys(("STOPPING", "PENDING_STOP", "SUSPENDING", "DEPROVISIONING"), MachineState.TERMINATING),
    **dict.fromkeys(_OFF, MachineState.TERMINATED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine of ours. `last_start` is Google's time of it; `status` Google's word."""

    instance: CloudInstance
    numeric_id: str
    status: str
    is_stoppable: bool
    last_start: datetime

    @property
    def provider_id(self) -> ProviderId:
        return self.instance.provider_id

    @property
    def is_spot(self) -> bool:
        return self.instance.capacity_pool.capacity_type is CapacityType.SPOT

    @property
    def is_off(self) -> bool:
        return self.status in _OFF


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMachines:
    """What a launch has made: the machines that live, and every name that it has used."""

    living: tuple[CloudInstance, ...]
    names: frozenset[str]


class GceMachines:
    """What is known of our machines from the last listing and the calls since; `listing` and `read` renew it."""

    def __init__(
        self, settings: GceSettings, clients: GceClients, operations: Operations, *, deployment: str, clock: Clock
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._operations = operations
        self._deployment = deployment
        self._clock = clock
        self._known: dict[ProviderId, Machine] = {}
        # Off or gone, and nobody has told why yet: since when.
        self._unexplained: dict[ProviderId, datetime] = {}
        self._ended: dict[ProviderId, tuple[datetime, CloudInstance]] = {}
        self._deleting: dict[ProviderId, datetime] = {}
        self._stops: dict[ProviderId, datetime] = {}
        self._seen_on: set[ProviderId] = set()

    # ------------------------------------------------------------------ what others ask

    def known(self, provider_id: ProviderId) -> Machine | None:
        return self._known.get(provider_id)

    def has_spot(self) -> bool:
        return any(machine.is_spot for machine in self._known.values())

    def is_going(self, provider_id: ProviderId) -> bool:
        return provider_id in self._deleting or provider_id in self._ended

    def deleting(self, provider_id: ProviderId) -> None:
        """Google took our order to delete this machine."""
        self._deleting[provider_id] = self._clock.now()

    def is_lately_deleted(self, provider_id: ProviderId) -> bool:
        """The order need not be given again yet; it may fail at Google, so that it is given again later."""
        at = self._deleting.get(provider_id)
        return at is not None and self._clock.now() - at < _DELETE_AGAIN

    def stopping(self, provider_id: ProviderId, at: datetime) -> None:
        """Google took our order to stop this machine, at Google's own time."""
        self._stops[provider_id] = at

    def remains(self) -> list[ProviderId]:
        """Machines that ended and were not deleted."""
        return [
            machine.provider_id
            for machine in self._known.values()
            if machine.is_off and machine.provider_id in self._ended and not self.is_lately_deleted(machine.provider_id)
        ]

    # ------------------------------------------------------------------ reading

    async def listing(self) -> list[CloudInstance]:
        """Every machine of the deployment, and those that ended lately. Complete or raises ProviderError."""
        # What is launched while the pages are read may be missing from them.
        before = list(self._known.values())
        present = {one.provider_id: one for one in await self._list(DEPLOYMENT, self._deployment)}
        absent = [machine for machine in before if machine.provider_id not in present]
        endings = await self._explain(present.values(), absent)
        for machine in absent:
            self._gone(machine, endings)
        now = self._clock.now()
        for provider_id, (at, _) in list(self._ended.items()):
            if provider_id not in self._known and now - at > _KEEP_ENDED:
                del self._ended[provider_id]
        for provider_id, at in list(self._deleting.items()):  # some were gone before any listing showed them
            if provider_id not in self._known and provider_id not in present and now - at > _KEEP_ENDED:
                del self._deleting[provider_id]
        living = [self._note(machine, endings) for machine in present.values()]
        return [*living, *(one for id_, (_, one) in self._ended.items() if id_ not in present)]

    async def of_batch(self, token: BatchToken, *, regions: Collection[str] | None = None) -> BatchMachines:
        """The machines of one launch. Where it can have some in a few regions only, others need not be reached."""
        found = await self._list(BATCH, token, regions=regions)
        living = [self._note(one, {}) for one in found if not one.is_off and not self.is_going(one.provider_id)]
        used = [one.provider_id for one in found]
        used += [id_ for id_, (_, one) in self._ended.items() if one.token == token]
        return BatchMachines(living=tuple(living), names=frozenset(id_.partition("/")[2] for id_ in used))

    async def describe(self, ids: Sequence[ProviderId]) -> list[CloudInstance]:
        """Ids that are not ours are left out."""
        places = {id_: place for id_ in dict.fromkeys(ids) if (place := place_of(id_)) is not None}
        if len(places) > _FEW:
            return [one for one in await self.listing() if one.provider_id in places]
        read = await asyncio.gather(*(self.read(place) for place in places.values()))
        present = [machine for machine in read if machine is not None]
        shown = {machine.provider_id for machine in present}
        absent = [self._known[id_] for id_ in places if id_ not in shown and id_ in self._known]
        endings = await self._explain(present, absent)
        for machine in absent:
            self._gone(machine, endings)
        told = [self._note(machine, endings) for machine in present]
        return [*told, *(self._ended[id_][1] for id_ in places if id_ in self._ended and id_ not in shown)]

    async def read(self, place: Place) -> Machine | None:
        """One machine as it is now; None for what is gone or not ours."""

        def read(sdk: Sdk) -> Mapping[str, Any]:
            return sdk.get(f"zones/{place.zone}/instances/{place.name}")

        if not self._settings.uses_zone(place.zone) and place.provider_id not in self._known:
            return None
        try:
            item = await self._clients.read(read, Context(doing="read an instance", permission="compute.instances.get"))
        except NotFound:
            return None
        return self._parse(item)

    async def _list(self, key: str, value: str, *, regions: Collection[str] | None = None) -> list[Machine]:
        def read(sdk: Sdk) -> list[Machine]:
            found: list[Machine] = []
            wanted, is_partial = f'labels.{key} = "{label(value)}"', "false" if regions is None else "true"
            for page in sdk.pages("aggregated/instances", filter=wanted, returnPartialSuccess=is_partial):
                if unread := [one for one in failed_items(page) if regions is None or _is_in(one, regions)]:
                    raise ProviderError(f"instances of {', '.join(unread)} could not be listed")
                for scope in page.get("items", {}).values():
                    found += [one for item in scope.get("instances", ()) if (one := self._parse(item)) is not None]
            return found

        pages = 1 + len(self._known) // PAGE if key == DEPLOYMENT else 1
        return await self._clients.read(read, _LISTING, timeout_s=_LISTING_S, pages=pages)

    async def _explain(self, present: Iterable[Machine], absent: Collection[Machine]) -> dict[str, Ending]:
        """Why machines are off or gone, by numeric id; nothing is asked where we know it ourselves."""
        unexplained = [
            machine.last_start
            for machine in (*(one for one in present if one.is_off), *absent)
            if not self.is_going(machine.provider_id) and not self._was_stopped(machine)
        ]
        if not unexplained:
            return {}
        return {ending.target_id: ending for ending in await self._operations.endings(min(unexplained))}

    # ------------------------------------------------------------------ what a status means

    def _note(self, machine: Machine, endings: Mapping[str, Ending]) -> CloudInstance:
        """Keep what was read, and say what it means."""
        instance = self._meaning(machine, endings.get(machine.numeric_id))
        # Copies of machines that are as they were read would be most of what a listing costs the loop.
        is_as_read = instance is machine.instance
        self._known[machine.provider_id] = machine if is_as_read else replace(machine, instance=instance)
        return instance

    def _meaning(self, machine: Machine, ending: Ending | None) -> CloudInstance:
        provider_id, instance = machine.provider_id, machine.instance
        if provider_id in self._ended:
            return self._ended[provider_id][1]
        if ending is not None and ending.at < machine.last_start:
            ending = None  # of a run before this one
        if not machine.is_off:
            self._seen_on.add(provider_id)
            self._unexplained.pop(provider_id, None)
        if provider_id in self._deleting:
            return replace(instance, state=MachineState.TERMINATING)
        if self._was_stopped(machine) and ending is None and machine.status not in _ON:
            return replace(instance, state=MachineState.STOPPED if machine.is_off else MachineState.STOPPING)
        if not machine.is_off:
            return replace(instance, is_reclaimed=True) if ending is not None and ending.is_reclaim else instance
        if ending is None and not self._is_long_unexplained(provider_id):
            return replace(instance, state=MachineState.TERMINATING)
        return self._end(instance, ending, otherwise="off")

    def _is_long_unexplained(self, provider_id: ProviderId) -> bool:
        now = self._clock.now()
        return now - self._unexplained.setdefault(provider_id, now) > _UNEXPLAINED

    def _was_stopped(self, machine: Machine) -> bool:
        """Whether we stopped it. A daemon that never saw it on takes a stoppable machine for stopped stock."""
        if not machine.is_stoppable:
            return False
        stopped_at = self._stops.get(machine.provider_id)
        if stopped_at is not None:
            return stopped_at >= machine.last_start
        return machine.is_off and machine.provider_id not in self._seen_on

    def _gone(self, machine: Machine, endings: Mapping[str, Ending]) -> None:
        """It is absent from a complete listing. Who is gone without a reason is kept in mind until one is told."""
        provider_id, ending = machine.provider_id, endings.get(machine.numeric_id)
        if provider_id not in self._ended:
            if ending is None and provider_id not in self._deleting and not self._is_long_unexplained(provider_id):
                return
            if ending is not None or provider_id in self._deleting:
                self._end(machine.instance, ending, otherwise="deleted")
        self._known.pop(provider_id, None)
        self._deleting.pop(provider_id, None)
        self._seen_on.discard(provider_id)
        self._stops.pop(provider_id, None)
        self._unexplained.pop(provider_id, None)

    def _end(self, instance: CloudInstance, ending: Ending | None, *, otherwise: str) -> CloudInstance:
        ended = replace(
            instance,
            state=MachineState.TERMINATED,
            end_detail=otherwise if ending is None else ending.kind,
            ended_by_itself=ending is not None and ending.is_by_itself,
            is_reclaimed=ending is not None and ending.is_reclaim,
        )
        self._ended[instance.provider_id] = self._clock.now(), ended
        return ended

    def _parse(self, item: Mapping[str, Any]) -> Machine | None:
        """None for a machine that is not of this deployment, whatever its labels say."""
        texts = {one["key"]: one.get("value", "") for one in item.get("metadata", {}).get("items", ())}
        if texts.get(DEPLOYMENT) != self._deployment or POOL not in texts or BATCH not in texts:
            return None
        zone = item["zone"].rpartition("/")[2]
        scheduling = item.get("scheduling", {})
        is_spot = scheduling.get("provisioningModel") == "SPOT" or bool(scheduling.get("preemptible"))
        capacity_pool = CapacityPool(
            provider=self._settings.name,
            region=region_of(zone),
            zone=zone,
            machine_type=item["machineType"].rpartition("/")[2],
            capacity_type=CapacityType.SPOT if is_spot else CapacityType.ON_DEMAND,
        )
        price = self._settings.price(capacity_pool.region, capacity_pool.machine_type, capacity_pool.capacity_type)
        created = moment(item["creationTimestamp"])
        interfaces = item.get("networkInterfaces", ())
        instance = CloudInstance(
            provider=self._settings.name,
            provider_id=Place(zone=zone, name=item["name"]).provider_id,
            token=BatchToken(texts[BATCH]),
            pool=PoolName(texts[POOL]),
            state=_STATES.get(item["status"], MachineState.RUNNING),
            capacity_pool=capacity_pool,
            price_usd_hour=price or 0.0,
            launched_at=created,
            address=interfaces[0].get("networkIP", "") if interfaces else "",
        )
        return Machine(
            instance=instance,
            numeric_id=str(item["id"]),
            status=item["status"],
            is_stoppable=texts.get(STOPPABLE) == "true",
            last_start=moment(item["lastStartTimestamp"]) if item.get("lastStartTimestamp") else created,
        )


def _is_in(scope: str, regions: Collection[str]) -> bool:
    """Of "zones/us-central1-a", "regions/us-central1", or an address that ends so."""
    place = scope.rpartition("/")[2]
    return place in regions or region_of(place) in regions
