"""Every end of a machine says by whom, why and on what evidence; a timer's end is its own, and no loss."""

from dataclasses import replace
from datetime import timedelta

import pytest

from autoscaler.end_lines import terminate_line
from autoscaler.facts import AgentReported, LaunchAnswered, MachinesDescribed
from autoscaler.model import EndReason, Instance, InstanceState, JobState, LedgerEntry
from autoscaler.plan_ends import plan_ends
from autoscaler.spi import BatchToken, Conclusion, MachineState
from tests.admin_world import instance
from tests.unit.observing import CLOUD, NOW, Observing, completed, id_of, listed_machine, provider_id, seen_job, started

S = InstanceState
JOB_TIMERS = pytest.mark.parametrize("cause", ["max_runtime", "max_lifetime"])


@pytest.fixture
async def world() -> Observing:
    return await Observing().start()


async def busy(world: Observing) -> Instance:
    row = await world.have_runner()
    await world.webhook(seen_job())
    await world.webhook(started())
    return row


async def agent_says(world: Observing, row: Instance, kind: str, cause: str = "", *, ran_job: bool = False) -> None:
    await world.see(AgentReported(instance=row.id, kind=kind, cause=cause, ran_job=ran_job, at=world.now))


async def timer_ends(world: Observing, row: Instance, cause: str) -> None:
    """All that an agent says when a timer of its ends a runner with a job."""
    await agent_says(world, row, "runner_stopping", cause)
    await agent_says(world, row, "runner_exited", "143", ran_job=True)
    await agent_says(world, row, "ending", cause)


async def gone(world: Observing) -> None:
    await world.machines(listed_machine(1, MachineState.TERMINATED))


async def end_of(world: Observing, row: Instance) -> LedgerEntry:
    """What the ledger says of its end: once."""
    lines = [entry for _, entry in await world.store.ledger(limit=50, subject=row.id)]
    (line,) = [entry for entry in lines if entry.action == "ended"]
    assert line.actor
    assert line.reason
    assert line.evidence
    return line


# ---------------------------------------------------------------------- timers


@JOB_TIMERS
async def test_a_job_that_passed_its_runtime_is_not_requeued(world: Observing, cause: str) -> None:
    row = await busy(world)
    await timer_ends(world, row, cause)
    await world.webhook(completed(1, Conclusion.FAILURE))
    await gone(world)
    job = await world.ended()
    assert (job.state, job.conclusion) == (JobState.DONE, Conclusion.FAILURE)
    assert job.reason.startswith(f"{cause}: ")
    assert (await world.last(row)).ending is EndReason(cause)


@JOB_TIMERS
async def test_the_forge_may_be_quicker_than_the_agents_last_word(world: Observing, cause: str) -> None:
    row = await busy(world)
    await agent_says(world, row, "runner_stopping", cause)
    await world.webhook(completed(1, Conclusion.CANCELLED))
    job = await world.ended()
    assert job.reason.startswith(f"{cause}: ")
    assert [action.end_reason for action in plan_ends(world.snapshot(), world.rules, world.now).actions] == [cause]


@JOB_TIMERS
async def test_a_timer_that_runs_out_while_the_cloud_takes_the_machine_is_no_loss(world: Observing, cause: str) -> None:
    row = await busy(world)
    await world.machines(replace(listed_machine(1), reclaim_at=world.now + timedelta(seconds=120)))
    assert world.state(row) is S.DRAINING
    await timer_ends(world, row, cause)
    world.wait(60)
    await gone(world)
    await world.webhook(completed(1, Conclusion.FAILURE, finished_at=world.now))
    job = await world.ended()
    assert (job.state, (await world.last(row)).ending) == (JobState.DONE, cause)


@JOB_TIMERS
async def test_a_job_first_heard_of_after_a_timer_ended_its_machine_is_not_requeued(
    world: Observing, cause: str
) -> None:
    row = await world.have_runner()
    await timer_ends(world, row, cause)
    await gone(world)
    await world.webhook(started())
    await world.answer(id_of(1), started())
    job = world.job()
    assert job is not None
    assert (job.state, job.instance) == (JobState.RUNNING, row.id)
    await world.webhook(completed(1, Conclusion.FAILURE))
    assert (await world.ended()).state is JobState.DONE


@JOB_TIMERS
async def test_a_timer_is_remembered_over_a_restart(world: Observing, cause: str) -> None:
    row = await busy(world)
    await agent_says(world, row, "runner_stopping", cause)
    after = await world.restarted()
    await gone(after)
    await after.webhook(completed(1, Conclusion.FAILURE))
    assert (await after.ended()).reason.startswith(f"{cause}: ")
    assert (await after.last(row)).ending is EndReason(cause)


