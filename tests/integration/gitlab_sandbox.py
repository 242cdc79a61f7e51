"""A served sandbox GitLab for integration tests, a receiver for its webhooks, and the gitlab-runner stand-in."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

import autoscaler.sandbox
from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.gitlab_access import GitLabLimits
from autoscaler.sandbox.gitlab_face import GitLabFace
from autoscaler.sandbox.gitlab_model import Job, Runner, RunnerType
from autoscaler.sandbox.gitlab_runners import RunnerRequest
from autoscaler.sandbox.gitlab_world import GitLabWorld
from autoscaler.sandbox.workload import JobSpec, RunSpec

API, READ, CREATE, RUNNERS = "glpat-api-test", "glpat-read-test", "glpat-create-test", "glpat-runners-test"
TOKENS = {API: {"api"}, READ: {"read_api"}, CREATE: {"create_runner"}, RUNNERS: {"manage_runner"}}
SIGNING_SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
RUNNER_PROGRAM = Path(autoscaler.sandbox.__file__).parent / "images" / "gitlab-runner" / "gitlab-runner"


@dataclass
class Receiver:
    """Where webhooks arrive: (headers, raw body) in order of arrival."""

    url: str = ""
    status: int = 200
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def wait_for(self, count: int) -> list[tuple[dict[str, str], bytes]]:
        async with self.arrived:
            await asyncio.wait_for(self.arrived.wait_for(lambda: len(self.got) >= count), 10)
        return self.got


@contextlib.asynccontextmanager
async def receiving(status: int = 200) -> AsyncIterator[Receiver]:
    receiver = Receiver(status=status)

    async def take(request: web.Request) -> web.Response:
        async with receiver.arrived:
            receiver.got.append((dict(request.headers), await request.read()))
            receiver.arrived.notify_all()
        return web.Response(status=receiver.status)

    app = web.Application()
    app.router.add_post("/hook", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def serving(
    *,
    limits: GitLabLimits | None = None,
    faults: Faults | None = None,
    webhook_url: str | None = None,
    world: GitLabWorld | None = None,
) -> AsyncIterator[GitLabFace]:
    face = GitLabFace(
        world or GitLabWorld(),
        tokens=TOKENS,
        limits=limits,
        faults=faults,
        webhook_url=webhook_url,
        webhook_token="hook-token" if webhook_url else None,
        signing_secret=SIGNING_SECRET if webhook_url else None,
    )
    await face.start()
    try:
        yield face
    finally:
        await face.aclose()


def pipeline(*scripts: tuple[str, ...], repo: str = "acme/shop", labels: tuple[str, ...] = ("linux",)) -> RunSpec:
    """Independent jobs j0, j1, ..., one per script."""
    jobs = tuple(JobSpec(key=f"j{n}", name=f"j{n}", labels=labels, script=s) for n, s in enumerate(scripts))
    return RunSpec(repo=repo, workflow="ci", jobs=jobs)


def add_runner(face: GitLabFace, *, repo: str = "acme/shop", description: str = "m-1") -> Runner:
    now = time.time()
    request = RunnerRequest(
        runner_type=RunnerType.PROJECT,
        scope_id=face.world.add_project(repo, now).id,
        tags=("linux",),
        run_untagged=False,
        description=description,
    )
    return face.world.create_runner(request, now)


async def until(holds: Callable[[], bool], *, within_s: float = 15.0) -> None:
    """Poll a condition of another process's doing; fails the test when it does not come true in time."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.02)


def only_job(face: GitLabFace) -> Job:
    (outcome,) = face.world.outcomes()
    return face.world.job(outcome.job_ids[-1])


@contextlib.asynccontextmanager
async def running(
    url: str, token: str, builds: Path, *args: str, **env: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`gitlab-runner run-single` as a process; killed with its group at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        RUNNER_PROGRAM,
        "run-single",
        *("--executor", "shell", "--builds-dir", str(builds), *args),
        env={"PATH": os.environ["PATH"], "CI_SERVER_URL": url, "CI_SERVER_TOKEN": token, **env},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
