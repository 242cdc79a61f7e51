"""What history teaches the whole daemon: runs of one workflow, a kill in between, and what is known then."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from autoscaler.core import Core
from autoscaler.model import Job, JobState
from autoscaler.sandbox.workload import JobSpec, RunSpec
from autoscaler.simulate.faults import NO_FAULTS
from autoscaler.simulate.seeds import Case, Day, make_config, make_pool, run_case
from autoscaler.simulate.stage import GITHUB, GITLAB, Site
from autoscaler.spi import ForgeName, PoolName
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

    live(play)


def test_the_end_of_a_run_that_lost_a_job_is_known_before_it_comes() -> None:
    """The build is lost; the docs beside it run on, and the tests that need the build are not waited for."""
    jobs = (job("build", 20.0), job("docs", 60.0), job("test", 30.0, "build"))
    run = RunSpec(repo=REPOS[GITHUB], workflow="CI", jobs=jobs)

    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITHUB, run)
        await day.until(lambda: states(day) == [JobState.DONE] * 3)
        day.stage.submit(GITHUB, run)
        await day.until(lambda: bool(running(day, "build")) and bool(running(day, "docs")))
        (build,), (docs,) = running(day, "build"), running(day, "docs")
        (machine,) = [machine for machine, taken in day.stage.took.items() if build.id in taken]
        day.stage.reclaim(machine, notice_s=0)
        await day.until(lambda: JobState.LOST in states(day), within_s=30)
        await day.until(lambda: bool(core_of(day).snapshot().run_ends), within_s=2)
        (end,) = core_of(day).snapshot().run_ends.values()
        await day.until(lambda: not running(day, "docs"))
        (over,) = [row for row in day.jobs() if row.id == docs.id]
        assert over.finished_at is not None
        assert abs((over.finished_at - end).total_seconds()) < 5
        await day.until(lambda: states(day) == [JobState.DONE] * 6 + [JobState.REQUEUED], within_s=900)
        assert not core_of(day).snapshot().run_ends

    live(play)


def test_a_pool_whose_jobs_are_lost_gets_fewer_spot_machines_and_says_so() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        jobs = tuple(job(f"j{number}", 30.0) for number in range(24))
        day.stage.submit(GITLAB, RunSpec(repo=REPOS[GITLAB], workflow="CI", jobs=jobs))
        await day.until(lambda: sum(row.state is JobState.RUNNING for row in day.jobs()) == 24)
        for machine in list(day.stage.took)[:5]:
            day.stage.reclaim(machine, notice_s=0)
        await day.until(lambda: spot_share(day) < 1, within_s=120)
        assert spot_share(day) == 0.5, "one step"
        ((_, line),) = [
            (seq, line) for seq, line in await core_of(day).store.ledger(limit=900) if line.action == "error_budget"
        ]
        assert line.outcome == "at most 50% of its machines may be spot (before: 100%)"
        assert any(one.target == "pool/linux" for one in core_of(day).troubles())
        day.loop.call_later(1, day.reaper.arm)
        await day.until(lambda: day.daemon.lives == 2)
        await day.until(lambda: day.daemon.core is not None and day.daemon.core.loop.snapshot is not None)
        assert spot_share(day) == 0.5, "a kill forgets no step"
        await day.until(lambda: states(day) == [JobState.DONE] * 24 + [JobState.REQUEUED] * 5, within_s=7000)

    live(play, max=40)


def live(play: Callable[[Day], Coroutine[Any, Any, None]], **pool: Any) -> None:
    config = make_config("ci", (make_pool("linux", ("linux",), **pool),))
    case = Case(seed="lessons", config=config, site=Site(boot=(2.0, 3.0)), rates=NO_FAULTS, quiet_at_s=1.0)
    outcome = run_case(case, play)
    assert not outcome.violations, outcome.report()


def core_of(day: Day) -> Core:
    assert day.daemon.core is not None
    return day.daemon.core


def running(day: Day, name: str) -> list[Job]:
    return [row for row in day.jobs() if row.name == name and row.state is JobState.RUNNING]


def spot_share(day: Day) -> float:
    burn = core_of(day).snapshot().burns.get(PoolName("linux"))
    return burn.spot_share if burn is not None else 1.0


def foreseen(day: Day) -> tuple[Any, ...]:
    core = day.daemon.core
    return core.snapshot().foreseen if core is not None else ()
