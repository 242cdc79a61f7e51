"""Where machines may be launched: what a pool never uses, what it costs there, which offerings go into one batch."""

import math
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.cooling import Closures
from autoscaler.model import CapacityEvidence, Cooldown, Pool, ScopeCooldown, launch_key, throttle_key
from autoscaler.placement import (
    BATCH_TYPES,
    FEW,
    NEAR,
    Openings,
    Ranked,
    affordable,
    exclusion,
    most_in_one,
    ranking_of,
    shared_out,
)
from autoscaler.spi import Bounds, CapacityScope, CapacityType, Offering, ProviderName, Shape
from tests.admin_world import LINUX, OFFERING, SPOT, pool, snapshot_of

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
AWS, GCE = ProviderName("aws"), ProviderName("gce")


def offering(machine_type: str, price: float, **changes: Any) -> Offering:
    return replace(OFFERING, capacity_pool=replace(SPOT, machine_type=machine_type, **changes), price_usd_hour=price)


CHEAP, DEAR = offering("m7i.large", 0.04), offering("m7i.xlarge", 0.05)
ON_DEMAND = offering("m7i.large", 0.10, capacity_type=CapacityType.ON_DEMAND)
ELSEWHERE = offering("n2-standard-2", 0.01, provider=GCE)
PLAIN = pool(LINUX, "linux")


def ranked(*offerings: Offering, of: Pool = PLAIN, evidence: Any = None, life_h: float | None = None) -> list[Offering]:
    found = ranking_of(of, offerings, evidence=evidence or {}, life_h=life_h)
    return [one.offering for one in (*found.spot, *found.on_demand)]


def openings(
    *offerings: Offering,
    of: Pool = PLAIN,
    word: CapacityType = CapacityType.SPOT,
    ceiling: float | None = None,
    **world: Any,
) -> Openings:
    found = ranking_of(of, offerings, evidence={})
    closures = Closures(snapshot_of(**world), NOW)
    chosen = found.spot if word is CapacityType.SPOT else found.on_demand
    return Openings(pool=of, ranked=chosen, closures=closures, word=word, ceiling=ceiling)


def open_now(*offerings: Offering, **given: Any) -> list[Offering]:
    return [one.offering for one in openings(*offerings, **given).walk()]


def cooling(one: Offering, seconds: float, reason: str = "dry") -> Cooldown:
    until = NOW + timedelta(seconds=seconds)
    return Cooldown(capacity_pool=one.capacity_pool, until=until, failures=1, reason=reason)


def cooldowns(*found: Cooldown) -> dict[str, Any]:
    return {"cooldowns": {one.capacity_pool: one for one in found}}


# ---------------------------------------------------------------------- allowed, fits


@pytest.mark.parametrize(
    ("changes", "of", "why"),
    [
        ({"capacity_pool": replace(SPOT, provider=GCE)}, {}, "gce is no provider of the pool"),
        ({"arch": "arm64"}, {}, "its arch is arm64"),
        ({"cpus": 2.0}, {"shape": Shape(cpus=Bounds(low=4))}, "2 cpus are not within the shape"),
        ({"memory_gib": 8.0}, {"shape": Shape(memory_gib=Bounds(high=4))}, "8 GiB of memory are not within the shape"),
        ({}, {"shape": Shape(gpus=1)}, "it has 0 of 1 gpus"),
        ({}, {"shape": Shape(types=("c7i.*",))}, "its machine type is not listed"),
        ({}, {"shape": Shape(exclude=("m7i.*",))}, "its machine type is excluded"),
        ({}, {"spot_enabled": False}, "spot is off"),
        ({"price_usd_hour": 0.2}, {"max_spot_price_usd_hour": 0.1}, "it costs more than spot.max_price (0.1 USD/h)"),
    ],
)
def test_what_a_pool_never_uses_has_its_reason(changes: Any, of: Any, why: str) -> None:
    assert exclusion(PLAIN, OFFERING) == ""
    assert exclusion(replace(PLAIN, **of), replace(OFFERING, **changes)) == why


def test_on_demand_is_no_use_to_a_pool_that_neither_spills_nor_retries_on_it() -> None:
    strict = replace(PLAIN, spill_enabled=False, on_demand_from=4)
    assert exclusion(strict, ON_DEMAND) == "spill is off: on_demand is not used"
    assert exclusion(replace(strict, on_demand_from=3), ON_DEMAND) == ""
    assert exclusion(replace(strict, spot_enabled=False), ON_DEMAND) == ""


# ---------------------------------------------------------------------- ranked


