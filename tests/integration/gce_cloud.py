"""Google's own clients for a served Compute Engine of the sandbox, and the bodies that its tests send."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.api_core import exceptions as api_errors
from google.cloud import compute_v1 as gce

from autoscaler.sandbox.cloud_faults import CloudFaults
from tests.gce_law import LawfulExchanges
from tests.gce_site import (
    ACCOUNT,
    IMAGE,
    PROJECT,
    REGION,
    SMALL,
    SUBNETWORK,
    ZONES,
    GceSite,
    ask,
    serving,
)
from tests.polling import until

ZONE = ZONES[0]
DONE = gce.Operation.Status.DONE


@dataclass(slots=True, kw_only=True)
class Cloud:
    """A site with Google's clients, whose every exchange is held against the discovery document."""

    site: GceSite
    law: LawfulExchanges
    instances: gce.InstancesClient
    regional: gce.RegionInstancesClient
    zone_operations: gce.ZoneOperationsClient
    region_operations: gce.RegionOperationsClient

    @property
    def faults(self) -> CloudFaults:
        return self.site.faults

    async def insert(self, name: str, *, zone: str = ZONE, request_id: str = "", **changes: Any) -> gce.Operation:
        """The finished operation."""
        request = gce.InsertInstanceRequest(
            project=PROJECT, zone=zone, instance_resource=machine(name, zone, **changes), request_id=request_id or None
        )
        started = await ask(self.instances.insert_unary, request=request)
        return await self.finished(started, zone=zone)

    async def bulk(self, body: gce.BulkInsertInstanceResource, *, request_id: str = "") -> gce.Operation:
        request = gce.BulkInsertRegionInstanceRequest(
            project=PROJECT,
            region=REGION,
            bulk_insert_instance_resource_resource=body,
            request_id=request_id or None,
        )
        started = await ask(self.regional.bulk_insert_unary, request=request)
        return await self.finished(started)

    async def finished(self, operation: gce.Operation, *, zone: str = "") -> gce.Operation:
        async def look() -> gce.Operation | None:
            if zone:
                found = await ask(self.zone_operations.get, project=PROJECT, zone=zone, operation=operation.name)
            else:
                found = await ask(self.region_operations.get, project=PROJECT, region=REGION, operation=operation.name)
            return found if found.status == DONE else None

        done: gce.Operation = await until(look)
        return done

    async def status(self, name: str, zone: str = ZONE) -> str:
        """ "GONE" for an instance that is not there."""
        try:
            found = await ask(self.instances.get, project=PROJECT, zone=zone, instance=name)
        except api_errors.NotFound:
            return "GONE"
        return str(found.status)

    async def is_status(self, name: str, wanted: str) -> bool:
        return await self.status(name) == wanted

    async def listed(self, **parameters: Any) -> list[gce.Instance]:
        request = gce.AggregatedListInstancesRequest(project=PROJECT, **parameters)

        def read() -> list[gce.Instance]:
            pages = self.instances.aggregated_list(request=request, retry=None, timeout=10.0)
            return [one for _, scope in pages for one in scope.instances]

        found: list[gce.Instance] = await ask_without_options(read)
        return found


async def ask_without_options(function: Any) -> Any:
    return await ask(lambda **_: function())


def machine(name: str, zone: str, *, machine_type: str = SMALL, image: str = IMAGE, **scheduling: Any) -> gce.Instance:
    return gce.Instance(
        name=name,
        machine_type=f"zones/{zone}/machineTypes/{machine_type}",
        **properties(image=image, **scheduling),
    )


def properties(
    *, image: str = IMAGE, subnetwork: str = SUBNETWORK, labels: dict[str, str] | None = None, **scheduling: Any
) -> dict[str, Any]:
    """Of a spot machine, as our adapter asks for it."""
    schedule: dict[str, Any] = {
        "provisioning_model": "SPOT",
        "instance_termination_action": "DELETE",
        "automatic_restart": False,
        "on_host_maintenance": "TERMINATE",
        "max_run_duration": gce.Duration(seconds=3600),
        **scheduling,
    }
    disk = gce.AttachedDiskInitializeParams(source_image=image, disk_type="pd-balanced", disk_size_gb=30)
    return {
        "disks": [gce.AttachedDisk(boot=True, auto_delete=True, initialize_params=disk)],
        "network_interfaces": [gce.NetworkInterface(subnetwork=subnetwork)],
        "labels": labels or {"autoscaler-deployment": "tests"},
        "metadata": gce.Metadata(items=[gce.Items(key="startup-script", value="#!/bin/sh\n")]),
        "service_accounts": [
            gce.ServiceAccount(email=ACCOUNT, scopes=["https://www.googleapis.com/auth/userinfo.email"])
        ],
        "scheduling": gce.Scheduling(**schedule),
        "tags": gce.Tags(items=["ci"]),
    }


def bulk_body(
    count: int, *, least: int = 1, ranks: tuple[str, ...] = (SMALL,), denied: tuple[str, ...] = (), **changes: Any
) -> gce.BulkInsertInstanceResource:
    body = gce.BulkInsertInstanceResource(
        count=count,
        min_count=least,
        per_instance_properties={
            f"m-{number}": gce.BulkInsertInstanceResourcePerInstanceProperties() for number in range(count)
        },
        instance_properties=gce.InstanceProperties(**properties(**changes)),
        location_policy=gce.LocationPolicy(
            target_shape="ANY",
            locations={f"zones/{zone}": gce.LocationPolicyLocation(preference="DENY") for zone in denied},
        ),
    )
    body.instance_flexibility_policy = gce.InstanceFlexibilityPolicy(
        instance_selections={
            f"rank-{rank}": gce.InstanceFlexibilityPolicyInstanceSelection(machine_types=[machine_type], rank=rank)
            for rank, machine_type in enumerate(ranks)
        }
    )
    return body


@asynccontextmanager
async def lawful_cloud(folder: Path) -> AsyncIterator[Cloud]:
    """Fails at its end where an exchange broke the discovery document."""
    law = LawfulExchanges()
    async with serving(folder, middlewares=[law.middleware]) as served:
        yield Cloud(
            site=served,
            law=law,
            instances=served.client(gce.InstancesClient),
            regional=served.client(gce.RegionInstancesClient),
            zone_operations=served.client(gce.ZoneOperationsClient),
            region_operations=served.client(gce.RegionOperationsClient),
        )
    assert law.violations == []
