"""The distribution: what the wheel holds, that the locks fit pyproject.toml, and that the import rules bite."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("autoscaler", "providers", "runners", "images")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the sources, so that nothing left in the work tree gets in or out."""
    folder = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=skip)
    for name in ("pyproject.toml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    (folder / "tests").mkdir()
    (folder / "tests" / "__init__.py").touch()
    program = "import setuptools.build_meta as b; print(b.build_wheel('.'))"
    built = subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, capture_output=True, text=True)
    return zipfile.ZipFile(folder / built.stdout.splitlines()[-1])


def test_wheel_has_exactly_the_four_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_wheel_has_every_source_and_data_file(wheel: zipfile.ZipFile) -> None:
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert wanted - set(wheel.namelist()) == set()


def test_wheel_offers_the_command_and_the_built_in_adapters(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    text = wheel.read(name).decode()

    assert "autoscaler = autoscaler.cli:main" in text
    assert "local = providers.local:create" in text


def locked(name: str) -> dict[str, set[Version]]:
    """Versions by project name; more than one where they differ by platform."""
    found: dict[str, set[Version]] = {}
    for project, version in re.findall(r"(?m)^([A-Za-z0-9._-]+)==(\S+)", (ROOT / name).read_text()):
        found.setdefault(canonicalize_name(project), set()).add(Version(version))
    return found


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("requirements-run.lock", ("build",)), ("requirements.lock", tuple(PROJECT["optional-dependencies"]))],
)
def test_lock_satisfies_every_requirement(lock: str, extras: tuple[str, ...]) -> None:
    versions = locked(lock)
    wanted = [*PROJECT["dependencies"], *(one for extra in extras for one in PROJECT["optional-dependencies"][extra])]

    for text in wanted:
        requirement = Requirement(text)
        found = versions.get(canonicalize_name(requirement.name), set())
        assert found, f"{text} is not in {lock}: run make lock"
        assert all(version in requirement.specifier for version in found), f"{text} in {lock}: run make lock"


@pytest.mark.parametrize("lock", ["requirements-run.lock", "requirements.lock"])
def test_lock_has_hashes_and_no_addresses(lock: str) -> None:
    text = (ROOT / lock).read_text()
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", text)[1:]

    assert "://" not in text
    assert "--index" not in text
    assert all("--hash=sha256:" in entry for entry in entries)


@pytest.mark.parametrize("script", [".ci/install", "deploy/Containerfile"])
def test_nothing_is_installed_that_no_hash_vouches_for(script: str) -> None:
    """What is not from a lock with hashes is this project itself, built without fetching anything."""
    commands = re.findall(r"pip install(?:[^\n&|\\]|\\\n)*", (ROOT / script).read_text())

    assert len(commands) >= 2
    for command in commands:
        ours = "--no-deps" in command and "--no-build-isolation" in command
        assert ours or ("--require-hashes" in command and "-r " in command), command


def test_both_locks_agree() -> None:
    everything = locked("requirements.lock")

    assert {name: everything.get(name) for name in locked("requirements-run.lock")} == locked("requirements-run.lock")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "lint-imports"
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run([program, "--no-cache"], cwd=folder, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("autoscaler/spi.py", "import pydantic", "spi imports the standard library only"),
        ("autoscaler/model.py", "import autoscaler.states", "model imports spi"),
        ("autoscaler/plan.py", "import asyncio", "decisions, model and states know no clock"),
        ("autoscaler/placement.py", "import structlog", "decisions import values and each other"),
        ("providers/local.py", "import autoscaler.model", "adapters import spi and calls"),
        ("runners/github.py", "import providers.local", "runners do not know providers"),
        ("autoscaler/http/health.py", "import runners.github", "the core reaches adapters through entry points"),
        ("autoscaler/config.py", "import autoscaler.sandbox", "only the command line imports the sandbox"),
        ("providers/local.py", "import boto3", "boto3 stays in providers/aws"),
        ("autoscaler/store/sqlite.py", "import asyncpg", "asyncpg stays in store/postgres"),
    ],
)
def test_import_rule_bites(module: str, line: str, contract: str, tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    for name in ("__init__.py", "import_rules.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests" / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    source = tmp_path / module
    source.write_text(f"{source.read_text()}\n{line}\n")

    result = lint_imports(tmp_path)

    assert result.returncode == 1
    assert re.search(rf"{re.escape(contract)}.*BROKEN", result.stdout), result.stdout
