"""What a new configuration changes in a running daemon: which keys wait for a restart, certificates, known secrets."""

import ssl
from collections.abc import Sequence
from dataclasses import fields
from typing import TypeGuard

from autoscaler.config import Config
from autoscaler.config_types import AutoscalerConfig, TlsConfig
from autoscaler.spi import ForgeSettings, ProviderSettings, Secret

_TAKEN_OVER = frozenset({"public_url", "admin_tokens", "caps", "tls"})
"""Keys of [autoscaler] in force with the reload; `tls` unless it comes or goes."""


class Certificate:
    """The public listener's TLS. A reload reads the files again: connections made from then on use them."""

    def __init__(self, files: TlsConfig | None) -> None:
        self.context: ssl.SSLContext | None = None
        self.pem = ""
        if files is not None:
            self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.reload(files)

    def reload(self, files: TlsConfig | None) -> None:
        """Raises OSError (ssl.SSLError is one) and keeps the old certificate when the new one is no good."""
        if files is None or self.context is None:
            return
        pem = files.certificate.read_text()
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(files.certificate, files.private_key)
        self.context.load_cert_chain(files.certificate, files.private_key)
        self.pem = pem


def keys_that_need_a_restart(started: Config, now: Config) -> list[str]:
    """The keys whose new values are not in force, by their paths; forges and providers by their names."""
    keys = [f"autoscaler.{key}" for key in _changed_keys(started.autoscaler, now.autoscaler)]
    keys += [f"forge.{name}" for name in _changed_sections(started.forges, now.forges)]
    keys += [f"provider.{name}" for name in _changed_sections(started.providers, now.providers)]
    return keys


def _changed_keys(started: AutoscalerConfig, now: AutoscalerConfig) -> list[str]:
    changed = [one.name for one in fields(now) if getattr(started, one.name) != getattr(now, one.name)]
    tls_comes_or_goes = (started.tls is None) != (now.tls is None)
    return [key for key in changed if key not in _TAKEN_OVER or (key == "tls" and tls_comes_or_goes)]


def _changed_sections(
    started: Sequence[ForgeSettings] | Sequence[ProviderSettings],
    now: Sequence[ForgeSettings] | Sequence[ProviderSettings],
) -> list[str]:
    before = {str(one.name): one for one in started}
    after = {str(one.name): one for one in now}
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def config_secrets(config: Config) -> list[Secret]:
    """Every secret of a configuration, so that logs can be scrubbed of them."""
    found = list(config.autoscaler.admin_tokens)
    for forge in config.forges:
        found.extend(forge.webhook_secrets)
        found.extend(value for value in (*forge.credentials.values(), *forge.options.values()) if _is_secret(value))
    for provider in config.providers:
        found.extend(value for value in provider.options.values() if _is_secret(value))
    return found


def _is_secret(value: object) -> TypeGuard[Secret]:
    return isinstance(value, Secret)
