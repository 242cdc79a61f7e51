"""The observing half of the daemon without its loop: facts in, rows and doubts out, over the memory store."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast

from autoscaler.experience import Experience
from autoscaler.facts import (
    Fact,
    InstancesListed,
    JobRead,
    JobsListed,
    RunnersListed,
    WebhookArrived,
)
from autoscaler.lessons import Lessons
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import Demand, Instance, InstanceState, Job, JobId, Rules, Snapshot, job_id
from autoscaler.observe import Observer
from autoscaler.observe_jobs import JobObserver
from autoscaler.observe_losses import LossObserver
from autoscaler.outbox import Outbox
from autoscaler.sightings import Sightings
from autoscaler.spi import (
    BatchToken,
    CloudInstance,
    Conclusion,
    Forge,
    ForgeJob,
    ForgeName,
    ForgeRunner,
    ForgeTraits,
    InstanceId,
    JobListing,
    JobStatus,
    Labels,
    MachineState,
    ProviderId,
    ProviderName,
    RateBudget,
    RunEvent,
    RunnerId,
    RunnerRef,
    Scope,
    Webhook,
)
from autoscaler.store.memory import MemoryDisk, MemoryStore
from tests.admin_world import GITHUB, LINUX, SPOT, instance, pool, rules_of

NOW = datetime.fromisoformat("2026-01-05T12:00:00+00:00")
CLOUD, OTHER = ProviderName("aws"), ProviderName("gce")
REPO, SCOPE = "acme/shop", Scope("acme")


class QuietForge:
    """What observing asks of a forge: its name, its traits, which repos are ours, its budget. It is never called."""

    name = GITHUB
    traits = ForgeTraits(seals_runners=False, removes_finished_runners=True, needs_queue_holder=False)

    def scope_of(self, repo: str) -> Scope | None:
        return SCOPE if repo.startswith("acme/") else None

    def budgets(self) -> Sequence[RateBudget]:
        return (RateBudget(family="registration", limit=180, remaining=180, refill_per_s=3),)


class Observing:
    """One life of the observing half. `restarted` is the next life on the same store."""

    def __init__(self, disk: MemoryDisk | None = None, *, rules: Rules | None = None) -> None:
        self.disk = disk or MemoryDisk()
        self.store = MemoryStore(self.disk)
        self.rules = rules or rules_of(pool(LINUX, "linux", "x64"))
        self.now = NOW
        self.forges = {GITHUB: cast(Forge, QuietForge())}
        self._number = 0
        self.silent: dict[InstanceId, datetime | None] = {}
        """When agents that do not call any more were heard last; all others call all the time."""

    async def start(self) -> "Observing":
        await self.store.open()
        self.store.break_lease()
        assert await self.store.acquire_lease("test")
        self.rows = LiveRows(self.store)
        stored = await self.store.load()
        self.rows.load(stored)
        self.seen = Sightings()
        self.metrics = Metrics()
        self.jobs = JobObserver(self.rows, self.seen, self.forges, self.metrics, heard_at=self._heard)
        self.jobs.load(self.now)
        experience = Experience(self.rows, self.seen)
        losses = LossObserver(self.rows, self.seen, self.metrics, experience=experience, heard_at=self._heard)
        self.outbox = Outbox(self.rows, self.forges)
        self.observer = Observer(
            self.rows,
            self.seen,
            self.jobs,
            losses,
            experience=experience,
            lessons=Lessons(self.rows, self.metrics, self.now),
            outbox=self.outbox,
            runner_prefix="ours--",
            providers=(CLOUD, OTHER),
        )
        self._number = max((row.seq for row in stored.inbox), default=self.disk.last_seq)
        return self

    async def restarted(self) -> "Observing":
        """What a kill -9 after the last flush and a new start come to."""
        await self.rows.flush()
        after = Observing(self.disk, rules=self.rules)
        after.now = self.now
        return await after.start()

    def _heard(self, machine: InstanceId) -> datetime | None:
        return self.silent.get(machine, self.now)

    # ------------------------------------------------------------------ what happens

    async def see(self, *facts: Fact) -> None:
        """As the loop does it: jobs that memory does not know are looked up in the store first."""
        for known in await self.store.jobs_by_ids(self.jobs.unknown_ids(facts)):
            if known.id not in self.rows.jobs:
                self.rows.remember_ended(known.id, known.state)
        self.observer.consume(facts, self.rules, self.now)
        await self.rows.flush()

    async def webhook(self, *seen: ForgeJob, runs: Sequence[RunEvent] = ()) -> None:
        self._number += 1
        hook = Webhook(delivery_id=f"d-{self._number}", outcome="accepted", event="job", jobs=seen, runs=tuple(runs))
        await self.see(WebhookArrived(seq=self._number, forge=GITHUB, webhook=hook))

    async def listing(self, *seen: ForgeJob, repos: Sequence[str] = (REPO,), age_s: float = 0) -> None:
        listed = JobListing(jobs=seen, repos=frozenset(repos))
        await self.see(JobsListed(forge=GITHUB, listing=listed, started_at=self.now - timedelta(seconds=age_s)))

    async def answer(self, id_: JobId, seen: ForgeJob | None) -> None:
        """The forge's answer about one doubtful job."""
        await self.see(JobRead(job=id_, seen=seen))

    async def runners(self, *seen: ForgeRunner) -> None:
        await self.see(RunnersListed(forge=GITHUB, runners=seen, started_at=self.now))

    async def machines(self, *seen: CloudInstance, is_complete: bool = True, of: ProviderName = CLOUD) -> None:
        await self.see(InstancesListed(provider=of, instances=seen, started_at=self.now, is_complete=is_complete))

    async def gone(self) -> None:
        """Two complete listings without any machine."""
        await self.machines()
        await self.machines()

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    async def have(self, row: Instance) -> Instance:
        added = self.rows.add_instance(row, cause="test")
        await self.rows.flush()
        return added

    async def have_runner(self, number: int = 1, state: InstanceState = InstanceState.IDLE, **changes: Any) -> Instance:
        """A machine with a runner of the common labels, old enough for every listing to know it."""
        row = instance(number, self.now - timedelta(minutes=5), state, version=0, provider_id=provider_id(number))
        registered: dict[str, Any] = {
            "demand": Demand(forge=GITHUB, scope=SCOPE, group="", labels=("linux",)),
            "runner_id": RunnerId(str(number)),
            "runner_name": runner_name(number),
        }
        return await self.have(replace(row, **{**registered, **changes}))

    # ------------------------------------------------------------------ what came of it

    def job(self, number: int = 1) -> Job | None:
        return self.rows.jobs.get(id_of(number))

    async def ended(self, number: int = 1) -> Job:
        """A job that is live no more, as the store has it."""
        assert self.job(number) is None
        found = await self.store.job(id_of(number))
        assert found is not None
        return found

    def state(self, row: Instance) -> InstanceState:
        return self.rows.instances[row.id].state

    async def last(self, row: Instance) -> Instance:
        found = await self.store.instance(row.id)
        assert found is not None
        return found

    def snapshot(self, *, handed: set[InstanceId] | None = None) -> Snapshot:
        return self.observer.snapshot(self.now, forges=self.forges, unhealthy=set(), handed=handed or set())

    def doubts(self) -> dict[JobId, str]:
        return self.jobs.doubtful(self.now)


