"""`autoscaler demo` as people start it: both forges served, faults survived, nothing left behind however it ends."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from autoscaler.sandbox.demo_machines import processes_of
from tests.demo_process import running_demo
from tests.postgres import postgres_dsn, postgres_server

__all__ = ["postgres_dsn", "postgres_server"]

QUICK_SEED = "163"
"""Eleven jobs in chains of some 17 s."""

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo puts its files: readable by the machines' unprivileged user, unlike pytest's own."""
    with TemporaryDirectory(prefix="demo-test-") as name:
        path = Path(name).resolve()
        path.chmod(0o755)
        yield path


def assert_all_served(report: dict[str, Any]) -> None:
    for forge in ("github", "gitlab"):
        assert report["by_forge"][forge]["done"] == report["by_forge"][forge]["submitted"] > 0
    assert report["jobs"]["done"] == report["jobs"]["submitted"]
    for key in ("unfinished", "served_twice", "instances_left", "registrations_left", "processes_left"):
        assert report[key] == 0, key
    assert report["jobs"]["lost_forever"] == 0
    assert report["caps_exceeded"] == 0


async def test_jobs_of_both_forges_run_on_machines_and_nothing_is_left(folder: Path) -> None:
    async with running_demo(folder, "--duration", "5", "--seed", QUICK_SEED) as demo:
        report = await demo.report()
        assert demo.process.returncode == 0
        assert_all_served(report)
        demo.assert_nothing_left()
    assert {"data", "linux-small", "linux-large", "-"} <= set(report["by_pool"])
    assert [job["name"] for job in report["unserved"]] == ["bench"]
    assert "linux-small is nearest" in report["unserved"][0]["reason"]
    assert any("nobody serves bench of acme/api" in line for line in demo.lines)
    assert report["launches"]["spot"] > 0
    assert report["cost_usd"]["total"] > 0
    assert report["decisions"]["plans"] > 0


async def test_killed_daemons_lost_webhooks_and_forge_errors_lose_no_job(folder: Path, postgres_dsn: str) -> None:
    """On PostgreSQL, so that both stores are driven by a whole demo."""
    faults = "crash=20,lost_webhook=0.2,forge_error=0.1"
    async with running_demo(
        folder, "--duration", "5", "--seed", QUICK_SEED, "--faults", faults, "--store", postgres_dsn
    ) as demo:
        report = await demo.report(timeout_s=150)
        assert_all_served(report)
        assert demo.process.returncode == 0
        demo.assert_nothing_left()
    assert report["crashes"] > 0
    assert len(set(demo.daemon_pids())) == report["crashes"] + 1
    assert report["faults"] == {"crash": 20.0, "lost_webhook": 0.2, "forge_error": 0.1}


@pytest.mark.parametrize("signals", [1, 2])
async def test_ctrl_c_in_the_middle_leaves_no_process_and_no_folder(folder: Path, signals: int) -> None:
    store = f"sqlite:///{folder / 'kept.db'}"
    async with running_demo(folder, "--duration", "60", "--store", store) as demo:
        await demo.wait_for(r"\d+ waiting, [1-9]\d* running")
        assert len(processes_of(folder)) > 3
        for _ in range(signals):
            os.kill(demo.process.pid, signal.SIGINT)
        report = await demo.report(timeout_s=30)
        demo.assert_nothing_left()
        assert demo.process.returncode == 1
    assert report["was_stopped"]
    assert report["processes_left"] == report["instances_left"] == 0
    assert "stopped: nothing is left running" in demo.lines
    async with running_demo(folder, "--duration", "1", "--store", store) as again:
        await again.wait_for("needs an empty one")
        assert await again.process.wait() == 2
        again.assert_nothing_left()
