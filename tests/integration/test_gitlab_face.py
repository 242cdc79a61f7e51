"""The sandbox's GitLab over HTTP, as python-gitlab (unmodified) and a runner's raw calls see it."""

import base64
import hashlib
import hmac
import json
import time

import gitlab
import pytest

from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.gitlab_access import GitLabLimits
from autoscaler.sandbox.gitlab_webhooks import signature
from tests.integration.gitlab_sandbox import (
    API,
    CREATE,
    READ,
    RUNNERS,
    SIGNING_SECRET,
    add_runner,
    ask,
    call,
    only_job,
    pipeline,
    receiving,
    refused,
    request_job,
    serving,
)
from tests.shared import require_shared


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
        assert (await call(face, "POST", "jobs/request", body={"token": runner.token}))[0] == 502
        assert (await refused(face, lambda gl: gl.projects.get("acme/shop"))).response_code == 502
        assert only_job(face).handed_to is None
        face.world.delete_runner(runner.id)


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
