"""The agent on a cloud's machine: its evidence, its tags, what the metadata service announces, the user of jobs."""

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from providers.local_supervisor import descendants
from runners.bootstrap import build_agent
from tests.agent_daemon import AgentDaemon
from tests.metadata_services import Ec2Metadata, GceMetadataServer
from tests.polling import until

PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
"""As on a machine: one that every user can run, which a developer's own below their home is not."""

JOB = """\
#!/bin/bash
trap 'touch "$OUT/stopped"; exit 0' INT TERM
id -u > "$OUT/uid"; id -G > "$OUT/groups"; env | sort > "$OUT/env"; ls /proc/self/fd > "$OUT/fds"
bash -e "$ACTIONS_RUNNER_HOOK_JOB_STARTED"
while [ ! -e "$OUT/finish" ]; do sleep 0.02; done
"""
IDENTITY = "/latest/dynamic/instance-identity/rsa2048"
BATCH = "/latest/meta-data/tags/instance/autoscaler-batch"
ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
SCHEDULED = "/latest/meta-data/events/maintenance/scheduled"


@pytest.fixture
async def daemon() -> AsyncIterator[AgentDaemon]:
    server = AgentDaemon()
    await server.start()
    yield server
    await server.stop()
    assert server.violations == []


@pytest.fixture
async def ec2() -> AsyncIterator[Ec2Metadata]:
    service = Ec2Metadata()
    await service.start()
    service.values |= {IDENTITY: "signed\ntext", BATCH: "b-9"}
    yield service
    await service.stop()
    assert service.violations == []


@pytest.fixture
async def gce() -> AsyncIterator[GceMetadataServer]:
    service = GceMetadataServer()
    await service.start()
    service.values["attributes/autoscaler-batch"] = "b-9"
    yield service
    await service.stop()
    assert service.violations == []


@dataclass(slots=True, kw_only=True)
class Started:
    process: asyncio.subprocess.Process
    folder: Path
    out: Path

    @property
    def console(self) -> str:
        return (self.folder / "console").read_text()

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 15)


