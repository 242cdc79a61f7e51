"""Carry out a plan: commit intent -> call -> commit result. Owns every active move of `states`.

Each action first changes its rows and is made durable with all the others of the tick; only then do its calls run,
each in a task of its own, bounded per forge and provider. What a call answers goes back as a fact or as an active
move; the next snapshot shows it. Every step may be the last one before a crash: a launch is repeated with its token,
a registration that never arrived is withdrawn and minted under another name, a termination is asked for again.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import assert_never

import structlog

from autoscaler.apply_forge import Answer, Call, ForgeCalls
from autoscaler.apply_launch import LaunchCalls, Launcher
from autoscaler.apply_requeue import RequeueCalls
from autoscaler.apply_tell import TellCalls
from autoscaler.end_lines import terminate_line
from autoscaler.facts import Fact, InstancesListed
from autoscaler.http.agents import AgentDesk
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import (
    Abandon,
    Action,
    CancelRun,
    EndReason,
    HoldQueue,
    Instance,
    InstanceState,
    Launch,
    LedgerEntry,
    Plan,
    Pool,
    Register,
    Release,
    Requeue,
    Seal,
    Settle,
    SweepInstances,
    SweepRunner,
    Tell,
    Terminate,
    Withdraw,
)
from autoscaler.sightings import Sightings
from autoscaler.spi import (
    BatchToken,
    Clock,
    InstanceId,
    PoolName,
    Provider,
    ProviderId,
    ProviderName,
)
from autoscaler.states import WORKING_STATES, is_live
from autoscaler.store import Conflict, LeaseLost, StoreError

log = structlog.get_logger()

TERMINATE_S = 30.0
AFTER_FAILURE = timedelta(seconds=5)
RELEASE_AGAIN = timedelta(seconds=10)
SWEEP_AGAIN = timedelta(seconds=30)
_UNKNOWN = "complete listings show it under our name, and no row of ours knows it"

_S = InstanceState


class Applier:
    """Executes actions. `report` puts facts into the loop's mailbox and wakes it; `settled` wakes it when calls end;
    `broke` takes what no call may raise: a bug, or a store that is no longer ours."""

    def __init__(
        self,
        *,
        rows: LiveRows,
        sightings: Sightings,
        providers: Mapping[ProviderName, Provider],
        forge_calls: ForgeCalls,
        requeue_calls: RequeueCalls,
        tell_calls: TellCalls,
        desk: AgentDesk,
        launcher: Launcher,
        clock: Clock,
        metrics: Metrics,
        report: Callable[[Fact], None],
        pools: Callable[[], Mapping[PoolName, Pool]],
        settled: Callable[[], None],
        broke: Callable[[BaseException], None],
    ) -> None:
        self._rows = rows
        self._seen = sightings
        self._providers = providers
        self._forge_calls = forge_calls
        self._requeue_calls = requeue_calls
        self._tell_calls = tell_calls
        self._desk = desk
        self._clock = clock
        self._metrics = metrics
        self._report = report
        self._pools = pools
        self._settled = settled
        self._broke = broke
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight: set[str] = set()
        self._direction: dict[PoolName, int] = {}
        self._intended: list[tuple[str, Call]] = []
        self._gates: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(16))
        self._launch_calls = LaunchCalls(
            rows=rows,
            sightings=sightings,
            providers=providers,
            launcher=launcher,
            clock=clock,
            metrics=metrics,
            report=report,
            gates=self._gates,
        )

    def intend(self, plan: Plan, now: datetime) -> int:
        """Change the rows for a plan's actions, synchronously; `carry_out` makes that durable and starts the calls.
        Returns how many calls there are."""
        before = len(self._intended)
        for action in plan.actions:
            is_exclusive = not isinstance(action, Launch | Register | Terminate)
            if is_exclusive and action.key in self._in_flight:
                continue
            call = self._intend(action, now)
            if call is not None:
                self._in_flight.add(action.key)
                self._intended.append((action.key, call))
        return len(self._intended) - before

    async def carry_out(self) -> None:
        """Commit the intents, then start their calls. Raises StoreError: then nothing was asked of anybody, and the
        calls start with the next carry_out that can make their intents durable."""
        await self._rows.flush()
        calls, self._intended = self._intended, []
        for key, call in calls:
            self._start(key, call)

    def relaunch_unsettled(self, now: datetime) -> None:
        """After a restart: rows whose launch may never have been asked for are asked for again by their token."""
        tokens = {row.token for row in self._rows.instances.values() if row.state is _S.REQUESTED}
        for token in sorted(tokens):
            rows = self._rows.of_token(token)
            pool, provider = self._pools().get(rows[0].pool), rows[0].provider
            if pool is None or provider not in self._providers:
                continue  # its deadline ends it
            offerings = self._launch_calls.offerings_again(pool, rows[0])
            if offerings:
                call = partial(self._launch_calls.launch, pool, provider, token, rows, offerings, is_repeat=True)
                self._start(f"relaunch/{token}", call)

    def _start(self, key: str, call: Call) -> None:
        self._in_flight.add(key)
        task = asyncio.create_task(call())
        self._tasks.add(task)

        def settle(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            self._in_flight.discard(key)
            self._settled()
            error = None if done.cancelled() else done.exception()
            if isinstance(error, StoreError) and not isinstance(error, LeaseLost | Conflict):
                log.warning("call_not_recorded", action=key, error=str(error))  # the rows keep it for the next flush
            elif error is not None:
                self._broke(error)

        task.add_done_callback(settle)

    async def aclose(self, grace_s: float) -> None:
        """Let running calls finish for a while, then cancel them: their intents are durable."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------ intents

    def _intend(self, action: Action, now: datetime) -> Call | None:
        """Change the rows for an action, synchronously; its calls come after the flush."""
        match action:
            case Launch():
                return self._intend_launch(action, now)
            case Terminate():
                return self._intend_terminate(action, now)
            case Release():
                return self._intend_release(action, now)
            case SweepInstances():
                # Until a listing shows them gone, once per SWEEP_AGAIN is enough.
                self._seen.retry_after[action.key] = now + SWEEP_AGAIN
                for id_ in action.ids:
                    self._note(now, "sweep", id_, "", action.reason, "asked", evidence=_UNKNOWN)
                self._metrics.orphans_total.inc(len(action.ids))
                return partial(self._terminate, action.provider, list(action.ids), action.key)
            case Abandon():
                return self._requeue_calls.abandon(action, now)
            case Requeue() | CancelRun():
                return self._requeue_calls.intend(action)
            case Tell():
                return self._tell_calls.intend(action)
            case Register() | Withdraw() | Seal() | Settle() | SweepRunner() | HoldQueue():
                return self._forge_calls.intend(action, now)
            case _:
                assert_never(action)

    def _note_direction(self, pool: PoolName, direction: int) -> None:
        """Count a pool's turns between growing (1) and shrinking (-1): many are thrash."""
        if self._direction.get(pool, direction) != direction:
            self._metrics.direction_changes_total.labels(pool=pool).inc()
        self._direction[pool] = direction

    def _intend_launch(self, action: Launch, now: datetime) -> Call | None:
        pool = self._pools().get(action.pool)
        if pool is None:
            return None
        offerings, first = action.offerings, action.offerings[0].capacity_pool
        dearest = max(offerings, key=lambda offering: offering.price_usd_hour)
        self._note_direction(pool.name, 1)
        token = BatchToken(self._launch_calls.new_id("b"))
        rows = []
        for _ in range(action.count):
            row = Instance(
                id=InstanceId(self._launch_calls.new_id("i")),
                pool=pool.name,
                provider=first.provider,
                token=token,
                state=_S.REQUESTED,
                since=now,
                created_at=now,
                capacity_pool=first,
                price_usd_hour=dearest.price_usd_hour,
                on_demand_usd_hour=self._seen.on_demand_price(dearest.capacity_pool),
            )
            rows.append(self._rows.add_instance(row, cause=action.reason))
        self._note(now, "launch", token, pool.name, action.reason, f"{action.count} asked of {first.key}")
        if action.spill:
            self._metrics.spills_total.labels(pool=pool.name, reason=action.spill).inc(action.count)
        return partial(self._launch_calls.launch, pool, first.provider, token, rows, offerings)

    def _intend_terminate(self, action: Terminate, now: datetime) -> Call | None:
        going: dict[ProviderName, list[ProviderId]] = defaultdict(list)
        for id_ in action.instances:
            row = self._rows.instances.get(id_)
            if row is None:
                continue
            if action.is_spoiled:
                self._seen.note_spoiled(row.pool, now, action.reason)
            row = self._make_terminating(row, action.end_reason, action.reason, now)
            if row is not None and row.provider_id is not None:
                going[row.provider].append(row.provider_id)
        if not going:
            return None
        return partial(self._terminate_all, going, action.key)

    def _make_terminating(
        self, row: Instance, end_reason: EndReason, reason: str, now: datetime, *, is_let_go: bool = False
    ) -> Instance | None:
        if row.state is _S.TERMINATING:
            return self._rows.amend(row, since=now)
        moved = self._rows.move(row, _S.TERMINATING, now=now, cause=reason, ending=end_reason)
        job = self._rows.jobs.get(row.job) if row.job is not None else None
        if job is not None and end_reason is EndReason.MAX_RUNTIME:
            # Its forge may give it up before the machine is gone: that is no loss.
            self._rows.amend_job(job, reason=f"{end_reason}: {reason}")
        if end_reason is EndReason.SURPLUS:
            self._note_direction(row.pool, -1)
        self._desk.take_back(row.id)
        self._desk.wake(row.id)
        self._rows.note(
            terminate_line(
                row,
                now,
                end_reason=end_reason,
                reason=reason,
                said=self._seen.ending.get(row.id, ""),
                job=job.state if job is not None else None,
                interruption=self._rows.interruptions.get(row.id),
                is_let_go=is_let_go,
            )
        )
        return moved

    def _intend_release(self, action: Release, now: datetime) -> Call | None:
        row = self._rows.instances.get(action.instance)
        if row is None:
            return None
        if action.is_spoiled and row.id not in self._seen.releasing:
            self._seen.note_spoiled(row.pool, now, action.reason)
        if row.state in WORKING_STATES:
            self._make_terminating(row, action.end_reason, action.reason, now)
            return partial(self._end_after_job, row, action)
        return partial(self._release, row, action)

    # ------------------------------------------------------------------ calls

    async def _terminate_all(self, going: Mapping[ProviderName, list[ProviderId]], key: str) -> None:
        for provider, ids in going.items():
            await self._terminate(provider, ids, key)

    async def _terminate(self, provider_name: ProviderName, ids: list[ProviderId], key: str) -> None:
        provider = self._providers.get(provider_name)
        if provider is None:
            return
        started_at = self._clock.now()
        try:
            async with self._gates[provider_name], asyncio.timeout(TERMINATE_S):
                await provider.terminate(ids)
                described = await provider.describe(ids)
        except Exception as error:
            log.warning("terminate_failed", provider=provider_name, machines=len(ids), error=_one_line(error))
            self._seen.retry_after[key] = self._clock.now() + AFTER_FAILURE
            return
        self._report(
            InstancesListed(provider=provider_name, instances=described, started_at=started_at, is_complete=False)
        )

    async def _end_after_job(self, row: Instance, action: Release) -> None:
        """The forge said that the job is done: end the machine, whatever becomes of its registration."""
        await asyncio.gather(
            self._terminate(row.provider, [row.provider_id] if row.provider_id is not None else [], action.key),
            self._forge_calls.deregister(row, job_is_done=True),
        )

    async def _release(self, row: Instance, action: Release) -> None:
        """Two steps: the forge must let the runner go before the machine may end."""
        self._seen.releasing[row.id] = action.end_reason, action.reason
        answer = await self._forge_calls.deregister(row, job_is_done=False)
        if answer is not Answer.GONE:
            if answer is Answer.BUSY:
                self._seen.releasing.pop(row.id, None)
            self._seen.retry_after[action.key] = self._clock.now() + RELEASE_AGAIN
            return
        now = self._clock.now()
        current = self._rows.instances.get(row.id)
        if current is None or current.state not in (_S.REGISTERING, _S.IDLE, _S.READY) or not is_live(current):
            return
        self._make_terminating(current, action.end_reason, action.reason, now, is_let_go=True)
        await self._rows.flush()
        if current.provider_id is not None:
            await self._terminate(current.provider, [current.provider_id], action.key)

    def _note(
        self, now: datetime, action: str, subject: str, pool: str, reason: str, outcome: str, *, evidence: str = ""
    ) -> None:
        self._rows.note(
            LedgerEntry(
                at=now,
                actor="autoscaler",
                action=action,
                subject=subject,
                pool=pool,
                reason=reason,
                outcome=outcome,
                evidence=evidence,
            )
        )


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
