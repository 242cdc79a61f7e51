"""Owns the reading of one GitLab `[[forge]]` section: addresses, tokens, signing keys, scopes.

Every wrong value is a SettingsError that names its key. Nothing here is sent anywhere.
"""

import base64
import binascii
from dataclasses import dataclass
from urllib.parse import urlsplit

from autoscaler.spi import ForgeSettings, Scope, Secret, SettingsError

_API_SUFFIX = "/api/v4"
_DEFAULT_URL = "https://gitlab.com"
_SIGNING_PREFIX = "whsec_"
# Prefixes of GitLab tokens that look right and can never work as an API token.
_WRONG_TOKENS = {
    "glrt-": "a runner authentication token",
    "glptt-": "a pipeline trigger token",
    "gldt-": "a deploy token",
    "glcbt-": "a CI job token",
    "GR1348941": "a runner registration token",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where GitLab is and how we prove who we are. `runner_token` is None where one token does everything.

    `url` is what machines are told; `base_url` is what we call (they differ behind some proxies).
    """

    url: str
    base_url: str
    token: Secret
    runner_token: Secret | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookKeys:
    """Signing keys (decoded) and plain tokens; several of each during a rotation."""

    signing: tuple[bytes, ...]
    plain: tuple[Secret, ...]

    def __repr__(self) -> str:
        return f"WebhookKeys(signing={len(self.signing)}, plain={len(self.plain)})"


def read_access(settings: ForgeSettings) -> Access:
    """The addresses and tokens of a section. Raises SettingsError."""
    url = _address(settings.url or _DEFAULT_URL, key="url")
    base_url = _address(settings.api_url or url, key="api_url")
    known = {"token", "runner_token"}
    for key in settings.credentials:
        if key not in known:
            raise SettingsError(
                "unknown key; GitLab takes token and, optionally, runner_token", key=f"credentials.{key}"
            )
    token = _token(settings, "token")
    if token is None:
        raise SettingsError(
            "missing: a personal, group or project access token with the api scope", key="credentials.token"
        )
    return Access(url=url, base_url=base_url, token=token, runner_token=_token(settings, "runner_token"))


def read_webhook_keys(settings: ForgeSettings) -> WebhookKeys:
    """Secrets that start with whsec_ are signing tokens, all others are plain tokens. Raises SettingsError."""
    signing, plain = [], []
    for secret in settings.webhook_secrets:
        value = secret.reveal()
        if not value:
            raise SettingsError("is empty", key="webhook_secret")
        if value.startswith(_SIGNING_PREFIX):
            signing.append(_signing_key(value))
        else:
            plain.append(secret)
    return WebhookKeys(signing=tuple(signing), plain=tuple(plain))


def read_scopes(settings: ForgeSettings) -> tuple[Scope, ...]:
    """The configured scopes. Raises SettingsError for an empty list and for what cannot be a path."""
    if not settings.scopes:
        raise SettingsError("is empty; name groups (group/subgroup) or projects (group/project)", key="scopes")
    for scope in settings.scopes:
        if "://" in scope or any(not part or part != part.strip() for part in scope.split("/")):
            raise SettingsError(
                f"{scope!r} is not a path; write it as in the address bar, without the host: group/project",
                key="scopes",
            )
    return settings.scopes


def _address(value: str, *, key: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"{value!r} is not a URL such as https://gitlab.example.com", key=key)
    if parts.query or parts.fragment or parts.username or parts.password:
        raise SettingsError("must hold neither user, password, query nor fragment", key=key)
    return value.rstrip("/").removesuffix(_API_SUFFIX)


def _token(settings: ForgeSettings, name: str) -> Secret | None:
    value = settings.credentials.get(name)
    if value is None:
        return None
    secret = value if isinstance(value, Secret) else Secret(value)
    text = secret.reveal()
    key = f"credentials.{name}"
    if not text or text != text.strip() or not text.isascii() or not text.isprintable():
        raise SettingsError("is empty or holds blanks or other characters that no token has", key=key)
    for prefix, kind in _WRONG_TOKENS.items():
        if text.startswith(prefix):
            raise SettingsError(f"is {kind}; needed is a personal, group or project access token", key=key)
    return secret


def _signing_key(value: str) -> bytes:
    try:
        key = base64.b64decode(value.removeprefix(_SIGNING_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise SettingsError(
            "starts with whsec_ and is then not base64: copy the whole signing token", key="webhook_secret"
        )
    return key
