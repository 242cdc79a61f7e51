"""A GitLab as a pure, deterministic, event-driven model: the sandbox's face serves it, the simulation drives it.

No clock, no I/O, no asyncio: every method that can depend on time takes `now` in epoch seconds, and ids come from
counters. Refusals are `GitLabRefusal(status, message)`. What GitLab does by itself (queueing, two-phase expiry every
30 s, the hourly stuck-job workers) happens in `advance`. Facts: GitLab spec sections 1 to 4. A few lines longer than
others: it is the list of what a GitLab does, and hands nearly all of it on to the part that does it.
"""

import contextlib
import math
import zlib
from collections.abc import Collection, Sequence

from autoscaler.sandbox.gitlab_handout import runner_job
from autoscaler.sandbox.gitlab_merge_requests import MergeRequests
from autoscaler.sandbox.gitlab_model import (
    FINISHED,
    Contact,
    GitLabRefusal,
    Group,
    Job,
    JobOutcome,
    JobStatus,
    Offer,
    Pipeline,
    Project,
    Runner,
    RunnerType,
    TraceAnswer,
    UpdateAnswer,
    User,
    WebhookDelivery,
)
from autoscaler.sandbox.gitlab_payloads import FAILURE_REASONS, Json, rest_job
from autoscaler.sandbox.gitlab_pipelines import Pipelines
from autoscaler.sandbox.gitlab_runners import RunnerRequest, Runners, check_fields
from autoscaler.sandbox.gitlab_workers import Checks, drop_silent, drop_stuck_pending
from autoscaler.sandbox.workload import RunSpec

ACK_CHECK_S = 30.0
"""The running-job check runs 20 minutes after the hourly worker (spec 3.4)."""
TRACE_LIMIT = 4 << 20
DEVELOPER = User(id=3, username="dev", name="Dev Eloper")
BOT = User(id=7, username="autoscaler-bot", name="Autoscaler Bot")


