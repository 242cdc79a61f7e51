"""The GitHub adapter against the sandbox's GitHub: the contract of every forge, and what GitHub alone does."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.github_auth import AppIdentity
from autoscaler.sandbox.github_face import GitHubFace
from autoscaler.sandbox.github_limits import Limits
from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.workload import JobSpec, RunSpec
from autoscaler.spi import (
    AlreadyRequeued,
    ForgeName,
    ForgeRefused,
    ForgeSettings,
    ForgeUnauthorized,
    ForgeUnavailable,
    JobStatus,
    Labels,
    RateLimited,
    Registration,
    RunnerId,
    RunnerRef,
    Scope,
    Secret,
    Surroundings,
)
from runners.github import GitHubForge, create
from tests.contract.forge_contract import LABELS, ForgeContract, register

TOKEN = "ghp_sandbox"
SECRET = "hook secret"


class HookReceiver:
    """Takes webhooks as the daemon would; `status` is what it answers."""

    def __init__(self) -> None:
        self.status = 202
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/webhooks/gh", self._take)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/webhooks/gh"

    async def aclose(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.taken.append((headers, await request.read()))
        return web.Response(status=self.status)


class GitHubDriver:
    """Plays people and machines in the sandbox's GitHub world."""

    scope = Scope("acme")
    repo = "acme/web"
    other_repo = "acme/api"
    prefix = "ci-"
    names_are_unique = True
    credential_headers: Collection[str] = ("x-hub-signature-256",)

    def __init__(self, face: GitHubFace, receiver: HookReceiver, calls: Calls, api_url: str, key: str) -> None:
        self.face = face
        self.receiver = receiver
        self._calls = calls
        self._api_url = api_url
        self._key = key
        self.forge = self.make_forge()

    def make_forge(
        self, *, scopes: Sequence[str] = ("acme",), token: str = "", poll_s: float = 60, **options: object
    ) -> GitHubForge:
        app: dict[str, Secret | str] = {"app_id": "1234567", "private_key": Secret(self._key)}
        return create(
            ForgeSettings(
                name=ForgeName("gh"),
                kind="github",
                url="",
                api_url=self._api_url,
                credentials={"token": Secret(token)} if token else app,
                webhook_secrets=(Secret(SECRET),),
                scopes=tuple(Scope(scope) for scope in scopes),
                poll=timedelta(seconds=poll_s),
                options=options,
            ),
            Surroundings(deployment="test", runner_prefix=self.prefix, clock=SystemClock(), gates=self._calls),
        )

    async def submit(self, repo: str, *, jobs: Sequence[str] = ("build",), labels: Labels = LABELS) -> str:
        specs = tuple(JobSpec(key=name, name=name, labels=labels) for name in jobs)
        return str(self.face.submit(RunSpec(repo=repo, workflow="CI", jobs=specs)))

    async def take(self, registration: Registration) -> str:
        runner_id = int(registration.ref.runner_id)
        self.face.world.connect(runner_id, _now())
        job = self.face.world.take_job(runner_id, _now())
        assert job is not None, "no job for this runner"
        return str(job.id)

    async def finish(self, registration: Registration, *, success: bool = True) -> None:
        conclusion = "success" if success else "failure"
        self.face.world.complete(int(registration.ref.runner_id), conclusion, _now())  # type: ignore[arg-type]

    async def add_foreign_runner(self, name: str) -> None:
        self.face.world.generate_jitconfig(self.scope, name, 1, ["linux"], _now())

    async def received(self) -> list[tuple[dict[str, str], bytes]]:
        await self.face.webhooks_settled()
        return list(self.receiver.taken)

    async def break_forge(self) -> None:
        self.face.faults.forge_error = 1.0

    async def mend_forge(self) -> None:
        self.face.faults.forge_error = 0.0


def _now() -> float:
    return datetime.now(UTC).timestamp()


@asynccontextmanager
async def sandbox(*, limits: Limits | None = None, prefix: str = "") -> AsyncIterator[GitHubDriver]:
    identity, key = AppIdentity.generate()
    receiver, calls = HookReceiver(), Calls()
    await receiver.start()
    face = GitHubFace(
        GitHubWorld(["acme/web", "acme/api", "acme/quiet"]),
        webhook_url=receiver.url,
        webhook_secret=SECRET,
        app=identity,
        tokens=[TOKEN],
        faults=Faults(),
        limits=limits,
    )
    driver = GitHubDriver(face, receiver, calls, await face.start() + prefix, key)
    try:
        yield driver
    finally:
        await driver.forge.aclose()
        await face.aclose()
        await receiver.aclose()
        assert await calls.aclose() == []


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
    before = _core(driver.forge)

    again = await driver.forge.list_jobs({driver.repo})

    assert again == first
    assert _core(driver.forge) == before


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
        forge = driver.make_forge(poll_s=60)
        await driver.submit("acme/sleeping-47")

        for poll in range(1, 80):  # noqa: B007 - the number of polls it took is asserted on
            listing = await forge.list_jobs(())
            if listing.jobs:
                break
        remaining = _core(forge)
        await forge.aclose()

        assert [job.repo for job in listing.jobs] == ["acme/sleeping-47"]
        assert poll > 1
        assert remaining > 60


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


# ---------------------------------------------------------------------- limits and permissions


async def test_registrations_stop_at_180_a_minute_without_a_call(driver: GitHubDriver) -> None:
    await asyncio.gather(*(register(driver, f"r{number}") for number in range(180)))

    with pytest.raises(RateLimited) as refused:
        await register(driver, "one-too-many")

    assert refused.value.family == "registration"
    assert 0 < refused.value.retry_after_s <= 60
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
    driver.face.world.rerun(int(run_id), _now())

    with pytest.raises(AlreadyRequeued) as refused:
        await driver.forge.requeue(driver.repo, run_id, [job_id])

    successor = await driver.forge.get_job(driver.repo, refused.value.successor)
    assert (successor.status, successor.run_attempt) == (JobStatus.QUEUED, 2)


async def test_run_without_failed_jobs_is_not_run_again(driver: GitHubDriver) -> None:
    run_id, ended = await driver.submit(driver.repo, jobs=("a", "b")), []
    for name in ("a", "b"):
        registration = await register(driver, name)
        ended.append(await driver.take(registration))
        await driver.finish(registration)

    with pytest.raises(ForgeRefused, match="cannot be retried"):
        await driver.forge.requeue(driver.repo, run_id, ended)

    assert (await driver.forge.list_jobs({driver.repo})).jobs == ()


@pytest.mark.parametrize("as_app", [True, False])
async def test_failed_deliveries_are_sent_again_with_their_ids(driver: GitHubDriver, as_app: bool) -> None:
    forge = driver.forge if as_app else driver.make_forge(token=TOKEN)
    if not as_app:
        driver.face.world.hooks.clear()
        driver.face.world.add_hook("acme", driver.receiver.url, secret=SECRET.encode(), now=_now())
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


def _core(forge: GitHubForge) -> float:
    return {budget.family: budget.remaining for budget in forge.budgets()}["core"]
