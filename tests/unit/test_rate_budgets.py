"""Rate budgets of clouds: families apart, short waits awaited, long ones refused, and what throttles teach."""

import pytest

from autoscaler.spi import Throttled
from providers.rate_budgets import Family, RateBudgets
from tests.unit.stepping_clock import SteppingClock


def budgets(clock: SteppingClock, *, limit: float = 10, reserve: float = 0.0) -> RateBudgets:
    family = Family(limit=limit, refill_per_s=2, reserve=reserve)
    return RateBudgets({"launches": family, "lists": family}, clock)


def remaining(made: RateBudgets, family: str) -> float:
    return next(one.remaining for one in made.budgets() if one.family == family)


def rate(made: RateBudgets, family: str) -> float:
    return next(one.refill_per_s for one in made.budgets() if one.family == family)


async def test_families_do_not_starve_each_other() -> None:
    made = budgets(SteppingClock())
    await made.take("lists", 10)
    assert remaining(made, "lists") == 0
    assert remaining(made, "launches") == 10


async def test_a_short_wait_is_awaited_and_no_longer_than_needed() -> None:
    clock = SteppingClock()
    made = budgets(clock)
    await made.take("launches", 10)
    await made.take("launches", 4)
    assert clock.slept_s == pytest.approx(2)


async def test_a_long_wait_is_refused_and_says_how_long() -> None:
    clock = SteppingClock()
    made = budgets(clock, limit=20)
    await made.take("launches", 20)
    with pytest.raises(Throttled) as refused:
        await made.take("launches", 12)
    assert refused.value.retry_after_s == pytest.approx(6)
    assert clock.slept_s == 0


async def test_more_than_there_can_ever_be_costs_all_there_can_be() -> None:
    made = budgets(SteppingClock())
    await made.take("lists", 1000)
    assert remaining(made, "lists") == 0


async def test_calls_that_can_wait_leave_the_reserve() -> None:
    clock = SteppingClock()
    made = budgets(clock, reserve=4)
    await made.take("launches", 5)
    await made.take("launches", 2, can_wait=True)
    assert clock.slept_s > 0
    assert remaining(made, "launches") == pytest.approx(4)
    before = clock.slept_s
    await made.take("launches", 4)
    assert clock.slept_s == before


async def test_a_throttle_halves_the_rate_and_holds_the_family_back() -> None:
    clock = SteppingClock()
    made = budgets(clock)
    made.throttled("launches", 30)
    assert rate(made, "launches") == pytest.approx(1)
    assert rate(made, "lists") == 2
    assert next(one.limit for one in made.budgets() if one.family == "launches") == 5
    with pytest.raises(Throttled) as refused:
        await made.take("launches")
    assert refused.value.retry_after_s == pytest.approx(30)
    await made.take("lists")


async def test_the_rate_doubles_every_20_quiet_seconds_up_to_the_documented_one() -> None:
    clock = SteppingClock()
    made = budgets(clock)
    for _ in range(10):
        made.throttled("launches", 0)
        clock.step(5)
    lowest = rate(made, "launches")
    assert lowest < 2 / 8
    clock.step(20)
    assert rate(made, "launches") == pytest.approx(2 * lowest)
    clock.step(600)
    assert rate(made, "launches") == 2


async def test_throttles_of_one_burst_halve_the_rate_once() -> None:
    clock = SteppingClock()
    made = budgets(clock)
    for _ in range(10):
        made.throttled("launches", 0)
    assert rate(made, "launches") == pytest.approx(1)
