"""Simulated machines: each speaks docs/agent-protocol.md to the daemon, and runs its one job in a world.

The runner's side talks to the world directly, so that the faces count what the daemon asks of them and nothing else.
"""

import asyncio
import hashlib
import itertools
import secrets
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

import aiohttp

from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.gitlab_world import GitLabWorld

RETRY_S = 0.1
LOOK_S = 0.1


class RunnerSide(Protocol):
    """What a runner program does at its forge, reduced to one job."""

    def take(self) -> bool:
        """Whether it has a job now."""
        ...

    def finish(self) -> None: ...


class GitHubRunner:
    def __init__(self, world: GitHubWorld, scope: str, name: str) -> None:
        self._world = world
        self._id = world.runners_of(scope, name=name)[0].id
        world.connect(self._id, time.time())

    def take(self) -> bool:
        return self._world.take_job(self._id, time.time()) is not None

    def finish(self) -> None:
        self._world.complete(self._id, "success", time.time())

    def end(self, conclusion: Literal["failure", "cancelled"]) -> None:
        """It was told to stop in the middle."""
        self._world.complete(self._id, conclusion, time.time())


class GitLabRunner:
    def __init__(self, world: GitLabWorld, token: str) -> None:
        self._world = world
        self._token = token
        self._system_id = secrets.token_hex(6)
        self._job_token = ""

    def take(self) -> bool:
        offer = self._world.request_job(self._token, self._system_id, time.time())
        if offer is None:
            return False
        self._job_token = offer.token
        self._world.update_job(self._job_token, "running", time.time())
        return True

    def finish(self) -> None:
        self._world.update_job(self._job_token, "success", time.time())

    def end(self, reason: str) -> None:
        """It was told to stop in the middle."""
        self._world.update_job(self._job_token, "failed", time.time(), failure_reason=reason)


class Gates:
    """Closed gates hold every runner back before it takes its job, or before it reports the end."""

    def __init__(self) -> None:
        self.take = asyncio.Event()
        self.finish = asyncio.Event()
        self.at_take = 0
        self.at_finish = 0


class Machine:
    """One machine's life. `make_runner(answer)` makes the runner for an assignment."""

    def __init__(
        self,
        launched: dict[str, Any],
        *,
        session: aiohttp.ClientSession,
        daemon_url: str,
        gates: Gates,
        job_s: float,
        make_runner: Callable[[dict[str, Any]], RunnerSide],
    ) -> None:
        self._launched = launched
        self._session = session
        self._url = f"{daemon_url}/agent/v1"
        self._gates = gates
        self._job_s = job_s
        self._make_runner = make_runner
        self._key = secrets.token_bytes(32)
        self._seq = itertools.count(1)
        self._instance = ""

    async def live(self) -> None:
        self._instance = await self._say_hello()
        assignment = await self._wait_for_assignment()
        if assignment is None:
            await self._tell(("ending", {"cause": "not_needed"}))
            return
        runner = self._make_runner(assignment)
        await self._tell(("assignment_received", {}), ("runner_started", {}))
        self._gates.at_take += 1
        await self._gates.take.wait()
        while not runner.take():
            await asyncio.sleep(LOOK_S)
        self._gates.at_finish += 1
        await self._gates.finish.wait()
        await asyncio.sleep(self._job_s)
        runner.finish()
        await self._tell(
            ("job_completed", {}),
            ("runner_exited", {"exit_code": "0", "ran_job": "true"}),
            ("ending", {"cause": "job_done"}),
        )

    async def _say_hello(self) -> str:
        hello = {
            "provider": "here",
            "batch": self._launched["batch"],
            "claim": hashlib.sha256(self._key).hexdigest(),
            "evidence": {"provider_id": self._launched["provider_id"]},
            "agent": {"version": "1"},
            "runner": None,
        }
        while True:
            status, body = await self._post("hello", hello)
            if status == 200:
                return str(body["instance"])
            if status not in (429, 503):
                raise RuntimeError(f"hello was answered {status}")
            await asyncio.sleep(RETRY_S)

    async def _wait_for_assignment(self) -> dict[str, Any] | None:
        while True:
            status, body = await self._post("assignment", {"instance": self._instance})
            if status == 200:
                return body
            if status != 204:
                return None

    async def _tell(self, *events: tuple[str, dict[str, str]]) -> None:
        numbered = [
            {"seq": next(self._seq), "at": time.time(), "kind": kind, "detail": detail} for kind, detail in events
        ]
        await self._post("events", {"instance": self._instance, "events": numbered})

    async def _post(self, call: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self._key.hex()}"}
        async with self._session.post(f"{self._url}/{call}", json=body, headers=headers) as answer:
            return answer.status, await answer.json() if answer.content_length else {}
