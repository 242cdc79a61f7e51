"""What happens to an instance after its launch: deleted, stopped and started by its owner, taken or ended by Google.

What nobody asked for leaves a system operation: `compute.instances.preempted` at or after the stop,
`compute.instances.guestTerminate` for a machine that powered itself off.
"""

import heapq
import random
from collections.abc import Callable

from autoscaler.sandbox.gce_behaviour import GceBehaviour
from autoscaler.sandbox.gce_catalogue import GceCatalogue
from autoscaler.sandbox.gce_ground import Ground
from autoscaler.sandbox.gce_launch import Launcher
from autoscaler.sandbox.gce_operations import Operation, Operations
from autoscaler.sandbox.gce_records import Record, Records
from autoscaler.sandbox.gce_shortage import fault_of
from autoscaler.sandbox.gce_wire import GceError

_SYSTEM = "system@google.com"


class Power:
    """Acts on records. `request_id` and `asked` make a repeat harmless; see `Operations.before`."""

    def __init__(
        self,
        catalogue: GceCatalogue,
        ground: Ground,
        operations: Operations,
        launcher: Launcher,
        records: Records,
        *,
        behaviour: GceBehaviour,
        clock: Callable[[], float],
        dice: random.Random,
    ) -> None:
        self._catalogue = catalogue
        self._ground = ground
        self._operations = operations
        self._launcher = launcher
        self._records = records
        self._behaviour = behaviour
        self._clock = clock
        self._dice = dice
        self._ends: list[tuple[float, str, Record]] = []

    def delete(self, record: Record, *, request_id: str, asked: str, user: str) -> Operation:
        if not record.is_deleting:
            record.is_deleting = True
            self._ground.terminate(record.number)
            self._records.machine_changed(record.number)
            self._remove_forgotten(record)
        return self._launcher.begin(
            "delete", record, request_id=request_id, asked=asked, user=user, waits_for=lambda: record.is_gone
        )

    def stop(self, record: Record, *, request_id: str, asked: str, user: str) -> Operation:
        self._check_ready(record)
        if not record.is_off:
            record.is_stopping = True
            self._ground.stop(record.number)
        return self._launcher.begin(
            "stop",
            record,
            request_id=request_id,
            asked=asked,
            user=user,
            waits_for=lambda: record.is_off or not record.is_stopping,
        )

    def start(self, record: Record, *, request_id: str, asked: str, user: str) -> Operation:
        """A machine that runs is left alone. One that cannot be had fails in the operation, and the instance stays."""
        self._check_ready(record)
        if record.is_stopping and not record.is_off:
            raise _not_ready(self._catalogue.project, record)
        shortage = self._ground.start(record.number) if record.is_off else None
        if shortage is not None:
            fault = fault_of(
                shortage,
                project=self._catalogue.project,
                zone=record.zone,
                machine_type=record.machine_type,
                body=record.body,
                ground=self._ground,
            )
            return self._launcher.begin("start", record, request_id=request_id, asked=asked, user=user, faults=(fault,))
        if record.is_off:
            self._records.restarted(record)
            self.watch(record)
        return self._launcher.begin("start", record, request_id=request_id, asked=asked, user=user)

    def simulate_maintenance(self, record: Record, *, request_id: str, asked: str, user: str) -> Operation:
        """A spot machine is preempted, with the notice that it was launched with; others are only moved."""
        self._check_ready(record)
        if record.body.schedule.is_spot and not record.is_off:
            self._ground.reclaim(record.number, notice_s=record.body.schedule.notice_s)
        return self._launcher.begin("simulateMaintenanceEvent", record, request_id=request_id, asked=asked, user=user)

    def watch(self, record: Record) -> None:
        """Mind the end of its run time."""
        if record.ends_at is not None:
            heapq.heappush(self._ends, (record.ends_at, record.number, record))

    def next_end(self) -> float | None:
        return self._ends[0][0] if self._ends else None

    def end_overdue(self) -> None:
        """Delete or stop, as each asked for, what has lived its run time."""
        now = self._clock()
        while self._ends and self._ends[0][0] <= now:
            _, _, record = heapq.heappop(self._ends)
            if record.is_gone or record.is_deleting or record.ends_at is None or record.ends_at > now:
                continue
            end = self.delete if record.body.schedule.is_deleted_at_end else self.stop
            end(record, request_id="", asked="", user=_SYSTEM)

    def ended(self, record: Record) -> None:
        """A machine is off. Whoever asked for it knows; else Google says so."""
        if record.is_preempted:
            shown_at = self._clock() + self._dice.uniform(*self._behaviour.told_after_s)
            self._tell("compute.instances.preempted", record, shown_at)
        elif record.has_failed:
            self._tell("compute.instances.hostError", record, self._clock())
        elif not record.is_deleting and not record.is_stopping:
            self._tell("compute.instances.guestTerminate", record, self._clock())

    def _tell(self, kind: str, record: Record, shown_at: float) -> None:
        self._operations.add(
            Operation(
                name=self._operations.new_name().replace("operation-", "systemevent-", 1),
                kind=kind,
                scope=f"zones/{record.zone}",
                target=record.target,
                target_id=record.number,
                user=_SYSTEM,
                inserted_at=shown_at,
                started_at=shown_at,
                done_at=shown_at,
                is_done=True,
            )
        )

    def _check_ready(self, record: Record) -> None:
        if record.is_deleting:
            raise _not_ready(self._catalogue.project, record)

    def _remove_forgotten(self, record: Record) -> None:
        """What the world has forgotten leaves no trace but the record."""
        if not record.is_gone and self._ground.look(record.number) is None:
            self._records.remove(record)


def _not_ready(project: str, record: Record) -> GceError:
    path = f"projects/{project}/{record.target}"
    return GceError(400, "resourceNotReady", f"The resource '{path}' is not ready")
