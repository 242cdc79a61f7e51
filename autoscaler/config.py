"""Configuration: one TOML file in, one frozen `Config` out, or every problem with it at once.

The core imports its configuration from here and only from here. The order of work:

    text -> tomllib -> secrets put in place (config_secrets) -> each section by itself (config_schema,
    config_pool_schema) -> across sections (config_checks) -> Config (config_types)

Only `load` reads files and the environment.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from autoscaler.config_checks import Reporters, Sections, check_sections
from autoscaler.config_fields import Section
from autoscaler.config_pool_schema import PoolSection
from autoscaler.config_problems import dates_in, near_miss, raw_names, report_errors, report_unknown_key
from autoscaler.config_schema import AutoscalerSection, ForgeSection, ImageSection, ProviderSection
from autoscaler.config_secrets import SecretReader
from autoscaler.config_types import (
    Address,
    AutoscalerConfig,
    Caps,
    Config,
    ConfigError,
    ImageConfig,
    ImageHooks,
    PoolConfig,
    Problem,
    RequeueConfig,
    SpillConfig,
    SpotConfig,
    StockConfig,
    StockWindow,
    TlsConfig,
    WaitConfig,
)
from autoscaler.plugins import FORGE_GROUP, PROVIDER_GROUP, installed_kinds
from autoscaler.spi import ForgeName, ProviderName

__all__ = [
    "Address",
    "AutoscalerConfig",
    "Caps",
    "Config",
    "ConfigError",
    "ImageConfig",
    "ImageHooks",
    "PoolConfig",
    "Problem",
    "RequeueConfig",
    "SpillConfig",
    "SpotConfig",
    "StockConfig",
    "StockWindow",
    "TlsConfig",
    "WaitConfig",
    "load",
]

_REPEATED = {"forge": ForgeSection, "provider": ProviderSection, "image": ImageSection, "pool": PoolSection}
_TABLES = ["autoscaler", *_REPEATED]
_SLIP = 0.85
"""How alike a key must be to a common one to be a slip of it: "scope" is, "webhook_url" is a key of its own."""
_S = TypeVar("_S", bound=Section)


def load(path: Path, *, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration in a file. Raises ConfigError with every problem found, never only the first one.

    `environ` is where `{ env = "X" }` looks; the process environment unless given.
    """
    faults: list[Problem] = []
    document = _read(path)
    reader = _Reader(path, document=document, environ=os.environ if environ is None else environ, faults=faults)
    config = reader.config()
    if config is None or faults:
        raise ConfigError(tuple(faults))
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message, remedy = f"the file cannot be read: {error.strerror}", "Give the path of a readable TOML file"
    except UnicodeDecodeError:
        message, remedy = "the file is not UTF-8", "Save it as UTF-8"
    except tomllib.TOMLDecodeError as error:
        message, remedy = f"this is not TOML: {error}", "Correct the syntax at that place"
    raise ConfigError((Problem(file=path, key="(file)", message=message, remedy=remedy),))


class _Reader:
    """One pass over one document; `faults` fills up on the way."""

    def __init__(
        self, path: Path, *, document: dict[str, Any], environ: Mapping[str, str], faults: list[Problem]
    ) -> None:
        self._path = path
        self._faults = faults
        self._warnings: list[Problem] = []
        secrets = SecretReader(environ=environ, folder=path.parent, fault=self._fault, warning=self._warn)
        self._document: dict[str, Any] = secrets.resolve(document)

    def _fault(self, key: str, message: str, remedy: str) -> None:
        self._faults.append(Problem(file=self._path, key=key, message=message, remedy=remedy))

    def _warn(self, key: str, message: str, remedy: str) -> None:
        self._warnings.append(Problem(file=self._path, key=key, message=message, remedy=remedy))

    def config(self) -> Config | None:
        for key in self._document.keys() - set(_TABLES):
            report_unknown_key(key, _TABLES, key, self._fault)
        autoscaler = self._section(AutoscalerSection, self._document.get("autoscaler"), "autoscaler")
        forges = self._sections(ForgeSection, "forge")
        providers = self._sections(ProviderSection, "provider")
        images = self._sections(ImageSection, "image")
        pools = self._sections(PoolSection, "pool")
        sections = Sections(
            autoscaler=autoscaler.build() if autoscaler else None,
            forges={index: one.build() for index, one in forges.items()},
            providers={index: one.build() for index, one in providers.items()},
            images={index: one.build() for index, one in images.items()},
            pools={index: one.build() for index, one in pools.items()},
            names={kind: raw_names(self._document, kind) for kind in _REPEATED},
            kinds={"forge": installed_kinds(FORGE_GROUP), "provider": installed_kinds(PROVIDER_GROUP)},
        )
        check_sections(sections, Reporters(fault=self._fault, warning=self._warn))
        if sections.autoscaler is None:
            return None
        return Config(
            autoscaler=sections.autoscaler,
            forges=tuple(sections.forges.values()),
            providers=tuple(sections.providers.values()),
            images=tuple(sections.images.values()),
            pools=tuple(sections.pools.values()),
            source=self._path,
            provider_caps={ProviderName(one.name): one.caps.build() for one in providers.values()},
            telling_forges=frozenset(ForgeName(one.name) for one in forges.values() if one.tell),
            warnings=tuple(self._warnings),
        )

    def _sections(self, model: type[_S], kind: str) -> dict[int, _S]:
        """The valid sections of one kind by their place in the file."""
        found = self._document.get(kind)
        if not found or not isinstance(found, list):
            message = "there is none" if not found else f"this is not a list of [[{kind}]] sections"
            self._fault(kind, message, f"Write at least one section that starts with [[{kind}]]")
            return {}
        read = {index: self._section(model, one, f"{kind}[{index}]") for index, one in enumerate(found)}
        return {index: one for index, one in read.items() if one is not None}

    def _section(self, model: type[_S], raw: object, key: str) -> _S | None:
        if not isinstance(raw, dict):
            message = "there is none" if raw is None else "this is not a table"
            self._fault(key, message, f"Write a section that starts with [{key}]")
            return None
        if model.model_config["extra"] == "allow":
            # Adapters judge the keys that only they know; a slip of a common key should not get that far.
            common = list(model.model_fields)
            for extra in raw.keys() - set(common):
                if near_miss(extra, common, likeness=_SLIP):
                    report_unknown_key(extra, common, f"{key}.{extra}", self._fault)
                for path in dates_in(raw[extra], f"{key}.{extra}"):
                    self._fault(path, "this is a date", "No key takes one: write a text, a number, a list or a table")
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            report_errors(model, error, key, self._fault)
            return None
