"""Stoppable machines of AWS: persistent spot requests never make a machine that nobody asked for.

Real boto3 talks to the sandbox's EC2, whose requests launch again, as AWS's do, until they are cancelled.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from autoscaler.sandbox.cloud_machines import Machine
from autoscaler.spi import CapacityType, CloudInstance, InvalidRequest, MachineState, Shape
from tests.contract.aws_driver import AwsDriver, aws_driver
from tests.polling import until


@pytest.fixture
async def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsDriver]:
    async with aws_driver(tmp_path, monkeypatch) as one:
        yield one


async def stoppable_spot(driver: AwsDriver, count: int = 1) -> tuple[CloudInstance, ...]:
    offered = [
        one
        for one in await driver.provider.offerings(Shape(types=("m7i.large",)))
        if one.capacity_pool.capacity_type is CapacityType.SPOT
    ]
    result = await driver.provider.launch(driver.batch("b-1", count=count, offerings=offered, is_stoppable=True))
    return result.instances


def living(driver: AwsDriver) -> list[Machine]:
    gone = (MachineState.TERMINATING, MachineState.TERMINATED)
    return [one for one in driver.served.site.cloud.machines.values() if one.state not in gone]


async def shown(driver: AwsDriver, machine: CloudInstance, state: MachineState) -> CloudInstance:
    async def look() -> CloudInstance | None:
        listed = {one.provider_id: one for one in await driver.provider.list_instances()}
        found = listed.get(machine.provider_id)
        return found if found is not None and found.state is state else None

    found: CloudInstance = await until(look)
    return found


async def test_a_machine_that_ends_before_any_listing_is_not_launched_again(driver: AwsDriver) -> None:
    (machine,) = await stoppable_spot(driver)
    await driver.provider.terminate([machine.provider_id])
    await shown(driver, machine, MachineState.TERMINATED)
    assert living(driver) == []


async def test_the_request_of_a_machine_that_powered_itself_off_is_cancelled(driver: AwsDriver) -> None:
    """What EC2 launched meanwhile is listed as ours and ended; after that nothing comes any more."""
    site = driver.served.site
    (machine,) = await stoppable_spot(driver)
    await shown(driver, machine, MachineState.RUNNING)
    site.cloud.power_off_by_itself(machine.provider_id, site.driver.now)
    site.settle()
    await shown(driver, machine, MachineState.TERMINATED)
    for request in site.ec2.launcher.spot_requests.requests.values():
        assert request.cancelled_at is not None
    again = [one for one in await driver.provider.list_instances() if one.provider_id != machine.provider_id]
    await driver.provider.terminate([one.provider_id for one in again])
    for one in again:
        await shown(driver, one, MachineState.TERMINATED)
    assert living(driver) == []


async def test_a_request_whose_machine_went_while_no_daemon_ran_is_cancelled(driver: AwsDriver) -> None:
    """Hours later not even the ended machine is listed, and there is no room yet for another."""
    site = driver.served.site
    (machine,) = await stoppable_spot(driver)
    await shown(driver, machine, MachineState.RUNNING)
    site.cloud.capacity.exhausted.add(machine.capacity_pool)
    site.cloud.power_off_by_itself(machine.provider_id, site.driver.now)
    await until(lambda: living(driver) == [])
    requests = site.ec2.launcher.spot_requests.requests
    (request,) = requests.values()
    request.created_at -= 3600.0
    site.cloud.machines.clear()
    restarted = driver.restarted()
    assert await restarted.list_instances() == []
    assert request.cancelled_at is not None


async def test_requests_of_living_and_of_new_machines_are_kept(driver: AwsDriver) -> None:
    site = driver.served.site
    old, new = await stoppable_spot(driver, count=2)
    for request in site.ec2.launcher.spot_requests.requests.values():
        request.created_at -= 3600.0 if request.machine.id == old.provider_id else 0.0
    site.cloud.machines[new.provider_id].shown_at += 3600.0
    listed = await driver.restarted().list_instances()
    assert [one.provider_id for one in listed] == [old.provider_id]
    assert {one.cancelled_at for one in site.ec2.launcher.spot_requests.requests.values()} == {None}


async def test_a_request_that_is_forgotten_does_not_keep_the_others_from_being_cancelled(driver: AwsDriver) -> None:
    requests = driver.served.site.ec2.launcher.spot_requests
    machines = await stoppable_spot(driver, count=3)
    forgotten = driver.served.site.cloud.machines[machines[1].provider_id].spot_request_id
    del requests.requests[forgotten], requests.persistent[forgotten]
    await driver.provider.terminate([one.provider_id for one in machines])
    for machine in machines:
        await shown(driver, machine, MachineState.TERMINATED)
    driver.served.site.settle()
    assert living(driver) == []


async def test_a_machine_that_said_hello_before_any_listing_is_not_launched_again(driver: AwsDriver) -> None:
    (machine,) = await stoppable_spot(driver)
    await shown(driver, machine, MachineState.RUNNING)
    restarted = driver.restarted()
    await restarted.identify(driver.evidence(machine.provider_id, claim="0" * 64, at=driver.now))
    await restarted.terminate([machine.provider_id])
    (request,) = driver.served.site.ec2.launcher.spot_requests.requests.values()
    assert request.cancelled_at is not None


async def test_stopped_spot_machines_start_again(driver: AwsDriver) -> None:
    (machine,) = await stoppable_spot(driver)
    await shown(driver, machine, MachineState.RUNNING)
    await driver.provider.stop([machine.provider_id])
    await shown(driver, machine, MachineState.STOPPED)
    assert await driver.provider.start([machine.provider_id]) == {}
    await shown(driver, machine, MachineState.RUNNING)
    assert [one.id for one in living(driver)] == [machine.provider_id]


async def test_one_that_cannot_be_started_does_not_keep_the_others_down(driver: AwsDriver) -> None:
    dead, stopped = await stoppable_spot(driver, count=2)
    await shown(driver, dead, MachineState.RUNNING)
    await shown(driver, stopped, MachineState.RUNNING)
    await driver.provider.stop([stopped.provider_id])
    await driver.provider.terminate([dead.provider_id])
    await shown(driver, stopped, MachineState.STOPPED)
    await shown(driver, dead, MachineState.TERMINATED)
    failed = await driver.provider.start([dead.provider_id, stopped.provider_id])
    assert {id_: type(error) for id_, error in failed.items()} == {dead.provider_id: InvalidRequest}
    await shown(driver, stopped, MachineState.RUNNING)
