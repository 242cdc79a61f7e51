"""The sandbox's github.com without HTTP: a site that sends webhooks, and an `spi.Forge` over the same world.

Payloads are the documented ones and are read by the real adapter's own parsers; only transport, pages and ETags are
left out. Budgets are GitHub's: 5,000 calls an hour, 180 registrations a minute.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from autoscaler.calls import TokenBucket, WindowLimit
from autoscaler.sandbox import github_payloads as payloads
from autoscaler.sandbox.github_deliveries import signature
from autoscaler.sandbox.github_model import GitHubError, Job, Run
from autoscaler.sandbox.github_world import DEFAULT_GROUP, GitHubWorld
from autoscaler.sandbox.inprocess import (
    AnswerLost,
    ClearRoad,
    Limited,
    OutboundWebhook,
    RequestLost,
    Road,
    WorldTimer,
    travel,
)
from autoscaler.sandbox.workload import RunSpec
from autoscaler.spi import (
    Clock,
    ForgeJob,
    ForgeName,
    ForgeOutcomeUnknown,
    ForgeRefused,
    ForgeRefusedForGood,
    ForgeRunner,
    ForgeTraits,
    ForgeUnavailable,
    JobListing,
    JobNotFound,
    Labels,
    NameTaken,
    RateBudget,
    RateLimited,
    Recovery,
    Registration,
    RequeueResult,
    RunnerBusy,
    RunnerId,
    RunnerRef,
    Scope,
    Secret,
    Telling,
    Webhook,
    label_set,
)
from runners.github_payloads import JobPayload, RunPayload, forge_job, listed_status
from runners.github_reruns import Endings, EndRun, check_nothing_else_lives, next_step, not_dead_yet
from runners.github_webhooks import WebhookReader

MINTS_PER_MINUTE = 180
CALLS_PER_HOUR = 5000
TRAITS = ForgeTraits(seals_runners=False, removes_finished_runners=True, needs_queue_holder=False)

_R = TypeVar("_R")
_WRITES = frozenset({"register", "deregister", "requeue", "tell", "cancel_run"})


class GitHubSite:
    """A world, its clock, and where its webhooks go. Change the world through `world`, then call `settle`.

    `send` gets each webhook once; one that nobody took is reported back with `failed` and sent again on request.
    """

    def __init__(
        self,
        world: GitHubWorld,
        clock: Clock,
        *,
        send: Callable[[OutboundWebhook], None],
        secret: str = "sandbox hook secret",  # noqa: S107 - of a sandbox
    ) -> None:
        self.world = world
        self.clock = clock
        self.webhook_secret = secret
        self._send = send
        self._failed: dict[str, OutboundWebhook] = {}
        self._timer = WorldTimer(clock, next_at=world.next_deadline, due=self._advance)
        self.on_change: Callable[[], None] = lambda: None
        world.add_hook(None, "inprocess:", secret=secret.encode(), now=self.now)
        world.drain_webhooks()

    @property
    def now(self) -> float:
        return self.clock.now().timestamp()

    def submit(self, run: RunSpec) -> int:
        run_id = self.world.submit(run, self.now)
        self.settle()
        return run_id

    def settle(self) -> None:
        """Send what the last change caused and set the timer anew."""
        for webhook in self.world.drain_webhooks():
            body = json.dumps(webhook.payload).encode()
            headers = {
                "content-type": "application/json",
                "x-github-event": webhook.event,
                "x-github-delivery": webhook.guid,
                "x-hub-signature-256": signature(self.webhook_secret.encode(), body),
            }
            self._send(OutboundWebhook(headers=headers, body=body, delivery_id=webhook.guid, sent_at=self.clock.now()))
        self._timer.reset()
        self.on_change()

    def failed(self, webhook: OutboundWebhook) -> None:
        """Nobody took it: it is on record until it is delivered."""
        self._failed[webhook.delivery_id] = webhook

    def redeliver(self, since: datetime) -> int:
        """Send the failed deliveries since then once more; how many."""
        again = [webhook for webhook in self._failed.values() if webhook.sent_at >= since]
        for webhook in again:
            del self._failed[webhook.delivery_id]
            self._send(webhook)
        return len(again)

    def secret_of(self, runner_id: int) -> str:
        """What a JIT configuration is here: as long and as secret, and it names its runner."""
        digest = hashlib.sha256(f"{self.webhook_secret}/{runner_id}".encode()).hexdigest()
        return base64.b64encode(json.dumps({"runner": runner_id, "key": digest}).encode()).decode()

    def runner_of(self, secret: str) -> int:
        """The runner of a JIT configuration. Raises GitHubError 401."""
        try:
            runner_id = int(json.loads(base64.b64decode(secret))["runner"])
        except (ValueError, KeyError, TypeError):
            raise GitHubError(401, "Bad credentials") from None
        if self.secret_of(runner_id) != secret:
            raise GitHubError(401, "Bad credentials")
        return runner_id

    def stop(self) -> None:
        self._timer.stop()

    def _advance(self) -> None:
        self.world.advance(self.now)
        self.settle()


class GitHubInProcess:
    """`spi.Forge` over a site. `road` carries its calls."""

    def __init__(
        self,
        site: GitHubSite,
        *,
        name: ForgeName,
        scopes: Sequence[Scope],
        runner_prefix: str,
        road: Road | None = None,
    ) -> None:
        self._site = site
        self._world = site.world
        self._name = name
        self._prefix = runner_prefix
        self._road = road or ClearRoad()
        self._endings = Endings()
        self._by_path = {scope.lower(): scope for scope in scopes}
        self._mints = WindowLimit(limit=MINTS_PER_MINUTE, window_s=60)
        self._core = TokenBucket(
            capacity=CALLS_PER_HOUR, refill_per_s=CALLS_PER_HOUR / 3600, now=site.clock.monotonic()
        )
        self._reader = WebhookReader(forge=name, secrets=(Secret(site.webhook_secret),), scope_of=self.scope_of)

    @property
    def name(self) -> ForgeName:
        return self._name

    @property
    def traits(self) -> ForgeTraits:
        return TRAITS

    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> Webhook:
        return self._reader.read(headers, body)

    def scope_of(self, repo: str) -> Scope | None:
        path = repo.lower()
        return self._by_path.get(path) or self._by_path.get(path.partition("/")[0])

    async def list_jobs(self, active: Collection[str]) -> JobListing:
        return await self._call("list_jobs", self._list_jobs)

    def _list_jobs(self) -> JobListing:
        repos = [name for name in self._world.repos if self.scope_of(name) is not None]
        jobs = [
            self._seen(job)
            for repo in repos
            for run in self._world.runs_of(repo)
            if run.status != "completed"
            for job in run.jobs.values()
            if job.status != "completed"
        ]
        return JobListing(jobs=tuple(jobs), repos=frozenset(repos))

    def _seen(self, job: Job) -> ForgeJob:
        row = payloads.job(job, self._world.runs[job.run_id], self._world.urls)
        status = listed_status(job.status)
        return forge_job(JobPayload.model_validate(row), forge=self._name, repo=job.repo, status=status)

    async def get_job(self, repo: str, forge_job_id: str) -> ForgeJob:
        return await self._call("get_job", lambda: self._seen(self._job(repo, forge_job_id)))

    def _job(self, repo: str, forge_job_id: str) -> Job:
        job = self._world.jobs.get(int(forge_job_id)) if forge_job_id.isdigit() else None
        if job is None or job.repo.lower() != repo.lower():
            raise JobNotFound(f"{repo} has no job {forge_job_id}")
        return job

    async def register(self, *, scope: Scope, group: str, name: str, labels: Labels) -> Registration:
        monotonic = self._site.clock.monotonic()
        if not self._mints.take(monotonic):
            wait_s = self._mints.wait_s(monotonic)
            raise RateLimited("180 registrations a minute", retry_after_s=wait_s, family="registration")

        def mint() -> Registration:
            group_id = self._group_id(scope, group)
            runner = self._world.generate_jitconfig(scope, name, group_id, labels, self._site.now)
            return Registration(
                ref=RunnerRef(scope=scope, runner_id=RunnerId(str(runner.id)), name=name),
                kind="github",
                secret=Secret(self._site.secret_of(runner.id)),
            )

        return await self._call("register", mint)

    def _group_id(self, scope: Scope, group: str) -> int:
        if not group or "/" in scope:
            return DEFAULT_GROUP
        for found in self._world.groups.get(scope, {}).values():
            if found.name.lower() == group.lower():
                return found.id
        raise ForgeRefused(f"{scope} has no runner group {group!r}")

    async def list_runners(self) -> Sequence[ForgeRunner]:
        def read() -> list[ForgeRunner]:
            return [
                ForgeRunner(
                    ref=RunnerRef(scope=scope, runner_id=RunnerId(str(runner.id)), name=runner.name),
                    labels=label_set(runner.labels),
                    is_online=runner.online,
                    is_busy=runner.busy,
                )
                for scope in self._by_path.values()
                for runner in self._world.runners_of(scope)
                if runner.name.startswith(self._prefix)
            ]

        return await self._call("list_runners", read)

    async def deregister(self, runner: RunnerRef, *, job_is_done: bool = False) -> None:
        def remove() -> None:
            try:
                self._world.delete_runner(runner.scope, int(runner.runner_id), self._site.now)
            except GitHubError as error:
                if error.status == 422:
                    raise RunnerBusy(error.message) from error
                if error.status != 404:
                    raise

        await self._call("deregister", remove)

    async def seal(self, runner: RunnerRef) -> None:
        """Nothing to do: a JIT runner runs one job."""

    async def hold_queue(self, *, scope: Scope, group: str, labels: Labels, name: str) -> None:
        """Nothing to do: GitHub keeps jobs queued for a day."""

    async def requeue(
        self,
        repo: str,
        run_id: str,
        forge_job_ids: Sequence[str],
        *,
        with_failures: bool = True,
        spared: Collection[str] = (),
    ) -> RequeueResult:
        return await self._call(
            "requeue",
            lambda: self._requeue(repo, run_id, forge_job_ids, with_failures=with_failures, spared=spared),
        )

    async def tell(self, telling: Telling) -> None:
        def write() -> None:
            job = self._job(telling.repo, telling.forge_job_id)
            checks, sha = self._world.checks, telling.commit or self._world.runs[job.run_id].head_sha
            if all(one.external_id != telling.key for one in checks.check_runs(job.repo, sha)):
                checks.add_check_run(
                    job.repo,
                    sha,
                    name=f"Runner interrupted: {telling.job_name}",
                    conclusion="neutral",
                    external_id=telling.key,
                    details_url=telling.url,
                    title=telling.title,
                    summary=telling.text,
                    now=self._site.now,
                )

        await self._call("tell", write)

    async def telling_problem(self, scope: Scope) -> str:
        return ""

    async def end_job(self, repo: str, forge_job_id: str) -> None:
        """Nothing can be done: GitHub ends whole runs only."""

    async def cancel_run(self, repo: str, run_id: str, forge_job_ids: Collection[str]) -> None:
        def cancel() -> None:
            if (run := self._run(repo, run_id)) is None:
                raise JobNotFound(f"{repo} has no run {run_id}")
            rows = [payloads.job(job, run, self._world.urls) for job in run.history]
            check_nothing_else_lives(repo, run_id, [JobPayload.model_validate(row) for row in rows], forge_job_ids)
            if run.status != "completed":
                self._world.cancel(run.id, self._site.now)

        await self._call("cancel_run", cancel)

    def _requeue(
        self, repo: str, run_id: str, forge_job_ids: Sequence[str], *, with_failures: bool, spared: Collection[str]
    ) -> RequeueResult:
        if not forge_job_ids:
            return RequeueResult(successors={})
        run = self._run(repo, run_id)
        where = self._world.urls
        shown = None if run is None else payloads.run(run, self._world.repos[run.spec.repo], where)
        listed = [] if run is None else [payloads.job(job, run, where) for job in run.history]
        step = next_step(
            repo,
            None if shown is None else RunPayload.model_validate(shown),
            [JobPayload.model_validate(row) for row in listed],
            forge_job_ids,
            with_failures=with_failures,
            spared=spared,
        )
        assert run is not None
        if isinstance(step, EndRun):
            monotonic = self._site.clock.monotonic()
            if call := self._endings.due(run_id, step.attempt, monotonic):
                self._world.cancel(run.id, self._site.now, force=call == "force-cancel")
                self._endings.asked(run_id, monotonic)
            raise not_dead_yet(repo, run_id, step, call)
        self._endings.forget(run_id)
        if step.job is not None:
            self._world.rerun_job(int(step.job), self._site.now)
        else:
            self._world.rerun_failed_jobs(run.id, self._site.now)
        return RequeueResult(successors=step.successors, later=step.later, rode_along=step.rode_along)

    def _run(self, repo: str, run_id: str) -> Run | None:
        run = self._world.runs.get(int(run_id)) if run_id.isdigit() else None
        return run if run is not None and run.spec.repo.lower() == repo.lower() else None

    async def recover_deliveries(self, since: datetime) -> Recovery:
        def ask() -> Recovery:
            count = self._site.redeliver(since)
            return Recovery(failed=count, redelivered=count, complete_until=self._site.clock.now())

        return await self._call("recover_deliveries", ask)

    def budgets(self) -> Sequence[RateBudget]:
        now = self._site.clock.monotonic()
        core = RateBudget(
            family="core",
            limit=CALLS_PER_HOUR,
            remaining=self._core.level(now),
            refill_per_s=CALLS_PER_HOUR / 3600,
        )
        mints = RateBudget(
            family="registration",
            limit=MINTS_PER_MINUTE,
            remaining=self._mints.level(now),
            refill_per_s=self._mints.refill_per_s,
        )
        return core, mints

    async def aclose(self) -> None:
        """Nothing is held open."""

    async def _call(self, call: str, effect: Callable[[], _R]) -> _R:
        """One call; the road's troubles in the words of the contract."""
        now = self._site.clock.monotonic()
        if not self._core.take(1, now):
            raise RateLimited("the hourly budget is used up", retry_after_s=self._core.wait_s(1, now))
        try:
            result = await travel(self._road, self._name, call, lambda: self._settled(effect))
        except Limited as error:
            raise RateLimited(str(error), retry_after_s=5.0) from error
        except (RequestLost, AnswerLost) as error:
            if call in _WRITES:
                raise ForgeOutcomeUnknown(str(error)) from error
            raise ForgeUnavailable(str(error)) from error
        except GitHubError as error:
            if error.status == 409:
                raise NameTaken(error.message) from error
            is_for_good = call == "requeue" and error.status == 403
            raise (ForgeRefusedForGood if is_for_good else ForgeRefused)(str(error)) from error
        return result

    def _settled(self, effect: Callable[[], _R]) -> _R:
        self._world.advance(self._site.now)
        try:
            return effect()
        finally:
            self._site.settle()
