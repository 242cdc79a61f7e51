"""The numbered migrations of each engine: `<engine>_<number>_<what>.sql`, applied in order, one transaction each.

A migration that shipped is never edited: a change is the next number. Statements end with a semicolon at the end of a
line and hold no other semicolon.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

Engine = Literal["sqlite", "postgres"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step of the schema: `version` is the schema's version once `statements` ran."""

    version: int
    name: str
    statements: tuple[str, ...]


@cache
def migrations(engine: Engine) -> tuple[Migration, ...]:
    """All migrations of an engine, oldest first, numbered from 1 without gaps."""
    files = sorted(
        (entry for entry in resources.files(__name__).iterdir() if entry.name.startswith(f"{engine}_")),
        key=lambda entry: entry.name,
    )
    found = []
    for version, entry in enumerate(files, start=1):
        name = entry.name.removesuffix(".sql")
        if int(name.split("_")[1]) != version:
            raise ValueError(f"migration {name}: expected number {version}")
        found.append(Migration(version=version, name=name, statements=_statements(entry.read_text("utf-8"))))
    return tuple(found)


def _statements(script: str) -> tuple[str, ...]:
    code = "\n".join(line for line in script.splitlines() if not line.lstrip().startswith("--"))
    return tuple(part.strip() for part in code.split(";\n") if part.strip().rstrip(";"))
