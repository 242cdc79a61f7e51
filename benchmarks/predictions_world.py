"""A day of one pool under a plain event heap: jobs in bursts, clouds that refuse and boot slowly, one forge. The
shipped `plan`, `experience` and `lessons` decide and learn as in the daemon; only its calls and sockets are not there.

Times are seconds from the day's beginning; random numbers are the day's own, and repeatable. A little longer than
others: the day and all that can happen in it stand in one place.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from autoscaler.experience import Experience
from autoscaler.facts import LaunchAnswered
from autoscaler.lessons import Lessons
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import (
    Caps,
    EndReason,
    ForgeView,
    Instance,
    InstanceState,
    Job,
    JobState,
    Launch,
    Pool,
    Register,
    Release,
    Rules,
    SeenBy,
    Snapshot,
    Terminate,
    job_id,
)
from autoscaler.plan import plan
from autoscaler.sightings import Sightings
from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    CapacityUnavailable,
    CloudInstance,
    Conclusion,
    ForgeName,
    ForgeTraits,
    InstanceId,
    LaunchResult,
    MachineState,
    Offering,
    PoolName,
    ProviderId,
    ProviderName,
    Refusal,
    RunnerId,
    Scope,
    Shape,
)
from autoscaler.store.memory import MemoryStore

EPOCH = datetime(2026, 1, 5, tzinfo=UTC)
FORGE, CLOUD, POOL, SCOPE = ForgeName("github"), ProviderName("cloud"), PoolName("linux"), Scope("acme")
COMPLETE = frozenset({CLOUD, FORGE, f"{FORGE}/jobs"})
DEBOUNCE_S = 0.05
FLUSH_EVERY = 2000
WORKFLOWS = 12
ODD = 0.2
"""The share of runs that have another number of jobs than their workflow usually has."""
FULL_S = 60.0
"""A full budget of registrations holds what a minute gives."""
APART_S = 0.03
"""Between two jobs of a run, as their forge makes them."""
_S = InstanceState


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What a day is like. Rates are per second, times in seconds.

    Runs come at `runs_per_s`, more by day than at night, with `matrix` jobs on average, by their workflow; each
    `burst_every_s` a merge train of about `burst_jobs` comes at once. Boots are lognormal around `boot_s`; `slow` of
    them take five times as long, `silent` never come. Each of `zones` spot capacity pools is dry for `dry_share` of the
    time, in spells of `dry_spell_s`, and refuses `refused` of what is asked otherwise."""

    name: str
    runs_per_s: float = 0.02
    matrix: float = 3.0
    burst_every_s: float = 1800.0
    burst_jobs: int = 0
    boot_s: float = 62.0
    boot_sigma: float = 0.2
    slow: float = 0.0
    silent: float = 0.0
    zones: int = 3
    dry_share: float = 0.0
    dry_spell_s: float = 300.0
    refused: float = 0.05
    run_s: float = 140.0
    target_s: float = 60.0
    most: int = 2000
    mint_per_s: float = 3.0
    webhook_loss: float = 0.01


@dataclass(slots=True)
class _Spell:
    is_dry: bool
    ends_s: float


@dataclass(slots=True)
class Told:
    """What was predicted of a job, and what came."""

    breach: float
    wait_s: float
    waited_s: float


