"""How refusals cool a capacity pool or a scope: doubling while they follow each other, from the first one on anew."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from autoscaler.cooling import (
    BRIEF,
    FIRST_COOLDOWN,
    LASTING_COOLDOWN,
    STUBBORN_COOLDOWN,
    Closing,
    Closure,
    Outage,
    cooled,
    is_forgotten,
    scope_cooled,
)
from autoscaler.spi import CapacityScope
from tests.admin_world import SPOT

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)


def test_cooldowns_double_from_15_to_120_seconds_while_refusals_follow_each_other() -> None:
    now, before, lengths = NOW, None, []
    for _ in range(12):
        before = cooled(SPOT, before=before, now=now, reason="dry")
        lengths.append((before.until - now).total_seconds())
        now = before.until + timedelta(seconds=1)
    assert lengths == [15, 30, 60, 120, 120, 120, 120, 120, 120, 300, 300, 300]


def test_a_refusal_long_after_the_last_one_starts_anew() -> None:
    first = cooled(SPOT, before=None, now=NOW, reason="dry")
    at = first.until + timedelta(seconds=31)
    assert is_forgotten(first, at)
    later = cooled(SPOT, before=first, now=at, reason="dry")
    assert later.failures == 1
    assert later.until - at == FIRST_COOLDOWN


def test_refusals_of_launches_that_ran_beside_each_other_are_one() -> None:
    first = cooled(SPOT, before=None, now=NOW, reason="dry")
    for _ in range(20):
        assert cooled(SPOT, before=first, now=NOW + timedelta(seconds=2), reason="dry again") == first


def test_what_a_cloud_does_not_have_at_all_is_not_tried_for_an_hour() -> None:
    found = cooled(SPOT, before=None, now=NOW, reason="Unsupported", is_lasting=True)
    assert found.until - NOW == LASTING_COOLDOWN


def test_a_scope_cools_as_a_capacity_pool_does() -> None:
    scope = CapacityScope(region="eu-central-1")
    first = scope_cooled(SPOT.provider, scope, before=None, now=NOW, reason="quota")
    again = scope_cooled(SPOT.provider, scope, before=first, now=first.until, reason="quota")
    assert (first.until - NOW, again.until - first.until) == (FIRST_COOLDOWN, 2 * FIRST_COOLDOWN)


@given(gaps=st.lists(st.floats(0, 10_000), max_size=40))
def test_a_cooldown_is_never_shorter_than_the_first_nor_longer_than_the_longest(gaps: list[float]) -> None:
    now, before = NOW, None
    for gap in gaps:
        now += timedelta(seconds=gap)
        after = cooled(SPOT, before=before, now=now, reason="dry")
        if after is not before:
            assert FIRST_COOLDOWN <= after.until - now <= STUBBORN_COOLDOWN
        assert after.until > now
        before = after


def test_a_clouds_long_words_are_cut_in_a_reason() -> None:
    long = "InsufficientInstanceCapacity: " + "we do not have what you ask for in the zone you asked for, " * 4
    closure = Closure(kind=Closing.REFUSED, until=NOW, reason=long)
    said = str(Outage(word="spot", total=2, closures=(closure, closure)))
    assert said.startswith("all 2 spot capacity pools refuse: InsufficientInstanceCapacity: we do not have")
    assert len(said) < BRIEF + 40
    assert said.endswith(" ...")
