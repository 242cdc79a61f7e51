"""What history teaches the whole daemon: runs of one workflow, a kill in between, and what is known then."""

from functools import partial
from typing import Any

import pytest

from autoscaler.model import JobState
from autoscaler.sandbox.workload import JobSpec, RunSpec
from autoscaler.simulate.faults import NO_FAULTS
from autoscaler.simulate.seeds import Case, Day, make_config, make_pool, run_case
from autoscaler.simulate.stage import GITHUB, GITLAB, Site
from autoscaler.spi import ForgeName
from tests.sim.test_scenarios import REPOS, states

BUILD_S, TEST_S, TESTS = 24.0, 8.0, 4


def staged(forge: ForgeName) -> RunSpec:
    """A build, then tests of a matrix, then a job that needs them all."""
    tests = tuple(f"test ({n})" if forge == GITHUB else f"test {n + 1}/{TESTS}" for n in range(TESTS))
    jobs = (
        job("build", BUILD_S),
        *(job(name, TEST_S + number, "build") for number, name in enumerate(tests)),
        job("publish", 4.0, *tests),
    )
    return RunSpec(repo=REPOS[forge], workflow="CI", jobs=jobs)


def job(name: str, duration_s: float, *needs: str) -> JobSpec:
    return JobSpec(key=name, name=name, labels=("linux",), needs=needs, duration_s=duration_s)


async def runs(day: Day, forge: ForgeName, count: int) -> None:
    for number in range(1, count + 1):
        day.stage.submit(forge, staged(forge))
        await day.until(partial(are_done, day, number))


def are_done(day: Day, runs: int) -> bool:
    return states(day) == [JobState.DONE] * (runs * (TESTS + 2))


@pytest.mark.parametrize(("forge", "before"), [(GITHUB, 20), (GITLAB, 3)])
def test_after_runs_of_a_workflow_its_next_stage_is_foreseen_and_a_kill_forgets_nothing(
    forge: ForgeName, before: int
) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        await runs(day, forge, before)
        day.loop.call_later(70, day.reaper.arm)  # all that was learned is durable within a minute
        await day.until(lambda: day.daemon.lives == 2)
        await day.until(lambda: day.daemon.core is not None and day.daemon.core.loop.snapshot is not None)
        day.stage.submit(forge, staged(forge))
        await day.until(lambda: bool(foreseen(day)))
        (one,) = foreseen(day)
        assert (one.count, one.repo, one.labels) == (TESTS, REPOS[forge], ("linux",))
        assert one.hours == pytest.approx((TEST_S + 1.5) / 3600, rel=0.3)
        assert one.reason == f"build of {REPOS[forge]} is usually followed by {TESTS} jobs test"
        await day.until(lambda: not foreseen(day))
        appeared = [row for row in day.jobs() if row.name.startswith("test") and row.run_id == one.run_id]
        assert appeared, "given up before it came"
        assert abs((min(row.queued_at for row in appeared) - one.due_at).total_seconds()) < 6
        await day.until(lambda: any(found.reason.endswith("a job publish") for found in foreseen(day)))
        core = day.daemon.core
        assert core is not None
        known = core.snapshot()
        build = next(hours for (_, _, _, name), hours in known.hours.items() if name == "build")
        assert build * 3600 == pytest.approx(BUILD_S, abs=6)
        (arrivals,) = known.arrivals.values()
        assert len(arrivals.seconds) > before
        assert 2 <= arrivals.seconds[len(arrivals.seconds) // 2] <= 10
        await day.until(partial(are_done, day, before + 1))

    config = make_config("ci", (make_pool("linux", ("linux",)),))
    case = Case(seed="lessons", config=config, site=Site(boot=(2.0, 3.0)), rates=NO_FAULTS, quiet_at_s=1.0)
    outcome = run_case(case, play)
    assert not outcome.violations, outcome.report()


def foreseen(day: Day) -> tuple[Any, ...]:
    core = day.daemon.core
    return core.snapshot().foreseen if core is not None else ()
