"""The image's on-interruption hook: a program that may save what would be lost, beside the job, before the reclaim.

Owns its process, its time and its output. It runs once, as the jobs' user and with what the runner inherits, which
holds no secret. It never runs beyond the moment at which the runner is ended, and nothing ever waits for it: it and all
that it started are killed then, and what it left behind in another session ends with the machine.
"""

# pathlib alone would take a megabyte for every machine:
# ruff: noqa: PTH123

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from runners.agent.processes import descendants, kill
from runners.agent.user import User

AHEAD_S = 120.0
"""The longest notice of a reclaim that a cloud gives: before that, of maintenance in some days, it is too early."""
_LOG_LIMIT = 1 << 20
_REAP_S = 1.0


class HookEnd(NamedTuple):
    """`outcome` is ok, failed, timed_out or job_ended (it was stopped since there was nothing left to save);
    `exit_code` is empty where it was stopped, 126 or 127 where it could not be started."""

    seconds: float
    outcome: str
    exit_code: str = ""


class InterruptionHook:
    """`program` is a path, or empty: there is none. `limit_s` None: it may use all the time until the runner ends."""

    def __init__(self, program: str, *, limit_s: float | None, wake: Callable[[], None]) -> None:
        self._program = program
        self.limit_s = float("inf") if limit_s is None else float(limit_s)
        self._wake = wake
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._ended: float | None = None
        self._is_over = not program

    @property
    def is_running(self) -> bool:
        return self._process is not None and not self._is_over

    def is_due(self, now: float, stop_at: float) -> bool:
        """Whether it is to be started: near enough to the end, and not over it."""
        ahead_s = AHEAD_S if self.limit_s == float("inf") else max(AHEAD_S, self.limit_s)
        return not self._is_over and self._process is None and stop_at - ahead_s <= now < stop_at

    def until(self, stop_at: float) -> float:
        """When it is stopped; `stop_at` is when the runner is."""
        return min(self._began + self.limit_s, stop_at)

    def start(self, now: float, *, user: User, env: dict[str, str], log_path: str) -> HookEnd | None:
        """Returns its end where it cannot be started."""
        self._began = now
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the image's own program
                [self._program],
                cwd=env["HOME"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user.uid,
                group=user.gid,
                extra_groups=user.groups,
            )
        except OSError as error:
            self._is_over = True
            return HookEnd(0.0, "failed", "127" if isinstance(error, FileNotFoundError) else "126")
        threading.Thread(target=_drain, args=(self._process, log_path), name="hook output", daemon=True).start()
        threading.Thread(target=self._wait, args=(self._process,), name="hook", daemon=True).start()
        return None

    def look(self, now: float, stop_at: float) -> HookEnd | None:
        """Its end, once: because it exited, or because its time is over now."""
        if not self.is_running:
            return None
        return self.stop("timed_out") if self._ended is not None or now >= self.until(stop_at) else None

    def stop(self, outcome: str) -> HookEnd | None:
        """End it, if it still runs; `outcome` is why then. None where its end was told, or it never began."""
        process = self._process
        if process is None or self._is_over:
            return None
        self._is_over = True
        if self._ended is not None:
            code = process.returncode
            return HookEnd(self._ended - self._began, "failed" if code else "ok", str(code))
        seconds = time.monotonic() - self._began
        for pid in descendants(process.pid):
            kill(pid, signal.SIGKILL)
        try:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(_REAP_S)
        except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            pass
        return HookEnd(seconds, outcome)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._ended = time.monotonic()
        self._wake()


def _drain(process: subprocess.Popen[bytes], log_path: str) -> None:
    """Its output up to a limit; the rest is read and dropped, or it would stand still."""
    output = process.stdout
    if output is None:
        return
    with output, open(log_path, "wb", buffering=0) as log:
        while part := os.read(output.fileno(), 65536):
            if (left := _LOG_LIMIT - log.tell()) > 0:
                log.write(part[:left])
