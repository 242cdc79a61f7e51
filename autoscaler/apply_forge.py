"""Carry out the actions that only a forge can do: register, deregister, seal, settle, sweep, hold.

Part of apply, with the same rule: intent durable first, then the call. Every failure gets a time before which its
action is not tried again, and an unhealthy forge is put on record for /readyz.
"""

import hashlib
from collections.abc import Callable, Coroutine
from datetime import datetime
from enum import Enum, auto
from functools import partial
from typing import Any, assert_never

import structlog

from autoscaler.backoff import Backoff
from autoscaler.facts import Fact, JobRead
from autoscaler.forge_line import ForgeLine, one_line
from autoscaler.http.agents import AgentDesk
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import (
    HoldQueue,
    Instance,
    InstanceState,
    Job,
    LedgerEntry,
    Register,
    Seal,
    Settle,
    SweepRunner,
    Withdraw,
)
from autoscaler.names import runner_name
from autoscaler.sightings import Sightings
from autoscaler.spi import (
    Clock,
    Forge,
    ForgeError,
    ForgeRefused,
    JobNotFound,
    Registration,
    RunnerBusy,
    RunnerRef,
)

log = structlog.get_logger()

_S = InstanceState

Call = Callable[[], Coroutine[Any, Any, None]]
"""What an action asks of the outside, to be started once its intent is durable."""
ForgeAction = Register | Withdraw | Seal | Settle | SweepRunner | HoldQueue


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
        line: ForgeLine,
        desk: AgentDesk,
        clock: Clock,
        metrics: Metrics,
        report: Callable[[Fact], None],
        runner_prefix: str,
    ) -> None:
        self._rows = rows
        self._seen = sightings
        self._line = line
        self._desk = desk
        self._clock = clock
        self._metrics = metrics
        self._report = report
        self._runner_prefix = runner_prefix
        self._backoff = Backoff(sightings, clock)

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
            minted: Registration | None = await self._line.call(demand.forge, "register", mint)
        except ForgeError as error:
            self._backoff.failed(demand.key if isinstance(error, ForgeRefused) else demand.forge_key, error)
            self._unregister(row, f"the forge did not register it: {one_line(error)}")
            if isinstance(error, ForgeRefused):
                self._note("register", row.id, row.pool, one_line(error), "refused")
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
            forges = [row.demand.forge] if row.demand is not None else list(self._line.forges)
            listed = [self._seen.runners_listed.get(forge) for forge in forges] if row.runner_name else []
            return Answer.GONE if all(at is not None and at > row.since for at in listed) else Answer.UNKNOWN
        forge_name = row.demand.forge
        try:
            await self._line.call(
                forge_name, "deregister", lambda forge: forge.deregister(runner, job_is_done=job_is_done)
            )
        except RunnerBusy:
            self._note("release", row.id, row.pool, "the forge says its runner runs a job", "kept")
            return Answer.BUSY
        except ForgeError as error:
            log.warning("deregister_failed", instance=row.id, forge=forge_name, error=one_line(error))
            return Answer.UNKNOWN
        return Answer.GONE

    async def _seal(self, row: Instance, action: Seal) -> None:
        runner = row.runner
        if runner is None or row.demand is None:
            return
        try:
            await self._line.call(row.demand.forge, "seal", lambda forge: forge.seal(runner))
        except ForgeError as error:
            self._backoff.failed(action.key, error)
        else:
            self._backoff.worked(action.key)
            self._seen.sealed.add(row.id)

    async def _sweep(self, action: SweepRunner) -> None:
        runner: RunnerRef = action.runner
        try:
            await self._line.call(action.forge, "deregister", lambda forge: forge.deregister(runner))
        except ForgeError as error:
            self._backoff.failed(action.key, error)
        else:
            self._backoff.worked(action.key)
            self._seen.orphan_runners.pop((action.forge, runner.runner_id), None)

    async def _hold(self, action: HoldQueue, now: datetime) -> None:
        digest = hashlib.sha256(f"{action.scope}|{'|'.join(action.labels)}".encode()).hexdigest()[:12]
        name = f"{self._runner_prefix}hold-{digest}"
        try:
            await self._line.call(
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
            seen = await self._line.call(job.forge, "get_job", lambda forge: forge.get_job(job.repo, job.forge_job_id))
        except JobNotFound:
            self._backoff.worked(action.key)
            self._report(JobRead(job=job.id, seen=None))
        except ForgeError as error:
            self._backoff.failed(action.key, error)
        else:
            self._backoff.worked(action.key)
            self._report(JobRead(job=job.id, seen=seen))

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
