"""The `[[forge]]` section of kind "github", checked once and typed. Every wrong key is a SettingsError."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from autoscaler.spi import ForgeSettings, Scope, Secret, SettingsError

_DOTCOM = "github.com"
_DOTCOM_API = "https://api.github.com"

_APP_KEYS = frozenset({"app_id", "private_key", "installation_id"})
_OPTIONS = frozenset({"runner_group", "hook_id", "webhook_url"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCredentials:
    token: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class AppCredentials:
    """`installation_id` is None where each owner's installation is looked up."""

    app_id: str
    private_key: Secret
    installation_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`runner_group` is used where a pool names none; `hook_id`, `webhook_url` say which hook is ours."""

    runner_group: str = ""
    hook_id: int | None = None
    webhook_url: str = ""


def api_url_of(settings: ForgeSettings) -> str:
    """The REST base without a trailing slash: given, or derived (GHES: HOST/api/v3; data residency: api.HOST)."""
    if settings.api_url:
        return _checked_url(settings.api_url, key="api_url")
    url = _checked_url(settings.url or f"https://{_DOTCOM}", key="url")
    host = urlsplit(url).netloc.lower()
    if host in (_DOTCOM, f"www.{_DOTCOM}"):
        return _DOTCOM_API
    if host.endswith(".ghe.com"):
        return f"https://api.{host}"
    return f"{url}/api/v3"


def credentials_of(settings: ForgeSettings) -> TokenCredentials | AppCredentials:
    given = settings.credentials
    if "token" in given:
        _refuse_unknown(given, frozenset({"token"}))
        return TokenCredentials(token=Secret(_text(given, "token")))
    if not given:
        raise SettingsError("give either token, or app_id and private_key", key="credentials")
    _refuse_unknown(given, _APP_KEYS)
    for key in ("app_id", "private_key"):
        if key not in given:
            raise SettingsError(
                f"missing; a GitHub App needs app_id and private_key, not only {sorted(given)}",
                key=f"credentials.{key}",
            )
    private_key = _text(given, "private_key")
    if "PRIVATE KEY-----" not in private_key:
        raise SettingsError(
            "not a private key in PEM form (-----BEGIN ... PRIVATE KEY-----)", key="credentials.private_key"
        )
    return AppCredentials(
        app_id=_text(given, "app_id"),
        private_key=Secret(private_key),
        installation_id=_whole(_text(given, "installation_id"), key="credentials.installation_id")
        if "installation_id" in given
        else None,
    )


def options_of(settings: ForgeSettings) -> Options:
    unknown = sorted(set(settings.options) - _OPTIONS)
    if unknown:
        raise SettingsError(f"unknown key; allowed: {', '.join(sorted(_OPTIONS))}", key=unknown[0])
    hook_id = settings.options.get("hook_id")
    texts = {key: settings.options.get(key, "") for key in ("runner_group", "webhook_url")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise SettingsError(f"a text, not {type(value).__name__}", key=key)
    return Options(hook_id=None if hook_id is None else _whole(str(hook_id), key="hook_id"), **texts)


def scopes_of(settings: ForgeSettings) -> Mapping[str, Scope]:
    """The configured scopes by their lower-case form: GitHub's names do not tell case apart."""
    if not settings.scopes:
        raise SettingsError('at least one scope: "org" or "owner/repo"', key="scopes")
    scopes: dict[str, Scope] = {}
    for index, scope in enumerate(settings.scopes):
        parts = scope.split("/")
        if len(parts) > 2 or not all(part and not (set(part) & set(" ?#%\\*")) for part in parts):
            raise SettingsError(f'{scope!r} is neither "org" nor "owner/repo"', key=f"scopes[{index}]")
        scopes[scope.lower()] = scope
    return scopes


def _refuse_unknown(given: Mapping[str, Secret | str], allowed: frozenset[str]) -> None:
    unknown = sorted(set(given) - allowed)
    if unknown:
        raise SettingsError(
            f"unknown beside {', '.join(sorted(allowed & set(given)))}; give either token, or app_id, private_key and, "
            "if there is only one installation, installation_id",
            key=f"credentials.{unknown[0]}",
        )


def _text(given: Mapping[str, Secret | str], key: str) -> str:
    value = given[key]
    text = (value.reveal() if isinstance(value, Secret) else str(value)).strip()
    if not text:
        raise SettingsError("is empty", key=f"credentials.{key}")
    return text


def _whole(text: str, *, key: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise SettingsError("must be a whole number", key=key)
    return int(text)


def _checked_url(text: str, *, key: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment or parts.username:
        raise SettingsError("must be an http(s) URL without credentials, query and fragment", key=key)
    return text.rstrip("/")
