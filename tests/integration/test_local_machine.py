"""Local machines as real process trees: ended as a whole, outliving the daemon, found again, kept apart."""

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from autoscaler.spi import (
    BatchToken,
    CloudInstance,
    InvalidRequest,
    MachineState,
    PoolName,
    ProviderId,
    ProviderName,
    Shape,
)
from providers.local_isolation import RUNGS, UIDS
from providers.local_machines import Machines, Plan
from providers.local_supervisor import start_ticks
from tests.agent_daemon import AgentDaemon
from tests.contract.provider_contract import CLAIM, find, launch
from tests.local_site import LocalSite, local_site, processes_with
from tests.polling import until

ENDED = {MachineState.TERMINATED}
ESCAPING = """\
#!/bin/bash
( setsid bash -c 'setsid sleep {mark} & exec setsid sleep {mark}' & )
bash -e "$ACTIONS_RUNNER_HOOK_JOB_STARTED"
trap '' INT TERM
sleep {mark}
"""
CURIOUS = """\
#!/bin/bash
exec > "$HOME/report"
id -u
cat {master_key} && echo "read the master key"
touch /usr/escaped && echo "wrote to the host"
touch "$0.beside" && echo "wrote beside itself"
touch "$(dirname "$0")/bin/shared" && echo "wrote to the shared image"
ls -d /proc/[0-9]*/ | wc -l
env
ls /root /home {state_dir} && echo "listed"
bash -e "$ACTIONS_RUNNER_HOOK_JOB_STARTED"
sleep 1000
"""


