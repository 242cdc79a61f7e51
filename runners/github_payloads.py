"""GitHub's JSON as typed values: the fields we need of jobs, runs, repositories and runners, and nothing else.

Owns the mapping of GitHub's words to ours. Shapes: specs github-rest B2, B5, B6. Everything that old or partial
payloads may lack is optional here; unknown fields are skipped by the parser without building objects for them.
"""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, RootModel

from autoscaler.spi import Conclusion, ForgeJob, ForgeName, JobStatus, RunnerId, label_set

_REST_STATUS = {
    "queued": JobStatus.QUEUED,
    "in_progress": JobStatus.RUNNING,
    "completed": JobStatus.DONE,
    "waiting": JobStatus.CREATED,
    "pending": JobStatus.CREATED,
    "requested": JobStatus.CREATED,
}

_CONCLUSION = {
    "success": Conclusion.SUCCESS,
    "neutral": Conclusion.SUCCESS,
    "failure": Conclusion.FAILURE,
    "timed_out": Conclusion.FAILURE,
    "startup_failure": Conclusion.FAILURE,
    "cancelled": Conclusion.CANCELLED,
    "skipped": Conclusion.SKIPPED,
}


def _as_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Instant = Annotated[datetime, AfterValidator(_as_utc)]


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class JobPayload(_Payload):
    """A `workflow_job` object, of a webhook or of REST."""

    id: int
    run_id: int
    run_attempt: int | None = None
    name: str = ""
    workflow_name: str | None = None
    head_sha: str | None = None
    status: str = ""
    conclusion: str | None = None
    labels: list[str] = []
    created_at: Instant | None = None
    started_at: Instant | None = None
    completed_at: Instant | None = None
    runner_id: int | None = None
    runner_name: str | None = None
    html_url: str | None = None


class RepositoryPayload(_Payload):
    """A repository; `pushed_at` and `updated_at` are texts of mixed kinds in webhooks, so only REST reads them."""

    full_name: str


class RunPayload(_Payload):
    """A `workflow_run` object."""

    id: int
    run_attempt: int | None = None
    status: str | None = None
    conclusion: str | None = None
    repository: RepositoryPayload | None = None


class ListedRepositoryPayload(RepositoryPayload):
    """A repository as REST lists it."""

    pushed_at: Instant | None = None
    updated_at: Instant | None = None
    archived: bool = False
    disabled: bool = False


class JobEventPayload(_Payload):
    """A `workflow_job` webhook; the job is null now and then (specs B2)."""

    action: str = ""
    workflow_job: JobPayload | None = None
    repository: RepositoryPayload | None = None


class RunEventPayload(_Payload):
    """A `workflow_run` webhook."""

    action: str = ""
    workflow_run: RunPayload | None = None
    repository: RepositoryPayload | None = None


class RunsPagePayload(_Payload):
    total_count: int = 0
    workflow_runs: list[RunPayload]


class JobsPagePayload(_Payload):
    total_count: int = 0
    jobs: list[JobPayload]


class RepositoriesPagePayload(_Payload):
    repositories: list[ListedRepositoryPayload]


class LabelPayload(_Payload):
    name: str


class RunnerPayload(_Payload):
    id: int
    name: str
    status: str = ""
    busy: bool = False
    labels: list[LabelPayload] = []


class RunnersPagePayload(_Payload):
    runners: list[RunnerPayload]


class JitConfigPayload(_Payload):
    runner: RunnerPayload
    encoded_jit_config: str


class RunnerGroupPayload(_Payload):
    id: int
    name: str


class RunnerGroupsPagePayload(_Payload):
    runner_groups: list[RunnerGroupPayload]


class AppPayload(_Payload):
    id: int
    client_id: str | None = None


class CheckRunPayload(_Payload):
    external_id: str | None = None
    app: AppPayload | None = None


class CheckRunsPagePayload(_Payload):
    check_runs: list[CheckRunPayload]


class UserPayload(_Payload):
    id: int


class StatusPayload(_Payload):
    target_url: str | None = None
    creator: UserPayload | None = None


class StatusesPayload(RootModel[list[StatusPayload]]):
    """The statuses of a commit: a bare list."""


class HookConfigPayload(_Payload):
    url: str = ""


class HookPayload(_Payload):
    id: int
    active: bool = True
    config: HookConfigPayload = HookConfigPayload()


class DeliveryPayload(_Payload):
    """One attempt to deliver a webhook; attempts of one delivery share the guid."""

    id: int
    guid: str
    delivered_at: Instant
    event: str
    status: str = ""
    status_code: int = 0

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver took it. `status_code` is 0 where no connection came about."""
        return self.status == "OK" or 200 <= self.status_code < 400


def listed_status(word: str) -> JobStatus:
    """Our status for REST's; a word we do not know is not served until it changes."""
    return _REST_STATUS.get(word, JobStatus.CREATED)


def forge_job(payload: JobPayload, *, forge: ForgeName, repo: str, status: JobStatus) -> ForgeJob:
    """The job as the core sees it.

    Before a runner took the job its runner fields are null, 0, "" or left over, and `started_at` repeats
    `created_at`: both are dropped (specs B2).
    """
    was_taken = status in (JobStatus.RUNNING, JobStatus.DONE)
    is_done = status is JobStatus.DONE
    has_runner = was_taken and bool(payload.runner_id) and bool(payload.runner_name)
    word = payload.conclusion or ""
    return ForgeJob(
        forge=forge,
        forge_job_id=str(payload.id),
        repo=repo,
        run_id=str(payload.run_id),
        run_attempt=payload.run_attempt or 1,
        workflow=payload.workflow_name or "",
        name=payload.name,
        status=status,
        labels=label_set(payload.labels),
        conclusion=_CONCLUSION.get(word, Conclusion.UNKNOWN) if is_done else None,
        queued_at=payload.created_at or payload.started_at,
        started_at=payload.started_at if was_taken else None,
        finished_at=payload.completed_at if is_done else None,
        runner_name=(payload.runner_name or "") if has_runner else "",
        runner_id=RunnerId(str(payload.runner_id)) if has_runner else None,
        url=payload.html_url or "",
        failure_reason=word if is_done and word in ("timed_out", "startup_failure") else "",
        commit=payload.head_sha or "",
    )
