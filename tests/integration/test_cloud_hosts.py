"""Machines of the sandbox's clouds as processes: they boot their user data and end with their power."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from autoscaler.sandbox.cloud_account import CloudAccount, CloudTimes
from autoscaler.sandbox.cloud_capacity import Capacity, Supply
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_hosts import CloudHosts, InstalledProgram
from autoscaler.sandbox.cloud_identity import AwsNotary
from autoscaler.sandbox.cloud_machines import BROKEN, BY_ITSELF, Machine, Wish
from autoscaler.sandbox.imds_face import ImdsSites
from autoscaler.spi import CapacityPool, CapacityType, MachineState, ProviderName
from tests.local_site import processes_with
from tests.polling import until

POOL = CapacityPool(
    provider=ProviderName("aws"), region="r", zone="ra", machine_type="m", capacity_type=CapacityType.SPOT
)
ASK = """#!/bin/sh
python3 -I -S - <<'END'
import os, urllib.request
base = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
put = urllib.request.Request(base + "/latest/api/token", headers=ttl, method="PUT")
token = urllib.request.urlopen(put).read().decode()
get = urllib.request.Request(base + "/latest/meta-data/instance-id", headers={"X-aws-ec2-metadata-token": token})
print("I am", urllib.request.urlopen(get).read().decode(), flush=True)
END
"""


class Site:
    """A cloud whose machines really run."""

    def __init__(self, folder: Path) -> None:
        supply = Supply(pool=POOL, cpus=4, memory_gib=16)
        times = CloudTimes(boot=(0.05, 0.1), start=(0.05, 0.1), end=(0.05, 0.1), stop=(0.05, 0.1))
        self.account = CloudAccount(Capacity.of([supply]), times=times)
        self.driver = CloudDriver(self.account)
        program = folder / "program"
        program.mkdir(parents=True)
        (program / "program").write_text("#!/bin/sh\necho the program runs\n")
        (program / "program").chmod(0o755)
        folder.chmod(0o755)
        self.hosts = CloudHosts(
            self.driver,
            folder / "clouds",
            name="aws",
            metadata=ImdsSites(self.driver, AwsNotary(("r",))),
            programs=(InstalledProgram(key="tool", shown_as="/opt/program", source=str(program / "program")),),
        )

    def launch(self, script: str) -> Machine:
        machine = self.account.launch(POOL, Wish(image="ami-1", user_data=script), self.driver.now)
        assert isinstance(machine, Machine)
        self.driver.settle()
        return machine

    def reclaim(self, machine: Machine, notice_s: float) -> None:
        self.account.reclaim(machine.id, self.driver.now, notice_s=notice_s)
        self.driver.settle()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    one = Site(tmp_path / "site")
    yield one
    await one.hosts.aclose()
    one.driver.close()
    assert not processes_with(str(tmp_path))


async def test_a_machine_runs_its_user_data_and_finds_its_own_metadata(site: Site) -> None:
    one, other = site.launch(f"{ASK}sleep 60"), site.launch(f"{ASK}sleep 60")
    for machine in (one, other):
        await until(lambda machine=machine: f"I am {machine.id}" in site.hosts.log_of(machine.id))


async def test_a_program_of_the_image_is_where_the_machine_finds_it(site: Site) -> None:
    machine = site.launch('#!/bin/sh\n"/opt/program"\nsleep 60\n')
    await until(lambda: "the program runs" in site.hosts.log_of(machine.id))


async def test_a_machine_whose_script_is_done_has_powered_itself_off(site: Site) -> None:
    machine = site.launch("#!/bin/sh\ntrue\n")
    await until(lambda: machine.state is MachineState.TERMINATED)
    assert machine.reason == BY_ITSELF


@pytest.mark.parametrize("notice_s", [0.0, 0.3])
async def test_what_runs_on_a_machine_that_is_taken_is_gone(site: Site, notice_s: float) -> None:
    mark = "sleep 86399"
    machine = site.launch(f"#!/bin/sh\n{mark}\n")
    await until(lambda: processes_with("86399"))
    site.reclaim(machine, notice_s)
    await until(lambda: machine.state is MachineState.TERMINATED)
    await until(lambda: not processes_with("86399"))


async def test_a_stopped_machine_boots_its_user_data_anew(site: Site) -> None:
    machine = site.launch("#!/bin/sh\necho up\nsleep 60\n")
    await until(lambda: "up" in site.hosts.log_of(machine.id))
    site.account.stop(machine.id, site.driver.now)
    site.driver.settle()
    await until(lambda: machine.state is MachineState.STOPPED and not site.hosts.log_of(machine.id))
    assert site.account.start(machine.id, site.driver.now) is None
    site.driver.settle()
    await until(lambda: "up" in site.hosts.log_of(machine.id))


async def test_closing_ends_machines_that_are_just_booting(site: Site) -> None:
    for _ in range(3):
        site.launch("#!/bin/sh\nsleep 60\n")
    await asyncio.sleep(0)


async def test_a_machine_that_cannot_be_started_here_fails_as_clouds_machines_do(site: Site, tmp_path: Path) -> None:
    program = tmp_path / "site" / "program" / "program"
    program.unlink()
    program.parent.rmdir()
    root = tmp_path / "site" / "clouds" / "aws" / "hosts"
    root.rename(root.with_name("away"))
    machine = site.launch("#!/bin/sh\nsleep 60\n")
    await until(lambda: machine.state is MachineState.TERMINATED)
    assert machine.reason == BROKEN
    root.with_name("away").rename(root)


async def test_machines_that_a_killed_sandbox_left_are_ended_by_the_next(tmp_path: Path) -> None:
    killed = Site(tmp_path / "site")
    killed.launch("#!/bin/sh\nsleep 86398\n")
    await until(lambda: processes_with("86398"))
    following = CloudHosts(
        killed.driver,
        tmp_path / "site" / "clouds",
        name="aws",
        metadata=ImdsSites(killed.driver, AwsNotary(("r",))),
        programs=(),
    )
    await until(lambda: not processes_with("86398"))
    for hosts in (killed.hosts, following):
        await hosts.aclose()
    killed.driver.close()
