"""Finds and makes the adapters that the configuration names, through entry points, built-in ones included.

Only the kinds in use are imported: an SDK that nobody configured costs nothing. A factory is called as
`create(settings, surroundings)`, opens no connection, and raises SettingsError for a key that is wrong.
It reads every option that it knows: one that it does not look at is reported as unknown.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from autoscaler.config_types import Config, ConfigError, Problem
from autoscaler.spi import (
    Forge,
    ForgeName,
    ForgeSettings,
    Provider,
    ProviderName,
    ProviderSettings,
    SettingsError,
    Surroundings,
)

FORGE_GROUP = "autoscaler.forges"
PROVIDER_GROUP = "autoscaler.providers"


@functools.cache
def _points(group: str) -> Mapping[str, EntryPoint]:
    """By kind; the first one counts. Looking for them reads the metadata of every distribution that is installed."""
    return {point.name: point for point in reversed(tuple(entry_points(group=group)))}


def installed_kinds(group: str) -> frozenset[str]:
    """The kinds that installed distributions offer, without importing any of them."""
    return frozenset(_points(group))


def make_forges(config: Config, surroundings: Surroundings) -> Mapping[ForgeName, Forge]:
    """Every configured forge. Raises ConfigError with the problems of all of them."""
    made: dict[ForgeName, Forge] = {}
    problems: list[Problem] = []
    for index, settings in enumerate(config.forges):
        place = _Place(config, section=f"forge[{index}]", group=FORGE_GROUP, problems=problems)
        forge: Forge | None = place.make(settings, surroundings, contract=Forge)
        if forge is not None:
            made[settings.name] = forge
    if problems:
        raise ConfigError(tuple(problems))
    return made


def make_providers(config: Config, surroundings: Surroundings) -> Mapping[ProviderName, Provider]:
    """Every configured provider. Raises ConfigError with the problems of all of them."""
    made: dict[ProviderName, Provider] = {}
    problems: list[Problem] = []
    for index, settings in enumerate(config.providers):
        place = _Place(config, section=f"provider[{index}]", group=PROVIDER_GROUP, problems=problems)
        provider: Provider | None = place.make(settings, surroundings, contract=Provider)
        if provider is not None:
            made[settings.name] = provider
    if problems:
        raise ConfigError(tuple(problems))
    return made


class _Place:
    """One section of the file whose adapter is being made."""

    def __init__(self, config: Config, *, section: str, group: str, problems: list[Problem]) -> None:
        self._config = config
        self._section = section
        self._group = group
        self._problems = problems

    def make(self, settings: ForgeSettings | ProviderSettings, surroundings: Surroundings, *, contract: Any) -> Any:
        """The adapter, or `None` after its problem was noted. `contract` is the Protocol it must fulfil."""
        factory = self._factory(settings.kind)
        if factory is None:
            return None
        options = _WatchedOptions(settings.options)
        try:
            adapter = factory(replace(settings, options=options), surroundings)
        except SettingsError as error:
            self._problem(error.key, str(error), f'Correct this key; config.example.toml shows "{settings.kind}"')
            return None
        except (TypeError, AttributeError, LookupError) as error:
            # An adapter that did not expect a value of this type. Its text may hold the value, which may be a secret.
            remedy = f'Compare its keys with config.example.toml, which shows "{settings.kind}"'
            self._problem(
                "kind", f'the adapter "{settings.kind}" failed on this section: {type(error).__name__}', remedy
            )
            return None
        for key in options.unread():
            self._problem(key, f'the kind "{settings.kind}" does not know this key', "Remove it, or correct its name")
        missing = ", ".join(name for name in _members(contract) if not hasattr(adapter, name))
        if missing:
            remedy = f"Install a version of it that fits this autoscaler's {contract.__name__} contract"
            self._problem("kind", f'the adapter "{settings.kind}" lacks {missing}', remedy)
            return None
        return adapter

    def _factory(self, kind: str) -> Callable[..., Any] | None:
        point = _points(self._group).get(kind)
        if point is None:
            known = ", ".join(sorted(installed_kinds(self._group)))
            self._problem("kind", f'no adapter of kind "{kind}" is installed', f"Installed: {known}")
            return None
        try:
            loaded: Callable[..., Any] = point.load()
        except (ImportError, AttributeError) as error:
            remedy = f"Install what it needs, as in: pip install 'ci-runner-autoscaler[{kind}]'"
            self._problem("kind", f'the adapter "{kind}" cannot be imported: {error}', remedy)
            return None
        return loaded

    def _problem(self, key: str, message: str, remedy: str) -> None:
        path = f"{self._section}.{key}"
        self._problems.append(Problem(file=self._config.source, key=path, message=message, remedy=remedy))


class _WatchedOptions(Mapping[str, Any]):
    """Options that know which of them were read, so that a key no adapter looks at is an error, not a silent slip."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return self._options[key]

    def __iter__(self) -> Iterator[str]:
        self._read.update(self._options)
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def unread(self) -> list[str]:
        return sorted(self._options.keys() - self._read)


def _members(contract: type) -> Iterator[str]:
    return (name for name in vars(contract) if not name.startswith("_"))
