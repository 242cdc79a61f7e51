"""One machine's life: hello, one assignment, one run of the runner, the end.

    booting --hello 200--> waiting --assignment--> running --runner exits--> ended
       |                      |                       |
       +-- boot_timeout,      +-- 410, no_contact,    +-- end command, notice, max_runtime
           refused                notice, end             (each stops the runner first)

The main thread alone decides; other threads only put messages into its inbox. A running job is ended here for two
reasons only: the cloud is taking the machine, or a limit of its pool is passed. Before the cloud takes it, the image's
on-interruption hook runs beside the job.
"""

# pathlib alone would take a megabyte for every machine:
# ruff: noqa: PTH103, PTH118, PTH120

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from typing import Any

from runners.agent.client import Client, Unreachable
from runners.agent.hooks import HookListener, write_hooks
from runners.agent.host import Host
from runners.agent.interruption_hook import HookEnd, InterruptionHook
from runners.agent.notices import Notice
from runners.agent.notices import start as start_watches
from runners.agent.reporter import Reporter
from runners.agent.runner import CannotStart, Command, Runner, github_command, gitlab_command
from runners.agent.session import Backoff, Later, Refused, Session
from runners.agent.user import User, choose_user

_HOLD_S = 25.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Life:
    """Runs in `folder` (its current folder). `boot` is the parsed boot document."""

    def __init__(self, boot: dict[str, Any], *, folder: str, host: Host) -> None:
        self._boot = boot
        self._folder = folder
        self._host = host
        self._born = time.monotonic()
        self._user = User("")
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        client = Client(boot["daemon_url"], boot.get("ca_pem", ""))
        self._session = Session(
            client,
            provider=boot["provider"],
            batch=boot.get("batch", ""),
            evidence=host.evidence,
            find_batch=host.find_batch,
        )
        self._reporter = Reporter(
            self._session,
            on_command=lambda command: self._inbox.put(("command", command)),
            on_refused=lambda: self._inbox.put(("end", "refused")),
        )
        self._runner: Runner | None = None
        self._runner_name = ""
        self._env: dict[str, str] = {}
        self._job_started_at: float | None = None
        self._is_job_completed = False
        self._max_job_runtime_s = float("inf")
        self._stop_at = float("inf")
        self._reclaim_at = float("inf")
        self._end_after_job = ""
        self._hook = InterruptionHook(
            boot.get("image", {}).get("hook_on_interruption", ""),
            limit_s=boot.get("hook_limit_s"),
            wake=lambda: self._inbox.put(("hook_exited", None)),
        )

    def run(self) -> None:
        """Returns when the machine has nothing left to do; the caller powers it off."""
        start_watches(self._host.watches, lambda notice: self._inbox.put(("notice", notice)))
        self._user = choose_user(self._boot.get("image", {}), folder=self._folder, metadata=self._host.metadata)
        if self._user.remark:
            log(self._user.remark)
        threading.Thread(target=self._ask, name="asker", daemon=True).start()
        while True:
            try:
                kind, value = self._inbox.get(timeout=self._tick_s())
            except queue.Empty:
                kind, value = "tick", None
            if self._job_started_at is None and self._runner is not None and self._runner.has_builds:
                self._note_job("job_started")
            cause = self._handle(kind, value)
            if not cause:
                self._tend_hook()
                cause = self._overdue()
            if cause:
                self._end(cause)
                return

    # ------------------------------------------------------------------ messages

    def _handle(self, kind: str, value: Any) -> str:
        """Take in one message; returns the cause when it ends the machine."""
        if kind == "assignment":
            return self._start(value)
        if kind in ("job_started", "job_completed"):
            self._note_job(kind)
        elif kind == "notice":
            return self._take_notice(value)
        elif kind == "runner_exited":
            return self._finish(value)
        elif (kind == "command" and value == "end") or kind == "end":
            cause = "not_needed" if kind == "command" else str(value)
            if not self._runs_job:
                return cause
            # The daemon decided before it knew of the job: let it finish (a cloud call can still end the machine).
            self._end_after_job = cause
        return ""

    @property
    def _runs_job(self) -> bool:
        """From the job's start until the runner's own exit: after the completed hook it still sends the result."""
        return self._job_started_at is not None and self._runner is not None

    def _note_job(self, kind: str) -> None:
        # The hook and the runner's own output both tell: the first one counts.
        if kind == "job_started" and self._job_started_at is None:
            self._job_started_at = time.monotonic()
            self._reporter.report("job_started")
        elif kind == "job_completed" and not self._is_job_completed:
            self._is_job_completed = True
            self._reporter.report("job_completed")

    def _take_notice(self, notice: Notice) -> str:
        """Every notice is told; a final one leaves the job until shortly before. A reclaim ends a machine without a
        job at once; maintenance may be days away."""
        at = notice.reclaim_at
        self._reporter.report("notice", reclaim_at=f"{at:.3f}", kind=notice.kind, source=notice.source)
        if not notice.is_final:
            return ""
        left_s = max(0.0, at - time.time())
        self._reclaim_at = min(self._reclaim_at, time.monotonic() + left_s)
        grace_s = min(float(self._boot.get("stop_grace_s", 30.0)), left_s / 2)
        self._stop_at = min(self._stop_at, time.monotonic() + left_s - grace_s)
        return "reclaimed" if notice.kind == "reclaim" and not self._runs_job else ""

    def _finish(self, code: int) -> str:
        self._report_exit(code)
        if self._job_started_at is not None:
            return "job_done"
        return self._end_after_job or "runner_failed"

    def _report_exit(self, code: int) -> None:
        runner, self._runner = self._runner, None
        self._session.runner = {"name": self._runner_name, "state": "exited"}
        detail = {"exit_code": str(code), "ran_job": "true" if self._job_started_at is not None else "false"}
        if runner is not None and self._job_started_at is None:
            detail["output"] = runner.tail
        self._reporter.report("runner_exited", **detail)

    # ------------------------------------------------------------------ the runner

    def _start(self, assignment: dict[str, Any]) -> str:
        self._reporter.report("assignment_received")
        self._runner_name = str(assignment.get("runner_name", ""))
        self._max_job_runtime_s = float(assignment.get("max_job_runtime_s", "inf"))
        secret = str(assignment.get("secret", ""))
        try:
            self._runner = Runner(
                self._command(str(assignment.get("kind", "")), secret, assignment.get("parameters") or {}),
                secret=secret,
                user=self._user,
                log_path="runner.log",
                on_line_kind=lambda kind: self._inbox.put((kind, None)),
                on_exit=lambda code: self._inbox.put(("runner_exited", code)),
            )
        except CannotStart as error:
            self._reporter.report("runner_exited", exit_code="127", ran_job="false", output=str(error))
            return "runner_failed"
        self._session.runner = {"name": self._runner_name, "state": "running"}
        self._reporter.report("runner_started")
        return ""

    def _command(self, kind: str, secret: str, parameters: dict[str, str]) -> Command:
        image = self._boot.get("image", {})
        program = image.get(f"{kind}_runner", "")
        if self._user.problem:
            raise CannotStart(self._user.problem)
        if kind not in ("github", "gitlab") or not program:
            raise CannotStart(f"the image has no {kind} runner")
        if kind == "github" and not self._user.may_write(program):
            raise CannotStart(f"{program} must belong to user {self._user.name}: the runner writes beside itself")
        env = self._env = self._environment()
        if kind == "gitlab":
            return gitlab_command(program, secret, parameters, env)
        chained = {name: image[f"hook_{name}"] for name in ("job_started", "job_completed") if f"hook_{name}" in image}
        hooks = write_hooks(self._folder, chained)
        HookListener(lambda heard: self._inbox.put((heard, None)), uid=self._user.uid)
        return github_command(program, secret, hooks, env)

    def _environment(self) -> dict[str, str]:
        """All that the runner gets of ours: nothing is inherited."""
        home = self._user.home or os.path.join(self._folder, "home")
        os.makedirs(home, exist_ok=True)
        if self._user.uid is not None and not self._user.home:
            os.chown(home, self._user.uid, self._user.gid or 0)
        env = {
            "PATH": f"{_PATH}:{os.path.dirname(sys.executable)}",
            "HOME": home,
            "LANG": "C.UTF-8",
            "USER": "runner" if self._user.uid is None else self._user.name,
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),  # noqa: S108 - the machine's own
        }
        if self._user.uid is not None:
            env["LOGNAME"] = self._user.name
        elif os.getuid() == 0:
            env["RUNNER_ALLOW_RUNASROOT"] = "1"
        return env

    # ------------------------------------------------------------------ the hook

    def _tend_hook(self) -> None:
        """Before the stop that a final notice asks for, and only while there is a job that it may save something of."""
        now = time.monotonic()
        ended = self._hook.look(now, self._stop_at)
        if self._runs_job and self._hook.is_due(now, self._stop_at):
            log("a job's machine is taken: the on-interruption hook runs")
            ended = self._hook.start(now, user=self._user, env=self._hook_environment(now), log_path="hook.log")
        self._tell_hook(ended)

    def _hook_environment(self, now: float) -> dict[str, str]:
        left_s = min(self._hook.limit_s, self._stop_at - now)
        return {
            **self._env,  # as it was: what is there by now is the job's, and nothing of it is touched
            "RUNNER_NAME": self._runner_name,
            "AUTOSCALER_RECLAIM_AT": str(int(time.time() + self._reclaim_at - now)),
            "AUTOSCALER_SECONDS_LEFT": str(int(left_s)),
        }

    def _tell_hook(self, ended: HookEnd | None) -> None:
        if ended is None:
            return
        code = {"exit_code": ended.exit_code} if ended.exit_code else {}
        self._reporter.report("hook_ended", seconds=f"{ended.seconds:.3f}", outcome=ended.outcome, **code)
        log(f"the on-interruption hook ended after {ended.seconds:.1f} s: {ended.outcome} {ended.exit_code}".rstrip())

    # ------------------------------------------------------------------ the end

    def _overdue(self) -> str:
        """The cause of the dead man's timer that ran out, if any."""
        now = time.monotonic()
        if now >= self._stop_at:
            return "reclaimed"
        if now - self._born >= float(self._boot["max_lifetime_s"]):
            return "max_lifetime"
        if self._runs_job and now - (self._job_started_at or now) >= self._max_job_runtime_s:
            return "max_runtime"
        if not self._session.is_accepted:
            return "boot_timeout" if now - self._born >= float(self._boot["boot_timeout_s"]) else ""
        if not self._runs_job and now - self._session.last_contact >= float(self._boot.get("no_contact_s", 300.0)):
            return "no_contact"
        return ""

    def _tick_s(self) -> float:
        limits = [float(self._boot["boot_timeout_s"]), float(self._boot.get("no_contact_s", 300.0))]
        until = self._hook.until(self._stop_at) if self._hook.is_running else self._stop_at
        return max(0.02, min(0.5, until - time.monotonic(), self._max_job_runtime_s / 4, *limits))

    def _end(self, cause: str) -> None:
        self._tell_hook(self._hook.stop("timed_out" if self._runner is not None else "job_ended"))
        if self._runner is not None:
            self._reporter.report("runner_stopping", cause=cause)
            grace_s = min(float(self._boot.get("stop_grace_s", 30.0)), self._left_s())
            self._report_exit(self._runner.stop(grace_s))
        self._reporter.report("ending", cause=cause)
        log(f"ending: {cause}")
        if self._session.is_accepted and cause != "refused":
            self._reporter.flush(min(float(self._boot.get("flush_s", 10.0)), self._left_s()))

    def _left_s(self) -> float:
        """Time until the reclaim, less what the last report takes."""
        return max(0.5, self._reclaim_at - time.monotonic() - 0.5)

    # ------------------------------------------------------------------ threads

    def _ask(self) -> None:
        """Says hello until accepted, then asks for the assignment until there is one."""
        backoff = Backoff()
        while True:
            try:
                if not self._session.is_accepted:
                    self._session.about.update(self._user.about())
                    self._session.hello()
                    log("hello accepted")
                answer = self._session.call("/agent/v1/assignment", {}, timeout_s=_HOLD_S + 10.0)
                backoff.reset()
                if answer.status == 200:
                    self._inbox.put(("assignment", answer.body))
                    return
                if answer.status == 410:
                    self._inbox.put(("end", "not_needed"))
                    return
                if answer.status != 204:
                    raise Unreachable(f"assignment was answered {answer.status}")
            except Refused:
                self._inbox.put(("end", "refused"))
                return
            except Later as later:
                time.sleep(later.retry_after_s)
            except Unreachable as error:
                log(f"daemon not reached: {error}")
                time.sleep(backoff.next_s())


def log(text: str) -> None:
    """One line on stderr: the machine's console. Never a secret."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} agent {text}", file=sys.stderr, flush=True)
