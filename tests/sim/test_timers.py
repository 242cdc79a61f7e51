"""Dead man's timers on the virtual clock: each ends its machine, and no job is requeued for it."""

from datetime import timedelta

import pytest

from autoscaler.model import EndReason, Instance, InstanceState, JobState, LedgerEntry
from autoscaler.simulate.seeds import Day
from autoscaler.spi import Conclusion, ForgeName
from tests.sim.test_scenarios import both_forges, live, run_of, servings, states


def end_line(day: Day, row: Instance) -> LedgerEntry:
    entries = day.daemon.watch.disk.ledger.values()
    (line,) = [entry for entry in entries if entry.subject == row.id and entry.action == "ended"]
    return line


def no_loss(day: Day) -> bool:
    """Nothing is held against the place that the machines were in."""
    disk = day.daemon.watch.disk
    assert day.daemon.core is not None
    is_clean = all(one.interruptions == 0 for one in disk.evidence.values())
    return is_clean and not disk.interruptions and not day.daemon.core.sightings.cooldowns


@both_forges
def test_a_job_that_passed_its_runtime_is_not_requeued(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(forge, run_of(forge, duration_s=600))
        await day.until(lambda: [row.state for row in day.rows()] == [InstanceState.TERMINATED])
        (row,), (job,) = day.rows(), day.jobs()
        assert (row.ending, end_line(day, row).outcome) == (EndReason.MAX_RUNTIME, "max_runtime")
        await day.until(lambda: states(day) == [JobState.DONE])
        assert day.jobs()[0].conclusion is Conclusion.FAILURE
        assert day.jobs()[0].reason.startswith("max_runtime: "), job.reason
        await day.clock.sleep(600)
        assert len(servings(day)) == 1
        assert no_loss(day)

    live(play, max_job_runtime=timedelta(seconds=90))


@both_forges
def test_a_job_that_passed_its_runtime_while_the_daemon_was_down_is_not_requeued(forge: ForgeName) -> None:
    """Its agent ends it, and its last words reach nobody."""

    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(forge, run_of(forge, duration_s=600))
        await day.until(lambda: states(day) == [JobState.RUNNING])
        day.daemon.kill()
        await day.clock.sleep(200)
        day.daemon.start()
        await day.until(lambda: states(day) == [JobState.DONE], within_s=1200)
        await day.clock.sleep(600)
        assert len(servings(day)) == 1
        assert no_loss(day)

    live(play, max_job_runtime=timedelta(seconds=90))


def test_a_machine_that_nobody_answered_ends_itself_and_is_no_loss() -> None:
    """no_contact: five minutes without the daemon."""

    async def play(day: Day) -> None:
        day.daemon.start()
        await day.until(lambda: [row.state for row in day.rows()] == [InstanceState.READY])
        day.daemon.kill()
        await day.clock.sleep(400)
        day.daemon.start()
        await day.until(lambda: day.rows()[0].state is InstanceState.TERMINATED)
        row = day.rows()[0]
        assert (row.ending, end_line(day, row).actor) == (EndReason.SELF_ENDED, "machine")
        await day.until(lambda: any(row.state is InstanceState.READY for row in day.rows()))
        assert no_loss(day)

    live(play, min=1)


def test_a_machine_whose_hello_nobody_took_ends_itself_and_is_no_loss() -> None:
    """boot_timeout, in the agent."""

    async def play(day: Day) -> None:
        day.daemon.start()
        await day.until(lambda: [row.state for row in day.rows()] == [InstanceState.LAUNCHED])
        day.daemon.kill()
        await day.clock.sleep(200)
        day.daemon.start()
        await day.until(lambda: day.rows()[0].state is InstanceState.TERMINATED)
        row = day.rows()[0]
        assert row.ending in (EndReason.SELF_ENDED, EndReason.BOOT_TIMEOUT)
        assert end_line(day, row).actor in ("machine", "autoscaler")
        await day.until(lambda: any(row.state is InstanceState.READY for row in day.rows()))
        assert no_loss(day)

    live(play, min=1)


@pytest.mark.parametrize("is_told", [True, False])
def test_a_reclaimed_machine_is_its_clouds_doing(is_told: bool) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        await day.until(lambda: [row.state for row in day.rows()] == [InstanceState.READY])
        (machine,) = [row.provider_id for row in day.rows()]
        assert machine is not None
        day.stage.reclaim(machine, notice_s=30 if is_told else None)
        await day.until(lambda: day.rows()[0].state is InstanceState.TERMINATED)
        row = day.rows()[0]
        line = end_line(day, row)
        assert (row.ending, line.actor) == (EndReason.INTERRUPTED, row.provider)
        assert "told by" in line.evidence

    live(play, min=1)
