"""The README and docs/ tell the truth: links, commands, configuration, metrics and paths that they name exist."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoscaler.cli import make_parser
from autoscaler.config import load
from autoscaler.http.openapi import DOCUMENT
from autoscaler.metrics import Metrics
from autoscaler.sandbox.demo_pools import STANDARD_POOLS
from autoscaler.sandbox.demo_workload import ONCE
from tests.config_files import ENVIRON, Steps, example_document, places, write_app_key

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = ("run", "demo", "check", "plan", "status", "why", "drain", "pause", "resume")
OTHER_PATHS = {"/", "/metrics", "/healthz", "/readyz", "/api/v1", "/webhooks/", "/api/v3", "/tmp", "/webhooks/github"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")


def blocks(kind: str) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        yield from ((page, text) for found, text in FENCE.findall(page.read_text()) if found == kind)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and GitLab make them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        assert not link.startswith("/")
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_pictures_are_small() -> None:
    pictures = sorted((ROOT / "docs").glob("*.png"))
    assert [picture.name for picture in pictures] == ["status-page-phone.png", "status-page.png"]
    assert all(5_000 < picture.stat().st_size < 300_000 for picture in pictures)


def shown_commands() -> list[str]:
    lines = [line for _, text in blocks("sh") for line in text.splitlines()]
    spoken = [code for page in PAGES for code in CODE.findall(prose(page)) if code.startswith(("autoscaler ", "make "))]
    return [re.sub(r"\s+#.*", "", line) for line in [*lines, *spoken] if line.startswith(("autoscaler ", "make "))]


NOT_YET = {"autoscaler simulate"}


def test_shown_commands_are_understood() -> None:
    shown = [command for command in shown_commands() if command.startswith("autoscaler ") and command not in NOT_YET]
    assert len(shown) > 10
    for command in shown:
        words = shlex.split(command)[1:]
        if words == ["why"]:
            words.append("JOB")
        if words[0] in ("run", "check", "plan") and "--config" not in words:
            words += ["--config", "FILE"]  # left out where only the command's name matters
        assert make_parser().parse_args(words).command, command


def test_shown_make_targets_exist_and_their_arguments_are_understood() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in shown_commands():
        words = shlex.split(command)
        if words[0] == "make":
            assert words[1] in targets, command
            arguments = [word.removeprefix("ARGS=") for word in words[2:]]
            if words[1] == "demo":
                make_parser().parse_args(["demo", *shlex.split(" ".join(arguments))])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoscaler", command, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: autoscaler {command}")


def test_the_readme_names_every_command() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert [
        command for command in COMMANDS if f"autoscaler {command}" not in text and f"make {command}" not in text
    ] == []


# ---------------------------------------------------------------------- configuration


def example_keys() -> set[str]:
    """Every key there is, as the docs write it: "pool.wait.target"."""
    return {dotted(steps) for steps in places(example_document())}


def dotted(steps: Steps) -> str:
    """Steps without the numbers of list members: "pool.labels"."""
    return ".".join(step for step in steps if isinstance(step, str))


FULL = [text for _, text in blocks("toml") if "[autoscaler]" in text]


@pytest.mark.parametrize("text", FULL, ids=["github", "gitlab"])
def test_shown_configurations_are_valid(text: str, tmp_path: Path) -> None:
    write_app_key(tmp_path)
    for name in ("admin-token", "github-webhook", "gitlab-token", "gitlab-webhook"):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(f"{name}-for-the-tests-of-the-docs")
    path = tmp_path / "config.toml"
    path.write_text(
        text.replace("/etc/autoscaler/secrets", str(tmp_path)).replace("/var/lib/autoscaler", str(tmp_path))
    )
    assert [str(warning) for warning in load(path, environ=ENVIRON).warnings] == []


@pytest.mark.parametrize("text", [text for _, text in blocks("toml")])
def test_shown_keys_exist(text: str) -> None:
    shown = {dotted(steps) for steps in places(tomllib.loads(text))}
    given = {key for key in shown if not key.endswith((".env", ".file")) and not key.startswith("forge.credentials.")}
    assert given - example_keys() == set()


def test_the_demos_pools_are_the_readmes_but_for_the_label_that_opts_out() -> None:
    [text] = [text for page, text in blocks("toml") if page.name == "README.md"]
    shown = {pool["name"]: (pool["forges"], pool["repos"], pool["labels"]) for pool in tomllib.loads(text)["pool"]}
    assert shown == {
        pool.name: ([pool.forge], [*pool.repos], [label for label in pool.labels if label != ONCE])
        for pool in STANDARD_POOLS
    }


ATTRIBUTES = {"forge.tell": "telling_forges", "image.hooks": "job_started"}
"""Where a key's value is kept under another name, or its own name is everybody's."""


def keys_without_effect() -> list[str]:
    """The keys of the table, dotted."""
    _, _, rest = (ROOT / "docs" / "configuration.md").read_text().partition("## Keys without effect yet")
    table = rest.partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [key for row in rows for key in CODE.findall(row)]


def test_keys_without_effect_exist() -> None:
    keys = keys_without_effect()
    assert keys
    assert set(keys) - example_keys() == set()


def test_keys_without_effect_are_read_by_nothing() -> None:
    """When this fails a key works now: take it out of the table in docs/configuration.md."""
    names = {ATTRIBUTES.get(key, key.rpartition(".")[2]) for key in keys_without_effect()}
    assert names & attributes_read() == set()


def attributes_read() -> set[str]:
    """Attributes that the product's code reads, the configuration's own modules and the sandbox aside."""
    found: set[str] = set()
    for package in ("autoscaler", "providers", "runners"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name.startswith("config") or "sandbox" in path.parts or "simulate" in path.parts:
                continue
            tree = ast.parse(path.read_text())
            found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return found


def test_keys_named_in_prose_exist() -> None:
    sections = ("autoscaler", "forge", "provider", "image", "pool")
    keys = example_keys()
    named = re.compile(rf"(?:{'|'.join(sections)})(?:\.[a-z_]+)+")
    for page in PAGES:
        if page.name == "agent-protocol.md":  # its `image` is the boot document's
            continue
        for code in CODE.findall(prose(page)):
            if named.fullmatch(code) and not code.endswith((".py", ".spi", ".forges", ".providers", ".service")):
                assert code in keys, f"{page.name}: {code}"


# ---------------------------------------------------------------------- metrics, paths, modules


def metric_names() -> set[str]:
    return {metric.name for metric in Metrics().registry.collect()}


def test_named_metrics_exist_and_have_a_value() -> None:
    known = metric_names()
    read = attributes_read()
    text = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"autoscaler_[a-z_]+", text))
    assert len(named) > 10
    for name in named:
        base = name.removesuffix("_bucket")
        assert base.removesuffix("_total") in known or base in known, name
        assert base.removeprefix("autoscaler_") in read, f"{name} is never set"


def test_named_metrics_have_the_shown_labels() -> None:
    metrics = Metrics()
    for name, labels in re.findall(
        r"`autoscaler_([a-z_]+)\{([a-z_,]+)\}`", (ROOT / "docs" / "operations.md").read_text()
    ):
        assert getattr(metrics, name)._labelnames == tuple(labels.split(",")), name


SYSTEM_FOLDERS = ("/opt", "/etc", "/usr", "/var", "/srv", "/sys", "/run", "/tmp", "/proc", "/dev")


def test_named_http_paths_exist() -> None:
    known = {*DOCUMENT["paths"], *OTHER_PATHS}
    for page in PAGES:
        if page.name == "agent-protocol.md":
            continue
        for code in CODE.findall(prose(page)):
            if re.fullmatch(r"/[a-z0-9./]*", code) and not code.startswith(SYSTEM_FOLDERS):
                assert code in known, f"{page.name}: {code}"


def test_named_files_exist() -> None:
    tops = ("autoscaler/", "providers/", "runners/", "images/", "tests/", "docs/", "deploy/", ".ci/")
    for page in PAGES:
        for code in CODE.findall(prose(page)):
            if code.startswith(tops) and " " not in code:
                assert (ROOT / code).exists(), f"{page.name}: {code}"


def test_named_log_events_exist() -> None:
    [line] = re.findall(r"`event` is a constant: (.*)\n(?:.*)\.", (ROOT / "docs" / "operations.md").read_text())
    sources = "".join(path.read_text() for path in (ROOT / "autoscaler").rglob("*.py"))
    for event in CODE.findall(line):
        assert f'"{event}"' in sources, event


def test_nothing_is_said_of_the_machine_that_wrote_it() -> None:
    for page in PAGES:
        text: Any = page.read_text()
        assert "/home/" not in text
