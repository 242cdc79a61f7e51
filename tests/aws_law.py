"""Holds each exchange of the sandbox's AWS against botocore's own service models: requests and answers.

Every parameter that a client sent must be a member of the operation's input, every member that we answer one of its
output, with values of their types and enums; what the model requires must be there.
"""

import functools
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl
from xml.etree import ElementTree

import botocore.session
from aiohttp import web
from botocore.model import ServiceModel, Shape
from botocore.validate import ParamValidator

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SERVICES = {
    "ec2": "ec2",
    "sts": "sts",
    "iam": "iam",
    "sqs": "sqs",
    "pricing": "pricing",
    "ssm": "ssm",
    "servicequotas": "service-quotas",
    "fis": "fis",
}
_ENVELOPE = {"Action", "Version"}


@functools.cache
def model(service: str) -> ServiceModel:
    return botocore.session.get_session().get_service_model(SERVICES[service])


class LawfulAws:
    """A middleware that notes what breaks the model; the test asserts that there is nothing."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.checked: dict[str, int] = {}

    @web.middleware
    async def middleware(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        body = await request.read()
        response = await handler(request)
        assert isinstance(response, web.Response)
        found = re.search(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/", request.headers.get("Authorization", ""))
        if found and response.status == 200:
            service = found[1]
            operation = _operation(service, request, body)
            text = response.text or ""
            self.checked[f"{service}:{operation}"] = self.checked.get(f"{service}:{operation}", 0) + 1
            self.violations += request_violations(service, operation, body)
            self.violations += answer_violations(service, operation, text)
        return response


def _operation(service: str, request: web.Request, body: bytes) -> str:
    protocol = model(service).metadata["protocol"]
    if protocol in ("ec2", "query"):
        return dict(parse_qsl(body.decode()))["Action"]
    if protocol == "json":
        return request.headers["X-Amz-Target"].rpartition(".")[2]
    for name in model(service).operation_names:
        http = model(service).operation_model(name).http
        pattern = re.sub(r"\{[^}]+\}", "[^/]+", http["requestUri"])
        if http["method"] == request.method and re.fullmatch(pattern, request.path):
            return str(name)
    raise AssertionError(f"no operation {request.method} {request.path} in {service}")


def request_violations(service: str, operation: str, body: bytes) -> list[str]:
    shape = model(service).operation_model(operation).input_shape
    protocol = model(service).metadata["protocol"]
    if shape is None:
        return []
    if protocol in ("ec2", "query"):
        pairs = parse_qsl(body.decode(), keep_blank_values=True)
        return [
            f"{operation}: request: {key}: {problem}"
            for key, value in pairs
            if key not in _ENVELOPE and (problem := _parameter_problem(shape, key.split("."), value, protocol))
        ]
    if protocol == "rest-json":
        return []
    report = ParamValidator().validate(json.loads(body or b"{}"), shape)
    return [f"{operation}: request: {report.generate_report()}"] if report.has_errors() else []


def _parameter_problem(shape: Shape, path: list[str], value: str, protocol: str) -> str:
    """Why this parameter is not one of the shape; empty when it is."""
    if shape.type_name == "structure":
        if not path:
            return "a structure has no value"
        members = {_query_name(name, member, protocol): member for name, member in shape.members.items()}
        if path[0] not in members:
            return f"no member {path[0]} in {shape.name}"
        return _parameter_problem(members[path[0]], path[1:], value, protocol)
    if shape.type_name == "list":
        rest = path[1:] if protocol == "query" and path[:1] == ["member"] else path
        if not rest or not rest[0].isdigit():
            return f"{shape.name} is a list"
        return _parameter_problem(shape.member, rest[1:], value, protocol)
    return f"{shape.name} has no parts" if path else _value_problem(shape, value)


def _query_name(name: str, member: Shape, protocol: str) -> str:
    wire = member.serialization.get("queryName") or member.serialization.get("name", name)
    return wire[0].upper() + wire[1:] if protocol == "ec2" else str(wire)


def answer_violations(service: str, operation: str, text: str) -> list[str]:
    shape = model(service).operation_model(operation).output_shape
    protocol = model(service).metadata["protocol"]
    if protocol in ("ec2", "query"):
        root = ElementTree.fromstring(text)
        nodes = [node for node in root if _tag(node) not in ("requestId", "ResponseMetadata")]
        if protocol == "query":
            nodes = [child for node in nodes for child in node]
        if shape is None:
            return [] if [_tag(node) for node in nodes] in ([], ["return"]) else [f"{operation}: answers something"]
        problems = _structure_problems(shape, nodes, operation)
    elif shape is None:
        return []
    else:
        problems = _document_problems(shape, json.loads(text), operation)
    return problems


def _tag(node: ElementTree.Element) -> str:
    return node.tag.rpartition("}")[2]


def _structure_problems(shape: Shape, nodes: list[ElementTree.Element], path: str) -> list[str]:
    members = {member.serialization.get("name", name): (name, member) for name, member in shape.members.items()}
    problems, seen = [], set()
    for node in nodes:
        tag = _tag(node)
        if tag not in members:
            problems.append(f"{path}: no member {tag} in {shape.name}")
            continue
        if tag in seen:
            problems.append(f"{path}: {tag} is there twice")
        seen.add(tag)
        problems += _node_problems(members[tag][1], node, f"{path}.{members[tag][0]}")
    missing = [name for wire, (name, _) in members.items() if name in shape.required_members and wire not in seen]
    return problems + [f"{path}: {name} is missing" for name in missing]


def _node_problems(shape: Shape, node: ElementTree.Element, path: str) -> list[str]:
    if shape.type_name in ("structure", "list") and (node.text or "").strip():
        return [f"{path}: {shape.name} is no plain value"]
    if shape.type_name == "structure":
        return _structure_problems(shape, list(node), path)
    if shape.type_name == "list":
        element = shape.member.serialization.get("name", "member")
        strangers = [_tag(child) for child in node if _tag(child) != element]
        problems = [f"{path}: {stranger} where {element} is expected" for stranger in strangers]
        return problems + [one for child in node for one in _node_problems(shape.member, child, f"{path}[]")]
    if len(node):
        return [f"{path}: {shape.name} has parts"]
    problem = _value_problem(shape, node.text or "")
    return [f"{path}: {problem}"] if problem else []


def _document_problems(shape: Shape, value: Any, path: str) -> list[str]:
    if shape.type_name == "structure":
        return _object_problems(shape, value, path)
    if shape.type_name == "list":
        if not isinstance(value, list):
            return [f"{path}: not a list"]
        return [one for item in value for one in _document_problems(shape.member, item, f"{path}[]")]
    if shape.type_name == "map":
        keys = [f"{path}: {problem}" for key in value if (problem := _value_problem(shape.key, key))]
        return keys + [one for key in value for one in _document_problems(shape.value, value[key], f"{path}.{key}")]
    native = {"string": str, "boolean": bool, "integer": int, "long": int, "timestamp": (int, float)}
    expected = native.get(shape.type_name, (int, float))
    if not isinstance(value, expected):
        return [f"{path}: {value!r} is no {shape.type_name}"]
    problem = _value_problem(shape, value) if isinstance(value, str) else ""
    return [f"{path}: {problem}"] if problem else []


def _object_problems(shape: Shape, value: Any, path: str) -> list[str]:
    if not isinstance(value, Mapping):
        return [f"{path}: not an object"]
    members = {member.serialization.get("name", name): member for name, member in shape.members.items()}
    problems = [f"{path}: no member {name} in {shape.name}" for name in value if name not in members]
    problems += [f"{path}: {name} is missing" for name in shape.required_members if name not in value]
    for name in value:
        if name in members:
            problems += _document_problems(members[name], value[name], f"{path}.{name}")
    return problems


def _value_problem(shape: Shape, text: str) -> str:
    """Why this text is no value of the shape; empty when it is."""
    try:
        match shape.type_name:
            case "integer" | "long":
                int(text)
            case "double" | "float":
                float(text)
            case "boolean":
                return "" if text in ("true", "false") else f"{text!r} is no boolean"
            case "timestamp":
                datetime.fromisoformat(text)
            case "string" if shape.enum:
                return "" if text in shape.enum else f"{text!r} is not among the values of {shape.name}"
            case "structure" | "list" | "map":
                return f"{shape.name} is no plain value"
    except ValueError:
        return f"{text!r} is no {shape.type_name}"
    return ""
