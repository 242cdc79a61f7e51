"""AWS's PKCS #7 signatures, verified: a SignedData with its content inside and without certificates (RFC 5652).

Pure. Real messages are BER with indefinite lengths and a content in pieces, which no certificate library of ours
reads; so asn1crypto parses, and `cryptography` checks the one signature. A key is never taken from the message.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asn1crypto import cms
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

_SIZE_CAP = 3 * 1024
"""The parser takes time by the square of the longest object identifier: 2 ms at this size, 55 ms at five times it."""
_ATTRIBUTES = 8
"""AWS's messages have three or four, and each that is read costs as much as all else."""
_SET_OF = b"\x31"
_IMPLICIT_0 = 0xA0
_INDEFINITE = 0x80


class NotSigned(Exception):
    """Not a message of the one form that we accept, or not signed with a key that we trust."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedContent:
    """A well-formed message whose digest fits its content. Nothing is proved before `check_signature`."""

    content: bytes
    serial: int
    signed: bytes
    signature: bytes

    def check_signature(self, certificates: Sequence[x509.Certificate]) -> x509.Certificate:
        """The certificate of ours whose key signed it. Raises NotSigned."""
        for certificate in certificates:
            key = certificate.public_key()
            if certificate.serial_number != self.serial or not isinstance(key, rsa.RSAPublicKey):
                continue
            try:
                key.verify(self.signature, self.signed, padding.PKCS1v15(), hashes.SHA256())
            except InvalidSignature:
                continue
            return certificate
        raise NotSigned("no trusted certificate fits the signature")


def parse_signed(message: bytes) -> SignedContent:
    """The parts of a message with exactly one signer, SHA-256 and RSA. Raises NotSigned, whatever the bytes."""
    if len(message) > _SIZE_CAP:
        raise NotSigned(f"longer than {_SIZE_CAP} bytes")
    try:
        return _parse(message)
    except NotSigned:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        # asn1crypto reads lazily and says "not such a structure" in all of these ways.
        raise NotSigned(f"not a PKCS #7 message: {type(error).__name__}") from None


def _parse(message: bytes) -> SignedContent:
    outer = cms.ContentInfo.load(message, strict=True)
    _require(outer["content_type"].native == "signed_data", "not a SignedData")
    signed_data = outer["content"]
    inner = signed_data["encap_content_info"]
    _require(inner["content_type"].native == "data", "its content is not data")
    content = inner["content"].native
    _require(isinstance(content, bytes) and bool(content), "its content is not inside")
    signers = signed_data["signer_infos"]
    _require(len(signers) == 1, f"{len(signers)} signers")
    signer = signers[0]
    _require(signer["digest_algorithm"]["algorithm"].native == "sha256", "the digest is not SHA-256")
    algorithm = signer["signature_algorithm"]["algorithm"].native
    _require(algorithm in ("rsassa_pkcs1v15", "sha256_rsa"), "the signature is not RSA with SHA-256")
    _require(signer["sid"].name == "issuer_and_serial_number", "the signer is not named by issuer and serial")
    attributes = signer["signed_attrs"]
    _require(len(attributes) <= _ATTRIBUTES, f"{len(attributes)} signed attributes")
    _require(_only_value(attributes, "content_type") == "data", "the signed content type is not data")
    _require(_only_value(attributes, "message_digest") == hashlib.sha256(content).digest(), "the digest does not fit")
    return SignedContent(
        content=content,
        serial=signer["sid"].chosen["serial_number"].native,
        signed=_as_set(attributes.dump()),
        signature=signer["signature"].native,
    )


def _only_value(attributes: Any, kind: str) -> Any:
    """The one value of the one attribute of this kind."""
    found = [attribute for attribute in attributes if attribute["type"].native == kind]
    _require(len(found) == 1 and len(found[0]["values"]) == 1, f"not exactly one signed attribute {kind}")
    return found[0]["values"][0].native


def _as_set(attributes: bytes) -> bytes:
    """What was signed: the attributes as a SET OF, although the message holds them as [0] (RFC 5652, 5.4)."""
    _require(attributes[0] == _IMPLICIT_0 and attributes[1] != _INDEFINITE, "the signed attributes are not in DER")
    return _SET_OF + attributes[1:]


def _require(is_met: bool, what: str) -> None:
    if not is_met:
        raise NotSigned(what)
