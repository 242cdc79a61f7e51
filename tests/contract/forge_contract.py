"""What every `spi.Forge` must do, whatever it talks to. Subclass `ForgeContract` and give it a `driver` fixture.

A little longer than others, so that the contract is read in one place.
"""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from autoscaler.spi import (
    AlreadyRequeued,
    BadSignature,
    Conclusion,
    ForgeError,
    ForgeOutcomeUnknown,
    ForgeRefusedForGood,
    ForgeUnavailable,
    JobNotFound,
    JobStatus,
    NameTaken,
    NotYet,
    RunnerBusy,
)
from tests.contract.forge_driver import LABELS, ForgeDriver, doomed, failed_run, parsed, register, until

__all__ = ["LABELS", "ForgeContract", "ForgeDriver", "register"]


class ForgeContract:
    """The suite. Every test makes its own runs and runners on a fresh forge."""

    # ------------------------------------------------------------------ jobs

    async def test_queued_job_is_listed_with_its_labels(self, driver: ForgeDriver) -> None:
        run_id = await driver.submit(driver.repo)

        listing = await driver.forge.list_jobs({driver.repo})

        (job,) = listing.jobs
        assert (job.repo, job.run_id, job.run_attempt, job.name) == (driver.repo, run_id, 1, "build")
        assert job.forge == driver.forge.name
        assert (job.status, job.conclusion) == (JobStatus.QUEUED, None)
        assert job.labels == LABELS
        assert (job.runner_id, job.runner_name) == (None, "")
        assert job.queued_at is not None
        assert abs(job.queued_at - datetime.now(UTC)) < timedelta(minutes=5)
        assert driver.repo in listing.repos

    async def test_every_job_of_every_repo_is_listed_once(self, driver: ForgeDriver) -> None:
        await driver.submit(driver.repo, jobs=("a", "b", "c"))
        await driver.submit(driver.repo, jobs=("d",))
        await driver.submit(driver.other_repo, jobs=("e",))

        listing = await driver.forge.list_jobs({driver.repo, driver.other_repo})

        assert sorted(job.name for job in listing.jobs) == ["a", "b", "c", "d", "e"]
        assert {driver.repo, driver.other_repo} <= listing.repos

    async def test_more_jobs_than_a_page_are_all_listed(self, driver: ForgeDriver) -> None:
        names = [f"job-{number:03}" for number in range(130)]
        await driver.submit(driver.repo, jobs=names)

        listing = await driver.forge.list_jobs({driver.repo})

        assert sorted(job.name for job in listing.jobs) == names

    async def test_job_is_found_without_a_hint(self, driver: ForgeDriver) -> None:
        run_id = await driver.submit(driver.repo)

        (job,) = await until(driver, lambda jobs: len(jobs) == 1, active=())

        assert job.run_id == run_id

    async def test_listing_follows_a_job_through_its_life(self, driver: ForgeDriver) -> None:
        await driver.submit(driver.repo)
        registration = await register(driver)
        job_id = await driver.take(registration)

        (running,) = (await driver.forge.list_jobs({driver.repo})).jobs
        await driver.finish(registration)
        listing = await driver.forge.list_jobs({driver.repo})

        assert (running.forge_job_id, running.status) == (job_id, JobStatus.RUNNING)
        assert running.runner_id == registration.ref.runner_id
        assert running.runner_name == registration.ref.name
        assert running.started_at is not None
        assert (listing.jobs, driver.repo in listing.repos) == ((), True)

    @pytest.mark.parametrize(("success", "conclusion"), [(True, Conclusion.SUCCESS), (False, Conclusion.FAILURE)])
    async def test_finished_job_says_how_it_ended(
        self, driver: ForgeDriver, success: bool, conclusion: Conclusion
    ) -> None:
        await driver.submit(driver.repo)
        registration = await register(driver)
        job_id = await driver.take(registration)
        await driver.finish(registration, success=success)

        job = await driver.forge.get_job(driver.repo, job_id)

        assert (job.status, job.conclusion, job.labels) == (JobStatus.DONE, conclusion, LABELS)
        assert job.runner_name == registration.ref.name
        assert job.started_at is not None
        assert job.finished_at is not None
        assert job.started_at <= job.finished_at

    async def test_unknown_job_is_not_found(self, driver: ForgeDriver) -> None:
        with pytest.raises(JobNotFound):
            await driver.forge.get_job(driver.repo, "99999999")

    async def test_only_configured_repos_are_ours(self, driver: ForgeDriver) -> None:
        assert driver.forge.scope_of(driver.repo) == driver.scope
        assert driver.forge.scope_of("stranger/repo") is None
        assert (await driver.forge.list_jobs({"stranger/repo"})).jobs == ()

    # ------------------------------------------------------------------ webhooks

    async def test_webhooks_tell_the_whole_life_of_a_job(self, driver: ForgeDriver) -> None:
        await driver.submit(driver.repo)
        registration = await register(driver)
        job_id = await driver.take(registration)
        await driver.finish(registration)

        jobs = [job for webhook in await parsed(driver) for job in webhook.jobs if job.forge_job_id == job_id]

        assert {JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.DONE} <= {job.status for job in jobs}
        assert {job.repo for job in jobs} == {driver.repo}
        assert {job.labels for job in jobs} <= {LABELS, None}
        assert [job.conclusion for job in jobs if job.status is JobStatus.DONE] == [Conclusion.SUCCESS]

    async def test_run_is_announced_as_finished_when_its_last_job_is(self, driver: ForgeDriver) -> None:
        run_id = await driver.submit(driver.repo)
        registration = await register(driver)
        await driver.take(registration)
        before = [run.is_finished for webhook in await parsed(driver) for run in webhook.runs]
        await driver.finish(registration)

        runs = [run for webhook in await parsed(driver) for run in webhook.runs]

        assert True not in before
        assert [(run.run_id, run.repo) for run in runs if run.is_finished] == [(run_id, driver.repo)]

    async def test_deliveries_have_ids_of_their_own(self, driver: ForgeDriver) -> None:
        await driver.submit(driver.repo, jobs=("a", "b"))

        ids = [webhook.delivery_id for webhook in await parsed(driver)]

        assert len(ids) == len(set(ids)) >= 2

    async def test_webhook_without_its_credentials_is_refused(self, driver: ForgeDriver) -> None:
        await driver.submit(driver.repo)

        for headers, body in await driver.received():
            bare = {name: value for name, value in headers.items() if name not in driver.credential_headers}
            wrong = bare | {name: "x" + headers[name][1:] for name in driver.credential_headers if name in headers}
            for forged in (bare, wrong):
                with pytest.raises(BadSignature):
                    driver.forge.parse_webhook(forged, body)

    # ------------------------------------------------------------------ runners

    async def test_registered_runner_is_listed_as_ours(self, driver: ForgeDriver) -> None:
        registration = await register(driver, "one")

        (runner,) = await driver.forge.list_runners()

        assert runner.ref == registration.ref
        assert runner.ref.name == f"{driver.prefix}one"
        assert runner.ref.scope == driver.scope
        assert runner.labels == LABELS
        assert (runner.is_online, runner.is_busy) == (False, False)

    async def test_registration_shows_its_secret_to_nobody(self, driver: ForgeDriver) -> None:
        registration = await register(driver)

        assert registration.secret.reveal()
        assert registration.secret.reveal() not in repr(registration)
        assert registration.secret.reveal() not in repr(registration.parameters)

    async def test_runners_of_others_are_not_listed(self, driver: ForgeDriver) -> None:
        await driver.add_foreign_runner("someone-else-1")

        assert list(await driver.forge.list_runners()) == []

    async def test_more_runners_than_a_page_are_all_listed(self, driver: ForgeDriver) -> None:
        names = [f"many-{number:03}" for number in range(110)]
        for name in names:
            await register(driver, name)

        runners = await driver.forge.list_runners()

        assert sorted(runner.ref.name for runner in runners) == [f"{driver.prefix}{name}" for name in names]

    async def test_taken_name_is_refused(self, driver: ForgeDriver) -> None:
        if not driver.names_are_unique:
            pytest.skip("this forge lets runners share a name")
        registration = await register(driver, "twin")

        with pytest.raises(NameTaken):
            await register(driver, "twin")
        await driver.forge.deregister(registration.ref)
        await register(driver, "twin")

    async def test_deregistered_runner_is_gone_and_may_be_deregistered_again(self, driver: ForgeDriver) -> None:
        registration = await register(driver)

        await driver.forge.deregister(registration.ref)
        await driver.forge.deregister(registration.ref)

        assert list(await driver.forge.list_runners()) == []

    async def test_busy_runner_refuses_to_be_deregistered(self, driver: ForgeDriver) -> None:
        await driver.submit(driver.repo)
        registration = await register(driver)
        await driver.take(registration)

        with pytest.raises(RunnerBusy):
            await driver.forge.deregister(registration.ref)

        (runner,) = await driver.forge.list_runners()
        assert runner.is_busy

    async def test_finished_runner_vanishes_where_the_forge_removes_it(self, driver: ForgeDriver) -> None:
        await driver.submit(driver.repo)
        registration = await register(driver)
        await driver.take(registration)
        await driver.finish(registration)

        if not driver.forge.traits.removes_finished_runners:
            await driver.forge.deregister(registration.ref, job_is_done=True)

        assert list(await driver.forge.list_runners()) == []

    async def test_sealing_and_holding_may_be_repeated(self, driver: ForgeDriver) -> None:
        await driver.submit(driver.repo)
        registration = await register(driver)
        await driver.take(registration)

        for _ in range(2):
            await driver.forge.seal(registration.ref)
            await driver.forge.hold_queue(scope=driver.scope, group="", labels=LABELS, name=f"{driver.prefix}hold")

        (job,) = (await driver.forge.list_jobs({driver.repo})).jobs
        assert job.status is JobStatus.RUNNING

    # ------------------------------------------------------------------ requeue

    async def test_lost_job_is_queued_again_as_a_new_job(self, driver: ForgeDriver) -> None:
        run_id, lost = await failed_run(driver, ("build",))

        await driver.forge.requeue(driver.repo, run_id, lost)

        (job,) = (await driver.forge.list_jobs({driver.repo})).jobs
        assert (job.name, job.run_id, job.labels) == ("build", run_id, LABELS)
        assert job.forge_job_id not in lost
        assert job.status in (JobStatus.QUEUED, JobStatus.CREATED)

    async def test_several_lost_jobs_of_a_run_are_queued_again_together(self, driver: ForgeDriver) -> None:
        run_id, lost = await failed_run(driver, ("a", "b"))

        await driver.forge.requeue(driver.repo, run_id, lost)

        jobs = (await driver.forge.list_jobs({driver.repo})).jobs
        assert sorted(job.name for job in jobs) == ["a", "b"]
        assert not {job.forge_job_id for job in jobs} & set(lost)

    @pytest.mark.parametrize("names", [("build",), ("a", "b")])
    async def test_second_requeue_queues_nothing_more(self, driver: ForgeDriver, names: tuple[str, ...]) -> None:
        run_id, lost = await failed_run(driver, names)
        await driver.forge.requeue(driver.repo, run_id, lost)
        first = {job.forge_job_id for job in (await driver.forge.list_jobs({driver.repo})).jobs}

        with pytest.raises(AlreadyRequeued) as refused:
            await driver.forge.requeue(driver.repo, run_id, lost)

        assert {job.forge_job_id for job in (await driver.forge.list_jobs({driver.repo})).jobs} == first
        assert refused.value.successor in first | {""}

    @pytest.mark.parametrize("are_both_lost", [False, True])
    async def test_lost_job_that_a_persons_rerun_left_out_is_queued_again(
        self, driver: ForgeDriver, are_both_lost: bool
    ) -> None:
        run_id, (lost, other) = await failed_run(driver, ("lost", "other"))
        await driver.run_again(other)
        asked = [lost, other] if are_both_lost else [lost]

        try:
            await driver.forge.requeue(driver.repo, run_id, asked)
        except NotYet:  # where a run is run again as a whole
            registration = await register(driver)
            await driver.take(registration)
            await driver.finish(registration)
            await driver.forge.requeue(driver.repo, run_id, asked)

        jobs = (await driver.forge.list_jobs({driver.repo})).jobs
        assert [job.name for job in jobs].count("lost") == 1
        assert {job.forge_job_id for job in jobs}.isdisjoint({lost, other})

    async def test_job_of_a_running_run_is_requeued_or_asked_for_later(self, driver: ForgeDriver) -> None:
        run_id = await driver.submit(driver.repo, jobs=("lost", "other"))
        registration = await register(driver)
        job_id = await driver.take(registration)
        await driver.finish(registration, success=False)

        retry_after_s = None
        try:
            await driver.forge.requeue(driver.repo, run_id, [job_id])
        except NotYet as later:
            retry_after_s = later.retry_after_s

        assert retry_after_s is None or retry_after_s > 0
        assert len((await driver.forge.list_jobs({driver.repo})).jobs) == (2 if retry_after_s is None else 1)

    async def test_requeue_of_an_unknown_job_is_not_found(self, driver: ForgeDriver) -> None:
        with pytest.raises(JobNotFound):
            await driver.forge.requeue(driver.repo, "99999999", ["88888888"])

    # ------------------------------------------------------------------ people are told

    async def test_people_are_told_once_however_often_it_is_said(self, driver: ForgeDriver) -> None:
        telling = await doomed(driver)

        for _ in range(3):
            await driver.forge.tell(telling)

        (shown,) = await driver.told()
        assert telling.job_name in shown or telling.text in shown
        assert telling.title in shown

    async def test_each_loss_is_told_by_itself(self, driver: ForgeDriver) -> None:
        telling = await doomed(driver)

        await driver.forge.tell(telling)
        await driver.forge.tell(replace(telling, key=f"{telling.key}-again"))

        assert len(await driver.told()) == 2

    async def test_telling_needs_no_commit_to_be_known(self, driver: ForgeDriver) -> None:
        telling = await doomed(driver)
        assert telling.commit

        await driver.forge.tell(replace(telling, commit=""))
        await driver.forge.tell(telling)

        assert len(await driver.told()) == 1

    async def test_telling_that_did_not_get_through_can_be_repeated(self, driver: ForgeDriver) -> None:
        telling = await doomed(driver)
        await driver.break_forge()
        with pytest.raises((ForgeUnavailable, ForgeOutcomeUnknown)):
            await driver.forge.tell(telling)
        await driver.mend_forge()

        await driver.forge.tell(telling)

        assert len(await driver.told()) == 1

    async def test_nobody_is_told_of_a_job_that_is_gone(self, driver: ForgeDriver) -> None:
        telling = replace(await doomed(driver), run_id="99999999", forge_job_id="99999999", commit="")

        with pytest.raises((JobNotFound, ForgeRefusedForGood)):
            await driver.forge.tell(telling)

    async def test_nothing_is_known_that_keeps_people_from_being_told(self, driver: ForgeDriver) -> None:
        assert await driver.forge.telling_problem(driver.scope) == ""

    async def test_run_is_cancelled_as_often_as_it_is_asked_for(self, driver: ForgeDriver) -> None:
        run_id = await driver.submit(driver.repo, jobs=("a", "b"))
        (job, other) = (await driver.forge.list_jobs({driver.repo})).jobs

        for _ in range(2):
            await driver.forge.cancel_run(driver.repo, run_id, [job.forge_job_id, other.forge_job_id])

        assert (await driver.forge.list_jobs({driver.repo})).jobs == ()
        seen = await driver.forge.get_job(driver.repo, job.forge_job_id)
        assert (seen.status, seen.conclusion) == (JobStatus.DONE, Conclusion.CANCELLED)

    async def test_run_is_not_cancelled_while_another_job_of_it_is_alive(self, driver: ForgeDriver) -> None:
        run_id = await driver.submit(driver.repo, jobs=("a", "b"))
        (job, other) = (await driver.forge.list_jobs({driver.repo})).jobs

        with pytest.raises(NotYet):
            await driver.forge.cancel_run(driver.repo, run_id, [job.forge_job_id])

        assert (await driver.forge.get_job(driver.repo, other.forge_job_id)).status is JobStatus.QUEUED

    async def test_job_of_a_dead_machine_may_be_ended_as_often_as_one_likes(self, driver: ForgeDriver) -> None:
        await driver.submit(driver.repo)
        job_id = await driver.take(await register(driver))

        for _ in range(2):
            await driver.forge.end_job(driver.repo, job_id)

        seen = await driver.forge.get_job(driver.repo, job_id)
        ends_alone = driver.forge.traits.requeues_at_once
        assert seen.conclusion is (Conclusion.CANCELLED if ends_alone else None)

    async def test_run_that_the_forge_forgot_cannot_be_cancelled(self, driver: ForgeDriver) -> None:
        with pytest.raises(JobNotFound):
            await driver.forge.cancel_run(driver.repo, "99999999", ["88888888"])

    # ------------------------------------------------------------------ trouble

    async def test_broken_forge_is_unavailable_and_recovers(self, driver: ForgeDriver) -> None:
        await driver.submit(driver.repo)
        await driver.forge.list_jobs({driver.repo})
        await driver.break_forge()

        for call in (driver.forge.list_jobs({driver.repo}), driver.forge.list_runners()):
            with pytest.raises(ForgeUnavailable):
                await call
        with pytest.raises(ForgeUnavailable):
            await driver.forge.get_job(driver.repo, "1")
        await driver.mend_forge()

        assert len((await driver.forge.list_jobs({driver.repo})).jobs) == 1

    async def test_broken_write_says_that_its_outcome_is_unknown(self, driver: ForgeDriver) -> None:
        registration = await register(driver, "first")
        await driver.break_forge()

        with pytest.raises(ForgeOutcomeUnknown):
            await register(driver, "second")
        with pytest.raises(ForgeError):
            await driver.forge.deregister(registration.ref)
        await driver.mend_forge()

        await driver.forge.deregister(registration.ref)

    async def test_cancelled_calls_may_be_repeated(self, driver: ForgeDriver) -> None:
        await driver.submit(driver.repo)
        for patience in range(6):
            call = asyncio.ensure_future(driver.forge.list_jobs({driver.repo}))
            for _ in range(patience):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait({call})

        assert len((await driver.forge.list_jobs({driver.repo})).jobs) == 1

    async def test_registration_budget_goes_down_with_each_registration(self, driver: ForgeDriver) -> None:
        before = {budget.family: budget for budget in driver.forge.budgets()}
        for name in ("a", "b"):
            await register(driver, name)
        after = {budget.family: budget for budget in driver.forge.budgets()}

        assert 0 < after["registration"].remaining < before["registration"].remaining
        assert before["registration"].remaining <= before["registration"].limit
        assert after["registration"].refill_per_s > 0

    async def test_recovery_of_deliveries_finds_nothing_where_nothing_failed(self, driver: ForgeDriver) -> None:
        await driver.submit(driver.repo)
        await driver.received()
        since = datetime.now(UTC) - timedelta(hours=1)

        recovery = await driver.forge.recover_deliveries(since)

        assert (recovery.failed, recovery.redelivered) == (0, 0)
        assert recovery.complete_until > since

    async def test_closing_twice_is_fine(self, driver: ForgeDriver) -> None:
        await driver.forge.list_runners()

        await driver.forge.aclose()
        await driver.forge.aclose()
