"""Sessions of the status page: they outlive the daemon, and end with their time, their token or a changed letter."""

from datetime import UTC, datetime

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from autoscaler.http.admin import make_admin_app
from autoscaler.http.auth import COOKIE, SESSION_LIFETIME, Access
from autoscaler.metrics import Metrics
from autoscaler.spi import Secret
from tests.admin_world import ExampleView, rules_of, snapshot_of

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
OLD, NEW = Secret("the-first-token"), Secret("the-second-token")


def cookie_of(token: Secret) -> str:
    return Access((token,), lambda: NOW).open_session(token.reveal())


async def status_of(cookie: str, *tokens: Secret, now: datetime = NOW) -> int:
    """What a daemon that was just started with these tokens answers to the cookie."""
    view = ExampleView(snapshot_of(), rules_of(), at=now)
    runner = web.AppRunner(make_admin_app(view, Metrics(), tokens), shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/api/v1/pools"
    async with aiohttp.ClientSession() as client, client.get(url, headers={"Cookie": f"{COOKIE}={cookie}"}) as answer:
        status = answer.status
    await runner.cleanup()
    return status


async def test_a_session_outlives_a_restart_until_its_time_is_over() -> None:
    assert await status_of(cookie_of(OLD), OLD) == 200
    assert await status_of(cookie_of(OLD), OLD, NEW) == 200
    assert await status_of(cookie_of(OLD), OLD, now=NOW + SESSION_LIFETIME) == 401


async def test_a_session_ends_with_the_token_that_opened_it() -> None:
    assert await status_of(cookie_of(OLD), NEW) == 401


def test_tokens_that_a_reload_takes_away_end_their_sessions() -> None:
    tokens = [OLD, NEW]
    access = Access(lambda: tuple(tokens), lambda: NOW)
    mine = make_mocked_request("GET", "/", headers={"Cookie": f"{COOKIE}={access.open_session(OLD.reveal())}"})
    bearer = make_mocked_request("GET", "/", headers={"Authorization": f"Bearer {OLD.reveal()}"})
    assert access.caller(mine)
    assert access.caller(bearer)
    tokens.pop(0)
    assert access.caller(mine) is None
    assert access.caller(bearer) is None


@pytest.mark.parametrize("part", range(4))
async def test_a_session_that_was_changed_anywhere_is_none(part: int) -> None:
    parts = cookie_of(OLD).split(".")
    parts[part] = ("1" if parts[part][0] != "1" else "0") + parts[part][1:]
    assert await status_of(".".join(parts), OLD, NEW) == 401


@pytest.mark.parametrize("cookie", ["", ".", "0", "0.99999999999", "0.99999999999.x.", "9.99999999999.x.y", "-1.5.x.y"])
async def test_a_made_up_session_is_none(cookie: str) -> None:
    assert await status_of(cookie, OLD) == 401


def test_a_cookie_shows_nothing_of_its_token() -> None:
    assert OLD.reveal() not in cookie_of(OLD)
    assert cookie_of(OLD) != cookie_of(OLD)


def test_a_wrong_token_opens_no_session() -> None:
    with pytest.raises(ValueError, match="not in list"):
        Access((OLD,), lambda: NOW).open_session("wrong")
