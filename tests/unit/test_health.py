"""Conditions with parts: what fails stays in sight while other calls work, and nothing stays for ever unasked."""

from datetime import datetime, timedelta

import pytest

from autoscaler.clock import SystemClock
from autoscaler.health import Health
from autoscaler.http.view import Condition

NAME = "forge/github"


class SetClock(SystemClock):
    """Stands still until it is moved."""

    at = datetime.fromisoformat("2026-01-05T12:00:00+00:00")

    def now(self) -> datetime:
        return self.at


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def health(clock: SetClock) -> Health:
    return Health(clock)


def condition(health: Health) -> Condition:
    (one,) = health.conditions()
    return one


def test_one_part_that_works_does_not_hide_another_that_fails(health: Health) -> None:
    health.ill(NAME, "list_runners: 404", remedy="check the scopes", part="list_runners")
    health.well(NAME, part="list_jobs")
    assert not health.is_well(NAME)
    assert (condition(health).detail, condition(health).remedy) == ("list_runners: 404", "check the scopes")
    health.well(NAME, part="list_runners")
    assert condition(health).is_well
    assert condition(health).detail == ""


def test_the_part_that_is_ill_longest_is_told(health: Health) -> None:
    health.ill(NAME, "first", part="list_runners")
    health.ill(NAME, "second", part="list_jobs")
    health.ill(NAME, "first, again", part="list_runners")
    assert condition(health).detail == "first, again"
    health.well(NAME, part="list_runners")
    assert (condition(health).is_well, condition(health).detail) == (False, "second")


def test_a_passing_failure_is_over_when_any_part_works(health: Health) -> None:
    health.ill(NAME, "recover_deliveries: 502", part="recover_deliveries", passes=True)
    assert not health.is_well(NAME)
    health.well(NAME, part="list_jobs")
    assert condition(health).is_well


def test_what_is_never_asked_again_is_not_ill_for_ever(health: Health, clock: SetClock) -> None:
    health.ill(NAME, "register: refused", part="register", lasts=timedelta(minutes=2))
    began = condition(health).since
    clock.at += timedelta(seconds=90)
    health.ill(NAME, "register: refused", part="register", lasts=timedelta(minutes=2))
    clock.at += timedelta(seconds=90)
    assert (condition(health).is_well, condition(health).since) == (False, began)
    clock.at += timedelta(seconds=30)
    assert condition(health).is_well
    assert health.is_well(NAME)
