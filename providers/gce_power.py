"""Ending, stopping, starting and reclaiming single machines. Google has no call for many of them: each is asked for in
a thread of the write gate, all at once.

Nothing is done to a machine that is not of our deployment: an id that the last listing does not know is read first.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import structlog
from google.cloud import compute_v1

from autoscaler.spi import Clock, InvalidRequest, MachineState, OutcomeUnknown, ProviderError, ProviderId, Unauthorized
from providers.gce_clients import CALL_S, GceClients, Sdk
from providers.gce_errors import Context, NotFound, translate_operation
from providers.gce_machines import GceMachines, Machine
from providers.gce_names import place_of
from providers.gce_operations import Operations, moment

_log = structlog.get_logger(__name__)

_START_S = 45.0


class GcePower:
    def __init__(self, clients: GceClients, machines: GceMachines, operations: Operations, clock: Clock) -> None:
        self._clients = clients
        self._machines = machines
        self._operations = operations
        self._clock = clock
        self._cleaning: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        if self._cleaning is not None:
            self._cleaning.cancel()
            await asyncio.gather(self._cleaning, return_exceptions=True)

    async def terminate(self, ids: Sequence[ProviderId]) -> None:
        """See `Provider.terminate`. All are asked for, then the first error is raised."""
        await _all([partial(self._terminate, id_) for id_ in dict.fromkeys(ids)])

    def begin_cleaning(self) -> None:
        """Delete what is left of machines that ended, beside whatever else goes on."""
        if self._machines.remains() and (self._cleaning is None or self._cleaning.done()):
            self._cleaning = asyncio.create_task(self._clean())

    async def _clean(self) -> None:
        """They are off, and their disks cost money."""
        for provider_id in self._machines.remains():
            try:
                await self._terminate(provider_id)
            except ProviderError as error:
                _log.warning("remains_not_deleted", instance=provider_id, error=str(error))

    async def stop(self, ids: Sequence[ProviderId]) -> None:
        """See `Provider.stop`."""
        machines = [machine for id_ in dict.fromkeys(ids) if (machine := await self._ours(id_)) is not None]
        for machine in machines:
            if machine.is_spot and not machine.is_stoppable:
                raise InvalidRequest(
                    f"{machine.provider_id} is a spot machine that ends when it is off: it was launched without stock"
                )
        await _all([partial(self._stop, machine) for machine in machines])

    async def start(self, ids: Sequence[ProviderId]) -> Mapping[ProviderId, ProviderError]:
        """See `Provider.start`. A start that is still under way at the end of our time is none that failed."""
        machines = [machine for id_ in dict.fromkeys(ids) if (machine := await self._ours(id_)) is not None]
        answers = await asyncio.gather(*(self._start(machine) for machine in machines))
        return {
            machine.provider_id: error for machine, error in zip(machines, answers, strict=True) if error is not None
        }

    async def interrupt(self, ids: Sequence[ProviderId], *, is_announced: bool = True) -> None:
        """Spot machines are preempted by Google's own simulation; others have no such thing, and are deleted, as are
        those that shall get no notice."""

        async def interrupt(provider_id: ProviderId) -> None:
            machine = await self._ours(provider_id)
            if machine is None:
                return
            if not machine.is_spot or not is_announced:
                await self._terminate(provider_id)
                return
            context = _change(f"reclaim {provider_id}", "compute.instances.simulateMaintenanceEvent")
            await self._send(machine, context, lambda sdk: sdk.instances.simulate_maintenance_event_unary)

        await _all([partial(interrupt, id_) for id_ in dict.fromkeys(ids)])

    # ------------------------------------------------------------------ one machine

    async def _ours(self, provider_id: ProviderId) -> Machine | None:
        known = self._machines.known(provider_id)
        if known is not None:
            return known
        place = place_of(provider_id)
        return None if place is None else await self._machines.read(place)

    async def _terminate(self, provider_id: ProviderId) -> None:
        if self._machines.is_lately_deleted(provider_id):
            return
        machine = await self._ours(provider_id)
        if machine is None:
            return
        context = _change(f"delete {provider_id}", "compute.instances.delete")
        await self._send(machine, context, lambda sdk: sdk.instances.delete_unary)
        self._machines.deleting(provider_id)

    async def _stop(self, machine: Machine) -> None:
        if machine.instance.state in (MachineState.STOPPING, MachineState.STOPPED):
            return
        context = _change(f"stop {machine.provider_id}", "compute.instances.stop")
        operation = await self._send(machine, context, lambda sdk: sdk.instances.stop_unary)
        if operation is not None:
            asked_at = operation.insert_time or operation.start_time
            self._machines.stopping(machine.provider_id, moment(asked_at) if asked_at else self._clock.now())

    async def _start(self, machine: Machine) -> ProviderError | None:
        """Why it could not be started; None where it starts. Errors that are not of one machine are raised."""
        context = Context(
            doing=f"start {machine.provider_id}",
            permission="compute.instances.start",
            is_write=True,
            family="changes",
            region=machine.instance.capacity_pool.region,
            capacity_type=machine.instance.capacity_pool.capacity_type,
        )
        deadline = self._clock.monotonic() + _START_S
        try:
            operation = await self._send(machine, context, lambda sdk: sdk.instances.start_unary)
        except (InvalidRequest, OutcomeUnknown):
            raise
        except ProviderError as error:
            return error
        if operation is None:
            return InvalidRequest(f"{machine.provider_id} is gone")
        zone = machine.instance.capacity_pool.zone
        try:
            finished = await self._operations.finish_in_zone(operation.name, zone, deadline)
        except Unauthorized as error:
            _log.warning("start_not_followed", instance=machine.provider_id, error=str(error))
            return None
        faults = translate_operation(iter(finished.error.errors), context) if finished is not None else []
        return faults[0].error if faults else None

    async def _send(
        self, machine: Machine, context: Context, method: Callable[[Sdk], Callable[..., Any]]
    ) -> compute_v1.Operation | None:
        """The operation; None for a machine that is gone, which is what most callers want anyway."""
        place = place_of(machine.provider_id)
        assert place is not None

        def send(sdk: Sdk) -> compute_v1.Operation:
            operation: compute_v1.Operation = method(sdk)(
                project=sdk.project, zone=place.zone, instance=place.name, retry=None, timeout=CALL_S
            )
            return operation

        try:
            return await self._clients.write(send, context)
        except NotFound:
            return None


def _change(doing: str, permission: str) -> Context:
    return Context(doing=doing, permission=permission, is_write=True, family="changes")


async def _all(calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Every call is made, whatever becomes of the others; then the first error is raised."""
    answers = await asyncio.gather(*(call() for call in calls), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