def test_the_cheapest_offering_comes_first_where_nothing_is_known_of_the_risk() -> None:
    found = ranked(DEAR, ELSEWHERE, ON_DEMAND, CHEAP)
    assert [one.price_usd_hour for one in found] == [0.04, 0.05, 0.10]


def test_the_same_machine_on_demand_says_what_spot_saves_where_the_provider_does_not() -> None:
    known = replace(DEAR, on_demand_usd_hour=0.3)
    assert [one.on_demand_usd_hour for one in ranked(known, ON_DEMAND, CHEAP)] == [0.10, 0.3, 0.10]


def evidence_of(one: Offering, **amounts: float) -> dict[Any, CapacityEvidence]:
    return {one.capacity_pool: CapacityEvidence(capacity_pool=one.capacity_pool, at=NOW, **amounts)}


def test_a_capacity_pool_that_loses_machines_comes_after_a_dearer_safe_one() -> None:
    known = evidence_of(CHEAP, hours=40.0, interruptions=20.0)
    assert ranked(CHEAP, DEAR, evidence=known, life_h=1.0) == [DEAR, CHEAP]


def test_risk_weighs_more_the_longer_jobs_run() -> None:
    known = evidence_of(CHEAP, hours=40.0, interruptions=8.0)
    assert ranked(CHEAP, DEAR, evidence=known, life_h=0.02) == [CHEAP, DEAR]
    assert ranked(CHEAP, DEAR, evidence=known, life_h=4.0) == [DEAR, CHEAP]


def test_what_the_cloud_publishes_is_believed_until_we_know_better() -> None:
    risky = replace(CHEAP, published_interruptions_per_hour=0.5)
    safe = replace(DEAR, published_interruptions_per_hour=0.0001)
    assert ranked(risky, safe, life_h=1.0) == [safe, risky]
    assert ranked(risky, safe, evidence=evidence_of(risky, hours=2000.0), life_h=1.0) == [risky, safe]


# ---------------------------------------------------------------------- not cooling, not dear


def test_a_cooling_capacity_pool_waits_and_the_next_one_is_taken() -> None:
    assert open_now(CHEAP, DEAR, **cooldowns(cooling(CHEAP, 10))) == [DEAR]


def test_a_cooldown_that_is_over_closes_nothing() -> None:
    assert open_now(CHEAP, **cooldowns(cooling(CHEAP, 0))) == [CHEAP]


def quota(scope: CapacityScope, seconds: float = 30, provider: ProviderName = AWS) -> ScopeCooldown:
    until = NOW + timedelta(seconds=seconds)
    return ScopeCooldown(provider=provider, scope=scope, until=until, failures=1, reason="spot vCPU quota")


def test_a_quota_closes_all_that_its_scope_covers_and_nothing_else() -> None:
    other_zone = offering("m7i.large", 0.06, zone="eu-central-1b")
    west = offering("m7i.large", 0.07, zone="eu-west-1a", region="eu-west-1")
    region = quota(CapacityScope(region="eu-central-1", capacity_type=CapacityType.SPOT))
    assert open_now(CHEAP, other_zone, west, scope_cooldowns=(region,)) == [west]
    subnet = quota(CapacityScope(zone="eu-central-1a"))
    assert open_now(CHEAP, other_zone, scope_cooldowns=(subnet,)) == [other_zone]
    assert open_now(CHEAP, scope_cooldowns=(replace(region, provider=GCE),)) == [CHEAP]


def test_a_provider_that_throttles_or_fails_is_left_out_whole() -> None:
    both = pool(LINUX, "linux", providers=(AWS, GCE))
    later = NOW + timedelta(seconds=9)
    assert open_now(CHEAP, ELSEWHERE, of=both, retry_after={throttle_key(GCE): later}) == [CHEAP]
    assert open_now(CHEAP, ELSEWHERE, of=both, retry_after={launch_key(LINUX, AWS): later}) == [ELSEWHERE]


def test_spot_above_what_on_demand_costs_is_dropped() -> None:
    silly = offering("x2.large", 0.11)
    assert open_now(CHEAP, silly, ceiling=0.10) == [CHEAP]
    assert str(openings(silly, ceiling=0.10).outage()) == (
        "the only spot capacity pool is out: it would cost more than on_demand"
    )


def test_an_outage_says_how_many_are_out_for_which_reason() -> None:
    others = [offering(f"m{number}.large", 0.05 + number / 1000) for number in range(4)]
    silly = offering("x2.large", 0.30)
    world = {
        **cooldowns(cooling(others[0], 10, "no capacity"), cooling(others[1], 5, "none left")),
        "scope_cooldowns": (quota(CapacityScope(machine_type="m[23].*")),),
    }
    outage = openings(*others, silly, ceiling=0.2, **world).outage()
    assert str(outage) == (
        "all 5 spot capacity pools are out: "
        "2 refuse (none left), 2 are over a quota (spot vCPU quota), 1 would cost more than on_demand"
    )
    assert (outage.again_at, outage.label) == (NOW + timedelta(seconds=5), "refused")


