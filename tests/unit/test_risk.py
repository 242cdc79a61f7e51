"""What evidence says of a capacity pool: a prior first, our own machines then, and ever less of what is long ago."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.model import CapacityEvidence
from autoscaler.risk import DELAY_H, PRIOR_PER_HOUR, decayed, expected_cost_usd, risk_per_hour
from autoscaler.spi import CapacityType
from tests.admin_world import OFFERING, SPOT

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
DAY = timedelta(hours=24)


def known(**amounts: float) -> CapacityEvidence:
    return CapacityEvidence(capacity_pool=SPOT, at=NOW, **amounts)


def test_evidence_loses_half_its_weight_in_a_half_life() -> None:
    before = known(hours=8.0, interruptions=4.0, asked=2.0, refused=1.0)
    after = decayed(before, NOW + DAY, half_life=DAY)
    assert (after.hours, after.interruptions, after.asked, after.refused) == (4.0, 2.0, 1.0, 0.5)
    assert decayed(before, NOW - DAY, half_life=DAY) == before, "a clock that goes back makes nothing heavier"


def test_decay_in_steps_is_decay_at_once() -> None:
    steps = at_once = known(hours=8.0)
    for hour in range(1, 25):
        steps = decayed(steps, NOW + timedelta(hours=hour), half_life=DAY)
    assert steps.hours == pytest.approx(decayed(at_once, NOW + DAY, half_life=DAY).hours)


def test_nothing_known_is_half_an_interruption_in_ten_hours() -> None:
    assert risk_per_hour(OFFERING, None) == PRIOR_PER_HOUR == 0.5 / 10
    assert risk_per_hour(OFFERING, known()) == PRIOR_PER_HOUR


def test_many_hours_outweigh_the_prior() -> None:
    assert risk_per_hour(OFFERING, known(hours=990.0, interruptions=99.5)) == pytest.approx(0.1)
    published = replace(OFFERING, published_interruptions_per_hour=0.001)
    assert risk_per_hour(published, None) == 0.001
    assert risk_per_hour(published, known(hours=90.0, interruptions=10.0)) == pytest.approx(0.1001)


def test_on_demand_is_not_interrupted() -> None:
    bought = replace(OFFERING, capacity_pool=replace(SPOT, capacity_type=CapacityType.ON_DEMAND))
    assert risk_per_hour(bought, known(hours=1.0, interruptions=9.0)) == 0.0
    assert expected_cost_usd(bought, risk=0.0, life_h=2.0) == 2 * bought.price_usd_hour


def test_a_sure_loss_costs_the_run_again_half_of_it_and_the_delay() -> None:
    one = replace(OFFERING, price_usd_hour=1.0, on_demand_usd_hour=3.0)
    assert expected_cost_usd(one, risk=1e9, life_h=2.0) == pytest.approx(2.0 + 2.0 + 3.0 * (1.0 + DELAY_H))


@given(risk=st.floats(0, 10), more=st.floats(0, 10), life_h=st.floats(0.01, 24), price=st.floats(0, 100))
def test_cost_grows_with_risk_from_the_price_on(risk: float, more: float, life_h: float, price: float) -> None:
    one = replace(OFFERING, price_usd_hour=price)
    low = expected_cost_usd(one, risk=risk, life_h=life_h)
    assert price * life_h <= low <= expected_cost_usd(one, risk=risk + more, life_h=life_h) + 1e-9
