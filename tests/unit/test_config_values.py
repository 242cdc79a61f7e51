"""How single values of the configuration are written."""

import contextlib
from datetime import time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler import config_values as values
from autoscaler.config_types import Address
from autoscaler.spi import Bounds


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("1.5h", 5400), ("250ms", 0.25)]
)
def test_durations(text: str, seconds: float) -> None:
    assert values.parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "m", "5 minutes", "-5s", "5s!", "1h 30m", "9" * 30 + "d", 60, True])
def test_wrong_durations(text: object) -> None:
    with pytest.raises(ValueError, match=r"duration|not a text"):
        values.parse_duration(text)


@given(st.integers(0, 10**6), st.sampled_from(["s", "m", "h", "d"]))
def test_any_whole_duration_is_read(number: int, unit: str) -> None:
    scale = {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]

    assert values.parse_duration(f"{number}{unit}") == timedelta(seconds=number * scale)


@given(st.text(max_size=20))
def test_no_text_breaks_a_parser(text: str) -> None:
    parsers = [
        values.parse_duration,
        values.parse_counts,
        values.parse_sizes,
        values.parse_size,
        values.parse_address,
        values.parse_url,
        values.parse_store,
        values.parse_glob,
        values.parse_network,
        values.parse_days,
        values.parse_hours,
        values.parse_name,
    ]
    for parse in parsers:
        with contextlib.suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("value", "low", "high"), [("4..16", 4, 16), ("4..", 4, None), ("..16", None, 16), ("4", 4, 4), (4, 4, 4)]
)
def test_counts(value: object, low: float | None, high: float | None) -> None:
    assert values.parse_counts(value) == Bounds(low=low, high=high)


@pytest.mark.parametrize("value", ["16..4", "..", "", "a..b", "-1..4", "4..0", "4...8", True])
def test_wrong_counts(value: object) -> None:
    with pytest.raises(ValueError, match=r"\w+"):
        values.parse_counts(value)


def test_sizes() -> None:
    assert values.parse_sizes("512MiB..1TiB") == Bounds(low=0.5, high=1024)
    assert values.parse_size("100GiB") == 100
    with pytest.raises(ValueError, match="not a size"):
        values.parse_size("100GB")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address(host="127.0.0.1", port=80)),
        ("[::1]:0", Address(host="::1", port=0)),
        ("localhost:8080", Address(host="localhost", port=8080)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert values.parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "8080", "host", "host:", "host:http", "host:70000", "::1:80", "a b:80", ":80"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w+"):
        values.parse_address(text)


@pytest.mark.parametrize(
    ("text", "days"),
    [("mon-fri", {0, 1, 2, 3, 4}), ("sat,sun", {5, 6}), ("daily", set(range(7))), ("sat-mon", {5, 6, 0}), ("wed", {2})],
)
def test_days(text: str, days: set[int]) -> None:
    assert values.parse_days(text) == days


def test_hours() -> None:
    assert values.parse_hours("22:00-06:30") == (time(22), time(6, 30))
    assert values.parse_hours("00:00-24:00") == (time(0), time(0))
    with pytest.raises(ValueError, match="span of hours"):
        values.parse_hours("7-19")


@pytest.mark.parametrize(
    "url",
    ["sqlite:///a.db", "sqlite:////var/lib/a.db", "postgresql://u@h:5432/d", "postgresql:///d?host=/run/postgresql"],
)
def test_stores(url: str) -> None:
    assert values.parse_store(url) == url


@pytest.mark.parametrize("url", ["sqlite:///", "sqlite://a.db", "a.db", "memory://", "postgresql://u:p@h/d"])
def test_wrong_stores(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w+"):
        values.parse_store(url)


@pytest.mark.parametrize("name", ["a", "a-b", "a1-b2-c3", "x" * 40])
def test_names(name: str) -> None:
    assert values.parse_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a--b", "x" * 41, "a\n", "é"])
def test_wrong_names(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        values.parse_name(name)


def test_loopback_addresses_are_told_from_others() -> None:
    assert values.is_loopback("127.0.0.1")
    assert values.is_loopback("::1")
    assert values.is_loopback("localhost")
    assert not values.is_loopback("0.0.0.0")
    assert not values.is_loopback("ci.example.com")