def test_when_everything_refuses_the_outage_says_so_in_short() -> None:
    outage = openings(CHEAP, DEAR, **cooldowns(cooling(CHEAP, 20), cooling(DEAR, 10))).outage()
    assert str(outage) == "all 2 spot capacity pools refuse: dry"
    assert str(openings().outage()).startswith("no spot machine type of its providers fits the shape")


# ---------------------------------------------------------------------- batches


def batch_of(*offerings: Offering, **given: Any) -> list[Offering]:
    return [one.offering for one in openings(*offerings, **given).batch()]


def test_a_batch_is_of_one_provider_and_near_the_best() -> None:
    both = pool(LINUX, "linux", providers=(AWS, GCE))
    near, far = offering("m5.large", 0.04 * NEAR - 0.001), offering("m5.metal", 0.04 * NEAR + 0.01)
    google = offering("n2-standard-2", 0.045, provider=GCE)
    assert batch_of(far, google, near, CHEAP, of=both) == [CHEAP, near]


def test_a_batch_names_a_bounded_number_of_machine_types() -> None:
    many = [
        offering(f"t{number:03}.large", 0.04, zone=zone)
        for number in range(BATCH_TYPES + 20)
        for zone in ("eu-central-1a", "eu-central-1b")
    ]
    batch = batch_of(*many)
    assert len({one.capacity_pool.machine_type for one in batch}) == BATCH_TYPES
    assert len(batch) == 2 * BATCH_TYPES


def made(*prices: float) -> list[Ranked]:
    offerings = tuple(offering(f"t{number}", price) for number, price in enumerate(prices))
    return list(ranking_of(PLAIN, offerings, evidence={}).spot)


def test_dear_offerings_are_left_out_where_more_machines_fit_so() -> None:
    batch = made(0.1, 0.2, 0.5)
    usable, count = affordable(batch, 9, lambda price: 1.0 / price)
    assert ([one.offering.price_usd_hour for one in usable], count) == ([0.1], 9)
    usable, count = affordable(batch, 4, lambda price: 1.0 / price)
    assert ([one.offering.price_usd_hour for one in usable], count) == ([0.1, 0.2], 4)
    usable, count = affordable(batch, 1, lambda price: 1.0 / price)
    assert (len(usable), count) == (3, 1)
    assert affordable(batch, 3, lambda _: 0.5)[1] == 0


@given(
    prices=st.lists(st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.3]), min_size=1, max_size=8),
    wanted=st.integers(1, 50),
    purse=st.floats(0, 5),
)
def test_whatever_of_a_batch_is_used_the_purse_holds(prices: list[float], wanted: int, purse: float) -> None:
    usable, count = affordable(made(*prices), wanted, lambda price: purse / price if price else math.inf)
    dearest = max(one.offering.price_usd_hour for one in usable)
    assert count <= wanted
    assert count * dearest <= purse + 1e-6
    cheapest = min(prices)
    assert count == wanted or (cheapest > 0 and (count + 1) * cheapest > purse - 1e-6), "as many as fit"


@given(
    held=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    count=st.integers(1, 100),
    spread=st.sampled_from([0.05, 0.2, 0.34, 0.5, 1.0]),
    data=st.data(),
)
def test_no_capacity_pool_comes_to_hold_more_than_its_share_wherever_the_cloud_puts_machines(
    held: list[int], count: int, spread: float, data: st.DataObject
) -> None:
    batch = made(*(0.1 for _ in held))
    before = Counter({one.place: number for one, number in zip(batch, held, strict=True)})
    most = most_in_one(sum(held) + count, spread)
    parts, missing = shared_out(batch, count, held=before, most=most)
    assert sum(size for _, size in parts) + missing == count
    after = Counter(before)
    for part, size in parts:
        after[data.draw(st.sampled_from(part)).place] += size  # all on one: the worst that can be
    for place, number in after.items():
        assert number <= max(most, before[place])
    if missing:
        assert all(most - before[one.place] < max(FEW, most / 4) or after[one.place] for one in batch)


def test_a_handful_is_never_split() -> None:
    parts, missing = shared_out(made(0.1, 0.1), FEW, held={}, most=most_in_one(FEW, 0.01))
    assert [(len(part), size) for part, size in parts] == [(2, FEW)]
    assert missing == 0
