"""A machine of the sandbox's clouds from its user data to its end: boot script, agent, evidence, notice.

The script and the agent are those of real clouds; the metadata services sign for real, and the adapters' own checks say
what the evidence proves.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

from autoscaler.clock import SystemClock
from autoscaler.sandbox.cloud_account import CloudAccount, CloudTimes
from autoscaler.sandbox.cloud_capacity import Capacity, Supply
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_hosts import CloudHosts
from autoscaler.sandbox.cloud_identity import AwsNotary, GoogleNotary
from autoscaler.sandbox.cloud_machines import BY_ITSELF, Machine, Wish
from autoscaler.sandbox.gce_metadata_face import GceFacts, GceMetadataFace
from autoscaler.sandbox.imds_face import Imds
from autoscaler.sandbox.metadata_site import MetadataSite
from autoscaler.spi import CapacityPool, CapacityType, Evidence, MachineState, ProviderName
from providers.aws_identity import AwsIdentity, parse_anchors
from providers.boot_script import boot_script
from runners.bootstrap import boot_document
from tests.agent_daemon import AgentDaemon
from tests.local_site import processes_with
from tests.polling import until

ACCOUNT = "123456789012"
POOL = CapacityPool(
    provider=ProviderName("cloud"),
    region="us-east-1",
    zone="us-east-1a",
    machine_type="m7i.large",
    capacity_type=CapacityType.SPOT,
)


class Cloud:
    """One cloud whose machines run, with the metadata service of either kind."""

    def __init__(self, folder: Path, kind: Literal["aws", "gce"]) -> None:
        self.kind = kind
        times = CloudTimes(boot=(0.05, 0.1), start=(0.05, 0.1), end=(0.05, 0.1), stop=(0.05, 0.1))
        self.account = CloudAccount(Capacity.of([Supply(pool=POOL, cpus=2, memory_gib=8)]), times=times)
        self.driver = CloudDriver(self.account)
        self.aws, self.google = AwsNotary((POOL.region,)), GoogleNotary()
        folder.mkdir()
        folder.chmod(0o755)
        self.anchors = parse_anchors(
            {region: path.read_bytes() for region, path in self.aws.write_anchors(folder).items()}
        )
        self.hosts = CloudHosts(self.driver, folder / "clouds", name=kind, metadata=self._metadata, programs=())

    async def _metadata(self, machine: Machine) -> tuple[MetadataSite, Mapping[str, str]]:
        if self.kind == "aws":
            site = await MetadataSite(Imds(machine, self.aws, account=ACCOUNT).app()).start()
            return site, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{site.authority}"}
        facts = GceFacts(
            **{"number": "42", "name": "m-1", "zone": POOL.zone, "project": "p", "machine_type": POOL.machine_type},
            project_number=7,
            created_at=machine.started_at,
            attributes=machine.tags,
            service_account="runners@p.test",
        )
        site = await MetadataSite(GceMetadataFace(machine, lambda: facts, self.google).app()).start()
        return site, {"GCE_METADATA_HOST": site.authority}

    def launch(self, daemon: AgentDaemon) -> Machine:
        document = boot_document(
            daemon_url=daemon.url,
            provider=ProviderName("cloud"),
            boot_timeout=timedelta(seconds=20),
            max_lifetime=timedelta(minutes=5),
            image={},
            stop_grace=timedelta(seconds=1),
        )
        script = boot_script(document, evidence=self.kind)
        wish = Wish(image="ami-1", user_data=script, tags={"autoscaler-batch": "b-1", "autoscaler-notice-s": "9"})
        machine = self.account.launch(POOL, wish, self.driver.now)
        assert isinstance(machine, Machine)
        self.driver.settle()
        return machine


@pytest.fixture
async def daemon() -> AsyncIterator[AgentDaemon]:
    server = AgentDaemon()
    await server.start()
    yield server
    await server.stop()
    assert server.violations == []


@pytest.fixture(params=["aws", "gce"])
async def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cloud]:
    one = Cloud(tmp_path / "site", request.param)
    yield one
    await one.hosts.aclose()
    one.driver.close()
    assert not processes_with(str(tmp_path))


async def test_a_machine_boots_proves_itself_hears_its_reclaim_and_ends(cloud: Cloud, daemon: AgentDaemon) -> None:
    machine = cloud.launch(daemon)
    await until(lambda: daemon.memory.claims)
    hello = daemon.memory.hellos[0]
    assert hello["batch"] == "b-1"
    if cloud.kind == "aws":
        identity = AwsIdentity(
            account=ACCOUNT,
            regions=(POOL.region,),
            anchors=cloud.anchors,
            trusts_peer_address=False,
            clock=SystemClock(),
        ).identify(
            Evidence(
                claim=hello["claim"],
                document=hello["evidence"],
                received_at=datetime.now(UTC),
                peer_address="127.0.0.1",
            )
        )
        assert (identity.provider_id, identity.zone) == (machine.id, POOL.zone)
        assert (identity.machine_type, identity.address) == (POOL.machine_type, machine.address)
    else:
        assert hello["evidence"]["token"].count(".") == 2
    cloud.account.reclaim(machine.id, cloud.driver.now, notice_s=9.0)
    cloud.driver.settle()
    await until(lambda: machine.state is MachineState.TERMINATED)
    assert machine.reason == BY_ITSELF, "it had no job, so it did not wait to be taken"
    notices = [event["detail"] for event in daemon.memory.events.values() if event["kind"] == "notice"]
    reclaim_at = next(float(notice["reclaim_at"]) for notice in notices if notice["kind"] == "reclaim")
    assert reclaim_at == pytest.approx(machine.noticed_at + 9.0 if machine.noticed_at else 0.0, abs=3)


async def test_each_start_of_a_stopped_machine_is_a_new_claim(cloud: Cloud, daemon: AgentDaemon) -> None:
    machine = cloud.launch(daemon)
    await until(lambda: len(daemon.memory.claims) == 1)
    cloud.account.stop(machine.id, cloud.driver.now)
    cloud.driver.settle()
    await until(lambda: machine.state is MachineState.STOPPED)
    launched_at = machine.launched_at
    await until(lambda: int(cloud.driver.now) > int(launched_at))  # documents tell the time of a start in seconds
    assert cloud.account.start(machine.id, cloud.driver.now) is None
    cloud.driver.settle()
    await until(lambda: len(daemon.memory.claims) == 2)
    first, *_, last = daemon.memory.hellos
    assert first["claim"] != last["claim"]
    if cloud.kind == "aws":
        assert first["evidence"] != last["evidence"], "signed anew, with the time of the start"
