"""The sandbox's GitLab over HTTP, as python-gitlab (unmodified) and a runner's raw calls see it."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import aiohttp
import gitlab
import pytest

from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.gitlab_access import GitLabLimits
from autoscaler.sandbox.gitlab_face import GitLabFace
from autoscaler.sandbox.gitlab_webhooks import signature
from tests.integration.gitlab_sandbox import (
    API,
    CREATE,
    READ,
    RUNNERS,
    SIGNING_SECRET,
    add_runner,
    only_job,
    pipeline,
    receiving,
    serving,
)
from tests.shared import require_shared

T = TypeVar("T")
INFO = {
    "name": "gitlab-runner",
    "version": "19.4.0",
    "features": {"two_phase_job_commit": True, "cancel_gracefully": True},
}


def client(face: GitLabFace, token: str = API) -> gitlab.Gitlab:
    return gitlab.Gitlab(face.world.base_url, private_token=token, retry_transient_errors=False)


async def ask(face: GitLabFace, call: Callable[[gitlab.Gitlab], T], *, token: str = API) -> T:
    """Run blocking python-gitlab calls beside the loop that serves them."""
    return await asyncio.to_thread(call, client(face, token))


async def refused(face: GitLabFace, call: Callable[[gitlab.Gitlab], object], *, token: str = API) -> gitlab.GitlabError:
    with pytest.raises(gitlab.GitlabError) as raised:
        await ask(face, call, token=token)
    return raised.value


async def call(
    face: GitLabFace, method: str, path: str, *, body: object = None, data: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """A raw call; header names are given with underscores."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{face.world.base_url}/api/v4/{path}", json=body, data=data, headers=given) as answer,
    ):
        return answer.status, dict(answer.headers), await answer.read()


async def request_job(face: GitLabFace, token: str, **more: object) -> tuple[int, dict[str, str], Any]:
    body = {"info": INFO, "token": token, "system_id": "s_1", **more}
    status, headers, answer = await call(face, "POST", "jobs/request", body=body, RUNNER_TOKEN=token)
    return status, headers, json.loads(answer) if answer else None


async def test_jobs_are_listed_by_keyset_to_the_last_one() -> None:
    async with serving() as face:
        face.submit(pipeline(*[("true",)] * 7))
        face.submit(pipeline(("true",), repo="acme/other"))

        def walk(gl: gitlab.Gitlab) -> list[tuple[int, str, list[str]]]:
            project = gl.projects.get("acme/shop")
            jobs = project.jobs.list(
                iterator=True, scope=["pending", "running"], pagination="keyset", order_by="id", per_page=3
            )
            return [(job.id, job.status, job.tag_list) for job in jobs]

        start_one = await request_job(face, add_runner(face).token)
        face.world.cancel_job(start_one[2]["id"], time.time())
        found = await ask(face, walk)
    assert [row[0] for row in found] == list(range(10007, 10001, -1))
    assert {(row[1], *row[2]) for row in found} == {("pending", "linux")}


async def test_job_lists_have_links_and_no_totals() -> None:
    async with serving() as face:
        face.submit(pipeline(*[("true",)] * 5))
        path = "projects/acme%2Fshop/jobs?per_page=2&page=2&scope[]=pending"
        _, headers, body = await call(face, "GET", path, PRIVATE_TOKEN=READ)
        assert [job["id"] for job in json.loads(body)] == [10003, 10002]
        assert (headers["X-Page"], headers["X-Next-Page"], "X-Total" in headers) == ("2", "3", False)
        assert 'rel="next"' in headers["Link"]
        assert 'rel="last"' not in headers["Link"]
        _, headers, _ = await call(face, "GET", "groups/acme/projects", Authorization=f"Bearer {READ}")
        assert headers["X-Total"] == "1"


@pytest.mark.parametrize(
    "query",
    ["scope[]=queued", "per_page=0", "page=x", "pagination=keyset&order_by=name", "pagination=keyset&cursor=%21"],
)
async def test_bad_list_parameters_are_refused(query: str) -> None:
    async with serving() as face:
        face.submit(pipeline(("true",)))
        status, _, _ = await call(face, "GET", f"projects/acme%2Fshop/jobs?{query}", PRIVATE_TOKEN=READ)
    assert status in {400, 405}


