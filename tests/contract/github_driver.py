"""The sandbox's GitHub as the forge contract drives it: a face, a webhook receiver, an adapter."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache

from aiohttp import web
from aiohttp.typedefs import Middleware

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.github_auth import AppIdentity
from autoscaler.sandbox.github_face import GitHubFace
from autoscaler.sandbox.github_limits import Limits
from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.workload import JobSpec, RunSpec
from autoscaler.spi import (
    ForgeName,
    ForgeSettings,
    Labels,
    Registration,
    Scope,
    Secret,
    Surroundings,
)
from runners.github import GitHubForge, create
from tests.contract.forge_driver import LABELS

TOKEN = "ghp_sandbox"
SECRET = "hook secret"


class HookReceiver:
    """Takes webhooks as the daemon would; `status` is what it answers."""

    def __init__(self) -> None:
        self.status = 202
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/webhooks/gh", self._take)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/webhooks/gh"

    async def aclose(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.taken.append((headers, await request.read()))
        return web.Response(status=self.status)


class MovableClock(SystemClock):
    """The real clock, ahead by what a test says."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead.total_seconds()


class GitHubDriver:
    """Plays people and machines in the sandbox's GitHub world."""

    scope = Scope("acme")
    repo = "acme/web"
    other_repo = "acme/api"
    prefix = "ci-"
    names_are_unique = True
    credential_headers: Collection[str] = ("x-hub-signature-256",)

    def __init__(self, face: GitHubFace, receiver: HookReceiver, calls: Calls, api_url: str, key: str) -> None:
        self.face = face
        self.receiver = receiver
        self.clock = MovableClock()
        self._calls = calls
        self.api_url = api_url
        self._key = key
        self.forge = self.make_forge()

    def make_forge(
        self, *, scopes: Sequence[str] = ("acme",), token: str = "", poll_s: float = 60, **options: object
    ) -> GitHubForge:
        app: dict[str, Secret | str] = {"app_id": "1234567", "private_key": Secret(self._key)}
        return create(
            ForgeSettings(
                name=ForgeName("gh"),
                kind="github",
                url="",
                api_url=self.api_url,
                credentials={"token": Secret(token)} if token else app,
                webhook_secrets=(Secret(SECRET),),
                scopes=tuple(Scope(scope) for scope in scopes),
                poll=timedelta(seconds=poll_s),
                options=options,
            ),
            Surroundings(deployment="test", runner_prefix=self.prefix, clock=self.clock, gates=self._calls),
        )

    async def submit(
        self, repo: str, *, jobs: Sequence[str] = ("build",), labels: Labels = LABELS, ref: str = "main"
    ) -> str:
        specs = tuple(JobSpec(key=name, name=name, labels=labels) for name in jobs)
        return str(self.face.submit(RunSpec(repo=repo, workflow="CI", jobs=specs, ref=ref)))

    async def take(self, registration: Registration) -> str:
        runner_id = int(registration.ref.runner_id)
        self.face.world.connect(runner_id, now())
        job = self.face.world.take_job(runner_id, now())
        assert job is not None, "no job for this runner"
        return str(job.id)

    async def finish(self, registration: Registration, *, success: bool = True) -> None:
        runner_id = int(registration.ref.runner_id)
        self.face.world.complete(runner_id, "success" if success else "failure", now())

    async def run_again(self, job_id: str) -> None:
        self.face.world.rerun_job(int(job_id), now())

    async def told(self) -> Sequence[str]:
        checks, repos = self.face.world.checks, self.face.world.repos
        shas = [(repo, run.head_sha) for repo in repos for run in self.face.world.runs_of(repo)]
        statuses = [one for repo, sha in shas for one in checks.statuses(repo, sha)]
        return [
            *(f"{one.name}\n{one.title}\n{one.summary}" for one in checks.everything()),
            *(f"{one.context}\n{one.description}" for one in sorted(statuses, key=lambda one: one.id)),
        ]

    async def add_foreign_runner(self, name: str) -> None:
        self.face.world.generate_jitconfig(self.scope, name, 1, ["linux"], now())

    async def received(self) -> list[tuple[dict[str, str], bytes]]:
        await self.face.webhooks_settled()
        return list(self.receiver.taken)

    async def break_forge(self) -> None:
        self.face.faults.forge_error = 1.0

    async def mend_forge(self) -> None:
        self.face.faults.forge_error = 0.0


def now() -> float:
    return datetime.now(UTC).timestamp()


@cache
def app_identity() -> tuple[AppIdentity, str]:
    """One key pair for all tests: making one takes longer than a test."""
    return AppIdentity.generate()


@asynccontextmanager
async def sandbox(
    *, limits: Limits | None = None, prefix: str = "", middlewares: Sequence[Middleware] = ()
) -> AsyncIterator[GitHubDriver]:
    identity, key = app_identity()
    receiver, calls = HookReceiver(), Calls()
    await receiver.start()
    face = GitHubFace(
        GitHubWorld(["acme/web", "acme/api", "acme/quiet"]),
        webhook_url=receiver.url,
        webhook_secret=SECRET,
        app=identity,
        tokens=[TOKEN],
        faults=Faults(),
        limits=limits,
        middlewares=middlewares,
    )
    driver = GitHubDriver(face, receiver, calls, await face.start() + prefix, key)
    try:
        yield driver
    finally:
        await driver.forge.aclose()
        await face.aclose()
        await receiver.aclose()
        assert await calls.aclose() == []


def core_budget(forge: GitHubForge) -> float:
    return {budget.family: budget.remaining for budget in forge.budgets()}["core"]
