"""The sandbox's cloud account: what launches meet, how machines live and end, and every fault by name."""

import pytest

from autoscaler.sandbox.cloud_account import CloudAccount, CloudTimes
from autoscaler.sandbox.cloud_capacity import Capacity, Series, Shortage, Supply
from autoscaler.sandbox.cloud_faults import CloudFaults
from autoscaler.sandbox.cloud_machines import BY_ITSELF, BY_USER, TAKEN, Happening, Machine, Wish
from autoscaler.spi import CapacityPool, CapacityType, MachineState, ProviderName

T0 = 1_800_000_000.0
S = MachineState
TIMES = CloudTimes(boot=(5.0, 5.0), start=(2.0, 2.0), end=(1.0, 1.0), stop=(3.0, 3.0), notice_s=120.0, kept_s=600.0)


def pool(zone: str = "a", capacity_type: CapacityType = CapacityType.SPOT) -> CapacityPool:
    return CapacityPool(
        provider=ProviderName("aws"), region="r", zone=f"r{zone}", machine_type="m", capacity_type=capacity_type
    )


def supply(of: CapacityPool | None = None, **fields: object) -> Supply:
    return Supply(pool=of or pool(), cpus=4, memory_gib=16, price_usd_hour=0.1, **fields)  # type: ignore[arg-type]  # by name


def account(*supplies: Supply, faults: CloudFaults | None = None, times: CloudTimes = TIMES) -> CloudAccount:
    return CloudAccount(Capacity.of(supplies or (supply(),)), times=times, faults=faults)


def launched(one: CloudAccount, now: float = T0, at: CapacityPool | None = None, **wish: object) -> Machine:
    machine = one.launch(at or pool(), Wish(image="ami-1", user_data="#!/bin/sh", **wish), now)  # type: ignore[arg-type]  # by name
    assert isinstance(machine, Machine)
    return machine


def told(one: CloudAccount) -> list[tuple[str, str]]:
    return [(event.kind, event.state) for event in one.drain()]


def test_a_machine_boots_and_is_ended_by_its_user() -> None:
    one = account()
    machine = launched(one)
    one.advance(T0 + 4.9)
    assert machine.state is S.PENDING
    one.advance(T0 + 5)
    one.terminate(machine.id, T0 + 6)
    assert (machine.state, machine.reason) == (S.TERMINATING, BY_USER)
    one.advance(T0 + 7)
    assert told(one) == [
        ("state", "pending"), ("state", "running"), ("booted", "running"), ("power_lost", "running"),
        ("state", "terminating"), ("state", "terminated"),
    ]  # fmt: skip
    assert one.capacity.used(pool()) == 0
    one.advance(T0 + 7 + 600)
    assert one.machine(machine.id, T0 + 700) is None


def test_a_launch_beyond_slots_quota_or_addresses_says_which() -> None:
    one = account(supply(slots=1), supply(pool("b")))
    launched(one)
    wish = Wish(image="ami-1", user_data="")
    assert one.launch(pool(), wish, T0) is Shortage.CAPACITY
    one.capacity.quotas["r", CapacityType.SPOT] = 8
    launched(one, at=pool("b"))
    assert one.launch(pool("b"), wish, T0) is Shortage.QUOTA
    one.capacity.quotas.clear()
    one.capacity.addresses["rb"] = 1
    assert one.launch(pool("b"), wish, T0) is Shortage.ADDRESSES
    assert one.launch(pool("nowhere"), wish, T0) is Shortage.UNSUPPORTED


def test_a_reclaim_with_notice_is_told_and_then_done() -> None:
    one = account()
    machine = launched(one)
    one.advance(T0 + 5)
    one.drain()
    one.reclaim(machine.id, T0 + 10)
    one.reclaim(machine.id, T0 + 20)  # once is enough
    assert (machine.state, machine.noticed_at, machine.reclaim_at) == (S.RUNNING, T0 + 10, T0 + 130)
    one.advance(T0 + 129)
    assert told(one) == [(Happening.WARNED, S.RUNNING)]
    one.advance(T0 + 130)
    assert (machine.state, machine.reason, machine.was_taken) == (S.TERMINATED, TAKEN, True)
    assert told(one) == [(Happening.POWER_LOST, S.RUNNING), (Happening.STATE, S.TERMINATED)]


def test_a_reclaim_without_notice_comes_at_once() -> None:
    one = account()
    machine = launched(one)
    one.reclaim(machine.id, T0 + 1, notice_s=0.0)
    assert (machine.state, machine.noticed_at) == (S.TERMINATED, None)
    assert Happening.WARNED not in {kind for kind, _ in told(one)}


