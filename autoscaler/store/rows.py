"""Turns the core's values into columns and JSON bodies, and back. The only place that knows how a value is stored.

A row's body is the whole value as JSON: instants as integer microseconds, enums by value, a field that is None or empty
by default left out. Unknown keys are ignored and missing ones take their default, so that an older and a newer program
can read each other's rows. Columns beside the body exist only for what queries filter on.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from hashlib import sha256
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from autoscaler.model import CostLine, Instance, Interruption, Job, LedgerEntry, Use
from autoscaler.spi import CapacityType, ForgeName, PoolName, ProviderName, Webhook
from autoscaler.states import is_live, is_live_job
from autoscaler.store import Changes, Conflict, CostSum, InboxRow, StoreError

Column = str | int
Columns = tuple[Column, ...]
T = TypeVar("T")
_Code = Callable[[Any], Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_KEY_LENGTH = 200
_NOTHING = object()
_encode_json = json.JSONEncoder(separators=(",", ":")).encode  # ASCII: lone surrogates and NUL survive as escapes


def micros(at: datetime) -> int:
    """Microseconds since the epoch, exactly."""
    return (at - _EPOCH) // _MICROSECOND


def instant(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)


def text(value: str) -> str:
    """A text every engine can hold: PostgreSQL refuses NUL, and no engine stores a lone surrogate."""
    if value.isascii() and "\0" not in value:
        return value
    return value.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")


def key(value: str) -> str:
    """A text every engine can index: one too long for PostgreSQL's index pages ends in its digest, equal for equals."""
    if len(value) <= _KEY_LENGTH:
        return text(value)
    digest = sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
    return text(value[: _KEY_LENGTH - len(digest)]) + digest


# --------------------------------------------------------------------------- bodies


def body(value: object) -> str:
    """A dataclass as its JSON body."""
    return _encode_json(_codes(type(value)).encode(value))


def read(kind: type[T], body: str) -> T:
    """The value of a body. Raises StoreError for one that this program cannot read."""
    try:
        value: T = _codes(kind).decode(json.loads(body))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"a stored {kind.__name__} cannot be read: {error}") from error
    return value


@dataclass(frozen=True, slots=True)
class _Codes:
    """How values of one dataclass become JSON objects and back."""

    encode: _Code
    decode: _Code


def _codes(kind: Any) -> _Codes:
    return _made_codes(kind)


@cache
def _made_codes(kind: Any) -> _Codes:
    hints = get_type_hints(kind)
    plans = [(item.name, *_code(hints[item.name]), _left_out(item)) for item in fields(kind)]
    encoders = [(name, encode, left_out) for name, encode, _, left_out in plans]
    decoders = {name: decode for name, _, decode, _ in plans}

    def encode(value: Any) -> dict[str, Any]:
        out = {}
        for name, to_json, left_out in encoders:
            item = getattr(value, name)
            if item == left_out:
                continue
            out[name] = item if to_json is None else to_json(item)
        return out

    def decode(stored: dict[str, Any]) -> Any:
        arguments = {}
        for name, item in stored.items():
            if name in decoders:
                from_json = decoders[name]
                arguments[name] = item if from_json is None else from_json(item)
        return kind(**arguments)

    return _Codes(encode, decode)


def _left_out(item: Field[Any]) -> object:
    """The value that a body leaves out; one that equals nothing where the default is not None or empty."""
    return item.default if item.default is None or item.default == "" else _NOTHING


def _code(hint: Any) -> tuple[_Code | None, _Code | None]:
    """(encoder, decoder) of one field's type; None where JSON holds the value as it is."""
    hint = getattr(hint, "__supertype__", hint)
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType) and NoneType in parts:
        (inner,) = (part for part in parts if part is not NoneType)
        to_json, from_json = _code(inner)
        return _unless_none(to_json), _unless_none(from_json)
    if origin is tuple:
        to_json, from_json = _code(parts[0])
        return _each(list, to_json), _each(tuple, from_json)
    if hint in (str, int, float, bool):
        return None, None
    if hint is datetime:
        return micros, instant
    if origin is Mapping and _code(parts[0]) == _code(parts[1]) == (None, None):
        return dict, dict
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return str, hint
    if is_dataclass(hint):
        return (lambda value: _codes(hint).encode(value)), (lambda stored: _codes(hint).decode(stored))
    raise TypeError(f"no stored form for {hint!r}")


