"""Named days: one fault each, at its worst moment. Every one ends at rest with all invariants kept."""

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from autoscaler.model import EndReason, InstanceState, JobState
from autoscaler.sandbox.inprocess import Fate
from autoscaler.sandbox.workload import JobSpec, RunSpec
from autoscaler.simulate.faults import NO_FAULTS, FaultRates
from autoscaler.simulate.seeds import Case, Day, Outcome, make_config, make_pool, run_case
from autoscaler.simulate.stage import GITHUB, GITLAB, LOCAL, Site
from autoscaler.spi import Conclusion, ForgeName

Play = Callable[[Day], Coroutine[Any, Any, None]]
REPOS = {GITHUB: "acme/web", GITLAB: "group/app"}
both_forges = pytest.mark.parametrize("forge", [GITHUB, GITLAB])


def live(play: Play, *, rates: FaultRates = NO_FAULTS, site: Site | None = None, **pool: Any) -> Outcome:
    config = make_config("ci", (make_pool("linux", pool.pop("labels", ("linux",)), **pool),))
    case = Case(seed="scenario", config=config, site=site or Site(boot=(2.0, 3.0)), rates=rates, quiet_at_s=1.0)
    outcome = run_case(case, play)
    assert not outcome.violations, outcome.report()
    return outcome


def run_of(forge: ForgeName, *, jobs: int = 1, duration_s: float = 20.0, repo: str = "") -> RunSpec:
    specs = tuple(JobSpec(key=f"j{n}", name=f"j{n}", labels=("linux",), duration_s=duration_s) for n in range(jobs))
    return RunSpec(repo=repo or REPOS[forge], workflow="CI", jobs=specs)


def states(day: Day) -> list[JobState]:
    return sorted(job.state for job in day.jobs())


def servings(day: Day) -> list[str]:
    """Every time that a machine took a job."""
    return sorted(job for taken in day.stage.took.values() for job in taken)


