"""Which jobs wait or run, by polling: the truth beside the webhooks, at a bounded cost.

GitHub has no listing of an organisation's runs, so repositories are polled one by one (specs B6): always those with
known activity and those that are scopes of their own; then a round-robin sweep over the quiet ones, as wide as the
rate budget allows, which finds what a lost webhook would have told. Unchanged pages answer 304 and cost nothing.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from autoscaler.spi import Clock, ForgeError, ForgeJob, ForgeName, ForgeUnauthorized, JobListing, JobStatus, Scope
from runners.github_auth import Auth
from runners.github_budgets import Budgets
from runners.github_errors import Answer, Purpose
from runners.github_payloads import (
    JobsPagePayload,
    RepositoriesPagePayload,
    RunsPagePayload,
    forge_job,
    listed_status,
)
from runners.github_rest import Page, Rest, parsed

_log = structlog.get_logger(__name__)

# In the order in which a run passes through them: one that moves on while we look is still met once.
_OPEN_STATUSES = ("requested", "pending", "waiting", "queued", "in_progress")

# GitHub gives no more than this many results for a filtered listing of runs.
_SEARCH_CAP = 1000

# Of the 100 concurrent requests that GitHub allows. Few repos at a time, so that the first ones are complete when
# the budget ends on the way.
_CONCURRENT_REPOS = 8
_CONCURRENT_READS = 16

# A sweep may not come near the 900 points a minute of the runs endpoint, whatever the primary limit is.
_SWEEP_REPOS_PER_MINUTE = 100

# A repository that changed this recently is polled each time.
_RECENT = timedelta(hours=1)

_LIST_RUNS = Purpose(does="list workflow runs", permission="repository permission Actions: read")
_LIST_JOBS = Purpose(does="list jobs", permission="repository permission Actions: read")
_LIST_REPOS = Purpose(does="list repositories", permission="repository permission Metadata: read")


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Repository:
    name: str
    changed_at: datetime | None


@dataclass(slots=True)
class _Account:
    """What we know of the repositories of one organisation scope."""

    repositories: tuple[_Repository, ...] = ()
    listed_at: float | None = None
    page_count: int = 1
    searched_at: float = -math.inf
    cursor: int = 0


@dataclass(slots=True)
class _Polled:
    """One repo's open jobs, why these may not be all, and how many requests were not answered 304."""

    repo: str
    jobs: list[ForgeJob] = field(default_factory=list)
    failures: list[ForgeError] = field(default_factory=list)
    paid: int = 0


@dataclass(frozen=True, slots=True)
class _Run:
    """An open run; `repo` as GitHub spells it, "" where it does not say."""

    id: int
    repo: str


@dataclass(frozen=True, slots=True)
class _RunsPage:
    total: int
    runs: list[_Run]


