"""The agent as a machine runs it, against a daemon strict about the protocol; small shell programs as runners."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from providers.local_supervisor import descendants
from runners.bootstrap import build_agent
from tests.agent_daemon import AgentDaemon, Memory
from tests.polling import until

SECRET = "jit-secret-0123456789"

JOB = """\
#!/bin/bash
trap 'echo interrupted > "$HOME/stopped"; exit 0' INT TERM
echo "argv: $0 $*"; echo "the secret is $ACTIONS_RUNNER_INPUT_JITCONFIG"
[ "$2" != --config ] || { stat -c %a "$3" > "$HOME/mode"; cp "$3" "$HOME/config"; echo "Starting runner for x"; }
env | sort > "$HOME/env"
[ -z "$ACTIONS_RUNNER_HOOK_JOB_STARTED" ] || bash -e "$ACTIONS_RUNNER_HOOK_JOB_STARTED"
while [ ! -e "$HOME/finish" ]; do sleep 0.02; done
[ -z "$ACTIONS_RUNNER_HOOK_JOB_COMPLETED" ] || bash -e "$ACTIONS_RUNNER_HOOK_JOB_COMPLETED"
"""
IDLE = """\
#!/bin/bash
trap 'echo interrupted > "$HOME/stopped"; exit 0' INT TERM
echo listening
while true; do sleep 0.02; done
"""
BROKEN = """\
#!/bin/bash
echo "cannot connect with $ACTIONS_RUNNER_INPUT_JITCONFIG"
exit 7
"""


@dataclass(slots=True, kw_only=True)
class Started:
    process: asyncio.subprocess.Process
    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 15)


Starter = Callable[..., Any]


@pytest.fixture
async def daemon() -> AsyncIterator[AgentDaemon]:
    server = AgentDaemon()
    await server.start()
    yield server
    await server.stop()
    assert server.violations == []


@pytest.fixture
async def start(daemon: AgentDaemon, tmp_path: Path) -> AsyncIterator[Starter]:
    started: list[Started] = []

    async def start_agent(program: str = JOB, **boot: Any) -> Started:
        (tmp_path / "runner").mkdir()
        for name in ("run.sh", "gitlab-runner"):
            (tmp_path / "runner" / name).write_text(program)
            (tmp_path / "runner" / name).chmod(0o755)
        (tmp_path / "home").mkdir()
        image = {"github_runner": str(tmp_path / "runner"), "gitlab_runner": str(tmp_path / "runner" / "gitlab-runner")}
        document = {
            **{"version": 1, "daemon_url": daemon.url, "ca_pem": "", "provider": "local", "batch": "b-1"},
            **{"agent_sha256": build_agent().sha256, "boot_timeout_s": 20, "max_lifetime_s": 60, "stop_grace_s": 4},
            **{"flush_s": 3, "image": image, **boot},
        }
        (tmp_path / "boot.json").write_text(json.dumps(document))
        (tmp_path / "agent.pyz").write_bytes(build_agent().data)
        reading, writing = os.pipe()
        os.write(writing, b"ab" * 32)
        os.close(writing)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "agent.pyz", "--folder", str(tmp_path), "--boot", "boot.json"),
            *(
                "--evidence",
                "local",
                "--instance",
                "local-1",
                "--key-fd",
                str(reading),
                "--notice",
                str(tmp_path / "notice.json"),
            ),
            cwd=tmp_path,
            pass_fds=(reading,),
            stderr=(tmp_path / "console").open("wb"),
        )
        os.close(reading)
        started.append(Started(process=process, folder=tmp_path))
        return started[-1]

    yield start_agent
    for agent in started:
        for pid in [*descendants(agent.process.pid), agent.process.pid] if agent.process.returncode is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await agent.process.wait()


def assignment(kind: str = "github", *, max_job_runtime_s: float = 60.0) -> dict[str, Any]:
    parameters = {"url": "http://gitlab.test", "wait_timeout_s": "5"} if kind == "gitlab" else {}
    return {
        **{"kind": kind, "runner_name": "x-1", "secret": SECRET, "parameters": parameters},
        "max_job_runtime_s": max_job_runtime_s,
    }


async def test_a_job_lives_its_whole_life(daemon: AgentDaemon, start: Starter) -> None:
    daemon.memory.assignment = assignment()
    agent = await start()
    await until(lambda: "job_started" in daemon.memory.kinds())
    await until(lambda: daemon.memory.heartbeats > 2)
    (agent.home / "finish").touch()
    assert await agent.ended() == 0
    assert daemon.memory.kinds() == [
        *("assignment_received", "runner_started", "job_started", "job_completed", "runner_exited", "ending")
    ]
    assert daemon.memory.detail("runner_exited") == {"exit_code": "0", "ran_job": "true"}
    assert daemon.memory.detail("ending") == {"cause": "job_done"}


def command_line(pid: int) -> bytes:
    """Empty where the process has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def test_the_secret_reaches_the_runner_by_environment_only(daemon: AgentDaemon, start: Starter) -> None:
    daemon.memory.assignment = assignment()
    agent = await start()
    await until(lambda: "job_started" in daemon.memory.kinds())
    arguments = [line for pid in descendants(agent.process.pid) if (line := command_line(pid))]
    assert arguments
    assert not any(SECRET.encode() in line for line in arguments)
    (agent.home / "finish").touch()
    await agent.ended()
    environment = (agent.home / "env").read_text().splitlines()
    assert f"ACTIONS_RUNNER_INPUT_JITCONFIG={SECRET}" in environment
    assert {"RUNNER_MANUALLY_TRAP_SIG=1", "ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE=1"} < set(environment)
    assert "the secret is ***" in (agent.folder / "runner.log").read_text()
    assert SECRET not in (agent.folder / "console").read_text() + json.dumps(list(daemon.memory.events.values()))


