"""Filters and pages of the sandbox's EC2: `Filter.1.Name=tag:owner`, `Filter.1.Value.1=ci-*`, MaxResults, NextToken."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from autoscaler.sandbox.aws_query import AwsError, Parameters

_T = TypeVar("_T")
Reader = Callable[[_T], "str | Sequence[str]"]
"""What a filter looks at in one thing: a value, or several of which one must match."""


class Filters:
    """All filters of one request; a thing passes when each finds one of its values (`*` and `?` are wildcards)."""

    def __init__(self, parameters: Parameters) -> None:
        self.wanted = [(one.required("Name"), one.texts("Value")) for one in parameters.structures("Filter")]

    def __bool__(self) -> bool:
        return bool(self.wanted)

    def apply(
        self, things: Sequence[_T], readers: Mapping[str, Reader[_T]], *, tags: Callable[[_T], Mapping[str, str]]
    ) -> list[_T]:
        """Those that pass, in order. Raises AwsError: a filter that is not among the readers and asks for no tag."""
        passed = list(things)
        for name, values in self.wanted:
            reader = readers.get(name) or _tag_reader(name, tags)
            if reader is None:
                raise AwsError("InvalidParameterValue", f"The filter '{name}' is invalid")
            passed = [thing for thing in passed if _passes(reader(thing), values)]
        return passed


def _tag_reader(name: str, tags: Callable[[_T], Mapping[str, str]]) -> Reader[_T] | None:
    if name == "tag-key":
        return lambda thing: tuple(tags(thing))
    if name.startswith("tag:"):
        key = name.removeprefix("tag:")
        return lambda thing: tags(thing).get(key, ())
    return None


def _passes(found: str | Sequence[str], values: Sequence[str]) -> bool:
    if isinstance(found, str) and found in values:
        return True
    have = (found,) if isinstance(found, str) else found
    return any(value == one or _is_match(one, value) for one in have for value in values)


def _is_match(text: str, glob: str) -> bool:
    return ("*" in glob or "?" in glob) and fnmatchcase(text, glob.replace("[", "[[]"))


def page(
    parameters: Parameters, things: Sequence[_T], *, bounds: tuple[int, int], default: int = 0
) -> tuple[Sequence[_T], str | None, int]:
    """One page, the token of the next one (None: the last), and the page's number from 0.

    Without MaxResults a page has `default` things, or all where that is 0; a token carries its page size along.
    """
    size = parameters.integer("MaxResults") or default or max(1, len(things))
    token = parameters.text("NextToken")
    if parameters.text("MaxResults") and not bounds[0] <= size <= bounds[1]:
        message = f"Value ( {size} ) for parameter maxResults is invalid. Expecting {bounds[0]} to {bounds[1]}."
        raise AwsError("InvalidParameterValue", message)
    start = 0
    if token:
        name, _, number = token.partition("-")
        if name != "page" or not number.isdigit():
            raise AwsError("InvalidNextToken", "The specified NextToken is not valid.")
        start = int(number)
    following = f"page-{start + size}" if start + size < len(things) else None
    return things[start : start + size], following, start // size


def tag_rows(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in sorted(tags.items())]
