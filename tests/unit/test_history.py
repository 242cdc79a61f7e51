"""How long jobs run, as their earlier runs tell; what of it survives a restart, and what is forgotten."""

from datetime import timedelta

import pytest

from autoscaler.facts import AgentReported
from autoscaler.history import WORKS_KEPT, RunTimes
from autoscaler.model import Job, JobState, Work
from autoscaler.spi import Conclusion
from autoscaler.store import Learned
from tests.admin_world import GITHUB, job
from tests.unit.observing import NOW, REPO, Observing, completed, id_of, seen_job, started

WORK: Work = (GITHUB, REPO, "ci", "test")


@pytest.fixture
async def world() -> Observing:
    return await Observing().start()


async def run_job(
    world: Observing, number: int, seconds: float, conclusion: Conclusion = Conclusion.SUCCESS, *, name: str = "test"
) -> None:
    await world.webhook(seen_job(number, name=name))
    await world.webhook(started(number, on=number, name=name, started_at=world.now))
    world.wait(seconds)
    await world.webhook(completed(number, conclusion, on=number, name=name, finished_at=world.now))


def seconds_of(world: Observing, work: Work = WORK) -> float:
    return world.snapshot().hours[work] * 3600


async def test_a_kind_of_job_is_expected_to_run_as_long_as_the_median_of_its_last_five_runs(world: Observing) -> None:
    assert WORK not in world.snapshot().hours
    for number, seconds in enumerate((900, 100, 110, 90, 4000, 105), start=1):
        await run_job(world, number, seconds)
    assert seconds_of(world) == 105


async def test_a_failed_run_counts_and_a_cancelled_one_does_not(world: Observing) -> None:
    await run_job(world, 1, 60, Conclusion.FAILURE)
    await run_job(world, 2, 2, Conclusion.CANCELLED)
    assert seconds_of(world) == 60


async def test_a_run_that_was_lost_with_its_machine_says_nothing(world: Observing) -> None:
    row = await world.have_runner(1)
    await world.webhook(seen_job(1))
    await world.webhook(started(1, on=1, started_at=world.now))
    await world.see(AgentReported(instance=row.id, kind="runner_stopping", cause="reclaimed", ran_job=False))
    world.wait(20)
    await world.webhook(completed(1, Conclusion.FAILURE, finished_at=world.now))
    lost = world.job(1)
    assert lost is not None
    assert lost.state is JobState.LOST
    assert not world.snapshot().hours


async def test_a_row_that_nothing_can_be_learned_from_hides_no_other(world: Observing) -> None:
    await world.webhook(seen_job(1), seen_job(2, name="test"))
    for number, at in ((1, world.now.replace(tzinfo=None)), (2, world.now)):  # an instant without a zone compares not
        row = world.rows.move_job(world.rows.jobs[id_of(number)], JobState.RUNNING, started_at=world.now)
        world.rows.move_job(row, JobState.DONE, conclusion=Conclusion.SUCCESS, finished_at=at)
    world.observer.lessons.take_in(world.rules, world.now)
    assert world.snapshot().hours.keys() == {WORK}


async def test_run_times_survive_a_restart(world: Observing) -> None:
    await run_job(world, 1, 60)
    world.wait(61)
    await world.see()
    after = await world.restarted()
    assert seconds_of(after) == 60
    await run_job(after, 2, 62)
    assert seconds_of(after) == pytest.approx(61)


async def test_a_thousand_kinds_of_job_are_written_in_parts_and_all_of_them(world: Observing) -> None:
    world.observer.lessons.keep(world.now)
    for number in range(1200):
        world.observer.lessons.run_times.job_ended(done(f"test ({number})", 10), world.now)
    world.wait(61)
    sizes = []
    for _ in range(3):
        world.observer.consume((), world.rules, world.now)
        await world.rows.flush()
        sizes.append(len(world.disk.learned))
    assert sizes == [500, 1000, 1200]
    assert len((await world.restarted()).snapshot().hours) == 1200


def test_the_least_recently_run_works_are_forgotten_first() -> None:
    times = RunTimes({})
    times.job_ended(done("first", 10), NOW)
    for number in range(WORKS_KEPT):
        times.job_ended(done(f"test ({number})", 10), NOW)
    assert len(times.hours) == WORKS_KEPT
    assert (GITHUB, REPO, "ci", "first") not in times.hours


def test_what_is_forgotten_leaves_the_store_too_so_that_made_up_names_cannot_fill_it() -> None:
    disk: dict[str, Learned] = {}
    times = RunTimes({})
    for number in range(WORKS_KEPT + 700):
        times.job_ended(done(f"test ({number})", 10), NOW)
        if number % 500 == 0:
            keep(times, disk)
    keep(times, disk)
    assert len(disk) == WORKS_KEPT
    assert len(RunTimes(disk).hours) == WORKS_KEPT


def keep(times: RunTimes, disk: dict[str, Learned]) -> None:
    """As a store does it: an empty text forgets."""
    times.unkept.make_due()
    for one in times.unkept.take(10**9):
        disk[one.key] = one
        if not one.value:
            del disk[one.key]


def test_a_name_longer_than_any_index_takes_is_kept_under_a_short_key_of_its_own() -> None:
    times = RunTimes({})
    for name in ("x" * 800 + "a", "x" * 800 + "b"):
        times.job_ended(done(name, 10), NOW)
    times.unkept.make_due()
    rows = {one.key: one for one in times.unkept.take(10)}
    assert len(rows) == 2
    assert all(len(key) < 200 for key in rows)
    assert RunTimes(rows).hours == times.hours


def test_a_name_made_up_per_run_is_not_learned() -> None:
    times = RunTimes({})
    times.job_ended(done("x" * 5000, 10), NOW)
    assert not times.hours


def test_what_another_version_wrote_is_learned_anew() -> None:
    rows = {key: Learned(key=key, at=NOW, value=value) for key, value in {"hours/a": "?", "hours/b": "[1]"}.items()}
    assert not RunTimes(rows).hours


def done(name: str, seconds: float) -> Job:
    began, ended = NOW, NOW + timedelta(seconds=seconds)
    return job(1, NOW, JobState.DONE, name=name, conclusion=Conclusion.SUCCESS, started_at=began, finished_at=ended)
