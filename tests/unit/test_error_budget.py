"""When interruptions hurt too many of a pool's jobs: what counts as hurt, when spot is cut, and how it comes back."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.error_budget import (
    LEAST_JOBS,
    LONG,
    SHORT,
    STEP_EVERY,
    STEPS,
    TOO_FAST,
    Account,
    booked,
    burn_of,
    faded,
    stepped,
)
from autoscaler.facts import AgentReported
from autoscaler.model import EndReason, Instance, InstanceState, JobState
from autoscaler.spi import CapacityType, Conclusion
from tests.admin_world import LINUX, SPOT, instance, pool, rules_of
from tests.unit.observing import NOW, Observing, completed, id_of, provider_id, seen_job, started

BUDGET = 0.05
MINUTE = timedelta(minutes=1)
S = InstanceState


def account(jobs: float, hurt: float) -> Account:
    return booked(Account(at=NOW), NOW, jobs=jobs, hurt=hurt)


# --------------------------------------------------------------------------- the rule


def test_spot_is_cut_by_half_when_the_budget_burns_more_than_twice_as_fast_as_allowed() -> None:
    assert stepped(account(100, 10), BUDGET, NOW).spot_share == 1.0, "just twice as fast"
    assert stepped(account(100, 11), BUDGET, NOW).spot_share == 0.5


def test_two_hurt_jobs_are_an_accident_and_a_handful_of_jobs_is_no_share() -> None:
    assert stepped(account(30, 2), 0.01, NOW).spot_share == 1.0
    assert stepped(account(10, 3), BUDGET, NOW).spot_share == 1.0


def test_a_bad_hour_after_a_good_day_cuts_nothing() -> None:
    day = booked(account(5000, 10), NOW + timedelta(hours=3), jobs=50, hurt=10)
    assert stepped(day, BUDGET, day.at).spot_share == 1.0


def test_a_bad_morning_that_is_over_cuts_nothing() -> None:
    day = booked(account(100, 30), NOW + timedelta(hours=6), jobs=50)
    assert day.long.burn(BUDGET) > TOO_FAST
    assert stepped(day, BUDGET, day.at).spot_share == 1.0


def test_a_step_has_ten_minutes_to_show_what_it_does() -> None:
    first = stepped(account(100, 50), BUDGET, NOW)
    assert stepped(first, BUDGET, NOW + STEP_EVERY - MINUTE / 60).spot_share == 0.5
    assert stepped(first, BUDGET, NOW + STEP_EVERY).spot_share == 0.25


def test_between_once_and_twice_the_allowance_nothing_changes() -> None:
    cut = replace(account(100, 7), step=2)
    assert stepped(cut, BUDGET, NOW) == cut


def test_spot_comes_back_step_by_step_when_jobs_are_hurt_no_more() -> None:
    now, known = NOW, account(100, 50)
    shares = []
    for _ in range(60):
        known = booked(stepped(known, BUDGET, now), now, jobs=30)
        shares.append(known.spot_share)
        now += STEP_EVERY
    assert sorted(set(shares)) == [0.0, 0.125, 0.25, 0.5, 1.0]
    lowest = shares.index(min(shares))
    assert shares[lowest:] == sorted(shares[lowest:])
    assert shares[-1] == 1.0


def test_spot_comes_back_where_no_job_runs_at_all() -> None:
    now, known = NOW, replace(account(40, 20), step=4)
    for _ in range(100):
        known = stepped(known, BUDGET, now)
        now += STEP_EVERY
    assert known.spot_share == 1.0


def test_a_budget_of_nothing_is_burnt_by_what_hurts_and_by_nothing_else() -> None:
    assert stepped(account(1000, 0), 0.0, NOW).spot_share == 1.0
    assert stepped(account(1000, 3), 0.0, NOW).spot_share == 0.5


def test_a_budget_of_everything_never_burns() -> None:
    assert stepped(account(1000, 1000), 1.0, NOW).spot_share == 1.0


def test_what_plan_sees_says_the_numbers() -> None:
    burn = burn_of(stepped(account(60, 12), BUDGET, NOW), BUDGET)
    assert (burn.share, burn.spot_share) == (4.0, 0.5)
    assert burn.reason == (
        "interruptions hurt about 12 of 60 of its jobs in the last hour and 12 of 60 in the last day, "
        "4.0 and 4.0 times its error budget of 5.0%; at most 50% of its machines may be spot"
    )
    assert burn_of(account(60, 1), BUDGET).reason == ""


HOUR = st.tuples(st.integers(0, 120), st.integers(0, 200), st.floats(0, 1))
"""Minutes that pass, jobs that end then, and what share of them was hurt."""


@given(st.lists(HOUR, max_size=40), st.floats(0, 1))
def test_an_account_steps_at_most_once_in_ten_minutes_and_only_where_it_burns(
    hours: list[tuple[int, int, float]], budget: float
) -> None:
    now, known = NOW, Account(at=NOW)
    for minutes, jobs, share in hours:
        now += minutes * MINUTE
        before = known = booked(known, now, jobs=jobs, hurt=jobs * share)
        known = stepped(known, budget, now)
        assert abs(known.step - before.step) <= 1
        assert 0 <= known.step < len(STEPS)
        burn = burn_of(known, budget)
        assert burn.share >= 0
        assert burn.spot_share == STEPS[known.step]
        if known.step != before.step:
            assert before.stepped_at is None or now - before.stepped_at >= STEP_EVERY
        if known.step > before.step:
            assert before.long.burn(budget) > TOO_FAST < before.short.burn(budget)
            assert before.long.jobs >= LEAST_JOBS


@given(st.lists(HOUR, max_size=20), st.floats(0, 1))
def test_every_cut_is_taken_back_within_hours_once_nothing_hurts(
    hours: list[tuple[int, int, float]], budget: float
) -> None:
    now, known = NOW, Account(at=NOW)
    for minutes, jobs, share in hours:
        now += minutes * MINUTE
        known = stepped(booked(known, now, jobs=jobs, hurt=jobs * share), budget, now)
    end = now + timedelta(hours=24)
    while now < end:
        known = stepped(known, budget, now)
        now += STEP_EVERY
    assert known.spot_share == 1.0


@given(st.floats(0, 1e4), st.floats(0, 1e4), st.integers(0, 10**6), st.integers(0, 10**6))
def test_fading_twice_is_fading_once_for_as_long(jobs: float, hurt: float, first_s: int, second_s: int) -> None:
    start = account(jobs, hurt)
    once = faded(start, NOW + timedelta(seconds=first_s + second_s))
    twice = faded(faded(start, NOW + timedelta(seconds=first_s)), once.at)
    for one, other in ((once.short, twice.short), (once.long, twice.long)):
        assert one.jobs == pytest.approx(other.jobs)
        assert one.hurt == pytest.approx(other.hurt)
    assert SHORT < LONG


# --------------------------------------------------------------------------- what hurts


@pytest.fixture
async def world() -> Observing:
    rules = rules_of(pool(LINUX, "linux", "x64", error_budget=BUDGET, target=timedelta(seconds=60)))
    return await Observing(rules=rules).start()


async def good(world: Observing, count: int, *, first: int = 1000) -> None:
    for number in range(first, first + count):
        await world.webhook(seen_job(number))
        await world.webhook(completed(number, on=None, started_at=NOW))


async def lose(world: Observing, number: int, **machine: Any) -> Instance:
    """A job whose machine vanishes while its forge still says that it runs."""
    row = await world.have_runner(number, **machine)
    await world.webhook(seen_job(number))
    await world.webhook(started(number, on=number))
    ending = machine.get("ending")
    world.rows.move(
        world.rows.instances[row.id], S.TERMINATED, now=world.now, cause="test", ending=ending or EndReason.INTERRUPTED
    )
    world.jobs.machine_ended(world.rows.ended_runners[row.runner_name] or row, world.now, ran_to_end=False)
    await world.answer(id_of(number), started(number, on=number))
    found = world.job(number)
    assert found is not None
    assert found.state is JobState.LOST
    return row


def hurt_of(world: Observing) -> tuple[float, float]:
    """Jobs and hurt jobs of the pool, as its account counts them."""
    known = world.observer.lessons.budgets._accounts[LINUX]
    return round(known.long.jobs), round(known.long.hurt)


async def test_a_job_lost_with_a_spot_machine_is_hurt_and_others_are_not(world: Observing) -> None:
    await good(world, 2)
    await lose(world, 1)
    await lose(world, 2, capacity_pool=replace(SPOT, capacity_type=CapacityType.ON_DEMAND))
    assert hurt_of(world) == (4, 1)


async def test_a_job_that_a_game_day_took_is_not_hurt(world: Observing) -> None:
    await lose(world, 1, ending=EndReason.CHAOS)
    assert hurt_of(world) == (1, 0)


async def test_a_job_whose_machine_powered_itself_off_is_lost_and_no_cloud_hurt_it(world: Observing) -> None:
    """A job with sudo can do that as often as it likes, and on_demand would not keep it from it."""
    await lose(world, 1, ending=EndReason.SELF_ENDED)
    await lose(world, 2, ending=EndReason.VANISHED)
    assert hurt_of(world) == (2, 1)


async def test_a_job_on_a_machine_that_a_game_day_has_taken_is_not_hurt_before_the_machine_is_gone(
    world: Observing,
) -> None:
    row = await world.have_runner(1)
    await world.webhook(seen_job(1))
    await world.webhook(started(1, on=1))
    world.seen.staged = {row.id: world.now + timedelta(minutes=5)}
    await world.see(AgentReported(instance=row.id, kind="runner_stopping", cause="reclaimed", ran_job=False))
    world.wait(20)
    await world.webhook(completed(1, Conclusion.FAILURE, finished_at=world.now))
    assert world.rows.interruptions[row.id].is_game_day
    assert world.rows.instances[row.id].ending is None
    assert hurt_of(world) == (1, 0)


async def test_a_late_success_was_not_hurt_after_all(world: Observing) -> None:
    await lose(world, 1)
    await world.webhook(completed(1, Conclusion.SUCCESS))
    assert hurt_of(world) == (1, 0)


@pytest.mark.parametrize(("waited_s", "hurt"), [(59, 0), (90, 1)])
async def test_a_job_that_is_late_because_its_coming_machine_was_taken_is_hurt(
    world: Observing, waited_s: float, hurt: int
) -> None:
    coming = await world.have(instance(1, world.now, S.LAUNCHED, version=0, provider_id=provider_id(1)))
    await world.webhook(seen_job(1, queued_at=world.now), seen_job(2, queued_at=world.now))
    world.wait(20)
    world.rows.move(coming, S.TERMINATED, now=world.now, cause="test", ending=EndReason.INTERRUPTED)
    await world.see()
    world.wait(waited_s - 20)
    await world.webhook(*(started(number, on=number, started_at=world.now) for number in (1, 2)))
    await world.webhook(*(completed(number, on=None, finished_at=world.now) for number in (1, 2)))
    assert hurt_of(world) == (2, hurt), "one machine, one job"


async def test_a_cut_and_its_end_are_in_the_ledger_and_the_operator_is_told(world: Observing) -> None:
    await good(world, 20)
    for number in range(1, 6):
        await lose(world, number)
    await world.see()
    (burn,) = world.snapshot().burns.values()
    assert (burn.share, burn.spot_share) == (4.0, 0.5)
    ((name, text),) = world.observer.lessons.budgets.troubles()
    assert name == LINUX
    assert "at most 50% of its machines may be spot" in text
    world.metrics.observe_snapshot(world.snapshot(), world.rules)
    assert world.metrics.registry.get_sample_value("autoscaler_error_budget_burn", {"pool": LINUX}) == 4.0
    world.wait(4 * 3600)
    await good(world, 20)
    await world.see()
    assert world.snapshot().burns[LINUX].spot_share == 1.0
    assert world.observer.lessons.budgets.troubles() == []
    lines = [line for _, line in await world.store.ledger(limit=50, subject=LINUX) if line.action == "error_budget"]
    assert [line.outcome for line in reversed(lines)] == [
        "at most 50% of its machines may be spot (before: 100%)",
        "all of its new machines may be spot again (before: 50%)",
    ]
    assert "about 3 of 23 of its jobs in the last hour" in lines[-1].reason, "the third hurt job is one too many"


async def test_a_cut_survives_a_restart_that_comes_at_once(world: Observing) -> None:
    await good(world, 20)
    for number in range(1, 6):
        await lose(world, number)
    after = await world.restarted()
    await after.see()
    assert after.snapshot().burns[LINUX].spot_share == 0.5
    assert after.snapshot().burns is after.snapshot().burns
