"""What a game day cost, from the rows alone: so it is the same after a restart, and for a client that asks again.

Reads, never writes. The numbers add up: every lost job is back in the queue (requeued), opted out, abandoned, a late
success, or still open.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from autoscaler.game_day import LONGEST, OPEN_STATES, GameDay, GameDayState
from autoscaler.live import LiveRows
from autoscaler.model import Instance, Interruption, Job, JobId, JobState, Use
from autoscaler.money import NANO, accrued, cost_lines
from autoscaler.spi import ForgeName, InstanceId, ProviderName, ProviderTraits
from autoscaler.states import is_live
from autoscaler.store import Store

RUN_JOBS = 10_000
"""Jobs of one run that are looked through for the next attempt of a lost one."""


class Outcome(StrEnum):
    """What became of a job on a machine that was taken. `kept`: it ended before its machine did; `running`: it may
    still; `open`: it is lost, and neither in the queue again nor given up yet."""

    KEPT = "kept"
    RUNNING = "running"
    REQUEUED = "requeued"
    OPTED_OUT = "opted_out"
    ABANDONED = "abandoned"
    LATE_SUCCESS = "late_success"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class HitJob:
    """A job whose machine was taken under it. `back_after_s`: seconds from its loss until it ran again."""

    job: Job
    instance: InstanceId
    outcome: Outcome
    lost_at: datetime | None = None
    successor: JobId | None = None
    back_after_s: float | None = None
    lost_usd: float = 0.0

    @property
    def is_settled(self) -> bool:
        if self.outcome is Outcome.REQUEUED:
            return self.back_after_s is not None
        return self.outcome not in (Outcome.OPEN, Outcome.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class GameDayReport:
    """`taken` machines are gone; `spared` ended of themselves before; the others are still to go."""

    day: GameDay
    at: datetime
    taken: int
    spared: int
    jobs: tuple[HitJob, ...]

    @property
    def going(self) -> int:
        return len(self.day.machines) - self.taken - self.spared

    def count(self, *outcomes: Outcome) -> int:
        return sum(job.outcome in outcomes for job in self.jobs)

    @property
    def lost(self) -> int:
        return len(self.jobs) - self.count(Outcome.KEPT, Outcome.RUNNING)

    @property
    def back_after_s(self) -> list[float]:
        """Ascending."""
        return sorted(job.back_after_s for job in self.jobs if job.back_after_s is not None)

    @property
    def is_over(self) -> bool:
        if self.day.state not in OPEN_STATES or self.at > self.day.begun_at + LONGEST:
            return True
        is_quiet = self.going == 0 or self.at > self.day.counts_until
        return self.day.state is GameDayState.ASKED and is_quiet and all(job.is_settled for job in self.jobs)


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value that this share of ascending ones does not exceed."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else None


_Runs = dict[tuple[str, str], defaultdict[tuple[ForgeName, str], list[Job]]]
"""The jobs of runs, by forge and name."""


class GameDayReporter:
    """Reads live rows in memory, ended ones from the store. `traits` say how each provider bills."""

    def __init__(self, rows: LiveRows, store: Store, traits: Mapping[ProviderName, ProviderTraits]) -> None:
        self._rows = rows
        self._store = store
        self._traits = traits

    async def report(self, day: GameDay, now: datetime) -> GameDayReport:
        """Raises StoreError."""
        taken = spared = 0
        hits: list[HitJob] = []
        runs: _Runs = {}
        for id_ in day.machines:
            row = self._rows.instances.get(id_) or await self._store.instance(id_)
            told = self._rows.interruption_of(id_) or await self._store.interruption(id_)
            is_hit = told is not None and told.is_game_day
            if row is None or not is_live(row):
                taken, spared = taken + is_hit, spared + (not is_hit)
            job = (row.job if row is not None else None) or (told.job if told is not None else None)
            if told is not None and is_hit and job is not None and (hit := await self._hit(job, row, told, now, runs)):
                hits.append(hit)
        return GameDayReport(day=day, at=now, taken=taken, spared=spared, jobs=tuple(hits))

    async def _hit(
        self, id_: JobId, row: Instance | None, told: Interruption, now: datetime, runs: _Runs
    ) -> HitJob | None:
        job = self._rows.jobs.get(id_) or await self._store.job(id_)
        if job is None:
            return None
        outcome = _outcome(job, told)
        if outcome in (Outcome.KEPT, Outcome.RUNNING):
            return HitJob(job=job, instance=told.instance, outcome=outcome)
        lost_at = told.cutoff_at or told.ended_at or told.noticed_at
        again = await self._again(job, lost_at, runs) if outcome is Outcome.REQUEUED else None
        began_at = again.started_at if again is not None else None
        return HitJob(
            job=job,
            instance=told.instance,
            outcome=outcome,
            lost_at=lost_at,
            successor=again.id if again is not None and again.id != job.id else job.successor,
            back_after_s=max(0.0, (began_at - lost_at).total_seconds()) if began_at is not None else None,
            lost_usd=self._lost_usd(row, now) if row is not None and outcome is not Outcome.LATE_SUCCESS else 0.0,
        )

    async def _again(self, job: Job, lost_at: datetime, runs: _Runs) -> Job | None:
        """The job that runs its work again: the first that began, else the last one known. A job that its forge put
        back into its own queue is its own. A run is read once for all its jobs: it may have thousands."""
        if job.state is not JobState.REQUEUED:
            return replace(job, started_at=job.started_at if job.started_at and job.started_at > lost_at else None)
        run = job.repo, job.run_id
        if run not in runs:
            runs[run] = defaultdict(list)
            for one in await self._store.jobs_of_run(*run, limit=RUN_JOBS):
                runs[run][one.forge, one.name].append(self._rows.jobs.get(one.id, one))
        alike = runs[run].get((job.forge, job.name), [])
        later = sorted((one for one in alike if one.attempt > job.attempt), key=lambda one: one.attempt)
        began = [one for one in later if one.started_at is not None]
        return began[0] if began else later[-1] if later else None

    def _lost_usd(self, row: Instance, now: datetime) -> float:
        """What the time of its job cost, as its provider bills it."""
        at = now if is_live(row) else row.since
        counted = accrued(row, now) if is_live(row) else row
        lines = cost_lines(counted, self._traits.get(row.provider, ProviderTraits()), at)
        return sum(line.usd_nano for line in lines if line.use is Use.JOB) / NANO


def _outcome(job: Job, told: Interruption) -> Outcome:
    match job.state:
        case JobState.LOST:
            return Outcome.OPEN
        case JobState.REQUEUED:
            return Outcome.REQUEUED
        case JobState.ABANDONED:
            return Outcome.OPTED_OUT if job.reason.startswith("opted_out") else Outcome.ABANDONED
        case JobState.DONE if job.reason.startswith("late_success"):
            return Outcome.LATE_SUCCESS
        case _ if job.instance != told.instance:
            return Outcome.REQUEUED  # the very same job, put back by its forge
        case JobState.DONE:
            return Outcome.KEPT
        case _:
            return Outcome.RUNNING
