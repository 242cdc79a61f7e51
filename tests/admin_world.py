"""A DaemonView over real model objects and the memory store, for tests of what is built upon the view alone."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from autoscaler.game_day import GameDay
from autoscaler.game_day_report import GameDayReport
from autoscaler.http.view import Condition, TickView, Trouble
from autoscaler.model import (
    Blocked,
    Caps,
    Cooldown,
    Demand,
    EndReason,
    Instance,
    InstanceMove,
    InstanceState,
    Job,
    JobId,
    JobState,
    LedgerEntry,
    Pool,
    PoolControl,
    Rules,
    SeenBy,
    Snapshot,
    job_id,
)
from autoscaler.scores import Calibration, ScoredBin
from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    Conclusion,
    ForgeName,
    InstanceId,
    Offering,
    PoolName,
    ProviderName,
    ProviderTraits,
    RateBudget,
    RunnerId,
    Scope,
    Shape,
    label_set,
)
from autoscaler.store import Changes, Sample
from autoscaler.store.memory import MemoryStore

GITHUB = ForgeName("github")
LINUX, GPU, ARM = PoolName("linux"), PoolName("gpu"), PoolName("arm-small")
SPOT = CapacityPool(
    provider=ProviderName("aws"),
    region="eu-central-1",
    zone="eu-central-1a",
    machine_type="m7i.large",
    capacity_type=CapacityType.SPOT,
)
OFFERING = Offering(capacity_pool=SPOT, cpus=2, memory_gib=8, arch="x86_64", price_usd_hour=0.0415)


def pool(name: PoolName, *labels: str, **changes: Any) -> Pool:
    return replace(
        Pool(
            name=name,
            forges=frozenset({GITHUB}),
            repos=("acme/*", "!acme/secret"),
            labels=label_set(labels),
            runner_group="",
            priority=0,
            image="base",
            providers=(ProviderName("aws"),),
            shape=Shape(),
            min=0,
            max=40,
            boot_timeout=timedelta(minutes=5),
            idle_timeout=timedelta(minutes=2),
            max_job_runtime=timedelta(hours=6),
            target=timedelta(seconds=60),
        ),
        **changes,
    )


def job(number: int, queued_at: datetime, state: JobState = JobState.QUEUED, **changes: Any) -> Job:
    row = Job(
        id=job_id(GITHUB, str(number)),
        forge=GITHUB,
        forge_job_id=str(number),
        repo="acme/shop",
        run_id=str(1000 + number),
        run_attempt=1,
        workflow="ci",
        name=f"test ({number})",
        labels=("linux", "x64"),
        scope=Scope("acme"),
        state=state,
        queued_at=queued_at,
        first_seen_at=queued_at + timedelta(seconds=1),
        seen_by=SeenBy.WEBHOOK,
        version=1,
        pool=LINUX,
    )
    return replace(row, **changes)


def instance(number: int, since: datetime, state: InstanceState, **changes: Any) -> Instance:
    row = Instance(
        id=InstanceId(f"i-{number:04x}"),
        pool=LINUX,
        provider=ProviderName("aws"),
        token=BatchToken(f"b-{number}"),
        state=state,
        since=since,
        created_at=since - timedelta(seconds=40),
        version=1,
        capacity_pool=SPOT,
        price_usd_hour=0.0415,
    )
    return replace(row, **changes)


def demand_of(row: Job) -> Demand:
    return Demand(forge=row.forge, scope=row.scope, group="", labels=row.labels)


def snapshot_of(jobs: Sequence[Job] = (), instances: Sequence[Instance] = (), **changes: Any) -> Snapshot:
    empty = Snapshot(
        jobs={row.id: row for row in jobs}, instances={row.id: row for row in instances}, forges={}, offerings={}
    )
    return replace(empty, **changes)


def rules_of(*pools: Pool, caps: Caps | None = None) -> Rules:
    return Rules(pools={one.name: one for one in pools}, caps=caps or Caps())


class ExampleView:
    """Keeps the DaemonView protocol. `publish` replaces the snapshot as a tick would."""

    def __init__(self, snapshot: Snapshot, rules: Rules, *, at: datetime | None = None) -> None:
        self.store = MemoryStore()
        self.deployment = "acme-ci"
        self.unwell: tuple[Condition, ...] = ()
        self.reasons: tuple[Blocked, ...] = ()
        self.has_ticked = True
        self.scored: tuple[Calibration, ...] = ()
        self.allows_game_days = False
        self.controlled: list[tuple[PoolName, PoolControl, str]] = []
        self._snapshot = snapshot
        self._rules = rules
        self._at = at
        self._number = 1
        self._changed = asyncio.Event()

    def now(self) -> datetime:
        return self._at or datetime.now(UTC)

    def advance(self, by: timedelta) -> None:
        self._at = self.now() + by

    def snapshot(self) -> Snapshot:
        return self._snapshot

    def rules(self) -> Rules:
        return self._rules

    def traits(self) -> Mapping[ProviderName, ProviderTraits]:
        return {}

    def blocked(self) -> Sequence[Blocked]:
        return self.reasons

    def budgets(self) -> Sequence[tuple[str, RateBudget]]:
        return [("github", RateBudget(family="core", limit=5000, remaining=4321.5, refill_per_s=1.4))]

    def conditions(self) -> Sequence[Condition]:
        well = Condition(name="store", is_well=True, detail="sqlite", since=self.now())
        return (well, *self.unwell)

    def troubles(self) -> Sequence[Trouble]:
        return [Trouble(target="aws", text="notices: no message ever came from the queue; check its rule")]

    def dropped_notices(self) -> Sequence[tuple[str, str, int]]:
        return [("aws", "foreign", 7)]

    def predictions(self) -> Sequence[Calibration]:
        return self.scored

    def last_tick(self) -> TickView | None:
        if not self.has_ticked:
            return None
        return TickView(number=7, at=self.now(), took_s=0.01, plan_s=0.002, actions=3)

    async def wait_change(self, after: int) -> int:
        while self._number <= after:
            await self._changed.wait()
        return self._number

    async def set_control(self, pool: PoolName, control: PoolControl, *, actor: str) -> None:
        if pool not in self._rules.pools:
            raise KeyError(pool)
        self.controlled.append((pool, control, actor))
        self.publish(replace(self._snapshot, controls={**self._snapshot.controls, pool: control}))

    async def begin_game_day(self, pool: PoolName, *, share: float, is_announced: bool, actor: str) -> GameDayReport:
        if pool not in self._rules.pools:
            raise KeyError(pool)
        raise AssertionError("this view has no clouds")

    async def game_day(self, id_: str) -> GameDayReport:
        raise KeyError(id_)

    def game_days(self) -> Sequence[GameDay]:
        return ()

    def publish(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._number += 1
        self._changed.set()
        self._changed = asyncio.Event()


def _moves(row: Instance, states: Sequence[tuple[float, InstanceState, str]]) -> list[InstanceMove]:
    moves, before = [], None
    for seconds_ago, state, cause in states:
        at = row.since - timedelta(seconds=seconds_ago)
        moves.append(InstanceMove(instance=row.id, at=at, from_state=before, to_state=state, cause=cause))
        before = state
    return moves


async def busy_view(*, at: datetime | None = None, waiting: int = 14, seconds: float = 9) -> ExampleView:
    """A deployment in the middle of a burst: jobs waiting, running and unserved; a pool capped, a provider unwell."""
    now = at or datetime.now(UTC)
    states = InstanceState

    def earlier(span_s: float) -> datetime:
        return now - timedelta(seconds=span_s)

    queued = [job(n, earlier(4 + n * seconds)) for n in range(waiting)]
    queued += [
        job(9800 + n, earlier(150 + 20 * n), pool=GPU, labels=("cuda", "gpu"), repo="acme/vision", name="train (fp16)")
        for n in range(3)
    ]
    hostile = job(9901, earlier(420), pool=None, labels=("arm64", "linux"), repo="acme/firmware")
    unserved = [
        replace(hostile, name="<img src=x onerror=\"document.title='owned'\">"),
        job(9902, earlier(95), pool=None, repo="acme/secret", name="deploy"),
    ]
    machines, running, moves = [], [], []
    for n in range(11):
        row = job(
            9500 + n, earlier(150 + 13 * n), JobState.RUNNING, name=f"build ({n})", started_at=earlier(100 + 13 * n)
        )
        machine = instance(n, earlier(100 + 13 * n), states.BUSY, job=row.id, demand=demand_of(row))
        machines.append(replace(machine, runner_name=f"acme-ci-{machine.id}", runner_id=RunnerId(str(n))))
        running.append(replace(row, instance=machine.id, runner_name=f"acme-ci-{machine.id}"))
        moves += _moves(
            machine,
            (
                (40, states.REQUESTED, "3 jobs wait for pool linux"),
                (38, states.LAUNCHED, "the cloud made it"),
                (6, states.READY, "its agent said hello"),
                (5, states.REGISTERING, "job waits for its labels"),
                (2, states.IDLE, "its runner is online"),
                (0, states.BUSY, "the forge says that its runner runs a job"),
            ),
        )
    others = [(states.IDLE, 3), (states.REGISTERING, 2), (states.LAUNCHED, 14), (states.LAUNCHED, 16)]
    for n, (state, age) in enumerate([*others, (states.REQUESTED, 1), (states.TERMINATING, 4)]):
        machine = instance(40 + n, earlier(age), state)
        if state in (states.IDLE, states.REGISTERING):
            machine = replace(machine, demand=demand_of(queued[0]), runner_name=f"acme-ci-{machine.id}")
        if state is states.TERMINATING:
            machine = replace(machine, ending=EndReason.JOB_DONE)
        machines.append(machine)
        moves += _moves(machine, ((0, state, "the plan asked for it"),))
    machines.append(instance(60, earlier(600), states.BUSY, pool=GPU))
    snapshot = snapshot_of(
        [*queued, *unserved, *running],
        machines,
        offerings={LINUX: (OFFERING,), GPU: (OFFERING,)},
        cooldowns={SPOT: Cooldown(capacity_pool=SPOT, until=earlier(-90), failures=2, reason="no capacity")},
        controls={ARM: PoolControl.PAUSED},
        spent_today_usd={ProviderName("aws"): 41.3},
    )
    pools = (
        pool(LINUX, "linux", "x64", "docker"),
        pool(GPU, "linux", "gpu", "cuda", max=1, target=timedelta(seconds=120)),
        pool(ARM, "linux-arm", "small", target=timedelta(seconds=90)),
    )
    view = ExampleView(snapshot, rules_of(*pools), at=at)
    view.scored = tuple(
        Calibration(
            pool=name,
            jobs=1200,
            brier=0.031,
            bins=(
                ScoredBin(predicted=0.02, observed=0.018, jobs=1100),
                ScoredBin(predicted=0.27, observed=0.31, jobs=60),
                ScoredBin(predicted=0.94, observed=0.925, jobs=40),
            ),
        )
        for name in (None, LINUX)
    )
    view.reasons = (Blocked(pool=GPU, jobs=3, reason="pool gpu has its max of 1 machine"),)
    view.unwell = (
        Condition(
            name="forge/gitlab",
            is_well=False,
            detail="401 Unauthorized from gitlab.example.com",
            since=earlier(260),
            remedy="The token was revoked or has expired: make a new one with the api scope and reload.",
        ),
    )
    await view.store.open()
    await view.store.acquire_lease("test")
    done = job(9300, earlier(900), JobState.DONE, conclusion=Conclusion.SUCCESS, started_at=earlier(870))
    await view.store.commit(
        Changes(
            jobs=[*snapshot.jobs.values(), replace(done, finished_at=earlier(700))],
            instances=machines,
            moves=moves,
            ledger=_ledger(earlier, queued[0].id),
            samples=_samples(now),
        )
    )
    return view


def _ledger(earlier: Any, waiting: JobId) -> list[LedgerEntry]:
    lines = (
        (16, "launch", "b-2a", "linux", "2 jobs wait and none of the 11 machines is free", "2 of 2 launched"),
        (14, "launch", "aws/eu-central-1a/m7i.large/spot", "gpu", "3 jobs wait", "refused: no capacity"),
        (4, "release", "i-002d", "linux", "its job is done", "ok"),
        (3, "register", "i-0028", "linux", f"{waiting} waits for its labels", "ok"),
        (61, "requeue", str(waiting), "linux", "its machine was interrupted", "queued again"),
        (95, "pause", "arm-small", "arm-small", "asked for by an operator", "ok"),
    )
    return [
        LedgerEntry(
            at=earlier(age), actor="plan", action=action, subject=subject, pool=of, reason=reason, outcome=outcome
        )
        for age, action, subject, of, reason, outcome in sorted(lines, reverse=True)
    ]


def _samples(now: datetime) -> list[Sample]:
    samples = []
    for minute in range(58):
        if 30 <= minute < 33:
            continue
        wave = (minute * 7 % 23) / 23
        for name, scale in ((LINUX, 1.0), (GPU, 0.3)):
            busy = int(4 + 12 * wave * scale)
            samples.append(
                Sample(
                    at=now - timedelta(minutes=58 - minute),
                    pool=name,
                    queued=int(9 * wave * scale),
                    running=busy,
                    oldest_wait_s=8 + 70 * wave * scale,
                    instances={"busy": busy, "launched": int(3 * wave), "idle": 1},
                )
            )
    return samples
