"""Who may use the admin listener: bearer tokens for programs, a session cookie for the page, loopback without tokens.

    no tokens configured   open to loopback peers that name this host as loopback (so that a web page cannot reach it
                           by DNS rebinding), closed to everybody else
    tokens configured      `Authorization: Bearer <token>`, or the cookie of a session opened with a token

A session cookie holds a random id, never the token; only the id's hash is kept, in memory, bounded and expiring. Writes
must come from our own page (Sec-Fetch-Site, else Origin) unless they carry a bearer token, which no browser adds by
itself. Failed tokens are limited per address, whichever way they come.
"""

import hashlib
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from urllib.parse import urlsplit

from aiohttp import web

from autoscaler.spi import Secret

COOKIE = "autoscaler_session"
SESSION_LIFETIME = timedelta(hours=12)
MAX_SESSIONS = 256
FAILURES_PER_WINDOW = 10
FAILURE_WINDOW = timedelta(minutes=1)
MAX_ADDRESSES = 4096
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Verdict(Enum):
    """What a presented token is worth."""

    RIGHT = auto()
    WRONG = auto()
    LIMITED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, by the name that the ledger shows."""

    actor: str
    is_bearer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    actor: str
    expires_at: datetime


class Access:
    """Decides who a request is from. One per admin application; `now` is the daemon's clock."""

    def __init__(self, tokens: tuple[Secret, ...], now: Callable[[], datetime]) -> None:
        self._tokens = tokens
        self._now = now
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._failures: OrderedDict[str, tuple[datetime, int]] = OrderedDict()

    @property
    def mode(self) -> str:
        """ "token", or "loopback_only" while no token is configured."""
        return "token" if self._tokens else "loopback_only"

    def caller(self, request: web.Request) -> Caller | None:
        """The authenticated caller, or None. Raises HTTPTooManyRequests after repeated wrong tokens."""
        if not self._tokens:
            return Caller(actor="operator on loopback", is_bearer=False) if is_local(request) else None
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            verdict, actor = self.check(token.strip(), request.remote or "")
            if verdict is Verdict.LIMITED:
                raise web.HTTPTooManyRequests(text="too many wrong tokens", headers={"Retry-After": "60"})
            return Caller(actor=actor, is_bearer=True) if verdict is Verdict.RIGHT else None
        session = self._session(request.cookies.get(COOKIE, ""))
        return Caller(actor=session.actor, is_bearer=False) if session else None

    def check(self, token: str, remote: str) -> tuple[Verdict, str]:
        """Compare a token with every configured one in constant time; the actor's name when it is right."""
        now = self._now()
        since, failures = self._failures.get(remote, (now, 0))
        if now - since >= FAILURE_WINDOW:
            since, failures = now, 0
        if failures >= FAILURES_PER_WINDOW:
            return Verdict.LIMITED, ""
        matches = [known.matches(token) for known in self._tokens]
        if any(matches):
            return Verdict.RIGHT, f"operator with token {matches.index(True) + 1}"
        self._failures[remote] = (since, failures + 1)
        self._failures.move_to_end(remote)
        while len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
        return Verdict.WRONG, ""

    def open_session(self, actor: str) -> str:
        """A new session's id, for the cookie. The oldest session goes when there are too many."""
        now = self._now()
        for key in [key for key, session in self._sessions.items() if session.expires_at <= now]:
            del self._sessions[key]
        while len(self._sessions) >= MAX_SESSIONS:
            self._sessions.popitem(last=False)
        session_id = secrets.token_urlsafe(32)
        self._sessions[_digest(session_id)] = _Session(actor=actor, expires_at=now + SESSION_LIFETIME)
        return session_id

    def close_session(self, session_id: str) -> None:
        self._sessions.pop(_digest(session_id), None)

    def _session(self, session_id: str) -> _Session | None:
        session = self._sessions.get(_digest(session_id)) if session_id else None
        return session if session and session.expires_at > self._now() else None


def is_local(request: web.Request) -> bool:
    """Whether the peer is on loopback and asked for a loopback name."""
    try:
        peer = ipaddress.ip_address(request.remote or "")
    except ValueError:
        return False
    return peer.is_loopback and (urlsplit(f"//{request.host}").hostname or "") in _LOOPBACK_NAMES


def is_same_site(request: web.Request) -> bool:
    """Whether a write comes from our own page. Browsers say so in Sec-Fetch-Site; older ones, and all of them on
    plain HTTP, in Origin. A request with neither is not from a browser and carries no ambient authority but a cookie.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("Origin")
    if origin is not None:
        return urlsplit(origin).netloc == request.host
    return COOKIE not in request.cookies


def _digest(session_id: str) -> str:
    return hashlib.sha256(session_id.encode()).hexdigest()
