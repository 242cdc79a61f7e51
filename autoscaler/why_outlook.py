"""One instant of the deployment, and what the answers about many jobs share: worked out once, when first asked for.

Pure: a snapshot, the rules and the last plan's word on what it could not do.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property

from autoscaler.model import Blocked, BlockedBy, Instance, Job, JobId, JobState, PoolControl, Rules, Snapshot
from autoscaler.spi import PoolName
from autoscaler.why_start import ends_of_running, expected_machines
from autoscaler.why_words import listed

NOBODY = "machines without a job yet"
"""Who holds machines that have no job."""


class Outlook:
    """See the module docstring."""

    def __init__(self, snapshot: Snapshot, rules: Rules, blocked: Sequence[Blocked], now: datetime) -> None:
        self.snapshot = snapshot
        self.rules = rules
        self.blocked = blocked
        self.now = now
        self._holders: dict[PoolName | None, str] = {}

    @cached_property
    def expected(self) -> Mapping[JobId, Instance]:
        """The machines that waiting jobs will most likely get."""
        return expected_machines(self.snapshot, without=frozenset(self._blocked_jobs))

    @cached_property
    def _blocked_jobs(self) -> Mapping[JobId, tuple[Blocked, int]]:
        return {id_: (entry, place) for entry in self.blocked for place, id_ in enumerate(entry.ids)}

    @cached_property
    def ends(self) -> Mapping[PoolName | None, Sequence[datetime]]:
        """When machines of each pool, and of all, will be free of the jobs that they run now."""
        return ends_of_running(self.snapshot, self.now)

    @cached_property
    def live(self) -> Mapping[PoolName, int]:
        return Counter(row.pool for row in self.snapshot.instances.values())

    @cached_property
    def unserved(self) -> Sequence[Job]:
        """Queued jobs that no pool serves, oldest first."""
        jobs = (job for job in self.snapshot.jobs.values() if job.pool is None and job.state is JobState.QUEUED)
        return sorted(jobs, key=lambda job: (job.queued_at, job.id))

    def control(self, pool: PoolName) -> PoolControl:
        return self.snapshot.controls.get(pool, PoolControl.ACTIVE)

    def blocked_by(self, job: Job) -> Blocked | None:
        """What the last plan found in a job's way: what it said of this very job, or of its pool as a whole."""
        own = self._blocked_jobs.get(job.id)
        if own is not None:
            return own[0]
        of_pool = (entry for entry in self.blocked if entry.pool == job.pool and entry.jobs and not entry.ids)
        return next(of_pool, None)

    def place(self, job: Job) -> int:
        """How many jobs are before it in the same way; those whose repo's turn it is come before all others."""
        own = self._blocked_jobs.get(job.id)
        if own is None:
            return 0
        entry, place = own
        if entry.by is not BlockedBy.SHARE:
            return place
        return place + sum(len(one.ids) for one in self.blocked if one.pool == entry.pool and one.by is BlockedBy.CAP)

    def holders(self, pool: PoolName | None) -> str:
        """Who has the machines of a pool, by repo, or those of the deployment, by pool: most first, in words."""
        if pool not in self._holders:
            rows = [row for row in self.snapshot.instances.values() if pool is None or row.pool == pool]
            counts = Counter(self._holder(row) if pool is not None else str(row.pool) for row in rows)
            most_first = sorted(counts.items(), key=lambda item: (item[0] == NOBODY, -item[1], item[0]))
            self._holders[pool] = listed([f"{name} ({count})" for name, count in most_first])
        return self._holders[pool]

    def _holder(self, row: Instance) -> str:
        job = self.snapshot.jobs.get(row.job) if row.job is not None else None
        return row.repo or (job.repo if job is not None else NOBODY)
