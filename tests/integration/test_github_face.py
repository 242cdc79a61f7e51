"""The sandbox's GitHub API as its clients see it: PyGithub unmodified, and raw HTTP for what PyGithub hides."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import github
import jwt
import pytest
from aiohttp import web
from github import Auth, GithubIntegration

from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.github_auth import AppIdentity
from autoscaler.sandbox.github_face import GitHubFace
from autoscaler.sandbox.github_limits import Limits
from autoscaler.sandbox.github_model import WorldPolicy
from autoscaler.sandbox.github_world import GitHubWorld
from tests.integration.github_law import LawfulExchanges
from tests.integration.github_sandbox import REPO, TOKEN, Served, job, mint, run_of, serve_next, served, unpacked
from tests.shared import require_shared

APP, APP_KEY = AppIdentity.generate()


class Clock:
    """The time of day, moved by hand."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


async def called(call: Callable[[], Any]) -> Any:
    """PyGithub blocks, so it runs in a thread while the face serves."""
    return await asyncio.to_thread(call)


def client(here: Served, prefix: str = "") -> github.Github:
    return github.Github(auth=Auth.Token(TOKEN), base_url=here.url + prefix, retry=None, seconds_between_requests=0)


def integration(here: Served, key: str = APP_KEY) -> GithubIntegration:
    return GithubIntegration(auth=Auth.AppAuth(APP.app_id, key), base_url=here.url, retry=None)


@pytest.mark.parametrize("prefix", ["", "/api/v3"])
async def test_pygithub_with_a_token_sees_runs_jobs_and_reruns_them(prefix: str) -> None:
    async with served() as here:
        run_id = here.face.submit(run_of(job("build"), job("test", needs=("build",))))

        def look() -> list[str]:
            repo = client(here, prefix).get_repo(REPO)
            run = next(iter(repo.get_workflow_runs(status="queued")))
            assert run.id == run_id
            assert run.url.startswith(here.url + prefix)
            return [row.name for row in run.jobs()]

        assert await called(look) == ["build"]
        failed = await serve_next(here, "failure")

        def again() -> tuple[str, bool, int]:
            run = client(here, prefix).get_repo(REPO).get_workflow_run(run_id)
            return run.conclusion, run.rerun_failed_jobs(), run.id

        assert await called(again) == ("failure", True, run_id)
        run = here.world.run(run_id)
        assert run.attempt == 2
        assert run.jobs["build"].id != failed


async def test_pygithub_as_an_app_finds_its_installation_and_mints_a_runner() -> None:
    async with served(app=APP) as here:

        def act() -> tuple[str, str, list[str], str]:
            with integration(here) as app:
                installation = app.get_org_installation("octo-org")
                assert app.get_app().slug == APP.slug
                assert [row.id for row in app.get_installations()] == [installation.id]
                assert app.get_app_installation(installation.id).id == installation.id
                assert app.get_repo_installation("octo-org", "app").id == installation.id
                repos = [repo.full_name for repo in installation.get_repos()]
                api = app.get_github_for_installation(installation.id)
                org = api.get_organization("octo-org")
                made = org.create_self_hosted_runner_jitconfig("vm-1", 1, ["linux", "x64"])
                found = next(iter(org.get_self_hosted_runners(name="vm-1")))
                token = app.get_access_token(installation.id).token
                return made.encoded_jit_config, found.status, repos, token

        jit, status, repos, token = await called(act)
        files = unpacked(jit)
        assert set(files) == {".runner", ".credentials", ".credentials_rsaparams"}
        assert files[".runner"]["AgentName"] == "vm-1"
        assert (status, repos) == ("offline", [REPO])
        assert token.startswith("ghs_")
        assert len(token) > 500


async def test_pygithub_deletes_an_idle_runner_and_is_refused_a_busy_one() -> None:
    async with served() as here:
        idle, _ = await mint(here, "idle")
        busy, _ = await mint(here, "busy")
        here.face.submit(run_of())
        here.world.connect(busy, time.time())
        assert here.world.take_job(busy, time.time()) is not None

        def act() -> github.GithubException:
            org = client(here).get_organization("octo-org")
            org.delete_self_hosted_runner(idle)
            with pytest.raises(github.GithubException) as refused:
                org.delete_self_hosted_runner(busy)
            return refused.value

        refusal = await called(act)
        assert refusal.status == 422
        assert list(here.world.runners) == [busy]


