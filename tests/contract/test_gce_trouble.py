"""What Google Cloud does when it does not do as asked, and what the adapter makes of it: nothing leaks or doubles.

Google's own client talks to the sandbox; what a test asserts is the world, or what the core is told. A list of troubles
with one site for all, and so a little longer than others.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from autoscaler.spi import (
    CapacityScope,
    CapacityType,
    CapacityUnavailable,
    CloudInstance,
    InvalidRequest,
    LaunchResult,
    MachineState,
    Notice,
    NoticeKind,
    Offering,
    OutcomeUnknown,
    Provider,
    ProviderError,
    QuotaExceeded,
    Shape,
    Throttled,
    Unauthorized,
)
from providers.gce_names import place_of
from tests.gce_law import LawfulExchanges
from tests.gce_site import FAMILY, IMAGE, LARGE, OTHER_REGION, REGION, SLOTS, SMALL, ZONES, GceSite, batch, serving
from tests.polling import until

SPOT, ON_DEMAND = CapacityType.SPOT, CapacityType.ON_DEMAND


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[GceSite]:
    law = LawfulExchanges()
    async with serving(tmp_path, middlewares=[law.middleware]) as made:
        yield made
    assert law.violations == []


async def offerings(
    provider: Provider, capacity_type: CapacityType = SPOT, *, types: Sequence[str] = (SMALL,)
) -> list[Offering]:
    found = await provider.offerings(Shape(types=tuple(types)))
    return [one for one in found if one.capacity_pool.capacity_type is capacity_type]


async def launched(provider: Provider, token: str = "b-1", *, count: int = 1, **changes: Any) -> LaunchResult:
    offered = await offerings(provider)
    return await provider.launch(batch(token, count=count, offerings=offered, **changes))


async def running(provider: Provider, machine: CloudInstance) -> CloudInstance:
    return await state(provider, machine, MachineState.RUNNING)


async def state(provider: Provider, machine: CloudInstance, wanted: MachineState) -> CloudInstance:
    async def look() -> CloudInstance | None:
        listed = {one.provider_id: one for one in await provider.list_instances()}
        found = listed.get(machine.provider_id)
        return found if found is not None and found.state is wanted else None

    found: CloudInstance = await until(look)
    return found


def names_in_world(site: GceSite) -> list[str]:
    return sorted(record.name for record in site.face.records)


def bulk_inserts(site: GceSite) -> int:
    return sum(1 for operation in site.face.operations if operation.kind == "bulkInsert")


# ------------------------------------------------------------------ launches that fail half way


async def test_a_launch_whose_answer_is_lost_is_settled_by_its_repeat(site: GceSite) -> None:
    provider = site.provider()
    site.faults.lost_answer = 1.0
    with pytest.raises(OutcomeUnknown):
        await launched(provider, count=2)
    site.faults.end()
    result = await launched(provider, count=2)
    assert len(result.instances) == 2
    assert names_in_world(site) == sorted(place_name(one) for one in result.instances)
    assert bulk_inserts(site) == 1


async def test_a_restarted_daemon_settles_a_lost_launch_even_with_other_offerings(site: GceSite) -> None:
    regions: dict[str, Any] = {"regions": (REGION, OTHER_REGION)}
    site.face.behaviour.operation_s = (1.0, 1.0)
    before = site.provider(**regions)
    offered = await offerings(before)
    site.faults.lost_answer = 1.0
    with pytest.raises(OutcomeUnknown):
        await before.launch(batch("b-1", count=2, offerings=[o for o in offered if o.capacity_pool.region == REGION]))
    site.faults.end()
    elsewhere = [one for one in offered if one.capacity_pool.region == OTHER_REGION]
    result = await site.provider(**regions).launch(batch("b-1", count=2, offerings=elsewhere, is_repeat=True))
    assert {one.capacity_pool.region for one in result.instances} == {REGION}
    assert len(names_in_world(site)) == len(result.instances) == 2
    assert bulk_inserts(site) == 1


async def test_machines_that_ended_meanwhile_are_not_launched_again_by_a_repeat(site: GceSite) -> None:
    provider = site.provider()
    (machine, _) = (await launched(provider, count=2)).instances
    await provider.terminate([machine.provider_id])
    await state(provider, machine, MachineState.TERMINATED)
    again = await launched(provider, count=2)
    assert len(again.instances) == 1
    assert bulk_inserts(site) == 1


async def test_machines_whose_listing_fails_after_the_launch_are_found_by_the_repeat(site: GceSite) -> None:
    provider = site.provider()
    offered = await offerings(provider)
    site.face.behaviour.failing_page = 1
    with pytest.raises(OutcomeUnknown):
        await provider.launch(batch("b-1", count=1, offerings=offered))
    site.face.behaviour.failing_page = None
    await provider.launch(batch("b-1", count=1, offerings=offered))
    assert len(names_in_world(site)) == 1


async def test_server_errors_never_double_a_machine(site: GceSite) -> None:
    provider = site.provider()
    await offerings(provider)
    site.faults.internal_error, site.faults.lost_answer, site.faults.throttle = 0.3, 0.4, 0.2

    async def attempt() -> LaunchResult | None:
        try:
            return await launched(provider, count=3)
        except (OutcomeUnknown, Throttled):
            return None

    result: LaunchResult = await until(attempt, timeout_s=60)
    assert len(result.instances) == 3
    assert len(names_in_world(site)) == 3


# ------------------------------------------------------------------ refusals


async def test_a_stockout_refuses_the_offerings_that_it_names(site: GceSite) -> None:
    provider = site.provider()
    offered = await offerings(provider)
    site.account.capacity.exhausted |= {one.capacity_pool for one in offered}
    result = await provider.launch(batch("b-1", count=1, offerings=offered))
    assert result.instances == ()
    assert {refusal.offering.capacity_pool for refusal in result.refusals} == {o.capacity_pool for o in offered}
    assert all(isinstance(refusal.error, CapacityUnavailable) for refusal in result.refusals)
    assert names_in_world(site) == []


async def test_a_stockout_that_the_call_itself_answers_is_one_too(site: GceSite) -> None:
    provider = site.provider()
    offered = (await offerings(provider))[:1]
    site.account.capacity.exhausted |= {one.capacity_pool for one in offered}
    site.face.behaviour.stockout_at_once = True
    result = await provider.launch(batch("b-1", count=1, offerings=offered))
    (refusal,) = result.refusals
    assert isinstance(refusal.error, CapacityUnavailable)


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_quota_closes_the_spot_machines_of_its_region(site: GceSite, at_once: bool) -> None:
    provider = site.provider()
    site.face.behaviour.quota_at_once = at_once
    site.account.capacity.quotas[REGION, SPOT] = 0
    result = await launched(provider)
    assert result.instances == ()
    for refusal in result.refusals:
        assert isinstance(refusal.error, QuotaExceeded)
        assert refusal.error.scope == CapacityScope(region=REGION, capacity_type=SPOT)
        assert "quota" in str(refusal.error)


async def test_on_demand_of_a_batch_serves_what_spot_refuses(site: GceSite) -> None:
    provider = site.provider()
    spot, on_demand = await offerings(provider), await offerings(provider, ON_DEMAND)
    site.account.capacity.quotas[REGION, SPOT] = 0
    result = await provider.launch(batch("b-1", count=2, offerings=[*spot, *on_demand]))
    assert [one.capacity_pool.capacity_type for one in result.instances] == [ON_DEMAND, ON_DEMAND]
    assert result.refusals


async def test_many_machines_of_many_offerings_are_one_call(site: GceSite) -> None:
    provider = site.provider()
    offered = await offerings(provider, types=(SMALL, LARGE))
    assert len(offered) == 6
    result = await provider.launch(batch("b-1", count=6 * SLOTS, offerings=offered))
    assert len(result.instances) == 6 * SLOTS
    assert bulk_inserts(site) == 1
    counted = Counter(one.capacity_pool for one in result.instances)
    assert counted == {one.capacity_pool: SLOTS for one in offered}


async def test_no_machine_is_launched_where_none_was_offered(site: GceSite) -> None:
    provider = site.provider()
    offered = [one for one in await offerings(provider) if one.capacity_pool.zone == ZONES[1]]
    result = await provider.launch(batch("b-1", count=2 * SLOTS, offerings=offered))
    assert {one.capacity_pool.zone for one in result.instances} == {ZONES[1]}
    assert len(result.instances) == SLOTS


async def test_an_image_that_is_gone_is_named_and_nothing_is_launched(site: GceSite) -> None:
    provider = site.provider()
    gone = IMAGE.replace("runners-1", "gone")
    with pytest.raises(InvalidRequest, match="gone"):
        await launched(provider, image={"image": gone})
    assert names_in_world(site) == []


async def test_a_family_is_its_newest_image(site: GceSite) -> None:
    assert len((await launched(site.provider(), image={"image": FAMILY})).instances) == 1


async def test_an_api_that_knows_no_notice_gets_machines_without_and_is_asked_once(site: GceSite) -> None:
    site.face.behaviour.knows_preemption_notice = False
    provider = site.provider()
    assert provider.status().troubles == ()
    assert len((await launched(provider, "b-1")).instances) == 1
    assert any("notice" in trouble for trouble in provider.status().troubles)
    before = launch_calls(site)
    assert len((await launched(provider, "b-2")).instances) == 1
    assert launch_calls(site) == before + 1


def launch_calls(site: GceSite) -> int:
    made = [call.permission for call in site.face.calls if call.method == "regionInstances.bulkInsert"]
    return made.count("compute.instances.create")


async def test_a_notice_is_asked_for_where_it_is_known(site: GceSite) -> None:
    await launched(site.provider())
    (record,) = site.face.records
    assert record.body.schedule.notice_s == 120
    assert record.body.schedule.max_run_s == 3600 + 600


async def test_throttled_calls_say_so_and_lower_the_budget(site: GceSite) -> None:
    provider = site.provider()
    site.faults.throttle = 1.0
    with pytest.raises(Throttled) as throttled:
        await provider.list_instances()
    assert throttled.value.retry_after_s > 0
    rates = {one.family: one.refill_per_s for one in provider.status().budgets}
    assert rates["lists"] < rates["operations"]


# ------------------------------------------------------------------ listings


@pytest.mark.parametrize("fails_when_unreachable", [True, False])
async def test_a_listing_without_one_zone_is_none(site: GceSite, fails_when_unreachable: bool) -> None:
    provider = site.provider()
    await launched(provider, count=2)
    site.face.behaviour.unreachable = {ZONES[2]}
    site.face.behaviour.fails_when_unreachable = fails_when_unreachable
    with pytest.raises(ProviderError):
        await provider.list_instances()
    site.face.behaviour.unreachable = set()
    assert len(await provider.list_instances()) == 2


async def test_a_listing_whose_page_fails_is_none(site: GceSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("providers.gce_clients.PAGE", 1)
    provider = site.provider()
    await launched(provider, count=3)
    site.face.behaviour.failing_page = 3
    with pytest.raises(ProviderError):
        await provider.list_instances()
    site.face.behaviour.failing_page = None
    assert len(await provider.list_instances()) == 3


# ------------------------------------------------------------------ how machines end


async def test_a_preempted_machine_is_reclaimed_and_told_unasked(site: GceSite) -> None:
    provider = site.provider()
    (machine, other) = (await launched(provider, count=2)).instances
    await running(provider, machine)
    await provider.interrupt([machine.provider_id])
    (notice,) = await until(lambda: heard(provider))
    assert (notice.provider_id, notice.kind, notice.source) == (machine.provider_id, NoticeKind.RECLAIM, "operation")
    ended = await state(provider, machine, MachineState.TERMINATED)
    assert ended.is_reclaimed
    assert not ended.ended_by_itself
    assert ended.end_detail == "compute.instances.preempted"
    await provider.ack([notice])
    await assert_silent(provider, site)
    await running(provider, other)


async def assert_silent(provider: Provider, site: GceSite) -> None:
    """Google is asked twice more, and there is nothing to tell."""

    def asked() -> int:
        return sum(1 for call in site.face.calls if call.method == "globalOperations.aggregatedList")

    before, listening = asked(), asyncio.create_task(heard(provider))
    await until(lambda: asked() >= before + 2)
    assert not listening.done()
    listening.cancel()


async def heard(provider: Provider) -> Sequence[Notice]:
    return await provider.notices()


async def test_a_preemption_is_told_again_until_it_is_acknowledged_and_once_after_that(site: GceSite) -> None:
    provider = site.provider()
    (machine, _) = (await launched(provider, count=2)).instances
    await provider.interrupt([machine.provider_id])
    first = await until(lambda: heard(provider))
    assert await provider.notices() == first
    await provider.ack(first)
    await assert_silent(provider, site)


@pytest.mark.parametrize("away_s", [0, 20 * 60])
async def test_a_preemption_while_no_daemon_ran_is_told_to_the_next(site: GceSite, away_s: float) -> None:
    before = site.provider()
    (machine,) = (await launched(before)).instances
    await running(before, machine)
    await before.interrupt([machine.provider_id])
    await state(before, machine, MachineState.TERMINATED)
    site.clock.ahead_s += away_s
    after = site.provider()
    (notice,) = await until(lambda: heard(after))
    assert (notice.provider_id, notice.kind) == (machine.provider_id, NoticeKind.RECLAIM)


async def test_preemptions_of_another_deployment_are_dropped_and_counted(site: GceSite) -> None:
    ours, theirs = site.provider(deployment="ours"), site.provider(deployment="theirs")
    await launched(ours)
    (machine,) = (await launched(theirs)).instances
    await theirs.interrupt([machine.provider_id])

    listening = asyncio.create_task(heard(ours))
    assert await until(lambda: ours.status().dropped.get("foreign", 0)) == 1
    listening.cancel()
    await assert_silent(ours, site)


async def test_a_described_machine_that_was_taken_says_so(site: GceSite) -> None:
    provider = site.provider()
    (machine,) = (await launched(provider)).instances
    await running(provider, machine)
    await provider.interrupt([machine.provider_id])

    async def described() -> CloudInstance | None:
        found = await provider.describe([machine.provider_id])
        return found[0] if found and found[0].is_reclaimed else None

    assert (await until(described)).state is MachineState.TERMINATED


async def test_a_stoppable_machine_that_was_taken_has_ended_and_its_disk_goes(site: GceSite) -> None:
    provider = site.provider()
    (machine,) = (await launched(provider, is_stoppable=True)).instances
    await running(provider, machine)
    await provider.interrupt([machine.provider_id])
    ended = await state(provider, machine, MachineState.TERMINATED)
    assert ended.is_reclaimed
    await until(lambda: gone(provider, site))


async def test_a_machine_that_powered_itself_off_took_nothing_with_it_and_its_disk_goes(site: GceSite) -> None:
    provider = site.provider()
    (machine,) = (await launched(provider)).instances
    await running(provider, machine)
    site.account.power_off_by_itself(site.number_of(machine.provider_id), site.driver.now)
    site.driver.settle()
    ended = await state(provider, machine, MachineState.TERMINATED)
    assert ended.ended_by_itself
    assert not ended.is_reclaimed
    await until(lambda: gone(provider, site))


async def gone(provider: Provider, site: GceSite) -> bool:
    await provider.list_instances()
    return not names_in_world(site)


# ------------------------------------------------------------------ stock


@pytest.mark.parametrize("capacity_type", list(CapacityType))
async def test_a_machine_is_stopped_and_started_again(site: GceSite, capacity_type: CapacityType) -> None:
    provider = site.provider()
    assert capacity_type in provider.traits.stoppable
    offered = await offerings(provider, capacity_type)
    (machine,) = (await provider.launch(batch("b-1", count=1, offerings=offered, is_stoppable=True))).instances
    await running(provider, machine)
    for _ in range(2):
        await provider.stop([machine.provider_id])
        await state(provider, machine, MachineState.STOPPED)
        await provider.stop([machine.provider_id])
        assert await provider.start([machine.provider_id]) == {}
        await running(provider, machine)
        assert await provider.start([machine.provider_id]) == {}


async def test_a_restarted_daemon_knows_stopped_stock(site: GceSite) -> None:
    provider = site.provider()
    (machine,) = (await launched(provider, is_stoppable=True)).instances
    await running(provider, machine)
    await provider.stop([machine.provider_id])
    await state(provider, machine, MachineState.STOPPED)
    again = site.provider()
    assert (await state(again, machine, MachineState.STOPPED)).provider_id == machine.provider_id
    assert await again.start([machine.provider_id]) == {}
    await running(again, machine)


async def test_a_start_without_capacity_leaves_the_machine_stopped(site: GceSite) -> None:
    provider = site.provider()
    (machine,) = (await launched(provider, is_stoppable=True)).instances
    await running(provider, machine)
    await provider.stop([machine.provider_id])
    await state(provider, machine, MachineState.STOPPED)
    site.account.capacity.exhausted.add(machine.capacity_pool)
    refused = await provider.start([machine.provider_id])
    assert isinstance(refused[machine.provider_id], CapacityUnavailable)
    await state(provider, machine, MachineState.STOPPED)


async def test_a_spot_machine_that_is_no_stock_is_not_stopped(site: GceSite) -> None:
    provider = site.provider()
    (machine,) = (await launched(provider)).instances
    await running(provider, machine)
    with pytest.raises(InvalidRequest):
        await provider.stop([machine.provider_id])
    await running(provider, machine)


# ------------------------------------------------------------------ permissions


async def test_a_missing_permission_is_named(site: GceSite) -> None:
    site.face.access.grant("token", allowed={"compute.*.list", "compute.*.get", "compute.instances.delete"})
    provider = site.provider(token="token")
    with pytest.raises(Unauthorized, match=r"compute\.instances\.create"):
        await launched(provider)


async def test_a_token_that_is_not_known_is_unauthorized(site: GceSite) -> None:
    site.face.access.grant("token")
    with pytest.raises(Unauthorized):
        await site.provider(token="another").list_instances()


def place_name(machine: CloudInstance) -> str:
    place = place_of(machine.provider_id)
    assert place is not None
    return place.name


# ------------------------------------------------------------------ what is offered


async def test_what_was_read_of_the_catalogue_is_not_read_again_after_a_failure(site: GceSite) -> None:
    provider = site.provider()
    site.faults.internal_error = 0.5

    failures: list[ProviderError] = []

    async def offered() -> Sequence[Offering]:
        try:
            return await provider.offerings(Shape())
        except ProviderError as error:
            failures.append(error)
            return ()

    await until(offered, timeout_s=60)
    assert failures
    answered = [call.resource for call in site.face.calls if call.method == "machineTypes.list"]
    assert len(answered) == 3


async def test_a_zone_that_is_down_is_not_offered(site: GceSite) -> None:
    site.face.catalogue.down.add(ZONES[0])
    zones = {one.capacity_pool.zone for one in await site.provider().offerings(Shape())}
    assert zones == {ZONES[1], ZONES[2]}
