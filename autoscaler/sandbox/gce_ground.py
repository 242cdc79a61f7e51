"""Where the sandbox's Compute Engine stands: the world's account, in the words of instances.

A machine that powers itself off is off, not ended, and so is one that is taken with the action STOP: Google keeps the
disk until somebody deletes the instance.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from autoscaler.sandbox.cloud_account import CloudAccount
from autoscaler.sandbox.cloud_capacity import Shortage
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_machines import Machine, Wish
from autoscaler.sandbox.gce_body import MachineBody
from autoscaler.sandbox.gce_catalogue import GceCatalogue, Image, MachineType, Subnetwork
from autoscaler.sandbox.gce_wire import region_of
from autoscaler.spi import CapacityPool, CapacityType

STARTUP_SCRIPT = "startup-script"
_METRICS = {"CPUS": CapacityType.ON_DEMAND, "PREEMPTIBLE_CPUS": CapacityType.SPOT}
_UNCOUNTED = ("INSTANCES", "IN_USE_ADDRESSES")
_PLENTY = 1_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which machine is asked for, and under which identity."""

    zone: str
    machine_type: str
    number: str
    name: str


class Ground:
    """One account on its driver. Ids of machines are the instances' numbers."""

    def __init__(self, driver: CloudDriver) -> None:
        self._driver = driver
        self._account: CloudAccount = driver.account
        self._pools: dict[tuple[str, str, CapacityType], CapacityPool] = {}

    def look(self, number: str) -> Machine | None:
        """None for a machine that ended so long ago that nobody remembers it."""
        return self._account.machines.get(number)

    def launch(self, place: Place, body: MachineBody) -> Shortage | None:
        """Why there is no machine; None when there is. Its effects are told with the next `settle`."""
        pool = self._pool(place.zone, place.machine_type, is_spot=body.schedule.is_spot)
        if pool is None:
            return Shortage.UNSUPPORTED
        texts = dict(body.metadata)
        wish = Wish(
            image=body.image,
            user_data=texts.pop(STARTUP_SCRIPT, ""),
            tags=texts,
            stops_when_taken=not body.schedule.is_deleted_at_end,
            powers_off_to_stop=True,
            id=place.number,
            name=place.name,
        )
        made = self._account.launch(pool, wish, self._driver.now)
        return made if isinstance(made, Shortage) else None

    def terminate(self, number: str) -> None:
        if number in self._account.machines:
            self._account.terminate(number, self._driver.now)

    def stop(self, number: str) -> None:
        if number in self._account.machines:
            self._account.stop(number, self._driver.now)

    def start(self, number: str) -> Shortage | None:
        """A machine whose host failed cannot be had again."""
        machine = self._account.machines.get(number)
        if machine is None or machine.has_ended:
            return Shortage.CAPACITY
        return self._account.start(number, self._driver.now)

    def reclaim(self, number: str, *, notice_s: float) -> None:
        """Taken after that notice, or after what this world's notices take where that is shorter."""
        self._account.reclaim(number, self._driver.now, notice_s=min(notice_s, self._account.times.notice_s))

    def settle(self) -> None:
        """Tell everybody what has happened."""
        self._driver.settle()

    def quotas(self, region: str) -> Mapping[str, tuple[float, float]]:
        """Metric -> (limit, usage)."""
        capacity = self._account.capacity
        counted = {
            metric: (
                capacity.quotas.get((region, capacity_type), _PLENTY),
                float(capacity.used_cpus(region, capacity_type)),
            )
            for metric, capacity_type in _METRICS.items()
        }
        return {**dict.fromkeys(_UNCOUNTED, (_PLENTY, 0.0)), **counted}

    def _pool(self, zone: str, machine_type: str, *, is_spot: bool) -> CapacityPool | None:
        key = zone, machine_type, CapacityType.SPOT if is_spot else CapacityType.ON_DEMAND
        if key not in self._pools:
            supplies = self._account.capacity.supplies
            self._pools = {(pool.zone, pool.machine_type, pool.capacity_type): pool for pool in supplies}
        return self._pools.get(key)


def catalogue_of(
    account: CloudAccount,
    *,
    project: str,
    number: str = "123456789012",
    disk_gb: int = 10,
    subnetwork: str = "runners",
) -> GceCatalogue:
    """What an account has to give, as Compute Engine lists it: each supply's type in its zone, the account's images,
    and in each region one subnetwork."""
    types: dict[str, dict[str, MachineType]] = {}
    for pool, supply in account.capacity.supplies.items():
        types.setdefault(pool.zone, {})[pool.machine_type] = MachineType(
            name=pool.machine_type,
            cpus=supply.cpus,
            memory_gib=supply.memory_gib,
            arch=supply.arch,
            gpus=supply.gpus,
        )
    catalogue = GceCatalogue(project=project, number=number, types=types)
    catalogue.add_images(Image(path=path, disk_gb=disk_gb) for path in sorted(account.images))
    catalogue.add_subnetworks(
        Subnetwork(path=f"projects/{project}/regions/{region}/subnetworks/{subnetwork}")
        for region in sorted({region_of(zone) for zone in types})
    )
    return catalogue
