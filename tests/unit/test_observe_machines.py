"""What clouds, runner listings and agents say about machines: bound, adopted, orphaned, gone, ready, idle, busy."""

from dataclasses import replace
from datetime import timedelta

import pytest

from autoscaler.facts import (
    AgentReported,
    AgentSaidHello,
    AssignmentAsked,
    ClaimDisputed,
    LaunchAnswered,
    ListingFailed,
)
from autoscaler.model import EndReason, Instance, InstanceState, Register
from autoscaler.plan import plan
from autoscaler.spi import (
    BatchToken,
    CapacityUnavailable,
    LaunchResult,
    MachineState,
    OutcomeUnknown,
    ProviderError,
    Refusal,
    RunnerId,
)
from autoscaler.states import IllegalMove, move_instance
from tests.admin_world import OFFERING, SPOT, instance
from tests.unit.observing import (
    CLOUD,
    NOW,
    OTHER,
    Observing,
    listed_machine,
    listed_runner,
    provider_id,
    runner_name,
    seen_job,
)

S = InstanceState
TOKEN = BatchToken("b-7")


@pytest.fixture
async def world() -> Observing:
    return await Observing().start()


async def used_world(before: Observing) -> Observing:
    """The same store after every provider was listed: unknown machines are orphans from now on."""
    await before.machines(listed_machine(1))
    await before.machines(of=OTHER)
    return await before.restarted()


async def requested(world: Observing, count: int = 2) -> list[Instance]:
    rows = []
    for number in range(1, count + 1):
        row = instance(number, world.now, S.REQUESTED, token=TOKEN, version=0, provider_id=None, created_at=world.now)
        rows.append(await world.have(row))
    return rows


# ---------------------------------------------------------------------- launches


async def test_the_answer_of_a_launch_binds_its_rows(world: Observing) -> None:
    rows = await requested(world)
    made = LaunchResult(instances=(listed_machine(1, token=TOKEN), listed_machine(2, token=TOKEN)))
    await world.see(LaunchAnswered(token=TOKEN, result=made))
    assert {world.rows.instances[row.id].provider_id for row in rows} == {"p-1", "p-2"}
    assert {world.state(row) for row in rows} == {S.LAUNCHED}


async def test_a_machine_that_is_listed_without_a_price_costs_what_was_committed(world: Observing) -> None:
    (row,) = await requested(world, 1)
    await world.machines(replace(listed_machine(1, token=TOKEN), price_usd_hour=0.0))
    bound = world.rows.instances[row.id]
    assert bound.provider_id == "p-1"
    assert bound.price_usd_hour == row.price_usd_hour > 0


async def test_the_same_answer_again_makes_no_second_machine(world: Observing) -> None:
    await requested(world)
    made = LaunchResult(instances=(listed_machine(1, token=TOKEN), listed_machine(2, token=TOKEN)))
    for _ in range(2):
        await world.see(LaunchAnswered(token=TOKEN, result=made))
    assert len(world.rows.instances) == 2


async def test_fewer_machines_than_asked_end_the_rows_that_got_none(world: Observing) -> None:
    rows = await requested(world)
    refusal = Refusal(offering=OFFERING, error=CapacityUnavailable("dry"))
    made = LaunchResult(instances=(listed_machine(1, token=TOKEN),), refusals=(refusal,))
    await world.see(LaunchAnswered(token=TOKEN, result=made))
    assert len(world.rows.instances) == 1
    ended = [row for row in [await world.last(row) for row in rows] if row.state is S.TERMINATED]
    assert [row.ending for row in ended] == [EndReason.REFUSED]
    assert world.snapshot().cooldowns[SPOT].reason == "dry"


async def test_a_launch_whose_outcome_is_unknown_keeps_its_rows_until_a_listing_tells(world: Observing) -> None:
    rows = await requested(world)
    await world.see(LaunchAnswered(token=TOKEN, result=None, error=str(OutcomeUnknown("timeout")), is_unknown=True))
    assert {world.state(row) for row in rows} == {S.REQUESTED}
    await world.machines(listed_machine(1, token=TOKEN))
    assert sorted(world.state(row) for row in rows) == [S.LAUNCHED, S.REQUESTED]