async def test_gitlab_runner_is_started_by_its_real_command_line(daemon: AgentDaemon, start: Starter) -> None:
    daemon.memory.assignment = assignment("gitlab")
    agent = await start()
    await until(lambda: "runner_started" in daemon.memory.kinds() and (agent.home / "env").exists())
    await until(lambda: not (agent.home / ".runner.toml").exists())
    (agent.home / "builds" / "abc").mkdir(parents=True)
    await until(lambda: "job_started" in daemon.memory.kinds())
    (agent.home / "finish").touch()
    await agent.ended()
    first_line = (agent.folder / "runner.log").read_text().splitlines()[0]
    assert f"run-single --config {agent.home}/.runner.toml --runner this --max-builds 1 --wait-timeout 5" in first_line
    assert SECRET not in (agent.home / "env").read_text(), "the shell executor hands its environment to jobs"
    (entry,) = tomllib.loads((agent.home / "config").read_text())["runners"]
    assert entry == {
        "name": "this",
        "url": "http://gitlab.test",
        "token": SECRET,
        "executor": "shell",
        "builds_dir": str(agent.home / "builds"),
    }
    assert (agent.home / "mode").read_text() == "600\n"
    assert daemon.memory.detail("ending") == {"cause": "job_done"}


async def test_a_daemon_restart_in_the_middle_of_a_job_is_survived(daemon: AgentDaemon, start: Starter) -> None:
    daemon.memory.assignment = assignment()
    agent = await start(no_contact_s=0.5)
    await until(lambda: "job_started" in daemon.memory.kinds())
    await daemon.stop()
    (agent.home / "finish").touch()  # the job ends while nobody listens; longer than no_contact_s
    await until(lambda: "ending" in (agent.folder / "console").read_text())
    await daemon.start()
    assert await agent.ended() == 0
    assert daemon.memory.kinds()[-3:] == ["job_completed", "runner_exited", "ending"]
    assert len(daemon.memory.hellos) == 1


