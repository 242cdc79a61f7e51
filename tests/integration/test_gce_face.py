"""Google's own clients against the sandbox's Compute Engine: launches, listings, ends, and what the API refuses."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions as api_errors
from google.auth.exceptions import RefreshError
from google.cloud import compute_v1 as gce

from autoscaler.sandbox.cloud_faults import CloudFaults
from autoscaler.spi import CapacityType
from tests.gce_site import (
    ACCOUNT,
    FAMILY,
    IMAGE,
    LARGE,
    PROJECT,
    REGION,
    SLOTS,
    SMALL,
    SUBNETWORK,
    ZONES,
    GceSite,
    ask,
    capacity_pool,
    serving,
)
from tests.integration.gce_law import LawfulExchanges
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


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    law = LawfulExchanges()
    async with serving(tmp_path, middlewares=[law.middleware]) as served:
        yield Cloud(
            site=served,
            law=law,
            instances=served.client(gce.InstancesClient),
            regional=served.client(gce.RegionInstancesClient),
            zone_operations=served.client(gce.ZoneOperationsClient),
            region_operations=served.client(gce.RegionOperationsClient),
        )
    assert law.violations == []


# ---------------------------------------------------------------------- launches


async def test_an_inserted_machine_runs_and_shows_what_was_asked(cloud: Cloud) -> None:
    operation = await cloud.insert("one")

    assert not operation.error.errors
    await until(lambda: is_status(cloud, "one", "RUNNING"))
    found = await ask(cloud.instances.get, project=PROJECT, zone=ZONE, instance="one")
    assert (found.labels, found.scheduling.provisioning_model) == ({"autoscaler-deployment": "tests"}, "SPOT")
    assert found.network_interfaces[0].network_i_p == cloud.site.account.machines[str(found.id)].address
    assert found.scheduling.max_run_duration.seconds == 3600
    assert len(gce.Instance.to_json(found)) > 2500


async def is_status(cloud: Cloud, name: str, *wanted: str) -> bool:
    return await cloud.status(name) in wanted


async def test_a_stockout_comes_in_the_operation_and_leaves_no_instance(cloud: Cloud) -> None:
    cloud.site.account.capacity.exhausted.add(capacity_pool(ZONE))

    operation = await cloud.insert("one")

    (error,) = operation.error.errors
    assert error.code == "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"
    (detail,) = error.error_details
    assert detail.error_info.reason == "stockout"
    assert (detail.error_info.metadatas["zone"], detail.error_info.metadatas["vmType"]) == (ZONE, SMALL)
    assert operation.http_error_status_code == 503
    assert await cloud.status("one") == "GONE"


async def test_a_quota_is_told_in_the_operation_or_at_once(cloud: Cloud) -> None:
    cloud.site.account.capacity.quotas[REGION, CapacityType.SPOT] = 2

    assert not (await cloud.insert("one")).error.errors
    operation = await cloud.insert("two")
    cloud.site.face.behaviour.quota_at_once = True
    with pytest.raises(api_errors.Forbidden) as refused:
        await cloud.insert("three")

    (error,) = operation.error.errors
    assert error.code == "QUOTA_EXCEEDED"
    assert error.error_details[0].quota_info.metric_name == "compute.googleapis.com/preemptible_cpus"
    assert refused.value.errors[0]["reason"] == "quotaExceeded"


async def test_a_repeated_request_id_makes_nothing_twice(cloud: Cloud) -> None:
    request_id = str(uuid.uuid4())

    first = await cloud.insert("one", request_id=request_id)
    again = await cloud.insert("one", request_id=request_id)

    assert again.name == first.name
    assert again.client_operation_id == request_id
    with pytest.raises(api_errors.Conflict) as refused:
        await cloud.insert("one")
    assert refused.value.errors[0]["reason"] == "alreadyExists"
    assert len(cloud.site.account.machines) == 1


async def test_a_bulk_insert_spreads_over_zones_and_types_by_rank(cloud: Cloud) -> None:
    operation = await cloud.bulk(bulk_body(4 * SLOTS, ranks=(SMALL, LARGE), denied=(ZONES[2],)))

    assert not operation.error.errors
    found = await cloud.listed()
    places = [(one.zone.rpartition("/")[2], one.machine_type.rpartition("/")[2]) for one in found]
    assert sorted({*places}) == sorted((zone, kind) for zone in ZONES[:2] for kind in (SMALL, LARGE))
    assert {name: places.count(name) for name in places} == dict.fromkeys(places, SLOTS)
    told = operation.instances_bulk_insert_operation_metadata.per_location_status
    assert {zone: one.created_vm_count for zone, one in told.items()} == {f"zones/{z}": 2 * SLOTS for z in ZONES[:2]}


async def test_a_bulk_insert_makes_what_it_can_down_to_its_minimum(cloud: Cloud) -> None:
    operation = await cloud.bulk(bulk_body(SLOTS + 2, least=1, denied=ZONES[1:3]))

    assert not operation.error.errors
    assert len(await cloud.listed()) == SLOTS


async def test_a_bulk_insert_below_its_minimum_gives_back_what_it_made(cloud: Cloud) -> None:
    operation = await cloud.bulk(bulk_body(SLOTS + 2, least=SLOTS + 1, denied=ZONES[1:3]))

    codes = [error.code for error in operation.error.errors]
    assert codes == ["ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "VM_MIN_COUNT_NOT_REACHED"]
    assert await cloud.listed() == []
    await until(lambda: cloud.site.account.capacity.used(capacity_pool(ZONE)) == 0)


async def test_bulk_names_may_come_from_a_pattern(cloud: Cloud) -> None:
    body = bulk_body(2)
    body.per_instance_properties.clear()
    body.name_pattern = "ci-###"

    await cloud.bulk(body)

    assert sorted(one.name for one in await cloud.listed()) == ["ci-001", "ci-002"]


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"image": f"projects/{PROJECT}/global/images/gone"}, "notFound", "images/gone"),
        ({"machine_type": "x9-huge"}, "invalid", "does not exist in zone"),
        ({"subnetwork": SUBNETWORK + "x"}, "invalid", "subnetwork resource cannot be found"),
        ({"labels": {"Bad": "x"}}, "invalid", "Label keys"),
        ({"max_run_duration": gce.Duration(seconds=5)}, "invalid", "30 seconds"),
        ({"automatic_restart": True}, "invalid", "Spot VMs"),
        ({"preemption_notice_duration": gce.Duration(seconds=60)}, "invalid", "preemptionNoticeDuration"),
        ({"host_error_timeout_seconds": 90}, "badRequest", "Cannot find field"),
    ],
)
async def test_a_bad_machine_is_refused_with_its_reason(
    cloud: Cloud, changes: dict[str, Any], reason: str, says: str
) -> None:
    with pytest.raises(api_errors.ClientError) as refused:
        await cloud.insert("one", **changes)

    assert refused.value.errors[0]["reason"] == reason
    assert says in refused.value.message
    assert await cloud.listed() == []


async def test_the_notice_before_preemption_can_be_unknown(cloud: Cloud) -> None:
    notice = gce.Duration(seconds=120)
    await cloud.insert("one", preemption_notice_duration=notice)
    cloud.site.face.behaviour.knows_preemption_notice = False

    with pytest.raises(api_errors.BadRequest, match="preemptionNoticeDuration"):
        await cloud.insert("two", preemption_notice_duration=notice)

    assert [one.scheduling.preemption_notice_duration.seconds for one in await cloud.listed()] == [120]


async def test_calls_beyond_the_minutes_quota_are_refused(cloud: Cloud) -> None:
    cloud.site.face.limits.reads_per_minute = 2

    async def read_often() -> None:
        for _ in range(5):  # a new minute may begin in between
            await cloud.status("one")

    with pytest.raises(api_errors.Forbidden) as refused:
        await read_often()

    assert refused.value.errors[0]["reason"] == "rateLimitExceeded"


async def test_a_token_may_do_only_what_it_is_allowed(cloud: Cloud) -> None:
    cloud.site.face.access.grant("known", allowed=["compute.instances.list"])
    clients = {token: cloud.site.client(gce.InstancesClient, token=token) for token in ("known", "strange")}

    with pytest.raises(api_errors.Forbidden, match=r"compute\.instances\.get"):
        await ask(clients["known"].get, project=PROJECT, zone=ZONE, instance="one")
    with pytest.raises(RefreshError):  # a 401: the client tries to renew its token
        await ask(clients["strange"].get, project=PROJECT, zone=ZONE, instance="one")

    (call,) = cloud.site.face.calls
    path = f"projects/{PROJECT}/zones/{ZONE}/instances/one"
    assert (call.method, call.permission, call.resource) == ("instances.get", "compute.instances.get", path)


async def test_a_launch_needs_each_permission_that_it_draws_on(cloud: Cloud) -> None:
    await cloud.insert("one")

    assert {call.permission for call in cloud.site.face.calls if call.method == "instances.insert"} == {
        *(
            f"compute.instances.{verb}"
            for verb in ("create", "setLabels", "setMetadata", "setServiceAccount", "setTags")
        ),
        *("compute.disks.create", "compute.images.useReadOnly", "compute.subnetworks.use"),
        "iam.serviceAccounts.actAs",
    }


async def test_a_lost_answer_has_taken_effect(cloud: Cloud) -> None:
    cloud.faults.lost_answer = 1.0

    with pytest.raises(Exception, match="Connection"):
        await cloud.insert("one")

    cloud.faults.lost_answer = 0.0
    assert [one.name for one in await cloud.listed()] == ["one"]


async def test_throttled_and_failing_calls_take_no_effect(cloud: Cloud) -> None:
    cloud.faults.throttle = 1.0
    with pytest.raises((api_errors.Forbidden, api_errors.TooManyRequests)) as refused:
        await cloud.insert("one")
    cloud.faults.throttle, cloud.faults.internal_error = 0.0, 1.0
    with pytest.raises(api_errors.ServiceUnavailable):
        await cloud.insert("one")
    cloud.faults.internal_error = 0.0

    assert refused.value.errors[0]["reason"] == "rateLimitExceeded"
    assert await cloud.listed() == []


# ---------------------------------------------------------------------- listings


async def test_a_listing_goes_over_pages_and_keeps_to_its_filter(cloud: Cloud) -> None:
    for number in range(3):
        await cloud.insert(f"ours-{number}", zone=ZONES[number])
    await cloud.insert("theirs", labels={"autoscaler-deployment": "other"})

    found = await cloud.listed(filter='labels.autoscaler-deployment = "tests"', max_results=2)
    other = await cloud.listed(filter='(labels.autoscaler-deployment = "other") AND (status != "TERMINATED")')

    assert sorted(one.name for one in found) == ["ours-0", "ours-1", "ours-2"]
    assert [one.name for one in other] == ["theirs"]


async def test_a_listing_may_fail_on_a_page_or_miss_a_zone(cloud: Cloud) -> None:
    for number in range(2):
        await cloud.insert(f"m-{number}", zone=ZONES[number])
    behaviour = cloud.site.face.behaviour
    behaviour.failing_page = 2
    with pytest.raises(api_errors.ServiceUnavailable):
        await cloud.listed(max_results=1)
    behaviour.failing_page, behaviour.unreachable = None, {ZONES[0]}
    with pytest.raises(api_errors.ServiceUnavailable):
        await cloud.listed()

    behaviour.fails_when_unreachable = False

    partial = await cloud.listed()

    assert [one.name for one in partial] == ["m-1"]


async def test_the_catalogue_tells_zones_types_images_and_quotas(cloud: Cloud) -> None:
    served = cloud.site
    served.account.capacity.quotas[REGION, CapacityType.ON_DEMAND] = 24
    await cloud.insert("one", provisioning_model="STANDARD", on_host_maintenance="MIGRATE")

    zones = await ask(served.client(gce.ZonesClient).list, project=PROJECT)
    types = await ask(served.client(gce.MachineTypesClient).aggregated_list, project=PROJECT)
    image = await ask(served.client(gce.ImagesClient).get_from_family, project=PROJECT, family="runners")
    region = await ask(served.client(gce.RegionsClient).get, project=PROJECT, region=REGION)
    subnetwork = await ask(
        served.client(gce.SubnetworksClient).get, project=PROJECT, region=REGION, subnetwork="runners"
    )
    project = await ask(served.client(gce.ProjectsClient).get, project=PROJECT)

    assert [zone.name for zone in zones] == sorted(ZONES)
    named = {one.name: one.guest_cpus for _, scope in types for one in scope.machine_types}
    assert named == {SMALL: 2, LARGE: 4}
    assert (image.name, image.family, image.disk_size_gb) == ("runners-1", "runners", 20)
    assert FAMILY.endswith(image.family)
    quotas = {quota.metric: (quota.limit, quota.usage) for quota in region.quotas}
    assert quotas["CPUS"] == (24.0, 2.0)
    assert subnetwork.ip_cidr_range == "10.128.0.0/20"
    assert project.name == PROJECT


# ---------------------------------------------------------------------- ends


async def test_a_deleted_machine_is_gone_and_its_operation_says_when(cloud: Cloud) -> None:
    await cloud.insert("one")

    started = await ask(cloud.instances.delete_unary, project=PROJECT, zone=ZONE, instance="one")
    await cloud.finished(started, zone=ZONE)

    assert await cloud.status("one") == "GONE"
    with pytest.raises(api_errors.NotFound) as refused:
        await ask(cloud.instances.delete_unary, project=PROJECT, zone=ZONE, instance="one")
    assert refused.value.errors[0]["reason"] == "notFound"


async def test_a_stopped_machine_keeps_its_number_and_starts_again(cloud: Cloud) -> None:
    await cloud.insert("one", instance_termination_action="STOP")
    await until(lambda: is_status(cloud, "one", "RUNNING"))
    before = await ask(cloud.instances.get, project=PROJECT, zone=ZONE, instance="one")

    await cloud.finished(await ask(cloud.instances.stop_unary, project=PROJECT, zone=ZONE, instance="one"), zone=ZONE)
    assert await cloud.status("one") == "TERMINATED"
    cloud.site.account.capacity.exhausted.add(capacity_pool(ZONE))
    failed = await cloud.finished(
        await ask(cloud.instances.start_unary, project=PROJECT, zone=ZONE, instance="one"), zone=ZONE
    )
    assert failed.error.errors[0].code == "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"
    assert await cloud.status("one") == "TERMINATED"
    cloud.site.account.capacity.exhausted.clear()
    await ask(cloud.instances.start_unary, project=PROJECT, zone=ZONE, instance="one")

    await until(lambda: is_status(cloud, "one", "RUNNING"))
    after = await ask(cloud.instances.get, project=PROJECT, zone=ZONE, instance="one")
    assert after.id == before.id
    assert after.last_start_timestamp > before.last_start_timestamp


@pytest.mark.parametrize(("action", "left"), [("DELETE", "GONE"), ("STOP", "TERMINATED")])
async def test_a_preempted_machine_leaves_an_operation_behind(cloud: Cloud, action: str, left: str) -> None:
    await cloud.insert("one", instance_termination_action=action)
    await until(lambda: is_status(cloud, "one", "RUNNING"))
    number = (await ask(cloud.instances.get, project=PROJECT, zone=ZONE, instance="one")).id

    await ask(cloud.instances.simulate_maintenance_event_unary, project=PROJECT, zone=ZONE, instance="one")

    await until(lambda: is_status(cloud, "one", left))
    told = await until(lambda: preemptions(cloud))
    assert [(one.target_id, one.target_link.rpartition("/")[2], one.user) for one in told] == [
        (number, "one", "system@google.com")
    ]


async def preemptions(cloud: Cloud) -> list[gce.Operation]:
    client = cloud.site.client(gce.GlobalOperationsClient)
    request = gce.AggregatedListGlobalOperationsRequest(
        project=PROJECT,
        filter='(operationType = "compute.instances.preempted") OR (operationType = "compute.instances.hostError")',
    )
    pages = await ask(client.aggregated_list, request=request)
    return [one for _, scope in pages for one in scope.operations]


async def test_the_end_of_its_run_time_ends_a_machine(cloud: Cloud) -> None:
    await cloud.insert("one", max_run_duration=gce.Duration(seconds=30))
    (record,) = cloud.site.face.records
    assert record.ends_at is not None
    driver = cloud.site.driver
    offset_s = record.ends_at - driver.now
    clock = driver._clock
    driver._clock = lambda: clock() + offset_s

    await until(lambda: is_status(cloud, "one", "GONE"))


async def test_a_machine_that_powers_itself_off_stays_until_it_is_deleted(cloud: Cloud) -> None:
    await cloud.insert("one")
    await until(lambda: is_status(cloud, "one", "RUNNING"))
    (number,) = cloud.site.account.machines

    cloud.site.account.power_off_by_itself(number, cloud.site.driver.now)
    cloud.site.driver.settle()

    await until(lambda: is_status(cloud, "one", "TERMINATED"))
    listed = await ask(cloud.zone_operations.list, project=PROJECT, zone=ZONE)
    assert [one.operation_type for one in listed if one.user == "system@google.com"] == [
        "compute.instances.guestTerminate"
    ]


async def test_an_operation_can_be_waited_for(cloud: Cloud) -> None:
    cloud.site.face.behaviour.operation_s = (0.3, 0.3)
    request = gce.InsertInstanceRequest(project=PROJECT, zone=ZONE, instance_resource=machine("one", ZONE))
    started = await ask(cloud.instances.insert_unary, request=request)

    finished = await ask(cloud.zone_operations.wait, project=PROJECT, zone=ZONE, operation=started.name)

    assert started.status != DONE
    assert finished.status == DONE
