"""GitHub's REST when it misbehaves: garbage, silence, redirects, refusals. A scripted server stands for GitHub."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.spi import (
    ForgeError,
    ForgeName,
    ForgeOutcomeUnknown,
    ForgeRefused,
    ForgeSettings,
    ForgeUnauthorized,
    ForgeUnavailable,
    JobStatus,
    RateLimited,
    RunnerBusy,
    RunnerId,
    RunnerRef,
    Scope,
    Secret,
    Surroundings,
)
from runners.github import GitHubForge, create
from runners.github_auth import TokenAuth
from runners.github_budgets import Budgets
from runners.github_errors import Purpose
from runners.github_rest import Rest

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

READ = Purpose(does="read", permission="Reading: read")
WRITE = Purpose(does="write", permission="Writing: write", is_write=True)
TOKEN = "ghp_never_shown"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """The base URL of a server that answers everything with the handler."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def forge_at(handler: Handler) -> AsyncIterator[GitHubForge]:
    async with serving(handler) as url:
        forge = create(
            ForgeSettings(
                name=ForgeName("gh"),
                kind="github",
                url="",
                api_url=url,
                credentials={"token": Secret(TOKEN)},
                webhook_secrets=(),
                scopes=(Scope("acme"),),
                poll=timedelta(seconds=60),
            ),
            Surroundings(deployment="test", runner_prefix="ci-", clock=SystemClock(), gates=Calls()),
        )
        try:
            yield forge
        finally:
            await forge.aclose()


@asynccontextmanager
async def rest_at(handler: Handler, *, timeout_s: float = 5) -> AsyncIterator[Rest]:
    async with serving(handler) as url:
        rest = Rest(api_url=url, auth=TokenAuth(Secret(TOKEN)), budgets=Budgets(SystemClock()), timeout_s=timeout_s)
        try:
            yield rest
        finally:
            await rest.aclose()


def answering(status: int, body: Any = None, *, text: str | None = None, **headers: str) -> Handler:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def handle(_: web.Request) -> web.Response:
        content = text if text is not None else json.dumps(body)
        return web.Response(status=status, text=content, headers=named)

    return handle


