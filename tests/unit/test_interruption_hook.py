"""The image's on-interruption hook as a process: its time, its end, its output, and what it leaves behind."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from runners.agent.interruption_hook import AHEAD_S, HookEnd, InterruptionHook
from runners.agent.processes import kill
from runners.agent.user import User

NEVER = float("inf")


class Running:
    """A hook of this text that was started; `end` waits until it has exited by itself."""

    def __init__(self, folder: Path, text: str, *, limit_s: float | None = None, mode: int = 0o755) -> None:
        program = folder / "hook.sh"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(mode)
        self.log = folder / "hook.log"
        self._exited = threading.Event()
        self.hook = InterruptionHook(str(program), limit_s=limit_s, wake=self._exited.set)
        self.env = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
        self.refused = self.hook.start(time.monotonic(), user=User(""), env=self.env, log_path=str(self.log))

    def end(self) -> HookEnd:
        assert self._exited.wait(10)
        ended = self.hook.look(time.monotonic(), NEVER)
        assert ended is not None
        return ended


def is_alive(pid: int) -> bool:
    """Whether a process does anything still: one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 10
    while not path.exists() or not path.read_text().endswith("\n"):
        assert time.monotonic() < deadline, f"{path} did not come"
        threading.Event().wait(0.01)
    return path.read_text()


def test_a_hook_that_exits_well_is_told_once(tmp_path: Path) -> None:
    running = Running(tmp_path, "echo saved")
    ended = running.end()
    assert (ended.outcome, ended.exit_code) == ("ok", "0")
    assert 0 <= ended.seconds < 10
    assert running.hook.look(time.monotonic(), NEVER) is None
    assert running.hook.stop("timed_out") is None
    assert not running.hook.is_running


def test_a_hook_that_fails_says_its_code(tmp_path: Path) -> None:
    ended = Running(tmp_path, "exit 3").end()
    assert (ended.outcome, ended.exit_code) == ("failed", "3")


def test_a_hook_that_cannot_be_started_is_a_failure_and_is_not_tried_again(tmp_path: Path) -> None:
    not_executable = Running(tmp_path, "exit 0", mode=0o644)
    assert not_executable.refused == HookEnd(0.0, "failed", "126")
    assert not not_executable.hook.is_due(0.0, 10.0)
    missing = InterruptionHook(str(tmp_path / "nothing"), limit_s=None, wake=lambda: None)
    refused = missing.start(0.0, user=User(""), env=not_executable.env, log_path=str(tmp_path / "log"))
    assert refused == HookEnd(0.0, "failed", "127")


def test_a_hook_that_hangs_is_killed_with_what_it_started_when_its_time_is_over(tmp_path: Path) -> None:
    running = Running(tmp_path, "trap '' TERM INT\nsleep 600 &\necho $$ $! > pids\nwait", limit_s=0.2)
    pids = [int(pid) for pid in wait_for(tmp_path / "pids").split()]
    began = time.monotonic()
    while (ended := running.hook.look(time.monotonic(), NEVER)) is None:
        assert time.monotonic() < began + 10
        threading.Event().wait(0.01)
    assert (ended.outcome, ended.exit_code) == ("timed_out", "")
    assert ended.seconds >= 0.2
    assert not any(is_alive(pid) for pid in pids)


def test_a_hook_never_outlives_the_stop_of_the_runner(tmp_path: Path) -> None:
    running = Running(tmp_path, "sleep 600", limit_s=600)
    assert running.hook.look(time.monotonic(), time.monotonic() + 5) is None
    stop_at = time.monotonic()
    ended = running.hook.look(stop_at, stop_at)
    assert ended is not None
    assert ended.outcome == "timed_out"


def test_a_hook_is_stopped_when_its_job_ends(tmp_path: Path) -> None:
    ended = Running(tmp_path, "sleep 600").hook.stop("job_ended")
    assert ended is not None
    assert ended.outcome == "job_ended"


def test_nobody_waits_for_what_a_hook_left_in_the_background(tmp_path: Path) -> None:
    """It holds the output open, in a session of its own."""
    running = Running(tmp_path, "setsid sh -c 'echo $$ > daemon; exec sleep 600' &\nwhile [ ! -s daemon ]; do :; done")
    ended = running.end()
    assert ended.outcome == "ok"
    os.kill(int(wait_for(tmp_path / "daemon")), signal.SIGKILL)


def test_much_output_neither_stops_a_hook_nor_fills_the_disk(tmp_path: Path) -> None:
    running = Running(tmp_path, "head -c 5000000 /dev/zero")
    assert running.end().outcome == "ok"
    assert running.log.stat().st_size <= 1 << 20


@pytest.mark.parametrize(
    ("limit_s", "left_s", "is_due"),
    [
        (None, 90, True),
        (None, AHEAD_S, True),
        (None, AHEAD_S + 1, False),
        (20, 90, True),
        (300, 299, True),
        (300, 301, False),
        (None, 0, False),
        (None, -5, False),
    ],
)
def test_a_hook_begins_with_the_notice_but_not_days_before_maintenance(
    limit_s: float | None, left_s: float, is_due: bool
) -> None:
    hook = InterruptionHook("/opt/save", limit_s=limit_s, wake=lambda: None)
    assert hook.is_due(1000.0, 1000.0 + left_s) is is_due


def test_an_image_without_a_hook_never_has_one_due() -> None:
    assert not InterruptionHook("", limit_s=None, wake=lambda: None).is_due(0.0, 10.0)


def test_a_process_that_became_another_users_keeps_nobody_from_ending_the_rest() -> None:
    if not (child := os.fork()):  # as an agent that is not root; signal 0 only asks
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            kill(1, 0)
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
