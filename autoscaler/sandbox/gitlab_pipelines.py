"""Pipelines and jobs of the sandbox's GitLab: every status change, the queue, retries and the Job Hooks they cause.

The only place that writes a job's status (`_move`), along the table in `gitlab_model`; each move that GitLab announces
(created, pending, running, success, failed, canceled; never skipped or canceling) leaves one delivery in the outbox.
"""

import bisect
import heapq
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha1

from autoscaler.sandbox.gitlab_model import (
    RETRYABLE,
    TRANSITIONS,
    Contact,
    GitLabRefusal,
    Job,
    JobStatus,
    Pipeline,
    Project,
    Runner,
    User,
    WebhookDelivery,
)
from autoscaler.sandbox.gitlab_payloads import job_hook
from autoscaler.sandbox.gitlab_runners import Runners
from autoscaler.sandbox.workload import JobSpec, RunSpec

ACK_S = 120.0
"""How long a job that was handed out waits for `PUT running` or a keep-alive (spec 3.4)."""
"""A healthy job's row is written at most this often, so the hourly worker sees its life late (spec 3.4)."""
_SILENT = frozenset({JobStatus.CREATED, JobStatus.SKIPPED, JobStatus.CANCELING})
"""Moves to these send no Job Hook; `created` is announced once, when the job is made."""
_NEED_FAILED = frozenset({JobStatus.FAILED, JobStatus.CANCELED, JobStatus.SKIPPED})
_UUIDS = uuid.UUID("6f0c9a53-6f3f-4d3a-9d0e-5f2d1f6b7a10")


def stages_of(run: RunSpec) -> dict[str, str]:
    """Stage names by job key: how many needs lie before it. GitLabRefusal 400 for unknown or circular needs."""
    specs = {job.key: job for job in run.jobs}
    if len(specs) != len(run.jobs):
        raise GitLabRefusal(400, "job keys of a pipeline must differ")
    depth: dict[str, int] = {}
    while len(depth) < len(specs):
        ready = [k for k, spec in specs.items() if k not in depth and all(need in depth for need in spec.needs)]
        if not ready:
            raise GitLabRefusal(400, "needs of a pipeline must exist and not be circular")
        for key in ready:
            depth[key] = 1 + max((depth[need] for need in specs[key].needs), default=0)
    return {key: f"stage-{level}" for key, level in depth.items()}