@pytest.fixture
async def daemon() -> AsyncIterator[AgentDaemon]:
    server = AgentDaemon()
    server.memory.assignment = {
        **{"kind": "github", "runner_name": "x-1", "secret": "s3cret", "parameters": {}, "max_job_runtime_s": 60.0}
    }
    await server.start()
    yield server
    await server.stop()
    assert server.violations == []


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that any user may read, unlike pytest's own."""
    with TemporaryDirectory(prefix="hooks-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def new_mark() -> str:
    """A sleep that no other process sleeps."""
    return str(random.randint(10**8, 10**9))


async def busy_machine(site: LocalSite, daemon: AgentDaemon) -> CloudInstance:
    (machine,) = await launch(site, "b-1", count=1)
    await until(lambda: "job_started" in daemon.memory.kinds())
    return machine


@pytest.mark.parametrize("rung", RUNGS)
async def test_the_whole_tree_ends_escaped_processes_included(tmp_path: Path, daemon: AgentDaemon, rung: str) -> None:
    mark = new_mark()
    async with local_site(tmp_path, isolation=rung, daemon_url=daemon.url) as site:
        site.write_runner(ESCAPING.format(mark=mark))
        machine = await busy_machine(site, daemon)
        await until(lambda: len(processes_with(mark)) == 3)
        await site.provider.terminate([machine.provider_id])
        await until(lambda: find(site.provider, machine.provider_id, ENDED))
        assert processes_with(mark) == []
        await until(lambda: not processes_with(machine.provider_id))  # the supervisor leaves last
        assert not (site.folder(machine.provider_id) / "machine").exists()


@pytest.mark.parametrize("rung", ["bwrap", "unshare"])
async def test_the_tree_does_not_outlive_its_supervisor(tmp_path: Path, daemon: AgentDaemon, rung: str) -> None:
    mark = new_mark()
    async with local_site(tmp_path, isolation=rung, daemon_url=daemon.url) as site:
        site.write_runner(ESCAPING.format(mark=mark))
        machine = await busy_machine(site, daemon)
        supervisor = json.loads((site.folder(machine.provider_id) / "supervisor.json").read_text())
        os.kill(supervisor["pid"], signal.SIGKILL)
        await until(lambda: not processes_with(mark))
        ended = await until(lambda: find(site.provider, machine.provider_id, ENDED))
        assert ended.end_detail == "supervisor lost"
        assert not (site.folder(machine.provider_id) / "machine").exists()


LAUNCHER = """\
import asyncio, pathlib, sys
from tests.contract.provider_contract import launch
from tests.local_site import LocalSite

async def main():
    site = LocalSite(pathlib.Path(sys.argv[1]), daemon_url=sys.argv[2])
    (machine,) = await launch(site, "b-1", count=1)
    print(machine.provider_id, file=sys.stderr, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_a_machine_outlives_the_daemon_that_launched_it(tmp_path: Path, daemon: AgentDaemon) -> None:
    first = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LAUNCHER, str(tmp_path / "a"), daemon.url), stderr=asyncio.subprocess.PIPE
    )
    assert first.stderr is not None
    provider_id = ProviderId((await first.stderr.readline()).decode().strip())
    await until(lambda: daemon.memory.claims)
    first.kill()
    await first.wait()
    async with local_site(tmp_path / "b", state_dir=str(tmp_path / "a" / "state")) as site:
        site.state_dir = tmp_path / "a" / "state"
        assert await find(site.provider, provider_id, {MachineState.RUNNING})
        proven = await site.provider.identify(site.evidence(provider_id, claim=CLAIM, at=site.now))
        assert proven.provider_id == provider_id
        beats = daemon.memory.heartbeats
        await until(lambda: daemon.memory.heartbeats > beats)
        await site.provider.terminate([provider_id])
        await until(lambda: find(site.provider, provider_id, ENDED))
        await until(lambda: not processes_with(provider_id))


async def test_a_machine_whose_agent_is_done_powers_off(tmp_path: Path, daemon: AgentDaemon) -> None:
    daemon.memory.is_unneeded = True
    async with local_site(tmp_path, daemon_url=daemon.url) as site:
        (machine,) = await launch(site, "b-1", count=1)
        ended = await until(lambda: find(site.provider, machine.provider_id, ENDED))
        assert ended.end_detail == "exit 0"
        assert daemon.memory.detail("ending") == {"cause": "not_needed"}
        assert daemon.memory.hellos[0]["evidence"]["instance_id"] == machine.provider_id


async def test_a_reclaim_is_announced_to_the_agent_and_enforced(tmp_path: Path, daemon: AgentDaemon) -> None:
    mark = new_mark()
    async with local_site(tmp_path, daemon_url=daemon.url, notice_s=1.5) as site:
        site.write_runner(ESCAPING.format(mark=mark))  # deaf to signals: only the reclaim ends it
        machine = await busy_machine(site, daemon)
        await site.provider.interrupt([machine.provider_id])
        await until(lambda: "notice" in daemon.memory.kinds())
        assert processes_with(mark)
        await until(lambda: find(site.provider, machine.provider_id, ENDED))
        assert processes_with(mark) == []


WORKING = """\
#!/bin/bash
trap 'exit 0' INT TERM
bash -e "$ACTIONS_RUNNER_HOOK_JOB_STARTED"
while true; do sleep 0.05; done
"""


@pytest.mark.parametrize("rung", RUNGS)
async def test_the_images_hook_runs_in_the_machine_that_is_taken(
    readable: Path, daemon: AgentDaemon, rung: str
) -> None:
    hook = readable / "save.sh"
    hook.write_text('#!/bin/sh\n[ "$(id -u)" != 0 ] && [ "$RUNNER_NAME" = x-1 ] && [ -w "$HOME" ]\n')
    hook.chmod(0o755)
    async with local_site(readable, isolation=rung, daemon_url=daemon.url, notice_s=2) as site:
        site.write_runner(WORKING)
        offerings = await site.provider.offerings(Shape())
        batch = site.batch("b-1", count=1, offerings=offerings[:1])
        document = json.loads(batch.user_data)
        document["image"]["hook_on_interruption"] = str(hook)
        launched = await site.provider.launch(replace(batch, user_data=json.dumps(document)))
        await until(lambda: "job_started" in daemon.memory.kinds())
        await site.provider.interrupt([launched.instances[0].provider_id])
        await until(lambda: "hook_ended" in daemon.memory.kinds())
        assert daemon.memory.detail("hook_ended")["outcome"] == "ok"
        await until(lambda: "ending" in daemon.memory.kinds())


async def test_a_hook_that_is_not_on_the_host_is_refused_before_any_machine(tmp_path: Path) -> None:
    async with local_site(tmp_path) as site:
        batch = site.batch("b-1", count=1, offerings=await site.provider.offerings(Shape()))
        document = json.loads(batch.user_data)
        document["image"]["hook_on_interruption"] = str(tmp_path / "nothing")
        with pytest.raises(InvalidRequest, match=r"image\.hook_on_interruption"):
            await site.provider.launch(replace(batch, user_data=json.dumps(document)))
        assert not await site.provider.list_instances()


async def test_a_job_is_kept_apart_from_the_host(
    tmp_path: Path, daemon: AgentDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_TOKEN", "daemon-secret")
    async with local_site(tmp_path, isolation="bwrap", daemon_url=daemon.url) as site:
        key = site.state_dir / "ours" / "master.key"
        site.write_runner(CURIOUS.format(master_key=key, state_dir=site.state_dir))
        machine = await busy_machine(site, daemon)
        report = (site.folder(machine.provider_id) / "machine" / "home" / "report").read_text()
        assert "wrote beside itself" in report
        for forbidden in ("read the master key", "wrote to the host", "wrote to the shared image", "daemon-secret"):
            assert forbidden not in report
        assert "listed" not in report
        assert int(report.splitlines()[0]) != 0
        assert int(next(line for line in report.splitlines()[1:] if line.isdigit())) < 12


async def test_a_pid_that_was_given_to_another_process_is_never_killed(tmp_path: Path) -> None:
    innocent = await asyncio.create_subprocess_exec("sleep", "1000")
    async with local_site(tmp_path) as site:
        machine = commit_by_hand(site, "b-1")
        written = {"pid": innocent.pid, "start_ticks": start_ticks(innocent.pid) - 1}
        (site.folder(machine) / "supervisor.json").write_text(json.dumps(written))
        await site.provider.terminate([machine])
        ended = await until(lambda: find(site.provider, machine, ENDED))
        assert ended.end_detail == "supervisor lost"
        assert innocent.returncode is None
    innocent.kill()
    await innocent.wait()


async def test_a_repeated_token_starts_what_a_crash_left_unstarted(tmp_path: Path) -> None:
    async with local_site(tmp_path) as site:
        machine = commit_by_hand(site, "b-1")
        assert await find(site.provider, machine, {MachineState.PENDING})
        offerings = await site.provider.offerings(Shape())
        result = await site.provider.launch(site.batch("b-1", count=1, offerings=offerings[:1]))
        assert [instance.provider_id for instance in result.instances] == [machine]
        await until(lambda: find(site.provider, machine, {MachineState.RUNNING}))


def commit_by_hand(site: LocalSite, token: str) -> ProviderId:
    """A machine as a daemon leaves it that dies between its intent and the start."""
    offering = site.provider._options.offerings[0]
    provider_id = ProviderId("local-00000000000000aa")
    plan = Plan(
        provider_id=provider_id,
        token=BatchToken(token),
        pool=PoolName("linux"),
        capacity_pool=offering.capacity_pool,
        price_usd_hour=0.0,
        spec={
            **{"boot_delay_s": 0, "max_lifetime_s": timedelta(minutes=5).total_seconds(), "prepare": []},
            **{"argv": ["sleep", "1000"], "cgroups": [], "env": {"PATH": "/usr/bin:/bin"}},
        },
        uid=UIDS[0],
    )
    Machines(site.state_dir / "ours", ProviderName("local")).commit(plan, {})
    return provider_id
