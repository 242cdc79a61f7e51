"""What strangers may use up: connections, bytes of bodies, calls per address. See docs/security.md.

Everything here is decided before anybody is authenticated, so it must cost less than what it refuses, and must not be
a way to silence others: shares are per address where there is one, and what is global has room for all of them.
"""

import asyncio
import ipaddress
import resource
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from time import monotonic

import structlog
from aiohttp import StreamReader, web
from prometheus_client import Counter

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

BODY_BUDGET = 64 * 1024 * 1024
BODY_TIMEOUT_S = 10.0
"""GitHub gives up on a delivery after 10 s, so that a slower body is nobody's."""
REMEMBERED_KEYS = 4096
FILES_WANTED = 65_536
REFUSALS_PER_S, REFUSALS_BURST = 100.0, 1000.0
"""Refused hellos of all addresses together: each may cost the check of a signature."""
SUSPECT_S = 60.0
"""Only who had a hello refused so lately is held up by them: others' hellos are no part of the flood."""
PER_ADDRESS = 1024
"""Connections of one address whose callers have not shown who they are: a fleet behind one NAT boots all at once."""
PER_CALLER = 8
"""Connections that count for a known machine instead of its address: an agent needs two, a hostile job gains little."""

log = structlog.get_logger(__name__)


class BodyRefused(Exception):
    """The body is not taken: `status` and `outcome` say why."""

    def __init__(self, status: int, outcome: str) -> None:
        super().__init__(outcome)
        self.status = status
        self.outcome = outcome


class BodyBudget:
    """The bytes of bodies being read, of all connections together. Whoever takes gives back."""

    def __init__(self, limit: int = BODY_BUDGET) -> None:
        self._left = limit

    @property
    def left(self) -> int:
        return self._left

    def take(self, size: int) -> bool:
        if size > self._left:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        self._left += size


async def read_up_to(stream: StreamReader, limit: int, held: bytearray, budget: BodyBudget) -> None:
    """Append to `held` until the end, or until it holds more than `limit` bytes (then the rest stays unread).

    The caller gives back `len(held)` once the body is authenticated or refused. Raises BodyRefused.
    """
    while len(held) <= limit:
        chunk = await stream.readany()
        if not chunk:
            return
        if not budget.take(len(chunk)):
            raise BodyRefused(503, "busy")
        held += chunk


async def read_body(request: web.BaseRequest, limit: int, budget: BodyBudget) -> bytes:
    """The whole body. Raises BodyRefused: 413, 408 after 10 s, 503 while too much is being read, 400 when broken."""
    if (request.content_length or 0) > limit:
        raise BodyRefused(413, "too_large")
    held = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            await read_up_to(request.content, limit, held, budget)
    except TimeoutError:
        raise BodyRefused(408, "body_timeout") from None
    except (OSError, web.PayloadAccessError, web.RequestPayloadError):
        raise BodyRefused(400, "body_broken") from None
    finally:
        budget.give_back(len(held))
    if len(held) > limit:
        raise BodyRefused(413, "too_large")
    return bytes(held)


# ---------------------------------------------------------------------- addresses


def peer_address(request: web.BaseRequest, trusted: Sequence[Network] = ()) -> str:
    """Who asks: the connection's peer, or, where that is a trusted proxy, the nearest untrusted address of
    X-Forwarded-For. What stands left of that was written by whoever asked and is not believed."""
    peer = request.remote or ""
    if not trusted or not _is_within(peer, trusted):
        return peer
    named = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
    for text in reversed(named):
        address = _address_of(text.strip())
        if address is None:
            return peer
        peer = str(address)
        if not _is_within(peer, trusted):
            return peer
    return peer


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks from the configuration, where they are checked already."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


@lru_cache(maxsize=1024)
def address_key(peer: str) -> str:
    """What limits count by: an IPv4 address, or the /64 of an IPv6 address, which one customer has as a whole."""
    address = _address_of(peer)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address) if address is not None else "-"


@lru_cache(maxsize=1024)
def is_loopback_peer(peer: str) -> bool:
    address = _address_of(peer)
    return address is not None and address.is_loopback


def _is_within(peer: str, trusted: Sequence[Network]) -> bool:
    address = _address_of(peer)
    return address is not None and any(address in network for network in trusted)


def _address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address with or without port, scope or brackets; an IPv4 address in IPv6's clothes is IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


# ---------------------------------------------------------------------- rates


@dataclass(slots=True)
class Bucket:
    """A token bucket, filled by the time that passes."""

    per_s: float
    burst: float
    left: float
    at: float

    @classmethod
    def full(cls, per_s: float, burst: float, now: float) -> "Bucket":
        return cls(per_s=per_s, burst=burst, left=burst, at=now)

    def spend(self, now: float) -> bool:
        """Take one; False when there is none."""
        self.left = min(self.burst, self.left + (now - self.at) * self.per_s)
        self.at = now
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True

    @property
    def wait_s(self) -> float:
        """Seconds from the last look until there is one again."""
        return max(0.0, (1.0 - self.left) / self.per_s)


