"""The GitLab forge: webhooks as wake-up, REST for tags and truth, one paused-while-busy runner per machine.

Reading order: gitlab_settings (what is configured), gitlab_scopes, gitlab_webhooks and gitlab_jobs (what waits),
gitlab_runners (who serves it), gitlab_requeue (what is lost), gitlab_tell (who is told),
gitlab_rest, gitlab_budget, gitlab_errors (how we talk).
Facts: specs "GitLab". Imports of python-gitlab stay in gitlab_rest.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from autoscaler.spi import (
    Forge,
    ForgeJob,
    ForgeName,
    ForgeRunner,
    ForgeSettings,
    ForgeTraits,
    JobListing,
    Labels,
    RateBudget,
    Recovery,
    Registration,
    RequeueResult,
    RunnerRef,
    Scope,
    Surroundings,
    Telling,
    Webhook,
)
from runners.gitlab_jobs import JobReader
from runners.gitlab_requeue import Requeuer
from runners.gitlab_rest import Rest
from runners.gitlab_runners import RunnerDesk
from runners.gitlab_scopes import ScopeMap
from runners.gitlab_settings import read_access, read_scopes, read_webhook_keys
from runners.gitlab_tell import Teller
from runners.gitlab_webhooks import WebhookReader

_TRAITS = ForgeTraits(
    seals_runners=True,
    removes_finished_runners=False,
    needs_queue_holder=True,
    counts_attempts=False,
    requeues_at_once=True,
)


def create(settings: ForgeSettings, surroundings: Surroundings) -> Forge:
    """The forge of one `[[forge]]` section of kind "gitlab". Calls nothing. Raises SettingsError.

    credentials: `token` (personal, group or project access token, scope api) and, where runners should be managed by
    another user, `runner_token` (scopes create_runner and manage_runner).
    """
    return GitLabForge(settings, surroundings)


class GitLabForge:
    """Implements `spi.Forge`; each call is one of the parts'."""

    def __init__(self, settings: ForgeSettings, surroundings: Surroundings) -> None:
        access, keys, scopes = read_access(settings), read_webhook_keys(settings), read_scopes(settings)
        self._name = settings.name
        self._clock = surroundings.clock
        self._rest = Rest(settings.name, access, surroundings)
        self._scopes = ScopeMap(scopes, self._rest, surroundings.clock)
        self._webhooks = WebhookReader(
            settings.name, keys, surroundings.clock, base_url=access.url, scope_of=self._scopes.scope_of
        )
        self._jobs = JobReader(self._rest, self._scopes, surroundings.clock)
        self._runners = RunnerDesk(self._rest, self._scopes, self._jobs, url=access.url, surroundings=surroundings)
        self._requeuer = Requeuer(self._rest)
        self._teller = Teller(self._rest, surroundings.clock)

    @property
    def name(self) -> ForgeName:
        return self._name

    @property
    def traits(self) -> ForgeTraits:
        return _TRAITS

    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> Webhook:
        return self._webhooks.read(headers, body)

    def scope_of(self, repo: str) -> Scope | None:
        return self._scopes.scope_of(repo)

    async def list_jobs(self, active: Collection[str]) -> JobListing:
        return await self._jobs.list_jobs(active)

    async def get_job(self, repo: str, forge_job_id: str) -> ForgeJob:
        return await self._jobs.get_job(repo, forge_job_id)

    async def register(self, *, scope: Scope, group: str, name: str, labels: Labels) -> Registration:
        """GitLab has no runner groups: `group` names GitHub's, for pools that serve both, and is left aside."""
        return await self._runners.register(scope=scope, name=name, labels=labels)

    async def list_runners(self) -> Sequence[ForgeRunner]:
        return await self._runners.list_runners()

    async def deregister(self, runner: RunnerRef, *, job_is_done: bool = False) -> None:
        """As the contract says; `job_is_done` spares the questions where the job is known to be over."""
        await self._runners.deregister(runner, job_is_done=job_is_done)

    async def seal(self, runner: RunnerRef) -> None:
        await self._runners.seal(runner)

    async def hold_queue(self, *, scope: Scope, group: str, labels: Labels, name: str) -> None:
        await self._runners.hold_queue(scope=scope, labels=labels, name=name)

    async def requeue(
        self,
        repo: str,
        run_id: str,
        forge_job_ids: Sequence[str],
        *,
        with_failures: bool = True,
        spared: Collection[str] = (),
    ) -> RequeueResult:
        """GitLab retries single jobs: `with_failures` changes nothing."""
        return await self._requeuer.requeue(repo, run_id, forge_job_ids, spared=spared)

    async def tell(self, telling: Telling) -> None:
        await self._teller.tell(telling)

    async def telling_problem(self, scope: Scope) -> str:
        """GitLab tells a token's scope, which everything else needs too, but not what its user may do where."""
        return ""

    async def end_job(self, repo: str, forge_job_id: str) -> None:
        await self._requeuer.end_job(repo, forge_job_id)

    async def cancel_run(self, repo: str, run_id: str, forge_job_ids: Collection[str]) -> None:
        await self._requeuer.cancel_run(repo, run_id, forge_job_ids)

    async def recover_deliveries(self, since: datetime) -> Recovery:
        """GitLab keeps no list of failed deliveries to ask for; polling covers them."""
        return Recovery(failed=0, redelivered=0, complete_until=self._clock.now())

    def budgets(self) -> Sequence[RateBudget]:
        return self._rest.rate_budgets()

    async def aclose(self) -> None:
        self._rest.close()