class Day:
    """See the module docstring. `live` it once; `told` has every job that started."""

    def __init__(self, weather: Weather, *, jobs: int, seed: int) -> None:
        self._weather = weather
        self._jobs_left = jobs
        self._dice = random.Random(f"{seed}/{weather.name}")
        self._now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count(1)
        self._store = MemoryStore()
        self._rows = LiveRows(self._store, {})
        self._seen = Sightings()
        self._experience = Experience(self._rows, self._seen)
        self._lessons = Lessons(self._rows, Metrics(), self._now)
        more = max(0.001, weather.matrix - 1)
        self._sizes = [min(60, 1 + int(self._dice.expovariate(1 / more))) for _ in range(WORKFLOWS)]
        self._waiting: deque[Job] = deque()
        """At the forge, in its order: also those of which we have not heard."""
        self._idle: deque[InstanceId] = deque()
        self._tick_at = math.inf
        self._mints = FULL_S * weather.mint_per_s
        self._minted_at = 0.0
        self._spells: dict[CapacityPool, _Spell] = {}
        self._pool = _pool(weather)
        self._rules = Rules(pools={POOL: self._pool}, caps=Caps())
        self._offerings = _offerings(weather)
        self.told: list[Told] = []
        self.spilled = 0
        self.launched = 0

    @property
    def _now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._now_s)

    async def live(self) -> "Day":
        await self._store.open()
        await self._store.acquire_lease("benchmark")
        self._after(0.0, self._next_run)
        if self._weather.burst_jobs:
            self._after(self._weather.burst_every_s, self._burst)
        done = 0
        while self._heap:
            self._now_s, _, happen = heapq.heappop(self._heap)
            happen()
            done += 1
            if done % FLUSH_EVERY == 0:
                await self._rows.flush()
            if not self._jobs_left and not self._rows.jobs and not self._waiting:
                break
        return self

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self._now_s + seconds, next(self._numbers), happen))

    # ------------------------------------------------------------------ jobs

    def _next_run(self) -> None:
        if not self._jobs_left:
            return
        workflow = self._dice.randrange(WORKFLOWS)
        size = self._sizes[workflow]
        if self._dice.random() < ODD:  # a part of the matrix, or a new one
            size = self._dice.randint(1, 2 * size)
        self._queue(size, workflow)
        hour = (self._now_s / 3600) % 24
        rate = self._weather.runs_per_s * (0.4 + 0.6 * (1 + math.sin((hour - 8) / 24 * 2 * math.pi)))
        self._after(self._dice.expovariate(rate), self._next_run)

    def _burst(self) -> None:
        if self._jobs_left:
            self._queue(round(self._weather.burst_jobs * self._dice.uniform(0.6, 1.2)), WORKFLOWS)
            self._after(self._weather.burst_every_s * self._dice.uniform(0.6, 1.4), self._burst)

    def _queue(self, count: int, workflow: int) -> None:
        run = next(self._numbers)
        is_lost = self._dice.random() < self._weather.webhook_loss
        heard_s = self._dice.uniform(5, 30) if is_lost else self._dice.uniform(0.3, 1.5)
        for number in range(min(count, self._jobs_left)):
            self._jobs_left -= 1
            id_ = str(next(self._numbers))
            job = Job(
                id=job_id(FORGE, id_),
                forge=FORGE,
                forge_job_id=id_,
                repo=f"acme/{workflow % 5}",
                run_id=str(run),
                run_attempt=1,
                workflow=f"w{workflow}",
                name=f"job {number % 6}",
                labels=("linux",),
                scope=SCOPE,
                state=JobState.QUEUED,
                queued_at=self._now + timedelta(seconds=number * APART_S),
                first_seen_at=self._now,
                seen_by=SeenBy.WEBHOOK,
                pool=POOL,
            )
            self._waiting.append(job)
            late_s = heard_s + number * APART_S + self._dice.uniform(0.0, 0.3)
            self._after(late_s, lambda job=job: self._heard(job))
        self._hand_out()

    def _heard(self, job: Job) -> None:
        known = self._rows.jobs.get(job.id)
        if known is None and job in self._waiting:
            self._rows.add_job(replace(job, first_seen_at=self._now))
            self._wake()

    def _hand_out(self) -> None:
        """The forge gives the oldest job to the runner that waits longest."""
        while self._waiting and self._idle:
            job, machine = self._waiting.popleft(), self._idle.popleft()
            self._after(self._dice.uniform(0.3, 1.5), lambda job=job, machine=machine: self._start(job, machine))

    def _start(self, job: Job, machine: InstanceId) -> None:
        row = self._rows.instances.get(machine)
        known = self._rows.jobs.get(job.id) or self._rows.add_job(replace(job, first_seen_at=self._now))
        if row is None:
            self._waiting.appendleft(job)
            return
        known = self._rows.move_job(known, JobState.RUNNING, started_at=self._now, instance=machine)
        self._rows.move(row, _S.BUSY, now=self._now, cause="a job", job=job.id, repo=job.repo)
        if known.prediction is not None:
            said = known.prediction
            waited_s = (self._now - known.queued_at).total_seconds()
            self.told.append(Told(said.breach, said.wait_s, waited_s))
        run_s = self._run_s(job)
        self._after(run_s, lambda: self._end(known, machine))
        self._wake()

    def _run_s(self, job: Job) -> float:
        own = random.Random(job.work.__repr__()).gauss(0.0, 0.8)
        return min(7200.0, self._weather.run_s * math.exp(own + self._dice.gauss(0.0, 0.3)))

    def _end(self, job: Job, machine: InstanceId) -> None:
        known, row = self._rows.jobs.get(job.id), self._rows.instances.get(machine)
        if known is not None:
            self._rows.move_job(known, JobState.DONE, finished_at=self._now, conclusion=Conclusion.SUCCESS)
        if row is not None:
            self._terminate(row, EndReason.JOB_DONE, "its job is done")
        self._wake()

    # ------------------------------------------------------------------ machines

    def _launch(self, action: Launch) -> None:
        token, first = BatchToken(f"b-{next(self._numbers)}"), action.offerings[0]
        dearest = max(action.offerings, key=lambda one: one.price_usd_hour)
        is_spot = first.capacity_pool.capacity_type is CapacityType.SPOT
        self.launched += action.count
        self.spilled += 0 if is_spot else action.count
        for _ in range(action.count):
            row = Instance(
                id=InstanceId(f"i-{next(self._numbers)}"),
                pool=POOL,
                provider=CLOUD,
                token=token,
                state=_S.REQUESTED,
                since=self._now,
                created_at=self._now,
                capacity_pool=first.capacity_pool,
                price_usd_hour=dearest.price_usd_hour,
            )
            self._rows.add_instance(row, cause=action.reason)
        self._after(self._dice.uniform(0.6, 1.8), lambda: self._answer(token, action.offerings))

    def _answer(self, token: BatchToken, offerings: tuple[Offering, ...]) -> None:
        rows, made, refusals = self._rows.of_token(token), list[CloudInstance](), list[Refusal]()
        left = deque(row for row in rows if row.state is _S.REQUESTED)
        for offering in offerings:
            while left and self._has_room(offering.capacity_pool):
                row = left.popleft()
                machine = _machine(row, offering, self._now)
                made.append(machine)
                moved = self._rows.move(
                    row,
                    _S.LAUNCHED,
                    now=self._now,
                    cause="launched",
                    provider_id=machine.provider_id,
                    capacity_pool=offering.capacity_pool,
                    launched_at=self._now,
                )
                self._boot(moved)
            if left:
                refusals.append(Refusal(offering=offering, error=CapacityUnavailable("no capacity")))
        for row in left:
            self._rows.move(row, _S.TERMINATED, now=self._now, cause="refused", ending=EndReason.REFUSED)
        result = LaunchResult(instances=tuple(made), refusals=tuple(refusals))
        self._experience.launch_answered(LaunchAnswered(token=token, result=result, offerings=offerings), self._now)
        self._wake()

    def _has_room(self, place: CapacityPool) -> bool:
        if place.capacity_type is CapacityType.ON_DEMAND:
            return True
        spell = self._spells.setdefault(place, _Spell(is_dry=True, ends_s=0.0))
        dry = self._weather.dry_share
        while spell.ends_s <= self._now_s:
            spell.is_dry = not spell.is_dry and dry > 0
            mean_s = (
                self._weather.dry_spell_s if spell.is_dry else self._weather.dry_spell_s * (1 - dry) / max(dry, 0.01)
            )
            spell.ends_s = max(spell.ends_s, self._now_s - 10 * mean_s) + self._dice.expovariate(1 / mean_s)
        return not spell.is_dry and self._dice.random() >= self._weather.refused

    def _boot(self, row: Instance) -> None:
        weather, luck = self._weather, self._dice.random()
        if luck < weather.silent:
            return
        seconds = weather.boot_s * math.exp(self._dice.gauss(0.0, weather.boot_sigma))
        seconds *= 5.0 if luck < weather.silent + weather.slow else 1.0
        self._after(seconds, lambda: self._move(row.id, _S.LAUNCHED, _S.READY, "hello"))

    def _move(self, id_: InstanceId, before: InstanceState, to_state: InstanceState, cause: str) -> None:
        row = self._rows.instances.get(id_)
        if row is not None and row.state is before:
            self._rows.move(row, to_state, now=self._now, cause=cause)
            if to_state is _S.IDLE:
                self._idle.append(id_)
                self._hand_out()
            self._wake()

    def _register(self, action: Register) -> None:
        row = self._rows.instances[action.instance]
        self._mints -= 1
        name = f"ours--{row.id}"
        self._rows.move(row, _S.REGISTERING, now=self._now, cause="demand", demand=action.demand)
        minted = self._rows.instances[row.id]
        self._rows.amend(minted, runner_id=RunnerId(row.id), runner_name=name)
        self._after(self._dice.uniform(0.8, 3.0), lambda: self._move(row.id, _S.REGISTERING, _S.IDLE, "online"))

    def _terminate(self, row: Instance, reason: EndReason, cause: str) -> None:
        if row.id in self._idle:
            self._idle.remove(row.id)
        if row.state is not _S.TERMINATING:
            self._rows.move(row, _S.TERMINATING, now=self._now, cause=cause, ending=reason)
        self._after(self._dice.uniform(0.5, 3.0), lambda: self._gone(row.id))

    def _gone(self, id_: InstanceId) -> None:
        row = self._rows.instances.get(id_)
        if row is not None:
            self._experience.machine_ended(row, self._now)
            self._rows.move(row, _S.TERMINATED, now=self._now, cause="gone")
            self._wake()

    # ------------------------------------------------------------------ ticks

    def _wake(self, in_s: float = DEBOUNCE_S) -> None:
        at = self._now_s + in_s
        if at < self._tick_at - 1e-6:
            self._tick_at = at
            self._after(in_s, lambda: self._tick(at))

    def _tick(self, due_s: float) -> None:
        if due_s != self._tick_at:
            return
        self._tick_at = math.inf
        self._lessons.take_in(self._rules, self._now)
        made = plan(self._snapshot(), self._rules, self._now)
        for id_, prediction in made.predictions.items():
            self._rows.amend_job(self._rows.jobs[id_], prediction=prediction)
        for action in made.actions:
            match action:
                case Launch():
                    self._launch(action)
                case Register():
                    self._register(action)
                case Release() if (row := self._rows.instances.get(action.instance)) is not None:
                    self._terminate(row, action.end_reason, action.reason)
                case Terminate():
                    for id_ in action.instances:
                        if (row := self._rows.instances.get(id_)) is not None:
                            self._terminate(row, action.end_reason, action.reason)
                case _:
                    pass
        if made.wake_at is not None:
            self._wake(max(DEBOUNCE_S, (made.wake_at - self._now).total_seconds()))

    def _snapshot(self) -> Snapshot:
        weather = self._weather
        grown = (self._now_s - self._minted_at) * weather.mint_per_s
        self._mints = min(FULL_S * weather.mint_per_s, self._mints + grown)
        self._minted_at = self._now_s
        forge = ForgeView(
            name=FORGE,
            traits=ForgeTraits(seals_runners=False, removes_finished_runners=True, needs_queue_holder=False),
            is_healthy=True,
            registrations_left=self._mints,
            registrations_per_s=weather.mint_per_s,
        )
        return Snapshot(
            jobs=self._rows.jobs,
            instances=self._rows.instances,
            forges={FORGE: forge},
            offerings={POOL: self._offerings},
            complete=COMPLETE,
            cooldowns=dict(self._seen.cooldowns),
            evidence=self._experience.evidence(self._now),
            expected_life_h=self._experience.expected_life_h(),
            hours=self._lessons.run_times.hours,
            run_sizes=self._lessons.run_sizes.sizes,
            foreseen=self._lessons.stages.foreseen,
            arrivals=self._lessons.arrivals.shown,
        )


