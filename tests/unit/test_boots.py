"""How long boots are taken to last: what is assumed, what is measured, and what is said of one that is late already."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.boots import ENOUGH, PLENTY, PRIOR, boots_of, cold_floor, pool_boots
from autoscaler.model import Arrivals
from autoscaler.spi import ProviderName
from tests.admin_world import LINUX, pool

AWS, GCE = ProviderName("aws"), ProviderName("gce")


def samples(count: int, median_s: float = 20.0, seed: int = 1) -> tuple[float, ...]:
    dice = random.Random(seed)
    return tuple(sorted(dice.lognormvariate(0.0, 0.2) * median_s for _ in range(count)))


def test_a_boot_that_nobody_measured_takes_about_a_minute() -> None:
    assert PRIOR.quantile(0.5) == pytest.approx(60, rel=0.03)
    assert 95 < PRIOR.quantile(0.95) < 115


def test_a_few_samples_move_the_prior_and_enough_of_them_replace_it() -> None:
    few, enough = boots_of(samples(3)), boots_of(samples(ENOUGH))
    assert enough.by(30) > few.by(30) > PRIOR.by(30)
    assert enough.by(30) > 0.85


@pytest.mark.parametrize("count", [50, PLENTY, 400])
def test_what_is_measured_is_believed_to_a_few_points(count: int) -> None:
    seconds = samples(count)
    boots = boots_of(seconds)
    for at in (15.0, 18.0, 20.0, 23.0, 28.0):
        assert boots.by(at) == pytest.approx(sum(one <= at for one in seconds) / count, abs=0.06)


def test_a_machine_later_than_all_before_it_is_not_expected_at_once() -> None:
    boots = boots_of(samples(200))
    assert boots.within(10, age_s=15) > 0.8
    assert boots.within(10, age_s=60) < 0.2


def test_a_slow_tail_is_in_the_answer() -> None:
    mixed = tuple(sorted((*samples(90), *(100.0 + one for one in range(10)))))
    assert boots_of(mixed).by(40) == pytest.approx(0.9, abs=0.02)
    assert boots_of(mixed).quantile(0.98) > 90


@given(st.lists(st.floats(0.0, 5000.0), min_size=1, max_size=150), st.floats(0, 1000), st.floats(0, 500))
def test_a_chance_is_a_chance_and_grows_with_time(seconds: list[float], at: float, more: float) -> None:
    boots = boots_of(sorted(seconds))
    assert 0.0 <= boots.by(at) <= boots.by(at + more) <= 1.0
    assert 0.0 <= boots.within(at, age_s=more) <= 1.0


def test_what_a_target_can_be_cold_is_told_by_the_quickest_provider() -> None:
    both = pool(LINUX, "linux", providers=(AWS, GCE))
    slow, quick = Arrivals(seconds=samples(30, 90.0)), Arrivals(seconds=samples(30, 15.0))
    middle, late = cold_floor(both, {(LINUX, AWS): slow, (LINUX, GCE): quick})
    assert 13 < middle < 17
    assert 18 < late < 30
    assert cold_floor(both, {})[0] == pytest.approx(60, rel=0.03)


def test_a_pool_is_worked_out_again_only_when_something_arrived() -> None:
    chosen, known = pool(LINUX, "linux"), Arrivals(seconds=samples(30))
    first = pool_boots(chosen, AWS, {(LINUX, AWS): known})
    assert pool_boots(chosen, AWS, {(LINUX, AWS): known}) is first
    assert pool_boots(chosen, AWS, {(LINUX, AWS): Arrivals(seconds=samples(31))}) is not first
