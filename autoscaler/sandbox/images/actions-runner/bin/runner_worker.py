"""Runs one job's steps and hooks as real shell, as Runner.Worker does. Standard library only.

    started hook -> steps, each `bash -e` -> completed hook        non-zero: the job failed, remaining steps skipped

`stop` ends the running step: SIGINT, after 7.5 s SIGTERM, after 2.5 s SIGKILL, to the step's process group. A
shutdown fails the job and skips everything that remains; a cancellation still runs the completed hook.
"""

import contextlib
import json
import os
import pathlib
import platform
import signal
import subprocess
import threading
import time
from typing import Any, BinaryIO

Json = dict[str, Any]

INTERRUPT_GRACE_S = 7.5
TERMINATE_GRACE_S = 2.5
LOG_LIMIT_BYTES = 1_000_000
SHUTDOWN = (
    "The runner has received a shutdown signal. This can happen when the runner service is stopped, or a manually "
    "started runner is canceled."
)
CANCELED = "The operation was canceled."


class Worker:
    """One job under the work folder. `run` blocks; `stop` may be called from another thread, once or again."""

    def __init__(self, work: pathlib.Path, job: Json, log_path: pathlib.Path) -> None:
        self._job = job
        self._log_path = log_path
        self._stop_reason: str | None = None
        self._stop_asked = threading.Event()
        self.steps: list[Json] = []
        self.annotations: list[str] = []
        repository = job["environment"]["GITHUB_REPOSITORY"].rpartition("/")[2]
        self._workspace = work / repository / repository
        self._temp = work / "_temp"
        self._event = self._temp / "_github_workflow" / "event.json"

    def stop(self, reason: str) -> None:
        """`shutdown`, `cancel` or `lost`; the first reason stays, but a shutdown outweighs a cancellation."""
        if self._stop_reason is None or reason == "shutdown":
            self._stop_reason = reason
        self._stop_asked.set()

    def run(self) -> str:
        """success, failure or cancelled; `steps` and `annotations` say more afterwards."""
        self._workspace.mkdir(parents=True, exist_ok=True)
        self._event.parent.mkdir(parents=True, exist_ok=True)
        self._event.write_text(json.dumps({"ref": self._job["environment"].get("GITHUB_REF", "")}))
        with self._log_path.open("wb", buffering=0) as log:
            self._step("Set up job", None, log)
            passed = self._hook("Set up runner", "ACTIONS_RUNNER_HOOK_JOB_STARTED", log)
            for step in self._job["steps"]:
                passed = self._script(step, log, runs=passed and not self._stop_asked.is_set()) and passed
            if self._stop_reason not in ("shutdown", "lost"):
                passed = self._hook("Complete runner", "ACTIONS_RUNNER_HOOK_JOB_COMPLETED", log) and passed
            self._step("Complete job", None, log)
        return self._result(passed)

    def log(self) -> str:
        """The end of what the steps wrote."""
        with self._log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_LIMIT_BYTES))
            return log.read().decode(errors="replace")

    def _result(self, passed: bool) -> str:
        if self._stop_reason == "shutdown":
            self.annotations += [SHUTDOWN, CANCELED]
            return "failure"
        if self._stop_reason == "cancel":
            self.annotations.append(CANCELED)
            return "cancelled"
        return "success" if passed else "failure"

    def _hook(self, name: str, variable: str, log: BinaryIO) -> bool:
        """A hook from the listener's environment; without one there is no step. It runs even after a failure."""
        path = os.environ.get(variable, "")
        if not path:
            return True
        script = pathlib.Path(path)
        if not (script.is_absolute() and script.suffix == ".sh" and script.is_file()):
            self.annotations.append(f"{variable}: {path} is not an absolute path of an existing .sh file")
            return self._record(name, "failure", time.time())
        return self._step(name, ["bash", "-e", path], log, after_cancel=name == "Complete runner")

    def _script(self, step: Json, log: BinaryIO, runs: bool) -> bool:
        if not runs:
            return self._record(step["name"], "skipped", time.time())
        path = self._temp / f"{len(self.steps)}.sh"
        path.write_text("\n".join(step["script"]) + "\n")
        return self._step(step["name"], ["bash", "-e", str(path)], log)

    def _step(self, name: str, command: list[str] | None, log: BinaryIO, after_cancel: bool = False) -> bool:
        started_at = time.time()
        if command is None:
            return self._record(name, "success", started_at)
        log.write(f"##[group]{name}\n".encode())
        process = subprocess.Popen(  # noqa: S603 - running the job is what it is for
            command,
            cwd=self._workspace,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stopped = self._watch(process, heeds_stop=not after_cancel)
        log.write(b"##[endgroup]\n")
        if stopped:
            return self._record(name, "cancelled", started_at)
        if process.returncode != 0:
            text = f"Process completed with exit code {process.returncode}."
            log.write(f"##[error]{text}\n".encode())
            self.annotations.append(text)
            return self._record(name, "failure", started_at)
        return self._record(name, "success", started_at)

    def _watch(self, process: subprocess.Popen[bytes], heeds_stop: bool) -> bool:
        """Waits for the process; True when it was stopped before its end. Leaves nothing of its group behind."""
        ended = threading.Event()

        def await_end() -> None:
            process.wait()
            ended.set()

        threading.Thread(target=await_end, daemon=True).start()
        stopped = False
        while not ended.wait(0.05):
            must_stop = self._stop_asked.is_set() and (heeds_stop or self._stop_reason == "shutdown")
            if must_stop:
                stopped = True
                self._end(process, ended)
                break
        _signal_group(process, signal.SIGKILL)
        ended.wait()
        return stopped

    def _end(self, process: subprocess.Popen[bytes], ended: threading.Event) -> None:
        _signal_group(process, signal.SIGINT)
        if not ended.wait(INTERRUPT_GRACE_S):
            _signal_group(process, signal.SIGTERM)
            ended.wait(TERMINATE_GRACE_S)

    def _environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ACTIONS_RUNNER_INPUT_")}
        arch = {"x86_64": "X64", "aarch64": "ARM64"}.get(platform.machine(), platform.machine())
        return {
            **inherited,
            **self._job["environment"],
            "GITHUB_WORKSPACE": str(self._workspace),
            "GITHUB_EVENT_PATH": str(self._event),
            "RUNNER_TEMP": str(self._temp),
            "RUNNER_WORKSPACE": str(self._workspace.parent),
            "RUNNER_OS": "Linux",
            "RUNNER_ARCH": arch,
        }

    def _record(self, name: str, conclusion: str, started_at: float) -> bool:
        self.steps.append(
            {
                "name": name,
                "conclusion": conclusion,
                "number": len(self.steps) + 1,
                "started_at": started_at,
                "completed_at": time.time(),
            }
        )
        return conclusion == "success"


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
