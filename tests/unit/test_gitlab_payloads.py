"""What the sandbox's GitLab says about jobs: webhooks, REST jobs and handouts, compared with the documented shapes."""

import json
from collections.abc import Callable

import pytest

from autoscaler.sandbox.gitlab_world import GitLabWorld
from tests.shared import require_shared
from tests.unit.gitlab_builders import HOUR_S, T0, add_runner, hooks, newest, serve, spec, start, submit


def test_each_announced_change_sends_one_webhook_and_skipped_sends_none() -> None:
    world = GitLabWorld()
    submit(world, spec("a"), spec("b", needs=("a",)))
    assert hooks(world) == [("a job", "created"), ("b job", "created"), ("a job", "pending")]
    failed = serve(world, add_runner(world, "linux"), "failed")
    assert hooks(world) == [("a job", "running"), ("a job", "failed")]
    world.retry_job(failed.id, T0)
    assert hooks(world) == [("a job", "created"), ("a job", "pending")]
    assert hooks(world) == []


def bodies(world: GitLabWorld) -> dict[str, dict[str, object]]:
    """The webhooks so far as they go over the wire; the last of each status."""
    return {str(d.payload["build_status"]): json.loads(json.dumps(d.payload)) for d in world.drain_webhooks()}


def one_job(now: float = T0) -> GitLabWorld:
    world = GitLabWorld()
    submit(world, spec("a"), now=now)
    return world


def ended(state: str) -> dict[str, dict[str, object]]:
    world = one_job()
    serve(world, add_runner(world, "linux"), state)
    return bodies(world)


def canceled_while_pending() -> dict[str, object]:
    world = one_job()
    world.cancel_job(newest(world, "a").id, T0 + 1)
    return bodies(world)["canceled"]


def canceled_while_running() -> dict[str, object]:
    world = one_job()
    job = start(world, add_runner(world, "linux"))
    world.cancel_job(job.id, T0 + 1)
    world.update_job(job.token, "failed", T0 + 2)
    return bodies(world)["canceled"]


def stuck() -> dict[str, object]:
    world = one_job()
    world.advance(T0 + 2 * HOUR_S)
    return bodies(world)["failed"]


def silent() -> dict[str, object]:
    world = one_job()
    start(world, add_runner(world, "linux"))
    world.advance(T0 + 3 * HOUR_S)
    return bodies(world)["failed"]


@pytest.mark.parametrize(
    ("fixture", "make"),
    [
        ("job_created", lambda: ended("success")["created"]),
        ("job_pending", lambda: ended("success")["pending"]),
        ("job_running", lambda: ended("success")["running"]),
        ("job_success", lambda: ended("success")["success"]),
        ("job_failed_script", lambda: ended("failed")["failed"]),
        ("job_canceled_while_pending", canceled_while_pending),
        ("job_canceled_while_running", canceled_while_running),
        ("job_failed_stuck_pending_no_matching_runners", stuck),
        ("job_failed_no_updates_running", silent),
    ],
)
def test_webhook_bodies_have_exactly_the_documented_keys(fixture: str, make: Callable[[], dict[str, object]]) -> None:
    expected = json.loads((require_shared() / "fixtures" / "gitlab" / f"{fixture}.json").read_text())
    body = make()
    assert shape(body) == shape(expected)
    for key in ("object_kind", "build_status", "build_failure_reason", "retries_count"):
        assert body[key] == expected[key]


def test_the_webhook_of_a_retry_counts_the_attempts() -> None:
    world = one_job()
    failed = serve(world, add_runner(world, "linux"), "failed")
    world.drain_webhooks()
    clone = world.retry_job(failed.id, T0 + 9)
    body = bodies(world)["pending"]
    assert (body["build_id"], body["retries_count"], body["pipeline_id"]) == (clone.id, 1, failed.pipeline_id)


def test_webhooks_carry_no_job_tags_and_no_runner_before_the_start() -> None:
    world = GitLabWorld()
    submit(world, spec("a", labels=("very-special-tag",)))
    offer = world.request_job(add_runner(world, "very-special-tag").token, "s_1", T0)
    assert offer is not None
    before = world.drain_webhooks()
    assert all(d.payload["runner"] is None and "very-special-tag" not in json.dumps(d.payload) for d in before)
    assert [d.payload["build_failure_reason"] for d in before] == [None, "unknown_failure"]


def shape(value: object) -> object:
    """Keys in order, and which values are null; list members and texts left out."""
    if isinstance(value, dict):
        return [(key, shape(member)) for key, member in value.items()]
    return None if value is None else "value"


def test_rest_jobs_and_handouts_have_the_documented_keys() -> None:
    folder = require_shared() / "fixtures" / "gitlab"
    world = GitLabWorld()
    submit(world, spec("a"))
    shown = json.loads(json.dumps(world.show_job(newest(world, "a"), T0 + 12)))
    listed = json.loads((folder / "rest_jobs_pending.json").read_text())[0]
    assert list(shown) == list(listed)
    assert (shown["tag_list"], shown["queued_duration"]) == (["linux"], 12.0)
    assert set(listed["user"]) <= set(shown["user"])
    offer = world.request_job(add_runner(world, "linux").token, "s_1", T0)
    assert offer is not None
    handed = json.loads(json.dumps(world.handout(offer, T0)))
    expected = json.loads((folder / "runner_jobs_request_201.json").read_text())
    assert list(handed) == list(expected)
    for part in ("job_info", "git_info", "runner_info", "features", "image"):
        assert list(handed[part]) == list(expected[part])
    assert list(handed["steps"][0]) == list(expected["steps"][0])
    assert list(handed["variables"][0]) == list(expected["variables"][0])
