"""DESIGN section 6, checked from outside: on the store's disk after every commit, on the worlds at every effect.

Nothing here looks into the daemon. A violation is a sentence; the simulation ends at the first one.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from autoscaler.model import EndReason, Instance, InstanceState, Job, JobId, JobState, LedgerEntry, Rules
from autoscaler.outbox import PREFIX
from autoscaler.sandbox.inprocess_cloud import Launched
from autoscaler.spi import CapacityType, InstanceId, LaunchBatch
from autoscaler.states import INSTANCE_MOVES, JOB_MOVES, is_live, is_live_job
from autoscaler.store.memory import MemoryDisk
from autoscaler.tellings import telling_key

_AFTER_LOSS = frozenset({JobState.LOST, JobState.REQUEUED, JobState.ABANDONED})
_LET_GO_FIRST = frozenset({EndReason.SURPLUS, EndReason.DISPUTED, EndReason.STALE_IMAGE, EndReason.BOOT_TIMEOUT})
"""Ends that are nobody's need: the forge must have let the runner go before, or a job may come in between."""
_TAKEN = frozenset({EndReason.INTERRUPTED, EndReason.CHAOS})
_JOB_PATHS: dict[JobState, frozenset[JobState]] = {}


def _reachable(start: JobState) -> frozenset[JobState]:
    """Job states that a row may show after `start` at a later commit, which may hold several moves."""
    if start not in _JOB_PATHS:
        found, fresh = {start}, [start]
        while fresh:
            for state in JOB_MOVES[fresh.pop()] - found:
                found.add(state)
                fresh.append(state)
        _JOB_PATHS[start] = frozenset(found)
    return _JOB_PATHS[start]


@dataclass(slots=True)
class EventLog:
    """What happened, in order, for people and for the digest."""

    now: Callable[[], float]
    lines: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.lines.append(f"{self.now():9.3f} {text}")


