"""Running one job: its script in a shell, what ends it early, and what is reported (GitLab spec 2.4 and 2.6)."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

# Found beside this program when it runs.
from protocol import REVISION, VERSION, Server, Trace, log  # type: ignore[import-not-found]

SHUTDOWN_S, KILL_S = 30.0, 600.0
OUTPUT_LIMIT_KIB = 4096


def fatal(text: str) -> NoReturn:
    """Log and exit 1 at once, whatever runs."""
    log("FATAL", text)
    os._exit(1)


class Stop:
    """What signals asked for. `woken` ends the waits between jobs, `attention` those during one."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.attention = threading.Event()
        self.interrupted = False

    def install(self) -> None:
        """Take over QUIT, TERM and INT."""
        signal.signal(signal.SIGQUIT, lambda _n, _f: self.woken.set())
        signal.signal(signal.SIGTERM, self._interrupt)
        signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, _frame: object) -> None:
        if self.interrupted:
            fatal("forced exit with signal")
        self.interrupted = True
        self.woken.set()
        self.attention.set()
        timer = threading.Timer(SHUTDOWN_S, fatal, ["shutdown timed out"])
        timer.daemon = True
        timer.start()


class Build:
    """One job on this machine, from the confirmed start to the final update."""

    def __init__(self, server: Server, options: dict[str, str], stop: Stop, job: dict[str, Any]) -> None:
        self._options, self._stop, self._job = options, stop, job
        self.trace = Trace(
            server, job, limit=int(options.get("output-limit", OUTPUT_LIMIT_KIB)) << 10, attention=stop.attention
        )
        timeout_s = (job.get("runner_info") or {}).get("timeout") or 0
        self._deadline = time.monotonic() + (timeout_s if timeout_s > 0 else 7200)
        path = (job.get("job_info") or {}).get("project_full_path") or "project"
        builds = Path(options.get("builds-dir") or "builds").resolve()
        self._folder = builds / server.system_id / "0" / path
        self._env = self._environment(builds)

    def _environment(self, builds: Path) -> dict[str, str]:
        # As the real shell executor: jobs get the runner's whole environment, a token in it included.
        env = dict(os.environ)
        env |= {variable["key"]: variable["value"] or "" for variable in self._job["variables"]}
        env |= {"CI_PROJECT_DIR": str(self._folder), "CI_BUILDS_DIR": str(builds), "CI_RUNNER_VERSION": VERSION}
        return env | {"CI_CONCURRENT_ID": "0", "CI_SERVER": "yes"}

    def run(self) -> None:
        """Run the steps and report. Whatever happens, the job is reported or known to be no longer ours."""
        self.trace.write(f"Running with gitlab-runner {VERSION} ({REVISION})\n".encode())
        self.trace.start()
        try:
            state, fields = self._steps()
        except OSError as error:
            self.trace.write(f"ERROR: Job failed (system failure): {error}\n".encode())
            state, fields = "failed", {"failure_reason": self._reason("runner_system_failure")}
        self.trace.close()
        self.trace.finish(state, fields)
        log("INFO", f"job={self._job['id']} finished: {state} {fields.get('failure_reason', '')}".rstrip())

    def _steps(self) -> tuple[str, dict[str, Any]]:
        self._folder.mkdir(parents=True, exist_ok=True)
        main = [step for step in self._job["steps"] if step["name"] != "after_script"]
        after = [step for step in self._job["steps"] if step["name"] == "after_script"]
        lines = [line for step in main for line in step["script"]]
        pre, post = self._options.get("pre-build-script"), self._options.get("post-build-script")
        code, why = self._shell([*([pre] if pre else []), *lines, *([post] if post else [])], heeds_cancel=True)
        if after and not self.trace.aborted.is_set() and not self._stop.interrupted:
            self._env["CI_JOB_STATUS"] = "canceled" if why == "canceled" else "success" if code == 0 else "failed"
            self._shell([line for step in after for line in step["script"]], heeds_cancel=False)
        if why is None and code == 0:
            self.trace.write(b"Job succeeded\n")
            return "success", {"exit_code": 0}
        if why is None:
            self.trace.write(f"ERROR: Job failed: exit status {code}\n".encode())
            return "failed", {"failure_reason": "script_failure", "exit_code": code}
        self.trace.write(f"ERROR: Job failed: {why}\n".encode())
        return "failed", {"failure_reason": self._reason(why)}

    def _reason(self, why: str) -> str:
        """The reason as this GitLab knows it: what its `failure_reasons` do not list becomes unknown_failure."""
        known = (self._job.get("features") or {}).get("failure_reasons") or []
        return why if why in known or why == "script_failure" else "unknown_failure"

    def _shell(self, lines: list[str], *, heeds_cancel: bool) -> tuple[int, str | None]:
        """(exit code, why we ended it or None)."""
        shell = self._options.get("shell") or ("bash" if shutil.which("bash") else "sh")
        text = ["set -e", "set -o pipefail" if shell == "bash" else ":"]
        for line in lines:
            text += [f"printf '%s\\n' {shlex.quote('$ ' + line)}", line]
        scratch = self._folder.with_name(self._folder.name + ".tmp")
        scratch.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", suffix=".sh", dir=scratch) as script:
            script.write("\n".join(text) + "\n")
            script.flush()
            process = subprocess.Popen(  # noqa: S603 - running the job's script is what a runner is for
                [shell, script.name],
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            reader = threading.Thread(target=self._read, args=[process], daemon=True)
            reader.start()
            why = self._watch(process, heeds_cancel)
            if why is not None:
                end_group(process)
            reader.join(timeout=5)
            return process.wait(), why

    def _read(self, process: "subprocess.Popen[bytes]") -> None:
        if process.stdout is not None:
            # stdout is a pipe: it was asked for above.
            for line in iter(lambda: process.stdout.readline(65536), b""):  # type: ignore[union-attr]
                self.trace.write(line)

    def _watch(self, process: "subprocess.Popen[bytes]", heeds_cancel: bool) -> str | None:
        """Wait for the script's end or for a reason to end it."""
        threading.Thread(target=self._announce_end, args=[process], daemon=True).start()
        attention = self._stop.attention
        while True:
            attention.wait(max(0.0, self._deadline - time.monotonic()))
            attention.clear()
            if process.poll() is not None:
                return None
            if self._stop.interrupted:
                return "runner_interrupted"
            if self.trace.aborted.is_set() or (heeds_cancel and self.trace.canceling.is_set()):
                return "canceled"
            if time.monotonic() >= self._deadline:
                return "job_execution_timeout"

    def _announce_end(self, process: "subprocess.Popen[bytes]") -> None:
        process.wait()
        self._stop.attention.set()


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM to the script's group, SIGKILL when it has not ended after ten minutes."""
    for number, wait_s in ((signal.SIGTERM, KILL_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=wait_s)
            return
