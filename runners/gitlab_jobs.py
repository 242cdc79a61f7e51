"""Owns what a GitLab job means to us, and the reading of jobs over REST.

| GitLab status | ours |
|---|---|
| created, waiting_for_resource, preparing, waiting_for_callback, manual, scheduled | CREATED |
| pending | QUEUED |
| running, canceling | RUNNING |
| success, failed, canceled, skipped | DONE |

A status we do not know is CREATED: it must not be served, and is asked for again. A pipeline has no attempts (a retry
makes a new job in the same one), so `run_attempt` is always 1. Pipelines carry no workflow name that webhooks and
REST share; `workflow` is the kind of ref they ran for.

Which projects are polled: those with live jobs or events (`active`), project scopes, and projects of group scopes
with activity in the last day each time; quiet ones in turn, within a share of the budget.
"""

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from autoscaler.spi import (
    Clock,
    Conclusion,
    ForgeError,
    ForgeJob,
    ForgeName,
    ForgeRefused,
    JobListing,
    JobNotFound,
    JobStatus,
    Labels,
    RunnerId,
    label_set,
)
from runners.gitlab_errors import Absent, Forbidden, Operation
from runners.gitlab_rest import READ_THREADS, Query, Rest, Row
from runners.gitlab_scopes import ScopeMap, project_path
from runners.gitlab_times import parse_instant

_NEEDS = "scope api and the role Reporter in the project"
_LIST = Operation(doing="list a project's jobs", needs=_NEEDS, family="jobs")
_GET = Operation(doing="read a job", needs=_NEEDS)

QUIET_PER_POLL = 50
QUEUED_KEPT = 20_000
SPELLINGS_KEPT = 1000
SEEN_FOR = timedelta(minutes=5)
STEADY_WITHIN = timedelta(seconds=5)
FORBIDDEN_FOR = timedelta(minutes=10)
"""How long a group's project whose jobs we may not see (CI off, role missing) is left alone."""

_STATUSES = {
    "pending": JobStatus.QUEUED,
    "running": JobStatus.RUNNING,
    "canceling": JobStatus.RUNNING,
    "success": JobStatus.DONE,
    "failed": JobStatus.DONE,
    "canceled": JobStatus.DONE,
    "skipped": JobStatus.DONE,
}
_CONCLUSIONS = {
    "success": Conclusion.SUCCESS,
    "failed": Conclusion.FAILURE,
    "canceled": Conclusion.CANCELLED,
    "skipped": Conclusion.SKIPPED,
}


def status_of(word: str) -> JobStatus:
    """Our status for GitLab's."""
    return _STATUSES.get(word, JobStatus.CREATED)


def conclusion_of(word: str) -> Conclusion | None:
    """How a job of this status ended; None while it has not."""
    return _CONCLUSIONS.get(word)


def workflow_of(ref: str, is_tag: bool) -> str:
    """The kind of ref a pipeline ran for: "tag", "merge_request" or "branch"."""
    if is_tag:
        return "tag"
    return "merge_request" if ref.startswith("refs/merge-requests/") else "branch"


def queued_at(
    status: JobStatus, *, queued_s: object, created_at: datetime | None, started_at: datetime | None, now: datetime
) -> datetime | None:
    """When a job became ready for a runner. GitLab keeps only how long it waited (seconds), so reckon back from now, or
    from its start. `created_at` would count the wait for earlier stages, and is the last resort."""
    if status is JobStatus.CREATED:
        return None
    end = now if status is JobStatus.QUEUED else started_at
    if isinstance(queued_s, (int, float)) and queued_s >= 0 and end is not None:
        return end - timedelta(seconds=queued_s)
    return created_at if status is JobStatus.QUEUED else None


