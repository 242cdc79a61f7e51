"""What to do about lost jobs of one run, by what GitHub lists of it (specs github-rest B7). Pure: it decides and calls
nothing, so that the sandbox's in-process GitHub decides the same.

    run not over, jobs of it alive ............ wait: GitHub re-runs only whole attempts of finished runs
    run not over, only dead jobs left ......... end the run, or GitHub waits minutes for their runners
    newer attempt ran all of them again ....... nothing: somebody was faster
    run over, a spared job among its failed ... re-run of one lost job after the other, never of "the failed jobs"
    run over .................................. re-run, once: a second re-run must wait for the new attempt to end

An attempt keeps the jobs that it does not run again as they were: of those, lost ones are lost still.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from autoscaler.spi import AlreadyRequeued, ForgeRefusedForGood, JobNotFound, NotYet
from runners.github_payloads import JobPayload, RunPayload

ASK_AGAIN_S = 20.0
"""The run's end is announced by a webhook; this is how long a lost one may cost."""
CANCEL_AGAIN_S = 60.0
"""Nobody waits for the end of a run that nothing can serve."""
LOOK_AGAIN_S = 4.0
"""A job that follows one that just ended is listed within this time. Until then a run may only seem to be dead."""
FORCE_AFTER_S = 10.0
"""GitHub asks the runner of a cancelled job to end it, and waits five minutes for one that is dead."""
SKEW = timedelta(seconds=2)
"""What ends together may be written down in either order."""
REMEMBERED = 1000

