"""What a demo's report says of losses: how many, what became of each, how soon their work ran again. Pure.

Counted apart from the daemon's own counters and metrics, on purpose. A loss is a row that says when its work was lost;
what became of it is told by the row's state, so that the two must add up. When something began and ended is what its
forge says. Times of recovery begin when the forge let the job run again: at once on GitLab; on GitHub when the last job
of the run's attempt that was not itself lost had ended.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from autoscaler.model import EndReason, Instance, InstanceState, Interruption, Job, JobState
from autoscaler.sandbox.demo_figures import quantile
from autoscaler.sandbox.demo_records import Attempt, DemoRecords
from autoscaler.spi import InstanceId

OUTCOMES = ("requeued", "opted_out", "abandoned", "late_success")
"""What a loss may come to, as the report's keys."""
_TAKEN = (EndReason.INTERRUPTED, EndReason.VANISHED, EndReason.CHAOS)
_WORKING = (InstanceState.BUSY, InstanceState.DRAINING)
_SAME_MOMENT = timedelta(seconds=2)
"""How far the machine's own time of a cut-off and its forge's time of the job's end may be apart."""
_REPLACES = "will be queued again"
"""How the cause of a launch says that it is for a lost job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """One loss whose work ran again, in epoch seconds. `allowed_at` is when its forge let it run again."""

    row: Job
    is_announced: bool
    lost_at: float
    allowed_at: float
    began_at: float

    @property
    def seconds(self) -> float:
        return max(0.0, self.began_at - self.allowed_at)


def lost_rows(rows: Iterable[Job]) -> list[Job]:
    """Those whose own work was lost. One that runs lost work again inherits the time of that loss, and begins after it;
    but forges tell some of their times in whole seconds only, so that it is the inherited time that tells."""
    known = {row.id: row for row in rows}
    found = []
    for row in known.values():
        before = known.get(row.predecessor) if row.predecessor is not None else None
        if row.lost_at is not None and (before is None or before.lost_at != row.lost_at):
            is_own = row.predecessor is None or before is not None or _is_since_start(row)
            found += [row] if is_own else []
    return found


def _is_since_start(row: Job) -> bool:
    return row.started_at is not None and row.lost_at is not None and row.lost_at >= row.started_at


def outcome_of(row: Job) -> str:
    """What became of a loss: one of OUTCOMES; "open" where that is not known."""
    match row.state:
        case JobState.REQUEUED:
            return "requeued"
        case JobState.ABANDONED:
            return "opted_out" if row.reason.startswith("opted_out") else "abandoned"
        case JobState.DONE if row.reason.startswith("late_success"):
            return "late_success"
        case _ if _runs_as_itself(row):
            return "requeued"
        case _:
            return "open"


def _runs_as_itself(row: Job) -> bool:
    """Whether the forge queued the very same job again, which then began anew if it began."""
    if row.state is JobState.LOST or row.lost_at is None:
        return False
    return row.state is JobState.QUEUED or (row.started_at is not None and row.started_at > row.lost_at)


def loss_counts(rows: Iterable[Job]) -> dict[str, int]:
    """`interrupted`, and what the losses came to: the former is the sum of the latter, unless something is wrong."""
    found = lost_rows(rows)
    outcomes = Counter(outcome_of(row) for row in found)
    return {"interrupted": len(found), **{kind: outcomes[kind] for kind in OUTCOMES}}


def losses_open(records: DemoRecords) -> list[str]:
    """Losses that came to nothing that is known."""
    return [
        f"{row.id}: {row.state} {row.conclusion or ''} ({row.reason})"
        for row in lost_rows(records.stored_jobs)
        if outcome_of(row) == "open"
    ]


def losses_missed(records: DemoRecords) -> list[str]:
    """Jobs that ended with their machine, by what their forge and the machine's history say, and that no row calls
    lost."""
    by_runner = {row.runner_name: row for row in records.instances if row.runner_name}
    rows: dict[tuple[str, str], Job] = {(row.forge, row.forge_job_id): row for row in records.stored_jobs}
    lost = {row.id for row in lost_rows(records.stored_jobs)}
    missed = []
    for job in records.jobs:
        for id_, attempt in zip(job.forge_job_ids, job.attempts, strict=True):
            row, machine = rows.get((job.forge, id_)), by_runner.get(attempt.runner)
            if row is None or machine is None or attempt.conclusion == "success" or row.id in lost:
                continue
            taken = records.interruptions.get(machine.id)
            if _ended_under_it(machine, records) and not _ended_before(attempt, machine, taken):
                missed.append(f"{job.forge}:{id_} on {machine.id} ({machine.ending}, {attempt.conclusion})")
    return missed


def _ended_under_it(machine: Instance, records: DemoRecords) -> bool:
    """Whether the machine was gone, by nobody's wish of ours, while it worked."""
    moves = records.moves.get(machine.id, ())
    return machine.ending in _TAKEN and any(
        move.from_state in _WORKING and move.to_state is InstanceState.TERMINATED for move in moves
    )


