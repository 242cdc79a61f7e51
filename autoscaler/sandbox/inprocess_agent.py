"""A simulated machine's agent and runner: docs/agent-protocol.md, as tasks of an event loop instead of processes.

    booting --hello 200--> waiting --assignment--> running --runner exits--> ended

One `Agent` is one machine's life; cancelling its task is the loss of its power. It survives daemons that crash by
repeating its calls. What it says to the forge goes straight to the pure worlds.
"""

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from autoscaler.sandbox.github_model import GitHubError
from autoscaler.sandbox.gitlab_model import GitLabRefusal, Offer
from autoscaler.sandbox.gitlab_model import JobStatus as Word
from autoscaler.sandbox.inprocess_github import GitHubSite
from autoscaler.sandbox.inprocess_gitlab import GitLabSite
from autoscaler.spi import Clock

Answer = tuple[int, dict[str, Any]]
Told = Callable[[str], None]
RunnerProgram = Callable[[str, Mapping[str, str], Told], Awaitable[int]]
"""(secret, parameters, told) -> exit code; `told` hears "job_started" and "job_completed"."""

HOLD_S = 35.0
CALL_S = 10.0
BATCH = 16
STOPPED = "stopped by its agent"
"""Why a runner's task is cancelled when it may still speak; without it the machine lost its power."""
RECLAIMED = "stopped by its agent for a reclaim"
_POLL_S = 1.0
_RENEW_S = 60.0


class Unreachable(Exception):
    """No usable answer: the call may have taken effect."""


class _Refused(Exception):
    """The daemon wants nothing to do with this machine, for good."""


class DaemonLine(Protocol):
    """The machine's way to the daemon. Raises Unreachable."""

    async def post(self, path: str, body: Mapping[str, Any], *, key: str, timeout_s: float) -> Answer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BootValues:
    """What of the boot document an agent needs, in seconds."""

    provider: str
    batch: str
    boot_timeout_s: float
    max_lifetime_s: float
    no_contact_s: float = 300.0
    stop_grace_s: float = 30.0
    flush_s: float = 10.0


@dataclass(slots=True)
class _Session:
    """What one machine knows of its daemon."""

    instance: str = ""
    heartbeat_s: float = 5.0
    runner: dict[str, str] | None = None
    last_contact: float = 0.0
    pending: list[dict[str, Any]] = field(default_factory=list)
    next_seq: int = 1
    is_refused: bool = False


