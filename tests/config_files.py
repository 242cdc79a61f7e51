"""Builds configuration files for tests, from the example that the project ships or from a minimal document."""

import copy
import json
import re
import tomllib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from autoscaler.sandbox.cloud_identity import AwsNotary

EXAMPLE = Path(__file__).parents[1] / "config.example.toml"
ENVIRON = {
    "AUTOSCALER_ADMIN_TOKEN": "admin-token-for-tests",
    "GCE_CREDENTIALS": "access-token-for-tests",
    "GITHUB_WEBHOOK_SECRET": "webhook-secret-for-tests",
    "GITLAB_TOKEN": "glpat-token-for-tests",
    "GITLAB_WEBHOOK_SECRET": "other-secret-for-tests",
}
Steps = tuple[str | int, ...]


def example_document() -> dict[str, Any]:
    """The example with its commented-out keys in force: every key there is."""
    text = re.sub(r"(?m)^# (\w+ = )", r"\1", EXAMPLE.read_text())
    return tomllib.loads(text)


def minimal_document() -> dict[str, Any]:
    """The least that works, for tests to spoil."""
    secret = {"env": "GITHUB_WEBHOOK_SECRET"}
    return copy.deepcopy(
        {
            "autoscaler": {
                "name": "t",
                "listen": "127.0.0.1:0",
                "public_url": "http://127.0.0.1:8480",
                "admin_tokens": [{"env": "AUTOSCALER_ADMIN_TOKEN"}],
            },
            "forge": [
                {
                    "name": "github",
                    "kind": "github",
                    "credentials": {"token": secret},
                    "webhook_secret": secret,
                    "scopes": ["org"],
                }
            ],
            "provider": [{"name": "here", "kind": "local"}],
            "image": [{"name": "ubuntu", "references": {"local": {"github_runner": "/opt/actions-runner"}}}],
            "pool": [{"name": "linux", "labels": ["linux"], "image": "ubuntu", "providers": ["here"]}],
        }
    )


def toml(value: Any) -> str:
    """A value as TOML; tables inline."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value)
        case dict():
            return "{ " + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + " }"
        case list():
            return "[" + ", ".join(toml(one) for one in value) + "]"
        case date():
            return value.isoformat()
        case _:
            return repr(value)


def write(document: dict[str, Any], folder: Path) -> Path:
    path = folder / "config.toml"
    path.write_text("\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in document.items()) + "\n")
    return path


def write_app_key(folder: Path) -> None:
    """The GitHub App key that the example names. It is short: reading one of full length takes seven times as long."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    path = folder / "github-app.pem"
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )


def write_anchors(folder: Path) -> Path:
    """What stands in for AWS's certificates, which the example names by a path of the host."""
    return AwsNotary(("us-east-1",)).write_anchors(folder)["us-east-1"]


def places(value: Any, steps: Steps = ()) -> Iterator[Steps]:
    """Every key of a document, tables and list members included, as the steps that lead to it."""
    if steps:
        yield steps
    if isinstance(value, dict):
        for key, one in value.items():
            yield from places(one, (*steps, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from places(one, (*steps, index))


def key_path(steps: Steps) -> str:
    """As problems write it: "pool[0].wait.target"."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def replaced(document: dict[str, Any], steps: Steps, value: Any) -> dict[str, Any]:
    """A copy of the document with another value at one place."""
    result = copy.deepcopy(document)
    holder: Any = result
    for step in steps[:-1]:
        holder = holder[step]
    holder[steps[-1]] = value
    return result


def removed(document: dict[str, Any], steps: Steps) -> dict[str, Any]:
    result = copy.deepcopy(document)
    holder: Any = result
    for step in steps[:-1]:
        holder = holder[step]
    del holder[steps[-1]]
    return result
