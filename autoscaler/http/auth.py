"""Who may use the admin listener: bearer tokens for programs, a session cookie for the page, loopback without tokens.

    no tokens configured   open to loopback peers that name this host as loopback (so that a web page cannot reach it
                           by DNS rebinding), closed to everybody else
    tokens configured      `Authorization: Bearer <token>`, or the cookie of a session opened with a token

A session cookie says which token opened it and until when, under a MAC whose key is derived from that token (with
scrypt, so that a cookie is no way to guess a weak token). It thus outlives a restart of the daemon, and ends with its
time, with its token, or by logout; a logout is remembered while the daemon lives. Writes must come from our own page
(Sec-Fetch-Site, else Origin) unless they carry a bearer token, which no browser adds by itself. Failed tokens are
limited per address, whichever way they come.
"""

import hashlib
import hmac
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import cached_property
from urllib.parse import urlsplit

from aiohttp import web

from autoscaler.spi import Secret

COOKIE = "autoscaler_session"
SESSION_LIFETIME = timedelta(hours=12)
MAX_CLOSED = 4096
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


class Access:
    """Decides who a request is from. One per admin application; `now` is the daemon's clock."""

    def __init__(self, tokens: tuple[Secret, ...], now: Callable[[], datetime]) -> None:
        self._tokens = tokens
        self._now = now
        self._closed: OrderedDict[str, int] = OrderedDict()
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
        place = self._session_of(request.cookies.get(COOKIE, ""))
        return None if place is None else Caller(actor=f"{_actor(place)}, by the page", is_bearer=False)

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
            return Verdict.RIGHT, _actor(matches.index(True))
        self._failures[remote] = (since, failures + 1)
        self._failures.move_to_end(remote)
        while len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
        return Verdict.WRONG, ""

    def open_session(self, token: str) -> str:
        """A new session's cookie for a token that `check` found right. Raises ValueError for any other."""
        place = [known.matches(token) for known in self._tokens].index(True)
        expires = int((self._now() + SESSION_LIFETIME).timestamp())
        return self._sealed(place, f"{place}.{expires}.{secrets.token_urlsafe(16)}")

    def close_session(self, cookie: str) -> None:
        if self._session_of(cookie) is None:
            return
        now_s = int(self._now().timestamp())
        for key in [key for key, expires in self._closed.items() if expires <= now_s]:
            del self._closed[key]
        while len(self._closed) >= MAX_CLOSED:
            self._closed.popitem(last=False)
        self._closed[cookie] = int(cookie.split(".")[1])

    def _session_of(self, cookie: str) -> int | None:
        """The place of the token that opened this session; None for a session that is over or was never ours."""
        words, _, _ = cookie.rpartition(".")
        place, _, rest = words.partition(".")
        expires = rest.partition(".")[0]
        if not (_is_number(place) and _is_number(expires) and int(place) < len(self._tokens)):
            return None
        is_ours = hmac.compare_digest(self._sealed(int(place), words).encode(), cookie.encode(errors="replace"))
        is_over = int(expires) <= self._now().timestamp() or cookie in self._closed
        return int(place) if is_ours and not is_over else None

    def _sealed(self, place: int, words: str) -> str:
        return f"{words}.{hmac.new(self._keys[place], words.encode(errors='replace'), hashlib.sha256).hexdigest()}"

    @cached_property
    def _keys(self) -> tuple[bytes, ...]:
        salt = b"autoscaler admin session"
        return tuple(
            hashlib.scrypt(token.reveal().encode(), salt=salt, n=2**13, r=8, p=1, dklen=32) for token in self._tokens
        )


def _actor(place: int) -> str:
    return f"operator with token {place + 1}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12


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
