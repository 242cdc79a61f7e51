"""The world of a simulation put together: two forges, a cloud, simulated machines, and daemons that can be killed.

Owns the wiring only: which webhook reaches whom, which agent lives on which machine, who hears of which effect. What
goes wrong is drawn by `faults`; what must hold is checked by `invariants`.
"""

import asyncio
import contextlib
import contextvars
import itertools
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoscaler.apply_launch import Launcher
from autoscaler.config import Config
from autoscaler.core import make_launcher, runner_prefix
from autoscaler.sandbox.cloud_account import CloudAccount, CloudTimes
from autoscaler.sandbox.cloud_capacity import Capacity
from autoscaler.sandbox.cloud_faults import CloudFaults
from autoscaler.sandbox.github_model import GitHubError, WorldPolicy
from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.gitlab_model import GitLabRefusal
from autoscaler.sandbox.gitlab_world import GitLabWorld
from autoscaler.sandbox.inprocess import OutboundWebhook
from autoscaler.sandbox.inprocess_agent import Agent, BootValues, github_program, gitlab_program
from autoscaler.sandbox.inprocess_cloud import Cloud, CloudWorld, Launched, evidence_of, local_supplies
from autoscaler.sandbox.inprocess_github import GitHubInProcess, GitHubSite
from autoscaler.sandbox.inprocess_gitlab import GitLabInProcess, GitLabSite
from autoscaler.sandbox.inprocess_provider import InProcessProvider
from autoscaler.sandbox.workload import RunSpec
from autoscaler.simulate.faults import Faults
from autoscaler.simulate.invariants import EventLog, Watch
from autoscaler.simulate.lives import Daemon
from autoscaler.simulate.virtual_loop import VirtualClock
from autoscaler.spi import (
    Forge,
    ForgeName,
    LaunchBatch,
    Provider,
    ProviderId,
    ProviderName,
    Scope,
)
from autoscaler.store.memory import MemoryDisk
from runners.bootstrap import boot_document

