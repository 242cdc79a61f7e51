"""Values survive being stored, whatever they hold; rows of other versions of the program stay readable."""

import json
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.model import Instance, InstanceMove, Job, LedgerEntry
from autoscaler.spi import Webhook
from autoscaler.store import Sample, StoreError
from autoscaler.store.rows import body, instant, key, micros, read
from tests.contract.store_builders import T0, a_job, a_webhook

INSTANTS = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9000, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def values_of(kind: type) -> st.SearchStrategy[Any]:
    """Any value of a stored dataclass, instants in UTC throughout."""
    hints = get_type_hints(kind)
    return st.builds(kind, **{item.name: _values(hints[item.name]) for item in fields(kind)})


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if hint is datetime:
        return INSTANTS
    if hint == datetime | None:
        return st.none() | INSTANTS
    if hint is float:
        return st.floats(allow_nan=False)
    if hint == float | None:
        return st.none() | st.floats(allow_nan=False)
    parts: tuple[Any, ...] = getattr(hint, "__args__", ())
    if getattr(hint, "__origin__", None) is tuple and hasattr(parts[0], "__dataclass_fields__"):
        return st.lists(values_of(parts[0]), max_size=2).map(tuple)
    if len(parts) == 2 and parts[1] is type(None) and hasattr(parts[0], "__dataclass_fields__"):
        return st.none() | values_of(parts[0])
    return st.from_type(hint)


STORED: dict[type, st.SearchStrategy[Any]] = {
    kind: values_of(kind) for kind in (Job, Instance, InstanceMove, LedgerEntry, Webhook, Sample)
}


@pytest.mark.parametrize("kind", STORED)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_every_value_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    value = data.draw(STORED[kind])
    stored = body(value)
    assert stored.isascii()
    assert read(kind, stored) == value


@settings(deadline=None)
@given(at=INSTANTS)
def test_instants_are_exact_to_the_microsecond(at: datetime) -> None:
    assert instant(micros(at)) == at
    assert micros(at + timedelta(microseconds=1)) == micros(at) + 1


def test_keys_a_later_program_wrote_are_ignored() -> None:
    stored = json.loads(body(a_webhook("d")))
    stored["later"] = {"nested": [1]}
    stored["jobs"][0]["later"] = 7
    assert read(Webhook, json.dumps(stored)) == a_webhook("d")


def test_keys_an_earlier_program_did_not_write_take_their_default() -> None:
    stored = json.loads(body(a_job(1)))
    del stored["attempt"], stored["successor"]
    job = read(Job, json.dumps(stored))
    assert (job.attempt, job.successor) == (1, None)


@pytest.mark.parametrize(
    "stored", ["", "{", "[]", "null", "{}", '{"at": "monday"}', '{"at": 1, "instance": "i", "to_state": "melted"}']
)
def test_a_row_that_cannot_be_read_says_which_kind_it_is(stored: str) -> None:
    with pytest.raises(StoreError, match="InstanceMove"):
        read(InstanceMove, stored)


@settings(deadline=None, max_examples=50)
@given(value=st.text(max_size=500), other=st.text(max_size=500))
def test_keys_are_short_storable_and_equal_for_equals(value: str, other: str) -> None:
    assert len(key(value)) <= 200
    assert "\0" not in key(value)
    key(value).encode()
    assert key(value) == key(str(value))
    if len(value) > 200 and value != other:
        assert key(value) != key(other)


def test_a_naive_instant_is_refused() -> None:
    with pytest.raises(TypeError):
        micros(T0.replace(tzinfo=None))
