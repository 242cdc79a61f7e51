"""Named days on which several jobs of one run are lost, not all of which may run again, or are known to be lost yet."""

from collections.abc import Sequence
from datetime import timedelta

import pytest

from autoscaler.config_types import RequeueConfig
from autoscaler.model import JobState
from autoscaler.sandbox.inprocess import Fate
from autoscaler.sandbox.workload import JobSpec
from autoscaler.simulate.seeds import Day
from autoscaler.simulate.stage import GITHUB, GITLAB, Site
from autoscaler.spi import ForgeName
from tests.sim.test_interruption_promises import ledger, machines_of, run, running
from tests.sim.test_scenarios import both_forges, live, states

OPEN = {JobState.QUEUED, JobState.RUNNING, JobState.LOST}
DEPLOY = JobSpec(key="deploy", name="deploy", labels=("linux", "deploy"), duration_s=200)


def attempts_made(day: Day, names: Sequence[str]) -> dict[str, int]:
    """How often a machine took each job of the day, by its name."""
    served = [job for job in day.jobs() if job.started_at is not None]
    return {name: sum(job.name == name for job in served) for name in names}


async def is_over(day: Day) -> None:
    """Every job has ended, and what runs again has been seen."""

    def ended() -> bool:
        jobs = day.jobs()
        followed = {job.predecessor for job in jobs}
        return not OPEN & set(states(day)) and all(job.id in followed for job in jobs if job.state is JobState.REQUEUED)

    await day.until(ended, within_s=4000)


@both_forges
@pytest.mark.parametrize("notice_s", [0, 20])
def test_job_that_opted_out_is_not_run_again_with_others_of_its_run(forge: ForgeName, notice_s: float) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(forge, run(forge, "a", "b", DEPLOY))
        for machine in machines_of(day, await running(day, 3)):
            day.stage.reclaim(machine, notice_s=notice_s)
        await day.until(lambda: JobState.REQUEUED in states(day), within_s=1500)
        await is_over(day)
        assert attempts_made(day, ("a", "b", "deploy")) == {"a": 2, "b": 2, "deploy": 1}
        (job,) = (job for job in day.jobs() if job.name == "deploy")
        assert (job.state, job.reason.partition(":")[0]) == (JobState.ABANDONED, "opted_out")
        assert not ledger(day, "ride_along")

    live(play, labels=("linux", "deploy"), requeue=RequeueConfig(opt_out_labels=("deploy",)))


@both_forges
@pytest.mark.parametrize("notice_s", [0, 20])
def test_job_that_opted_out_stays_lost_when_others_of_its_run_are_lost_later_and_after_a_restart(
    forge: ForgeName, notice_s: float
) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(forge, run(forge, "a", "b", DEPLOY))
        jobs = await running(day, 3)
        (machine,) = machines_of(day, [job for job in jobs if job.name == "deploy"])
        day.stage.reclaim(machine, notice_s=notice_s)
        await day.until(lambda: JobState.ABANDONED in states(day), within_s=60)
        day.daemon.kill()
        day.daemon.start()
        await day.clock.sleep(30)
        for machine in machines_of(day, [job for job in jobs if job.name != "deploy"]):
            day.stage.reclaim(machine, notice_s=20)
        await day.until(lambda: JobState.REQUEUED in states(day), within_s=1500)
        await is_over(day)
        assert attempts_made(day, ("a", "b", "deploy")) == {"a": 2, "b": 2, "deploy": 1}

    live(play, labels=("linux", "deploy"), requeue=RequeueConfig(opt_out_labels=("deploy",)))


def test_job_without_an_attempt_left_is_not_run_again_with_others_of_its_run() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITHUB, run(GITHUB, "a", "b", "c"))
        jobs = await running(day, 3)
        for machine in machines_of(day, [job for job in jobs if job.name == "a"]):
            day.stage.reclaim(machine, notice_s=20)
        await day.until(lambda: states(day).count(JobState.REQUEUED) == 1, within_s=1500)
        (again,) = await running(day, 1)
        day.stage.reclaim(machines_of(day, [again])[0], notice_s=20)
        await is_over(day)
        assert attempts_made(day, ("a", "b", "c")) == {"a": 2, "b": 1, "c": 1}

    live(play, requeue=RequeueConfig(attempts=2))