class Agent:
    """See the module docstring. `programs` are the runners of its image by kind; `dice` is this machine's own."""

    def __init__(
        self,
        boot: BootValues,
        *,
        line: DaemonLine,
        clock: Clock,
        evidence: Callable[[str], Mapping[str, str]],
        programs: Mapping[str, RunnerProgram],
        dice: random.Random,
    ) -> None:
        self._boot = boot
        self._line = line
        self._clock = clock
        self._evidence = evidence
        self._programs = programs
        self._dice = dice
        key = dice.randbytes(32)
        self.key = key.hex()
        self.claim = hashlib.sha256(key).hexdigest()
        self._session = _Session(last_contact=clock.monotonic())
        self._born = clock.monotonic()
        self._inbox: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._news = asyncio.Event()
        self._runner: asyncio.Task[int] | None = None
        self._job_started_at: float | None = None
        self._is_job_completed = False
        self._max_job_runtime_s = float("inf")
        self._end_after_job = ""
        self._stop_at = self._reclaim_at = float("inf")
        self.runner_name = ""
        """Set once an assignment arrived."""

    @property
    def runs_job(self) -> bool:
        """From the job's start until the runner's exit."""
        return self._job_started_at is not None and self._runner is not None

    async def run(self) -> str:
        """Live. Returns the cause of the end."""
        helpers = [asyncio.create_task(self._ask()), asyncio.create_task(self._tell())]
        try:
            while True:
                cause = ""
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.01, self._left_s())):
                        kind, value = await self._inbox.get()
                        cause = self._handle(kind, value)
                cause = cause or self._overdue()
                if cause:
                    await self._end(cause)
                    return cause
        finally:
            for task in (*helpers, *((self._runner,) if self._runner is not None else ())):
                task.cancel()

    # ------------------------------------------------------------------ messages

    def _handle(self, kind: str, value: Any) -> str:
        """Take in one message; the cause when it ends the machine."""
        match kind:
            case "assignment":
                self._start(value)
            case "job_started" if self._job_started_at is None:
                self._job_started_at = self._clock.monotonic()
                self._report("job_started")
            case "job_completed" if not self._is_job_completed:
                self._is_job_completed = True
                self._report("job_completed")
            case "runner_exited":
                self._report_exit(value)
                return "job_done" if self._job_started_at is not None else self._end_after_job or "runner_failed"
            case "notice":
                return self._take_notice(value)
            case "end":
                if not self.runs_job:
                    return str(value)
                # The daemon decided before it knew of the job: let it finish.
                self._end_after_job = str(value)
        return ""

    def warn(self, reclaim_at: float) -> None:
        """Its host tells that the machine will be taken, at epoch seconds."""
        self._put("notice", reclaim_at)

    def _take_notice(self, reclaim_at: float) -> str:
        self._report("notice", reclaim_at=f"{reclaim_at:.3f}", source="host")
        left_s = max(0.0, reclaim_at - self._clock.now().timestamp())
        self._reclaim_at = self._clock.monotonic() + left_s
        self._stop_at = self._reclaim_at - min(self._boot.stop_grace_s, left_s / 2)
        return "" if self.runs_job else "reclaimed"

    def _start(self, assignment: Mapping[str, Any]) -> None:
        self._report("assignment_received")
        self.runner_name = str(assignment["runner_name"])
        self._max_job_runtime_s = float(assignment["max_job_runtime_s"])
        program = self._programs[str(assignment["kind"])]
        work = program(assignment["secret"], assignment["parameters"], self._put)
        self._runner = asyncio.ensure_future(work)
        self._runner.add_done_callback(self._exited)
        self._session.runner = {"name": self.runner_name, "state": "running"}
        self._report("runner_started")

    def _exited(self, runner: "asyncio.Task[int]") -> None:
        if not runner.cancelled():
            self._put("runner_exited", runner.result())

    def _put(self, kind: str, value: Any = None) -> None:
        self._inbox.put_nowait((kind, value))

    def _report_exit(self, code: int) -> None:
        self._runner = None
        self._session.runner = {"name": self.runner_name, "state": "exited"}
        ran_job = "true" if self._job_started_at is not None else "false"
        self._report("runner_exited", exit_code=str(code), ran_job=ran_job)

    # ------------------------------------------------------------------ the end

    def _limits(self) -> list[tuple[float, str]]:
        limits = [(self._stop_at, "reclaimed"), (self._born + self._boot.max_lifetime_s, "max_lifetime")]
        if self.runs_job and self._job_started_at is not None:
            limits.append((self._job_started_at + self._max_job_runtime_s, "max_runtime"))
        if not self._session.instance:
            limits.append((self._born + self._boot.boot_timeout_s, "boot_timeout"))
        elif not self.runs_job:
            limits.append((self._session.last_contact + self._boot.no_contact_s, "no_contact"))
        return limits

    def _overdue(self) -> str:
        now = self._clock.monotonic()
        return next((cause for at, cause in self._limits() if at <= now), "")

    def _left_s(self) -> float:
        return min(at for at, _ in self._limits()) - self._clock.monotonic()

    async def _end(self, cause: str) -> None:
        if self._runner is not None:
            runner = self._runner
            self._report("runner_stopping", cause=cause)
            runner.cancel(RECLAIMED if cause == "reclaimed" else STOPPED)
            await asyncio.wait({runner}, timeout=self._boot.stop_grace_s)
            self._report_exit(143)
        self._report("ending", cause=cause)
        deadline = self._clock.monotonic() + self._boot.flush_s
        session = self._session
        while session.instance and session.pending and not session.is_refused and self._clock.monotonic() < deadline:
            await self._clock.sleep(0.1)

    # ------------------------------------------------------------------ calls

    async def _ask(self) -> None:
        """Say hello until accepted, then ask for the assignment until there is one."""
        attempts = 0
        while True:
            try:
                if not self._session.instance:
                    await self._hello()
                status, body = await self._call("/agent/v1/assignment", {}, timeout_s=HOLD_S)
                attempts = 0
                if status == 200:
                    return self._put("assignment", body)
                if status == 410:
                    return self._put("end", "not_needed")
                if status != 204:
                    raise Unreachable(f"assignment was answered {status}")
            except _Refused:
                return self._put("end", "refused")
            except Unreachable:
                attempts += 1
                await self._clock.sleep(self._pause_s(attempts))

    async def _hello(self) -> None:
        """One hello. Raises _Refused, Unreachable."""
        body = {
            "provider": self._boot.provider,
            "batch": self._boot.batch,
            "claim": self.claim,
            "evidence": dict(self._evidence(self.claim)),
            "agent": {"version": "1"},
            "runner": self._session.runner,
        }
        status, answer = await self._line.post("/agent/v1/hello", body, key="", timeout_s=CALL_S)
        if status == 200:
            self._session.instance = str(answer["instance"])
            self._session.heartbeat_s = float(answer["heartbeat_s"])
            self._session.last_contact = self._clock.monotonic()
            self._news.set()
        elif status in (403, 410):
            raise _Refused(f"hello was answered {status}")
        elif status in (429, 503):
            await self._clock.sleep(1.0)
            raise Unreachable("not known yet")
        else:
            raise Unreachable(f"hello was answered {status}")

    async def _call(self, path: str, extra: Mapping[str, Any], *, timeout_s: float = CALL_S) -> Answer:
        """A call with the claim key; a daemon that does not know the key gets a hello and the call again."""
        status, body = await self._post(path, extra, timeout_s)
        if status == 401:
            await self._hello()
            status, body = await self._post(path, extra, timeout_s)
        if status == 403:
            raise _Refused(f"{path} was answered 403")
        if status in (401, 429) or status >= 500:
            raise Unreachable(f"{path} was answered {status}")
        self._session.last_contact = self._clock.monotonic()
        return status, body

    async def _post(self, path: str, extra: Mapping[str, Any], timeout_s: float) -> Answer:
        body = {"instance": self._session.instance, **extra}
        return await self._line.post(path, body, key=self.key, timeout_s=timeout_s)

    def _pause_s(self, attempts: int) -> float:
        return min(5.0, 0.1 * 2.0 ** min(attempts, 10)) * self._dice.uniform(0.5, 1.0)

    # ------------------------------------------------------------------ events

    def _report(self, kind: str, **detail: str) -> None:
        session = self._session
        at = self._clock.now().timestamp()
        session.pending.append({"seq": session.next_seq, "at": at, "kind": kind, "detail": detail})
        session.next_seq += 1
        self._news.set()

    async def _tell(self) -> None:
        """Send what is pending, or a heartbeat, until refused."""
        session, attempts = self._session, 0
        while True:
            self._news.clear()
            try:
                if session.instance:
                    await self._send()
                    attempts = 0
            except _Refused:
                session.is_refused = True
                return self._put("end", "refused")
            except Unreachable:
                attempts += 1
                await self._clock.sleep(self._pause_s(attempts))
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(session.heartbeat_s if session.instance else None):
                    await self._news.wait()

    async def _send(self) -> None:
        session = self._session
        if not session.pending:
            self._report("heartbeat")
            self._news.clear()
        batch = session.pending[:BATCH]
        status, answer = await self._call("/agent/v1/events", {"events": batch})
        if status == 410:
            raise _Refused("events were answered 410")
        if status != 200:
            raise Unreachable(f"events were answered {status}")
        acknowledged = int(answer["acknowledged"])
        sent = {event["seq"] for event in batch if event["kind"] == "heartbeat"}
        session.pending = [e for e in session.pending if e["seq"] > acknowledged and e["seq"] not in sent]
        if answer["command"] == "end":
            self._put("end", "not_needed")


