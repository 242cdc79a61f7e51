"""GET /api/v1/offerings: what is told of each capacity pool, and that thousands of them are not told unasked."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from autoscaler.http.offerings import BEST, offerings_document
from autoscaler.model import CapacityEvidence, Cooldown, InstanceState, ScopeCooldown
from autoscaler.spi import CapacityScope, CapacityType, Offering, PoolName
from tests.admin_world import GPU, LINUX, OFFERING, SPOT, ExampleView, instance, pool, rules_of, snapshot_of
from tests.integration.test_admin_api import BEARER, TOKEN, Admin, serve

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
BOUGHT = replace(OFFERING, capacity_pool=replace(SPOT, capacity_type=CapacityType.ON_DEMAND), price_usd_hour=0.1)


def offering(number: int) -> Offering:
    place = replace(SPOT, machine_type=f"t{number:04}.large")
    return replace(OFFERING, capacity_pool=place, price_usd_hour=0.05 + number / 10_000)


MANY = tuple(offering(number) for number in range(300))


def view(*offerings: Offering, **changes: Any) -> ExampleView:
    strict = pool(GPU, "gpu", max_spot_price_usd_hour=0.0509, spill_enabled=False, on_demand_from=4)
    given = {"offerings": {LINUX: offerings, GPU: offerings}, **changes}
    machines = given.pop("machines", ())
    return ExampleView(snapshot_of((), machines, **given), rules_of(pool(LINUX, "linux"), strict), at=NOW)


def rows(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{row['machine_type']}/{row['capacity_type']}": row for row in answer["offerings"]}


def test_a_capacity_pool_is_told_with_its_risk_evidence_and_cooldown() -> None:
    known = CapacityEvidence(capacity_pool=SPOT, at=NOW, hours=10.0, interruptions=1.5, asked=4.0, refused=1.0)
    until = NOW + timedelta(seconds=30)
    cooling = Cooldown(capacity_pool=SPOT, until=until, failures=2, reason="no capacity")
    machines = [instance(number, NOW, InstanceState.BUSY) for number in range(3)]
    found = rows(
        offerings_document(view(OFFERING, BOUGHT, evidence={SPOT: known}, cooldowns={SPOT: cooling}, machines=machines))
    )
    row = found["m7i.large/spot"]
    assert (row["risk_per_hour"], row["prior_per_hour"]) == (0.1, 0.05)
    assert row["evidence"] == {"hours": 10.0, "interruptions": 1.5, "asked": 4.0, "refused": 1.0}
    assert row["cooling"] == {
        "kind": "refused", "until": "2026-01-05T12:00:30.000Z", "reason": "no capacity", "failures": 2
    }  # fmt: skip
    assert row["machines"] == 3
    assert [(one["pool"], one["rank"]) for one in row["pools"]] == [("gpu", 1), ("linux", 1)]
    bought = found["m7i.large/on_demand"]
    assert (bought["risk_per_hour"], bought["cooling"], bought["machines"]) == (0.0, None, 0)
    assert [(one["pool"], one["rank"], one["excluded"]) for one in bought["pools"]] == [
        ("linux", 1, ""),
        ("gpu", None, "spill is off: on_demand is not used"),
    ]


def test_a_quota_is_told_with_all_that_it_covers() -> None:
    scope = CapacityScope(region=SPOT.region, capacity_type=CapacityType.SPOT)
    quota = ScopeCooldown(
        provider=SPOT.provider, scope=scope, until=NOW + timedelta(seconds=9), failures=1, reason="32 vCPUs"
    )
    answer = offerings_document(view(OFFERING, BOUGHT, scope_cooldowns=(quota,)))
    assert rows(answer)["m7i.large/spot"]["cooling"]["kind"] == "quota"
    assert rows(answer)["m7i.large/on_demand"]["cooling"] is None
    (told,) = answer["scopes"]
    assert (told["region"], told["zone"], told["capacity_type"]) == (SPOT.region, None, "spot")


def test_of_many_the_best_the_used_and_the_cooling_are_told() -> None:
    used, dry = MANY[250].capacity_pool, MANY[270].capacity_pool
    cooling = Cooldown(capacity_pool=dry, until=NOW + timedelta(seconds=30), failures=1, reason="no capacity")
    busy = instance(1, NOW, InstanceState.BUSY, capacity_pool=used)
    world = view(*MANY, cooldowns={dry: cooling}, machines=[busy])
    answer = offerings_document(world)
    assert (answer["total"], len(answer["offerings"])) == (300, BEST + 2)
    told = rows(answer)
    assert told["t0250.large/spot"]["machines"] == 1
    assert told["t0270.large/spot"]["pools"][0] == {
        "pool": "linux", "rank": 271, "expected_job_usd": told["t0270.large/spot"]["pools"][0]["expected_job_usd"],
        "excluded": "",
    }  # fmt: skip
    assert len(offerings_document(world, everything=True)["offerings"]) == 300
    few = offerings_document(world, best=3)
    assert [row["machine_type"] for row in few["offerings"][:3]] == ["t0000.large", "t0001.large", "t0002.large"]


def test_one_pool_is_told_as_it_sees_them() -> None:
    answer = offerings_document(view(*MANY), pool=GPU)
    assert answer["total"] == 10, "spot.max_price leaves out the rest"
    assert {one["pool"] for row in answer["offerings"] for one in row["pools"]} == {GPU}
    everything = offerings_document(view(*MANY), pool=GPU, everything=True)
    assert rows(everything)["t0299.large/spot"]["pools"][0]["excluded"].startswith("it costs more than spot.max_price")


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    async with serve(TOKEN) as one:
        yield one


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 200),
        ("?pool=linux&best=2", 200),
        ("?all=1", 200),
        ("?pool=nowhere", 404),
        ("?best=0", 400),
        ("?best=x", 400),
    ],
)
async def test_queries_are_checked(admin: Admin, query: str, status: int) -> None:
    assert (await admin.get(f"/api/v1/offerings{query}", **BEARER))[0] == status


def test_the_page_sees_unknown_pools_as_empty() -> None:
    assert offerings_document(view(), pool=PoolName("linux"))["offerings"] == []
