"""Machines of our deployment on AWS: listing and describing them, and what EC2's words about them mean.

    pending, running, stopping, stopped      as they are
    shutting-down                            terminating
    terminated                               terminated; the reason says who did it

A spot request that is closed for want of capacity while its instance runs is a notice: seen by polling, where no queue
tells. Ids are found again by region: what was listed or launched is remembered, else every region is asked.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog

from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    Clock,
    CloudInstance,
    IdentityRefused,
    MachineState,
    PoolName,
    ProviderError,
    ProviderId,
)
from providers.aws_catalog import AwsCatalog
from providers.aws_clients import PAGE, AwsClients, Sdk, pages
from providers.aws_describe import Described, read_instances
from providers.aws_errors import Context
from providers.aws_settings import AwsSettings
from providers.aws_tags import BATCH, DEPLOYMENT, POOL, STOPPABLE

_log = structlog.get_logger(__name__)

_STATES: Mapping[str, MachineState] = {
    "pending": MachineState.PENDING,
    "running": MachineState.RUNNING,
    "stopping": MachineState.STOPPING,
    "stopped": MachineState.STOPPED,
    "shutting-down": MachineState.TERMINATING,
    "terminated": MachineState.TERMINATED,
}
_TAKEN = frozenset({"Server.SpotInstanceTermination", "Server.SpotInstanceShutdown"})
_BY_ITSELF = frozenset({"Client.InstanceInitiatedShutdown"})
_GOING = frozenset(
    {
        *("instance-terminated-no-capacity", "instance-terminated-by-price", "marked-for-termination"),
        *("marked-for-stop", "instance-stopped-no-capacity", "instance-terminated-capacity-oversubscribed"),
        *("instance-stopped-capacity-oversubscribed", "instance-stopped-by-price"),
    }
)
_NOTICE = timedelta(minutes=2)
_LIST_S = 60.0
_SHOWN_AFTER = timedelta(minutes=2)
"""EC2 may not show a machine that began so lately."""
_LIVING = frozenset({MachineState.PENDING, MachineState.RUNNING})
_IDS_AT_ONCE = 200


class AwsMachines:
    def __init__(
        self, settings: AwsSettings, clients: AwsClients, catalog: AwsCatalog, *, deployment: str, clock: Clock
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._catalog = catalog
        self._deployment = deployment
        self._clock = clock
        self._regions: dict[ProviderId, str] = {}
        self._launched: dict[ProviderId, datetime] = {}
        """When those that no listing showed yet were launched."""
        self._spot_requests: dict[ProviderId, str] = {}
        self._sizes: dict[str, int] = {}
        self._places: dict[tuple[str, str, str, bool], CapacityPool] = {}
        """Those of all machines that were ever shown: thousands share a few."""
        self._ended: set[ProviderId] = set()
        """Of those that are remembered."""
        self._has_listed = False

    def knows(self, provider_id: ProviderId) -> bool | None:
        """Whether a machine is ours; None before the first listing."""
        if provider_id in self._regions:
            return True
        return False if self._has_listed else None

    def note_ending(self, ids: Sequence[ProviderId]) -> None:
        """They were asked to end: nobody proves to be one of them any more."""
        self._ended.update(id_ for id_ in ids if id_ in self._regions)

    def note_launched(self, provider_id: ProviderId, region: str, *, spot_request: str = "") -> None:
        """`spot_request`: of one that can be stopped, which lives on until it is cancelled."""
        self._regions[provider_id] = region
        self._launched[provider_id] = self._clock.now()
        if spot_request:
            self._spot_requests[provider_id] = spot_request

    def region_of(self, provider_id: ProviderId) -> str | None:
        return self._regions.get(provider_id)

    def spot_request_of(self, provider_id: ProviderId) -> str:
        """The spot request of one that can be stopped, as far as a listing told; "" for none."""
        return self._spot_requests.get(provider_id, "")

    async def listing(self) -> list[CloudInstance]:
        """Every machine of ours in every region, or raise."""
        await self._catalog.load_prices()
        found = await asyncio.gather(*(self._list_region(region) for region in self._settings.regions))
        machines = [machine for one in found for machine in one]
        # A machine that was launched while we listed, or that EC2 does not show yet, is ours all the same: a notice for
        # it must not be taken for a stranger's.
        since, shown = self._clock.now() - _SHOWN_AFTER, {machine.provider_id for machine in machines}
        self._launched = {id_: at for id_, at in self._launched.items() if at > since and id_ not in shown}
        known = shown | self._launched.keys()
        self._regions = {id_: region for id_, region in self._regions.items() if id_ in known}
        self._spot_requests = {id_: one for id_, one in self._spot_requests.items() if id_ in known}
        self._ended &= known
        self._has_listed = True
        return machines

    async def of_batch(self, token: BatchToken, region: str) -> list[CloudInstance]:
        """The machines that a launch made in one region, ended ones included."""
        filters = [*self._ours(), {"Name": f"tag:{BATCH}", "Values": [token]}]
        described = await self._describe(region, Filters=filters)
        return [self._machine(one, region) for one in described]

    async def describe(self, ids: Sequence[ProviderId]) -> list[CloudInstance]:
        wanted = [id_ for id_ in dict.fromkeys(ids) if id_.startswith("i-")]
        found: list[CloudInstance] = []
        for region, members in self.by_region(wanted).items():
            for at in range(0, len(members), _IDS_AT_ONCE):
                filters = [*self._ours(), {"Name": "instance-id", "Values": members[at : at + _IDS_AT_ONCE]}]
                found += [self._machine(one, region) for one in await self._describe(region, Filters=filters)]
        return found

    async def confirm(self, provider_id: ProviderId, zone: str, *, started_at: datetime) -> None:
        """That a machine of a signed document is one of ours, and lives. What was launched or listed lately needs no
        call. Raises IdentityRefused; ProviderError where EC2 may only not show it yet."""
        if provider_id in self._regions and provider_id not in self._ended:
            return
        region = next((one for one in self._settings.regions if zone.startswith(one)), self._settings.regions[0])
        described = await self._describe(region, Filters=[{"Name": "instance-id", "Values": [provider_id]}])
        if not described:
            if self._clock.now() < started_at + _SHOWN_AFTER:
                raise ProviderError(f"{region} does not show {provider_id} yet")
            raise IdentityRefused(f"{region} has no machine {provider_id}", reason="unknown")
        one = described[0]
        if one.tags.get(DEPLOYMENT) != self._deployment or _STATES.get(one.state) not in _LIVING:
            raise IdentityRefused("no living machine of ours", reason="unknown")
        self._machine(one, region)  # remembers it, and its spot request, which ends with it

    def by_region(self, ids: Sequence[ProviderId]) -> dict[str, list[ProviderId]]:
        """Ids by the region that they are in; one of which nobody knows is looked for in all."""
        found: dict[str, list[ProviderId]] = {}
        for id_ in ids:
            known = self._regions.get(id_)
            for region in (known,) if known is not None else self._settings.regions:
                found.setdefault(region, []).append(id_)
        return found

    async def _list_region(self, region: str) -> list[CloudInstance]:
        described = await self._describe(region, Filters=self._ours(), pages_=self._sizes.get(region, 0) // PAGE + 1)
        self._sizes[region] = len(described)
        machines = [self._machine(one, region) for one in described]
        if any(one.is_spot and _STATES.get(one.state) in _LIVING for one in described):
            going = await self._going(region)
            machines = [_announced(machine, going.get(machine.provider_id)) for machine in machines]
        return machines

    async def _describe(self, region: str, *, pages_: int = 0, **parameters: object) -> list[Described]:
        context = Context(doing=f"list machines in {region}", permission="ec2:DescribeInstances", region=region)
        return await self._clients.read(
            lambda sdk: list(read_instances(sdk.client("ec2", region), MaxResults=PAGE, **parameters)),
            context,
            pages=max(1, pages_),
            timeout_s=_LIST_S,
            can_wait=pages_ > 0,
        )

    async def _going(self, region: str) -> dict[ProviderId, datetime]:
        """When EC2 said of which machines that it takes them."""
        context = Context(
            doing=f"list spot requests in {region}", permission="ec2:DescribeSpotInstanceRequests", region=region
        )

        def read(sdk: Sdk) -> dict[ProviderId, datetime]:
            method = sdk.client("ec2", region).describe_spot_instance_requests
            filters = [*self._ours(), {"Name": "status-code", "Values": sorted(_GOING)}]
            return {
                ProviderId(one["InstanceId"]): one["Status"]["UpdateTime"]
                for one in pages(method, "SpotInstanceRequests", Filters=filters, MaxResults=PAGE)
                if one.get("InstanceId")
            }

        return await self._clients.read(read, context, timeout_s=_LIST_S, can_wait=True)

    async def persistent_requests(self, region: str) -> dict[str, tuple[ProviderId, datetime]]:
        """Spot requests that launch another machine when theirs ends: that machine, and since when there is the
        request."""
        context = Context(
            doing=f"list spot requests in {region}", permission="ec2:DescribeSpotInstanceRequests", region=region
        )

        def read(sdk: Sdk) -> dict[str, tuple[ProviderId, datetime]]:
            method = sdk.client("ec2", region).describe_spot_instance_requests
            wanted = {"type": ["persistent"], "state": ["open", "active", "disabled"]}
            filters = [*self._ours(), *({"Name": name, "Values": values} for name, values in wanted.items())]
            return {
                one["SpotInstanceRequestId"]: (ProviderId(one.get("InstanceId", "")), one["CreateTime"])
                for one in pages(method, "SpotInstanceRequests", Filters=filters, MaxResults=PAGE)
            }

        return await self._clients.read(read, context, timeout_s=_LIST_S, can_wait=True)

    def _ours(self) -> list[dict[str, object]]:
        return [{"Name": f"tag:{DEPLOYMENT}", "Values": [self._deployment]}]

    def _place(self, one: Described, region: str) -> CapacityPool:
        key = (region, one.zone, one.machine_type, one.is_spot)
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = CapacityPool(
                provider=self._settings.name,
                region=region,
                zone=one.zone,
                machine_type=one.machine_type,
                capacity_type=CapacityType.SPOT if one.is_spot else CapacityType.ON_DEMAND,
            )
        return found

    def _machine(self, one: Described, region: str) -> CloudInstance:
        provider_id = ProviderId(one.id)
        self._regions[provider_id] = region
        if one.spot_request and STOPPABLE in one.tags:
            self._spot_requests[provider_id] = one.spot_request
        place = self._place(one, region)
        state = _STATES.get(one.state, MachineState.RUNNING)
        has_ended = state in (MachineState.TERMINATING, MachineState.TERMINATED)
        if has_ended:
            self._ended.add(provider_id)
        return CloudInstance(
            provider=self._settings.name,
            provider_id=provider_id,
            token=BatchToken(one.tags.get(BATCH, "")),
            pool=PoolName(one.tags.get(POOL, "")),
            state=state,
            capacity_pool=place,
            price_usd_hour=self._catalog.price(place),
            launched_at=one.launched_at.astimezone(UTC),
            address=one.address,
            end_detail=(one.reason or one.transition) if has_ended else "",
            ended_by_itself=one.reason in _BY_ITSELF,
            is_reclaimed=one.reason in _TAKEN,
        )


def _announced(machine: CloudInstance, said_at: datetime | None) -> CloudInstance:
    """A machine whose spot request says that it goes."""
    if said_at is None or machine.state not in _LIVING:
        return machine
    return replace(machine, is_reclaimed=True, reclaim_at=said_at.astimezone(UTC) + _NOTICE)
