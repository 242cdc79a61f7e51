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
    assert "deploy/autoscaler-local.conf: no findings" in result.stdout


def test_misspelt_unit_key_is_found(copy: Path) -> None:
    unit = copy / "deploy/autoscaler.service"
    unit.write_text(unit.read_text().replace("NoNewPrivileges=", "NoNewPriviliges="))

    result = lint(copy)

    assert result.returncode != 0
    assert "NoNewPriviliges" in result.stderr


def test_misspelt_key_of_the_drop_in_is_found(copy: Path) -> None:
    drop_in = copy / "deploy/autoscaler-local.conf"
    drop_in.write_text(drop_in.read_text().replace("KillMode=", "KilMode="))

    result = lint(copy)

    assert result.returncode != 0
    assert "KilMode" in result.stderr


def test_drop_in_that_gives_everything_up_is_found(copy: Path) -> None:
    softer = "".join(f"{key}=no\n" for key in ("NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp"))
    append(copy / "deploy/autoscaler-local.conf", softer + "CapabilityBoundingSet=~\nUser=root\n")

    assert lint(copy).returncode != 0


def settings(*names: str) -> dict[str, str]:
    """The service's settings, as systemd takes them: of a key that occurs twice, the last."""
    lines = [line for name in names for line in (ROOT / "deploy" / name).read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_local_machines_outlive_the_service_and_can_be_isolated() -> None:
    """What bubblewrap needs (a /proc of which nothing is covered, namespaces, mounts), and what builds do."""
    for_clouds = settings("autoscaler.service")
    for_machines = settings("autoscaler.service", "autoscaler-local.conf")

    assert (for_clouds["KillMode"], for_machines["KillMode"]) == ("mixed", "process")
    assert (for_machines["ProcSubset"], for_machines["ProtectProc"]) == ("all", "default")
    covering = ("ProtectKernelLogs", "ProtectKernelTunables", "ProtectHostname", "PrivateUsers", "RestrictNamespaces")
    assert {for_machines[key] for key in covering} == {"no"}
    assert for_machines["MemoryDenyWriteExecute"] == "no"
    assert for_machines["SystemCallFilter"].startswith("~")
    assert "@mount" not in for_machines["SystemCallFilter"]
    assert for_machines["OOMPolicy"] == "continue"
    assert {"TasksMax", "MemoryMax"} <= for_machines.keys()
    assert for_machines["TasksMax"] != for_clouds["TasksMax"]
    assert for_machines["MemoryMax"] != for_clouds["MemoryMax"]


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