class JobPoller:
    """Lists the open jobs of one forge. Keeps what it learned between polls: open runs, repositories, ETags."""

    def __init__(
        self,
        *,
        forge: ForgeName,
        rest: Rest,
        auth: Auth,
        budgets: Budgets,
        clock: Clock,
        scopes: Mapping[str, Scope],
        scope_of: Callable[[str], Scope | None],
        poll: timedelta,
    ) -> None:
        self._forge = forge
        self._rest = rest
        self._auth = auth
        self._budgets = budgets
        self._clock = clock
        self._scope_of = scope_of
        self._poll_s = max(1.0, poll.total_seconds())
        self._single_repos = tuple(scope for scope in scopes.values() if "/" in scope)
        self._accounts = {scope: _Account() for scope in scopes.values() if "/" not in scope}
        self._open: frozenset[str] = frozenset()
        self._jobs_listed_at: dict[str, dict[int, float]] = {}
        self._paid_per_swept_repo = float(len(_OPEN_STATUSES))
        self._repo_slots = asyncio.Semaphore(_CONCURRENT_REPOS)
        self._read_slots = asyncio.Semaphore(_CONCURRENT_READS)

    async def list_jobs(self, active: Collection[str]) -> JobListing:
        """Open jobs of the repos polled this time.

        What cannot be listed is left out and its repo not named as complete; if that is everything, it is raised.
        """
        wanted = {repo.lower(): repo for repo in (*self._single_repos, *active, *self._open) if self._scope_of(repo)}
        failures: list[ForgeError] = []
        swept: set[str] = set()
        for scope in self._accounts:
            try:
                recent, quiet = await self._found_in(scope, frozenset(wanted))
            except ForgeError as error:
                failures.append(error)
            else:
                wanted |= {repo.lower(): repo for repo in (*recent, *quiet)}
                swept.update(quiet)
        jobs: list[ForgeJob] = []
        listed: set[str] = set()
        hidden: set[str] = set()
        for polled in await asyncio.gather(*(self._polled(repo) for repo in wanted.values())):
            jobs.extend(polled.jobs)
            failures.extend(polled.failures)
            if any(isinstance(failure, ForgeUnauthorized) for failure in polled.failures):
                hidden.add(polled.repo)
            if not polled.failures:
                listed |= {polled.repo, *(job.repo for job in polled.jobs)}
                if polled.repo in swept:  # Free 304 answers let the sweep run far wider than its worst case.
                    self._paid_per_swept_repo += 0.5 * (max(0.25, polled.paid) - self._paid_per_swept_repo)
        if failures:
            if not listed and not jobs:
                raise failures[0]
            _log.warning(
                "github_listing_incomplete", forge=self._forge, failures=len(failures), first_error=str(failures[0])
            )
        # A repo that is deleted, or shown to us no more, is not asked for on our own account for ever.
        self._open = frozenset(job.repo for job in jobs) | (self._open - listed - hidden)
        return JobListing(
            jobs=tuple(jobs),
            repos=frozenset(listed),
            is_complete=not failures,
            problem=str(failures[0]) if failures else "",
        )

    async def _found_in(self, scope: Scope, wanted: frozenset[str]) -> tuple[list[str], list[str]]:
        """Repos of an organisation that changed lately, and this poll's share of the sweep over the others."""
        account = self._accounts[scope]
        now = self._clock.monotonic()
        if now - account.searched_at < self._poll_s / 2:
            return [], []  # An extra call for a repo in a hurry, between two polls.
        await self._refresh(scope, account)
        account.searched_at = now
        since = self._clock.now() - _RECENT
        recent = [
            repo.name for repo in account.repositories if repo.changed_at is not None and repo.changed_at >= since
        ]
        skipped = wanted | {name.lower() for name in recent}
        quiet = [repo.name for repo in account.repositories if repo.name.lower() not in skipped]
        paid_by = self._auth.budget_of(scope)
        affordable = self._budgets.spendable(paid_by, self._poll_s) / self._paid_per_swept_repo
        width = min(len(quiet), int(affordable), max(1, int(_SWEEP_REPOS_PER_MINUTE * self._poll_s / 60)))
        swept = [quiet[(account.cursor + step) % len(quiet)] for step in range(width)]
        account.cursor = (account.cursor + width) % len(quiet) if quiet else 0
        return recent, swept

    async def _refresh(self, scope: Scope, account: _Account) -> None:
        """List the organisation's repositories again when due: one page is asked for each poll on average."""
        now = self._clock.monotonic()
        if account.listed_at is not None and now - account.listed_at < self._poll_s * (account.page_count - 1):
            return
        if self._auth.is_app:
            path, read = "/installation/repositories?per_page=100", _read_installation_repos
        else:
            path, read = f"/orgs/{scope}/repos?per_page=100&sort=full_name", _read_org_repos
        purpose = replace(_LIST_REPOS, does=f"{_LIST_REPOS.does} of {scope}")
        pages = await self._rest.pages(path, read, account=scope, purpose=purpose, is_listing=True, remembered=True)
        mine = [repo for page in pages for repo in page.value if self._scope_of(repo.name) == scope]
        account.repositories = tuple(sorted(mine, key=lambda repo: repo.name.lower()))
        account.page_count, account.listed_at = len(pages), now

    async def _polled(self, repo: str) -> _Polled:
        """What can be listed of one repo."""
        polled = _Polled(repo)
        async with self._repo_slots:
            try:
                runs = await self._open_runs(polled)
            except ForgeError as error:
                polled.failures.append(error)
                return polled
            await asyncio.gather(*(self._add_jobs(polled, run) for run in runs))
        return polled

    async def _open_runs(self, polled: _Polled) -> list[_Run]:
        """The repo's open runs; first those whose jobs were listed longest ago, in case the budget ends."""
        runs: dict[int, _Run] = {}
        for status in _OPEN_STATUSES:
            path = f"/repos/{polled.repo}/actions/runs?status={status}&per_page=100"
            pages = await self._get(path, _read_runs, polled.repo, _LIST_RUNS)
            polled.paid += sum(page.was_fresh for page in pages)
            found = [run for page in pages for run in page.value.runs]
            runs |= {run.id: run for run in found}
            total = pages[0].value.total
            if total > len(found) >= _SEARCH_CAP:
                text = f"{polled.repo} has {total} runs {status}, GitHub lists only {len(found)}"
                polled.failures.append(ForgeError(text))
        known = self._jobs_listed_at.get(polled.repo, {})
        self._jobs_listed_at[polled.repo] = {run_id: known[run_id] for run_id in runs if run_id in known}
        return sorted(runs.values(), key=lambda run: known.get(run.id, -math.inf))

    async def _add_jobs(self, polled: _Polled, run: _Run) -> None:
        try:
            pages = await self._run_jobs(run.repo or polled.repo, run.id)
        except ForgeError as error:
            polled.failures.append(error)
            return
        self._jobs_listed_at[polled.repo][run.id] = self._clock.monotonic()
        for page in pages:
            polled.jobs.extend(page.value)
            polled.paid += page.was_fresh

    async def _run_jobs(self, repo: str, run_id: int) -> Sequence[Page[list[ForgeJob]]]:
        def read(answer: Answer) -> list[ForgeJob]:
            listed = parsed(JobsPagePayload, answer, _LIST_JOBS).jobs
            jobs = [forge_job(job, forge=self._forge, repo=repo, status=listed_status(job.status)) for job in listed]
            return [job for job in jobs if job.status is not JobStatus.DONE]

        return await self._get(f"/repos/{repo}/actions/runs/{run_id}/jobs?per_page=100", read, repo, _LIST_JOBS)

    async def _get(self, path: str, read: Callable[[Answer], T], repo: str, purpose: Purpose) -> Sequence[Page[T]]:
        async with self._read_slots:
            return await self._rest.pages(
                path,
                read,
                account=repo.partition("/")[0],
                purpose=replace(purpose, does=f"{purpose.does} of {repo}"),
                is_listing=True,
                remembered=True,
            )


def _read_runs(answer: Answer) -> _RunsPage:
    page = parsed(RunsPagePayload, answer, _LIST_RUNS)
    runs = [_Run(run.id, run.repository.full_name if run.repository else "") for run in page.workflow_runs]
    return _RunsPage(page.total_count, runs)


def _read_installation_repos(answer: Answer) -> list[_Repository]:
    return _repositories(parsed(RepositoriesPagePayload, answer, _LIST_REPOS))


def _read_org_repos(answer: Answer) -> list[_Repository]:
    wrapped = Answer(status=answer.status, headers=answer.headers, body=b'{"repositories":' + answer.body + b"}")
    return _repositories(parsed(RepositoriesPagePayload, wrapped, _LIST_REPOS))


def _repositories(page: RepositoriesPagePayload) -> list[_Repository]:
    return [
        _Repository(repo.full_name, max(filter(None, (repo.pushed_at, repo.updated_at)), default=None))
        for repo in page.repositories
        if not repo.archived and not repo.disabled
    ]
