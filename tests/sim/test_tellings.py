"""People are told once of each loss: whatever fails, and at whichever step the daemon dies."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from autoscaler.config import RequeueConfig
from autoscaler.model import JobState
from autoscaler.outbox import PREFIX
from autoscaler.sandbox.inprocess import Fate
from autoscaler.sandbox.workload import RunSpec
from autoscaler.simulate.rest import told_of
from autoscaler.simulate.seeds import Day
from autoscaler.simulate.stage import GITHUB, GITLAB, Site
from autoscaler.spi import ForgeName
from tests.sim.test_scenarios import both_forges, live, run_of, states


def told(day: Day) -> list[int]:
    return sorted(told_of(day.stage).values())


def texts(day: Day) -> list[str]:
    notes = [note.body for note in day.stage.gitlab.world.merge_requests.everything()]
    return [*(one.summary for one in day.stage.github.world.checks.everything()), *notes]


def outcomes(day: Day) -> list[str]:
    return [entry.outcome for entry in day.daemon.watch.disk.ledger.values() if entry.action == "tell"]


def asked(forge: ForgeName, **changes: Any) -> RunSpec:
    """A run whose people can be told: a pipeline of a merge request, a run on any commit."""
    return replace(run_of(forge, **changes), ref="refs/merge-requests/7/head")


async def lose_one(day: Day, forge: ForgeName, *, notice_s: float = 0.0, run: RunSpec | None = None) -> None:
    day.daemon.start()
    day.stage.submit(forge, run or asked(forge, duration_s=100))
    await day.until(lambda: states(day) == [JobState.RUNNING])
    (machine,) = day.stage.took
    day.stage.reclaim(machine, notice_s=notice_s)


@both_forges
@pytest.mark.parametrize(("notice_s", "said"), [(0, "without a warning"), (30, "announced at")])
def test_people_are_told_where_their_job_is_shown(forge: ForgeName, notice_s: float, said: str) -> None:
    async def play(day: Day) -> None:
        await lose_one(day, forge, notice_s=notice_s)
        (text,) = await day.until(lambda: texts(day), within_s=120)
        assert "infrastructure, not your test" in text
        assert said in text
        assert "**Attempt**: 1 of 4" in text
        assert "it is queued again" in text
        assert re.search(r"\*\*Machine\*\*: `[\w-]+` \(`(large|small)`, zone `[\w-]+`, spot, provider `local`\)", text)
        await day.until(lambda: outcomes(day) == ["told"], within_s=5)
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=7000)

    live(play)


KILLS: dict[str, Callable[[str, Day], bool]] = {
    "before_the_loss_is_durable": lambda step, day: step == "store.commit" and JobState.LOST in states(day),
    "after_the_loss_became_durable": lambda step, day: step == "store.committed" and JobState.LOST in states(day),
    "before_the_call": lambda step, _: step.endswith(".tell"),
    "after_the_call": lambda step, _: step.endswith(".tell answered"),
    "after_the_answer": lambda step, day: step == "store.commit" and bool(told_of(day.stage)),
    "once_it_is_on_record": lambda step, day: step == "store.committed" and bool(outcomes(day)),
}


@both_forges
@pytest.mark.parametrize("when", KILLS)
def test_daemon_killed_at_any_step_tells_once(forge: ForgeName, when: str) -> None:
    async def play(day: Day) -> None:
        day.reaper.kill_when(lambda step: KILLS[when](step, day))
        await lose_one(day, forge)
        await day.until(lambda: day.daemon.lives == 2, within_s=900)
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=7000)
        await day.until(lambda: outcomes(day) == ["told"], within_s=900)
        assert told(day) == [1]

    live(play)


@both_forges
@pytest.mark.parametrize("fate", [Fate.ANSWER_LOST, Fate.SILENT_AFTER, Fate.REQUEST_LOST, Fate.LIMITED])
def test_telling_that_fails_is_tried_again_and_shows_once(forge: ForgeName, fate: Fate) -> None:
    async def play(day: Day) -> None:
        day.faults.scripted[forge, "tell"] = fate
        await lose_one(day, forge)
        await day.until(lambda: outcomes(day) == ["told"], within_s=900)
        assert told(day) == [1]
        assert (forge, "tell") not in day.faults.scripted

    live(play)


def test_job_that_nobody_can_be_told_of_is_noted_and_requeued() -> None:
    async def play(day: Day) -> None:
        await lose_one(day, GITLAB, run=run_of(GITLAB, duration_s=100))
        await day.until(lambda: outcomes(day), within_s=120)
        assert "belongs to no merge request" in outcomes(day)[0]
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=7000)
        assert told(day) == []

    live(play)


@both_forges
def test_telling_that_fails_for_ever_never_delays_a_requeue(forge: ForgeName) -> None:
    """The same day twice: what happens to the job does not depend on whether anybody can be told."""

    def recovered_at(fate: Fate) -> float:
        found: list[float] = []

        async def play(day: Day) -> None:
            day.faults.lasting[forge, "tell"] = fate
            day.daemon.start()
            for _ in range(6):
                day.stage.submit(forge, asked(forge, duration_s=60))
            await day.until(lambda: states(day) == [JobState.RUNNING] * 6, within_s=900)
            for machine in sorted(day.stage.took):
                day.stage.reclaim(machine, notice_s=0)
            await day.until(lambda: states(day) == [JobState.DONE] * 6 + [JobState.REQUEUED] * 6, within_s=9000)
            found.append(day.clock.monotonic())
            core = day.daemon.core
            assert core is not None
            assert [one.name for one in core.conditions() if not one.is_well] == []
            if fate is not Fate.FINE:
                assert told(day) == []
                assert sum(key.startswith(PREFIX) for key in day.daemon.watch.disk.settings) == 6
            day.faults.lasting.clear()

        live(play, site=Site(boot=(2.0, 3.0), slots={"large": 60, "small": 60}), max=60)
        return found[0]

    fine = recovered_at(Fate.FINE)
    for fate in (Fate.SILENT_BEFORE, Fate.REQUEST_LOST):
        assert recovered_at(fate) == pytest.approx(fine, abs=2.0)


def test_loss_of_a_job_that_opted_out_says_what_to_do() -> None:
    async def play(day: Day) -> None:
        await lose_one(day, GITHUB)
        (text,) = await day.until(lambda: texts(day), within_s=120)
        assert "it is not queued again, because it opted out of that (`pool linux does not requeue`)" in text
        assert "Run it again by hand" in text
        await day.until(lambda: states(day) == [JobState.ABANDONED], within_s=120)

    live(play, requeue=RequeueConfig(enabled=False))