async def test_a_taken_name_is_a_conflict_and_bad_bodies_are_unprocessable() -> None:
    async with served() as here:
        await mint(here, "vm")
        path = "/orgs/octo-org/actions/runners/generate-jitconfig"
        bodies: list[tuple[Any, int]] = [
            ({"name": "vm", "runner_group_id": 1, "labels": ["linux"]}, 409),
            ({"name": "vm2", "runner_group_id": 7, "labels": ["linux"]}, 404),
            ({"name": "vm2", "runner_group_id": 1, "labels": []}, 422),
            ({"name": "vm2", "labels": ["linux"]}, 422),
        ]
        for body, status in bodies:
            async with here.client.post(path, json=body) as response:
                assert response.status == status, body
        assert len(here.world.runners) == 1


async def test_pages_are_linked_until_the_last() -> None:
    async with served() as here:
        for number in range(7):
            await mint(here, f"vm-{number}")
        names: list[str] = []
        url: str | None = "/orgs/octo-org/actions/runners?per_page=3"
        pages = 0
        while url:
            async with here.client.get(url) as response:
                body = await response.json()
                assert body["total_count"] == 7
                names += [row["name"] for row in body["runners"]]
                following = response.links.get("next")
                url = None if following is None else str(following["url"])
                pages += 1
        assert (pages, names) == (3, [f"vm-{number}" for number in range(7)])
        listed = await called(lambda: list(client(here).get_organization("octo-org").get_self_hosted_runners()))
        assert len(listed) == 7


async def test_an_unchanged_answer_is_304_and_costs_nothing() -> None:
    async with served() as here:
        path = f"/repos/{REPO}/actions/runs"
        async with here.client.get(path) as first:
            etag, left = first.headers["ETag"], int(first.headers["x-ratelimit-remaining"])
        async with here.client.get(path, headers={"If-None-Match": etag}) as second:
            assert second.status == 304
            assert int(second.headers["x-ratelimit-remaining"]) == left
        here.face.submit(run_of())
        async with here.client.get(path, headers={"If-None-Match": etag}) as third:
            assert third.status == 200
            assert int(third.headers["x-ratelimit-remaining"]) == left - 1


async def test_an_exhausted_budget_is_refused_until_the_reset() -> None:
    clock = Clock()
    async with served(clock=clock, limits=Limits(primary_per_hour=2)) as here:
        for expected in (200, 200, 403):
            async with here.client.get(f"/repos/{REPO}/actions/runs") as response:
                assert response.status == expected
                headers, body = response.headers, await response.json()
        assert headers["x-ratelimit-remaining"] == "0"
        assert body["message"].startswith("API rate limit exceeded")
        async with here.client.get("/rate_limit") as response:
            assert (await response.json())["rate"]["remaining"] == 0
        clock.ahead_s = float(headers["x-ratelimit-reset"]) - time.time() + 1
        async with here.client.get(f"/repos/{REPO}/actions/runs") as response:
            assert response.status == 200


async def test_the_secondary_limit_counts_writes_five_times_and_says_when_to_return() -> None:
    limits = Limits(secondary=True, points_per_minute=10, retry_after_s=17, status=429)
    async with served(limits=limits) as here:
        await mint(here, "vm-1")
        await mint(here, "vm-2")
        body = {"name": "vm-3", "runner_group_id": 1, "labels": ["linux"]}
        async with here.client.post("/orgs/octo-org/actions/runners/generate-jitconfig", json=body) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "17"
            assert "secondary rate limit" in (await response.json())["message"]
        assert len(here.world.runners) == 2


async def test_github_enterprise_server_without_limits_sends_no_limit_headers() -> None:
    async with served(limits=Limits(primary_per_hour=None)) as here:
        for path, status in ((f"/api/v3/repos/{REPO}/actions/runs", 200), ("/api/v3/rate_limit", 404)):
            async with here.client.get(path) as response:
                assert response.status == status
                assert "x-ratelimit-remaining" not in response.headers


@pytest.mark.parametrize("header", ["", "Bearer wrong", "token wrong", "Basic eDp5", "Bearer eyJhbGciOiJub25lIn0.e30."])
async def test_bad_credentials_are_401(header: str) -> None:
    headers = {"Authorization": header} if header else {}
    async with (
        served(app=APP) as here,
        aiohttp.ClientSession(here.url, headers=headers) as stranger,
        stranger.get("/app") as response,
    ):
        assert response.status == 401


