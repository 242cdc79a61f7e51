"""The sandbox's GitLab without HTTP: a site that sends Job Hooks, and an `spi.Forge` over the same world.

Payloads are the documented ones and are read by the real adapter's own parsers; only transport and pages are left
out. GitLab never sends a failed webhook again, so neither does this.
"""

import contextlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from autoscaler.calls import WindowLimit
from autoscaler.sandbox.gitlab_model import (
    GitLabRefusal,
    Job,
    Project,
    Runner,
    RunnerType,
)
from autoscaler.sandbox.gitlab_model import JobStatus as Word
from autoscaler.sandbox.gitlab_runners import RunnerRequest, runner_status
from autoscaler.sandbox.gitlab_webhooks import Hook, delivery_headers
from autoscaler.sandbox.gitlab_world import BOT, GitLabWorld
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
from autoscaler.sandbox.inprocess_gitlab_requeue import Requeues
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
from runners.gitlab_jobs import job_from_rest
from runners.gitlab_pipelines import check_nothing_else_lives
from runners.gitlab_settings import WebhookKeys
from runners.gitlab_webhooks import WebhookReader

CALLS_PER_MINUTE = 2000
HANDOVER_S = 1.0
"""A job handed over just before its runner was paused shows up within this time."""
HOLDER_SYSTEM = "s_00000000hold"
TRAITS = ForgeTraits(
    seals_runners=True,
    removes_finished_runners=False,
    needs_queue_holder=True,
    counts_attempts=False,
    requeues_at_once=True,
)

_R = TypeVar("_R")
_WRITES = frozenset({"register", "deregister", "seal", "hold_queue", "requeue", "tell", "cancel_run"})
_OPEN = tuple(word for word in Word if word not in (Word.SUCCESS, Word.FAILED, Word.CANCELED, Word.SKIPPED))
_LIVE = frozenset({Word.PENDING, Word.RUNNING, Word.CANCELING})


