"""What the sandbox's GitLab says about jobs: webhooks, REST jobs and handouts, compared with the documented shapes."""

import json

from autoscaler.sandbox.gitlab_world import GitLabWorld
from tests.shared import require_shared
from tests.unit.gitlab_builders import T0, add_runner, hooks, newest, serve, spec, submit


def test_each_announced_change_sends_one_webhook_and_skipped_sends_none() -> None:
    world = GitLabWorld()
    submit(world, spec("a"), spec("b", needs=("a",)))
    assert hooks(world) == [("a job", "created"), ("b job", "created"), ("a job", "pending")]
    failed = serve(world, add_runner(world, "linux"), "failed")
    assert hooks(world) == [("a job", "running"), ("a job", "failed")]
    world.retry_job(failed.id, T0)
    assert hooks(world) == [("a job", "created"), ("a job", "pending")]
    assert hooks(world) == []


def test_webhook_bodies_have_exactly_the_documented_keys() -> None:
    folder = require_shared() / "fixtures" / "gitlab"
    seen = set()
    for end in ("success", "failed"):
        world = GitLabWorld()
        submit(world, spec("a"))
        serve(world, add_runner(world, "linux"), end)
        for delivery in world.drain_webhooks():
            body = json.loads(json.dumps(delivery.payload))
            status = body["build_status"]
            name = "job_failed_script" if status == "failed" else f"job_{status}"
            assert shape(body) == shape(json.loads((folder / f"{name}.json").read_text())), status
            seen.add(status)
    assert seen == {"created", "pending", "running", "success", "failed"}


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
