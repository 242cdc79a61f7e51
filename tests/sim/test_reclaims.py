"""Named days on which the cloud takes machines: with notices by every way, with none, and with crashes in between."""

from collections.abc import Callable
from datetime import datetime

import pytest

from autoscaler.model import EndReason, InstanceState, Interruption, JobState
from autoscaler.sandbox.cloud_machines import Event, Happening
from autoscaler.simulate.faults import FaultRates
from autoscaler.simulate.seeds import Day
from autoscaler.simulate.stage import GITHUB, Site
from autoscaler.spi import ForgeName, ProviderId
from tests.sim.test_scenarios import both_forges, live, run_of, servings, states

BY_QUEUE = FaultRates(agent_deaf=1.0)
BY_AGENT = FaultRates(message_lost=1.0)
BY_LISTING = FaultRates(agent_deaf=1.0, message_lost=1.0)


async def one_running(day: Day, forge: ForgeName, *, duration_s: float = 200.0) -> ProviderId:
    day.daemon.start()
    day.stage.submit(forge, run_of(forge, duration_s=duration_s))
    await day.until(lambda: states(day) == [JobState.RUNNING])
    (machine,) = day.stage.took
    return machine


def interruptions(day: Day) -> list[Interruption]:
    return list(day.daemon.watch.disk.interruptions.values())


def first(day: Day) -> InstanceState:
    return day.rows()[0].state


@both_forges
@pytest.mark.parametrize(("rates", "source"), [(BY_QUEUE, "queue"), (BY_AGENT, "agent")])
def test_announced_reclaim_drains_and_its_job_runs_again_once(forge: ForgeName, rates: FaultRates, source: str) -> None:
    async def play(day: Day) -> None:
        machine = await one_running(day, forge)
        day.stage.reclaim(machine, notice_s=30)
        await day.until(lambda: first(day) is InstanceState.DRAINING, within_s=4)
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=1500)
        (told,) = interruptions(day)
        assert (told.sources[0], told.is_announced) == (source, True)
        assert day.rows()[0].ending is EndReason.INTERRUPTED
        assert len(servings(day)) == 2

    live(play, rates=rates)


@both_forges
def test_job_that_ends_within_its_notice_runs_once(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        machine = await one_running(day, forge, duration_s=20)
        day.stage.reclaim(machine, notice_s=60)
        await day.until(lambda: states(day) == [JobState.DONE], within_s=900)
        await day.clock.sleep(300)
        assert len(servings(day)) == 1

    live(play)


@both_forges
def test_loss_without_a_word_is_found_within_fifteen_seconds(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        machine = await one_running(day, forge)
        for _ in range(3):  # whatever the phase of heartbeats and looks
            await day.clock.sleep(1.7)
        day.stage.reclaim(machine, notice_s=0)
        await day.until(lambda: first(day) is InstanceState.TERMINATED, within_s=15)
        (told,) = interruptions(day)
        assert (told.sources[0], told.is_announced) == ("heartbeat", False)
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=7000)

    live(play)


def test_machine_whose_cloud_never_takes_it_finishes_its_job() -> None:
    """A warning that comes to nothing costs a replacement at most."""

    async def play(day: Day) -> None:
        machine = await one_running(day, GITHUB, duration_s=300)
        taken = day.stage.cloud.world.machines[machine].machine
        event = Event(kind=Happening.WARNED, machine=taken, at=day.clock.now().timestamp(), state=taken.state)
        day.stage.cloud.world.note(event)
        await day.until(lambda: first(day) is InstanceState.DRAINING, within_s=4)
        await day.until(lambda: states(day) == [JobState.DONE], within_s=900)
        assert len(servings(day)) == 1

    live(play)


KILLS: dict[str, Callable[[str, Day], bool]] = {
    "after_reading_the_message": lambda step, _: step == "local.notices answered",
    "before_the_record_is_written": lambda step, day: step == "store.commit" and day.stage.cloud.world.has_notices,
    "after_the_record_was_written": lambda step, day: step == "store.committed" and bool(interruptions(day)),
    "before_the_acknowledgement": lambda step, _: step == "local.ack",
    "after_the_acknowledgement": lambda step, _: step == "local.ack answered",
}


@pytest.mark.parametrize("when", KILLS)
def test_daemon_killed_between_reading_writing_and_acknowledging_loses_and_doubles_nothing(when: str) -> None:
    async def play(day: Day) -> None:
        machine = await one_running(day, GITHUB)
        day.stage.reclaim(machine, notice_s=100)
        await day.until(lambda: day.stage.cloud.world.has_notices, within_s=3)
        day.reaper.kill_when(lambda step: KILLS[when](step, day))
        await day.until(lambda: day.daemon.lives == 2)
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=1500)
        (told,) = interruptions(day)
        assert told.is_announced
        assert not day.stage.cloud.world.has_notices
        assert len(servings(day)) == 2

    live(play, rates=BY_QUEUE)


def test_fifty_machines_taken_in_one_second_drain_at_once_and_each_job_is_requeued_once() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        for _ in range(50):
            day.stage.submit(GITHUB, run_of(GITHUB, duration_s=400))
        await day.until(lambda: states(day) == [JobState.RUNNING] * 50, within_s=900)
        taken_at = day.clock.now()
        for machine in sorted(day.stage.took):
            day.stage.reclaim(machine, notice_s=60)
        await day.until(lambda: len(interruptions(day)) == 50, within_s=60)
        moves = [move for moves in day.daemon.watch.disk.moves.values() for _, move in moves]
        lags = [(m.at - taken_at).total_seconds() for m in moves if m.to_state is InstanceState.DRAINING]
        assert len(lags) == 50
        assert max(lags) < 5, lags
        await day.until(lambda: states(day) == [JobState.DONE] * 50 + [JobState.REQUEUED] * 50, within_s=3000)
        assert len(interruptions(day)) == 50
        assert len(servings(day)) == 100

    rates = FaultRates(agent_deaf=0.3, message_doubled=0.5)
    live(play, rates=rates, site=Site(boot=(2.0, 3.0), slots={"large": 120, "small": 120}), max=120)


def test_unacknowledged_notices_come_again_and_change_nothing_more() -> None:
    async def play(day: Day) -> None:
        machine = await one_running(day, GITHUB)
        began: datetime = day.clock.now()
        day.stage.reclaim(machine, notice_s=100)
        await day.until(lambda: interruptions(day), within_s=10)
        await day.until(lambda: not day.stage.cloud.world.has_notices, within_s=90)
        (told,) = interruptions(day)
        assert told.sources == ("queue",)
        assert (told.noticed_at - began).total_seconds() < 10
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=1500)

    live(play, rates=FaultRates(agent_deaf=1.0, answer_lost=0.3))
