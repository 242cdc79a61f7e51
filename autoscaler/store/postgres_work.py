"""What PostgreSQL's writer task is given to do, and how it answers."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoscaler.store import StoreError
from autoscaler.store.rows import Columns, Writes


@dataclass(frozen=True, slots=True)
class Accept:
    """A webhook to make durable; answers its seq or None."""

    columns: Columns
    answer: asyncio.Future[int | None]


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction of the lease's holder at `epoch`."""

    writes: Writes
    epoch: int
    answer: asyncio.Future[None]


def transposed(rows: Sequence[Columns]) -> list[list[str | int]]:
    """One list for each column: the parameters of a bulk query."""
    return [list(column) for column in zip(*rows, strict=True)]


def settle(answer: asyncio.Future[Any], outcome: int | StoreError | None) -> None:
    if answer.done():
        return
    if isinstance(outcome, StoreError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
