"""What a machine sends to prove which one it is: one source per provider kind.

A source is called for every hello, with the hex SHA-256 of the claim key, so that evidence the cloud can sign is bound
to the claim. Clouds add their source here and name it in the agent's command line.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable

EvidenceSource = Callable[[str], "dict[str, str]"]


def local_evidence(provider_id: str, key: bytes, claim: str, now: float) -> dict[str, str]:
    """HMAC-SHA256 over "id|time|claim" with this machine's own key; the time is unix seconds in whole numbers."""
    at = str(int(now))
    signature = hmac.new(key, f"{provider_id}|{at}|{claim}".encode(), hashlib.sha256).hexdigest()
    return {"instance_id": provider_id, "time": at, "signature": signature}


def local_source(provider_id: str, key_fd: int) -> EvidenceSource:
    """Reads the machine's key from the inherited pipe, once, and closes it: no job can read it again."""
    received = b""
    while chunk := os.read(key_fd, 64):
        received += chunk
    os.close(key_fd)
    key = bytes.fromhex(received.decode("ascii"))
    return lambda claim: local_evidence(provider_id, key, claim, time.time())
