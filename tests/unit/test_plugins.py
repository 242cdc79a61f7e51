"""Adapters are found through entry points, made once each, and their mistakes are told at the right key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoscaler import config
from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.config import Config, ConfigError
from autoscaler.plugins import FORGE_GROUP, PROVIDER_GROUP, installed_kinds, make_forges, make_providers
from autoscaler.spi import ForgeName, ProviderName, Surroundings
from tests.config_files import ENVIRON, minimal_document, replaced, write


@pytest.fixture
def surroundings() -> Surroundings:
    return Surroundings(deployment="t", runner_prefix="t-", clock=SystemClock(), gates=Calls())


def loaded(folder: Path, *steps: str | int, to: Any) -> Config:
    document = replaced(minimal_document(), ("provider", 0, "state_dir"), str(folder / "machines"))
    return config.load(write(replaced(document, steps, to), folder), environ=ENVIRON)


def broken_keys(make: Any, read: Config, surroundings: Surroundings) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        make(read, surroundings)
    assert all(one.file == read.source and one.remedy for one in caught.value.problems)
    return {one.key: one.message for one in caught.value.problems}


def test_built_in_kinds_are_installed_as_entry_points() -> None:
    assert {"github", "gitlab"} <= installed_kinds(FORGE_GROUP)
    assert "local" in installed_kinds(PROVIDER_GROUP)


def test_each_section_becomes_one_adapter_under_its_name(tmp_path: Path, surroundings: Surroundings) -> None:
    read = loaded(tmp_path, "forge", 0, "name", to="hub")

    forges, providers = make_forges(read, surroundings), make_providers(read, surroundings)

    assert [(name, forge.name) for name, forge in forges.items()] == [(ForgeName("hub"), "hub")]
    assert [(name, one.name) for name, one in providers.items()] == [(ProviderName("here"), "here")]


def test_settings_that_the_adapter_refuses_are_told_at_their_key(tmp_path: Path, surroundings: Surroundings) -> None:
    read = loaded(tmp_path, "provider", 0, "slots", to="many")

    assert "must be a number" in broken_keys(make_providers, read, surroundings)["provider[0].slots"]


@pytest.mark.parametrize("kind", ["github", "gitlab"])
def test_key_that_no_adapter_looks_at_is_an_error(kind: str, tmp_path: Path, surroundings: Surroundings) -> None:
    read = loaded(tmp_path, "forge", 0, "colour", to="blue")

    found = broken_keys(make_forges, loaded_kind(read, kind), surroundings)

    assert list(found) == ["forge[0].colour"]


def loaded_kind(read: Config, kind: str) -> Config:
    return replace(read, forges=(replace(read.forges[0], kind=kind),))


def test_value_that_breaks_an_adapter_is_told_and_not_shown(tmp_path: Path, surroundings: Surroundings) -> None:
    read = loaded(tmp_path, "provider", 0, "capacity_pools", to=5)

    found = broken_keys(make_providers, read, surroundings)

    assert [key for key in found if key.startswith("provider[0].")] == list(found)


def test_kind_that_vanished_is_told_with_what_is_installed(tmp_path: Path, surroundings: Surroundings) -> None:
    read = loaded_kind(loaded(tmp_path, "forge", 0, "name", to="hub"), "gone")

    with pytest.raises(ConfigError, match="github") as caught:
        make_forges(read, surroundings)

    assert caught.value.problems[0].key == "forge[0].kind"
