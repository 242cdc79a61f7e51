"""What goes wrong with a PostgreSQL server, or the way to it, in the words of the store's contract."""

import contextlib
from collections.abc import Iterator

import asyncpg  # type: ignore[import-untyped]  # it ships no types

from autoscaler.store import LeaseLost, StoreError
from autoscaler.store.external import external_work

FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of the server or the way to it as StoreError; the loop is told that somebody else works."""
    try:
        with external_work():
            yield
    except FAULTS as error:
        raise failure(error, what) from error


def failure(error: Exception, what: str = "failed") -> StoreError:
    return StoreError(f"PostgreSQL {what}: {type(error).__name__}: {error}")


def in_doubt(error: Exception) -> LeaseLost:
    return LeaseLost(f"PostgreSQL broke during COMMIT, take the lease again and read everything anew: {error}")
