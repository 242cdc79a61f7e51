"""The live rows in memory, written through to the store.

Owns the rows that are not terminal, their look-ups, and the changes not yet committed. Moving a row is synchronous
and checked against `states`; `flush` makes everything so far durable, in order. Nothing may call a forge or a cloud
for a row before the flush that holds its intent returned. A Conflict or LeaseLost is fatal to this process: the rows
in memory are no longer the truth, and a restart reads them anew.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from autoscaler.model import (
    CapacityEvidence,
    CostLine,
    EndReason,
    Instance,
    InstanceMove,
    InstanceState,
    Interruption,
    Job,
    JobId,
    JobState,
    LedgerEntry,
    PoolControl,
    Use,
)
from autoscaler.money import accrued, cost_lines
from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    InstanceId,
    PoolName,
    ProviderId,
    ProviderName,
    ProviderTraits,
)
from autoscaler.states import is_live, is_live_job, move_instance, move_job
from autoscaler.store import Changes, Learned, Sample, Store, Stored

_K = TypeVar("_K")
_V = TypeVar("_V")

JobNews = tuple[Job | None, Job]
"""A job before and after it moved; None: it was never seen before."""
MachineNews = tuple[Instance, Instance]
"""A machine before and after it moved."""

_NO_TRAITS = ProviderTraits()
REMEMBERED = 20_000
"""Ended jobs and machines remembered, so that late events about them cost no look-up."""


class LiveRows:
    """See the module docstring. Not thread-safe: one event loop owns it. `traits` say how each provider bills."""

    def __init__(self, store: Store, traits: Mapping[ProviderName, ProviderTraits] | None = None) -> None:
        self._traits = traits or {}
        self.reclaimed_free = {
            name: timedelta(seconds=billing.reclaimed_free_s) for name, billing in self._traits.items()
        }
        self.billed: list[CostLine] = []
        """What machines cost that ended since the last tick looked, for the metrics."""
        self.job_news: list[JobNews] = []
        self.machine_news: list[MachineNews] = []
        """What moved since the last tick looked, for `outbox` and `lessons`."""
        self.jobs: dict[JobId, Job] = {}
        self.instances: dict[InstanceId, Instance] = {}
        self.controls: dict[PoolName, PoolControl] = {}
        self.settings: dict[str, str] = {}
        self.evidence: dict[CapacityPool, CapacityEvidence] = {}
        self.learned: dict[str, Learned] = {}
        self.is_new_store = False
        self.lost: set[JobId] = set()
        self.ended_jobs: OrderedDict[JobId, JobState] = OrderedDict()
        self.ended_claims: OrderedDict[str, InstanceId] = OrderedDict()
        self.ended_runners: OrderedDict[str, Instance | None] = OrderedDict()
        """Ended machines by the name of their runner; None: looked up in the store, and no ended machine's."""
        self.ended_machines: OrderedDict[tuple[ProviderName, ProviderId], Instance] = OrderedDict()
        self.interruptions: dict[InstanceId, Interruption] = {}
        """Those of live rows: their clouds take them."""
        self.changed = 0
        """Counts visible changes, for live views."""
        self._store = store
        self._by_provider_id: dict[tuple[ProviderName, ProviderId], InstanceId] = {}
        self._by_runner: dict[str, InstanceId] = {}
        self._by_claim: dict[str, InstanceId] = {}
        self._by_token: dict[BatchToken, set[InstanceId]] = {}
        self._saved: dict[str, int] = {}
        self._ended_interruptions: OrderedDict[InstanceId, Interruption] = OrderedDict()
        self._buffer = _Buffer()
        self._pending: deque[Changes] = deque()
        self._flushing = asyncio.Lock()
        self._committing: set[asyncio.Future[None]] = set()

    def load(self, stored: Stored) -> None:
        """Take over what the store holds. Only once, before anything else."""
        self.is_new_store = stored.is_new
        self.controls = dict(stored.controls)
        self.settings = dict(stored.settings)
        self.evidence = {one.capacity_pool: one for one in stored.evidence}
        self.learned = {one.key: one for one in stored.learned}
        for job in stored.jobs:
            self.jobs[job.id] = job
            self._saved[job.id] = job.version
            if job.state is JobState.LOST:
                self.lost.add(job.id)
        for instance in stored.instances:
            self._saved[instance.id] = instance.version
            self._index(instance)
        self.interruptions = {one.instance: one for one in stored.interruptions}

    # ------------------------------------------------------------------ look-ups

    def by_provider_id(self, provider: ProviderName, id_: ProviderId) -> Instance | None:
        return self._live(self._by_provider_id.get((provider, id_)))

    def by_runner(self, name: str) -> Instance | None:
        return self._live(self._by_runner.get(name)) if name else None

    def by_claim(self, claim: str) -> Instance | None:
        return self._live(self._by_claim.get(claim))

    def of_token(self, token: BatchToken) -> list[Instance]:
        """The live rows of one launch batch, in a stable order."""
        return [self.instances[id_] for id_ in sorted(self._by_token.get(token, ()))]

    def _live(self, id_: InstanceId | None) -> Instance | None:
        return self.instances.get(id_) if id_ is not None else None

    def remember_ended(self, job: JobId, state: JobState) -> None:
        """Events about this job change nothing any more."""
        _remember(self.ended_jobs, job, state)

    def remember_runner(self, name: str, ended: Instance | None) -> None:
        """What the store holds about the machine of a runner name."""
        _remember(self.ended_runners, name, ended)

    def remember_interruption(self, ended: Interruption) -> None:
        """What the store holds about the loss of a machine that ended."""
        _remember(self._ended_interruptions, ended.instance, ended)

    def interruption_of(self, instance: InstanceId) -> Interruption | None:
        """What is known of the loss of a machine, live or ended."""
        return self.interruptions.get(instance) or self._ended_interruptions.get(instance)

    # ------------------------------------------------------------------ writes

    def add_job(self, job: Job) -> Job:
        """A job never seen before."""
        added = self._save_job(job)
        self.job_news.append((None, added))
        return added

    def amend_job(self, job: Job, **fields: Any) -> Job:
        """Change fields that are not the state."""
        amended = self._save_job(replace(job, **fields))
        if amended.prediction is not job.prediction:
            self.job_news.append((job, amended))
        return amended

    def move_job(self, job: Job, to_state: JobState, **fields: Any) -> Job:
        if job.instance is not None and JobState.LOST in (job.state, to_state):
            # What its machine cost was for nothing, unless the job turns out to have succeeded.
            was_for_nothing = to_state in (JobState.LOST, JobState.REQUEUED, JobState.ABANDONED, JobState.QUEUED)
            self._buffer.job_uses[job.instance] = Use.LOST if was_for_nothing else Use.JOB
            if (machine := self.instances.get(job.instance)) is not None:
                self.amend(machine, is_job_lost=was_for_nothing)
        moved = self._save_job(replace(move_job(job, to_state), **fields))
        self.job_news.append((job, moved))
        return moved

    def add_instance(self, instance: Instance, *, cause: str) -> Instance:
        """A new row: the intent to have a machine, or one adopted from the cloud."""
        self._buffer.moves.append(
            InstanceMove(instance=instance.id, at=instance.since, from_state=None, to_state=instance.state, cause=cause)
        )
        return self._save_instance(instance)

    def amend(self, instance: Instance, **fields: Any) -> Instance:
        """Change fields that are not the state."""
        if "since" in fields:
            instance = accrued(instance, fields["since"])
        return self._save_instance(replace(instance, **fields))

    def move(
        self,
        instance: Instance,
        to_state: InstanceState,
        *,
        now: datetime,
        cause: str,
        ending: EndReason | None = None,
        **fields: Any,
    ) -> Instance:
        """One checked step of an instance. Raises IllegalMove."""
        moved, line = move_instance(accrued(instance, now), to_state, now=now, cause=cause, ending=ending)
        self._buffer.moves.append(line)
        moved = replace(moved, **fields)
        if moved.state is InstanceState.STARTING:
            moved = replace(moved, starts=moved.starts + 1)
        elif not is_live(moved):
            self._bill(moved, now)
        moved = self._save_instance(moved)
        self.machine_news.append((instance, moved))
        return moved

    def _bill(self, ended: Instance, now: datetime) -> None:
        """Its job may have been found lost before it: that stands in the same transaction, after the lines."""
        lines = cost_lines(ended, self._traits.get(ended.provider, _NO_TRAITS), now)
        self._buffer.costs.extend(lines)
        job = self.jobs.get(ended.job) if ended.job is not None else None
        is_lost = ended.is_job_lost or (job is not None and job.state is JobState.LOST)
        if is_lost:
            self._buffer.job_uses[ended.id] = Use.LOST
        self.billed.extend(replace(line, use=Use.LOST) if is_lost and line.use is Use.JOB else line for line in lines)

    def record(self, interruption: Interruption) -> None:
        """What is known by now of one loss."""
        self._buffer.interruptions[interruption.instance] = interruption
        if interruption.ended_at is None:
            self.interruptions[interruption.instance] = interruption
        else:
            self.interruptions.pop(interruption.instance, None)
            self.remember_interruption(interruption)
        self.changed += 1

    def note(self, entry: LedgerEntry) -> None:
        self._buffer.ledger.append(entry)
        self.changed += 1

    def consume(self, seq: int) -> None:
        self._buffer.consumed.append(seq)

    def spend(self, ended: Instance, usd: float, *, now: datetime) -> None:
        """An ended machine's cost, on the accounts of the UTC day of its end: its provider's, and for on_demand its
        pool's. Yesterday's accounts are closed."""
        self._book("spent", ended.provider, usd, now)
        place = ended.capacity_pool
        if place is not None and place.capacity_type is CapacityType.ON_DEMAND:
            self._book("on_demand", ended.pool, usd, now)

    def spent_today(self, now: datetime) -> dict[ProviderName, float]:
        return {ProviderName(name): usd for name, usd in self._booked("spent", now)}

    def on_demand_today(self, now: datetime) -> dict[PoolName, float]:
        return {PoolName(name): usd for name, usd in self._booked("on_demand", now)}

    def _book(self, account: str, name: str, usd: float, now: datetime) -> None:
        today = f"{account}/{now:%Y-%m-%d}/"
        for key in [key for key in self.settings if key.startswith(f"{account}/") and not key.startswith(today)]:
            self.set_setting(key, "")
        key = today + name
        self.set_setting(key, repr(float(self.settings.get(key) or 0.0) + usd))

    def _booked(self, account: str, now: datetime) -> list[tuple[str, float]]:
        today = f"{account}/{now:%Y-%m-%d}/"
        return [
            (key.removeprefix(today), float(value)) for key, value in self.settings.items() if key.startswith(today)
        ]

    def sample(self, samples: Iterable[Sample]) -> None:
        self._buffer.samples.extend(samples)

    def keep_evidence(self, evidence: CapacityEvidence) -> None:
        """What is known of a capacity pool from now on, durable with the next flush."""
        self.evidence[evidence.capacity_pool] = evidence
        self._buffer.evidence[evidence.capacity_pool] = evidence

    def learn(self, learned: Learned) -> None:
        """What is known under a key from now on, durable with the next flush."""
        self.learned[learned.key] = learned
        self._buffer.learned[learned.key] = learned

    def set_control(self, pool: PoolName, control: PoolControl) -> None:
        self.controls[pool] = control
        self._buffer.controls[pool] = control
        self.changed += 1

    def set_setting(self, key: str, value: str) -> None:
        """A small text by key; an empty one deletes."""
        if value:
            self.settings[key] = value
        else:
            self.settings.pop(key, None)
        self._buffer.settings[key] = value

    def _save_job(self, job: Job) -> Job:
        job = replace(job, version=self._next_version(job.id, job.id in self._buffer.jobs))
        self._buffer.jobs[job.id] = job
        if is_live_job(job):
            self.jobs[job.id] = job
        else:
            self.jobs.pop(job.id, None)
            self.remember_ended(job.id, job.state)
        if job.state is JobState.LOST:
            self.lost.add(job.id)
        else:
            self.lost.discard(job.id)
        self.changed += 1
        return job

    def _save_instance(self, instance: Instance) -> Instance:
        before = self.instances.get(instance.id)
        instance = replace(instance, version=self._next_version(instance.id, instance.id in self._buffer.instances))
        self._buffer.instances[instance.id] = instance
        if before is not None:
            self._unindex(before)
        if is_live(instance):
            self._index(instance)
        else:
            if instance.claim:
                _remember(self.ended_claims, instance.claim, instance.id)
            if instance.runner_name:
                self.remember_runner(instance.runner_name, instance)
            if instance.provider_id is not None:
                _remember(self.ended_machines, (instance.provider, instance.provider_id), instance)
        self.changed += 1
        return instance

    def _next_version(self, id_: str, is_buffered: bool) -> int:
        if not is_buffered:
            self._saved[id_] = self._saved.get(id_, 0) + 1
        return self._saved[id_]

    def _index(self, instance: Instance) -> None:
        self.instances[instance.id] = instance
        self._by_token.setdefault(instance.token, set()).add(instance.id)
        if instance.provider_id is not None:
            self._by_provider_id[instance.provider, instance.provider_id] = instance.id
        if instance.runner_name:
            self._by_runner[instance.runner_name] = instance.id
        if instance.claim:
            self._by_claim[instance.claim] = instance.id

    def _unindex(self, instance: Instance) -> None:
        self.instances.pop(instance.id, None)
        ids = self._by_token.get(instance.token, set())
        ids.discard(instance.id)
        if not ids:
            self._by_token.pop(instance.token, None)
        if instance.provider_id is not None:
            self._by_provider_id.pop((instance.provider, instance.provider_id), None)
        self._by_runner.pop(instance.runner_name, None)
        self._by_claim.pop(instance.claim, None)

    # ------------------------------------------------------------------ durability

    @property
    def is_clean(self) -> bool:
        """Whether everything is durable."""
        return not self._pending and self._buffer.is_empty

    async def flush(self) -> None:
        """Make every change so far durable. On StoreError the changes are kept and the next flush repeats them.

        A commit that began is seen through even when its caller is cancelled: repeated, it would conflict with itself.
        """
        committing = asyncio.ensure_future(self._commit())
        self._committing.add(committing)
        committing.add_done_callback(self._committed)
        await asyncio.shield(committing)

    async def _commit(self) -> None:
        async with self._flushing:
            if not self._buffer.is_empty:
                self._pending.append(self._buffer.take())
                self._buffer = _Buffer()
            while self._pending:
                await self._store.commit(self._pending[0])
                self._forget_terminal(self._pending.popleft())

    def _committed(self, done: asyncio.Future[None]) -> None:
        self._committing.discard(done)
        if not done.cancelled():
            done.exception()  # read it: after a cancellation nobody else does

    def _forget_terminal(self, changes: Changes) -> None:
        rows: tuple[Job | Instance, ...] = (*changes.jobs, *changes.instances)
        for row in rows:
            is_gone = row.id not in self.jobs and row.id not in self.instances
            if is_gone and row.id not in self._buffer.jobs and row.id not in self._buffer.instances:
                self._saved.pop(row.id, None)


