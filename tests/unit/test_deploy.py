"""The files in deploy/ pass their linters, and the linters find what is planted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HADOLINT = Path(sys.executable).parent / "hadolint"

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """deploy/ and its lint script, to spoil."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "CI": "true"}
    return subprocess.run(
        [folder / ".ci/lint-deploy", HADOLINT], env=environ, capture_output=True, text=True, check=False
    )


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_deployment_files_have_no_findings(copy: Path) -> None:
    result = lint(copy)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "deploy/autoscaler.service: no findings" in result.stdout


def test_misspelt_unit_key_is_found(copy: Path) -> None:
    unit = copy / "deploy/autoscaler.service"
    unit.write_text(unit.read_text().replace("NoNewPrivileges=", "NoNewPriviliges="))

    result = lint(copy)

    assert result.returncode != 0
    assert "NoNewPriviliges" in result.stderr


def test_softened_unit_is_found(copy: Path) -> None:
    unit = copy / "deploy/autoscaler.service"
    kept = [line for line in unit.read_text().splitlines() if not line.startswith(("Protect", "Private", "SystemCall"))]
    unit.write_text("\n".join(kept) + "\n")

    assert lint(copy).returncode != 0


def test_unpinned_base_image_is_found(copy: Path) -> None:
    append(copy / "deploy/Containerfile", "\nFROM debian:latest\n")

    result = lint(copy)

    assert result.returncode != 0
    assert "DL3007" in result.stdout


def test_container_and_service_start_the_same_command() -> None:
    unit = (ROOT / "deploy/autoscaler.service").read_text()
    container = (ROOT / "deploy/Containerfile").read_text()

    assert "ExecStart=/opt/autoscaler/bin/autoscaler run --config /etc/autoscaler/config.toml" in unit
    assert 'ENTRYPOINT ["/opt/autoscaler/bin/autoscaler"]' in container
    assert 'CMD ["run", "--config", "/etc/autoscaler/config.toml"]' in container
    assert "USER 10001" in container
