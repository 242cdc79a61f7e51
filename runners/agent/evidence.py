"""What a machine sends to prove which one it is: one source per provider kind.

A source is called for every hello, with the hex SHA-256 of the claim key, so that evidence the cloud can sign is bound
to the claim. It raises Unreachable where the machine's metadata service does not answer: the hello is repeated.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable

from runners.agent.client import Unreachable
from runners.agent.metadata import AwsMetadata, GceMetadata

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


def aws_source(metadata: AwsMetadata) -> EvidenceSource:
    """The identity document that AWS signed for this machine with the region's RSA-2048 key, as PKCS #7 in base64."""

    def evidence(_: str) -> dict[str, str]:
        signed = metadata.get("/latest/dynamic/instance-identity/rsa2048")
        if not signed:
            raise Unreachable("the metadata service has no identity document")
        return {"rsa2048": signed}

    return evidence


def gce_source(metadata: GceMetadata, daemon_url: str) -> EvidenceSource:
    """A token that Google signs for the audience "daemon_url#claim": of no use with any other claim key."""

    def evidence(claim: str) -> dict[str, str]:
        token = metadata.identity(f"{daemon_url.rstrip('/')}#{claim}")
        if not token:
            raise Unreachable("the metadata service has no identity token: the machine has no service account")
        return {"token": token.strip()}

    return evidence
