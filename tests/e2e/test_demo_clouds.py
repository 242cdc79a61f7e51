"""`autoscaler demo` on the sandbox's clouds: the real adapters, machines that are taken, answers that never come."""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.demo_process import running_demo

FAULTS = "reclaim=0.3,no_notice=0.5,lost_answer=0.1"
OUTCOMES = ("requeued", "opted_out", "abandoned", "late_success")
PARTS = ("job", "idle", "boot", "lost", "stopped")

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo puts its files: readable by the machines' unprivileged user, unlike pytest's own."""
    with TemporaryDirectory(prefix="demo-test-") as name:
        path = Path(name).resolve()
        path.chmod(0o755)
        yield path


JOBS = """submitted_at,job_id,run_id,forge,repo,workflow,name,labels,duration_s,needs
0.5,g1,r1,github,acme/shop,ci,build,linux x64,2,
0.5,g2,r1,github,acme/shop,ci,test,linux x64,2,
0.5,g3,r2,github,acme/api,ci,lint,linux x64,2,
0.5,g4,r3,github,acme/shop,ci,again,linux x64,2,
1,l1,p1,gitlab,tools/etl,ci,load,data,2,
1,l2,p1,gitlab,tools/etl,ci,check,data,2,
"""
"""Few and early: a job that is lost without a word waits for its forge to notice."""


async def test_taken_machines_and_lost_answers_lose_no_job_and_every_second_is_costed(folder: Path) -> None:
    """On both clouds at once: most of it is waiting."""
    (folder / "jobs.csv").write_text(JOBS)
    async with asyncio.TaskGroup() as group:
        for provider in ("aws", "gce"):
            own = folder / provider
            own.mkdir(mode=0o755)
            group.create_task(assert_survives(own, provider, folder / "jobs.csv"))


async def assert_survives(folder: Path, provider: str, jobs: Path) -> None:
    async with running_demo(
        folder, "--provider", provider, "--duration", "8", "--faults", FAULTS, "--jobs", str(jobs)
    ) as demo:
        report = await demo.report(timeout_s=150)
        demo.assert_nothing_left()
    assert demo.process.returncode == 0
    assert report["jobs"]["done"] == report["jobs"]["submitted"] == 6
    for key in ("unfinished", "served_twice", "instances_left", "registrations_left", "processes_left"):
        assert report[key] == 0, key
    losses = report["jobs"]
    assert losses["interrupted"] == sum(losses[kind] for kind in OUTCOMES)
    assert losses["lost_forever"] == report["spills_unnamed"] == report["caps_exceeded"] == 0
    assert report["losses_missed"] == []
    assert report["world"]["provider"] == provider
    assert report["launches"]["spot"] > 0
    cost = report["cost_usd"]
    assert cost["total"] > 0
    assert math.isclose(sum(cost[part] for part in PARTS), cost["total"], abs_tol=2e-8)
    assert math.isclose(cost["spot"] + cost["on_demand"], cost["total"], abs_tol=2e-8)
    # What the daemon recorded while it ran, against what separate code makes of the machines' histories.
    assert math.isclose(report["cost_recorded_usd"], cost["total"], rel_tol=1e-6)
