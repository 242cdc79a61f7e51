"""Ending, stopping, starting and reclaiming machines on AWS.

A persistent spot request that is not cancelled launches another machine when its own ends: it is cancelled first, and
as soon as a listing shows that its machine ended in another way. One unknown id fails a whole call: it is cut out and
the rest repeated.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog

from autoscaler.spi import (
    CapacityType,
    CapacityUnavailable,
    CloudInstance,
    InvalidRequest,
    MachineState,
    ProviderError,
    ProviderId,
    QuotaExceeded,
)
from providers.aws_clients import AwsClients, Sdk
from providers.aws_errors import Context, NotFound, bad_ids
from providers.aws_machines import AwsMachines
from providers.aws_settings import AwsSettings

_log = structlog.get_logger(__name__)

_AT_ONCE = 500
_LOST_IDS = 5
"""How often unknown ids are cut out of one call; each time at least one goes."""
_LISTED_AFTER = timedelta(minutes=10)
"""A machine that was launched after the listing began is not in it."""
_ENDED = frozenset({MachineState.TERMINATING, MachineState.TERMINATED})


class AwsPower:
    def __init__(self, settings: AwsSettings, clients: AwsClients, machines: AwsMachines) -> None:
        self._settings = settings
        self._clients = clients
        self._machines = machines
        self._cancelled: set[ProviderId] = set()
        """Machines whose spot requests launch no others."""

    async def terminate(self, ids: Sequence[ProviderId]) -> None:
        """Only what carries our tag: ids come from our rows and listings, and the policy allows no other. A region that
        fails does not keep the machines of others alive."""
        failures: list[ProviderError] = []
        for region, members in self._machines.by_region(await self._ours(ids)).items():
            try:
                await self._cancel_requests(region, members)
                await self._each_batch(region, members, "terminate", "ec2:TerminateInstances", "terminate_instances")
            except ProviderError as error:
                failures.append(error)
            else:
                self._machines.note_ending(members)
        if failures:
            raise failures[0]

    async def stop(self, ids: Sequence[ProviderId]) -> None:
        for region, members in self._machines.by_region(await self._ours(ids)).items():
            await self._each_batch(region, members, "stop", "ec2:StopInstances", "stop_instances")

    async def start(self, ids: Sequence[ProviderId]) -> Mapping[ProviderId, ProviderError]:
        """One by one where a batch is refused: EC2 refuses all of a call for one capacity pool, or for one machine that
        cannot be started."""
        failed: dict[ProviderId, ProviderError] = {}
        for region, members in self._machines.by_region(await self._ours(ids)).items():
            try:
                await self._each_batch(region, members, "start", "ec2:StartInstances", "start_instances")
            except (CapacityUnavailable, QuotaExceeded, InvalidRequest) as error:
                if len(members) == 1:
                    failed[members[0]] = error
                    continue
                for id_ in members:
                    try:
                        await self._each_batch(region, [id_], "start", "ec2:StartInstances", "start_instances")
                    except (CapacityUnavailable, QuotaExceeded, InvalidRequest) as single:
                        failed[id_] = single
        return failed

    async def interrupt(
        self, ids: Sequence[ProviderId], spot: Callable[[str, Sequence[ProviderId]], Any], *, is_announced: bool
    ) -> None:
        """Spot machines through `spot` (the Fault Injection Service), on-demand ones are just ended, as are those that
        shall get no notice: the service warns two minutes ahead."""
        machines = await self._machines.describe(ids)
        living = [one for one in machines if one.state in (MachineState.PENDING, MachineState.RUNNING)]
        if not is_announced:
            await self.terminate([one.provider_id for one in living])
            return
        taken = [one.provider_id for one in living if one.capacity_pool.capacity_type is CapacityType.SPOT]
        for region, members in self._machines.by_region(taken).items():
            await spot(region, members)
        others = [one.provider_id for one in living if one.capacity_pool.capacity_type is CapacityType.ON_DEMAND]
        if others:
            await self.terminate(others)

    async def settle(self, machines: Sequence[CloudInstance]) -> None:
        """Cancel the spot requests of machines that ended without us: they would launch others. Failures are for the
        next listing."""
        self._cancelled &= {machine.provider_id for machine in machines}
        ended = [
            machine.provider_id
            for machine in machines
            if machine.state in _ENDED and machine.provider_id not in self._cancelled
        ]
        for region, members in self._machines.by_region(ended).items():
            try:
                await self._cancel_requests(region, members)
            except ProviderError as error:
                _log.warning("spot_requests_not_cancelled", provider=self._settings.name, error=str(error))

    async def sweep(self, machines: Sequence[CloudInstance], now: datetime) -> None:
        """Cancel persistent spot requests whose machine is none of ours that lives: it ended while nobody looked, and
        is not listed any more. Failures are for the next time."""
        living = {one.provider_id for one in machines if one.state not in _ENDED}
        for region in self._settings.regions:
            try:
                found = await self._machines.persistent_requests(region)
                left = {
                    request: machine
                    for request, (machine, made_at) in found.items()
                    if machine not in living and made_at + _LISTED_AFTER < now
                }
                await self._cancel(region, sorted(left))
            except ProviderError as error:
                _log.warning("spot_requests_not_cancelled", provider=self._settings.name, error=str(error))
                continue
            for request, machine in left.items():
                _log.warning("spot_request_left_over", provider=self._settings.name, request=request, machine=machine)

    async def _ours(self, ids: Sequence[ProviderId]) -> list[ProviderId]:
        """Ids of another deployment's machines, and ones that were never EC2's, are left alone."""
        known = [id_ for id_ in ids if self._machines.region_of(id_) is not None]
        unknown = [id_ for id_ in ids if id_.startswith("i-") and self._machines.region_of(id_) is None]
        if unknown:
            known += [one.provider_id for one in await self._machines.describe(unknown)]
        return known

    async def _cancel_requests(self, region: str, ids: Sequence[ProviderId]) -> None:
        requests = sorted({one for id_ in ids if (one := self._machines.spot_request_of(id_))})
        if requests:
            await self._cancel(region, requests)
            self._cancelled.update(ids)

    async def _cancel(self, region: str, requests: Sequence[str]) -> None:
        """One that is closed is forgotten after a while, and launches nothing any more; but EC2 then refuses the whole
        call, so that the others are asked for in halves."""
        context = self._context(region, "cancel spot requests", "ec2:CancelSpotInstanceRequests")
        for at in range(0, len(requests), _AT_ONCE):
            some = requests[at : at + _AT_ONCE]

            def cancel(sdk: Sdk, some: Sequence[str] = some) -> None:
                sdk.client("ec2", region).cancel_spot_instance_requests(SpotInstanceRequestIds=list(some))

            try:
                await self._clients.write(cancel, context)
            except NotFound:
                if len(some) > 1:
                    await self._cancel(region, some[: len(some) // 2])
                    await self._cancel(region, some[len(some) // 2 :])

    async def _each_batch(
        self, region: str, ids: Sequence[ProviderId], verb: str, permission: str, method: str
    ) -> None:
        context = self._context(region, f"{verb} machines", permission)
        for at in range(0, len(ids), _AT_ONCE):
            some = list(ids[at : at + _AT_ONCE])

            def call(sdk: Sdk, some: list[ProviderId] = some) -> None:
                ec2 = sdk.client("ec2", region)
                left = list(some)
                for _ in range(_LOST_IDS):
                    if not left:
                        return
                    try:
                        getattr(ec2, method)(InstanceIds=left)
                    except ec2.exceptions.ClientError as error:
                        bad = bad_ids(error)
                        if not bad & set(left):
                            raise
                        left = [id_ for id_ in left if id_ not in bad]
                    else:
                        return
                raise InvalidRequest(f"{region}: EC2 names ever more unknown machines")

            await self._clients.write(call, context)

    @staticmethod
    def _context(region: str, doing: str, permission: str) -> Context:
        return Context(doing=f"{doing} in {region}", permission=permission, region=region, is_write=True, family="ends")
