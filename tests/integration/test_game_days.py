"""Game days as people begin them: the guards of the API, and one over a real daemon with real machines."""

import argparse
import json
from typing import Any

import pytest

from autoscaler.client import ask
from autoscaler.http.chaos import NO_TOKEN, SWITCHED_OFF
from tests.integration.daemon_kit import Site, pool_text, site
from tests.integration.test_admin_api import BEARER, TOKEN, Admin, serve, validate
from tests.polling import until

SLOW = "sleep 60"
"""Ends with its machine; the second attempt is told apart by a file."""


async def order(admin: Admin, body: Any, **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, str) else json.dumps(body)
    async with admin.client.post(admin.url + "/api/v1/chaos", data=data, headers=headers) as answer:
        return answer.status, json.loads(await answer.text())


async def test_game_days_are_refused_unless_the_configuration_allows_them() -> None:
    async with serve(TOKEN) as admin:
        assert await order(admin, {"pool": "linux", "share": 0.1}, **BEARER) == (403, {"error": SWITCHED_OFF})


async def test_a_game_day_needs_a_token_even_on_loopback() -> None:
    async with serve() as admin:
        admin.view.allows_game_days = True
        assert await order(admin, {"pool": "linux", "share": 0.1}) == (403, {"error": NO_TOKEN})


async def test_strangers_and_foreign_pages_begin_no_game_day() -> None:
    async with serve(TOKEN) as admin:
        admin.view.allows_game_days = True
        assert (await order(admin, {"pool": "linux", "share": 0.1}))[0] == 401
        assert await admin.login() == 303
        status, said = await order(admin, {"pool": "linux", "share": 0.1}, Origin="http://evil.example")
        assert (status, "status page itself" in said["error"]) == (403, True)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"pool": "linux"}, "share: Field required"),
        ({"pool": "linux", "share": 0}, "share: Input should be greater than 0"),
        ({"pool": "linux", "share": 1.01}, "share: Input should be less than or equal to 1"),
        ({"pool": "linux", "share": True}, "share"),
        ({"pool": "linux", "share": "0.1"}, "share"),
        ('{"pool": "linux", "share": NaN}', "share"),
        ({"pool": "linux", "share": 0.1, "zone": "a"}, "zone: Extra inputs are not permitted"),
        ({"pool": "", "share": 0.1}, "pool"),
        ("no json", "body: Invalid JSON"),
        ("", "body"),
        ("[]", "body"),
    ],
)
async def test_wrong_orders_are_refused_with_what_is_wrong(body: Any, said: str) -> None:
    async with serve(TOKEN) as admin:
        admin.view.allows_game_days = True
        status, answer = await order(admin, body, **BEARER)
        assert status == 400
        assert said in answer["error"]


async def test_unknown_pools_and_game_days_are_not_found() -> None:
    async with serve(TOKEN) as admin:
        admin.view.allows_game_days = True
        assert (await order(admin, {"pool": "none", "share": 0.1}, **BEARER))[0] == 404
        assert (await admin.get("/api/v1/chaos/g-none", **BEARER))[0] == 404


async def a_busy_daemon(here: Site) -> Any:
    hook = here.folder / "save.sh"
    hook.write_text('#!/bin/sh\n[ -w "$HOME" ] && [ -n "$RUNNER_NAME" ]\n')
    hook.chmod(0o755)
    hooks = f'[image.hooks]\non_interruption = "{hook}"\n'
    daemon = here.daemon(pools=pool_text("data", "gitlab", "data") + hooks)
    text = daemon.config.read_text().replace('tick = "0.3s"', 'tick = "0.3s"\nchaos = true')
    daemon.config.write_text(text.replace("keep_ended_s = 30", "keep_ended_s = 30\nnotice_s = 4"))
    await daemon.start()
    here.submit_gitlab(*[f'test -e "{here.folder}/go" || {SLOW}'] * 2, labels=("data",))

    async def is_running() -> bool:
        rows = (await daemon.api("jobs?state=running"))["jobs"]
        return len([job for job in rows if job["instance"]]) == 2

    await until(is_running, timeout_s=30)
    (here.folder / "go").touch()
    return daemon


async def test_game_day_on_real_machines_tells_what_it_cost(capsys: pytest.CaptureFixture[str]) -> None:
    async with site() as here:
        daemon = await a_busy_daemon(here)
        common = {"url": daemon.admin, "token": daemon.admin_token, "json": True, "share": 0.5, "wait": 60.0}
        unknown = argparse.Namespace(**common, pool="dada", no_notice=False)
        assert await ask("chaos", unknown) == 2
        assert "there is no pool 'dada'; did you mean data?" in capsys.readouterr().err
        assert await ask("chaos", argparse.Namespace(**common, pool="data", no_notice=False)) == 0
        said = capsys.readouterr()
        report = json.loads(said.out)
        assert (report["over"], report["taken"], report["candidates"]) == (True, 1, 2)
        assert report["jobs"]["lost"] == report["jobs"]["requeued"] == report["jobs"]["running_again"] == 1
        assert report["running_again_s"]["max"] < 30
        assert report["lost_work_usd"] > 0
        assert f"{report['id']}: 1 of 1 machines taken, 1 jobs lost, 1 running again" in said.err
        document = await daemon.api("openapi.json")
        validate(document, document["paths"]["/api/v1/chaos"]["post"], report)
        listed = await daemon.api("chaos")
        validate(document, document["paths"]["/api/v1/chaos"]["get"], listed)
        assert [day["id"] for day in listed["game_days"]] == [report["id"]]
        await daemon.kill()
        await daemon.start()
        again = await daemon.api(f"chaos/{report['id']}")
        assert again["jobs"] == report["jobs"]
        taken = await daemon.api(f"instances/{report['machines'][0]}")
        assert (taken["ending"], taken["interruption"]["game_day"]) == ("chaos", True)
        assert 0 <= taken["interruption"]["hook_s"] < 4
        (hook,) = [
            line
            for line in (await daemon.api(f"ledger?subject={taken['job']}"))["ledger"]
            if line["action"] == "interruption_hook"
        ]
        assert (hook["actor"], hook["outcome"]) == ("agent", "ok")
        ledger = (await daemon.api(f"ledger?subject={report['id']}"))["ledger"]
        assert [line["actor"] for line in ledger] == ["operator with token 1"] * 2
