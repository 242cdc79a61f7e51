"""What machines cost, asked of the admin API over real HTTP: sums, periods, the table."""

import csv
import io
from collections.abc import AsyncIterator

import pytest

from autoscaler.model import Use
from autoscaler.spi import InstanceId
from autoscaler.store import Changes
from tests.contract.store_builders import a_cost
from tests.integration.test_admin_api import BEARER, TOKEN, Admin, serve


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    async with serve(TOKEN) as one:
        yield one


async def test_costs_add_up_to_what_is_live_and_what_ended_today(admin: Admin) -> None:
    _, costs = await admin.get("/api/v1/costs", **BEARER)
    _, status = await admin.get("/api/v1/status", **BEARER)
    assert costs["ended_today"] == [{"provider": "aws", "usd": status["spent_today_usd"]}]
    assert sum(pool["instances"] for pool in costs["live"]) == status["instances"]
    assert all(pool["usd_so_far"] > 0 for pool in costs["live"])
    assert costs["total"]["usd"] == pytest.approx(sum(costs["total"]["usd_by_use"].values()), abs=1e-9)
    for group in ("pool", "provider", "capacity_type", "repo", "workflow", "day"):
        assert sum(one["usd"] for one in costs[f"by_{group}"]) == pytest.approx(costs["total"]["usd"], abs=1e-9)


async def test_ended_machines_are_charged_to_their_repo_for_the_asked_period(admin: Admin) -> None:
    lines = [a_cost("i-9001", usd_nano=2_000_000_000), a_cost("i-9002", usd_nano=1_000_000_000, repo="a/b")]
    await admin.view.store.commit(Changes(costs=lines, job_uses={InstanceId("i-9002"): Use.LOST}))
    _, costs = await admin.get("/api/v1/costs?since=2026-11-21&until=2026-11-22", **BEARER)
    assert [(one["name"], one["usd"], one["savings_usd"]) for one in costs["by_repo"]] == [
        ("org/repo", 2.0, 4.0),
        ("a/b", 1.0, -1.0),  # lost work would not have been lost on demand
    ]
    assert not costs["includes_live"]
    assert costs["total"]["usd_by_use"]["lost"] == 1.0


async def test_costs_are_there_as_a_table_that_no_spreadsheet_runs(admin: Admin) -> None:
    await admin.view.store.commit(Changes(costs=[a_cost("i-9001", repo="=cmd|'/c calc'!A1")]))
    status, table = await admin.get("/api/v1/costs.csv?since=2026-11-21&until=2026-11-22", **BEARER)
    assert status == 200
    (line,) = list(csv.DictReader(io.StringIO(table)))
    assert (line["repo"], line["use"], line["seconds"]) == ("'=cmd|'/c calc'!A1", "job", "61.000")
    assert line["usd"] == "0.000000007"


@pytest.mark.parametrize("period", ["since=yesterday", "since=2026-11-22&until=2026-11-21", "since=0001-01-01"])
async def test_a_period_that_is_none_is_refused_with_what_to_write(admin: Admin, period: str) -> None:
    status, answer = await admin.get(f"/api/v1/costs?{period}", **BEARER)
    assert status == 400
    assert "since" in answer["error"]