def _pool(weather: Weather) -> Pool:
    return Pool(
        name=POOL,
        forges=frozenset({FORGE}),
        repos=("acme/*",),
        labels=("linux",),
        runner_group="",
        priority=0,
        image="base",
        providers=(CLOUD,),
        shape=Shape(),
        min=0,
        max=weather.most,
        boot_timeout=timedelta(minutes=10),
        idle_timeout=timedelta(seconds=60),
        max_job_runtime=timedelta(hours=6),
        target=timedelta(seconds=weather.target_s),
    )


def _offerings(weather: Weather) -> tuple[Offering, ...]:
    found = []
    for number in range(weather.zones):
        for word, price in ((CapacityType.SPOT, 0.04 + number / 1000), (CapacityType.ON_DEMAND, 0.1)):
            place = CapacityPool(
                provider=CLOUD, region="here", zone=f"here-{number}", machine_type="m.large", capacity_type=word
            )
            found.append(Offering(capacity_pool=place, cpus=4, memory_gib=16, arch="x86_64", price_usd_hour=price))
    return tuple(found)


def _machine(row: Instance, offering: Offering, now: datetime) -> CloudInstance:
    return CloudInstance(
        provider=CLOUD,
        provider_id=ProviderId(f"m-{row.id}"),
        token=row.token,
        pool=POOL,
        state=MachineState.PENDING,
        capacity_pool=offering.capacity_pool,
        price_usd_hour=offering.price_usd_hour,
        launched_at=now,
    )
