"""Named days for lost jobs: what a forge, a person and a crash can do while they are queued again. None runs twice."""

from datetime import timedelta

import pytest

from autoscaler.config_types import RequeueConfig
from autoscaler.model import Job, JobState
from autoscaler.sandbox.inprocess import Fate
from autoscaler.sandbox.workload import JobSpec
from autoscaler.simulate.seeds import Day
from autoscaler.simulate.stage import GITHUB, Site
from autoscaler.spi import ForgeName
from tests.sim.test_interruption_promises import ledger, machines_of, requeued_once, run, running
from tests.sim.test_scenarios import both_forges, live, servings, states

BACK = [JobState.DONE, JobState.REQUEUED]
LEASE_S = 180.0
"""How long this GitHub waits for a dead runner."""


async def lose(day: Day, forge: ForgeName, *names: str, duration_s: float = 100.0) -> str:
    """The machines of a run die without a word, and that is on record; the run's id."""
    run_id = day.stage.submit(forge, run(forge, *names, duration_s=duration_s))
    for machine in machines_of(day, await running(day, len(names))):
        day.stage.reclaim(machine, notice_s=0)
    return run_id


async def killed_with_a_lost_job(day: Day, forge: ForgeName) -> Job:
    """The daemon is dead since the moment at which the loss was durable: its next life finds what happened since."""
    day.faults.scripted[forge, "requeue"] = Fate.REQUEST_LOST
    await day.until(lambda: JobState.LOST in states(day), within_s=60)
    day.daemon.kill()
    (job,) = (job for job in day.jobs() if job.state is JobState.LOST)
    return job


def refusals(day: Day) -> list[str]:
    return [line.outcome for line in ledger(day, "requeue") if line.outcome != "requeued"]


# ---------------------------------------------------------------------- the forge


@both_forges
@pytest.mark.parametrize(
    "fate", [Fate.LIMITED, Fate.REQUEST_LOST, Fate.ANSWER_LOST, Fate.SILENT_BEFORE, Fate.SILENT_AFTER]
)
def test_forge_that_rate_limits_or_times_out_before_or_after_taking_effect_runs_the_job_again_once(
    forge: ForgeName, fate: Fate
) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.faults.scripted[forge, "requeue"] = fate
        await lose(day, forge, "build")
        await day.until(lambda: states(day) == BACK, within_s=900)
        assert len(servings(day)) == 2
        assert requeued_once(day)
        assert (forge, "requeue") not in day.faults.scripted

    live(play)


def test_forge_that_refuses_for_good_is_believed_and_the_job_is_given_up_on_record() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        run_id = await lose(day, GITHUB, "build")
        day.stage.github.world.run(int(run_id)).created_at -= timedelta(days=31).total_seconds()
        await day.until(lambda: states(day) == [JobState.ABANDONED], within_s=900)
        (job,) = day.jobs()
        assert job.reason.startswith("superseded: ")
        assert "over a month ago" in job.reason
        assert refusals(day) == ["refused for good"]

    live(play)


def test_run_that_was_deleted_meanwhile_is_given_up_and_says_so() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        run_id = await lose(day, GITHUB, "build")
        await killed_with_a_lost_job(day, GITHUB)
        await day.clock.sleep(LEASE_S)
        day.stage.github.world.delete_run(int(run_id), day.stage.github.now)
        day.daemon.start()
        await day.until(lambda: states(day) == [JobState.ABANDONED], within_s=900)
        (job,) = day.jobs()
        assert job.reason == "superseded: the forge forgot it"
        assert len(servings(day)) == 1

    live(play)


# ---------------------------------------------------------------------- people


