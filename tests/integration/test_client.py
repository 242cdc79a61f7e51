"""status, why, drain, pause and resume against a served admin listener, as people and scripts meet them."""

import argparse
import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from aiohttp import web

from autoscaler.client import ask
from autoscaler.client_text import Palette, clean, status_text
from autoscaler.http.admin import make_admin_app
from autoscaler.metrics import Metrics
from autoscaler.model import JobState, PoolControl
from autoscaler.spi import Secret
from tests.admin_world import ExampleView, busy_view, job

TOKEN = "t0ken-of-the-operators"


@dataclass
class Admin:
    view: ExampleView
    url: str


@asynccontextmanager
async def serving(*tokens: str) -> AsyncIterator[Admin]:
    view = await busy_view()
    app = make_admin_app(view, Metrics(), tuple(Secret(token) for token in tokens))
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Admin(view, f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


@pytest.fixture
async def admin(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Admin]:
    monkeypatch.delenv("AUTOSCALER_TOKEN", raising=False)
    async with serving(TOKEN) as one:
        yield one


def options(admin: Admin, **given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"url": admin.url, "token": TOKEN, "json": False, **given})


async def test_status_shows_health_with_remedies_pools_and_reasons(
    admin: Admin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await ask("status", options(admin)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("acme-ci  NOT READY")
    assert "forge/gitlab  for 4 min 20 s: 401 Unauthorized from gitlab.example.com" in lines[1]
    assert lines[2].strip().startswith("-> The token was revoked or has expired")
    text = "\n".join(lines)
    assert "jobs       19 queued, 11 running, 0 lost, 2 served by no pool" in text
    heading = next(line for line in lines if line.startswith("POOL"))
    gpu = next(line for line in lines if line.startswith("gpu "))
    assert gpu[heading.index("QUEUED")] == "3"
    assert gpu[heading.index("INSTANCES") :].startswith("1 busy (max 1)")
    assert next(line for line in lines if line.startswith("arm-small")).endswith("paused")
    assert "gpu: 3 jobs wait: pool gpu has its max of 1 machine" in lines
    assert "\033" not in text


async def test_status_as_json_is_the_api_document(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert await ask("status", options(admin, json=True)) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["deployment"] == "acme-ci"
    assert [pool["name"] for pool in document["pools"]] == ["arm-small", "gpu", "linux"]


def pool_document(name: str, *, oldest_wait_s: float) -> dict[str, Any]:
    idle: dict[str, Any] = {
        "control": "active",
        "running": 0,
        "instances": {},
        "max": 2,
        "blocked": [],
        "held_back": "",
    }
    return {"name": name, "queued": 1, "oldest_wait_s": oldest_wait_s, "target_s": 60.0, **idle}


def test_colour_marks_only_what_needs_a_look() -> None:
    status = {
        "deployment": "d",
        "now": "2026-01-01T00:00:00.000Z",
        "ready": True,
        "conditions": [],
        "troubles": [{"target": "aws", "text": "no message ever came"}],
        "jobs": {"queued": 2, "running": 0, "lost": 0},
        "unserved": 0,
        "instances": 0,
        "caps": {"instances": None, "usd_per_hour": None, "usd_per_day": None},
        "spent_today_usd": 0.0,
        "cooling": {"capacity_pools": 3, "scopes": 1},
        "pools": [pool_document("calm", oldest_wait_s=5), pool_document("late", oldest_wait_s=75)],
    }
    lines = status_text(status, Palette(True)).splitlines()
    calm, late = (next(line for line in lines if line.startswith(name)) for name in ("calm", "late"))
    assert "cooling    3 capacity pools and 1 quota or subnet" in lines
    assert any("no message ever came" in line for line in lines)
    assert "\033" not in calm
    assert "\033[31;1m1 min 15 s\033[0m" in late


@pytest.mark.parametrize(
    "asked",
    [
        "github:77",
        "77",
        "https://github.example.com/acme/shop/actions/runs/1077/job/77",
        "https://github.example.com/acme/shop/actions/runs/1077/job/77?pr=4",
        "https://github.example.com/acme/shop/actions/runs/1077",
        "acme/shop/1077",
        "Acme/Shop/1077/",
    ],
)
async def test_a_job_is_found_by_each_of_its_names(
    admin: Admin, capsys: pytest.CaptureFixture[str], asked: str
) -> None:
    url = "https://github.example.com/acme/shop/actions/runs/1077/job/77"
    row = job(77, admin.view.now(), url=url, name="lint")
    jobs = {**admin.view.snapshot().jobs, row.id: row}
    admin.view.publish(replace(admin.view.snapshot(), jobs=jobs))
    assert await ask("why", options(admin, job=asked)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(".")
    assert "lint of acme/shop, run 1077, queued" in lines
    assert any("Queued at github" in line for line in lines)


async def test_a_run_with_several_jobs_is_explained_job_by_job(
    admin: Admin, capsys: pytest.CaptureFixture[str]
) -> None:
    now = admin.view.now()
    rows = [
        job(201, now, run_id="900", name="build"),
        job(202, now, JobState.RUNNING, run_id="900", name="a longer name", started_at=now),
    ]
    jobs = {**admin.view.snapshot().jobs, **{row.id: row for row in rows}}
    admin.view.publish(replace(admin.view.snapshot(), jobs=jobs))
    assert await ask("why", options(admin, job="acme/shop/900")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "acme/shop, run 900: 2 jobs"
    assert {line[:13].rstrip() for line in lines[1:3]} == {"build", "a longer name"}
    assert await ask("why", options(admin, job="acme/shop/900", json=True)) == 0
    assert {one["id"] for one in json.loads(capsys.readouterr().out)["jobs"]} == {"github:201", "github:202"}


async def test_names_of_jobs_cannot_steer_the_terminal(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    row = job(66, admin.view.now(), name="evil\033]0;owned\a\nname")
    admin.view.publish(replace(admin.view.snapshot(), jobs={row.id: row}))
    assert await ask("why", options(admin, job="66")) == 0
    out = capsys.readouterr().out
    assert "\033" not in out
    assert "\a" not in out
    assert "evil ]0;owned  name of acme/shop" in out
    assert clean("a\u202eb") == "a b"


async def test_an_unserved_job_names_the_nearest_pool(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert await ask("why", options(admin, job="9902")) == 0
    assert "Nearest is pool" in capsys.readouterr().out


async def test_an_unserved_job_is_told_what_to_change_and_that_nobody_knows_when(
    admin: Admin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await ask("why", options(admin, job="github:9901")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "When it starts is not known: no pool serves it."
    assert lines[2].startswith("-> Take arm64 off the job's labels")


async def test_a_waiting_job_is_told_about_when_it_starts(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert await ask("why", options(admin, job="github:13")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"It starts at about [\d:]{8} UTC, by [\d:]{8} in 95 of 100 cases \(its runner is online\)\.", lines[1]
    )


async def test_a_machine_is_asked_about_like_a_job(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert await ask("why", options(admin, job="i-002d")) == 0
    out = capsys.readouterr().out
    assert out.startswith("It is being ended. We ended it because its job was done")
    assert "On this evidence:" in out
    assert await ask("why", options(admin, job="i-002d", json=True)) == 0
    assert json.loads(capsys.readouterr().out)["instance"]["ended_by"] == "autoscaler"


async def test_a_finished_job_comes_from_the_store(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert await ask("why", options(admin, job="9300")) == 0
    assert capsys.readouterr().out.startswith("It is done: success")


async def test_an_unknown_job_says_what_may_be_given(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert await ask("why", options(admin, job="github:930")) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "nothing is known of 'github:930'; looked for the job github:930" in said.err
    assert "did you mean github:9300" in said.err
    assert "repo/run" in said.err


async def test_pools_are_paused_drained_and_resumed(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("pause", "drain", "resume"):
        assert await ask(verb, options(admin, pool="linux")) == 0
    assert [control for _, control, _ in admin.view.controlled] == [
        PoolControl.PAUSED,
        PoolControl.DRAINING,
        PoolControl.ACTIVE,
    ]
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "pool linux is paused: it launches nothing until it is resumed"
    assert out[2] == "pool linux serves jobs again"


async def test_an_unknown_pool_gets_near_misses(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert await ask("pause", options(admin, pool="linxu")) == 2
    assert "there is no pool 'linxu'; did you mean linux?" in capsys.readouterr().err
    assert await ask("pause", options(admin, pool="../status")) == 2
    assert "there are: arm-small, gpu, linux" in capsys.readouterr().err
    assert admin.view.controlled == []


async def test_no_daemon_says_which_address_and_how_to_set_it(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        given = argparse.Namespace(url=url, token=TOKEN, json=False)
        assert await ask("status", given) == 1
    said = capsys.readouterr().err
    assert f"no daemon answers at {url}" in said
    assert "--url" in said
    assert "$AUTOSCALER_URL" in said
    assert TOKEN not in said


@pytest.mark.parametrize("url", ["127.0.0.1:9480", "ftp://host", "http://"])
async def test_an_address_that_is_none_is_a_usage_error(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await ask("status", argparse.Namespace(url=url, token=None, json=False)) == 2
    assert "is not an address" in capsys.readouterr().err


async def test_a_wrong_token_and_none_are_told_apart(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert await ask("status", options(admin, token="wrong-token")) == 2
    said = capsys.readouterr().err
    assert "does not know this token" in said
    assert "wrong-token" not in said
    assert await ask("status", options(admin, token=None)) == 2
    assert "wants a token" in capsys.readouterr().err


@asynccontextmanager
async def answering(status: int) -> AsyncIterator[str]:
    """A server that gives everybody the same answer."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text="no")

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, 2, "is not an autoscaler's admin listener"),
        (503, 1, "stands by: another daemon works on its store"),
        (500, 1, "answered 500"),
        (302, 1, "answered 302"),
        (200, 1, "answered 200"),
    ],
)
async def test_answers_of_others_are_named(
    status: int, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with answering(status) as url:
        assert await ask("status", argparse.Namespace(url=url, token=None, json=False)) == code
    assert said in capsys.readouterr().err


async def test_the_commands_take_address_and_token_from_the_environment(admin: Admin) -> None:
    code, out, err = await _autoscaler("status", "--json", AUTOSCALER_URL=admin.url, AUTOSCALER_TOKEN=TOKEN)
    assert (code, err) == (0, "")
    assert json.loads(out)["deployment"] == "acme-ci"
    code, out, _ = await _autoscaler("resume", "gpu", "--url", admin.url, AUTOSCALER_TOKEN=TOKEN)
    assert (code, out) == (0, "pool gpu serves jobs again\n")
    code, out, err = await _autoscaler("why", AUTOSCALER_URL=admin.url)
    assert (code, out) == (2, "")
    assert "JOB" in err


async def _autoscaler(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AUTOSCALER_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "autoscaler", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**kept, **environ},
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()
