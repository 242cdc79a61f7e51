"""Child: the sandbox's Google Cloud on the network, at Google's documented rates; filled and counted on request."""

import asyncio
import json
import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from aiohttp import web
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import compute_v1

from autoscaler.sandbox.cloud_account import CloudAccount
from autoscaler.sandbox.cloud_capacity import Capacity
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.gce_catalogue import Image
from autoscaler.sandbox.gce_face import GceFace
from autoscaler.sandbox.gce_ground import catalogue_of
from autoscaler.sandbox.gce_wire import PREFIX
from autoscaler.spi import MachineState, ProviderName
from benchmarks.clouds import ON_DEMAND_USD_HOUR, POOL_LINES, SPOT_USD_HOUR, CallLog, supplies, times
from providers.boot_script import boot_script
from providers.gce_names import BATCH, DEPLOYMENT, POOL
from runners.bootstrap import boot_document

NAME, DEPLOYED_AS, POOL_NAME = "gce", "bench", "linux"
PROJECT, REGION = "bench-project", "us-central1"
ZONES = {f"{REGION}-{letter}": REGION for letter in "abc"}
MACHINE_TYPES = ("n2-standard-4", "n2d-standard-4", "e2-standard-4")
IMAGE = f"projects/{PROJECT}/global/images/runner-1"
SUBNETWORK = f"projects/{PROJECT}/regions/{REGION}/subnetworks/runners"
ACCOUNT = f"runners@{PROJECT}.iam.gserviceaccount.com"
PRICES = {
    f"{REGION}/{machine_type}": {"spot": SPOT_USD_HOUR, "on_demand": ON_DEMAND_USD_HOUR}
    for machine_type in MACHINE_TYPES
}
BATCH_SIZE = 100
BULK_INSERT, INSERT = "POST regions/{region}/instances/bulkInsert", "POST zones/{zone}/instances"
LIST = "GET aggregated/instances"
_SCOPE = "https://www.googleapis.com/auth/userinfo.email"
_PROJECT_ROUTE = PREFIX + "projects/{project}/"
_CALL_S = 60.0


def client(kind: Callable[..., Any], url: str) -> Any:
    """A plain client of google-cloud-compute; the face lets everybody in."""
    return kind(credentials=AnonymousCredentials(), client_options=ClientOptions(api_endpoint=url))


def launch(regional: Any, count: int) -> str:
    """One bulk insert of spot machines over all zones and types, with metadata as long as the adapter's; the operation
    it began."""
    token = f"b-{secrets.token_hex(6)}"
    texts = {DEPLOYMENT: DEPLOYED_AS, POOL: POOL_NAME, BATCH: token}
    metadata = {**texts, "startup-script": _script(token), "block-project-ssh-keys": "TRUE"}
    body = compute_v1.BulkInsertInstanceResource(
        count=count,
        min_count=count,
        name_pattern=f"{DEPLOYED_AS}-{token.removeprefix('b-')}-####",
        location_policy=compute_v1.LocationPolicy(target_shape="ANY"),
        instance_flexibility_policy=compute_v1.InstanceFlexibilityPolicy(
            instance_selections={
                "all": compute_v1.InstanceFlexibilityPolicyInstanceSelection(machine_types=MACHINE_TYPES)
            }
        ),
        instance_properties=compute_v1.InstanceProperties(
            disks=[
                compute_v1.AttachedDisk(
                    boot=True,
                    auto_delete=True,
                    initialize_params=compute_v1.AttachedDiskInitializeParams(
                        source_image=IMAGE, disk_type="pd-balanced"
                    ),
                )
            ],
            network_interfaces=[compute_v1.NetworkInterface(subnetwork=SUBNETWORK)],
            labels=texts,
            metadata=compute_v1.Metadata(
                items=[compute_v1.Items(key=key, value=value) for key, value in metadata.items()]
            ),
            service_accounts=[compute_v1.ServiceAccount(email=ACCOUNT, scopes=[_SCOPE])],
            scheduling=compute_v1.Scheduling(
                provisioning_model="SPOT",
                instance_termination_action="DELETE",
                automatic_restart=False,
                on_host_maintenance="TERMINATE",
                max_run_duration=compute_v1.Duration(seconds=6 * 3600),
            ),
        ),
    )
    begun = regional.bulk_insert_unary(
        project=PROJECT, region=REGION, bulk_insert_instance_resource_resource=body, retry=None, timeout=_CALL_S
    )
    return str(begun.name)


