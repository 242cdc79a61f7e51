"""The nouns of the sandbox's github.com: repositories, runs, jobs, runners, hooks and what goes wrong with them.

Mutable rows, owned and changed by `github_world.GitHubWorld` alone; everybody else reads. Times are epoch
seconds. Nothing here knows HTTP or a clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from autoscaler.sandbox.workload import JobSpec, RunSpec

Json = dict[str, Any]

JobStatus = Literal["waiting", "queued", "in_progress", "completed"]
Conclusion = Literal["success", "failure", "cancelled", "skipped"]

LOST_COMMUNICATION = (
    "The self-hosted runner: {name} lost communication with the server. Verify the machine is running and has a "
    "healthy network connection. Anything in your workflow that terminates the runner process, starves it for "
    "CPU/Memory, or blocks its network access can cause this error."
)
QUEUED_TOO_LONG = (
    "The job was not acquired by Runner of type self-hosted even after multiple attempts"  # actions/runner#4728
)


class GitHubError(Exception):
    """A refusal by the forge: the HTTP status and the documented message, to be answered as they are."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldPolicy:
    """The forge's timings and quirks (specs B2, B5, B8). Shares are 0 to 1.

    `lease_s`: a busy runner that has not renewed for this long loses its job. `session_s`: an idle runner that
    has not polled for this long is shown offline; None for simulations whose runners do not poll.
    `protected` names jobs (by name) that wait this many seconds for approval before they are queued.
    `reannounce_kept_jobs` re-sends `completed` for jobs that a partial rerun did not rerun; with `copies_kept_jobs` the
    new attempt has them under new ids, so that they can be rerun later (both reported, neither documented).
    """

    lease_s: float = 600
    session_s: float | None = 120
    queue_limit_s: float = 86_400
    ephemeral_offline_s: float = 86_400
    cancel_grace_s: float = 300
    protected: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    reannounce_kept_jobs: bool = True
    copies_kept_jobs: bool = True
    duplicate_webhooks: float = 0
    swapped_webhooks: float = 0
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Account:
    """An organisation that owns repositories and has the App installed."""

    id: int
    login: str
    installation_id: int
    created_at: float


@dataclass(slots=True, kw_only=True)
class Repository:
    """One repository; `full_name` is owner/name."""

    id: int
    full_name: str
    owner: Account
    private: bool
    created_at: float
    run_count: int = 0

    @property
    def name(self) -> str:
        return self.full_name.partition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerGroup:
    """A runner group of an organisation; `repos` restricts which repositories it serves, None is all."""

    id: int
    org: str
    name: str
    repos: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step as the runner reported it."""

    name: str
    conclusion: str
    number: int
    started_at: float
    completed_at: float


@dataclass(slots=True, kw_only=True)
class Job:
    """One job of one attempt. Its id is also its check run's. `is_copy`: it shows what an earlier attempt's job came
    to, and did not run."""

    id: int
    run_id: int
    attempt: int
    spec: JobSpec
    repo: str
    status: JobStatus
    created_at: float
    conclusion: Conclusion | None = None
    started_at: float | None = None
    completed_at: float | None = None
    runner_id: int | None = None
    runner_name: str | None = None
    runner_group_id: int | None = None
    runner_group_name: str | None = None
    cancel_asked_at: float | None = None
    annotations: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    log: str | None = None
    is_copy: bool = False


@dataclass(slots=True, kw_only=True)
class Run:
    """One workflow run. `jobs` is the current attempt by job key: kept ones of earlier attempts included."""

    id: int
    spec: RunSpec
    number: int
    workflow_id: int
    created_at: float
    updated_at: float
    attempt_started_at: float
    attempt: int = 1
    status: Literal["queued", "in_progress", "waiting", "completed"] = "queued"
    conclusion: Conclusion | None = None
    cancelled: bool = False
    jobs: dict[str, Job] = field(default_factory=dict)
    history: list[Job] = field(default_factory=list)
    attempts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    announced_in_progress: bool = False

    @property
    def head_sha(self) -> str:
        return f"{self.id:040x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRun:
    """A check run that an App wrote on a commit (those of jobs are the jobs themselves)."""

    id: int
    repo: str
    head_sha: str
    name: str
    external_id: str
    status: str
    conclusion: str | None
    details_url: str
    title: str
    summary: str
    created_at: float
    app_id: int | None = None
    """Of another App; None: of the one that installations are of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitStatus:
    """A status that somebody set on a commit."""

    id: int
    repo: str
    sha: str
    state: str
    context: str
    description: str
    target_url: str
    created_at: float
    creator: str = ""
    """Another login than that of the sandbox's one person."""


@dataclass(slots=True, kw_only=True)
class Runner:
    """A self-hosted runner registered by a JIT configuration: ephemeral, one job and gone.

    `session_open` without `online`: it fell silent, and is online again with its next poll.
    """

    id: int
    name: str
    scope: str
    group_id: int
    group_name: str
    labels: tuple[str, ...]
    wanted: frozenset[str]
    offline_since: float | None
    online: bool = False
    session_open: bool = False
    version: str | None = None
    last_seen: float = 0
    job_id: int | None = None
    lease_until: float = 0

    @property
    def busy(self) -> bool:
        return self.job_id is not None


@dataclass(slots=True, kw_only=True)
class Hook:
    """A webhook of the App (scope None), an organisation or a repository."""

    id: int
    scope: str | None
    url: str
    secret: bytes = field(repr=False)
    events: tuple[str, ...]
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """One event on its way to one hook. `payload` is shared between hooks: do not change it."""

    hook_id: int
    guid: str
    event: str
    action: str
    installation_id: int | None
    repository_id: int | None
    payload: Json = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What became of one job of a submitted run, over all its attempts.

    `served` counts how often a runner took it; `conclusion` and `finished_at` are the newest attempt's, None while
    that is not done. `runner_names` has one entry per serving, in order.
    """

    run_id: int
    repo: str
    key: str
    name: str
    labels: tuple[str, ...]
    first_queued_at: float | None
    first_started_at: float | None
    finished_at: float | None
    conclusion: str | None
    runner_names: tuple[str, ...]
    job_ids: tuple[int, ...]

    @property
    def served(self) -> int:
        return len(self.runner_names)
