"""Child: both sandbox forges over HTTP, their requests counted by kind, and the machines that serve their jobs."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

from autoscaler.sandbox.github_face import GitHubFace
from autoscaler.sandbox.github_limits import Limits
from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.gitlab_access import GitLabLimits
from autoscaler.sandbox.gitlab_face import GitLabFace
from autoscaler.sandbox.gitlab_world import GitLabWorld
from autoscaler.sandbox.workload import JobSpec, RunSpec
from benchmarks.machines import Gates, GitHubRunner, GitLabRunner, Machine, RunnerSide
from benchmarks.site import GITHUB_LABELS, GITHUB_REPO, GITLAB_LABELS, GITLAB_REPO

JOBS_PER_RUN = 10
PUBLISH_S = 0.02
ADDRESSES = 200
"""Machines come from addresses of their own, as far as these go: the daemon limits the hellos of one address."""
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def kind_of(method: str, route: str) -> str:
    """What a request of the daemon is for. Reads of one thing and writes belong to a job; listings to all of them."""
    last = route.rstrip("/").rpartition("/")[2]
    match method:
        case "POST" if last == "generate-jitconfig" or route.endswith("/user/runners"):
            return "register"
        case "PUT":
            return "pause"
        case "DELETE":
            return "remove"
        case "GET" if "jobs/{" in route:
            return "read one job"
        case "GET":
            return "listing"
        case _:
            return f"{method} {last}"


class Forges:
    """The worlds, their faces and the machines."""

    def __init__(self, *, webhook_secret: str, token: str) -> None:
        self._webhook_secret = webhook_secret
        self.calls: dict[str, Counter[str]] = {"github": Counter(), "gitlab": Counter()}
        self.registered_at: list[float] = []
        self.gates = Gates()
        self._github_world = GitHubWorld([GITHUB_REPO])
        self._github = GitHubFace(
            self._github_world,
            tokens=[token],
            limits=Limits(primary_per_hour=15_000),
            middlewares=[self._counting("github")],
        )
        self._gitlab_world = GitLabWorld()
        self._gitlab_world.add_project(GITLAB_REPO, time.time())
        self._gitlab = GitLabFace(self._gitlab_world, tokens={token: ["api"]}, limits=GitLabLimits())
        self._gitlab_server: web.AppRunner | None = None
        self._sessions: list[aiohttp.ClientSession] = []
        self._machines: set[asyncio.Task[None]] = set()
        self._publishing: asyncio.Task[None] | None = None
        self._booted = 0
        self._failures: list[str] = []

    async def open(self) -> dict[str, str]:
        app = self._gitlab.app()
        app.middlewares.insert(0, self._counting("gitlab"))
        server = self._gitlab_server = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await server.setup()
        await web.TCPSite(server, "127.0.0.1", 0).start()
        self._gitlab_world.base_url = f"http://127.0.0.1:{server.addresses[0][1]}"
        self._sessions = [_session(f"127.1.0.{number}") for number in range(1, ADDRESSES + 1)]
        self._publishing = asyncio.create_task(self._publish())
        return {"github_url": await self._github.start(), "gitlab_url": self._gitlab_world.base_url}

    async def aclose(self) -> None:
        tasks = [*self._machines, *([self._publishing] if self._publishing is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for session in self._sessions:
            await session.close()
        await self._github.aclose()
        if self._gitlab_server is not None:
            await self._gitlab_server.cleanup()

    async def hook(self, *, url: str) -> None:
        """Send the webhooks of both forges there."""
        secret = self._webhook_secret
        self._github_world.add_hook(None, f"{url}/webhooks/github", secret=secret.encode(), now=time.time())
        self._gitlab.webhooks.add(f"{url}/webhooks/gitlab", token=secret)

    async def submit(self, *, forge: str, jobs: int) -> None:
        """Queue jobs; their webhooks go to the hook at once."""
        labels = GITHUB_LABELS if forge == "github" else GITLAB_LABELS
        repo, submit = (GITHUB_REPO, self._github.submit) if forge == "github" else (GITLAB_REPO, self._gitlab.submit)
        for first in range(0, jobs, JOBS_PER_RUN):
            specs = tuple(
                JobSpec(key=f"job-{number}", name=f"test ({number})", labels=labels)
                for number in range(first, min(jobs, first + JOBS_PER_RUN))
            )
            submit(RunSpec(repo=repo, workflow="ci", jobs=specs))

    async def boot(self, *, machines: list[dict[str, Any]], daemon_url: str, job_s: float) -> None:
        """Bring launched machines to life."""
        for launched in machines:
            self._booted += 1
            machine = Machine(
                launched,
                session=self._sessions[self._booted % ADDRESSES],
                daemon_url=daemon_url,
                gates=self.gates,
                job_s=job_s,
                make_runner=self._make_runner,
            )
            task = asyncio.create_task(machine.live())
            self._machines.add(task)
            task.add_done_callback(self._ended)

    async def open_gate(self, *, name: str) -> None:
        """Let the runners take their jobs ("take") or report their ends ("finish")."""
        getattr(self.gates, name).set()

    async def state(self) -> dict[str, Any]:
        """Jobs by how they stand, the most runners that one of them had, calls by kind, machines at the gates."""
        records, outcomes = self._github_world.job_records(), self._gitlab_world.outcomes()
        served = [len(record.runner_names) for record in records] + [len(outcome.served_by) for outcome in outcomes]
        succeeded = sum(record.conclusion == "success" for record in records)
        succeeded += sum(outcome.status == "success" for outcome in outcomes)
        return {
            "jobs": len(served),
            "succeeded": succeeded,
            "most_runners_of_a_job": max(served, default=0),
            "runners_left": len(self._github_world.runners) + len(self._gitlab_world.list_runners()),
            "machines": len(self._machines),
            "at_take": self.gates.at_take,
            "at_finish": self.gates.at_finish,
            "failures": self._failures[:3],
        }

    async def counted(self) -> dict[str, Any]:
        """Requests by forge and kind, and when registrations were asked for (monotonic seconds)."""
        return {"calls": self.calls, "registered_at": self.registered_at}

    def _make_runner(self, assignment: dict[str, Any]) -> RunnerSide:
        if assignment["kind"] == "github":
            return GitHubRunner(self._github_world, GITHUB_REPO.partition("/")[0], assignment["runner_name"])
        return GitLabRunner(self._gitlab_world, assignment["secret"])

    def _ended(self, machine: asyncio.Task[None]) -> None:
        self._machines.discard(machine)
        if not machine.cancelled() and (error := machine.exception()) is not None:
            self._failures.append(f"{type(error).__name__}: {error}")

    async def _publish(self) -> None:
        """Runners change the worlds directly; the faces send what that caused."""
        while True:
            await asyncio.sleep(PUBLISH_S)
            self._gitlab.settle()
            await self._github.webhooks_settled()

    def _counting(self, forge: str) -> Any:
        @web.middleware
        async def count(request: web.Request, handler: _Handler) -> web.StreamResponse:
            resource = request.match_info.route.resource
            kind = kind_of(request.method, resource.canonical if resource is not None else request.path)
            self.calls[forge][kind] += 1
            if kind == "register":
                self.registered_at.append(time.monotonic())
            return await handler(request)

        return count


def _session(address: str) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, local_addr=(address, 0))
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60))


async def start(*, webhook_secret: str, token: str) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
    forges = Forges(webhook_secret=webhook_secret, token=token)
    urls = await forges.open()
    handlers = {name: getattr(forges, name) for name in ("hook", "submit", "boot", "open_gate", "state", "counted")}
    return urls, handlers, forges.aclose
