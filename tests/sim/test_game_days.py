"""Game days on a virtual clock: who is taken, what is on record of it, and what it costs, over crashes too."""

import asyncio
from typing import Any

import pytest

from autoscaler.game_day import GameDayRunning, GameDayState
from autoscaler.game_day_report import GameDayReport, Outcome
from autoscaler.model import EndReason, InstanceState, JobState, LedgerEntry
from autoscaler.sandbox.inprocess import Fate
from autoscaler.simulate.seeds import Day
from autoscaler.simulate.stage import GITHUB, GITLAB, LOCAL, Site
from autoscaler.spi import ForgeName, PoolName
from tests.sim.test_scenarios import both_forges, live, run_of, servings, states

POOL = PoolName("linux")
WITH_NOTICE = Site(boot=(2.0, 3.0), notice_s=20.0)


async def running(day: Day, forge: ForgeName, *, jobs: int = 4, duration_s: float = 120.0) -> None:
    """Each job is a run of its own, so that none waits for the end of the others."""
    day.daemon.start()
    for _ in range(jobs):
        day.stage.submit(forge, run_of(forge, duration_s=duration_s))
    await day.until(lambda: states(day) == [JobState.RUNNING] * jobs)


async def begin(day: Day, share: float, *, is_announced: bool = True) -> GameDayReport:
    assert day.daemon.core is not None
    return await day.daemon.core.begin_game_day(POOL, share=share, is_announced=is_announced, actor="operator")


async def report(day: Day, id_: str) -> GameDayReport | None:
    core = day.daemon.core
    return await core.game_day(id_) if core is not None else None


async def over(day: Day, id_: str, *, within_s: float = 1700.0) -> GameDayReport:
    """Its last report."""
    deadline = day.loop.time() + within_s
    while (found := await report(day, id_)) is None or not found.is_over:
        assert day.loop.time() < deadline, found
        await day.clock.sleep(0.5)
    return found


def ledger(day: Day) -> list[LedgerEntry]:
    return [entry for entry in day.daemon.watch.disk.ledger.values() if entry.action == "game_day"]


@both_forges
@pytest.mark.parametrize("is_announced", [True, False])
def test_game_day_takes_its_share_and_every_lost_job_runs_again(forge: ForgeName, is_announced: bool) -> None:
    async def play(day: Day) -> None:
        await running(day, forge, duration_s=400)
        first = await begin(day, 0.5, is_announced=is_announced)
        assert (first.day.candidates, len(first.day.machines)) == (4, 2)
        done = await over(day, first.day.id, within_s=7000 if not is_announced else 1700)
        assert (done.taken, done.spared, done.going) == (2, 0, 0)
        assert done.lost == done.count(Outcome.REQUEUED) == len(done.back_after_s) == 2
        taken = [row for row in day.rows() if row.id in done.day.machines]
        assert {row.ending for row in taken} == {EndReason.CHAOS}
        told = [day.daemon.watch.disk.interruptions[row.id] for row in taken]
        assert {(one.is_game_day, one.is_announced) for one in told} == {(True, is_announced)}
        assert all(job.lost_usd > 0 for job in done.jobs)
        await day.until(lambda: states(day).count(JobState.DONE) == 4, within_s=3000)
        assert len(servings(day)) == 6

    live(play, site=WITH_NOTICE)


def test_who_asked_and_which_machines_is_durable_before_any_cloud_is_asked() -> None:
    async def play(day: Day) -> None:
        await running(day, GITHUB)
        day.reaper.kill_when(lambda step: step == f"{LOCAL}.interrupt")
        first = await begin(day, 0.5)
        (line,) = ledger(day)
        assert line.actor == "operator"
        assert line.subject == first.day.id
        assert all(machine in line.outcome for machine in first.day.machines)
        assert "0.5 of its 4 machines" in line.reason

    live(play)