async def test_app_tokens_must_be_signed_by_the_app_in_date_and_short() -> None:
    _, other_key = AppIdentity.generate()
    now = int(time.time())
    good = {"iss": APP.client_id, "iat": now - 60, "exp": now + 540}
    claims = [
        (good, APP_KEY, 200),
        (good | {"iss": str(APP.app_id)}, APP_KEY, 200),
        (good, other_key, 401),
        (good | {"exp": now - 1}, APP_KEY, 401),
        (good | {"exp": now + 3600}, APP_KEY, 401),
        (good | {"iss": "999"}, APP_KEY, 401),
    ]
    async with served(app=APP) as here, aiohttp.ClientSession(here.url) as app:
        for body, key, status in claims:
            header = {"Authorization": "Bearer " + jwt.encode(body, key, algorithm="RS256")}
            async with app.get("/app", headers=header) as response:
                assert response.status == status, body
        header = {"Authorization": "Bearer " + jwt.encode(good, APP_KEY, algorithm="RS256")}
        async with app.get(f"/repos/{REPO}/actions/runs", headers=header) as response:
            assert response.status == 403


async def test_installation_tokens_expire_and_reach_only_their_own_account() -> None:
    clock = Clock()
    world = GitHubWorld([REPO, "other-org/app"])
    async with served(world, clock=clock, app=APP) as here, aiohttp.ClientSession(here.url) as someone:
        token, _ = here.face.authenticator.mint("octo-org", 1)
        header = {"Authorization": f"token {token}"}
        for path, status in ((f"/repos/{REPO}", 200), ("/repos/other-org/app", 404), ("/orgs/other-org/repos", 404)):
            async with someone.get(path, headers=header) as response:
                assert response.status == status, path
        clock.ahead_s = 3601
        async with someone.get(f"/repos/{REPO}", headers=header) as response:
            assert response.status == 401
            assert (await response.json())["message"] == "Bad credentials"


async def test_reruns_are_refused_while_the_run_is_in_progress_with_the_documented_words() -> None:
    async with served() as here:
        run_id = here.face.submit(run_of(job("a"), job("b")))
        first = await serve_next(here, "failure")
        base = f"/repos/{REPO}/actions"
        words = {
            f"{base}/jobs/{first}/rerun": "The workflow run containing this job is already running",
            f"{base}/runs/{run_id}/rerun-failed-jobs": "This workflow is already running",
            f"{base}/runs/{run_id}/rerun": "This workflow is already running",
        }
        for path, message in words.items():
            async with here.client.post(path) as response:
                assert response.status == 403
                assert (await response.json())["message"] == message
        await serve_next(here, "success")
        async with here.client.post(f"{base}/jobs/{first}/rerun", json={"enable_debug_logging": False}) as response:
            assert response.status == 201
        again = await serve_next(here, "success")
        assert here.world.run(run_id).conclusion == "success"
        async with here.client.post(f"{base}/jobs/{first}/rerun") as response:
            assert (await response.json())["message"] == "Only jobs from the current attempt can be re-run"
        for query, ids in (("?filter=latest", {again}), ("?filter=all", set(here.world.jobs))):
            async with here.client.get(f"{base}/runs/{run_id}/jobs{query}") as response:
                assert {row["id"] for row in (await response.json())["jobs"]} == ids
        for attempt, count in ((1, 2), (2, 2)):
            async with here.client.get(f"{base}/runs/{run_id}/attempts/{attempt}/jobs") as response:
                assert (await response.json())["total_count"] == count


async def test_every_read_of_a_run_follows_the_description() -> None:
    async with served() as here:
        run_id = here.face.submit(run_of(job("a"), job("b")))
        done = await serve_next(here, "failure")
        repo, base = f"/repos/{REPO}", f"/repos/{REPO}/actions"
        paths = [
            *(f"{base}/runs{query}" for query in ("", "?status=in_progress", "?created=>=2020-01-01", "?branch=main")),
            *(f"{base}/runs/{run_id}{tail}" for tail in ("", "/jobs", "/attempts/1", "/attempts/1/jobs")),
            *(f"{base}/jobs/{number}" for number in here.world.jobs),
            f"{repo}/check-runs/{done}/annotations",
            "/orgs/octo-org/actions/runner-groups?visible_to_repository=app",
            "/orgs/octo-org/actions/runner-groups/1",
            "/orgs/octo-org/actions/runner-groups/1/runners",
            "/orgs/octo-org/actions/runners/downloads",
            f"{base}/runners/downloads",
            "/orgs/octo-org/repos",
            "/rate_limit",
            "/meta",
        ]
        for path in paths:
            async with here.client.get(path) as response:
                assert response.status == 200, path
        for scope in ("/orgs/octo-org", repo):
            for kind in ("registration-token", "remove-token"):
                async with here.client.post(f"{scope}/actions/runners/{kind}") as response:
                    assert response.status == 201
        async with here.client.get(f"{base}/runs/1") as response:
            assert response.status == 404
        async with here.client.post(f"{base}/runs/{run_id}/cancel") as response:
            assert response.status == 202
        async with here.client.post(f"{base}/runs/{run_id}/force-cancel") as response:
            assert response.status == 409


