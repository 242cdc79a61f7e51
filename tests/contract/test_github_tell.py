"""How people at GitHub are told: as an App, with a token, without the permission, and within GitHub's limits."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from autoscaler.spi import ForgeRefusedForGood, ForgeUnauthorized, RateLimited
from runners.github_budgets import CONTENT_PER_MINUTE
from tests.contract.forge_driver import doomed, register
from tests.contract.github_driver import TOKEN, GitHubDriver, now, sandbox


@pytest.fixture
async def driver() -> AsyncIterator[GitHubDriver]:
    async with sandbox() as made:
        yield made


async def with_token(driver: GitHubDriver) -> None:
    await driver.forge.aclose()
    driver.forge = driver.make_forge(token=TOKEN)


async def test_an_app_writes_a_neutral_check_run_with_the_whole_text(driver: GitHubDriver) -> None:
    telling = await doomed(driver)

    await driver.forge.tell(telling)

    (made,) = driver.face.world.checks.everything()
    assert (made.repo, made.head_sha, made.external_id) == (driver.repo, telling.commit, telling.key)
    assert (made.status, made.conclusion) == ("completed", "neutral")
    assert (made.name, made.title, made.summary) == ("Runner interrupted: build", telling.title, telling.text)
    assert made.details_url == telling.url


async def test_a_token_sets_a_status_that_blocks_no_merge(driver: GitHubDriver) -> None:
    await with_token(driver)
    telling = await doomed(driver)

    for _ in range(2):
        await driver.forge.tell(telling)
    await driver.forge.tell(replace(telling, key="gh:2/i-2", url=""))

    other, made = driver.face.world.checks.statuses(driver.repo, telling.commit)
    assert (made.state, made.context) == ("success", "autoscaler/interrupted: build")
    assert made.description == telling.title
    assert made.target_url.partition("#")[0] == telling.url
    assert other.target_url.startswith(f"https://github.com/{driver.repo}/actions/runs/{telling.run_id}/job/")


async def test_a_name_that_means_something_in_an_address_is_looked_for_as_it_is(driver: GitHubDriver) -> None:
    telling = replace(await doomed(driver), job_name="test (a & b=c, 50 %) / é #1")

    for _ in range(2):
        await driver.forge.tell(telling)

    (made,) = driver.face.world.checks.everything()
    assert made.name == f"Runner interrupted: {telling.job_name}"


async def test_a_check_run_that_another_app_wrote_keeps_nobody_from_being_told(driver: GitHubDriver) -> None:
    """A workflow may write check runs with its own token, under any name and id."""
    telling = await doomed(driver)
    forged: dict[str, Any] = {
        "name": f"Runner interrupted: {telling.job_name}",
        "external_id": telling.key,
        "app_id": 15368,
    }
    driver.face.world.checks.add_check_run(driver.repo, telling.commit, now=now(), conclusion="success", **forged)

    for _ in range(2):
        await driver.forge.tell(telling)

    _, made = driver.face.world.checks.everything()
    assert (made.conclusion, made.summary) == ("neutral", telling.text)


async def test_a_status_that_a_workflow_set_keeps_nobody_from_being_told(driver: GitHubDriver) -> None:
    await with_token(driver)
    telling, checks = await doomed(driver), driver.face.world.checks
    await driver.forge.tell(telling)
    (ours,) = checks.statuses(driver.repo, telling.commit)
    again = replace(telling, key="gh:2/i-2")
    forged = ours.target_url.partition("#")[0] + "#autoscaler-gh%3A2%2Fi-2"
    said = {"context": "ci", "target_url": forged, "creator": "github-actions[bot]"}
    checks.add_status(driver.repo, telling.commit, state="success", now=now(), **said)

    for _ in range(2):
        await driver.forge.tell(again)

    newest, *_ = found = checks.statuses(driver.repo, telling.commit)
    assert (newest.target_url, newest.context) == (forged, ours.context)
    assert len(found) == 3


async def test_a_missing_permission_is_named_with_its_remedy(driver: GitHubDriver) -> None:
    telling = await doomed(driver)
    for granted in ({}, {"checks": "read"}):
        driver.face.permissions.pop("checks", None)
        driver.face.permissions.update(granted)
        with pytest.raises(ForgeUnauthorized, match="Checks: write"):
            await driver.forge.tell(telling)
    driver.face.permissions["checks"] = "write"

    await driver.forge.tell(telling)

    assert len(await driver.told()) == 1


@pytest.mark.parametrize(("granted", "said"), [({}, "no access to checks"), ({"checks": "read"}, "checks: read")])
async def test_what_an_app_lacks_is_known_before_anything_is_written(
    driver: GitHubDriver, granted: dict[str, str], said: str
) -> None:
    del driver.face.permissions["checks"]
    driver.face.permissions.update(granted)

    problem = await driver.forge.telling_problem(driver.scope)

    assert said in problem
    assert "Checks: write" in problem


@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize("gone", [{"repo": "acme/deleted"}, {"commit": "f" * 40}])
async def test_what_is_gone_is_refused_for_good(driver: GitHubDriver, token: str, gone: dict[str, str]) -> None:
    if token:
        await with_token(driver)
    telling = replace(await doomed(driver), **gone)

    with pytest.raises(ForgeRefusedForGood):
        await driver.forge.tell(telling)

    assert await driver.told() == []


async def test_many_losses_are_told_at_a_pace_that_github_bears(driver: GitHubDriver) -> None:
    telling = await doomed(driver)
    for number in range(CONTENT_PER_MINUTE):
        await driver.forge.tell(replace(telling, key=f"gh:1/i-{number}"))

    with pytest.raises(RateLimited) as limited:
        await driver.forge.tell(telling)
    driver.clock.ahead += timedelta(seconds=limited.value.retry_after_s)
    await driver.forge.tell(telling)

    assert (limited.value.family, 50 < limited.value.retry_after_s <= 60) == ("content", True)
    assert len(await driver.told()) == CONTENT_PER_MINUTE + 1


async def test_telling_leaves_a_fifth_of_the_budget_to_others() -> None:
    remaining = [4000]

    @web.middleware
    async def say_what_remains(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        reset = str(int(now()) + 1800)
        response.headers.update({"X-RateLimit-Remaining": str(remaining[0]), "X-RateLimit-Reset": reset})
        return response

    async with sandbox(middlewares=[say_what_remains]) as driver:
        telling, remaining[0] = await doomed(driver), 900
        await driver.forge.list_runners()
        with pytest.raises(RateLimited, match="others need the budget"):
            await driver.forge.tell(telling)
        await register(driver, "still-possible")
        remaining[0] = 4000
        await driver.forge.list_runners()
        driver.clock.ahead += timedelta(seconds=61)

        await driver.forge.tell(telling)

        assert len(await driver.told()) == 1


async def test_a_limit_on_what_people_see_holds_nothing_else_back() -> None:
    asked: list[str] = []

    @web.middleware
    async def limit_content(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked.append(f"{request.method} {request.path}")
        if request.method == "POST" and request.path.endswith("/check-runs"):
            body = {"message": "You have exceeded a secondary rate limit", "documentation_url": "https://docs"}
            return web.json_response(body, status=403, headers={"Retry-After": "60"})
        return await handler(request)

    async with sandbox(middlewares=[limit_content]) as driver:
        telling = await doomed(driver)
        with pytest.raises(RateLimited) as limited:
            await driver.forge.tell(telling)
        await register(driver, "not-held-back")
        asked.clear()
        with pytest.raises(RateLimited):
            await driver.forge.tell(telling)

        assert limited.value.retry_after_s == 60
        assert asked == [], "it is not asked again meanwhile"
