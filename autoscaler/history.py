"""How long jobs run, learned from their own earlier runs: `Snapshot.hours`.

Memory beside the rows, kept through them by `lessons`. A run counts when its job ended by itself, well or not: one that
was lost or cancelled says nothing of how long the work takes. The median of the last five: one slow run moves nothing
(specs: policy 7). Bounded: so many kinds of job, the least recently run forgotten first.
"""

from collections import OrderedDict
from collections.abc import MutableMapping
from datetime import datetime
from typing import Any

from autoscaler.learned_texts import Unkept, is_nameable, take_rows
from autoscaler.model import Job, JobState, Work
from autoscaler.spi import Conclusion, ForgeName
from autoscaler.store import Learned

RUNS_KEPT = 5
WORKS_KEPT = 20_000

_COUNTED = (Conclusion.SUCCESS, Conclusion.FAILURE)


class RunTimes:
    """See the module docstring."""

    def __init__(self, learned: MutableMapping[str, Learned]) -> None:
        self.unkept = Unkept[Work]("hours", self._text)
        self._seconds: OrderedDict[Work, tuple[float, ...]] = OrderedDict()
        self.hours: dict[Work, float] = {}
        """What plan sees; the same object for good, one entry replaced when a job ends."""
        take_rows(learned, "hours", self._read)

    def _read(self, parts: tuple[str, ...], value: Any) -> None:
        forge, repo, workflow, name = parts
        self._set((ForgeName(forge), repo, workflow, name), tuple(map(float, value)))

    def job_ended(self, job: Job, now: datetime) -> None:
        """Called with each job that is done, and not found lost in the same step."""
        seconds = run_s(job)
        if seconds is None or not is_nameable(job.work):
            return
        self._set(job.work, (*self._seconds.get(job.work, ()), seconds)[-RUNS_KEPT:])
        self.unkept.add(job.work, now)

    def _set(self, work: Work, seconds: tuple[float, ...]) -> None:
        self._seconds[work] = seconds
        self._seconds.move_to_end(work)
        self.hours[work] = _median(seconds) / 3600
        if len(self._seconds) > WORKS_KEPT:
            oldest, _ = self._seconds.popitem(last=False)
            del self.hours[oldest]
            self.unkept.forget(oldest)

    def _text(self, work: Work) -> Any:
        known = self._seconds.get(work)
        return [round(one, 1) for one in known] if known is not None else None


def _median(seconds: tuple[float, ...]) -> float:
    """`statistics.median`, ten times as fast: it is taken with each job that ends."""
    ordered, half = sorted(seconds), len(seconds) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def run_s(job: Job) -> float | None:
    """How long a job ran that ended by itself; None where it did not, or nobody knows."""
    if job.state is not JobState.DONE or job.conclusion not in _COUNTED:
        return None
    if job.started_at is None or job.finished_at is None:
        return None
    return max(0.0, (job.finished_at - job.started_at).total_seconds())