async def test_an_unlawful_answer_would_be_noticed() -> None:
    require_shared()
    lawful = LawfulExchanges.load()
    assert lawful is not None
    lawful.check("GET", "/orgs/octo-org/actions/runners", {}, b"", web.json_response({"total_count": "many"}))
    lawful.check("GET", "/no/such/path", {}, b"", web.json_response({}))
    assert len(lawful.violations) == 2


async def test_forge_errors_are_502_and_change_nothing() -> None:
    faults = Faults(forge_error=0.5, seed=3)
    async with served(faults=faults) as here:
        statuses = []
        for number in range(40):
            body = {"name": f"vm-{number}", "runner_group_id": 1, "labels": ["linux"]}
            async with here.client.post("/orgs/octo-org/actions/runners/generate-jitconfig", json=body) as response:
                statuses.append(response.status)
        assert 8 < statuses.count(502) < 32
        assert len(here.world.runners) == statuses.count(201) == 40 - statuses.count(502)


async def test_slow_answers_pile_up_into_the_limit_on_concurrent_requests() -> None:
    async with served(latency_s=0.2, limits=Limits(secondary=True, concurrent=2)) as here:

        async def status() -> int:
            async with here.client.get(f"/repos/{REPO}/actions/runs") as response:
                return response.status

        began = time.monotonic()
        statuses = sorted(await asyncio.gather(*(status() for _ in range(4))))
        assert time.monotonic() - began >= 0.2
        assert statuses[0] == 200
        assert statuses[-1] == 403


async def test_a_renewal_slower_than_the_lease_is_refused() -> None:
    with pytest.raises(ValueError, match="lease_s"):
        GitHubFace(GitHubWorld(policy=WorldPolicy(lease_s=30)), renew_s=60)


async def test_revoked_tokens_are_refused() -> None:
    async with served() as here:
        here.face.authenticator.revoke_all()
        async with here.client.get("/rate_limit") as response:
            assert response.status == 401


# ---------------------------------------------------------------------- what is written onto commits


async def test_pygithub_as_an_app_writes_check_runs_and_finds_them_beside_those_of_jobs() -> None:
    async with served(app=APP) as here:
        run_id = here.face.submit(run_of(job("build")))
        sha = here.world.run(run_id).head_sha

        def act() -> tuple[list[str], list[str], str, str]:
            with integration(here) as app:
                mine = app.get_github_for_installation(app.get_org_installation("octo-org").id)
                repo = mine.get_repo(REPO)
                for external_id in ("a", "b"):
                    made = repo.create_check_run(
                        "ours",
                        sha,
                        status="completed",
                        conclusion="neutral",
                        external_id=external_id,
                        output={"title": "t", "summary": "s"},
                    )
                commit = repo.get_commit(sha)
                every = [one.external_id for one in commit.get_check_runs(check_name="ours", filter="all")]
                newest = [one.name for one in commit.get_check_runs()]
                again = repo.get_check_run(made.id)
                return every, sorted(newest), again.external_id, again.output.summary

        assert await called(act) == (["b", "a"], ["build", "ours"], "b", "s")


async def test_pygithub_with_a_token_sets_statuses_and_may_not_write_check_runs() -> None:
    async with served(app=APP) as here:
        sha = here.world.run(here.face.submit(run_of())).head_sha

        def act() -> tuple[list[tuple[str, str]], int, int]:
            repo = client(here).get_repo(REPO)
            commit = repo.get_commit(sha)
            for state in ("pending", "success"):
                commit.create_status(state, "https://example.com/", "why", "ours")
            found = [(one.state, one.context) for one in commit.get_statuses()]
            statuses = []
            for wrong in (lambda: repo.create_check_run("ours", sha), lambda: commit.create_status("green")):
                with pytest.raises(github.GithubException) as refused:
                    wrong()
                statuses.append(refused.value.status)
            return found, statuses[0], statuses[1]

        assert await called(act) == ([("success", "ours"), ("pending", "ours")], 403, 422)


async def test_app_without_the_permission_is_refused_as_github_does() -> None:
    async with served(app=APP) as here:
        sha = here.world.run(here.face.submit(run_of())).head_sha
        here.face.permissions["checks"] = "read"

        def act() -> tuple[int, str, list[str]]:
            with integration(here) as app:
                repo = app.get_github_for_installation(app.get_org_installation("octo-org").id).get_repo(REPO)
                with pytest.raises(github.GithubException) as refused:
                    repo.create_check_run("ours", sha)
                names = [one.name for one in repo.get_commit(sha).get_check_runs()]
                return refused.value.status, refused.value.data["message"], names

        assert await called(act) == (403, "Resource not accessible by integration", ["build"])
