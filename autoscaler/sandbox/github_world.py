"""A github.com of our own: repositories, runs, jobs and self-hosted runners, as a pure, event-driven model.

No clock, no sockets, no asyncio: each method takes `now` (epoch seconds, never decreasing) and ids come from
counters, so the same calls give the same world. The HTTP face and the in-process simulation drive the same object.
Refusals are `GitHubError` with the documented status and text. Facts: the public REST description, and the specs
on routing, leases, reruns and ephemeral runners.

Order for a driver: `submit` -> `generate_jitconfig` -> `connect` -> `take_job` -> `renew`... -> `complete`, with
`advance` when `next_deadline` is due, and `drain_webhooks` after every change.
"""

import heapq
import itertools
from collections.abc import Iterable, Sequence
from typing import TypeVar

from autoscaler.sandbox.github_checks import CheckBook
from autoscaler.sandbox.github_model import (
    LOST_COMMUNICATION,
    QUEUED_TOO_LONG,
    Account,
    Conclusion,
    GitHubError,
    Hook,
    Job,
    JobRecord,
    Repository,
    Run,
    Runner,
    RunnerGroup,
    Step,
    Webhook,
    WorldPolicy,
)
from autoscaler.sandbox.github_outbox import EVENTS, Outbox
from autoscaler.sandbox.github_payloads import Urls
from autoscaler.sandbox.github_queue import wanted_labels
from autoscaler.sandbox.github_runs import RunBook
from autoscaler.sandbox.workload import RunSpec

_Row = TypeVar("_Row")
DEFAULT_GROUP = 1
RUNNER_VERSION = "2.336.0"


