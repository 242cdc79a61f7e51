"""The gitlab-runner stand-in as a real process against the sandbox's GitLab: jobs, signals, cancels, bad flags."""

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.gitlab_access import GitLabLimits
from autoscaler.sandbox.gitlab_model import JobStatus
from autoscaler.sandbox.gitlab_payloads import FAILURE_REASONS
from autoscaler.sandbox.gitlab_world import GitLabWorld
from tests.integration.gitlab_sandbox import (
    RUNNER_PROGRAM,
    add_runner,
    only_job,
    pipeline,
    running,
    serving,
    until,
)

ONE_JOB = ("--max-builds", "1", "--wait-timeout", "20")
FAST = GitLabLimits(trace_interval_s=1)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_job_runs_in_a_real_shell_and_its_log_arrives_whole(tmp_path: Path) -> None:
    async with serving() as face:
        face.submit(pipeline(("echo job $CI_JOB_ID of $CI_PROJECT_PATH > out", "cat out; pwd", "echo $CI_JOB_TOKEN")))
        runner = add_runner(face)
        async with running(face.world.base_url, runner.token, tmp_path, *ONE_JOB) as process:
            assert await asyncio.wait_for(process.wait(), 20) == 0
        job = only_job(face)
        log = bytes(job.trace).decode()
        assert (job.status, job.exit_code) == (JobStatus.SUCCESS, 0)
        assert f"job {job.id} of acme/shop\n{tmp_path}" in log
        assert "[MASKED]" in log
        assert job.token not in log
        assert log.endswith("Job succeeded\n")
        assert face.world.outcomes()[0].served_by == ("m-1",)


async def test_a_failed_job_is_reported_and_the_exit_code_is_still_zero(tmp_path: Path) -> None:
    async with serving() as face:
        face.submit(pipeline(("echo before", "exit 3", "echo never")))
        async with running(face.world.base_url, add_runner(face).token, tmp_path, *ONE_JOB) as process:
            assert await asyncio.wait_for(process.wait(), 20) == 0
        job = only_job(face)
        assert (job.status, job.failure_reason, job.exit_code) == (JobStatus.FAILED, "script_failure", 3)
        assert b"\nnever" not in job.trace


async def test_pre_and_post_build_scripts_surround_the_job(tmp_path: Path) -> None:
    async with serving() as face:
        face.submit(pipeline(("echo main >> $HOOKS",)))
        hooks = tmp_path / "hooks"
        env = {
            "HOOKS": str(hooks),
            "RUNNER_PRE_BUILD_SCRIPT": "echo pre $CI_JOB_ID >> $HOOKS",
            "RUNNER_POST_BUILD_SCRIPT": "echo post >> $HOOKS",
        }
        async with running(face.world.base_url, add_runner(face).token, tmp_path, *ONE_JOB, **env) as process:
            assert await asyncio.wait_for(process.wait(), 20) == 0
        assert hooks.read_text() == f"pre {only_job(face).id}\nmain\npost\n"


async def test_max_builds_jobs_are_run_by_one_process(tmp_path: Path) -> None:
    async with serving() as face:
        face.submit(pipeline(("true",), ("true",), ("true",)))
        async with running(face.world.base_url, add_runner(face).token, tmp_path, "--max-builds", "2") as process:
            assert await asyncio.wait_for(process.wait(), 20) == 0
        assert [outcome.served_count for outcome in face.world.outcomes()] == [1, 1, 0]


@pytest.mark.parametrize(
    ("known", "reported"),
    [(FAILURE_REASONS, "runner_interrupted"), (("script_failure", "runner_system_failure"), "unknown_failure")],
    ids=["since_19_1", "before_19_1"],
)
async def test_sigterm_ends_the_script_and_reports_the_interruption(
    tmp_path: Path, known: tuple[str, ...], reported: str
) -> None:
    async with serving(world=GitLabWorld(failure_reasons=known)) as face:
        pid_file = tmp_path / "pid"
        face.submit(pipeline((f"echo $$ > {pid_file}; sleep 600",)))
        async with running(face.world.base_url, add_runner(face).token, tmp_path, *ONE_JOB) as process:
            await until(lambda: pid_file.exists() and pid_file.read_text().strip().isdigit())
            sent_at = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 20) == 0
            assert time.monotonic() - sent_at < 8
        job = only_job(face)
        assert (job.status, job.failure_reason) == (JobStatus.FAILED, reported)
        assert not alive(int(pid_file.read_text()))