class Watch:
    """The invariants of one deployment. `is_busy` names the job that a machine's runner runs at its forge,
    `is_registered` says whether its forge may give it one."""

    def __init__(
        self,
        disk: MemoryDisk,
        *,
        deployment: str,
        rules: Callable[[], Rules],
        is_busy: Callable[[Launched], str],
        is_registered: Callable[[Launched], bool],
        clock_now: Callable[[], datetime],
        log: EventLog,
        report: Callable[[str], None],
    ) -> None:
        self.disk = disk
        self._deployment = deployment
        self._rules = rules
        self._is_busy = is_busy
        self._is_registered = is_registered
        self._now = clock_now
        self._log = log
        self._report = report
        self._jobs: dict[JobId, Job] = {}
        self._moves_seen: Counter[InstanceId] = Counter()
        self._served: dict[InstanceId, JobId] = {}
        self._live: set[InstanceId] = set()
        self._requeues: Counter[tuple[str, str, str, str]] = Counter()
        self._ends_explained: set[str] = set()
        self._asked: dict[str, LedgerEntry] = {}
        """The newest line on each machine that we decided to end, by the row's id or, without a row, by the cloud's."""
        self._entries_read = 0
        self.losses: set[str] = set()
        """What people are to be told of, by the key of the telling."""

    def replace_disk(self) -> None:
        """The store was lost: an empty one takes its place."""
        self.disk = MemoryDisk()
        for memory in (self._jobs, self._moves_seen, self._served, self._live, self._requeues, self._ends_explained):
            memory.clear()
        self._asked.clear()
        self.losses.clear()
        self._entries_read = 0

    def violated(self, text: str) -> None:
        self._report(f"{self._deployment}: {text}")

    # ------------------------------------------------------------------ the store

    def committed(self, jobs: list[JobId], instances: list[InstanceId]) -> None:
        """Some of these rows may have been written."""
        for job_id in jobs:
            if (job := self.disk.jobs.get(job_id)) is not None and job is not self._jobs.get(job_id):
                self._job_written(job, self._jobs.get(job_id))
                self._jobs[job_id] = job
        self._read_ledger()
        for instance_id in instances:
            if (row := self.disk.instances.get(instance_id)) is not None:
                self._instance_written(row)
        if instances:
            self._check_caps()

    def _read_ledger(self) -> None:
        for seq in range(self._entries_read + 1, self.disk.last_entry + 1):
            entry = self.disk.ledger.get(seq)
            if entry is not None and entry.action == "ended":
                if entry.subject in self._ends_explained or not (entry.actor and entry.reason and entry.evidence):
                    self.violated(f"the end of {entry.subject} is told twice, or without who, why or the evidence")
                self._ends_explained.add(entry.subject)
            if entry is not None and entry.action in ("terminate", "sweep"):
                self._asked[entry.subject] = entry
        self._entries_read = self.disk.last_entry

    def _job_written(self, job: Job, before: Job | None) -> None:
        if before is None or before.state is not job.state:
            old = before.state if before is not None else "-"
            self._log.note(f"job {job.id} {job.name} {old} -> {job.state} on {job.runner_name or '-'} {job.reason}")
        if before is not None and job.state not in _reachable(before.state):
            self.violated(f"job {job.id} went from {before.state} to {job.state}")
        if before is not None and before.state is JobState.DONE and job.state is JobState.RUNNING:
            self.violated(f"job {job.id} is done and runs again")
        if job.state in _AFTER_LOSS and job.instance is not None:
            self.losses.add(telling_key(job))
        if job.state is JobState.REQUEUED and (before is None or before.state is not JobState.REQUEUED):
            self._check_requeues(job)
        if job.state is JobState.ABANDONED and not job.reason:
            self.violated(f"job {job.id} was abandoned without a reason")
        pool = self._rules().pools.get(job.pool) if job.pool is not None else None
        if pool is not None and job.attempt > pool.requeue_attempts:
            self.violated(f"job {job.id} is in attempt {job.attempt} of {pool.requeue_attempts}")

    def _check_requeues(self, job: Job) -> None:
        """A piece of work is requeued at most `requeue_attempts` - 1 times, whatever restarts lie between."""
        work = (job.forge, job.repo, job.run_id, job.name)
        self._requeues[work] += 1
        pool = self._rules().pools.get(job.pool) if job.pool is not None else None
        if pool is not None and self._requeues[work] >= pool.requeue_attempts:
            self.violated(f"{job.name} of run {job.run_id} was requeued {self._requeues[work]} times")

    def _instance_written(self, row: Instance) -> None:
        moves = [move for _, move in self.disk.moves.get(row.id, ())]
        seen = self._moves_seen[row.id]
        for number in range(seen, len(moves)):
            move = moves[number]
            self._log.note(f"instance {row.id} {move.from_state or '-'} -> {move.to_state}: {move.cause}")
            last = moves[number - 1].to_state if number else None
            if move.from_state != last:
                self.violated(f"instance {row.id}: history jumps from {last} to {move.from_state}")
            if move.from_state is not None and move.to_state not in INSTANCE_MOVES[move.from_state]:
                self.violated(f"instance {row.id} moved from {move.from_state} to {move.to_state}")
        if moves and not seen and _is_on_demand(row) and "on_demand" not in moves[0].cause and not row.adopted:
            self.violated(f"instance {row.id} is on demand and its cause does not say why: {moves[0].cause}")
        self._moves_seen[row.id] = len(moves)
        if moves and moves[-1].to_state is not row.state:
            self.violated(f"instance {row.id} is {row.state} but its history ends with {moves[-1].to_state}")
        if row.state is InstanceState.DRAINING and row.id not in self.disk.interruptions:
            self.violated(f"instance {row.id} drains and no interruption is on record")
        if row.ending in _TAKEN and row.id not in self.disk.interruptions:
            self.violated(f"instance {row.id} ended as {row.ending} and no interruption is on record")
        if row.job is not None and self._served.setdefault(row.id, row.job) != row.job:
            self.violated(f"instance {row.id} served {self._served[row.id]} and now {row.job}")
        if is_live(row):
            self._live.add(row.id)
        else:
            self._live.discard(row.id)
            if row.id not in self._ends_explained:
                self.violated(f"instance {row.id} ended ({row.ending}) and the ledger does not say by whom")

    def _check_caps(self) -> None:
        rules, rows = self._rules(), [self.disk.instances[id_] for id_ in sorted(self._live)]
        asked = [row for row in rows if not row.adopted]
        for name, pool in rules.pools.items():
            bought = math.fsum(row.price_usd_hour for row in asked if row.pool == name and _is_on_demand(row))
            limit = pool.spill_caps.usd_per_hour
            if pool.spot_enabled and limit is not None and bought > limit + 1e-9:
                self.violated(f"pool {name} spends {bought} USD an hour on demand, its spill is capped at {limit}")
        for of, count in Counter(row.pool for row in asked).items():
            if of in rules.pools and count > rules.pools[of].max:
                self.violated(f"pool {of} has {count} instances, max is {rules.pools[of].max}")
        if rules.caps.instances is not None and len(asked) > rules.caps.instances:
            self.violated(f"{len(asked)} instances, the cap is {rules.caps.instances}")
        spent = math.fsum(row.price_usd_hour for row in asked)
        if rules.caps.usd_per_hour is not None and spent > rules.caps.usd_per_hour + 1e-9:
            self.violated(f"{spent} USD an hour, the cap is {rules.caps.usd_per_hour}")
        bound = Counter(row.provider_id for row in rows if row.provider_id is not None)
        for provider_id, count in bound.items():
            if count > 1:
                self.violated(f"{count} live rows claim machine {provider_id}")

    # ------------------------------------------------------------------ the cloud

    def launched(self, batch: LaunchBatch, made: int) -> None:
        """A launch takes effect: its rows must be durable, and no more machines than rows exist."""
        rows = sum(1 for row in self.disk.instances.values() if row.token == batch.token)
        self._log.note(f"launch {batch.token} for {batch.pool}: {made} of {batch.count}")
        if rows < batch.count or made > rows:
            self.violated(f"launch {batch.token} of {batch.count} made {made} machines, {rows} rows are durable")

    def terminating(self, machine: Launched) -> None:
        """A terminate call is about to take effect."""
        self._log.note(f"terminate {machine.provider_id}")
        row = next((row for row in self.disk.instances.values() if row.provider_id == machine.provider_id), None)
        if row is not None and row.state not in (InstanceState.TERMINATING, InstanceState.TERMINATED):
            self.violated(f"machine {machine.provider_id} is terminated while its row {row.id} says {row.state}")
        self._read_ledger()
        line = self._asked.get(row.id if row is not None else machine.provider_id)
        if line is None or not (line.actor and line.reason and line.evidence):
            self.violated(f"machine {machine.provider_id} is ended and the ledger lacks who, why or the evidence")
        ending = f"{row.id} {row.state} {row.ending}" if row is not None else "no row"
        if (job := self._is_busy(machine)) and not (row is not None and self._may_end_busy(row, line)):
            self.violated(f"machine {machine.provider_id} ({ending}) is terminated while its forge says it runs {job}")
        if row is not None and row.ending in _LET_GO_FIRST and self._is_registered(machine):
            self.violated(f"machine {machine.provider_id} ({ending}) is terminated before its forge let its runner go")

    def acknowledged(self, machine: Launched) -> None:
        """A notice of a reclaim is about to be forgotten by the cloud: what it said must be durable."""
        rows = [row for row in self.disk.instances.values() if row.provider_id == machine.provider_id]
        for row in rows:
            is_over = row.job is not None and row.job not in self._live_jobs()
            is_going = row.state in (InstanceState.TERMINATING, InstanceState.TERMINATED)
            if row.id not in self.disk.interruptions and not is_over and not is_going:
                self.violated(f"the notice of {row.id} ({row.state}) was acknowledged and nothing of it is durable")

    def _live_jobs(self) -> set[JobId]:
        return {job.id for job in self.disk.jobs.values() if is_live_job(job)}

    def _may_end_busy(self, row: Instance, line: LedgerEntry | None) -> bool:
        """Its cloud takes it, an operator's order that is on record named it, or its job had all of its time."""
        if row.ending in _TAKEN:
            return row.id in self.disk.interruptions
        if row.ending is EndReason.OPERATOR:
            return line is not None and line.actor != "autoscaler"
        if row.ending is not EndReason.MAX_RUNTIME:
            return False
        pool = self._rules().pools.get(row.pool)
        began = [m.at for _, m in self.disk.moves[row.id] if m.to_state is InstanceState.BUSY]
        limit = pool.max_job_runtime if pool is not None else timedelta(0)
        return bool(began) and self._now() - began[0] >= limit

    # ------------------------------------------------------------------ the end

    def left_over(self, mins: Mapping[str, int]) -> list[str]:
        """What keeps the deployment from being at rest: live jobs, and instances over `min`."""
        found = [f"job {job.id} is {job.state}" for job in self.disk.jobs.values() if job.state in _UNSETTLED]
        counts: Counter[str] = Counter()
        for id_ in sorted(self._live):
            row = self.disk.instances[id_]
            counts[row.pool] += 1
            if row.state not in (InstanceState.READY, InstanceState.IDLE):
                found.append(f"instance {id_} is {row.state}")
        found += [
            f"the interruption of {one.instance} is open"
            for one in self.disk.interruptions.values()
            if one.ended_at is None and one.instance not in self._live
        ]
        for pool, count in counts.items():
            if count > mins.get(pool, 0):
                found.append(f"pool {pool} keeps {count} instances, min is {mins.get(pool, 0)}")
        return found

    def untold(self, told: Counter[str]) -> list[str]:
        """Losses of which people were not told once, although nothing on record says why. `told` counts what the
        forges show, by key."""
        found = [f"people were told {count} times of {key}" for key, count in sorted(told.items()) if count > 1]
        found += [f"{key} is still to be said" for key in sorted(self.disk.settings) if key.startswith(PREFIX)]
        excused = {
            e.subject for e in self.disk.ledger.values() if e.action == "tell" and e.outcome.startswith("not told: ")
        }
        for key in sorted(self.losses - told.keys()):
            if key.rpartition("/")[0] not in excused:
                found.append(f"people were not told of the loss {key}")
        return found

    def secrets_in(self, secrets: Mapping[str, str]) -> list[str]:
        """Names of the secrets that the store holds."""
        text = repr(self.disk)
        return sorted(name for name, secret in secrets.items() if secret in text)


def _is_on_demand(row: Instance) -> bool:
    return row.capacity_pool is not None and row.capacity_pool.capacity_type is CapacityType.ON_DEMAND


_UNSETTLED = frozenset({JobState.QUEUED, JobState.RUNNING, JobState.LOST})
