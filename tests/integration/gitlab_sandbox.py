"""A served sandbox GitLab for integration tests, a receiver for its webhooks, and the gitlab-runner stand-in."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import gitlab
import pytest
from aiohttp import web

import autoscaler.sandbox
from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.gitlab_access import GitLabLimits
from autoscaler.sandbox.gitlab_face import GitLabFace
from autoscaler.sandbox.gitlab_model import Job, Runner, RunnerType
from autoscaler.sandbox.gitlab_runners import RunnerRequest
from autoscaler.sandbox.gitlab_world import GitLabWorld
from autoscaler.sandbox.workload import JobSpec, RunSpec

T = TypeVar("T")
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


INFO = {
    "name": "gitlab-runner",
    "version": "19.4.0",
    "features": {"two_phase_job_commit": True, "cancel_gracefully": True},
}


def client(face: GitLabFace, token: str = API) -> gitlab.Gitlab:
    return gitlab.Gitlab(face.world.base_url, private_token=token, retry_transient_errors=False)


async def ask(face: GitLabFace, call: Callable[[gitlab.Gitlab], T], *, token: str = API) -> T:
    """Run blocking python-gitlab calls beside the loop that serves them."""
    return await asyncio.to_thread(call, client(face, token))


async def refused(face: GitLabFace, call: Callable[[gitlab.Gitlab], object], *, token: str = API) -> gitlab.GitlabError:
    with pytest.raises(gitlab.GitlabError) as raised:
        await ask(face, call, token=token)
    return raised.value


async def call(
    face: GitLabFace, method: str, path: str, *, body: object = None, data: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """A raw call; header names are given with underscores."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{face.world.base_url}/api/v4/{path}", json=body, data=data, headers=given) as answer,
    ):
        return answer.status, dict(answer.headers), await answer.read()


async def request_job(face: GitLabFace, token: str, **more: object) -> tuple[int, dict[str, str], Any]:
    body = {"info": INFO, "token": token, "system_id": "s_1", **more}
    status, headers, answer = await call(face, "POST", "jobs/request", body=body, RUNNER_TOKEN=token)
    return status, headers, json.loads(answer) if answer else None