async def test_a_second_sigterm_exits_at_once_and_reports_nothing(tmp_path: Path) -> None:
    async with serving() as face:
        pid_file = tmp_path / "pid"
        face.submit(pipeline((f"trap '' TERM; echo $$ > {pid_file}; while :; do sleep 0.1; done",)))
        async with running(face.world.base_url, add_runner(face).token, tmp_path, *ONE_JOB) as process:
            await until(lambda: pid_file.exists() and pid_file.read_text().strip().isdigit())
            assert process.stderr is not None
            process.send_signal(signal.SIGTERM)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(process.wait(), 1)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 5) == 1
            os.killpg(int(pid_file.read_text()), signal.SIGKILL)
        assert only_job(face).status is JobStatus.RUNNING


async def test_sigquit_lets_the_running_job_end_and_takes_no_other(tmp_path: Path) -> None:
    async with serving() as face:
        started, go = tmp_path / "started", tmp_path / "go"
        script = f"touch {started}; while [ ! -e {go} ]; do sleep 0.05; done"
        face.submit(pipeline((script,), ("true",)))
        async with running(face.world.base_url, add_runner(face).token, tmp_path) as process:
            await until(started.exists)
            process.send_signal(signal.SIGQUIT)
            go.touch()
            assert await asyncio.wait_for(process.wait(), 10) == 0
        assert [out.status for out in face.world.outcomes()] == [JobStatus.SUCCESS, JobStatus.PENDING]


@pytest.mark.parametrize("signal_", [signal.SIGQUIT, signal.SIGTERM])
async def test_an_idle_runner_ends_on_a_signal(tmp_path: Path, signal_: signal.Signals) -> None:
    async with serving() as face:
        runner = add_runner(face)
        async with running(face.world.base_url, runner.token, tmp_path) as process:
            await until(lambda: runner.contacted_at is not None)
            process.send_signal(signal_)
            assert await asyncio.wait_for(process.wait(), 5) == 0


async def test_a_paused_runner_takes_nothing_until_its_wait_ends(tmp_path: Path) -> None:
    async with serving() as face:
        runner = add_runner(face)
        face.world.pause_runner(runner.id)
        face.submit(pipeline(("true",)))
        args = ("--max-builds", "1", "--wait-timeout", "1")
        async with running(face.world.base_url, runner.token, tmp_path, *args) as process:
            assert await asyncio.wait_for(process.wait(), 15) == 0
        assert runner.contacted_at is not None
        assert only_job(face).status is JobStatus.PENDING


async def test_a_revoked_token_does_not_end_the_runner(tmp_path: Path) -> None:
    async with serving() as face, running(face.world.base_url, "glrt-revoked", tmp_path, *ONE_JOB) as process:
        assert process.stderr is not None
        async with asyncio.timeout(10):
            lines = [await process.stderr.readline() for _ in range(2)]
        assert b"not healthy (status 403)" in lines[-1]
        assert b"glrt-revoked" not in b"".join(lines)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 1)


async def test_a_cancel_while_running_stops_the_script(tmp_path: Path) -> None:
    async with serving(limits=FAST) as face:
        started = tmp_path / "started"
        face.submit(pipeline((f"touch {started}; while :; do echo tick; sleep 0.1; done",)))
        async with running(face.world.base_url, add_runner(face).token, tmp_path, *ONE_JOB) as process:
            await until(started.exists)
            face.world.cancel_job(only_job(face).id, time.time())
            assert only_job(face).status is JobStatus.CANCELING
            assert await asyncio.wait_for(process.wait(), 20) == 0
        assert only_job(face).status is JobStatus.CANCELED


async def test_a_job_canceled_by_force_is_dropped_without_a_report(tmp_path: Path) -> None:
    async with serving(limits=FAST) as face:
        pid_file = tmp_path / "pid"
        face.submit(pipeline((f"echo $$ > {pid_file}; while :; do echo tick; sleep 0.1; done",)))
        async with running(face.world.base_url, add_runner(face).token, tmp_path, *ONE_JOB) as process:
            await until(lambda: pid_file.exists() and pid_file.read_text().strip().isdigit())
            for force in (False, True):
                face.world.cancel_job(only_job(face).id, time.time(), force=force)
            finished_at = only_job(face).finished_at
            assert await asyncio.wait_for(process.wait(), 20) == 0
        assert (only_job(face).status, only_job(face).finished_at) == (JobStatus.CANCELED, finished_at)
        assert not alive(int(pid_file.read_text()))


