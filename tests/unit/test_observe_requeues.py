"""What a successor takes over from a lost job, what recoveries are measured by, and cancellations after a loss."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from autoscaler.facts import AgentReported, MachinesDescribed, NoticeArrived
from autoscaler.model import Instance, InstanceState, Job, JobState, LedgerEntry
from autoscaler.sightings import HANGING, REQUEUED, load_requeued, work_key
from autoscaler.spi import CapacityType, Conclusion, ForgeJob, MachineState, Notice, NoticeKind
from tests.admin_world import GITHUB, LINUX, SPOT, pool, rules_of
from tests.unit.observing import (
    CLOUD,
    NOW,
    REPO,
    Observing,
    completed,
    id_of,
    listed_machine,
    provider_id,
    runner_name,
    seen_job,
    started,
)

S = InstanceState
SUCCESSOR = 9


@pytest.fixture
async def world() -> Observing:
    return await Observing().start()


async def announced_loss(world: Observing, *, notice_s: float = 100) -> Job:
    """Its job ran for a minute when the cloud announced that it takes the machine, and did."""
    row = await world.have_runner()
    await world.webhook(seen_job())
    await world.webhook(started(started_at=NOW))
    world.wait(60)
    told = Notice(
        provider_id=provider_id(1), kind=NoticeKind.RECLAIM, reclaim_at=world.now + timedelta(seconds=notice_s)
    )
    await world.see(NoticeArrived(provider=CLOUD, notice=told))
    world.wait(notice_s - 30)
    await world.see(AgentReported(instance=row.id, kind="runner_stopping", cause="reclaimed", at=world.now))
    world.wait(30)
    await world.machines(listed_machine(1, MachineState.TERMINATED))
    await world.answer(id_of(1), started(started_at=NOW))
    return lost(world)


def lost(world: Observing, number: int = 1) -> Job:
    job = world.job(number)
    assert job is not None
    assert job.state is JobState.LOST
    return job


def successor(**changes: Any) -> ForgeJob:
    return replace(seen_job(SUCCESSOR, run_attempt=2), **{"name": "test 1", **changes})


def running(world: Observing, *, on: int = 2) -> ForgeJob:
    return successor(
        status=started().status, started_at=world.now, runner_name=runner_name(on), runner_id=started(on=on).runner_id
    )


async def ledger(world: Observing, number: int, action: str) -> list[LedgerEntry]:
    return [entry for _, entry in await world.store.ledger(limit=50, subject=id_of(number)) if entry.action == action]


def counted(world: Observing, outcome: str) -> float:
    value: float = world.metrics.requeues_total.labels(pool=LINUX, outcome=outcome)._value.get()
    return value


def observed(metric: Any) -> tuple[float, float]:
    """How many were observed, and their sum."""
    samples = {one.name.rpartition("_")[2]: one.value for found in metric.collect() for one in found.samples}
    return samples["count"], samples["sum"]


# ---------------------------------------------------------------------- what a successor takes over


async def test_loss_is_dated_by_the_moment_at_which_the_runner_was_ended(world: Observing) -> None:
    job = await announced_loss(world)
    assert job.lost_at == NOW + timedelta(seconds=60 + 70)
    assert world.metrics.lost_work_seconds_total._value.get() == 130


async def test_successor_that_somebody_else_asked_for_takes_over_attempt_predecessor_and_loss(world: Observing) -> None:
    before = await announced_loss(world)
    await world.webhook(successor())
    job = world.job(SUCCESSOR)
    assert job is not None
    assert (job.attempt, job.predecessor, job.lost_at) == (2, before.id, before.lost_at)
    assert counted(world, "by_others") == 1


async def test_successor_that_appears_before_its_forge_answers_is_our_doing_and_in_the_ledger(world: Observing) -> None:
    before = await announced_loss(world)
    world.seen.requeuing.add(before.id)
    await world.webhook(successor())
    assert (counted(world, "requeued"), counted(world, "by_others")) == (1, 0)
    (line,) = await ledger(world, 1, "requeue")
    assert (line.reason, line.outcome) == ("its successor appeared", "requeued")


async def test_successor_that_is_seen_after_a_restart_takes_over_the_same(world: Observing) -> None:
    """Its forge took the requeue; then the daemon died before the first word of the new job."""
    before = await announced_loss(world)
    key = work_key(GITHUB, REPO, before.run_id, before.name)
    assert before.lost_at is not None
    kept = [before.attempt, before.id, before.lost_at.isoformat(), None]
    world.rows.move_job(before, JobState.REQUEUED, reason="test")
    world.rows.set_setting(REQUEUED, json.dumps({key: kept}))
    after = await world.restarted()
    await after.listing(successor())
    job = after.job(SUCCESSOR)
    assert job is not None
    assert (job.attempt, job.predecessor, job.lost_at) == (2, before.id, before.lost_at)
    assert after.rows.settings[REQUEUED] == "{}"


def test_settings_of_an_earlier_version_still_count_attempts() -> None:
    (kept,) = load_requeued('{"gh|acme/shop|500|test": 2}').values()
    assert (kept.attempt, kept.job, kept.lost_at) == (2, None, None)


# ---------------------------------------------------------------------- recoveries


async def test_recovery_and_replacement_are_measured_once(world: Observing) -> None:
    await announced_loss(world)
    world.wait(5)
    await world.webhook(successor())
    at = NOW + timedelta(seconds=60)
    await world.have_runner(2, launched_at=at + timedelta(seconds=2), boot_us=40_000_000)
    world.wait(15)
    for _ in range(2):
        await world.webhook(running(world))
    assert observed(world.metrics.recovery_seconds) == (1, 50.0)
    assert observed(world.metrics.replace_seconds) == (1, 42.0)


async def test_work_that_was_never_lost_recovers_from_nothing(world: Observing) -> None:
    await world.have_runner()
    await world.webhook(seen_job())
    await world.webhook(started())
    assert observed(world.metrics.recovery_seconds)[0] == 0


@pytest.mark.parametrize("word", [CapacityType.SPOT, CapacityType.ON_DEMAND])
async def test_where_an_attempt_landed_that_was_to_run_on_demand_is_written_down(
    world: Observing, word: CapacityType
) -> None:
    world.rules = rules_of(pool(LINUX, "linux", "x64", on_demand_from=2))
    await announced_loss(world)
    await world.webhook(successor())
    await world.have_runner(2, capacity_pool=replace(SPOT, capacity_type=word))
    await world.webhook(running(world))
    (line,) = await ledger(world, SUCCESSOR, "requeue_landed")
    assert line.reason == "attempt 2 was to run on demand (on_demand_from = 2)"
    assert line.outcome.startswith(f"{word}: ")


async def test_an_attempt_that_may_run_on_spot_needs_no_such_line(world: Observing) -> None:
    await announced_loss(world)
    await world.webhook(successor())
    await world.have_runner(2)
    await world.webhook(running(world))
    assert not await ledger(world, SUCCESSOR, "requeue_landed")


# ---------------------------------------------------------------------- when lost jobs are tried again


async def test_the_end_of_the_last_other_job_makes_a_lost_one_due_and_no_earlier_one_does(world: Observing) -> None:
    job = await announced_loss(world)
    for number in (2, 3):
        await world.webhook(seen_job(number))
    later = world.now + timedelta(minutes=1)
    world.rows.amend_job(job, retry_at=later)
    await world.webhook(completed(2, on=None))
    assert lost(world).retry_at == later
    await world.webhook(completed(3, on=None))
    assert lost(world).retry_at == world.now


# ---------------------------------------------------------------------- cancellations


async def test_lost_job_that_somebody_cancels_later_is_given_up(world: Observing) -> None:
    job = await announced_loss(world)
    world.wait(300)
    await world.webhook(completed(conclusion=Conclusion.CANCELLED, finished_at=world.now))
    ended = await world.ended()
    assert ended.state is JobState.ABANDONED
    assert ended.reason == "superseded: it was cancelled at its forge after its machine was lost"
    assert [line.outcome for line in await ledger(world, 1, "abandon")] == ["done"]
    assert job.lost_at == ended.lost_at


async def test_lost_job_that_we_may_have_had_cancelled_ourselves_stays_lost_over_a_restart(world: Observing) -> None:
    await announced_loss(world)
    world.rows.set_setting(HANGING, json.dumps([id_of(1)]))
    after = await world.restarted()
    after.wait(300)
    await after.webhook(completed(conclusion=Conclusion.CANCELLED, finished_at=after.now))
    assert lost(after)


async def test_lost_job_that_its_own_runner_cancelled_stays_lost(world: Observing) -> None:
    job = await announced_loss(world)
    assert job.lost_at is not None
    await world.webhook(completed(conclusion=Conclusion.CANCELLED, finished_at=job.lost_at + timedelta(seconds=8)))
    assert lost(world)


async def dies_in_silence(world: Observing, *, cancelled_after_s: float) -> Instance:
    """Its machine was gone a minute before anybody noticed; the job's cancellation arrives before the cloud's word."""
    row = await world.have_runner()
    await world.webhook(seen_job())
    await world.webhook(started(started_at=NOW))
    world.wait(60)
    world.silent[row.id] = world.now
    world.wait(cancelled_after_s)
    await world.webhook(completed(conclusion=Conclusion.CANCELLED, finished_at=world.now))
    job = world.job()
    assert job is not None
    assert job.state is JobState.RUNNING, "its cloud tells what the cancellation means"
    asked = frozenset({provider_id(1)})
    gone = listed_machine(1, MachineState.TERMINATED)
    told = MachinesDescribed(provider=CLOUD, asked=asked, silent=asked, instances=(gone,), started_at=world.now)
    world.wait(20)
    await world.see(replace(told, started_at=world.now))
    return row


async def test_job_that_a_dying_host_cancelled_is_lost(world: Observing) -> None:
    await dies_in_silence(world, cancelled_after_s=10)
    assert lost(world).conclusion is None


async def test_job_that_a_person_cancels_on_a_machine_that_died_before_is_cancelled(world: Observing) -> None:
    await dies_in_silence(world, cancelled_after_s=290)
    await world.answer(
        id_of(1), completed(conclusion=Conclusion.CANCELLED, finished_at=NOW + timedelta(seconds=60 + 290))
    )
    ended = await world.ended()
    assert (ended.state, ended.conclusion) == (JobState.DONE, Conclusion.CANCELLED)


async def test_job_that_a_person_cancels_on_a_machine_that_lives_is_cancelled_at_once(world: Observing) -> None:
    await world.have_runner()
    await world.webhook(seen_job())
    await world.webhook(started(started_at=NOW))
    world.wait(60)
    await world.webhook(completed(conclusion=Conclusion.CANCELLED, finished_at=world.now))
    assert (await world.ended()).conclusion is Conclusion.CANCELLED


async def test_lost_job_that_its_forge_queues_again_by_itself_is_requeued_on_record(world: Observing) -> None:
    """The very same job: a runner that had not begun it died, say."""
    before = await announced_loss(world)
    await world.listing(seen_job())
    await world.answer(id_of(1), seen_job())
    job = world.job()
    assert job is not None
    assert (job.state, job.lost_at) == (JobState.QUEUED, before.lost_at)
    (line,) = await ledger(world, 1, "requeue")
    assert (line.reason, line.outcome) == ("its forge put it back into its queue", "requeued")
    assert counted(world, "by_others") == 1


async def test_forge_that_knows_a_lost_job_again_after_minutes_costs_it_nothing(world: Observing) -> None:
    """A token that lost its rights is told the same as one that asks for a deleted run."""
    await announced_loss(world)
    for _ in range(5):
        await world.answer(id_of(1), None)
        assert lost(world).retry_at == world.now + timedelta(seconds=60)
        world.wait(60)
    await world.answer(id_of(1), started(started_at=NOW))
    world.wait(360)
    await world.answer(id_of(1), None)
    assert lost(world).reason == "the forge does not know it"
    world.wait(600)
    await world.answer(id_of(1), None)
    assert (await world.ended(1)).reason == "superseded: the forge forgot it"
