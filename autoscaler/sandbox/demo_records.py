"""What became of the demo's jobs and machines, as plain rows: the report's only input.

Owns no judgement: the forges' own records and the daemon's store are read into values here, counted elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoscaler.model import Instance, InstanceMove, Interruption, Job, LedgerEntry
from autoscaler.spi import InstanceId, Labels, PoolName, ProviderTraits


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One time that a forge queued a job, in epoch seconds. `queued_at` is None for one skipped or held back, `runner`
    who took it, `conclusion` how it ended by its forge's own word."""

    queued_at: float | None
    started_at: float | None
    finished_at: float | None
    runner: str = ""
    conclusion: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One submitted job, over all its attempts, as its forge tells it.

    `run` names the run it was submitted with. `conclusion` is the newest attempt's, None while that has not ended;
    `is_running` says that the forge believes a runner works on it. `needs` are keys of the same run, `duration_s`
    what it takes on an uninterrupted machine, `runners` who took it, one entry each time.
    """

    forge: str
    repo: str
    run: str
    key: str
    name: str
    labels: Labels
    needs: tuple[str, ...]
    duration_s: float
    submitted_at: float
    attempts: tuple[Attempt, ...]
    conclusion: str | None
    is_running: bool
    runners: tuple[str, ...]
    forge_job_ids: tuple[str, ...]

    @property
    def is_queued(self) -> bool:
        """Whether the forge waits for a runner."""
        last = self.attempts[-1] if self.attempts else None
        return (
            self.conclusion is None
            and not self.is_running
            and last is not None
            and last.queued_at is not None
            and last.started_at is None
        )

    @property
    def first_queued_at(self) -> float | None:
        return min((one.queued_at for one in self.attempts if one.queued_at is not None), default=None)

    @property
    def first_started_at(self) -> float | None:
        return min((one.started_at for one in self.attempts if one.started_at is not None), default=None)

    @property
    def wait_s(self) -> float | None:
        """First start minus queued; None for a job that never started."""
        if self.first_started_at is None or self.first_queued_at is None:
            return None
        return max(0.0, self.first_started_at - self.first_queued_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """What the report needs of a pool. `on_demand_usd_hour` is its cheapest on-demand offering, None without any."""

    name: PoolName
    target_s: float
    max: int
    on_demand_usd_hour: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """How the daemon decided: plans made, over all its lives, and how long the logged ones took."""

    plans: int
    plan_ms: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRecords:
    """Everything that the report is counted from. `pool_of` is by (forge, repo, labels), None where none serves.

    `stored_jobs` and `instances` are the daemon's rows, `moves` the history of each machine, oldest first,
    `interruptions` what was known of machines that were taken, `ledger` what was done, oldest first.
    """

    jobs: Sequence[JobRecord]
    stored_jobs: Sequence[Job]
    instances: Sequence[Instance]
    moves: Mapping[InstanceId, Sequence[InstanceMove]]
    interruptions: Mapping[InstanceId, Interruption]
    ledger: Sequence[LedgerEntry]
    pools: Mapping[str, PoolFacts]
    pool_of: Mapping[tuple[str, str, Labels], PoolName | None]
    traits: ProviderTraits
    recorded_usd: float
    """What the daemon itself counted as the cost of ended machines."""
    cap_instances: int | None
    decisions: Decisions
    started_at: float
    ended_at: float
    instances_left: int
    registrations_left: int
    processes_left: int
    crashes: int
    world: Mapping[str, object]
    faults: Mapping[str, float]

    def pool_name(self, job: JobRecord) -> str:
        """The pool that serves a job, "-" for none."""
        return self.pool_of.get((job.forge, job.repo, job.labels)) or "-"
