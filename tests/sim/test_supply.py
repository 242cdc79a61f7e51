"""Days on which the order of supply shows: turns under a cap, machines ahead of their jobs, and boots that are late."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from autoscaler.model import EndReason, InstanceState, Job, JobState
from autoscaler.sandbox.workload import JobSpec, RunSpec
from autoscaler.simulate.seeds import Case, Day, make_config, make_pool, run_case
from autoscaler.simulate.stage import GITHUB, Site
from tests.sim.test_lessons import TESTS, runs
from tests.sim.test_scenarios import states

BOOT_S = (9.0, 10.0)


def live(
    play: Callable[[Day], Coroutine[Any, Any, None]],
    *,
    github: tuple[str, ...] = ("acme",),
    boot: tuple[float, float] = (2.0, 3.0),
    **pool: Any,
) -> None:
    config = make_config("ci", (make_pool("linux", ("linux",), **pool),))
    case = Case(seed="supply", config=config, site=Site(boot=boot), quiet_at_s=1.0, github=github)
    outcome = run_case(case, play)
    assert not outcome.violations, outcome.report()


def matrix(repo: str, jobs: int, *, duration_s: float = 20.0) -> RunSpec:
    specs = tuple(JobSpec(key=f"j{n}", name=f"j{n}", labels=("linux",), duration_s=duration_s) for n in range(jobs))
    return RunSpec(repo=repo, workflow="CI", jobs=specs)


def waited_s(job: Job) -> float:
    assert job.started_at is not None
    return (job.started_at - job.queued_at).total_seconds()


def of_repo(day: Day, repo: str) -> list[Job]:
    return [job for job in day.jobs() if job.repo == repo]


def test_one_repos_matrix_does_not_starve_the_others() -> None:
    """The small repo's jobs get the machines that are free next, though dozens of others are older."""

    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITHUB, matrix("acme/api", 40))
        await day.until(lambda: states(day).count(JobState.RUNNING) == 4)
        day.stage.submit(GITHUB, matrix("acme/web", 2))
        await day.until(lambda: [job.state for job in of_repo(day, "acme/web")] == [JobState.DONE] * 2)
        left = [job for job in of_repo(day, "acme/api") if job.state is JobState.QUEUED]
        assert len(left) > 20
        assert max(waited_s(job) for job in of_repo(day, "acme/web")) < 30
        await day.until(lambda: states(day) == [JobState.DONE] * 42)

    live(play, github=("acme/api", "acme/web"), max=4)


def test_machines_are_up_when_the_next_stage_of_a_run_is_queued() -> None:
    """Its jobs waited for a boot in the first run; in later ones the machines boot while the build runs."""

    async def play(day: Day) -> None:
        day.daemon.start()
        await runs(day, GITHUB, 6)
        tests = [job for job in day.jobs() if job.name.startswith("test")]
        first, last = tests[:TESTS], tests[-TESTS:]
        assert min(waited_s(job) for job in first) > BOOT_S[0]
        assert max(waited_s(job) for job in last) < BOOT_S[0] / 2
        assert len([job for job in day.jobs() if job.state is JobState.DONE]) == 6 * (TESTS + 2)

    live(play, boot=BOOT_S)


def test_a_late_boot_is_raced_and_whichever_comes_first_takes_the_job() -> None:
    async def play(day: Day) -> None:
        faults = day.stage.cloud.world.account.faults
        day.daemon.start()
        day.stage.submit(GITHUB, matrix("acme/api", 10, duration_s=5))
        await day.until(lambda: states(day) == [JobState.DONE] * 10)
        await day.until(lambda: all(row.state is InstanceState.TERMINATED for row in day.rows()))
        faults.slow_boot, faults.slow_factor = 1.0, 30.0
        day.stage.submit(GITHUB, matrix("acme/api", 1))
        await day.until(lambda: len(day.rows()) == 11)
        await day.clock.sleep(1)
        faults.slow_boot = 0.0
        await day.until(partial(is_running, day), within_s=30)
        slow, quick = day.rows()[10:]
        assert day.jobs()[10].instance == quick.id
        assert "1 machine is late" in day.daemon.watch.disk.moves[quick.id][0][1].cause
        await day.until(lambda: states(day) == [JobState.DONE] * 11)
        await day.until(lambda: day.rows()[10].state is InstanceState.TERMINATED, within_s=300)
        assert day.rows()[10].ending is EndReason.SURPLUS
        assert slow.id != quick.id

    live(play)


def is_running(day: Day) -> bool:
    return day.jobs()[10].state is JobState.RUNNING
