"""Waiting after failures at a forge: doubled while they follow each other, begun anew after a success."""

from datetime import timedelta

import pytest

from autoscaler.backoff import AFTER_REFUSED, Backoff
from autoscaler.sightings import Sightings
from autoscaler.spi import ForgeRefused, ForgeUnavailable, RateLimited
from tests.unit.test_health import SetClock

KEY = "register/github/acme"


class Waiting:
    def __init__(self) -> None:
        self.clock = SetClock()
        self.seen = Sightings()
        self.backoff = Backoff(self.seen, self.clock)

    def fail(self) -> float:
        """Fail once, tell for how long the key waits, and wait for that."""
        self.backoff.failed(KEY, ForgeUnavailable("502"))
        held_s = self.held_s()
        self.clock.at += timedelta(seconds=held_s)
        return held_s

    def held_s(self) -> float:
        return (self.seen.retry_after[KEY] - self.clock.at).total_seconds()


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def test_failures_that_follow_each_other_double_the_wait_up_to_a_limit(waiting: Waiting) -> None:
    assert [waiting.fail() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_success_in_between_begins_anew(waiting: Waiting) -> None:
    assert [waiting.fail() for _ in range(3)] == [0.5, 1, 2]
    waiting.backoff.worked(KEY)
    assert waiting.fail() == 0.5


def test_parallel_failures_count_once(waiting: Waiting) -> None:
    for _ in range(10):
        waiting.backoff.failed(KEY, ForgeUnavailable("502"))
    assert waiting.held_s() == 0.5


def test_a_parallel_failure_does_not_shorten_what_the_forge_asked_for(waiting: Waiting) -> None:
    waiting.backoff.failed(KEY, RateLimited("slow down", retry_after_s=40))
    waiting.backoff.failed(KEY, ForgeUnavailable("502"))
    assert waiting.held_s() == 40


def test_a_refusal_waits_a_minute(waiting: Waiting) -> None:
    waiting.backoff.failed(KEY, ForgeRefused("no such group"))
    assert waiting.held_s() == AFTER_REFUSED.total_seconds()
