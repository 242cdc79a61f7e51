"""What the GitLab tests share: a served world, forges against it, and a runner that speaks the runner's protocol."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from aiohttp import web

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.gitlab_access import GitLabLimits
from autoscaler.sandbox.gitlab_face import GitLabFace
from autoscaler.sandbox.gitlab_model import Contact, Offer, RunnerType
from autoscaler.sandbox.gitlab_runners import RunnerRequest
from autoscaler.sandbox.gitlab_world import GitLabWorld
from autoscaler.sandbox.workload import JobSpec, RunSpec
from autoscaler.spi import Clock, ForgeName, ForgeSettings, Labels, Registration, Scope, Secret, Surroundings
from runners.gitlab import GitLabForge
from tests.contract.forge_contract import LABELS

TOKEN = "glpat-api-token-of-the-tests"
RUNNER_TOKEN = "glpat-runner-token-of-the-tests"
PREFIX = "tests-"
WEBHOOK_TOKEN = "hook-token"
SIGNING_SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
SYSTEM_ID = "s_0123456789ab"


def settings(url: str, *scopes: str, **changes: Any) -> ForgeSettings:
    """A section that works; `changes` are fields of ForgeSettings."""
    values: dict[str, Any] = {
        "name": ForgeName("gl"),
        "kind": "gitlab",
        "url": url,
        "api_url": "",
        "credentials": {"token": Secret(TOKEN)},
        "webhook_secrets": (Secret(WEBHOOK_TOKEN),),
        "scopes": tuple(Scope(scope) for scope in scopes or ("acme",)),
        "poll": timedelta(seconds=15),
    }
    return ForgeSettings(**{**values, **changes})


class ImpatientClock(SystemClock):
    """The real time, and no waiting: for tests in which nothing happens during the forge's own waits."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(0)


@dataclass(slots=True, kw_only=True)
class Site:
    """A GitLab that is being served, and the forges made against it."""

    world: GitLabWorld
    face: GitLabFace
    faults: Faults
    calls: Calls
    url: str
    seen: Counter[str] = field(default_factory=Counter)
    """Requests by method and path."""
    lost_answers: set[str] = field(default_factory=set)
    """Ends of requests ("/retry", "POST /api/v4/...") that take effect and are then answered 502."""
    forges: list[GitLabForge] = field(default_factory=list)

    def forge(self, *scopes: str, clock: Clock | None = None, **changes: Any) -> GitLabForge:
        """A forge of its own, as another process would have."""
        clock = clock or ImpatientClock()
        surroundings = Surroundings(deployment="tests", runner_prefix=PREFIX, clock=clock, gates=self.calls)
        forge = GitLabForge(settings(changes.pop("url", self.url), *scopes, **changes), surroundings)
        self.forges.append(forge)
        return forge

    def submit(self, *labels: str, repo: str = "acme/api", count: int = 1, ref: str = "main") -> tuple[str, list[str]]:
        """A pipeline of jobs without needs: its id and its jobs'."""
        jobs = tuple(JobSpec(key=f"job{n}", name=f"job {n}", labels=labels) for n in range(count))
        run = self.face.submit(RunSpec(repo=repo, workflow="ci", jobs=jobs, ref=ref))
        return str(run), [str(job_id) for job_id in self.world.pipeline(run).latest.values()]

    def take(self, registration: Registration, *, confirm: bool = True) -> Offer | None:
        """What a runner does: ask for a job, and confirm it at once."""
        offer = self.world.request_job(
            registration.secret.reveal(), SYSTEM_ID, time.time(), contact=Contact(two_phase=True)
        )
        if offer is not None and confirm:
            self.confirm(offer)
        return offer

    def confirm(self, offer: Offer) -> None:
        self.world.update_job(offer.token, "running", time.time())

    def finish(self, offer: Offer, *, state: str = "success") -> None:
        self.world.update_job(offer.token, state, time.time(), failure_reason="script_failure")

    def add_runner(self, name: str) -> None:
        """Somebody else registers a runner in the group acme."""
        request = RunnerRequest(
            runner_type=RunnerType.GROUP,
            scope_id=self.world.find_group("acme").id,
            description=name,
            tags=["linux"],
        )
        self.world.create_runner(request, time.time())

    def runner_names(self) -> list[str]:
        return sorted(runner.description for runner in self.world.list_runners())


