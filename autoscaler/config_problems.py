"""From pydantic's errors to problems an operator can act on: key path, what is wrong, what is allowed instead.

Never shows a value by itself: where a message quotes one, its parser in `config_values` chose to.
"""

import difflib
from collections.abc import Iterator, Mapping
from datetime import date, time
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from autoscaler.config_secrets import Report

_WORDS = {
    "missing": "the key is missing",
    "bool_type": "this is not true or false",
    "int_type": "this is not a whole number",
    "int_from_float": "this is not a whole number",
    "float_type": "this is not a number",
    "finite_number": "this is not a finite number",
    "string_type": "this is not a text",
    "dict_type": "this is not a table",
    "mapping_type": "this is not a table",
    "model_type": "this is not a table",
    "model_attributes_type": "this is not a table",
    "tuple_type": "this is not a list",
    "too_short": "the list is too short",
    "literal_error": "this is not one of the allowed words",
}
_PLACEHOLDER_KEYS = {"[key]"}


def report_errors(model: type[BaseModel], error: ValidationError, section: str, fault: Report) -> None:
    """Report each error of one section, whose place in the file is `section` ("pool[2]")."""
    for detail in error.errors(include_url=False, include_input=False):
        location = tuple(part for part in detail["loc"] if part not in _PLACEHOLDER_KEYS)
        if detail["type"] == "extra_forbidden":
            report_unknown_key(str(location[-1]), known_keys(model, location[:-1]), join(section, location), fault)
        else:
            fault(join(section, location), _message(detail), remedy_for(model, location))


def report_unknown_key(key: str, known: list[str], path: str, fault: Report) -> None:
    near = near_miss(key, known)
    guess = f'Did you mean "{near}"? ' if near else "Remove it. "
    fault(path, f'the key "{key}" is not known here', f"{guess}Known keys: {', '.join(known)}")


def near_miss(word: str, known: list[str], *, likeness: float = 0.7) -> str:
    """The known word that `word` is most likely a slip of; empty when none is near."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=likeness)
    return found[0] if found else ""


def join(section: str, location: tuple[int | str, ...]) -> str:
    path = section
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _message(detail: ErrorDetails) -> str:
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    return _WORDS.get(detail["type"], detail["msg"][:1].lower() + detail["msg"][1:])


def remedy_for(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """What is allowed at a key: the description of the deepest field on the way to it."""
    remedy = ""
    for _, text in _walk(model, location):
        remedy = text or remedy
    return remedy


def known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the table at `location` inside a section."""
    tables = [model, *(inner for inner, _ in _walk(model, location) if inner is not None)]
    return list(tables[-1].model_fields)


def _walk(model: type[BaseModel], location: tuple[int | str, ...]) -> Iterator[tuple[type[BaseModel] | None, str]]:
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or current is None or part not in current.model_fields:
            continue
        field = current.model_fields[part]
        current = next(_models_in(field.annotation), None)
        yield current, field.description or ""


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def dates_in(value: Any, path: str) -> Iterator[str]:
    """The key paths of TOML dates and times inside a raw value."""
    if isinstance(value, (date, time)):
        yield path
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from dates_in(one, f"{path}.{key}")
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from dates_in(one, f"{path}[{index}]")


def raw_names(document: Mapping[str, Any], kind: str) -> set[str]:
    """The names that sections of one kind carry in the raw file, valid otherwise or not."""
    sections = document.get(kind)
    found = [one.get("name") for one in sections if isinstance(one, dict)] if isinstance(sections, list) else []
    return {name for name in found if isinstance(name, str)}
