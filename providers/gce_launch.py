"""Launching a batch: few bulk inserts, and never more machines than asked for, whatever is repeated.

    1. operations of an earlier try that still run are waited for     (memory, else found by their request ids)
       a request whose answer was lost is sent again as it was        (its request id: Google answers its operation)
    2. machines of the batch are listed                               (by label)
       both for repeats only: a new launch waits for no listing, and for no zone that it does not ask
    3. what is missing is asked of each part of the offerings in turn (names that are free, request id of the attempt)
    4. the operation is polled; what it refused becomes refusals, and the machines are listed

What is not DONE in time is OutcomeUnknown: the repeat begins at 1. An accepted request is never sent with another
request id, so that Google makes nothing twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
from google.cloud import compute_v1

from autoscaler.spi import (
    BatchToken,
    CapacityType,
    CapacityUnavailable,
    Clock,
    InvalidRequest,
    LaunchBatch,
    LaunchResult,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    Refusal,
    Unauthorized,
)
from providers.boot_script import boot_script
from providers.gce_catalog import GceCatalog
from providers.gce_clients import CALL_S, GceClients, Sdk
from providers.gce_errors import (
    Context,
    NameExists,
    NotFound,
    OperationFault,
    fault_of,
    refuses_preemption_notice,
    translate_operation,
)
from providers.gce_machines import BatchMachines, GceMachines
from providers.gce_names import names, request_id
from providers.gce_operations import Operations, Started
from providers.gce_request import Part, bulk_insert, image_path, parts_of
from providers.gce_settings import GceSettings

_log = structlog.get_logger(__name__)

_LAUNCH_S = 52.0
"""Shorter than the core's deadline for a launch, so that it hears what is unknown instead of cutting us off."""
_LAST_PART_S = 8.0
"""With less time left no further part is tried."""
_ATTEMPTS = 8
"""Request ids that a restarted daemon looks for, for each region and capacity type."""
_REMEMBERED = 1000
_NOTHING = BatchMachines(living=(), names=frozenset())


@dataclass(slots=True, kw_only=True)
class _Batch:
    """One launch under way. `attempts` counts the request ids used up for a region and capacity type."""

    batch: LaunchBatch
    deadline: float
    made: BatchMachines
    refusals: list[Refusal]
    attempts: dict[tuple[str, CapacityType], int]
    is_new: bool
    regions: set[str] = field(default_factory=set)
    """Where a new launch may have machines by now."""

    @property
    def missing(self) -> int:
        """Machines that ended count: the same token makes no more in all."""
        return max(0, self.batch.count - len(self.made.names))

    def next_attempt(self, part: Part) -> int:
        key = part.region, part.capacity_type
        attempt = self.attempts.get(key, 0)
        self.attempts[key] = attempt + 1
        return attempt


