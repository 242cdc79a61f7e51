"""The GitHub adapter against the sandbox's GitHub: the contract of every forge, and its listings."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from autoscaler.sandbox.github_limits import Limits
from autoscaler.spi import (
    ForgeUnavailable,
    RateLimited,
    Scope,
)
from tests.contract.forge_contract import LABELS, ForgeContract, register
from tests.contract.github_driver import TOKEN, GitHubDriver, core_budget, sandbox


@pytest.fixture
async def driver() -> AsyncIterator[GitHubDriver]:
    async with sandbox() as made:
        yield made


class TestContractAsApp(ForgeContract):
    pass


class TestContractWithTokenOnEnterpriseServer(ForgeContract):
    @pytest.fixture
    async def driver(self) -> AsyncIterator[GitHubDriver]:
        async with sandbox(prefix="/api/v3") as made:
            await made.forge.aclose()
            made.forge = made.make_forge(token=TOKEN)
            yield made


# ---------------------------------------------------------------------- listings


async def test_unchanged_listing_costs_no_primary_budget(driver: GitHubDriver) -> None:
    await driver.submit(driver.repo, jobs=("a", "b"))
    first = await driver.forge.list_jobs({driver.repo})
    before = core_budget(driver.forge)
    driver.clock.ahead += timedelta(seconds=60)

    again = await driver.forge.list_jobs({driver.repo})

    assert again == first
    assert core_budget(driver.forge) == before


async def test_all_pages_of_unchanged_listings_are_remembered(driver: GitHubDriver) -> None:
    names = [f"{number:03}" for number in range(130)]
    await driver.submit(driver.repo, jobs=names)

    for _ in range(2):
        jobs = (await driver.forge.list_jobs({driver.repo})).jobs
        assert sorted(job.name for job in jobs) == names


async def test_repo_scope_needs_no_hint_and_sees_no_other_repo(driver: GitHubDriver) -> None:
    await driver.submit(driver.repo)
    await driver.submit(driver.other_repo)
    forge = driver.make_forge(scopes=["acme/web"])

    listing = await forge.list_jobs({driver.other_repo})
    registration = await forge.register(scope=Scope("acme/web"), group="", name="ci-repo", labels=LABELS)
    await driver.take(registration)
    await forge.aclose()

    assert [job.repo.lower() for job in listing.jobs] == [driver.repo]
    assert registration.ref.scope == "acme/web"


async def test_one_repos_failure_leaves_the_others_listed(driver: GitHubDriver) -> None:
    await driver.submit(driver.repo)

    listing = await driver.forge.list_jobs({driver.repo, "acme/deleted"})

    assert len(listing.jobs) == 1
    assert "acme/deleted" not in listing.repos
    assert driver.repo in listing.repos


async def test_runs_that_cannot_be_read_do_not_hide_the_others() -> None:
    async with sandbox(limits=Limits(primary_per_hour=None)) as driver:
        names = {f"job-{number:02}" for number in range(20)}
        for name in names:
            await driver.submit(driver.repo, jobs=(name,))
        driver.face.faults.forge_error = 0.1
        seen: set[str] = set()
        incomplete, complete_with = 0, set()

        for _ in range(60):
            try:
                listing = await driver.forge.list_jobs({driver.repo})
            except ForgeUnavailable:
                continue
            seen |= {job.name for job in listing.jobs}
            if driver.repo in listing.repos:
                complete_with.add(len(listing.jobs))
            else:
                incomplete += 1

        assert seen == names
        assert incomplete > 0
        assert complete_with <= {20}


async def test_more_runs_than_may_be_read_in_a_minute_are_read_in_turn() -> None:
    async with sandbox() as driver:
        names = [f"{number:04}" for number in range(900)]
        for name in names:
            await driver.submit(driver.repo, jobs=(name,))

        first = await driver.forge.list_jobs({driver.repo})

        assert driver.repo not in first.repos
        assert 700 < len(first.jobs) < 800


async def test_quiet_repos_are_swept_within_the_budget() -> None:
    async with sandbox(limits=Limits(primary_per_hour=600)) as driver:
        for number in range(60):
            driver.face.world.add_repo(f"acme/sleeping-{number:02}")
        forge = driver.make_forge(token=TOKEN, poll_s=60)
        await driver.submit("acme/sleeping-47")

        for poll in range(1, 80):  # noqa: B007 - the number of polls it took is asserted on
            listing = await forge.list_jobs(())
            if listing.jobs:
                break
            driver.clock.ahead += timedelta(seconds=60)
        remaining = core_budget(forge)
        await forge.aclose()

        assert [job.repo for job in listing.jobs] == ["acme/sleeping-47"]
        assert poll > 1
        assert remaining > 60


async def test_call_for_one_repo_between_polls_searches_no_others(driver: GitHubDriver) -> None:
    first = await driver.forge.list_jobs({driver.repo})
    await driver.submit("acme/quiet")
    between = await driver.forge.list_jobs({driver.repo})
    driver.clock.ahead += timedelta(seconds=60)
    later = await driver.forge.list_jobs({driver.repo})

    assert first.repos == {"acme/web", "acme/api", "acme/quiet"}
    assert between.repos == {driver.repo}
    assert between.jobs == ()
    assert [job.repo for job in later.jobs] == ["acme/quiet"]


async def test_listings_leave_a_reserve_for_registrations() -> None:
    async with sandbox(limits=Limits(primary_per_hour=100)) as driver:
        repos = [f"acme/r{number:02}" for number in range(40)]
        for repo in repos:
            driver.face.world.add_repo(repo)
        await register(driver, "first")

        listing = await driver.forge.list_jobs(repos)
        with pytest.raises(RateLimited) as refused:
            await driver.forge.list_jobs(repos[30:])
        await register(driver, "still-possible")

        assert len(listing.repos) < len(repos)
        assert refused.value.retry_after_s > 60
