"""Which machines a game day takes, and how it is kept."""

from datetime import UTC, datetime

import pytest

from autoscaler.game_day import KEPT, GameDay, GameDayState, chosen, load_all, takeable
from autoscaler.game_day_report import quantile
from autoscaler.model import Instance, InstanceState
from autoscaler.spi import InstanceId, ProviderId
from tests.admin_world import ARM, LINUX, instance

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
S = InstanceState


def machines(count: int, state: InstanceState = S.BUSY, *, first: int = 0) -> list[Instance]:
    return [instance(first + n, NOW, state, provider_id=ProviderId(f"p-{first + n}")) for n in range(count)]


@pytest.mark.parametrize(
    ("share", "there", "taken"), [(0.1, 30, 3), (0.1, 31, 4), (0.1, 1, 1), (1.0, 7, 7), (0.5, 0, 0), (0.001, 40, 1)]
)
def test_the_share_is_rounded_up_and_never_beyond_what_there_is(share: float, there: int, taken: int) -> None:
    assert len(chosen(machines(there), share, lot="g-1")) == taken


def test_machines_with_a_job_are_taken_first() -> None:
    found = [*machines(5, S.IDLE), *machines(2, S.BUSY, first=10)]
    assert {row.state for row in chosen(found, 0.2, lot="g-1")} == {S.BUSY}
    assert [row.state for row in chosen(found, 0.4, lot="g-1")] == [S.BUSY, S.BUSY, S.IDLE]


def test_the_lot_decides_among_equals_and_can_be_repeated() -> None:
    found = machines(50)
    first = chosen(found, 0.2, lot="g-1")
    assert chosen(list(reversed(found)), 0.2, lot="g-1") == first
    assert chosen(found, 0.2, lot="g-2") != first


def test_only_machines_of_the_pool_with_a_runner_that_nobody_ends_can_be_taken() -> None:
    (mine, other, booting, going, unbound) = machines(5)
    rows = [
        mine,
        instance(1, NOW, S.BUSY, pool=ARM, provider_id=other.provider_id),
        instance(2, NOW, S.LAUNCHED, provider_id=booting.provider_id),
        going,
        instance(4, NOW, S.IDLE, provider_id=None),
    ]
    assert unbound.id == rows[-1].id
    assert takeable(rows, LINUX, going={going.id}) == [mine]


def test_game_days_come_back_from_settings_as_they_were() -> None:
    day = GameDay(
        id="g-1",
        pool=LINUX,
        share=0.1,
        is_announced=False,
        actor="operator with token 2",
        begun_at=NOW,
        candidates=31,
        machines=tuple(InstanceId(f"i-{n}") for n in range(4)),
        state=GameDayState.ASKED,
        detail="aws: a part of it was refused",
    )
    unreadable = {"game_day/g-2": "{}", "game_day/g-3": "[]", "game_day/g-4": "no json"}
    assert load_all({"spent/2026-01-05/aws": "1.0", day.key: day.dump(), **unreadable}) == [day]
    assert KEPT >= 1


def test_quantiles_are_of_values_that_were_there() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0], 0.95) == 3.0
    assert quantile([float(n) for n in range(100)], 0.95) == 95.0