def test_a_machine_that_stops_when_taken_can_be_started_again() -> None:
    one = account(supply(slots=1))
    machine = launched(one, stops_when_taken=True)
    one.advance(T0 + 5)
    one.reclaim(machine.id, T0 + 6, notice_s=0.0)
    one.advance(T0 + 9)
    assert (machine.state, machine.reason) == (S.STOPPED, "Server.SpotInstanceShutdown")
    other = launched(one, T0 + 10)
    assert one.start(machine.id, T0 + 11) is Shortage.CAPACITY
    assert machine.state is S.STOPPED
    one.fail(other.id, T0 + 12, "Server.InternalError")
    assert one.start(machine.id, T0 + 13) is None
    one.advance(T0 + 15)
    assert (machine.state, machine.life, machine.was_taken) == (S.RUNNING, 2, False)


def test_what_was_planned_for_an_earlier_life_does_not_happen_to_a_later_one() -> None:
    one = account()
    machine = launched(one)
    one.advance(T0 + 5)
    one.reclaim(machine.id, T0 + 6)
    one.stop(machine.id, T0 + 7)
    one.advance(T0 + 10)
    assert one.start(machine.id, T0 + 11) is None
    one.advance(T0 + 200)
    assert machine.state is S.RUNNING


@pytest.mark.parametrize(("stops", "state"), [(False, S.TERMINATED), (True, S.STOPPING)])
def test_a_machine_that_powers_itself_off_ends_or_stops_as_it_was_launched(stops: bool, state: MachineState) -> None:
    one = account()
    machine = launched(one, powers_off_to_stop=stops)
    one.advance(T0 + 5)
    one.power_off_by_itself(machine.id, T0 + 6)
    assert (machine.state, machine.reason) == (state, BY_ITSELF)


def test_a_new_machine_may_be_shown_late() -> None:
    one = account(times=CloudTimes(shown_after=(4.0, 4.0)))
    machine = launched(one)
    assert one.machine(machine.id, T0 + 3.9) is None
    assert list(one.listed(T0 + 3.9)) == []
    assert one.machine(machine.id, T0 + 4) is machine


def test_faults_of_launches_and_boots_strike_at_their_share() -> None:
    faults = CloudFaults(refuse=0.5, stillborn=0.3, slow_boot=0.3, silent=0.3, seed=3)
    one = account(supply(slots=1000), faults=faults)
    wish = Wish(image="ami-1", user_data="")
    found = [one.launch(pool(), wish, T0) for _ in range(400)]
    made = [machine for machine in found if isinstance(machine, Machine)]
    assert 150 < len(made) < 250
    one.advance(T0 + 5)
    slow = [machine for machine in made if machine.state is S.PENDING]
    one.advance(T0 + 25)
    stillborn = [machine for machine in made if machine.reason in faults.stillborn_reasons]
    assert {machine.reason for machine in stillborn} == set(faults.stillborn_reasons)
    booted = [event for event in one.drain() if event.kind is Happening.BOOTED]
    assert stillborn
    assert slow
    assert len(booted) < len(made) - len(stillborn)
    faults.end()
    assert all(isinstance(one.launch(pool(), wish, T0 + 30), Machine) for _ in range(50))


def test_on_demand_machines_are_never_refused_by_chance() -> None:
    on_demand = pool(capacity_type=CapacityType.ON_DEMAND)
    one = account(supply(on_demand), faults=CloudFaults(refuse=1.0))
    assert launched(one, at=on_demand).spot_request_id == ""


def test_a_step_down_takes_as_many_as_are_too_many_and_says_so_a_notice_ahead() -> None:
    series = Series(values=(10.0, 10.0, 4.0, 10.0), gap_s=600.0, offset_s=-T0)
    one = account(supply(slots=5, availability=series))
    machines = [launched(one) for _ in range(5)]
    one.advance(T0 + 1200 - 121)
    assert not [machine for machine in machines if machine.noticed_at]
    one.advance(T0 + 1200 - 119)
    assert len([machine for machine in machines if machine.noticed_at]) == 3
    one.advance(T0 + 1200)
    assert len([machine for machine in machines if machine.is_up]) == 2
    assert one.launch(pool(), Wish(image="", user_data=""), T0 + 1300) is Shortage.CAPACITY
    one.advance(T0 + 1801)
    launched(one, T0 + 1801)


def test_a_hazard_takes_single_machines_at_its_rate() -> None:
    one = account(supply(slots=1000, hazard_per_hour=1.0))
    machines = [launched(one) for _ in range(400)]
    one.advance(T0 + 3600)
    taken = sum(1 for machine in machines if machine.reclaim_at is not None)
    assert 200 < taken < 300  # 1 - 1/e of them