@asynccontextmanager
async def gitlab_site(
    *,
    limits: GitLabLimits | None = None,
    webhook_url: str | None = None,
    webhook_token: str | None = None,
    signing_secret: str | None = None,
) -> AsyncIterator[Site]:
    """Serve a world with the project acme/api."""
    world, faults, seen, lost_answers = GitLabWorld(), Faults(), Counter[str](), set[str]()
    world.add_project("acme/api", time.time())
    tokens = {TOKEN: ["api"], RUNNER_TOKEN: ["create_runner", "manage_runner"]}
    face = GitLabFace(
        world,
        tokens=tokens,
        faults=faults,
        limits=limits,
        webhook_url=webhook_url,
        webhook_token=webhook_token,
        signing_secret=signing_secret,
    )
    app = face.app()

    @web.middleware
    async def count(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        asked = f"{request.method} {request.path}"
        seen[asked] += 1
        answer = await handler(request)
        is_lost = any(asked.endswith(end) for end in lost_answers)
        return web.Response(status=502, text="Bad Gateway") if is_lost else answer

    app.middlewares.insert(0, count)
    async with served(app) as url:
        world.base_url = url
        calls = Calls()
        site = Site(world=world, face=face, faults=faults, calls=calls, url=url, seen=seen, lost_answers=lost_answers)
        try:
            yield site
        finally:
            for forge in site.forges:
                await forge.aclose()
            assert await calls.aclose(grace_s=5) == []


class GitLabDriver:
    """Plays people and machines for the contract of every forge."""

    scope = Scope("acme")
    repo = "acme/web"
    other_repo = "acme/api"
    prefix = PREFIX
    names_are_unique = False
    writes_break_unknown = True

    def __init__(self, site: Site, taken: list[tuple[dict[str, str], bytes]], credential_header: str) -> None:
        self.credential_headers: Collection[str] = (credential_header,)
        self._site = site
        self._taken = taken
        self._offers: dict[str, Offer] = {}
        secret = SIGNING_SECRET if credential_header == "webhook-signature" else WEBHOOK_TOKEN
        self.forge = site.forge(webhook_secrets=(Secret(secret),))

    async def submit(
        self, repo: str, *, jobs: Sequence[str] = ("build",), labels: Labels = LABELS, ref: str = "main"
    ) -> str:
        specs = tuple(JobSpec(key=name, name=name, labels=labels) for name in jobs)
        return str(self._site.face.submit(RunSpec(repo=repo, workflow="CI", jobs=specs, ref=ref)))

    async def take(self, registration: Registration) -> str:
        offer = self._site.take(registration)
        assert offer is not None, "no job for this runner"
        self._offers[registration.ref.runner_id] = offer
        return str(offer.job_id)

    async def finish(self, registration: Registration, *, success: bool = True) -> None:
        self._site.finish(self._offers[registration.ref.runner_id], state="success" if success else "failed")

    async def run_again(self, job_id: str) -> None:
        self._site.world.retry_job(int(job_id), time.time())

    async def told(self) -> Sequence[str]:
        return [note.body for note in self._site.world.merge_requests.everything()]

    async def add_foreign_runner(self, name: str) -> None:
        self._site.add_runner(name)

    async def received(self) -> list[tuple[dict[str, str], bytes]]:
        self._site.face.settle()
        await self._site.face.webhooks.flush()
        return list(self._taken)

    async def break_forge(self) -> None:
        self._site.faults.forge_error = 1.0

    async def mend_forge(self) -> None:
        self._site.faults.forge_error = 0.0


@asynccontextmanager
async def gitlab_driver(credential_header: str) -> AsyncIterator[GitLabDriver]:
    """A driver whose GitLab sends both kinds of proof and whose forge knows one."""
    taken: list[tuple[dict[str, str], bytes]] = []

    async def hear(request: web.Request) -> web.Response:
        taken.append((lower(request.headers), await request.read()))
        return web.Response(status=202)

    app = web.Application()
    app.router.add_post("/hook", hear)
    async with (
        served(app) as url,
        gitlab_site(webhook_url=f"{url}/hook", webhook_token=WEBHOOK_TOKEN, signing_secret=SIGNING_SECRET) as site,
    ):
        site.world.add_project(GitLabDriver.repo, time.time())
        yield GitLabDriver(site, taken, credential_header)


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    """Serve an application on a free port; its URL."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def scripted(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[tuple[str, Calls]]:
    """A server that answers every request by `answer`, for what GitLab itself would not do."""
    app, calls = web.Application(), Calls()
    app.router.add_route("*", "/{path:.*}", answer)
    async with served(app) as url:
        try:
            yield url, calls
        finally:
            await calls.aclose(grace_s=5)


def forge_at(url: str, calls: Calls, **changes: Any) -> GitLabForge:
    """A forge against a scripted server."""
    surroundings = Surroundings(deployment="tests", runner_prefix=PREFIX, clock=SystemClock(), gates=calls)
    return GitLabForge(settings(url, **changes), surroundings)


def lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
