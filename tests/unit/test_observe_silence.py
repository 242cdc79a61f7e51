"""Jobs that their forge gives up while nobody hears of their machine: lost or failed is for the cloud to tell."""

from dataclasses import replace
from datetime import timedelta

import pytest

from autoscaler.model import Instance, InstanceState, JobState
from autoscaler.spi import Conclusion, MachineState, RunEvent
from tests.admin_world import GITHUB
from tests.unit.observing import (
    NOW,
    REPO,
    Observing,
    completed,
    id_of,
    listed_machine,
    runner_name,
    seen_job,
    started,
)

S = InstanceState


@pytest.fixture
async def world() -> Observing:
    return await Observing().start()


async def running_job(world: Observing) -> None:
    await world.have_runner()
    await world.webhook(seen_job())
    await world.webhook(started())
    world.wait(60)


async def fail_in_silence(world: Observing) -> Instance:
    """Its agent was heard a minute before the forge gave the job up."""
    await running_job(world)
    (machine,) = world.rows.instances.values()
    world.silent[machine.id] = world.now
    world.wait(60)
    await world.webhook(completed(conclusion=Conclusion.FAILURE, finished_at=world.now))
    job = world.job()
    assert job is not None
    assert (job.state, world.state(machine)) == (JobState.RUNNING, S.BUSY)
    world.wait(30)
    assert set(world.doubts()) == {id_of(1)}
    return machine


async def test_failed_job_of_a_silent_machine_is_lost_once_its_cloud_says_that_it_ended(world: Observing) -> None:
    await fail_in_silence(world)
    await world.machines(listed_machine(1, MachineState.TERMINATED))
    job = world.job()
    assert job is not None
    assert (job.state, job.reason) == (JobState.LOST, "its machine ended before it did")
    assert not world.doubts()


async def test_failed_job_whose_machine_powered_itself_off_has_failed_and_is_not_run_again(world: Observing) -> None:
    await fail_in_silence(world)
    after = await world.restarted()
    await after.machines(replace(listed_machine(1, MachineState.TERMINATED), ended_by_itself=True))
    after.wait(10)
    assert set(after.doubts()) == {id_of(1)}
    job = after.job()
    assert job is not None
    await after.answer(id_of(1), completed(conclusion=Conclusion.FAILURE, finished_at=job.finished_at))
    assert (await after.ended(1)).conclusion is Conclusion.FAILURE


async def test_that_its_forge_gave_it_up_outlives_a_restart(world: Observing) -> None:
    await fail_in_silence(world)
    after = await world.restarted()
    await after.machines(listed_machine(1, MachineState.TERMINATED))
    job = after.job()
    assert job is not None
    assert job.state is JobState.LOST


async def test_failed_job_of_a_silent_machine_has_failed_if_its_cloud_shows_it_up(world: Observing) -> None:
    await fail_in_silence(world)
    await world.machines(listed_machine(1))
    await world.answer(
        id_of(1), completed(conclusion=Conclusion.FAILURE, finished_at=world.now - timedelta(seconds=30))
    )
    done = await world.ended()
    assert (done.state, done.conclusion, done.reason) == (JobState.DONE, Conclusion.FAILURE, "")


async def test_failed_job_of_a_silent_machine_has_failed_if_its_agent_is_heard_again(world: Observing) -> None:
    machine = await fail_in_silence(world)
    del world.silent[machine.id]
    await world.answer(
        id_of(1), completed(conclusion=Conclusion.FAILURE, finished_at=world.now - timedelta(seconds=30))
    )
    assert (await world.ended()).state is JobState.DONE


async def test_failed_job_of_a_silent_machine_has_failed_if_nobody_tells_for_an_hour(world: Observing) -> None:
    await fail_in_silence(world)
    failed = completed(conclusion=Conclusion.FAILURE, finished_at=world.now - timedelta(seconds=30))
    world.wait(3000)
    await world.answer(id_of(1), failed)
    assert world.job() is not None
    world.wait(600)
    await world.answer(id_of(1), failed)
    assert (await world.ended()).state is JobState.DONE


# ---------------------------------------------------------------------- requeued jobs


async def lost_job(world: Observing) -> None:
    await running_job(world)
    await world.gone()
    await world.answer(id_of(1), started())


async def test_the_end_of_its_run_makes_a_lost_job_due(world: Observing) -> None:
    await lost_job(world)
    job = world.job()
    assert job is not None
    world.rows.amend_job(job, retry_at=NOW + timedelta(hours=1))
    event = RunEvent(forge=GITHUB, repo=REPO, run_id="500", run_attempt=1, is_finished=True)
    await world.webhook(runs=[event])
    job = world.job()
    assert job is not None
    assert job.retry_at == world.now


async def test_a_successor_that_somebody_else_asked_for_takes_the_lost_jobs_place(world: Observing) -> None:
    await lost_job(world)
    await world.webhook(replace(seen_job(9, run_attempt=2), name="test 1"))
    lost = await world.ended(1)
    assert (lost.state, lost.successor) == (JobState.REQUEUED, id_of(9))
    successor = world.job(9)
    assert successor is not None
    assert successor.attempt == 2


async def test_another_job_of_the_run_is_no_successor(world: Observing) -> None:
    await lost_job(world)
    await world.webhook(seen_job(2, name="lint"))
    job = world.job(1)
    assert job is not None
    assert job.state is JobState.LOST
    assert runner_name(1) == job.runner_name
