"""The life of runs and jobs on the sandbox's github.com: stages, skips, conclusions, reruns, cancels.

    waiting -> queued -> in_progress -> completed        a job; blocked ones exist only once their needs are done
    queued  -> in_progress -> completed -> (rerun) queued, attempt + 1        a run

Pure and deterministic. Knows no runner: `github_world` says who took a job and how it ended.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from autoscaler.sandbox.github_model import Conclusion, GitHubError, Job, JobStatus, Repository, Run, WorldPolicy
from autoscaler.sandbox.github_outbox import Outbox
from autoscaler.sandbox.github_queue import JobQueue
from autoscaler.sandbox.workload import JobSpec, RunSpec

RERUN_LIMIT = 50
RERUN_AGE_S = 30 * 86_400


class RunBook:
    """Runs and jobs by id. `watch(kind, id, at)` asks the world to look at a job again at that time."""

    def __init__(self, policy: WorldPolicy, outbox: Outbox, watch: Callable[[str, int, float], None]) -> None:
        self.runs: dict[int, Run] = {}
        self.jobs: dict[int, Job] = {}
        self.by_repo: dict[str, list[Run]] = {}
        self.queue = JobQueue()
        self._repos: dict[str, Repository] = {}
        self._workflows: dict[tuple[str, str], int] = {}
        self._policy = policy
        self._outbox = outbox
        self._watch = watch
        self._run_ids = itertools.count(5_000_000_001)
        self._job_ids = itertools.count(14_000_000_001)

    def submit(self, spec: RunSpec, repo: Repository, now: float) -> Run:
        keys = {job.key for job in spec.jobs}
        assert len(keys) == len(spec.jobs), "job keys are unique within a run"
        assert all(keys.issuperset(job.needs) for job in spec.jobs), "needs name jobs of the run"
        repo.run_count += 1
        self._repos[repo.full_name] = repo
        workflow_id = self._workflows.setdefault((repo.full_name, spec.workflow), 2_800_001 + len(self._workflows))
        run = Run(
            id=next(self._run_ids),
            spec=spec,
            number=repo.run_count,
            workflow_id=workflow_id,
            created_at=now,
            updated_at=now,
            attempt_started_at=now,
        )
        self.runs[run.id] = run
        self.by_repo.setdefault(repo.full_name, []).append(run)
        self._outbox.run_event("requested", run, repo)
        self._settle(run, now)
        return run

    def start(self, job: Job, now: float) -> None:
        """A runner took the job; the caller has filled in the runner."""
        self.queue.remove(job)
        job.status, job.started_at = "in_progress", now
        run = self.runs[job.run_id]
        self._job_event("in_progress", job)
        if not run.announced_in_progress:
            run.announced_in_progress = True
            run.status, run.updated_at = "in_progress", now
            self._outbox.run_event("in_progress", run, self._repos[job.repo])

    def finish(self, job: Job, conclusion: Conclusion, now: float) -> None:
        """The job is over; what waited for it may begin, and the run may be over too."""
        if job.status == "completed":
            return
        self.queue.remove(job)
        self._conclude(job, conclusion, now)
        self._settle(self.runs[job.run_id], now)

    def release(self, job: Job, now: float) -> None:
        """Someone approved the job's environment, or its wait timer is over."""
        if job.status == "waiting":
            self._enqueue(job, now)
            self._settle(self.runs[job.run_id], now)

    def cancel(self, run: Run, now: float, *, force: bool) -> None:
        """Ends what no runner has at once and asks runners to stop the rest; `force` does not wait for them."""
        if run.status == "completed":
            raise GitHubError(409, "Cannot cancel a workflow run that is completed.")
        run.cancelled = True
        for job in list(run.jobs.values()):
            if job.status in ("queued", "waiting") or (force and job.status == "in_progress"):
                self.queue.remove(job)
                self._conclude(job, "cancelled", now)
            elif job.status == "in_progress" and job.cancel_asked_at is None:
                job.cancel_asked_at = now
                self._watch("cancel", job.id, now + self._policy.cancel_grace_s)
        self._settle(run, now)

    def delete(self, run: Run) -> None:
        """Nothing of it can be asked for any more."""
        if run.status != "completed":
            raise GitHubError(403, "Could not delete the workflow run")
        for job in run.history:
            del self.jobs[job.id]
        self.by_repo[run.spec.repo].remove(run)
        del self.runs[run.id]

    def rerun_job(self, job: Job, now: float) -> None:
        run = self.runs[job.run_id]
        if run.status != "completed":
            raise GitHubError(403, "The workflow run containing this job is already running")
        if job.attempt != run.attempt:
            raise GitHubError(403, "Only jobs from the current attempt can be re-run")
        self._start_attempt(run, {job.spec.key}, now)

    def rerun_failed(self, run: Run, now: float) -> None:
        if run.status != "completed":
            raise GitHubError(403, "This workflow is already running")
        failed = {key for key, job in run.jobs.items() if job.conclusion in ("failure", "cancelled")}
        if not failed:
            raise GitHubError(403, "This workflow run cannot be retried")
        self._start_attempt(run, failed, now)

    def rerun(self, run: Run, now: float) -> None:
        if run.status != "completed":
            raise GitHubError(403, "This workflow is already running")
        self._start_attempt(run, set(run.jobs), now)

    def _start_attempt(self, run: Run, keys: set[str], now: float) -> None:
        if now - run.created_at > RERUN_AGE_S:
            raise GitHubError(403, "Unable to retry this workflow run because it was created over a month ago")
        if run.attempt > RERUN_LIMIT:
            raise GitHubError(403, "This workflow run cannot be retried")
        redo = _with_dependents(run.spec.jobs, keys)
        run.attempt += 1
        run.status, run.conclusion, run.cancelled, run.announced_in_progress = "queued", None, False, False
        run.updated_at = run.attempt_started_at = now
        kept = {key: job for key, job in run.jobs.items() if key not in redo}
        run.jobs = {key: self._kept(run, job) for key, job in kept.items()}
        run.attempts[run.attempt] = tuple(job.id for job in run.jobs.values())
        self._outbox.run_event("requested", run, self._repos[run.spec.repo])
        if self._policy.reannounce_kept_jobs:
            for job in run.jobs.values():
                self._job_event("completed", job)
        self._settle(run, now)

    def _kept(self, run: Run, job: Job) -> Job:
        """A job that the new attempt does not run, as that attempt shows it."""
        if not self._policy.copies_kept_jobs:
            return job
        copy = replace(job, id=next(self._job_ids), attempt=run.attempt, is_copy=True)
        self.jobs[copy.id] = copy
        run.history.append(copy)
        return copy

    def _settle(self, run: Run, now: float) -> None:
        """Creates the jobs whose needs are done, until nothing more follows; then states the run's own status."""
        while any(self._create(run, spec, now) for spec in list(_ready(run))):
            pass
        jobs = run.jobs.values()
        if len(jobs) == len(run.spec.jobs) and all(job.status == "completed" for job in jobs):
            if run.status != "completed":
                run.status, run.conclusion, run.updated_at = "completed", _overall(jobs), now
                self._outbox.run_event("completed", run, self._repos[run.spec.repo])
            return
        if not run.announced_in_progress:
            open_jobs = [job for job in jobs if job.status != "completed"]
            all_wait = bool(open_jobs) and all(job.status == "waiting" for job in open_jobs)
            run.status = "waiting" if all_wait else "queued"

    def _create(self, run: Run, spec: JobSpec, now: float) -> bool:
        """Makes the job; True when it is over already, so that others may follow."""
        job = Job(
            id=next(self._job_ids),
            run_id=run.id,
            attempt=run.attempt,
            spec=spec,
            repo=run.spec.repo,
            status="queued",
            created_at=now,
        )
        self.jobs[job.id] = run.jobs[spec.key] = job
        run.history.append(job)
        run.attempts[run.attempt] = (*run.attempts.get(run.attempt, ()), job.id)
        if any(run.jobs[need].conclusion != "success" for need in spec.needs):
            self._conclude(job, "skipped", now)
        elif run.cancelled:
            self._conclude(job, "cancelled", now)
        elif spec.name in self._policy.protected:
            job.status = "waiting"
            self._job_event("waiting", job)
            self._watch("waiting", job.id, now + self._policy.protected[spec.name])
        else:
            self._enqueue(job, now)
        return job.status == "completed"

    def _enqueue(self, job: Job, now: float) -> None:
        status: JobStatus = "queued"
        job.status = status
        self.queue.put(job)
        self._job_event("queued", job)
        self._watch("queued", job.id, now + self._policy.queue_limit_s)

    def _conclude(self, job: Job, conclusion: Conclusion, now: float) -> None:
        job.status, job.conclusion, job.completed_at = "completed", conclusion, now
        self.runs[job.run_id].updated_at = now
        self._job_event("completed", job)

    def _job_event(self, action: str, job: Job) -> None:
        self._outbox.job_event(action, job, self.runs[job.run_id], self._repos[job.repo])


def _ready(run: Run) -> Iterator[JobSpec]:
    for spec in run.spec.jobs:
        needs = (run.jobs.get(need) for need in spec.needs)
        if spec.key not in run.jobs and all(need is not None and need.status == "completed" for need in needs):
            yield spec


def _with_dependents(specs: tuple[JobSpec, ...], keys: set[str]) -> set[str]:
    found = set(keys)
    while more := {spec.key for spec in specs if spec.key not in found and found.intersection(spec.needs)}:
        found |= more
    return found


def _overall(jobs: Iterable[Job]) -> Conclusion:
    """A run's conclusion: failure outweighs cancelled outweighs success; all skipped is skipped."""
    conclusions = {job.conclusion for job in jobs}
    order: tuple[Conclusion, ...] = ("failure", "cancelled", "success")
    return next((conclusion for conclusion in order if conclusion in conclusions), "skipped")