def _script(token: str) -> str:
    document = boot_document(
        daemon_url="https://autoscaler.example.com",
        provider=ProviderName(NAME),
        boot_timeout=timedelta(minutes=10),
        max_lifetime=timedelta(hours=6),
        image={"github_runner": "/opt/actions-runner", "gitlab_runner": "/usr/bin/gitlab-runner"},
    )
    return boot_script(document, evidence="gce", batch=token)


async def _name_of(request: web.Request) -> tuple[str, int]:
    """The method and path as the face's routes have them, and what a launch asks for."""
    resource = request.match_info.route.resource
    path = "" if resource is None else resource.canonical.removeprefix(_PROJECT_ROUTE)
    name = f"{request.method} {path}"
    if name == BULK_INSERT:
        return name, int(json.loads(await request.read())["count"])
    return name, 1 if name == INSERT else 0


class GceCloud:
    """What the benchmark asks of it."""

    def __init__(self, driver: CloudDriver) -> None:
        account = driver.account
        catalogue = catalogue_of(account, project=PROJECT)
        catalogue.add_images([Image(path=IMAGE, family="runner", disk_gb=20)])
        self._account = account
        self._log = CallLog(_name_of)
        self.counted = self._log.counted
        self.face = GceFace(driver, catalogue, middlewares=[self._log.middleware])
        self.url = ""

    async def fill(self, *, count: int) -> None:
        """Launch so many machines by bulk inserts, past all limits, and let them boot."""
        self.face.limits.are_on = False
        await asyncio.to_thread(self._fill, count)
        while sum(one.state is MachineState.RUNNING for one in self._account.machines.values()) < count:
            await asyncio.sleep(0.2)
        self.face.limits.are_on = True
        self._log.calls.clear()

    def _fill(self, count: int) -> None:
        regional = client(compute_v1.RegionInstancesClient, self.url)
        for first in range(0, count, BATCH_SIZE):
            launch(regional, min(BATCH_SIZE, count - first))

    async def machines(self) -> list[dict[str, Any]]:
        """Those that are up."""
        return [
            {
                "id": f"{one.capacity_pool.zone}/{one.wish.name}",
                "token": one.wish.tags[BATCH],
                "zone": one.capacity_pool.zone,
                "machine_type": one.capacity_pool.machine_type,
                "launched_at": one.launched_at,
            }
            for one in self._account.machines.values()
            if one.state in (MachineState.PENDING, MachineState.RUNNING)
        ]

    async def answered_bytes(self) -> int:
        """All bodies so far."""
        return self._log.answered_bytes


async def start(**_: Any) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
    driver = CloudDriver(
        CloudAccount(Capacity.of(supplies(NAME, MACHINE_TYPES, ZONES)), times=times(), account=PROJECT)
    )
    cloud = GceCloud(driver)
    cloud.url = await cloud.face.start()

    async def close() -> None:
        await cloud.face.aclose()
        driver.close()

    ready = {
        "url": cloud.url,
        "cloud": {"provider": NAME, "sections": _sections(cloud.url), "pool_lines": POOL_LINES},
    }
    handlers = {name: getattr(cloud, name) for name in ("fill", "machines", "counted", "answered_bytes")}
    return ready, handlers, close


def _sections(url: str) -> str:
    prices = (
        f'"{key}" = {{ {", ".join(f"{kind} = {usd}" for kind, usd in one.items())} }}' for key, one in PRICES.items()
    )
    return f"""
[[provider]]
name = "{NAME}"
kind = "gce"
project = "{PROJECT}"
regions = ["{REGION}"]
endpoint_url = "{url}"
networks = {{ {REGION} = {{ subnetwork = "runners" }} }}
service_account = "{ACCOUNT}"
prices = {{ {", ".join(prices)} }}

[[image]]
name = "runner"
[image.references.gce]
image = "{IMAGE}"
github_runner = "/opt/actions-runner"
gitlab_runner = "/usr/bin/gitlab-runner"
"""
