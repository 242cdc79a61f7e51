"""What we must never do to somebody's job, each promise by name. `tests/sim` holds whole days to them."""

from dataclasses import replace
from datetime import timedelta

import pytest

from autoscaler.facts import AgentReported
from autoscaler.model import EndReason, InstanceState, Launch, Release, Terminate
from autoscaler.plan import plan
from autoscaler.spi import JobStatus
from tests.admin_world import LINUX, OFFERING, pool, rules_of
from tests.unit.observing import Observing, id_of, listed_runner, seen_job, started

S = InstanceState
RULES = rules_of(
    pool(LINUX, "linux", "x64", idle_timeout=timedelta(seconds=60), max_job_runtime=timedelta(hours=6)),
)


@pytest.fixture
async def world() -> Observing:
    """A world in which every listing is complete, so that nothing keeps a machine but what is said of it."""
    world = await Observing(rules=RULES).start()
    await world.listing()
    world.seen.complete.update({"aws", "gce", "github"})
    return world


def ends(world: Observing) -> list[Release | Terminate]:
    made = plan(world.snapshot(), world.rules, world.now)
    return [action for action in made.actions if isinstance(action, Release | Terminate)]


@pytest.mark.parametrize("is_online", [True, False])
async def test_a_running_job_outlives_every_listing_that_calls_its_runner_idle_or_offline(
    world: Observing, is_online: bool
) -> None:
    """GitHub listed runners as not busy, and as offline, while they ran jobs: scalers that believed it killed dozens
    (specs: github-rest B5)."""
    machine = await world.have_runner()
    await world.webhook(seen_job(1))
    await world.webhook(started(1, on=1))
    for _ in range(20):
        world.wait(600)
        await world.runners(listed_runner(is_busy=False, is_online=is_online))
        await world.listing(started(1, on=1))
        assert world.state(machine) is S.BUSY
        assert ends(world) == []


async def test_scale_down_asks_the_forge_to_let_a_runner_go_before_its_machine_is_ended(world: Observing) -> None:
    """However idle all listings call it: the forge's own deletion is the only safe word."""
    machine = await world.have_runner()
    world.wait(600)
    await world.runners(listed_runner(is_busy=False))
    (end,) = ends(world)
    assert isinstance(end, Release)
    assert (end.instance, end.end_reason) == (machine.id, EndReason.SURPLUS)


async def test_a_runner_whose_agent_says_that_a_job_began_is_asked_for_and_never_ended_unasked(
    world: Observing,
) -> None:
    machine = await world.have_runner()
    await world.see(AgentReported(instance=machine.id, kind="job_started", cause="", ran_job=False, at=world.now))
    world.wait(600)
    await world.runners(listed_runner(is_busy=False))
    assert all(isinstance(end, Release) for end in ends(world))


async def test_a_busy_runner_of_a_job_that_nobody_told_us_of_is_left_alone(world: Observing) -> None:
    machine = await world.have_runner()
    await world.runners(listed_runner(is_busy=True))
    world.wait(3600)
    assert world.state(machine) is S.BUSY
    assert ends(world) == []


async def test_a_job_whose_runner_never_registers_gets_another_machine(world: Observing) -> None:
    await world.have_runner(1, S.REGISTERING, since=world.now)
    await world.webhook(seen_job(1))
    offered = {"offerings": {LINUX: (OFFERING,)}}
    first = plan(replace(world.snapshot(), **offered), world.rules, world.now)
    assert not [action for action in first.actions if isinstance(action, Launch)]
    world.wait(world.rules.registering_timeout.total_seconds())
    made = plan(replace(world.snapshot(), **offered), world.rules, world.now)
    assert [action.count for action in made.actions if isinstance(action, Launch)] == [1]
    assert [action.end_reason for action in made.actions if isinstance(action, Release)] == [EndReason.BOOT_TIMEOUT]


async def test_only_its_own_time_ends_a_job_that_runs(world: Observing) -> None:
    machine = await world.have_runner()
    await world.webhook(seen_job(1))
    await world.webhook(started(1, on=1))
    assert world.rows.instances[machine.id].job == id_of(1)
    world.wait(6 * 3600 - 1)
    await world.listing(seen_job(1, JobStatus.RUNNING))
    assert ends(world) == []
    world.wait(1)
    (end,) = ends(world)
    assert isinstance(end, Terminate)
    assert (end.instances, end.end_reason) == ((machine.id,), EndReason.MAX_RUNTIME)
