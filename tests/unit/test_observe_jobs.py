"""What forges say about jobs becomes rows: missing, late, doubled and reordered events cost time, never truth."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.facts import AgentReported
from autoscaler.model import EndReason, InstanceState, JobState, Launch, Release, SeenBy, Terminate
from autoscaler.plan import plan
from autoscaler.spi import Conclusion, ForgeJob, JobStatus, MachineState
from tests.admin_world import ARM, GITHUB, GPU, LINUX, OFFERING, pool, rules_of
from tests.unit.observing import (
    REPO,
    Observing,
    completed,
    id_of,
    listed_machine,
    seen_job,
    started,
)

S = InstanceState
CREATED = seen_job(status=JobStatus.CREATED)


@pytest.fixture
async def world() -> Observing:
    return await Observing().start()


# ---------------------------------------------------------------------- an ordinary life


async def test_a_job_is_queued_runs_on_our_machine_and_is_done(world: Observing) -> None:
    machine = await world.have_runner()
    await world.webhook(seen_job())
    job = world.job()
    assert job is not None
    assert (job.state, job.pool, job.seen_by) == (JobState.QUEUED, LINUX, SeenBy.WEBHOOK)
    await world.webhook(started())
    job = world.job()
    assert job is not None
    assert (job.state, job.instance) == (JobState.RUNNING, machine.id)
    assert world.state(machine) is S.BUSY
    await world.webhook(completed())
    done = await world.ended()
    assert (done.state, done.conclusion, done.instance) == (JobState.DONE, Conclusion.SUCCESS, machine.id)


async def test_a_job_that_no_pool_serves_is_kept_with_the_reason(world: Observing) -> None:
    await world.webhook(seen_job(labels=("gpu", "linux")))
    job = world.job()
    assert job is not None
    assert (job.pool, job.unserved) == (None, "no pool that serves acme/shop has the label gpu (pool linux is nearest)")


async def test_a_changed_configuration_finds_a_pool_for_an_unserved_job(world: Observing) -> None:
    await world.webhook(seen_job(labels=("gpu", "linux")))
    world.jobs.rematch(rules_of(pool(GPU, "gpu", "linux")), world.now)
    job = world.job()
    assert job is not None
    assert (job.pool, job.unserved) == (GPU, "")


@pytest.mark.parametrize("seen", [CREATED, seen_job(labels=("ubuntu-latest",)), seen_job(repo="other/app")])
async def test_what_is_not_ours_to_serve_is_no_job(world: Observing, seen: ForgeJob) -> None:
    await world.webhook(seen)
    await world.listing(seen)
    assert not world.rows.jobs


async def test_a_job_without_labels_is_asked_for_and_counts_as_seen_by_webhook(world: Observing) -> None:
    await world.webhook(seen_job(labels=None))
    assert world.job() is None
    assert world.jobs.unlabelled[GITHUB] == {"1": REPO}
    assert world.jobs.unlabelled_came[GITHUB].is_set()
    await world.answer(id_of(1), seen_job())
    job = world.job()
    assert job is not None
    assert job.seen_by is SeenBy.WEBHOOK
    assert not world.jobs.unlabelled[GITHUB]


# ---------------------------------------------------------------------- the documented misbehaviour of events


async def test_completed_without_in_progress_ends_a_queued_job(world: Observing) -> None:
    machine = await world.have_runner()
    await world.webhook(seen_job())
    await world.webhook(completed(conclusion=Conclusion.CANCELLED, on=None))
    assert (await world.ended()).conclusion is Conclusion.CANCELLED
    assert world.state(machine) is S.IDLE, "the machine is free for the next job"


async def test_completed_without_in_progress_ends_the_machine_that_ran_it(world: Observing) -> None:
    machine = await world.have_runner()
    await world.webhook(seen_job())
    await world.webhook(completed())
    assert world.state(machine) is S.BUSY
    assert world.rows.instances[machine.id].job == id_of(1)
    assert (await world.ended()).instance == machine.id


async def test_completed_of_a_job_never_seen_counts_nowhere_but_frees_its_machine(world: Observing) -> None:
    machine = await world.have_runner()
    await world.webhook(completed())
    assert not world.rows.jobs
    assert world.rows.instances[machine.id].job == id_of(1)


async def test_queued_after_in_progress_changes_nothing(world: Observing) -> None:
    await world.have_runner()
    await world.webhook(started())
    await world.webhook(seen_job())
    job = world.job()
    assert job is not None
    assert job.state is JobState.RUNNING


async def test_queued_after_completed_begins_nothing(world: Observing) -> None:
    await world.webhook(seen_job())
    await world.webhook(completed(on=None))
    await world.webhook(seen_job())
    await world.webhook(started())
    assert not world.rows.jobs


async def test_queued_after_completed_begins_nothing_even_after_a_restart(world: Observing) -> None:
    await world.webhook(seen_job())
    await world.webhook(completed(on=None))
    after = await world.restarted()
    await after.webhook(seen_job())
    await after.listing(started())
    assert not after.rows.jobs


async def test_the_same_event_twice_changes_nothing_the_second_time(world: Observing) -> None:
    machine = await world.have_runner()
    for seen in (seen_job(), started(), completed()):
        await world.webhook(seen, seen)
    moves = await world.store.instance_moves(machine.id)
    assert [move.to_state for move in moves] == [S.IDLE, S.BUSY]
    assert (await world.ended()).state is JobState.DONE


async def test_the_completed_events_that_a_rerun_sends_again_change_nothing(world: Observing) -> None:
    """Five old completions and one new job arrive in one second (github-rest B2)."""
    for number in range(1, 6):
        await world.webhook(seen_job(number))
        await world.webhook(completed(number, on=None))
    again = [completed(number, on=None, run_attempt=2) for number in range(1, 6)]
    await world.webhook(*again, seen_job(6, run_attempt=2))
    assert list(world.rows.jobs) == [id_of(6)]


async def test_waiting_for_an_approval_is_no_demand_and_queued_after_it_is(world: Observing) -> None:
    await world.webhook(CREATED)
    assert world.job() is None
    await world.webhook(seen_job())
    assert world.job() is not None


async def test_waiting_that_comes_after_queued_takes_nothing_back(world: Observing) -> None:
    await world.webhook(seen_job())
    await world.webhook(CREATED)
    job = world.job()
    assert job is not None
    assert job.state is JobState.QUEUED


async def test_a_stolen_runner_serves_the_thief_and_the_other_job_still_waits(world: Observing) -> None:
    machine = await world.have_runner()
    await world.webhook(seen_job(1))
    await world.webhook(seen_job(2))
    await world.webhook(started(2, on=1))
    assert world.rows.instances[machine.id].job == id_of(2)
    waiting = world.job(1)
    assert waiting is not None
    assert (waiting.state, waiting.instance) == (JobState.QUEUED, None)


@pytest.mark.parametrize(
    ("thief", "word"),
    [
        (seen_job(2, labels=("linux", "x64")), "which asks for linux, x64"),
        (seen_job(2, labels=("gpu",)), "which no pool serves"),
        (seen_job(2, labels=("arm", "linux")), f"which is pool {ARM}'s"),
        (None, "which we had not seen queued"),
    ],
)
async def test_a_stolen_runner_is_made_good_at_once_and_is_on_record(thief: ForgeJob | None, word: str) -> None:
    """The next plan launches for the job that the runner was registered for."""
    world = await Observing(rules=rules_of(pool(LINUX, "linux", "x64"), pool(ARM, "linux", "arm", "small"))).start()
    machine = await world.have_runner()
    await world.webhook(seen_job(1), *([thief] if thief is not None else []))
    offered = {"offerings": {LINUX: (OFFERING,)}}
    before = plan(replace(world.snapshot(), **offered), world.rules, world.now)
    assert sum(one.count for one in before.actions if isinstance(one, Launch)) <= int(thief is not None)
    world.wait(1)
    await world.webhook(started(2, on=1, labels=(thief or seen_job()).labels))
    made = plan(replace(world.snapshot(), **offered), world.rules, world.now)
    assert [one.count for one in made.actions if isinstance(one, Launch)] == [1]
    (line,) = [entry for _, entry in await world.store.ledger(limit=50) if entry.action == "runner_stolen"]
    assert (line.subject, line.actor, line.pool) == (machine.id, GITHUB, LINUX)
    assert line.reason == f"its runner, registered for linux in acme, was given test 2 of acme/shop, {word}"
    assert line.evidence == "github says that ours--1 runs job 2"


async def test_a_runner_that_takes_a_job_it_was_registered_for_is_not_called_stolen(world: Observing) -> None:
    await world.have_runner()
    await world.webhook(seen_job(1))
    await world.webhook(seen_job(2))
    world.wait(1)
    await world.webhook(started(2, on=1))
    assert [entry for _, entry in await world.store.ledger(limit=50) if entry.action == "runner_stolen"] == []


@pytest.mark.parametrize("stranger", [{"repo": "other/app"}, {"labels": ("ubuntu-latest",)}])
async def test_a_job_that_is_not_ours_is_watched_to_its_end_on_a_runner_of_ours(
    world: Observing, stranger: dict[str, Any]
) -> None:
    machine = await world.have_runner()
    await world.webhook(started(2, on=1, **stranger))
    assert (world.state(machine), world.rows.instances[machine.id].job) == (S.BUSY, id_of(2))
    made = plan(world.snapshot(), world.rules, world.now)
    assert [one for one in made.actions if isinstance(one, Terminate | Release)] == []
    await world.webhook(completed(2, on=1, **stranger))
    made = plan(world.snapshot(), world.rules, world.now)
    assert [type(one) for one in made.actions] == [Terminate]


EVENTS = st.lists(
    st.sampled_from([CREATED, seen_job(), started(), started(on=2), completed(), completed(on=None)]), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(events=EVENTS)
async def test_events_in_any_order_never_move_a_job_back(events: list[ForgeJob]) -> None:
    world = await Observing().start()
    machine = await world.have_runner()
    highest = JobStatus.CREATED
    for seen in events:
        await world.webhook(seen)
        highest = max(highest, seen.status, key=lambda status: status.rank)
        job = world.job()
        match highest:
            case JobStatus.CREATED | JobStatus.DONE:
                assert job is None
            case JobStatus.QUEUED:
                assert job is not None
                assert job.state is JobState.QUEUED
            case JobStatus.RUNNING:
                assert job is not None
                assert job.state is JobState.RUNNING
    assert world.state(machine) in (S.IDLE, S.BUSY)


# ---------------------------------------------------------------------- listings are the truth


async def test_a_lost_webhook_is_healed_by_the_next_listing(world: Observing) -> None:
    await world.listing(seen_job(1), started(2))
    job, other = world.job(1), world.job(2)
    assert job is not None
    assert other is not None
    assert (job.state, job.seen_by) == (JobState.QUEUED, SeenBy.POLL)
    assert other.state is JobState.RUNNING


async def test_a_lost_in_progress_is_healed_by_the_next_listing(world: Observing) -> None:
    machine = await world.have_runner()
    await world.webhook(seen_job())
    await world.listing(started())
    assert world.state(machine) is S.BUSY


async def test_a_job_that_a_complete_listing_does_not_show_is_asked_for(world: Observing) -> None:
    await world.webhook(seen_job())
    world.wait(5)
    await world.listing()
    assert set(world.doubts()) == {id_of(1)}
    await world.answer(id_of(1), completed(on=None))
    assert (await world.ended()).conclusion is Conclusion.SUCCESS


async def test_a_job_that_the_forge_forgot_is_done_with_an_unknown_end(world: Observing) -> None:
    await world.webhook(seen_job())
    world.wait(5)
    await world.listing()
    await world.answer(id_of(1), None)
    assert (await world.ended()).conclusion is Conclusion.UNKNOWN


async def test_a_doubt_that_the_forge_dispels_is_gone(world: Observing) -> None:
    await world.webhook(seen_job())
    world.wait(5)
    await world.listing()
    await world.answer(id_of(1), seen_job())
    assert not world.doubts()
    assert world.job() is not None


async def test_a_listing_that_began_before_the_job_came_says_nothing_about_it(world: Observing) -> None:
    await world.webhook(seen_job())
    await world.listing(age_s=3)
    assert not world.doubts()


async def test_a_listing_says_nothing_about_repos_that_it_did_not_list(world: Observing) -> None:
    await world.webhook(seen_job())
    world.wait(5)
    await world.listing(repos=("acme/other",))
    assert not world.doubts()


# ---------------------------------------------------------------------- machines that end under a job


async def running_job(world: Observing) -> None:
    await world.have_runner()
    await world.webhook(seen_job())
    await world.webhook(started())
    world.wait(60)


async def test_a_machine_that_vanishes_while_busy_makes_its_job_doubtful_not_lost(world: Observing) -> None:
    await running_job(world)
    await world.gone()
    job = world.job()
    assert job is not None
    assert job.state is JobState.RUNNING
    assert world.doubts() == {id_of(1): "its machine ended"}


async def test_its_job_is_done_if_the_forge_says_so(world: Observing) -> None:
    await running_job(world)
    await world.gone()
    await world.answer(id_of(1), completed())
    assert (await world.ended()).conclusion is Conclusion.SUCCESS


async def test_its_job_is_lost_if_the_forge_says_that_it_still_runs(world: Observing) -> None:
    await running_job(world)
    await world.gone()
    await world.answer(id_of(1), started())
    job = world.job()
    assert job is not None
    assert (job.state, job.reason) == (JobState.LOST, "its machine ended before it did")


async def test_a_late_success_of_a_lost_job_counts(world: Observing) -> None:
    await running_job(world)
    await world.gone()
    await world.answer(id_of(1), started())
    await world.webhook(completed())
    assert (await world.ended()).conclusion is Conclusion.SUCCESS


async def test_the_failure_that_our_loss_caused_leaves_the_job_lost(world: Observing) -> None:
    await running_job(world)
    await world.gone()
    await world.answer(id_of(1), started())
    await world.webhook(completed(conclusion=Conclusion.FAILURE))
    job = world.job()
    assert job is not None
    assert job.state is JobState.LOST


async def test_a_failure_counts_as_one_only_where_no_machine_was_lost_before(world: Observing) -> None:
    def failures() -> float:
        labels = {"pool": LINUX, "conclusion": Conclusion.FAILURE}
        return world.metrics.registry.get_sample_value("autoscaler_jobs_done_total", labels) or 0.0

    await running_job(world)
    await world.gone()
    await world.webhook(completed(conclusion=Conclusion.FAILURE, finished_at=world.now))
    job = world.job()
    assert job is not None
    assert job.state is JobState.LOST
    assert failures() == 0
    await world.have_runner(2)
    await world.webhook(seen_job(2))
    await world.webhook(started(2, on=2))
    await world.webhook(completed(2, on=2, conclusion=Conclusion.FAILURE))
    assert (await world.ended(2)).conclusion is Conclusion.FAILURE
    assert failures() == 1


async def test_a_job_whose_runner_finished_waits_a_minute_for_the_forge_to_say_so(world: Observing) -> None:
    await running_job(world)
    (machine,) = world.rows.instances.values()
    await world.see(AgentReported(instance=machine.id, kind="runner_exited", ran_job=True))
    await world.machines(listed_machine(1, MachineState.TERMINATED))
    assert (await world.last(machine)).ending is EndReason.JOB_DONE
    assert not world.doubts(), "the completed event is on its way"
    world.wait(6)
    assert set(world.doubts()) == {id_of(1)}
    await world.answer(id_of(1), started())
    job = world.job()
    assert job is not None
    assert job.state is JobState.RUNNING
    world.wait(70)
    assert set(world.doubts()) == {id_of(1)}
    await world.answer(id_of(1), started())
    job = world.job()
    assert job is not None
    assert job.state is JobState.LOST


async def test_a_machine_that_vanished_while_the_daemon_was_away_makes_its_job_doubtful(world: Observing) -> None:
    await running_job(world)
    await world.gone()
    after = await world.restarted()
    assert set(after.doubts()) == {id_of(1)}


async def test_a_job_first_seen_running_on_a_machine_that_is_gone_is_doubtful(world: Observing) -> None:
    """Its in_progress was lost, and its machine too before the next listing: nobody else would ever ask."""
    await world.have_runner()
    await world.webhook(seen_job())
    world.wait(60)
    await world.gone()
    await world.listing(started())
    assert set(world.doubts()) == {id_of(1)}
    await world.answer(id_of(1), started())
    job = world.job()
    assert job is not None
    assert job.state is JobState.LOST


async def test_a_job_that_passed_max_runtime_is_not_lost(world: Observing) -> None:
    await running_job(world)
    (machine,) = world.rows.instances.values()
    world.rows.move(machine, S.TERMINATING, now=world.now, cause="too long", ending=EndReason.MAX_RUNTIME)
    await world.gone()
    await world.answer(id_of(1), started())
    job = world.job()
    assert job is not None
    assert job.state is JobState.RUNNING
    assert job.reason.startswith("max_runtime")
