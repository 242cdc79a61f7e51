"""The metadata services of clouds, as the machine sees them: EC2's with session tokens, and Compute Engine's.

Owns addresses, headers and tokens; knows nothing of what the answers mean. An answer is text, None where the service
has no such thing (404), or Unreachable is raised.
"""

from __future__ import annotations

import os
import threading
import time
from typing import NamedTuple

from runners.agent.client import Unreachable, fetch

_TIMEOUT_S = 2.0
_TOKEN_S = 21600
_RENEW_S = 60.0


class AwsMetadata:
    """IMDSv2 (EC2 user guide, "Use IMDSv2"): a PUT gives a session token, each GET carries it; an unknown or ended
    token is answered 401. Used from several threads."""

    batch_key = "/latest/meta-data/tags/instance/autoscaler-batch"

    def __init__(self) -> None:
        endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254"
        self.authority = endpoint.partition("://")[2].rstrip("/") if "://" in endpoint else endpoint
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0

    def get(self, path: str) -> str | None:
        """The text at `path`. A refused token is replaced, once."""
        for attempt in (1, 2):
            token = self._session_token()
            headers = {"X-aws-ec2-metadata-token": token}
            reply = fetch(self.authority, path, headers=headers, timeout_s=_TIMEOUT_S)
            if reply.status != 401 or attempt == 2:
                break
            self._forget(token)
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise Unreachable(f"the metadata service answered {reply.status} for {path}")
        return reply.body.decode("utf-8", "replace")

    def batch(self) -> str | None:
        return self.get(self.batch_key)

    def _session_token(self) -> str:
        with self._lock:
            if not self._token or time.monotonic() >= self._renew_at:
                headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
                path = "/latest/api/token"
                reply = fetch(self.authority, path, method="PUT", headers=headers, timeout_s=_TIMEOUT_S)
                if reply.status != 200:
                    raise Unreachable(f"the metadata service gave no token: {reply.status}")
                self._token = reply.body.decode("ascii", "replace").strip()
                granted = reply.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
                lifetime_s = float(granted) if granted.isdigit() else _TOKEN_S
                self._renew_at = time.monotonic() + max(lifetime_s - _RENEW_S, lifetime_s / 2)
            return self._token

    def _forget(self, token: str) -> None:
        with self._lock:
            if self._token == token:
                self._token = ""


class Seen(NamedTuple):
    """A value and its entity tag, with which a change of it can be waited for."""

    value: str
    etag: str


class GceMetadata:
    """Compute Engine's metadata server (its documentation, "View and query VM metadata"). Used from several threads."""

    def __init__(self) -> None:
        self.authority = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"

    def get(self, path: str) -> str | None:
        """The text at `path` below instance/."""
        seen = self.look(path)
        return None if seen is None else seen.value

    def look(self, path: str, *, after: Seen | None = None, wait_s: int = 60) -> Seen | None:
        """The value now, or, `after` one that was seen, the next one: at the latest in `wait_s` the same again."""
        if after is not None:
            path += f"?wait_for_change=true&timeout_sec={wait_s}&last_etag={_quoted(after.etag)}"
        timeout_s = _TIMEOUT_S if after is None else wait_s + 10.0
        headers = {"Metadata-Flavor": "Google"}
        reply = fetch(self.authority, f"/computeMetadata/v1/instance/{path}", headers=headers, timeout_s=timeout_s)
        if reply.status == 404:
            return None
        # Without its own header the answer is some other server's, e.g. of a captive network.
        if reply.status != 200 or reply.headers.get("metadata-flavor") != "Google":
            raise Unreachable(f"the metadata service answered {reply.status} for {path.partition('?')[0]}")
        return Seen(reply.body.decode("utf-8", "replace").strip(), reply.headers.get("etag", ""))

    def identity(self, audience: str) -> str | None:
        """A signed identity token of this machine; None where it has no service account."""
        return self.get(f"service-accounts/default/identity?audience={_quoted(audience)}&format=full")

    def batch(self) -> str | None:
        return self.get("attributes/autoscaler-batch")


def _quoted(text: str) -> str:
    """For a query, as RFC 3986 says; `urllib.parse` would take half a megabyte for every machine."""
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in text.encode())
