"""Telling people: what its failures wait for, that they are nobody else's trouble, and that it ends."""

from datetime import timedelta

import pytest

from autoscaler.model import JobState, Tell
from autoscaler.spi import (
    ForgeError,
    ForgeOutcomeUnknown,
    ForgeRefusedForGood,
    ForgeUnauthorized,
    ForgeUnavailable,
    JobNotFound,
    RateLimited,
    Telling,
)
from tests.admin_world import GITHUB, job
from tests.unit.observing import NOW
from tests.unit.test_forge_trouble import World, world

__all__ = ["world"]


async def told(world: World, number: int = 1, *, repo: str = "acme/shop") -> Tell:
    """A job that has just become lost, and what plan wants done about it."""
    rows = world.core.rows
    row = rows.add_job(job(number, NOW, JobState.RUNNING, version=0, repo=repo, runner_name=f"ours--{number}"))
    rows.move_job(row, JobState.LOST)
    await world.core.loop.tick()
    return action_of(world, number)


def tellings(world: World) -> tuple[Telling, ...]:
    return world.core.loop._observer._outbox.tellings()


def action_of(world: World, number: int = 1) -> Tell:
    (telling,) = [one for one in tellings(world) if one.forge_job_id == str(number)]
    return Tell(telling=telling, reason="its job was lost")


async def outcome(world: World) -> str:
    await world.core.rows.flush()
    entries = await world.core.store.ledger(before=None, limit=50)
    return next((entry.outcome for _, entry in entries if entry.action == "tell"), "")


@pytest.fixture(autouse=True)
def failing(world: World) -> None:
    """The tick itself may not get through: each call here is made by the test."""
    world.forge.fails["tell"] = ForgeUnavailable("502")


async def do(world: World, action: Tell, error: ForgeError | None) -> None:
    if error is None:
        world.forge.fails.pop("tell", None)
    else:
        world.forge.fails["tell"] = error
    world.core.sightings.retry_after.clear()
    await world.core._tell_calls.intend(action)()


def held_s(world: World, key: str) -> float:
    return (world.core.sightings.retry_after[key] - world.clock.now()).total_seconds()


async def test_what_was_said_is_not_said_again(world: World) -> None:
    action = await told(world)
    await do(world, action, None)
    assert (tellings(world), await outcome(world)) == ((), "told")
    world.forge.fails["tell"] = ForgeUnavailable("502")
    await do(world, action, ForgeUnavailable("502"))
    assert action.key not in world.core.sightings.retry_after, "nobody asked the forge"


@pytest.mark.parametrize("error", [JobNotFound("gone"), ForgeRefusedForGood("no merge request")])
async def test_what_nobody_can_be_told_is_dropped_with_a_reason(world: World, error: ForgeError) -> None:
    await do(world, await told(world), error)
    assert tellings(world) == ()
    assert await outcome(world) == f"not told: {error}"


async def test_failures_wait_longer_the_older_the_news(world: World) -> None:
    action, waits = await told(world), []
    for age in (0, 60, 3600, 20 * 3600):
        world.clock.at = NOW + timedelta(seconds=age)
        await do(world, action, ForgeUnavailable("502"))
        waits.append(held_s(world, action.key))
    assert waits == sorted(waits)
    assert 0.9 < waits[0] < 10
    assert waits[-1] == 900
    assert len(tellings(world)) == 1


async def test_what_may_have_been_written_is_given_time_to_show(world: World) -> None:
    action = await told(world)
    await do(world, action, ForgeOutcomeUnknown("no answer"))
    assert held_s(world, action.key) >= 5


async def test_a_rate_limit_holds_all_that_this_forge_should_be_told(world: World) -> None:
    action = await told(world)
    await do(world, action, RateLimited("slow down", retry_after_s=77))
    assert held_s(world, action.forge_key) == 77
    assert len(tellings(world)) == 1


async def test_a_missing_permission_is_one_trouble_and_no_condition(world: World) -> None:
    for number in (1, 2, 3):
        await do(world, await told(world, number), ForgeUnauthorized("403: grant Checks: write"))
    (trouble,) = [one for one in world.core.troubles() if one.target == GITHUB]
    assert "grant Checks: write" in trouble.text
    assert "tell = false" in trouble.text
    assert len(tellings(world)) == 3
    assert held_s(world, action_of(world).owner_key) >= 600
    assert all(one.is_well for one in world.core.conditions())
    await do(world, action_of(world), None)
    assert [one for one in world.core.troubles() if one.target == GITHUB] == []


async def test_a_forge_that_is_ill_stays_ill_whatever_telling_does(world: World) -> None:
    action = await told(world)
    world.forge.fails["list_runners"] = ForgeUnauthorized("404")
    await world.core.polls.list_runners(GITHUB)
    await do(world, action, None)
    assert not world.condition().is_well


async def test_what_is_held_meanwhile_is_not_asked(world: World) -> None:
    action = await told(world)
    world.forge.fails.clear()
    world.core.sightings.retry_after[action.owner_key] = world.clock.now() + timedelta(minutes=1)
    await world.core._tell_calls.intend(action)()
    assert len(tellings(world)) == 1