async def test_a_daemon_that_lost_its_store_gets_the_same_claim_and_the_runner(
    daemon: AgentDaemon, start: Starter
) -> None:
    daemon.memory.assignment = assignment()
    agent = await start()
    await until(lambda: "job_started" in daemon.memory.kinds())
    before, daemon.memory = daemon.memory, Memory()
    await until(lambda: len(daemon.memory.hellos) == 1)
    (agent.home / "finish").touch()
    assert await agent.ended() == 0
    assert daemon.memory.hellos[0]["claim"] == before.hellos[0]["claim"]
    assert daemon.memory.hellos[0]["runner"] == {"name": "x-1", "state": "running"}
    assert daemon.memory.kinds()[-1] == "ending"


async def test_lost_answers_are_repeated_and_nothing_happens_twice(daemon: AgentDaemon, start: Starter) -> None:
    daemon.lose_answers = 4  # hello, assignment and events alike
    daemon.memory.assignment = assignment()
    agent = await start()
    await until(lambda: "job_started" in daemon.memory.kinds())
    daemon.lose_answers = 3
    (agent.home / "finish").touch()
    assert await agent.ended() == 0
    assert daemon.memory.kinds() == [
        *("assignment_received", "runner_started", "job_started", "job_completed", "runner_exited", "ending")
    ]
    assert daemon.repeats > 0
    assert len({hello["claim"] for hello in daemon.memory.hellos}) == 1


async def test_patience_is_asked_for_and_given(daemon: AgentDaemon, start: Starter) -> None:
    daemon.hello_statuses = [503, 429, 500, 200]
    agent = await start()
    await until(lambda: daemon.memory.claims)
    daemon.memory.is_unneeded = True
    assert await agent.ended() == 0
    assert daemon.memory.detail("ending") == {"cause": "not_needed"}
    assert len(daemon.memory.hellos) == 4


async def test_a_refused_hello_ends_the_machine(daemon: AgentDaemon, start: Starter) -> None:
    daemon.hello_statuses = [403]
    agent = await start()
    assert await agent.ended() == 0
    assert len(daemon.memory.hellos) == 1
    assert "ending: refused" in (agent.folder / "console").read_text()


async def test_the_end_command_stops_an_idle_runner(daemon: AgentDaemon, start: Starter) -> None:
    daemon.memory.assignment = assignment()
    agent = await start(IDLE)
    await until(
        lambda: (agent.folder / "runner.log").exists() and "listening" in (agent.folder / "runner.log").read_text()
    )
    daemon.memory.command = "end"
    assert await agent.ended() == 0
    assert (agent.home / "stopped").exists()
    assert daemon.memory.detail("runner_exited")["ran_job"] == "false"
    assert daemon.memory.detail("ending") == {"cause": "not_needed"}


async def test_the_end_command_lets_a_running_job_finish(daemon: AgentDaemon, start: Starter) -> None:
    daemon.memory.assignment = assignment()
    agent = await start()
    await until(lambda: "job_started" in daemon.memory.kinds())
    daemon.memory.command = "end"
    beats = daemon.memory.heartbeats
    await until(lambda: daemon.memory.heartbeats > beats + 3)
    (agent.home / "finish").touch()
    assert await agent.ended() == 0
    assert not (agent.home / "stopped").exists()
    assert daemon.memory.detail("ending") == {"cause": "job_done"}


async def test_a_runner_that_fails_says_why_without_the_secret(daemon: AgentDaemon, start: Starter) -> None:
    daemon.memory.assignment = assignment()
    agent = await start(BROKEN)
    assert await agent.ended() == 0
    detail = daemon.memory.detail("runner_exited")
    assert (detail["exit_code"], detail["ran_job"], detail["output"]) == ("7", "false", "cannot connect with ***\n")
    assert daemon.memory.detail("ending") == {"cause": "runner_failed"}