class GceLauncher:
    def __init__(
        self,
        settings: GceSettings,
        clients: GceClients,
        catalog: GceCatalog,
        machines: GceMachines,
        operations: Operations,
        *,
        deployment: str,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._catalog = catalog
        self._machines = machines
        self._operations = operations
        self._deployment = deployment
        self._clock = clock
        self._knows_notice = settings.wants_notice
        self._started: dict[BatchToken, list[Started]] = {}
        self._unanswered: dict[BatchToken, compute_v1.BulkInsertRegionInstanceRequest] = {}

    @property
    def troubles(self) -> tuple[str, ...]:
        if self._knows_notice or not self._settings.wants_notice:
            return ()
        return (
            "launch: Google takes no notice before a preemption for this project, so that spot machines go without a "
            "word; nothing to do, or set preemption_notice = false",
        )

    async def launch(self, batch: LaunchBatch) -> LaunchResult:
        """See `Provider.launch`."""
        image_path(batch.image)  # before anything is asked of anybody
        state = _Batch(
            batch=batch,
            deadline=self._clock.monotonic() + _LAUNCH_S,
            made=_NOTHING,
            refusals=[],
            attempts={},
            is_new=not batch.is_repeat and batch.token not in self._started,
        )
        if state.is_new:
            self._remember(batch.token)
        else:
            await self._go_on(state)
        for part in parts_of(batch.offerings):
            if not state.missing:
                break
            if state.deadline - self._clock.monotonic() < _LAST_PART_S:
                break  # what was not tried is simply not launched: the core plans again
            try:
                await self._launch_part(part, state)
            except OutcomeUnknown:
                raise
            except ProviderError as error:  # this part made nothing; others have, or have been refused
                if not state.made.living and not state.refusals:
                    raise
                state.refusals += [Refusal(offering=one, error=error) for one in part.offerings]
        return _result(state)

    async def _go_on(self, state: _Batch) -> None:
        """What earlier tries made. Raises Unauthorized, else OutcomeUnknown: some machines may exist."""
        try:
            await self._settle_earlier_tries(state)
            state.made = await self._machines.of_batch(state.batch.token)
        except Unauthorized:
            raise
        except ProviderError as error:
            raise OutcomeUnknown(f"an earlier try may have made machines: {error}") from error

    async def _settle_earlier_tries(self, state: _Batch) -> None:
        """Wait for operations of this batch that still run. Raises OutcomeUnknown when they outlast us."""
        token = state.batch.token
        if (request := self._unanswered.get(token)) is not None:
            await self._send_again(request, state)
        started = self._started.get(token)
        if started is None:
            # A daemon before this one may have sent it.
            started = await self._operations.in_flight(
                {
                    request_id(self._deployment, token, region, capacity_type, attempt=attempt)
                    for region in self._settings.regions
                    for capacity_type in CapacityType
                    for attempt in range(_ATTEMPTS)
                }
            )
        for one in list(started):
            await self._finish(one, state)
        self._remember(token)

    def _remember(self, token: BatchToken) -> None:
        """Nothing of this launch is under way, as far as we know."""
        self._started[token] = []
        while len(self._started) > _REMEMBERED:
            oldest = next(iter(self._started))
            del self._started[oldest]
            self._unanswered.pop(oldest, None)

    async def _send_again(self, request: compute_v1.BulkInsertRegionInstanceRequest, state: _Batch) -> None:
        """Nobody knows what became of a request: its operation cannot be found by what it may have made, and another
        request might make it all again."""
        context = Context(
            doing=f"launch machines in {request.region}",
            permission="compute.instances.create",
            is_write=True,
            region=request.region,
            family="launches",
        )
        try:
            await self._ask(request, state, context)
        except (CapacityUnavailable, QuotaExceeded, InvalidRequest, NameExists) as error:
            _log.info("lost_launch_refused", provider=self._settings.name, error=str(error))

    async def _launch_part(self, part: Part, state: _Batch) -> None:
        """Ask one part for all that is missing; its machines and refusals go into the state."""
        context = Context(
            doing=f"launch {part.capacity_type} machines in {part.region}",
            permission="compute.instances.create, and iam.serviceAccounts.actAs on the machines' service account",
            is_write=True,
            region=part.region,
            capacity_type=part.capacity_type,
            family="launches",
        )
        before = state.made.names
        state.regions.add(part.region)
        try:
            operation = await self._send(part, state, context)
            faults = translate_operation(iter(operation.error.errors), context)
        except NameExists:
            faults = []  # an earlier try took effect: its machines are found below
        except (CapacityUnavailable, QuotaExceeded) as error:
            faults = [fault_of(error)]
        try:
            regions = frozenset(state.regions) if state.is_new else None
            state.made = await self._machines.of_batch(state.batch.token, regions=regions)
        except ProviderError as error:
            raise OutcomeUnknown(f"the machines of the launch cannot be listed: {error}") from error
        _log.info(
            "batch_part_launched",
            provider=self._settings.name,
            region=part.region,
            capacity_type=part.capacity_type,
            asked=state.batch.count - len(before),
            made=len(state.made.names - before),
            faults=[str(fault.error) for fault in faults[:3]],
        )
        if state.missing or faults:
            state.refusals += _refusals(part, faults, is_short=state.missing > 0)

    async def _send(self, part: Part, state: _Batch, context: Context) -> compute_v1.Operation:
        """One bulk insert, finished. Where the API does not take a notice before preemption, it is dropped for good."""
        with_notice = self._knows_notice and part.capacity_type is CapacityType.SPOT
        try:
            started = await self._insert(part, state, context, with_notice=with_notice)
        except InvalidRequest as error:
            if not with_notice or not refuses_preemption_notice(error):
                raise
            _log.warning("preemption_notice_refused", provider=self._settings.name, error=str(error))
            self._knows_notice = False
            started = await self._insert(part, state, context, with_notice=False)
        return await self._finish(started, state)

    async def _insert(self, part: Part, state: _Batch, context: Context, *, with_notice: bool) -> Started:
        batch = state.batch
        free = [one for one in names(self._deployment, batch.token, batch.count) if one not in state.made.names]
        zones = await self._catalog.zones_of(part.region)
        body = bulk_insert(
            part,
            batch,
            names=free[: state.missing],
            denied_zones=sorted(zones - set(part.zones)),
            script=boot_script(batch.user_data, evidence="gce", batch=batch.token),
            settings=self._settings,
            deployment=self._deployment,
            with_notice=with_notice,
        )
        request = compute_v1.BulkInsertRegionInstanceRequest(
            project=self._settings.project,
            region=part.region,
            request_id=request_id(
                self._deployment,
                batch.token,
                part.region,
                part.capacity_type,
                attempt=state.next_attempt(part),
            ),
            bulk_insert_instance_resource_resource=body,
        )
        return await self._ask(request, state, context)

    async def _ask(
        self, request: compute_v1.BulkInsertRegionInstanceRequest, state: _Batch, context: Context
    ) -> Started:
        """Send a request. It stays in mind until an answer of any kind is there, also where we are cut off."""

        def insert(sdk: Sdk) -> compute_v1.Operation:
            return sdk.region_instances.bulk_insert_unary(request=request, retry=None, timeout=CALL_S)

        token = state.batch.token
        is_again = self._unanswered.get(token) is request
        self._unanswered[token] = request
        try:
            operation = await self._clients.write(insert, context)
        except OutcomeUnknown:
            raise
        except (CapacityUnavailable, QuotaExceeded, InvalidRequest, NameExists):
            del self._unanswered[token]
            raise
        except ProviderError:
            if not is_again:  # else it was not asked this time, and may have been before
                del self._unanswered[token]
            raise
        del self._unanswered[token]
        started = Started(name=operation.name, region=request.region)
        self._started.setdefault(token, []).append(started)
        return started

    async def _finish(self, started: Started, state: _Batch) -> compute_v1.Operation:
        """Raises OutcomeUnknown when it does not end in time; a repeat waits for it again."""
        try:
            operation = await self._operations.finish(started, state.deadline)
        except NotFound as error:
            self._forget(started, state)
            raise OutcomeUnknown(f"the operation {started.name} is gone: what it did is in the listing") from error
        except Unauthorized as error:
            raise OutcomeUnknown(f"the launch in {started.region} goes on, unseen: {error}") from error
        if operation is None:
            raise OutcomeUnknown(f"the launch in {started.region} goes on: operation {started.name} is not done yet")
        self._forget(started, state)
        return operation

    def _forget(self, started: Started, state: _Batch) -> None:
        waiting = self._started.get(state.batch.token, [])
        if started in waiting:
            waiting.remove(started)


def _result(state: _Batch) -> LaunchResult:
    """What a launch came to. Raises InvalidRequest or Unauthorized where nothing else is the matter anywhere: that is
    no fault of the offerings."""
    errors = [refusal.error for refusal in state.refusals]
    if errors and not state.made.living and all(isinstance(one, InvalidRequest | Unauthorized) for one in errors):
        raise errors[0]
    ranks = {offering.capacity_pool: rank for rank, offering in enumerate(state.batch.offerings)}
    made = sorted(state.made.living, key=lambda one: (ranks.get(one.capacity_pool, len(ranks)), one.provider_id))
    return LaunchResult(instances=tuple(made), refusals=tuple(state.refusals))


def _refusals(part: Part, faults: Sequence[OperationFault], *, is_short: bool) -> list[Refusal]:
    """Which offerings refused. An error that names zone and type is about those, one that names neither about the
    whole part; a part that is short without any error is out of all that it was asked for."""
    refused: dict[int, Refusal] = {}
    for fault in faults:
        for index, offering in enumerate(part.offerings):
            pool = offering.capacity_pool
            if fault.zone in ("", pool.zone) and fault.machine_type in ("", pool.machine_type):
                refused.setdefault(index, Refusal(offering=offering, error=fault.error))
    if is_short and not refused:
        error = CapacityUnavailable(f"{part.region}: fewer {part.capacity_type} machines than asked for could be had")
        refused = {index: Refusal(offering=offering, error=error) for index, offering in enumerate(part.offerings)}
    return [refusal for _, refusal in sorted(refused.items())]
