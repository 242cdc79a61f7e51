"""Loads queries.sql: the text of each named query for one engine. Knows no table and runs nothing."""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

from autoscaler.store.migrations import Engine

_NAME = re.compile(r"^-- name: (?P<name>[a-z_]+)(?: \[(?P<engine>sqlite|postgres)\])?$")


@cache
def queries(engine: Engine) -> Mapping[str, str]:
    """Query texts by name, as this engine binds them (SQLite: ?1 for $1)."""
    common: dict[str, str] = {}
    marked: dict[str, str] = {}
    for name, query_engine, text in _sections(resources.files(__package__).joinpath("queries.sql").read_text("utf-8")):
        if query_engine is None:
            common[name] = text
        elif query_engine == engine:
            marked[name] = text
    chosen = common | marked
    if engine == "sqlite":
        return {name: re.sub(r"\$(\d+)", r"?\1", text) for name, text in chosen.items()}
    return chosen


def _sections(source: str) -> list[tuple[str, str | None, str]]:
    """(name, engine or None, SQL without comments) of each query. Raises ValueError for one without a description."""
    found: list[tuple[str, str | None, str]] = []
    for block in re.split(r"^(?=-- name: )", source, flags=re.MULTILINE)[1:]:
        head, *lines = block.rstrip().splitlines()
        match = _NAME.match(head)
        if match is None or not lines or not lines[0].startswith("-- "):
            raise ValueError(f"queries.sql: {head!r} needs a name and a description")
        text = "\n".join(line for line in lines if not line.startswith("--")).strip()
        if any((match["name"], match["engine"]) == (name, engine) for name, engine, _ in found):
            raise ValueError(f"queries.sql: {head!r} is there twice")
        found.append((match["name"], match["engine"], text))
    return found