@pytest.mark.parametrize("step", ["interrupt", "interrupt answered"])
def test_daemon_killed_in_the_middle_keeps_the_mark_and_asks_for_nothing_again(step: str) -> None:
    async def play(day: Day) -> None:
        await running(day, GITHUB, duration_s=200)
        day.reaper.kill_when(lambda now: now == f"{LOCAL}.{step}")
        first = await begin(day, 0.5)
        await day.until(lambda: day.daemon.lives == 2 and day.daemon.core is not None)
        done = await over(day, first.day.id)
        assert {one.instance for one in day.daemon.watch.disk.interruptions.values()} <= set(first.day.machines)
        assert all(one.is_game_day for one in day.daemon.watch.disk.interruptions.values())
        assert done.taken + done.spared == 2
        assert done.lost == done.taken

    live(play)


def test_nothing_runs_so_nothing_is_taken_and_the_report_says_so() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        await day.until(lambda: day.daemon.core)
        done = await begin(day, 1.0)
        assert done.is_over
        assert done.day.machines == ()
        assert done.day.detail == "pool linux has no machine with a runner: none is taken"
        assert [line.outcome for line in ledger(day)] == [done.day.detail]

    live(play)


def test_one_game_day_at_a_time() -> None:
    async def play(day: Day) -> None:
        await running(day, GITLAB)
        first = await begin(day, 0.25)
        with pytest.raises(GameDayRunning, match=first.day.id):
            await begin(day, 0.25)
        await over(day, first.day.id)
        second = await begin(day, 0.25)
        assert second.day.id != first.day.id
        await over(day, second.day.id)

    live(play)


def test_of_two_orders_at_the_same_time_one_is_refused() -> None:
    async def play(day: Day) -> None:
        await running(day, GITLAB, jobs=6, duration_s=600)
        first = await begin(day, 0.2)
        await day.until(lambda: states(day).count(JobState.RUNNING) == 6 and len(servings(day)) > 6, within_s=300)
        await day.clock.sleep(60)
        answers = await asyncio.gather(begin(day, 0.2), begin(day, 0.2), return_exceptions=True)
        begun = [one for one in answers if isinstance(one, GameDayReport)]
        assert [type(one) for one in answers if one not in begun] == [GameDayRunning]
        assert begun[0].day.id != first.day.id
        await over(day, begun[0].day.id)

    live(play, site=WITH_NOTICE)


def test_cloud_that_refuses_is_on_record_and_no_machine_is_taken() -> None:
    async def play(day: Day) -> None:
        await running(day, GITLAB)
        day.faults.scripted[LOCAL, "interrupt"] = Fate.REQUEST_LOST
        first = await begin(day, 0.5)
        done = await over(day, first.day.id)
        assert done.day.state is GameDayState.FAILED
        assert "local" in done.day.detail
        assert ledger(day)[-1].outcome.startswith("no cloud took the order; local: ")
        await day.until(lambda: states(day) == [JobState.DONE] * 4)
        assert len(servings(day)) == 4

    live(play)


def test_game_day_teaches_nothing_about_its_capacity_pools() -> None:
    async def play(day: Day) -> None:
        await running(day, GITLAB, duration_s=60)
        first = await begin(day, 1.0)
        done = await over(day, first.day.id)
        assert done.taken == 4
        core = day.daemon.core
        assert core is not None
        assert core.snapshot().cooldowns == {}
        await day.clock.sleep(200)
        assert {one.interruptions for one in core.snapshot().evidence.values()} == {0.0}

    live(play)


def test_reclaim_of_another_machine_at_the_same_time_is_none_of_the_game_days() -> None:
    async def play(day: Day) -> None:
        await running(day, GITLAB, duration_s=100)
        first = await begin(day, 0.25)
        other = next(row for row in day.rows() if row.id not in first.day.machines)
        assert other.provider_id is not None
        day.stage.reclaim(other.provider_id, notice_s=20)
        done = await over(day, first.day.id)
        assert done.lost == 1
        await day.until(lambda: _row(day, other.id).state is InstanceState.TERMINATED)
        assert _row(day, other.id).ending is EndReason.INTERRUPTED
        assert not day.daemon.watch.disk.interruptions[other.id].is_game_day

    live(play)


def _row(day: Day, id_: Any) -> Any:
    return day.daemon.watch.disk.instances[id_]
