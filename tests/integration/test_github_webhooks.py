"""The sandbox's webhooks as a receiver gets them, and the deliveries API that finds the failed ones."""

import json
import time
from typing import Any

import aiohttp
import jsonschema
import jwt

from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.github_auth import AppIdentity
from autoscaler.sandbox.github_deliveries import signature
from autoscaler.sandbox.github_model import WorldPolicy
from autoscaler.sandbox.github_world import GitHubWorld
from tests.integration.github_sandbox import REPO, Receiver, job, run_of, serve_next, served
from tests.shared import require_shared

SECRET = "It's a Secret to Everybody"
APP, APP_KEY = AppIdentity.generate()


def app_headers() -> dict[str, str]:
    now = int(time.time())
    proof = jwt.encode({"iss": APP.client_id, "iat": now - 60, "exp": now + 540}, APP_KEY, algorithm="RS256")
    return {"Authorization": f"Bearer {proof}"}


async def test_webhooks_are_signed_and_follow_the_schemas() -> None:
    schemas = require_shared() / "fixtures" / "github" / "schemas"
    receiver = Receiver()
    world = GitHubWorld([REPO], policy=WorldPolicy(protected={"deploy": 0.05}))
    async with receiver.listening(), served(world, app=APP, webhook_url=receiver.url, webhook_secret=SECRET) as here:
        run_id = here.face.submit(run_of(job("build"), job("deploy"), job("test", needs=("build",))))
        await serve_next(here, "failure")
        here.world.advance(time.time() + 1)
        await serve_next(here, "success", name="other")
        async with here.client.post(f"/repos/{REPO}/actions/runs/{run_id}/rerun-failed-jobs") as response:
            assert response.status == 201
        await here.face.webhooks_settled()
    seen = set()
    for row in receiver.received:
        assert row.headers["X-Hub-Signature-256"] == signature(SECRET.encode(), row.body)
        event, action = row.headers["X-GitHub-Event"], row.payload.get("action")
        if event == "ping":
            continue
        seen.add((event, action))
        schema = json.loads((schemas / f"{event}.{action}.schema.json").read_text())
        jsonschema.Draft7Validator(schema).validate(row.payload)
        assert row.payload["installation"]["id"] == here.world.accounts["octo-org"].installation_id
        if event == "workflow_job":
            assert 7_000 < len(json.dumps(row.payload)) < 16_000
    jobs = {("workflow_job", action) for action in ("queued", "waiting", "in_progress", "completed")}
    assert seen == jobs | {("workflow_run", action) for action in ("requested", "in_progress", "completed")}


def test_the_signature_matches_the_published_vector() -> None:
    expected = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert signature(SECRET.encode(), b"Hello, World!") == expected


async def test_a_failed_delivery_is_recorded_never_repeated_and_redelivered_with_its_guid() -> None:
    receiver = Receiver()
    receiver.status = 500
    async with receiver.listening(), served(app=APP, webhook_url=receiver.url, webhook_secret=SECRET) as here:
        here.face.submit(run_of())
        await here.face.webhooks_settled()
        assert len(receiver.received) == 3
        receiver.status = 202
        async with aiohttp.ClientSession(here.url, headers=app_headers()) as app:
            rows: list[Any] = []
            url: str | None = "/app/hook/deliveries?per_page=2"
            while url:
                async with app.get(url) as response:
                    rows += await response.json()
                    following = response.links.get("next")
                    url = None if following is None else str(following["url"])
            assert {row["event"] for row in rows} == {"ping", "workflow_job", "workflow_run"}
            assert {row["status_code"] for row in rows} == {500}
            failed = next(row for row in rows if row["event"] == "workflow_job")
            async with app.get(f"/app/hook/deliveries/{failed['id']}") as response:
                assert (await response.json())["request"]["payload"]["action"] == "queued"
            async with app.post(f"/app/hook/deliveries/{failed['id']}/attempts") as response:
                assert response.status == 202
            await here.face.webhooks_settled()
            guids = [row.headers["X-GitHub-Delivery"] for row in receiver.of("workflow_job")]
            assert guids == [failed["guid"]] * 2
            async with app.get("/app/hook/deliveries?status=success") as response:
                again = await response.json()
            assert [(row["guid"], row["redelivery"], row["status"]) for row in again] == [(failed["guid"], True, "OK")]


