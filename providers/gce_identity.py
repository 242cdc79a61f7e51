"""Which machine a hello comes from: Google's identity token, checked offline with keys that are kept.

    1. a compact RS256 token with a key id that we hold, each part in canonical base64
    2. its signature, issuer and audience (our public URL, "#", the claim of this hello)
    3. issued within five minutes, not expired                      -> "window"
    4. project                                                      -> "account"
    5. zone                                                         -> "region"
    6. a machine of ours with this numeric id, not going            -> "unknown"   (names can be used again, ids not)
    7. the caller's address, where configured                       -> "address"

Keys come from `trust_anchors`. A URL is read when its Cache-Control says so, and for an unknown key id at most once a
minute; while that fails the old keys serve. Only these keys count: a token also fits keys of its own service account,
which whoever may use that account holds.
"""

import asyncio
import base64
import http.client
import json
import re
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import google.auth.exceptions
import google.auth.jwt
import structlog

from autoscaler.spi import Clock, Evidence, Gates, Identity, IdentityRefused, ProviderError
from providers.gce_machines import GceMachines, Machine
from providers.gce_names import place_of
from providers.gce_settings import GceSettings

_log = structlog.get_logger(__name__)

_ISSUERS = frozenset({"https://accounts.google.com", "accounts.google.com"})
_TOKEN_BYTES = 16 * 1024
_KEYS_BYTES = 1 << 20
_FETCH_S = 10.0
_SKEW = timedelta(seconds=30)
_OLDEST = timedelta(minutes=5)
_FETCH_AGAIN = timedelta(minutes=1)
_FRESH = timedelta(hours=1)
_ANY_SKEW_S = 10**9
"""Times are checked here, by our own clock."""
_URLS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetched:
    keys: Mapping[str, str]
    fresh_for: timedelta | None
    """None: for good, as of a file."""


class TrustAnchors:
    """PEM certificates by key id."""

    def __init__(self, source: str, gates: Gates, clock: Clock, *, name: str) -> None:
        self._source = source
        self._gate = gates.gate(f"{name}-keys", threads=1)
        self._clock = clock
        self._fetching = asyncio.Lock()
        self._keys: Mapping[str, str] = {}
        self._fresh_until: datetime | None = None
        self._tried_at: datetime | None = None
        self.problem = ""
        """Why the keys could not be read the last time; empty: they could."""

    async def keys(self, key_id: str) -> Mapping[str, str]:
        """The keys now; read anew where they are old or do not hold this id."""
        async with self._fetching:
            now = self._clock.now()
            is_stale = self._fresh_until is None or now >= self._fresh_until
            may_try = self._tried_at is None or now - self._tried_at >= _FETCH_AGAIN
            if (is_stale or key_id not in self._keys) and may_try:
                await self._fetch(now)
            return self._keys

    async def _fetch(self, now: datetime) -> None:
        self._tried_at = now
        try:
            fetched: _Fetched = await self._gate.call(_read_keys, self._source, timeout_s=_FETCH_S + 2)
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.problem = f"the keys of identity tokens cannot be read: {str(error)[:200]}"
            _log.warning("trust_anchors_not_read", error=self.problem, kept=len(self._keys))
            return
        self.problem = ""
        self._keys = fetched.keys
        self._fresh_until = datetime.max.replace(tzinfo=UTC) if fetched.fresh_for is None else now + fetched.fresh_for


