"""Runners on the sandbox's GitLab: their owner's REST calls (python-gitlab) and the runner protocol's strictness."""

import asyncio
import json

import gitlab
import pytest

from autoscaler.sandbox.gitlab_access import GitLabLimits
from tests.integration.gitlab_sandbox import (
    CREATE,
    INFO,
    READ,
    RUNNERS,
    add_runner,
    ask,
    call,
    pipeline,
    refused,
    request_job,
    serving,
)
from tests.shared import require_shared


async def test_a_runner_is_created_paused_found_and_deleted() -> None:
    async with serving() as face:
        group = face.world.add_group("acme")

        def live(gl: gitlab.Gitlab) -> None:
            assert gl.user is not None
            made = gl.user.runners.create(
                {"runner_type": "group_type", "group_id": group.id, "tag_list": ["linux", "x64"], "run_untagged": False}
                | {"description": "pool-i-1"}
            )
            assert made.token.startswith("glrt-")
            gl.runners.update(made.id, {"paused": True})
            shown = gl.runners.get(made.id)
            assert (shown.paused, shown.status, shown.tag_list) == (True, "never_contacted", ["linux", "x64"])
            listed = gl.runners.list(type="group_type", paused=True, tag_list=["x64"], get_all=True)
            assert [(r.id, r.description) for r in listed] == [(made.id, "pool-i-1")]
            assert gl.runners.list(paused=False, get_all=True) == []
            gl.runners.delete(made.id)

        def live_with_user(gl: gitlab.Gitlab) -> None:
            gl.auth()
            live(gl)

        await ask(face, live_with_user)
        assert (await refused(face, lambda gl: gl.runners.get(9001))).response_code == 404
    assert face.world.list_runners() == []


async def test_the_created_runner_answer_is_the_documented_one() -> None:
    expected = json.loads((require_shared() / "fixtures/gitlab/rest_user_runners_created.json").read_text())
    machines = json.loads((require_shared() / "fixtures/gitlab/rest_runner_managers.json").read_text())
    async with serving() as face:
        body = {"runner_type": "instance_type", "tag_list": "a, b"}
        status, _, made = await call(face, "POST", "user/runners", body=body, PRIVATE_TOKEN=CREATE)
        assert (status, list(json.loads(made))) == (201, list(expected))
        runner = face.world.runner(json.loads(made)["id"])
        assert runner.tags == {"a", "b"}
        await request_job(face, runner.token)
        _, _, shown = await call(face, "GET", f"runners/{runner.id}/managers", PRIVATE_TOKEN=RUNNERS)
    assert list(json.loads(shown)[0]) == list(machines[0])


async def test_a_runner_removes_its_machine_and_itself_by_token() -> None:
    async with serving() as face:
        runner = add_runner(face)
        await request_job(face, runner.token)
        body = {"token": runner.token, "system_id": "s_1"}
        assert [(await call(face, "DELETE", "runners/managers", body=body))[0] for _ in range(2)] == [204, 404]
        assert (await call(face, "DELETE", "runners", body={"token": runner.token}))[0] == 204
        assert (await request_job(face, runner.token))[0] == 403


async def test_jobs_of_a_runner_are_listed_by_status() -> None:
    async with serving() as face:
        face.submit(pipeline(("true",), ("true",)))
        runner = add_runner(face)
        for state in ("success", "running"):
            _, _, job = await request_job(face, runner.token)
            await call(face, "PUT", f"jobs/{job['id']}", body={"token": job["token"], "state": "running"})
            await call(face, "PUT", f"jobs/{job['id']}", body={"token": job["token"], "state": state})

        def look(gl: gitlab.Gitlab) -> list[list[int]]:
            mine = gl.runners.get(runner.id)
            return [[job.id for job in mine.jobs.list(status=s, get_all=True)] for s in ("running", "success")]

        assert await ask(face, look) == [[10002], [10001]]
        assert (await call(face, "GET", f"runners/{runner.id}/jobs?status=pending", PRIVATE_TOKEN=READ))[0] == 400


