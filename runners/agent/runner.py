"""Runs the forge's runner program once: its command line, its output, its end.

Owns the process and the log. The registration's secret never goes into an argument or a log: other users can read
arguments. GitHub's runner takes it from its environment and hides it from jobs; gitlab-runner's shell executor hands
its whole environment to jobs, so that it gets a file, which is removed once it was read.
"""

# pathlib alone would take a megabyte for every machine:
# ruff: noqa: PTH108, PTH112, PTH118, PTH123, PTH208

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from runners.agent.processes import descendants, kill
from runners.agent.user import User

_LOG_LIMIT = 4 << 20
_TAIL = 2048


class Command(NamedTuple):
    """How to start a runner, how to ask it to stop, and what its output says when a job starts and ends."""

    argv: list[str]
    cwd: str
    env: dict[str, str]
    stop_signal: int
    started_words: tuple[bytes, ...]
    completed_words: tuple[bytes, ...]
    builds: str = ""
    """A folder that has entries once a job has started, where the output need not tell."""
    secret_file: str = ""
    """Written before the runner starts, and removed as soon as it has read it."""
    secret_text: str = ""
    read_words: tuple[bytes, ...] = ()
    """What the output says then."""


class CannotStart(Exception):
    """The assignment names a runner that this machine's image does not have."""


def github_command(program: str, secret: str, hooks: Mapping[str, str], base_env: Mapping[str, str]) -> Command:
    """`run.sh` in its own folder. MANUALLY_TRAP_SIG makes it pass signals on to the listener; RETURN_VERSION_... makes
    it end with 7 when it is too old (else it ends with 0 whatever happened)."""
    env = {
        **base_env,
        "ACTIONS_RUNNER_INPUT_JITCONFIG": secret,
        "RUNNER_MANUALLY_TRAP_SIG": "1",
        "ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE": "1",
        "ACTIONS_RUNNER_HOOK_JOB_STARTED": hooks["job_started"],
        "ACTIONS_RUNNER_HOOK_JOB_COMPLETED": hooks["job_completed"],
    }
    return Command(
        argv=[os.path.join(program, "run.sh")],
        cwd=program,
        env=env,
        stop_signal=signal.SIGINT,
        started_words=(b"Running job:",),
        completed_words=(b"completed with result:",),
    )


def gitlab_command(program: str, secret: str, parameters: Mapping[str, str], base_env: Mapping[str, str]) -> Command:
    """`gitlab-runner run-single` for one job; all that concerns the runner itself comes from its entry in a file."""
    builds = os.path.join(base_env["HOME"], "builds")
    config = os.path.join(base_env["HOME"], ".runner.toml")
    entry = {
        "name": "this", "url": parameters.get("url", ""), "token": secret, "executor": "shell", "builds_dir": builds,
    }  # fmt: skip
    lines = ["[[runners]]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items())]
    argv = [program, "run-single", "--config", config, "--runner", "this"]
    argv += ["--max-builds", "1", "--wait-timeout", parameters.get("wait_timeout_s", "600")]
    return Command(
        argv=argv,
        cwd=base_env["HOME"],
        env=dict(base_env),
        stop_signal=signal.SIGTERM,
        started_words=(b"Checking for jobs", b"received"),
        completed_words=(b"Job ", b"duration_s="),
        builds=builds,
        secret_file=config,
        secret_text="\n".join(lines) + "\n",
        read_words=(b"Starting runner for",),
    )


class Runner:
    """A started runner. `on_line_kind` gets "job_started" and "job_completed" as the output says so; `on_exit` gets
    the exit code, once."""

    def __init__(
        self,
        command: Command,
        *,
        secret: str,
        user: User,
        log_path: str,
        on_line_kind: Callable[[str], None],
        on_exit: Callable[[int], None],
    ) -> None:
        self._command = command
        self._secret = secret.encode()
        self._user = user
        self._log_path = log_path
        self._on_line_kind = on_line_kind
        self._on_exit = on_exit
        self._tail = b""
        try:
            self._hand_secret()
            self._process = subprocess.Popen(  # noqa: S603 - the image's own program
                command.argv,
                cwd=command.cwd,
                env=command.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user.uid,
                group=user.gid,
                extra_groups=user.groups,
            )
        except OSError as error:
            self._forget_secret()
            raise CannotStart(f"{error.filename or command.argv[0]}: {error.strerror}") from None
        self._pump = threading.Thread(target=self._read, name="output", daemon=True)
        self._pump.start()
        threading.Thread(target=self._wait, name="waiter", daemon=True).start()

    @property
    def tail(self) -> str:
        """The last 2 KiB of output, without the secret."""
        return self._tail.decode("utf-8", "replace")

    @property
    def has_builds(self) -> bool:
        """Whether the runner has made a folder for a job."""
        return (
            bool(self._command.builds)
            and os.path.isdir(self._command.builds)
            and bool(os.listdir(self._command.builds))
        )

    def stop(self, grace_s: float) -> int:
        """Ask the runner to stop, then make it; returns the exit code. Half-way the job's own processes are killed:
        gitlab-runner reports a job's end only after its script has ended, however long that takes."""
        self._signal(self._command.stop_signal)
        if self._ends_within(grace_s / 2):
            return self._process.returncode
        if self._command.stop_signal == signal.SIGTERM:
            for pid in descendants(self._process.pid):
                kill(pid, signal.SIGKILL)
        if not self._ends_within(grace_s / 2):
            for pid in descendants(self._process.pid):
                kill(pid, signal.SIGKILL)
            self._signal(signal.SIGKILL)
        return self._process.wait()

    def _ends_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, number)
            except (ProcessLookupError, PermissionError):
                return

    def _wait(self) -> None:
        code = self._process.wait()
        self._forget_secret()
        self._pump.join(0.5)  # a process that the job left behind may hold the pipe open for ever
        self._on_exit(code)

    def _hand_secret(self) -> None:
        if self._command.secret_file:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with open(os.open(self._command.secret_file, flags, 0o600), "w", encoding="utf-8") as file:
                if self._user.uid is not None:
                    os.fchown(file.fileno(), self._user.uid, self._user.gid or 0)
                file.write(self._command.secret_text)

    def _forget_secret(self) -> None:
        if self._command.secret_file:
            # It may be gone, or be what the job has put in its place: the end of the runner is told all the same.
            with contextlib.suppress(OSError):
                os.unlink(self._command.secret_file)

    def _read(self) -> None:
        output = self._process.stdout
        if output is None:
            return
        with open(self._log_path, "wb") as log:
            for raw in iter(lambda: output.readline(65536), b""):
                line = raw.replace(self._secret, b"***") if self._secret else raw
                self._tail = (self._tail + line)[-_TAIL:]
                if log.tell() < _LOG_LIMIT:
                    log.write(line)
                    log.flush()
                if all(word in line for word in self._command.read_words):
                    self._forget_secret()
                if all(word in line for word in self._command.started_words):
                    self._on_line_kind("job_started")
                elif all(word in line for word in self._command.completed_words):
                    self._on_line_kind("job_completed")
