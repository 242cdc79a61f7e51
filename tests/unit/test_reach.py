"""Whether booting machines can keep a wait target, and how many ready ones would."""

import math
from dataclasses import replace
from datetime import timedelta

import pytest

from autoscaler.model import Arrivals
from autoscaler.reach import MOST, reach_note, reach_of, ready_for
from tests.admin_world import LINUX, SPOT, pool

POOL = pool(LINUX, "linux", target=timedelta(seconds=60))
QUICK = {(LINUX, SPOT.provider): Arrivals(seconds=tuple(20.0 + n for n in range(20)))}


def test_before_anything_is_measured_a_minute_is_too_short_to_boot_in() -> None:
    reach = reach_of(POOL, {})
    assert (reach.is_reachable, reach.is_measured, reach.ready) == (False, False, None)
    assert 95 < reach.cold_s < 120
    assert "machines usually take longer" in reach_note(POOL, reach)


def test_quick_machines_keep_the_target_and_there_is_nothing_to_say() -> None:
    reach = reach_of(POOL, QUICK, jobs_per_s=0.5)
    assert (reach.is_reachable, reach.is_measured, reach.ready) == (True, True, None)
    assert reach_note(POOL, reach) == ""


def test_a_laxer_share_is_reached_where_a_strict_one_is_not() -> None:
    half = replace(POOL, wait_quantile=0.4)
    assert reach_of(half, {}).is_reachable


def test_the_number_of_ready_machines_follows_load_and_boot() -> None:
    calm, busy = (reach_of(POOL, {}, jobs_per_s=rate).ready for rate in (0.01, 1.0))
    assert calm is not None
    assert busy is not None
    assert 1 <= calm <= 5
    assert 110 < busy < 150, "107 jobs within one boot, and the spread that the target allows for"
    assert f"{busy} machines that stand ready" in reach_note(POOL, reach_of(POOL, {}, jobs_per_s=1.0))


@pytest.mark.parametrize(("expected", "share"), [(0.2, 0.95), (3.0, 0.5), (3.0, 0.99), (900.0, 0.95), (2000.0, 0.999)])
def test_it_is_the_quantile_of_poisson(expected: float, share: float) -> None:
    found = ready_for(expected, share)

    def up_to(count: int) -> float:
        return math.fsum(math.exp(n * math.log(expected) - expected - math.lgamma(n + 1)) for n in range(count + 1))

    assert up_to(found) >= share - 1e-9
    assert found == 1 or up_to(found - 1) < share


@pytest.mark.parametrize(("expected", "ready"), [(0.0, 1), (-1.0, 1), (1e9, MOST)])
def test_no_load_and_any_load_have_an_answer(expected: float, ready: int) -> None:
    assert ready_for(expected, 0.95) == ready
