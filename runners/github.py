"""The GitHub adapter: github.com, data residency and GHES, as a GitHub App or with a token.

`create` is the entry point. This file only puts the parts together; each lives in a file of its own:

    github_settings  the [[forge]] section        github_webhooks    authenticate and parse
    github_auth      tokens and the App           github_jobs        polling
    github_rest      HTTP, pages, ETags           github_runners     register, list, remove
    github_budgets   rate limits                  github_requeue     run lost jobs again
    github_errors    what refusals mean           github_reruns      how, by what a run came to
    github_tell      tell people about them       github_deliveries  failed webhooks
"""

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from autoscaler.spi import (
    ForgeJob,
    ForgeName,
    ForgeRunner,
    ForgeSettings,
    ForgeTraits,
    JobListing,
    JobNotFound,
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
from runners.github_auth import AppAuthenticator, Auth, TokenAuth
from runners.github_budgets import Budgets
from runners.github_deliveries import Deliveries
from runners.github_errors import Purpose
from runners.github_jobs import JobPoller
from runners.github_payloads import JobPayload, forge_job, listed_status
from runners.github_requeue import Requeuer
from runners.github_rest import Rest
from runners.github_runners import Runners
from runners.github_settings import TokenCredentials, api_url_of, credentials_of, options_of, scopes_of
from runners.github_tell import Teller
from runners.github_webhooks import WebhookReader

# Names go into paths as they are, so what could change a path is not a repo.
_REPO = re.compile(r"[\w-]+/(?!\.{1,2}$)[\w.-]+", re.ASCII)

_READ_JOB = Purpose(does="read a job", permission="repository permission Actions: read")


class GitHubForge:
    """One GitHub endpoint. Implements `spi.Forge`."""

    # A JIT runner takes one job and its registration goes with it; jobs wait up to 24 h without any runner.
    traits = ForgeTraits(seals_runners=False, removes_finished_runners=True, needs_queue_holder=False)

    def __init__(self, settings: ForgeSettings, surroundings: Surroundings) -> None:
        self.name: ForgeName = settings.name
        self._scopes = scopes_of(settings)
        options = options_of(settings)
        api_url = api_url_of(settings)
        clock = surroundings.clock
        self._auth = _auth_of(settings, surroundings, api_url=api_url)
        self._budgets = Budgets(clock)
        self._rest = Rest(api_url=api_url, auth=self._auth, budgets=self._budgets)
        self._webhooks = WebhookReader(forge=self.name, secrets=settings.webhook_secrets, scope_of=self.scope_of)
        self._poller = JobPoller(
            forge=self.name,
            rest=self._rest,
            auth=self._auth,
            budgets=self._budgets,
            clock=clock,
            scopes=self._scopes,
            scope_of=self.scope_of,
            poll=settings.poll,
        )
        self._runners = Runners(
            rest=self._rest,
            budgets=self._budgets,
            clock=clock,
            scopes=self._scopes,
            runner_prefix=surroundings.runner_prefix,
            default_group=options.runner_group,
        )
        self._requeuer = Requeuer(self._rest, clock)
        self._teller = Teller(
            self._rest, auth=self._auth, budgets=self._budgets, web_url=settings.url or "https://github.com"
        )
        self._deliveries = Deliveries(
            forge=self.name, rest=self._rest, auth=self._auth, clock=clock, scopes=self._scopes, options=options
        )

    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> Webhook:
        return self._webhooks.read(headers, body)

    def scope_of(self, repo: str) -> Scope | None:
        if not _REPO.fullmatch(repo):
            return None
        lowered = repo.lower()
        return self._scopes.get(lowered) or self._scopes.get(lowered.partition("/")[0])

    async def list_jobs(self, active: Collection[str]) -> JobListing:
        return await self._poller.list_jobs(active)

    async def get_job(self, repo: str, forge_job_id: str) -> ForgeJob:
        path = f"/repos/{repo}/actions/jobs/{forge_job_id}"
        job = await self._rest.read(path, JobPayload, account=repo.partition("/")[0], purpose=_READ_JOB)
        if job is None:
            raise JobNotFound(f"{repo} has no job {forge_job_id}")
        return forge_job(job, forge=self.name, repo=repo, status=listed_status(job.status))

    async def register(self, *, scope: Scope, group: str, name: str, labels: Labels) -> Registration:
        return await self._runners.register(scope=scope, group=group, name=name, labels=labels)

    async def list_runners(self) -> Sequence[ForgeRunner]:
        return await self._runners.list_runners()

    async def deregister(self, runner: RunnerRef, *, job_is_done: bool = False) -> None:
        """GitHub itself checks for a running job, at no further cost."""
        await self._runners.deregister(runner)

    async def seal(self, runner: RunnerRef) -> None:
        """Nothing to do: a JIT runner takes one job."""

    async def hold_queue(self, *, scope: Scope, group: str, labels: Labels, name: str) -> None:
        """Nothing to do: jobs without a runner wait."""

    async def requeue(
        self,
        repo: str,
        run_id: str,
        forge_job_ids: Sequence[str],
        *,
        with_failures: bool = True,
        spared: Collection[str] = (),
    ) -> RequeueResult:
        return await self._requeuer.requeue(repo, run_id, forge_job_ids, with_failures=with_failures, spared=spared)

    async def tell(self, telling: Telling) -> None:
        await self._teller.tell(telling)

    async def telling_problem(self, scope: Scope) -> str:
        return await self._teller.problem(scope.partition("/")[0])

    async def end_job(self, repo: str, forge_job_id: str) -> None:
        """Nothing can be done: GitHub ends whole runs only, and fails the job of a dead runner in ten minutes."""

    async def cancel_run(self, repo: str, run_id: str, forge_job_ids: Collection[str]) -> None:
        await self._requeuer.cancel_run(repo, run_id, forge_job_ids)

    async def recover_deliveries(self, since: datetime) -> Recovery:
        return await self._deliveries.recover(since)

    def budgets(self) -> Sequence[RateBudget]:
        return self._budgets.listed()

    async def aclose(self) -> None:
        await self._rest.aclose()
        await self._auth.aclose()


def _auth_of(settings: ForgeSettings, surroundings: Surroundings, *, api_url: str) -> Auth:
    credentials = credentials_of(settings)
    if isinstance(credentials, TokenCredentials):
        return TokenAuth(credentials.token)
    return AppAuthenticator(
        credentials,
        api_url=api_url,
        scopes=settings.scopes,
        clock=surroundings.clock,
        gate=surroundings.gates.gate(f"github/{settings.name}", threads=1),
    )


def create(settings: ForgeSettings, surroundings: Surroundings) -> GitHubForge:
    """The adapter for one `[[forge]]` section of kind "github". Raises SettingsError; makes no call."""
    return GitHubForge(settings, surroundings)