class Buckets:
    """One bucket per key. The keys used longest ago are forgotten first: whoever floods from many keys gains a full
    bucket each, and takes nobody else's."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def bucket(self, key: str, now: float) -> Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket.full(self._per_s, self._burst, now)
            if len(self._buckets) > REMEMBERED_KEYS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket


class Refusals:
    """Counts refusals by call and reason; says the first of each reason in a minute, with how many were not said."""

    def __init__(self, counter: Counter | None = None) -> None:
        self._counter = counter
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def count(self, call: str, reason: str, now: float, **about: str) -> None:
        """`reason` is one of few; `about` is what a stranger may have written, at most once a minute."""
        if self._counter is not None:
            self._counter.labels(call=call, outcome=reason).inc()
        said_at, suppressed = self._said.get((call, reason), (float("-inf"), 0))
        if now - said_at < 60.0:
            self._said[call, reason] = (said_at, suppressed + 1)
            return
        self._said[call, reason] = (now, 0)
        short = {key: value[:200] for key, value in about.items()}
        log.warning("call_refused", call=call, reason=reason, not_said_before=suppressed, **short)


class HelloLimits:
    """How often hellos may come: by address, and, of addresses that had one refused lately, all refused together.

    Those that name a batch whose machines are awaited have a rate of their own: jobs know other batches alone, and so
    cannot keep machines out that share their address, behind one NAT.
    """

    def __init__(self) -> None:
        # A fleet behind one NAT says hello from one address, and boots all at once.
        self._strangers = Buckets(20.0, 500.0)
        self._loopback = Buckets(50.0, 200.0)
        self._awaited = Buckets(50.0, 500.0)
        self._refused = Bucket.full(REFUSALS_PER_S, REFUSALS_BURST, monotonic())
        self._suspects: OrderedDict[str, float] = OrderedDict()

    def wait_s(self, peer: str, now: float, *, batch: str = "") -> float:
        """0 when a hello may come in now; else the seconds to wait. `batch` is one whose machines are awaited."""
        if batch:
            bucket = self._awaited.bucket(batch, now)
            return 0.0 if bucket.spend(now) else bucket.wait_s
        bucket = (self._loopback if is_loopback_peer(peer) else self._strangers).bucket(address_key(peer), now)
        if not bucket.spend(now):
            return bucket.wait_s
        if now - self._suspects.get(address_key(peer), float("-inf")) >= SUSPECT_S:
            return 0.0
        return self._refused.wait_s if self._refused.left < 1.0 and not self._refill(now) else 0.0

    def refused(self, peer: str, now: float) -> None:
        self._refused.spend(now)
        key = address_key(peer)
        self._suspects[key] = now
        self._suspects.move_to_end(key)
        if len(self._suspects) > REMEMBERED_KEYS:
            self._suspects.popitem(last=False)

    def _refill(self, now: float) -> bool:
        """Whether time alone has made room again."""
        filled = self._refused.left + (now - self._refused.at) * self._refused.per_s
        return filled >= 1.0


# ---------------------------------------------------------------------- files


def raise_file_limit(wanted: int = FILES_WANTED) -> int:
    """Raise the soft limit of open files as far as the hard one allows, up to `wanted`; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    aim = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < aim:
        resource.setrlimit(resource.RLIMIT_NOFILE, (aim, hard))
        return aim
    return wanted if soft == resource.RLIM_INFINITY else soft


@dataclass(slots=True, kw_only=True)
class ConnectionLimits:
    """How many connections a listener keeps: in all, and from one address that is neither loopback nor a proxy. Those
    of callers who have shown who they are count for the caller instead."""

    total: int
    per_address: int = PER_ADDRESS
    head_timeout_s: float = 10.0
    trusted: Sequence[Network] = ()
    open: int = 0
    by_address: dict[str, int] = field(default_factory=dict)
    by_caller: dict[str, int] = field(default_factory=dict)
    refusals: Refusals = field(default_factory=Refusals)

    def admit(self, peer: str) -> bool:
        """Count a new connection; False when it is one too many. `leave` takes it back."""
        if self.open >= self.total:
            self.refusals.count("connect", "connections", monotonic())
            return False
        key = self._key(peer)
        if key:
            count = self.by_address.get(key, 0)
            if count >= self.per_address:
                self.refusals.count("connect", "connections_of_address", monotonic(), address=peer)
                return False
            self.by_address[key] = count + 1
        self.open += 1
        return True

    def know(self, peer: str, caller: str) -> bool:
        """Count a connection for its caller instead of its address; False when the caller has too many of them."""
        if self.by_caller.get(caller, 0) >= PER_CALLER:
            return False
        _take_one(self.by_address, self._key(peer))
        self.by_caller[caller] = self.by_caller.get(caller, 0) + 1
        return True

    def leave(self, peer: str, caller: str = "") -> None:
        """The connection ended. `caller`: who it counted for, where `know` said so."""
        self.open -= 1
        if caller:
            _take_one(self.by_caller, caller)
        else:
            _take_one(self.by_address, self._key(peer))

    def _key(self, peer: str) -> str:
        return "" if is_loopback_peer(peer) or _is_within(peer, self.trusted) else address_key(peer)


def _take_one(counts: dict[str, int], key: str) -> None:
    left = counts.get(key, 0) - 1
    if left > 0:
        counts[key] = left
    else:
        counts.pop(key, None)
