"""A Google Cloud of the sandbox that is being served, and what tests say to it: providers, Google's clients, machines.

The catalogue is small: three zones of one region and one zone of another, two machine types, spot and on-demand. The
first offering that the provider finds is the cheapest, a spot machine of the small type, with room for `SLOTS`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from aiohttp.typedefs import Middleware
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.oauth2.credentials import Credentials

from autoscaler.calls import Calls
from autoscaler.sandbox.cloud_account import CloudAccount, CloudTimes
from autoscaler.sandbox.cloud_capacity import Capacity, Supply
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_faults import CloudFaults
from autoscaler.sandbox.cloud_identity import GoogleNotary
from autoscaler.sandbox.cloud_machines import Machine
from autoscaler.sandbox.gce_behaviour import GceBehaviour
from autoscaler.sandbox.gce_catalogue import Image
from autoscaler.sandbox.gce_face import GceFace
from autoscaler.sandbox.gce_ground import catalogue_of
from autoscaler.sandbox.gce_limits import GceLimits
from autoscaler.sandbox.gce_metadata_face import GceFacts
from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    Evidence,
    LaunchBatch,
    Offering,
    PoolName,
    Provider,
    ProviderId,
    ProviderName,
    ProviderSettings,
    Secret,
    Surroundings,
)
from providers.gce import create
from tests.hurried_clock import HurriedClock

PROJECT = "sandbox-project"
REGION, OTHER_REGION = "us-central1", "europe-west4"
ZONES = ("us-central1-a", "us-central1-b", "us-central1-c", "europe-west4-a")
SMALL, LARGE = "e2-standard-2", "n2-standard-4"
IMAGE = f"projects/{PROJECT}/global/images/runners-1"
FAMILY = f"projects/{PROJECT}/global/images/family/runners"
SUBNETWORK = f"projects/{PROJECT}/regions/{REGION}/subnetworks/runners"
ACCOUNT = f"runners@{PROJECT}.iam.gserviceaccount.com"
PUBLIC_URL = "https://autoscaler.test"
SLOTS = 3
PRICES = {SMALL: {"spot": 0.02, "on_demand": 0.07}, LARGE: {"spot": 0.05, "on_demand": 0.19}}
Client = TypeVar("Client")


def capacity_pool(
    zone: str, machine_type: str = SMALL, capacity_type: CapacityType = CapacityType.SPOT
) -> CapacityPool:
    return CapacityPool(
        provider=ProviderName("gce"),
        region=zone.rpartition("-")[0],
        zone=zone,
        machine_type=machine_type,
        capacity_type=capacity_type,
    )


def supplies(slots: int = SLOTS) -> list[Supply]:
    sizes = {SMALL: (2, 8.0), LARGE: (4, 16.0)}
    return [
        Supply(
            pool=capacity_pool(zone, machine_type, capacity_type),
            cpus=cpus,
            memory_gib=memory_gib,
            price_usd_hour=PRICES[machine_type][capacity_type],
            slots=slots,
        )
        for zone in ZONES
        for machine_type, (cpus, memory_gib) in sizes.items()
        for capacity_type in CapacityType
    ]


@dataclass(slots=True)
class CloudClock:
    """The cloud's time: the real one, and as much ahead as a test says."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass(slots=True, kw_only=True)