async def test_a_receiver_that_hangs_or_is_absent_is_recorded_without_a_status_code() -> None:
    receiver = Receiver()
    receiver.hangs = True
    async with receiver.listening(), served(webhook_timeout_s=0.2) as here:
        for url in (receiver.url, "http://127.0.0.1:9/closed"):
            body = {"name": "web", "config": {"url": url, "secret": SECRET}, "events": ["workflow_job"]}
            async with here.client.post("/orgs/octo-org/hooks", json=body) as response:
                assert response.status == 201
                hook = (await response.json())["id"]
            await here.face.webhooks_settled()
            async with here.client.get(f"/orgs/octo-org/hooks/{hook}/deliveries") as response:
                row = (await response.json())[0]
                assert (row["status_code"], row["event"]) == (0, "ping")
                assert row["status"] in ("timed out", "failed to connect to host")


async def test_repository_hooks_receive_their_own_repository_only() -> None:
    receiver = Receiver()
    async with receiver.listening(), served(GitHubWorld([REPO, "octo-org/other"])) as here:
        body = {"name": "web", "config": {"url": receiver.url, "secret": SECRET}, "events": ["workflow_job"]}
        async with here.client.post(f"/repos/{REPO}/hooks", json=body) as response:
            assert (await response.json())["config"]["secret"] == "********"
            hook = (await response.json())["id"]
        here.face.submit(run_of())
        here.face.submit(run_of(repo="octo-org/other"))
        await here.face.webhooks_settled()
        names = [row.payload["repository"]["full_name"] for row in receiver.of("workflow_job")]
        assert names == [REPO]
        async with here.client.get(f"/repos/{REPO}/hooks") as response:
            assert [row["id"] for row in await response.json()] == [hook]
        async with here.client.post(f"/repos/{REPO}/hooks/{hook}/pings") as response:
            assert response.status == 204
        await here.face.webhooks_settled()
        assert len(receiver.of("ping")) == 2


async def test_lost_webhooks_are_neither_sent_nor_recorded() -> None:
    receiver = Receiver()
    faults = Faults(lost_webhook=1)
    async with receiver.listening(), served(app=APP, webhook_url=receiver.url, faults=faults) as here:
        here.face.submit(run_of())
        await here.face.webhooks_settled()
        assert receiver.received == []
        assert here.face.deliveries.lost == 3
        (hook_id,) = here.world.hooks
        assert here.face.deliveries.of_hook(hook_id) == []
        faults.lost_webhook = 0
        here.face.submit(run_of())
        await here.face.webhooks_settled()
        assert len(receiver.of("workflow_job")) == 1


async def test_the_apps_hook_can_be_pointed_elsewhere() -> None:
    receiver = Receiver()
    async with receiver.listening(), served(app=APP, webhook_url="http://127.0.0.1:9/closed") as here:
        async with aiohttp.ClientSession(here.url, headers=app_headers()) as app:
            body = {"url": receiver.url, "secret": SECRET}
            async with app.patch("/app/hook/config", json=body) as response:
                assert response.status == 200
            async with app.get("/app/hook/config") as response:
                assert await response.json() == {
                    "url": receiver.url,
                    "content_type": "json",
                    "insecure_ssl": "0",
                    "secret": "********",
                }
        here.face.submit(run_of())
        await here.face.webhooks_settled()
        (row,) = receiver.of("workflow_job")
        assert row.headers["X-Hub-Signature-256"] == signature(SECRET.encode(), row.body)


async def test_an_organisations_hook_lists_and_redelivers_its_own_deliveries() -> None:
    receiver = Receiver()
    async with receiver.listening(), served() as here:
        body = {"name": "web", "config": {"url": receiver.url, "secret": SECRET}, "events": ["workflow_job"]}
        async with here.client.post("/orgs/octo-org/hooks", json=body) as response:
            hook = (await response.json())["id"]
        await here.face.webhooks_settled()
        base = f"/orgs/octo-org/hooks/{hook}/deliveries"
        async with here.client.get(base) as response:
            (row,) = await response.json()
        async with here.client.get(f"{base}/{row['id']}") as response:
            assert (await response.json())["request"]["headers"]["X-GitHub-Delivery"] == row["guid"]
        for number, status in ((row["id"], 202), (1, 404)):
            async with here.client.post(f"{base}/{number}/attempts") as response:
                assert response.status == status
        await here.face.webhooks_settled()
        assert [sent.headers["X-GitHub-Delivery"] for sent in receiver.received] == [row["guid"]] * 2
