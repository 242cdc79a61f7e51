"""How what history taught becomes small texts by key, and is read again.

Shared by the modules that learn. A text is one JSON list that begins with the whole key: the row's own key is for
people and for the store's order, cut to a length that every index takes and made unique by a digest.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import structlog

from autoscaler.store import Learned

log = structlog.get_logger()

LONGEST_KEY = 160
LONGEST_NAME = 1000
"""Names that say more than this are made up per run: nothing is learned of them."""
KEPT_AT_ONCE = 500
"""Texts written with one tick: the works of a 5,000-job matrix must not hold the loop up."""

_FORGOTTEN_AT = datetime.min.replace(tzinfo=UTC)

_K = TypeVar("_K", bound=tuple[str, ...])


def row_key(kind: str, parts: tuple[str, ...]) -> str:
    """The key of a row: "hours/github/acme/api/CI/build#<digest>"."""
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return f"{kind}/{'/'.join(parts)}"[:LONGEST_KEY].replace("\0", "") + f"#{digest}"


def is_nameable(parts: tuple[str, ...]) -> bool:
    return sum(map(len, parts)) <= LONGEST_NAME


def take_rows(learned: MutableMapping[str, Learned], kind: str, read: Callable[[tuple[str, ...], Any], None]) -> None:
    """Hand the whole key and the value of every row of a kind to `read`, oldest first. The rows are taken out, because
    who reads them owns what they say. What is not readable (written by another version) is told, and learned anew."""
    rows = [learned.pop(key) for key in list(learned) if key.startswith(f"{kind}/")]
    for one in sorted(rows, key=lambda one: (one.at, one.key)):
        try:
            parts, value = json.loads(one.value)
            read(tuple(str(part) for part in parts), value)
        except (ValueError, TypeError, LookupError):
            log.warning("learned_unreadable", key=one.key)


class Unkept(Generic[_K]):
    """What one module has learned since it was written last: each key at most once in its owner's period, some with
    each tick."""

    def __init__(self, kind: str, value_of: Callable[[_K], Any]) -> None:
        """`value_of` is what to write under a key, as JSON knows it; None: it was forgotten."""
        self._kind = kind
        self._value_of = value_of
        self._changed: dict[_K, datetime] = {}
        self._due: dict[_K, datetime] = {}

    def add(self, key: _K, now: datetime) -> None:
        self._changed[key] = now

    def forget(self, key: _K) -> None:
        """There are too many, and this one goes: from the store as well, or it would grow with whatever names there
        ever were, and so would the time that the next start takes."""
        self._changed[key] = _FORGOTTEN_AT

    def make_due(self) -> None:
        """What changed so far is to be written now; called once in its owner's period."""
        self._due |= self._changed
        self._changed = {}

    def take(self, limit: int) -> list[Learned]:
        """Rows to write, at most so many, the longest waiting ones first."""
        keys = [key for key, _ in zip(self._due, range(limit), strict=False)]
        return list(self._rows((key, self._due.pop(key)) for key in keys))

    def _rows(self, keys: Iterable[tuple[_K, datetime]]) -> Iterator[Learned]:
        for key, at in keys:
            value = self._value_of(key)
            text = json.dumps([key, value], separators=(",", ":")) if value is not None else ""
            yield Learned(key=row_key(self._kind, key), at=at, value=text)
