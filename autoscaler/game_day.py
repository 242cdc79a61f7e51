"""Game days as values: who had how many machines taken, which ones, and what is on record of that.

Pure: which machines are taken is decided here, nothing is done. A game day is kept in the store's settings, so that it
outlives the daemon in the middle of it:

    asking        its machines are on record, their clouds are asked
    asked         the clouds took the order; machines go, jobs come back
    failed        no cloud took it; `detail` says why
    over          every machine is gone or finished by itself, and every lost job runs again or is settled
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from autoscaler.model import Instance, InstanceState
from autoscaler.spi import InstanceId, PoolName

SETTING = "game_day/"
"""Game days are settings under this and their id."""
KEPT = 20
"""Of older ones the ledger tells."""
COUNTS_FOR = timedelta(minutes=10)
"""How long after the order the end of a chosen machine is the game day's doing: the longest notice is two minutes, and
AWS begins an experiment within some more."""
LONGEST = timedelta(minutes=30)
"""A game day is over after this, whatever its jobs still wait for."""

_TAKEABLE = (InstanceState.BUSY, InstanceState.IDLE)


class GameDayState(StrEnum):
    ASKING = "asking"
    ASKED = "asked"
    FAILED = "failed"
    OVER = "over"


class GameDayRunning(Exception):
    """Another game day is not over yet; its id is the text."""


OPEN_STATES = (GameDayState.ASKING, GameDayState.ASKED)


@dataclass(frozen=True, slots=True, kw_only=True)
class GameDay:
    """One game day. `machines` are all that it may take, of `candidates` that there were when it was asked for."""

    id: str
    pool: PoolName
    share: float
    is_announced: bool
    actor: str
    begun_at: datetime
    candidates: int
    machines: tuple[InstanceId, ...]
    state: GameDayState = GameDayState.ASKING
    detail: str = ""

    @property
    def key(self) -> str:
        return SETTING + self.id

    @property
    def counts_until(self) -> datetime:
        return self.begun_at + COUNTS_FOR

    def dump(self) -> str:
        return json.dumps(
            {
                "pool": self.pool,
                "share": self.share,
                "announced": self.is_announced,
                "actor": self.actor,
                "begun_at": self.begun_at.isoformat(),
                "candidates": self.candidates,
                "machines": self.machines,
                "state": self.state,
                "detail": self.detail,
            }
        )


def load(id_: str, text: str) -> GameDay:
    """What `GameDay.dump` wrote."""
    kept = json.loads(text)
    return GameDay(
        id=id_,
        pool=PoolName(kept["pool"]),
        share=kept["share"],
        is_announced=kept["announced"],
        actor=kept["actor"],
        begun_at=datetime.fromisoformat(kept["begun_at"]),
        candidates=kept["candidates"],
        machines=tuple(InstanceId(name) for name in kept["machines"]),
        state=GameDayState(kept["state"]),
        detail=kept["detail"],
    )


def load_all(settings: Mapping[str, str]) -> list[GameDay]:
    """The game days that settings hold, oldest first. What cannot be read, as another version wrote it, is none: a
    report of the past must not keep the daemon from starting."""
    found = []
    for key, text in settings.items():
        if key.startswith(SETTING):
            try:
                found.append(load(key.removeprefix(SETTING), text))
            except (ValueError, TypeError, KeyError):
                continue
    return sorted(found, key=lambda day: (day.begun_at, day.id))


def takeable(instances: Iterable[Instance], pool: PoolName, *, going: Iterable[InstanceId]) -> list[Instance]:
    """The machines of a pool that run a job or wait for one with their runner online, and that nobody ends yet."""
    left_alone = frozenset(going)
    return [
        row
        for row in instances
        if row.pool == pool and row.state in _TAKEABLE and row.provider_id is not None and row.id not in left_alone
    ]


def chosen(candidates: Sequence[Instance], share: float, *, lot: str) -> tuple[Instance, ...]:
    """The share of the machines, rounded up: those with a job first, as a game day is to show what becomes of jobs;
    among equals by lot, so that no zone or age is favoured and a test can repeat it."""

    def order(row: Instance) -> tuple[bool, str]:
        return row.state is not InstanceState.BUSY, hashlib.sha256(f"{lot}/{row.id}".encode()).hexdigest()

    # A share like 0.1 is no binary fraction: 0.1 x 30 must be 3 machines, not 4.
    count = min(len(candidates), math.ceil(round(share * len(candidates), 9)))
    return tuple(sorted(candidates, key=order)[:count])