class GceIdentity:
    def __init__(
        self,
        settings: GceSettings,
        machines: GceMachines,
        anchors: TrustAnchors,
        *,
        public_url: Callable[[], str],
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._machines = machines
        self._anchors = anchors
        self._public_url = public_url
        self._clock = clock
        self._urls: list[str] = []

    async def identify(self, evidence: Evidence) -> Identity:
        """See `Provider.identify`."""
        token = evidence.document.get("token", "")
        claims = await self._verified(token, self._audiences(evidence.claim))
        self._check_times(claims)
        google_says = claims.get("google")
        engine = google_says.get("compute_engine") if isinstance(google_says, Mapping) else None
        if not isinstance(engine, Mapping) or not engine:
            raise IdentityRefused('the token says nothing of a machine: ask for "format=full"', reason="signature")
        if engine.get("project_id") != self._settings.project:
            raise IdentityRefused("the machine is in another project", reason="account")
        zone = str(engine.get("zone", "")).rpartition("/")[2]
        if not self._settings.uses_zone(zone):
            raise IdentityRefused("the machine is in another region", reason="region")
        machine = await self._machine(f"{zone}/{engine.get('instance_name', '')}", str(engine.get("instance_id", "")))
        instance = machine.instance
        if self._settings.trusts_peer_address and evidence.peer_address != instance.address:
            raise IdentityRefused("the caller has another address than the machine", reason="address")
        return Identity(
            provider_id=machine.provider_id,
            zone=zone,
            address=instance.address,
            started_at=_started_at(engine, machine),
        )

    async def _verified(self, token: str, audiences: Sequence[str]) -> Mapping[str, Any]:
        """The claims of a token that Google signed for this hello."""
        if not 0 < len(token) <= _TOKEN_BYTES or not _is_canonical(token):
            raise IdentityRefused("not a token", reason="signature")
        try:
            header = google.auth.jwt.decode_header(token)
        except (google.auth.exceptions.GoogleAuthError, ValueError, RecursionError):  # JSON of ten thousand "["
            raise IdentityRefused("not a token", reason="signature") from None
        key_id = header.get("kid")
        if header.get("alg") != "RS256" or not isinstance(key_id, str) or not key_id:
            raise IdentityRefused("the token is not signed as Google's are", reason="signature")
        keys = await self._anchors.keys(key_id)
        if key_id not in keys:
            raise IdentityRefused("the token is signed with a key that is not trusted", reason="signature")
        try:
            claims: Mapping[str, Any] = google.auth.jwt.decode(
                token, certs={key_id: keys[key_id]}, audience=list(audiences), clock_skew_in_seconds=_ANY_SKEW_S
            )
        except (google.auth.exceptions.GoogleAuthError, ValueError, TypeError):
            raise IdentityRefused("the signature or the audience does not fit", reason="signature") from None
        if claims.get("iss") not in _ISSUERS:
            raise IdentityRefused("the token is of another issuer", reason="signature")
        return claims

    def _audiences(self, claim: str) -> list[str]:
        """Machines that were launched before a reload know the daemon by its former URL."""
        url = self._public_url()
        if url not in self._urls:
            self._urls = [*self._urls, url][-_URLS:]
        return [f"{one}#{claim}" for one in self._urls]

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now = self._clock.now().timestamp()
        issued, expires = claims.get("iat"), claims.get("exp")
        if not isinstance(issued, int) or not isinstance(expires, int):
            raise IdentityRefused("the token does not say when it was made", reason="signature")
        skew_s = _SKEW.total_seconds()
        if not now - _OLDEST.total_seconds() - skew_s <= issued <= now + skew_s or expires < now - skew_s:
            raise IdentityRefused("the token is too old, or of the future", reason="window")

    async def _machine(self, provider_id: str, numeric_id: str) -> Machine:
        place = place_of(provider_id)
        if place is not None and not self._machines.is_going(place.provider_id):
            machine = self._machines.known(place.provider_id)
            if machine is None or machine.numeric_id != numeric_id:
                try:
                    machine = await self._machines.read(place)
                except ProviderError as error:
                    raise IdentityRefused(f"the machine cannot be looked up: {error}", reason="unknown") from error
            if machine is not None and machine.numeric_id == numeric_id and not machine.is_off:
                return machine
        raise IdentityRefused("no machine of ours", reason="unknown")


def _started_at(engine: Mapping[str, Any], machine: Machine) -> datetime | None:
    """Google signs when a machine was created: nothing about a later start of it."""
    created = engine.get("instance_creation_timestamp")
    if not isinstance(created, int) or machine.last_start - machine.instance.launched_at > timedelta(minutes=5):
        return None
    return datetime.fromtimestamp(created, UTC)


def _is_canonical(token: str) -> bool:
    """Three parts that encode to what they are: the last character of a part carries bits that nobody reads."""
    parts = token.split(".")
    for part in parts:
        if re.fullmatch(r"[A-Za-z0-9_-]+", part) is None:
            return False
        try:
            decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        except ValueError:
            return False
        if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() != part:
            return False
    return len(parts) == 3


def _read_keys(source: str) -> _Fetched:
    """In a thread. Raises OSError, ValueError, HTTPException."""
    fresh_for: timedelta | None = None
    if source.lstrip().startswith("{"):
        text = source
    elif source.startswith(("https://", "http://")):
        with urllib.request.urlopen(source, timeout=_FETCH_S) as answer:  # noqa: S310 - the scheme was checked
            text = answer.read(_KEYS_BYTES).decode()
            found = re.search(r"max-age=(\d+)", answer.headers.get("Cache-Control", ""))
            fresh_for = timedelta(seconds=int(found[1])) if found else _FRESH
    else:
        text = Path(source).expanduser().read_bytes()[:_KEYS_BYTES].decode()
    keys = json.loads(text)
    if not isinstance(keys, dict) or not keys or not all(isinstance(one, str) for one in keys.values()):
        raise ValueError("not a JSON document {key id: PEM}")
    return _Fetched(keys=keys, fresh_for=fresh_for)
