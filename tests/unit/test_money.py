"""What machines cost: by use, with minimum, free reclaims and stopped disks; the same from the history alone."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from autoscaler.live import LiveRows
from autoscaler.model import CostLine, EndReason, Instance, InstanceMove, InstanceState, Use
from autoscaler.money import cost_lines
from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    InstanceId,
    PoolName,
    ProviderId,
    ProviderName,
    ProviderTraits,
)
from autoscaler.states import INSTANCE_MOVES
from autoscaler.store.memory import MemoryStore

T0 = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
CLOUD = ProviderName("cloud")
AWS = ProviderTraits(minimum_billed_s=60.0, reclaimed_free_s=3600.0, stopped_share=0.02)
_S = InstanceState


def a_row(**fields: object) -> Instance:
    row = Instance(
        id=InstanceId("i-1"),
        pool=PoolName("linux"),
        provider=CLOUD,
        token=BatchToken("b"),
        state=_S.REQUESTED,
        since=T0,
        created_at=T0,
        capacity_pool=CapacityPool(
            provider=CLOUD, region="r", zone="z", machine_type="m", capacity_type=CapacityType.SPOT
        ),
        price_usd_hour=0.36,
        on_demand_usd_hour=1.08,
        provider_id=ProviderId("p-1"),
        repo="org/repo",
        workflow="ci",
    )
    return replace(row, **fields)  # type: ignore[arg-type]  # the fields of Instance by name


def uses(lines: tuple[CostLine, ...]) -> dict[Use, tuple[int, int, int]]:
    return {line.use: (line.milliseconds, line.usd_nano, line.on_demand_usd_nano) for line in lines}


def test_each_second_goes_to_one_use() -> None:
    row = a_row(boot_us=30_000_000, idle_us=10_000_000, job_us=100_000_000)
    assert uses(cost_lines(row, ProviderTraits(), T0)) == {
        Use.BOOT: (30_000, 3_000_000, 9_000_000),
        Use.IDLE: (10_000, 1_000_000, 3_000_000),
        Use.JOB: (100_000, 10_000_000, 30_000_000),
    }


def test_what_the_minimum_adds_to_a_short_life_was_idle() -> None:
    found = uses(cost_lines(a_row(boot_us=10_000_000, job_us=20_000_000), AWS, T0))
    assert found[Use.IDLE] == (30_000, 3_000_000, 9_000_000)
    twice = uses(cost_lines(a_row(boot_us=10_000_000, job_us=20_000_000, starts=2), AWS, T0))
    assert twice[Use.IDLE][0] == 90_000


def test_a_machine_the_cloud_takes_within_its_free_time_costs_nothing() -> None:
    reclaimed = a_row(boot_us=10_000_000, job_us=600_000_000, is_ended_by_cloud=True)
    assert sum(line.usd_nano for line in cost_lines(reclaimed, AWS, T0)) == 0
    later = replace(reclaimed, job_us=3_700_000_000)
    assert sum(line.usd_nano for line in cost_lines(later, AWS, T0)) == 371_000_000
    ended_by_us = replace(reclaimed, is_ended_by_cloud=False, ending=EndReason.INTERRUPTED)
    assert sum(line.usd_nano for line in cost_lines(ended_by_us, AWS, T0)) == 61_000_000


def test_a_stopped_machine_costs_its_share_of_on_demand() -> None:
    row = a_row(boot_us=60_000_000, stopped_us=3_600_000_000)
    assert uses(cost_lines(row, AWS, T0))[Use.STOPPED] == (3_600_000, 21_600_000, 21_600_000)


def test_a_machine_that_never_was_costs_nothing() -> None:
    assert cost_lines(a_row(provider_id=None, boot_us=60_000_000), AWS, T0) == ()


def test_without_an_on_demand_price_nothing_is_saved() -> None:
    (line,) = cost_lines(a_row(on_demand_usd_hour=None, job_us=60_000_000), ProviderTraits(), T0)
    assert line.usd_nano == line.on_demand_usd_nano


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[InstanceState, int]]:
    """A walk through the table from requested to terminated, with the milliseconds spent in each state."""
    path, state = [], _S.REQUESTED
    while state is not _S.TERMINATED:
        path.append((state, draw(st.integers(0, 10_000_000))))
        onward = sorted(INSTANCE_MOVES[state])
        state = _S.TERMINATED if len(path) > 12 and _S.TERMINATED in onward else draw(st.sampled_from(onward))
    return path


@given(life=lives())
def test_costs_are_those_of_the_history(life: list[tuple[InstanceState, int]]) -> None:
    """The rows' own count against the moves in the history, added up by separate code."""
    rows = LiveRows(MemoryStore(), {CLOUD: ProviderTraits(stopped_share=0.5)})
    row, now = rows.add_instance(a_row(), cause="asked"), T0
    for (_, spent), (state, _) in pairwise([*life, (_S.TERMINATED, 0)]):
        now += timedelta(milliseconds=spent)
        row = rows.move(row, state, now=now, cause="next", ending=EndReason.SURPLUS)
    moves = rows._buffer.moves
    assert sum(line.usd_nano for line in rows.billed) == from_history(moves, price=0.36, stopped=0.54)


def from_history(moves: list[InstanceMove], *, price: float, stopped: float) -> int:
    """Nano-dollars: every state but `requested` costs the price, stopped ones the disk. One rounding per use."""
    kinds = {_S.LAUNCHED: 0, _S.STARTING: 0, _S.BUSY: 1, _S.DRAINING: 1, _S.STOPPING: 2, _S.STOPPED: 2}
    spent = [0, 0, 0, 0]
    for move, following in pairwise(moves):
        if move.to_state is not _S.REQUESTED:
            spent[kinds.get(move.to_state, 3)] += round((following.at - move.at).total_seconds() * 1e6)
    hourly = (price, price, stopped, price)
    return sum(round(usd * 1e9 * us / 3.6e9) for usd, us in zip(hourly, spent, strict=True))
