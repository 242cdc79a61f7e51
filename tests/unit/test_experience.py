"""What launches and machines teach: cooldowns by capacity pool and scope, failures in a row, evidence that survives."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from autoscaler.experience import FAILURES_IN_A_ROW
from autoscaler.facts import LaunchAnswered
from autoscaler.model import EndReason, InstanceState
from autoscaler.spi import (
    BatchToken,
    CapacityScope,
    CapacityType,
    CapacityUnavailable,
    CloudInstance,
    InvalidRequest,
    LaunchResult,
    Offering,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    Refusal,
    Throttled,
)
from tests.admin_world import OFFERING, SPOT, instance
from tests.unit.observing import CLOUD, Observing, listed_machine, provider_id

NEXT_DOOR = replace(OFFERING, capacity_pool=replace(SPOT, zone="eu-central-1b"))
ABROAD = replace(OFFERING, capacity_pool=replace(SPOT, region="eu-west-1", zone="eu-west-1a"))
S = InstanceState


@pytest.fixture
async def world() -> Observing:
    return await Observing().start()


def answer(*made: CloudInstance, refused: tuple[tuple[Offering, ProviderError], ...] = ()) -> LaunchAnswered:
    refusals = tuple(Refusal(offering=one, error=error) for one, error in refused)
    return LaunchAnswered(token=BatchToken("b-1"), result=LaunchResult(instances=made, refusals=refusals))


def failed(error: ProviderError, *offerings: Offering) -> LaunchAnswered:
    return LaunchAnswered(
        token=BatchToken("b-1"), result=None, error=str(error), offerings=offerings or (OFFERING,), failure=error
    )


async def test_a_refusal_cools_its_capacity_pool_alone(world: Observing) -> None:
    await world.see(answer(refused=((OFFERING, CapacityUnavailable("dry")),)))
    assert {pool: one.reason for pool, one in world.snapshot().cooldowns.items()} == {SPOT: "dry"}


async def test_a_launch_that_is_refused_as_a_whole_cools_all_that_it_asked_for(world: Observing) -> None:
    await world.see(failed(CapacityUnavailable("dry"), OFFERING, NEXT_DOOR))
    assert world.snapshot().cooldowns.keys() == {SPOT, NEXT_DOOR.capacity_pool}


async def test_a_quota_cools_its_scope(world: Observing) -> None:
    scope = CapacityScope(region="eu-central-1", capacity_type=CapacityType.SPOT)
    await world.see(answer(refused=((OFFERING, QuotaExceeded("32 vCPUs", scope=scope)),)))
    (cooling,) = world.snapshot().scope_cooldowns
    assert (cooling.provider, cooling.scope, cooling.reason) == (CLOUD, scope, "32 vCPUs")
    assert not world.snapshot().cooldowns


async def test_a_fleet_at_its_quota_is_asked_again_soon_whenever_a_machine_is_freed(world: Observing) -> None:
    scope = CapacityScope(region="eu-central-1", capacity_type=CapacityType.SPOT)
    full = (OFFERING, QuotaExceeded("32 vCPUs", scope=scope))
    for _ in range(4):
        await world.see(answer(refused=(full,)))
        (cooling,) = world.snapshot().scope_cooldowns
        world.now = cooling.until
    assert cooling.failures == 4, "nothing was freed meanwhile"
    await world.see(answer(listed_machine(), refused=(full,)))
    (cooling,) = world.snapshot().scope_cooldowns
    assert cooling.failures == 1
    await world.see(answer(listed_machine()))
    assert world.snapshot().scope_cooldowns == (cooling,), "the machine was asked for before the refusal"


async def test_what_a_cloud_does_not_have_at_all_cools_for_long(world: Observing) -> None:
    await world.see(answer(refused=((OFFERING, CapacityUnavailable("Unsupported", is_lasting=True)),)))
    assert world.snapshot().cooldowns[SPOT].until - world.now == timedelta(hours=1)


@pytest.mark.parametrize("error", [ProviderError("503 Unavailable"), OutcomeUnknown("timed out")])
async def test_failures_in_a_row_cool_what_they_asked_for(world: Observing, error: ProviderError) -> None:
    for _ in range(FAILURES_IN_A_ROW - 1):
        await world.see(failed(error, OFFERING, NEXT_DOOR))
        assert not world.snapshot().cooldowns
    await world.see(failed(error, OFFERING, ABROAD))
    assert world.snapshot().cooldowns.keys() == {SPOT}, "abroad failed for the first time"
    assert "3 launches in eu-central-1 failed in a row" in world.snapshot().cooldowns[SPOT].reason


async def test_a_machine_ends_a_row_of_failures(world: Observing) -> None:
    for _ in range(5):
        await world.see(failed(ProviderError("503"), OFFERING))
        await world.see(failed(ProviderError("503"), OFFERING))
        await world.see(answer(listed_machine()))
    assert not world.snapshot().cooldowns


async def test_refusals_without_a_known_reason_count_as_one_failure_of_their_region(world: Observing) -> None:
    for _ in range(FAILURES_IN_A_ROW):
        strange = ProviderError("SomethingNew")
        await world.see(answer(refused=((OFFERING, strange), (NEXT_DOOR, strange))))
    assert world.snapshot().cooldowns.keys() == {SPOT, NEXT_DOOR.capacity_pool}


async def test_a_throttle_cools_nothing(world: Observing) -> None:
    for _ in range(5):
        await world.see(failed(Throttled("slow down", retry_after_s=3), OFFERING))
    assert not world.snapshot().cooldowns


async def test_a_machine_resets_the_cooldown_that_is_over_and_not_the_one_that_came_meanwhile(
    world: Observing,
) -> None:
    await world.see(answer(refused=((OFFERING, CapacityUnavailable("dry")),)))
    await world.see(answer(listed_machine()))
    assert SPOT in world.snapshot().cooldowns, "the machine was asked for before the refusal"
    world.wait(16)
    await world.see(answer(listed_machine()))
    assert SPOT not in world.snapshot().cooldowns


async def test_one_offering_that_cannot_be_launched_as_configured_cools(world: Observing) -> None:
    await world.see(answer(listed_machine(), refused=((NEXT_DOOR, InvalidRequest("no UEFI boot")),)))
    assert world.snapshot().cooldowns.keys() == {NEXT_DOOR.capacity_pool}


async def test_answers_without_machines_and_reasons_in_a_row_cool(world: Observing) -> None:
    for _ in range(FAILURES_IN_A_ROW):
        await world.see(replace(answer(), offerings=(OFFERING,)))
    assert "no machine, and no reason" in world.snapshot().cooldowns[SPOT].reason


# ---------------------------------------------------------------------- evidence


async def ended(world: Observing, number: int, *, hours: float, ending: EndReason = EndReason.JOB_DONE) -> None:
    """A spot machine that lived for so long."""
    row = instance(number, world.now, S.TERMINATING, version=0, provider_id=provider_id(number), ending=ending)
    await world.have(replace(row, created_at=world.now - timedelta(hours=hours)))
    gone = world.rows.move(world.rows.instances[row.id], S.TERMINATED, now=world.now, cause="test", ending=ending)
    world.observer.experience.machine_ended(gone, world.now)


def seen(world: Observing) -> Any:
    world.wait(30)
    return world.snapshot().evidence[SPOT]


async def test_hours_and_interruptions_add_up(world: Observing) -> None:
    await ended(world, 1, hours=3)
    await ended(world, 2, hours=2, ending=EndReason.INTERRUPTED)
    found = seen(world)
    assert (found.hours, found.interruptions) == (pytest.approx(5, rel=1e-3), pytest.approx(1, rel=1e-3))
    assert SPOT in world.snapshot().cooldowns, "where one machine is taken the next would be too"


async def test_launches_count_as_asked_and_refused(world: Observing) -> None:
    await world.see(answer(listed_machine(1), listed_machine(2), refused=((OFFERING, CapacityUnavailable("dry")),)))
    found = seen(world)
    assert (found.asked, found.refused) == (pytest.approx(3, rel=1e-3), pytest.approx(1, rel=1e-3))


async def test_evidence_is_the_same_object_for_a_while(world: Observing) -> None:
    await ended(world, 1, hours=1)
    world.wait(30)
    first = world.snapshot().evidence
    await ended(world, 2, hours=1)
    assert world.snapshot().evidence is first, "rankings would be made anew with every tick"
    world.wait(30)
    assert world.snapshot().evidence is not first


async def test_evidence_survives_a_restart_and_fades_while_nobody_is_there(world: Observing) -> None:
    await ended(world, 1, hours=4, ending=EndReason.INTERRUPTED)
    world.wait(61)
    await world.see()
    later = Observing(world.disk, rules=world.rules)
    later.now = world.now + timedelta(hours=24)
    await later.start()
    found = later.snapshot().evidence[SPOT]
    assert (found.hours, found.interruptions) == (pytest.approx(2, rel=0.01), pytest.approx(0.5, rel=0.01))


async def test_what_never_was_a_machine_and_on_demand_are_no_evidence(world: Observing) -> None:
    row = instance(1, world.now, S.TERMINATED, provider_id=None)
    world.observer.experience.machine_ended(row, world.now)
    bought = replace(row, provider_id=provider_id(1), capacity_pool=replace(SPOT, capacity_type=CapacityType.ON_DEMAND))
    world.observer.experience.machine_ended(bought, world.now)
    world.wait(30)
    assert not world.snapshot().evidence


async def test_how_long_machines_live_is_learned_in_steps_of_two(world: Observing) -> None:
    for number in range(60):
        row = instance(number, world.now, S.TERMINATED, provider_id=provider_id(number), job="github:1")
        row = replace(row, created_at=world.now - timedelta(hours=2.1))
        world.observer.experience.machine_ended(row, world.now)
    assert world.snapshot().expected_life_h == {row.pool: 2.0}
