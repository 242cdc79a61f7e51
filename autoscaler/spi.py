"""The public contracts between the core and its adapters: Provider, Forge, their values and errors.

Owns every name that crosses the seam; imports the standard library only. Adapters import this module (and
`autoscaler.calls`) and nothing else of the core. Third parties may import it too: it is the only public module, and
longer than others so that a contract can be read, and imported, in one place.

Conventions: instants are aware UTC datetimes; `None` means "no answer"; listings are complete or raise; every
call may be cancelled at any await and may be repeated.
"""

import hashlib
import hmac
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, NewType, Protocol

ForgeName = NewType("ForgeName", str)
ProviderName = NewType("ProviderName", str)
PoolName = NewType("PoolName", str)
InstanceId = NewType("InstanceId", str)
ProviderId = NewType("ProviderId", str)
RunnerId = NewType("RunnerId", str)
BatchToken = NewType("BatchToken", str)
Scope = NewType("Scope", str)
"""A registration scope as its forge writes it: "org", "owner/repo", "group/subgroup" or "group/project"."""

Labels = tuple[str, ...]
"""Runner or job labels (GitLab: tags): lower case, sorted, without repeats. See `label_set`."""


def label_set(labels: Collection[str]) -> Labels:
    """The canonical form of labels: stripped, lower case (forges match without case), sorted, unique."""
    return tuple(sorted({label.strip().lower() for label in labels if label.strip()}))


def _digest(text: str) -> bytes:
    """Of any text, halves of characters included: strangers send what they like."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class Secret:
    """A secret string that no repr, log line or exception text shows. Compare with `matches`, read with `reveal`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def matches(self, other: str) -> bool:
        """Constant-time comparison, whatever the lengths."""
        return hmac.compare_digest(_digest(self._value), _digest(other))

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._value)

    def __hash__(self) -> int:
        return hash(("Secret", self._value))


class Clock(Protocol):
    """Time as the daemon sees it; virtual in simulations. Nothing else reads a clock."""

    def now(self) -> datetime:
        """The current instant, aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds for measuring intervals inside this process; never compared with `now`."""
        ...

    async def sleep(self, seconds: float) -> None: ...


# --------------------------------------------------------------------------- provider


