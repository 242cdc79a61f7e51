"""The filter expressions of Compute Engine's listings: `(labels.k = "v") AND (status != DONE)`.

    either   := both ("OR" both)*
    both     := one ("AND"? one)*
    one      := "NOT"? ( "(" either ")" | field operator value )

Owns the grammar; what a field is, each listing says by its JSON. Of the operators, those that compare for equality,
by a regular expression (`eq`, `ne`) and for presence (`:`) are served: what our adapter could send.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autoscaler.sandbox.gce_wire import GceError

Test = Callable[[Mapping[str, Any]], bool]
_TOKEN = re.compile(r'\s*(\(|\)|!=|=|:|"(?:[^"\\]|\\.)*"|[^\s()!=:"]+)')
_OPERATORS = ("=", "!=", ":", "eq", "ne")


def parse(text: str) -> Test:
    """A test for one item's JSON. Raises GceError(400)."""
    tokens = _tokens(text)
    if not tokens:
        return lambda _: True
    parser = _Parser(tokens, text)
    found = parser.either()
    if parser.rest:
        raise _bad(text)
    return found


def label_asked(text: str) -> tuple[str, str] | None:
    """(key, value) of a filter that asks for one label only, so that a listing can keep an index for it."""
    found = re.fullmatch(r'\s*\(?\s*labels\.([a-z][a-z0-9_-]*)\s*(?:=|eq)\s*"?([a-z0-9_-]*)"?\s*\)?\s*', text)
    return (found[1], found[2]) if found else None


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    while at < len(text.rstrip()):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _bad(text)
        tokens.append(found[1])
        at = found.end()
    return tokens


def _bad(text: str) -> GceError:
    return GceError(400, "invalid", f"Invalid value for field 'filter': '{text}'. Invalid list filter expression.")


class _Parser:
    def __init__(self, tokens: Sequence[str], text: str) -> None:
        self.rest = list(tokens)
        self._text = text

    def either(self) -> Test:
        tests = [self._both()]
        while self._take("OR"):
            tests.append(self._both())
        return lambda item: any(test(item) for test in tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self.rest and self.rest[0] not in ("OR", ")"):
            self._take("AND")
            tests.append(self._one())
        return lambda item: all(test(item) for test in tests)

    def _one(self) -> Test:
        if self._take("NOT"):
            inner = self._one()
            return lambda item: not inner(item)
        if self._take("("):
            inner = self.either()
            if not self._take(")"):
                raise _bad(self._text)
            return inner
        return self._comparison()

    def _comparison(self) -> Test:
        if len(self.rest) < 3 or self.rest[1] not in _OPERATORS:
            raise _bad(self._text)
        path, operator, value = self.rest[:3]
        del self.rest[:3]
        wanted = _unquoted(value)
        if operator in ("eq", "ne"):
            pattern = re.compile(wanted)
            return lambda item: (pattern.fullmatch(_read(item, path) or "") is not None) == (operator == "eq")
        if operator == ":":
            return lambda item: _has(_read(item, path), wanted)
        return lambda item: (_read(item, path) == wanted) == (operator == "=")

    def _take(self, token: str) -> bool:
        if self.rest and self.rest[0] == token:
            del self.rest[0]
            return True
        return False


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _has(found: str | None, wanted: str) -> bool:
    """`key:*` asks whether it is there at all."""
    return found is not None and (wanted == "*" or wanted.lower() in found.lower())


def _read(item: Mapping[str, Any], path: str) -> str | None:
    value: Any = item
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return str(value).lower() if isinstance(value, bool) else str(value)
