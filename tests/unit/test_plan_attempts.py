"""Jobs that were lost too often on spot wait for an on_demand machine, as long as one is there or can be bought."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from autoscaler.model import Cooldown, Instance, InstanceState, Job, Launch, Plan, Register
from autoscaler.spi import CapacityType
from tests.admin_world import LINUX, OFFERING, SPOT
from tests.unit.plan_world import NOW, POOL, actions_of, machine, planned, queued, world

S = InstanceState
BOUGHT = replace(SPOT, capacity_type=CapacityType.ON_DEMAND)
OFFERED = {"offerings": {LINUX: (OFFERING, replace(OFFERING, capacity_pool=BOUGHT, price_usd_hour=0.1))}}
NO_OTHER = {"offerings": {LINUX: (OFFERING,)}}


def third(number: int = 1) -> Job:
    return queued(number, attempt=3)


def on_demand(number: int, state: InstanceState = S.READY, **changes: Any) -> Instance:
    return machine(number, state, capacity_pool=BOUGHT, **changes)


def registered(made: Plan) -> list[str]:
    return [action.instance for action in actions_of(made, Register)]


def launched(made: Plan) -> list[tuple[int, CapacityType]]:
    return [(one.count, one.offerings[0].capacity_pool.capacity_type) for one in actions_of(made, Launch)]


def test_third_attempt_takes_the_on_demand_machine_although_another_has_been_ready_for_longer() -> None:
    spot, bought = machine(1, S.READY, seconds=50), on_demand(2)
    made = planned(world([third(1), queued(2)], [spot, bought], **OFFERED))
    assert registered(made) == [bought.id, spot.id]
    assert not launched(made)


def test_it_waits_for_an_on_demand_machine_that_is_coming_beside_a_ready_spot_machine() -> None:
    made = planned(world([third()], [machine(1, S.READY), on_demand(2, S.LAUNCHED)], **OFFERED))
    assert not registered(made)
    assert not launched(made)


def test_it_gets_one_of_its_own_where_spot_machines_are_ready_or_coming() -> None:
    for state in (S.READY, S.LAUNCHED):
        made = planned(world([third()], [machine(1, state)], **OFFERED))
        assert not registered(made)
        assert launched(made) == [(1, CapacityType.ON_DEMAND)]


def test_it_takes_what_there_is_where_no_on_demand_machine_can_be_had() -> None:
    refused = Cooldown(capacity_pool=BOUGHT, until=NOW + timedelta(seconds=60), failures=1, reason="no capacity")
    spot = machine(1, S.READY)
    for given in (NO_OTHER, {**OFFERED, "cooldowns": {BOUGHT: refused}}):
        assert registered(planned(world([third()], [spot], **given))) == [spot.id]
    full = replace(POOL, max=1)
    assert registered(planned(world([third()], [spot], **OFFERED), full)) == [spot.id]


def test_first_attempts_may_take_an_on_demand_machine_that_no_third_one_needs() -> None:
    bought = on_demand(1)
    assert registered(planned(world([queued(1)], [bought], **OFFERED))) == [bought.id]


def test_pool_without_spot_makes_no_difference() -> None:
    made = planned(world([third(1), queued(2)], [machine(1, S.READY)], **OFFERED), replace(POOL, spot_enabled=False))
    assert len(registered(made)) == 1