def id_of(number: int) -> JobId:
    return job_id(GITHUB, str(number))


def runner_name(number: int) -> str:
    return f"ours--{number}"


def provider_id(number: int) -> ProviderId:
    return ProviderId(f"p-{number}")


def seen_job(number: int = 1, status: JobStatus = JobStatus.QUEUED, **changes: Any) -> ForgeJob:
    """What a forge says of a job."""
    seen = ForgeJob(
        forge=ForgeName("github"),
        forge_job_id=str(number),
        repo=REPO,
        run_id="500",
        run_attempt=1,
        workflow="ci",
        name=f"test {number}",
        status=status,
        labels=("linux",),
        queued_at=NOW - timedelta(seconds=30),
    )
    return replace(seen, **changes)


def started(number: int = 1, on: int = 1, **changes: Any) -> ForgeJob:
    """The forge says that it runs on this runner."""
    at = {"started_at": NOW - timedelta(seconds=5), "runner_name": runner_name(on), "runner_id": RunnerId(str(on))}
    return seen_job(number, JobStatus.RUNNING, **{**at, **changes})


def completed(
    number: int = 1, conclusion: Conclusion = Conclusion.SUCCESS, *, on: int | None = 1, **changes: Any
) -> ForgeJob:
    runner = {"runner_name": runner_name(on), "runner_id": RunnerId(str(on))} if on is not None else {}
    return seen_job(number, JobStatus.DONE, conclusion=conclusion, **{"finished_at": NOW, **runner, **changes})


def listed_runner(
    number: int = 1, *, is_busy: bool = False, is_online: bool = True, labels: Labels = ("linux",)
) -> ForgeRunner:
    ref = RunnerRef(scope=SCOPE, runner_id=RunnerId(str(number)), name=runner_name(number))
    return ForgeRunner(ref=ref, labels=labels, is_online=is_online, is_busy=is_busy)


def listed_machine(number: int = 1, state: MachineState = MachineState.RUNNING, *, token: str = "") -> CloudInstance:
    return CloudInstance(
        provider=CLOUD,
        provider_id=provider_id(number),
        token=BatchToken(token or f"b-{number}"),
        pool=LINUX,
        state=state,
        capacity_pool=SPOT,
        price_usd_hour=0.04,
        launched_at=NOW - timedelta(minutes=5),
    )
