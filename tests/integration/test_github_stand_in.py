"""The stand-in for the actions runner, as a real process against the served sandbox."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from autoscaler.sandbox.github_model import JobRecord, WorldPolicy
from autoscaler.sandbox.github_world import GitHubWorld
from tests.integration.github_sandbox import REPO, Served, job, mint, run_of, runner_process, served, until


def record(here: Served, key: str = "build") -> JobRecord:
    return next(row for row in here.world.job_records() if row.key == key)


def hook(folder: Path, name: str, *lines: str) -> str:
    path = folder / f"{name}.sh"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


async def test_a_real_process_runs_one_job_and_is_gone(tmp_path: Path) -> None:
    async with served() as here:
        script = (
            "echo hello > proof",
            'echo "$GITHUB_RUN_ID $GITHUB_RUN_ATTEMPT $GITHUB_REPOSITORY $GITHUB_JOB $RUNNER_NAME" >> proof',
            "env > environment",
        )
        run_id = here.face.submit(run_of(job("build", *script)))
        runner_id, jit = await mint(here, "runner-7")
        async with runner_process(tmp_path, jit=jit) as runner:
            assert await runner.exit_code() == 0
            text = runner.text()
        work = runner.root / "_work" / "app" / "app"
        assert (work / "proof").read_text() == f"hello\n{run_id} 1 {REPO} build runner-7\n"
        assert "ACTIONS_RUNNER_INPUT" not in (work / "environment").read_text()
        assert jit not in text
        markers = ("√ Connected to GitHub", "Listening for Jobs", "Running job: build")
        assert all(marker in text for marker in markers)
        assert "Job build completed with result: Succeeded" in text
        assert record(here).conclusion == "success"
        assert record(here).runner_names == ("runner-7",)
        assert runner_id not in here.world.runners
        assert not (runner.root / ".credentials").exists()


async def test_run_sh_exits_0_for_a_failed_job_and_later_lines_do_not_run(tmp_path: Path) -> None:
    async with served() as here:
        run_id = here.face.submit(run_of(job("build", "echo before", "false", "touch after")))
        _, jit = await mint(here)
        async with runner_process(tmp_path, "--jitconfig", jit) as runner:
            assert await runner.exit_code() == 0
            assert "completed with result: Failed" in runner.text()
        assert record(here).conclusion == "failure"
        assert not (runner.root / "_work/app/app/after").exists()
        async with here.client.get(f"/repos/{REPO}/actions/jobs/{record(here).job_ids[0]}/logs") as response:
            assert "before" in await response.text()
        assert here.world.run(run_id).conclusion == "failure"


async def test_hooks_run_around_the_job_with_its_environment(tmp_path: Path) -> None:
    async with served() as here:
        run_id = here.face.submit(run_of(job("build", "false")))
        _, jit = await mint(here)
        trace = tmp_path / "trace"
        line = f'echo "NAME $GITHUB_RUN_ID $GITHUB_JOB $(basename "$GITHUB_EVENT_PATH")" >> {trace}'
        env = {
            "ACTIONS_RUNNER_HOOK_JOB_STARTED": hook(tmp_path, "started", line.replace("NAME", "started")),
            "ACTIONS_RUNNER_HOOK_JOB_COMPLETED": hook(tmp_path, "completed", line.replace("NAME", "completed")),
        }
        async with runner_process(tmp_path, jit=jit, env=env) as runner:
            assert await runner.exit_code() == 0
        expected = [f"started {run_id} build event.json", f"completed {run_id} build event.json"]
        assert trace.read_text().splitlines() == expected
        names = [step.name for step in here.world.job(record(here).job_ids[0]).steps]
        assert names == ["Set up job", "Set up runner", "Run false", "Complete runner", "Complete job"]


@pytest.mark.parametrize("variable", ["ACTIONS_RUNNER_HOOK_JOB_STARTED", "ACTIONS_RUNNER_HOOK_JOB_COMPLETED"])
async def test_a_hook_that_fails_fails_the_job(tmp_path: Path, variable: str) -> None:
    async with served() as here:
        here.face.submit(run_of(job("build", "touch ran")))
        _, jit = await mint(here)
        async with runner_process(tmp_path, jit=jit, env={variable: hook(tmp_path, "bad", "exit 3")}) as runner:
            assert await runner.exit_code() == 0
        assert record(here).conclusion == "failure"
        assert (runner.root / "_work/app/app/ran").exists() == (variable == "ACTIONS_RUNNER_HOOK_JOB_COMPLETED")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_trapped_signal_during_a_job_fails_it_within_seconds(tmp_path: Path, number: signal.Signals) -> None:
    async with served() as here:
        here.face.submit(run_of(job("build", "touch started", "sleep 300")))
        _, jit = await mint(here)
        env = {
            "RUNNER_MANUALLY_TRAP_SIG": "1",
            "ACTIONS_RUNNER_HOOK_JOB_COMPLETED": hook(tmp_path, "completed", f"touch {tmp_path}/hook-ran"),
        }
        async with runner_process(tmp_path, jit=jit, env=env) as runner:
            await until((runner.root / "_work/app/app/started").exists)
            began = time.monotonic()
            runner.send(number)
            assert await runner.exit_code() == 0
        assert time.monotonic() - began < 8
        assert record(here).conclusion == "failure"
        assert not (tmp_path / "hook-ran").exists()
        texts = here.world.job(record(here).job_ids[0]).annotations
        assert texts[0].startswith("The runner has received a shutdown signal.")
        assert texts[1] == "The operation was canceled."


async def test_an_idle_runner_that_is_interrupted_stays_registered_and_offline(tmp_path: Path) -> None:
    async with served() as here:
        runner_id, jit = await mint(here)
        async with runner_process(tmp_path, jit=jit, env={"RUNNER_MANUALLY_TRAP_SIG": "1"}) as runner:
            await until(lambda: here.world.runner(runner_id).online)
            await until(lambda: "Listening" in runner.text())
            runner.send(signal.SIGINT)
            assert await runner.exit_code() == 0
        assert not here.world.runner(runner_id).online


async def test_run_sh_without_the_trap_does_not_forward_a_signal(tmp_path: Path) -> None:
    async with served() as here:
        runner_id, jit = await mint(here)
        async with runner_process(tmp_path, jit=jit) as runner:
            await until(lambda: "Listening" in runner.text())
            runner.send(signal.SIGTERM)
            assert await runner.exit_code() == -signal.SIGTERM
            here.face.submit(run_of(job("build", "echo orphan served it")))
            await until(lambda: record(here).conclusion)
        assert record(here).conclusion == "success"
        assert runner_id not in here.world.runners


async def test_a_cancelled_run_stops_its_step_and_runs_the_completed_hook(tmp_path: Path) -> None:
    async with served() as here:
        run_id = here.face.submit(run_of(job("build", "touch started", "sleep 300")))
        _, jit = await mint(here)
        env = {"ACTIONS_RUNNER_HOOK_JOB_COMPLETED": hook(tmp_path, "completed", f"touch {tmp_path}/hook-ran")}
        async with runner_process(tmp_path, jit=jit, env=env) as runner:
            await until((runner.root / "_work/app/app/started").exists)
            async with here.client.post(f"/repos/{REPO}/actions/runs/{run_id}/cancel") as response:
                assert response.status == 202
            assert await runner.exit_code() == 0
            assert "completed with result: Canceled" in runner.text()
        assert record(here).conclusion == "cancelled"
        assert (tmp_path / "hook-ran").exists()


async def test_a_deleted_registration_ends_an_idle_runner(tmp_path: Path) -> None:
    async with served() as here:
        runner_id, jit = await mint(here)
        async with runner_process(tmp_path, jit=jit) as runner:
            await until(lambda: "Listening" in runner.text())
            async with here.client.delete(f"/orgs/octo-org/actions/runners/{runner_id}") as response:
                assert response.status == 204
            assert await runner.exit_code() == 0
            assert "The runner registration has been deleted from the server" in runner.text()


async def test_a_registration_deleted_before_the_start_makes_no_session(tmp_path: Path) -> None:
    async with served() as here:
        runner_id, jit = await mint(here)
        async with here.client.delete(f"/orgs/octo-org/actions/runners/{runner_id}") as response:
            assert response.status == 204
        async with runner_process(tmp_path, jit=jit) as runner:
            assert await runner.exit_code() == 0
            assert "Failed to create a session. The runner registration has been deleted" in runner.text()


async def test_a_killed_machine_looks_busy_until_its_lease_ends(tmp_path: Path) -> None:
    world = GitHubWorld([REPO], policy=WorldPolicy(lease_s=1.5))
    async with served(world, renew_s=0.3) as here:
        here.face.submit(run_of(job("build", "echo $$ > shell", "touch started", "exec sleep 300")))
        runner_id, jit = await mint(here)
        async with runner_process(tmp_path, jit=jit) as runner:
            await until((runner.root / "_work/app/app/started").exists)
            killed_group(runner.process.pid)
            with contextlib.suppress(ProcessLookupError):  # its job would go on, which no machine's end lets it
                os.kill(int((runner.root / "_work/app/app/shell").read_text()), signal.SIGKILL)
            async with here.client.delete(f"/orgs/octo-org/actions/runners/{runner_id}") as response:
                assert response.status == 422
            assert world.runner(runner_id).busy
            await until(lambda: record(here).conclusion)
        assert record(here).conclusion == "failure"
        assert "lost communication with the server" in world.job(record(here).job_ids[0]).annotations[0]


def killed_group(leader: int) -> None:
    """Ends run.sh and the listener at once; a machine that vanishes says nothing."""
    os.killpg(leader, signal.SIGKILL)


async def test_a_second_process_with_the_same_registration_meets_a_conflict(tmp_path: Path) -> None:
    async with served() as here:
        runner_id, jit = await mint(here)
        here.world.connect(runner_id, time.time())
        async with runner_process(tmp_path, jit=jit) as runner:
            await until(lambda: "A session for this runner already exists." in runner.text())


@pytest.mark.parametrize(("wanted", "code"), [("1", 7), ("0", 0)])
async def test_a_deprecated_version_is_exit_7_only_when_asked_for(tmp_path: Path, wanted: str, code: int) -> None:
    async with served(minimum_runner_version="99.0.0") as here:
        _, jit = await mint(here)
        env = {"ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE": wanted}
        async with runner_process(tmp_path, jit=jit, env=env) as runner:
            assert await runner.exit_code() == code
            assert "is deprecated" in runner.text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--jitconfig",), "A value is required for --jitconfig"),
        (("--jitconfig", "%%%"), "The JIT configuration is not valid"),
        (("--jitconfig", base64.b64encode(json.dumps({".runner": "e30="}).encode()).decode()), "not valid"),
        (("--url", "x"), "Unrecognized command-line input arguments"),
        ((), "Not configured."),
    ],
)
async def test_wrong_arguments_are_refused_by_name(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    async with runner_process(tmp_path, *arguments) as runner:
        assert await runner.exit_code() == 0
        assert text in runner.text()
        assert not (runner.root / ".credentials").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused as root")
async def test_root_is_refused(tmp_path: Path) -> None:
    async with runner_process(tmp_path, "--jitconfig", "x", env={"RUNNER_ALLOW_RUNASROOT": ""}) as runner:
        assert await runner.exit_code() == 1
        assert "Must not run interactively with sudo" in runner.text()


async def test_a_job_with_needs_is_served_by_a_second_runner(tmp_path: Path) -> None:
    async with served() as here:
        run_id = here.face.submit(run_of(job("build"), job("test", needs=("build",))))
        for name in ("first", "second"):
            folder = tmp_path / name
            folder.mkdir()
            _, jit = await mint(here, name)
            async with runner_process(folder, jit=jit) as runner:
                assert await runner.exit_code() == 0
        assert here.world.run(run_id).conclusion == "success"
        assert record(here, "test").runner_names == ("second",)
        await asyncio.wait_for(here.face.webhooks_settled(), 5)
