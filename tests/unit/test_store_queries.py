"""The query file is complete: described, without doubles, and every query an engine's store names exists for it."""

import re
from importlib import resources

import pytest

from autoscaler.store.migrations import Engine, migrations
from autoscaler.store.queries import _sections, queries


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_every_query_is_used_and_every_used_query_exists(engine: Engine) -> None:
    source = resources.files("autoscaler.store").joinpath(f"{engine}.py").read_text("utf-8")
    known = queries(engine)
    quoted = set(re.findall(r'"([a-z_]+)"', source))
    assert set(known) - quoted <= {
        "recent_jobs_of_pool",
        "recent_jobs_in_state",
        "recent_jobs_of_pool_in_state",
        "lease_epoch",
    }
    assert set(re.findall(r'sql\["([a-z_]+)"\]', source)) <= set(known)


def test_bulk_texts_are_for_postgres_alone_and_parameters_bind_in_each_engines_way() -> None:
    assert "unnest" not in "".join(queries("sqlite").values())
    assert "$" not in "".join(queries("sqlite").values())
    assert "?" not in "".join(queries("postgres").values())


@pytest.mark.parametrize(
    "source",
    [
        "-- name: Bad Name\n-- What.\nSELECT 1",
        "-- name: bare\nSELECT 1",
        "-- name: one\n-- What.\nSELECT 1\n-- name: one\n-- Again.\nSELECT 2",
    ],
)
def test_a_query_without_a_name_or_description_or_with_a_double_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"queries\.sql"):
        _sections(source)


def test_both_engines_have_the_same_tables_columns_and_indexes() -> None:
    def names(engine: Engine) -> list[str]:
        script = "\n".join(statement for step in migrations(engine) for statement in step.statements)
        return re.findall(r"^(?:CREATE TABLE|CREATE INDEX| {4})\s*\(?([a-z_]+)", script, flags=re.MULTILINE)

    assert names("sqlite") == names("postgres")
    assert len(names("sqlite")) > 50
