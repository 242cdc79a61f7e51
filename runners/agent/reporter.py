"""Tells the daemon what happened on the machine: numbered events, repeated until acknowledged, and heartbeats.

Owns the queue of unacknowledged events and the thread that sends them. It decides nothing: a command in an answer is
handed on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from runners.agent.client import Unreachable
from runners.agent.session import Backoff, Later, Refused, Session

_BATCH = 16


class Reporter:
    """`report` never blocks. `on_command` gets "end"; `on_refused` is called once when the daemon refuses for good."""

    def __init__(self, session: Session, *, on_command: Callable[[str], None], on_refused: Callable[[], None]) -> None:
        self._session = session
        self._on_command = on_command
        self._on_refused = on_refused
        self._changed = threading.Condition()
        self._pending: list[dict[str, Any]] = []
        self._next_seq = 1
        self._is_refused = False
        threading.Thread(target=self._run, name="reporter", daemon=True).start()

    def report(self, kind: str, /, **detail: str) -> None:
        with self._changed:
            self._append(kind, detail)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is acknowledged; False when it takes longer, or when the daemon refused us."""
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_refused or not self._pending, timeout_s)
            return not self._pending

    def _append(self, kind: str, detail: dict[str, str]) -> None:
        self._pending.append({"seq": self._next_seq, "at": time.time(), "kind": kind, "detail": detail})
        self._next_seq += 1

    def _run(self) -> None:
        backoff = Backoff()
        while True:
            pause_s = self._session.heartbeat_s
            if self._session.is_accepted:
                try:
                    self._send(self._batch())
                    backoff.reset()
                except Unreachable:
                    pause_s = backoff.next_s()
                except Later as later:
                    pause_s = later.retry_after_s
                except Refused:
                    with self._changed:
                        self._is_refused = True
                        self._changed.notify_all()
                    self._on_refused()
                    return
            else:
                pause_s = 0.05
            with self._changed:
                # After a failure the pause is kept, whatever else happens; else a new event is sent at once.
                if backoff.is_fresh and self._session.is_accepted:
                    self._changed.wait_for(lambda: any(e["kind"] != "heartbeat" for e in self._pending), pause_s)
                else:
                    self._changed.wait(pause_s)

    def _batch(self) -> list[dict[str, Any]]:
        with self._changed:
            if not self._pending:
                self._append("heartbeat", {})
            return self._pending[:_BATCH]

    def _send(self, batch: list[dict[str, Any]]) -> None:
        answer = self._session.call("/agent/v1/events", {"events": batch})
        if answer.status == 410:
            raise Refused("events were answered 410")
        if answer.status != 200:
            raise Unreachable(f"events were answered {answer.status}")
        acknowledged = int(answer.body.get("acknowledged", 0))
        sent = {event["seq"] for event in batch if event["kind"] == "heartbeat"}
        with self._changed:
            # A heartbeat needs no acknowledgement: having arrived is enough.
            self._pending = [e for e in self._pending if e["seq"] > acknowledged and e["seq"] not in sent]
            self._changed.notify_all()
        if command := str(answer.body.get("command", "")):
            self._on_command(command)
