"""Finds what somebody asks about: a job by our id, its forge's id, its address or its run; a machine by its names.

Reads live rows and, by index, the store; never a listing of history. `find` says what it looked for where it finds
nothing, so that the answer to a mistyped address is of use.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from autoscaler.http.view import DaemonView
from autoscaler.model import Instance, Job, JobId, job_id
from autoscaler.spi import ForgeName, InstanceId
from autoscaler.store.rows import repo_run

LONGEST_QUESTION = 2000
RUN_LIMIT = 1000
"""A run with more jobs than the largest matrix of a forge allows, attempts included, is cut."""
_GITHUB = re.compile(r"^(?P<repo>.+?)/actions/runs/(?P<run>\d+)(?:/attempts/\d+)?(?:/jobs?/(?P<job>\d+))?$")
_GITHUB_CHECK = re.compile(r"^(?P<repo>.+?)/runs/(?P<job>\d+)$")
_GITLAB = re.compile(r"^(?P<repo>.+?)/-/(?:jobs/(?P<job>\d+)|pipelines/(?P<run>\d+))(?:/.*)?$")
_DEEPEST = 20
"""GitLab's own limit of nested groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """`jobs` of one run, or one job; else one machine; else neither, and `looked_for` names what was tried."""

    jobs: Sequence[Job] = ()
    instance: Instance | None = None
    looked_for: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What an address of a forge names."""

    repo: str
    job: str = ""
    run: str = ""


async def find(view: DaemonView, asked: str) -> Found:
    """What `asked` names. Raises StoreError."""
    asked = asked.strip()[:LONGEST_QUESTION]
    if "://" in asked:
        return await _by_address(view, asked)
    tried = []
    if ":" in asked:
        tried.append(f"the job {asked}")
        if job := await job_of(view, JobId(asked)):
            return Found(jobs=[job])
    if "/" in asked:
        repo, _, run = asked.strip("/").rpartition("/")
        tried.append(f"jobs of the run {run} of {repo}")
        if jobs := await _of_run(view, repo, run):
            return Found(jobs=jobs)
    if asked.isascii() and asked.isdigit():
        tried.append(f"the job {asked} at {_either(view)}, and live jobs of the run {asked}")
        if jobs := await _by_number(view, asked):
            return Found(jobs=jobs)
    tried.append(f"the machine {asked}, by our id, its runner's name or, while it lives, its cloud's id")
    if machine := await instance_of(view, asked):
        return Found(instance=machine)
    return Found(looked_for=tried)


async def job_of(view: DaemonView, name: JobId) -> Job | None:
    """One job by our id; the live row wins."""
    return view.snapshot().jobs.get(name) or await view.store.job(name)


async def instance_of(view: DaemonView, name: str) -> Instance | None:
    """One machine by any of its names."""
    live, wanted = view.snapshot().instances, InstanceId(name)
    own = InstanceId(name.removeprefix(f"{view.deployment}--"))
    for one in (wanted, own):
        if (row := live.get(one) or await view.store.instance(one)) is not None:
            return row
    return next((row for row in live.values() if name in (row.provider_id, row.runner_name)), None)


async def run_of(view: DaemonView, job: Job) -> Sequence[Job]:
    """All jobs of a job's run at its forge, oldest first."""
    return [one for one in await _of_run(view, job.repo, job.run_id) if one.forge == job.forge]


async def _by_address(view: DaemonView, asked: str) -> Found:
    path = _path(asked)
    tried = []
    for place in _places(path):
        if place.job:
            tried.append(f"the job {place.job} of {place.repo} at {_either(view)}")
            numbered = await view.store.jobs_by_ids([job_id(forge, place.job) for forge in _forges(view)])
            live = [row for forge in _forges(view) if (row := view.snapshot().jobs.get(job_id(forge, place.job)))]
            own = [job for job in _live_first(live, numbered) if place.repo.lower().endswith(job.repo.lower())]
            if own:
                return Found(jobs=own)
        if place.run:
            tried.append(f"jobs of the run {place.run} of {place.repo}")
            for repo in _suffixes(place.repo):
                if jobs := await _of_run(view, repo, place.run):
                    named = [job for job in jobs if job.url and _path(job.url).lower() == path.lower()]
                    return Found(jobs=named or jobs)
    shape = f"{asked} is no address of a job or a run at GitHub or GitLab"
    return Found(looked_for=tried or [shape])


def _places(path: str) -> Iterable[_Place]:
    for pattern in (_GITLAB, _GITHUB, _GITHUB_CHECK):
        if found := pattern.match(path):
            parts = found.groupdict()
            yield _Place(repo=parts["repo"], job=parts.get("job") or "", run=parts.get("run") or "")
            return


def _suffixes(repo: str) -> Iterable[str]:
    """A forge below a path of its host puts that path before the repo."""
    parts = repo.split("/")[-_DEEPEST:]
    return ("/".join(parts[start:]) for start in range(max(1, len(parts) - 1)))


async def _by_number(view: DaemonView, number: str) -> Sequence[Job]:
    names = [job_id(forge, number) for forge in _forges(view)]
    jobs = view.snapshot().jobs
    found = _live_first([jobs[name] for name in names if name in jobs], await view.store.jobs_by_ids(names))
    if found:
        return found
    runs = {(job.repo, job.run_id) for job in jobs.values() if job.run_id == number}
    return [job for repo, run in sorted(runs) for job in await _of_run(view, repo, run)]


async def _of_run(view: DaemonView, repo: str, run: str) -> Sequence[Job]:
    """Live rows win; rows that were not written yet are there too."""
    stored = await view.store.jobs_of_run(repo, run, limit=RUN_LIMIT)
    wanted = repo_run(repo, run)
    live = [job for job in view.snapshot().jobs.values() if repo_run(job.repo, job.run_id) == wanted]
    return sorted(_live_first(live, stored), key=lambda job: (job.first_seen_at, job.id))


def _live_first(live: Sequence[Job], stored: Sequence[Job]) -> list[Job]:
    rows = {job.id: job for job in stored} | {job.id: job for job in live}
    return list(rows.values())


def _forges(view: DaemonView) -> list[ForgeName]:
    snapshot, rules = view.snapshot(), view.rules()
    named = {forge for pool in rules.pools.values() for forge in pool.forges}
    return sorted(named | set(snapshot.forges) | {job.forge for job in snapshot.jobs.values()})


def _either(view: DaemonView) -> str:
    return " or ".join(_forges(view)) or "any forge (none is configured)"


def _path(address: str) -> str:
    """The path of an address; "" for what is none."""
    try:
        return unquote(urlsplit(address).path).strip("/")
    except ValueError:
        return ""