def _unless_none(code: _Code | None) -> _Code | None:
    return None if code is None else lambda value: None if value is None else code(value)


def _each(container: type, code: _Code | None) -> _Code:
    return container if code is None else lambda values: container([code(value) for value in values])


# --------------------------------------------------------------------------- columns


def ended_at(job: Job) -> datetime:
    """The age that counts for pruning; never before the job was first seen, so that scans by that can stop early."""
    return max(job.finished_at or job.first_seen_at, job.first_seen_at)


def repo_run(repo: str, run_id: str) -> str:
    """What jobs of one run are found by, as people write it; forges do not tell capital letters from small ones."""
    return f"{repo}/{run_id}".lower()


def job_columns(job: Job) -> Columns:
    live, pool = int(is_live_job(job)), key(job.pool or "")
    return (
        key(job.id),
        job.version,
        job.state,
        pool,
        live,
        micros(job.first_seen_at),
        micros(ended_at(job)),
        key(repo_run(job.repo, job.run_id)),
        body(job),
    )


def instance_columns(row: Instance) -> Columns:
    live, pool = int(is_live(row)), key(row.pool)
    return (key(row.id), row.version, row.state, pool, live, micros(row.created_at), micros(row.since), body(row))


def accept_columns(forge: ForgeName, webhook: Webhook, received_at: datetime) -> Columns:
    return (key(forge), key(webhook.delivery_id), micros(received_at), body(webhook))


def inbox_row(seq: int, forge: str, received_us: int, stored: str) -> InboxRow:
    webhook = read(Webhook, stored)
    return InboxRow(seq=seq, forge=ForgeName(forge), received_at=instant(received_us), webhook=webhook)