def github_program(
    site: GitHubSite, dice: random.Random, *, took: Callable[[int], None], cut: Callable[[int], None]
) -> RunnerProgram:
    """`run.sh --jitconfig` as a task: connect, poll, run one job, leave. `took` hears the id of the job, `cut` that of
    one that was ended for a reclaim."""

    async def run(secret: str, _: Mapping[str, str], told: Told) -> int:
        world = site.world
        await site.clock.sleep(dice.uniform(0.3, 1.5))
        try:
            runner_id = site.runner_of(secret)
        except GitHubError:
            return 1
        try:
            world.connect(runner_id, site.now)
            site.settle()
            while (job := world.take_job(runner_id, site.now)) is None:
                await site.clock.sleep(_POLL_S)
            took(job.id)
            site.settle()
            told("job_started")
            left_s = job.spec.duration_s
            while left_s > 0 and not world.cancel_asked(runner_id):
                await site.clock.sleep(min(left_s, _RENEW_S))
                left_s -= _RENEW_S
                world.renew(runner_id, site.now)
            was_cancelled = world.cancel_asked(runner_id)
            told("job_completed")
            world.complete(
                runner_id, "cancelled" if was_cancelled else "failure" if job.spec.fails else "success", site.now
            )
            site.settle()
        except GitHubError:
            return 1  # The registration is gone, or the job is no longer ours.
        except asyncio.CancelledError as why:
            if why.args in ((STOPPED,), (RECLAIMED,)):
                # What a graceful end comes to differs by what the job was doing.
                is_reclaim = why.args == (RECLAIMED,)
                if is_reclaim and (held := site.world.runner(runner_id).job_id) is not None:
                    cut(held)
                is_failed = not is_reclaim or dice.random() < 0.5
                _leave_github(site, runner_id, "failure" if is_failed else "cancelled")
            raise
        await site.clock.sleep(dice.uniform(0.1, 0.5))
        return 0

    return run


