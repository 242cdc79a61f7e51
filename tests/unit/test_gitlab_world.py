"""The sandbox's GitLab as a model: pipelines, matching, two-phase hand-out, retries, cancels, stuck jobs."""

import contextlib
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.sandbox.gitlab_model import FINISHED, Contact, GitLabRefusal, Job, JobStatus, Offer, Runner, RunnerType
from autoscaler.sandbox.gitlab_runners import MAX_RUNNERS, RunnerRequest
from autoscaler.sandbox.gitlab_world import GitLabWorld
from tests.unit.gitlab_builders import HOUR_S, T0, add_runner, newest, serve, spec, start, submit


def test_jobs_without_needs_are_pending_and_the_others_wait() -> None:
    world = GitLabWorld()
    submit(world, spec("build"), spec("test", needs=("build",)))
    assert newest(world, "build").status is JobStatus.PENDING
    assert newest(world, "test").status is JobStatus.CREATED


def test_a_job_becomes_pending_when_its_needs_succeeded() -> None:
    world = GitLabWorld()
    submit(world, spec("build"), spec("test", needs=("build",)))
    serve(world, add_runner(world, "linux"), now=T0 + 5)
    assert newest(world, "test").status is JobStatus.PENDING
    assert newest(world, "test").pending_at == T0 + 5


def test_jobs_behind_a_failed_need_are_skipped_and_wait_again_after_its_retry() -> None:
    world, runner = GitLabWorld(), None
    submit(world, spec("build"), spec("test", needs=("build",)), spec("deploy", needs=("test",)))
    runner = add_runner(world, "linux")
    failed = serve(world, runner, "failed")
    assert [newest(world, key).status for key in ("test", "deploy")] == [JobStatus.SKIPPED, JobStatus.SKIPPED]
    clone = world.retry_job(failed.id, T0 + 1)
    assert (clone.retries, clone.status, failed.retried) == (1, JobStatus.PENDING, True)
    assert [newest(world, key).status for key in ("test", "deploy")] == [JobStatus.CREATED, JobStatus.CREATED]
    for at in (2, 3, 4):
        serve(world, runner, now=T0 + at)
    assert {outcome.status for outcome in world.outcomes()} == {JobStatus.SUCCESS}


def test_circular_or_unknown_needs_are_refused() -> None:
    for jobs in ((spec("a", needs=("b",)), spec("b", needs=("a",))), (spec("a", needs=("ghost",)),)):
        with pytest.raises(GitLabRefusal) as refused:
            submit(GitLabWorld(), *jobs)
        assert refused.value.status == 400


def test_the_oldest_matching_job_is_handed_out_first() -> None:
    world = GitLabWorld()
    submit(world, spec("gpu", labels=("gpu",)), spec("first"), spec("second"))
    offer = world.request_job(add_runner(world, "linux", "x64").token, "s_1", T0)
    assert offer is not None
    assert offer.spec.key == "first"


@pytest.mark.parametrize(
    ("tags", "untagged", "labels", "takes"),
    [
        (("linux",), False, ("linux",), True),
        (("linux",), False, ("linux", "gpu"), False),
        (("linux", "gpu"), False, ("gpu",), True),
        (("linux",), False, (), False),
        (("linux",), True, (), True),
    ],
)
def test_job_tags_must_be_within_runner_tags(
    tags: tuple[str, ...], untagged: bool, labels: tuple[str, ...], takes: bool
) -> None:
    world = GitLabWorld()
    submit(world, spec("a", labels=labels))
    runner = add_runner(world, *tags, untagged=untagged)
    assert (world.request_job(runner.token, "s_1", T0) is not None) is takes


def test_group_runners_serve_subgroups_and_project_runners_only_their_project() -> None:
    world = GitLabWorld()
    submit(world, spec("a"), repo="acme/web/site")
    foreign = add_runner(world, "linux", repo="acme/shop")
    top = world.find_group("acme").id
    group = world.create_runner(RunnerRequest(runner_type=RunnerType.GROUP, scope_id=top, tags=("linux",)), T0)
    assert world.request_job(foreign.token, "s_1", T0) is None
    assert world.request_job(group.token, "s_1", T0) is not None


def test_a_paused_runner_gets_nothing_and_its_running_job_goes_on() -> None:
    world = GitLabWorld()
    submit(world, spec("a"), spec("b"))
    runner = add_runner(world, "linux")
    job = start(world, runner)
    world.pause_runner(runner.id)
    assert world.request_job(runner.token, "s_1", T0 + 1) is None
    assert world.update_job(job.token, "success", T0 + 2).status == 200


