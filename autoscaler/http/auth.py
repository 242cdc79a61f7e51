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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from urllib.parse import urlsplit

from aiohttp import web

from autoscaler.http.limits import Network, address_key, peer_address
from autoscaler.spi import Secret

COOKIE = "autoscaler_session"
SESSION_LIFETIME = timedelta(hours=12)
MAX_CLOSED = 4096
FAILURES_PER_WINDOW = 10
FAILURE_WINDOW = timedelta(minutes=1)
MAX_ADDRESSES = 4096
_FORWARDING = ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP")
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

    def __init__(
        self,
        tokens: tuple[Secret, ...] | Callable[[], tuple[Secret, ...]],
        now: Callable[[], datetime],
        trusted: Sequence[Network] = (),
    ) -> None:
        self._tokens_now = tokens if callable(tokens) else lambda: tokens
        self._trusted = trusted
        self._known_keys: dict[Secret, bytes] = {}
        self._now = now
        self._closed: OrderedDict[str, int] = OrderedDict()
        self._failures: OrderedDict[str, tuple[datetime, int]] = OrderedDict()

    @property
    def _tokens(self) -> tuple[Secret, ...]:
        return self._tokens_now()

    def peer(self, request: web.Request) -> str:
        """The address that failures are counted by."""
        return address_key(peer_address(request, self._trusted))

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
            verdict, actor = self.check(token.strip(), self.peer(request))
            if verdict is Verdict.LIMITED:
                raise web.HTTPTooManyRequests(text="too many wrong tokens", headers={"Retry-After": "60"})
            return Caller(actor=actor, is_bearer=True) if verdict is Verdict.RIGHT else None
        place = self._session_of(request.cookies.get(COOKIE, ""))
        return None if place is None else Caller(actor=f"{_actor(place)}, by the page", is_bearer=False)

    def check(self, token: str, remote: str) -> tuple[Verdict, str]:
        """Compare a token with every configured one in constant time; the actor's name when it is right. A right one
        always passes: who shares an address with a guesser is not locked out."""
        matches = [known.matches(token) for known in self._tokens]
        if any(matches):
            return Verdict.RIGHT, _actor(matches.index(True))
        now = self._now()
        since, failures = self._failures.get(remote, (now, 0))
        if now - since >= FAILURE_WINDOW:
            since, failures = now, 0
        if failures >= FAILURES_PER_WINDOW:
            return Verdict.LIMITED, ""
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
        return f"{words}.{hmac.new(self._key(place), words.encode(errors='replace'), hashlib.sha256).hexdigest()}"

    def _key(self, place: int) -> bytes:
        """The key of sessions opened with a token; a token that is configured no more has none."""
        tokens = self._tokens
        self._known_keys = {token: key for token, key in self._known_keys.items() if token in tokens}
        token = tokens[place]
        if token not in self._known_keys:
            self._known_keys[token] = hashlib.scrypt(
                token.reveal().encode(), salt=b"autoscaler admin session", n=2**13, r=8, p=1, dklen=32
            )
        return self._known_keys[token]


def _actor(place: int) -> str:
    return f"operator with token {place + 1}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12


def is_local(request: web.Request) -> bool:
    """Whether the peer is on loopback, asked for a loopback name, and speaks for nobody else: a proxy on this host
    would lend everybody its address."""
    if any(name in request.headers for name in _FORWARDING):
        return False
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
