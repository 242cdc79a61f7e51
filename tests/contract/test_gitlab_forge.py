"""The GitLab forge against the sandbox's GitLab: what waits, who serves it, what is lost.

A little longer than others: all of it goes through one site and one driver.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from autoscaler.clock import SystemClock
from autoscaler.sandbox.gitlab_model import JobStatus as GitLabStatus
from autoscaler.spi import (
    AlreadyRequeued,
    Conclusion,
    ForgeOutcomeUnknown,
    ForgeRefusedForGood,
    JobNotFound,
    JobStatus,
    RunnerBusy,
    RunnerId,
    RunnerRef,
    Scope,
    Secret,
)
from tests.contract.forge_contract import ForgeContract
from tests.contract.gitlab_site import PREFIX, RUNNER_TOKEN, TOKEN, GitLabDriver, Site, gitlab_driver, gitlab_site

LINUX = ("linux",)
PROJECT = Scope("acme/api")
GROUP = Scope("acme")


class TestContractWithTokens(ForgeContract):
    @pytest.fixture
    async def driver(self) -> AsyncIterator[GitLabDriver]:
        async with gitlab_driver("x-gitlab-token") as made:
            yield made


class TestContractWithSignatures(ForgeContract):
    @pytest.fixture
    async def driver(self) -> AsyncIterator[GitLabDriver]:
        async with gitlab_driver("webhook-signature") as made:
            yield made


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with gitlab_site() as made:
        yield made


def world_now() -> float:
    return datetime.now(UTC).timestamp()


# -- what waits


async def test_pending_job_is_listed_with_labels_and_the_time_it_became_ready(site: Site) -> None:
    run_id, (job_id,) = site.submit("linux", "Large")
    forge = site.forge()
    listing = await forge.list_jobs([])
    assert await forge.list_jobs([]) == listing
    (job,) = listing.jobs
    assert (job.forge_job_id, job.run_id, job.repo) == (job_id, run_id, "acme/api")
    assert (job.status, job.labels, job.workflow) == (JobStatus.QUEUED, ("large", "linux"), "branch")
    assert job.queued_at is not None
    assert abs(job.queued_at - datetime.now(UTC)) < timedelta(seconds=5)
    assert listing.repos == {"acme/api"}


async def test_every_page_of_jobs_is_read(site: Site) -> None:
    _, job_ids = site.submit("linux", count=230)
    listing = await site.forge().list_jobs([])
    assert sorted(job.forge_job_id for job in listing.jobs) == sorted(job_ids)


async def test_group_scope_covers_subgroups_and_nothing_else(site: Site) -> None:
    site.submit("linux", repo="acme/deep/er/web")
    site.submit("linux", repo="other/web")
    listing = await site.forge().list_jobs(["other/web"])
    assert {job.repo for job in listing.jobs} == {"acme/deep/er/web"}
    assert "other/web" not in listing.repos


async def test_running_job_names_its_runner_and_a_done_one_is_not_listed(site: Site) -> None:
    forge = site.forge()
    _, (job_id,) = site.submit("linux")
    made = await forge.register(scope=GROUP, group="", name=f"{PREFIX}1", labels=LINUX)
    offer = site.take(made)
    assert offer is not None
    (job,) = (await forge.list_jobs([])).jobs
    assert (job.status, job.runner_name, job.runner_id) == (JobStatus.RUNNING, f"{PREFIX}1", made.ref.runner_id)
    site.finish(offer, state="failed")
    assert (await forge.list_jobs([])).jobs == ()
    done = await forge.get_job("acme/api", job_id)
    assert (done.status, done.conclusion, done.failure_reason) == (
        JobStatus.DONE,
        Conclusion.FAILURE,
        "script_failure",
    )
    assert done.finished_at is not None


async def test_job_can_be_read_alone_and_an_unknown_one_is_not_found(site: Site) -> None:
    forge = site.forge()
    _, (job_id,) = site.submit("linux")
    assert (await forge.get_job("acme/api", job_id)).labels == LINUX
    for repo, unknown in (("acme/api", "999999"), ("acme/gone", job_id)):
        with pytest.raises(JobNotFound):
            await forge.get_job(repo, unknown)


async def test_deleted_project_counts_as_listed_without_jobs(site: Site) -> None:
    listing = await site.forge().list_jobs(["acme/gone"])
    assert "acme/gone" in listing.repos


async def test_project_that_fails_is_left_out_and_the_rest_is_listed(site: Site) -> None:
    for number in range(20):
        site.submit("linux", repo=f"acme/p{number}")
    forge = site.forge()
    await forge.list_jobs([])
    site.faults.forge_error = 0.5
    listing = await forge.list_jobs([])
    assert 0 < len(listing.repos) < 21
    assert {job.repo for job in listing.jobs} == listing.repos - {"acme/api"}


# -- runners


@pytest.mark.parametrize("scope", [GROUP, PROJECT])
async def test_registered_runner_takes_one_job_and_sealed_no_second(site: Site, scope: Scope) -> None:
    forge = site.forge(scope)
    site.submit("linux", count=2)
    made = await forge.register(scope=scope, group="", name=f"{PREFIX}1", labels=LINUX)
    assert (made.kind, made.parameters["url"], made.ref.scope) == ("gitlab", site.url, scope)
    offer = site.take(made)
    await forge.seal(made.ref)
    assert offer is not None
    site.finish(offer)
    assert site.take(made) is None


async def test_tags_are_written_as_jobs_spell_them(site: Site) -> None:
    forge = site.forge()
    site.submit("Linux", "GPU")
    (job,) = (await forge.list_jobs([])).jobs
    assert job.labels is not None
    made = await forge.register(scope=GROUP, group="", name=f"{PREFIX}1", labels=job.labels)
    assert site.take(made) is not None
    (runner,) = await forge.list_runners()
    assert runner.labels == ("gpu", "linux")


async def test_only_a_runner_without_labels_takes_untagged_jobs(site: Site) -> None:
    forge = site.forge()
    site.submit()
    tagged = await forge.register(scope=GROUP, group="", name=f"{PREFIX}1", labels=LINUX)
    untagged = await forge.register(scope=GROUP, group="", name=f"{PREFIX}2", labels=())
    assert site.take(tagged) is None
    assert site.take(untagged) is not None


async def test_busy_runner_is_not_deregistered(site: Site) -> None:
    forge = site.forge()
    site.submit("linux")
    made = await forge.register(scope=GROUP, group="", name=f"{PREFIX}1", labels=LINUX)
    offer = site.take(made)
    assert offer is not None
    for _ in range(2):
        with pytest.raises(RunnerBusy):
            await forge.deregister(made.ref)
    assert site.runner_names() == [f"{PREFIX}1"]
    site.finish(offer)
    await forge.deregister(made.ref)
    assert site.runner_names() == []


async def test_job_handed_out_just_before_is_found_out(site: Site) -> None:
    forge = site.forge(clock=SystemClock())
    site.submit("linux")
    made = await forge.register(scope=GROUP, group="", name=f"{PREFIX}1", labels=LINUX)
    offer = site.take(made, confirm=False)
    assert offer is not None
    leaving = asyncio.create_task(forge.deregister(made.ref))
    async with asyncio.timeout(10):
        while not site.world.runner(int(made.ref.runner_id)).paused:
            await asyncio.sleep(0.005)
    site.confirm(offer)
    with pytest.raises(RunnerBusy):
        await leaving


async def test_idle_runner_is_deregistered_and_an_absent_one_is_success(site: Site) -> None:
    forge = site.forge()
    made = await forge.register(scope=GROUP, group="", name=f"{PREFIX}1", labels=LINUX)
    for _ in range(2):
        await forge.deregister(made.ref)
    await forge.deregister(made.ref, job_is_done=True)
    await forge.seal(RunnerRef(scope=GROUP, runner_id=RunnerId("999999"), name="gone"))
    assert site.runner_names() == []


async def test_normal_life_of_a_job_takes_four_calls(site: Site) -> None:
    forge = site.forge()
    await forge.list_jobs([])
    _, (job_id,) = site.submit("linux")
    site.seen.clear()
    job = await forge.get_job("acme/api", job_id)
    made = await forge.register(scope=GROUP, group="", name=f"{PREFIX}1", labels=job.labels or ())
    offer = site.take(made)
    assert offer is not None
    await forge.seal(made.ref)
    site.finish(offer)
    await forge.deregister(made.ref, job_is_done=True)
    assert site.seen.total() == 4
    assert site.runner_names() == []


async def test_all_pages_of_our_runners_are_listed_and_no_others(site: Site) -> None:
    forge = site.forge()
    names = sorted(f"{PREFIX}{number:03}" for number in range(120))
    await asyncio.gather(*(forge.register(scope=GROUP, group="", name=name, labels=LINUX) for name in names))
    for foreign in ("other-1", "tests"):
        site.add_runner(foreign)
    # A process that did not register them, and sees them through nested scopes.
    runners = await site.forge("acme", "acme/api").list_runners()
    assert sorted(runner.ref.name for runner in runners) == names
    assert {(runner.ref.scope, runner.labels) for runner in runners} == {(GROUP, LINUX)}


async def test_runner_is_shown_online_and_busy(site: Site) -> None:
    forge = site.forge("acme/api")
    site.submit("linux")
    made = await forge.register(scope=PROJECT, group="", name=f"{PREFIX}1", labels=LINUX)
    (before,) = await forge.list_runners()
    site.take(made)
    (after,) = await forge.list_runners()
    assert (before.is_online, before.is_busy) == (False, False)
    assert (after.is_online, after.is_busy) == (True, True)
    assert after.ref == made.ref


async def test_lost_answer_leaves_a_runner_that_the_listing_shows(site: Site) -> None:
    forge = site.forge()
    site.lost_answers.add("/user/runners")
    with pytest.raises(ForgeOutcomeUnknown):
        await forge.register(scope=GROUP, group="", name=f"{PREFIX}1", labels=LINUX)
    (runner,) = await forge.list_runners()
    assert (runner.ref.name, runner.labels) == (f"{PREFIX}1", LINUX)
    await forge.deregister(runner.ref)
    assert site.runner_names() == []


async def test_runners_can_be_managed_with_a_token_of_their_own(site: Site) -> None:
    credentials = {"token": Secret(TOKEN), "runner_token": Secret(RUNNER_TOKEN)}
    forge = site.forge(credentials=credentials)
    site.submit("linux")
    made = await forge.register(scope=GROUP, group="", name=f"{PREFIX}1", labels=LINUX)
    offer = site.take(made)
    assert offer is not None
    await forge.seal(made.ref)
    assert len(await forge.list_runners()) == 1
    with pytest.raises(RunnerBusy):
        await forge.deregister(made.ref)
    site.finish(offer)
    await forge.deregister(made.ref)
    assert site.runner_names() == []


# -- queue holders


async def test_queue_holder_keeps_contact_and_takes_nothing(site: Site) -> None:
    forge = site.forge()
    site.submit("linux")
    for _ in range(3):
        await forge.hold_queue(scope=GROUP, group="", labels=LINUX, name=f"{PREFIX}hold")
    assert site.runner_names() == [f"{PREFIX}hold"]
    (runner,) = site.world.list_runners()
    assert runner.contacted_at is not None
    assert (runner.paused, len(runner.machines), runner.job_ids) == (False, 1, [])
    assert site.seen["POST /api/v4/runners/verify"] == 3


async def test_queue_holder_outlives_the_hour_after_which_jobs_are_failed(site: Site) -> None:
    forge = site.forge()
    site.submit("linux")
    site.submit()
    _, (unheld_id,) = site.submit("macos")
    await forge.hold_queue(scope=GROUP, group="", labels=LINUX, name=f"{PREFIX}hold")
    next_full_hour_but_one = (world_now() // 3600 + 2) * 3600
    site.world.advance(next_full_hour_but_one + 1)
    held = site.world.list_jobs(site.world.find_project("acme/api").id, scopes=["pending"])
    assert sorted(job.spec.labels for job in held) == [(), LINUX]
    assert site.world.job(int(unheld_id)).status is GitLabStatus.FAILED


async def test_queue_holder_of_a_dead_process_is_replaced(site: Site) -> None:
    await site.forge().hold_queue(scope=GROUP, group="", labels=LINUX, name=f"{PREFIX}hold")
    (first,) = site.world.list_runners()
    await site.forge().hold_queue(scope=GROUP, group="", labels=LINUX, name=f"{PREFIX}hold")
    (second,) = site.world.list_runners()
    assert first.id != second.id


async def test_queue_holder_that_a_person_deleted_comes_back(site: Site) -> None:
    forge = site.forge()
    await forge.hold_queue(scope=GROUP, group="", labels=LINUX, name=f"{PREFIX}hold")
    (runner,) = site.world.list_runners()
    site.world.delete_runner(runner.id)
    await forge.hold_queue(scope=GROUP, group="", labels=LINUX, name=f"{PREFIX}hold")
    assert site.runner_names() == [f"{PREFIX}hold"]


# -- requeue


async def start_one(site: Site, *labels: str) -> tuple[str, str]:
    """A running job whose machine nobody hears of again."""
    run_id, (job_id,) = site.submit(*labels)
    forge = site.forge()
    made = await forge.register(scope=GROUP, group="", name=f"{PREFIX}{job_id}", labels=labels)
    assert site.take(made) is not None
    return run_id, job_id


@pytest.mark.parametrize("state", ["failed", "success"])
async def test_ended_job_is_requeued_once(site: Site, state: str) -> None:
    forge = site.forge()
    run_id, (job_id,) = site.submit("linux")
    made = await forge.register(scope=GROUP, group="", name=f"{PREFIX}1", labels=LINUX)
    offer = site.take(made)
    assert offer is not None
    site.finish(offer, state=state)
    result = await forge.requeue("acme/api", run_id, [job_id])
    successor = result.successors[job_id]
    assert (await forge.get_job("acme/api", successor)).status is JobStatus.QUEUED
    for other in (forge, site.forge()):
        with pytest.raises(AlreadyRequeued) as answer:
            await other.requeue("acme/api", run_id, [job_id])
        assert answer.value.successor == successor
    assert len(site.world.list_pipeline_jobs(site.world.pipeline(int(run_id)), include_retried=True)) == 2


async def test_job_of_a_dead_machine_is_cancelled_and_requeued(site: Site) -> None:
    run_id, job_id = await start_one(site, "linux")
    result = await site.forge().requeue("acme/api", run_id, [job_id])
    assert site.world.job(int(job_id)).status in (GitLabStatus.CANCELING, GitLabStatus.CANCELED)
    assert site.world.job(int(result.successors[job_id])).status is GitLabStatus.PENDING


async def test_job_that_waits_is_not_requeued(site: Site) -> None:
    run_id, (job_id,) = site.submit("linux")
    with pytest.raises(AlreadyRequeued) as answer:
        await site.forge().requeue("acme/api", run_id, [job_id])
    assert answer.value.successor == job_id
    assert site.world.job(int(job_id)).status is GitLabStatus.PENDING


async def test_several_jobs_of_a_run_are_requeued_also_where_a_person_was_first(site: Site) -> None:
    forge = site.forge()
    run_id, job_ids = site.submit("linux", count=3)
    for number in range(3):
        made = await forge.register(scope=GROUP, group="", name=f"{PREFIX}{number}", labels=LINUX)
        offer = site.take(made)
        assert offer is not None
        site.finish(offer, state="failed")
    by_hand = site.world.retry_job(int(job_ids[1]), world_now())
    result = await forge.requeue("acme/api", run_id, job_ids)
    assert set(result.successors) == set(job_ids)
    assert result.successors[job_ids[1]] == str(by_hand.id)
    assert len(set(result.successors.values())) == 3


async def test_pipeline_that_a_person_cancelled_after_the_loss_is_not_run_again(site: Site) -> None:
    forge = site.forge()
    run_id, (lost, other) = site.submit("linux", count=2)
    made = await forge.register(scope=GROUP, group="", name=f"{PREFIX}1", labels=LINUX)
    assert site.take(made) is not None
    site.world.cancel_pipeline(int(run_id), world_now())
    with pytest.raises(ForgeRefusedForGood, match="somebody cancelled pipeline"):
        await forge.requeue("acme/api", run_id, [lost])
    site.world.retry_job(int(other), world_now())
    result = await forge.requeue("acme/api", run_id, [lost])
    assert set(result.successors) == {lost}


async def test_two_requeues_at_once_make_one_successor(site: Site) -> None:
    run_id, job_id = await start_one(site, "linux")
    one, other = site.forge(), site.forge()
    await asyncio.gather(
        one.requeue("acme/api", run_id, [job_id]),
        other.requeue("acme/api", run_id, [job_id]),
        return_exceptions=True,
    )
    assert len(site.world.list_pipeline_jobs(site.world.pipeline(int(run_id)), include_retried=True)) == 2


async def test_unknown_jobs_and_runs_are_not_found(site: Site) -> None:
    run_id, (job_id,) = site.submit("linux")
    for repo, run, job in (("acme/api", run_id, "99999"), ("acme/api", "99999", job_id), ("acme/no", run_id, job_id)):
        with pytest.raises(JobNotFound):
            await site.forge().requeue(repo, run, [job])


async def test_retry_whose_answer_is_lost_is_settled_by_its_successor(site: Site) -> None:
    run_id, job_id = await start_one(site, "linux")
    site.lost_answers.add("/retry")
    result = await site.forge().requeue("acme/api", run_id, [job_id])
    jobs = site.world.list_pipeline_jobs(site.world.pipeline(int(run_id)), include_retried=True)
    assert sorted(str(job.id) for job in jobs) == sorted([job_id, result.successors[job_id]])


async def test_requeue_survives_an_unreliable_gitlab(site: Site) -> None:
    run_id, job_id = await start_one(site, "linux")
    forge = site.forge()
    site.faults.forge_error = 0.5
    for _ in range(100):
        answers = await asyncio.gather(forge.requeue("acme/api", run_id, [job_id]), return_exceptions=True)
        if isinstance(answers[0], AlreadyRequeued) or not isinstance(answers[0], Exception):
            break
    jobs = site.world.list_pipeline_jobs(site.world.pipeline(int(run_id)), include_retried=True)
    assert len(jobs) == 2


async def test_there_are_no_deliveries_to_recover(site: Site) -> None:
    recovery = await site.forge().recover_deliveries(datetime.now(UTC) - timedelta(hours=1))
    assert (recovery.failed, recovery.redelivered) == (0, 0)
    assert datetime.now(UTC) - recovery.complete_until < timedelta(seconds=5)


async def test_job_that_gitlab_refuses_to_retry_holds_up_no_other_of_its_pipeline(site: Site) -> None:
    forge = site.forge()
    run_id, job_ids = site.submit("linux", count=3)
    for number in range(3):
        made = await forge.register(scope=GROUP, group="", name=f"{PREFIX}{number}", labels=LINUX)
        offer = site.take(made)
        assert offer is not None
        site.finish(offer, state="failed")
    site.world.job(int(job_ids[1])).deployment_rejected = True
    result = await forge.requeue("acme/api", run_id, job_ids)
    assert set(result.successors) == {job_ids[0], job_ids[2]}
    assert set(result.refused) == {job_ids[1]}
    with pytest.raises(ForgeRefusedForGood):
        await forge.requeue("acme/api", run_id, [job_ids[1]])


async def test_job_that_a_person_cancelled_alone_says_nothing_of_a_lost_one_of_its_pipeline(site: Site) -> None:
    forge = site.forge()
    run_id, (lost, other) = site.submit("linux", count=2)
    made = await forge.register(scope=GROUP, group="", name=f"{PREFIX}1", labels=LINUX)
    assert site.take(made) is not None
    site.world.cancel_job(int(other), world_now())
    result = await forge.requeue("acme/api", run_id, [lost])
    assert set(result.successors) == {lost}
