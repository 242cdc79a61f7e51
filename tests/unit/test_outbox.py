"""What waits to be said: durable with the loss itself, said once, and dropped when nobody needs it any more."""

from dataclasses import replace
from datetime import timedelta

import pytest

from autoscaler.model import InstanceState, LedgerEntry
from autoscaler.outbox import GIVEN_UP_AFTER, PREFIX
from autoscaler.spi import Conclusion, Telling
from tests.admin_world import GITHUB
from tests.unit.observing import Observing, completed, id_of, started


@pytest.fixture
async def world() -> Observing:
    made = Observing()
    made.rules = replace(made.rules, telling_forges=frozenset({GITHUB}))
    return await made.start()


async def lose(world: Observing) -> None:
    """A job whose machine is gone, and which the forge still says is running."""
    await world.have_runner()
    await world.webhook(started())
    await world.gone()
    await world.answer(id_of(1), started())
    assert world.job() is not None


def waiting(world: Observing) -> tuple[Telling, ...]:
    return world.snapshot().tellings


def kept(world: Observing) -> list[str]:
    return [key for key in world.disk.settings if key.startswith(PREFIX)]


def told(world: Observing) -> list[LedgerEntry]:
    return [entry for entry in world.disk.ledger.values() if entry.action == "tell"]


async def test_a_loss_is_to_be_told_from_the_moment_it_is_durable(world: Observing) -> None:
    await lose(world)
    (telling,) = waiting(world)
    assert (telling.forge, telling.forge_job_id, telling.job_name) == (GITHUB, "1", "test 1")
    assert kept(world) == [PREFIX + telling.key]


async def test_what_waits_survives_a_restart(world: Observing) -> None:
    await lose(world)
    after = await world.restarted()
    assert waiting(after) == waiting(world)


async def test_what_was_said_is_forgotten_and_on_record(world: Observing) -> None:
    await lose(world)
    (telling,) = waiting(world)
    world.outbox.settle(telling.key, "told", world.now)
    world.outbox.settle(telling.key, "told", world.now)
    await world.rows.flush()
    assert (waiting(world), kept(world)) == ((), [])
    (entry,) = told(world)
    assert (entry.subject, entry.pool, entry.outcome) == (id_of(1), "linux", "told")
    assert waiting(await world.restarted()) == ()


async def test_a_late_success_is_not_told_as_a_loss(world: Observing) -> None:
    await lose(world)
    await world.webhook(completed(conclusion=Conclusion.SUCCESS))
    assert (waiting(world), kept(world)) == ((), [])
    assert "ended well after all" in told(world)[0].outcome


async def test_nothing_is_told_where_it_is_turned_off(world: Observing) -> None:
    world.rules = replace(world.rules, telling_forges=frozenset())
    await lose(world)
    assert (waiting(world), kept(world), told(world)) == ((), [], [])


async def test_turning_it_off_drops_what_waits(world: Observing) -> None:
    await lose(world)
    world.rules = replace(world.rules, telling_forges=frozenset())
    world.wait(61)
    await world.see()
    assert kept(world) == []
    assert "tell = false" in told(world)[0].outcome


async def test_after_a_day_nobody_is_told_any_more(world: Observing) -> None:
    await lose(world)
    world.now += GIVEN_UP_AFTER - timedelta(minutes=5)
    await world.see()
    assert len(waiting(world)) == 1
    world.wait(600)
    await world.see()
    assert (waiting(world), kept(world)) == ((), [])


async def test_a_row_of_another_version_is_dropped(world: Observing) -> None:
    world.rows.set_setting(PREFIX + "gh:1/i-1", '{"since": "2026"}')
    after = await world.restarted()
    await after.rows.flush()
    assert (waiting(after), kept(after)) == ((), [])


async def test_a_genuine_failure_is_nobodys_loss(world: Observing) -> None:
    await world.have_runner(state=InstanceState.IDLE)
    await world.webhook(started())
    await world.webhook(completed(conclusion=Conclusion.FAILURE))
    assert waiting(world) == ()