async def test_runner_calls_are_strict() -> None:
    async with serving() as face:
        face.submit(pipeline(("true",)))
        runner = add_runner(face)
        body = {"info": INFO, "token": runner.token, "system_id": "s_1"}
        raw = json.dumps(body).encode()
        assert (await call(face, "POST", "jobs/request", data=raw, Content_Type="text/plain"))[0] == 415
        assert (await call(face, "POST", "jobs/request", data=b"{", Content_Type="application/json"))[0] == 400
        assert (await call(face, "POST", "jobs/request", body=body | {"system_id": ""}))[0] == 400
        assert (await call(face, "POST", "jobs/request", body=body, RUNNER_TOKEN="glrt-other"))[0] == 403
        assert (await call(face, "POST", "jobs/request", body=body | {"token": "glrt-bad"}))[0] == 403
        assert (await call(face, "GET", "runners/router/discovery"))[0] == 501
        assert (await call(face, "POST", "runners", body={"token": "GR1348941"}))[0] == 410
        assert (await call(face, "POST", "runners/verify", body=body))[0] == 200
        _, _, job = await request_job(face, runner.token)
        path, token = f"jobs/{job['id']}", job["token"]
        await call(face, "PUT", path, body={"token": token, "state": "running"})
        for span, status in (("0-4", 202), ("0-9", 400), ("bytes 5-9", 400), ("7-11", 416), ("5-9", 202)):
            answer = await call(
                face, "PATCH", f"{path}/trace", data=b"12345",
                JOB_TOKEN=token, Content_Type="text/plain", Content_Range=span,
            )  # fmt: skip
            assert (span, answer[0]) == (span, status)
            if status == 416:
                assert answer[1]["Range"] == "0-5"
        log = await ask(face, lambda gl: gl.projects.get("acme/shop").jobs.get(job["id"]).trace())
        assert log == b"1234512345"
        assert (await call(face, "PUT", path, body={"token": token, "state": "done"}))[0] == 400
        assert (await call(face, "PUT", "jobs/99", body={"token": token, "state": "success"}))[0] == 403


async def test_a_long_poll_ends_when_a_job_comes() -> None:
    async with serving(limits=GitLabLimits(long_poll_s=30)) as face:
        runner = add_runner(face)
        status, headers, _ = await request_job(face, runner.token)
        assert status == 204
        held = asyncio.create_task(request_job(face, runner.token, last_update=headers["X-GitLab-Last-Update"]))
        done, _ = await asyncio.wait([held], timeout=0.3)
        assert not done
        face.submit(pipeline(("true",)))
        assert (await asyncio.wait_for(held, 5))[0] == 201


async def test_runners_are_listed_by_their_project_and_group_and_edited() -> None:
    async with serving() as face:
        mine, foreign = (
            add_runner(face, description="mine"),
            add_runner(face, repo="other/place", description="foreign"),
        )
        group = face.world.find_group("acme")
        body = {"runner_type": "group_type", "group_id": group.id, "tag_list": ["x"], "description": "shared"}
        await call(face, "POST", "user/runners", body=body, PRIVATE_TOKEN=CREATE)

        def look(gl: gitlab.Gitlab) -> list[list[str]]:
            runner = gl.runners.get(mine.id)
            runner.description, runner.tag_list, runner.locked = "renamed", ["linux", "gpu"], True
            runner.save()
            of_project = gl.projects.get("acme/shop").runners.list(get_all=True)
            of_group = gl.groups.get("acme").runners.list(get_all=True)
            return [[r.description for r in found] for found in (of_project, of_group, gl.runners.list(get_all=True))]

        assert await ask(face, look) == [["shared", "renamed"], ["shared"], ["shared", "foreign", "renamed"]]
        assert (sorted(mine.tags), mine.locked, sorted(foreign.tags)) == (["gpu", "linux"], True, ["linux"])
        error = await refused(face, lambda gl: gl.runners.update(mine.id, {"tag_list": []}))
        assert error.response_code == 400
        assert mine.tags == {"linux", "gpu"}


async def test_a_paused_runner_gets_204_with_the_queue_version() -> None:
    async with serving() as face:
        runner = add_runner(face)
        face.submit(pipeline(("true",)))
        await call(face, "PUT", f"runners/{runner.id}?paused=true", PRIVATE_TOKEN=RUNNERS)
        status, headers, _ = await request_job(face, runner.token)
        assert (status, bool(headers["X-GitLab-Last-Update"])) == (204, True)
        await call(face, "PUT", f"runners/{runner.id}", body={"paused": False}, PRIVATE_TOKEN=RUNNERS)
        assert (await request_job(face, runner.token, last_update=headers["X-GitLab-Last-Update"]))[0] == 201


@pytest.mark.parametrize(
    "body",
    [
        {"runner_type": "shared"},
        {"runner_type": "project_type"},
        {"runner_type": "project_type", "project_id": "x"},
        {"runner_type": "instance_type", "run_untagged": False},
        {"runner_type": "instance_type", "paused": "perhaps"},
        {"runner_type": "instance_type", "access_level": "root"},
    ],
)
async def test_a_runner_that_does_not_validate_is_a_bad_request(body: dict[str, object]) -> None:
    async with serving() as face:
        assert (await call(face, "POST", "user/runners", body=body, PRIVATE_TOKEN=CREATE))[0] == 400
        assert face.world.list_runners() == []


async def test_a_runner_over_its_request_limit_is_told_429() -> None:
    async with serving(limits=GitLabLimits(requests_per_minute=1)) as face:
        runner = add_runner(face)
        answers = [await request_job(face, runner.token) for _ in range(3)]
        assert 429 in [status for status, _, _ in answers]
