"""Where machines may be launched: allowed, not cooling, cheapest first; and how refusals cool a capacity pool."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autoscaler.model import Cooldown
from autoscaler.placement import FIRST_COOLDOWN, LONGEST_COOLDOWN, Choice, choose_offerings, cooled
from autoscaler.spi import CapacityPool, CapacityType, Offering, ProviderName
from tests.admin_world import LINUX, OFFERING, SPOT, pool

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)


def offering(machine_type: str, price: float, **changes: Any) -> Offering:
    return replace(OFFERING, capacity_pool=replace(SPOT, machine_type=machine_type, **changes), price_usd_hour=price)


CHEAP, DEAR = offering("m7i.large", 0.04), offering("m7i.xlarge", 0.09)
ON_DEMAND = offering("m7i.large", 0.10, capacity_type=CapacityType.ON_DEMAND)
ELSEWHERE = offering("m7i.large", 0.01, provider=ProviderName("gce"))


def cooling(one: Offering, seconds: float) -> dict[CapacityPool, Cooldown]:
    until = NOW + timedelta(seconds=seconds)
    return {one.capacity_pool: Cooldown(capacity_pool=one.capacity_pool, until=until, failures=1, reason="dry")}


def choose(*offerings: Offering, cooldowns: dict[CapacityPool, Cooldown] | None = None, **changes: Any) -> Choice:
    return choose_offerings(pool(LINUX, "linux", **changes), offerings, cooldowns=cooldowns or {}, now=NOW)


def test_the_cheapest_allowed_offering_comes_first() -> None:
    assert choose(DEAR, ELSEWHERE, ON_DEMAND, CHEAP).offerings == (CHEAP, DEAR)


def test_on_demand_is_for_pools_without_spot() -> None:
    assert choose(CHEAP, ON_DEMAND, spot_enabled=False).offerings == (ON_DEMAND,)


def test_spot_above_the_price_limit_is_not_taken() -> None:
    assert choose(CHEAP, DEAR, max_spot_price_usd_hour=0.05).offerings == (CHEAP,)


def test_a_cooling_capacity_pool_waits_and_the_next_one_is_taken() -> None:
    assert choose(CHEAP, DEAR, cooldowns=cooling(CHEAP, 10)).offerings == (DEAR,)


def test_a_cooldown_that_is_over_closes_nothing() -> None:
    assert choose(CHEAP, cooldowns=cooling(CHEAP, 0)).offerings == (CHEAP,)


def test_when_everything_cools_the_reason_and_the_next_try_are_given() -> None:
    found = choose(CHEAP, DEAR, cooldowns={**cooling(CHEAP, 20), **cooling(DEAR, 10)})
    assert found.offerings == ()
    assert found.again_at == NOW + timedelta(seconds=10)
    assert found.reason == "every capacity pool refuses; the next try is in 10 s (dry)"


def test_when_nothing_fits_there_is_a_reason_and_no_next_try() -> None:
    found = choose(ELSEWHERE)
    assert (found.offerings, found.again_at) == ((), None)
    assert "no machine type" in found.reason


def test_cooldowns_double_from_15_to_120_seconds_while_refusals_follow_each_other() -> None:
    now, before, lengths = NOW, None, []
    for _ in range(6):
        before = cooled(SPOT, before=before, now=now, reason="dry")
        lengths.append((before.until - now).total_seconds())
        now = before.until + timedelta(seconds=1)
    assert lengths == [15, 30, 60, 120, 120, 120]


def test_a_refusal_long_after_the_last_one_starts_anew() -> None:
    first = cooled(SPOT, before=None, now=NOW, reason="dry")
    later = cooled(SPOT, before=first, now=first.until + timedelta(seconds=31), reason="dry")
    assert later.failures == 1
    assert later.until - (first.until + timedelta(seconds=31)) == FIRST_COOLDOWN


@given(gaps=st.lists(st.floats(0, 10_000), max_size=40))
def test_a_cooldown_is_never_shorter_than_the_first_nor_longer_than_the_longest(gaps: list[float]) -> None:
    now, before = NOW, None
    for gap in gaps:
        now += timedelta(seconds=gap)
        before = cooled(SPOT, before=before, now=now, reason="dry")
        assert FIRST_COOLDOWN <= before.until - now <= LONGEST_COOLDOWN
