"""A small HTTP/1.1 client: one request per connection; `Client` posts JSON to the daemon.

Owns sockets and TLS; knows nothing of the protocol's meaning. It stands in for `http.client`, which imports `ssl` and
`email` always: together they would double the memory of an agent that talks plain HTTP on loopback.
"""

from __future__ import annotations

import json
import socket
from typing import Any, NamedTuple

_MAX_ANSWER = 1 << 20


class Reply(NamedTuple):
    """One HTTP answer as it came; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    """The daemon's answer. `body` is empty where the answer carries no JSON object."""

    status: int
    body: dict[str, Any]
    retry_after_s: float


class Unreachable(Exception):
    """No usable answer: refused, timed out, broken off or garbage. The call may have taken effect."""


class Client:
    """Calls one daemon. Safe to use from several threads: nothing is shared between calls."""

    def __init__(self, url: str, ca_pem: str = "") -> None:
        scheme, _, rest = url.partition("://")
        authority, _, path = rest.partition("/")
        if scheme not in ("http", "https") or not authority:
            raise ValueError(f"daemon_url is neither http nor https: {url!r}")
        self._authority = authority
        self._prefix = "/" + path.rstrip("/") if path.rstrip("/") else ""
        self._host, self._port = host_and_port(authority, 443 if scheme == "https" else 80)
        self._tls = _tls_context(ca_pem) if scheme == "https" else None

    def post(self, path: str, body: dict[str, Any], *, bearer: str = "", timeout_s: float = 10.0) -> Answer:
        """Post a JSON object. Raises Unreachable."""
        payload = json.dumps(body, separators=(",", ":")).encode()
        lines = [
            f"POST {self._prefix}{path} HTTP/1.1",
            f"Host: {self._authority}",
            "Content-Type: application/json",
            "Accept: application/json",
            "Connection: close",
            f"Content-Length: {len(payload)}",
        ]
        if bearer:
            lines.append(f"Authorization: Bearer {bearer}")
        request = "\r\n".join(lines).encode() + b"\r\n\r\n" + payload
        try:
            return _answer(_parse(self._exchange(request, timeout_s)))
        except (OSError, ValueError) as error:
            # The text of the error only: the request carries the key.
            raise Unreachable(f"{type(error).__name__}: {error}") from None

    def _exchange(self, request: bytes, timeout_s: float) -> bytes:
        raw = socket.create_connection((self._host, self._port), timeout=timeout_s)
        with raw:
            if self._tls is None:
                return _talk(raw, request)
            with self._tls.wrap_socket(raw, server_hostname=self._host) as wrapped:
                return _talk(wrapped, request)


def fetch(authority: str, path: str, *, method: str = "GET", headers: dict[str, str], timeout_s: float) -> Reply:
    """One request without a body over plain HTTP: what metadata services speak. Raises Unreachable."""
    host, port = host_and_port(authority, 80)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {authority}", "Accept: */*", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += ["Content-Length: 0"] if method != "GET" else []
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            return _parse(_talk(connection, "\r\n".join(lines).encode() + b"\r\n\r\n"))
    except (OSError, ValueError) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from None


def _talk(connection: Any, request: bytes) -> bytes:
    connection.sendall(request)
    received = bytearray()
    while chunk := connection.recv(65536):
        received += chunk
        if len(received) > _MAX_ANSWER:
            raise ValueError("answer too long")
        if _is_complete(received):
            break
    return bytes(received)


def _is_complete(received: bytearray) -> bool:
    """Whether an answer with a Content-Length is all there; without one the end of the connection tells."""
    head, separator, body = received.partition(b"\r\n\r\n")
    if not separator:
        return False
    length = _headers(bytes(head)).get("content-length", "")
    return length.isdigit() and len(body) >= int(length)


def _headers(head: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _parse(answer: bytes) -> Reply:
    head, separator, body = answer.partition(b"\r\n\r\n")
    status_line = head.split(b"\r\n", 1)[0].split(b" ")
    if not separator or len(status_line) < 2 or not status_line[0].startswith(b"HTTP/1."):
        raise ValueError("not an HTTP answer")
    headers = _headers(head)
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = _unchunk(body)
    elif len(body) < int(headers.get("content-length") or 0):
        raise ValueError("answer broken off")
    return Reply(int(status_line[1]), headers, body)


def _answer(reply: Reply) -> Answer:
    parsed = json.loads(reply.body) if reply.body and "json" in reply.headers.get("content-type", "") else {}
    retry_after = reply.headers.get("retry-after", "")
    return Answer(
        reply.status,
        parsed if isinstance(parsed, dict) else {},
        float(retry_after) if retry_after.replace(".", "", 1).isdigit() else 0.0,
    )


def _unchunk(body: bytes) -> bytes:
    whole = bytearray()
    while True:
        size_line, separator, body = body.partition(b"\r\n")
        size = int(size_line.split(b";")[0], 16) if separator else -1
        if size < 0 or len(body) < size:
            raise ValueError("answer broken off")
        if size == 0:
            return bytes(whole)
        whole += body[:size]
        body = body[size + 2 :]


def host_and_port(authority: str, default_port: int) -> tuple[str, int]:
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        return host, int(rest[1:]) if rest.startswith(":") else default_port
    host, _, port = authority.partition(":")
    return host, int(port) if port else default_port


def _tls_context(ca_pem: str) -> Any:
    import ssl  # only where it is used: 5 MB of memory

    return ssl.create_default_context(cadata=ca_pem or None)
