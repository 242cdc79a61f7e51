"""How many jobs a workflow's runs queue at once: learned from jobs as they are seen, kept, bounded."""

from datetime import UTC, datetime, timedelta
from typing import Any

from autoscaler.model import Job, RunKind
from autoscaler.run_sizes import KINDS_KEPT, RUNS_KEPT, RunSizes
from tests.admin_world import GITHUB, LINUX, job

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
KIND: RunKind = (GITHUB, "acme/shop", "ci", LINUX)


def seen(number: int, run: str, *, after_s: float = 0.0, **changes: Any) -> Job:
    return job(number, NOW + timedelta(seconds=after_s), run_id=run, **changes)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_a_run_counts_once_it_has_come_as_a_whole() -> None:
    sizes = RunSizes({})
    for number in range(5):
        sizes.job_seen(seen(number, "1", after_s=number))
    sizes.reckon(later(15))
    assert KIND not in sizes.sizes, "more of it may come"
    sizes.reckon(later(21))
    assert sizes.sizes[KIND] == (5,)


def test_what_comes_after_the_first_jobs_is_another_stage() -> None:
    sizes = RunSizes({})
    for number, after_s in enumerate((0, 1, 60, 61)):
        sizes.job_seen(seen(number, "1", after_s=after_s))
    sizes.reckon(later(100))
    assert sizes.sizes[KIND] == (2,)


def test_work_that_runs_again_is_not_what_a_run_queues() -> None:
    sizes = RunSizes({})
    sizes.job_seen(seen(1, "1", attempt=2))
    sizes.job_seen(seen(2, "1", run_attempt=2))
    sizes.job_seen(seen(3, "1", pool=None))
    sizes.reckon(later(100))
    assert not sizes.sizes


def test_the_newest_runs_count_and_survive_a_restart() -> None:
    sizes = RunSizes({})
    for run in range(RUNS_KEPT + 3):
        for number in range(run + 1):
            sizes.job_seen(seen(100 * run + number, str(run), after_s=100 * run))
    sizes.reckon(later(10_000))
    assert sizes.sizes[KIND] == tuple(range(4, RUNS_KEPT + 4))
    sizes.unkept.make_due()
    rows = {one.key: one for one in sizes.unkept.take(10)}
    assert RunSizes(rows).sizes == sizes.sizes


def test_the_least_recently_run_workflows_are_forgotten_first() -> None:
    sizes = RunSizes({})
    for number in range(KINDS_KEPT + 1):
        sizes.job_seen(seen(number, str(number), workflow=f"w{number}"))
    sizes.reckon(later(100))
    assert len(sizes.sizes) == KINDS_KEPT
    assert (GITHUB, "acme/shop", "w0", LINUX) not in sizes.sizes
