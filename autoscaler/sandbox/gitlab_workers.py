"""GitLab's hourly stuck-job workers: what they fail, and with which reason (GitLab spec 3.4). `at` is when they run."""

from dataclasses import dataclass

from autoscaler.sandbox.gitlab_model import Job, JobStatus
from autoscaler.sandbox.gitlab_pipelines import Pipelines
from autoscaler.sandbox.gitlab_runners import ONLINE_S, Runners

STUCK_PENDING_S = 3600.0
PENDING_LIMIT_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """GitLab's workers as its defaults have them; a compressed world has them sooner. They run every `every_s`, the
    one for running jobs `running_offset_s` later. A running job whose row was not written for `silent_s` fails, a
    canceling one ends after `canceling_s`. `row_touch_s` is how long a runner's signs of life leave the row alone."""

    every_s: float = 3600.0
    running_offset_s: float = 1200.0
    silent_s: float = 3600.0
    canceling_s: float = 1800.0
    row_touch_s: float = 900.0


def drop_stuck_pending(pipelines: Pipelines, runners: Runners, at: float) -> None:
    """Fail jobs pending for more than a day, and for an hour when no matching runner was in contact lately."""
    for job in pipelines.queued():
        waited_s = 0.0 if job.pending_at is None else at - job.pending_at
        if waited_s > PENDING_LIMIT_S:
            pipelines.finish(job, JobStatus.FAILED, at, reason="stuck_pending_with_matching_runners")
        elif waited_s >= STUCK_PENDING_S and not _has_live_match(runners, job, at):
            pipelines.finish(job, JobStatus.FAILED, at, reason="stuck_pending_no_matching_runners")


def _has_live_match(runners: Runners, job: Job, at: float) -> bool:
    return any(
        runner.contacted_at is not None
        and at - runner.contacted_at < ONLINE_S
        and runners.may_take(runner, job.project_id, job.tags)
        for runner in runners.by_id.values()
    )


def drop_silent(pipelines: Pipelines, at: float, checks: Checks) -> None:
    """Fail running jobs whose row was not written for so long; end canceling ones likewise."""
    for job in pipelines.in_status(JobStatus.RUNNING):
        if at - job.row_updated_at >= checks.silent_s:
            pipelines.finish(job, JobStatus.FAILED, at, reason="no_updates_running")
    for job in pipelines.in_status(JobStatus.CANCELING):
        if at - job.row_updated_at >= checks.canceling_s:
            pipelines.finish(job, JobStatus.CANCELED, at, reason="no_updates_canceling")