async def silent(_: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


async def dropping(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def register(forge: GitHubForge) -> Awaitable[Any]:
    return forge.register(scope=Scope("acme"), group="", name="ci-1", labels=("linux",))


# ---------------------------------------------------------------------- no usable answer


@pytest.mark.parametrize(
    "text",
    ["", "<html>Unicorn!</html>", "[]", "null", "7", '{"runners": 7}', '{"runners": [{}]}', '{"runners": [', "\x00"],
)
async def test_garbage_for_a_listing_is_no_answer(text: str) -> None:
    async with forge_at(answering(200, text=text)) as forge:
        with pytest.raises(ForgeUnavailable):
            await forge.list_runners()


@pytest.mark.parametrize("text", ["", "<html>", "{}", '{"runner": {"id": 1, "name": "x"}}'])
async def test_garbage_for_a_registration_leaves_its_outcome_unknown(text: str) -> None:
    async with forge_at(answering(201, text=text)) as forge:
        with pytest.raises(ForgeOutcomeUnknown):
            await register(forge)


@pytest.mark.parametrize("handler", [silent, dropping, answering(502, text="<html>Unicorn!</html>"), answering(500)])
async def test_write_without_an_answer_has_an_unknown_outcome(handler: Handler) -> None:
    async with rest_at(handler, timeout_s=0.2) as rest:
        with pytest.raises(ForgeOutcomeUnknown):
            await rest.call("POST", "/x", account="acme", purpose=WRITE, body={})


@pytest.mark.parametrize("handler", [silent, dropping, answering(503, text="busy")])
async def test_read_without_an_answer_is_unavailable(handler: Handler) -> None:
    async with rest_at(handler, timeout_s=0.2) as rest:
        with pytest.raises(ForgeUnavailable):
            await rest.call("GET", "/x", account="acme", purpose=READ)


# ---------------------------------------------------------------------- where our credentials go


async def test_redirects_within_the_host_are_followed_with_the_same_method_and_body() -> None:
    async def handle(request: web.Request) -> web.Response:
        if request.path == "/old":
            return web.Response(status=301, headers={"Location": "/new"})
        return web.json_response({"method": request.method, "body": await request.json(), "path": request.path})

    async with rest_at(handle) as rest:
        answer = await rest.call("POST", "/old", account="acme", purpose=WRITE, body={"a": 1})

    assert json.loads(answer.body) == {"method": "POST", "body": {"a": 1}, "path": "/new"}


async def test_credentials_are_sent_to_no_other_host() -> None:
    heard: list[str] = []

    async def overhear(request: web.Request) -> web.Response:
        heard.append(request.headers.get("Authorization", ""))
        return web.json_response([])

    async with serving(overhear) as elsewhere:
        for answer in (
            answering(307, Location=f"{elsewhere}/x"),
            answering(200, [], Link=f'<{elsewhere}/x?page=2>; rel="next"'),
        ):
            async with rest_at(answer) as rest:
                with pytest.raises(ForgeUnavailable, match="another host"):
                    await rest.pages("/x", lambda read: read.body, account="acme", purpose=READ)

    assert heard == []


async def test_redirect_in_a_circle_ends() -> None:
    async with rest_at(answering(302, Location="/again")) as rest:
        with pytest.raises(ForgeUnavailable, match="too often"):
            await rest.call("GET", "/x", account="acme", purpose=READ)


async def test_listing_that_does_not_end_is_no_listing() -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.json_response([], headers={"Link": f'<{request.url}>; rel="next"'})

    async with rest_at(handle) as rest:
        with pytest.raises(ForgeUnavailable, match="does not end"):
            await rest.pages("/x", lambda read: read.body, account="acme", purpose=READ)


async def test_requests_carry_the_documented_headers() -> None:
    async def handle(request: web.Request) -> web.Response:
        names = ("Accept", "X-GitHub-Api-Version", "Authorization")
        return web.json_response(
            {name: request.headers[name] for name in names} | {"ua": request.headers["User-Agent"]}
        )

    async with rest_at(handle) as rest:
        answer = await rest.call("GET", "/x", account="acme", purpose=READ)

    assert json.loads(answer.body) == {
        "Accept": "application/vnd.github+json",
        "X-GitHub-Api-Version": "2022-11-28",
        "Authorization": f"Bearer {TOKEN}",
        "ua": "ci-runner-autoscaler",
    }


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("status", "message", "error", "text"),
    [
        (401, "Bad credentials", ForgeUnauthorized, "Renew the token"),
        (403, "Resource not accessible by integration", ForgeUnauthorized, "Self-hosted runners: write"),
        (404, "Not Found", ForgeUnauthorized, "Self-hosted runners: write"),
        (422, "Invalid labels", ForgeRefused, "Invalid labels"),
        (418, "", ForgeRefused, "418"),
    ],
)
async def test_refused_registration_says_what_to_do(
    status: int, message: str, error: type[ForgeError], text: str
) -> None:
    async with forge_at(answering(status, {"message": message})) as forge:
        with pytest.raises(error, match=text) as refused:
            await register(forge)

    assert TOKEN not in str(refused.value)


async def test_details_of_a_validation_error_are_told() -> None:
    body = {"message": "Validation Failed", "errors": [{"message": "labels too long"}, "and more", {"code": "missing"}]}
    async with forge_at(answering(422, body)) as forge:
        with pytest.raises(ForgeRefused, match="Validation Failed; labels too long; and more; missing"):
            await register(forge)


async def test_busy_runner_is_an_answer() -> None:
    ref = RunnerRef(scope=Scope("acme"), runner_id=RunnerId("7"), name="ci-7")
    async with forge_at(answering(422, {"message": "is still running a job"})) as forge:
        with pytest.raises(RunnerBusy):
            await forge.deregister(ref)


@pytest.mark.parametrize(
    ("status", "headers", "message", "seconds"),
    [
        (403, {"retry_after": "17"}, "slow down", 17),
        (429, {"retry_after": "0"}, "", 1),
        (429, {}, "", 60),
        (403, {}, "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.", 60),
        (403, {"retry_after": "soon"}, "API rate limit exceeded for user ID 1.", 60),
        (429, {"retry_after": "nan"}, "", 60),
    ],
)
async def test_rate_limits_are_told_with_their_time(
    status: int, headers: dict[str, str], message: str, seconds: float
) -> None:
    async with forge_at(answering(status, {"message": message}, **headers)) as forge:
        with pytest.raises(RateLimited) as refused:
            await forge.list_runners()

    assert refused.value.retry_after_s == seconds


async def test_permission_error_with_budget_left_is_no_rate_limit() -> None:
    headers = {"x_ratelimit_limit": "5000", "x_ratelimit_remaining": "4999", "x_ratelimit_reset": "9999999999"}
    async with forge_at(answering(403, {"message": "Resource not accessible"}, **headers)) as forge:
        with pytest.raises(ForgeUnauthorized):
            await forge.list_runners()


@pytest.mark.parametrize("value", ["", "x", "-5", "nan", "inf", "1e400"])
async def test_nonsense_in_rate_headers_is_ignored(value: str) -> None:
    headers = {"x_ratelimit_limit": value, "x_ratelimit_remaining": value, "x_ratelimit_reset": value}
    async with forge_at(answering(200, {"total_count": 0, "runners": []}, **headers)) as forge:
        assert list(await forge.list_runners()) == []
        assert list(await forge.list_runners()) == []


# ---------------------------------------------------------------------- jobs


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("queued", JobStatus.QUEUED),
        ("in_progress", JobStatus.RUNNING),
        ("completed", JobStatus.DONE),
        ("waiting", JobStatus.CREATED),
        ("pending", JobStatus.CREATED),
        ("requested", JobStatus.CREATED),
        ("a new word", JobStatus.CREATED),
    ],
)
async def test_words_for_a_jobs_status(word: str, status: JobStatus) -> None:
    async with forge_at(answering(200, {"id": 1, "run_id": 2, "status": word, "labels": []})) as forge:
        assert (await forge.get_job("acme/web", "1")).status is status


@pytest.mark.parametrize(
    "repo", ["acme", "acme/", "/web", "acme/..", "acme/.", "acme/a/b", "acme/a?b", "acme/a#b", "a b/c"]
)
async def test_what_could_change_a_path_is_no_repo(repo: str) -> None:
    async with forge_at(answering(200)) as forge:
        assert forge.scope_of(repo) is None


async def test_scope_is_found_without_regard_to_case() -> None:
    async with forge_at(answering(200)) as forge:
        assert forge.scope_of("ACME/Web.js") == "acme"