def test_a_handed_out_job_stays_pending_and_has_no_runner_until_confirmed() -> None:
    world = GitLabWorld()
    submit(world, spec("a"))
    runner = add_runner(world, "linux")
    offer = world.request_job(runner.token, "s_1", T0)
    assert offer is not None
    job = world.job(offer.job_id)
    assert (job.status, job.runner_id) == (JobStatus.PENDING, None)
    assert world.request_job(runner.token, "s_1", T0 + 1) is None
    world.update_job(offer.token, "running", T0 + 2)
    assert (job.status, job.runner_id, job.started_at) == (JobStatus.RUNNING, runner.id, T0 + 2)


def test_an_unconfirmed_job_is_failed_after_two_minutes_and_retried_by_gitlab() -> None:
    world = GitLabWorld()
    submit(world, spec("a"))
    offer = world.request_job(add_runner(world, "linux").token, "s_1", T0)
    assert offer is not None
    world.update_job(offer.token, "pending", T0 + 60)
    world.advance(T0 + 150)
    assert world.job(offer.job_id).status is JobStatus.PENDING
    world.advance(T0 + 181)
    assert world.job(offer.job_id).failure_reason == "runner_provisioning_timeout"
    assert newest(world, "a").status is JobStatus.PENDING
    assert newest(world, "a").id != offer.job_id


def test_a_runner_without_two_phase_commit_starts_at_once() -> None:
    world = GitLabWorld()
    submit(world, spec("a"))
    offer = world.request_job(add_runner(world, "linux").token, "s_1", T0, contact=Contact(two_phase=False))
    assert offer is not None
    assert world.job(offer.job_id).status is JobStatus.RUNNING


def test_only_ended_jobs_are_retryable_and_only_once() -> None:
    world = GitLabWorld()
    submit(world, spec("a"))
    job = newest(world, "a")
    for _ in range(2):
        with pytest.raises(GitLabRefusal, match="Job is not retryable") as refused:
            world.retry_job(job.id, T0)
        assert refused.value.status == 403
        if job.status is JobStatus.PENDING:
            serve(world, add_runner(world, "linux"), "failed")
            world.retry_job(job.id, T0)


def test_cancel_is_graceful_while_a_capable_runner_runs_the_job() -> None:
    world = GitLabWorld()
    submit(world, spec("a"))
    job = start(world, add_runner(world, "linux"))
    assert world.cancel_job(job.id, T0 + 1).status is JobStatus.CANCELING
    assert world.update_job(job.token, "running", T0 + 2).job_status is JobStatus.CANCELING
    assert world.update_job(job.token, "failed", T0 + 3).status == 200
    assert (job.status, job.finished_at) == (JobStatus.CANCELED, T0 + 3)


def test_a_canceling_job_can_be_forced_and_retried_and_no_other_can_be_forced() -> None:
    world = GitLabWorld()
    submit(world, spec("a"))
    job = start(world, add_runner(world, "linux"))
    with pytest.raises(GitLabRefusal) as refused:
        world.cancel_job(job.id, T0, force=True)
    assert refused.value.status == 422
    world.cancel_job(job.id, T0 + 1)
    clone = world.retry_job(job.id, T0 + 2)
    world.cancel_job(job.id, T0 + 3, force=True)
    assert (job.status, clone.status) == (JobStatus.CANCELED, JobStatus.PENDING)


def test_the_token_of_an_ended_job_is_refused_with_its_status() -> None:
    world = GitLabWorld()
    submit(world, spec("a"))
    job = start(world, add_runner(world, "linux"), contact=Contact(cancel_gracefully=False))
    world.cancel_job(job.id, T0 + 1)
    for call in (
        lambda: world.update_job(job.token, "running", T0),
        lambda: world.append_trace(job.token, 0, b"x", T0),
    ):
        with pytest.raises(GitLabRefusal) as refused:
            call()
        assert (refused.value.status, refused.value.job_status) == (403, "canceled")


def test_a_deleted_runner_is_refused_and_its_job_can_still_end() -> None:
    world = GitLabWorld()
    submit(world, spec("a"))
    runner = add_runner(world, "linux", name="m-7")
    job = start(world, runner)
    world.delete_runner(runner.id)
    with pytest.raises(GitLabRefusal) as refused:
        world.request_job(runner.token, "s_1", T0 + 1)
    assert refused.value.status == 403
    world.update_job(job.token, "success", T0 + 2)
    outcome = world.outcomes()[0]
    assert (outcome.status, outcome.served_by, outcome.served_count) == (JobStatus.SUCCESS, ("m-7",), 1)
    assert world.show_job(job, T0 + 3)["runner"] is None


