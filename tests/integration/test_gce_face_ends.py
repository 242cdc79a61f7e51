"""How machines of the sandbox's Compute Engine end: deleted, stopped, preempted, off by themselves, out of time."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.api_core import exceptions as api_errors
from google.cloud import compute_v1 as gce

from tests.gce_site import (
    PROJECT,
    ask,
    capacity_pool,
)
from tests.integration.gce_cloud import DONE, ZONE, Cloud, lawful_cloud, machine
from tests.polling import until


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with lawful_cloud(tmp_path) as made:
        yield made


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
    await until(lambda: cloud.is_status("one", "RUNNING"))
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

    await until(lambda: cloud.is_status("one", "RUNNING"))
    after = await ask(cloud.instances.get, project=PROJECT, zone=ZONE, instance="one")
    assert after.id == before.id
    assert after.last_start_timestamp > before.last_start_timestamp


@pytest.mark.parametrize(("action", "left"), [("DELETE", "GONE"), ("STOP", "TERMINATED")])
async def test_a_preempted_machine_leaves_an_operation_behind(cloud: Cloud, action: str, left: str) -> None:
    await cloud.insert("one", instance_termination_action=action)
    await until(lambda: cloud.is_status("one", "RUNNING"))
    number = (await ask(cloud.instances.get, project=PROJECT, zone=ZONE, instance="one")).id

    await ask(cloud.instances.simulate_maintenance_event_unary, project=PROJECT, zone=ZONE, instance="one")

    await until(lambda: cloud.is_status("one", left))
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

    cloud.site.clock.ahead_s = record.ends_at - cloud.site.driver.now

    await until(lambda: cloud.is_status("one", "GONE"))


async def test_a_machine_that_powers_itself_off_stays_until_it_is_deleted(cloud: Cloud) -> None:
    await cloud.insert("one")
    await until(lambda: cloud.is_status("one", "RUNNING"))
    (number,) = cloud.site.account.machines

    cloud.site.account.power_off_by_itself(number, cloud.site.driver.now)
    cloud.site.driver.settle()

    await until(lambda: cloud.is_status("one", "TERMINATED"))
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