def _leave_github(site: GitHubSite, runner_id: int, conclusion: Literal["failure", "cancelled"]) -> None:
    """A runner that was told to stop: it ends its job, or closes its session."""
    with contextlib.suppress(GitHubError):
        if site.world.runner(runner_id).busy:
            site.world.complete(runner_id, conclusion, site.now)
        else:
            site.world.disconnect(runner_id, site.now)
    site.settle()


def gitlab_program(
    site: GitLabSite, dice: random.Random, *, took: Callable[[int], None], cut: Callable[[int], None]
) -> RunnerProgram:
    """`gitlab-runner run-single --max-builds 1` as a task: ask, confirm, touch, report the end."""

    async def run(secret: str, _: Mapping[str, str], told: Told) -> int:
        system_id = f"s_{dice.getrandbits(48):012x}"
        await site.clock.sleep(dice.uniform(0.3, 1.5))
        try:
            while (offer := site.world.request_job(secret, system_id, site.now)) is None:
                await site.clock.sleep(_POLL_S)
            await site.clock.sleep(dice.uniform(0.05, 0.3))
            site.world.update_job(offer.token, "running", site.now)
            took(offer.job_id)
            site.settle()
            told("job_started")
            try:
                state = await _work(site, offer)
            except asyncio.CancelledError as why:
                if why.args == (RECLAIMED,):
                    cut(offer.job_id)
                if why.args in ((STOPPED,), (RECLAIMED,)):
                    site.world.update_job(offer.token, "failed", site.now, failure_reason="runner_system_failure")
                    site.settle()
                raise
            told("job_completed")
            reason = "script_failure" if state == "failed" else None
            site.world.update_job(offer.token, state, site.now, failure_reason=reason)
            site.settle()
        except GitLabRefusal:
            return 1
        await site.clock.sleep(dice.uniform(0.1, 0.5))
        return 0

    return run


async def _work(site: GitLabSite, offer: Offer) -> str:
    """Run the job and keep its row fresh; the state to report."""
    left_s = offer.spec.duration_s
    while left_s > 0:
        await site.clock.sleep(min(left_s, _RENEW_S))
        left_s -= _RENEW_S
        answer = site.world.update_job(offer.token, "running", site.now)
        if answer.job_status is Word.CANCELING:
            return "failed"
    return "failed" if offer.spec.fails else "success"