async def test_an_image_without_the_runner_is_reported(daemon: AgentDaemon, start: Starter) -> None:
    daemon.memory.assignment = assignment()
    agent = await start(image={})
    assert await agent.ended() == 0
    assert "no github runner" in daemon.memory.detail("runner_exited")["output"]


async def test_no_contact_ends_a_machine_without_a_job(daemon: AgentDaemon, start: Starter) -> None:
    agent = await start(no_contact_s=0.3, flush_s=0.2)
    await until(lambda: daemon.memory.heartbeats > 0)
    await daemon.stop()
    assert await agent.ended() == 0
    assert "ending: no_contact" in (agent.folder / "console").read_text()


async def test_boot_timeout_ends_a_machine_that_nobody_accepts(daemon: AgentDaemon, start: Starter) -> None:
    await daemon.stop()
    agent = await start(boot_timeout_s=0.4)
    assert await agent.ended() == 0
    assert "ending: boot_timeout" in (agent.folder / "console").read_text()


async def test_a_job_over_its_maximum_runtime_is_stopped(daemon: AgentDaemon, start: Starter) -> None:
    daemon.memory.assignment = assignment(max_job_runtime_s=0.5)
    agent = await start()
    assert await agent.ended() == 0
    assert (agent.home / "stopped").exists()
    assert daemon.memory.detail("runner_exited")["ran_job"] == "true"
    assert daemon.memory.detail("ending") == {"cause": "max_runtime"}


async def test_a_notice_lets_the_job_use_the_time_then_stops_it_before_the_reclaim(
    daemon: AgentDaemon, start: Starter
) -> None:
    daemon.memory.assignment = assignment()
    agent = await start()
    await until(lambda: "job_started" in daemon.memory.kinds())
    reclaim_at = time.time() + 3
    (agent.folder / "notice.json.new").write_text(json.dumps({"reclaim_at": reclaim_at}))
    (agent.folder / "notice.json.new").rename(agent.folder / "notice.json")
    await until(lambda: "notice" in daemon.memory.kinds())
    assert not (agent.home / "stopped").exists()
    assert await agent.ended() == 0
    assert time.time() < reclaim_at
    assert (agent.home / "stopped").exists()
    assert float(daemon.memory.detail("notice")["reclaim_at"]) == pytest.approx(reclaim_at, abs=0.01)
    assert daemon.memory.detail("ending") == {"cause": "reclaimed"}


async def test_a_notice_without_a_job_ends_the_machine_at_once(daemon: AgentDaemon, start: Starter) -> None:
    agent = await start()
    await until(lambda: daemon.memory.claims)
    (agent.folder / "notice.json").write_text(json.dumps({"reclaim_at": time.time() + 60}))
    assert await agent.ended() == 0
    assert daemon.memory.kinds() == ["notice", "ending"]


HOOK = """\
#!/bin/bash
env | sort > "$HOME/hook-env"
[ ! -e "$HOME/hang" ] || sleep 600
echo saved
"""


async def announced(agent: Started, *, in_s: float) -> float:
    """The host says that it takes the machine; returns when."""
    reclaim_at = time.time() + in_s
    (agent.folder / "notice.json.new").write_text(json.dumps({"reclaim_at": reclaim_at}))
    (agent.folder / "notice.json.new").rename(agent.folder / "notice.json")
    return reclaim_at


async def with_hook(daemon: AgentDaemon, start: Starter, tmp_path: Path, kind: str = "github", **boot: Any) -> Started:
    """A machine whose job runs and whose image has a hook."""
    (tmp_path / "save.sh").write_text(HOOK)
    (tmp_path / "save.sh").chmod(0o755)
    daemon.memory.assignment = assignment(kind)
    program = tmp_path / "runner"
    image = {
        "github_runner": str(program),
        "gitlab_runner": str(program / "gitlab-runner"),
        "hook_on_interruption": str(tmp_path / "save.sh"),
    }
    agent: Started = await start(image=image, **boot)
    if kind == "gitlab":
        await until(lambda: agent.home.exists() and (agent.home / "env").exists())
        (agent.home / "builds" / "abc").mkdir(parents=True)
    await until(lambda: "job_started" in daemon.memory.kinds())
    return agent