class GitLabSite:
    """A world, its clock, and where its webhooks go. Change the world through `world`, then call `settle`."""

    def __init__(
        self,
        world: GitLabWorld,
        clock: Clock,
        *,
        send: Callable[[OutboundWebhook], None],
        secret: str = "sandbox hook token",  # noqa: S107 - of a sandbox
    ) -> None:
        self.world = world
        self.clock = clock
        self.webhook_secret = secret
        self._hook = Hook(id=1, url="inprocess:", job_events=True, token=secret)
        self._send = send
        self._timer = WorldTimer(clock, next_at=self._next_at, due=self._advance)
        self.on_change: Callable[[], None] = lambda: None

    @property
    def now(self) -> float:
        return self.clock.now().timestamp()

    def submit(self, run: RunSpec) -> int:
        run_id = self.world.submit(run, self.now)
        self.settle()
        return run_id

    def settle(self) -> None:
        """Send what the last change caused and set the timer anew."""
        for delivery in self.world.drain_webhooks():
            body = json.dumps(delivery.payload).encode()
            headers = delivery_headers(self._hook, delivery, instance=self.world.base_url, body=body, now=self.now)
            lower = {name.lower(): value for name, value in headers.items()}
            self._send(
                OutboundWebhook(
                    headers=lower, body=body, delivery_id=lower["idempotency-key"], sent_at=self.clock.now()
                )
            )
        self._timer.reset()
        self.on_change()

    def failed(self, webhook: OutboundWebhook) -> None:
        """Nobody took it, and GitLab does not try again."""

    def stop(self) -> None:
        self._timer.stop()

    def _next_at(self) -> float:
        """The next event, or the next hourly check of stuck and silent jobs."""
        hourly = min(self.now // 3600 * 3600 + 3600, (self.now - 1200) // 3600 * 3600 + 3600 + 1200)
        at = self.world.next_event_at()
        # Unconfirmed jobs are looked at every 30 s.
        return hourly if at is None else min(hourly, at // 30 * 30 + 30)

    def _advance(self) -> None:
        self.world.advance(self.now)
        self.settle()


class GitLabInProcess:
    """`spi.Forge` over a site. `road` carries its calls."""

    def __init__(
        self,
        site: GitLabSite,
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
        self._by_path = sorted(((scope.lower(), scope) for scope in scopes), key=lambda pair: (-len(pair[0]), pair[0]))
        self._calls = WindowLimit(limit=CALLS_PER_MINUTE, window_s=60)
        self._requeues = Requeues(site.world, lambda: site.now)
        self._holders: dict[str, int] = {}
        keys = WebhookKeys(signing=(), plain=(Secret(site.webhook_secret),))
        self._reader = WebhookReader(name, keys, site.clock, base_url=site.world.base_url, scope_of=self.scope_of)

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
        for prefix, scope in self._by_path:
            if path == prefix or path.startswith(f"{prefix}/"):
                return scope
        return None

    # ------------------------------------------------------------------ jobs

    async def list_jobs(self, active: Collection[str]) -> JobListing:
        return await self._call("list_jobs", self._list_jobs)

    def _list_jobs(self) -> JobListing:
        projects = [project for project in self._world.projects.values() if self.scope_of(project.path) is not None]
        jobs = [
            self._seen(project, job) for project in projects for job in self._world.list_jobs(project.id, scopes=_OPEN)
        ]
        return JobListing(jobs=tuple(jobs), repos=frozenset(project.path for project in projects))

    def _seen(self, project: Project, job: Job) -> ForgeJob:
        row = self._world.show_job(job, self._site.now)
        return job_from_rest(self._name, project.path, row, now=self._site.clock.now())

    async def get_job(self, repo: str, forge_job_id: str) -> ForgeJob:
        def read() -> ForgeJob:
            job = self._job(repo, forge_job_id)
            return self._seen(self._world.projects[job.project_id], job)

        return await self._call("get_job", read)

    def _job(self, repo: str, forge_job_id: str) -> Job:
        try:
            project = self._world.find_project(repo)
            job = self._world.job(int(forge_job_id))
        except (GitLabRefusal, ValueError) as error:
            raise JobNotFound(f"{repo} has no job {forge_job_id}") from error
        if job.project_id != project.id:
            raise JobNotFound(f"{repo} has no job {forge_job_id}")
        return job

    async def requeue(
        self,
        repo: str,
        run_id: str,
        forge_job_ids: Sequence[str],
        *,
        with_failures: bool = True,
        spared: Collection[str] = (),
    ) -> RequeueResult:
        def jobs() -> list[Job]:
            found = [self._job(repo, id_) for id_ in forge_job_ids]
            if any(str(job.pipeline_id) != run_id for job in found):
                raise JobNotFound(f"pipeline {run_id} of {repo} has no jobs {', '.join(forge_job_ids)}")
            return found

        return await self._call("requeue", lambda: self._requeues.ask(jobs(), forge_job_ids, spared=spared))

    async def tell(self, telling: Telling) -> None:
        def write() -> None:
            job = self._job(telling.repo, telling.forge_job_id)
            requests = self._world.merge_requests
            found = requests.of_commit(job.project_id, self._world.pipeline(job.pipeline_id).sha)
            if not found:
                raise ForgeRefusedForGood(f"pipeline {job.pipeline_id} of {telling.repo} belongs to no merge request")
            mark = f"<!-- autoscaler:{telling.key} -->"
            if all(mark not in note.body for note in found[0].notes):
                requests.add_note(found[0], f"{telling.title}\n\n{telling.text}\n\n{mark}", BOT, self._site.now)

        await self._call("tell", write)

    async def telling_problem(self, scope: Scope) -> str:
        return ""

    async def end_job(self, repo: str, forge_job_id: str) -> None:
        def end() -> None:
            job = self._job(repo, forge_job_id)
            with contextlib.suppress(GitLabRefusal):  # it ended meanwhile
                if self._world.cancel_job(job.id, self._site.now).status is Word.CANCELING:
                    self._world.cancel_job(job.id, self._site.now, force=True)

        await self._call("end_job", end)

    async def cancel_run(self, repo: str, run_id: str, forge_job_ids: Collection[str]) -> None:
        def cancel() -> None:
            try:
                project, pipeline = self._world.find_project(repo), self._world.pipeline(int(run_id))
            except GitLabRefusal as error:
                raise JobNotFound(str(error)) from error
            if pipeline.project_id != project.id:
                raise JobNotFound(f"{repo} has no pipeline {run_id}")
            listed = self._world.list_pipeline_jobs(pipeline, include_retried=True)
            rows = {str(job.id): self._world.show_job(job, self._site.now) for job in listed}
            check_nothing_else_lives(rows, run_id, forge_job_ids)
            self._world.cancel_pipeline(pipeline.id, self._site.now)

        await self._call("cancel_run", cancel)

    # ------------------------------------------------------------------ runners

    async def register(self, *, scope: Scope, group: str, name: str, labels: Labels) -> Registration:
        def create() -> Registration:
            runner = self._create(scope, name, labels, run_untagged=not labels)
            return Registration(
                ref=RunnerRef(scope=scope, runner_id=RunnerId(str(runner.id)), name=name),
                kind="gitlab",
                secret=Secret(runner.token),
                parameters={"url": self._world.base_url},
            )

        return await self._call("register", create)

    def _create(self, scope: Scope, name: str, labels: Labels, *, run_untagged: bool) -> Runner:
        kind, scope_id = self._target(scope)
        request = RunnerRequest(
            runner_type=kind, scope_id=scope_id, description=name, tags=labels, run_untagged=run_untagged
        )
        return self._world.create_runner(request, self._site.now)

    def _target(self, scope: Scope) -> tuple[RunnerType, int]:
        try:
            return RunnerType.PROJECT, self._world.find_project(scope).id
        except GitLabRefusal:
            return RunnerType.GROUP, self._world.find_group(scope).id

    async def list_runners(self) -> Sequence[ForgeRunner]:
        return await self._call("list_runners", self._list_runners)

    def _list_runners(self) -> list[ForgeRunner]:
        found: dict[int, tuple[Scope, Runner]] = {}
        for _, scope in reversed(self._by_path):
            kind, scope_id = self._target(scope)
            for runner in self._world.list_runners(runner_type=kind, scope_id=scope_id):
                if runner.description.startswith(self._prefix):
                    found.setdefault(runner.id, (scope, runner))
        return [
            ForgeRunner(
                ref=RunnerRef(scope=scope, runner_id=RunnerId(str(runner.id)), name=runner.description),
                labels=label_set(runner.tags),
                is_online=runner_status(runner, self._site.now) == "online",
                is_busy=self._world.is_busy(runner),
            )
            for _, (scope, runner) in sorted(found.items())
        ]

    async def deregister(self, runner: RunnerRef, *, job_is_done: bool = False) -> None:
        """Pause, give a handover the time to show, look for a live job, delete."""
        runner_id = int(runner.runner_id)
        if not job_is_done:
            waits = await self._call("deregister", lambda: self._pause(runner_id))
            if waits is None:
                return
            if waits:
                await self._site.clock.sleep(HANDOVER_S)

        def remove() -> None:
            try:
                found = self._world.runner(runner_id)
            except GitLabRefusal:
                return
            jobs = () if job_is_done else self._world.runner_jobs(found)
            if any(job.status in _LIVE for job in jobs):
                raise RunnerBusy(f"runner {runner.name} ({runner_id}) runs a job")
            self._world.delete_runner(runner_id)

        await self._call("deregister", remove)
        self._holders.pop(runner.name, None)

    def _pause(self, runner_id: int) -> bool | None:
        """Whether the runner was in contact before; None where it is gone."""
        try:
            runner = self._world.pause_runner(runner_id)
        except GitLabRefusal:
            return None
        return runner.contacted_at is not None

    async def seal(self, runner: RunnerRef) -> None:
        await self._call("seal", lambda: self._pause(int(runner.runner_id)))

    async def hold_queue(self, *, scope: Scope, group: str, labels: Labels, name: str) -> None:
        def hold() -> None:
            kind, scope_id = self._target(scope)
            held = self._holders.get(name)
            for runner in self._world.list_runners(runner_type=kind, scope_id=scope_id):
                if runner.description == name and runner.id != held:
                    self._world.delete_runner(runner.id)  # Its token died with the process that made it.
            try:
                holder = self._world.runner(held if held is not None else -1)
            except GitLabRefusal:
                holder = self._create(scope, name, labels, run_untagged=True)
                self._holders[name] = holder.id
            self._world.verify(holder.token, HOLDER_SYSTEM, self._site.now)

        await self._call("hold_queue", hold)

    async def recover_deliveries(self, since: datetime) -> Recovery:
        """GitLab keeps no record to recover from."""
        return Recovery(failed=0, redelivered=0, complete_until=self._site.clock.now())

    def budgets(self) -> Sequence[RateBudget]:
        now = self._site.clock.monotonic()
        return tuple(
            RateBudget(
                family=family,
                limit=CALLS_PER_MINUTE,
                remaining=self._calls.level(now),
                refill_per_s=self._calls.refill_per_s,
            )
            for family in ("core", "registration")
        )

    async def aclose(self) -> None:
        """Nothing is held open."""

    async def _call(self, call: str, effect: Callable[[], _R]) -> _R:
        """One call; the road's troubles in the words of the contract."""
        now = self._site.clock.monotonic()
        if not self._calls.take(now):
            raise RateLimited("2000 calls a minute", retry_after_s=self._calls.wait_s(now))
        try:
            return await travel(self._road, self._name, call, lambda: self._settled(effect))
        except Limited as error:
            raise RateLimited(str(error), retry_after_s=5.0) from error
        except (RequestLost, AnswerLost) as error:
            if call in _WRITES:
                raise ForgeOutcomeUnknown(str(error)) from error
            raise ForgeUnavailable(str(error)) from error
        except GitLabRefusal as error:
            raise ForgeRefused(str(error)) from error

    def _settled(self, effect: Callable[[], _R]) -> _R:
        self._world.advance(self._site.now)
        try:
            return effect()
        finally:
            self._site.settle()
