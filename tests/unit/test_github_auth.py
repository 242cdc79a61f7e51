"""Signing in as a GitHub App: installations, tokens and their renewal. A scripted server stands for GitHub."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from aiohttp import web

from autoscaler.calls import Calls
from autoscaler.sandbox.github_auth import AppIdentity
from autoscaler.spi import ForgeError, ForgeUnauthorized, ForgeUnavailable, RateLimited, Scope, Secret
from runners.github_auth import AppAuthenticator
from runners.github_settings import AppCredentials

IDENTITY, KEY = AppIdentity.generate()


class MovableClock:
    """Now, plus what a test added."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead.total_seconds()

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("signing in never waits")


@dataclass
class Server:
    """Answers as GitHub does for Apps, and counts. `refusal` is (status, body, headers) for everything."""

    url: str = ""
    calls: Counter[str] = field(default_factory=Counter)
    bearers: list[str] = field(default_factory=list)
    refusal: tuple[int, str, dict[str, str]] | None = None

    async def handle(self, request: web.Request) -> web.Response:
        self.calls[request.path] += 1
        self.bearers.append(request.headers["Authorization"].removeprefix("Bearer "))
        if self.refusal is not None:
            status, text, headers = self.refusal
            return web.Response(status=status, text=text, headers=headers, content_type="application/json")
        if request.path.endswith("/installation"):
            return web.json_response({"id": 7, "app_id": 1})
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        token = f"ghs_{sum(self.calls.values())}"
        return web.json_response({"token": token, "expires_at": f"{expires_at:%Y-%m-%dT%H:%M:%SZ}"}, status=201)


@asynccontextmanager
async def signing_in(
    *, scopes: Sequence[str] = ("acme",), installation_id: int | None = None, key: str = KEY
) -> AsyncIterator[tuple[AppAuthenticator, Server, MovableClock]]:
    server, clock, calls = Server(), MovableClock(), Calls()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    auth = AppAuthenticator(
        AppCredentials(app_id="1234567", private_key=Secret(key), installation_id=installation_id),
        api_url=server.url,
        scopes=[Scope(scope) for scope in scopes],
        clock=clock,
        gate=calls.gate("github", threads=1),
    )
    try:
        yield auth, server, clock
    finally:
        await auth.aclose()
        assert await calls.aclose() == []
        await runner.cleanup()


async def test_one_token_is_minted_for_all_who_wait() -> None:
    async with signing_in() as (auth, server, _):
        headers = await asyncio.gather(*(auth.header(account) for account in ("acme", "Acme", "ACME") * 5))

    assert len(set(headers)) == 1
    assert server.calls == {"/orgs/acme/installation": 1, "/app/installations/7/access_tokens": 1}


async def test_token_is_renewed_before_it_ends() -> None:
    async with signing_in() as (auth, _, clock):
        first = await auth.header("acme")
        clock.ahead = timedelta(minutes=54)
        still = await auth.header("acme")
        clock.ahead = timedelta(minutes=56)
        renewed = await auth.header("acme")

    assert first == still != renewed


async def test_forgotten_token_is_minted_again_with_its_installation() -> None:
    async with signing_in() as (auth, server, _):
        assert not auth.forget("acme")
        first = await auth.header("acme")
        assert auth.forget("Acme")
        second = await auth.header("acme")

    assert first != second
    assert server.calls["/orgs/acme/installation"] == 2


async def test_repo_scope_asks_for_the_repos_installation() -> None:
    async with signing_in(scopes=["dev/web"]) as (auth, server, _):
        await auth.header("dev")

    assert server.calls["/repos/dev/web/installation"] == 1


async def test_given_installation_is_not_looked_up() -> None:
    async with signing_in(installation_id=42) as (auth, server, _):
        await auth.header("acme")

    assert server.calls == {"/app/installations/42/access_tokens": 1}


async def test_app_signs_in_with_a_jwt_that_github_accepts() -> None:
    async with signing_in() as (auth, server, _):
        await auth.header("acme")
        header = await auth.app_header()

    for token in (*server.bearers, header.removeprefix("Bearer ")):
        claims = jwt.decode(token, IDENTITY.public_key_pem, algorithms=["RS256"], options={"verify_iat": False})
        assert claims["iss"] == "1234567"
        assert claims["iat"] <= time.time()
        assert claims["exp"] - claims["iat"] <= 600


@pytest.mark.parametrize(
    ("status", "text", "headers", "error"),
    [
        (401, {"message": "A JSON web token could not be decoded"}, {}, ForgeUnauthorized),
        (404, {"message": "Not Found"}, {}, ForgeUnauthorized),
        (403, {"message": "This installation has been suspended"}, {}, ForgeUnauthorized),
        (403, {"message": "API rate limit exceeded"}, {}, RateLimited),
        (429, {"message": ""}, {"Retry-After": "9"}, RateLimited),
        (500, {"message": "Server Error"}, {}, ForgeUnavailable),
        (502, "<html>Unicorn!</html>", {}, ForgeUnavailable),
        (200, "{", {}, ForgeUnavailable),
        (200, "garbage", {}, ForgeUnavailable),
        (200, [], {}, ForgeUnavailable),
        (200, {}, {}, ForgeUnavailable),
    ],
)
async def test_refused_sign_in_is_translated_and_shows_no_key(
    status: int, text: object, headers: dict[str, str], error: type[ForgeError]
) -> None:
    async with signing_in() as (auth, server, _):
        server.refusal = (status, text if isinstance(text, str) else json.dumps(text), headers)
        with pytest.raises(error) as refused:
            await auth.header("acme")
        server.refusal = None
        assert await auth.header("acme")

    assert "PRIVATE KEY" not in str(refused.value)
