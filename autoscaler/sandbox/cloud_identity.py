"""How the sandbox's clouds sign the identity of their machines: for real, with throw-away keys of their own.

AWS: the document inside an attached PKCS #7 message without certificates, RSA-2048 and SHA-256, one key per region; in
BER with indefinite lengths and the content in pieces, as EC2's own messages are.
Google: an RS256 JSON web token, keys by id. Both give the trust anchors that a daemon's configuration names.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

_BITS = 2048
_EXPONENT = 65537
_LIFE = timedelta(days=3650)
_PIECE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A key and its self-signed certificate."""

    key: rsa.RSAPrivateKey = field(repr=False)
    certificate: x509.Certificate

    @classmethod
    def generate(cls, name: str) -> "Signer":
        key = rsa.generate_private_key(public_exponent=_EXPONENT, key_size=_BITS)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + _LIFE)
        return cls(key=key, certificate=builder.sign(key, hashes.SHA256()))

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


class AwsNotary:
    """Signs identity documents. `write_anchors` gives the files for `trust_anchors`."""

    def __init__(self, regions: tuple[str, ...]) -> None:
        self._signers = {region: Signer.generate(f"sandbox ec2 {region}") for region in regions}

    def sign(self, region: str, document: str) -> str:
        """The `rsa2048` form of a document: base64 without armour."""
        signer = self._signers[region]
        options = [pkcs7.PKCS7Options.Binary, pkcs7.PKCS7Options.NoCerts, pkcs7.PKCS7Options.NoCapabilities]
        message = (
            pkcs7.PKCS7SignatureBuilder()
            .set_data(document.encode())
            .add_signer(signer.certificate, signer.key, hashes.SHA256())
            .sign(serialization.Encoding.DER, options)
        )
        text = base64.b64encode(_with_indefinite_lengths(message)).decode()
        return "\n".join(text[at : at + 76] for at in range(0, len(text), 76))

    def write_anchors(self, folder: Path) -> dict[str, Path]:
        """One PEM file for each region."""
        paths = {}
        for region, signer in self._signers.items():
            paths[region] = folder / f"aws-{region}.pem"
            paths[region].write_bytes(signer.pem)
        return paths


class GoogleNotary:
    """Signs identity tokens. `write_anchors` gives the JSON file {key id: PEM} for `trust_anchors`."""

    def __init__(self) -> None:
        self.key_id = "sandbox-1"
        self._signer = Signer.generate("sandbox accounts.google.com")

    def sign(self, claims: Mapping[str, Any]) -> str:
        header = {"alg": "RS256", "kid": self.key_id, "typ": "JWT"}
        signed = ".".join(_url64(json.dumps(part, separators=(",", ":")).encode()) for part in (header, dict(claims)))
        signature = self._signer.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_url64(signature)}"

    def write_anchors(self, folder: Path) -> Path:
        path = folder / "google-certs.json"
        path.write_text(json.dumps({self.key_id: self._signer.pem.decode()}))
        return path


def _with_indefinite_lengths(message: bytes) -> bytes:
    """A DER ContentInfo around SignedData in BER (X.690 8.1.3.6): everything outside of the signer's part is of
    indefinite length, the content an octet string of pieces. What is signed stays as it was, byte for byte."""
    kind, outer = _elements(_content(message))
    (signed_data,) = _elements(_content(outer))
    version, digests, inner, *signers = _elements(_content(signed_data))
    inner_kind, wrapped = _elements(_content(inner))
    (octets,) = _elements(_content(wrapped))
    content = _content(octets)
    pieces = [content[at : at + _PIECE] for at in range(0, len(content), _PIECE)]
    string = _open(0x24, b"".join(_definite(0x04, piece) for piece in pieces))
    encapsulated = _open(0x30, inner_kind + _open(0xA0, string))
    return _open(0x30, kind + _open(0xA0, _open(0x30, version + digests + encapsulated + b"".join(signers))))


def _elements(content: bytes) -> list[bytes]:
    """The DER elements that follow each other in a content."""
    found = []
    while content:
        size = _header(content) + _length(content)
        found.append(content[:size])
        content = content[size:]
    return found


def _content(element: bytes) -> bytes:
    return element[_header(element) :]


def _header(element: bytes) -> int:
    return 2 + (element[1] & 0x7F if element[1] & 0x80 else 0)


def _length(element: bytes) -> int:
    return int.from_bytes(element[2 : _header(element)], "big") if element[1] & 0x80 else element[1]


def _definite(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, *([size] if size < 0x80 else [0x80 | len(length), *length])]) + content


def _open(tag: int, content: bytes) -> bytes:
    return bytes([tag, 0x80]) + content + b"\0\0"


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