@pytest.mark.parametrize("cause", ["boot_timeout", "no_contact", "max_lifetime", "max_runtime"])
async def test_each_timer_is_an_end_reason_of_its_own_and_no_evidence_of_risk(world: Observing, cause: str) -> None:
    row = await world.have_runner()
    await agent_says(world, row, "ending", cause)
    (planned,) = plan_ends(world.snapshot(), world.rules, world.now).actions
    assert planned.end_reason is EndReason(cause)
    await gone(world)
    assert (await world.last(row)).ending is EndReason(cause)
    line = await end_of(world, row)
    assert (line.actor, line.outcome) == ("agent", cause)
    assert f"its agent said: {cause}" in line.evidence
    assert world.rows.interruption_of(row.id) is None
    assert not world.seen.cooldowns
    assert all(one.interruptions == 0 for one in world.observer.experience.evidence(world.now).values())


async def test_a_machine_that_its_cloud_deletes_at_the_end_of_its_life_was_not_taken(world: Observing) -> None:
    row = await busy(world)
    limit = world.rules.pools[row.pool].max_lifetime
    world.silent[row.id] = world.now
    world.wait(limit.total_seconds() + 1)
    asked = frozenset({provider_id(1)})
    for _ in range(2):
        await world.see(
            MachinesDescribed(provider=CLOUD, asked=asked, silent=asked, instances=(), started_at=world.now)
        )
    assert (await world.last(row)).ending is EndReason.MAX_LIFETIME
    assert world.rows.interruption_of(row.id) is None
    await world.answer(id_of(1), started())
    job = world.job()
    assert job is not None
    assert job.state is JobState.RUNNING
    assert job.reason.startswith("max_lifetime: ")
    assert (await end_of(world, row)).actor == "machine"


# ---------------------------------------------------------------------- who ended it


async def test_a_machine_that_vanished_is_its_clouds_doing_and_says_when_it_was_heard(world: Observing) -> None:
    row = await world.have_runner()
    world.silent[row.id] = world.now
    await world.gone()
    line = await end_of(world, row)
    assert (line.actor, line.outcome) == (CLOUD, "vanished")
    assert "absent from two complete listings" in line.evidence
    assert f"heard last at {NOW:%Y-%m-%dT%H:%M:%SZ}" in line.evidence


async def test_a_reclaimed_machine_names_who_told_of_it(world: Observing) -> None:
    row = await busy(world)
    await world.machines(replace(listed_machine(1), reclaim_at=world.now + timedelta(seconds=120)))
    await gone(world)
    line = await end_of(world, row)
    assert (line.actor, line.outcome) == (CLOUD, "interrupted")
    assert "told by listing" in line.evidence


async def test_a_machine_that_powered_itself_off_did_it_itself(world: Observing) -> None:
    row = await world.have_runner()
    await world.machines(replace(listed_machine(1, MachineState.TERMINATED), ended_by_itself=True))
    line = await end_of(world, row)
    assert (line.actor, line.outcome) == ("machine", "self_ended")


async def test_a_machine_whose_job_is_done_was_ended_by_its_agent(world: Observing) -> None:
    row = await busy(world)
    await agent_says(world, row, "runner_exited", "0", ran_job=True)
    await agent_says(world, row, "ending", "job_done")
    await gone(world)
    line = await end_of(world, row)
    assert (line.actor, line.outcome) == ("agent", "job_done")


async def test_a_refused_machine_has_a_line_with_the_clouds_words(world: Observing) -> None:
    row = await world.have(instance(1, world.now, S.REQUESTED, version=0, provider_id=None, token=BatchToken("b-1")))
    await world.see(LaunchAnswered(token=row.token, result=None, error="no capacity in eu-1a"))
    line = await end_of(world, row)
    assert (line.actor, line.outcome) == (row.provider, "refused")
    assert "no capacity in eu-1a" in line.evidence


async def test_a_machine_that_we_ended_says_so_when_it_is_gone(world: Observing) -> None:
    row = await world.have_runner()
    world.rows.move(row, S.TERMINATING, now=world.now, cause="idle", ending=EndReason.SURPLUS)
    await gone(world)
    line = await end_of(world, row)
    assert (line.actor, line.outcome) == ("autoscaler", "surplus")


@pytest.mark.parametrize(
    ("state", "job", "is_let_go", "words"),
    [
        (S.IDLE, None, True, "its forge let runner ours--1 go"),
        (S.READY, None, False, "it holds no registration"),
        (S.BUSY, JobState.DONE, False, "job github:1 is done"),
        (S.BUSY, None, False, "job github:1 is over"),
        (S.BUSY, JobState.RUNNING, False, "job github:1 is running"),
    ],
)
def test_before_we_end_a_machine_the_ledger_says_what_made_it_right(
    state: InstanceState, job: JobState | None, is_let_go: bool, words: str
) -> None:
    row = instance(1, NOW, state, runner_name="ours--1", job=id_of(1) if state is S.BUSY else None)
    line = terminate_line(
        row,
        NOW,
        end_reason=EndReason.SURPLUS,
        reason="idle",
        said="",
        job=job,
        interruption=None,
        is_let_go=is_let_go,
    )
    assert line.evidence.startswith(f"{state} since 2026-01-05T12:00:00Z; {words}")
    assert (line.actor, line.reason, line.outcome) == ("autoscaler", "surplus: idle", "asked")
