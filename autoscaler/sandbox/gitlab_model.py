"""The values that the sandbox's GitLab is made of: projects, pipelines, jobs, runners, refusals.

Owns the words of GitLab's own API (`pending`, `project_type`, `system_id`, ...) and the job transition table; holds
no behaviour beyond that. Facts are those of the GitLab spec, sections 1 to 4.

    created -> pending -> running -> success | failed
       |          |          +-----> canceling -> canceled
       |          +-> failed (stuck) | canceled
       +-> skipped (a need did not succeed) -> created (that need was retried)
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from autoscaler.sandbox.workload import JobSpec


class JobStatus(StrEnum):
    """Job statuses that this model produces (a subset of GitLab's; API filters accept all of `ALL_STATUSES`)."""

    CREATED = "created"
    PENDING = "pending"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELED = "canceled"
    SKIPPED = "skipped"


ALL_STATUSES = frozenset(JobStatus) | {
    "waiting_for_resource",
    "preparing",
    "waiting_for_callback",
    "manual",
    "scheduled",
}
FINISHED = frozenset({JobStatus.SUCCESS, JobStatus.FAILED, JobStatus.CANCELED})
RETRYABLE = FINISHED | {JobStatus.CANCELING}
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.CREATED: frozenset({JobStatus.PENDING, JobStatus.SKIPPED, JobStatus.CANCELED}),
    JobStatus.PENDING: frozenset({JobStatus.RUNNING, JobStatus.FAILED, JobStatus.CANCELED}),
    JobStatus.RUNNING: frozenset({JobStatus.SUCCESS, JobStatus.FAILED, JobStatus.CANCELING, JobStatus.CANCELED}),
    JobStatus.CANCELING: frozenset({JobStatus.CANCELED}),
    JobStatus.SKIPPED: frozenset({JobStatus.CREATED}),
    JobStatus.SUCCESS: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELED: frozenset(),
}


class RunnerType(StrEnum):
    """How far a runner reaches."""

    INSTANCE = "instance_type"
    GROUP = "group_type"
    PROJECT = "project_type"


class GitLabRefusal(Exception):
    """GitLab says no: answer the caller with `status` and `message` (text, or the JSON of a validation error).

    `job_status` is set when a job token was used on a finished job: the answer carries it as `Job-Status`.
    """

    def __init__(self, status: int, message: object, *, job_status: str | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.job_status = job_status


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group; `path` is the full path, `parent_id` is None at the top."""

    id: int
    path: str
    parent_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project; `path` is the full path (group/project)."""

    id: int
    path: str
    group_id: int
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who started a job."""

    id: int
    username: str
    name: str


@dataclass(slots=True, kw_only=True)
class Pipeline:
    """One pipeline. `latest` maps a job key to the id of its newest attempt; `stages` a job key to its stage."""

    id: int
    project_id: int
    workflow: str
    ref: str
    sha: str
    created_at: float
    user: User
    latest: dict[str, int]
    stages: dict[str, str]


@dataclass(slots=True, kw_only=True)
class Job:
    """One attempt of one job. Times are epoch seconds; `handed_to` is the runner that holds an unconfirmed offer."""

    id: int
    pipeline_id: int
    project_id: int
    spec: JobSpec
    tags: frozenset[str]
    status: JobStatus
    created_at: float
    retries: int
    user: User
    token: str = field(repr=False)
    retried: bool = False
    deployment_rejected: bool = False
    """Nobody may run it again any more: who had to approve of it did not."""
    pending_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    row_updated_at: float = 0.0
    failure_reason: str | None = None
    exit_code: int | None = None
    runner_id: int | None = None
    runner_description: str | None = None
    system_id: str | None = None
    handed_to: int | None = None
    ack_deadline: float | None = None
    final_put_at: float | None = None
    cancel_gracefully: bool = False
    trace: bytearray = field(default_factory=bytearray, repr=False)


@dataclass(slots=True, kw_only=True)
class Machine:
    """What GitLab calls a runner manager: one process, known by its `system_id`, that uses a runner's token."""

    id: int
    system_id: str
    created_at: float
    contacted_at: float
    version: str = ""
    revision: str = ""
    platform: str = "linux"
    architecture: str = "amd64"


@dataclass(slots=True, kw_only=True, repr=False)
class Runner:
    """One runner made with POST /user/runners. `scope_id` is the group or project id, None for the instance."""

    id: int
    token: str
    runner_type: RunnerType
    scope_id: int | None
    description: str
    tags: frozenset[str]
    run_untagged: bool
    locked: bool
    paused: bool
    access_level: str
    maximum_timeout: int | None
    maintenance_note: str
    created_at: float
    contacted_at: float | None = None
    machines: dict[str, Machine] = field(default_factory=dict)
    job_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """What a runner says about itself in `info`; the defaults are a current gitlab-runner."""

    version: str = "19.4.0"
    revision: str = "d79f3e7b"
    platform: str = "linux"
    architecture: str = "amd64"
    two_phase: bool = True
    cancel_gracefully: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Offer:
    """A job handed to a runner: the 201 of POST /jobs/request. `token` authenticates all calls about the job."""

    job_id: int
    token: str
    pipeline_id: int
    project_id: int
    runner_id: int
    spec: JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateAnswer:
    """Answer to PUT jobs/:id: the HTTP status (200, 202, 412) and what goes into `Job-Status`."""

    status: int
    job_status: JobStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceAnswer:
    """Answer to PATCH jobs/:id/trace: 202 or 416, with the size that the server has now."""

    status: int
    size: int
    job_status: JobStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDelivery:
    """One Job Hook to send: who may hear it and the body as it was when the job changed."""

    project_id: int
    payload: dict[str, object]
    event_uuid: str
    idempotency_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """What became of one submitted job, over all its attempts (`job_ids`, oldest first).

    `served_by` names the runner of every attempt that ran, in order; the times are the first pending and first
    start, and the finish of the newest attempt. Epoch seconds.
    """

    pipeline_id: int
    key: str
    repo: str
    labels: tuple[str, ...]
    job_ids: tuple[int, ...]
    status: JobStatus
    failure_reason: str | None
    first_pending_at: float | None
    first_started_at: float | None
    finished_at: float | None
    served_by: tuple[str, ...]

    @property
    def served_count(self) -> int:
        """How many attempts were started on a runner."""
        return len(self.served_by)


def iso(at: float | None) -> str | None:
    """GitLab's ISO 8601 with milliseconds, in UTC."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def iso_seconds(at: float | None) -> str | None:
    """The same to the second, as the `*_iso` webhook keys have it."""
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
