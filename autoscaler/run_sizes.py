"""How many jobs the runs of a workflow queue at once in each pool: `Snapshot.run_sizes`.

Memory beside the rows, kept through them by `lessons`. The jobs of one run are seen one after the other within seconds:
who sees the first of them should know that thirty follow. Bounded: so many workflows, the least recently run forgotten
first; runs that are still coming are forgotten by a restart, and then say nothing.
"""

from collections import OrderedDict
from collections.abc import MutableMapping
from datetime import datetime, timedelta
from typing import Any

from autoscaler.learned_texts import Unkept, is_nameable, take_rows
from autoscaler.model import Job, RunKind
from autoscaler.spi import ForgeName, PoolName
from autoscaler.store import Learned

AT_ONCE = timedelta(seconds=10)
"""Jobs that are queued so much later than a run's first one come after something."""
RUNS_KEPT = 8
KINDS_KEPT = 10_000

_Run = tuple[RunKind, str]


class RunSizes:
    """See the module docstring."""

    def __init__(self, learned: MutableMapping[str, Learned]) -> None:
        self.unkept = Unkept[RunKind]("run_sizes", self._text)
        self._coming: OrderedDict[_Run, tuple[datetime, int]] = OrderedDict()
        self._order: OrderedDict[RunKind, None] = OrderedDict()
        self.sizes: dict[RunKind, tuple[int, ...]] = {}
        """What plan sees: the newest last; the same object for good."""
        take_rows(learned, "run_sizes", self._read)

    def _read(self, parts: tuple[str, ...], value: Any) -> None:
        forge, repo, workflow, pool = parts
        kind = ForgeName(forge), repo, workflow, PoolName(pool)
        self._set(kind, tuple(int(size) for size in value)[-RUNS_KEPT:])

    def job_seen(self, job: Job) -> None:
        """Called with each job when it is new. A job that runs lost work again is not what its run queues."""
        if job.pool is None or job.attempt > 1 or job.run_attempt > 1:
            return
        run = (job.forge, job.repo, job.workflow, job.pool), job.run_id
        first_at, size = self._coming.get(run, (job.queued_at, 0))
        if job.queued_at <= first_at + AT_ONCE:
            self._coming[run] = min(first_at, job.queued_at), size + 1

    def reckon(self, now: datetime) -> None:
        """Learn from the runs that have come as a whole. Costs what they are."""
        while self._coming:
            (kind, run_id), (first_at, size) = next(iter(self._coming.items()))
            if first_at + 2 * AT_ONCE > now:
                return
            del self._coming[kind, run_id]
            if is_nameable(kind):
                self._set(kind, (*self.sizes.get(kind, ()), size)[-RUNS_KEPT:])
                self.unkept.add(kind, now)

    def _set(self, kind: RunKind, sizes: tuple[int, ...]) -> None:
        self.sizes[kind] = sizes
        self._order[kind] = None
        self._order.move_to_end(kind)
        if len(self._order) > KINDS_KEPT:
            oldest, _ = self._order.popitem(last=False)
            del self.sizes[oldest]
            self.unkept.forget(oldest)

    def _text(self, kind: RunKind) -> Any:
        known = self.sizes.get(kind)
        return list(known) if known is not None else None