@pytest.fixture
def passable() -> Iterator[Path]:
    """A folder that other users may enter; pytest's own are closed to them."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


Starter = Callable[..., Any]


@pytest.fixture
async def start(daemon: AgentDaemon, passable: Path) -> AsyncIterator[Starter]:
    started: list[Started] = []

    async def start_agent(
        service: Ec2Metadata | GceMetadataServer, *, is_writable: bool = True, **image: str
    ) -> Started:
        out, program, folder = passable / "out", passable / "runner", passable / "agent"
        for made in (out, program, folder):
            made.mkdir()
        out.chmod(0o777)
        (program / "run.sh").write_text(JOB.replace("$OUT", str(out)))
        (program / "run.sh").chmod(0o755)
        if image.get("user") and is_writable and os.getuid() == 0 and image["user"] != "no-such-user":
            os.chown(program, pwd.getpwnam(image["user"]).pw_uid, -1)
        document = {
            **{"version": 1, "daemon_url": daemon.url, "provider": "cloud", "boot_timeout_s": 20, "max_lifetime_s": 60},
            **{"stop_grace_s": 4, "flush_s": 3, "image": {"github_runner": str(program), **image}},
        }
        (folder / "boot.json").write_text(json.dumps(document))
        (folder / "agent.pyz").write_bytes(build_agent().data)
        kind = "aws" if isinstance(service, Ec2Metadata) else "gce"
        arguments = ["--folder", str(folder), "--boot", str(folder / "boot.json"), "--evidence", kind]
        process = await asyncio.create_subprocess_exec(
            *(PYTHON, "-I", "-S", str(folder / "agent.pyz"), *arguments),
            env={"PATH": os.environ["PATH"], "SECRET_OF_THE_MACHINE": "x", **service.environ},
            stderr=(folder / "console").open("wb"),
        )
        started.append(Started(process=process, folder=folder, out=out))
        return started[-1]

    yield start_agent
    for agent in started:
        for pid in [*descendants(agent.process.pid), agent.process.pid] if agent.process.returncode is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await agent.process.wait()


def assignment() -> dict[str, Any]:
    return {"kind": "github", "runner_name": "x-1", "secret": "s", "parameters": {}, "max_job_runtime_s": 60.0}


def iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


async def test_on_ec2_the_hello_carries_the_signed_document_and_the_batch_of_the_tags(
    daemon: AgentDaemon, ec2: Ec2Metadata, start: Starter
) -> None:
    await start(ec2)
    await until(lambda: daemon.memory.claims)
    hello = daemon.memory.hellos[0]
    assert hello["evidence"] == {"rsa2048": "signed\ntext"}
    assert hello["batch"] == "b-9"
    assert hello["agent"]["metadata"] == "open"


async def test_tags_that_arrive_late_are_waited_for(daemon: AgentDaemon, ec2: Ec2Metadata, start: Starter) -> None:
    del ec2.values[BATCH]
    agent = await start(ec2)
    await until(lambda: "tags do not name its batch yet" in agent.console)
    assert daemon.memory.hellos == []
    ec2.values[BATCH] = "b-late"
    await until(lambda: daemon.memory.claims)
    assert daemon.memory.hellos[0]["batch"] == "b-late"


async def test_a_token_that_ec2_no_longer_knows_is_replaced_once(
    daemon: AgentDaemon, ec2: Ec2Metadata, start: Starter
) -> None:
    await start(ec2)
    await until(lambda: daemon.memory.claims)
    ec2.forget()
    ec2.values[REBALANCE] = json.dumps({"noticeTime": iso(time.time())})
    await until(lambda: "notice" in daemon.memory.kinds())
    assert ec2.refused == 1
    assert len(ec2.tokens) == 1


async def test_on_gce_the_token_is_bound_to_the_claim(
    daemon: AgentDaemon, gce: GceMetadataServer, start: Starter
) -> None:
    await start(gce)
    await until(lambda: daemon.memory.claims)
    hello = daemon.memory.hellos[0]
    assert gce.audiences == [f"{daemon.url}#{hello['claim']}"]
    assert hello["evidence"] == {"token": f"token for {daemon.url}#{hello['claim']}"}
    assert hello["batch"] == "b-9"


async def test_a_spot_interruption_of_ec2_lets_the_job_use_the_time(
    daemon: AgentDaemon, ec2: Ec2Metadata, start: Starter
) -> None:
    daemon.memory.assignment = assignment()
    agent = await start(ec2)
    await until(lambda: "job_started" in daemon.memory.kinds())
    reclaim_at = int(time.time()) + 5
    ec2.values[ACTION] = json.dumps({"action": "terminate", "time": iso(reclaim_at)})
    await until(lambda: "notice" in daemon.memory.kinds())
    assert not (agent.out / "stopped").exists()
    assert await agent.ended() == 0
    assert time.time() < reclaim_at
    assert daemon.memory.detail("notice") == {
        "reclaim_at": f"{reclaim_at:.3f}",
        "kind": "reclaim",
        "source": "instance-action",
    }
    assert daemon.memory.detail("ending") == {"cause": "reclaimed"}


async def test_a_reclaim_ends_a_machine_without_a_job_at_once(
    daemon: AgentDaemon, ec2: Ec2Metadata, start: Starter
) -> None:
    agent = await start(ec2)
    await until(lambda: daemon.memory.claims)
    ec2.values[ACTION] = json.dumps({"action": "stop", "time": iso(time.time() + 120)})
    assert await agent.ended() == 0
    assert daemon.memory.kinds() == ["notice", "ending"]


async def test_a_rebalance_recommendation_and_far_maintenance_are_told_once_and_end_nothing(
    daemon: AgentDaemon, ec2: Ec2Metadata, start: Starter
) -> None:
    agent = await start(ec2)
    await until(lambda: daemon.memory.claims)
    ec2.values[REBALANCE] = json.dumps({"noticeTime": "2026-10-27T08:22:00Z"})
    event = {"NotBefore": "21 Jan 2030 09:00:43 GMT", "Code": "instance-retirement", "State": "active"}
    ec2.values[SCHEDULED] = json.dumps([event, {**event, "State": "completed"}, {**event, "Code": "instance-reboot"}])
    await until(lambda: daemon.memory.kinds() == ["notice"] * 3)
    looked = len(daemon.memory.events), daemon.memory.heartbeats
    await until(lambda: daemon.memory.heartbeats > looked[1] + 15)
    assert len(daemon.memory.events) == looked[0]
    # They may become true between two questions of one look: then maintenance is told first.
    details = {event["detail"]["source"]: event["detail"] for event in daemon.memory.events.values()}
    assert {source: one["kind"] for source, one in details.items()} == {
        "rebalance": "rebalance",
        "instance-retirement": "maintenance",
        "instance-reboot": "maintenance",
    }
    assert details["instance-retirement"]["reclaim_at"] == "1895216443.000"
    assert agent.process.returncode is None


async def test_garbage_of_the_metadata_service_harms_nothing(
    daemon: AgentDaemon, ec2: Ec2Metadata, start: Starter
) -> None:
    ec2.values |= {ACTION: "<html>", REBALANCE: '{"noticeTime": 5}', SCHEDULED: '{"a": 1}'}
    agent = await start(ec2)
    await until(lambda: daemon.memory.claims)
    ec2.values[ACTION] = json.dumps({"action": "terminate", "time": iso(time.time() + 120)})
    assert await agent.ended() == 0
    assert daemon.memory.kinds() == ["notice", "ending"]


async def test_a_preemption_on_gce_is_heard_while_it_is_waited_for(
    daemon: AgentDaemon, gce: GceMetadataServer, start: Starter
) -> None:
    agent = await start(gce)
    await until(lambda: daemon.memory.claims and gce.waited >= 2)
    gce.values["attributes/autoscaler-notice-s"] = "120"
    before = time.time()
    await gce.change("preempted", "TRUE")
    assert await agent.ended() == 0
    notice = daemon.memory.detail("notice")
    assert (notice["kind"], notice["source"]) == ("reclaim", "preempted")
    assert float(notice["reclaim_at"]) == pytest.approx(before + 120, abs=3)
    assert daemon.memory.detail("ending") == {"cause": "reclaimed"}


async def test_migration_on_gce_is_told_and_ends_nothing(
    daemon: AgentDaemon, gce: GceMetadataServer, start: Starter
) -> None:
    agent = await start(gce)
    await until(lambda: daemon.memory.claims and gce.waited >= 2)
    await gce.change("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
    await until(lambda: "notice" in daemon.memory.kinds())
    assert daemon.memory.detail("notice")["kind"] == "maintenance"
    beats = daemon.memory.heartbeats
    await until(lambda: daemon.memory.heartbeats > beats + 3)
    assert agent.process.returncode is None


async def test_jobs_run_as_an_unprivileged_user_where_the_agent_is_root(
    daemon: AgentDaemon, ec2: Ec2Metadata, start: Starter
) -> None:
    daemon.memory.assignment = assignment()
    agent = await start(ec2, user="nobody")
    await until(lambda: "job_started" in daemon.memory.kinds())
    (agent.out / "finish").touch()
    assert await agent.ended() == 0
    environ = dict(line.partition("=")[::2] for line in (agent.out / "env").read_text().splitlines())
    assert "SECRET_OF_THE_MACHINE" not in environ
    assert "AWS_EC2_METADATA_SERVICE_ENDPOINT" not in environ
    assert (agent.out / "fds").read_text().split()[:3] == ["0", "1", "2"]
    assert len((agent.out / "fds").read_text().split()) == 4, "only the folder that was listed besides"
    about = daemon.memory.hellos[0]["agent"]
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        groups = os.getgrouplist("nobody", nobody.pw_gid)
        assert (agent.out / "uid").read_text() == f"{nobody.pw_uid}\n"
        assert sorted((agent.out / "groups").read_text().split()) == sorted(str(group) for group in groups)
        assert (environ["USER"], environ["HOME"]) == ("nobody", str(agent.folder / "home"))
        assert about == {"version": "1", "user": "nobody", "metadata": "open"}
    else:
        assert about["user"] == str(os.getuid())


async def test_a_user_that_the_image_names_but_lacks_is_an_error_and_never_root(
    daemon: AgentDaemon, ec2: Ec2Metadata, start: Starter
) -> None:
    daemon.memory.assignment = assignment()
    agent = await start(ec2, user="no-such-user")
    if os.getuid() == 0:
        assert await agent.ended() == 0
        assert daemon.memory.detail("runner_exited")["output"] == "there is no user no-such-user"
    else:
        await until(lambda: "job_started" in daemon.memory.kinds())


async def test_a_runner_that_its_user_cannot_write_beside_is_an_error_with_its_remedy(
    daemon: AgentDaemon, ec2: Ec2Metadata, start: Starter
) -> None:
    daemon.memory.assignment = assignment()
    agent = await start(ec2, is_writable=False, user="nobody")
    if os.getuid() == 0:
        assert await agent.ended() == 0
        assert "must belong to user nobody" in daemon.memory.detail("runner_exited")["output"]
    else:
        await until(lambda: "job_started" in daemon.memory.kinds())


def test_whether_jobs_reach_the_metadata_service_is_tried_as_their_user(passable: Path) -> None:
    def tried(metadata: str) -> str:
        call = f"choose_user({{'user': 'nobody'}}, folder={str(passable)!r}, metadata={metadata!r})"
        ask = f"from runners.agent.user import choose_user; print({call})"
        environ = {"PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run([PYTHON, "-c", ask], env=environ, capture_output=True, text=True, check=True).stdout

    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_server(("127.0.0.1", 0)) as other:
        assert "metadata='open'" in tried(f"127.0.0.1:{listening.getsockname()[1]}")
        closed_port = other.getsockname()[1]
    if os.getuid() == 0:
        assert "metadata='closed'" in tried(f"127.0.0.1:{closed_port}")
