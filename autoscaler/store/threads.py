"""The two threads of the SQLite store: a writer that groups, a reader that answers one by one.

A thread owns its connection: it alone opens, uses and closes it. Calls come in through a queue and come back through
the loop, one `call_soon_threadsafe` for each batch. What one pass of the loop asks for is handed over together; beyond
that there is no timer and no linger: a batch is what queued up while the last one ran.
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from autoscaler.store import Conflict, LeaseLost, StoreError
from autoscaler.store.external import external_work

T = TypeVar("T")
Connection = sqlite3.Connection
_BATCH_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Call:
    """One queued call. `savepoint`: several statements that stand or fall together. `alone`: runs outside of any
    transaction, by itself."""

    run: Callable[[Connection], Any]
    answer: asyncio.Future[Any]
    rows: int = 1
    savepoint: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a call came to: a value or an error."""

    call: Call
    value: Any = None
    error: BaseException | None = None


class DatabaseThread:
    """A thread with a connection. `connect` makes one, on first use and again after a failure."""

    def __init__(self, name: str, connect: Callable[[], Connection], *, groups: bool) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self._asked: list[Call] = []
        self._calls: queue.SimpleQueue[list[Call] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        self._run_batch = self._group if groups else self._each
        self.commits = 0
        self.rows = 0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def call(
        self, run: Callable[[Connection], T], *, rows: int = 1, savepoint: bool = False, alone: bool = False
    ) -> T:
        """Run in the thread; returns once it is durable. Raises StoreError. Cancelling the wait does not undo it."""
        if self._is_closed:
            raise StoreError("the store is closed")
        answer: asyncio.Future[T] = self._loop.create_future()
        with external_work():
            if not self._asked:
                self._loop.call_soon(self._hand_over)
            self._asked.append(Call(run, answer, rows, savepoint, alone))
            return await answer

    def _hand_over(self) -> None:
        asked, self._asked = self._asked, []
        if asked:
            self._calls.put(asked)

    async def aclose(self) -> None:
        """Finish what is queued, close the connection, end the thread."""
        self._is_closed = True
        self._hand_over()
        self._calls.put(None)
        with external_work():
            await asyncio.to_thread(self._thread.join)

    # ------------------------------------------------------------------ in the thread

    def _work(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._next_batch()
            if batch:
                self._answer(self._run_batch(batch))
        self._disconnect()

    def _next_batch(self) -> tuple[list[Call], bool]:
        batch: list[Call] = []
        asked = self._calls.get()
        while asked is not None:
            batch += asked
            if len(batch) >= _BATCH_LIMIT:
                return batch, True
            try:
                asked = self._calls.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _each(self, batch: Sequence[Call]) -> list[_Outcome]:
        return [self._one(call) for call in batch]

    def _one(self, call: Call) -> _Outcome:
        try:
            return _Outcome(call, call.run(self._connected()))
        except StoreError as error:
            return _Outcome(call, error=error)
        except Exception as error:
            self._disconnect()
            return _Outcome(call, error=_failure(error))

    def _group(self, batch: Sequence[Call]) -> list[_Outcome]:
        """One transaction for all that may share it; those that run alone come after it."""
        shared = [call for call in batch if not call.alone]
        outcomes = self._transaction(shared) if shared else []
        return outcomes + [self._one(call) for call in batch if call.alone]

    def _transaction(self, calls: Sequence[Call]) -> list[_Outcome]:
        outcomes: list[_Outcome] = []
        try:
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [_member(connection, call) for call in calls]
            connection.execute("COMMIT")
        except Exception as error:
            self._disconnect()  # rolls back; the next batch starts on a fresh connection
            refused = {id(outcome.call): outcome for outcome in outcomes if outcome.error is not None}
            return [refused.get(id(call), _Outcome(call, error=_failure(error))) for call in calls]
        written = sum(outcome.call.rows for outcome in outcomes if outcome.error is None)
        if written:
            self.commits += 1
            self.rows += written
        return outcomes

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _answer(self, outcomes: Sequence[_Outcome]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and nobody waits
            self._loop.call_soon_threadsafe(_settle, outcomes)


def _member(connection: Connection, call: Call) -> _Outcome:
    """One call of a shared transaction. Its own fault is its outcome; the database's fault raises and fails all."""
    if call.savepoint:
        connection.execute("SAVEPOINT member")
    error: StoreError
    try:
        value = call.run(connection)
    except (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError) as fault:
        error = _failure(fault)
    except sqlite3.Error:
        raise
    except (Conflict, LeaseLost) as refusal:
        error = refusal
    except Exception as fault:
        error = _failure(fault)
    else:
        if call.savepoint:
            connection.execute("RELEASE member")
        return _Outcome(call, value)
    if call.savepoint:
        connection.execute("ROLLBACK TO member")
        connection.execute("RELEASE member")
    return _Outcome(call, error=error)


def _failure(error: Exception) -> StoreError:
    failure = error if isinstance(error, StoreError) else StoreError(f"SQLite: {error}")
    failure.__cause__ = None if failure is error else error
    return failure


def _settle(outcomes: Sequence[_Outcome]) -> None:
    for outcome in outcomes:
        answer = outcome.call.answer
        if answer.done():
            continue
        if outcome.error is None:
            answer.set_result(outcome.value)
        else:
            answer.set_exception(outcome.error)
