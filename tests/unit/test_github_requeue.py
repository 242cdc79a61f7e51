"""Running a lost job again where a newer attempt lists kept jobs as its own. A scripted server stands for GitHub."""

from typing import Any

from aiohttp import web

from tests.unit.test_github_rest import forge_at

LOST_ID, COPY_ID, RUN_ID = 1, 5, 9
ACTIONS = "/repos/acme/web/actions"


def job(id_: int, *, attempt: int, started_at: str = "2026-01-01T10:00:00Z") -> dict[str, Any]:
    return {
        "id": id_,
        "run_id": RUN_ID,
        "run_attempt": attempt,
        "name": "test",
        "status": "completed",
        "conclusion": "failure",
        "started_at": started_at,
        "completed_at": "2026-01-01T10:20:00Z",
        "runner_id": 77,
        "runner_name": "ci-1",
    }


async def test_job_that_a_newer_attempt_lists_with_its_old_result_is_run_again_alone() -> None:
    asked = []

    async def github(request: web.Request) -> web.Response:
        path = request.path.removeprefix(ACTIONS)
        if request.method == "POST":
            asked.append(path)
            if path == f"/jobs/{COPY_ID}/rerun":
                return web.json_response({}, status=201)
            return web.json_response({"message": "Only jobs from the current attempt can be re-run"}, status=403)
        if path == f"/runs/{RUN_ID}":
            return web.json_response({"id": RUN_ID, "run_attempt": 2, "status": "completed"})
        if path == f"/jobs/{LOST_ID}":
            return web.json_response(job(LOST_ID, attempt=1))
        listed = [job(COPY_ID, attempt=2), job(LOST_ID, attempt=1)]
        return web.json_response({"total_count": len(listed), "jobs": listed})

    async with forge_at(github) as forge:
        await forge.requeue("acme/web", str(RUN_ID), [str(LOST_ID)])

    assert asked == [f"/jobs/{COPY_ID}/rerun"]