Versioned = TypeVar("Versioned", Job, Instance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """A Changes as columns, ready for any engine. Updates end with the version the stored row must have."""

    job_inserts: Sequence[Columns]
    job_updates: Sequence[Columns]
    instance_inserts: Sequence[Columns]
    instance_updates: Sequence[Columns]
    moves: Sequence[Columns]
    ledger: Sequence[Columns]
    consumed: Sequence[int]
    samples: Sequence[Columns]
    controls: Sequence[Columns]
    settings: Sequence[Columns]
    dropped_settings: Sequence[str]
    costs: Sequence[Columns]
    job_uses: Sequence[Columns]
    interruptions: Sequence[Columns]
    evidence: Sequence[Columns]
    learned: Sequence[Columns]
    dropped_learned: Sequence[str]

    @property
    def rows(self) -> int:
        jobs = len(self.job_inserts) + len(self.job_updates)
        instances = len(self.instance_inserts) + len(self.instance_updates)
        history = len(self.moves) + len(self.ledger) + len(self.consumed) + len(self.samples)
        small = len(self.controls) + len(self.settings) + len(self.dropped_settings) + len(self.job_uses)
        small += len(self.dropped_learned)
        kept = len(self.costs) + len(self.interruptions) + len(self.evidence) + len(self.learned)
        return jobs + instances + history + kept + small


def writes(changes: Changes) -> Writes:
    """Raises Conflict when a row appears several times with versions that do not follow each other."""
    jobs, job_versions = last_versions(changes.jobs)
    instances, instance_versions = last_versions(changes.instances)
    job_inserts, job_updates = _split([job_columns(job) for job in jobs], job_versions)
    instance_inserts, instance_updates = _split([instance_columns(row) for row in instances], instance_versions)
    settings = (changes.settings or {}).items()
    learned = {one.key: one for one in changes.learned}.values()  # the last word counts
    return Writes(
        job_inserts=job_inserts,
        job_updates=job_updates,
        instance_inserts=instance_inserts,
        instance_updates=instance_updates,
        moves=[(key(move.instance), body(move)) for move in changes.moves],
        ledger=[ledger_columns(entry) for entry in changes.ledger],
        consumed=list(changes.consumed),
        samples=[(micros(sample.at), key(sample.pool), body(sample)) for sample in changes.samples],
        controls=[(key(pool), str(control)) for pool, control in sorted((changes.controls or {}).items())],
        settings=[(key(name), text(value)) for name, value in settings if value],
        dropped_settings=[key(name) for name, value in settings if not value],
        costs=[cost_columns(line) for line in changes.costs],
        evidence=[(key(one.capacity_pool.key), micros(one.at), body(one)) for one in changes.evidence],
        learned=[(key(one.key), micros(one.at), body(one)) for one in learned if one.value],
        dropped_learned=[key(one.key) for one in learned if not one.value],
        job_uses=[(key(instance), str(use)) for instance, use in sorted((changes.job_uses or {}).items())],
        interruptions=[interruption_columns(one) for one in changes.interruptions],
    )


def cost_columns(line: CostLine) -> Columns:
    return (
        *(key(line.instance), str(line.use), micros(line.ended_at), f"{line.ended_at:%Y-%m-%d}"),
        *(key(line.provider), key(line.pool), str(line.capacity_type), key(line.repo), key(line.workflow)),
        *(line.milliseconds, line.usd_nano, line.on_demand_usd_nano),
    )


def cost_sum(row: Sequence[Any]) -> CostSum:
    """A row of the query `costs`."""
    day, provider, pool, capacity_type, repo, workflow, use, instances, spent, usd, on_demand = row
    return CostSum(
        day=day,
        provider=ProviderName(provider),
        pool=PoolName(pool),
        capacity_type=CapacityType(capacity_type),
        repo=repo,
        workflow=workflow,
        use=Use(use),
        instances=instances,
        milliseconds=spent,
        usd_nano=usd,
        on_demand_usd_nano=on_demand,
    )


def interruption_columns(one: Interruption) -> Columns:
    return (key(one.instance), int(one.ended_at is None), micros(one.noticed_at), body(one))


def ledger_columns(entry: LedgerEntry) -> Columns:
    return (micros(entry.at), key(entry.subject), body(entry))


def last_versions(rows: Sequence[Versioned]) -> tuple[list[Versioned], list[int]]:
    """The row to store for each id and, in parallel, the version that the stored row must have (0: none). Several
    versions of a row in one transaction are one write. Raises Conflict when they do not follow each other."""
    last: dict[str, Versioned] = {}
    expected: dict[str, int] = {}
    for row in rows:
        earlier = last.get(row.id)
        if row.version < 1 or (earlier is not None and row.version != earlier.version + 1):
            raise Conflict(f"{row.id}: version {row.version} does not follow")
        last[row.id] = row
        expected.setdefault(row.id, row.version - 1)
    return list(last.values()), list(expected.values())


def _split(encoded: Sequence[Columns], expected: Sequence[int]) -> tuple[list[Columns], list[Columns]]:
    """Inserts, and updates that carry the version to be found."""
    inserts = [row for row, version in zip(encoded, expected, strict=True) if version == 0]
    updates = [(*row, version) for row, version in zip(encoded, expected, strict=True) if version != 0]
    return inserts, updates


__all__ = [
    "Columns",
    "Versioned",
    "Writes",
    "accept_columns",
    "body",
    "cost_columns",
    "cost_sum",
    "ended_at",
    "inbox_row",
    "instance_columns",
    "instant",
    "interruption_columns",
    "job_columns",
    "key",
    "last_versions",
    "ledger_columns",
    "micros",
    "read",
    "repo_run",
    "text",
    "writes",
]
