"""The machine's side of the agent protocol: the claim, hello, and calls that carry the claim key.

Owns K (see docs/agent-protocol.md) and the moment of the last contact. One session lives as long as the machine: a
daemon that restarts finds the same claim, and one that lost its store is told of the runner at the new hello.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from runners.agent.client import Answer, Client, Unreachable
from runners.agent.evidence import EvidenceSource

VERSION = "1"


class Refused(Exception):
    """The daemon wants nothing to do with this machine, for good."""


class Later(Exception):
    """The daemon asks for patience: repeat after `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"repeat after {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class Backoff:
    """Waits between attempts: doubling from 0.1 s to 5 s, half of it random, so that a fleet does not call in step."""

    def __init__(self) -> None:
        self._attempts = 0

    @property
    def is_fresh(self) -> bool:
        return self._attempts == 0

    def reset(self) -> None:
        self._attempts = 0

    def next_s(self) -> float:
        ceiling = min(5.0, 0.1 * 2.0**self._attempts)
        self._attempts = min(self._attempts + 1, 10)
        return ceiling * (0.5 + random.random() / 2)  # noqa: S311 - jitter, not a secret


class Session:
    """Says hello and makes calls with the claim key. Used from several threads. A `batch` that the boot document
    lacks is looked for with `find_batch` before each hello until it is there."""

    def __init__(
        self,
        client: Client,
        *,
        provider: str,
        batch: str,
        evidence: EvidenceSource,
        find_batch: Callable[[], str | None],
    ) -> None:
        self._client = client
        self._provider = provider
        self._batch = batch
        self._evidence = evidence
        self._find_batch = find_batch
        key = os.urandom(32)
        self._key = key.hex()
        self._claim = hashlib.sha256(key).hexdigest()
        self._lock = threading.Lock()
        self._hellos = 0
        self.instance = ""
        self.heartbeat_s = 5.0
        self.runner: dict[str, str] | None = None
        self.about: dict[str, str] = {"version": VERSION}
        self.last_contact = time.monotonic()

    @property
    def is_accepted(self) -> bool:
        return bool(self.instance)

    def hello(self) -> None:
        """One hello. Raises Refused, Later, Unreachable."""
        if not self._batch:
            self._batch = self._find_batch() or ""  # tags arrive after the machine
        if not self._batch:
            raise Unreachable("the machine's tags do not name its batch yet")
        body = {
            "provider": self._provider,
            "batch": self._batch,
            "claim": self._claim,
            "evidence": self._evidence(self._claim),
            "agent": self.about,
            "runner": self.runner,
        }
        answer = self._client.post("/agent/v1/hello", body)
        instance = answer.body.get("instance")
        if answer.status == 200 and isinstance(instance, str) and instance:
            self.heartbeat_s = max(0.05, float(answer.body.get("heartbeat_s", 5.0)))
            self.instance = instance
            self._hellos += 1
            self.last_contact = time.monotonic()
            return
        if answer.status in (403, 410):
            raise Refused(f"hello was answered {answer.status}")
        if answer.status in (429, 503):
            raise Later(answer.retry_after_s or 1.0)
        raise Unreachable(f"hello was answered {answer.status}")

    def call(self, path: str, extra: dict[str, Any], *, timeout_s: float = 10.0) -> Answer:
        """A call with the claim key; a daemon that no longer knows the key gets a hello and the call again.

        Raises Unreachable for server faults too (5xx), Refused, Later.
        """
        hellos = self._hellos
        answer = self._post(path, extra, timeout_s)
        if answer.status == 401:
            with self._lock:
                if hellos == self._hellos:
                    self.hello()
            answer = self._post(path, extra, timeout_s)
        if answer.status == 403:
            raise Refused(f"{path} was answered 403")
        if answer.status in (429, 503):
            raise Later(answer.retry_after_s or 1.0)
        if answer.status == 401 or answer.status >= 500:
            raise Unreachable(f"{path} was answered {answer.status}")
        self.last_contact = time.monotonic()
        return answer

    def _post(self, path: str, extra: dict[str, Any], timeout_s: float) -> Answer:
        return self._client.post(path, {"instance": self.instance, **extra}, bearer=self._key, timeout_s=timeout_s)