class Pipelines:
    """All pipelines and jobs. `enqueue_delay_s` is how long a job stays `created` once nothing holds it back."""

    def __init__(
        self,
        projects: Mapping[int, Project],
        runners: Runners,
        *,
        base_url: Callable[[], str],
        enqueue_delay_s: float,
        row_touch_s: float,
    ) -> None:
        self._projects = projects
        self._runners = runners
        self._base_url = base_url
        self._enqueue_delay_s = enqueue_delay_s
        self._row_touch_s = row_touch_s
        self._last_pipeline_id = 2000
        self._last_job_id = 10000
        self._events = 0
        self.pipelines: dict[int, Pipeline] = {}
        self.jobs: dict[int, Job] = {}
        self.attempts: dict[tuple[int, str], list[int]] = {}
        self._by_token: dict[str, Job] = {}
        self._by_status: dict[tuple[int, JobStatus], set[int]] = {}
        self._queue: dict[tuple[int, frozenset[str]], list[int]] = {}
        self._held: dict[int, Job] = {}
        self._due: list[tuple[float, int]] = []
        self._due_ids: set[int] = set()
        self._outbox: deque[WebhookDelivery] = deque()
        self.queue_version = 0

    # -- reading

    def get(self, job_id: int) -> Job:
        """The job; GitLabRefusal 404 when there is none."""
        job = self.jobs.get(job_id)
        if job is None:
            raise GitLabRefusal(404, "404 Not found")
        return job

    def by_token(self, token: str) -> Job | None:
        """The job of a job token."""
        return self._by_token.get(token)

    def newest(self, pipeline: Pipeline) -> list[Job]:
        """The newest attempts of a pipeline's jobs."""
        return [self.jobs[job_id] for job_id in pipeline.latest.values()]

    def in_status(self, status: JobStatus, project_id: int | None = None) -> list[Job]:
        """Jobs in a status, oldest first."""
        if project_id is not None:
            ids: Iterable[int] = self._by_status.get((project_id, status), ())
        else:
            ids = (i for (_, s), members in self._by_status.items() if s is status for i in members)
        return [self.jobs[job_id] for job_id in sorted(ids)]

    def waiting_for(self, runner: Runner) -> list[list[int]]:
        """The parts of the queue, each oldest first, that this runner may take from."""
        return [
            ids
            for (project_id, tags), ids in self._queue.items()
            if ids and self._runners.may_take(runner, project_id, tags)
        ]

    def queued(self) -> list[Job]:
        """Pending jobs that no runner holds, oldest first."""
        return [self.jobs[job_id] for job_id in sorted(i for ids in self._queue.values() for i in ids)]

    def drain_outbox(self) -> tuple[WebhookDelivery, ...]:
        """Take the deliveries that were caused since the last call, in order."""
        taken = tuple(self._outbox)
        self._outbox.clear()
        return taken

    # -- life of a pipeline

    def submit(self, run: RunSpec, project: Project, user: User, now: float) -> Pipeline:
        """Create a pipeline and its jobs; those without needs become pending."""
        stages = stages_of(run)
        self._last_pipeline_id += 1
        number = self._last_pipeline_id
        pipeline = Pipeline(
            id=number,
            project_id=project.id,
            workflow=run.workflow,
            ref=run.ref,
            sha=sha1(f"{project.path}/{number}".encode(), usedforsecurity=False).hexdigest(),
            created_at=now,
            user=user,
            latest={},
            stages=stages,
        )
        self.pipelines[number] = pipeline
        created = [self._create(pipeline, spec, user, now) for spec in run.jobs]
        for job in created:
            self._announce(job, now)
        self._settle(pipeline, now)
        return pipeline

    def _create(self, pipeline: Pipeline, spec: JobSpec, user: User, now: float) -> Job:
        self._last_job_id += 1
        attempts = self.attempts.setdefault((pipeline.id, spec.key), [])
        job = Job(
            id=self._last_job_id,
            pipeline_id=pipeline.id,
            project_id=pipeline.project_id,
            spec=spec,
            tags=frozenset(spec.labels),
            status=JobStatus.CREATED,
            created_at=now,
            row_updated_at=now,
            retries=len(attempts),
            user=user,
            token=self._runners.secret("glcbt-", self._last_job_id),
        )
        attempts.append(job.id)
        self.jobs[job.id] = job
        self._by_token[job.token] = job
        self._by_status.setdefault((job.project_id, job.status), set()).add(job.id)
        pipeline.latest[spec.key] = job.id
        return job

    def _settle(self, pipeline: Pipeline, now: float) -> None:
        """Let created jobs go on: pending when their needs are done, skipped when one was not successful."""
        moved = True
        while moved:
            moved = False
            for job in self.newest(pipeline):
                if job.status is not JobStatus.CREATED:
                    continue
                needs = [self.jobs[pipeline.latest[need]].status for need in job.spec.needs]
                if any(status in _NEED_FAILED for status in needs):
                    self._move(job, JobStatus.SKIPPED, now)
                    moved = True
                elif all(status is JobStatus.SUCCESS for status in needs):
                    self._make_due(job, now)

    def _make_due(self, job: Job, now: float) -> None:
        if self._enqueue_delay_s <= 0:
            self._enqueue(job, now)
        elif job.id not in self._due_ids:
            self._due_ids.add(job.id)
            heapq.heappush(self._due, (now + self._enqueue_delay_s, job.id))

    def _enqueue(self, job: Job, now: float) -> None:
        job.pending_at = now
        bisect.insort(self._queue.setdefault((job.project_id, job.tags), []), job.id)
        self._move(job, JobStatus.PENDING, now)
        self.queue_version += 1

    def enqueue_due(self, now: float) -> None:
        """Make pending what has been created for long enough."""
        while self._due and self._due[0][0] <= now:
            at, job_id = heapq.heappop(self._due)
            self._due_ids.discard(job_id)
            if self.jobs[job_id].status is JobStatus.CREATED:
                self._enqueue(self.jobs[job_id], at)

    def next_due_at(self) -> float | None:
        """When `enqueue_due` or `drop_unconfirmed` has something to do next."""
        times = [job.ack_deadline for job in self._held.values() if job.ack_deadline is not None]
        return min([*times, *(at for at, _ in self._due[:1])], default=None)

    # -- life of a job

    def hand_out(self, job: Job, runner: Runner, system_id: str, contact: Contact, now: float) -> None:
        """Give the job to a runner. With two-phase commit it stays pending until the runner confirms."""
        self._unqueue(job)
        job.handed_to, job.system_id = runner.id, system_id
        job.cancel_gracefully = contact.cancel_gracefully
        job.ack_deadline = now + ACK_S
        self._held[job.id] = job
        if not contact.two_phase:
            self.start(job, now)

    def keep(self, job: Job, now: float) -> None:
        """Keep-alive of a job that was handed out and not yet confirmed."""
        job.ack_deadline = now + ACK_S

    def start(self, job: Job, now: float) -> None:
        """The runner that holds the job starts it. GitLabRefusal 409 when none holds it."""
        if job.handed_to is None or job.status is not JobStatus.PENDING:
            raise GitLabRefusal(409, "409 Conflict", job_status=str(job.status))
        runner = self._runners.by_id.get(job.handed_to)
        job.runner_id = job.handed_to
        job.runner_description = runner.description if runner else ""
        if runner is not None:
            runner.job_ids.append(job.id)
        self._release(job)
        job.started_at = now
        self._move(job, JobStatus.RUNNING, now)

    def touch(self, job: Job, now: float) -> None:
        """A sign of life of a running job."""
        if now - job.row_updated_at >= self._row_touch_s:
            job.row_updated_at = now

    def finish(self, job: Job, status: JobStatus, now: float, *, reason: str | None = None) -> None:
        """End a job. A canceling job ends canceled whatever was reported."""
        if job.status is JobStatus.CANCELING:
            status = JobStatus.CANCELED
        self._unqueue(job)
        self._release(job)
        job.failure_reason = reason
        job.finished_at = now
        self._move(job, status, now)
        self._settle(self.pipelines[job.pipeline_id], now)

    def cancel(self, job: Job, now: float, *, force: bool) -> None:
        """Cancel; a running job whose runner can do so gracefully becomes canceling. GitLabRefusal 422 otherwise."""
        if force and job.status is not JobStatus.CANCELING:
            raise GitLabRefusal(422, "Job is not force cancelable")
        if job.status is JobStatus.RUNNING and job.cancel_gracefully:
            self._move(job, JobStatus.CANCELING, now)
        elif force or (JobStatus.CANCELED in TRANSITIONS[job.status] and job.status is not JobStatus.CANCELING):
            self.finish(job, JobStatus.CANCELED, now)
        else:
            raise GitLabRefusal(422, "Job is not cancelable")

    def retry(self, job: Job, user: User, now: float) -> Job:
        """Clone a job that has ended; the jobs that were skipped because of it wait again (spec 3.1)."""
        if job.retried or job.deployment_rejected or job.status not in RETRYABLE:
            raise GitLabRefusal(403, "403 Forbidden - Job is not retryable")
        pipeline = self.pipelines[job.pipeline_id]
        job.retried = True
        clone = self._create(pipeline, job.spec, user, now)
        self._announce(clone, now)
        behind = {job.spec.key}
        for key in sorted(pipeline.stages, key=lambda key: int(pipeline.stages[key].removeprefix("stage-"))):
            later = self.jobs[pipeline.latest[key]]
            if behind.intersection(later.spec.needs):
                behind.add(key)
                if later.status is JobStatus.SKIPPED:
                    self._move(later, JobStatus.CREATED, now)
        self._settle(pipeline, now)
        return clone

    def drop_unconfirmed(self, now: float, user: User) -> None:
        """Fail jobs whose runner never confirmed, and retry them as GitLab does by itself (spec 3.4)."""
        late = [job for job in self._held.values() if job.ack_deadline is not None and job.ack_deadline <= now]
        for job in late:
            self.finish(job, JobStatus.FAILED, now, reason="runner_provisioning_timeout")
            self.retry(job, user, now)

    # -- bookkeeping

    def _unqueue(self, job: Job) -> None:
        ids = self._queue.get((job.project_id, job.tags), [])
        at = bisect.bisect_left(ids, job.id)
        if at < len(ids) and ids[at] == job.id:
            del ids[at]
            if not ids:
                del self._queue[job.project_id, job.tags]

    def _release(self, job: Job) -> None:
        job.handed_to = job.ack_deadline = None
        self._held.pop(job.id, None)

    def _move(self, job: Job, status: JobStatus, now: float) -> None:
        if status not in TRANSITIONS[job.status]:
            raise GitLabRefusal(409, f"cannot move a {job.status} job to {status}", job_status=str(job.status))
        self._by_status[job.project_id, job.status].discard(job.id)
        self._by_status.setdefault((job.project_id, status), set()).add(job.id)
        job.status = status
        job.row_updated_at = now
        if status not in _SILENT:
            self._announce(job, now)

    def _announce(self, job: Job, now: float) -> None:
        self._events += 1
        pipeline = self.pipelines[job.pipeline_id]
        runner = None if job.runner_id is None else self._runners.by_id.get(job.runner_id)
        payload = job_hook(
            self._base_url(),
            self._projects[job.project_id],
            pipeline,
            self.newest(pipeline),
            job,
            runner=runner,
            now=now,
        )
        delivery = WebhookDelivery(
            project_id=job.project_id,
            payload=payload,
            event_uuid=str(uuid.uuid5(_UUIDS, f"event/{self._events}")),
            idempotency_key=str(uuid.uuid5(_UUIDS, f"delivery/{self._events}")),
        )
        self._outbox.append(delivery)
