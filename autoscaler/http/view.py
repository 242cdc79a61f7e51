"""What the HTTP side may ask of the running daemon. Reads are plain calls on values in memory; nothing here blocks.

The daemon implements `DaemonView`; the admin API, the status page and the metrics endpoint depend on this Protocol
alone, so that they can be served over any object that keeps it (a test's, the real one).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from autoscaler.game_day import GameDay
from autoscaler.game_day_report import GameDayReport
from autoscaler.model import Blocked, PoolControl, Rules, Snapshot
from autoscaler.scores import Calibration
from autoscaler.spi import PoolName, ProviderName, ProviderTraits, RateBudget
from autoscaler.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One thing that must be well for the daemon to be ready: "forge/github", "provider/local", "store", "leader".

    `since` is when it took its present value; `remedy` says what to do where we know it.
    """

    name: str
    is_well: bool
    detail: str
    since: datetime
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What the operator should know of a provider although the daemon is ready, with its remedy in the text."""

    target: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TickView:
    """The last tick: its number, when, how long each part took (seconds) and how many actions it planned."""

    number: int
    at: datetime
    took_s: float
    plan_s: float
    actions: int


class DaemonView(Protocol):
    @property
    def deployment(self) -> str: ...

    @property
    def store(self) -> Store: ...

    def now(self) -> datetime: ...

    def snapshot(self) -> Snapshot:
        """The latest snapshot: live rows only."""
        ...

    def rules(self) -> Rules: ...

    def traits(self) -> Mapping[ProviderName, ProviderTraits]:
        """How each provider bills, and what else differs."""
        ...

    def blocked(self) -> Sequence[Blocked]:
        """Why demand is unmet, as the last plan said."""
        ...

    def budgets(self) -> Sequence[tuple[str, RateBudget]]:
        """What forges and clouds still let us call, by their names, now."""
        ...

    def conditions(self) -> Sequence[Condition]: ...

    def troubles(self) -> Sequence[Trouble]:
        """What is not well and keeps nobody waiting, so that it is no condition of readiness."""
        ...

    def dropped_notices(self) -> Sequence[tuple[str, str, int]]:
        """How many notices each provider dropped itself since its start: (provider, reason, count)."""
        ...

    def predictions(self) -> Sequence[Calibration]:
        """How good predictions of breaches were: of all pools together, then of each."""
        ...

    def last_tick(self) -> TickView | None: ...

    async def wait_change(self, after: int) -> int:
        """Return a number above `after` as soon as anything visible changed; at once if it already has."""
        ...

    async def set_control(self, pool: PoolName, control: PoolControl, *, actor: str) -> None:
        """Pause, drain or resume a pool; written to the ledger. Raises KeyError for an unknown pool."""
        ...

    @property
    def allows_game_days(self) -> bool:
        """Whether the configuration does."""
        ...

    async def begin_game_day(self, pool: PoolName, *, share: float, is_announced: bool, actor: str) -> GameDayReport:
        """Have a share of a pool's machines interrupted; durable and in the ledger before any cloud is asked. Raises
        KeyError for an unknown pool, GameDayRunning while another one is not over."""
        ...

    async def game_day(self, id_: str) -> GameDayReport:
        """What a game day cost so far. Raises KeyError where there was none."""
        ...

    def game_days(self) -> Sequence[GameDay]:
        """Those on record, newest first."""
        ...