_FAILED = frozenset({"failure", "timed_out", "startup_failure"})
_ENDED_WELL = frozenset({"success", "skipped", "neutral"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRun:
    """Nothing of the run is alive but dead jobs: have GitHub end it."""

    attempt: int
    jobs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """One call. `job` is the job to re-run alone (its id in the newest attempt), None for all failed jobs of the run.
    `successors` are lost jobs that somebody ran again before, `later` those that this call does not run again,
    `rode_along` the names of genuine failures that it does."""

    job: str | None
    successors: Mapping[str, str]
    later: frozenset[str] = frozenset()
    rode_along: tuple[str, ...] = ()
    were_all_cancelled: bool = False
    """No job failed: GitHub was seen to refuse "the failed jobs" of such a run, and to take the whole run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Newest:
    """Lost jobs in the newest attempt of their run. `kept` were not run again: by id, the id as a job of this attempt,
    "" where it is none and so cannot be re-run alone. `successors` are the new ids of those that were."""

    kept: Mapping[str, str]
    successors: Mapping[str, str]


def next_step(
    repo: str,
    run: RunPayload | None,
    listed: Sequence[JobPayload],
    job_ids: Sequence[str],
    *,
    with_failures: bool,
    spared: Collection[str] = (),
) -> EndRun | Rerun:
    """What to do now. `listed` are the jobs of all attempts, `spared` those that were lost too and must not run again.
    Raises NotYet, AlreadyRequeued, JobNotFound, and ForgeRefusedForGood where a person ended the run or no call could
    run them again."""
    known = {str(job.id): job for job in listed}
    lost = [known[id_] for id_ in job_ids if id_ in known]
    if run is None or len(lost) < len(job_ids):
        raise JobNotFound(f"{repo} has no run {run.id if run else ''} with jobs {', '.join(job_ids)}")
    attempt = run.run_attempt or 1
    newest = _compared(lost, listed, attempt=attempt)
    if not newest.kept:
        raise AlreadyRequeued(
            f"run {run.id} of {repo} is in attempt {attempt}", successor=newest.successors[job_ids[0]]
        )
    if run.status != "completed":
        return _end_or_wait(repo, run, listed, frozenset(job_ids).union(spared))
    stay = [known[id_] for id_ in sorted(spared) if id_ in known and id_ not in job_ids]
    return _rerun(repo, run, listed, lost, newest, stay=stay, with_failures=with_failures)


def check_nothing_else_lives(repo: str, run_id: str, listed: Sequence[JobPayload], job_ids: Collection[str]) -> None:
    """Raises NotYet where a run has a living job beside these."""
    alive = [job.name for job in listed if job.status != "completed" and str(job.id) not in job_ids]
    if alive:
        raise NotYet(f"{len(alive)} other jobs of run {run_id} of {repo} are not done", retry_after_s=CANCEL_AGAIN_S)


def _end_or_wait(repo: str, run: RunPayload, listed: Sequence[JobPayload], dead: frozenset[str]) -> EndRun:
    alive = [job.name for job in listed if job.status != "completed" and str(job.id) not in dead]
    waiting = tuple(str(job.id) for job in listed if job.status != "completed" and str(job.id) in dead)
    attempt = run.run_attempt or 1
    if waiting and not alive:
        return EndRun(attempt=attempt, jobs=waiting)
    text = f"attempt {attempt} of run {run.id} of {repo} is {run.status}"
    if alive:
        raise NotYet(f"{text}: {len(alive)} of its jobs are not done", retry_after_s=ASK_AGAIN_S, is_told=True)
    raise NotYet(f"{text} although its jobs are done", retry_after_s=LOOK_AGAIN_S)


def _rerun(
    repo: str,
    run: RunPayload,
    listed: Sequence[JobPayload],
    lost: Sequence[JobPayload],
    newest: _Newest,
    *,
    stay: Sequence[JobPayload],
    with_failures: bool,
) -> Rerun:
    ours = {str(job.id) for job in lost} | set(newest.kept.values())
    rest = [job for job in _newest_of_each_name(listed) if str(job.id) not in ours]
    kept_out = [job for job in rest if any(_is_copy(job, one) for one in stay)]
    others = [job for job in rest if job not in kept_out]
    failed = [job for job in others if job.conclusion in _FAILED]
    cancelled = [job for job in others if job.conclusion == "cancelled" and not _ended_before(job, lost)]
    cancelled = [job for job in cancelled if not _needed_them(job, [*lost, *stay])]
    because_of_us = [job for job in cancelled if _follows(job, lost) and not _follows(job, failed)]
    if any(not _follows(job, [*lost, *stay, *failed]) for job in cancelled):
        # Never our doing: we end runs of which nothing else is alive. Nor a matrix's, which cancels after a failure.
        raise ForgeRefusedForGood(f"somebody cancelled run {run.id} of {repo} after machines of it were lost")
    genuine = tuple(sorted(job.name for job in failed))
    first = next(iter(newest.kept.values()))
    never = tuple(sorted(job.name for job in kept_out if job.conclusion not in _ENDED_WELL))
    if never or (genuine and not with_failures):
        return _alone(repo, run, newest, never or genuine)
    if len(newest.kept) == 1 and first and not because_of_us:
        return Rerun(job=first, successors=newest.successors)
    known = {str(job.id): job for job in listed}
    ended_badly = [id_ for id_ in newest.kept if known[id_].conclusion not in _ENDED_WELL]
    all_cancelled = bool(ended_badly) and not any(known[id_].conclusion in _FAILED for id_ in ended_badly)
    return Rerun(
        job=None, successors=newest.successors, rode_along=genuine, were_all_cancelled=all_cancelled and not genuine
    )


def _alone(repo: str, run: RunPayload, newest: _Newest, never: Sequence[str]) -> Rerun:
    """One lost job now, the others when the attempt that this begins has ended."""
    able = [(old, new) for old, new in newest.kept.items() if new]
    if not able:
        raise ForgeRefusedForGood(
            f"GitHub cannot run the lost jobs of run {run.id} of {repo} again without {', '.join(never)}, which "
            "must not run again: opted out, out of attempts, or failed by itself where mixed_failures says wait"
        )
    old, new = able[0]
    return Rerun(job=new, successors=newest.successors, later=frozenset(newest.kept) - {old})


def _ended_before(job: JobPayload, lost: Sequence[JobPayload]) -> bool:
    """Whether it was over when the lost jobs began: whatever cancelled it is no news."""
    began = min((one.started_at for one in lost if one.started_at is not None), default=None)
    return began is not None and job.completed_at is not None and job.completed_at < began


def _needed_them(job: JobPayload, lost: Sequence[JobPayload]) -> bool:
    """Whether it was made only when a lost job had ended, and cancelled before any runner had it: as what needs a job
    of a run that is being ended."""
    ends = [one.completed_at for one in lost if one.completed_at is not None]
    return not job.runner_name and bool(ends) and job.created_at is not None and job.created_at >= min(ends)


def _follows(job: JobPayload, failed: Sequence[JobPayload]) -> bool:
    """Whether one of these jobs failed before this one ended, so that a matrix may have cancelled it for that."""
    ends = [one.completed_at for one in failed if one.conclusion in _FAILED and one.completed_at is not None]
    return bool(ends) and (job.completed_at is None or min(ends) <= job.completed_at + SKEW)


def _newest_of_each_name(listed: Sequence[JobPayload]) -> list[JobPayload]:
    """How the jobs of a run stand now. Two of one name in one attempt are both there."""
    attempts: dict[str, int] = {}
    for job in listed:
        attempts[job.name] = max(attempts.get(job.name, 0), job.run_attempt or 1)
    return [job for job in listed if (job.run_attempt or 1) == attempts[job.name]]


def _compared(lost: Sequence[JobPayload], listed: Sequence[JobPayload], *, attempt: int) -> _Newest:
    kept, successors = {}, {}
    for job in lost:
        same = [other for other in listed if other.name == job.name]
        newer = [other for other in same if _ran_after(other, job)]
        ran = [other for other in newer if not any(_is_copy(other, first) for first in newer if first.id < other.id)]
        if ran:
            successors[str(job.id)] = str(max(ran, key=lambda other: other.run_attempt or 1).id)
        else:
            # A job that an attempt keeps may be listed as its own, with a new id, the old results and the old runner.
            own = [other.id for other in same if (other.run_attempt or 1) == attempt and _is_copy(other, job)]
            kept[str(job.id)] = str(max(own)) if own else ""
    return _Newest(kept=kept, successors=successors)


def _ran_after(other: JobPayload, job: JobPayload) -> bool:
    """Whether it was made by a newer attempt, and is not one from before that the attempt kept."""
    if (other.run_attempt or 1) <= (job.run_attempt or 1) or _is_copy(other, job):
        return False
    return other.started_at is None or job.completed_at is None or other.started_at >= job.completed_at


def _is_copy(other: JobPayload, job: JobPayload) -> bool:
    return other.id == job.id or (bool(other.runner_name) and other.runner_name == job.runner_name)


@dataclass(slots=True)
class _Ending:
    attempt: int
    began: float
    cancelled: float | None = None


class Endings:
    """Runs of which only dead jobs are left, and how far their end is. In memory only: after a restart the first step
    is taken again, which harms nothing. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._runs: dict[str, _Ending] = {}

    def due(self, run_id: str, attempt: int, now: float) -> str:
        """The call to make now: "cancel", "force-cancel", or "" where time must pass first."""
        ending = self._runs.get(run_id)
        if ending is None or ending.attempt != attempt:
            ending = self._runs[run_id] = _Ending(attempt=attempt, began=now)
            while len(self._runs) > REMEMBERED:
                del self._runs[next(iter(self._runs))]
        if ending.cancelled is None:
            return "cancel" if now >= ending.began + LOOK_AGAIN_S else ""
        return "force-cancel" if now >= ending.cancelled + FORCE_AFTER_S else ""

    def asked(self, run_id: str, now: float) -> None:
        """GitHub took a cancel of the run."""
        if (ending := self._runs.get(run_id)) is not None and ending.cancelled is None:
            ending.cancelled = now

    def forget(self, run_id: str) -> None:
        """Something of it is alive after all, or it is over."""
        self._runs.pop(run_id, None)


def not_dead_yet(repo: str, run_id: str, step: EndRun, call: str) -> NotYet:
    """What a requeue answers while a run is being ended."""
    did = f"asked GitHub to {call} it" if call else "waiting for its end"
    text = f"only {len(step.jobs)} dead jobs are left of run {run_id} of {repo}: {did}"
    return NotYet(text, retry_after_s=LOOK_AGAIN_S)
