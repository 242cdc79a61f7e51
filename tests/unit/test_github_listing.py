"""Listings of jobs that GitHub answers in part. A scripted server stands for GitHub."""

from collections.abc import Callable

from aiohttp import web

from tests.unit.test_github_rest import Handler, forge_at


def github(is_gone: Callable[[], bool], asked: list[str]) -> Handler:
    """An organisation with one quiet repo, and one with a queued job that may be gone."""

    async def answer(request: web.Request) -> web.Response:
        path = request.path
        if path == "/orgs/acme/repos":
            return web.json_response([])
        repo = "/".join(path.split("/")[2:4])
        asked.append(repo)
        if repo == "acme/gone" and is_gone():
            return web.json_response({"message": "Not Found"}, status=404)
        if path.endswith("/jobs"):
            job = {"id": 5, "run_id": 1, "name": "test", "status": "queued", "labels": ["linux"]}
            return web.json_response({"total_count": 1, "jobs": [job]})
        has_run = repo == "acme/gone" and request.query["status"] == "queued"
        return web.json_response({"total_count": int(has_run), "workflow_runs": [{"id": 1}] if has_run else []})

    return answer


async def test_a_repo_that_went_away_is_told_and_then_asked_for_no_more() -> None:
    asked: list[str] = []
    gone = [False]

    async with forge_at(github(lambda: gone[0], asked)) as forge:
        before = await forge.list_jobs({"acme/web", "acme/gone"})
        gone[0] = True
        told = await forge.list_jobs({"acme/web"})
        asked.clear()
        after = await forge.list_jobs({"acme/web"})

    assert ([job.repo for job in before.jobs], before.is_complete, before.problem) == (["acme/gone"], True, "")
    assert told.repos == {"acme/web"}
    assert not told.is_complete
    assert "list workflow runs of acme/gone: 404" in told.problem
    assert after.is_complete
    assert "acme/gone" not in asked
