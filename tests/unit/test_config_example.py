"""The example configuration is complete, works, and each of its keys, made wrong, is named in an error with a remedy.

The keys are walked, not listed: a new key cannot be forgotten here.
"""

import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from autoscaler import config
from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.config_pool_schema import PoolSection
from autoscaler.config_schema import AutoscalerSection, ForgeSection, ImageSection, ProviderSection
from autoscaler.config_types import Problem
from autoscaler.plugins import make_forges, make_providers
from autoscaler.spi import Surroundings
from tests.config_files import (
    ENVIRON,
    EXAMPLE,
    Steps,
    example_document,
    key_path,
    places,
    removed,
    replaced,
    write,
    write_anchors,
    write_app_key,
)

pytestmark = pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits long")
SECTIONS: dict[str, type[BaseModel]] = {
    "autoscaler": AutoscalerSection,
    "forge": ForgeSection,
    "provider": ProviderSection,
    "image": ImageSection,
    "pool": PoolSection,
}
KEYS = list(places(example_document()))
WRONG_EVERYWHERE = date(2026, 1, 31)
ANY_TEXT = re.compile(r"runner_group|hooks|state_dir|webhook_url|capacity_pools|app_id")
"""Keys where any text is right as far as anybody can tell."""
FREE_TEXT = re.compile(r"references|prepull|certificate|private_key|regions|labels|types|exclude|scopes")
"""Keys where any text is right but a blank one."""
ANCHORS = "/etc/ci-runner-autoscaler/aws-us-east-1.pem"
NAMED_BY_THE_OPERATOR = frozenset({"references", "credentials", "prices", "interruption_frequencies"})
"""Tables whose keys are names: another name is as right as the first."""


def value_at(document: Any, steps: Steps) -> Any:
    for step in steps:
        document = document[step]
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("example")
    write_app_key(made)
    write_anchors(made)
    return made


def problems_of(document: dict[str, Any], folder: Path) -> tuple[Problem, ...]:
    """What loading and making the adapters complain about."""
    document = _with_anchors(document, folder)
    if _names_state_dir(document):
        document = replaced(document, ("provider", 0, "state_dir"), str(folder / "machines"))
    path = write(document, folder)
    try:
        loaded = config.load(path, environ=ENVIRON)
    except config.ConfigError as error:
        return error.problems
    surroundings = Surroundings(deployment="example", runner_prefix="example-", clock=SystemClock(), gates=Calls())
    found: list[Problem] = []
    for make in (make_forges, make_providers):
        try:
            make(loaded, surroundings)
        except config.ConfigError as error:
            found += error.problems
    return tuple(found)


def _with_anchors(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """With AWS's certificates where the tests have them, unless the path is what the test spoils."""
    for steps in [one for one in places(document) if value_at(document, one) == ANCHORS]:
        document = replaced(document, steps, str(folder / "aws-us-east-1.pem"))
    return document


def _names_state_dir(document: dict[str, Any]) -> bool:
    match document.get("provider"):
        case [{"state_dir": str()}, *_]:
            return True
        case _:
            return False


def test_example_has_no_problems(folder: Path) -> None:
    assert problems_of(example_document(), folder) == ()


def test_example_as_shipped_has_no_problems_and_no_warnings(folder: Path) -> None:
    path = folder / "shipped.toml"
    path.write_text(EXAMPLE.read_text())

    assert config.load(path, environ=ENVIRON).warnings == ()


@pytest.mark.parametrize("steps", KEYS, ids=key_path)
def test_wrong_type_is_named_with_its_remedy(steps: Steps, folder: Path) -> None:
    problems = problems_of(replaced(example_document(), steps, WRONG_EVERYWHERE), folder)

    assert_names(problems, key_path(steps), folder)


def senseless(value: Any, path: str) -> Any:
    """A value of the right type that means nothing there; None where every value of the type means something."""
    match value:
        case bool() | dict():
            return None
        case str():
            return None if ANY_TEXT.search(path) else " " if FREE_TEXT.search(path) else "?!"
        case int() | float():
            return None if path.endswith("priority") else -1
        case _:
            return [WRONG_EVERYWHERE]


SENSELESS = [(one, wrong) for one in KEYS if (wrong := senseless(value_at(example_document(), one), key_path(one)))]


@pytest.mark.parametrize(("steps", "wrong"), SENSELESS, ids=[key_path(steps) for steps, _ in SENSELESS])
def test_senseless_value_of_the_right_type_is_named_with_its_remedy(steps: Steps, wrong: Any, folder: Path) -> None:
    problems = problems_of(replaced(example_document(), steps, wrong), folder)

    assert_names(problems, key_path(steps), folder)


@pytest.mark.parametrize("steps", [one for one in KEYS if isinstance(one[-1], str)], ids=key_path)
def test_slip_in_a_key_is_named_as_unknown(steps: Steps, folder: Path) -> None:
    document = example_document()
    slipped = (*steps[:-1], f"{steps[-1]}x")
    document = replaced(document, slipped, value_at(document, steps))
    document = removed(document, steps)

    problems = problems_of(document, folder)

    if not NAMED_BY_THE_OPERATOR & set(steps[:-1]) or steps[-2] == "references":
        assert_names(problems, key_path(slipped), folder)
    else:
        assert problems or NAMED_BY_THE_OPERATOR - {"credentials"} & set(steps)


def assert_names(problems: tuple[Problem, ...], path: str, folder: Path) -> None:
    """One of the problems is about this key or one inside it, and says how to put it right."""
    about = [one for one in problems if one.key == path or one.key.startswith((f"{path}.", f"{path}["))]
    about += [one for one in problems if path.startswith((f"{one.key}.", f"{one.key}[")) and one.key.count(".") > 0]
    assert about, f"{path} was not named: {[str(one) for one in problems]}"
    for problem in about:
        assert problem.file == folder / "config.toml"
        assert len(problem.message) > 5
        assert len(problem.remedy) > 10
        assert str(problem.file) in str(problem)
        assert problem.remedy in str(problem)


def schema_keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = f"{prefix}.{name}"
        yield path
        for inner in models_in(field.annotation):
            yield from schema_keys(inner, path)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def test_every_key_of_the_schema_is_in_the_example() -> None:
    shown = {re.sub(r"\[\d+\]", "", key_path(steps)) for steps in KEYS}

    missing = {path for kind, model in SECTIONS.items() for path in schema_keys(model, kind)} - shown

    assert not missing


def test_every_key_of_the_schema_says_what_is_allowed() -> None:
    silent = [
        f"{model.__name__}.{name}"
        for model in SECTIONS.values()
        for name, field in model.model_fields.items()
        if not field.description
    ]

    assert not silent


def test_every_key_of_the_example_is_explained_above_it() -> None:
    """A key or table has a comment of its own, or stands in a block of keys that has one."""
    blocks = re.split(r"\n\s*\n", EXAMPLE.read_text())

    assert [block for block in blocks if "=" in block and "#" not in block and "[[" not in block] == []