def job_from_rest(forge: ForgeName, repo: str, row: Row, *, now: datetime) -> ForgeJob:
    """One element of the jobs API. Raises KeyError, TypeError or ValueError for what is not a job."""
    word = str(row["status"])
    status = status_of(word)
    runner = row.get("runner") or {}
    started_at = parse_instant(row.get("started_at"))
    return ForgeJob(
        forge=forge,
        forge_job_id=str(int(row["id"])),
        repo=repo,
        run_id=str(int(row["pipeline"]["id"])),
        run_attempt=1,
        workflow=workflow_of(str(row.get("ref") or ""), bool(row.get("tag"))),
        name=str(row["name"]),
        status=status,
        labels=_tags(row),
        conclusion=conclusion_of(word),
        queued_at=queued_at(
            status,
            queued_s=row.get("queued_duration"),
            created_at=parse_instant(row.get("created_at")),
            started_at=started_at,
            now=now,
        ),
        started_at=started_at,
        finished_at=parse_instant(row.get("finished_at")),
        runner_name=str(runner.get("description") or ""),
        runner_id=RunnerId(str(int(runner["id"]))) if runner else None,
        url=str(row.get("web_url") or ""),
        failure_reason=str(row.get("failure_reason") or "") if word == "failed" else "",
        commit=str((row.get("commit") or {}).get("id") or ""),
    )


def _tags(row: Row) -> Labels:
    return label_set([str(tag) for tag in row.get("tag_list") or ()])


