"""Which machine a hello comes from: AWS's signed instance identity document, checked offline.

    1. base64 in 4 KiB, one PKCS #7 message as `aws_pkcs7` wants it          -> "signature"
    2. the document inside it, and of that a region with trust anchors         -> "signature", "region"
    3. the signature, with a pinned certificate of that region that is in date -> "signature"
    4. our account                                                             -> "account"
    5. not started in the future                                               -> "window"
    6. the caller's address, where configured                                  -> "address"

The document is taken from inside the message, never from beside it: else every owner of a machine could be any other.
It proves neither freshness nor who sends it, so that the core compares the rest with its row and takes it once.
"""

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from autoscaler.spi import Clock, Evidence, Finding, Identity, IdentityRefused, ProviderId, SettingsError, Verdict
from providers.aws_pkcs7 import NotSigned, parse_signed

_log = structlog.get_logger(__name__)

_TEXT_CAP = 4 * 1024
"""AWS's have less than half of that: no stranger needs to have more read."""
_AHEAD = timedelta(seconds=60)
_SOON = timedelta(days=60)
_KEY_BITS = 2048
_VERSION = "2017-09-30"
_INSTANCE_ID = re.compile(r"i-[0-9a-f]{8,17}")
_PENDING_TIME = "%Y-%m-%dT%H:%M:%SZ"

Anchors = Mapping[str, Sequence[x509.Certificate]]
"""Trust anchors by region: AWS's RSA-2048 certificates for identity documents, each self-signed."""


def parse_anchors(pem_by_region: Mapping[str, bytes]) -> Anchors:
    """One or more PEM certificates for each region. Raises SettingsError."""
    anchors: dict[str, tuple[x509.Certificate, ...]] = {}
    for region, pem in pem_by_region.items():
        key = f"trust_anchors.{region}"
        try:
            anchors[region] = tuple(x509.load_pem_x509_certificates(pem))
        except ValueError:
            raise SettingsError("holds no PEM certificates", key=key) from None
        for certificate in anchors[region]:
            public_key = certificate.public_key()
            if not isinstance(public_key, rsa.RSAPublicKey) or public_key.key_size < _KEY_BITS:
                raise SettingsError("must be AWS's RSA-2048 certificate; others are too weak", key=key)
    return anchors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    account: str
    region: str
    zone: str
    instance_id: str
    machine_type: str
    address: str
    started_at: datetime
    version: str


class AwsIdentity:
    """`regions` are the configured ones. Pure but for the clock: 0.3 ms for each hello, no network."""

    def __init__(
        self, *, account: str, regions: Sequence[str], anchors: Anchors, trusts_peer_address: bool, clock: Clock
    ) -> None:
        self._account = account
        self._regions = tuple(regions)
        self._anchors = anchors
        self._trusts_peer_address = trusts_peer_address
        self._clock = clock
        self._versions_seen: set[str] = set()

    def identify(self, evidence: Evidence) -> Identity:
        """See `Provider.identify`."""
        document = self._verified(evidence.document.get("rsa2048", ""))
        if document.account != self._account:
            raise IdentityRefused("the machine is in another account", reason="account")
        if document.started_at > self._clock.now() + _AHEAD:
            raise IdentityRefused("the machine started in the future: is our clock right?", reason="window")
        if self._trusts_peer_address and not _is_same_address(evidence.peer_address, document.address):
            raise IdentityRefused("the caller has another address than the machine", reason="address")
        return Identity(
            provider_id=ProviderId(document.instance_id),
            machine_type=document.machine_type,
            zone=document.zone,
            address=document.address,
            started_at=document.started_at,
        )

    def problems(self) -> list[Finding]:
        """What is wrong with the trust anchors now, for the check and the status."""
        return [finding for region in self._regions for finding in self._problems(region)]

    def _problems(self, region: str) -> list[Finding]:
        key = f"trust_anchors.{region}"
        remedy = f"Take the RSA-2048 certificate of {region} from the EC2 user guide, page regions-certs"
        now = self._clock.now()
        ends = [one.not_valid_after_utc for one in self._anchors.get(region, ()) if one.not_valid_before_utc <= now]
        if not self._anchors.get(region):
            message = "no trust anchor: no machine of this region can prove itself"
            return [Finding(verdict=Verdict.REFUSED, key=key, message=message, remedy=remedy)]
        if not any(end >= now for end in ends):
            message = "no certificate is valid today: no machine of this region can prove itself"
            return [Finding(verdict=Verdict.REFUSED, key=key, message=message, remedy=remedy)]
        if max(ends) < now + _SOON:
            message = f"the last certificate ends on {max(ends):%Y-%m-%d}"
            return [Finding(verdict=Verdict.WARNING, key=key, message=message, remedy=remedy)]
        return []

    def _verified(self, text: str) -> _Document:
        """The document that AWS signed. Raises IdentityRefused."""
        try:
            signed = parse_signed(_decode(text))
            document = _parse(signed.content)
            if document.region not in self._regions or not self._anchors.get(document.region):
                # Which certificates to use is told by what is not proved yet; the signature must then fit them.
                raise IdentityRefused("the machine is in a region that is not configured", reason="region")
            certificate = signed.check_signature(self._anchors[document.region])
        except NotSigned as error:
            raise IdentityRefused(f"the identity document: {error}", reason="signature") from None
        if not certificate.not_valid_before_utc <= self._clock.now() <= certificate.not_valid_after_utc:
            raise IdentityRefused("the certificate of the region is not valid today", reason="signature")
        if document.version != _VERSION and document.version not in self._versions_seen:
            self._versions_seen.add(document.version)
            _log.warning("identity_document_version_unknown", version=document.version)
        return document


def _decode(text: str) -> bytes:
    """Strict base64 in lines, as the metadata service gives it. Raises NotSigned."""
    if not 0 < len(text) <= _TEXT_CAP:
        raise NotSigned("empty" if not text else f"longer than {_TEXT_CAP} characters")
    try:
        return base64.b64decode(text.replace("\n", "").replace("\r", "").encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise NotSigned("not base64") from None


def _parse(content: bytes) -> _Document:
    """Raises NotSigned."""
    try:
        said = json.loads(content)
        fields = ("accountId", "region", "availabilityZone", "instanceId", "instanceType", "privateIp", "pendingTime")
        account, region, zone, instance_id, machine_type, address, pending_time = (said[name] for name in fields)
        texts = (account, region, zone, instance_id, machine_type, address, pending_time)
        if not all(isinstance(text, str) for text in texts) or not _INSTANCE_ID.fullmatch(instance_id):
            raise NotSigned("not an instance identity document")
        started_at = datetime.strptime(pending_time, _PENDING_TIME).replace(tzinfo=UTC)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotSigned("not an instance identity document") from None
    return _Document(
        account=account,
        region=region,
        zone=zone,
        instance_id=instance_id,
        machine_type=machine_type,
        address=address,
        started_at=started_at,
        version=str(said.get("version", "")),
    )


def _is_same_address(one: str, other: str) -> bool:
    """However they are written; an IPv4 address inside of an IPv6 one is that IPv4 address."""
    try:
        addresses = {_unmapped(ipaddress.ip_address(text)) for text in (one, other)}
    except ValueError:
        return False
    return len(addresses) == 1


def _unmapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped
