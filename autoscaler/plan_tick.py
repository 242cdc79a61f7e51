"""Part of plan: what all parts of the supply of one tick share."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from autoscaler.cooling import Closures
from autoscaler.model import Action, Blocked, Instance, Job, Rules, Snapshot
from autoscaler.plan_limits import Limits


@dataclass(slots=True)
class Supply:
    """What was decided for all pools so far."""

    actions: list[Action] = field(default_factory=list)
    blocked: list[Blocked] = field(default_factory=list)
    wake_at: datetime | None = None

    def wake(self, at: datetime | None) -> None:
        if at is not None and (self.wake_at is None or at < self.wake_at):
            self.wake_at = at


@dataclass(slots=True)
class Fleet:
    """One pool's machines: all live ones, and those that can still serve a job, by how far they are. Of those that
    are `coming`, `late` ones take longer than nearly all before them; `overdue` ones likely never come."""

    rows: list[Instance] = field(default_factory=list)
    registered: list[Instance] = field(default_factory=list)
    untold: list[Instance] = field(default_factory=list)
    ready: list[Instance] = field(default_factory=list)
    coming: int = 0
    late: int = 0
    overdue: int = 0
    late_zones: set[tuple[str, str]] = field(default_factory=set)
    """(provider, zone) of the late ones."""
    live: int = 0


class Purpose(StrEnum):
    """What a machine is launched for."""

    JOB = "job"
    """A queued job that no machine covers."""
    REPLACEMENT = "replacement"
    """A lost job that will be queued again by the time the machine is up."""
    FORESEEN = "foreseen"
    """A job that a live run will likely queue by then."""
    RACE = "race"
    """A machine that boots later than its kind does."""
    MIN = "min"


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """One machine that a pool should launch, in the order in which they are to be served. `hours` is how long it is
    expected to work, None while unknown; `attempt` is the attempt that it shall run."""

    purpose: Purpose
    job: Job | None = None
    hours: float | None = None
    attempt: int = 1


@dataclass(slots=True, kw_only=True)
class Tick:
    """One tick's supply, pool after pool; all pools draw on the same limits."""

    snapshot: Snapshot
    rules: Rules
    now: datetime
    limits: Limits
    supply: Supply
    closures: Closures

    def block(self, blocked: Blocked) -> None:
        self.supply.blocked.append(blocked)
        self.supply.wake(blocked.again_at)