def test_a_series_steps_repeats_and_tells_its_changes() -> None:
    series = Series(values=(1.0, 1.0, 3.0), gap_s=10.0)
    assert [series.at(t) for t in (0, 9.9, 10, 20, 30)] == [1, 1, 1, 3, 1]
    assert series.between(5, 45) == [(5, 1.0), (20, 3.0), (30, 1.0)]


def test_a_step_down_bounds_launches_as_soon_as_it_is_announced() -> None:
    series = Series(values=(10.0, 4.0), gap_s=600.0, offset_s=-T0)
    one = account(supply(slots=5, availability=series))
    launched(one, T0 + 479)
    assert one.capacity.free(pool(), T0 + 479) == 4
    assert one.capacity.free(pool(), T0 + 481) == 1
    launched(one, T0 + 481)
    assert one.launch(pool(), Wish(image="", user_data=""), T0 + 482) is Shortage.CAPACITY
    one.advance(T0 + 1100)
    assert [machine.is_up for machine in one.machines.values()] == [True, True]


def test_a_stopped_machine_that_a_step_down_chooses_is_just_lost_when_the_step_is_announced() -> None:
    series = Series(values=(10.0, 0.0), gap_s=600.0, offset_s=-T0)
    one = account(supply(slots=5, availability=series))
    up, stopped = launched(one), launched(one)
    one.advance(T0 + 10)
    one.stop(stopped.id, T0 + 11)
    one.advance(T0 + 481)
    assert (stopped.state, up.state, up.reclaim_at) == (S.TERMINATED, S.RUNNING, T0 + 600)
    one.advance(T0 + 601)
    assert up.state is S.TERMINATED


def test_a_share_of_reclaims_comes_without_a_notice_at_the_same_moment() -> None:
    series = Series(values=(10.0, 0.0), gap_s=600.0, offset_s=-T0)
    one = account(supply(slots=100, availability=series), faults=CloudFaults(no_notice=0.5))
    machines = [launched(one) for _ in range(100)]
    one.advance(T0 + 599)
    warned = sum(1 for machine in machines if machine.noticed_at is not None)
    assert 30 < warned < 70
    assert all(machine.is_up for machine in machines)
    one.advance(T0 + 600)
    assert all(machine.was_taken for machine in machines)


def test_a_recommendation_comes_its_time_before_the_notice_of_a_single_machine() -> None:
    times = CloudTimes(boot=(1.0, 1.0), notice_s=120.0, rebalance_s=300.0)
    one = account(supply(hazard_per_hour=3600.0), faults=CloudFaults(rebalance=1.0), times=times)
    machine = launched(one)
    one.advance(T0 + 200)
    assert machine.rebalanced_at is not None
    assert machine.noticed_at is None
    one.advance(T0 + 3600)
    assert machine.noticed_at == pytest.approx(machine.rebalanced_at + 300)
    assert machine.ended_at == pytest.approx(machine.rebalanced_at + 420)


def test_a_whole_capacity_pool_goes_at_once_and_has_no_room_until_it_recovers() -> None:
    one = account(supply(), supply(pool("b")))
    machines, other = [launched(one) for _ in range(3)], launched(one, at=pool("b"))
    one.advance(T0 + 5)
    assert one.reclaim_pool(pool(), T0 + 10, notice_s=0.0) == [machine.id for machine in machines]
    assert ([machine.is_up for machine in machines], other.is_up) == ([False] * 3, True)
    assert one.launch(pool(), Wish(image="", user_data=""), T0 + 11) is Shortage.CAPACITY
    one.capacity.exhausted.discard(pool())
    launched(one, T0 + 12)


def test_a_machine_remembers_what_became_of_it() -> None:
    one = account()
    machine = launched(one)
    one.advance(T0 + 5)
    one.reclaim(machine.id, T0 + 6, notice_s=0.0)
    assert machine.history == [(T0, S.PENDING, ""), (T0 + 5, S.RUNNING, ""), (T0 + 6, S.TERMINATED, TAKEN)]


def test_a_machine_that_starts_again_costs_what_it_costs_then() -> None:
    one = account(supply(prices=Series(values=(0.1, 0.3), gap_s=600.0, offset_s=-T0)))
    machine = launched(one)
    one.advance(T0 + 5)
    one.stop(machine.id, T0 + 6)
    one.advance(T0 + 700)
    assert one.start(machine.id, T0 + 700) is None
    assert machine.price_usd_hour == 0.3
