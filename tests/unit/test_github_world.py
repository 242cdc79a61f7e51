"""The sandbox's github.com as a model: what runs, jobs and runners do, without HTTP and without a clock."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.sandbox.github_model import Conclusion, GitHubError, Job, Webhook, WorldPolicy
from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.workload import JobSpec, RunSpec

REPO, ORG, T0 = "octo-org/app", "octo-org", 1_700_000_000.0


def spec(key: str, *needs: str, labels: tuple[str, ...] = ("linux",), name: str | None = None) -> JobSpec:
    return JobSpec(key=key, name=name or key, labels=labels, needs=needs)


def run_of(*jobs: JobSpec, repo: str = REPO) -> RunSpec:
    return RunSpec(repo=repo, workflow="ci", jobs=jobs)


def world_of(*jobs: JobSpec, policy: WorldPolicy | None = None) -> tuple[GitHubWorld, int]:
    """A world with an App hook and one run, whose first webhooks are drained."""
    world = GitHubWorld([REPO, "octo-org/lib"], policy=policy)
    world.add_hook(None, "http://daemon.test/webhooks/github", secret=b"s", now=T0)
    world.drain_webhooks()
    return world, world.submit(run_of(*jobs), T0)


def runner(world: GitHubWorld, name: str, now: float = T0, *, labels: tuple[str, ...] = ("linux",)) -> int:
    """An online, idle runner of the organisation."""
    made = world.generate_jitconfig(ORG, name, 1, labels, now)
    world.connect(made.id, now)
    return made.id


def serve(world: GitHubWorld, name: str, now: float, conclusion: Conclusion = "success") -> Job:
    number = runner(world, name, now)
    job = world.take_job(number, now)
    assert job is not None
    world.complete(number, conclusion, now)
    return job


def events(webhooks: list[Webhook]) -> list[tuple[str, str]]:
    return [(row.event, row.action) for row in webhooks]


def statuses(world: GitHubWorld, run_id: int) -> dict[str, str]:
    return {key: job.conclusion or job.status for key, job in world.run(run_id).jobs.items()}


def refused(status: int, words: str = "") -> "pytest.RaisesExc[GitHubError]":
    return pytest.raises(GitHubError, match=f"{status} .*{words}")


def test_a_job_is_queued_only_when_its_needs_are_done() -> None:
    world, run_id = world_of(spec("build"), spec("test", "build"), spec("ship", "test", "build"))
    assert statuses(world, run_id) == {"build": "queued"}
    serve(world, "a", T0 + 1)
    assert statuses(world, run_id) == {"build": "success", "test": "queued"}
    serve(world, "b", T0 + 2)
    serve(world, "c", T0 + 3)
    assert world.run(run_id).conclusion == "success"


def test_a_failed_need_skips_everything_behind_it() -> None:
    world, run_id = world_of(spec("build"), spec("test", "build"), spec("ship", "test"), spec("lint"))
    serve(world, "a", T0 + 1, "failure")
    assert statuses(world, run_id) == {"build": "failure", "test": "skipped", "ship": "skipped", "lint": "queued"}
    assert world.run(run_id).status == "in_progress"
    serve(world, "b", T0 + 2)
    assert world.run(run_id).conclusion == "failure"


def test_webhooks_tell_a_runs_whole_life_in_order() -> None:
    world, _ = world_of(spec("build"))
    serve(world, "a", T0 + 1)
    assert events(world.drain_webhooks()) == [
        ("workflow_run", "requested"),
        ("workflow_job", "queued"),
        ("workflow_job", "in_progress"),
        ("workflow_run", "in_progress"),
        ("workflow_job", "completed"),
        ("workflow_run", "completed"),
    ]
    assert world.drain_webhooks() == []


def test_a_payload_shows_the_moment_of_its_event() -> None:
    world, _ = world_of(spec("build"))
    serve(world, "a", T0 + 1)
    jobs = [row.payload["workflow_job"] for row in world.drain_webhooks() if row.event == "workflow_job"]
    assert [row["status"] for row in jobs] == ["queued", "in_progress", "completed"]
    assert [row["runner_name"] for row in jobs] == [None, "a", "a"]
    assert jobs[0]["started_at"] == jobs[0]["created_at"]


def test_a_runner_takes_the_oldest_job_that_asks_for_no_more_than_it_has() -> None:
    world, run_id = world_of(spec("gpu", labels=("linux", "gpu")), spec("old"), spec("young"))
    number = runner(world, "a", labels=("Linux", "x64"))
    taken = world.take_job(number, T0)
    assert taken is not None
    assert taken.spec.key == "old"
    assert world.take_job(number, T0) is None
    assert statuses(world, run_id)["gpu"] == "queued"


def test_scopes_and_runner_groups_bound_what_a_runner_may_take() -> None:
    world, _ = world_of(spec("build"))
    group = world.add_runner_group(ORG, "libs", repos=["octo-org/lib"])
    grouped = world.generate_jitconfig(ORG, "grouped", group.id, ["linux"], T0)
    foreign = world.generate_jitconfig("octo-org/lib", "foreign", 1, ["linux"], T0)
    own = world.generate_jitconfig(REPO, "own", 1, ["linux"], T0)
    for made in (grouped, foreign, own):
        world.connect(made.id, T0)
    assert world.take_job(grouped.id, T0) is None
    assert world.take_job(foreign.id, T0) is None
    assert world.take_job(own.id, T0) is not None


def test_runner_names_are_unique_in_their_scope_until_freed() -> None:
    world, _ = world_of(spec("build"))
    first = world.generate_jitconfig(ORG, "vm", 1, ["linux"], T0)
    with refused(409):
        world.generate_jitconfig(ORG, "vm", 1, ["linux"], T0)
    world.generate_jitconfig(REPO, "vm", 1, ["linux"], T0)
    world.delete_runner(ORG, first.id, T0)
    world.generate_jitconfig(ORG, "vm", 1, ["linux"], T0)


def test_a_runner_goes_from_offline_to_online_to_busy_to_gone() -> None:
    world, _ = world_of(spec("build"))
    made = world.generate_jitconfig(ORG, "vm", 1, ["linux"], T0)
    with refused(401):
        world.take_job(made.id, T0)
    assert (made.online, made.version) == (False, None)
    world.connect(made.id, T0)
    with refused(409):
        world.connect(made.id, T0)
    world.take_job(made.id, T0)
    assert made.busy
    with refused(422, "still running a job"):
        world.delete_runner(ORG, made.id, T0)
    world.complete(made.id, "success", T0)
    with refused(404):
        world.runner(made.id)


def test_a_silent_busy_runner_keeps_its_job_until_the_lease_ends() -> None:
    world, run_id = world_of(spec("build"), policy=WorldPolicy(lease_s=600))
    number = runner(world, "vm")
    job = world.take_job(number, T0)
    assert job is not None
    world.renew(number, T0 + 60)
    world.advance(T0 + 659)
    assert world.runner(number).busy
    world.advance(T0 + 660)
    assert world.run(run_id).conclusion == "failure"
    assert job.annotations[0].startswith("The self-hosted runner: vm lost communication with the server.")
    with refused(404):
        world.complete(number, "success", T0 + 661)


def test_an_idle_runner_that_falls_silent_is_shown_offline_until_it_polls() -> None:
    world, _ = world_of(policy=WorldPolicy(session_s=120))
    number = runner(world, "vm")
    world.take_job(number, T0 + 100)
    world.advance(T0 + 219)
    assert world.runner(number).online
    world.advance(T0 + 220)
    assert not world.runner(number).online
    world.take_job(number, T0 + 300)
    assert world.runner(number).online


def test_a_closed_session_takes_no_job() -> None:
    world, _ = world_of(spec("build"))
    number = runner(world, "vm")
    world.disconnect(number, T0)
    with refused(401):
        world.take_job(number, T0)
    world.connect(number, T0 + 1)
    assert world.take_job(number, T0 + 1) is not None


def test_an_ephemeral_runner_that_stays_offline_is_removed_after_a_day() -> None:
    world, _ = world_of()
    never = world.generate_jitconfig(ORG, "never", 1, ["linux"], T0).id
    left = runner(world, "left")
    world.disconnect(left, T0 + 3600)
    world.advance(T0 + 86_400)
    assert set(world.runners) == {left}
    world.advance(T0 + 90_000)
    assert world.runners == {}
    assert never not in world.runners


def test_a_job_queued_for_more_than_a_day_is_cancelled() -> None:
    world, run_id = world_of(spec("build"))
    world.advance(T0 + 86_399)
    assert statuses(world, run_id) == {"build": "queued"}
    world.advance(T0 + 86_400)
    assert world.run(run_id).conclusion == "cancelled"


def test_a_protected_job_waits_and_its_queued_event_still_says_waiting() -> None:
    world, run_id = world_of(spec("deploy"), policy=WorldPolicy(protected={"deploy": 30}))
    assert world.run(run_id).status == "waiting"
    number = runner(world, "vm")
    assert world.take_job(number, T0 + 29) is None
    world.advance(T0 + 30)
    job_events = [row for row in world.drain_webhooks() if row.event == "workflow_job"]
    assert [row.action for row in job_events] == ["waiting", "queued"]
    assert [row.payload["workflow_job"]["status"] for row in job_events] == ["waiting", "waiting"]
    assert world.take_job(number, T0 + 30) is not None


def test_reruns_are_refused_while_the_run_is_in_progress() -> None:
    world, run_id = world_of(spec("a"), spec("b"))
    done = serve(world, "vm", T0, "failure")
    with refused(403, "The workflow run containing this job is already running"):
        world.rerun_job(done.id, T0)
    with refused(403, "This workflow is already running"):
        world.rerun_failed_jobs(run_id, T0)
    with refused(403, "This workflow is already running"):
        world.rerun(run_id, T0)


def test_a_rerun_of_failed_jobs_makes_new_ids_and_keeps_the_rest() -> None:
    world, run_id = world_of(spec("a"), spec("b"), spec("after", "b"))
    kept = serve(world, "vm-1", T0)
    failed = serve(world, "vm-2", T0, "failure")
    world.drain_webhooks()
    world.rerun_failed_jobs(run_id, T0 + 1)
    run = world.run(run_id)
    assert run.attempt == 2
    copy = run.jobs["a"]
    assert copy.id != kept.id
    assert (copy.is_copy, copy.conclusion, copy.runner_name) == (True, "success", kept.runner_name)
    assert run.jobs["b"].id != failed.id
    assert events(world.drain_webhooks()) == [
        ("workflow_run", "requested"),
        ("workflow_job", "completed"),
        ("workflow_job", "queued"),
    ]
    serve(world, "vm-3", T0 + 2)
    serve(world, "vm-4", T0 + 3)
    assert run.conclusion == "success"
    assert {key: job.attempt for key, job in run.jobs.items()} == {"a": 2, "b": 2, "after": 2}


def test_a_rerun_of_one_job_takes_its_dependents_along_and_no_other_failure() -> None:
    world, run_id = world_of(spec("a"), spec("b"), spec("after", "a"))
    lost = serve(world, "vm-1", T0, "failure")
    genuine = serve(world, "vm-2", T0, "failure")
    world.rerun_job(lost.id, T0 + 1)
    copy = world.run(run_id).jobs["b"]
    assert (copy.is_copy, copy.conclusion, copy.runner_name) == (True, "failure", genuine.runner_name)
    serve(world, "vm-3", T0 + 2)
    assert statuses(world, run_id) == {"a": "success", "b": "failure", "after": "queued"}
    serve(world, "vm-4", T0 + 3)
    assert world.run(run_id).conclusion == "failure"
    with refused(403, "Only jobs from the current attempt can be re-run"):
        world.rerun_job(genuine.id, T0 + 4)
    world.rerun_job(copy.id, T0 + 4)
    assert statuses(world, run_id)["b"] == "queued"


def test_a_run_without_failures_cannot_be_retried_but_can_be_run_again() -> None:
    world, run_id = world_of(spec("a"))
    serve(world, "vm-1", T0)
    with refused(403, "cannot be retried"):
        world.rerun_failed_jobs(run_id, T0)
    world.rerun(run_id, T0)
    assert statuses(world, run_id) == {"a": "queued"}


def test_reruns_end_after_a_month_and_after_fifty() -> None:
    world, run_id = world_of(spec("a"))
    serve(world, "vm", T0, "failure")
    for _ in range(50):
        world.rerun_failed_jobs(run_id, T0)
        serve(world, "vm", T0, "failure")
    with refused(403):
        world.rerun_failed_jobs(run_id, T0)
    other = world.submit(run_of(spec("a")), T0)
    serve(world, "vm", T0, "failure")
    with refused(403, "over a month ago"):
        world.rerun(other, T0 + 31 * 86_400)


def test_a_cancel_ends_queued_jobs_at_once_and_asks_the_runner_to_stop() -> None:
    world, run_id = world_of(spec("a"), spec("b"), spec("after", "a"))
    number = runner(world, "vm")
    world.take_job(number, T0)
    world.cancel(run_id, T0)
    assert statuses(world, run_id) == {"a": "in_progress", "b": "cancelled"}
    assert world.cancel_asked(number)
    world.complete(number, "cancelled", T0 + 5)
    assert statuses(world, run_id)["after"] == "skipped"
    assert world.run(run_id).conclusion == "cancelled"
    with refused(409):
        world.cancel(run_id, T0 + 6)


def test_a_cancel_that_no_runner_heeds_is_forced_after_five_minutes() -> None:
    world, run_id = world_of(spec("a"))
    number = runner(world, "vm")
    world.take_job(number, T0)
    world.cancel(run_id, T0)
    world.advance(T0 + 299)
    assert world.run(run_id).status == "in_progress"
    world.advance(T0 + 300)
    assert world.run(run_id).conclusion == "cancelled"
    assert number not in world.runners


def test_force_cancel_does_not_wait_for_the_runner() -> None:
    world, run_id = world_of(spec("a"))
    number = runner(world, "vm")
    world.take_job(number, T0)
    world.cancel(run_id, T0, force=True)
    assert world.run(run_id).conclusion == "cancelled"
    assert number not in world.runners


def test_job_records_follow_a_job_over_its_attempts() -> None:
    world, run_id = world_of(spec("a"), spec("b", "a"))
    serve(world, "vm-1", T0 + 10, "failure")
    world.rerun_failed_jobs(run_id, T0 + 20)
    serve(world, "vm-2", T0 + 30)
    first, second = world.job_records()
    assert (first.first_queued_at, first.first_started_at, first.finished_at) == (T0, T0 + 10, T0 + 30)
    assert (first.conclusion, first.runner_names, first.served) == ("success", ("vm-1", "vm-2"), 2)
    assert (second.key, second.conclusion, second.served) == ("b", None, 0)


def test_quirks_repeat_and_swap_webhooks_without_losing_any() -> None:
    policy = WorldPolicy(duplicate_webhooks=0.5, swapped_webhooks=0.5, seed=1)
    plain, noisy = (
        world_of(*(spec(f"j{i}") for i in range(30))),
        world_of(*(spec(f"j{i}") for i in range(30)), policy=policy),
    )
    expected = [row.payload for row in plain[0].drain_webhooks()]
    webhooks = noisy[0].drain_webhooks()
    once = {row.guid: row.payload for row in webhooks}
    assert len(webhooks) > len(once) == len(expected)
    assert list(once.values()) != expected
    assert all(payload in expected for payload in once.values())


def test_the_same_calls_make_the_same_world() -> None:
    def webhooks() -> list[tuple[str, object]]:
        world, run_id = world_of(spec("a"), spec("b", "a"), policy=WorldPolicy(duplicate_webhooks=0.3, seed=5))
        serve(world, "vm-1", T0 + 1, "failure")
        world.rerun_failed_jobs(run_id, T0 + 2)
        return [(row.guid, row.payload) for row in world.drain_webhooks()]

    assert webhooks() == webhooks()


def test_deadlines_are_announced_so_that_a_simulation_can_jump() -> None:
    world, _ = world_of(policy=WorldPolicy(session_s=None))
    assert world.next_deadline() is None
    world.submit(run_of(spec("a")), T0)
    assert world.next_deadline() == T0 + 86_400
    number = runner(world, "vm")
    world.take_job(number, T0 + 5)
    assert world.next_deadline() == T0 + 605


_ACTIONS = ("submit", "mint", "connect", "take", "finish", "fail", "vanish", "delete", "rerun", "cancel", "wait")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(_ACTIONS), st.integers(0, 5)), max_size=60))
def test_whatever_happens_no_job_runs_twice_and_every_run_can_end(steps: list[tuple[str, int]]) -> None:
    world, _ = world_of(spec("a"), spec("b", "a"), spec("c", labels=("gpu",)), policy=WorldPolicy(lease_s=60))
    now = T0
    for count, (action, pick) in enumerate(steps):
        now += 1 + (30 * pick if action == "wait" else 0)
        with contextlib.suppress(GitHubError):
            act(world, action, pick, f"vm-{count}", now)
        check(world)
    for count in range(400):
        if all(run.status == "completed" for run in world.runs.values()):
            break
        now += 61
        world.advance(now)
        labels = ("linux", "gpu")
        number = runner(world, f"last-{count}", now, labels=labels)
        if world.take_job(number, now) is not None:
            world.complete(number, "success", now)
    assert {run.status for run in world.runs.values()} == {"completed"}
    check(world)


def act(world: GitHubWorld, action: str, pick: int, name: str, now: float) -> None:
    """One random step; on nothing at all it does nothing."""
    runners = list(world.runners)
    chosen = runners[pick % len(runners)] if runners else 0
    run_id = list(world.runs)[pick % len(world.runs)]
    match action:
        case "submit":
            world.submit(run_of(spec("a"), spec("b", "a")), now)
        case "mint":
            world.generate_jitconfig(ORG, name, 1, ["linux"] if pick % 2 else ["linux", "gpu"], now)
        case "connect":
            world.connect(chosen, now)
        case "take":
            world.take_job(chosen, now)
        case "finish":
            world.complete(chosen, "success", now)
        case "fail":
            world.complete(chosen, "failure", now)
        case "vanish":
            world.disconnect(chosen, now)
        case "delete":
            world.delete_runner(ORG, chosen, now)
        case "rerun":
            world.rerun_failed_jobs(run_id, now)
        case "cancel":
            world.cancel(run_id, now, force=pick % 2 == 0)
        case "wait":
            world.advance(now)


def check(world: GitHubWorld) -> None:
    """Each running job is held by exactly one runner, and statuses agree with what is in them."""
    held = [row.job_id for row in world.runners.values() if row.job_id is not None]
    running = [job.id for job in world.jobs.values() if job.status == "in_progress"]
    assert sorted(held) == sorted(running)
    for run in world.runs.values():
        over = len(run.jobs) == len(run.spec.jobs) and all(job.status == "completed" for job in run.jobs.values())
        assert (run.status == "completed") == over == (run.conclusion is not None)
    for job in world.jobs.values():
        assert (job.status == "completed") == (job.conclusion is not None) == (job.completed_at is not None)
