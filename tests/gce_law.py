"""Holds each exchange of the sandbox's Compute Engine against Google's own discovery document.

google-api-python-client ships it (a dev dependency). Its schemas become JSON Schemas that allow no unknown property,
no unknown enum value, and no number where the API writes a text (int64).
"""

import functools
import importlib.resources
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from jsonschema import Draft202012Validator

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PREFIX = "/compute/v1/"
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "errors"],
            "properties": {
                "code": {"type": "integer"},
                "message": {"type": "string"},
                "status": {"type": "string"},
                "errors": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["message", "domain", "reason"],
                        "properties": {
                            key: {"type": "string"}
                            for key in ("message", "domain", "reason", "location", "locationType")
                        },
                        "additionalProperties": False,
                    },
                },
                "details": {"type": "array", "items": {"type": "object", "required": ["@type"]}},
            },
            "additionalProperties": False,
        }
    },
    "additionalProperties": False,
}
_TEXTS = {"uint64": r"[0-9]+", "int64": r"-?[0-9]+"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    name: str
    http: str
    path: re.Pattern[str]
    parameters: frozenset[str]
    request: str | None
    response: str


@functools.cache
def document() -> Mapping[str, Any]:
    name = "discovery_cache/documents/compute.v1.json"
    found: Mapping[str, Any] = json.loads(importlib.resources.files("googleapiclient").joinpath(name).read_text())
    return found


@functools.cache
def methods() -> tuple[Method, ...]:
    # Descriptions of aggregated lists recommend this one, though their parameters leave it out.
    shared = frozenset(document()["parameters"]) | {"returnPartialSuccess"}
    return tuple(
        Method(
            name=f"{resource}.{name}",
            http=method["httpMethod"],
            path=re.compile(re.sub(r"\{\w+\}", "([^/]+)", method["flatPath"])),
            parameters=shared
            | {key for key, one in method.get("parameters", {}).items() if one["location"] == "query"},
            request=method["request"]["$ref"] if "request" in method else None,
            response=method["response"]["$ref"],
        )
        for resource, found in document()["resources"].items()
        for name, method in found.get("methods", {}).items()
        if "response" in method
    )


@functools.cache
def validator(schema: str) -> Draft202012Validator:
    schemas = document()["schemas"]
    definitions = {name: _converted(schemas[name]) for name in _reachable(schema)}
    return Draft202012Validator({"$defs": definitions, "$ref": f"#/$defs/{schema}"})


def problems_of(schema: str, value: object) -> list[str]:
    """What is wrong with a value, in words; empty: nothing."""
    return [f"{error.json_path}: {error.message[:300]}" for error in validator(schema).iter_errors(value)]


def _reachable(name: str) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += _references(document()["schemas"][one])
    return found


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _converted(node: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        return {"$ref": f"#/$defs/{node['$ref']}"}
    made: dict[str, Any] = {"type": node["type"]} if node["type"] != "any" else {}
    if "enum" in node:
        made["enum"] = node["enum"]
    if node.get("format") in _TEXTS and node["type"] == "string":
        made["pattern"] = f"^{_TEXTS[node['format']]}$"
    if node["type"] == "array":
        made["items"] = _converted(node["items"])
    if node["type"] == "object":
        made["properties"] = {key: _converted(value) for key, value in node.get("properties", {}).items()}
        more = node.get("additionalProperties")
        made["additionalProperties"] = _converted(more) if more is not None else False
    return made


class LawfulExchanges:
    """A middleware that notes what breaks the document; the test asserts that there is nothing."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.methods: set[str] = set()
        """Those that were answered, not refused."""

    @web.middleware
    async def middleware(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        body = await request.read()
        response = await handler(request)
        if isinstance(response, web.Response):
            self._check(request, body, response)
        return response

    def _check(self, request: web.Request, body: bytes, response: web.Response) -> None:
        where = f"{request.method} {request.path} -> {response.status}"
        answer = json.loads(_bytes_of(response))
        if response.status >= 400:
            errors = Draft202012Validator(ERROR).iter_errors(answer)
            self.violations += [f"{where}: {error.json_path}: {error.message[:300]}" for error in errors]
            return
        path = request.path.removeprefix(PREFIX)
        found = next((one for one in methods() if one.http == request.method and one.path.fullmatch(path)), None)
        if found is None:
            self.violations.append(f"{where}: no such method")
            return
        self.methods.add(found.name)
        self.violations += [f"{where}: parameter {key}" for key in request.query if key not in found.parameters]
        if found.request is not None and body:
            self.violations += [f"{where}: asked {one}" for one in problems_of(found.request, json.loads(body))]
        self.violations += [f"{where}: {one}" for one in problems_of(found.response, answer)]


def _bytes_of(response: web.Response) -> bytes:
    assert isinstance(response.body, bytes)
    return response.body
