"""Who calls the sandbox's GitHub API: App JWTs, installation tokens that expire, personal tokens.

Tokens are kept and compared as SHA-256 digests, so no comparison leaks a token and no repr shows one.
"""

import base64
import hashlib
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from autoscaler.sandbox.github_model import GitHubError

TOKEN_LIFE_S = 3600
JWT_LIFE_S = 600
CLOCK_SKEW_S = 60
NO_JWT = "A JSON web token could not be decoded"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppIdentity:
    """The GitHub App as the forge knows it: everything but its private key."""

    app_id: int
    client_id: str
    slug: str
    public_key_pem: str = field(repr=False)

    @classmethod
    def generate(cls, app_id: int = 1_234_567, slug: str = "ci-runner-autoscaler") -> "tuple[AppIdentity, str]":
        """A new App and its private key as PEM, as the App's owner would download it."""
        key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        client_id = "Iv23li" + base64.b32encode(app_id.to_bytes(8, "big")).decode().rstrip("=")
        return cls(app_id=app_id, client_id=client_id, slug=slug, public_key_pem=public.decode()), private.decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """One authenticated caller. `login` bounds an installation to its account; `budget` names its rate limit."""

    kind: Literal["app", "installation", "token"]
    budget: str
    login: str | None = None


class Authenticator:
    """Turns an Authorization header into a `Caller`; mints and revokes installation tokens."""

    def __init__(self, app: AppIdentity | None, tokens: Iterable[str], clock: Callable[[], float]) -> None:
        self._app = app
        self._clock = clock
        self._callers: dict[bytes, tuple[Caller, float | None]] = {}
        for number, token in enumerate(tokens, 1):
            self._callers[_digest(token)] = (Caller(kind="token", budget=f"user ID {number}"), None)

    def mint(self, login: str, installation_id: int) -> tuple[str, float]:
        """A token of the long format of 2026 (`ghs_APPID_JWT`) and the time it expires."""
        app_id = 0 if self._app is None else self._app.app_id
        parts = (secrets.token_urlsafe(60), secrets.token_urlsafe(150), secrets.token_urlsafe(160))
        token = f"ghs_{app_id}_" + ".".join(parts)
        expires_at = self._clock() + TOKEN_LIFE_S
        caller = Caller(kind="installation", budget=f"installation ID {installation_id}", login=login)
        self._callers[_digest(token)] = (caller, expires_at)
        return token, expires_at

    def revoke_all(self) -> None:
        """Ends every token at once, as when an owner suspends the App: callers get 401."""
        self._callers.clear()

    def identify(self, header: str | None) -> Caller:
        """The caller. Raises `GitHubError` 401, with the text GitHub uses."""
        scheme, _, credential = (header or "").partition(" ")
        credential = credential.strip()
        if not credential or scheme.lower() not in ("bearer", "token"):
            raise GitHubError(401, "Requires authentication")
        known = self._callers.get(_digest(credential))
        if known is not None:
            caller, expires_at = known
            if expires_at is not None and expires_at <= self._clock():
                raise GitHubError(401, "Bad credentials")
            return caller
        if scheme.lower() == "bearer" and credential.startswith("eyJ"):
            return self._app_caller(credential)
        raise GitHubError(401, "Bad credentials")

    def _app_caller(self, credential: str) -> Caller:
        if self._app is None:
            raise GitHubError(401, NO_JWT)
        try:
            claims = jwt.decode(
                credential,
                self._app.public_key_pem,
                algorithms=["RS256"],
                options={
                    "require": ["exp", "iat", "iss"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                    "verify_iss": False,
                },
            )
            issued, expires = float(claims["iat"]), float(claims["exp"])
        except (jwt.InvalidTokenError, TypeError, ValueError) as error:
            raise GitHubError(401, NO_JWT) from error
        now = self._clock()
        if str(claims["iss"]) not in (str(self._app.app_id), self._app.client_id):
            raise GitHubError(401, "'Issuer' claim ('iss') must be an Integer or the client id")
        if expires <= now:
            raise GitHubError(401, "'Expiration time' claim ('exp') must be a numeric value in the future")
        if expires > now + JWT_LIFE_S + CLOCK_SKEW_S:
            raise GitHubError(401, "'Expiration time' claim ('exp') is too far in the future")
        if issued > now + CLOCK_SKEW_S:
            raise GitHubError(401, "'Issued at' claim ('iat') must be an Integer representing the time it was issued")
        return Caller(kind="app", budget=f"app ID {self._app.app_id}")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
