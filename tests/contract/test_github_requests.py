"""What the GitHub adapter sends, checked against GitHub's own API description by way of a recording proxy."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from openapi_core import OpenAPI
from openapi_core.testing import MockRequest

from runners.github import GitHubForge
from tests.contract.forge_driver import failed_run, register
from tests.contract.github_driver import TOKEN, GitHubDriver, sandbox
from tests.shared import require_shared

# Documented on docs.github.com, but not in our cut of the description; only token users need it.
NOT_IN_THE_CUT = "/orgs/acme/repos"


@dataclass
class RecordingProxy:
    """Passes everything on to `target` and remembers the requests."""

    target: str = ""
    requests: list[MockRequest] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append(
            MockRequest(
                "https://api.github.com",
                request.method.lower(),
                request.path,
                args=dict(request.query),
                data=body or None,
                headers=dict(request.headers),
                content_type=request.content_type,
            )
        )
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                self.target + request.raw_path,
                data=body,
                headers=request.headers,
                allow_redirects=False,
            ) as answer,
        ):
            kept = {name: value for name, value in answer.headers.items() if name.lower() != "content-length"}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)


@asynccontextmanager
async def recorded(token: str) -> AsyncIterator[tuple[GitHubDriver, RecordingProxy]]:
    """A driver whose adapter talks through the proxy."""
    async with sandbox() as driver:
        proxy = RecordingProxy(target=driver.api_url)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        driver.api_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        await driver.forge.aclose()
        driver.forge = driver.make_forge(token=token, runner_group="Builders")
        try:
            yield driver, proxy
        finally:
            await driver.forge.aclose()
            await runner.cleanup()


async def use_everything(driver: GitHubDriver, forge: GitHubForge) -> None:
    driver.face.world.add_runner_group("acme", "Builders")
    driver.receiver.status = 500
    lost = [await failed_run(driver, names) for names in (("build",), ("a", "b"))]
    for run_id, job_ids in lost:
        await forge.requeue(driver.repo, run_id, job_ids)
    await driver.submit(driver.repo, jobs=[f"{number:03}" for number in range(120)])
    await forge.cancel_run(
        driver.repo, lost[0][0], [job.forge_job_id for job in (await forge.list_jobs({driver.repo})).jobs]
    )
    jobs = (await forge.list_jobs({driver.repo})).jobs
    await forge.list_jobs({driver.repo})
    await forge.get_job(driver.repo, jobs[0].forge_job_id)
    registration = await register(driver, "last")
    await forge.list_runners()
    await forge.deregister(registration.ref)
    await driver.received()
    await forge.recover_deliveries(datetime.now(UTC) - timedelta(hours=1))


@pytest.mark.parametrize("token", ["", TOKEN])
async def test_every_request_is_one_that_github_describes(token: str) -> None:
    description: dict[str, Any] = json.loads((require_shared() / "fixtures/github/openapi-subset.json").read_text())
    openapi = OpenAPI.from_dict(description)
    async with recorded(token) as (driver, proxy):
        if token:
            driver.face.world.hooks.clear()
            driver.face.world.add_hook("acme", driver.receiver.url, secret=b"s", now=datetime.now(UTC).timestamp())
        await use_everything(driver, driver.forge)

    described = [request for request in proxy.requests if request.path != NOT_IN_THE_CUT]
    for request in described:
        openapi.validate_request(request)
    sent = {f"{request.method} {_shape(request.path)}" for request in described}
    assert sent >= {
        "get /repos/acme/web/actions/runs",
        "get /repos/acme/web/actions/runs/N/jobs",
        "get /repos/acme/web/actions/jobs/N",
        "post /repos/acme/web/actions/jobs/N/rerun",
        "post /repos/acme/web/actions/runs/N/cancel",
        "post /repos/acme/web/actions/runs/N/rerun-failed-jobs",
        "get /orgs/acme/actions/runner-groups",
        "post /orgs/acme/actions/runners/generate-jitconfig",
        "get /orgs/acme/actions/runners",
        "delete /orgs/acme/actions/runners/N",
    }
    assert sent >= (
        {"get /orgs/acme/hooks", "post /orgs/acme/hooks/N/deliveries/N/attempts"}
        if token
        else {"post /app/installations/N/access_tokens", "post /app/hook/deliveries/N/attempts"}
    )


def _shape(path: str) -> str:
    return "/".join("N" if part.isdigit() else part for part in path.split("/"))