class GceSite:
    """Everything of one served cloud. `anchors` is the file of the keys that sign its machines' tokens."""

    clock: CloudClock
    face: GceFace
    driver: CloudDriver
    url: str
    anchors: Path
    notary: GoogleNotary
    calls: list[Calls] = field(default_factory=list)
    providers: list[Provider] = field(default_factory=list)

    @property
    def account(self) -> CloudAccount:
        return self.driver.account

    @property
    def faults(self) -> CloudFaults:
        return self.account.faults

    def settings(self, **options: Any) -> ProviderSettings:
        """A section that works; `options` are added or replace."""
        given: dict[str, Any] = {
            "project": PROJECT,
            "networks": {
                region: {"subnetwork": "runners", "tags": ["ci"]} for region in options.get("regions", [REGION])
            },
            "service_account": ACCOUNT,
            "prices": PRICES,
            "trust_anchors": str(self.anchors),
            **options,
        }
        regions = tuple(given.pop("regions", (REGION,)))
        return ProviderSettings(
            name=ProviderName("gce"), kind="gce", regions=regions, endpoint_url=self.url, options=given
        )

    def provider(self, *, deployment: str = "tests", token: str = "", **options: Any) -> Provider:
        """A provider of this cloud; `token` is an access token that the face knows."""
        if token:
            options["credentials"] = Secret(token)
        calls = Calls()
        self.calls.append(calls)
        surroundings = Surroundings(
            deployment=deployment,
            runner_prefix=f"{deployment}-",
            clock=HurriedClock(),
            gates=calls,
            public_url=lambda: PUBLIC_URL,
        )
        made = create(self.settings(**options), surroundings)
        self.providers.append(made)
        return made

    def client(self, kind: Callable[..., Client], *, token: str = "") -> Client:
        """One of Google's own clients, for this face. To be used in threads: see `ask`."""
        credentials = Credentials(token=token) if token else AnonymousCredentials()
        return kind(credentials=credentials, client_options=ClientOptions(api_endpoint=self.url))

    def evidence(self, provider_id: ProviderId, *, claim: str, at: datetime) -> Evidence:
        """What a machine sends with its hello: the token that its metadata server signs for it (or would)."""
        zone, _, name = provider_id.partition("/")
        record = self.face.records.find(zone, name)
        facts = self.face.facts(record.number) if record is not None else _nobody(zone if name else ZONES[0], name)
        issued = int(at.timestamp())
        claims = {
            "aud": f"{PUBLIC_URL}#{claim}",
            "iss": "https://accounts.google.com",
            "email": ACCOUNT,
            "email_verified": True,
            "iat": issued,
            "exp": issued + 3600,
            "google": {
                "compute_engine": {
                    "instance_id": facts.number,
                    "instance_name": facts.name,
                    "instance_creation_timestamp": int(facts.created_at),
                    "project_id": facts.project,
                    "project_number": facts.project_number,
                    "zone": facts.zone,
                }
            },
        }
        document = {"token": self.notary.sign(claims)}
        return Evidence(claim=claim, document=document, received_at=at, peer_address="127.0.0.1")

    def number_of(self, provider_id: ProviderId) -> str:
        """Google's number of an instance, which is the world's id of its machine."""
        zone, _, name = provider_id.partition("/")
        return self.face.records.get(zone, name).number

    def machine(self, provider_id: ProviderId) -> Machine:
        """The world's machine."""
        return self.account.machines[self.number_of(provider_id)]

    async def aclose(self) -> None:
        for provider in self.providers:
            await provider.aclose()
        for calls in self.calls:
            await calls.aclose()
        self.driver.close()
        await self.face.aclose()


def _nobody(zone: str, name: str) -> GceFacts:
    """A machine that was never launched."""
    return GceFacts(
        number="1234567890123456789",
        name=name,
        zone=zone,
        project=PROJECT,
        project_number=1,
        machine_type=SMALL,
        created_at=0.0,
    )


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    slots: int = SLOTS,
    times: CloudTimes | None = None,
    limits: GceLimits | None = None,
    middlewares: Sequence[Middleware] = (),
) -> AsyncIterator[GceSite]:
    """A cloud in a hurry: boots and operations take tenths of a second."""
    hurry = CloudTimes(boot=(0.1, 0.3), start=(0.1, 0.2), end=(0.05, 0.1), stop=(0.05, 0.1), notice_s=0.2)
    account = CloudAccount(Capacity.of(supplies(slots)), times=times or hurry, images=frozenset())
    catalogue = catalogue_of(account, project=PROJECT)
    catalogue.add_images([Image(path=IMAGE, family="runners", disk_gb=20)])
    clock = CloudClock()
    driver = CloudDriver(account, clock=clock)
    behaviour = GceBehaviour(operation_s=(0.05, 0.15), told_after_s=(0.0, 0.1))
    face = GceFace(driver, catalogue, behaviour=behaviour, limits=limits, middlewares=middlewares)
    notary = GoogleNotary()
    made = GceSite(
        clock=clock,
        face=face,
        driver=driver,
        url=await face.start(),
        anchors=notary.write_anchors(folder),
        notary=notary,
    )
    try:
        yield made
    finally:
        await made.aclose()


async def ask(function: Any, /, **arguments: Any) -> Any:
    """One blocking call of Google's library."""
    return await asyncio.to_thread(function, retry=None, timeout=10.0, **arguments)


def batch(
    token: str, *, count: int, offerings: Sequence[Offering], image: Mapping[str, str] | None = None, **changes: Any
) -> LaunchBatch:
    values: dict[str, Any] = {
        "token": BatchToken(token),
        "pool": PoolName("linux"),
        "count": count,
        "offerings": tuple(offerings),
        "image": image or {"image": IMAGE},
        "user_data": "{}",
        "max_lifetime": timedelta(hours=1),
    }
    return LaunchBatch(**{**values, **changes})