async def test_a_refused_launch_ends_its_rows(world: Observing) -> None:
    rows = await requested(world)
    await world.see(LaunchAnswered(token=TOKEN, result=None, error=str(ProviderError("no such image"))))
    assert not world.rows.instances
    moves = await world.store.instance_moves(rows[0].id)
    assert moves[-1].cause == "no such image"


async def test_a_machine_that_came_after_its_row_was_given_up_is_still_learned(world: Observing) -> None:
    (row,) = await requested(world, 1)
    world.rows.move(row, S.TERMINATING, now=world.now, cause="deadline", ending=EndReason.REFUSED)
    await world.machines(listed_machine(1, token=TOKEN))
    known = world.rows.instances[row.id]
    assert (known.state, known.provider_id) == (S.TERMINATING, "p-1")


# ---------------------------------------------------------------------- listings of machines


async def test_a_machine_is_gone_after_two_complete_listings_without_it(world: Observing) -> None:
    row = await world.have_runner()
    await world.machines()
    assert world.state(row) is S.IDLE
    await world.machines()
    ended = await world.last(row)
    assert (ended.state, ended.ending) == (S.TERMINATED, EndReason.VANISHED)


async def test_being_listed_again_starts_the_count_anew(world: Observing) -> None:
    row = await world.have_runner()
    for _ in range(3):
        await world.machines()
        await world.machines(listed_machine())
    assert world.state(row) is S.IDLE


async def test_a_partial_listing_says_nothing_about_what_it_leaves_out(world: Observing) -> None:
    row = await world.have_runner()
    for _ in range(3):
        await world.machines(is_complete=False)
    assert world.state(row) is S.IDLE


async def test_a_young_machine_may_be_missing_from_a_listing(world: Observing) -> None:
    row = await world.have(replace(instance(1, world.now, S.LAUNCHED, version=0), created_at=world.now))
    await world.gone()
    assert world.state(row) is S.LAUNCHED


async def test_a_machine_that_the_cloud_says_ended_is_gone_at_once(world: Observing) -> None:
    row = await world.have_runner()
    await world.machines(listed_machine(1, MachineState.TERMINATED), is_complete=False)
    assert (await world.last(row)).ending is EndReason.VANISHED


async def test_the_cause_that_an_agent_gave_is_the_end_reason(world: Observing) -> None:
    row = await world.have_runner()
    await world.see(AgentReported(instance=row.id, kind="ending", cause="no_contact"))
    assert world.snapshot().ending == {row.id: "no_contact"}
    await world.machines(listed_machine(1, MachineState.TERMINATED))
    assert (await world.last(row)).ending is EndReason.NO_CONTACT


async def test_a_failed_listing_is_no_longer_complete_until_one_succeeds(world: Observing) -> None:
    await world.machines()
    assert CLOUD in world.snapshot().complete
    await world.see(ListingFailed(target=CLOUD))
    assert CLOUD not in world.snapshot().complete
    await world.machines()
    assert CLOUD in world.snapshot().complete


# ---------------------------------------------------------------------- adoption and orphans


async def test_an_empty_store_adopts_the_machines_of_our_name(world: Observing) -> None:
    await world.machines(listed_machine(4))
    (row,) = world.rows.instances.values()
    assert (row.state, row.adopted, row.provider_id) == (S.LAUNCHED, True, provider_id(4))
    assert not world.snapshot().orphan_instances


async def test_each_provider_of_an_empty_store_adopts_with_its_own_first_listing(world: Observing) -> None:
    await world.machines(listed_machine(4))
    await world.machines(replace(listed_machine(5), provider=OTHER), of=OTHER)
    assert {row.provider_id for row in world.rows.instances.values()} == {"p-4", "p-5"}


async def test_a_crash_before_the_first_listing_of_an_empty_store_does_not_make_orphans(world: Observing) -> None:
    await requested(world, 1)
    after = await world.restarted()
    await after.machines(listed_machine(4))
    assert not after.snapshot().orphan_instances
    assert any(row.adopted for row in after.rows.instances.values())


async def test_an_adopted_machine_tells_which_runner_it_runs(world: Observing) -> None:
    await world.machines(listed_machine(4))
    (row,) = world.rows.instances.values()
    await world.runners(listed_runner(4, is_busy=True))
    assert not world.snapshot().orphan_runners, "its runner may belong to the adopted machine"
    await world.see(AgentSaidHello(instance=row.id, runner_name=runner_name(4)))
    assert world.state(row) is S.REGISTERING
    await world.runners(listed_runner(4, is_busy=True))
    adopted = world.rows.instances[row.id]
    assert (adopted.state, adopted.runner_id) == (S.BUSY, RunnerId("4"))


