"""AWS signature version 4 as the server checks it: who signed, for which region and service, and is it true.

The steps: canonical request -> string to sign -> key by date, region and service -> HMAC-SHA256. Source: AWS's
published description of version 4.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from autoscaler.sandbox.aws_query import AwsError
from autoscaler.spi import Secret

_ALGORITHM = "AWS4-HMAC-SHA256"
MAX_SKEW_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What an Authorization header says. `signed_headers` are their lower-case names in order."""

    access_key: str
    day: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    digest: str

    @property
    def scope(self) -> str:
        return f"{self.day}/{self.region}/{self.service}/aws4_request"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """The parts of an HTTP request that a signature covers; header names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


def parse_authorization(header: str) -> Signature:
    """Raises AwsError(MissingAuthenticationToken or IncompleteSignature)."""
    if not header:
        raise AwsError("MissingAuthenticationToken", "Request is missing Authentication Token", status=403)
    algorithm, _, rest = header.partition(" ")
    fields = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    scope = fields.get("Credential", "").split("/")
    if algorithm != _ALGORITHM or len(scope) != 5 or not fields.get("Signature"):
        raise AwsError("IncompleteSignature", "Authorization header is not a version 4 signature", status=403)
    return Signature(
        access_key=scope[0],
        day=scope[1],
        region=scope[2],
        service=scope[3],
        signed_headers=tuple(fields.get("SignedHeaders", "").split(";")),
        digest=fields["Signature"],
    )


def is_true(signature: Signature, request: SignedRequest, *, secret: Secret) -> bool:
    """Whether the holder of the secret signed exactly this request."""
    canonical = hashlib.sha256(_canonical(signature, request).encode()).hexdigest()
    text = "\n".join((_ALGORITHM, request.headers.get("x-amz-date", ""), signature.scope, canonical))
    key = f"AWS4{secret.reveal()}".encode()
    for part in (signature.day, signature.region, signature.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), signature.digest)


def skew_s(request: SignedRequest, now: float) -> float:
    """Seconds by which the signer's clock is ahead of ours (behind: negative). Raises AwsError: no date."""
    try:
        signed = datetime.strptime(request.headers.get("x-amz-date", ""), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise AwsError("IncompleteSignature", "X-Amz-Date is missing or malformed", status=403) from error
    return signed.timestamp() - now


def _canonical(signature: Signature, request: SignedRequest) -> str:
    headers = "".join(
        f"{name}:{' '.join(request.headers.get(name, '').split())}\n" for name in signature.signed_headers
    )
    return "\n".join(
        (
            request.method,
            quote(request.path, safe="/-_.~"),
            "&".join(sorted(part for part in request.query.split("&") if part)),
            headers,
            ";".join(signature.signed_headers),
            hashlib.sha256(request.body).hexdigest(),
        )
    )
