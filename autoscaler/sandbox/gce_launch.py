"""Inserts and bulk inserts: each becomes an operation, and what went wrong is told there.

A bulk insert takes machine types by rank and within a rank zone by zone, as long as each has room. If fewer than the
minimum could be made, those that were are given back. A failed insert leaves no instance.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from autoscaler.sandbox.cloud_capacity import Shortage
from autoscaler.sandbox.gce_behaviour import GceBehaviour
from autoscaler.sandbox.gce_body import INSERT_FIELDS, MachineBody, check_fields, check_name, read_body
from autoscaler.sandbox.gce_bulk import BulkRequest, read_bulk
from autoscaler.sandbox.gce_catalogue import GceCatalogue
from autoscaler.sandbox.gce_ground import Ground
from autoscaler.sandbox.gce_operations import Fault, Operation, Operations
from autoscaler.sandbox.gce_records import Record, Records
from autoscaler.sandbox.gce_shortage import fault_of, quota_error, stockout_error
from autoscaler.sandbox.gce_wire import Json, already_exists, invalid, last_part, number_for, region_of, required


@dataclass(slots=True, kw_only=True)
class _Made:
    """What a bulk insert has got so far."""

    records: list[Record] = field(default_factory=list)
    short: dict[tuple[str, str], Shortage] = field(default_factory=dict)


class Launcher:
    def __init__(
        self,
        catalogue: GceCatalogue,
        records: Records,
        ground: Ground,
        operations: Operations,
        *,
        behaviour: GceBehaviour,
        clock: Callable[[], float],
        dice: random.Random,
    ) -> None:
        self._catalogue = catalogue
        self._records = records
        self._ground = ground
        self._operations = operations
        self._behaviour = behaviour
        self._clock = clock
        self._dice = dice

    # -- one machine --------------------------------------------------------------------------------------------

    def read_insert(self, zone: str, asked: Json) -> Record:
        """What is asked for, as a record that nothing carries yet. Raises GceError."""
        self._catalogue.check_zone(zone)
        check_fields(asked, INSERT_FIELDS, "resource")
        if "name" not in asked:
            raise required("resource.name")
        name = check_name(asked["name"], "resource.name")
        machine_type = last_part(asked.get("machineType", ""))
        if f"zones/{zone}/machineTypes/{machine_type}" not in asked.get("machineType", ""):
            raise invalid("resource.machineType", asked.get("machineType", ""), "It is no machine type of this zone.")
        self._check_type(zone, machine_type, "resource.machineType")
        body = read_body(asked, "resource", knows_notice=self._behaviour.knows_preemption_notice)
        self._check_references(body, region_of(zone), "resource")
        if self._records.find(zone, name) is not None:
            raise already_exists(f"projects/{self._catalogue.project}/zones/{zone}/instances/{name}")
        return self._records.new(name, zone, machine_type, body)

    def insert(self, record: Record, *, request_id: str, asked: str, user: str) -> Operation:
        shortage = self._try(record)
        faults: tuple[Fault, ...] = ()
        if shortage is not None:
            if shortage is Shortage.QUOTA and self._behaviour.quota_at_once:
                raise quota_error(region_of(record.zone), record.body, self._ground)
            faults = (self._fault(shortage, record.zone, record.machine_type, record.body),)
        else:
            self._records.add(record)
        return self.begin(
            "insert",
            record,
            request_id=request_id,
            asked=asked,
            user=user,
            faults=faults,
        )

    def _try(self, record: Record) -> Shortage | None:
        if record.zone in self._catalogue.down:
            return Shortage.CAPACITY
        return self._ground.launch(record.place, record.body)

    def begin(
        self,
        kind: str,
        record: Record,
        *,
        request_id: str,
        asked: str,
        user: str,
        faults: tuple[Fault, ...] = (),
        waits_for: Callable[[], bool] | None = None,
    ) -> Operation:
        """An operation on one instance."""
        return self._begin(
            kind,
            scope=f"zones/{record.zone}",
            target=record.target,
            target_id=record.number,
            request_id=request_id,
            asked=asked,
            user=user,
            faults=faults,
            waits_for=waits_for,
        )

    # -- many ---------------------------------------------------------------------------------------------------

    def read_bulk_insert(self, region: str, asked: Json) -> BulkRequest:
        """Raises GceError."""
        zones = self._catalogue.zones_of(region)
        bulk = read_bulk(asked, zones, knows_notice=self._behaviour.knows_preemption_notice)
        self._check_references(bulk.body, region, "resource.instanceProperties")
        types = [machine_type for rank in bulk.ranks for machine_type in rank]
        for machine_type in types:
            if not any(machine_type in self._catalogue.types[zone] for zone in bulk.zones):
                self._check_type(bulk.zones[0], machine_type, "resource.instanceProperties.machineType")
        for name in bulk.names:
            for zone in zones:
                if self._records.find(zone, name) is not None:
                    raise already_exists(f"projects/{self._catalogue.project}/zones/{zone}/instances/{name}")
        return bulk

    def bulk_insert(
        self, region: str, bulk: BulkRequest, *, request_id: str, asked: str, user: str
    ) -> tuple[Operation, list[Record]]:
        """The operation and what it made."""
        made = self._take_all(bulk)
        shortages = set(made.short.values())
        is_failed = len(made.records) < bulk.least
        if is_failed:
            for record in made.records:
                self._ground.terminate(record.number)
            if shortages == {Shortage.QUOTA} and self._behaviour.quota_at_once:
                raise quota_error(region, bulk.body, self._ground)
            if shortages == {Shortage.CAPACITY} and self._behaviour.stockout_at_once:
                raise stockout_error(region)
        else:
            for record in made.records:
                self._records.add(record)
        operation = self._begin(
            "bulkInsert",
            scope=f"regions/{region}",
            target=f"regions/{region}",
            target_id=number_for(region),
            request_id=request_id,
            asked=asked,
            user=user,
            faults=self._bulk_faults(bulk, made) if is_failed else (),
            metadata=_per_location(bulk, made, is_failed=is_failed),
        )
        return operation, [] if is_failed else made.records

    def _take_all(self, bulk: BulkRequest) -> _Made:
        made = _Made()
        taken = set() if bulk.names else {name for zone in bulk.zones for name in self._records.names_in(zone)}
        names = list(islice(bulk.free_names(taken), bulk.count))
        zones = list(bulk.zones)
        self._dice.shuffle(zones)
        for rank in bulk.ranks:
            for zone in zones:
                for machine_type in rank:
                    self._take(bulk, made, zone, machine_type, names)
                if bulk.is_single_zone and made.records:
                    zones = [zone]
                    break
        return made

    def _take(self, bulk: BulkRequest, made: _Made, zone: str, machine_type: str, names: Sequence[str]) -> None:
        """As many machines of one type in one zone as are missing and to be had."""
        if machine_type not in self._catalogue.types[zone]:
            return
        while len(made.records) < bulk.count:
            record = self._records.new(names[len(made.records)], zone, machine_type, bulk.body)
            shortage = self._try(record)
            if shortage is not None:
                made.short[zone, machine_type] = shortage
                return
            made.records.append(record)

    def _bulk_faults(self, bulk: BulkRequest, made: _Made) -> tuple[Fault, ...]:
        faults = [
            self._fault(shortage, zone, machine_type, bulk.body)
            for (zone, machine_type), shortage in sorted(made.short.items())
        ]
        unmet = Fault(
            code="VM_MIN_COUNT_NOT_REACHED",
            message=f"Requested minimum count of {bulk.least} VMs could not be created.",
            http_status=409,
            http_message="CONFLICT",
        )
        return (*faults, unmet)

    # -- both ---------------------------------------------------------------------------------------------------

    def _check_type(self, zone: str, machine_type: str, where: str) -> None:
        if machine_type not in self._catalogue.types[zone]:
            why = f"Machine type with name '{machine_type}' does not exist in zone '{zone}'."
            raise invalid(where, machine_type, why)

    def _check_references(self, body: MachineBody, region: str, where: str) -> None:
        """Raises GceError(404) for the image, 400 for the rest."""
        image = self._catalogue.image(body.image)
        if image.state in ("OBSOLETE", "DELETED"):
            why = f"The image is {image.state.lower()}: it cannot be used any more."
            raise invalid(f"{where}.disks[0].initializeParams.sourceImage", body.image, why)
        if body.disk_gb is not None and body.disk_gb < image.disk_gb:
            why = f"Requested disk size cannot be smaller than the image size ({image.disk_gb} GB)"
            raise invalid(f"{where}.disks[0].initializeParams.diskSizeGb", body.disk_gb, why)
        found = self._catalogue.subnetworks.get(body.subnetwork)
        if found is None or found.region != region:
            field_name = f"{where}.networkInterfaces[0].subnetwork"
            raise invalid(field_name, body.subnetwork, "The referenced subnetwork resource cannot be found.")

    def _fault(self, shortage: Shortage, zone: str, machine_type: str, body: MachineBody) -> Fault:
        return fault_of(
            shortage,
            project=self._catalogue.project,
            zone=zone,
            machine_type=machine_type,
            body=body,
            ground=self._ground,
        )

    def _begin(
        self,
        kind: str,
        *,
        scope: str,
        target: str,
        target_id: str,
        request_id: str,
        asked: str,
        user: str,
        faults: tuple[Fault, ...] = (),
        waits_for: Callable[[], bool] | None = None,
        metadata: Json | None = None,
    ) -> Operation:
        now = self._clock()
        took_s = self._dice.uniform(*self._behaviour.operation_s)
        operation = Operation(
            name=self._operations.new_name(),
            kind=kind,
            scope=scope,
            target=target,
            target_id=target_id,
            user=user,
            inserted_at=now,
            started_at=now + took_s / 4,
            done_at=now + took_s,
            request_id=request_id,
            faults=faults,
            waits_for=waits_for,
            metadata=metadata,
        )
        return self._operations.add(operation, asked=asked)


def _per_location(bulk: BulkRequest, made: _Made, *, is_failed: bool) -> Json:
    """How many each zone was to make and made. Those that no zone could make are put down to the last one tried."""
    counts = dict.fromkeys(bulk.zones, 0)
    for record in made.records:
        counts[record.zone] += 1
    missing = dict.fromkeys(bulk.zones, 0)
    if made.short:
        missing[max(made.short)[0]] = bulk.count - len(made.records)
    return {
        "perLocationStatus": {
            f"zones/{zone}": {
                "status": "DONE",
                "targetVmCount": counts[zone] + missing[zone],
                "createdVmCount": counts[zone],
                "failedToCreateVmCount": missing[zone],
                "deletedVmCount": counts[zone] if is_failed else 0,
            }
            for zone in bulk.zones
            if counts[zone] or missing[zone]
        }
    }