class JobReader:
    """Job listings and single jobs of one forge."""

    def __init__(self, rest: Rest, scopes: ScopeMap, clock: Clock) -> None:
        self._rest = rest
        self._scopes = scopes
        self._clock = clock
        self._next_quiet = 0
        # Two threads stay free for single reads, which webhooks wait for.
        self._listings = asyncio.Semaphore(READ_THREADS - 2)
        self._forbidden_until: dict[str, tuple[datetime, Forbidden]] = {}
        self._spellings: dict[str, set[str]] = {}
        self._queued_at: dict[str, datetime] = {}
        self._running_on: dict[str, tuple[datetime, frozenset[RunnerId]]] = {}

    def spellings(self, labels: Labels) -> list[str]:
        """The tags to give a runner for these labels: the labels, and every variant that jobs were seen to use."""
        return sorted({tag for label in labels for tag in (label, *self._spellings.get(label, ()))})

    def seen_running(self) -> frozenset[RunnerId]:
        """Runners that had a running job when their project was listed, minutes ago at most."""
        since = self._clock.now() - SEEN_FOR
        return frozenset().union(*(runners for seen_at, runners in self._running_on.values() if seen_at >= since))

    async def get_job(self, repo: str, forge_job_id: str) -> ForgeJob:
        """One job with labels. Raises JobNotFound."""
        path = f"{project_path(repo)}/jobs/{forge_job_id}"
        try:
            row = await self._rest.get(path, _GET)
        except Absent as error:
            self._queued_at.pop(forge_job_id, None)
            raise JobNotFound(str(error)) from error
        return self._job(repo, row, path)

    async def list_jobs(self, active: Collection[str]) -> JobListing:
        """Pending and running jobs of the projects polled this time. A project that fails is not named in `repos`;
        raises only where none could be listed, or the token is refused."""
        repos = await self._repos_to_poll(active)
        outcomes = await asyncio.gather(*(self._list_one(repo) for repo in repos))
        listed = {repo: jobs for repo, jobs in zip(repos, outcomes, strict=True) if not isinstance(jobs, ForgeError)}
        failures = [outcome for outcome in outcomes if isinstance(outcome, ForgeError)]
        if failures and not listed:
            raise failures[0]
        now = self._clock.now()
        for repo, jobs in listed.items():
            runners = frozenset(job.runner_id for job in jobs if job.runner_id and job.status is JobStatus.RUNNING)
            self._running_on[repo] = (now, runners)
        shown = tuple(job for repo in sorted(listed) for job in listed[repo])
        missed = [error for error in failures if not isinstance(error, Forbidden)] + self._forbidden(active)
        problem = str(missed[0]) if missed else ""
        return JobListing(jobs=shown, repos=frozenset(listed), is_complete=not missed, problem=problem)

    def _forbidden(self, active: Collection[str]) -> list[ForgeError]:
        """Projects that are left alone and should not be: configured by name, or with jobs. A group's project may well
        have no CI."""
        return [
            error
            for repo, (_, error) in self._forbidden_until.items()
            if repo in active or (self._scopes.scope_of(repo) or "").lower() == repo.lower()
        ]

    async def _repos_to_poll(self, active: Collection[str]) -> list[str]:
        projects = await self._scopes.projects()
        now = self._clock.now()
        self._forbidden_until = {repo: held for repo, held in self._forbidden_until.items() if held[0] > now}
        wanted = [repo for repo in sorted(active) if self._scopes.scope_of(repo) is not None]
        allowance = self._rest.budgets.job_lists_left()
        quiet = self._next_of(projects.quiet, min(QUIET_PER_POLL, allowance // 4))
        seen = dict.fromkeys([*wanted, *self._in_turn(projects.recent), *quiet])
        due = [repo for repo in seen if repo not in self._forbidden_until] or list(seen)
        # Beyond the allowance the rest waits for the next poll; one is always tried, so that a limit shows itself.
        return due[: max(1, allowance)]

    def _in_turn(self, recent: tuple[str, ...]) -> list[str]:
        """All recent projects, starting elsewhere each time, so that a short allowance starves none."""
        if not recent:
            return []
        start = self._next_quiet % len(recent)
        return [*recent[start:], *recent[:start]]

    def _next_of(self, quiet: tuple[str, ...], count: int) -> list[str]:
        start = self._next_quiet
        self._next_quiet += max(1, count)
        return [quiet[(start + step) % len(quiet)] for step in range(min(count, len(quiet)))]

    async def _list_one(self, repo: str) -> list[ForgeJob] | ForgeError:
        path = f"{project_path(repo)}/jobs"
        query: Query = {
            "scope[]": ["pending", "running"],
            "pagination": "keyset",
            "order_by": "id",
            "sort": "desc",
        }
        try:
            async with self._listings:
                rows = await self._rest.list(path, _LIST, query)
            return [self._job(repo, row, path) for row in rows]
        except Absent:
            # Deleted, or no longer shown to us: either way no job of it is ours to serve.
            return []
        except Forbidden as error:
            self._forbidden_until[repo] = self._clock.now() + FORBIDDEN_FOR, error
            return error
        except ForgeError as error:
            return error

    def _remember_spellings(self, tags: Iterable[object]) -> None:
        for tag in tags:
            if isinstance(tag, str) and tag != tag.lower():
                self._spellings.setdefault(tag.strip().lower(), set()).add(tag.strip())
        while len(self._spellings) > SPELLINGS_KEPT:
            del self._spellings[next(iter(self._spellings))]

    def _job(self, repo: str, row: Row, path: str) -> ForgeJob:
        self._remember_spellings(row.get("tag_list") or ())
        return self._steady(read_job(self._rest.name, repo, row, path=path, now=self._clock.now()))

    def _steady(self, job: ForgeJob) -> ForgeJob:
        """The same `queued_at` in each listing, although it is reckoned back from each answer's own moment."""
        known = self._queued_at.pop(job.forge_job_id, None)
        if job.status is not JobStatus.QUEUED or job.queued_at is None:
            return job
        queued_at = job.queued_at
        if known is not None and abs(known - queued_at) < STEADY_WITHIN:
            queued_at = known
        self._queued_at[job.forge_job_id] = queued_at
        if len(self._queued_at) > QUEUED_KEPT:
            del self._queued_at[next(iter(self._queued_at))]
        return replace(job, queued_at=queued_at)


def read_job(forge: ForgeName, repo: str, row: Row, *, path: str, now: datetime) -> ForgeJob:
    """`job_from_rest`, with what cannot be read as the contract's error."""
    try:
        return job_from_rest(forge, repo, row, now=now)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ForgeRefused(f"{forge}: an answer of {path} is not a job: {error!r}") from error
