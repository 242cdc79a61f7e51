"""Carry out the actions that only a forge can do: register, deregister, seal, settle, sweep, hold, requeue.

Part of apply, with the same rule: intent durable first, then the call. Every failure gets a time before which its
action is not tried again, and an unhealthy forge is put on record for /readyz.
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import partial
from typing import Any, assert_never

import structlog

from autoscaler.backoff import Backoff
from autoscaler.facts import Fact, JobRead
from autoscaler.health import Health
from autoscaler.http.agents import AgentDesk
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import (
    HoldQueue,
    Instance,
    InstanceState,
    Job,
    JobState,
    LedgerEntry,
    Register,
    Requeue,
    Seal,
    Settle,
    SweepRunner,
    Withdraw,
    job_id,
)
from autoscaler.names import runner_name
from autoscaler.sightings import REQUEUED, Sightings, dump_requeued, work_key
from autoscaler.spi import (
    AlreadyRequeued,
    Clock,
    Conclusion,
    Forge,
    ForgeError,
    ForgeName,
    ForgeOutcomeUnknown,
    ForgeRefused,
    ForgeRefusedForGood,
    ForgeUnauthorized,
    JobNotFound,
    JobStatus,
    NotYet,
    RateLimited,
    Registration,
    RunnerBusy,
    RunnerRef,
)

log = structlog.get_logger()

CALL_S = 30.0
REFUSAL_LASTS = timedelta(minutes=2)
"""How long a refused call counts as ill if it is not tried again: what needs it tries again each minute."""

_S = InstanceState

Call = Callable[[], Coroutine[Any, Any, None]]
"""What an action asks of the outside, to be started once its intent is durable."""
ForgeAction = Register | Withdraw | Seal | Settle | SweepRunner | HoldQueue | Requeue


class Answer(Enum):
    """What a deregistration came to. After UNKNOWN the runner may be sealed, and must be asked for again."""

    GONE = auto()
    BUSY = auto()
    UNKNOWN = auto()


class ForgeCalls:
    """Executes forge actions for the Applier."""

    def __init__(
        self,
        *,
        rows: LiveRows,
        sightings: Sightings,
        forges: Mapping[ForgeName, Forge],
        desk: AgentDesk,
        clock: Clock,
        metrics: Metrics,
        health: Health,
        report: Callable[[Fact], None],
        runner_prefix: str,
    ) -> None:
        self._rows = rows
        self._seen = sightings
        self._forges = forges
        self._desk = desk
        self._clock = clock
        self._metrics = metrics
        self._health = health
        self._report = report
        self._runner_prefix = runner_prefix
        self._backoff = Backoff(sightings, clock)
        self._gates: defaultdict[ForgeName, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(16))

    def intend(self, action: ForgeAction, now: datetime) -> Call | None:
        """Change the rows for an action; the Call does the rest."""
        match action:
            case Register():
                return self._intend_register(action, now)
            case Withdraw():
                row = self._rows.instances.get(action.instance)
                return partial(self._withdraw, row, action) if row is not None else None
            case Seal():
                row = self._rows.instances.get(action.instance)
                return partial(self._seal, row, action) if row is not None else None
            case Settle():
                job = self._rows.jobs.get(action.job)
                return partial(self._settle, job, action) if job is not None else None
            case SweepRunner():
                self._note("sweep", action.runner.name, "", action.reason, "asked")
                self._metrics.orphans_total.inc()
                return partial(self._sweep, action)
            case HoldQueue():
                return partial(self._hold, action, now)
            case Requeue():
                return partial(self._requeue, action)
            case _:
                assert_never(action)

    # ------------------------------------------------------------------ registrations

    def _intend_register(self, action: Register, now: datetime) -> Call | None:
        row = self._rows.instances.get(action.instance)
        if row is None or row.state is not _S.READY:
            return None
        # A name is used once: a registration whose answer got lost is an orphan under its own name, never in our way.
        name = runner_name(self._runner_prefix, row)
        row = self._rows.move(
            row,
            _S.REGISTERING,
            now=now,
            cause=action.reason,
            demand=action.demand,
            runner_name=name,
            runner_id=None,
        )
        self._desk.minting.add(row.id)
        return partial(self._register, row, action)

    async def _register(self, row: Instance, action: Register) -> None:
        try:
            registration = await self._mint(row, action)
            current = self._registering(row)
            if registration is None or current is None:
                return
            # The id is durable before the secret leaves: from then on the runner may take a job.
            self._rows.amend(current, runner_id=registration.ref.runner_id, since=self._clock.now())
            await self._rows.flush()
            if self._registering(row) is not None:
                self._desk.hand_over(row.id, registration)
        finally:
            self._desk.minting.discard(row.id)

    async def _mint(self, row: Instance, action: Register) -> Registration | None:
        """The registration; None when there is none, and the machine is ready again or going."""
        demand = action.demand

        async def mint(forge: Forge) -> Registration | None:
            if self._registering(row) is None:
                return None  # it waited for its turn so long that its machine is going
            return await forge.register(
                scope=demand.scope, group=demand.group, name=row.runner_name, labels=demand.labels
            )

        try:
            minted: Registration | None = await self._call(demand.forge, "register", mint)
        except ForgeError as error:
            self._backoff.failed(demand.key if isinstance(error, ForgeRefused) else demand.forge_key, error)
            self._unregister(row, f"the forge did not register it: {_one_line(error)}")
            if isinstance(error, ForgeRefused):
                self._note("register", row.id, row.pool, _one_line(error), "refused")
            await self._rows.flush()
            return None
        self._backoff.worked(demand.forge_key)
        return minted

    def _registering(self, row: Instance) -> Instance | None:
        """The row as it is now, while it still waits for this very registration."""
        current = self._rows.instances.get(row.id)
        is_same = current is not None and current.runner_name == row.runner_name
        return current if is_same and current is not None and current.state is _S.REGISTERING else None

    def _unregister(self, row: Instance, cause: str) -> None:
        current = self._registering(row)
        if current is not None:
            self._desk.take_back(row.id)
            self._rows.move(
                current,
                _S.READY,
                now=self._clock.now(),
                cause=cause,
                demand=None,
                runner_name="",
                runner_id=None,
            )

    async def _withdraw(self, row: Instance, action: Withdraw) -> None:
        """Without an id there is nothing to take back yet: a registration that exists is swept as an orphan, and its
        secret was never told to anybody."""
        if row.runner is None or await self.deregister(row, job_is_done=False) is Answer.GONE:
            self._backoff.worked(action.key)
            self._unregister(row, action.reason)
            await self._rows.flush()
        else:
            self._backoff.again(action.key)

    async def deregister(self, row: Instance, *, job_is_done: bool) -> Answer:
        """Have the forge let a runner go. One whose id we do not know is gone when a listing that was asked for
        after it got its name does not show it: listings fill the id in."""
        runner = row.runner
        if runner is None or row.demand is None:
            forges = [row.demand.forge] if row.demand is not None else list(self._forges)
            listed = [self._seen.runners_listed.get(forge) for forge in forges] if row.runner_name else []
            return Answer.GONE if all(at is not None and at > row.since for at in listed) else Answer.UNKNOWN
        forge_name = row.demand.forge
        try:
            await self._call(forge_name, "deregister", lambda forge: forge.deregister(runner, job_is_done=job_is_done))
        except RunnerBusy:
            self._note("release", row.id, row.pool, "the forge says its runner runs a job", "kept")
            return Answer.BUSY
        except ForgeError as error:
            log.warning("deregister_failed", instance=row.id, forge=forge_name, error=_one_line(error))
            return Answer.UNKNOWN
        return Answer.GONE

    async def _seal(self, row: Instance, action: Seal) -> None:
        runner = row.runner
        if runner is None or row.demand is None:
            return
        try:
            await self._call(row.demand.forge, "seal", lambda forge: forge.seal(runner))
        except ForgeError as error:
            self._backoff.failed(action.key, error)
        else:
            self._backoff.worked(action.key)
            self._seen.sealed.add(row.id)

    async def _sweep(self, action: SweepRunner) -> None:
        runner: RunnerRef = action.runner
        try:
            await self._call(action.forge, "deregister", lambda forge: forge.deregister(runner))
        except ForgeError as error:
            self._backoff.failed(action.key, error)
        else:
            self._backoff.worked(action.key)
            self._seen.orphan_runners.pop((action.forge, runner.runner_id), None)

    async def _hold(self, action: HoldQueue, now: datetime) -> None:
        digest = hashlib.sha256(f"{action.scope}|{'|'.join(action.labels)}".encode()).hexdigest()[:12]
        name = f"{self._runner_prefix}hold-{digest}"
        try:
            await self._call(
                action.forge,
                "hold_queue",
                lambda forge: forge.hold_queue(scope=action.scope, group="", labels=action.labels, name=name),
            )
        except ForgeError as error:
            self._backoff.failed(action.key, error)
        else:
            self._backoff.worked(action.key)
            self._seen.holders[action.forge, action.scope, action.labels] = (name, now)
            self._note("hold_queue", name, action.pool, action.reason, "done")

    # ------------------------------------------------------------------ jobs

    async def _settle(self, job: Job, action: Settle) -> None:
        try:
            seen = await self._call(job.forge, "get_job", lambda forge: forge.get_job(job.repo, job.forge_job_id))
        except JobNotFound:
            self._backoff.worked(action.key)
            self._report(JobRead(job=job.id, seen=None))
        except ForgeError as error:
            self._backoff.failed(action.key, error)
        else:
            self._backoff.worked(action.key)
            self._report(JobRead(job=job.id, seen=seen))

    async def _requeue(self, action: Requeue) -> None:
        jobs = [job for id_ in action.jobs if (job := self._rows.jobs.get(id_)) and job.state is JobState.LOST]
        if not jobs:
            return
        if not (jobs := await self._still_lost(jobs, action)):
            return
        ids = [job.forge_job_id for job in jobs]
        successors: Mapping[str, str] = {}
        outcome = "requeued"
        try:
            result = await self._call(
                action.forge, "requeue", lambda forge: forge.requeue(action.repo, action.run_id, ids)
            )
            successors = result.successors
        except AlreadyRequeued as error:
            outcome = "already requeued"
            successors = {ids[0]: error.successor} if error.successor and len(ids) == 1 else {}
        except NotYet as error:
            self._backoff.worked(action.key)
            retry_at = self._clock.now() + timedelta(seconds=error.retry_after_s)
            for job in jobs:
                if (current := self._rows.jobs.get(job.id)) is not None and current.state is JobState.LOST:
                    self._rows.amend_job(current, retry_at=retry_at, reason=_one_line(error))
            await self._rows.flush()
            return
        except (JobNotFound, ForgeRefusedForGood) as error:
            self._backoff.worked(action.key)
            self._give_up(jobs, _one_line(error))
            await self._rows.flush()
            return
        except ForgeError as error:
            self._backoff.failed(action.key, error)
            return
        self._backoff.worked(action.key)
        self._requeued(jobs, successors, action, outcome)
        await self._rows.flush()

    async def _still_lost(self, jobs: list[Job], action: Requeue) -> list[Job]:
        """Those that the forge does not know to have ended well, or to be gone: a job that succeeded is not run again,
        and the facts settle the others."""
        lost = []
        for job in jobs:
            try:
                seen = await self._call(job.forge, "get_job", _reading(job))
            except JobNotFound:
                self._report(JobRead(job=job.id, seen=None))
            except ForgeError as error:
                self._backoff.failed(action.key, error)
                return []
            else:
                if seen.conclusion is Conclusion.SUCCESS or seen.status is JobStatus.QUEUED:
                    self._report(JobRead(job=job.id, seen=seen))
                else:
                    lost.append(job)
        return lost

    def _give_up(self, jobs: list[Job], why: str) -> None:
        """The forge will never run these again, whatever we ask."""
        for job in jobs:
            current = self._rows.jobs.get(job.id)
            if current is not None and current.state is JobState.LOST:
                reason = f"superseded: the forge refuses to run it again: {why}"
                self._rows.move_job(current, JobState.ABANDONED, reason=reason, finished_at=self._clock.now())
                self._note("requeue", job.id, job.pool or "", why, "refused for good")
                self._metrics.requeues_total.labels(pool=job.pool or "", outcome="refused").inc()

    def _requeued(self, jobs: list[Job], successors: Mapping[str, str], action: Requeue, outcome: str) -> None:
        for job in jobs:
            current = self._rows.jobs.get(job.id)
            if current is None or current.state is not JobState.LOST:
                continue
            new = successors.get(job.forge_job_id)
            successor = job_id(job.forge, new) if new else None
            if successor == job.id:  # its forge put the very same job back into the queue
                self._rows.move_job(
                    current, JobState.QUEUED, started_at=None, runner_name="", instance=None, reason=action.reason
                )
                continue
            self._rows.move_job(current, JobState.REQUEUED, successor=successor, reason=action.reason)
            self._seen.requeued[work_key(job.forge, job.repo, job.run_id, job.name)] = job.attempt
            self._note("requeue", job.id, job.pool or "", action.reason, outcome)
            self._metrics.requeues_total.labels(pool=job.pool or "", outcome="requeued").inc()
        self._rows.set_setting(REQUEUED, dump_requeued(self._seen.requeued))

    # ------------------------------------------------------------------ one call

    async def _call(self, name: ForgeName, call: str, make: Callable[[Forge], Any]) -> Any:
        """One bounded call; its outcome counts for the forge's health. Raises ForgeError only."""
        forge = self._forges.get(name)
        if forge is None:
            raise ForgeRefused(f"forge {name} is not configured any more")
        condition = f"forge/{name}"
        try:
            async with self._gates[name], asyncio.timeout(CALL_S):
                answer = await make(forge)
        except TimeoutError as error:
            self._metrics.forge_calls_total.labels(forge=name, outcome="timeout").inc()
            text = f"{call} took longer than {CALL_S:.0f} s"
            self._health.ill(condition, text, part=call, passes=True)
            raise ForgeError(text) from error
        except ForgeError as error:
            self._metrics.forge_calls_total.labels(forge=name, outcome=type(error).__name__).inc()
            if isinstance(error, RunnerBusy | JobNotFound | NotYet | AlreadyRequeued | ForgeRefusedForGood):
                self._health.well(condition, part=call)
            else:
                self._health.ill(
                    condition,
                    f"{call}: {_one_line(error)}",
                    remedy=_remedy(error),
                    part=call,
                    passes=not isinstance(error, ForgeUnauthorized | ForgeRefused),
                    lasts=REFUSAL_LASTS,
                )
            raise
        except Exception as error:
            log.exception("forge_adapter_broke", forge=name, call=call)
            self._health.ill(condition, f"{call}: {type(error).__name__}", part=call, passes=True)
            raise ForgeOutcomeUnknown(f"{call}: {type(error).__name__}") from error
        self._metrics.forge_calls_total.labels(forge=name, outcome="ok").inc()
        self._health.well(condition, part=call)
        return answer

    def _note(self, action: str, subject: str, pool: str, reason: str, outcome: str) -> None:
        self._rows.note(
            LedgerEntry(
                at=self._clock.now(),
                actor="autoscaler",
                action=action,
                subject=subject,
                pool=pool,
                reason=reason,
                outcome=outcome,
            )
        )


def _remedy(error: ForgeError) -> str:
    match error:
        case ForgeUnauthorized():
            return "check the credentials and the permissions that the README lists for this forge"
        case RateLimited():
            return f"nothing to do: calls go on in {error.retry_after_s:.0f} s"
        case _:
            return ""


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]


def _reading(job: Job) -> Callable[[Forge], Any]:
    return lambda forge: forge.get_job(job.repo, job.forge_job_id)