@both_forges
def test_a_job_is_served_by_one_machine_that_is_then_gone(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(forge, run_of(forge))
        await day.until(lambda: states(day) == [JobState.DONE])
        assert len(servings(day)) == 1
        await day.until(lambda: [row.state for row in day.rows()] == [InstanceState.TERMINATED])

    live(play)


def test_crash_right_after_the_launch_intent_is_durable_launches_once() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.reaper.kill_when(
            lambda step: step == "store.committed" and any(r.state is InstanceState.REQUESTED for r in day.rows())
        )
        day.stage.submit(GITHUB, run_of(GITHUB))
        await day.until(lambda: day.daemon.lives == 2)
        await day.until(lambda: states(day) == [JobState.DONE])
        assert len(day.stage.cloud.world.made_of) == len(day.rows()) == 1

    live(play)


@both_forges
def test_crash_between_registration_and_hand_over_serves_the_job_under_another_name(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.reaper.kill_when(lambda step: step == f"{forge}.register answered")
        day.stage.submit(forge, run_of(forge))
        await day.until(lambda: day.daemon.lives == 2)
        await day.until(lambda: states(day) == [JobState.DONE])
        assert len(servings(day)) == 1

    live(play)


@pytest.mark.parametrize("fate", [Fate.ANSWER_LOST, Fate.REQUEST_LOST, Fate.SILENT_AFTER])
def test_lost_launch_answer_doubles_no_machine(fate: Fate) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.faults.scripted[LOCAL, "launch"] = fate
        day.stage.submit(GITHUB, run_of(GITHUB))
        await day.until(lambda: states(day) == [JobState.DONE])
        assert len(servings(day)) == 1
        made = [id_ for ids in day.stage.cloud.world.made_of.values() for id_ in ids]
        assert len(made) == 1

    live(play)


@both_forges
def test_lost_registration_answer_leaves_no_runner(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.faults.scripted[forge, "register"] = Fate.ANSWER_LOST
        day.stage.submit(forge, run_of(forge))
        await day.until(lambda: states(day) == [JobState.DONE])
        assert len(servings(day)) == 1

    live(play)


@both_forges
def test_lost_running_and_completed_webhooks_cost_time_only(forge: ForgeName) -> None:
    words = ("in_progress", "completed", "running", "success")

    async def play(day: Day) -> None:
        day.faults.mail_delays = lambda label: [] if any(word in label for word in words) else None
        day.daemon.start()
        day.stage.submit(forge, run_of(forge, jobs=3))
        await day.until(lambda: states(day) == [JobState.DONE] * 3, within_s=300)
        assert {job.conclusion for job in day.jobs()} == {Conclusion.SUCCESS}
        assert len(servings(day)) == 3

    live(play)


@both_forges
def test_queued_webhook_after_completed_starts_nothing_anew(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.faults.mail_delays = lambda label: [240.0] if "queued" in label or "pending" in label else None
        day.daemon.start()
        day.stage.submit(forge, run_of(forge))
        await day.until(lambda: states(day) == [JobState.DONE])
        await day.clock.sleep(300)
        assert states(day) == [JobState.DONE]
        assert len(day.rows()) == 1

    live(play)


def test_two_deployments_leave_each_other_alone() -> None:
    async def play(day: Day) -> None:
        pool = make_pool("linux", ("linux",), repos=("acme/api",))
        other = day.stage.add_daemon(make_config("ci-two", (pool,)))
        for daemon in (day.daemon, other):
            daemon.start()
        day.stage.submit(GITHUB, run_of(GITHUB, jobs=4, duration_s=90))
        day.stage.submit(GITHUB, run_of(GITHUB, jobs=4, duration_s=90, repo="acme/api"))
        disks = (day.daemon.watch.disk, other.watch.disk)
        await day.until(
            lambda: all([job.state for job in disk.jobs.values() if job.pool] == [JobState.DONE] * 4 for disk in disks)
        )
        assert len(servings(day)) == 8
        for daemon in (day.daemon, other):
            machines = {row.provider_id for row in daemon.watch.disk.instances.values()}
            owners = {day.stage.cloud.world.machines[id_].deployment for id_ in machines if id_ is not None}
            assert owners == {daemon.config.autoscaler.name}

    live(play, repos=("acme/web",))


@both_forges
def test_machines_that_an_empty_store_does_not_know_are_adopted_and_finish_their_jobs(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(forge, run_of(forge, jobs=2, duration_s=240))
        await day.until(lambda: len(servings(day)) == 2)
        day.daemon.kill()
        day.daemon.watch.replace_disk()
        day.daemon.start()
        await day.until(lambda: states(day) == [JobState.DONE] * 2)
        assert {job.conclusion for job in day.jobs()} == {Conclusion.SUCCESS}
        assert [row.adopted for row in day.rows()] == [True, True]
        assert len(servings(day)) == 2

    live(play)


@both_forges
def test_forge_down_for_ten_minutes_ends_no_machine_wrongly(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        await day.until(lambda: [row.state for row in day.rows()] == [InstanceState.READY] * 2)
        stock = {row.id for row in day.rows()}
        day.stage.submit(forge, run_of(forge, jobs=1, duration_s=200))
        await day.until(lambda: InstanceState.BUSY in [row.state for row in day.rows()])
        await day.until(lambda: day.loop.time() > 700, within_s=800)
        idle = {row.id for row in day.rows() if row.state in (InstanceState.READY, InstanceState.IDLE)}
        assert idle & stock
        await day.until(lambda: states(day) == [JobState.DONE])
        assert len(servings(day)) == 1

    live(play, rates=FaultRates(outages=((forge, 60.0, 660.0),)), min=2, idle_timeout=timedelta(seconds=30))


@both_forges
def test_job_of_a_machine_that_dies_is_requeued_once(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(forge, run_of(forge, duration_s=100))
        await day.until(lambda: states(day) == [JobState.RUNNING])
        (machine,) = day.stage.took
        day.stage.die_later(machine, 10)
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=1200)
        assert len(servings(day)) == 2
        assert sorted(job.attempt for job in day.jobs()) == [1, 2]

    live(play)


@both_forges
def test_machine_that_dies_before_we_hear_of_its_job_loses_nothing(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        words = ("in_progress", "running")
        day.faults.mail_delays = lambda label: [] if any(word in label for word in words) else None
        day.daemon.start()
        day.stage.submit(forge, run_of(forge, duration_s=100))
        await day.until(lambda: len(servings(day)) == 1)
        (machine,) = day.stage.took
        day.stage.die_later(machine, 0.5)
        await day.until(lambda: JobState.REQUEUED in states(day), within_s=1200)
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=1200)
        assert len(servings(day)) == 2

    live(play)


@both_forges
def test_job_of_a_machine_whose_end_only_the_store_remembers_is_requeued(forge: ForgeName) -> None:
    """The new process looked for the machine in its memory, and took the forge's word that the job had failed."""

    async def play(day: Day) -> None:
        words = ("in_progress", "running")
        day.faults.mail_delays = lambda label: [] if any(word in label for word in words) else None
        day.daemon.start()
        day.stage.submit(forge, run_of(forge, duration_s=100))
        await day.until(lambda: len(servings(day)) == 1)
        (machine,) = day.stage.took
        day.stage.die_later(machine, 0.5)
        day.reaper.kill_when(
            lambda step: step == "store.committed" and any(r.state is InstanceState.TERMINATED for r in day.rows())
        )
        await day.until(lambda: day.daemon.lives == 2, within_s=1200)
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=6000)
        assert len(servings(day)) == 2

    live(play)


@pytest.mark.parametrize("crashes", [False, True])
def test_job_that_its_forge_gives_up_before_the_cloud_tells_of_the_machine_is_requeued(crashes: bool) -> None:
    """It counted as failed, and its machine as ended after its job: no loss was on record."""

    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITHUB, run_of(GITHUB, duration_s=100))
        await day.until(lambda: states(day) == [JobState.RUNNING])
        (machine,) = day.stage.took
        day.stage.die_later(machine, 1)
        (record,) = day.stage.github.world.job_records()
        job = day.stage.github.world.jobs[record.job_ids[0]]
        await day.until(lambda: job.conclusion == "failure", within_s=600)
        if crashes:
            await day.clock.sleep(10)
            day.reaper.kill_all("after its job was given up")
        await day.clock.sleep(60)
        assert states(day) == [JobState.RUNNING]
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=1200)
        assert len(servings(day)) == 2

    live(play, rates=FaultRates(outages=((LOCAL, 14.0, 400.0),)))


@both_forges
def test_stolen_runner_is_replaced(forge: ForgeName) -> None:
    """A job nobody told us of takes the runner that was made for another."""

    async def play(day: Day) -> None:
        day.daemon.start()
        await day.clock.sleep(5)
        day.faults.mail_delays = lambda _: []
        day.stage.submit(forge, run_of(forge, duration_s=600))
        day.faults.mail_delays = lambda _: None
        day.stage.submit(forge, run_of(forge, duration_s=20))
        await day.until(lambda: len(servings(day)) == 1)
        await day.until(lambda: len(servings(day)) == 2, within_s=90)
        (stolen,) = [entry for entry in day.daemon.watch.disk.ledger.values() if entry.action == "runner_stolen"]
        assert "which we had not seen queued" in stolen.reason
        await day.until(lambda: states(day) == [JobState.DONE] * 2, within_s=900)

    live(play)


def test_idle_runner_that_took_an_unannounced_job_is_not_ended() -> None:
    async def play(day: Day) -> None:
        world = day.stage.github.world
        day.daemon.start()
        run_id = int(day.stage.submit(GITHUB, run_of(GITHUB)))
        await day.until(lambda: [row.state for row in day.rows()] == [InstanceState.REGISTERING])
        world.cancel(run_id, day.stage.github.now)
        day.stage.github.settle()
        day.faults.mail_delays = lambda _: []
        day.stage.submit(GITHUB, run_of(GITHUB, duration_s=50))
        await day.until(lambda: len(servings(day)) == 1)
        await day.until(lambda: any(entry.action == "release" for entry in day.daemon.watch.disk.ledger.values()))
        await day.until(lambda: [row.state for row in day.rows()] == [InstanceState.TERMINATED])
        assert [record.conclusion for record in world.job_records()] == ["cancelled", "success"]

    live(play, idle_timeout=timedelta(seconds=4))


def test_jobs_of_a_run_that_are_lost_one_after_the_other_are_requeued_together() -> None:
    """GitHub runs a run again once: a job that was asked for later than its sibling stayed lost."""

    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITHUB, run_of(GITHUB, jobs=2, duration_s=100))
        await day.until(lambda: states(day) == [JobState.RUNNING] * 2)
        for machine, after_s in zip(sorted(day.stage.took), (5, 65), strict=True):
            day.stage.die_later(machine, after_s)
        await day.until(lambda: states(day) == [JobState.DONE] * 2 + [JobState.REQUEUED] * 2, within_s=1500)
        assert len(servings(day)) == 4

    live(play)


def test_lost_job_that_a_persons_rerun_left_out_is_requeued_after_it() -> None:
    """It counted as requeued once its run was in a newer attempt, and stayed failed for good."""

    async def play(day: Day) -> None:
        world = day.stage.github.world
        day.daemon.start()
        broken = JobSpec(key="broken", name="broken", labels=("linux",), duration_s=10, fails=True)
        lost = JobSpec(key="lost", name="lost", labels=("linux",), duration_s=100)
        run_id = int(day.stage.submit(GITHUB, RunSpec(repo=REPOS[GITHUB], workflow="CI", jobs=(broken, lost))))
        run = world.runs[run_id]
        await day.until(lambda: run.jobs["broken"].status == "completed" and run.jobs["lost"].started_at is not None)
        (machine,) = (id_ for id_, took in day.stage.took.items() if took == [f"gh:{run.jobs['lost'].id}"])
        day.faults.mail_delays = lambda label: [10.0] if "completed" in label else None
        day.stage.die_later(machine, 1)
        await day.until(lambda: run.status == "completed", within_s=1200)
        day.stage.rerun_job(run.jobs["broken"].id)
        await day.until(lambda: run.attempt == 3 and run.status == "completed", within_s=1200)
        assert run.jobs["lost"].conclusion == "success"
        assert [job.conclusion for job in world.job_records()] == ["failure", "success"]

    live(play)


@both_forges
def test_job_that_passes_its_maximum_runtime_says_so_and_is_not_requeued(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(forge, run_of(forge, duration_s=600))
        await day.until(lambda: states(day) == [JobState.DONE])
        (job,) = day.jobs()
        assert job.conclusion is Conclusion.FAILURE
        assert job.reason.startswith("max_runtime")
        assert len(servings(day)) == 1
        await day.until(lambda: [row.state for row in day.rows()] == [InstanceState.TERMINATED])
        assert [row.ending for row in day.rows()] == [EndReason.MAX_RUNTIME]

    live(play, max_job_runtime=timedelta(seconds=90))