async def test_projects_and_groups_are_found_by_id_and_by_path() -> None:
    async with serving() as face:
        face.submit(pipeline(("true",), repo="acme/web/site"))
        face.submit(pipeline(("true",), repo="acme/shop"))

        def look(gl: gitlab.Gitlab) -> list[object]:
            project = gl.projects.get("acme/web/site")
            group = gl.groups.get("acme")
            nested = group.projects.list(include_subgroups=True, archived=False, get_all=True)
            direct = group.projects.list(get_all=True)
            return [
                gl.projects.get(project.id).path_with_namespace,
                sorted(p.path_with_namespace for p in nested),
                [p.path_with_namespace for p in direct],
                [g.full_path for g in gl.groups.list(get_all=True)],
                gl.version()[0],
            ]

        found = await ask(face, look)
        assert (await refused(face, lambda gl: gl.projects.get("acme/ghost"))).response_code == 404
    assert found == ["acme/web/site", ["acme/shop", "acme/web/site"], ["acme/shop"], ["acme", "acme/web"], "19.4.0"]


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


async def test_a_failed_job_is_retried_once_and_its_successor_is_found() -> None:
    async with serving() as face:
        face.submit(pipeline(("false",)))
        runner = add_runner(face)
        _, _, job = await request_job(face, runner.token)
        path, token = f"jobs/{job['id']}", job["token"]
        for state in ("running", "failed"):
            status, headers, text = await call(
                face, "PUT", path, body={"token": token, "state": state, "failure_reason": "runner_interrupted"}
            )
            assert (status, text) == (200, b"200")
        assert headers["Job-Status"] == "failed"

        def retry(gl: gitlab.Gitlab) -> list[tuple[int, str, str | None]]:
            project = gl.projects.get("acme/shop")
            project.jobs.get(job["id"]).retry()
            attempts = project.pipelines.get(2001).jobs.list(include_retried=True, get_all=True)
            return [(j.id, j.status, getattr(j, "failure_reason", None)) for j in attempts]

        assert await ask(face, retry) == [(10002, "pending", None), (10001, "failed", "runner_interrupted")]
        error = await refused(face, lambda gl: gl.projects.get("acme/shop").jobs.get(job["id"]).retry())
        assert (error.response_code, str(error).endswith("Job is not retryable")) == (403, True)


async def test_cancel_is_graceful_and_force_ends_it() -> None:
    async with serving() as face:
        face.submit(pipeline(("true",)))
        _, _, job = await request_job(face, add_runner(face).token)
        await call(face, "PUT", f"jobs/{job['id']}", body={"token": job["token"], "state": "running"})

        def cancel(gl: gitlab.Gitlab) -> str:
            gl.projects.get("acme/shop").jobs.get(job["id"]).cancel()
            return str(gl.projects.get("acme/shop").jobs.get(job["id"]).status)

        assert await ask(face, cancel) == "canceling"
        status, headers, _ = await call(
            face, "PATCH", f"jobs/{job['id']}/trace", data=b"hi", JOB_TOKEN=job["token"],
            Content_Type="text/plain", Content_Range="0-1",
        )  # fmt: skip
        assert (status, headers["Job-Status"]) == (202, "canceling")
        forced = f"projects/acme%2Fshop/jobs/{job['id']}/cancel?force=true"
        assert (await call(face, "POST", forced, PRIVATE_TOKEN=API))[0] == 201
        status, headers, _ = await call(
            face, "PUT", f"jobs/{job['id']}", body={"token": job["token"], "state": "running"}
        )
        assert (status, headers["Job-Status"]) == (403, "canceled")


@pytest.mark.parametrize(
    ("token", "method", "path", "status"),
    [
        (None, "GET", "projects", 401),
        ("glpat-unknown", "GET", "projects", 401),
        (READ, "GET", "projects", 200),
        (CREATE, "GET", "projects", 403),
        (READ, "POST", "user/runners", 403),
        (RUNNERS, "GET", "runners", 200),
        (RUNNERS, "GET", "projects", 403),
        (READ, "POST", "projects/acme%2Fshop/jobs/10001/retry", 403),
        (READ, "GET", "personal_access_tokens/self", 200),
        (API, "GET", "nowhere", 404),
        (API, "POST", "projects", 405),
    ],
)
async def test_tokens_and_scopes_decide(token: str | None, method: str, path: str, status: int) -> None:
    async with serving() as face:
        face.submit(pipeline(("true",)))
        answer = await (call(face, method, path, PRIVATE_TOKEN=token) if token else call(face, method, path))
        assert answer[0] == status


async def test_too_many_job_lists_are_answered_429_without_rate_headers() -> None:
    async with serving(limits=GitLabLimits(jobs_per_minute=2)) as face:
        face.submit(pipeline(("true",)))
        answers = [await call(face, "GET", "projects/300/jobs", PRIVATE_TOKEN=READ) for _ in range(5)]
    # The window may turn in between: more than the limit in a row is refused all the same.
    assert [status for status, _, _ in answers].count(429) >= 1
    assert all("RateLimit-Limit" not in headers for _, headers, _ in answers)


