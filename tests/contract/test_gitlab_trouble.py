"""The GitLab forge when GitLab refuses, limits, hangs, lies or is gone; and settings that cannot work."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from autoscaler.calls import Calls
from autoscaler.sandbox.gitlab_access import GitLabLimits
from autoscaler.spi import (
    ForgeError,
    ForgeOutcomeUnknown,
    ForgeRefused,
    ForgeRefusedForGood,
    ForgeUnauthorized,
    ForgeUnavailable,
    NotYet,
    RateBudget,
    RateLimited,
    RunnerId,
    RunnerRef,
    Scope,
    Secret,
)
from runners import gitlab_rest, gitlab_scopes
from runners.gitlab import GitLabForge
from tests.contract.gitlab_site import (
    PREFIX,
    RUNNER_TOKEN,
    TOKEN,
    forge_at,
    gitlab_site,
    scripted,
)

GROUP = Scope("acme")
RUNNER = RunnerRef(scope=GROUP, runner_id=RunnerId("7"), name=f"{PREFIX}7")


def budget(forge: GitLabForge, family: str) -> RateBudget:
    (found,) = [budget for budget in forge.budgets() if budget.family == family]
    return found


async def repeat(call: Callable[[], Awaitable[object]], *, times: int) -> None:
    for _ in range(times):
        await call()


async def register(forge: GitLabForge, scope: Scope = GROUP) -> Any:
    return await forge.register(scope=scope, group="", name=f"{PREFIX}1", labels=("linux",))


# -- refusals name their remedy


async def test_unknown_token_names_the_key_and_not_its_value() -> None:
    async with gitlab_site() as site:
        forge = site.forge(credentials={"token": Secret("glpat-revoked-long-ago")})
        for call in (forge.list_jobs([]), forge.list_runners(), forge.get_job("acme/api", "1"), register(forge)):
            with pytest.raises(ForgeUnauthorized, match=r"credentials\.token") as refusal:
                await call
            assert "glpat" not in str(refusal.value)


async def test_token_without_the_scope_names_scope_and_role() -> None:
    async with gitlab_site() as site:
        site.world.add_project("acme/api", time.time())
        swapped = site.forge(credentials={"token": Secret(TOKEN), "runner_token": Secret("glpat-other")})
        with pytest.raises(ForgeUnauthorized, match=r"credentials\.runner_token"):
            await register(swapped)
        weak = site.forge(credentials={"token": Secret(RUNNER_TOKEN)})
        with pytest.raises(ForgeUnauthorized, match=r"scope api.*Reporter"):
            await weak.get_job("acme/api", "1")


async def test_scope_that_does_not_exist_is_named() -> None:
    async with gitlab_site() as site:
        for scope in ("nobody", "acme/nothing"):
            with pytest.raises(ForgeRefused, match=scope):
                await register(site.forge(scope), Scope(scope))


async def test_full_scope_says_what_to_delete() -> None:
    async with gitlab_site() as site:
        for number in range(1000):
            site.add_runner(f"old-{number}")
        with pytest.raises(ForgeRefused, match="delete unused runners"):
            await register(site.forge())


async def test_wrong_scope_does_not_stop_the_others() -> None:
    async with gitlab_site() as site:
        site.submit("linux")
        forge = site.forge("nobody", "acme")
        assert len((await forge.list_jobs([])).jobs) == 1
        with pytest.raises(ForgeRefused, match="nobody"):
            await forge.list_runners()


async def test_project_that_shows_no_jobs_is_left_alone_for_a_while() -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/projects"):
            return web.json_response([{"path_with_namespace": "acme/open"}, {"path_with_namespace": "acme/closed"}])
        if request.path.endswith("/jobs"):
            asked.append(request.path.split("/")[-2])
            return web.json_response([]) if "open" in asked[-1] else web.json_response({}, status=403)
        return web.json_response({"id": 1})

    async with scripted(answer) as (url, calls):
        forge = forge_at(url, calls)
        for _ in range(3):
            listing = await forge.list_jobs([])
            assert listing.is_complete
            assert listing.repos == {"acme/open"}
        named = await forge.list_jobs(["acme/closed"])
        await forge.aclose()
    assert asked.count("closed") == 1
    assert not named.is_complete, "it has jobs, and nobody can see them"
    assert "Reporter" in named.problem


async def test_old_gitlab_shows_busy_runners_only_through_their_jobs() -> None:
    runner = {"id": 7, "description": f"{PREFIX}7"}
    job = {"id": 5, "name": "build", "status": "running", "pipeline": {"id": 2}, "runner": runner}

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/jobs"):
            return web.json_response([job])
        if request.path.endswith("/runners"):
            return web.json_response([{**runner, "online": True}, {"id": 8, "description": f"{PREFIX}8"}])
        return web.json_response({"id": 1, "path_with_namespace": "acme/api", "tag_list": ["linux"]})

    async with scripted(answer) as (url, calls):
        forge = forge_at(url, calls, scopes=(Scope("acme/api"),))
        await forge.list_jobs([])
        runners = await forge.list_runners()
        assert [(runner.ref.runner_id, runner.is_online, runner.is_busy) for runner in runners] == [
            ("7", True, True),
            ("8", False, False),
        ]
        await forge.aclose()


async def test_old_gitlab_needs_force_for_a_job_that_is_canceling() -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path_qs.removeprefix("/api/v4/projects/acme%2Fapi"))
        if request.path.endswith("/retry"):
            return web.json_response({"message": "403 Forbidden - Job is not retryable"}, status=403)
        if request.method == "POST":
            return web.json_response({"id": 5}, status=201)
        return web.json_response([{"id": 5, "name": "build", "status": "canceling"}])

    async with scripted(answer) as (url, calls):
        forge = forge_at(url, calls)
        with pytest.raises(NotYet) as later:
            await forge.requeue("acme/api", "2", ["5"])
        assert 0 < later.value.retry_after_s <= 5
        await forge.aclose()
    assert asked[-1] == "/jobs/5/cancel?force=true"


async def test_job_that_can_never_be_retried_is_refused() -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.method == "POST":
            return web.json_response({"message": "403 Forbidden - Job is not retryable"}, status=403)
        return web.json_response([{"id": 5, "name": "build", "status": "failed"}])

    async with scripted(answer) as (url, calls):
        forge = forge_at(url, calls)
        with pytest.raises(ForgeRefusedForGood, match="not retryable"):
            await forge.requeue("acme/api", "2", ["5"])
        await forge.aclose()


async def test_project_list_outlives_a_short_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gitlab_scopes, "PROJECTS_KEPT_FOR", timedelta(0))
    async with gitlab_site() as site:
        forge = site.forge()
        await forge.list_jobs([])
        site.lost_answers.add("/projects")
        site.submit("linux")
        assert len((await forge.list_jobs([])).jobs) == 1


# -- limits


async def test_learned_limit_is_shown_and_kept() -> None:
    async with gitlab_site(limits=GitLabLimits(api_per_minute=5)) as site:
        forge = site.forge()
        await register(forge)
        assert (budget(forge, "core").limit, budget(forge, "registration").limit) == (5, 5)
        assert budget(forge, "core").remaining <= 3
        with pytest.raises(RateLimited) as limited:
            await repeat(forge.list_runners, times=6)
        assert 0 < limited.value.retry_after_s <= 60
        calls = site.seen.total()
        with pytest.raises(RateLimited):
            await forge.list_runners()
        assert site.seen.total() == calls, "a used up budget is not tried at GitLab"


async def test_limit_of_job_lists_is_a_family_of_its_own() -> None:
    async with gitlab_site(limits=GitLabLimits(jobs_per_minute=2)) as site:
        forge = site.forge()
        _, (job_id,) = site.submit("linux")
        with pytest.raises(RateLimited) as limited:
            await repeat(lambda: forge.list_jobs([]), times=4)
        assert limited.value.family == "jobs"
        assert budget(forge, "jobs").remaining == 0
        assert (await forge.get_job("acme/api", job_id)).labels == ("linux",)


async def test_quiet_projects_are_polled_in_turn_and_active_ones_each_time() -> None:
    projects = [
        {"path_with_namespace": f"acme/p{number:03}", "last_activity_at": "2020-01-01T00:00:00Z"}
        for number in range(120)
    ]
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/projects"):
            return web.json_response(projects)
        if request.path.endswith("/jobs"):
            asked.append(request.path.split("/")[-2])
            return web.json_response([])
        return web.json_response({"id": 1})

    async with scripted(answer) as (url, calls):
        forge = forge_at(url, calls)
        for _ in range(3):
            listing = await forge.list_jobs(["acme/p007"])
            assert "acme/p007" in listing.repos
            assert len(listing.repos) <= 51
        assert len(set(asked)) == 120
        await forge.aclose()


async def test_assumed_limit_refuses_nothing() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"id": 7})

    async with scripted(answer) as (url, calls):
        forge = forge_at(url, calls)
        before = budget(forge, "registration").remaining
        await forge.seal(RUNNER)
        assert budget(forge, "registration").remaining < before
        await forge.aclose()


@pytest.mark.parametrize(
    ("headers", "at_most_s"),
    [({"Retry-After": "7"}, 7), ({}, 60), ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1)],
)
async def test_too_many_requests_is_obeyed(headers: dict[str, str], at_most_s: float) -> None:
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=429, text="Retry later\n", headers=headers)

    async with scripted(answer) as (url, calls):
        forge = forge_at(url, calls)
        for _ in range(2):
            with pytest.raises(RateLimited) as limited:
                await forge.seal(RUNNER)
            assert at_most_s - 1 <= limited.value.retry_after_s <= at_most_s
        assert asked == 1
        await forge.aclose()


# -- no usable answer


async def reading(forge: GitLabForge) -> object:
    return await forge.get_job("acme/api", "1")


async def writing(forge: GitLabForge) -> object:
    await forge.seal(RUNNER)
    return None


@pytest.mark.parametrize("call", [reading, writing])
async def test_gitlab_that_is_down_was_told_nothing(call: Callable[[GitLabForge], Awaitable[object]]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        calls = Calls()
        forge = forge_at(f"http://127.0.0.1:{unused.getsockname()[1]}", calls)
        with pytest.raises(ForgeUnavailable, match="no connection"):
            await call(forge)
        await forge.aclose()
        await calls.aclose()


@pytest.mark.parametrize("status", [500, 502, 503, 520])
@pytest.mark.parametrize(("call", "error"), [(reading, ForgeUnavailable), (writing, ForgeOutcomeUnknown)])
async def test_server_error_leaves_a_write_open(
    status: int, call: Callable[[GitLabForge], Awaitable[object]], error: type[ForgeError]
) -> None:
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=status, text="<html>sorry</html>", content_type="text/html")

    async with scripted(answer) as (url, calls):
        forge = forge_at(url, calls)
        with pytest.raises(error):
            await call(forge)
        assert asked == 1, "the SDK does not retry by itself"
        await forge.aclose()


@pytest.mark.parametrize(("call", "error"), [(reading, ForgeUnavailable), (writing, ForgeOutcomeUnknown)])
async def test_silence_leaves_a_write_open(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[GitLabForge], Awaitable[object]], error: type[ForgeError]
) -> None:
    monkeypatch.setattr(gitlab_rest, "SDK_TIMEOUT_S", 0.2)
    end = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        await end.wait()
        return web.Response()

    async with scripted(answer) as (url, calls):
        forge = forge_at(url, calls)
        with pytest.raises(error, match="no answer in time"):
            await call(forge)
        end.set()
        await forge.aclose()


@pytest.mark.parametrize("body", ["<html>log in</html>", "[]", "null", "5", "{", ""])
@pytest.mark.parametrize(("call", "error"), [(reading, ForgeUnavailable), (writing, ForgeOutcomeUnknown)])
async def test_garbage_is_no_answer(
    body: str, call: Callable[[GitLabForge], Awaitable[object]], error: type[ForgeError]
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=body, content_type="application/json")

    async with scripted(answer) as (url, calls):
        forge = forge_at(url, calls)
        with pytest.raises(error):
            await call(forge)
        await forge.aclose()


@pytest.mark.parametrize("body", ["[5]", "{}", "[{}]", '[{"id": 1, "status": "pending", "pipeline": null}]'])
async def test_list_of_something_else_is_an_error_of_the_contract(body: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/jobs"):
            return web.Response(text=body, content_type="application/json")
        return web.json_response({"id": 1, "path_with_namespace": "acme/api"})

    async with scripted(answer) as (url, calls):
        forge = forge_at(url, calls, scopes=(Scope("acme/api"),))
        with pytest.raises(ForgeError):
            await forge.list_jobs([])
        await forge.aclose()


async def test_token_is_not_carried_along_a_redirect() -> None:
    seen: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.json_response({"id": 1})

    async with scripted(elsewhere) as (other, _):

        async def answer(request: web.Request) -> web.Response:
            raise web.HTTPFound(f"{other}/stolen")

        async with scripted(answer) as (url, calls):
            forge = forge_at(url, calls)
            for call in (reading, writing):
                with pytest.raises(ForgeRefused, match="redirects"):
                    await call(forge)
            await forge.aclose()
    assert seen == []


async def test_next_page_is_asked_of_the_address_we_know() -> None:
    pages: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        if not request.path.endswith("/jobs"):
            return web.json_response({"id": 1, "path_with_namespace": "acme/api"})
        pages.append(request.query_string)
        link = {"Link": '<https://gitlab.internal/elsewhere?cursor=a%2Bb%3D&per_page=100>; rel="next"'}
        return web.json_response([], headers=link if len(pages) == 1 else {})

    async with scripted(answer) as (url, calls):
        forge = forge_at(url, calls, scopes=(Scope("acme/api"),))
        await forge.list_jobs([])
        await forge.aclose()
    assert len(pages) == 2
    assert "cursor=a%2Bb%3D" in pages[1]


async def test_job_that_may_not_be_retried_by_our_user_holds_up_no_other_of_its_pipeline() -> None:
    """A deployment to a protected environment, say: the others run again, and it is asked for again later."""

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/5/retry"):
            return web.json_response({"message": "403 Forbidden"}, status=403)
        if request.path.endswith("/retry"):
            return web.json_response({"id": 10 + int(request.path.split("/")[-2])}, status=201)
        rows = [{"id": id_, "name": f"job {id_}", "status": "failed"} for id_ in (5, 6, 7)]
        return web.json_response(rows)

    async with scripted(answer) as (url, calls):
        forge = forge_at(url, calls)
        result = await forge.requeue("acme/api", "2", ["5", "6", "7"])
        assert (result.successors, result.later, result.refused) == ({"6": "16", "7": "17"}, frozenset({"5"}), {})
        with pytest.raises(ForgeUnauthorized):
            await forge.requeue("acme/api", "2", ["5"])
        await forge.aclose()
