"""Runs that no pool can serve, where the nearest pool wants them cancelled."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from autoscaler.model import CancelRun, Job, JobState, Plan
from tests.admin_world import LINUX, pool
from tests.unit.plan_world import NOW, POOL, actions_of, only, planned, queued, world

CANCELS = replace(POOL, cancels_unservable=True)
TEN_MINUTES = timedelta(minutes=10)


def unserved(number: int = 1, *labels: str, **changes: Any) -> Job:
    row = queued(number, *(labels or ("gpu", "linux")))
    return replace(row, **{"pool": None, "unserved": "no pool has the label gpu", "run_id": "500", **changes})


def after(waited: timedelta, *jobs: Job, pools: tuple[Any, ...] = (CANCELS,), **changes: Any) -> Plan:
    since = {job.id: NOW - waited for job in jobs if job.pool is None}
    return planned(world(jobs, unserved_since=since, **changes), *pools)


def test_run_that_no_pool_serves_for_ten_minutes_is_cancelled_with_what_to_change() -> None:
    made = only(after(TEN_MINUTES, unserved(2), unserved(1)), CancelRun)
    assert (made.repo, made.run_id, made.jobs) == ("acme/shop", "500", (unserved(1).id, unserved(2).id))
    assert made.reason.startswith("unservable: no pool has the label gpu; ")
    assert "give the job labels that a pool has" in made.reason


def test_it_waits_ten_minutes_from_when_it_was_unserved_last() -> None:
    waited = timedelta(minutes=9)
    made = after(waited, unserved())
    assert (made.actions, made.wake_at) == ((), NOW + timedelta(minutes=1))
    fresh = planned(world([unserved()]), CANCELS)
    assert fresh.actions == ()


def test_nothing_is_cancelled_where_the_nearest_pool_only_reports() -> None:
    other = pool(LINUX, "arm", cancels_unservable=True)
    nearest = pool(POOL.name, "linux", "x64")
    assert after(TEN_MINUTES, unserved(), pools=(replace(other, name="arm"), nearest)).actions == ()


def test_run_with_a_job_that_can_be_served_is_left_alone() -> None:
    for state in (JobState.QUEUED, JobState.RUNNING, JobState.LOST):
        served = replace(queued(9), run_id="500", state=state)
        assert not actions_of(after(TEN_MINUTES, unserved(), served), CancelRun), state


def test_run_of_a_forge_that_left_the_configuration_is_left_alone() -> None:
    assert after(TEN_MINUTES, unserved(), forges={}).actions == ()
