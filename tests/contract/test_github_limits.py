"""The GitHub adapter against the sandbox's GitHub: rate limits, permissions, runner groups, requeue, redelivery."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from autoscaler.sandbox.github_limits import Limits
from autoscaler.spi import (
    AlreadyRequeued,
    ForgeRefused,
    ForgeRefusedForGood,
    ForgeUnauthorized,
    ForgeUnavailable,
    JobStatus,
    NotYet,
    RateLimited,
    RunnerId,
    RunnerRef,
    Scope,
)
from tests.contract.forge_contract import LABELS, register
from tests.contract.forge_driver import failed_run
from tests.contract.github_driver import SECRET, TOKEN, GitHubDriver, now, sandbox


@pytest.fixture
async def driver() -> AsyncIterator[GitHubDriver]:
    async with sandbox() as made:
        yield made


# ---------------------------------------------------------------------- limits and permissions


async def test_registrations_stop_at_180_a_minute_without_a_call(driver: GitHubDriver) -> None:
    await asyncio.gather(*(register(driver, f"r{number}") for number in range(180)))

    with pytest.raises(RateLimited) as refused:
        await register(driver, "one-too-many")

    assert refused.value.family == "registration"
    assert 0 < refused.value.retry_after_s <= 61
    assert len(driver.face.world.runners) == 180


@pytest.mark.parametrize("status", [403, 429])
async def test_primary_limit_is_told_with_its_reset(status: int) -> None:
    async with sandbox(limits=Limits(primary_per_hour=2, status=status)) as driver:
        spender, late = driver.make_forge(token=TOKEN), driver.make_forge(token=TOKEN)
        for number in range(2):
            await spender.register(scope=driver.scope, group="", name=f"ci-{number}", labels=LABELS)

        for forge in (spender, late, late):
            with pytest.raises(RateLimited) as refused:
                await forge.register(scope=driver.scope, group="", name="ci-more", labels=LABELS)
            assert 3000 < refused.value.retry_after_s <= 3601
        await spender.aclose()
        await late.aclose()


async def test_secondary_limit_is_obeyed_without_asking_again() -> None:
    async with sandbox(limits=Limits(secondary=True, points_per_minute=5, retry_after_s=42)) as driver:
        await register(driver, "a")
        with pytest.raises(RateLimited) as refused:
            await register(driver, "b")
        driver.face.limiter.limits.secondary = False
        with pytest.raises(RateLimited) as still:
            await register(driver, "c")

        assert refused.value.retry_after_s == 42
        assert 0 < still.value.retry_after_s <= 42
        assert {budget.family: budget.remaining for budget in driver.forge.budgets()}["registration"] == 0


async def test_forge_without_limits_is_not_held_back() -> None:
    async with sandbox(limits=Limits(primary_per_hour=None), prefix="/api/v3") as driver:
        await driver.submit(driver.repo)

        assert len((await driver.forge.list_jobs({driver.repo})).jobs) == 1


async def test_wrong_token_is_unauthorized_and_shown_to_nobody(driver: GitHubDriver) -> None:
    forge = driver.make_forge(token="ghp_wrong_one")

    with pytest.raises(ForgeUnauthorized, match="Renew the token") as refused:
        await forge.list_runners()
    await forge.aclose()

    assert "ghp_wrong_one" not in str(refused.value)


async def test_unknown_organisation_names_the_permission_to_grant(driver: GitHubDriver) -> None:
    forge = driver.make_forge(scopes=["nowhere"], token=TOKEN)

    with pytest.raises(ForgeUnauthorized, match="Self-hosted runners: write"):
        await forge.register(scope=Scope("nowhere"), group="", name="ci-x", labels=LABELS)
    await forge.aclose()


async def test_app_that_is_not_installed_says_so(driver: GitHubDriver) -> None:
    forge = driver.make_forge(scopes=["nowhere"])

    with pytest.raises(ForgeUnauthorized, match="installation"):
        await forge.list_runners()
    await forge.aclose()


async def test_revoked_installation_token_is_replaced(driver: GitHubDriver) -> None:
    await driver.forge.list_runners()
    driver.face.authenticator.revoke_all()

    registration = await register(driver)

    assert [runner.ref for runner in await driver.forge.list_runners()] == [registration.ref]


async def test_forge_that_is_not_there_is_unavailable(driver: GitHubDriver) -> None:
    forge = driver.make_forge(token=TOKEN)
    await driver.face.aclose()

    for call in (
        forge.list_runners(),
        forge.register(scope=Scope("acme"), group="", name="ci-x", labels=LABELS),
        driver.forge.list_runners(),
    ):
        with pytest.raises(ForgeUnavailable):
            await call
    await forge.aclose()


# ---------------------------------------------------------------------- groups, requeue, deliveries


async def test_runner_joins_the_group_by_name(driver: GitHubDriver) -> None:
    group = driver.face.world.add_runner_group("acme", "Builders")

    registration = await driver.forge.register(scope=driver.scope, group="builders", name="ci-g", labels=LABELS)

    assert driver.face.world.runners[int(registration.ref.runner_id)].group_id == group.id


async def test_unknown_group_names_those_that_exist(driver: GitHubDriver) -> None:
    driver.face.world.add_runner_group("acme", "Builders")

    with pytest.raises(ForgeRefused, match="builders, default"):
        await driver.forge.register(scope=driver.scope, group="Bilders", name="ci-g", labels=LABELS)


async def test_requeue_by_somebody_else_names_the_successor(driver: GitHubDriver) -> None:
    run_id = await driver.submit(driver.repo)
    registration = await register(driver)
    job_id = await driver.take(registration)
    await driver.finish(registration, success=False)
    driver.face.world.rerun(int(run_id), now())

    with pytest.raises(AlreadyRequeued) as refused:
        await driver.forge.requeue(driver.repo, run_id, [job_id])

    successor = await driver.forge.get_job(driver.repo, refused.value.successor)
    assert (successor.status, successor.run_attempt) == (JobStatus.QUEUED, 2)


async def test_run_of_dead_jobs_is_ended_and_run_again(driver: GitHubDriver) -> None:
    run_id = await driver.submit(driver.repo, jobs=("a", "b"))
    dead = [await driver.take(await register(driver, name)) for name in ("a", "b")]
    run = driver.face.world.runs[int(run_id)]

    while run.status != "completed":
        with pytest.raises(NotYet) as later:
            await driver.forge.requeue(driver.repo, run_id, dead)
        driver.clock.ahead += timedelta(seconds=later.value.retry_after_s)

    await driver.forge.requeue(driver.repo, run_id, dead)
    assert {(job.attempt, job.status) for job in run.jobs.values()} == {(2, "queued")}


async def test_job_that_an_attempt_before_the_newest_ran_again_has_its_successor_there(driver: GitHubDriver) -> None:
    run_id, (lost, _) = await failed_run(driver, ("a", "b"))
    world = driver.face.world
    world.rerun(int(run_id), now())
    for name in ("a", "b"):
        registration = await register(driver, f"again-{name}")
        await driver.take(registration)
        await driver.finish(registration, success=False)
    second = {job.spec.key: job.id for job in world.runs[int(run_id)].jobs.values()}
    world.rerun_job(second["b"], now())

    with pytest.raises(AlreadyRequeued) as refused:
        await driver.forge.requeue(driver.repo, run_id, [lost])

    assert refused.value.successor == str(second["a"])


async def test_run_without_failed_jobs_is_not_run_again(driver: GitHubDriver) -> None:
    run_id, ended = await driver.submit(driver.repo, jobs=("a", "b")), []
    for name in ("a", "b"):
        registration = await register(driver, name)
        ended.append(await driver.take(registration))
        await driver.finish(registration)

    with pytest.raises(ForgeRefusedForGood, match="cannot be retried"):
        await driver.forge.requeue(driver.repo, run_id, ended)

    assert (await driver.forge.list_jobs({driver.repo})).jobs == ()


@pytest.mark.parametrize("as_app", [True, False])
async def test_failed_deliveries_are_sent_again_with_their_ids(driver: GitHubDriver, as_app: bool) -> None:
    forge = driver.forge if as_app else driver.make_forge(token=TOKEN)
    if not as_app:
        driver.face.world.hooks.clear()
        driver.face.world.add_hook("acme", driver.receiver.url, secret=SECRET.encode(), now=now())
    await driver.received()
    driver.receiver.taken.clear()
    since = datetime.now(UTC) - timedelta(minutes=1)
    driver.receiver.status = 503
    await driver.submit(driver.repo)
    lost = {headers["x-github-delivery"] for headers, _ in await driver.received()}
    driver.receiver.status = 202
    driver.receiver.taken.clear()

    recovery = await forge.recover_deliveries(since)
    again = {headers["x-github-delivery"] for headers, _ in await driver.received()}
    later = await forge.recover_deliveries(since)
    await forge.aclose()

    assert recovery.failed == recovery.redelivered == len(lost) >= 2
    assert again == lost
    assert (later.failed, later.redelivered) == (0, 0)


async def test_unreadable_deliveries_are_not_claimed_to_be_complete(driver: GitHubDriver) -> None:
    forge = driver.make_forge(scopes=["nowhere"], token=TOKEN)
    since = datetime.now(UTC) - timedelta(minutes=1)

    recovery = await forge.recover_deliveries(since)
    await forge.aclose()

    assert (recovery.failed, recovery.redelivered, recovery.complete_until) == (0, 0, since)


async def test_delivery_that_fails_for_ever_is_given_up(driver: GitHubDriver) -> None:
    since = datetime.now(UTC) - timedelta(minutes=1)
    driver.receiver.status = 500
    await driver.submit(driver.repo)
    redelivered = []
    for _ in range(7):
        await driver.received()
        redelivered.append((await driver.forge.recover_deliveries(since)).redelivered)

    assert redelivered[0] > 0
    assert redelivered[-1] == 0


async def test_runner_id_cannot_change_the_path(driver: GitHubDriver) -> None:
    registration = await register(driver)
    ref = RunnerRef(scope=driver.scope, runner_id=RunnerId(f"x/../{registration.ref.runner_id}"), name="ci-x")

    await driver.forge.deregister(ref)

    assert len(await driver.forge.list_runners()) == 1
