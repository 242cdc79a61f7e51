"""The broker that the stand-in runner talks to: session, long poll for messages, lease, result.

A protocol of our own (the real one is not public), with the real one's shape and outcomes (specs C2, C6, B8):

    POST   /_broker/{runner}/session            201 | 404 registration deleted | 409 another session
    GET    /_broker/{runner}/message?status=    200 {"type": "job" | "cancel", ...} | 202 nothing yet | 404 deleted
    POST   /_broker/{runner}/renew              200 {"lockedUntil"} | 404 the job is lost
    POST   /_broker/{runner}/complete           204 | 404 the job is lost
    DELETE /_broker/{runner}/session            204
"""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable

from aiohttp import web

from autoscaler.sandbox.github_http import answer, integer, json_body
from autoscaler.sandbox.github_model import Conclusion, GitHubError, Job, Json, Step
from autoscaler.sandbox.github_payloads import iso
from autoscaler.sandbox.github_world import GitHubWorld

LONG_POLL_S = 50.0
_CONCLUSIONS: dict[str, Conclusion] = {"success": "success", "failure": "failure", "cancelled": "cancelled"}


class Broker:
    """`changed()` says the world moved; it must call `wake` in turn, so that waiting polls look again."""

    def __init__(
        self,
        world: GitHubWorld,
        *,
        clock: Callable[[], float],
        changed: Callable[[], None],
        long_poll_s: float = LONG_POLL_S,
        minimum_version: str = "0",
    ) -> None:
        self._world = world
        self._clock = clock
        self._changed = changed
        self._long_poll_s = long_poll_s
        self._minimum_version = minimum_version
        self._key = secrets.token_bytes(32)
        self._waiters: dict[asyncio.Future[None], tuple[int, bool]] = {}
        self._closing = False

    def routes(self) -> list[web.RouteDef]:
        base = "/_broker/{runner_id}"
        return [
            web.post(base + "/session", self.open_session),
            web.delete(base + "/session", self.close_session),
            web.get(base + "/message", self.next_message),
            web.post(base + "/renew", self.renew),
            web.post(base + "/complete", self.complete),
        ]

    def seal(self, runner_id: int) -> str:
        """The secret of one runner, which its JIT configuration carries."""
        return hmac.new(self._key, str(runner_id).encode(), hashlib.sha256).hexdigest()

    def wake(self) -> None:
        """Lets those polls look again that would be answered; the others sleep on, however many they are."""
        for waiter, (runner_id, busy) in self._waiters.items():
            if not waiter.done() and (self._closing or self._world.has_message(runner_id, busy=busy)):
                waiter.set_result(None)

    def close(self) -> None:
        """Ends the waiting polls."""
        self._closing = True
        self.wake()

    async def open_session(self, request: web.Request) -> web.Response:
        runner_id = self._authenticated(request)
        body = await json_body(request)
        version = str(body.get("version", ""))
        if _numbers(version) < _numbers(self._minimum_version):
            raise GitHubError(400, f"RunnerVersionTooOld: Runner version v{version} is deprecated")
        self._world.connect(runner_id, self._clock(), version=version)
        self._changed()
        return answer(201, {"sessionId": str(runner_id)})

    async def close_session(self, request: web.Request) -> web.Response:
        self._world.disconnect(self._authenticated(request), self._clock())
        self._changed()
        return web.Response(status=204)

    async def next_message(self, request: web.Request) -> web.Response:
        runner_id = self._authenticated(request)
        busy = request.query.get("status") == "Busy"
        loop = asyncio.get_running_loop()
        until = loop.time() + self._long_poll_s
        # A poll whose client is gone must not take a job for it.
        while not self._closing and request.transport is not None and not request.transport.is_closing():
            message = self._cancellation(runner_id) if busy else self._job(runner_id)
            if message is not None:
                return answer(200, message)
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters[waiter] = (runner_id, busy)
            try:
                async with asyncio.timeout_at(until):
                    await waiter
            except TimeoutError:
                break
            finally:
                del self._waiters[waiter]
        return web.Response(status=202)

    async def renew(self, request: web.Request) -> web.Response:
        until = self._world.renew(self._authenticated(request), self._clock())
        return answer(200, {"lockedUntil": iso(until)})

    async def complete(self, request: web.Request) -> web.Response:
        runner_id = self._authenticated(request)
        body = await json_body(request)
        conclusion = _CONCLUSIONS.get(str(body.get("conclusion")))
        if conclusion is None:
            raise GitHubError(400, "conclusion is success, failure or cancelled")
        self._world.complete(
            runner_id,
            conclusion,
            self._clock(),
            steps=tuple(_step(row) for row in body.get("steps", [])),
            log=str(body.get("log", "")),
            annotations=tuple(str(text) for text in body.get("annotations", [])),
        )
        self._changed()
        return web.Response(status=204)

    def _authenticated(self, request: web.Request) -> int:
        runner_id = integer(request, "runner_id")
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, self.seal(runner_id).encode()):
            raise GitHubError(401, "Unauthorized")
        self._world.runner(runner_id)
        return runner_id

    def _cancellation(self, runner_id: int) -> Json | None:
        return {"type": "cancel"} if self._world.cancel_asked(runner_id) else None

    def _job(self, runner_id: int) -> Json | None:
        job = self._world.take_job(runner_id, self._clock())
        if job is None:
            return None
        self._changed()
        return {"type": "job", "job": self._job_message(job)}

    def _job_message(self, job: Job) -> Json:
        run = self._world.runs[job.run_id]
        return {
            "id": job.id,
            "key": job.spec.key,
            "name": job.spec.name,
            "steps": [{"name": f"Run {job.spec.script[0]}", "script": list(job.spec.script)}],
            "environment": {
                "CI": "true",
                "GITHUB_ACTIONS": "true",
                "GITHUB_RUN_ID": str(run.id),
                "GITHUB_RUN_NUMBER": str(run.number),
                "GITHUB_RUN_ATTEMPT": str(job.attempt),
                "GITHUB_REPOSITORY": job.repo,
                "GITHUB_WORKFLOW": run.spec.workflow,
                "GITHUB_SHA": run.head_sha,
                "GITHUB_REF": f"refs/heads/{run.spec.ref}",
                "GITHUB_JOB": job.spec.key,
                "GITHUB_EVENT_NAME": "push",
                "RUNNER_NAME": str(job.runner_name),
            },
        }


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _step(row: Json) -> Step:
    return Step(
        name=str(row["name"]),
        conclusion=str(row["conclusion"]),
        number=int(row["number"]),
        started_at=float(row["started_at"]),
        completed_at=float(row["completed_at"]),
    )