def test_a_project_has_room_for_a_thousand_runners_and_forgets_stale_ones() -> None:
    world = GitLabWorld()
    for _ in range(MAX_RUNNERS):
        add_runner(world, "linux")
    with pytest.raises(GitLabRefusal, match=r"Maximum number of ci registered project runners \(1000\) exceeded"):
        add_runner(world, "linux")
    add_runner(world, "linux", now=T0 + 8 * 86400)


@pytest.mark.parametrize(
    "request_",
    [
        RunnerRequest(runner_type=RunnerType.PROJECT, scope_id=300, tags=(), run_untagged=False),
        RunnerRequest(runner_type=RunnerType.PROJECT, scope_id=300, tags=[f"t{n}" for n in range(51)]),
        RunnerRequest(runner_type=RunnerType.PROJECT, scope_id=300, maximum_timeout=30),
        RunnerRequest(runner_type=RunnerType.PROJECT, scope_id=None),
        RunnerRequest(runner_type=RunnerType.INSTANCE, scope_id=300),
    ],
)
def test_a_runner_that_does_not_validate_is_refused(request_: RunnerRequest) -> None:
    world = GitLabWorld()
    assert world.add_project("acme/shop", T0).id == 300
    with pytest.raises(GitLabRefusal) as refused:
        world.create_runner(request_, T0)
    assert refused.value.status == 400
    assert not world.list_runners()


def test_a_job_pending_for_an_hour_without_a_live_match_is_failed_by_the_hourly_worker() -> None:
    world = GitLabWorld()
    submit(world, spec("a"), now=T0 + 60)
    add_runner(world, "linux")
    world.advance(T0 + 2 * HOUR_S - 1)
    assert newest(world, "a").status is JobStatus.PENDING
    world.advance(T0 + 2 * HOUR_S)
    job = newest(world, "a")
    assert (job.failure_reason, job.finished_at) == ("stuck_pending_no_matching_runners", T0 + 2 * HOUR_S)


def test_verify_keeps_a_pool_alive_for_a_day_and_no_longer() -> None:
    world = GitLabWorld()
    submit(world, spec("a"), now=T0 + 60)
    runner = add_runner(world, "linux")
    for half_hour in range(1, 2 * 24 + 1):
        world.verify(runner.token, "s_1", T0 + half_hour * HOUR_S / 2)
        world.advance(T0 + half_hour * HOUR_S / 2)
    assert newest(world, "a").status is JobStatus.PENDING
    world.advance(T0 + 25 * HOUR_S)
    assert newest(world, "a").failure_reason == "stuck_pending_with_matching_runners"


def test_a_paused_runner_is_no_live_match() -> None:
    world = GitLabWorld()
    submit(world, spec("a"), now=T0 + 60)
    runner = add_runner(world, "linux")
    world.verify(runner.token, "s_1", T0 + 2 * HOUR_S - 5)
    world.pause_runner(runner.id)
    world.advance(T0 + 2 * HOUR_S)
    assert newest(world, "a").failure_reason == "stuck_pending_no_matching_runners"


def test_a_silent_running_job_is_failed_twenty_minutes_past_the_hour() -> None:
    world = GitLabWorld()
    submit(world, spec("a"), spec("b"))
    silent, talking = (start(world, add_runner(world, "linux"), now=T0 + 600) for _ in range(2))
    world.update_job(talking.token, "running", T0 + 3000)
    world.advance(T0 + HOUR_S + 1200)
    assert (silent.status, talking.status) == (JobStatus.FAILED, JobStatus.RUNNING)
    assert (silent.failure_reason, silent.finished_at) == ("no_updates_running", T0 + HOUR_S + 1200)


def test_a_silent_canceling_job_ends_canceled() -> None:
    world = GitLabWorld()
    submit(world, spec("a"))
    job = start(world, add_runner(world, "linux"))
    world.cancel_job(job.id, T0 + 10)
    world.advance(T0 + HOUR_S)
    assert job.status is JobStatus.CANCELING
    world.advance(T0 + HOUR_S + 1200)
    assert (job.status, job.failure_reason) == (JobStatus.CANCELED, "no_updates_canceling")


def test_an_enqueue_delay_holds_jobs_back_until_then() -> None:
    world = GitLabWorld(enqueue_delay_s=2.0)
    submit(world, spec("a"))
    assert (newest(world, "a").status, world.next_event_at()) == (JobStatus.CREATED, T0 + 2)
    world.advance(T0 + 5)
    assert (newest(world, "a").status, newest(world, "a").pending_at) == (JobStatus.PENDING, T0 + 2)


