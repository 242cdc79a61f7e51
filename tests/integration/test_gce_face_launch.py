"""Google's own clients launch machines in the sandbox's Compute Engine, one by one and in bulk."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.api_core import exceptions as api_errors
from google.cloud import compute_v1 as gce

from autoscaler.spi import CapacityType
from tests.gce_site import (
    LARGE,
    PROJECT,
    REGION,
    SLOTS,
    SMALL,
    ZONES,
    ask,
    capacity_pool,
)
from tests.integration.gce_cloud import ZONE, Cloud, bulk_body, lawful_cloud
from tests.polling import until


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with lawful_cloud(tmp_path) as made:
        yield made


async def test_an_inserted_machine_runs_and_shows_what_was_asked(cloud: Cloud) -> None:
    operation = await cloud.insert("one")

    assert not operation.error.errors
    await until(lambda: cloud.is_status("one", "RUNNING"))
    found = await ask(cloud.instances.get, project=PROJECT, zone=ZONE, instance="one")
    assert (found.labels, found.scheduling.provisioning_model) == ({"autoscaler-deployment": "tests"}, "SPOT")
    assert found.network_interfaces[0].network_i_p == cloud.site.account.machines[str(found.id)].address
    assert found.scheduling.max_run_duration.seconds == 3600
    assert len(gce.Instance.to_json(found)) > 2500


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
