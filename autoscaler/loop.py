"""The loop: observe -> plan -> apply, woken by events, and repeated anyway.

Owns the mailbox of facts, the tick and when it runs. Edges only wake: a fact or a settled call sets one bit; ticks
never overlap; a tick without news and without a deadline that came due plans nothing. The listings that keep the
level true are in `polls`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import structlog

from autoscaler.apply import Applier
from autoscaler.facts import Fact
from autoscaler.health import Health
from autoscaler.http.agents import AgentDesk
from autoscaler.http.view import TickView
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import Blocked, JobState, Plan, Rules, Snapshot
from autoscaler.observe import Observer
from autoscaler.observe_jobs import JobObserver
from autoscaler.plan import plan
from autoscaler.spi import Clock, Forge, ForgeName
from autoscaler.states import is_live
from autoscaler.store import Conflict, LeaseLost, Sample, Store, StoreError

log = structlog.get_logger()

DEBOUNCE_S = 0.02
"""The least time from the end of a tick to the one after the next: a storm of events costs one tick each 20 ms."""
STORE_RETRY_S = 1.0


class Loop:
    """One daemon's decisions. `rules` may be replaced between ticks."""

    def __init__(
        self,
        *,
        rows: LiveRows,
        store: Store,
        observer: Observer,
        jobs: JobObserver,
        forges: Mapping[ForgeName, Forge],
        desk: AgentDesk,
        clock: Clock,
        metrics: Metrics,
        health: Health,
        rules: Rules,
        period: timedelta,
    ) -> None:
        self._rows = rows
        self._store = store
        self._observer = observer
        self._jobs = jobs
        self._forges = forges
        self._desk = desk
        self._clock = clock
        self._metrics = metrics
        self._health = health
        self.rules = rules
        self._period = period
        self._mailbox: list[Fact] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._wake_at: datetime | None = None
        self._planned_change = -1
        self._was_close = False
        self._broken: BaseException | None = None
        self.applier: Applier | None = None
        self.blocked: Sequence[Blocked] = ()
        self.last_tick: TickView | None = None
        self.snapshot: Snapshot | None = None

    def report(self, fact: Fact) -> None:
        """Take a fact and wake up."""
        self._mailbox.append(fact)
        self._wake.set()

    async def consumed(self) -> None:
        """Return once a tick has taken in everything reported so far and made durable what it changed."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._wake.set()
        await waiter

    def wake(self) -> None:
        self._wake.set()

    def replan(self) -> None:
        """Something that is no row changed (a call settled, offerings came): plan with the next tick."""
        self._planned_change = -1
        self._wake.set()

    def break_off(self, error: BaseException) -> None:
        """A call raised what it may not: end the loop with it."""
        self._broken = error
        self._wake.set()

    def replace_rules(self, rules: Rules) -> None:
        """New configuration: queued jobs find their pools anew, and the next tick plans by it."""
        self.rules = rules
        self._jobs.rematch(rules, self._clock.now())
        self.replan()

    async def run(self) -> None:
        """Tick until cancelled. Raises what broke the daemon: LeaseLost, Conflict or a bug."""
        while True:
            try:
                await self.tick()
                self._health.well("store")
            except (LeaseLost, Conflict):
                raise
            except StoreError as error:
                log.error("store_failed", error=str(error))
                self._health.ill("store", str(error), remedy="see the log; nothing is acknowledged until it works")
                await self._clock.sleep(STORE_RETRY_S)
                self.replan()
                continue
            if self._broken is not None:
                raise self._broken
            await self._wait()

    async def _wait(self) -> None:
        left_s = self._period.total_seconds()
        for at in (self._wake_at, self._jobs.next_doubt()):
            if at is not None:
                left_s = min(left_s, (at - self._clock.now()).total_seconds())
        try:
            async with asyncio.timeout(max(DEBOUNCE_S, left_s)):
                await self._wake.wait()
        except TimeoutError:
            return
        await self._clock.sleep(self._settling_s())

    def _settling_s(self) -> float:
        """How long to wait because ticks follow each other so closely that more events are likely on their way. The
        first tick after another one is not held up: often it is the answer that the other one asked for."""
        last = self.last_tick
        if last is None:
            return 0.0
        since_s = (self._clock.now() - last.at).total_seconds() - last.took_s
        is_close, was_close = 0.0 <= since_s < DEBOUNCE_S, self._was_close
        self._was_close = is_close
        return DEBOUNCE_S - since_s if is_close and was_close else 0.0

    async def tick(self) -> None:
        """One pass. Raises StoreError: then the facts are kept and nothing was asked of anybody."""
        self._wake.clear()
        waiting, self._waiting = self._waiting, []
        try:
            await self._pass()
        except BaseException:
            self._waiting[:0] = [waiter for waiter in waiting if not waiter.done()]
            raise
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def _pass(self) -> None:
        facts = await self._take_facts()
        started = self._clock.monotonic()
        now = self._clock.now()
        self._observer.consume(facts, self.rules, now)
        if self._rows.billed:
            self._metrics.observe_costs(self._rows.billed)
            self._rows.billed.clear()
        self._desk.forget_ended()
        if not facts and not self._is_due(now):
            await self._rows.flush()
            return
        unhealthy = {name for name in self._forges if not self._health.is_well(f"forge/{name}")}
        self.snapshot = self._observer.snapshot(
            now, forges=self._forges, unhealthy=set(unhealthy), handed=self._desk.handed()
        )
        plan_started = self._clock.monotonic()
        planned = plan(self.snapshot, self.rules, now)
        plan_s = self._clock.monotonic() - plan_started
        self.blocked = planned.blocked
        self._wake_at = planned.wake_at
        self._foretell(planned)
        taken = self.applier.intend(planned, now) if self.applier is not None else 0
        self._planned_change = self._rows.changed  # what changes during the commit is for the next tick
        if self.applier is not None:
            await self.applier.carry_out()
        self._note_tick(now, self._clock.monotonic() - started, plan_s, len(facts), taken)

    def _foretell(self, planned: Plan) -> None:
        """What is predicted at first sight stays with the job."""
        for id_, prediction in planned.predictions.items():
            job = self._rows.jobs.get(id_)
            if job is not None and job.prediction is None:
                self._rows.amend_job(job, prediction=prediction)

    async def _take_facts(self) -> list[Fact]:
        """Empty the mailbox. On StoreError the facts go back, in their order."""
        facts, self._mailbox = self._mailbox, []
        try:
            await self._recall_ended(facts)
        except BaseException:
            self._mailbox[:0] = facts
            raise
        return facts

    async def _recall_ended(self, facts: Sequence[Fact]) -> None:
        """The store remembers what ended before this process began: such a job must not begin again, and the job of
        such a machine is lost."""
        for name, instance in self._jobs.unknown_runners(facts):
            row = await self._store.instance(instance)
            if name not in self._rows.ended_runners:
                is_its_end = row is not None and not is_live(row) and row.runner_name == name
                if is_its_end and (interruption := await self._store.interruption(instance)) is not None:
                    self._rows.remember_interruption(interruption)
                self._rows.remember_runner(name, row if is_its_end else None)
        unknown = self._jobs.unknown_ids(facts)
        for job in await self._store.jobs_by_ids(unknown) if unknown else ():
            if job.id not in self._rows.jobs:
                self._rows.remember_ended(job.id, job.state)

    def _is_due(self, now: datetime) -> bool:
        if self._rows.changed != self._planned_change:
            return True
        times = [at for at in (self._wake_at, self._jobs.next_doubt()) if at is not None]
        return any(at <= now for at in times)

    def _note_tick(self, now: datetime, took_s: float, plan_s: float, facts: int, actions: int) -> None:
        number = self.last_tick.number + 1 if self.last_tick is not None else 1
        self.last_tick = TickView(number=number, at=now, took_s=took_s, plan_s=plan_s, actions=actions)
        self._metrics.tick_seconds.observe(took_s)
        self._metrics.plan_seconds.observe(plan_s)
        if actions or facts:
            log.info(
                "tick",
                tick=number,
                facts=facts,
                actions=actions,
                jobs=len(self._rows.jobs),
                instances=len(self._rows.instances),
                plan_ms=round(plan_s * 1000, 2),
                took_ms=round(took_s * 1000, 1),
            )

    def take_samples(self, now: datetime) -> None:
        """One sample per pool for the plots of the status page; durable with the next flush."""
        queued: dict[str, int] = {}
        running: dict[str, int] = {}
        oldest: dict[str, datetime] = {}
        for job in self._rows.jobs.values():
            if job.pool is None:
                continue
            if job.state is JobState.QUEUED:
                queued[job.pool] = queued.get(job.pool, 0) + 1
                oldest[job.pool] = min(oldest.get(job.pool, job.queued_at), job.queued_at)
            elif job.state is JobState.RUNNING:
                running[job.pool] = running.get(job.pool, 0) + 1
        instances: dict[str, dict[str, int]] = {}
        for row in self._rows.instances.values():
            states = instances.setdefault(row.pool, {})
            states[row.state] = states.get(row.state, 0) + 1
        self._rows.sample(
            Sample(
                at=now,
                pool=pool,
                queued=queued.get(pool, 0),
                running=running.get(pool, 0),
                oldest_wait_s=(now - oldest[pool]).total_seconds() if pool in oldest else 0.0,
                instances=instances.get(pool, {}),
            )
            for pool in self.rules.pools
        )