@both_forges
def test_job_that_a_person_ran_again_meanwhile_is_not_run_once_more(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        await lose(day, forge, "build")
        job = await killed_with_a_lost_job(day, forge)
        if forge == GITHUB:
            await day.clock.sleep(LEASE_S)
            day.stage.rerun_job(int(job.forge_job_id))
        else:
            world = day.stage.gitlab.world
            world.cancel_job(int(job.forge_job_id), day.stage.gitlab.now)
            world.retry_job(int(job.forge_job_id), day.stage.gitlab.now)
            day.stage.gitlab.settle()
        day.daemon.start()
        await day.until(lambda: states(day) == BACK, within_s=900)
        assert len(servings(day)) == 2
        assert requeued_once(day)

    live(play)


@both_forges
def test_run_that_a_person_cancelled_meanwhile_is_superseded(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        run_id = day.stage.submit(forge, run(forge, "build", "other", duration_s=900))
        jobs = await running(day, 2)
        (machine,) = machines_of(day, [job for job in jobs if job.name == "build"])
        day.stage.reclaim(machine, notice_s=0)
        await killed_with_a_lost_job(day, forge)
        await day.clock.sleep(150)
        day.stage.cancel(forge, run_id)
        day.daemon.start()
        await day.until(lambda: states(day) == [JobState.ABANDONED, JobState.DONE], within_s=1500)
        (job,) = (job for job in day.jobs() if job.state is JobState.ABANDONED)
        assert job.reason.startswith("superseded: ")
        assert "cancelled" in job.reason
        assert len(servings(day)) == 2

    live(play, site=Site(boot=(2.0, 3.0), lease_s=600.0))


# ---------------------------------------------------------------------- crashes


@both_forges
@pytest.mark.parametrize("step", range(10))
def test_daemon_that_dies_between_any_two_steps_of_a_requeue_loses_and_doubles_nothing(
    forge: ForgeName, step: int
) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        await lose(day, forge, "build")
        left = iter(range(step))
        day.reaper.kill_when(lambda _: JobState.LOST in states(day) and next(left, None) is None)
        await day.until(lambda: day.daemon.lives == 2, within_s=200)
        await day.until(lambda: states(day) == BACK, within_s=900)
        assert len(servings(day)) == 2
        assert requeued_once(day)

    live(play)


# ---------------------------------------------------------------------- GitHub's runs


def test_run_of_dead_jobs_is_ended_by_us_long_before_github_would() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        await lose(day, GITHUB, "a", "b", duration_s=300)
        began = day.loop.time()
        await day.until(lambda: states(day).count(JobState.REQUEUED) == 2, within_s=900)
        assert day.loop.time() - began < 60
        assert [line.subject for line in ledger(day, "abandon")] == []
        await day.until(lambda: states(day) == [JobState.DONE] * 2 + [JobState.REQUEUED] * 2, within_s=900)
        assert len(servings(day)) == 4

    live(play, site=Site(boot=(2.0, 3.0), lease_s=600.0))


def test_run_that_goes_on_for_an_hour_is_asked_about_rarely_and_its_lost_job_is_back_as_soon_as_it_ends() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        long = JobSpec(key="long", name="long", labels=("linux",), duration_s=1700)
        run_id = day.stage.submit(GITHUB, run(GITHUB, "lost", long))
        jobs = await running(day, 2)
        (machine,) = machines_of(day, [job for job in jobs if job.name == "lost"])
        day.stage.reclaim(machine, notice_s=0)
        asked: list[float] = []

        def count(step: str) -> bool:
            if step == f"{GITHUB}.requeue":
                asked.append(day.loop.time())
            return False

        day.reaper.kill_when(count)
        long_job = day.stage.github.world.run(int(run_id)).jobs["long"]
        await day.until(lambda: long_job.status == "completed", within_s=2000)
        ended_at = day.loop.time()
        assert len(asked) < 25
        await day.until(lambda: JobState.REQUEUED in states(day), within_s=5)
        assert day.loop.time() - ended_at < 5

    live(play)


def test_genuine_failures_that_ride_along_are_announced_with_their_names() -> None:
    async def play(day: Day) -> None:
        run_again = await _mixed(day)
        assert run_again == ["broken", "lost-1", "lost-2"]
        (line,) = ledger(day, "ride_along")
        assert line.reason == "1 jobs of the run that had failed by themselves run again with it: broken"

    live(play)


def test_genuine_failures_never_run_again_where_the_pool_says_wait() -> None:
    async def play(day: Day) -> None:
        assert await _mixed(day) == ["lost-1", "lost-2"]
        assert not ledger(day, "ride_along")

    live(play, requeue=RequeueConfig(mixed_failures="wait"))


async def _mixed(day: Day) -> list[str]:
    """A run with a genuine failure and two losses; the names of what ran again, once all is over."""
    day.daemon.start()
    broken = JobSpec(key="broken", name="broken", labels=("linux",), duration_s=5, fails=True)
    lost = [JobSpec(key=f"lost-{n}", name=f"lost-{n}", labels=("linux",), duration_s=120) for n in (1, 2)]
    run_id = day.stage.submit(GITHUB, run(GITHUB, broken, *lost))
    await running(day, 3)
    jobs = [job for job in await running(day, 2) if job.name != "broken"]
    for machine in machines_of(day, jobs):
        day.stage.reclaim(machine, notice_s=0)
    await day.until(lambda: states(day).count(JobState.REQUEUED) == 2, within_s=900)
    world = day.stage.github.world
    await day.until(lambda: world.run(int(run_id)).status == "completed", within_s=900)
    await day.until(lambda: not {JobState.QUEUED, JobState.RUNNING, JobState.LOST} & set(states(day)))
    return sorted(one.name for one in world.job_records() if one.served == 2)


# ---------------------------------------------------------------------- unservable runs


@both_forges
def test_run_that_no_pool_can_serve_is_cancelled_after_ten_minutes_where_the_pool_asks_for_that(
    forge: ForgeName,
) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(forge, run(forge, JobSpec(key="gpu", name="gpu", labels=("linux", "gpu"))))
        await day.until(lambda: states(day) == [JobState.QUEUED])
        await day.clock.sleep(590)
        assert states(day) == [JobState.QUEUED]
        await day.until(lambda: states(day) == [JobState.ABANDONED], within_s=30)
        (job,) = day.jobs()
        (line,) = ledger(day, "cancel_run")
        assert line.reason == job.reason
        assert job.reason.startswith("unservable: no pool that serves")
        assert 'unservable = "cancel_run"' in job.reason
        assert line.outcome == "cancelled"

    live(play, unservable="cancel_run")
