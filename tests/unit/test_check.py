"""`autoscaler check`: what it finds before the daemon starts, and which exit code that means."""

import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from autoscaler.check import CheckReport, check, targets
from autoscaler.config_types import WaitConfig
from autoscaler.simulate.seeds import make_config, make_pool
from autoscaler.simulate.stage import LOCAL
from autoscaler.spi import Verdict
from benchmarks.null_provider import NullProvider
from tests.config_files import ENVIRON, minimal_document, replaced, write


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """A deployment that can work on this host; its forge is a port where nobody answers."""
    made = minimal_document()
    made["autoscaler"] |= {"admin_listen": "127.0.0.1:0", "store": f"sqlite:///{tmp_path}/autoscaler.db"}
    made["provider"][0]["state_dir"] = str(tmp_path / "machines")
    made["forge"][0]["url"] = f"http://127.0.0.1:{_closed_port()}"
    return made


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def _closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def checked(document: dict[str, Any], folder: Path, *, online: bool = False) -> CheckReport:
    return await check(write(document, folder), online=online, environ=ENVIRON)


def verdicts(report: CheckReport) -> dict[str, Verdict]:
    return {one.key: one.verdict for one in report.findings}


async def test_working_deployment_passes_and_nothing_is_made(document: dict[str, Any], tmp_path: Path) -> None:
    report = await checked(document, tmp_path)

    assert report.exit_code == 0
    assert verdicts(report)["autoscaler.store"] is Verdict.OK
    assert not (tmp_path / "autoscaler.db").exists()
    assert "no errors" in report.text()


async def test_isolation_of_local_machines_is_told(document: dict[str, Any], tmp_path: Path) -> None:
    document["provider"][0]["isolation"] = "process"

    report = await checked(document, tmp_path)

    assert verdicts(report)["provider[0].isolation"] is Verdict.WARNING
    assert report.exit_code == 0


async def test_broken_file_is_exit_code_2_with_remedies(document: dict[str, Any], tmp_path: Path) -> None:
    document["pool"][0] |= {"min": -1}

    report = await checked(document, tmp_path)

    assert report.exit_code == 2
    assert "pool[0].min" in verdicts(report)
    assert all(one.remedy for one in report.findings)


async def test_settings_that_an_adapter_refuses_are_exit_code_2(document: dict[str, Any], tmp_path: Path) -> None:
    document["provider"][0]["slots"] = -3

    report = await checked(document, tmp_path)

    assert report.exit_code == 2
    assert verdicts(report)["provider[0].slots"] is Verdict.INVALID


async def test_store_in_a_missing_folder_is_refused(document: dict[str, Any], tmp_path: Path) -> None:
    document["autoscaler"]["store"] = f"sqlite:///{tmp_path}/nowhere/autoscaler.db"

    report = await checked(document, tmp_path)

    assert report.exit_code == 3
    assert verdicts(report)["autoscaler.store"] is Verdict.REFUSED
    assert "does not exist" in report.text()


async def test_store_that_is_another_file_is_refused(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "autoscaler.db").write_text("my diary, not a database")

    report = await checked(document, tmp_path)

    assert verdicts(report)["autoscaler.store"] is Verdict.REFUSED
    assert (tmp_path / "autoscaler.db").read_text() == "my diary, not a database"


async def test_postgres_that_nobody_runs_is_refused(document: dict[str, Any], tmp_path: Path) -> None:
    document["autoscaler"]["store"] = f"postgresql://u@127.0.0.1:{_closed_port()}/d"

    report = await checked(document, tmp_path)

    assert report.exit_code == 3
    assert verdicts(report)["autoscaler.store"] is Verdict.REFUSED


async def test_address_in_use_is_a_warning_for_the_daemon_may_be_running(
    document: dict[str, Any], taken_port: int, tmp_path: Path
) -> None:
    report = await checked(replaced(document, ("autoscaler", "listen"), f"127.0.0.1:{taken_port}"), tmp_path)

    assert report.exit_code == 0
    assert verdicts(report)["autoscaler.listen"] is Verdict.WARNING


async def test_address_of_another_machine_is_refused(document: dict[str, Any], tmp_path: Path) -> None:
    report = await checked(replaced(document, ("autoscaler", "listen"), "192.0.2.1:8480"), tmp_path)

    assert report.exit_code == 3
    assert verdicts(report)["autoscaler.listen"] is Verdict.REFUSED


async def test_certificate_that_is_none_is_refused(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tls.pem").write_text("no certificate")
    document["autoscaler"] |= {
        "public_url": "https://127.0.0.1",
        "tls": {"certificate": str(tmp_path / "tls.pem"), "private_key": str(tmp_path / "tls.pem")},
    }

    report = await checked(document, tmp_path)

    assert verdicts(report)["autoscaler.tls"] is Verdict.REFUSED


async def test_online_asks_forges_and_providers(document: dict[str, Any], tmp_path: Path) -> None:
    report = await checked(document, tmp_path, online=True)

    found = verdicts(report)
    assert found["provider[0]"] is Verdict.OK
    assert found["forge[0]"] is Verdict.REFUSED
    assert found["pool[0].shape"] is Verdict.OK
    assert report.exit_code == 3


async def test_shape_that_no_offering_fits_is_refused_online(document: dict[str, Any], tmp_path: Path) -> None:
    document["pool"][0]["shape"] = {"cpus": "100000.."}

    report = await checked(document, tmp_path, online=True)

    assert verdicts(report)["pool[0].shape"] is Verdict.REFUSED


async def test_json_report_holds_what_the_text_says(document: dict[str, Any], tmp_path: Path) -> None:
    document["pool"][0]["min"] = -1

    report = await checked(document, tmp_path)

    shown = json.loads(json.dumps(report.document()))
    assert shown["exit_code"] == 2
    assert [one["key"] for one in shown["findings"]] == [one.key for one in report.findings]
    assert all(one.message in report.text() and one.remedy in report.text() for one in report.findings)
    assert not [secret for secret in ENVIRON.values() if secret in report.text()]


def test_a_target_that_no_boot_keeps_is_told_unless_machines_stand_ready() -> None:
    cloud = NullProvider(LOCAL)
    pools = (make_pool("quick", ("a",), wait=WaitConfig(target=timedelta(minutes=5))), make_pool("cold", ("b",)))
    ready = make_pool("ready", ("c",), min=2)
    (found,) = targets(make_config("ci", (*pools, ready)), [cloud])
    assert (found.key, found.verdict) == ("pool[1].wait.target", Verdict.WARNING)
    assert "a target of 60 s cannot be met by booting" in found.message
    assert "machines that stand ready (min) would meet it" in found.message


async def test_no_target_of_local_machines_is_doubted(document: dict[str, Any], tmp_path: Path) -> None:
    document["pool"][0] |= {"wait": {"target": "5s"}}
    assert not [key for key in verdicts(await checked(document, tmp_path)) if key.endswith("wait.target")]