def test_trace_gaps_are_refused_and_the_final_update_needs_the_whole_trace() -> None:
    world = GitLabWorld()
    submit(world, spec("a"))
    job = start(world, add_runner(world, "linux"))
    assert world.append_trace(job.token, 0, b"hello ", T0).size == 6
    gap = world.append_trace(job.token, 9, b"late", T0)
    assert (gap.status, gap.size) == (416, 6)
    text = b"hello world"
    checksum = f"crc32:{zlib.crc32(text):08x}"
    final = {"checksum": checksum, "bytesize": len(text)}
    assert world.update_job(job.token, "success", T0, **final).status == 412  # type: ignore[arg-type]
    world.append_trace(job.token, 6, b"world", T0)
    assert world.update_job(job.token, "success", T0, **final).status == 200  # type: ignore[arg-type]


def test_a_trace_beyond_the_limit_fails_the_job() -> None:
    world = GitLabWorld()
    submit(world, spec("a"))
    job = start(world, add_runner(world, "linux"))
    with pytest.raises(GitLabRefusal):
        world.append_trace(job.token, 0, b"x" * ((4 << 20) + 1), T0)
    assert job.failure_reason == "trace_size_exceeded"


def test_a_final_update_is_accepted_late_while_the_trace_is_archived() -> None:
    world = GitLabWorld(trace_archive_s=5.0)
    submit(world, spec("a"))
    job = start(world, add_runner(world, "linux"))
    assert world.update_job(job.token, "success", T0).status == 202
    assert world.update_job(job.token, "success", T0 + 4).status == 202
    assert job.status is JobStatus.RUNNING
    assert world.update_job(job.token, "success", T0 + 5).status == 200


def test_two_worlds_with_the_same_history_are_equal_and_another_seed_has_other_tokens() -> None:
    def history(seed: int) -> tuple[list[object], str]:
        world = GitLabWorld(seed=seed)
        submit(world, spec("a"), spec("b", needs=("a",)))
        runner = add_runner(world, "linux")
        serve(world, runner, now=T0 + 1)
        return [(d.idempotency_key, d.payload) for d in world.drain_webhooks()], runner.token

    assert history(1) == history(1)
    assert history(1)[1] != history(2)[1]


VERBS = ["ask", "ok", "fail", "cancel", "retry", "wait", "pause"]


class Players:
    """Three runners and a person, who do what they are told and live with refusals."""

    def __init__(self, world: GitLabWorld) -> None:
        self.world, self.now = world, T0
        self.runners = [add_runner(world, "linux", name=f"m-{n}") for n in range(3)]
        self.offers: list[Offer] = []

    def jobs(self) -> list[Job]:
        return [self.world.job(job_id) for outcome in self.world.outcomes() for job_id in outcome.job_ids]

    def play(self, verb: str, number: int) -> None:
        self.now += 7
        jobs = self.jobs()
        match verb:
            case "ask":
                self._ask(self.runners[number % 3])
            case "ok" | "fail" if self.offers:
                token = self.offers[number % len(self.offers)].token
                self.world.update_job(token, "success" if verb == "ok" else "failed", self.now)
            case "cancel":
                self.world.cancel_job(jobs[number % len(jobs)].id, self.now)
            case "retry":
                self.world.retry_job(jobs[number % len(jobs)].id, self.now)
            case "wait":
                self.now += 1000 * number
                self.world.advance(self.now)
            case "pause":
                self.world.pause_runner(self.runners[number % 3].id, paused=number > 2)

    def _ask(self, runner: Runner) -> None:
        offer = self.world.request_job(runner.token, "s_1", self.now)
        if offer is not None:
            assert offer.job_id not in [held.job_id for held in self.offers]
            self.offers.append(offer)
            self.world.update_job(offer.token, "running", self.now)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 5)), max_size=40))
def test_no_job_is_ever_held_twice_and_ended_jobs_stay_ended(steps: list[tuple[str, int]]) -> None:
    world = GitLabWorld()
    submit(world, spec("a"), spec("b"), spec("c", needs=("a", "b")))
    players = Players(world)
    ended: dict[int, JobStatus] = {}
    for verb, number in steps:
        with contextlib.suppress(GitLabRefusal):
            players.play(verb, number)
        jobs = players.jobs()
        ended |= {job.id: ended.get(job.id, job.status) for job in jobs if job.status in FINISHED}
        assert {job.id: job.status for job in jobs if job.id in ended} == ended
        listed = [job.id for job in world.list_jobs(world.find_project("acme/shop").id)]
        assert listed == sorted((job.id for job in jobs), reverse=True)