async def test_a_machine_that_says_it_runs_the_runner_of_another_takes_nothing_from_it(world: Observing) -> None:
    owner = await world.have_runner(1)
    await world.machines(listed_machine(1), listed_machine(4))
    await world.machines(of=OTHER)
    (liar,) = [row for row in world.rows.instances.values() if row.id != owner.id]
    await world.see(AgentSaidHello(instance=liar.id, runner_name=runner_name(1)))
    assert (world.state(liar), world.rows.instances[liar.id].runner_name) == (S.READY, "")
    await world.runners(listed_runner(1, is_busy=True))
    assert (world.state(owner), world.state(liar)) == (S.BUSY, S.READY)


async def test_a_silent_adopted_machine_spares_unknown_runners_for_a_day_only(world: Observing) -> None:
    await world.machines(listed_machine(4))
    await world.machines(of=OTHER)
    world.now += timedelta(hours=23)
    await world.runners(listed_runner(8))
    assert not world.snapshot().orphan_runners
    world.now += timedelta(hours=1)
    await world.runners(listed_runner(8))
    assert [one.runner.name for one in world.snapshot().orphan_runners] == [runner_name(8)]


async def test_an_adopted_machine_that_is_no_longer_silent_spares_no_runner(world: Observing) -> None:
    await world.machines(listed_machine(4))
    await world.machines(of=OTHER)
    (row,) = world.rows.instances.values()
    await world.see(AgentSaidHello(instance=row.id, runner_name=""))
    await world.runners(listed_runner(8))
    assert [one.runner.name for one in world.snapshot().orphan_runners] == [runner_name(8)]


async def test_a_cloud_that_never_lists_spares_unknown_runners_for_an_hour_only(world: Observing) -> None:
    await world.runners(listed_runner(8))
    world.now += timedelta(minutes=59)
    await world.runners(listed_runner(8))
    assert not world.snapshot().orphan_runners
    world.now += timedelta(minutes=1)
    await world.runners(listed_runner(8))
    assert [one.runner.name for one in world.snapshot().orphan_runners] == [runner_name(8)]


async def test_a_used_store_counts_the_sightings_of_a_machine_that_no_row_knows(world: Observing) -> None:
    await world.have_runner()
    after = await used_world(world)
    for sightings in (1, 2, 3):
        await after.machines(listed_machine(1), listed_machine(9))
        (orphan,) = after.snapshot().orphan_instances
        assert (orphan.instance.provider_id, orphan.sightings) == ("p-9", sightings)
    await after.machines(listed_machine(1))
    assert not after.snapshot().orphan_instances


async def test_a_runner_that_no_row_knows_is_counted_and_ours_are_not(world: Observing) -> None:
    await world.have_runner(1)
    after = await used_world(world)
    await after.machines(listed_machine(1))
    for sightings in (1, 2):
        await after.runners(listed_runner(1), listed_runner(8))
        (orphan,) = after.snapshot().orphan_runners
        assert (orphan.runner.name, orphan.sightings) == (runner_name(8), sightings)


# ---------------------------------------------------------------------- runners and agents


async def test_a_hello_makes_a_launched_machine_ready_once(world: Observing) -> None:
    row = await world.have(instance(1, world.now, S.LAUNCHED, version=0))
    for _ in range(2):
        await world.see(AgentSaidHello(instance=row.id))
    assert world.state(row) is S.READY
    assert len(await world.store.instance_moves(row.id)) == 2


async def test_a_machine_whose_hello_died_with_the_daemon_is_ready_once_its_agent_asks(world: Observing) -> None:
    row = await world.have(instance(1, world.now, S.LAUNCHED, version=0))
    after = await world.restarted()
    for _ in range(2):
        await after.see(AssignmentAsked(instance=row.id))
    assert after.state(row) is S.READY
    assert len(await after.store.instance_moves(row.id)) == 2


async def test_a_started_runner_makes_a_registering_machine_idle(world: Observing) -> None:
    row = await world.have_runner(state=S.REGISTERING)
    await world.see(AgentReported(instance=row.id, kind="assignment_received"))
    assert world.state(row) is S.REGISTERING
    await world.see(AgentReported(instance=row.id, kind="runner_started"))
    assert world.state(row) is S.IDLE


