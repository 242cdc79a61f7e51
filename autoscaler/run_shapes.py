"""How the runs of one workflow unfold, from the last few of them: which jobs follow which, how many, how soon.

Pure. Forges do not tell what a job needs, so it is read off the times: a kind of job comes after those kinds whose jobs
had all ended whenever its first job was queued. Seen over several runs, what had ended by chance drops out. Jobs that
differ in nothing but their matrix are one kind, so that a workflow has as many kinds as its file has jobs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from autoscaler.model import Job, JobState
from autoscaler.spi import Conclusion, Labels, PoolName

RUNS_KEPT = 5
KINDS_KEPT = 64
SAME_MOMENT_S = 1.0
"""Forges round to seconds: so much later than it really did a job may seem to end, or another to be queued."""
LONGEST_PAUSE_S = 300.0
PAUSES_AGREE_S = 60.0
"""What comes at other times after what it follows waits for something that we do not see: a person, a hosted job."""

_MATRIX = re.compile(r"(?:\s+\([^()]*\)|:\s*\[[^\[\]]*\]|\s+\d+/\d+)$")
_BOUND = "run-{id}"


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """Jobs of a workflow that are alike: what they are called without their matrix, where they run."""

    stem: str
    pool: PoolName
    labels: Labels
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """They are looked up with each move, so a kind remembers its hash. Of all that it is: thousands of jobs of one
        run may share their stem."""
        object.__setattr__(self, "_hash", hash((self.stem, self.pool, self.labels)))

    def __hash__(self) -> int:
        return self._hash

    def labels_in(self, run_id: str) -> Labels:
        """Their labels in one run: a binding label names it."""
        return tuple(sorted(f"run-{run_id}" if label == _BOUND else label for label in self.labels))


def kind_of(job: Job, pool: PoolName) -> Kind:
    labels = tuple(sorted(_BOUND if label == f"run-{job.run_id}" else label for label in job.labels))
    return Kind(_MATRIX.sub("", job.name) or job.name, pool, labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Follows:
    """One kind in one run: how many jobs of it were queued at once, after which kinds, how long after the last of
    these had ended, and how long its jobs ran."""

    count: int
    after: frozenset[Kind]
    pause_s: float
    run_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One run as it went. `is_cut`: somebody cancelled it, so that what is not in it may still have come."""

    kinds: Mapping[Kind, Follows]
    is_cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a run of a workflow will likely queue once all jobs of `after` ended: at least so many nearly every time."""

    kind: Kind
    after: frozenset[Kind]
    count: int
    pause_s: float
    run_s: float | None


def shape_of(jobs: Mapping[Kind, Sequence[Job]]) -> Shape | None:
    """The shape of a run that is over, from all its jobs; None where it says nothing."""
    if not jobs or len(jobs) > KINDS_KEPT:
        return None
    began = {kind: min(job.queued_at for job in alike) for kind, alike in jobs.items()}
    ended = {kind: max(job.finished_at or job.queued_at for job in alike) for kind, alike in jobs.items()}
    first = min(began.values())
    kinds: dict[Kind, Follows] = {}
    for kind, alike in jobs.items():
        is_root = (began[kind] - first).total_seconds() <= SAME_MOMENT_S
        before = [] if is_root else [one for one in jobs if (ended[one] - began[kind]).total_seconds() <= SAME_MOMENT_S]
        before = [one for one in before if one != kind]
        first_end = min(job.finished_at or job.queued_at for job in alike)
        pause_s = max(0.0, (began[kind] - max(ended[one] for one in before)).total_seconds()) if before else 0.0
        times = [run for job in alike if (run := _ran_s(job)) is not None]
        kinds[kind] = Follows(
            # With a limit on how many run beside each other, more are queued only as these end.
            count=sum(1 for job in alike if job.queued_at <= first_end),
            after=frozenset(before),
            pause_s=pause_s,
            run_s=median(times) if times else None,
        )
    return Shape(
        kinds=kinds, is_cut=any(job.conclusion is Conclusion.CANCELLED for one in jobs.values() for job in one)
    )


def weight_of(shape: Shape) -> int:
    """How much there is to remember of it."""
    return sum(1 + len(one.after) for one in shape.kinds.values())


def _ran_s(job: Job) -> float | None:
    if job.state is not JobState.DONE or job.started_at is None or job.finished_at is None:
        return None
    return max(0.0, (job.finished_at - job.started_at).total_seconds())


def expectations(shapes: Sequence[Shape]) -> tuple[Expectation, ...]:
    """What the next run will likely queue after its first jobs."""
    kinds = sorted({kind for shape in shapes for kind in shape.kinds})
    found = (_expected(kind, shapes) for kind in kinds)
    return tuple(one for one in found if one is not None)


def _expected(kind: Kind, shapes: Sequence[Shape]) -> Expectation | None:
    seen = [shape.kinds[kind] for shape in shapes if kind in shape.kinds]
    following = [one for one in seen if one.after]
    if not following or len(seen) - len(following) > len(seen) // 4:
        return None  # once in four it may seem to have begun its run: what came before ended before it was heard of
    after = frozenset.intersection(*(one.after for one in following))
    pauses = [one.pause_s for one in following]
    if not after or max(pauses) > LONGEST_PAUSE_S or max(pauses) - min(pauses) > PAUSES_AGREE_S:
        return None
    # A run without it counts where it could have come: what it follows ran, and nobody cancelled the run.
    missed = sum(1 for one in shapes if kind not in one.kinds and not one.is_cut and after <= one.kinds.keys())
    counts = sorted([0] * missed + [one.count for one in seen])
    count = counts[(len(counts) - 1) // 4]
    if count == 0:
        return None
    times = [one.run_s for one in seen if one.run_s is not None]
    return Expectation(
        kind=kind, after=after, count=count, pause_s=median(pauses), run_s=median(times) if times else None
    )


# --------------------------------------------------------------------------- as text


def shapes_text(shapes: Sequence[Shape]) -> Any:
    """Shapes as JSON knows them; kinds by their number."""
    kinds = sorted({kind for shape in shapes for kind in shape.kinds})
    number = {kind: place for place, kind in enumerate(kinds)}
    runs = [
        [
            int(shape.is_cut),
            [
                [number[kind], one.count, sorted(number[other] for other in one.after), one.pause_s, one.run_s]
                for kind, one in sorted(shape.kinds.items())
            ],
        ]
        for shape in shapes
    ]
    return [[[kind.stem, kind.pool, list(kind.labels)] for kind in kinds], runs]


def shapes_from(value: Any) -> list[Shape]:
    """The other way. Raises ValueError or TypeError for what is no such text."""
    names, runs = value
    kinds = [Kind(str(stem), PoolName(pool), tuple(map(str, labels))) for stem, pool, labels in names]
    return [
        Shape(
            is_cut=bool(is_cut),
            kinds={
                kinds[place]: Follows(
                    count=int(count),
                    after=frozenset(kinds[other] for other in after),
                    pause_s=float(pause_s),
                    run_s=None if run_s is None else float(run_s),
                )
                for place, count, after, pause_s, run_s in rows
            },
        )
        for is_cut, rows in runs
    ]
