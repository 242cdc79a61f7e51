"""What of a run that is just coming is not seen yet, and when a budget of registrations lets machines start."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.plan_minting import minting
from autoscaler.plan_unseen import unseen
from tests.unit.plan_world import forge


def expected(size: int, others: list[int], *, room: int = 1000, spare: int = 0) -> float:
    return sum(one.chance * one.more for one in unseen(size, others, room=room, spare=spare))


def test_a_run_is_taken_to_have_as_many_jobs_as_others_had() -> None:
    assert expected(3, [3] * 8) < 0.5
    assert expected(5, [40] * 8) == pytest.approx(35, abs=5)
    assert expected(40, [40] * 8) < 8


def test_a_workflow_that_never_ran_may_be_of_any_size() -> None:
    assert 1 < expected(2, []) < 12
    assert 10 < expected(20, []) < 120


def test_machines_that_are_spare_serve_the_first_of_them() -> None:
    assert expected(3, [10] * 8, spare=7) < 1.0
    assert expected(3, [10] * 8, room=2) <= 2.0


@given(st.integers(1, 100), st.lists(st.integers(1, 100), max_size=8), st.integers(0, 50), st.integers(0, 50))
def test_possibilities_add_up(size: int, others: list[int], room: int, spare: int) -> None:
    found = list(unseen(size, others, room=room, spare=spare))
    assert sum(one.chance for one in found) == pytest.approx(1.0)
    assert all(0 <= one.more <= room for one in found)
    assert all(one.older >= 0 for one in found)


def test_a_full_budget_does_not_grow_until_machines_come() -> None:
    """30 at once and one every two seconds: the 40th machine of those that come at 60 s is registered 20 s later."""
    view = forge(registrations_left=30, registrations_per_s=0.5)
    mint = minting(view, lambda seconds: 50.0 if seconds >= 60 else 0.0)
    assert mint.served_s(30) == pytest.approx(60, abs=1)
    assert mint.served_s(40) == pytest.approx(80, abs=2)
    assert mint.grown_s(1) > 60


def test_a_budget_that_is_used_up_grows_at_once() -> None:
    mint = minting(forge(registrations_left=0, registrations_per_s=0.5), lambda _: 10.0)
    assert mint.served_s(5) == pytest.approx(10, abs=1)
    assert mint.served_s(10_000) > 10_000, "beyond the table it goes on at the same rate"