class GitHubWorld:
    """One forge. Everybody may read `repos`, `runners`, `groups`, `hooks`, `runs`, `jobs`; only methods change them."""

    def __init__(
        self,
        repos: Iterable[str] = (),
        *,
        policy: WorldPolicy | None = None,
        api_url: str = "https://api.github.com",
        html_url: str = "https://github.com",
        created_at: float = 1_577_836_800.0,
    ) -> None:
        self.policy = policy or WorldPolicy()
        self.urls = Urls(api_url.rstrip("/"), html_url.rstrip("/"))
        self._outbox = Outbox(self.urls, self.policy)
        self._book = RunBook(self.policy, self._outbox, self._watch)
        self.checks = CheckBook(self.has_commit)
        self.accounts: dict[str, Account] = {}
        self.repos: dict[str, Repository] = {}
        self.runners: dict[int, Runner] = {}
        self.groups: dict[str, dict[int, RunnerGroup]] = {}
        self._owned: dict[str, list[str]] = {}
        self._names: dict[tuple[str, str], int] = {}
        self._due: list[tuple[float, int, str, int]] = []
        self._order = itertools.count()
        self._ids = itertools.count(1)
        self._created_at = created_at
        for name in repos:
            self.add_repo(name)

    # -- what exists ------------------------------------------------------------------------------------------

    @property
    def hooks(self) -> dict[int, Hook]:
        return self._outbox.hooks

    @property
    def runs(self) -> dict[int, Run]:
        return self._book.runs

    @property
    def jobs(self) -> dict[int, Job]:
        return self._book.jobs

    def add_repo(self, full_name: str, *, private: bool = False) -> Repository:
        """A repository, and its organisation if that is new; the App is installed there."""
        login, _, name = full_name.partition("/")
        if not login or not name:
            raise ValueError(f"a repository is owner/name, not {full_name!r}")
        account = self.accounts.get(login)
        if account is None:
            number = 41_000_000 + len(self.accounts) + 1
            account = Account(id=number, login=login, installation_id=number + 9_000_000, created_at=self._created_at)
            self.accounts[login] = account
            self.groups[login] = {DEFAULT_GROUP: RunnerGroup(id=DEFAULT_GROUP, org=login, name="Default")}
        if full_name not in self.repos:
            number = 300_000_000 + len(self.repos) + 1
            self.repos[full_name] = Repository(
                id=number, full_name=full_name, owner=account, private=private, created_at=self._created_at
            )
            self._owned.setdefault(login, []).append(full_name)
        return self.repos[full_name]

    def add_runner_group(self, org: str, name: str, *, repos: Iterable[str] | None = None) -> RunnerGroup:
        allowed = None if repos is None else frozenset(repos)
        group = RunnerGroup(id=max(self.groups[org]) + 1, org=org, name=name, repos=allowed)
        self.groups[org][group.id] = group
        return group

    def add_hook(
        self, scope: str | None, url: str, *, secret: bytes, now: float, events: Sequence[str] = EVENTS
    ) -> Hook:
        """A hook of an organisation, a repository or (None) the App; it is pinged at once."""
        hook = Hook(
            id=400_000_000 + next(self._ids), scope=scope, url=url, secret=secret, events=tuple(events), created_at=now
        )
        self.hooks[hook.id] = hook
        self._outbox.ping(hook)
        return hook

    def ping(self, hook_id: int) -> None:
        self._outbox.ping(self.hooks[hook_id])

    # -- runs and jobs ----------------------------------------------------------------------------------------

    def submit(self, spec: RunSpec, now: float) -> int:
        """Starts a run and gives its id."""
        self.advance(now)
        if spec.repo not in self.repos:
            raise GitHubError(404, "Not Found")
        return self._book.submit(spec, self.repos[spec.repo], now).id

    def runs_of(self, repo: str) -> list[Run]:
        """Newest first."""
        return self._book.by_repo.get(repo, [])[::-1]

    def has_commit(self, repo: str, sha: str) -> bool:
        """Whether a run of this repository tests this commit."""
        return any(run.head_sha == sha for run in self._book.by_repo.get(repo, ()))

    def run(self, run_id: int) -> Run:
        return _found(self.runs.get(run_id))

    def job(self, job_id: int) -> Job:
        return _found(self.jobs.get(job_id))

    def rerun_job(self, job_id: int, now: float) -> None:
        self.advance(now)
        self._book.rerun_job(self.job(job_id), now)

    def rerun_failed_jobs(self, run_id: int, now: float) -> None:
        self.advance(now)
        self._book.rerun_failed(self.run(run_id), now)

    def rerun(self, run_id: int, now: float) -> None:
        self.advance(now)
        self._book.rerun(self.run(run_id), now)

    def cancel(self, run_id: int, now: float, *, force: bool = False) -> None:
        self.advance(now)
        run = self.run(run_id)
        self._book.cancel(run, now, force=force)
        if force:
            self._release_runners(run)

    def delete_run(self, run_id: int, now: float) -> None:
        """A person deletes a run and all it knew; 403 while it runs."""
        self.advance(now)
        self._book.delete(self.run(run_id))

    def approve(self, job_id: int, now: float) -> None:
        """Lets a job go that waits for its environment."""
        self.advance(now)
        self._book.release(self.job(job_id), now)

    def job_records(self) -> list[JobRecord]:
        """Each job of each submitted run once, whatever its attempts, in order of submission."""
        return [_record(run, key) for run in self.runs.values() for key in (spec.key for spec in run.spec.jobs)]

    # -- runners ----------------------------------------------------------------------------------------------

    def generate_jitconfig(self, scope: str, name: str, group_id: int, labels: Sequence[str], now: float) -> Runner:
        """Registers an ephemeral runner that has never connected. Only the listed labels apply (specs B5)."""
        self.advance(now)
        groups = self._groups_of(scope)
        if group_id not in groups:
            raise GitHubError(404, "Not Found")
        if not name or not 1 <= len(labels) <= 100:
            raise GitHubError(422, "Invalid request: name and 1 to 100 labels are required")
        if (scope, name) in self._names:
            raise GitHubError(409, f"Already exists - A runner with the name {name} already exists.")
        runner = Runner(
            id=next(self._ids),
            name=name,
            scope=scope,
            group_id=group_id,
            group_name=groups[group_id].name,
            labels=tuple(labels),
            wanted=wanted_labels(tuple(labels)),
            offline_since=now,
        )
        self.runners[runner.id] = runner
        self._names[scope, name] = runner.id
        self._watch("offline", runner.id, now + self.policy.ephemeral_offline_s)
        return runner

    def runners_of(self, scope: str, *, name: str | None = None) -> list[Runner]:
        """Runners registered at exactly this scope, oldest first."""
        return [r for r in self.runners.values() if r.scope == scope and name in (None, r.name)]

    def runner(self, runner_id: int) -> Runner:
        return _found(self.runners.get(runner_id))

    def connect(self, runner_id: int, now: float, *, version: str = RUNNER_VERSION) -> None:
        """Opens the runner's session: 404 when the registration is gone, 409 when another process has it."""
        self.advance(now)
        runner = self.runner(runner_id)
        if runner.online:
            raise GitHubError(409, "A session for this runner already exists.")
        runner.session_open, runner.version = True, version
        self._go_online(runner, now)

    def disconnect(self, runner_id: int, now: float) -> None:
        """Closes the session. The registration stays; a job that still runs keeps its lease."""
        self.advance(now)
        runner = self.runners.get(runner_id)
        if runner is not None and runner.session_open:
            runner.session_open = False
            self._go_offline(runner, now)

    def take_job(self, runner_id: int, now: float) -> Job | None:
        """The oldest queued job that this online, idle runner may run, now in progress on it; or None.

        As a poll it shows the runner alive: one shown offline for silence is online again.
        """
        self.advance(now)
        runner = self.runner(runner_id)
        if not runner.session_open:
            raise GitHubError(401, "The runner has no session")
        if runner.busy:
            return None
        runner.last_seen = now
        if not runner.online:
            self._go_online(runner, now)
        job_id = self._book.queue.oldest(self._repos_served(runner), runner.wanted)
        if job_id is None:
            return None
        job = self.jobs[job_id]
        job.runner_id, job.runner_name = runner.id, runner.name
        job.runner_group_id, job.runner_group_name = runner.group_id, runner.group_name
        runner.job_id, runner.lease_until = job.id, now + self.policy.lease_s
        self._watch("lease", runner.id, runner.lease_until)
        self._book.start(job, now)
        return job

    def has_message(self, runner_id: int, *, busy: bool) -> bool:
        """Whether a poll would be answered now: a job, a cancellation, or that the registration is gone."""
        runner = self.runners.get(runner_id)
        if runner is None or not runner.session_open:
            return True
        if busy:
            return self.cancel_asked(runner_id)
        return not runner.busy and self._book.queue.oldest(self._repos_served(runner), runner.wanted) is not None

    def renew(self, runner_id: int, now: float) -> float:
        """Prolongs the lease and gives its new end; 404 when the job is no longer this runner's."""
        self.advance(now)
        runner = self.runner(runner_id)
        if not runner.busy:
            raise GitHubError(404, "Job not found")
        runner.last_seen, runner.lease_until = now, now + self.policy.lease_s
        return runner.lease_until

    def cancel_asked(self, runner_id: int) -> bool:
        """Whether the runner's job was cancelled by a person and it should stop."""
        job_id = self.runner(runner_id).job_id
        return job_id is not None and self.jobs[job_id].cancel_asked_at is not None

    def complete(
        self,
        runner_id: int,
        conclusion: Conclusion,
        now: float,
        *,
        steps: tuple[Step, ...] = (),
        log: str = "",
        annotations: tuple[str, ...] = (),
    ) -> None:
        """The runner reports its job's end and is deregistered; 404 when the job is no longer its own."""
        self.advance(now)
        runner = self.runner(runner_id)
        if runner.job_id is None:
            raise GitHubError(404, "Job not found")
        job = self.jobs[runner.job_id]
        job.steps, job.log, job.annotations = steps, log, annotations
        self._forget(runner)
        self._book.finish(job, conclusion, now)

    def delete_runner(self, scope: str, runner_id: int, now: float) -> None:
        """Deregisters; 422 while it runs a job, even if the machine is long dead, until the lease ends."""
        self.advance(now)
        runner = self.runner(runner_id)
        if runner.scope != scope:
            raise GitHubError(404, "Not Found")
        if runner.busy:
            raise GitHubError(422, f'Bad request - Runner "{runner.name}" is still running a job')
        self._forget(runner)

    # -- time and webhooks --------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `advance` has something to look at; it may turn out to be nothing."""
        return self._due[0][0] if self._due else None

    def advance(self, now: float) -> None:
        """Lets everything happen that time alone brings: lost leases, expired queues, wait timers, clean-ups."""
        while self._due and self._due[0][0] <= now:
            _, _, kind, number = heapq.heappop(self._due)
            if kind in ("lease", "session", "offline"):
                runner = self.runners.get(number)
                if runner is not None:
                    self._runner_due(kind, runner, now)
            else:
                self._job_due(kind, self.jobs[number], now)

    def drain_webhooks(self) -> list[Webhook]:
        """Events since the last call, one entry per hook that takes them."""
        return self._outbox.drain()

    def _watch(self, kind: str, number: int, at: float) -> None:
        heapq.heappush(self._due, (at, next(self._order), kind, number))

    def _runner_due(self, kind: str, runner: Runner, now: float) -> None:
        if kind == "lease" and runner.busy:
            if runner.lease_until > now:
                self._watch("lease", runner.id, runner.lease_until)
            else:
                self._lose(runner, now)
        elif kind == "session" and runner.online and self.policy.session_s is not None:
            silent_at = (now if runner.busy else runner.last_seen) + self.policy.session_s
            if silent_at > now:
                self._watch("session", runner.id, silent_at)
            else:
                self._go_offline(runner, now)
        elif kind == "offline" and runner.offline_since is not None and not runner.busy:
            gone_at = runner.offline_since + self.policy.ephemeral_offline_s
            if gone_at > now:
                self._watch("offline", runner.id, gone_at)
            else:
                self._forget(runner)

    def _job_due(self, kind: str, job: Job, now: float) -> None:
        if kind == "waiting":
            self._book.release(job, now)
        elif kind == "queued" and job.status == "queued":
            job.annotations = (QUEUED_TOO_LONG,)
            self._book.finish(job, "cancelled", now)
        elif kind == "cancel" and job.status == "in_progress":
            self._book.finish(job, "cancelled", now)
            self._release_runners(self.runs[job.run_id])

    def _lose(self, runner: Runner, now: float) -> None:
        """The lease ran out: the job failed with the annotation that people know."""
        assert runner.job_id is not None
        job = self.jobs[runner.job_id]
        job.annotations = (LOST_COMMUNICATION.format(name=runner.name),)
        self._forget(runner)
        self._book.finish(job, "failure", now)

    def _release_runners(self, run: Run) -> None:
        """Ephemeral runners whose job the server itself ended have had their one job."""
        for runner in list(self.runners.values()):
            if runner.job_id is not None:
                job = self.jobs[runner.job_id]
                if job.run_id == run.id and job.status == "completed":
                    self._forget(runner)

    def _go_online(self, runner: Runner, now: float) -> None:
        runner.online, runner.last_seen, runner.offline_since = True, now, None
        if self.policy.session_s is not None:
            self._watch("session", runner.id, now + self.policy.session_s)

    def _go_offline(self, runner: Runner, now: float) -> None:
        runner.online, runner.offline_since = False, now
        self._watch("offline", runner.id, now + self.policy.ephemeral_offline_s)

    def _forget(self, runner: Runner) -> None:
        del self.runners[runner.id]
        del self._names[runner.scope, runner.name]

    def _groups_of(self, scope: str) -> dict[int, RunnerGroup]:
        if "/" in scope:
            if scope not in self.repos:
                raise GitHubError(404, "Not Found")
            return {DEFAULT_GROUP: RunnerGroup(id=DEFAULT_GROUP, org=scope.partition("/")[0], name="Default")}
        if scope not in self.groups:
            raise GitHubError(404, "Not Found")
        return self.groups[scope]

    def _repos_served(self, runner: Runner) -> list[str]:
        if "/" in runner.scope:
            return [runner.scope]
        allowed = self.groups[runner.scope][runner.group_id].repos
        owned = self._owned[runner.scope]
        return owned if allowed is None else [name for name in owned if name in allowed]


def _found(row: _Row | None) -> _Row:
    if row is None:
        raise GitHubError(404, "Not Found")
    return row


def _record(run: Run, key: str) -> JobRecord:
    rows = [job for job in run.history if job.spec.key == key and not job.is_copy]
    spec = next(spec for spec in run.spec.jobs if spec.key == key)
    current = run.jobs.get(key)
    started = [job.started_at for job in rows if job.started_at is not None]
    return JobRecord(
        run_id=run.id,
        repo=run.spec.repo,
        key=key,
        name=spec.name,
        labels=spec.labels,
        first_queued_at=rows[0].created_at if rows else None,
        first_started_at=min(started, default=None),
        finished_at=None if current is None else current.completed_at,
        conclusion=None if current is None else current.conclusion,
        runner_names=tuple(job.runner_name for job in rows if job.runner_name is not None),
        job_ids=tuple(job.id for job in rows),
    )
