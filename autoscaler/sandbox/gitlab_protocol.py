"""What a gitlab-runner calls on the sandbox's GitLab: jobs/request, job updates, traces, verify (spec section 4).

Strict on purpose, so that a real gitlab-runner would work here and a sloppy one would not: tokens in header and body
must agree, bodies are JSON by content type, Content-Range must match the bytes.
"""

import asyncio
import contextlib
import re

from aiohttp import web

from autoscaler.sandbox.gitlab_access import json_body
from autoscaler.sandbox.gitlab_model import Contact, GitLabRefusal
from autoscaler.sandbox.gitlab_site import Site

MAX_PATCH = 1 << 20
_RANGE = re.compile(r"(\d+)-(\d+)", re.ASCII)


class ProtocolRoutes:
    """Handlers over one Site; `add_to` registers them."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Register every route under /api/v4."""
        router.add_post("/api/v4/jobs/request", self.request_job)
        router.add_put(r"/api/v4/jobs/{job:\d+}", self.update_job)
        router.add_patch(r"/api/v4/jobs/{job:\d+}/trace", self.append_trace)
        router.add_post("/api/v4/runners/verify", self.verify)
        router.add_post("/api/v4/runners", self.register)
        router.add_delete("/api/v4/runners", self.unregister)
        router.add_delete("/api/v4/runners/managers", self.forget_machine)
        router.add_get("/api/v4/runners/router/discovery", self.discovery)

    async def request_job(self, request: web.Request) -> web.Response:
        """POST /jobs/request: 201 with a job, or 204 with X-GitLab-Last-Update, held open when long polling is on."""
        site, body = self._site, await json_body(request)
        token = _token(request, body, "RUNNER-TOKEN")
        limit = site.limits.requests_per_minute
        if limit is not None and site.windows.count("jobs_request", token) > limit:
            raise GitLabRefusal(429, "429 Too Many Requests")
        site.world.runner_of(token)
        if body.get("last_update") == site.world.queue_version() and site.limits.long_poll_s > 0:
            changed = site.changed
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), site.limits.long_poll_s)
            if request.transport is None or request.transport.is_closing():
                raise GitLabRefusal(408, "408 Request Timeout")
        now = site.clock()
        offer = site.world.request_job(token, _text(body, "system_id"), now, contact=_contact(body))
        last_update = {"X-GitLab-Last-Update": site.world.queue_version()}
        if offer is None:
            return web.Response(status=204, headers=last_update)
        return web.json_response(site.world.handout(offer, now), status=201, headers=last_update)

    async def update_job(self, request: web.Request) -> web.Response:
        """PUT /jobs/:id: the answer's status is also its body, as text."""
        site, body = self._site, await json_body(request)
        token = _token(request, body, "JOB-TOKEN")
        output = body.get("output")
        output = output if isinstance(output, dict) else {}
        exit_code, bytesize = body.get("exit_code"), output.get("bytesize")
        checksum = output.get("checksum") or body.get("checksum")
        answer = site.world.update_job(
            token,
            _text(body, "state"),
            site.clock(),
            job_id=int(request.match_info["job"]),
            failure_reason=_text(body, "failure_reason") or None,
            exit_code=exit_code if isinstance(exit_code, int) else None,
            checksum=checksum if isinstance(checksum, str) and checksum else None,
            bytesize=bytesize if isinstance(bytesize, int) else None,
        )
        headers = {"Job-Status": str(answer.job_status)} | self._interval()
        return web.Response(
            text=str(answer.status), status=answer.status, headers=headers, content_type="application/json"
        )

    async def append_trace(self, request: web.Request) -> web.Response:
        """PATCH /jobs/:id/trace: 202, or 416 with the size to go on from; 400 when the range is not the body's."""
        token = request.headers.get("JOB-TOKEN", "")
        if request.content_type != "text/plain":
            raise GitLabRefusal(415, f"The provided content-type '{request.content_type}' is not supported.")
        match = _RANGE.fullmatch(request.headers.get("Content-Range", ""))
        if match is None:
            raise GitLabRefusal(400, "400 Bad request - Missing or invalid header Content-Range")
        start, last, chunk = int(match[1]), int(match[2]), await request.read()
        if last - start + 1 != len(chunk) or len(chunk) > MAX_PATCH:
            raise GitLabRefusal(400, "400 Bad request - Content-Range does not match the body")
        job_id = int(request.match_info["job"])
        answer = self._site.world.append_trace(token, start, chunk, self._site.clock(), job_id=job_id)
        headers = {"Job-Status": str(answer.job_status), "Range": f"0-{answer.size}"} | self._interval()
        return web.Response(status=answer.status, headers=headers)

    def _interval(self) -> dict[str, str]:
        return {"X-GitLab-Trace-Update-Interval": str(self._site.limits.trace_interval_s)}

    async def verify(self, request: web.Request) -> web.Response:
        """POST /runners/verify: 200 with id and token; a contact that takes no job."""
        body = await json_body(request)
        token = _token(request, body, "RUNNER-TOKEN")
        system_id = _text(body, "system_id")
        runner = self._site.world.verify(token, system_id, self._site.clock(), contact=_contact(body))
        return web.json_response({"id": runner.id, "token": runner.token, "token_expires_at": None})

    async def register(self, request: web.Request) -> web.Response:
        """POST /runners with a registration token: gone since GitLab 17.0; runners are made by POST /user/runners."""
        return web.json_response({"message": "410 Gone"}, status=410)

    async def unregister(self, request: web.Request) -> web.Response:
        """DELETE /runners with the runner's own token."""
        body = await json_body(request)
        runner = self._site.world.runner_of(_token(request, body, "RUNNER-TOKEN"))
        self._site.world.delete_runner(runner.id)
        return web.Response(status=204)

    async def forget_machine(self, request: web.Request) -> web.Response:
        """DELETE /runners/managers with token and system_id."""
        body = await json_body(request)
        self._site.world.forget_machine(_token(request, body, "RUNNER-TOKEN"), _text(body, "system_id"))
        return web.Response(status=204)

    async def discovery(self, request: web.Request) -> web.Response:
        """GET /runners/router/discovery: there is no job router here."""
        return web.json_response({"message": "501 Not Implemented"}, status=501)


def _text(body: dict[str, object], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise GitLabRefusal(400, f"400 Bad request - {name} is invalid")
    return value


def _token(request: web.Request, body: dict[str, object], header: str) -> str:
    """The token of the body, or of the header for older runners; GitLabRefusal 403 when they differ or lack."""
    stated, presented = _text(body, "token"), request.headers.get(header, "")
    if stated and presented and stated != presented:
        raise GitLabRefusal(403, "403 Forbidden")
    if not stated and not presented:
        raise GitLabRefusal(400, "400 Bad request - token is missing")
    return stated or presented


def _contact(body: dict[str, object]) -> Contact:
    stated = body.get("info")
    if not isinstance(stated, dict):
        return Contact(two_phase=False, cancel_gracefully=False)
    features = stated.get("features")
    features = features if isinstance(features, dict) else {}
    return Contact(
        version=str(stated.get("version", "")),
        revision=str(stated.get("revision", "")),
        platform=str(stated.get("platform", "")),
        architecture=str(stated.get("architecture", "")),
        two_phase=features.get("two_phase_job_commit") is True,
        cancel_gracefully=features.get("cancel_gracefully") is True,
    )
