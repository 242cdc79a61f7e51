"""How single values of the configuration are written: durations, ranges, sizes, addresses, globs, times of the week.

Pure functions from text to value; each raises ValueError with what is wrong. What is allowed instead stands at the
key in `config_schema`.
"""

import ipaddress
import re
from datetime import time, timedelta
from urllib.parse import urlsplit

from autoscaler.config_types import Address
from autoscaler.spi import Bounds, Secret

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(MiB|GiB|TiB)")
_GIB = {"MiB": 1 / 1024, "GiB": 1, "TiB": 1024}
_GLOB = re.compile(r"!?[\w.*?\[\]-]+(?:/[\w.*?\[\]-]+)+")
_NAME = re.compile(r"(?=.{1,40}\Z)[a-z0-9]+(?:-[a-z0-9]+)*")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOURS = re.compile(r"(\d{2}):(\d{2})-(\d{2}):(\d{2})")


def text_of(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"this is {_toml_word(value)}, not a text")
    return value


def _toml_word(value: object) -> str:
    """What a TOML author would call a value; never the value itself, which may be a secret."""
    words: dict[type, str] = {bool: "a boolean", int: "a whole number", float: "a number", list: "a list"}
    words |= {dict: "a table", Secret: "a secret"}
    return words.get(type(value), "a date")


def parse_duration(value: object) -> timedelta:
    """ "90s", "5m", "1h30m", "2d" as a timedelta."""
    if isinstance(value, timedelta):
        return value
    text = text_of(value).strip()
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f'"{text}" is not a duration')
    try:
        return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in parts))
    except OverflowError:
        raise ValueError(f'"{text}" is too long a duration') from None


def parse_positive_duration(value: object) -> timedelta:
    duration = parse_duration(value)
    if duration <= timedelta(0):
        raise ValueError("the duration must be above zero")
    return duration


def parse_counts(value: object) -> Bounds:
    """ "4..16", "4..", "..16", or 4 for exactly that many."""
    if isinstance(value, Bounds):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _bounds(float(value), float(value))
    low, high = _ends(text_of(value))
    return _bounds(_number(low), _number(high))


def parse_sizes(value: object) -> Bounds:
    """ "16GiB..64GiB", "16GiB..", or "16GiB" for exactly that, in GiB."""
    if isinstance(value, Bounds):
        return value
    low, high = _ends(text_of(value))
    return _bounds(parse_size(low) if low else None, parse_size(high) if high else None)


def parse_size(value: object) -> float:
    """ "512MiB", "100GiB", "1TiB" in GiB."""
    if isinstance(value, float):
        return value
    text = text_of(value).strip()
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f'"{text}" is not a size')
    return float(found[1]) * _GIB[found[2]]


def _ends(text: str) -> tuple[str, str]:
    low, dots, high = (part.strip() for part in text.partition(".."))
    if not low and not high:
        raise ValueError(f'"{text}" is not a range')
    return (low, high) if dots else (low, low)


def _number(text: str) -> float | None:
    if not text:
        return None
    if not re.fullmatch(r"\d+(?:\.\d+)?", text):
        raise ValueError(f'"{text}" is not a number')
    return float(text)


def _bounds(low: float | None, high: float | None) -> Bounds:
    if low is not None and high is not None and low > high:
        raise ValueError("the lower end is above the upper one")
    if high is not None and high <= 0:
        raise ValueError("the upper end must be above zero")
    return Bounds(low=low, high=high)


def parse_address(value: object) -> Address:
    """ "127.0.0.1:8080", "[::1]:8080" or "0.0.0.0:8080" (every interface)."""
    if isinstance(value, Address):
        return value
    text = text_of(value)
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'"{text}" has no port between 0 and 65535')
    bare = host.removeprefix("[").removesuffix("]")
    if ":" in bare and host == bare:
        raise ValueError(f'"{text}" is an IPv6 address without brackets')
    if not bare or re.search(r"[\s/@]", bare):
        raise ValueError(f'"{text}" does not name a host or an address to bind')
    return Address(host=bare, port=int(port))


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_name(value: object) -> str:
    """A name that may stand in tags, runner names, metric labels and URLs. Never with "--", which ends the
    deployment's part of a runner name."""
    text = text_of(value)
    if not _NAME.fullmatch(text):
        raise ValueError(f'"{text}" is not a name')
    return text


def parse_url(value: object) -> str:
    """An http or https URL without user, query and fragment; a trailing slash is dropped."""
    text = text_of(value)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f'"{text}" is not a URL') from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL carries a user or password; credentials stand in their own keys")
    if parts.scheme not in ("http", "https") or not host or port == 0 or parts.query or parts.fragment:
        raise ValueError(f'"{text}" is not a plain http or https URL')
    return text.rstrip("/")


def parse_store(value: object) -> str:
    """A store URL. The password is never part of it: libpq's PGPASSWORD or PGPASSFILE carry it."""
    text = text_of(value)
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ValueError("this is not a URL") from None
    if parts.scheme == "sqlite" and text.startswith("sqlite:///") and len(text) > len("sqlite:///"):
        return text
    if parts.scheme != "postgresql":
        raise ValueError(f'a store with the scheme "{parts.scheme}" is not known, or its path is missing')
    if parts.password is not None or "password=" in parts.query:
        raise ValueError("a password stands in the URL")
    return text


def parse_glob(value: object) -> str:
    text = text_of(value).strip()
    if not _GLOB.fullmatch(text):
        raise ValueError(f'"{text}" is not a repo glob')
    return text


def parse_network(value: object) -> str:
    text = text_of(value)
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError(f'"{text}" is not a network') from None


def parse_days(value: object) -> frozenset[int]:
    """ "mon-fri", "sat,sun", "daily" as weekday numbers, Monday 0."""
    if isinstance(value, frozenset):
        return value
    text = text_of(value).strip().lower()
    if text == "daily":
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = (end.strip() for end in part.partition("-"))
        if first not in _DAYS or (dash and last not in _DAYS):
            raise ValueError(f'"{text}" names no days of the week')
        start, end = _DAYS.index(first), _DAYS.index(last if dash else first)
        days.update(day % 7 for day in range(start, end + 1 if end >= start else end + 8))
    return frozenset(days)


def parse_hours(value: object) -> tuple[time, time]:
    """ "07:00-19:00" as its two ends; "24:00" is midnight at the end of the day."""
    if isinstance(value, tuple):
        return value
    text = text_of(value)
    found = _HOURS.fullmatch(text)
    if found is None:
        raise ValueError(f'"{text}" is not a span of hours')
    try:
        hour_end = 0 if (found[3], found[4]) == ("24", "00") else int(found[3])
        return time(int(found[1]), int(found[2])), time(hour_end, int(found[4]))
    except ValueError:
        raise ValueError(f'"{text}" is not a span of hours') from None
