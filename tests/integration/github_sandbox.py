"""Builders that the tests of the sandbox's GitHub side share: a served world, a runner as a real process."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from autoscaler.sandbox.github_face import GitHubFace
from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.workload import JobSpec, RunSpec
from tests.integration.github_law import LawfulExchanges

TOKEN = "ghp_token_of_the_tests"
IMAGE = Path(__file__).parents[2] / "autoscaler" / "sandbox" / "images" / "actions-runner"
REPO = "octo-org/app"


async def until(holds: Callable[[], Any], within_s: float = 15) -> Any:
    """Waits for a condition, bounded; gives its value."""
    deadline = time.monotonic() + within_s
    while not (value := holds()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)
    return value


def job(key: str = "build", *script: str, labels: tuple[str, ...] = ("linux",), needs: tuple[str, ...] = ()) -> JobSpec:
    return JobSpec(key=key, name=key, labels=labels, script=script or ("true",), needs=needs)


def run_of(*jobs: JobSpec, repo: str = REPO) -> RunSpec:
    return RunSpec(repo=repo, workflow="ci", jobs=jobs or (job(),))


@dataclass(slots=True, kw_only=True)
class Served:
    """A face, its address and a client that sends the token."""

    face: GitHubFace
    url: str
    client: aiohttp.ClientSession

    @property
    def world(self) -> GitHubWorld:
        return self.face.world


@contextlib.asynccontextmanager
async def served(world: GitHubWorld | None = None, **options: Any) -> AsyncIterator[Served]:
    """A face with the token of the tests; where the API's description is at hand, every exchange must follow it."""
    lawful = LawfulExchanges.load()
    given: dict[str, Any] = {"tokens": [TOKEN], "middlewares": [lawful.middleware] if lawful else []}
    face = GitHubFace(world or GitHubWorld([REPO]), **(given | options))
    url = await face.start()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        async with aiohttp.ClientSession(url, headers=headers) as client:
            yield Served(face=face, url=url, client=client)
    finally:
        await face.aclose()
    assert lawful is None or not lawful.violations, "\n".join(lawful.violations)


@dataclass(slots=True)
class Received:
    """One webhook as it came in."""

    headers: dict[str, str]
    body: bytes

    @property
    def payload(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """A webhook endpoint that answers `status` and keeps what it got."""

    def __init__(self) -> None:
        self.status = 202
        self.received: list[Received] = []
        self.hangs = False
        self.url = ""

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Receiver"]:
        app = web.Application()
        app.router.add_post("/webhooks/github", self._take)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks/github"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.received.append(Received(dict(request.headers), await request.read()))
        if self.hangs:
            await asyncio.Event().wait()
        return web.Response(status=self.status)

    def of(self, event: str) -> list[Received]:
        return [row for row in self.received if row.headers["X-GitHub-Event"] == event]


@dataclass(slots=True, kw_only=True)
class RunnerProcess:
    """run.sh as a real process in a process group of its own, with its own copy of the image."""

    process: asyncio.subprocess.Process
    root: Path
    output: Path

    def text(self) -> str:
        return self.output.read_text()

    async def exit_code(self, within_s: float = 20) -> int:
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextlib.asynccontextmanager
async def runner_process(
    tmp_path: Path, *arguments: str, jit: str | None = None, env: dict[str, str] | None = None
) -> AsyncIterator[RunnerProcess]:
    root = tmp_path / "runner"
    shutil.copytree(IMAGE, root, dirs_exist_ok=True)
    output = tmp_path / "output.txt"
    given = {} if jit is None else {"ACTIONS_RUNNER_INPUT_JITCONFIG": jit}
    base = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "RUNNER_ALLOW_RUNASROOT": "1"}
    with output.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            root / "run.sh", *arguments, stdout=out, stderr=out, env=base | given | (env or {}), start_new_session=True
        )
    try:
        yield RunnerProcess(process=process, root=root, output=output)
    finally:
        _kill_session(process.pid)
        await process.wait()


def _kill_session(leader: int) -> None:
    """Kills every process of the session that `leader` began: run.sh, listener, steps are in groups of their own."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == leader:
                    os.kill(int(entry.name), signal.SIGKILL)


async def mint(served: Served, name: str = "runner-1", *, labels: tuple[str, ...] = ("linux",)) -> tuple[int, str]:
    """A JIT registration through the API: runner id and encoded configuration."""
    body = {"name": name, "runner_group_id": 1, "labels": list(labels)}
    async with served.client.post("/orgs/octo-org/actions/runners/generate-jitconfig", json=body) as response:
        assert response.status == 201, await response.text()
        answer = await response.json()
    return answer["runner"]["id"], answer["encoded_jit_config"]


def unpacked(jit: str) -> dict[str, Any]:
    files: dict[str, str] = json.loads(base64.b64decode(jit))
    return {name: json.loads(base64.b64decode(content)) for name, content in files.items()}


async def serve_next(here: Served, conclusion: Any = "success", *, name: str = "runner") -> int:
    """A simulated runner serves the oldest job; gives the job's id."""
    now = time.time()
    runner = here.world.generate_jitconfig("octo-org", name, 1, ["linux"], now)
    here.world.connect(runner.id, now)
    taken = here.world.take_job(runner.id, now)
    assert taken is not None
    here.world.complete(runner.id, conclusion, now, annotations=("Process completed with exit code 1.",))
    return taken.id