async def test_the_hook_runs_beside_the_job_without_a_secret_then_the_runner_is_ended(
    daemon: AgentDaemon, start: Starter, tmp_path: Path
) -> None:
    agent = await with_hook(daemon, start, tmp_path, hook_limit_s=1.2)
    reclaim_at = await announced(agent, in_s=2)
    assert await agent.ended() == 0
    assert time.time() < reclaim_at
    assert daemon.memory.kinds()[4:] == ["hook_ended", "runner_stopping", "runner_exited", "ending"]
    told = daemon.memory.detail("hook_ended")
    assert (told["outcome"], told["exit_code"]) == ("ok", "0")
    assert 0 < float(told["seconds"]) < 1
    runs, mine = ((agent.home / name).read_text().splitlines() for name in ("env", "hook-env"))
    assert {"RUNNER_NAME=x-1", f"AUTOSCALER_RECLAIM_AT={int(reclaim_at)}"} <= set(mine)
    assert {line for line in mine if line.startswith(("HOME=", "PATH=", "USER=", "LANG="))} <= set(runs)
    (left,) = [line for line in mine if line.startswith("AUTOSCALER_SECONDS_LEFT=")]
    assert left in ("AUTOSCALER_SECONDS_LEFT=0", "AUTOSCALER_SECONDS_LEFT=1")
    assert SECRET not in "\n".join(mine)
    assert (agent.folder / "hook.log").read_text() == "saved\n"


@pytest.mark.parametrize("kind", ["github", "gitlab"])
async def test_a_hook_that_hangs_delays_neither_the_runners_end_nor_its_report(
    daemon: AgentDaemon, start: Starter, tmp_path: Path, kind: str
) -> None:
    agent = await with_hook(daemon, start, tmp_path, kind)
    (agent.home / "hang").touch()
    reclaim_at = await announced(agent, in_s=2)
    assert await agent.ended() == 0
    assert time.time() < reclaim_at
    assert daemon.memory.detail("hook_ended")["outcome"] == "timed_out"
    assert (agent.home / "stopped").exists()
    assert daemon.memory.detail("ending") == {"cause": "reclaimed"}


async def test_a_job_that_ends_before_the_reclaim_is_a_success_and_its_hook_is_stopped(
    daemon: AgentDaemon, start: Starter, tmp_path: Path
) -> None:
    agent = await with_hook(daemon, start, tmp_path)
    (agent.home / "hang").touch()
    await announced(agent, in_s=30)
    await until(lambda: (agent.home / "hook-env").exists())
    (agent.home / "finish").touch()
    assert await agent.ended() == 0
    assert daemon.memory.detail("hook_ended")["outcome"] == "job_ended"
    assert daemon.memory.detail("runner_exited") == {"exit_code": "0", "ran_job": "true"}
    assert daemon.memory.detail("ending") == {"cause": "job_done"}


async def test_a_job_that_puts_something_else_in_place_of_its_home_keeps_no_runner_from_its_end(
    daemon: AgentDaemon, start: Starter, tmp_path: Path
) -> None:
    agent = await with_hook(daemon, start, tmp_path)
    agent.home.rename(tmp_path / "gone")
    agent.home.touch()
    reclaim_at = await announced(agent, in_s=2)
    assert await agent.ended() == 0
    assert time.time() < reclaim_at
    assert daemon.memory.detail("hook_ended")["outcome"] == "failed"
    assert daemon.memory.kinds()[-3:] == ["runner_stopping", "runner_exited", "ending"]
    assert daemon.memory.detail("ending") == {"cause": "reclaimed"}
