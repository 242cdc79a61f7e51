"""How many machines have come, against counting all outcomes."""

import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.plan_tally import Part, Tally

SURE = 1e9


def counted(chances: list[float], count: int) -> float:
    """The chance of at least so many, by adding up every outcome."""
    total = 0.0
    for outcome in product((False, True), repeat=len(chances)):
        if sum(outcome) >= count:
            one = 1.0
            for came, chance in zip(outcome, chances, strict=True):
                one *= chance if came else 1.0 - chance
            total += one
    return total


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.floats(0.0, 1.0)), min_size=1, max_size=3))
def test_few_machines_are_counted_exactly(groups: list[tuple[int, float]]) -> None:
    tally = Tally([Part(count=count, chance=chance, weight=SURE) for count, chance in groups])
    chances = [chance for count, chance in groups for _ in range(count)]
    for count in range(len(chances) + 2):
        assert tally.at_least(count) == pytest.approx(counted(chances, count), abs=1e-6)


def test_many_machines_are_counted_closely() -> None:
    size, chance = 400, 0.93
    logs = [
        math.lgamma(size + 1) - math.lgamma(at + 1) - math.lgamma(size - at + 1)
        + at * math.log(chance) + (size - at) * math.log(1 - chance)
        for at in range(size + 1)
    ]  # fmt: skip
    shares = [math.exp(one) for one in logs]
    for count in (355, 365, 372, 380, 388):
        tally = Tally([Part(count=size, chance=chance, weight=SURE)])
        assert tally.at_least(count) == pytest.approx(sum(shares[count:]), abs=0.004)


def test_what_comes_along_helps() -> None:
    own = [Part(count=10, chance=0.9, weight=SURE)]
    alone, helped = Tally(own), Tally(own, extra=2.0, extra_variance=2.0)
    assert alone.at_least(10) == pytest.approx(0.9**10, abs=1e-6)
    assert helped.at_least(10) > alone.at_least(10) + 0.3


def test_what_few_samples_say_is_believed_less() -> None:
    sure, unsure = (Tally([Part(count=20, chance=0.97, weight=weight)]) for weight in (SURE, 10))
    assert unsure.at_least(17) < sure.at_least(17)
    assert unsure.at_least(20) == pytest.approx(sure.at_least(20), abs=0.15)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0.0, 1.0), st.floats(1, 500)), max_size=5),
    st.floats(0.0, 8.0),
    st.integers(0, 200),
)
@settings(max_examples=100, deadline=None)
def test_more_is_never_likelier(groups: list[tuple[int, float, float]], extra: float, count: int) -> None:
    parts = [Part(count=size, chance=chance, weight=weight) for size, chance, weight in groups]
    tally = Tally(parts, extra=extra, extra_variance=2 * extra)
    assert 0.0 <= tally.at_least(count + 1) <= tally.at_least(count) + 1e-9 <= 1.0 + 1e-9