@pytest.mark.parametrize("notice_s", [0, 20])
def test_loss_that_its_forge_did_not_tell_us_of_is_no_persons_cancel_of_the_run(notice_s: float) -> None:
    """The word that b ended never arrives; the end of the run does."""

    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITHUB, run(GITHUB, "a", "b"))
        jobs = await running(day, 2)
        (other,) = (job for job in jobs if job.name == "b")
        day.faults.mail_delays = lambda label: [] if label.endswith(f"completed {other.forge_job_id}") else None
        for machine in machines_of(day, jobs):
            day.stage.reclaim(machine, notice_s=notice_s)
        await is_over(day)
        assert attempts_made(day, ("a", "b")) == {"a": 2, "b": 2}
        assert JobState.ABANDONED not in states(day)
        assert not ledger(day, "ride_along")

    live(play, site=Site(boot=(2.0, 3.0)))


@both_forges
@pytest.mark.parametrize("notice_s", [0, 20])
def test_end_of_a_job_that_opted_out_is_no_persons_cancel_of_the_rest(forge: ForgeName, notice_s: float) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(forge, run(forge, "a", DEPLOY))
        jobs = await running(day, 2)
        for name in ("deploy", "a"):
            (machine,) = machines_of(day, [job for job in jobs if job.name == name])
            day.stage.reclaim(machine, notice_s=notice_s)
            await day.clock.sleep(40)
        await is_over(day)
        assert attempts_made(day, ("a", "deploy")) == {"a": 2, "deploy": 1}

    live(play, labels=("linux", "deploy"), requeue=RequeueConfig(opt_out_labels=("deploy",)))


def test_job_that_its_forge_refuses_to_run_again_is_given_up_alone() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITLAB, run(GITLAB, "a", "b", "c"))
        jobs = await running(day, 3)
        (refused,) = (job for job in jobs if job.name == "a")
        day.stage.gitlab.world.job(int(refused.forge_job_id)).deployment_rejected = True
        for machine in machines_of(day, jobs):
            day.stage.reclaim(machine, notice_s=0)
        await is_over(day)
        assert attempts_made(day, ("a", "b", "c")) == {"a": 1, "b": 2, "c": 2}
        assert [line.subject for line in ledger(day, "requeue") if line.outcome == "refused for good"] == [refused.id]

    live(play)


def test_job_that_passed_its_runtime_is_not_run_again_with_lost_ones_of_its_run() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        endless = JobSpec(key="c", name="c", labels=("linux",), duration_s=6000)
        day.stage.submit(GITHUB, run(GITHUB, "a", "b", endless, duration_s=60))
        jobs = await running(day, 3)
        for machine in machines_of(day, [job for job in jobs if job.name != "c"]):
            day.stage.reclaim(machine, notice_s=20)
        await is_over(day)
        assert attempts_made(day, ("a", "b", "c")) == {"a": 2, "b": 2, "c": 1}
        assert not ledger(day, "ride_along")

    live(play, max_job_runtime=timedelta(seconds=90))


def test_job_that_its_own_retry_rule_ran_again_before_we_knew_of_the_loss_is_the_next_attempt() -> None:
    """GitLab tells of the new job first: it is no first attempt, or the limit of attempts would never be reached."""

    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITLAB, run(GITLAB, "a"))
        (job,) = await running(day, 1)
        lost, world = int(job.forge_job_id), day.stage.gitlab.world
        day.faults.mail_delays = lambda label: [20.0] if label.endswith(f" {lost}") else None
        day.faults.lasting[GITLAB, "get_job"] = Fate.REQUEST_LOST
        day.stage.reclaim(machines_of(day, [job])[0], notice_s=20)
        await day.until(lambda: world.job(lost).finished_at is not None, within_s=30)
        again = world.retry_job(lost, day.stage.gitlab.now)
        day.stage.gitlab.settle()
        await day.until(lambda: states(day) == [JobState.QUEUED, JobState.RUNNING], within_s=20)
        day.faults.lasting.clear()
        await is_over(day)
        (row,) = (row for row in day.jobs() if row.forge_job_id == str(again.id))
        assert (row.attempt, row.predecessor, row.state) == (2, job.id, JobState.DONE)
        assert attempts_made(day, ["a"]) == {"a": 2}

    live(play)


def test_jobs_of_one_name_in_one_run_each_take_over_from_one_of_them() -> None:
    """GitHub lets names be alike."""

    async def play(day: Day) -> None:
        day.daemon.start()
        twins = [JobSpec(key=key, name="test", labels=("linux",), duration_s=100) for key in ("x", "y")]
        day.stage.submit(GITHUB, run(GITHUB, *twins))
        jobs = await running(day, 2)
        for machine in machines_of(day, jobs):
            day.stage.reclaim(machine, notice_s=20)
        await is_over(day)
        again = [job for job in day.jobs() if job.state is JobState.DONE]
        assert [job.attempt for job in again] == [2, 2]
        assert {job.predecessor for job in again} == {job.id for job in jobs}

    live(play)
