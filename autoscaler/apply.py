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
from autoscaler.facts import Fact, InstancesListed, LaunchAnswered
from autoscaler.http.agents import AgentDesk
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import (
    Abandon,
    Action,
    EndReason,
    HoldQueue,
    Instance,
    InstanceState,
    JobState,
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
    Terminate,
    Withdraw,
)
from autoscaler.placement import choose_offerings
from autoscaler.sightings import Sightings
from autoscaler.spi import (
    BatchToken,
    Clock,
    InstanceId,
    InvalidRequest,
    LaunchBatch,
    LaunchResult,
    Offering,
    OutcomeUnknown,
    PoolName,
    Provider,
    ProviderError,
    ProviderId,
    ProviderName,
    Throttled,
    Unauthorized,
)
from autoscaler.states import is_live
from autoscaler.store import Conflict, LeaseLost, StoreError

log = structlog.get_logger()

LAUNCH_S = 60.0
LAUNCH_AGAIN_S = 5.0
TERMINATE_S = 30.0
AFTER_FAILURE = timedelta(seconds=5)
AFTER_MISCONFIGURED = timedelta(seconds=60)
RELEASE_AGAIN = timedelta(seconds=10)
SWEEP_AGAIN = timedelta(seconds=30)

_S = InstanceState


class Launcher:
    """What `Applier` needs to make machines of a pool: image references, user data, fresh ids."""

    def __init__(
        self,
        *,
        image_of: Callable[[Pool, ProviderName], Mapping[str, str]],
        user_data_of: Callable[[Pool, ProviderName], str],
        new_id: Callable[[str], str],
    ) -> None:
        self.image_of = image_of
        self.user_data_of = user_data_of
        self.new_id = new_id


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
        self._desk = desk
        self._launcher = launcher
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
            offered = [
                o for o in self._seen.offerings.get(pool.name, ()) if o.capacity_pool.provider == rows[0].provider
            ]
            choice = choose_offerings(pool, offered, cooldowns=self._seen.cooldowns, now=now)
            if choice.offerings:
                call = partial(self._launch_rows, pool, provider, token, rows, choice.offerings)
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
                self._note(now, "sweep", ", ".join(action.ids), "", action.reason, "asked")
                self._metrics.orphans_total.inc(len(action.ids))
                return partial(self._terminate, action.provider, list(action.ids), action.key)
            case Abandon():
                job = self._rows.jobs.get(action.job)
                if job is not None and job.state is JobState.LOST:
                    self._rows.move_job(job, JobState.ABANDONED, reason=action.reason, finished_at=now)
                    self._note(now, "abandon", action.job, job.pool or "", action.reason, "done")
                    self._metrics.requeues_total.labels(pool=job.pool or "", outcome="abandoned").inc()
                return None
            case Register() | Withdraw() | Seal() | Settle() | SweepRunner() | HoldQueue() | Requeue():
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
        token = BatchToken(self._launcher.new_id("b"))
        rows = []
        for _ in range(action.count):
            row = Instance(
                id=InstanceId(self._launcher.new_id("i")),
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
        return partial(self._launch_rows, pool, first.provider, token, rows, offerings)

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

    def _make_terminating(self, row: Instance, end_reason: EndReason, reason: str, now: datetime) -> Instance | None:
        if row.state is _S.TERMINATING:
            return self._rows.amend(row, since=now)
        moved = self._rows.move(row, _S.TERMINATING, now=now, cause=reason, ending=end_reason)
        if end_reason is EndReason.SURPLUS:
            self._note_direction(row.pool, -1)
        self._desk.take_back(row.id)
        self._desk.wake(row.id)
        self._note(now, "terminate", row.id, row.pool, f"{end_reason}: {reason}", "asked")
        return moved

    def _intend_release(self, action: Release, now: datetime) -> Call | None:
        row = self._rows.instances.get(action.instance)
        if row is None:
            return None
        if action.is_spoiled and row.id not in self._seen.releasing:
            self._seen.note_spoiled(row.pool, now, action.reason)
        if action.end_reason is EndReason.JOB_DONE:
            self._make_terminating(row, action.end_reason, action.reason, now)
            return partial(self._end_after_job, row, action)
        return partial(self._release, row, action)

    # ------------------------------------------------------------------ calls

    async def _launch_rows(
        self,
        pool: Pool,
        provider_name: ProviderName,
        token: BatchToken,
        rows: list[Instance],
        offerings: tuple[Offering, ...],
    ) -> None:
        """Ask for the rows' machines until the answer is known: the token makes a repeat harmless."""
        try:
            batch = LaunchBatch(
                token=token,
                pool=pool.name,
                count=len(rows),
                offerings=offerings,
                image=self._launcher.image_of(pool, provider_name),
                user_data=self._launcher.user_data_of(pool, provider_name),
                max_lifetime=pool.boot_timeout + pool.idle_timeout + pool.max_job_runtime,
                disk_gib=pool.shape.disk_gib,
            )
        except InvalidRequest as error:
            self._launch_failed(pool, token, error)
            return
        while not await self._launch(pool, provider_name, batch):
            await self._clock.sleep(LAUNCH_AGAIN_S)
            if not any(row.state is _S.REQUESTED for row in self._rows.of_token(token)):
                return  # a listing settled it, or its deadline passed

    async def _launch(self, pool: Pool, provider_name: ProviderName, batch: LaunchBatch) -> bool:
        """One call; False when it may have taken effect and nobody knows."""
        started = self._clock.monotonic()
        try:
            async with self._gates[provider_name], asyncio.timeout(LAUNCH_S):
                result = await self._providers[provider_name].launch(batch)
        except ProviderError as error:
            if isinstance(error, OutcomeUnknown):
                return self._unsettled(batch.token, error)
            self._launch_failed(pool, batch.token, error)
        except Exception as error:
            return self._unsettled(batch.token, error)
        else:
            self._seen.held_back.pop(pool.name, None)
            self._count_launches(provider_name, result, batch.offerings)
            self._metrics.launch_seconds.labels(phase="launch").observe(self._clock.monotonic() - started)
            self._report(LaunchAnswered(token=batch.token, result=result))
        return True

    def _unsettled(self, token: BatchToken, error: Exception) -> bool:
        log.warning("launch_unsettled", token=token, kind=type(error).__name__, error=_one_line(error))
        self._report(LaunchAnswered(token=token, result=None, error=_one_line(error), is_unknown=True))
        return False

    def _launch_failed(self, pool: Pool, token: BatchToken, error: ProviderError) -> None:
        now, key = self._clock.now(), f"launch/{pool.name}"
        match error:
            case Throttled():
                self._seen.retry_after[key] = now + timedelta(seconds=error.retry_after_s)
            case InvalidRequest() | Unauthorized():
                self._seen.held_back[pool.name] = f"launching fails: {_one_line(error)}"
                self._seen.retry_after[key] = now + AFTER_MISCONFIGURED
            case _:
                self._seen.retry_after[key] = now + AFTER_FAILURE
        log.warning("launch_failed", pool=pool.name, error=_one_line(error), kind=type(error).__name__)
        self._note(now, "launch", key, pool.name, _one_line(error), "failed")
        self._report(LaunchAnswered(token=token, result=None, error=_one_line(error)))

    def _count_launches(self, provider: ProviderName, result: LaunchResult, offerings: tuple[Offering, ...]) -> None:
        capacity_type = offerings[0].capacity_pool.capacity_type
        outcomes = {"launched": len(result.instances), "refused": len(result.refusals)}
        for outcome, count in outcomes.items():
            if count:
                self._metrics.launches_total.labels(
                    provider=provider, capacity_type=capacity_type, outcome=outcome
                ).inc(count)

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
        self._make_terminating(current, action.end_reason, action.reason, now)
        await self._rows.flush()
        if current.provider_id is not None:
            await self._terminate(current.provider, [current.provider_id], action.key)

    def _note(self, now: datetime, action: str, subject: str, pool: str, reason: str, outcome: str) -> None:
        self._rows.note(
            LedgerEntry(
                at=now,
                actor="autoscaler",
                action=action,
                subject=subject,
                pool=pool,
                reason=reason,
                outcome=outcome,
            )
        )


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