async def test_the_api_limit_says_when_to_come_back() -> None:
    async with serving(limits=GitLabLimits(api_per_minute=1)) as face:
        answers = [await call(face, "GET", "version", PRIVATE_TOKEN=READ) for _ in range(3)]
        _, headers, body = next(answer for answer in answers if answer[0] == 429)
        assert body == b"Retry later\n"
        assert 1 <= int(headers["Retry-After"]) <= 60
        assert (headers["RateLimit-Limit"], headers["RateLimit-Remaining"]) == ("1", "0")
        assert answers[0][1]["RateLimit-Observed"] == "1"


async def test_forge_errors_are_502_and_change_nothing() -> None:
    async with serving(faults=Faults(forge_error=1.0)) as face:
        face.submit(pipeline(("true",)))
        runner = add_runner(face)
        assert (await request_job_raw(face, runner.token))[0] == 502
        assert (await refused(face, lambda gl: gl.projects.get("acme/shop"))).response_code == 502
        assert only_job(face).handed_to is None
        face.world.delete_runner(runner.id)


async def request_job_raw(face: GitLabFace, token: str) -> tuple[int, dict[str, str], bytes]:
    return await call(face, "POST", "jobs/request", body={"info": INFO, "token": token, "system_id": "s_1"})


async def test_webhooks_are_signed_and_carry_the_documented_headers() -> None:
    vectors = json.loads((require_shared() / "fixtures/gitlab/webhook_headers.json").read_text())
    async with receiving() as receiver, serving(webhook_url=receiver.url) as face:
        face.submit(pipeline(("true",)))
        got = await receiver.wait_for(2)
        documented = set(vectors["signing_token_variant"]["headers"]) | set(vectors["secret_token_variant"]["headers"])
        for headers, body in got:
            assert documented <= set(headers)
            assert (headers["X-Gitlab-Event"], headers["X-Gitlab-Token"]) == ("Job Hook", "hook-token")
            assert headers["X-Gitlab-Instance"] == face.world.base_url
            assert headers["webhook-id"] == headers["Idempotency-Key"]
            assert abs(time.time() - int(headers["webhook-timestamp"])) < 60
            message = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            key = base64.b64decode(SIGNING_SECRET.removeprefix("whsec_"))
            expected = base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode()
            assert headers["webhook-signature"] == f"v1,{expected}"
        assert len({headers["Idempotency-Key"] for headers, _ in got}) == 2
        assert {json.loads(body)["build_status"] for _, body in got} == {"created", "pending"}


def test_the_signature_is_that_of_the_vector() -> None:
    folder = require_shared() / "fixtures" / "gitlab"
    vector = json.loads((folder / "webhook_headers.json").read_text())["signing_token_variant"]
    headers, body = vector["headers"], (folder / "job_pending.json").read_bytes()
    made = signature(vector["signing_token"], headers["webhook-id"], headers["webhook-timestamp"], body)
    assert made == headers["webhook-signature"]


async def test_a_refused_webhook_is_not_sent_again_and_a_lost_one_never() -> None:
    async with receiving(status=500) as receiver, serving(webhook_url=receiver.url) as face:
        face.submit(pipeline(("true",)))
        await receiver.wait_for(2)
        await face.webhooks.flush()
        assert (len(receiver.got), face.webhooks.failed, face.webhooks.sent) == (2, 2, 0)
    async with receiving() as receiver, serving(webhook_url=receiver.url, faults=Faults(lost_webhook=1.0)) as face:
        face.submit(pipeline(("true",)))
        await face.webhooks.flush()
        assert (receiver.got, face.webhooks.lost) == ([], 2)


async def test_project_and_group_hooks_are_configured_through_the_api_and_hear_their_jobs() -> None:
    async with receiving() as receiver, serving() as face:
        face.world.add_project("acme/shop", time.time())

        def configure(gl: gitlab.Gitlab) -> None:
            project, group = gl.projects.get("acme/shop"), gl.groups.get("acme")
            hook = project.hooks.create({"url": receiver.url, "job_events": False, "token": "secret-token-1"})
            assert "secret-token-1" not in json.dumps(hook.attributes)
            hook.job_events = True
            hook.save()
            other = group.hooks.create({"url": receiver.url, "job_events": True})
            assert [h.id for h in project.hooks.list(get_all=True)] == [hook.id]
            group.hooks.create({"url": receiver.url}).delete()
            assert [h.id for h in group.hooks.list(get_all=True)] == [other.id]

        await ask(face, configure)
        face.submit(pipeline(("true",)))
        face.submit(pipeline(("true",), repo="other/place"))
        await face.webhooks.flush()
        assert sorted(headers.get("X-Gitlab-Token", "") for headers, _ in receiver.got) == [
            "",
            "",
            *["secret-token-1"] * 2,
        ]


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
