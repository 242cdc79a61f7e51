"""The instances of the sandbox's project: what was asked of each, beside the world's machine that carries it.

    insert -> PROVISIONING -> STAGING -> RUNNING -> STOPPING -> gone         deleted; preempted with action DELETE
                                            +-> STOPPING -> TERMINATED       stopped, powered off, preempted with STOP
                                                               +-> start, or delete

Google's TERMINATED keeps its disk and its name until somebody deletes it, whereas the world forgets a machine that has
ended. A name is unique in its zone; a number never comes back.
"""

import itertools
import json
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from autoscaler.sandbox.gce_body import MachineBody
from autoscaler.sandbox.gce_catalogue import GceCatalogue, Image
from autoscaler.sandbox.gce_ground import Ground, Place
from autoscaler.sandbox.gce_render import Showing, show
from autoscaler.sandbox.gce_wire import not_found, number_for
from autoscaler.spi import MachineState

_PROVISIONING_S = 0.2


@dataclass(slots=True, kw_only=True)
class Record:
    """One instance. `number` is the world's id of its machine, too; `started_at` is its last start."""

    name: str
    number: str
    zone: str
    machine_type: str
    body: MachineBody
    image: Image
    network: str
    created_at: float
    started_at: float
    stopped_at: float | None = None
    address: str = ""
    is_deleting: bool = False
    is_stopping: bool = False
    is_off: bool = False
    is_preempted: bool = False
    is_gone: bool = False
    has_failed: bool = False
    """Its host was lost, which nobody wanted."""
    shown: tuple[object, bytes] | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        return f"zones/{self.zone}/{self.name}"

    @property
    def target(self) -> str:
        return f"zones/{self.zone}/instances/{self.name}"

    @property
    def place(self) -> Place:
        return Place(zone=self.zone, machine_type=self.machine_type, number=self.number, name=self.name)

    @property
    def ends_at(self) -> float | None:
        """When its run time is over."""
        limit_s = self.body.schedule.max_run_s
        return None if limit_s is None or self.is_off else self.started_at + limit_s


class Records:
    """Every instance that is not gone, sorted by zone and name, with an index of labels."""

    def __init__(
        self,
        catalogue: GceCatalogue,
        ground: Ground,
        clock: Callable[[], float],
        *,
        ended: Callable[["Record"], None],
    ) -> None:
        """`ended` hears of each machine that is off, once for each start, whoever turned it off."""
        self._catalogue = catalogue
        self._ended = ended
        self._ground = ground
        self._clock = clock
        self._seed = f"{catalogue.number}/{clock()}"
        self._numbers = itertools.count(1)
        self._by_key: dict[str, Record] = {}
        self._by_number: dict[str, Record] = {}
        self._by_label: dict[tuple[str, str], dict[str, Record]] = {}
        self._sorted: list[str] = []

    def __iter__(self) -> Iterator[Record]:
        return iter([self._by_key[key] for key in self._sorted])

    def new(self, name: str, zone: str, machine_type: str, body: MachineBody) -> Record:
        """A record that nothing carries yet, and nobody sees."""
        now = self._clock()
        return Record(
            name=name,
            number=number_for(f"{self._seed}/{next(self._numbers)}/instance"),
            zone=zone,
            machine_type=machine_type,
            body=body,
            image=self._catalogue.image(body.image),
            network=self._catalogue.subnetwork(body.subnetwork).network,
            created_at=now,
            started_at=now,
        )

    def add(self, record: Record) -> None:
        """The world has its machine."""
        self._by_key[record.key] = self._by_number[record.number] = record
        insort(self._sorted, record.key)
        for label in record.body.labels.items():
            self._by_label.setdefault(label, {})[record.key] = record

    def find(self, zone: str, name: str) -> Record | None:
        return self._by_key.get(f"zones/{zone}/{name}")

    def get(self, zone: str, name: str) -> Record:
        """Raises GceError(404)."""
        self._catalogue.check_zone(zone)
        found = self.find(zone, name)
        if found is None:
            raise not_found(f"projects/{self._catalogue.project}/zones/{zone}/instances/{name}")
        return found

    def of_number(self, number: str) -> Record | None:
        return self._by_number.get(number)

    def names_in(self, zone: str) -> set[str]:
        return {record.name for record in self if record.zone == zone}

    def labelled(self, key: str, value: str) -> list[Record]:
        """Sorted by zone and name."""
        found = self._by_label.get((key, value), {})
        return [found[one] for one in sorted(found)]

    def status(self, record: Record) -> str:
        """Google's word for how it is now."""
        machine = self._ground.look(record.number)
        if record.is_off or machine is None:
            return "STOPPING" if record.is_deleting else "TERMINATED"
        match machine.state:
            case MachineState.PENDING if not record.is_deleting:
                return "PROVISIONING" if self._clock() - record.started_at < _PROVISIONING_S else "STAGING"
            case MachineState.RUNNING if not record.is_deleting:
                return "RUNNING"
            case _:
                return "STOPPING"

    def machine_changed(self, number: str) -> None:
        """Take over what has become of a machine in the world."""
        record, machine = self._by_number.get(number), self._ground.look(number)
        if record is None or machine is None:
            return
        record.address = machine.address
        if machine.state not in (MachineState.STOPPED, MachineState.TERMINATED):
            return
        if not record.is_off:
            record.is_off, record.stopped_at, record.is_preempted = True, self._clock(), machine.was_taken
            record.has_failed = machine.has_ended and not machine.was_taken and not record.is_deleting
            self._ended(record)
        if record.is_deleting or (record.is_preempted and record.body.schedule.is_deleted_at_end):
            self.remove(record)

    def restarted(self, record: Record) -> None:
        record.is_off = record.is_stopping = record.is_preempted = False
        record.started_at = self._clock()

    def remove(self, record: Record) -> None:
        record.is_gone = True
        del self._by_key[record.key], self._by_number[record.number]
        del self._sorted[bisect_left(self._sorted, record.key)]
        for label in record.body.labels.items():
            del self._by_label[label][record.key]
            if not self._by_label[label]:
                del self._by_label[label]

    def render(self, record: Record, base: str) -> bytes:
        """The instance as JSON, from memory unless something about it has changed. `base` is the address up to
        "/compute/v1/projects/P/"."""
        status = self.status(record)
        known = (base, status, record.address, record.started_at, record.stopped_at)
        if record.shown is not None and record.shown[0] == known:
            return record.shown[1]
        showing = Showing(
            name=record.name,
            number=record.number,
            zone=record.zone,
            machine_type=record.machine_type,
            status=status,
            address=record.address,
            body=record.body,
            image=record.image,
            network=record.network,
            created_at=record.created_at,
            started_at=record.started_at,
            stopped_at=record.stopped_at,
        )
        text = json.dumps(show(showing, base)).encode()
        record.shown = (known, text)
        return text
