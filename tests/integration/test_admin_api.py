"""The admin listener over real HTTP: who may ask, what is answered, and that the OpenAPI document tells the truth.

A little longer than others: one list of all addresses goes through each of its questions.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from autoscaler.http.admin import EVENTS, make_admin_app
from autoscaler.http.auth import FAILURE_WINDOW, FAILURES_PER_WINDOW, SESSION_LIFETIME
from autoscaler.http.history import history_document
from autoscaler.http.live import SHORTEST_INTERVAL_S, LiveState
from autoscaler.metrics import Metrics
from autoscaler.model import Job, JobState, PoolControl
from autoscaler.spi import PoolName, Secret
from autoscaler.store import Changes, Sample, StoreError
from autoscaler.store.memory import MemoryStore
from tests.admin_world import GPU, LINUX, ExampleView, busy_view, pool, rules_of, snapshot_of

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
TOKEN = "t0ken-of-the-operators"
BEARER: dict[str, Any] = {"Authorization": f"Bearer {TOKEN}"}


class SilentStore(MemoryStore):
    """A store whose database is gone."""

    async def recent_jobs(self, *, limit: int, pool: PoolName | None = None, state: str = "") -> Sequence[Job]:
        raise StoreError("cannot open /secret/path")


@dataclass
class Admin:
    """A listener over a view, and a client without cookies of its own unless it logs in."""

    view: ExampleView
    app: web.Application
    url: str
    client: aiohttp.ClientSession

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.client.get(self.url + path, headers=headers, allow_redirects=False) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if answer.content_type == "application/json" else text

    async def post(self, path: str, *, form: dict[str, str] | None = None, **headers: str) -> tuple[int, str]:
        kept = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.post(self.url + path, data=form, headers=kept, allow_redirects=False) as answer:
            return answer.status, await answer.text()

    async def login(self, token: str = TOKEN) -> int:
        status, _ = await self.post("/login", form={"token": token}, Origin=self.url)
        return status


@asynccontextmanager
async def serve(*tokens: str) -> AsyncIterator[Admin]:
    view = await busy_view(at=NOW)
    app = make_admin_app(view, Metrics(), tuple(Secret(token) for token in tokens))
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as client:
        yield Admin(view, app, f"http://127.0.0.1:{runner.addresses[0][1]}", client)
    await runner.cleanup()


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    async with serve(TOKEN, "another-token") as one:
        yield one


@pytest.fixture
async def loopback() -> AsyncIterator[Admin]:
    async with serve() as one:
        yield one


READS = [
    ("/api/v1/status", "/api/v1/status"),
    ("/api/v1/pools", "/api/v1/pools"),
    ("/api/v1/jobs", "/api/v1/jobs?limit=500"),
    ("/api/v1/jobs/{job}", "/api/v1/jobs/github:9510"),
    ("/api/v1/jobs/{job}", "/api/v1/jobs/github:9901"),
    ("/api/v1/jobs/{job}", "/api/v1/jobs/github:9300"),
    ("/api/v1/jobs/{job}/why", "/api/v1/jobs/github:13/why"),
    ("/api/v1/jobs/{job}/why", "/api/v1/jobs/github:9901/why"),
    ("/api/v1/why", "/api/v1/why?q=acme/shop/1013"),
    ("/api/v1/why", "/api/v1/why?q=i-000a"),
    ("/api/v1/instances", "/api/v1/instances"),
    ("/api/v1/instances/{instance}/why", "/api/v1/instances/i-002d/why"),
    ("/api/v1/instances/{instance}", "/api/v1/instances/i-000a"),
    ("/api/v1/offerings", "/api/v1/offerings"),
    ("/api/v1/interruptions", "/api/v1/interruptions?limit=3"),
    ("/api/v1/predictions", "/api/v1/predictions"),
    ("/api/v1/waits", "/api/v1/waits"),
    ("/api/v1/ledger", "/api/v1/ledger?limit=2"),
    ("/api/v1/costs", "/api/v1/costs"),
    ("/api/v1/history", "/api/v1/history"),
]


@pytest.mark.parametrize(("template", "path"), READS)
async def test_answers_are_what_the_openapi_document_says(admin: Admin, template: str, path: str) -> None:
    _, document = await admin.get("/api/v1/openapi.json", **BEARER)
    status, answer = await admin.get(path, **BEARER)
    assert status == 200
    validate(document, document["paths"][template]["get"], answer)


def validate(document: Any, operation: Any, answer: Any, status: str = "200") -> None:
    schema = operation["responses"][status]["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(answer)


async def test_the_openapi_document_is_valid_itself(admin: Admin) -> None:
    _, document = await admin.get("/api/v1/openapi.json", **BEARER)
    OpenAPIV31SpecValidator(document).validate()


async def test_refusals_are_what_the_openapi_document_says(admin: Admin) -> None:
    _, document = await admin.get("/api/v1/openapi.json", **BEARER)
    status, answer = await admin.get("/api/v1/jobs/github:0815", **BEARER)
    validate(document, document["paths"]["/api/v1/jobs/{job}"]["get"], answer, str(status))


async def test_every_api_route_is_in_the_openapi_document_and_the_other_way_round(admin: Admin) -> None:
    _, document = await admin.get("/api/v1/openapi.json", **BEARER)
    routes = {
        (route.resource.canonical, route.method.lower())
        for route in admin.app.router.routes()
        if route.resource and route.resource.canonical.startswith("/api/") and route.method != "HEAD"
    }
    assert routes == {(path, method) for path, item in document["paths"].items() for method in item}


@pytest.mark.parametrize("path", [*(path for _, path in READS), "/metrics", "/events", "/api/v1/openapi.json"])
async def test_nothing_is_told_to_strangers(admin: Admin, path: str) -> None:
    status, _ = await admin.get(path)
    assert status == 401
    status, _ = await admin.get(path, Authorization="Bearer wrong")
    assert status == 401


async def test_the_page_sends_strangers_to_the_login(admin: Admin) -> None:
    async with admin.client.get(admin.url + "/", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/login")


async def test_each_configured_token_opens_the_api(admin: Admin) -> None:
    assert (await admin.get("/api/v1/pools", Authorization="Bearer another-token"))[0] == 200


async def test_health_needs_no_token_and_names_what_is_unwell_with_its_remedy(admin: Admin) -> None:
    assert await admin.get("/healthz") == (200, {"alive": True})
    status, answer = await admin.get("/readyz")
    assert status == 503
    (reason,) = answer["reasons"]
    assert reason["name"] == "forge/gitlab"
    assert "make a new one" in reason["remedy"]
    admin.view.unwell = ()
    assert (await admin.get("/readyz"))[0] == 200


async def test_metrics_mirror_the_snapshot(admin: Admin) -> None:
    status, text = await admin.get("/metrics", **BEARER)
    assert status == 200
    assert 'autoscaler_jobs{pool="linux",state="queued"} 14.0' in text


async def test_live_jobs_come_first_and_recent_ones_after(admin: Admin) -> None:
    _, answer = await admin.get("/api/v1/jobs?limit=1000", **BEARER)
    states = [job["state"] for job in answer["jobs"]]
    assert states[-1] == "done"
    assert "done" not in states[:-1]


async def test_jobs_are_filtered_by_pool_and_state(admin: Admin) -> None:
    _, answer = await admin.get("/api/v1/jobs?pool=gpu&state=queued", **BEARER)
    assert {(job["pool"], job["state"]) for job in answer["jobs"]} == {("gpu", "queued")}
    assert len(answer["jobs"]) == 3


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=%C2%B2", "state=sleeping"])
async def test_bad_filters_are_refused_with_what_is_allowed(admin: Admin, query: str) -> None:
    status, answer = await admin.get(f"/api/v1/jobs?{query}", **BEARER)
    assert status == 400
    assert query.partition("=")[0] in answer["error"]


@pytest.mark.parametrize("asked", ["http://[", "https://[::1/acme/shop/actions/runs/1013", "x:%00", "%ff/%00", "%25"])
async def test_what_names_nothing_is_not_found_however_odd_it_is(admin: Admin, asked: str) -> None:
    status, said = await admin.get(f"/api/v1/why?q={asked}", **BEARER)
    assert (status, "nothing is known of" in said["error"]) == (404, True)


async def test_why_is_one_sentence(admin: Admin) -> None:
    _, answer = await admin.get("/api/v1/jobs/github:9801/why", **BEARER)
    assert answer["why"] == "Pool gpu has its max of 1 machine."


async def test_an_unserved_job_names_the_nearest_pool_and_what_it_lacks(admin: Admin) -> None:
    _, answer = await admin.get("/api/v1/jobs/github:9901", **BEARER)
    assert answer["nearest"] == {"pool": "gpu", "missing": ["arm64"], "repo_served": True}


async def test_the_ledger_is_paged_to_its_end(admin: Admin) -> None:
    seen: list[int] = []
    path = "/api/v1/ledger?limit=2"
    while True:
        _, answer = await admin.get(path, **BEARER)
        seen += [entry["seq"] for entry in answer["ledger"]]
        if answer["before"] is None:
            break
        path = f"/api/v1/ledger?limit=2&before={answer['before']}"
    assert seen == sorted(set(seen), reverse=True)
    assert len(seen) == 6


@pytest.mark.parametrize("path", ["/api/v1/jobs/github:0815", "/api/v1/instances/i-none", "/api/v1/jobs/x/why"])
async def test_the_unknown_is_not_found(admin: Admin, path: str) -> None:
    status, answer = await admin.get(path, **BEARER)
    assert status == 404
    assert answer["error"].startswith("no such")


@pytest.mark.parametrize(
    ("verb", "control"),
    [("drain", PoolControl.DRAINING), ("pause", PoolControl.PAUSED), ("resume", PoolControl.ACTIVE)],
)
async def test_a_pool_is_controlled_in_the_name_of_the_token(admin: Admin, verb: str, control: PoolControl) -> None:
    status, text = await admin.post(f"/api/v1/pools/linux/{verb}", **BEARER)
    assert (status, json.loads(text)) == (200, {"pool": "linux", "control": control.value})
    assert admin.view.controlled == [(LINUX, control, "operator with token 1")]


async def test_an_unknown_pool_cannot_be_controlled(admin: Admin) -> None:
    assert (await admin.post("/api/v1/pools/none/drain", **BEARER))[0] == 404


async def test_a_login_opens_a_session_without_the_token_in_its_cookie(admin: Admin) -> None:
    assert await admin.login() == 303
    (cookie,) = admin.client.cookie_jar
    assert TOKEN not in cookie.value
    assert cookie["httponly"]
    assert cookie["samesite"] == "Strict"
    assert (await admin.get("/"))[0] == 200
    assert (await admin.get("/api/v1/status"))[0] == 200


async def test_a_wrong_token_opens_nothing(admin: Admin) -> None:
    assert await admin.login("wrong") == 401
    assert (await admin.get("/api/v1/status"))[0] == 401


async def test_a_session_ends_with_its_time_and_by_logout(admin: Admin) -> None:
    await admin.login()
    admin.view.advance(SESSION_LIFETIME)
    assert (await admin.get("/api/v1/status"))[0] == 401
    await admin.login()
    (cookie,) = admin.client.cookie_jar
    stolen = f"{cookie.key}={cookie.value}"
    assert (await admin.post("/logout", Origin=admin.url))[0] == 303
    assert (await admin.get("/api/v1/status", Cookie=stolen))[0] == 401


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {}],
)
async def test_a_session_writes_only_from_our_own_page(admin: Admin, headers: dict[str, Any]) -> None:
    await admin.login()
    assert (await admin.post("/api/v1/pools/linux/pause", **headers))[0] == 403
    assert admin.view.controlled == []
    assert (await admin.post("/api/v1/pools/linux/pause", Sec_Fetch_Site="same-origin"))[0] == 200


async def test_guessing_is_limited_and_the_limit_passes(admin: Admin) -> None:
    for _ in range(FAILURES_PER_WINDOW):
        assert await admin.login("wrong") == 401
    assert await admin.login("wrong") == 429
    assert (await admin.get("/api/v1/status", Authorization="Bearer wrong"))[0] == 429
    admin.view.advance(FAILURE_WINDOW)
    assert await admin.login("wrong") == 401


async def test_a_guesser_locks_nobody_out_who_has_a_token(admin: Admin) -> None:
    for _ in range(FAILURES_PER_WINDOW + 1):
        await admin.login("wrong")
    assert (await admin.get("/api/v1/status", **BEARER))[0] == 200
    assert await admin.login() == 303


async def test_a_token_of_half_characters_is_wrong_and_no_failure(admin: Admin) -> None:
    assert not Secret(TOKEN).matches("\ud800")
    assert (await admin.get("/api/v1/status", Authorization="Bearer \udcff"))[0] == 401


async def test_without_tokens_the_api_is_open_on_loopback_and_says_so(loopback: Admin) -> None:
    status, answer = await loopback.get("/api/v1/status")
    assert (status, answer["access"]) == (200, "loopback_only")
    assert (await loopback.post("/api/v1/pools/linux/pause"))[0] == 200
    assert loopback.view.controlled == [(LINUX, PoolControl.PAUSED, "operator on loopback")]


async def test_without_tokens_a_rebound_name_reaches_nothing(loopback: Admin) -> None:
    status, answer = await loopback.get("/api/v1/status", Host="evil.example")
    assert status == 403
    assert "admin_tokens" in answer["error"]


@pytest.mark.parametrize("name", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "Via"])
async def test_without_tokens_a_proxy_on_this_host_opens_nothing(loopback: Admin, name: str) -> None:
    assert (await loopback.get("/api/v1/status", **{name: "203.0.113.7"}))[0] == 403


async def test_without_tokens_a_foreign_page_cannot_write(loopback: Admin) -> None:
    assert (await loopback.post("/api/v1/pools/linux/pause", Origin="https://evil.example"))[0] == 403
    assert loopback.view.controlled == []


@pytest.mark.parametrize("path", ["/", "/login", "/api/v1/status", "/healthz", "/nowhere"])
async def test_every_answer_carries_the_security_headers(loopback: Admin, path: str) -> None:
    async with loopback.client.get(loopback.url + path) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"


async def test_assets_are_cached_for_ever_under_their_digest(loopback: Admin) -> None:
    _, page = await loopback.get("/")
    path = page.split('rel="stylesheet" href="')[1].split('"')[0]
    async with loopback.client.get(loopback.url + path) as answer:
        assert answer.status == 200
        assert "immutable" in answer.headers["Cache-Control"]
    assert (await loopback.get("/assets/0000/style.css"))[0] == 404
    assert (await loopback.get(path.replace("style.css", "login.html")))[0] == 404


async def test_a_store_that_does_not_answer_is_said_without_detail(loopback: Admin) -> None:
    loopback.view.store = SilentStore()
    status, answer = await loopback.get("/api/v1/jobs")
    assert (status, answer) == (503, {"error": "the store does not answer"})


async def test_the_stream_sends_each_change(loopback: Admin) -> None:
    async with loopback.client.get(loopback.url + "/events") as stream:
        first = await next_state(stream)
        assert first["waiting_total"] == 17
        loopback.view.publish(without_queued(loopback.view))
        assert await state_where(stream, lambda state: state["waiting_total"] == 0)


async def test_the_stream_tells_of_machines_and_decisions_newest_first(loopback: Admin) -> None:
    async with loopback.client.get(loopback.url + "/events") as stream:
        happenings = (await next_state(stream))["happenings"]
    assert {line["kind"] for line in happenings} == {"launched", "ready", "took", "ended", "decision"}
    assert len({line["key"] for line in happenings}) == len(happenings)
    assert [line["at"] for line in happenings] == sorted((line["at"] for line in happenings), reverse=True)


async def test_the_stream_lists_the_jobs_that_ended_last(loopback: Admin) -> None:
    async with loopback.client.get(loopback.url + "/events") as stream:
        (ended,) = (await next_state(stream))["ended"]
    assert (ended["conclusion"], ended["wait_s"], ended["took_s"]) == ("success", 30.0, 170.0)


@pytest.mark.parametrize(("age_minutes", "window", "points"), [(0, 5, 30), (4, 5, 30), (9, 15, 60), (40, 60, 60)])
async def test_the_history_of_a_young_deployment_is_its_own_short_window(
    age_minutes: int, window: int, points: int
) -> None:
    view = ExampleView(snapshot_of(), rules_of(pool(LINUX)), at=NOW)
    await view.store.open()
    await view.store.acquire_lease("test")
    at = NOW - timedelta(minutes=age_minutes)
    sample = Sample(at=at, pool=LINUX, queued=1, running=2, oldest_wait_s=3, instances={"busy": 2})
    await view.store.commit(Changes(samples=[sample]))
    document = await history_document(view)
    assert (document["minutes"], len(document["pools"][0]["points"])) == (window, points)
    assert [point["running"] for point in document["pools"][0]["points"] if point] == [2]


async def test_a_machine_tells_its_cost_so_far_and_the_job_it_served(admin: Admin) -> None:
    _, row = await admin.get("/api/v1/instances/i-0000", **BEARER)
    assert row["cost_usd"] == pytest.approx(0.0415 * 140 / 3600, rel=1e-3)
    assert row["served"]["name"] == "build (0)"


async def test_a_machine_that_went_is_told_with_its_last_move(loopback: Admin) -> None:
    async with loopback.client.get(loopback.url + "/events") as stream:
        await next_state(stream)
        snapshot = loopback.view.snapshot()
        kept = {name: row for name, row in snapshot.instances.items() if row.pool != GPU}
        loopback.view.publish(replace(snapshot, instances=kept))
        assert await state_where(stream, lambda state: state["machines_total"] == len(kept))


async def test_streams_end_at_once_when_the_application_stops() -> None:
    async with serve() as one, one.client.get(one.url + "/events") as stream:
        await next_state(stream)
        started = asyncio.get_running_loop().time()
        await one.app.shutdown()
        await stream.content.read()
        assert one.app[EVENTS].open_streams == 0
        assert asyncio.get_running_loop().time() - started < 1


async def test_the_number_of_streams_is_bounded(loopback: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoscaler.http.sse.MAX_STREAMS", 1)
    async with loopback.client.get(loopback.url + "/events") as stream:
        await next_state(stream)
        assert (await loopback.get("/events"))[0] == 503


async def test_many_readers_share_at_most_two_states_a_second() -> None:
    view = await busy_view()
    state = LiveState(view)
    started = asyncio.get_running_loop().time()
    texts = [text for number in (1, 2, 3) for text in await asyncio.gather(*(state.current(number) for _ in range(20)))]
    assert len({id(text) for text in texts}) == 3
    assert asyncio.get_running_loop().time() - started >= 2 * SHORTEST_INTERVAL_S


async def test_a_thousand_live_jobs_make_a_bounded_state() -> None:
    view = await busy_view(at=NOW, waiting=1000, seconds=0.5)
    app = make_admin_app(view, Metrics(), ())
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/events"
    async with aiohttp.ClientSession() as client, client.get(url) as stream:
        state = await next_state(stream)
        assert state["waiting_total"] == 1003
        assert len(state["waiting"]) <= 50
        assert len(json.dumps(state)) < 100_000
    await runner.cleanup()


def without_queued(view: ExampleView) -> Any:
    snapshot = view.snapshot()
    return replace(
        snapshot, jobs={name: job for name, job in snapshot.jobs.items() if job.state is not JobState.QUEUED}
    )


async def next_state(stream: aiohttp.ClientResponse) -> Any:
    return await state_where(stream, lambda _: True)


async def state_where(stream: aiohttp.ClientResponse, is_it: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(10):
        while True:
            line = await stream.content.readuntil(b"\n")
            if line.startswith(b"data: ") and is_it(state := json.loads(line[6:])):
                return state
