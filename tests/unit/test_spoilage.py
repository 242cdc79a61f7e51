"""Machines that end without being of use damp their pool: a broken image must not burn money or a forge's budget."""

from dataclasses import replace
from datetime import timedelta

import pytest

from autoscaler.facts import AgentReported
from autoscaler.http.agent_bodies import last_line
from autoscaler.model import Launch, Release, Spoilage, Terminate
from autoscaler.sightings import FIRST_HOLD, LONGEST_HOLD, Sightings
from tests.admin_world import LINUX
from tests.unit.observing import Observing
from tests.unit.plan_world import NOW, POOL, S, actions_of, machine, only, planned, queued, runner, world


def spoiled(count: int, *, held_s: float) -> dict[str, Spoilage]:
    return {LINUX: Spoilage(count=count, until=NOW + timedelta(seconds=held_s), reason="runner_failed 1")}


def test_one_useless_machine_may_be_chance() -> None:
    made = planned(world([queued(1)], spoilage=spoiled(1, held_s=0)))
    assert only(made, Launch).count == 1


def test_after_two_useless_machines_the_pool_waits_and_says_why() -> None:
    made = planned(world([queued(1), queued(2)], spoilage=spoiled(2, held_s=15)))
    assert made.actions == ()
    (blocked,) = made.blocked
    assert blocked.jobs == 2
    assert blocked.reason == (
        "the last 2 machines of pool linux were of no use (runner_failed 1); the next one is tried in 15 s"
    )
    assert made.wake_at == NOW + timedelta(seconds=15)


def test_after_the_wait_one_machine_is_tried_at_a_time() -> None:
    jobs = [queued(number) for number in range(1, 6)]
    first = planned(world(jobs, spoilage=spoiled(3, held_s=-1)))
    assert only(first, Launch).count == 1
    assert first.blocked[0].jobs == 4
    waiting = planned(world(jobs, [machine(1, S.LAUNCHED)], spoilage=spoiled(3, held_s=-1)))
    assert actions_of(waiting, Launch) == []


def test_holds_double_up_to_their_limit_and_a_burst_counts_once() -> None:
    seen, now = Sightings(), NOW
    for _ in range(5):
        seen.note_spoiled(LINUX, now, "boot_timeout")
    assert seen.spoilage[LINUX].count == 2, "while the pool is held back, failures tell nothing new"
    assert seen.spoilage[LINUX].until == now + FIRST_HOLD
    for _ in range(20):
        now = seen.spoilage[LINUX].until
        seen.note_spoiled(LINUX, now, "boot_timeout")
    assert seen.spoilage[LINUX].until == now + LONGEST_HOLD
    seen.note_served(LINUX)
    assert LINUX not in seen.spoilage


def test_a_boot_that_times_out_and_a_runner_that_fails_count() -> None:
    silent = machine(1, S.LAUNCHED, seconds=POOL.boot_timeout.total_seconds() + 1)
    assert only(planned(world((), [silent])), Terminate).is_spoiled
    failing = runner(1, S.IDLE)
    made = planned(world((), [failing], ending={failing.id: "runner_failed 1"}))
    assert actions_of(made, Release)[0].is_spoiled
    unneeded = planned(world((), [failing], ending={failing.id: "not_needed"}))
    assert not only(unneeded, Release).is_spoiled


def test_a_runner_that_is_given_no_job_counts_but_not_one_whose_agent_says_it_started() -> None:
    long_online = runner(1, S.IDLE, seconds=95)
    waiting = replace(queued(1), queued_at=NOW - timedelta(seconds=94))
    made = planned(world([waiting], [long_online]))
    assert actions_of(made, Release)[0].is_spoiled
    assert actions_of(planned(world([waiting], [long_online], started=frozenset({long_online.id}))), Release) == []


async def test_the_last_line_of_a_failed_runner_is_kept_as_the_reason() -> None:
    observing = await Observing().start()
    row = await observing.have_runner(state=S.REGISTERING)
    failed = AgentReported(instance=row.id, kind="runner_exited", cause="1", output="cannot reach the forge")
    await observing.see(failed)
    made = only(planned(observing.snapshot()), Release)
    assert made.reason == "its agent ended: runner_failed 1: cannot reach the forge"
    assert made.is_spoiled


@pytest.mark.parametrize(
    ("output", "line"),
    [("", ""), ("one\ntwo\n\n", "two"), ("a\x1b[31mred\n", "a [31mred"), ("x" * 999, "x" * 160)],
)
def test_output_is_cut_to_its_last_line_that_says_anything(output: str, line: str) -> None:
    assert last_line(output) == line
