"""Every word about one loss becomes one record, and the row and its job follow it.

A little longer than others: one world, and each order in which the words can come.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from autoscaler.facts import AgentNoticed, AgentReported, HookEnded, MachinesDescribed, NoticeArrived
from autoscaler.model import EndReason, Instance, InstanceState, Interruption, JobState
from autoscaler.observe_losses import LONGEST_NOTICE
from autoscaler.plan_ends import RECLAIM_GRACE, plan_ends
from autoscaler.spi import CloudInstance, Conclusion, MachineState, Notice, NoticeKind, ProviderId
from tests.unit.observing import CLOUD, Observing, completed, id_of, listed_machine, provider_id, seen_job, started

S = InstanceState


@pytest.fixture
async def world() -> Observing:
    return await Observing().start()


async def notice(
    world: Observing,
    kind: NoticeKind = NoticeKind.RECLAIM,
    *,
    number: int = 1,
    in_s: float = 120,
    source: str = "queue",
) -> None:
    told = Notice(
        provider_id=provider_id(number), kind=kind, reclaim_at=world.now + timedelta(seconds=in_s), source=source
    )
    await world.see(NoticeArrived(provider=CLOUD, notice=told))


async def agent_sees(world: Observing, row: Instance, *, in_s: float = 120) -> None:
    at = world.now + timedelta(seconds=in_s)
    await world.see(AgentNoticed(instance=row.id, kind=NoticeKind.RECLAIM, reclaim_at=at))


async def agent_says(world: Observing, row: Instance, kind: str, cause: str = "", *, ran_job: bool = False) -> None:
    await world.see(AgentReported(instance=row.id, kind=kind, cause=cause, ran_job=ran_job, at=world.now))


async def describe(world: Observing, *shown: CloudInstance, silent: tuple[int, ...] = (1,)) -> None:
    asked = frozenset(provider_id(number) for number in silent)
    await world.see(MachinesDescribed(provider=CLOUD, asked=asked, silent=asked, instances=shown, started_at=world.now))


async def busy(world: Observing) -> Instance:
    row = await world.have_runner()
    await world.webhook(seen_job())
    await world.webhook(started())
    assert world.state(row) is S.BUSY
    return row


def record(world: Observing, row: Instance) -> Interruption:
    found = world.rows.interruption_of(row.id)
    assert found is not None
    return found


def counted(world: Observing, announced: str) -> float:
    total = 0.0
    for metric in world.metrics.interruptions_total.collect():
        total += sum(
            one.value for one in metric.samples if one.name.endswith("_total") and one.labels["announced"] == announced
        )
    return total


def dropped(world: Observing, reason: str) -> float:
    value: float = world.metrics.notices_dropped_total.labels(provider=CLOUD, reason=reason)._value.get()
    return value


# ---------------------------------------------------------------------- one record


async def test_agent_queue_and_listing_tell_of_one_loss(world: Observing) -> None:
    row = await busy(world)
    await agent_sees(world, row, in_s=120)
    world.wait(1)
    await notice(world, in_s=118)
    await notice(world, in_s=118)
    await world.machines(replace(listed_machine(1), reclaim_at=world.now + timedelta(seconds=119)))
    told = record(world, row)
    assert told.sources == ("agent", "queue", "listing")
    assert told.reclaim_at == world.now + timedelta(seconds=118)
    assert told.is_announced
    assert told.job == id_of(1)
    assert counted(world, "yes") == 1
    assert list(await world.store.recent_interruptions(limit=9)) == [told]
    actions = [entry.action for _, entry in await world.store.ledger(limit=9, subject=row.id)]
    assert actions.count("interruption") == 1


@pytest.mark.parametrize("source", ["queue", "agent"])
async def test_a_reclaim_at_the_end_of_time_drains_nothing_for_ever(world: Observing, source: str) -> None:
    row = await busy(world)
    never = datetime.max.replace(tzinfo=UTC)
    if source == "agent":
        await world.see(AgentNoticed(instance=row.id, kind=NoticeKind.RECLAIM, reclaim_at=never))
    else:
        told = Notice(provider_id=provider_id(1), kind=NoticeKind.RECLAIM, reclaim_at=never, source=source)
        await world.see(NoticeArrived(provider=CLOUD, notice=told))
    told_at = record(world, row).taken_by
    assert world.now < told_at <= world.now + LONGEST_NOTICE
    await world.webhook(completed())
    ends = plan_ends(world.snapshot(), world.rules, world.now)
    assert [action.end_reason for action in ends.actions] == [EndReason.JOB_DONE]


async def test_busy_machine_drains_at_its_notice_and_is_left_alone(world: Observing) -> None:
    row = await busy(world)
    await notice(world)
    assert world.state(row) is S.DRAINING
    ends = plan_ends(world.snapshot(), world.rules, world.now)
    assert not ends.actions


async def test_job_that_becomes_known_after_the_notice_drains_its_machine(world: Observing) -> None:
    row = await world.have_runner()
    await notice(world)
    assert world.state(row) is S.IDLE
    await world.webhook(seen_job())
    await world.webhook(started())
    assert world.state(row) is S.DRAINING


@pytest.mark.parametrize("state", [S.LAUNCHED, S.READY])
async def test_machine_without_a_runner_is_ended_at_its_notice(world: Observing, state: InstanceState) -> None:
    row = await world.have_runner(state=state, demand=None, runner_id=None, runner_name="")
    await notice(world)
    (action,) = plan_ends(world.snapshot(), world.rules, world.now).actions
    assert (action.key, action.reason) == (f"terminate/{row.id}", "its cloud takes it back (told by queue)")


@pytest.mark.parametrize("state", [S.REGISTERING, S.IDLE])
async def test_machine_with_a_runner_is_released_at_its_notice(world: Observing, state: InstanceState) -> None:
    row = await world.have_runner(state=state)
    await notice(world)
    (action,) = plan_ends(world.snapshot(), world.rules, world.now).actions
    assert action.key == f"release/{row.id}"


async def test_notice_of_a_machine_that_no_row_knows_is_dropped_and_counted(world: Observing) -> None:
    await notice(world, number=77)
    assert not world.rows.interruptions
    assert dropped(world, "unknown") == 1


async def test_notice_of_a_machine_that_finished_its_job_changes_nothing(world: Observing) -> None:
    row = await busy(world)
    await world.webhook(completed())
    await notice(world)
    assert world.state(row) is S.BUSY
    assert (dropped(world, "finished"), world.rows.interruption_of(row.id)) == (1, None)


async def test_late_notice_explains_why_a_machine_vanished(world: Observing) -> None:
    row = await busy(world)
    await world.gone()
    assert (await world.last(row)).ending is EndReason.VANISHED
    await notice(world, in_s=-5)
    told = record(world, row)
    assert (told.sources, told.is_announced, told.ended_at) == (("queue",), False, world.now)
    await notice(world, in_s=-5)
    assert row.capacity_pool is not None
    world.wait(30)
    assert world.snapshot().evidence[row.capacity_pool].interruptions == pytest.approx(1, rel=1e-3)


async def test_notice_and_end_of_one_machine_are_one_refusal_of_its_capacity_pool(world: Observing) -> None:
    row = await busy(world)
    await notice(world)
    world.wait(16)
    await world.gone()
    assert (await world.last(row)).ending is EndReason.INTERRUPTED
    assert row.capacity_pool is not None
    cooldown = world.snapshot().cooldowns[row.capacity_pool]
    assert cooldown.failures == 1
    assert cooldown.until <= world.now


async def test_recommendation_to_leave_drains_nothing_and_counts_as_evidence_once(world: Observing) -> None:
    row = await busy(world)
    for _ in range(3):
        await notice(world, NoticeKind.REBALANCE)
    assert world.state(row) is S.BUSY
    assert world.rows.interruption_of(row.id) is None
    assert row.capacity_pool is not None
    evidence = world.observer.experience.evidence(world.now)[row.capacity_pool]
    assert 0 < evidence.interruptions < 1


async def test_maintenance_drains_when_it_is_near(world: Observing) -> None:
    row = await busy(world)
    await notice(world, NoticeKind.MAINTENANCE, in_s=3600)
    assert world.state(row) is S.BUSY
    world.wait(3100)
    await world.see()
    assert world.state(row) is S.DRAINING


async def test_interruption_and_drain_survive_a_restart(world: Observing) -> None:
    row = await busy(world)
    await notice(world)
    after = await world.restarted()
    assert after.state(row) is S.DRAINING
    assert after.snapshot().interruptions[row.id] == record(world, row)
    await after.machines(replace(listed_machine(1, MachineState.TERMINATED), is_reclaimed=True))
    ended = await after.last(row)
    assert ended.ending is EndReason.INTERRUPTED
    assert record(after, row).sources == ("queue", "listing")
    assert not (await after.restarted()).rows.interruptions


# ---------------------------------------------------------------------- ends


async def test_machine_that_its_cloud_says_it_took_ended_interrupted_and_its_job_is_lost(world: Observing) -> None:
    row = await busy(world)
    await world.machines(replace(listed_machine(1, MachineState.TERMINATED), is_reclaimed=True))
    ended = await world.last(row)
    assert (ended.ending, ended.is_ended_by_cloud) == (EndReason.INTERRUPTED, True)
    told = record(world, row)
    assert (told.is_announced, told.sources, told.ended_at) == (False, ("listing",), world.now)
    assert counted(world, "no") == 1
    (doubt,) = world.doubts()
    await world.answer(doubt, started())
    job = world.job()
    assert job is not None
    assert job.state is JobState.LOST


async def test_machine_that_powered_itself_off_after_its_notice_ended_interrupted(world: Observing) -> None:
    row = await busy(world)
    await notice(world)
    await agent_says(world, row, "runner_stopping", "reclaimed")
    await agent_says(world, row, "runner_exited", "143", ran_job=True)
    await agent_says(world, row, "ending", "reclaimed")
    await world.machines(replace(listed_machine(1, MachineState.TERMINATED), ended_by_itself=True))
    ended = await world.last(row)
    assert (ended.ending, ended.is_ended_by_cloud) == (EndReason.INTERRUPTED, False)


async def test_job_that_ends_within_its_notice_is_done(world: Observing) -> None:
    row = await busy(world)
    await notice(world)
    world.wait(20)
    await agent_says(world, row, "runner_exited", "0", ran_job=True)
    await agent_says(world, row, "ending", "job_done")
    await world.webhook(completed(finished_at=world.now))
    assert (await world.ended()).conclusion is Conclusion.SUCCESS
    await world.machines(replace(listed_machine(1, MachineState.TERMINATED), ended_by_itself=True))
    assert (await world.last(row)).ending is EndReason.JOB_DONE


async def test_drained_machine_with_nothing_left_to_do_is_left_to_its_cloud_while_that_is_free(
    world: Observing,
) -> None:
    row = await busy(world)
    await notice(world)
    await agent_says(world, row, "runner_stopping", "reclaimed")
    await world.webhook(completed(conclusion=Conclusion.CANCELLED, finished_at=world.now))
    free = replace(world.snapshot(), reclaimed_free={CLOUD: timedelta(hours=1)})
    ends = plan_ends(free, world.rules, world.now)
    assert (ends.actions, ends.wake_at) == ([], record(world, row).taken_by + RECLAIM_GRACE)
    (action,) = plan_ends(free, world.rules, world.now + timedelta(seconds=151)).actions
    assert action.key == f"terminate/{row.id}"
    (action,) = plan_ends(world.snapshot(), world.rules, world.now).actions
    assert action.key == f"terminate/{row.id}"


# ---------------------------------------------------------------------- what became of the job


@pytest.mark.parametrize("conclusion", [Conclusion.FAILURE, Conclusion.CANCELLED])
async def test_job_whose_runner_its_agent_ended_for_the_reclaim_is_lost(
    world: Observing, conclusion: Conclusion
) -> None:
    row = await busy(world)
    await notice(world)
    world.wait(90)
    await agent_says(world, row, "runner_stopping", "reclaimed")
    world.wait(1)
    await world.webhook(completed(conclusion=conclusion, finished_at=world.now))
    job = world.job()
    assert job is not None
    assert job.state is JobState.LOST
    assert world.state(row) is S.DRAINING


@pytest.mark.parametrize("conclusion", [Conclusion.FAILURE, Conclusion.CANCELLED])
async def test_job_that_its_forge_gave_up_before_the_agent_tells_waits_for_its_word(
    world: Observing, conclusion: Conclusion
) -> None:
    row = await busy(world)
    await notice(world)
    world.wait(91)
    finished_at = world.now
    await world.webhook(completed(conclusion=conclusion, finished_at=finished_at))
    job = world.job()
    assert job is not None
    assert job.state is JobState.RUNNING
    await world.see(
        AgentReported(instance=row.id, kind="runner_stopping", cause="reclaimed", at=finished_at - timedelta(seconds=1))
    )
    (doubt,) = world.doubts()
    await world.answer(doubt, completed(conclusion=conclusion, finished_at=finished_at))
    job = world.job()
    assert job is not None
    assert job.state is JobState.LOST


@pytest.mark.parametrize("conclusion", [Conclusion.FAILURE, Conclusion.CANCELLED])
async def test_job_that_failed_or_was_cancelled_by_a_person_within_the_notice_is_not_lost(
    world: Observing, conclusion: Conclusion
) -> None:
    row = await busy(world)
    await notice(world)
    world.wait(20)
    finished = completed(conclusion=conclusion, finished_at=world.now)
    await world.webhook(finished)
    await agent_says(world, row, "runner_exited", "1", ran_job=True)
    (doubt,) = world.doubts()
    await world.answer(doubt, finished)
    assert (await world.ended()).conclusion is conclusion


async def test_agent_that_only_says_that_it_ended_is_believed_by_its_own_rule(world: Observing) -> None:
    """The words before were lost: it ends its runner half a minute before the reclaim."""
    row = await busy(world)
    await notice(world, in_s=120)
    told = record(world, row)
    world.wait(100)
    await agent_says(world, row, "ending", "reclaimed")
    assert told.reclaim_at is not None
    assert record(world, row).cutoff_at == told.reclaim_at - timedelta(seconds=30)


async def test_that_a_runner_was_ended_for_a_reclaim_outlives_a_restart(world: Observing) -> None:
    row = await busy(world)
    await notice(world)
    world.wait(90)
    await agent_says(world, row, "runner_stopping", "reclaimed")
    cut = world.now
    world.wait(20)
    await world.machines(replace(listed_machine(1, MachineState.TERMINATED), is_reclaimed=True))
    after = await world.restarted()
    for known in [row]:
        stored, told = await after.last(known), await after.store.interruption(known.id)
        assert told is not None
        after.rows.remember_runner(stored.runner_name, stored)
        after.rows.remember_interruption(told)
    await after.webhook(completed(conclusion=Conclusion.CANCELLED, finished_at=cut + timedelta(seconds=1)))
    job = after.job()
    assert job is not None
    assert job.state is JobState.LOST


# ---------------------------------------------------------------------- silence


async def test_silent_machine_that_its_cloud_calls_terminated_was_taken(world: Observing) -> None:
    row = await busy(world)
    heard = world.now
    world.silent[row.id] = heard
    world.wait(12)
    await describe(world, listed_machine(1, MachineState.TERMINATED))
    told = record(world, row)
    assert (await world.last(row)).ending is EndReason.INTERRUPTED
    assert (told.sources, told.is_announced) == (("heartbeat",), False)
    assert told.cutoff_at == heard + timedelta(seconds=6)


async def test_silent_machine_that_its_cloud_shows_running_is_left_alone(world: Observing) -> None:
    row = await busy(world)
    await describe(world, listed_machine(1))
    assert world.state(row) is S.BUSY
    assert world.rows.interruption_of(row.id) is None


async def test_silent_machine_that_powered_itself_off_was_not_taken(world: Observing) -> None:
    row = await busy(world)
    await describe(world, replace(listed_machine(1, MachineState.TERMINATED), ended_by_itself=True))
    assert (await world.last(row)).ending is EndReason.SELF_ENDED
    assert world.rows.interruption_of(row.id) is None


async def test_machine_that_its_cloud_leaves_out_is_gone_the_second_time(world: Observing) -> None:
    row = await busy(world)
    await describe(world)
    assert world.state(row) is S.BUSY
    await describe(world)
    assert (await world.last(row)).ending is EndReason.INTERRUPTED
    assert record(world, row).sources == ("heartbeat",)


async def test_machine_that_shows_up_again_in_between_was_only_overlooked(world: Observing) -> None:
    row = await busy(world)
    await describe(world)
    await describe(world, listed_machine(1))
    await describe(world)
    assert world.state(row) is S.BUSY


async def test_young_machine_that_its_cloud_leaves_out_is_only_late(world: Observing) -> None:
    row = await world.have_runner()
    world.seen.bound_at[row.id] = world.now - timedelta(seconds=3)
    await describe(world)
    await describe(world)
    assert world.state(row) is S.IDLE


async def test_state_change_alone_is_no_interruption(world: Observing) -> None:
    row = await busy(world)
    await notice(world, NoticeKind.STATE_CHANGE)
    assert world.state(row) is S.BUSY
    assert world.rows.interruption_of(row.id) is None


# ---------------------------------------------------------------------- many


async def test_fifty_notices_told_three_times_each_are_fifty_records_in_one_pass(world: Observing) -> None:
    rows = [await world.have_runner(number, S.BUSY) for number in range(1, 51)]
    reclaim_at: datetime = world.now + timedelta(seconds=120)
    facts = [
        fact
        for row in rows
        for told in [
            Notice(provider_id=row.provider_id or ProviderId(""), kind=NoticeKind.RECLAIM, reclaim_at=reclaim_at)
        ]
        for fact in (
            AgentNoticed(instance=row.id, kind=NoticeKind.RECLAIM, reclaim_at=reclaim_at),
            NoticeArrived(provider=CLOUD, notice=told),
            NoticeArrived(provider=CLOUD, notice=told),
        )
    ]
    await world.see(*facts)
    assert {world.state(row) for row in rows} == {S.DRAINING}
    assert counted(world, "yes") == 50
    stored = await world.store.recent_interruptions(limit=100)
    assert {one.instance for one in stored} == {row.id for row in rows}


# ---------------------------------------------------------------------- the hook


async def test_how_long_the_hook_ran_is_on_the_record_and_in_the_jobs_life_once(world: Observing) -> None:
    row = await busy(world)
    await agent_sees(world, row)
    for seconds in (3.25, 9.0):
        await world.see(HookEnded(instance=row.id, seconds=seconds, outcome="failed", exit_code="3"))
    assert record(world, row).hook_s == 3.25
    ((_, line),) = await world.store.ledger(limit=9, subject=id_of(1))
    assert (line.action, line.outcome) == ("interruption_hook", "failed, exit code 3")
    assert line.reason == f"the image's on-interruption hook ran for 3.2 s on {row.id}"
    (count,) = [
        sample.value
        for metric in world.metrics.interruption_hook_seconds.collect()
        for sample in metric.samples
        if sample.name.endswith("_count")
    ]
    assert count == 1
    assert [one.hook_s for one in await world.store.recent_interruptions(limit=9)] == [3.25]


async def test_a_hook_of_a_machine_that_nobody_takes_is_no_news(world: Observing) -> None:
    row = await busy(world)
    await world.see(HookEnded(instance=row.id, seconds=3.0, outcome="ok"))
    assert world.rows.interruption_of(row.id) is None
    assert not await world.store.ledger(limit=9, subject=id_of(1))


async def test_later_word_of_an_earlier_reclaim_is_on_record_and_in_the_ledger_once(world: Observing) -> None:
    """A warning says two minutes, and the cloud's own list less."""
    row = await busy(world)
    await notice(world, in_s=120)
    at = world.now + timedelta(seconds=6)
    for _ in range(2):
        await world.machines(replace(listed_machine(1), reclaim_at=at))
    assert record(world, row).reclaim_at == at
    lines = [entry for _, entry in await world.store.ledger(limit=9, subject=row.id) if "interruption" in entry.action]
    assert [line.action for line in lines] == ["interruption_corrected", "interruption"]
    assert f"at {at:%H:%M:%S}, not at {world.now + timedelta(seconds=120):%H:%M:%S}: told by listing" in lines[0].reason
