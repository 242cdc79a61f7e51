"""The demo on the sandbox's Google Cloud: the real adapter with google-cloud-compute, machines that boot by their
startup script."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from autoscaler.sandbox.cloud_capacity import Supply
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_identity import GoogleNotary
from autoscaler.sandbox.demo_cloud import IMAGE, CloudConfig, CloudFaultShares, Pace
from autoscaler.sandbox.demo_cloud_world import (
    SHOWN_AS,
    DemoWorld,
    Make,
    account_of,
    hosts_of,
    own_world,
    places_of,
    size_of,
    types_of,
)
from autoscaler.sandbox.demo_pools import DemoPool
from autoscaler.sandbox.demo_world_file import CloudWorld, shape_in
from autoscaler.sandbox.gce_behaviour import GceBehaviour
from autoscaler.sandbox.gce_catalogue import Image
from autoscaler.sandbox.gce_face import GceFace
from autoscaler.sandbox.gce_ground import catalogue_of
from autoscaler.sandbox.gce_metadata_sites import GceMetadataSites
from autoscaler.spi import CapacityType, ProviderId

NAME = "gce"
PROJECT = "demo-project"
REGION = "us-central1"
ZONES = {f"{REGION}-{letter}": REGION for letter in "abc"}
MAKES = {
    "m7i.xlarge": ("n2-standard-4", "n2d-standard-4", "e2-standard-4"),
    "m7i.2xlarge": ("n2-standard-8", "n2d-standard-8", "e2-standard-8"),
    "r7i.xlarge": ("n2-highmem-4", "n2d-highmem-4", "e2-highmem-4"),
}
_IMAGE = f"projects/{PROJECT}/global/images/runner-1"
_SUBNETWORK = "runners"
_ACCOUNT = f"runners@{PROJECT}.iam.gserviceaccount.com"


class GceCloud:
    """See `demo_cloud.DemoCloud`."""

    kind = "gce"

    def __init__(self, deployment: str, say: Callable[[str], None], recorded: CloudWorld | None = None) -> None:
        self._deployment = deployment
        self._say = say
        self._recorded = recorded
        self.pace = recorded.pace if recorded is not None else Pace()
        self._world: DemoWorld | None = None
        self._face: GceFace | None = None
        self._notary = GoogleNotary()

    async def start(
        self, folder: Path, pools: Sequence[DemoPool], *, faults: CloudFaultShares, seed: int
    ) -> CloudConfig:
        world = self._recorded or own_world(NAME, _makes(pools), ZONES)
        account = account_of(world, faults=faults, seed=seed, account=PROJECT)
        catalogue = catalogue_of(account, project=PROJECT)
        catalogue.add_images([Image(path=_IMAGE, family="runner", disk_gb=20)])
        driver = CloudDriver(account)
        behaviour = GceBehaviour(operation_s=(0.2, 0.6), told_after_s=(0.0, 1.0))
        self._face = GceFace(driver, catalogue, behaviour=behaviour)
        url = await self._face.start()
        metadata = GceMetadataSites(driver, self._face, self._notary)
        hosts = hosts_of(driver, folder, name=NAME, metadata=metadata)
        self._world = DemoWorld(driver=driver, hosts=hosts, world=world)
        anchors = self._notary.write_anchors(folder)
        return CloudConfig(provider=NAME, sections=_sections(url, world.supplies, driver.now, anchors=anchors))

    def shape_of(self, pool: DemoPool) -> str:
        return shape_in(self._recorded, pool, self._say) if self._recorded is not None else size_of(pool)

    def capacity_pools(self, pools: Sequence[DemoPool]) -> list[dict[str, object]]:
        return self._world.described() if self._world is not None else []

    async def reclaim(self, machine: ProviderId, *, notice_s: float) -> None:
        zone, _, name = machine.partition("/")
        if self._face is not None and self._world is not None:
            record = self._face.records.find(zone, name)
            if record is not None:
                driver = self._world.driver
                driver.account.reclaim(record.number, driver.now, notice_s=notice_s)
                driver.settle()

    def end_faults(self) -> None:
        if self._world is not None:
            self._world.end_faults()

    async def aclose(self) -> None:
        if self._world is not None:
            await self._world.aclose()
        if self._face is not None:
            await self._face.aclose()


def _makes(pools: Sequence[DemoPool]) -> list[Make]:
    return [Make(name=name, of=one) for one in types_of(pools) for name in MAKES[one.name]]


def _prices(supplies: Sequence[Supply], now: float) -> str:
    """Google's prices are a region's, and a configuration's do not change: those of the region's dearest zone now."""
    dearest: dict[str, dict[CapacityType, float]] = {}
    for one in supplies:
        prices = dearest.setdefault(f"{one.pool.region}/{one.pool.machine_type}", {})
        kind = one.pool.capacity_type
        prices[kind] = max(prices.get(kind, 0.0), round(one.price_at(now), 6))
    return ", ".join(
        f'"{name}" = {{ {", ".join(f"{kind} = {usd}" for kind, usd in sorted(prices.items()))} }}'
        for name, prices in dearest.items()
    )


def _sections(url: str, supplies: Sequence[Supply], now: float, *, anchors: Path) -> str:
    regions = list(places_of(supplies))
    networks = ", ".join(f'{region} = {{ subnetwork = "{_SUBNETWORK}" }}' for region in regions)
    return f"""[[provider]]
name = "{NAME}"
kind = "gce"
project = "{PROJECT}"
regions = {json.dumps(regions)}
endpoint_url = "{url}"
networks = {{ {networks} }}
service_account = "{_ACCOUNT}"
prices = {{ {_prices(supplies, now)} }}
trust_anchors = {json.dumps(str(anchors))}

[[image]]
name = "{IMAGE}"
[image.references.gce]
image = "{_IMAGE}"
github_runner = "{SHOWN_AS["github_runner"]}"
gitlab_runner = "{SHOWN_AS["gitlab_runner"]}"
"""
