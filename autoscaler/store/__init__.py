"""The Store contract: what must survive a kill -9, and nothing else.

One daemon works on a store at a time and holds the live rows in memory; it writes through, in groups. Three engines
(`sqlite`, `postgres`, `memory`) pass the same contract suite. Every write is one `commit(Changes)`, one
transaction: rows are compare-and-set on `version` (the new row carries the old version + 1), and the lease epoch is
checked in the same transaction, so that a daemon that lost its lease can change nothing.

Concurrent `commit` and `accept` calls are grouped into one database transaction (a writer takes whatever queued up
while the last fsync ran); a group member that conflicts fails alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from autoscaler.model import (
    CapacityEvidence,
    CostLine,
    Instance,
    InstanceMove,
    Interruption,
    Job,
    JobId,
    LedgerEntry,
    PoolControl,
    Use,
)
from autoscaler.spi import CapacityType, ForgeName, InstanceId, PoolName, ProviderName, Webhook


class StoreError(Exception):
    """The store failed (disk full, database gone): nothing of the call was written. Answer 503, try again later."""


class Conflict(StoreError):
    """A row's version was not the expected one: somebody else wrote it."""


class LeaseLost(StoreError):
    """The store is not ours any more (another daemon took it, or the server went away in the middle of a commit): stop
    acting at once, take the lease again and load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxRow:
    """An accepted webhook not yet consumed by a tick. `seq` orders arrival."""

    seq: int
    forge: ForgeName
    received_at: datetime
    webhook: Webhook


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One pool at one instant, for the plots of the status page. Waits in seconds, `oldest_wait_s` of queued jobs."""

    at: datetime
    pool: PoolName
    queued: int
    running: int
    oldest_wait_s: float
    instances: Mapping[str, int]
    """Live instances by state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What history taught under one key ("hours/github/acme/api/CI/build"), in its owner's own text; `at` is when it
    was added to last. Its owner bounds its length and how many there are, and has an empty text forget one; `prune`
    forgets what nothing was added to."""

    key: str
    at: datetime
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSum:
    """Cost lines that agree in all of this, added up. `day` is the UTC day of the machines' end, as "2026-11-26"."""

    day: str
    provider: ProviderName
    pool: PoolName
    capacity_type: CapacityType
    repo: str
    workflow: str
    use: Use
    instances: int
    milliseconds: int
    usd_nano: int
    on_demand_usd_nano: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """One transaction. `jobs` and `instances` are inserted when their version is 1, else updated from version - 1.
    `consumed` are inbox seqs. `settings` are small texts by key (watermarks); an empty text deletes. `costs` are lines
    of machines that ended; `job_uses` say, after them, of which machines the time with a job was lost or not.
    `interruptions` replace what is stored of their machines, `evidence` what was known of its capacity pools, `learned`
    what was known under its key."""

    jobs: Sequence[Job] = ()
    instances: Sequence[Instance] = ()
    moves: Sequence[InstanceMove] = ()
    ledger: Sequence[LedgerEntry] = ()
    consumed: Sequence[int] = ()
    samples: Sequence[Sample] = ()
    controls: Mapping[PoolName, PoolControl] | None = None
    settings: Mapping[str, str] | None = None
    costs: Sequence[CostLine] = ()
    job_uses: Mapping[InstanceId, Use] | None = None
    interruptions: Sequence[Interruption] = ()
    evidence: Sequence[CapacityEvidence] = ()
    learned: Sequence[Learned] = ()

    @property
    def is_empty(self) -> bool:
        return not (
            self.jobs
            or self.instances
            or self.moves
            or self.ledger
            or self.consumed
            or self.samples
            or self.controls
            or self.settings
            or self.costs
            or self.job_uses
            or self.interruptions
            or self.evidence
            or self.learned
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a starting daemon reads: live rows (job states queued, running, lost; instances not terminated),
    unconsumed inbox rows in order, operator controls and settings, interruptions of machines that have not ended, the
    evidence of each capacity pool, what was learned of jobs and machines. `is_new` when the store never held an
    instance."""

    jobs: Sequence[Job]
    instances: Sequence[Instance]
    inbox: Sequence[InboxRow]
    controls: Mapping[PoolName, PoolControl]
    settings: Mapping[str, str]
    interruptions: Sequence[Interruption]
    is_new: bool
    evidence: Sequence[CapacityEvidence] = ()
    learned: Sequence[Learned] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Since `open`: transactions committed, and the rows they wrote. Their ratio says how well writes are grouped."""

    commits: int = 0
    rows: int = 0


class Store(Protocol):
    """See the module docstring. All methods raise StoreError."""

    @property
    def stats(self) -> StoreStats: ...

    async def open(self) -> None:
        """Connect and migrate. Raises StoreError with what to do (path not writable, database unreachable, a
        schema newer than this program)."""
        ...

    async def acquire_lease(self, holder: str) -> bool:
        """Try to become the one daemon of this store; False while another one is. Not blocking."""
        ...

    async def holds_lease(self) -> bool:
        """Whether the lease is still ours (PostgreSQL: the locking connection lives)."""
        ...

    async def load(self) -> Stored: ...

    async def accept(self, forge: ForgeName, webhook: Webhook, received_at: datetime) -> int | None:
        """Make a webhook durable; its inbox seq, or None when its delivery id was accepted before. Needs no lease."""
        ...

    async def commit(self, changes: Changes) -> None:
        """Write all of it or nothing. Raises Conflict, LeaseLost, StoreError."""
        ...

    async def job(self, job: JobId) -> Job | None: ...

    async def jobs_by_ids(self, ids: Sequence[JobId]) -> Sequence[Job]: ...

    async def jobs_of_run(self, repo: str, run_id: str, *, limit: int) -> Sequence[Job]:
        """All jobs of a run, of all its attempts, at any forge, oldest first by first_seen_at. Capitals are ignored."""
        ...

    async def recent_jobs(self, *, limit: int, pool: PoolName | None = None, state: str = "") -> Sequence[Job]:
        """Newest first by first_seen_at."""
        ...

    async def ended_jobs(self, *, limit: int) -> Sequence[Job]:
        """The jobs that ended last, newest end first: done, requeued or abandoned."""
        ...

    async def instance(self, instance: InstanceId) -> Instance | None: ...

    async def recent_instances(self, *, limit: int, pool: PoolName | None = None) -> Sequence[Instance]:
        """Newest first by created_at, terminated ones included."""
        ...

    async def instance_moves(self, instance: InstanceId) -> Sequence[InstanceMove]:
        """Oldest first."""
        ...

    async def recent_moves(self, *, limit: int) -> Sequence[InstanceMove]:
        """The last moves of all instances, newest first, in the order they were committed."""
        ...

    async def interruption(self, instance: InstanceId) -> Interruption | None: ...

    async def recent_interruptions(self, *, limit: int) -> Sequence[Interruption]:
        """Newest first by noticed_at."""
        ...

    async def ledger(
        self, *, limit: int, subject: str = "", before: int | None = None
    ) -> Sequence[tuple[int, LedgerEntry]]:
        """Newest first with their sequence numbers; `before` pages."""
        ...

    async def samples(self, since: datetime) -> Sequence[Sample]:
        """Oldest first."""
        ...

    async def costs(self, since: datetime, until: datetime) -> Sequence[CostSum]:
        """Cost lines of machines that ended in [since, until), added up, in the order of the sums' fields."""
        ...

    async def prune(self, *, before: datetime, deliveries_before: datetime, samples_before: datetime) -> int:
        """Delete terminal jobs, terminated instances with their history, interruptions, evidence, what was learned,
        ledger entries, cost lines and consumed inbox rows that are older; delivery ids and samples have their own ages.
        Bounded work per call (a few thousand rows); returns how many rows went, so that the caller repeats while it is
        not 0. Keeps the SQLite file from growing (incremental vacuum)."""
        ...

    async def aclose(self) -> None: ...


def open_store(url: str) -> "Store":
    """The store for "sqlite:///path", "sqlite:///:memory:" is refused, "postgresql://...", or "memory://"."""
    scheme = url.partition("://")[0]
    match scheme:
        case "sqlite":
            if url.removeprefix("sqlite:///") in ("", ":memory:") or not url.startswith("sqlite:///"):
                raise ValueError("store: use sqlite:///relative/path or sqlite:////absolute/path of a file")
            from autoscaler.store.sqlite import SqliteStore

            return SqliteStore(url.removeprefix("sqlite:///"))
        case "postgresql" | "postgres":
            from autoscaler.store.postgres import PostgresStore

            return PostgresStore(url)
        case "memory":
            from autoscaler.store.memory import MemoryStore

            return MemoryStore()
        case _:
            raise ValueError(f"store {scheme!r}: use sqlite:///path or postgresql://user@host/database")
