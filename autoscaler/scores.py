"""How good predictions of breaches are: what was predicted when jobs were first seen, against what happened to them.

Memory beside the rows, kept through them by `lessons`: per pool and UTC day ten bins by predicted probability, and the
sum of squared errors (Brier 1950). A week of days, so that a model or a load of long ago does not hide that of today. A
job that a person cancelled within its target says nothing; one that waited past it was late, whatever came then.
"""

from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from autoscaler.learned_texts import Unkept, take_rows
from autoscaler.model import Job, JobId, JobState
from autoscaler.spi import PoolName
from autoscaler.store import Learned

DAYS_KEPT = 7
BINS = 10

_J = JobState
_Pool = tuple[PoolName]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBin:
    """Jobs whose predicted breach probability was in one tenth: its mean, the share that was late, how many."""

    predicted: float
    observed: float
    jobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How good the predictions of the last days were, of one pool or, without one, of all. `brier` is the mean squared
    error (0 is perfect, 0.25 what a coin tells); None while nothing was scored."""

    pool: PoolName | None
    jobs: int
    brier: float | None
    bins: tuple[ScoredBin, ...]


@dataclass(slots=True)
class _Day:
    jobs: list[int]
    predicted: list[float]
    late: list[int]
    squares: float = 0.0

    def add(self, breach: float, is_late: bool) -> None:
        place = min(BINS - 1, int(breach * BINS))
        self.jobs[place] += 1
        self.predicted[place] += breach
        self.late[place] += is_late
        self.squares += (breach - is_late) ** 2


class Scores:
    """See the module docstring."""

    def __init__(self, learned: MutableMapping[str, Learned]) -> None:
        self.unkept = Unkept[_Pool]("scores", self._text)
        self._days: dict[PoolName, dict[int, _Day]] = {}
        self._again: set[JobId] = set()
        take_rows(learned, "scores", self._read)

    def job_moved(self, before: Job, job: Job, now: datetime) -> None:
        """Score a job that leaves its queue for the first time. One that its forge put back has had its score."""
        if job.prediction is None or job.pool is None or before.state is job.state:
            return
        if job.state is _J.QUEUED:
            self._again.add(job.id)
        elif before.state is _J.QUEUED:
            if job.id in self._again:
                return
            waited_s = _waited_s(job, now)
            is_late = waited_s > job.prediction.target_s
            if is_late or job.started_at is not None:
                days = self._days.setdefault(job.pool, {})
                day = days.setdefault(now.toordinal(), _empty_day())
                day.add(min(1.0, max(0.0, job.prediction.breach)), is_late)
                self._forget_old(days, now)
                self.unkept.add((job.pool,), now)
        if job.state not in (_J.QUEUED, _J.RUNNING, _J.LOST):
            self._again.discard(job.id)

    def calibrations(self, now: datetime) -> tuple[Calibration, ...]:
        """Of all pools together, then of each that has scores."""
        every = [self.reliability(None, now)]
        return (*every, *(self.reliability(pool, now) for pool in sorted(self._days)))

    def reliability(self, pool: PoolName | None, now: datetime) -> Calibration:
        """What the last days of one pool, or of all, come to."""
        pools = self._days.values() if pool is None else [self._days.get(pool, {})]
        recent = [day for days in pools for number, day in days.items() if number > now.toordinal() - DAYS_KEPT]
        bins = []
        for place in range(BINS):
            jobs = sum(day.jobs[place] for day in recent)
            if jobs:
                predicted = sum(day.predicted[place] for day in recent) / jobs
                late = sum(day.late[place] for day in recent)
                bins.append(ScoredBin(predicted=predicted, observed=late / jobs, jobs=jobs))
        total = sum(one.jobs for one in bins)
        brier = sum(day.squares for day in recent) / total if total else None
        return Calibration(pool=pool, jobs=total, brier=brier, bins=tuple(bins))

    def _forget_old(self, days: dict[int, _Day], now: datetime) -> None:
        for number in [number for number in days if number <= now.toordinal() - DAYS_KEPT]:
            del days[number]

    # ------------------------------------------------------------------ as text

    def _text(self, key: _Pool) -> Any:
        days = self._days.get(key[0], {})
        return [
            [number, day.jobs, [round(one, 4) for one in day.predicted], day.late, round(day.squares, 4)]
            for number, day in sorted(days.items())
        ]

    def _read(self, parts: tuple[str, ...], value: Any) -> None:
        (pool,) = parts
        days: dict[int, _Day] = {}
        for number, jobs, predicted, late, squares in value:
            days[int(number)] = _Day(
                _ten(map(int, jobs)), _ten(map(float, predicted)), _ten(map(int, late)), float(squares)
            )
        self._days[PoolName(pool)] = days


def _waited_s(job: Job, now: datetime) -> float:
    return ((job.started_at or job.finished_at or now) - job.queued_at).total_seconds()


def _empty_day() -> _Day:
    return _Day([0] * BINS, [0.0] * BINS, [0] * BINS)


def _ten(numbers: Iterable[Any]) -> list[Any]:
    found = list(numbers)
    if len(found) != BINS:
        raise ValueError(f"{len(found)} bins")
    return found
