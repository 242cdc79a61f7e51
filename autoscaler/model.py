"""The core's values: jobs, instances, the snapshot that `plan` sees and the actions it answers with.

Frozen data only: no behaviour beyond derived properties, no clock, no I/O. Instants are aware UTC datetimes. Longer
than other files because it is the vocabulary: what plan may see and what it may say stand side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NewType

from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityScope,
    CapacityType,
    CloudInstance,
    Conclusion,
    ForgeName,
    ForgeTraits,
    InstanceId,
    Labels,
    Offering,
    PoolName,
    ProviderId,
    ProviderName,
    RunnerId,
    RunnerRef,
    Scope,
    Shape,
    Telling,
)

JobId = NewType("JobId", str)
"""Our id of a job: "<forge>:<forge_job_id>"."""


def job_id(forge: ForgeName, forge_job_id: str) -> JobId:
    return JobId(f"{forge}:{forge_job_id}")


def launch_key(pool: PoolName, provider: ProviderName) -> str:
    """Held while a provider launches nothing for a pool."""
    return f"launch/{pool}/{provider}"


def throttle_key(provider: ProviderName) -> str:
    """Held while a provider asks to be called less."""
    return f"throttled/{provider}"


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    LOST = "lost"
    REQUEUED = "requeued"
    DONE = "done"
    ABANDONED = "abandoned"


class SeenBy(StrEnum):
    """What first told us of a job. Many first seen by poll means that webhooks are being lost."""

    WEBHOOK = "webhook"
    POLL = "poll"


Work = tuple[ForgeName, str, str, str]
"""What a job is, over all its runs: (forge, repo, workflow, name). Its history is kept by this."""


RunKind = tuple[ForgeName, str, str, PoolName]
"""What a run has in a pool: (forge, repo, workflow, pool)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """How long a job was expected to wait when it was first seen, and how likely beyond its pool's target then."""

    wait_s: float
    breach: float
    target_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as we know it. `pool` is None while no pool serves it; then `unserved` says why in a sentence.

    `scope` is the registration scope of its repo. `attempt` counts our requeues of the same piece of work from 1.
    `retry_at` is the earliest next requeue try of a lost job. `version` counts the row's writes. `lost_at` is when its
    work was last lost: with its own machine, or, in a job that runs such work again, with its `predecessor`'s.
    """

    id: JobId
    forge: ForgeName
    forge_job_id: str
    repo: str
    run_id: str
    run_attempt: int
    workflow: str
    name: str
    labels: Labels
    scope: Scope
    state: JobState
    queued_at: datetime
    first_seen_at: datetime
    seen_by: SeenBy
    version: int = 0
    pool: PoolName | None = None
    unserved: str = ""
    conclusion: Conclusion | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    runner_name: str = ""
    instance: InstanceId | None = None
    url: str = ""
    attempt: int = 1
    reason: str = ""
    retry_at: datetime | None = None
    successor: JobId | None = None
    predecessor: JobId | None = None
    lost_at: datetime | None = None
    commit: str = ""
    prediction: Prediction | None = None

    @property
    def work(self) -> Work:
        return self.forge, self.repo, self.workflow, self.name


class InstanceState(StrEnum):
    REQUESTED = "requested"
    LAUNCHED = "launched"
    READY = "ready"
    REGISTERING = "registering"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"
    STARTING = "starting"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


class EndReason(StrEnum):
    JOB_DONE = "job_done"
    REFUSED = "refused"
    BOOT_TIMEOUT = "boot_timeout"
    SURPLUS = "surplus"
    STALE_IMAGE = "stale_image"
    INTERRUPTED = "interrupted"
    VANISHED = "vanished"
    MAX_RUNTIME = "max_runtime"
    SELF_ENDED = "self_ended"
    OPERATOR = "operator"
    CHAOS = "chaos"
    DISPUTED = "disputed"
    """Two claims with valid evidence: either may be the thief, so the machine is replaced before any job."""
    NO_CONTACT = "no_contact"
    """Its agent ended it because the daemon did not answer for long and no job ran."""
    MAX_LIFETIME = "max_lifetime"
    """It got older than any machine of its pool may get, whatever it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a runner is registered for: jobs are counted per (forge, registration scope, label set)."""

    forge: ForgeName
    scope: Scope
    group: str
    labels: Labels

    @property
    def key(self) -> str:
        """Held while the forge refuses exactly this (unknown runner group, invalid labels)."""
        return f"register/{self.forge}/{self.scope}/{self.group}/{','.join(self.labels)}"

    @property
    def forge_key(self) -> str:
        """Held while the forge registers nothing for this scope at all (rate limit, credentials, outage)."""
        return f"register/{self.forge}/{self.scope}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One machine and our row about it; at most one runner, at most one job.

    `claim` is the hex SHA-256 of its agent's claim key, set by the first valid hello. `demand` and `runner_id` are
    set while registered. `since` is when it entered its state; `job` is the one job it serves or served.
    `ending` is set with `terminating` and becomes the end reason. `adopted` rows came from the cloud's listing.
    """

    id: InstanceId
    pool: PoolName
    provider: ProviderName
    token: BatchToken
    state: InstanceState
    since: datetime
    created_at: datetime
    version: int = 0
    capacity_pool: CapacityPool | None = None
    price_usd_hour: float = 0.0
    provider_id: ProviderId | None = None
    claim: str = ""
    demand: Demand | None = None
    runner_id: RunnerId | None = None
    runner_name: str = ""
    job: JobId | None = None
    ending: EndReason | None = None
    detail: str = ""
    adopted: bool = False
    on_demand_usd_hour: float | None = None
    """What the same machine costs on demand; None where its provider does not say."""
    repo: str = ""
    workflow: str = ""
    """Whose job it served: who its cost is charged to, with the job's own row pruned too."""
    launched_at: datetime | None = None
    """When its cloud launched it: we may learn of it later, from a listing."""
    starts: int = 1
    boot_us: int = 0
    idle_us: int = 0
    job_us: int = 0
    stopped_us: int = 0
    """Microseconds in the states it has left, by what they are charged to (see `money`)."""
    is_job_lost: bool = False
    """Its job was lost while it still lived: what it cost was for nothing, whatever became of the job's row since."""
    is_ended_by_cloud: bool = False
    """Its cloud took it before we or its agent ended it."""

    @property
    def runner(self) -> RunnerRef | None:
        """The registration to remove before this machine may end; None when it holds none that we know."""
        if self.demand is None or self.runner_id is None:
            return None
        return RunnerRef(scope=self.demand.scope, runner_id=self.runner_id, name=self.runner_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceMove:
    """One line of an instance's history."""

    instance: InstanceId
    at: datetime
    from_state: InstanceState | None
    to_state: InstanceState
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruption:
    """That its cloud takes, or took, one machine. All evidence of one loss is merged into one record.

    `sources` are who told of it, first one first: "agent", "queue", "operation", "listing", "heartbeat".
    `is_announced`: it was told before the machine was gone. `reclaim_at` is when the cloud will take it, as far as it
    said. From `cutoff_at` on its agent had ended the runner, or the machine was gone: a job that its forge failed or
    cancelled since was lost with it. `ended_at` is when the row ended."""

    instance: InstanceId
    provider: ProviderName
    pool: PoolName
    capacity_pool: CapacityPool | None
    noticed_at: datetime
    sources: tuple[str, ...]
    is_announced: bool
    job: JobId | None = None
    reclaim_at: datetime | None = None
    cutoff_at: datetime | None = None
    ended_at: datetime | None = None
    hook_s: float | None = None
    """How long the image's on-interruption hook ran, as its agent said."""
    is_game_day: bool = False
    """A game day had it taken: it says nothing about its cloud, and counts against no error budget."""

    @property
    def end_reason(self) -> EndReason:
        return EndReason.CHAOS if self.is_game_day else EndReason.INTERRUPTED

    @property
    def taken_by(self) -> datetime:
        """When the machine is gone if its cloud does what it said; the longest notice where it did not say when."""
        return self.reclaim_at or self.noticed_at + timedelta(minutes=2)

    @property
    def told_by(self) -> str:
        return f"told by {', '.join(self.sources)}"


class Use(StrEnum):
    """What a machine's money bought."""

    JOB = "job"
    IDLE = "idle"
    BOOT = "boot"
    LOST = "lost"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLine:
    """What one ended machine cost in one use, in nano-dollars: whole numbers add up exactly. `on_demand_usd_nano` is
    what the same time would have cost on demand."""

    instance: InstanceId
    use: Use
    ended_at: datetime
    provider: ProviderName
    pool: PoolName
    capacity_type: CapacityType
    repo: str
    workflow: str
    milliseconds: int
    usd_nano: int
    on_demand_usd_nano: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """Something we did, or decided not to, and why. `subject` is a job, instance, pool or runner by name; `evidence`
    is what was known that made it right to do so, for what cannot be undone."""

    at: datetime
    actor: str
    action: str
    subject: str
    pool: str
    reason: str
    outcome: str
    evidence: str = ""


# --------------------------------------------------------------------------- what plan sees


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """Limits of the whole deployment, of one provider, or of a pool's on_demand; None is no limit."""

    instances: int | None = None
    usd_per_hour: float | None = None
    usd_per_day: float | None = None


STANDING_LIFE = timedelta(hours=24)
"""After that a machine that stands by for jobs is replaced by a fresh one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A configured class of runners, reduced to what decisions need.

    `spot_spread` is the largest share of its live spot machines in one capacity pool. `spill_enabled`: on_demand may
    stand in for spot, within `spill_caps`; jobs from attempt `on_demand_from` on get it anyway."""

    name: PoolName
    forges: frozenset[ForgeName]
    repos: tuple[str, ...]
    labels: Labels
    runner_group: str
    priority: int
    image: str
    providers: tuple[ProviderName, ...]
    shape: Shape
    min: int
    max: int
    boot_timeout: timedelta
    idle_timeout: timedelta
    max_job_runtime: timedelta
    target: timedelta
    spot_enabled: bool = True
    max_spot_price_usd_hour: float | None = None
    spot_spread: float = 0.5
    spill_enabled: bool = True
    spill_caps: Caps = Caps()
    on_demand_from: int = 3
    requeue_enabled: bool = True
    requeue_attempts: int = 3
    opt_out_labels: Labels = ()
    wait_quantile: float = 0.95
    """This share of the pool's jobs shall start within `target`."""
    spill_margin: float = 0.2
    """By how much on_demand must lower a job's breach probability."""
    error_budget: float = 0.05
    """The share of jobs that interruptions may hurt."""
    requeues_failures: bool = True
    """Genuine failures of a run may run again with its lost jobs."""
    cancels_unservable: bool = False

    @property
    def max_idle_age(self) -> timedelta:
        """How old a machine without a job may get: `min` holds machines beyond `idle_timeout`."""
        return self.boot_timeout + (max(self.idle_timeout, STANDING_LIFE) if self.min else self.idle_timeout)

    @property
    def max_lifetime(self) -> timedelta:
        """No machine of the pool gets older by what it is there for."""
        return self.max_idle_age + self.max_job_runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Everything configured that decisions read. Replaced as a whole on reload."""

    pools: Mapping[PoolName, Pool]
    caps: Caps
    provider_caps: Mapping[ProviderName, Caps] = field(default_factory=dict)
    launch_timeout: timedelta = timedelta(minutes=2)
    registering_timeout: timedelta = timedelta(minutes=2)
    take_timeout: timedelta = timedelta(seconds=90)
    """How long an online runner may leave a job that it could take: then it is not what it seems."""
    terminate_again_after: timedelta = timedelta(seconds=30)
    orphan_sightings: int = 2
    batch_limit: int = 100
    """1,000 jobs that come within seconds need at most 20 launch calls, however pools spread them."""
    evidence_half_life: timedelta = timedelta(hours=24)
    """After this time what was seen of a capacity pool counts half. Measured: specs, policy 6."""
    telling_forges: frozenset[ForgeName] = frozenset()
    """Where people are told at their job what happened to it."""


class PoolControl(StrEnum):
    """An operator's hand on a pool: paused launches nothing; draining also lets its idle machines go."""

    ACTIVE = "active"
    PAUSED = "paused"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cooldown:
    """A capacity pool is not tried before `until`. `failures` in a row doubled it."""

    capacity_pool: CapacityPool
    until: datetime
    failures: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeCooldown:
    """The same for all capacity pools of a provider that a scope covers: a quota, a subnet without addresses."""

    provider: ProviderName
    scope: CapacityScope
    until: datetime
    failures: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityEvidence:
    """What our own machines taught us of one capacity pool, as of `at`: all four numbers lose half their weight with
    each half-life from there on. `hours` are instance hours; `asked` counts machines asked for and answered."""

    capacity_pool: CapacityPool
    at: datetime
    hours: float = 0.0
    interruptions: float = 0.0
    asked: float = 0.0
    refused: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """How long machines took from the decision to launch them until their runner could take a job: the newest such
    times in seconds, ascending."""

    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """Jobs that a live run will likely queue soon, by what its workflow did before: `count` alike, at `due_at`."""

    forge: ForgeName
    scope: Scope
    repo: str
    run_id: str
    pool: PoolName
    labels: Labels
    count: int
    due_at: datetime
    hours: float | None
    reason: str
    """For people: "build of acme/api is usually followed by 4 jobs test (linux)"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """A pool's error budget over its window: `share` of it is used up per its allowance (1.0: exactly as allowed), and
    what share of the pool's new machines may be spot because of that (1.0: all, as configured)."""

    share: float
    spot_share: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoilage:
    """Machines of a pool that ended one after the other without being of any use (image broken, runner group wrong).

    From the second on nothing is launched before `until`, and then one machine at a time until one takes a job."""

    count: int
    until: datetime
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanInstance:
    """A machine of our name without a live row, with the number of complete listings in a row that showed it."""

    instance: CloudInstance
    sightings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanRunner:
    """A registration of our name without a live row, likewise."""

    forge: ForgeName
    runner: RunnerRef
    is_busy: bool
    sightings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeView:
    """A forge as of now. `registrations_left` may be minted at once, refilled at `registrations_per_s`."""

    name: ForgeName
    traits: ForgeTraits
    is_healthy: bool
    registrations_left: float
    registrations_per_s: float
    holders: frozenset[tuple[Scope, Labels]] = frozenset()
    """(scope, labels) whose queue holder was refreshed lately enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The world at one instant, as complete as the listings are. Immutable by agreement: plan only reads.

    `jobs` and `instances` hold live rows only (not in a terminal state). `complete` names the providers and forges
    whose last listing succeeded recently; nothing is terminated or swept on the word of any other.
    `sealed` are runners that were told to take no further job. `held_back` are pools that cannot launch at a provider
    now, with the reason (credentials expired, image gone).
    """

    jobs: Mapping[JobId, Job]
    instances: Mapping[InstanceId, Instance]
    forges: Mapping[ForgeName, ForgeView]
    offerings: Mapping[PoolName, tuple[Offering, ...]]
    complete: frozenset[str] = frozenset()
    jobs_listed: Mapping[ForgeName, datetime] = field(default_factory=dict)
    """When the last complete listing of a forge's jobs was asked for."""
    cooldowns: Mapping[CapacityPool, Cooldown] = field(default_factory=dict)
    controls: Mapping[PoolName, PoolControl] = field(default_factory=dict)
    scope_cooldowns: tuple[ScopeCooldown, ...] = ()
    evidence: Mapping[CapacityPool, CapacityEvidence] = field(default_factory=dict)
    """Replaced as a whole, from time to time: rankings are made anew when it is another object."""
    expected_life_h: Mapping[PoolName, float] = field(default_factory=dict)
    """How long machines of a pool live, in hours, roughly; absent while unknown."""
    held_back: Mapping[tuple[PoolName, ProviderName], str] = field(default_factory=dict)
    spoilage: Mapping[PoolName, Spoilage] = field(default_factory=dict)
    orphan_instances: tuple[OrphanInstance, ...] = ()
    orphan_runners: tuple[OrphanRunner, ...] = ()
    sealed: frozenset[InstanceId] = frozenset()
    started: frozenset[InstanceId] = frozenset()
    """Machines whose agent said that a job started; the forge may not say so yet."""
    secretless: frozenset[InstanceId] = frozenset()
    """Registering machines whose agent asks for a registration that we no longer hold."""
    disputed: frozenset[InstanceId] = frozenset()
    releasing: Mapping[InstanceId, tuple[EndReason, str]] = field(default_factory=dict)
    """Machines whose release began and is not settled: they serve nobody, and the release goes on."""
    ending: Mapping[InstanceId, str] = field(default_factory=dict)
    """Machines whose agent said that it ends, with the cause it gave."""
    doubtful: Mapping[JobId, str] = field(default_factory=dict)
    """Jobs to ask the forge about, and why."""
    retry_after: Mapping[str, datetime] = field(default_factory=dict)
    """Actions that failed lately (by `Action.key`) and when they may be tried again."""
    spent_today_usd: Mapping[ProviderName, float] = field(default_factory=dict)
    """What ended machines cost since midnight UTC, by provider; live ones are counted by their rows."""
    on_demand_today_usd: Mapping[PoolName, float] = field(default_factory=dict)
    """Of that, what on_demand machines cost, by pool."""
    interruptions: Mapping[InstanceId, Interruption] = field(default_factory=dict)
    """Machines that their clouds are taking."""
    reclaimed_free: Mapping[ProviderName, timedelta] = field(default_factory=dict)
    """The first time in which a machine costs nothing if its cloud, and nobody else, ends it."""
    hours: Mapping[Work, float] = field(default_factory=dict)
    """How long each kind of job is expected to run, in hours, from its earlier runs; absent while unknown."""
    run_sizes: Mapping[RunKind, tuple[int, ...]] = field(default_factory=dict)
    """How many jobs the last runs of a workflow queued at once in a pool."""
    arrivals: Mapping[tuple[PoolName, ProviderName], Arrivals] = field(default_factory=dict)
    foreseen: tuple[Foreseen, ...] = ()
    run_ends: Mapping[tuple[ForgeName, str, str], datetime] = field(default_factory=dict)
    """When runs (forge, repo, run id) that hold lost jobs are expected to end; absent while unknown."""
    unserved_since: Mapping[JobId, datetime] = field(default_factory=dict)
    """Since when queued jobs have had no pool, as far as this process knows."""
    burns: Mapping[PoolName, Burn] = field(default_factory=dict)
    tellings: tuple[Telling, ...] = ()
    """What people are still to be told."""


# --------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Launch `count` machines for a pool; the offerings are of one provider and one capacity type, best first.

    `spill` is why it is on_demand in a pool with spot, as a metric label: attempt, error_budget, breach, refused,
    quota, waiting, dear, failing, none_fits; "" otherwise. `breach_spot` and `breach_on_demand` are how likely its jobs
    were to miss the wait target on either; None where that was not asked (attempt, error_budget)."""

    pool: PoolName
    count: int
    offerings: tuple[Offering, ...]
    reason: str
    spill: str = ""
    breach_spot: float | None = None
    breach_on_demand: float | None = None

    @property
    def key(self) -> str:
        return launch_key(self.pool, self.offerings[0].capacity_pool.provider)


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """Mint a registration for a ready instance and hand it to its agent."""

    instance: InstanceId
    demand: Demand
    reason: str

    @property
    def key(self) -> str:
        return self.demand.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """End a machine that may hold a registration: deregister first; the forge's refusal keeps it alive.

    `is_spoiled`, here and in Terminate: it was of no use, through no wish of ours; that counts against its pool."""

    instance: InstanceId
    end_reason: EndReason
    reason: str
    is_spoiled: bool = False

    @property
    def key(self) -> str:
        return f"release/{self.instance}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminate:
    """End machines that hold no registration, whose job is done, or that are being ended already."""

    instances: tuple[InstanceId, ...]
    end_reason: EndReason
    reason: str
    is_spoiled: bool = False

    @property
    def key(self) -> str:
        return f"terminate/{self.instances[0]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """See to it that the runner of a busy instance takes no second job."""

    instance: InstanceId
    reason: str

    @property
    def key(self) -> str:
        return f"seal/{self.instance}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepInstances:
    """Terminate machines of our name that no row knows."""

    provider: ProviderName
    ids: tuple[ProviderId, ...]
    reason: str

    @property
    def key(self) -> str:
        return f"sweep/{self.provider}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRunner:
    """Remove a registration of our name that no row knows."""

    forge: ForgeName
    runner: RunnerRef
    reason: str

    @property
    def key(self) -> str:
        return f"sweep/{self.forge}/{self.runner.runner_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldQueue:
    """Keep a forge from failing this pool's jobs as stuck while no machine of it is up."""

    forge: ForgeName
    scope: Scope
    pool: PoolName
    labels: Labels
    reason: str

    @property
    def key(self) -> str:
        return f"hold/{self.forge}/{self.scope}/{self.pool}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeue:
    """Have the forge run lost jobs of one run again; `with_failures`: its genuine failures may run again with them."""

    forge: ForgeName
    repo: str
    run_id: str
    jobs: tuple[JobId, ...]
    reason: str
    with_failures: bool = True

    @property
    def key(self) -> str:
        return f"requeue/{self.forge}/{self.run_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """Give a lost job up, for good and on record."""

    job: JobId
    reason: str

    @property
    def key(self) -> str:
        return f"abandon/{self.job}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """Tell people at their job what happened to it."""

    telling: Telling
    reason: str

    @property
    def key(self) -> str:
        return f"tell/{self.telling.key}"

    @property
    def owner_key(self) -> str:
        """Held while nobody may be told about repos of this owner (a permission is missing)."""
        return f"tell/{self.telling.forge}/{self.telling.repo.partition('/')[0]}"

    @property
    def forge_key(self) -> str:
        """Held while the forge asks to be written to less."""
        return f"tell/{self.telling.forge}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRun:
    """End a run whose jobs no machine can ever serve, because its pool's configuration asks for that."""

    forge: ForgeName
    repo: str
    run_id: str
    jobs: tuple[JobId, ...]
    reason: str

    @property
    def key(self) -> str:
        return f"cancel_run/{self.forge}/{self.run_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdraw:
    """Take back a registration that never reached its agent (lost with a restart): the machine is ready again."""

    instance: InstanceId
    reason: str

    @property
    def key(self) -> str:
        return f"withdraw/{self.instance}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Ask the forge how one job stands, because its listing or its machine says something else than its row."""

    job: JobId
    reason: str

    @property
    def key(self) -> str:
        return f"settle/{self.job}"


Action = (
    Launch
    | Register
    | Withdraw
    | Release
    | Terminate
    | Seal
    | Settle
    | SweepInstances
    | SweepRunner
    | HoldQueue
    | Requeue
    | Abandon
    | Tell
    | CancelRun
)


class BlockedBy(StrEnum):
    """What kind of thing is in the way of a job's machine."""

    CAP = "cap"
    SHARE = "share"
    """A cap binds, and other repos are to be served first."""
    CAPACITY = "capacity"
    """Every capacity pool refuses, is over a quota, or costs too much."""
    BUDGET = "budget"
    """A forge's or cloud's rate budget."""
    BOOTS = "boots"
    """The pool's last machines were of no use."""
    OPERATOR = "operator"
    MOMENT = "moment"
    """Nothing: it is asked for in a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """A demand that gets no machine now, and why, as one sentence (cap, rate budget, cooling, paused). `ids` are the
    jobs, `again_at` when what is in the way is known to change."""

    pool: PoolName
    jobs: int
    reason: str
    by: BlockedBy = BlockedBy.MOMENT
    ids: tuple[JobId, ...] = ()
    again_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do now. `blocked` explains unmet demand; `wake_at` is the next instant at which time alone changes
    the plan (a deadline, a cooldown's end), None when only events can. `predictions` are for queued jobs that have
    none yet, as of this plan."""

    actions: tuple[Action, ...]
    blocked: tuple[Blocked, ...] = ()
    wake_at: datetime | None = None
    predictions: Mapping[JobId, Prediction] = field(default_factory=dict)


__all__ = [name for name in dir() if name[0].isupper() or name in ("job_id", "launch_key", "throttle_key")]