GITHUB, GITLAB, LOCAL = ForgeName("gh"), ForgeName("gl"), ProviderName("local")
IMAGE = "/opt/runner"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the cloud and the forges of a simulation are like. `slots` are machines per type and capacity type, `prices`
    (of spot) and `on_demand_prices` USD an hour."""

    github_repos: tuple[str, ...] = ("acme/web", "acme/api")
    gitlab_repos: tuple[str, ...] = ("group/app", "group/lib")
    slots: Mapping[str, int] = field(default_factory=lambda: {"large": 20, "small": 20})
    prices: Mapping[str, float] = field(default_factory=lambda: {"large": 0.04, "small": 0.02})
    on_demand_prices: Mapping[str, float] = field(default_factory=dict)
    boot: tuple[float, float] = (2.0, 20.0)
    lease_s: float = 180.0
    notice_s: float = 0.0
    """The notice of what the cloud takes on its own or because a game day asks for it."""


class Stage:
    """See the module docstring. Make it inside a running loop; `violations` fill up as invariants break."""

    def __init__(self, site: Site, faults: Faults, clock: VirtualClock) -> None:
        self.faults = faults
        self.clock = clock
        self.log = EventLog(clock.monotonic)
        self.violations: list[str] = []
        self.ended = asyncio.Event()
        self.daemons: list[Daemon] = []
        self.agents: dict[ProviderId, Agent] = {}
        self.took: dict[ProviderId, list[str]] = {}
        self.cut: set[str] = set()
        """Jobs that an agent ended for a reclaim, as "gh:4711"."""
        self.cancelled: set[int] = set()
        """GitLab jobs that a person cancelled."""
        self.cancelled_runs: set[int] = set()
        """GitHub runs that a person cancelled."""
        self.run_again: set[tuple[int, int]] = set()
        """Attempts of GitHub runs that a person began."""
        self.secrets: dict[str, str] = {}
        self._lives: dict[ProviderId, asyncio.Task[None]] = {}
        self._mail: set[asyncio.Task[None]] = set()
        self._machine_faults = faults.dice("machines")
        self._ids = itertools.count(1)
        self._context = contextvars.copy_context()
        rates, now = faults.rates, clock.now().timestamp()
        seed = int(faults.dice("worlds").random() * 1e9)
        self.github = GitHubSite(
            GitHubWorld(site.github_repos, policy=WorldPolicy(lease_s=site.lease_s, seed=seed)),
            clock,
            send=lambda webhook: self._post(GITHUB, webhook),
        )
        world = GitLabWorld(seed=seed)
        for repo in site.gitlab_repos:
            world.add_project(repo, now)
        self.gitlab = GitLabSite(world, clock, send=lambda webhook: self._post(GITLAB, webhook))
        supplies = local_supplies(LOCAL, site.prices, site.on_demand_prices, slots=site.slots)
        account = CloudAccount(
            Capacity.of(supplies),
            times=CloudTimes(
                boot=site.boot, end=(0.5, 3.0), shown_after=(0.0, rates.shown_late_s), notice_s=site.notice_s
            ),
            faults=CloudFaults(slow_boot=rates.slow_boot, silent=rates.silent_boot, refuse=rates.refused, seed=seed),
            images=frozenset({IMAGE}),
        )
        self.cloud = Cloud(
            CloudWorld(account, seed=seed), clock, booted=self._booted, gone=self._gone, warned=self._warned
        )

    # ------------------------------------------------------------------ daemons

    def add_daemon(
        self, config: Config, *, github: Sequence[str] = ("acme",), gitlab: Sequence[str] = ("group",)
    ) -> Daemon:
        """A deployment with an empty store. Not started yet."""
        name = config.autoscaler.name
        watch = Watch(
            MemoryDisk(),
            deployment=name,
            rules=lambda: daemon.rules,
            is_busy=self.job_on,
            is_registered=self.is_registered,
            clock_now=self.clock.now,
            log=self.log,
            report=self.violated,
        )
        daemon = Daemon(
            config,
            clock=self.clock,
            adapters=lambda: self._adapters(name, watch, github, gitlab),
            launcher=self._launcher,
            faults=self.faults,
            watch=watch,
            report=self.violated,
        )
        self.daemons.append(daemon)
        return daemon

    def _launcher(self, config: Callable[[], Config]) -> Launcher:
        return make_launcher(config, user_data_of=boot_document, new_id=lambda kind: f"{kind}-{next(self._ids):05}")

    def _adapters(
        self, deployment: str, watch: Watch, github: Sequence[str], gitlab: Sequence[str]
    ) -> tuple[Mapping[ForgeName, Forge], Mapping[ProviderName, Provider]]:
        prefix = runner_prefix(deployment)
        forges: dict[ForgeName, Forge] = {
            GITHUB: GitHubInProcess(
                self.github, name=GITHUB, scopes=_scopes(github), runner_prefix=prefix, road=self.faults
            ),
            GITLAB: GitLabInProcess(
                self.gitlab, name=GITLAB, scopes=_scopes(gitlab), runner_prefix=prefix, road=self.faults
            ),
        }

        def launched(batch: LaunchBatch, made: Sequence[Launched]) -> None:
            watch.launched(batch, len(made))

        provider = InProcessProvider(
            self.cloud,
            name=LOCAL,
            deployment=deployment,
            road=self.faults,
            on_launch=launched,
            on_terminate=watch.terminating,
            on_acknowledge=watch.acknowledged,
        )
        return forges, {LOCAL: provider}

    def violated(self, text: str) -> None:
        self.violations.append(f"{self.clock.monotonic():9.3f} {text}")
        self.ended.set()

    # ------------------------------------------------------------------ machines

    def _booted(self, machine: Launched) -> None:
        """Power is on: its agent begins."""
        document = json.loads(machine.user_data)
        daemon = next(d for d in self.daemons if d.config.autoscaler.name == machine.deployment)
        dice = self.faults.dice(f"agent/{machine.provider_id}")
        taken = self.took.setdefault(machine.provider_id, [])

        def took(forge: str) -> Callable[[int], None]:
            def note(job_id: int) -> None:
                taken.append(f"{forge}:{job_id}")
                self.log.note(f"machine {machine.provider_id} took {forge}:{job_id}")
                if len(taken) > 1:
                    self.violated(f"machine {machine.provider_id} took {' and '.join(taken)}")

            return note

        agent = Agent(
            BootValues(
                provider=document["provider"],
                batch=machine.token,
                boot_timeout_s=document["boot_timeout_s"],
                max_lifetime_s=document["max_lifetime_s"],
                no_contact_s=document["no_contact_s"],
            ),
            line=daemon,
            clock=self.clock,
            evidence=lambda claim: evidence_of(machine, claim, self.clock.now().timestamp()),
            programs={
                "github": github_program(self.github, dice, took=took(GITHUB), cut=self._cut_at(GITHUB)),
                "gitlab": gitlab_program(self.gitlab, dice, took=took(GITLAB), cut=self._cut_at(GITLAB)),
            },
            dice=dice,
        )
        self.secrets[f"claim key of {machine.provider_id}"] = agent.key
        self.agents[machine.provider_id] = agent
        self._lives[machine.provider_id] = self._spawn(self._live(machine, agent))
        if self.faults.strikes("machines/die", self.faults.rates.deaths):
            self.die_later(machine.provider_id, self._machine_faults.uniform(0.5, 120))
        if self.faults.strikes("machines/reclaim", self.faults.rates.reclaims):
            self.reclaim_later(machine.provider_id, self._machine_faults.uniform(0.5, 120))

    def _cut_at(self, forge: str) -> Callable[[int], None]:
        return lambda job_id: self.cut.add(f"{forge}:{job_id}")

    async def _live(self, machine: Launched, agent: Agent) -> None:
        try:
            cause = await agent.run()
        except Exception as error:
            self.violated(f"the agent of {machine.provider_id} broke: {error!r}")
            raise
        self.log.note(f"machine {machine.provider_id} powers off: {cause}")
        self._lives.pop(machine.provider_id, None)
        self.cloud.power_off(machine.provider_id)

    def die_later(self, id_: ProviderId, after_s: float) -> None:
        asyncio.get_running_loop().call_later(after_s, self._die, id_)

    def _die(self, id_: ProviderId) -> None:
        machine = self.cloud.world.machine(id_)
        if machine is not None and machine.is_up:
            self.faults.note(f"machine {id_} dies running {self.job_on(machine) or 'nothing'}")
            self.cloud.fail(id_, "lost power")

    def reclaim_later(self, id_: ProviderId, after_s: float) -> None:
        asyncio.get_running_loop().call_later(after_s, self.reclaim, id_)

    def reclaim(self, id_: ProviderId, *, notice_s: float | None = None) -> None:
        """The cloud takes a machine: with a notice of `notice_s` (by chance, or none, by default)."""
        machine = self.cloud.world.machine(id_)
        if machine is None or not machine.is_up:
            return
        if notice_s is None:
            usual_s = self._machine_faults.uniform(8, 30)
            notice_s = 0.0 if self.faults.strikes("machines/no_notice", self.faults.rates.no_notice) else usual_s
        when = f"will be taken in {notice_s:.1f} s" if notice_s > 0 else "is taken without a word"
        self.faults.note(f"machine {id_} {when}, running {self.job_on(machine) or 'nothing'}")
        self.cloud.reclaim(id_, notice_s=notice_s)

    def _warned(self, machine: Launched) -> list[float]:
        """Its host warns its agent, and messages go into the account's queue."""
        agent = self.agents.get(machine.provider_id)
        is_deaf = self.faults.strikes("machines/deaf", self.faults.rates.agent_deaf)
        if agent is not None and machine.machine.reclaim_at is not None and not is_deaf:
            agent.warn(machine.machine.reclaim_at)
        return self.faults.message_delays(f"{machine.provider_id} will be taken")

    def _gone(self, machine: Launched) -> None:
        """Power is off: whatever ran is gone without a word."""
        task = self._lives.pop(machine.provider_id, None)
        if task is not None:
            task.cancel()

    def job_on(self, machine: Launched) -> str:
        """The job that the machine's runner runs, as its forge says; "" for none."""
        agent = self.agents.get(machine.provider_id)
        name = agent.runner_name if agent is not None else ""
        if not name:
            return ""
        for runner in self.github.world.runners.values():
            if runner.name == name and runner.job_id is not None:
                return f"{GITHUB}:{runner.job_id}"
        for held in self.gitlab.world.list_runners():
            if held.description == name and self.gitlab.world.is_busy(held):
                return f"{GITLAB}:{held.job_ids[-1]}"
        return ""

    def is_registered(self, machine: Launched) -> bool:
        """Whether a forge may still give the machine's runner a job."""
        agent = self.agents.get(machine.provider_id)
        name = agent.runner_name if agent is not None else ""
        held = [runner.name for runner in self.github.world.runners.values()]
        held += [runner.description for runner in self.gitlab.world.list_runners() if not runner.paused]
        return bool(name) and name in held

    # ------------------------------------------------------------------ forges

    def submit(self, forge: str, run: RunSpec) -> str:
        run_id = self.github.submit(run) if forge == GITHUB else self.gitlab.submit(run)
        self.log.note(f"run {forge}:{run_id} of {run.repo}: {', '.join(job.name for job in run.jobs)}")
        return str(run_id)

    def cancel(self, forge: str, run_id: str) -> None:
        """A person cancels a run."""
        self.log.note(f"run {forge}:{run_id} is cancelled by a person")
        if forge == GITHUB:
            with contextlib.suppress(GitHubError):  # it is over already
                self.github.world.cancel(int(run_id), self.github.now)
                self.cancelled_runs.add(int(run_id))
            self.github.settle()
            return
        world = self.gitlab.world
        for job_id in list(world.pipeline(int(run_id)).latest.values()):
            with contextlib.suppress(GitLabRefusal):
                world.cancel_job(job_id, self.gitlab.now)
                self.cancelled.add(job_id)
        self.gitlab.settle()

    def rerun_job(self, job_id: int) -> None:
        """A person has GitHub run one job of a finished run again."""
        world = self.github.world
        world.rerun_job(job_id, self.github.now)
        run = world.runs[world.jobs[job_id].run_id]
        self.run_again.add((run.id, run.attempt))
        self.log.note(f"a person begins attempt {run.attempt} of run {GITHUB}:{run.id}")
        self.github.settle()

    def _post(self, forge: ForgeName, webhook: OutboundWebhook) -> None:
        label = f"{forge} {webhook.delivery_id[:8]} {_gist(webhook)}"
        for delay_s in self.faults.webhook_delays(label):
            task = self._spawn(self._deliver(forge, webhook, delay_s))
            self._mail.add(task)
            task.add_done_callback(self._mail.discard)

    async def _deliver(self, forge: ForgeName, webhook: OutboundWebhook, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        for daemon in self.daemons:
            if not await daemon.receive(forge, webhook):
                self.faults.note(f"webhook not taken: {forge} {webhook.delivery_id[:8]}")
                (self.github if forge == GITHUB else self.gitlab).failed(webhook)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """A task of the world: what a daemon's call sets going must not end with that daemon."""
        return asyncio.get_running_loop().create_task(work, context=self._context)

    def stop(self) -> None:
        for site in (self.github, self.gitlab, self.cloud):
            site.stop()


def _scopes(names: Sequence[str]) -> list[Scope]:
    return [Scope(name) for name in names]


def _gist(webhook: OutboundWebhook) -> str:
    payload = json.loads(webhook.body)
    if "workflow_job" in payload:
        return f"{payload['action']} {payload['workflow_job']['id']}"
    if "build_id" in payload:
        return f"{payload['build_status']} {payload['build_id']}"
    return str(payload.get("action", ""))
