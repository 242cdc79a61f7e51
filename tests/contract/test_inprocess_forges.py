"""The in-process faces of both forges keep the contract of every forge."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from datetime import UTC, datetime

import pytest

from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.gitlab_model import Offer, RunnerType
from autoscaler.sandbox.gitlab_runners import RunnerRequest
from autoscaler.sandbox.gitlab_world import GitLabWorld
from autoscaler.sandbox.inprocess import ClearRoad, Fate, OutboundWebhook
from autoscaler.sandbox.inprocess_github import GitHubInProcess, GitHubSite
from autoscaler.sandbox.inprocess_gitlab import GitLabInProcess, GitLabSite
from autoscaler.sandbox.workload import JobSpec, RunSpec
from autoscaler.spi import ForgeName, Labels, Registration, Scope
from tests.contract.forge_contract import LABELS, ForgeContract
from tests.hurried_clock import HurriedClock


class BreakableRoad(ClearRoad):
    """Every request is lost while it is broken."""

    is_broken = False

    async def there(self, target: str, call: str) -> Fate:
        await super().there(target, call)
        return Fate.REQUEST_LOST if self.is_broken else Fate.FINE


class _Driver:
    scope = Scope("acme")
    repo = "acme/web"
    other_repo = "acme/api"
    prefix = "tests--"

    def __init__(self) -> None:
        self.road = BreakableRoad()
        self.taken: list[OutboundWebhook] = []

    async def received(self) -> list[tuple[dict[str, str], bytes]]:
        return [(dict(webhook.headers), webhook.body) for webhook in self.taken]

    async def break_forge(self) -> None:
        self.road.is_broken = True

    async def mend_forge(self) -> None:
        self.road.is_broken = False


class GitHubDriver(_Driver):
    """People and machines at the in-process GitHub."""

    names_are_unique = True
    credential_headers: Collection[str] = ("x-hub-signature-256",)

    def __init__(self) -> None:
        super().__init__()
        world = GitHubWorld(["acme/web", "acme/api", "stranger/repo"])
        self.site = GitHubSite(world, HurriedClock(), send=self.taken.append)
        self.forge = GitHubInProcess(
            self.site, name=ForgeName("gh"), scopes=[self.scope], runner_prefix=self.prefix, road=self.road
        )

    async def submit(
        self, repo: str, *, jobs: Sequence[str] = ("build",), labels: Labels = LABELS, ref: str = "main"
    ) -> str:
        specs = tuple(JobSpec(key=name, name=name, labels=labels) for name in jobs)
        return str(self.site.submit(RunSpec(repo=repo, workflow="CI", jobs=specs, ref=ref)))

    async def take(self, registration: Registration) -> str:
        runner_id = self.site.runner_of(registration.secret.reveal())
        self.site.world.connect(runner_id, now())
        job = self.site.world.take_job(runner_id, now())
        assert job is not None, "no job for this runner"
        self.site.settle()
        return str(job.id)

    async def finish(self, registration: Registration, *, success: bool = True) -> None:
        self.site.world.complete(int(registration.ref.runner_id), "success" if success else "failure", now())
        self.site.settle()

    async def run_again(self, job_id: str) -> None:
        self.site.world.rerun_job(int(job_id), now())
        self.site.settle()

    async def told(self) -> Sequence[str]:
        return [f"{one.name}\n{one.title}\n{one.summary}" for one in self.site.world.checks.everything()]

    async def add_foreign_runner(self, name: str) -> None:
        self.site.world.generate_jitconfig(self.scope, name, 1, ["linux"], now())


class GitLabDriver(_Driver):
    """People and machines at the in-process GitLab."""

    names_are_unique = False
    credential_headers: Collection[str] = ("x-gitlab-token",)

    def __init__(self) -> None:
        super().__init__()
        world = GitLabWorld()
        for path in (self.repo, self.other_repo, "stranger/repo"):
            world.add_project(path, now())
        self.site = GitLabSite(world, HurriedClock(), send=self.taken.append)
        self.forge = GitLabInProcess(
            self.site, name=ForgeName("gl"), scopes=[self.scope], runner_prefix=self.prefix, road=self.road
        )
        self._offers: dict[str, Offer] = {}

    async def submit(
        self, repo: str, *, jobs: Sequence[str] = ("build",), labels: Labels = LABELS, ref: str = "main"
    ) -> str:
        specs = tuple(JobSpec(key=name, name=name, labels=labels) for name in jobs)
        return str(self.site.submit(RunSpec(repo=repo, workflow="CI", jobs=specs, ref=ref)))

    async def take(self, registration: Registration) -> str:
        offer = self.site.world.request_job(registration.secret.reveal(), "s_0123456789ab", now())
        assert offer is not None, "no job for this runner"
        self.site.world.update_job(offer.token, "running", now())
        self.site.settle()
        self._offers[registration.ref.runner_id] = offer
        return str(offer.job_id)

    async def finish(self, registration: Registration, *, success: bool = True) -> None:
        state = "success" if success else "failed"
        self.site.world.update_job(
            self._offers[registration.ref.runner_id].token, state, now(), failure_reason="script_failure"
        )
        self.site.settle()

    async def run_again(self, job_id: str) -> None:
        self.site.world.retry_job(int(job_id), now())
        self.site.settle()

    async def told(self) -> Sequence[str]:
        return [note.body for note in self.site.world.merge_requests.everything()]

    async def add_foreign_runner(self, name: str) -> None:
        group = self.site.world.find_group("acme").id
        request = RunnerRequest(runner_type=RunnerType.GROUP, scope_id=group, description=name, tags=["linux"])
        self.site.world.create_runner(request, now())


def now() -> float:
    return datetime.now(UTC).timestamp()


async def _driving(make: Callable[[], GitHubDriver] | Callable[[], GitLabDriver]) -> AsyncIterator[object]:
    driver = make()
    yield driver
    driver.site.stop()
    await asyncio.sleep(0)


class TestGitHubInProcess(ForgeContract):
    @pytest.fixture
    async def driver(self) -> AsyncIterator[object]:
        async for made in _driving(GitHubDriver):
            yield made


class TestGitLabInProcess(ForgeContract):
    @pytest.fixture
    async def driver(self) -> AsyncIterator[object]:
        async for made in _driving(GitLabDriver):
            yield made
