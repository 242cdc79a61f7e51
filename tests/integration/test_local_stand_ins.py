"""A local machine runs a real job of the sandbox's forges: agent, real command line, stand-in runner, shell step."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from autoscaler.sandbox.gitlab_model import JobStatus
from autoscaler.spi import MachineState, Shape
from tests.agent_daemon import AgentDaemon
from tests.contract.provider_contract import find
from tests.integration import github_sandbox, gitlab_sandbox
from tests.local_site import LocalSite, local_site
from tests.polling import until

IMAGE = {"github_runner": str(github_sandbox.IMAGE), "gitlab_runner": str(gitlab_sandbox.RUNNER_PROGRAM)}
LIFE = ["assignment_received", "runner_started", "job_started", "job_completed", "runner_exited", "ending"]


@pytest.fixture
async def daemon() -> AsyncIterator[AgentDaemon]:
    server = AgentDaemon()
    await server.start()
    yield server
    await server.stop()
    assert server.violations == []


async def serve(site: LocalSite, daemon: AgentDaemon, kind: str, secret: str, parameters: Mapping[str, str]) -> None:
    """One machine with this registration, from launch to its end."""
    daemon.memory.assignment = {
        **{"kind": kind, "runner_name": "m-1", "secret": secret, "parameters": dict(parameters)},
        "max_job_runtime_s": 60.0,
    }
    offerings = await site.provider.offerings(Shape())
    result = await site.provider.launch(site.batch("b-1", count=1, offerings=offerings[:1], image=IMAGE))
    (machine,) = result.instances
    ended: Any = await until(lambda: find(site.provider, machine.provider_id, {MachineState.TERMINATED}), timeout_s=30)
    assert ended.end_detail == "exit 0"


@pytest.mark.parametrize("rung", ["bwrap", "process"])
async def test_a_github_job_runs_on_a_local_machine(tmp_path: Path, daemon: AgentDaemon, rung: str) -> None:
    async with github_sandbox.served() as served, local_site(tmp_path, isolation=rung, daemon_url=daemon.url) as site:
        served.face.submit(github_sandbox.run_of(github_sandbox.job("build", "echo hello > out", "cat out")))
        _, secret = await github_sandbox.mint(served)
        await serve(site, daemon, "github", secret, {})
        assert daemon.memory.kinds() == LIFE
        assert daemon.memory.detail("runner_exited") == {"exit_code": "0", "ran_job": "true"}
        assert [job.conclusion for job in served.world.jobs.values()] == ["success"]


@pytest.mark.parametrize("rung", ["bwrap", "process"])
async def test_a_gitlab_job_runs_on_a_local_machine(tmp_path: Path, daemon: AgentDaemon, rung: str) -> None:
    async with gitlab_sandbox.serving() as face, local_site(tmp_path, isolation=rung, daemon_url=daemon.url) as site:
        face.submit(gitlab_sandbox.pipeline(("echo hello > out", "cat out")))
        runner = gitlab_sandbox.add_runner(face)
        await serve(site, daemon, "gitlab", runner.token, {"url": face.world.base_url})
        assert [kind for kind in daemon.memory.kinds() if kind != "job_completed"] == [*LIFE[:3], *LIFE[4:]]
        assert daemon.memory.detail("ending") == {"cause": "job_done"}
        assert gitlab_sandbox.only_job(face).status is JobStatus.SUCCESS
