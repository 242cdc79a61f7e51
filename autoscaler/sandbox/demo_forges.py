"""The demo's two forges: worlds, faces, what is submitted to them and what became of it."""

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoscaler.sandbox.demo_records import Attempt, JobRecord
from autoscaler.sandbox.demo_workload import GITHUB_REPOS, GITLAB_REPOS, Submission
from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.github_auth import AppIdentity
from autoscaler.sandbox.github_face import GitHubFace
from autoscaler.sandbox.github_limits import Limits
from autoscaler.sandbox.github_model import GitHubError, WorldPolicy
from autoscaler.sandbox.github_model import Job as GitHubJob
from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.gitlab_face import GitLabFace
from autoscaler.sandbox.gitlab_model import JobOutcome, JobStatus
from autoscaler.sandbox.gitlab_workers import Checks
from autoscaler.sandbox.gitlab_world import GitLabWorld
from autoscaler.spi import label_set

CALLS_PER_HOUR = 15_000
"""GitHub's budget for an App in a large organisation."""
GITHUB_LEASE_S = 20.0
"""How soon GitHub gives up the job of a machine that vanished; ten minutes in reality."""
GITLAB_SILENT_S = 35.0
"""The same for GitLab, where it takes more than an hour."""
GITLAB_CHECKS = Checks(
    every_s=5.0, running_offset_s=0.0, silent_s=GITLAB_SILENT_S, canceling_s=GITLAB_SILENT_S / 2, row_touch_s=5.0
)
HOLDER = "--hold-"
"""In the names of registrations that only keep GitLab from failing queued jobs as stuck."""
_GITLAB_RUNNING = (JobStatus.RUNNING, JobStatus.CANCELING)
_GITLAB_ENDED = (JobStatus.SUCCESS, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.SKIPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeSecrets:
    """What the daemon needs to call the forges and to trust their webhooks."""

    app_id: int
    private_key: str
    gitlab_token: str
    webhook_secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Jobs of both forges by what they do now. Held ones wait for another job of their run."""

    held: int = 0
    waiting: int = 0
    running: int = 0
    ended: int = 0

    @property
    def open(self) -> int:
        return self.held + self.waiting + self.running


class DemoForges:
    """GitHub and GitLab in this process. `start` first; `aclose` last."""

    def __init__(self, submissions: Iterable[Submission], *, hooks: str, faults: Faults, seed: int) -> None:
        """`hooks` is the daemon's webhook URL without the forge's name."""
        self.repos = {"github": set(GITHUB_REPOS), "gitlab": set(GITLAB_REPOS)}
        for one in submissions:
            self.repos[one.forge].add(one.run.repo)
        app, private_key = AppIdentity.generate()
        secret, token = secrets.token_urlsafe(24), f"glpat-{secrets.token_urlsafe(16)}"
        self.secrets = ForgeSecrets(
            app_id=app.app_id, private_key=private_key, gitlab_token=token, webhook_secret=secret
        )
        self._github = GitHubFace(
            GitHubWorld(sorted(self.repos["github"]), policy=WorldPolicy(lease_s=GITHUB_LEASE_S)),
            renew_s=GITHUB_LEASE_S / 4,
            webhook_url=f"{hooks}github",
            webhook_secret=secret,
            app=app,
            faults=faults,
            limits=Limits(primary_per_hour=CALLS_PER_HOUR),
        )
        world = GitLabWorld(seed=seed, checks=GITLAB_CHECKS)
        for repo in sorted(self.repos["gitlab"]):
            world.add_project(repo, time.time())
        self._gitlab = GitLabFace(
            world, tokens={token: ["api"]}, webhook_url=f"{hooks}gitlab", webhook_token=secret, faults=faults
        )
        self._faults = faults
        self._runs: dict[tuple[str, int], str] = {}

    async def start(self) -> tuple[str, str]:
        """Serve; the URLs of GitHub and GitLab."""
        return await self._github.start(), await self._gitlab.start()

    async def aclose(self) -> None:
        await self._github.aclose()
        await self._gitlab.aclose()

    def scopes(self, forge: str) -> tuple[str, ...]:
        """Organisations or groups to watch."""
        return tuple(sorted({repo.rpartition("/")[0] for repo in self.repos[forge]}))

    def submit(self, submission: Submission) -> None:
        face = self._github if submission.forge == "github" else self._gitlab
        self._runs[submission.forge, face.submit(submission.run)] = submission.run_id

    def cancel(self, job: JobRecord) -> None:
        """What a person does with a job that nobody serves: cancel its run (GitHub) or the job itself (GitLab)."""
        now = time.time()
        if job.forge == "gitlab":
            self._gitlab.world.cancel_job(int(job.forge_job_ids[-1]), now)
            self._gitlab.settle()
            return
        world = self._github.world
        try:
            world.cancel(world.job(int(job.forge_job_ids[-1])).run_id, now)
        except GitHubError as error:
            if error.status != 409:  # 409: the run ended meanwhile
                raise

    def end_faults(self) -> None:
        """From now on every webhook is sent and every call answered."""
        self._faults.lost_webhook = self._faults.forge_error = 0.0

    def registrations(self) -> list[str]:
        """Names of the runners that are registered now; what only holds a queue is no runner."""
        names = [runner.name for runner in self._github.world.runners.values()]
        names += [runner.description for runner in self._gitlab.world.list_runners()]
        return sorted(name for name in names if HOLDER not in name)

    def tally(self) -> Tally:
        """Cheap enough to be asked twice a second."""
        held = waiting = running = ended = 0
        for run in self._github.world.runs.values():
            held += len(run.spec.jobs) - len(run.jobs)
            if run.status == "completed":
                ended += len(run.jobs)
                continue
            for job in run.jobs.values():
                ended += job.status == "completed"
                running += job.status == "in_progress"
                waiting += job.status in ("queued", "waiting")
        for outcome in self._gitlab.world.outcomes():
            ended += outcome.status in _GITLAB_ENDED
            running += outcome.status in _GITLAB_RUNNING
            waiting += outcome.status is JobStatus.PENDING
            held += outcome.status is JobStatus.CREATED
        return Tally(held=held, waiting=waiting, running=running, ended=ended)

    def jobs(self) -> list[JobRecord]:
        """Every submitted job."""
        return [*self._github_jobs(), *(self._gitlab_job(outcome) for outcome in self._gitlab.world.outcomes())]

    def _github_jobs(self) -> Iterable[JobRecord]:
        for run in self._github.world.runs.values():
            for spec in run.spec.jobs:
                rows = [job for job in run.history if job.spec.key == spec.key and not job.is_copy]
                current = run.jobs.get(spec.key)
                yield JobRecord(
                    forge="github",
                    repo=run.spec.repo,
                    run=self._runs["github", run.id],
                    key=spec.key,
                    name=spec.name,
                    labels=label_set(spec.labels),
                    needs=spec.needs,
                    duration_s=spec.duration_s,
                    submitted_at=run.created_at,
                    attempts=_attempts(rows),
                    conclusion=current.conclusion if current is not None else None,
                    is_running=current is not None and current.status == "in_progress",
                    runners=tuple(job.runner_name for job in rows if job.runner_name is not None),
                    forge_job_ids=tuple(str(job.id) for job in rows),
                )

    def _gitlab_job(self, outcome: JobOutcome) -> JobRecord:
        world = self._gitlab.world
        rows = [world.job(id_) for id_ in outcome.job_ids]
        spec = rows[0].spec
        return JobRecord(
            forge="gitlab",
            repo=outcome.repo,
            run=self._runs["gitlab", outcome.pipeline_id],
            key=outcome.key,
            name=spec.name,
            labels=label_set(spec.labels),
            needs=spec.needs,
            duration_s=spec.duration_s,
            submitted_at=world.pipeline(outcome.pipeline_id).created_at,
            attempts=tuple(
                Attempt(
                    queued_at=job.pending_at,
                    started_at=job.started_at,
                    finished_at=job.finished_at,
                    runner=job.runner_description or "",
                    conclusion=str(job.status) if job.status in _GITLAB_ENDED else None,
                )
                for job in rows
            ),
            conclusion=str(outcome.status) if outcome.status in _GITLAB_ENDED else None,
            is_running=outcome.status in _GITLAB_RUNNING,
            runners=outcome.served_by,
            forge_job_ids=tuple(str(id_) for id_ in outcome.job_ids),
        )


def _attempts(rows: Sequence[GitHubJob]) -> tuple[Attempt, ...]:
    """A job that was skipped, or cancelled before it existed, was never queued."""
    return tuple(
        Attempt(
            queued_at=None if job.started_at is None and job.completed_at == job.created_at else job.created_at,
            started_at=job.started_at,
            finished_at=job.completed_at,
            runner=job.runner_name or "",
            conclusion=job.conclusion,
        )
        for job in rows
    )