class _Buffer:
    """Changes not yet handed to the store; at most one version of each row."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.instances: dict[str, Instance] = {}
        self.moves: list[InstanceMove] = []
        self.ledger: list[LedgerEntry] = []
        self.consumed: list[int] = []
        self.samples: list[Sample] = []
        self.controls: dict[PoolName, PoolControl] = {}
        self.settings: dict[str, str] = {}
        self.evidence: dict[CapacityPool, CapacityEvidence] = {}
        self.learned: dict[str, Learned] = {}
        self.costs: list[CostLine] = []
        self.job_uses: dict[InstanceId, Use] = {}
        self.interruptions: dict[InstanceId, Interruption] = {}

    @property
    def is_empty(self) -> bool:
        return not any(vars(self).values())

    def take(self) -> Changes:
        return Changes(
            jobs=tuple(self.jobs.values()),
            instances=tuple(self.instances.values()),
            moves=tuple(self.moves),
            ledger=tuple(self.ledger),
            consumed=tuple(self.consumed),
            samples=tuple(self.samples),
            controls=dict(self.controls),
            settings=dict(self.settings),
            evidence=tuple(self.evidence.values()),
            learned=tuple(self.learned.values()),
            costs=tuple(self.costs),
            job_uses=dict(self.job_uses),
            interruptions=tuple(self.interruptions.values()),
        )


def _remember(memory: OrderedDict[_K, _V], key: _K, value: _V) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