class GitLabWorld:
    """One GitLab with groups, projects, pipelines, jobs and runners.

    `base_url` goes into payloads (a face sets it once it listens). `enqueue_delay_s` is how long a runnable job stays
    `created`; `trace_archive_s` how long a final update is answered 202 before the job ends; `failure_reasons` what
    runners are told they may report (a GitLab before 19.1 does not list `runner_interrupted`); `checks` when its own
    workers look after jobs that hang.
    """

    def __init__(
        self,
        *,
        base_url: str = "https://gitlab.sandbox",
        seed: int = 0,
        enqueue_delay_s: float = 0.0,
        trace_archive_s: float = 0.0,
        failure_reasons: Sequence[str] = FAILURE_REASONS,
        checks: Checks | None = None,
    ) -> None:
        self.base_url = base_url
        self.groups: dict[int, Group] = {}
        self.projects: dict[int, Project] = {}
        self.merge_requests = MergeRequests()
        self._group_ids: dict[str, int] = {}
        self._project_ids: dict[str, int] = {}
        self._trace_archive_s = trace_archive_s
        self._checks = checks or Checks()
        self._failure_reasons = tuple(failure_reasons)
        self._runners = Runners(self.groups, self.projects, f"gitlab/{seed}")
        self._pipelines = Pipelines(
            self.projects,
            self._runners,
            base_url=lambda: self.base_url,
            enqueue_delay_s=enqueue_delay_s,
            row_touch_s=self._checks.row_touch_s,
        )
        self._advanced_to: float | None = None

    # -- groups and projects

    def add_group(self, path: str) -> Group:
        """The group of that full path, made (with its parents) when it is new."""
        if path not in self._group_ids:
            parent, _, _ = path.rpartition("/")
            parent_id = self.add_group(parent).id if parent else None
            group = Group(id=50 + len(self.groups), path=path, parent_id=parent_id)
            self.groups[group.id] = group
            self._group_ids[path] = group.id
        return self.groups[self._group_ids[path]]

    def add_project(self, path: str, now: float) -> Project:
        """The project of that full path (group/project), made when it is new. GitLabRefusal 400 without a group."""
        if path not in self._project_ids:
            namespace, _, name = path.rpartition("/")
            if not namespace or not name:
                raise GitLabRefusal(400, "a project path is group/project")
            group = self.add_group(namespace)
            project = Project(id=300 + len(self.projects), path=path, group_id=group.id, created_at=now)
            self.projects[project.id] = project
            self._project_ids[path] = project.id
        return self.projects[self._project_ids[path]]

    def find_project(self, key: int | str) -> Project:
        """By id or full path; GitLabRefusal 404."""
        project = self.projects.get(key if isinstance(key, int) else self._project_ids.get(key, -1))
        if project is None:
            raise GitLabRefusal(404, "404 Project Not Found")
        return project

    def find_group(self, key: int | str) -> Group:
        """By id or full path; GitLabRefusal 404."""
        group = self.groups.get(key if isinstance(key, int) else self._group_ids.get(key, -1))
        if group is None:
            raise GitLabRefusal(404, "404 Group Not Found")
        return group

    def projects_of(self, group: Group, *, include_subgroups: bool) -> list[Project]:
        """Projects of a group, by id."""
        inside = group.path + "/"
        return [
            project
            for project in self.projects.values()
            if project.group_id == group.id or (include_subgroups and project.path.startswith(inside))
        ]

    # -- pipelines and jobs

    def submit(self, run: RunSpec, now: float) -> int:
        """Start a pipeline (its project is made when it is new) and return its id."""
        self.advance(now)
        made = self._pipelines.submit(run, self.add_project(run.repo, now), DEVELOPER, now)
        self.merge_requests.pipeline_made(made)
        return made.id

    def job(self, job_id: int) -> Job:
        """One job; GitLabRefusal 404."""
        return self._pipelines.get(job_id)

    def pipeline(self, pipeline_id: int) -> Pipeline:
        """One pipeline; GitLabRefusal 404."""
        pipeline = self._pipelines.pipelines.get(pipeline_id)
        if pipeline is None:
            raise GitLabRefusal(404, "404 Pipeline Not Found")
        return pipeline

    def list_pipelines(self, project_id: int) -> list[Pipeline]:
        """A project's pipelines, newest first."""
        return [found for found in reversed(self._pipelines.pipelines.values()) if found.project_id == project_id]

    def list_jobs(self, project_id: int, *, scopes: Collection[str] = ()) -> list[Job]:
        """A project's jobs, newest first, those that were retried included; `scopes` are statuses."""
        wanted = [status for status in JobStatus if not scopes or status in scopes]
        jobs = [job for status in wanted for job in self._pipelines.in_status(status, project_id)]
        return sorted(jobs, key=lambda job: -job.id)

    def list_pipeline_jobs(self, pipeline: Pipeline, *, include_retried: bool) -> list[Job]:
        """A pipeline's jobs, newest first."""
        ids = [i for key in pipeline.stages for i in self._pipelines.attempts[pipeline.id, key]]
        jobs = [self._pipelines.jobs[job_id] for job_id in sorted(ids, reverse=True)]
        return [job for job in jobs if include_retried or not job.retried]

    def retry_job(self, job_id: int, now: float, *, user: User = BOT) -> Job:
        """The clone that runs the job again; GitLabRefusal 403 `Job is not retryable` (spec 3.1)."""
        self.advance(now)
        return self._pipelines.retry(self.job(job_id), user, now)

    def cancel_job(self, job_id: int, now: float, *, force: bool = False) -> Job:
        """Cancel (spec 3.2); GitLabRefusal 422 when the job's status does not allow it."""
        self.advance(now)
        job = self.job(job_id)
        self._pipelines.cancel(job, now, force=force)
        return job

    def cancel_pipeline(self, pipeline_id: int, now: float) -> Pipeline:
        """Cancel every job that can be, the latest stage first so that none begins meanwhile. An ended one is fine."""
        self.advance(now)
        pipeline = self.pipeline(pipeline_id)
        for job_id in reversed(list(pipeline.latest.values())):
            with contextlib.suppress(GitLabRefusal):
                self._pipelines.cancel(self.job(job_id), now, force=False)
        return pipeline

    def show_job(self, job: Job, now: float) -> Json:
        """The REST shape of a job."""
        pipeline = self._pipelines.pipelines[job.pipeline_id]
        runner = None if job.runner_id is None else self._runners.by_id.get(job.runner_id)
        project = self.projects[job.project_id]
        return rest_job(self.base_url, project, pipeline, self._pipelines.newest(pipeline), job, runner=runner, now=now)

    def outcomes(self) -> list[JobOutcome]:
        """What became of every submitted job, in the order of submission."""
        return [self._outcome(pipeline_id, key, ids) for (pipeline_id, key), ids in self._pipelines.attempts.items()]

    def _outcome(self, pipeline_id: int, key: str, ids: Sequence[int]) -> JobOutcome:
        jobs = [self._pipelines.jobs[job_id] for job_id in ids]
        last = jobs[-1]
        return JobOutcome(
            pipeline_id=pipeline_id,
            key=key,
            repo=self.projects[last.project_id].path,
            labels=last.spec.labels,
            job_ids=tuple(ids),
            status=last.status,
            failure_reason=last.failure_reason,
            first_pending_at=min((job.pending_at for job in jobs if job.pending_at is not None), default=None),
            first_started_at=min((job.started_at for job in jobs if job.started_at is not None), default=None),
            finished_at=last.finished_at,
            served_by=tuple(job.runner_description for job in jobs if job.runner_description is not None),
        )

    # -- runners, as their owner sees them

    def create_runner(self, request: RunnerRequest, now: float) -> Runner:
        """POST /user/runners. GitLabRefusal 400, also beyond 1000 runners of a group or project."""
        self.advance(now)
        self._pipelines.queue_version += 1
        return self._runners.create(request, now)

    def runner(self, runner_id: int) -> Runner:
        """One runner; GitLabRefusal 404."""
        return self._runners.get(runner_id)

    def list_runners(self, *, runner_type: RunnerType | None = None, scope_id: int | None = None) -> list[Runner]:
        """Runners, newest first."""
        return [
            runner
            for runner in reversed(self._runners.by_id.values())
            if (runner_type is None or runner.runner_type is runner_type)
            and (scope_id is None or runner.scope_id == scope_id)
        ]

    def pause_runner(self, runner_id: int, *, paused: bool = True) -> Runner:
        """A paused runner gets no jobs; what it runs goes on."""
        runner = self.runner(runner_id)
        runner.paused = paused
        self._pipelines.queue_version += 1
        return runner

    def edit_runner(
        self,
        runner_id: int,
        *,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        run_untagged: bool | None = None,
        locked: bool | None = None,
    ) -> Runner:
        """PUT /runners/:id for the rest of the fields; None leaves a field alone. GitLabRefusal 400."""
        runner = self.runner(runner_id)
        new_tags = sorted(runner.tags) if tags is None else tags
        untagged = runner.run_untagged if run_untagged is None else run_untagged
        check_fields(
            tags=new_tags,
            run_untagged=untagged,
            access_level=runner.access_level,
            maximum_timeout=runner.maximum_timeout,
            maintenance_note=runner.maintenance_note,
        )
        runner.tags, runner.run_untagged = frozenset(new_tags), untagged
        runner.description = runner.description if description is None else description
        runner.locked = runner.locked if locked is None else locked
        self._pipelines.queue_version += 1
        return runner

    def delete_runner(self, runner_id: int) -> None:
        """Remove the runner; a job that it runs is finished by its job token all the same."""
        self._runners.delete(self.runner(runner_id))

    def reaches(self, runner: Runner, project: Project) -> bool:
        """Whether the runner serves the project at all, whatever its tags."""
        return self._runners.in_scope(runner, project.id)

    def runner_jobs(self, runner: Runner, *, status: str | None = None, system_id: str | None = None) -> list[Job]:
        """Jobs that the runner started, newest first."""
        jobs = [self._pipelines.jobs[job_id] for job_id in reversed(runner.job_ids)]
        return [j for j in jobs if (not status or j.status == status) and (not system_id or j.system_id == system_id)]

    def is_busy(self, runner: Runner) -> bool:
        """Whether the runner runs a job now."""
        active = {JobStatus.RUNNING, JobStatus.CANCELING}
        return any(self._pipelines.jobs[job_id].status in active for job_id in reversed(runner.job_ids))

    # -- the runner's own protocol

    def runner_of(self, token: str) -> Runner:
        """The runner of a token; GitLabRefusal 403."""
        return self._runners.authenticate(token)

    def verify(self, token: str, system_id: str, now: float, *, contact: Contact | None = None) -> Runner:
        """POST /runners/verify: refreshes the contact time and takes no job."""
        runner = self._runners.authenticate(token)
        self._runners.touch(runner, system_id, contact, now)
        return runner

    def forget_machine(self, token: str, system_id: str) -> None:
        """DELETE /runners/managers; GitLabRefusal 404 for an unknown system_id."""
        if self._runners.authenticate(token).machines.pop(system_id, None) is None:
            raise GitLabRefusal(404, "404 Not found")

    def queue_version(self) -> str:
        """The opaque value of X-GitLab-Last-Update; it changes whenever a runner might get something new."""
        return f"{self._pipelines.queue_version:032x}"

    def request_job(self, token: str, system_id: str, now: float, *, contact: Contact | None = None) -> Offer | None:
        """POST /jobs/request: the oldest job that the runner may take, or None.

        The job stays pending, held for this runner, until `update_job(state="running")` (two-phase commit).
        """
        self.advance(now)
        runner = self._runners.authenticate(token)
        self._runners.touch(runner, system_id, contact or Contact(), now)
        waiting = self._pipelines.waiting_for(runner)
        if not waiting:
            return None
        job = self._pipelines.jobs[min(ids[0] for ids in waiting)]
        self._pipelines.hand_out(job, runner, system_id, contact or Contact(), now)
        return Offer(
            job_id=job.id,
            token=job.token,
            pipeline_id=job.pipeline_id,
            project_id=job.project_id,
            runner_id=runner.id,
            spec=job.spec,
        )

    def handout(self, offer: Offer, now: float) -> Json:
        """The 201 body for an offer."""
        job, runner = self.job(offer.job_id), self.runner(offer.runner_id)
        queue_size = 1 + sum(len(ids) for ids in self._pipelines.waiting_for(runner))
        return runner_job(
            self.base_url,
            self.projects[job.project_id],
            self._pipelines.pipelines[job.pipeline_id],
            job,
            runner,
            queue_size=queue_size,
            failure_reasons=self._failure_reasons,
            now=now,
        )

    def _authenticated(self, job_token: str, job_id: int | None, now: float) -> Job:
        """The live job of a job token: 403 for a wrong token or a job that has ended; a contact of its runner."""
        job = self._pipelines.by_token(job_token)
        if job is None or (job_id is not None and job.id != job_id):
            raise GitLabRefusal(403, "403 Forbidden")
        if job.status in FINISHED:
            raise GitLabRefusal(403, "403 Forbidden - Job is not running", job_status=str(job.status))
        runner = self._runners.by_id.get(job.runner_id if job.runner_id is not None else job.handed_to or -1)
        if runner is not None and job.system_id in runner.machines:
            self._runners.touch(runner, job.system_id, None, now)
        return job

    def update_job(
        self,
        job_token: str,
        state: str,
        now: float,
        *,
        job_id: int | None = None,
        failure_reason: str | None = None,
        exit_code: int | None = None,
        checksum: str | None = None,
        bytesize: int | None = None,
    ) -> UpdateAnswer:
        """PUT /jobs/:id with `pending` (keep-alive), `running` (start, touch), `success` or `failed` (spec 4.4)."""
        self.advance(now)
        job = self._authenticated(job_token, job_id, now)
        match state:
            case "pending" if job.handed_to is not None:
                self._pipelines.keep(job, now)
            case "running" if job.status is JobStatus.PENDING:
                self._pipelines.start(job, now)
            case "running":
                self._pipelines.touch(job, now)
            case "success" | "failed" if job.status in {JobStatus.RUNNING, JobStatus.CANCELING}:
                return self._final_update(job, state, now, failure_reason, exit_code, checksum, bytesize)
            case "pending" | "success" | "failed":
                raise GitLabRefusal(409, "409 Conflict", job_status=str(job.status))
            case _:
                raise GitLabRefusal(400, "400 Bad request - state does not have a valid value")
        return UpdateAnswer(status=200, job_status=job.status)

    def _final_update(
        self,
        job: Job,
        state: str,
        now: float,
        failure_reason: str | None,
        exit_code: int | None,
        checksum: str | None,
        bytesize: int | None,
    ) -> UpdateAnswer:
        complete = bytesize is None or bytesize == len(job.trace)
        if not complete or (checksum is not None and checksum != f"crc32:{zlib.crc32(job.trace):08x}"):
            return UpdateAnswer(status=412, job_status=job.status)
        job.final_put_at = now if job.final_put_at is None else job.final_put_at
        if now - job.final_put_at < self._trace_archive_s:
            return UpdateAnswer(status=202, job_status=job.status)
        job.exit_code = exit_code
        failed = state == "failed"
        self._pipelines.finish(
            job,
            JobStatus.FAILED if failed else JobStatus.SUCCESS,
            now,
            reason=(failure_reason or "unknown_failure") if failed else None,
        )
        return UpdateAnswer(status=200, job_status=job.status)

    def append_trace(
        self, job_token: str, start: int, chunk: bytes, now: float, *, job_id: int | None = None
    ) -> TraceAnswer:
        """PATCH /jobs/:id/trace at offset `start`; a gap is 416, an overlap overwrites (spec 4.5)."""
        job = self._authenticated(job_token, job_id, now)
        if start > len(job.trace) or job.status is JobStatus.PENDING:
            return TraceAnswer(status=416, size=len(job.trace), job_status=job.status)
        if start + len(chunk) > TRACE_LIMIT:
            self._pipelines.finish(job, JobStatus.FAILED, now, reason="trace_size_exceeded")
            raise GitLabRefusal(403, "403 Forbidden - Trace size limit exceeded", job_status=str(job.status))
        job.trace[start:] = chunk
        self._pipelines.touch(job, now)
        return TraceAnswer(status=202, size=len(job.trace), job_status=job.status)

    # -- time and webhooks

    def drain_webhooks(self) -> tuple[WebhookDelivery, ...]:
        """The Job Hooks caused since the last call, oldest first."""
        return self._pipelines.drain_outbox()

    def next_event_at(self) -> float | None:
        """When `advance` may next have something other than an hourly check to do; None when nothing is due."""
        return self._pipelines.next_due_at()

    def advance(self, now: float) -> None:
        """Let GitLab's own workers run up to `now`, each check at its own time. Going back in time does nothing."""
        before = now if self._advanced_to is None else self._advanced_to
        self._advanced_to = max(now, before)
        self._pipelines.enqueue_due(now)
        if math.floor(now / ACK_CHECK_S) > math.floor(before / ACK_CHECK_S):
            self._pipelines.drop_unconfirmed(math.floor(now / ACK_CHECK_S) * ACK_CHECK_S, BOT)
        checks = self._checks
        check = math.floor((before - checks.running_offset_s) / checks.every_s) * checks.every_s
        while check <= now:
            if before < check:
                drop_stuck_pending(self._pipelines, self._runners, check)
            if before < check + checks.running_offset_s <= now:
                drop_silent(self._pipelines, check + checks.running_offset_s, checks)
            check += checks.every_s