class CapacityType(StrEnum):
    SPOT = "spot"
    ON_DEMAND = "on_demand"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """A closed range; `None` is no bound on that side."""

    low: float | None = None
    high: float | None = None

    def admits(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a pool asks of a machine. `types` and `exclude` are machine type globs; empty `types` is any."""

    cpus: Bounds = Bounds()
    memory_gib: Bounds = Bounds()
    arch: str = "x86_64"
    gpus: int = 0
    disk_gib: float = 0.0
    types: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class CapacityPool:
    """What a cloud can run dry of: machine type x zone x capacity type."""

    provider: ProviderName
    region: str
    zone: str
    machine_type: str
    capacity_type: CapacityType

    @property
    def key(self) -> str:
        """Stable text form: "aws/us-east-1a/m7i.large/spot"."""
        return f"{self.provider}/{self.zone}/{self.machine_type}/{self.capacity_type}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offering:
    """A capacity pool with its price, as a choice. `price_usd_hour` is 0.0 where machines cost nothing.

    `on_demand_usd_hour` is what the same machine costs on demand, `published_interruptions_per_hour` what the cloud
    publishes about how often it takes such machines back; None where nobody says."""

    capacity_pool: CapacityPool
    cpus: float
    memory_gib: float
    arch: str
    price_usd_hour: float
    gpus: int = 0
    on_demand_usd_hour: float | None = None
    published_interruptions_per_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityScope:
    """A part of a provider: every capacity pool that agrees in all that is not None. What a quota or an exhausted
    subnet closes."""

    region: str | None = None
    zone: str | None = None
    machine_type: str | None = None
    """A machine type glob, as in "g*.*"."""
    capacity_type: CapacityType | None = None

    def covers(self, capacity_pool: CapacityPool) -> bool:
        return (
            self.region in (None, capacity_pool.region)
            and self.zone in (None, capacity_pool.zone)
            and self.capacity_type in (None, capacity_pool.capacity_type)
            and (self.machine_type is None or fnmatchcase(capacity_pool.machine_type, self.machine_type))
        )

    @property
    def key(self) -> str:
        """Stable text form: "us-east-1/*/*/spot"."""
        parts = (self.region, self.zone, self.machine_type, self.capacity_type)
        return "/".join(part or "*" for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchBatch:
    """One committed intent for `count` machines. The same token again must not make more than `count` in all.

    `offerings` are ranked, best first, and may all be used. `user_data` is the boot document (docs/agent-protocol.md):
    a text without secrets, the same for all machines of a pool and image; how it reaches the machine, and the token
    with it, is the provider's part. `image` is the provider's own reference(s) from the `[[image]]` section. `pool`
    goes into the tags. `disk_gib` is the least size of the root disk; 0.0 leaves it to the image. Machines that are
    `is_stoppable` can be stopped and started, where the provider's traits offer that for their capacity type.
    """

    token: BatchToken
    pool: PoolName
    count: int
    offerings: tuple[Offering, ...]
    image: Mapping[str, str]
    user_data: str
    max_lifetime: timedelta
    disk_gib: float = 0.0
    is_stoppable: bool = False
    is_repeat: bool = False
    """The same token may have been sent before: look for what that made first."""


class MachineState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudInstance:
    """One machine of our deployment as the cloud lists it (tag: deployment). `token` and `pool` are our tags."""

    provider: ProviderName
    provider_id: ProviderId
    token: BatchToken
    pool: PoolName
    state: MachineState
    capacity_pool: CapacityPool
    price_usd_hour: float
    launched_at: datetime
    address: str = ""
    """The private address, where the cloud says it already."""
    end_detail: str = ""
    """How it ended, where the cloud says so: "exit 0", "Server.SpotInstanceTermination"."""
    ended_by_itself: bool = False
    """It powered itself off in good order: its agent had nothing left to do, so nothing was taken away from it."""
    is_reclaimed: bool = False
    """The cloud says that it takes, or took, this machine back: an interruption, announced or not."""
    reclaim_at: datetime | None = None
    """When a machine that still lives will be taken, as far as the cloud's listing tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One offering that a launch tried in vain, and the error that says what to do about it."""

    offering: Offering
    error: "ProviderError"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchResult:
    """What a launch made (up to `count`) and what refused on the way. Fewer than asked is an answer, not an error."""

    instances: tuple[CloudInstance, ...]
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a machine sends to prove which one it is. `claim` is the hex SHA-256 of its claim key."""

    claim: str
    document: Mapping[str, str]
    received_at: datetime
    peer_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which machine some evidence proves, and what the cloud signed about it; "" and None where it says nothing.

    The core compares it with its row: type, zone, address, and a start within the time of our launch."""

    provider_id: ProviderId
    machine_type: str = ""
    zone: str = ""
    address: str = ""
    started_at: datetime | None = None


class NoticeKind(StrEnum):
    RECLAIM = "reclaim"
    """The machine will be taken at `reclaim_at`."""
    REBALANCE = "rebalance"
    """The cloud thinks that it may have to take the machine soon: no proof of a loss."""
    MAINTENANCE = "maintenance"
    """The host will be rebooted or retired at `reclaim_at`."""
    STATE_CHANGE = "state_change"
    """The machine is going or gone, nobody said why: look at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What the cloud says unasked about one machine. `receipt` acknowledges it; `source` says which way it came
    ("queue", "operation"); `noticed_at` is the cloud's own time of it."""

    provider_id: ProviderId
    kind: NoticeKind
    reclaim_at: datetime
    receipt: str = ""
    source: str = ""
    noticed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateBudget:
    """What a forge or cloud lets us call: `remaining` now, refilled at `refill_per_s` up to `limit`."""

    family: str
    limit: float
    remaining: float
    refill_per_s: float


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    REFUSED = "refused"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One answer of a check. `key` is the key of the configuration that it is about, from a provider relative to its
    section; `remedy` says what to do and is empty when all is well."""

    verdict: Verdict
    key: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderTraits:
    """What differs between providers, as data. `stoppable`: capacity types whose machines can be stopped and started.
    `minimum_billed_s` is the least that one start is billed; `reclaimed_free_s` the first time in which a machine
    that the cloud itself takes costs nothing; `stopped_share` what a stopped machine costs of its on_demand price.
    `is_up_at_once`: its machines are processes and need not boot."""

    stoppable: frozenset[CapacityType] = frozenset()
    minimum_billed_s: float = 0.0
    reclaimed_free_s: float = 0.0
    stopped_share: float = 0.0
    is_up_at_once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStatus:
    """How a provider fares, from memory. `dropped` counts notices that were not for us or not usable, by reason
    (foreign, duplicate, late, future, malformed, irrelevant), since the start. `troubles` are what the operator should
    know, each with its remedy in the text, as "notices: no message ever came from the queue ..."."""

    budgets: tuple[RateBudget, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    troubles: tuple[str, ...] = ()


class Provider(Protocol):
    """One cloud account and region set. All calls may raise ProviderError; the caller sets deadlines."""

    @property
    def name(self) -> ProviderName: ...

    @property
    def traits(self) -> ProviderTraits: ...

    async def offerings(self, shape: Shape) -> Sequence[Offering]:
        """Every offering that fits; unavailability is learned from refusals, not from absence here."""
        ...

    async def launch(self, batch: LaunchBatch) -> LaunchResult:
        """Launch up to `batch.count` machines tagged with deployment, pool and token. A repeat of a token whose
        machines exist returns those. Raises OutcomeUnknown when the cloud may have acted; refused offerings
        come back as data."""
        ...

    async def list_instances(self) -> Sequence[CloudInstance]:
        """Every machine of our deployment, all pages, or raise. Terminated ones may be included for a while."""
        ...

    async def describe(self, ids: Sequence[ProviderId]) -> Sequence[CloudInstance]:
        """The given machines; unknown ids are left out."""
        ...

    async def terminate(self, ids: Sequence[ProviderId]) -> None:
        """Ask for the end of machines. Idempotent; unknown and ended ids are success."""
        ...

    async def stop(self, ids: Sequence[ProviderId]) -> None:
        """Power machines off and keep their disks. Idempotent. Raises InvalidRequest where the traits do not offer
        it for one of them; none is stopped then."""
        ...

    async def start(self, ids: Sequence[ProviderId]) -> Mapping[ProviderId, "ProviderError"]:
        """Start stopped machines anew; those that could not be, with why (CapacityUnavailable, QuotaExceeded): they
        stay stopped. Idempotent."""
        ...

    async def identify(self, evidence: Evidence) -> Identity:
        """Which machine of ours this evidence proves. Raises IdentityRefused."""
        ...

    async def notices(self) -> Sequence[Notice]:
        """What the cloud said since the last acknowledged ones, at least once each; may wait up to 20 s for one.
        Messages that are not for us, doubled, late or unreadable are dropped, counted and acknowledged inside."""
        ...

    async def ack(self, notices: Sequence[Notice]) -> None:
        """The core has made these durable."""
        ...

    def status(self) -> ProviderStatus:
        """How it fares now. Cheap and synchronous."""
        ...

    async def check(self, images: Mapping[str, Mapping[str, str]]) -> Sequence[Finding]:
        """Look for every fault of the configuration that the cloud can tell: credentials, permissions, networks,
        images (references by image name), quotas, notices. Changes nothing, raises nothing."""
        ...

    async def interrupt(self, ids: Sequence[ProviderId], *, is_announced: bool = True) -> None:
        """Reclaim machines as the cloud would, for game days and tests; with a notice unless `is_announced` is False.
        Raises InvalidRequest where a machine cannot be taken so."""
        ...

    async def aclose(self) -> None: ...


class ProviderError(Exception):
    """A provider call failed. Subclasses say what the core should do; this class itself is treated as transient."""


class CapacityUnavailable(ProviderError):
    """This offering has no machine now: cool that capacity pool and plan again. `is_lasting`: its cloud does not have
    it there at all (machine type not offered in the zone), so that hours pass before the next try."""

    def __init__(self, message: str = "", *, is_lasting: bool = False) -> None:
        super().__init__(message)
        self.is_lasting = is_lasting


class QuotaExceeded(ProviderError):
    """An account limit is reached: cool everything under `scope`."""

    def __init__(self, message: str, *, scope: CapacityScope) -> None:
        super().__init__(message)
        self.scope = scope


class Throttled(ProviderError):
    """The cloud asked us to slow down; nothing was changed. Repeat after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InvalidRequest(ProviderError):
    """The configuration is wrong (image gone, bad parameter): hold the pool back and tell the operator."""


class Unauthorized(ProviderError):
    """Credentials or permissions fail: the provider is unhealthy until they work."""


class OutcomeUnknown(ProviderError):
    """The call may or may not have taken effect: keep the intent, settle by listing or by the same token."""


class IdentityRefused(ProviderError):
    """The evidence does not prove a machine of ours. `reason` is a metric label: signature, region, account,
    unknown, window, address. The caller is told nothing."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


# --------------------------------------------------------------------------- forge


class JobStatus(StrEnum):
    """A job's place in its life as the forge says it, ordered by `rank`; later events never move it back."""

    CREATED = "created"
    """Exists but must not be served yet: GitHub waiting/pending/requested, GitLab created/manual/..."""
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"

    @property
    def rank(self) -> int:
        return _STATUS_RANK[self]


_STATUS_RANK = {JobStatus.CREATED: 0, JobStatus.QUEUED: 1, JobStatus.RUNNING: 2, JobStatus.DONE: 3}


class Conclusion(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    UNKNOWN = "unknown"
    """Done, but the forge no longer says how (deleted run, conclusion word we do not know)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeJob:
    """One job as a webhook or a listing shows it.

    `labels` is None where the source does not carry them (GitLab webhooks): ask `list_jobs` or `get_job`.
    `queued_at` is when it became ready for a runner; `runner_name` is empty until one took it.
    """

    forge: ForgeName
    forge_job_id: str
    repo: str
    run_id: str
    run_attempt: int
    workflow: str
    name: str
    status: JobStatus
    labels: Labels | None
    conclusion: Conclusion | None = None
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    runner_name: str = ""
    runner_id: RunnerId | None = None
    url: str = ""
    failure_reason: str = ""
    """The forge's own word for why a job failed, e.g. "runner_interrupted"; empty where it has none."""
    commit: str = ""
    """The commit that it tests, as the forge's full hex id; empty where the source does not carry it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """A workflow run or pipeline changed. A hint for requeueing; `is_finished` when no job of it can run any more."""

    forge: ForgeName
    repo: str
    run_id: str
    run_attempt: int
    is_finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """An authenticated webhook. `outcome` is "accepted", or why it carries nothing: "ping", "ignored_event",
    "null_job", "out_of_scope". `delivery_id` is unique per delivery and stable over redeliveries."""

    delivery_id: str
    outcome: str
    event: str
    jobs: tuple[ForgeJob, ...] = ()
    runs: tuple[RunEvent, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobListing:
    """Jobs not yet done, as listed. `repos` were listed completely: a live job of theirs that is absent here has
    ended or changed and should be asked for with `get_job`. Repos that were not polled this time are not named.
    `is_complete` is False when a repo that should have been polled could not be; `problem` is why, for people."""

    jobs: tuple[ForgeJob, ...]
    repos: frozenset[str]
    is_complete: bool = True
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerRef:
    """A runner registered at a forge. `name` is ours: it starts with the deployment's prefix."""

    scope: Scope
    runner_id: RunnerId
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeRunner:
    """A runner of ours as the forge lists it. Never trust `is_busy` or `is_online` alone (specs: github-rest B5)."""

    ref: RunnerRef
    labels: Labels
    is_online: bool
    is_busy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """The forge-issued identity of one runner, handed once to one machine and never stored.

    `kind` tells the agent which runner program to start. `parameters` are not secret (url, runner name, flags).
    """

    ref: RunnerRef
    kind: str
    secret: Secret
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeueResult:
    """A forge accepted a requeue. `successors` maps old forge job ids to new ones where already known. Those in `later`
    could not go with the others: ask again after `later_s`. Those in `refused` never will, for the reason beside them.
    `rode_along` are the names of jobs that had failed by themselves and run again too."""

    successors: Mapping[str, str]
    later: frozenset[str] = frozenset()
    later_s: float = 20.0
    refused: Mapping[str, str] = field(default_factory=dict)
    rode_along: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """What people are told at their job, once per loss. `key` is the same for every try to tell the same thing: what
    the forge already shows under it is not said again. `title` is one line, `text` Markdown without secrets."""

    key: str
    forge: ForgeName
    repo: str
    run_id: str
    forge_job_id: str
    job_name: str
    commit: str
    """The commit that the job tests; empty where it is not known yet."""
    url: str
    """The job's page; empty where it is not known."""
    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Failed webhook deliveries found since `since`, and how many were asked to be sent again."""

    failed: int
    redelivered: int
    complete_until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeTraits:
    """What differs between forges, as data, so that the core needs no kinds.

    `seals_runners`: a runner could take a second job unless `seal` is called once it runs one.
    `removes_finished_runners`: a runner's registration vanishes with its job; no call is needed.
    `needs_queue_holder`: jobs without any matching runner are failed by the forge: keep one with `hold_queue`.
    """

    seals_runners: bool
    removes_finished_runners: bool
    needs_queue_holder: bool
    counts_attempts: bool = True
    """Running a job again raises `run_attempt`; where it does not (GitLab), a higher job id tells the newer one."""
    requeues_at_once: bool = False
    """A lost job can run again whatever else of its run still runs (GitLab); elsewhere its run must end first."""


class Forge(Protocol):
    """A GitHub or GitLab endpoint. All async calls may raise ForgeError; each draws on a rate budget."""

    @property
    def name(self) -> ForgeName: ...

    @property
    def traits(self) -> ForgeTraits: ...

    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> Webhook:
        """Authenticate, then parse. Pure. Header names are lower case. Raises BadSignature, then MalformedWebhook."""
        ...

    def scope_of(self, repo: str) -> Scope | None:
        """The configured registration scope that serves a repo, most specific first; None: not ours."""
        ...

    async def list_jobs(self, active: Collection[str]) -> JobListing:
        """Jobs of `active` repos and of those the adapter itself finds active, within the rate budget."""
        ...

    async def get_job(self, repo: str, forge_job_id: str) -> ForgeJob:
        """One job with labels. Raises JobNotFound."""
        ...

    async def register(self, *, scope: Scope, group: str, name: str, labels: Labels) -> Registration:
        """Mint one single-job runner. `group` is the GitHub runner group, empty for the default. Raises
        NameTaken when a runner of this name exists (a lost answer): deregister by name and register again."""
        ...

    async def list_runners(self) -> Sequence[ForgeRunner]:
        """Every runner whose name starts with our prefix, in every scope, all pages, or raise."""
        ...

    async def deregister(self, runner: RunnerRef, *, job_is_done: bool = False) -> None:
        """Remove a registration; absent is success. Raises RunnerBusy: it runs a job, do not terminate.

        `job_is_done`: the forge already reported the end of the runner's one job, so that no check for a running
        job is needed where that check costs a call."""
        ...

    async def seal(self, runner: RunnerRef) -> None:
        """See to it that the runner takes no further job (GitLab: pause). No-op where `seals_runners` is False."""
        ...

    async def hold_queue(self, *, scope: Scope, group: str, labels: Labels, name: str) -> None:
        """Keep jobs with these labels from being failed as stuck while no machine is up. Idempotent; called
        each 30 minutes at most. No-op where `needs_queue_holder` is False."""
        ...

    async def requeue(
        self,
        repo: str,
        run_id: str,
        forge_job_ids: Sequence[str],
        *,
        with_failures: bool = True,
        spared: Collection[str] = (),
    ) -> RequeueResult:
        """Run lost jobs of one run again. Dead jobs that would keep their run from ending for long are cancelled where
        nothing else of the run is alive. `with_failures` False: never run a genuine failure of the same run again with
        them; lost jobs that cannot go without one are then answered as `later`. `spared` are lost jobs of the run that
        must not run again, and are as little alive as the others. Raises NotYet while the forge cannot,
        AlreadyRequeued, JobNotFound, and ForgeRefusedForGood where a person ended the run."""
        ...

    async def tell(self, telling: Telling) -> None:
        """Show people at their job what happened to it. May be repeated: looks for `telling.key` before it writes.
        Raises ForgeRefusedForGood or JobNotFound where nobody can be told (no merge request, job gone), and
        ForgeUnauthorized without the permission, which says nothing of the rest of the forge. Leaves the rate budget
        to everything else."""
        ...

    async def telling_problem(self, scope: Scope) -> str:
        """Why people of this scope cannot be told, with its remedy, for `check`; empty where they can, as far as the
        forge tells without anything being written."""
        ...

    async def end_job(self, repo: str, forge_job_id: str) -> None:
        """End a job whose machine is gone and that shall not run again, where its forge would take it for running for
        hours. One that ended is success, as is a forge that cannot end one job alone and gives it up within minutes."""
        ...

    async def cancel_run(self, repo: str, run_id: str, forge_job_ids: Collection[str]) -> None:
        """End a run of which no machine can ever serve these jobs, and nothing else is alive. One that ended is
        success. Raises NotYet while another job of it is alive, whoever runs that, and JobNotFound."""
        ...

    async def recover_deliveries(self, since: datetime) -> Recovery:
        """Find failed webhook deliveries and have them sent again (GitHub); nothing to do elsewhere."""
        ...

    def budgets(self) -> Sequence[RateBudget]:
        """The rate budgets now; family "registration" paces launches."""
        ...

    async def aclose(self) -> None: ...


class WebhookRefused(Exception):
    """A webhook that changes nothing. `reason` is a metric label."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class BadSignature(WebhookRefused):
    """Authentication failed: answer 401."""


class MalformedWebhook(WebhookRefused):
    """Authenticated, but not a payload we can read: answer 400 and count it."""


class ForgeError(Exception):
    """A forge call failed. Subclasses say what to do; this class itself is treated as transient."""


class ForgeUnavailable(ForgeError):
    """No answer, garbage or 5xx on a call that changes nothing by itself: repeat later."""


class ForgeOutcomeUnknown(ForgeError):
    """A write timed out or broke: it may have taken effect. Settle by listing."""


class RateLimited(ForgeError):
    """The forge asked us to slow down; nothing was changed."""

    def __init__(self, message: str, *, retry_after_s: float, family: str = "core") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.family = family


class ForgeUnauthorized(ForgeError):
    """Credentials or permissions fail: the forge is unhealthy until they work. The text names the remedy."""


class ForgeRefused(ForgeError):
    """The forge says the request is wrong (unknown runner group, validation): tell the operator."""


class ForgeRefusedForGood(ForgeRefused):
    """The forge will never do this, whenever and however often it is asked: an answer, not a fault."""


class RunnerBusy(ForgeError):
    """The runner runs a job: an answer, not a fault. Do not terminate its machine."""


class NameTaken(ForgeError):
    """A runner of this name exists already."""


class JobNotFound(ForgeError):
    """The forge does not know the job (deleted run, wrong id)."""


class NotYet(ForgeError):
    """The forge cannot requeue now (the run still runs): try again after `retry_after_s`. `is_told`: the forge says by
    itself when that changes (a webhook, a listing), so that asking is a fall-back and may become rarer."""

    def __init__(self, message: str, *, retry_after_s: float, is_told: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_told = is_told


class AlreadyRequeued(ForgeError):
    """Somebody requeued the job before us: success. `successor` is the new forge job id where known."""

    def __init__(self, message: str, *, successor: str = "") -> None:
        super().__init__(message)
        self.successor = successor


# --------------------------------------------------------------------------- how adapters are made


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeSettings:
    """One `[[forge]]` section, validated. `credentials` holds Secret or str by key (app_id, private_key, token...)."""

    name: ForgeName
    kind: str
    url: str
    api_url: str
    credentials: Mapping[str, "Secret | str"]
    webhook_secrets: tuple[Secret, ...]
    scopes: tuple[Scope, ...]
    poll: timedelta
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """One `[[provider]]` section, validated. `options` are the keys this kind alone knows."""

    name: ProviderName
    kind: str
    regions: tuple[str, ...]
    endpoint_url: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Gate(Protocol):
    """Bounded threads for one blocking SDK. See `autoscaler.calls`."""

    async def call(self, function: Any, /, *arguments: Any, timeout_s: float, **keywords: Any) -> Any:
        """Run a blocking function in a thread of this gate. Raises TimeoutError; the thread may go on."""
        ...


class Gates(Protocol):
    def gate(self, name: str, *, threads: int) -> Gate: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the core lends an adapter. `runner_prefix` starts every runner name of this deployment; `agent` is the
    agent as one file, for providers that put it on a machine themselves; `public_url` answers what machines call
    the daemon by now (a reload may change it), which some clouds sign into a machine's identity."""

    deployment: str
    runner_prefix: str
    clock: Clock
    gates: Gates
    agent: bytes = b""
    public_url: Callable[[], str] = str


class SettingsError(ValueError):
    """An adapter's settings are wrong. `key` is relative to its section, e.g. "credentials.token"."""

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key