def _ended_before(attempt: Attempt, machine: Instance, taken: Interruption | None) -> bool:
    gone_at = taken.cutoff_at if taken is not None and taken.cutoff_at is not None else machine.since
    return attempt.finished_at is not None and attempt.finished_at < (gone_at + _SAME_MOMENT).timestamp()


# --------------------------------------------------------------------------- how soon it ran again


def recoveries(records: DemoRecords) -> Iterator[Recovery]:
    """Each requeued loss whose work began again."""
    attempts = {
        (job.forge, id_): (attempt, job.attempts[place + 1] if place + 1 < len(job.attempts) else None)
        for job in records.jobs
        for place, (id_, attempt) in enumerate(zip(job.forge_job_ids, job.attempts, strict=True))
    }
    allowed = _allowed_at(records.stored_jobs, {key: one.finished_at for key, (one, _) in attempts.items()})
    for row in lost_rows(records.stored_jobs):
        if outcome_of(row) != "requeued" or row.lost_at is None:
            continue
        _, following = attempts.get((row.forge, row.forge_job_id), (None, None))
        if following is None or following.started_at is None:
            continue
        taken = records.interruptions.get(row.instance) if row.instance is not None else None
        lost_at = row.lost_at.timestamp()
        run = row.forge, row.repo, row.run_id, row.run_attempt
        yield Recovery(
            row=row,
            is_announced=taken is not None and taken.is_announced,
            lost_at=lost_at,
            allowed_at=max(lost_at, allowed.get(run, 0.0)) if row.forge == "github" else lost_at,
            began_at=following.started_at,
        )


def _allowed_at(
    rows: Iterable[Job], finished_at: Mapping[tuple[str, str], float | None]
) -> dict[tuple[str, str, str, int], float]:
    """When the last job that was not lost had ended, by attempt of a run."""
    found: dict[tuple[str, str, str, int], float] = defaultdict(float)
    rows = list(rows)
    lost = {row.id for row in lost_rows(rows)}
    for row in rows:
        if row.id in lost:
            continue
        run = row.forge, row.repo, row.run_id, row.run_attempt
        found[run] = max(found[run], finished_at.get((row.forge, row.forge_job_id)) or 0.0)
    return found


def recovery_document(records: DemoRecords) -> dict[str, Any]:
    """Seconds until lost work ran again, by forge and by whether the loss was announced."""
    times: dict[str, dict[bool, list[float]]] = {}
    for one in recoveries(records):
        times.setdefault(one.row.forge, {True: [], False: []})[one.is_announced].append(one.seconds)
    return {
        forge: {"announced": _spread(found[True]), "unannounced": _spread(found[False])}
        for forge, found in sorted(times.items())
    }


def replacement_document(records: DemoRecords) -> dict[str, Any]:
    """How long after the notice a machine was launched in the place of one with a job. A notice for which a machine
    stood ready, or whose job may not run again at once, launches none."""
    launched: dict[str, list[float]] = defaultdict(list)
    for row in records.instances:
        moves = records.moves.get(row.id, ())
        if moves and _REPLACES in moves[0].cause:
            launched[row.pool].append(row.created_at.timestamp())
    by_pool = {pool: sorted(times) for pool, times in launched.items()}
    found = []
    for taken in sorted(records.interruptions.values(), key=lambda one: one.noticed_at):
        noticed_at = taken.noticed_at.timestamp()
        later = [at for at in by_pool.get(taken.pool, ()) if at >= noticed_at]
        in_time = [at for at in later if at <= _gone_at(taken, records.ended_at)]
        if taken.is_announced and taken.job is not None and in_time:
            by_pool[taken.pool].remove(in_time[0])
            found.append(in_time[0] - noticed_at)
    return _spread(found)


def _gone_at(taken: Interruption, ended_at: float) -> float:
    return taken.ended_at.timestamp() if taken.ended_at is not None else ended_at


def _spread(values: Iterable[float]) -> dict[str, Any]:
    found = sorted(values)
    return {
        "count": len(found),
        "p50": quantile(found, 50),
        "p95": quantile(found, 95),
        "max": round(found[-1], 3) if found else 0.0,
    }


# --------------------------------------------------------------------------- what the daemon says of it


def told(records: DemoRecords) -> dict[str, int]:
    """Losses that people were told of, and those of which they could not be."""
    lines = [entry for entry in records.ledger if entry.action == "tell"]
    done = sum(entry.outcome == "told" for entry in lines)
    return {"told": done, "untold": len(lines) - done}


def hurt_machines(interruptions: Mapping[InstanceId, Interruption]) -> dict[str, int]:
    """Machines that were taken, by how it was known."""
    found: Sequence[Interruption] = list(interruptions.values())
    return {
        "machines": len(found),
        "announced": sum(one.is_announced for one in found),
        "unannounced": sum(not one.is_announced for one in found),
        "game_day": sum(one.is_game_day for one in found),
    }
