"""GitLab jobs over REST and the rate budgets, as values."""

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.spi import Conclusion, ForgeJob, ForgeName, ForgeRefused, JobStatus, RateLimited
from runners.gitlab_budget import JOB_LISTS_PER_MINUTE, Budgets
from runners.gitlab_errors import Operation, Refused, retry_after_s, translate
from runners.gitlab_jobs import read_job
from tests.shared import require_shared

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


class HandClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.elapsed_s)

    def monotonic(self) -> float:
        return self.elapsed_s

    async def sleep(self, seconds: float) -> None:
        self.elapsed_s += seconds


def read(**changes: Any) -> ForgeJob:
    row = {"id": 1, "name": "build", "status": "pending", "pipeline": {"id": 2}, **changes}
    return read_job(ForgeName("gl"), "acme/api", row, path="/projects/acme%2Fapi/jobs", now=NOW)


# -- jobs


def test_recorded_pending_job_is_read() -> None:
    fixture = require_shared() / "fixtures/gitlab/rest_jobs_pending.json"
    (row,) = json.loads(fixture.read_text())
    job = read_job(ForgeName("gl"), "gitlab-org/gitlab-test", row, path="", now=NOW)
    assert (job.forge_job_id, job.run_id, job.name) == ("1977", "2366", "test")
    assert (job.status, job.labels) == (JobStatus.QUEUED, ("linux-large", "spot"))
    assert job.queued_at == NOW - timedelta(seconds=12.5)
    assert job.url == "https://gitlab.example.com/gitlab-org/gitlab-test/-/jobs/1977"
    assert (job.runner_id, job.conclusion, job.failure_reason) == (None, None, "")


def test_wait_for_earlier_stages_is_not_counted_where_gitlab_says_how_long_it_queued() -> None:
    created = "2026-05-01T10:00:00Z"
    assert read(created_at=created, queued_duration=3).queued_at == NOW - timedelta(seconds=3)
    assert read(created_at=created).queued_at == NOW - timedelta(hours=2)
    started = read(status="running", created_at=created, started_at="2026-05-01T11:00:00Z", queued_duration=60)
    assert started.queued_at == datetime(2026, 5, 1, 10, 59, tzinfo=UTC)


def test_reason_is_kept_only_for_failed_jobs() -> None:
    assert read(status="failed", failure_reason="runner_interrupted").failure_reason == "runner_interrupted"
    assert read(status="canceled", failure_reason="unknown_failure").failure_reason == ""
    assert read(status="canceled").conclusion is Conclusion.CANCELLED


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"pipeline": None},
        {"pipeline": {}},
        {"runner": {"description": "no id"}},
        {"runner": 5},
        {"tag_list": 5},
        {"queued_duration": 1e300},
    ],
)
def test_what_is_not_a_job_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ForgeRefused, match="is not a job"):
        read(**changes)


# -- budgets


def headers(*, limit: int, remaining: int, resets_in_s: int) -> dict[str, str]:
    return {
        "ratelimit-limit": str(limit),
        "ratelimit-remaining": str(remaining),
        "ratelimit-reset": str(int(NOW.timestamp()) + resets_in_s),
    }


def test_learned_limit_refuses_until_its_window_resets() -> None:
    clock = HandClock()
    budgets = Budgets(clock, has_runner_token=False)
    budgets.learn(headers(limit=100, remaining=1, resets_in_s=30), uses_runner_token=False)
    budgets.spend("core", uses_runner_token=False)
    with pytest.raises(RateLimited) as limited:
        budgets.spend("registration", uses_runner_token=False)
    assert limited.value.retry_after_s == pytest.approx(30)
    clock.elapsed_s = 31
    budgets.spend("core", uses_runner_token=False)


def test_token_for_runners_has_a_budget_of_its_own() -> None:
    budgets = Budgets(HandClock(), has_runner_token=True)
    budgets.learn(headers(limit=100, remaining=0, resets_in_s=30), uses_runner_token=False)
    budgets.spend("registration", uses_runner_token=True)
    shown = {budget.family: budget.remaining for budget in budgets.snapshot()}
    assert shown["core"] == 0
    assert shown["registration"] > 1000


@pytest.mark.parametrize("broken", [{}, {"ratelimit-limit": "100"}, {"ratelimit-limit": "x", "ratelimit-reset": ""}])
def test_incomplete_headers_teach_nothing(broken: dict[str, str]) -> None:
    budgets = Budgets(HandClock(), has_runner_token=False)
    before = budgets.snapshot()
    budgets.learn(broken, uses_runner_token=False)
    assert budgets.snapshot() == before


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(min_value=0, max_value=10_000), mean_pause_s=st.floats(min_value=0.01, max_value=0.2))
def test_no_minute_sees_more_job_lists_than_allowed(seed: int, mean_pause_s: float) -> None:
    clock, dice = HandClock(), random.Random(seed)
    budgets = Budgets(clock, has_runner_token=False)
    made: list[float] = []
    for _ in range(2 * JOB_LISTS_PER_MINUTE):
        clock.elapsed_s += dice.expovariate(1 / mean_pause_s)
        if budgets.job_lists_left() > 0:
            budgets.spend("jobs", uses_runner_token=False)
            made.append(clock.elapsed_s)
    late = made[JOB_LISTS_PER_MINUTE:]
    assert all(after - before >= 59.999 for before, after in zip(made, late, strict=False))


def test_listings_leave_a_fifth_of_the_budget_to_others() -> None:
    budgets = Budgets(HandClock(), has_runner_token=False)
    budgets.learn(headers(limit=100, remaining=25, resets_in_s=30), uses_runner_token=False)
    assert budgets.job_lists_left() == 5
    budgets.learn(headers(limit=100, remaining=10, resets_in_s=30), uses_runner_token=False)
    assert budgets.job_lists_left() == 0


# -- refusals


def test_limit_of_an_endpoint_does_not_block_the_rest() -> None:
    budgets = Budgets(HandClock(), has_runner_token=False)
    refused = Refused(status=429, text="", path="/projects/1/jobs", headers={"retry-after": "9"})
    budgets.block(refused, "jobs", uses_runner_token=False)
    with pytest.raises(RateLimited):
        budgets.spend("jobs", uses_runner_token=False)
    budgets.spend("core", uses_runner_token=False)


@pytest.mark.parametrize(
    ("given_headers", "wait_s"),
    [
        ({"retry-after": "9"}, 9),
        ({"ratelimit-reset": str(int(NOW.timestamp()) + 12)}, 12),
        ({"ratelimit-resettime": "Fri, 01 May 2026 12:00:20 GMT"}, 20),
        ({}, 60),
        ({"retry-after": "soon"}, 60),
        ({"retry-after": "²"}, 60),
    ],
)
def test_wait_is_read_from_what_there_is(given_headers: dict[str, str], wait_s: float) -> None:
    assert retry_after_s(given_headers, NOW.timestamp()) == pytest.approx(wait_s)


@given(st.integers(min_value=300, max_value=999), st.text(max_size=2000))
def test_every_refusal_has_an_error_and_a_bounded_text(status: int, text: str) -> None:
    operation = Operation(doing="read a job", needs="scope api")
    refused = Refused(status=status, text=text, path="/x", headers={})
    error = translate(refused, operation, forge="gl", now_s=NOW.timestamp())
    assert str(error).startswith("gl: could not read a job (/x): ")
    assert len(str(error)) < 600
