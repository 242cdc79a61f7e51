"""What the demo's two sandbox clouds share: capacity pools for its pools, times, faults, and machines as processes.

In its own world each of the demo's machine types comes in three makes of the same size, in three zones, with spot
prices a little apart and few slots each: enough to be spread, to be refused and to go elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoscaler.sandbox.cloud_account import CloudAccount
from autoscaler.sandbox.cloud_capacity import Capacity, Supply
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_faults import CloudFaults
from autoscaler.sandbox.cloud_hosts import CloudHosts, InstalledProgram, Metadata
from autoscaler.sandbox.demo_cloud import RUNNERS, SLOW_FACTOR, CloudFaultShares
from autoscaler.sandbox.demo_cloud_local import choose_isolation
from autoscaler.sandbox.demo_pools import DemoPool, MachineType
from autoscaler.sandbox.demo_world_file import USUAL, CloudWorld
from autoscaler.spi import CapacityPool, CapacityType, ProviderName

SPOT_SLOTS = 4
ON_DEMAND_SLOTS = 32
SHOWN_AS = {"github_runner": "/opt/actions-runner", "gitlab_runner": "/usr/bin/gitlab-runner"}
"""Where the image says that its programs lie."""
_PRICE_STEP = 0.04
"""By how much the makes of one size, and the zones, differ in their spot prices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Make:
    """A machine type of the cloud that stands for one of the demo's."""

    name: str
    of: MachineType


@dataclass(slots=True, kw_only=True)
class DemoWorld:
    """One running cloud: account, clock, machines."""

    driver: CloudDriver
    hosts: CloudHosts
    world: CloudWorld

    @property
    def faults(self) -> CloudFaults:
        return self.driver.account.faults

    def end_faults(self) -> None:
        self.faults.end()

    async def aclose(self) -> None:
        await self.hosts.aclose()
        self.driver.close()

    def described(self) -> list[dict[str, object]]:
        """What the report's world says."""
        return [
            {
                "machine_type": one.pool.machine_type,
                "zone": one.pool.zone,
                "capacity_type": one.pool.capacity_type.value,
                "cpus": one.cpus,
                "memory_gib": one.memory_gib,
                "slots": one.slots,
                "usd_hour": round(one.price_at(self.driver.now), 6),
            }
            for one in self.world.supplies
        ]


def own_world(provider: str, makes: Sequence[Make], zones: Mapping[str, str]) -> CloudWorld:
    """Where no file says what there is."""
    return CloudWorld(supplies=_supplies(provider, makes, zones), times=USUAL)


def places_of(supplies: Sequence[Supply]) -> dict[str, list[str]]:
    """The zones of each region."""
    found: dict[str, set[str]] = {}
    for one in supplies:
        found.setdefault(one.pool.region, set()).add(one.pool.zone)
    return {region: sorted(zones) for region, zones in sorted(found.items())}


def _supplies(provider: str, makes: Sequence[Make], zones: Mapping[str, str]) -> list[Supply]:
    """Spot and on-demand supplies of every make in every zone (zone -> region)."""
    found = []
    for number, make in enumerate(makes):
        for place, (zone, region) in enumerate(zones.items()):
            dearer = 1 + _PRICE_STEP * ((number + 2 * place) % 5)
            for capacity_type in CapacityType:
                is_spot = capacity_type is CapacityType.SPOT
                price = make.of.spot_usd_hour * dearer if is_spot else make.of.on_demand_usd_hour
                found.append(
                    Supply(
                        pool=CapacityPool(
                            provider=ProviderName(provider),
                            region=region,
                            zone=zone,
                            machine_type=make.name,
                            capacity_type=capacity_type,
                        ),
                        cpus=make.of.cpus,
                        memory_gib=float(make.of.memory_gib),
                        price_usd_hour=round(price, 4),
                        slots=SPOT_SLOTS if is_spot else ON_DEMAND_SLOTS,
                    )
                )
    return found


def types_of(pools: Sequence[DemoPool]) -> list[MachineType]:
    return list({pool.machine_type.name: pool.machine_type for pool in pools}.values())


def account_of(world: CloudWorld, *, faults: CloudFaultShares, seed: int, account: str) -> CloudAccount:
    committed = CloudFaults(
        refuse=faults.refuse,
        throttle=faults.throttle,
        lost_answer=faults.lost_answer,
        slow_boot=faults.slow_boot,
        slow_factor=SLOW_FACTOR,
        no_notice=world.unannounced,
        seed=seed,
    )
    return CloudAccount(Capacity.of(world.supplies), times=world.times, faults=committed, account=account)


def hosts_of(driver: CloudDriver, folder: Path, *, name: str, metadata: Metadata) -> CloudHosts:
    programs = tuple(
        InstalledProgram(key=key, shown_as=SHOWN_AS[key], source=source) for key, source in RUNNERS.items()
    )
    isolation = choose_isolation(folder)
    return CloudHosts(driver, folder / "clouds", name=name, metadata=metadata, programs=programs, isolation=isolation)


def size_of(pool: DemoPool) -> str:
    """A pool's shape by size alone: any make that has it fits."""
    one = pool.machine_type
    return f'cpus = "{one.cpus}..{one.cpus}"\nmemory = "{one.memory_gib}GiB..{one.memory_gib}GiB"'