async def test_an_agents_word_that_a_job_runs_is_a_hint_only(world: Observing) -> None:
    row = await world.have_runner()
    await world.see(AgentReported(instance=row.id, kind="job_started"))
    await world.see(AgentReported(instance=row.id, kind="job_completed"))
    assert world.state(row) is S.IDLE


async def test_a_runner_that_exited_after_a_job_stands_for_it_until_the_forge_says_which(world: Observing) -> None:
    row = await world.have_runner()
    await world.see(AgentReported(instance=row.id, kind="runner_exited", cause="0", ran_job=True))
    assert world.state(row) is S.BUSY
    assert world.rows.instances[row.id].job is None


async def test_the_forges_listing_of_runners_moves_them_forward_only(world: Observing) -> None:
    row = await world.have_runner(state=S.REGISTERING, runner_id=None)
    await world.runners(listed_runner(is_online=False))
    assert world.state(row) is S.REGISTERING
    assert world.rows.instances[row.id].runner_id == RunnerId("1"), "an id that got lost with an answer is learned"
    await world.runners(listed_runner())
    assert world.state(row) is S.IDLE
    await world.runners(listed_runner(is_busy=True))
    assert world.state(row) is S.BUSY
    await world.runners(listed_runner())
    assert world.state(row) is S.BUSY


async def test_a_late_event_of_an_ended_machine_changes_nothing(world: Observing) -> None:
    row = await world.have_runner()
    await world.gone()
    await world.see(
        AgentSaidHello(instance=row.id),
        AgentReported(instance=row.id, kind="runner_started"),
        AssignmentAsked(instance=row.id),
    )
    assert not world.rows.instances


async def test_a_registration_lost_with_a_restart_is_withdrawn_and_made_under_another_name(world: Observing) -> None:
    row = await world.have_runner(state=S.REGISTERING)
    await world.webhook(seen_job())
    after = await world.restarted()
    await after.see(AssignmentAsked(instance=row.id))
    assert after.snapshot(handed={row.id}).secretless == frozenset()
    assert after.snapshot().secretless == {row.id}
    known = after.rows.instances[row.id]
    ready = after.rows.move(
        known, S.READY, now=after.now, cause="withdrawn", demand=None, runner_id=None, runner_name=""
    )
    assert after.snapshot().secretless == frozenset()
    (again,) = plan(after.snapshot(), after.rules, after.now).actions
    assert isinstance(again, Register)
    assert ready.version != row.version, "the name carries the row's version: it is never used twice"


async def test_a_second_valid_claim_is_on_the_next_snapshot(world: Observing) -> None:
    row = await world.have(instance(1, world.now, S.READY, version=0))
    await world.see(ClaimDisputed(instance=row.id))
    assert world.snapshot().disputed == {row.id}


async def test_what_was_spent_today_counts_ended_machines(world: Observing) -> None:
    row = await world.have_runner(price_usd_hour=1.2)
    world.wait(3600)
    await world.gone()
    hours = (world.now - row.created_at) / timedelta(hours=1)
    assert world.snapshot().spent_today_usd == {CLOUD: pytest.approx(hours * 1.2)}
    after = await world.restarted()
    assert after.snapshot().spent_today_usd == {CLOUD: pytest.approx(hours * 1.2)}
    after.wait(24 * 3600)
    assert after.snapshot().spent_today_usd == {}


def test_rows_refuse_moves_that_the_tables_do_not_list() -> None:
    with pytest.raises(IllegalMove):
        move_instance(instance(1, NOW, S.IDLE), S.LAUNCHED, now=NOW, cause="back")


async def test_what_an_agent_said_of_its_end_survives_a_restart(world: Observing) -> None:
    row = await world.have_runner(state=S.BUSY)
    await world.see(
        AgentReported(instance=row.id, kind="runner_exited", cause="0", ran_job=True),
        AgentReported(instance=row.id, kind="ending", cause="idle"),
    )
    after = await world.restarted()
    assert after.seen.ending == {row.id: "job_done"}


async def test_an_agents_word_that_a_job_started_is_remembered_until_its_machine_is_gone(world: Observing) -> None:
    row = await world.have_runner()
    await world.see(AgentReported(instance=row.id, kind="job_started"))
    assert world.seen.started == {row.id}
    await world.gone()
    assert not world.seen.started