async def test_the_runner_lives_with_gateway_errors_and_late_acceptance(tmp_path: Path) -> None:
    world = GitLabWorld(trace_archive_s=0.5)
    async with serving(world=world, limits=FAST, faults=Faults(forge_error=0.3, seed=5)) as face:
        face.submit(pipeline(("for i in 1 2 3; do echo line $i; done",)))
        async with running(face.world.base_url, add_runner(face).token, tmp_path, *ONE_JOB) as process:
            assert await asyncio.wait_for(process.wait(), 40) == 0
        assert only_job(face).status is JobStatus.SUCCESS
        assert b"line 3\n" in only_job(face).trace


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["run-single", "--nonsense", "1"], "flag provided but not defined: -nonsense"),
        (["run-single", "-u", "http://127.0.0.1:9", "-t", "glrt-x"], "Missing Executor"),
        (["run-single", "--executor", "shell", "-t", "glrt-x"], "Missing URL"),
        (["run-single", "--executor", "docker", "-u", "http://127.0.0.1:9", "-t", "glrt-x"], "'docker' is not known"),
        (["run-single", "--max-builds", "many"], "invalid value 'many'"),
        (["run-single", "--url"], "flag needs an argument: -url"),
        (["register"], "Command register not found"),
        ([], "not found"),
    ],
)
def test_a_wrong_command_line_is_fatal(args: list[str], problem: str) -> None:
    done = subprocess.run([RUNNER_PROGRAM, *args], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 1
    assert problem in done.stderr


async def test_verify_tells_a_valid_token_from_a_revoked_one(tmp_path: Path) -> None:
    async with serving() as face:
        runner = add_runner(face)
        codes = []
        for token in (runner.token, "glrt-revoked"):
            args = ("verify", "--url", face.world.base_url)
            process = await asyncio.create_subprocess_exec(
                RUNNER_PROGRAM,
                *args,
                env={"PATH": os.environ["PATH"], "CI_SERVER_TOKEN": token},
                stderr=subprocess.DEVNULL,
            )
            codes.append(await asyncio.wait_for(process.wait(), 10))
        assert codes == [0, 1]
        assert runner.contacted_at is not None


def test_the_version_is_printed() -> None:
    done = subprocess.run([RUNNER_PROGRAM, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "Version:      19.4.0")


def entry(url: str, token: str, builds: Path, **more: str) -> str:
    keys = {"name": "this", "url": url, "token": token, "executor": "shell", "builds_dir": str(builds), **more}
    return "\n".join(["[[runners]]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())])


async def test_a_runner_of_a_config_file_has_no_token_in_its_jobs_environment(tmp_path: Path) -> None:
    async with serving() as face:
        face.submit(pipeline(("env",)))
        runner = add_runner(face)
        config = tmp_path / "config.toml"
        config.write_text(entry(face.world.base_url, runner.token, tmp_path / "builds"))
        process = await asyncio.create_subprocess_exec(
            *(RUNNER_PROGRAM, "run-single", "--config", str(config), "-r", "this", *ONE_JOB),
            env={"PATH": os.environ["PATH"]},
            stderr=subprocess.DEVNULL,
        )
        assert await asyncio.wait_for(process.wait(), 20) == 0
        job = only_job(face)
        assert job.status is JobStatus.SUCCESS
        assert runner.token.encode() not in bytes(job.trace)
        assert b"CI_SERVER_TOKEN" not in bytes(job.trace)


async def test_a_token_in_the_runners_environment_is_in_that_of_its_jobs(tmp_path: Path) -> None:
    async with serving() as face:
        face.submit(pipeline((f"echo ${{#CI_SERVER_TOKEN}} > {tmp_path}/length",)))
        runner = add_runner(face)
        async with running(face.world.base_url, runner.token, tmp_path, *ONE_JOB) as process:
            assert await asyncio.wait_for(process.wait(), 20) == 0
        assert (tmp_path / "length").read_text() == f"{len(runner.token)}\n"


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ("", "this", "could not find a runner"),
        (entry("http://x", "glrt-1", Path("b")), "other", "could not find a runner"),
        (entry("http://x", "", Path("b")), "this", "Missing Token"),
        (entry("http://x", "glrt-1", Path("b"), tokn="x"), "this", "does not know tokn"),
        ("[[", "this", "Error loading config"),
    ],
)
def test_a_wrong_config_file_is_fatal(text: str, name: str, problem: str, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text)
    args = ("run-single", "--token", "glrt-ignored", "--config", str(config), "--runner", name)
    done = subprocess.run([RUNNER_PROGRAM, *args], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 1
    assert problem in done.stderr
