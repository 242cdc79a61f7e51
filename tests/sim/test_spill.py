"""Days on which spot runs dry: on_demand stands in with its reason, and gives way again; what was learned survives."""

from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

from autoscaler.config_types import SpillConfig
from autoscaler.model import Instance, JobState
from autoscaler.simulate.faults import NO_FAULTS, FaultRates
from autoscaler.simulate.seeds import Case, Day, make_config, make_pool, run_case
from autoscaler.simulate.stage import GITHUB, LOCAL, Site
from autoscaler.spi import CapacityType
from tests.sim.test_scenarios import run_of, states

ON_DEMAND = {"large": 0.1, "small": 0.05}


def live(
    play: Callable[[Day], Coroutine[Any, Any, None]], *, slots: int, rates: FaultRates = NO_FAULTS, **pool: Any
) -> None:
    config = make_config("ci", (make_pool("linux", ("linux",), **pool),))
    site = Site(boot=(2.0, 3.0), slots={"large": slots, "small": slots}, on_demand_prices=ON_DEMAND)
    outcome = run_case(Case(seed="spill", config=config, site=site, rates=rates, quiet_at_s=1.0), play)
    assert not outcome.violations, outcome.report()


def of_type(day: Day, word: CapacityType) -> list[Instance]:
    rows = [row for row in day.rows() if row.provider_id is not None and row.capacity_pool is not None]
    return [row for row in rows if row.capacity_pool is not None and row.capacity_pool.capacity_type is word]


def causes(day: Day, row: Instance) -> list[str]:
    return [move.cause for _, move in day.daemon.watch.disk.moves[row.id]]


def test_on_demand_stands_in_within_seconds_and_spot_is_back_when_it_can_be_had() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITHUB, run_of(GITHUB, jobs=4, duration_s=40))
        began = day.loop.time()
        await day.until(lambda: len(of_type(day, CapacityType.ON_DEMAND)) == 2)
        assert day.loop.time() - began < 5, "a refusal is an answer: nobody waits for spot to come back"
        for row in of_type(day, CapacityType.ON_DEMAND):
            assert "on_demand because all 2 spot capacity pools refuse" in causes(day, row)[0]
        await day.until(lambda: states(day) == [JobState.DONE] * 4)
        await day.until(lambda: all(row.state == "terminated" for row in day.rows()))
        bought = len(of_type(day, CapacityType.ON_DEMAND))
        day.loop.call_later(130, day.stage.submit, GITHUB, run_of(GITHUB, jobs=2))
        await day.until(lambda: states(day) == [JobState.DONE] * 6)
        assert len(of_type(day, CapacityType.ON_DEMAND)) == bought, "spot had machines again"

    live(play, slots=1)


def test_capacity_that_comes_and_goes_switches_no_oftener_than_it_does() -> None:
    """Spot is dry for every other two minutes. No time hysteresis damps that: cooldowns do."""

    async def play(day: Day) -> None:
        day.daemon.start()
        began = day.loop.time()
        account = day.stage.cloud.world.account
        spots = [place for place in account.capacity.supplies if place.capacity_type is CapacityType.SPOT]
        for phase in range(1, 9):
            change = account.capacity.exhausted.update if phase % 2 else account.capacity.exhausted.difference_update
            day.loop.call_at(began + 120.0 * phase, change, spots)
        for number in range(80):
            day.loop.call_at(began + 12.0 * number + 1, day.stage.submit, GITHUB, run_of(GITHUB, duration_s=5))
        await day.until(lambda: states(day) == [JobState.DONE] * 80, within_s=1200)
        bought = [row for row in day.rows() if row.provider_id is not None and row.capacity_pool is not None]
        words = [row.capacity_pool.capacity_type for row in sorted(bought, key=lambda row: row.created_at)]
        switches = sum(before is not after for before, after in pairwise(words))
        assert CapacityType.ON_DEMAND in words
        assert switches <= 2 * 8, "not with every launch"
        assert all("predicted breach" in causes(day, row)[0] for row in of_type(day, CapacityType.ON_DEMAND))
        waits = sorted((job.started_at - job.queued_at).total_seconds() for job in day.jobs() if job.started_at)
        assert waits[len(waits) * 19 // 20] < 60, "the target is kept all the same"

    live(play, slots=20)


def test_every_job_is_told_once_how_likely_it_is_to_be_late() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITHUB, run_of(GITHUB, jobs=4, duration_s=20))
        await day.until(lambda: len(day.jobs()) == 4 and all(job.prediction is not None for job in day.jobs()))
        said = {job.id: job.prediction for job in day.jobs()}
        await day.until(lambda: states(day) == [JobState.DONE] * 4)
        assert {job.id: job.prediction for job in day.jobs()} == said, "what was said first stands"

    live(play, slots=1)


def test_without_spill_jobs_wait_for_spot() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITHUB, run_of(GITHUB, jobs=4, duration_s=10))
        await day.until(lambda: states(day) == [JobState.DONE] * 4)
        assert not of_type(day, CapacityType.ON_DEMAND)

    live(play, slots=1, spill=SpillConfig(enabled=False))


def test_the_spill_cap_binds() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITHUB, run_of(GITHUB, jobs=6, duration_s=30))
        await day.until(lambda: len(of_type(day, CapacityType.ON_DEMAND)) == 1)
        await day.until(lambda: states(day) == [JobState.DONE] * 6)

    live(play, slots=1, spill=SpillConfig(max_usd_per_hour=0.06))


def test_what_machines_taught_survives_a_kill() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITHUB, run_of(GITHUB, jobs=3, duration_s=80))
        await day.until(lambda: states(day) == [JobState.DONE] * 3)
        await day.until(lambda: any(one.hours > 0 for one in day.daemon.watch.disk.evidence.values()))
        before = dict(day.daemon.watch.disk.evidence)
        assert all(one.asked > 0 for one in before.values())
        day.reaper.arm()
        await day.until(lambda: day.daemon.lives == 2)
        await day.until(lambda: day.daemon.core is not None and day.daemon.core.loop.snapshot is not None)
        assert day.daemon.core is not None
        after = day.daemon.core.snapshot().evidence
        assert after.keys() == before.keys()
        assert all(after[place].hours <= one.hours for place, one in before.items()), "it faded, and was not forgotten"

    live(play, slots=20)


def test_a_cloud_whose_launches_are_never_answered_cools_and_is_asked_again() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.loop.call_later(6, day.stage.submit, GITHUB, run_of(GITHUB))
        await day.until(lambda: any("3 launches in here failed in a row" in reason for reason in cooling(day)))
        await day.until(lambda: states(day) == [JobState.DONE])

    live(play, slots=20, rates=FaultRates(outages=((LOCAL, 5.0, 500.0),)))


def cooling(day: Day) -> list[str]:
    core = day.daemon.core
    return [one.reason for one in core.snapshot().cooldowns.values()] if core is not None else []
