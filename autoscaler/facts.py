"""What was observed, as values: everything that reaches the core from outside passes through here.

HTTP handlers, listings and answers of calls put facts into the loop's mailbox; only `observe` consumes them.
`started_at` of a listing is when it was asked for: it says nothing about anything younger.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from autoscaler.model import JobId
from autoscaler.spi import (
    BatchToken,
    CloudInstance,
    ForgeJob,
    ForgeName,
    ForgeRunner,
    InstanceId,
    JobListing,
    LaunchResult,
    Notice,
    NoticeKind,
    Offering,
    ProviderError,
    ProviderId,
    ProviderName,
    Webhook,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookArrived:
    """An authenticated webhook, durable in the inbox under `seq`."""

    seq: int
    forge: ForgeName
    webhook: Webhook


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsListed:
    """`is_full` False: asked for single repos only, so that it says nothing about the forge as a whole."""

    forge: ForgeName
    listing: JobListing
    started_at: datetime
    is_full: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRead:
    """The forge's answer about one job; `seen` is None when it no longer knows the job."""

    job: JobId
    seen: ForgeJob | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnersListed:
    forge: ForgeName
    runners: Sequence[ForgeRunner]
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class InstancesListed:
    """A complete listing of a provider, or with `is_complete` False the given ids only."""

    provider: ProviderName
    instances: Sequence[CloudInstance]
    started_at: datetime
    is_complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingFailed:
    """A listing of a forge or provider failed: nothing is ended on its word until one succeeds."""

    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchAnswered:
    """A launch came back: with machines, or with an error (then `result` is None).

    `is_unknown`: it may have taken effect, so the rows stay until a listing settles them. `offerings` are what was
    asked for; `failure` is what the call raised, an OutcomeUnknown once nobody waits for its outcome any more."""

    token: BatchToken
    result: LaunchResult | None
    error: str = ""
    is_unknown: bool = False
    offerings: tuple[Offering, ...] = ()
    failure: ProviderError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSaidHello:
    """A machine proved itself and its claim is on the row. `runner_name` when it already runs one (we forgot it)."""

    instance: InstanceId
    runner_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimDisputed:
    """A second claim with valid evidence for one machine."""

    instance: InstanceId


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentAsked:
    """An agent waits for a registration."""

    instance: InstanceId


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReported:
    """One event of an agent: a hint, except where it speaks of itself (`runner_started`, `ending`). `at` is the
    machine's own time of it, `output` the last line that a runner wrote before it ended."""

    instance: InstanceId
    kind: str
    cause: str = ""
    ran_job: bool = False
    at: datetime | None = None
    output: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentNoticed:
    """An agent saw its cloud's warning about its machine."""

    instance: InstanceId
    kind: NoticeKind
    reclaim_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class HookEnded:
    """How long an image's on-interruption hook ran, and what came of it, as the agent says: "ok", "failed" (with its
    exit code), "timed_out" or "job_ended"."""

    instance: InstanceId
    seconds: float
    outcome: str
    exit_code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeArrived:
    """What a cloud said unasked about one machine, ours or not."""

    provider: ProviderName
    notice: Notice


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinesDescribed:
    """A cloud's answer about machines that were asked for by id; those of `asked` that `instances` lacks were left
    out by it. `silent` are those whose agents are not heard any more."""

    provider: ProviderName
    asked: frozenset[ProviderId]
    silent: frozenset[ProviderId]
    instances: Sequence[CloudInstance]
    started_at: datetime


Fact = (
    WebhookArrived
    | JobsListed
    | JobRead
    | RunnersListed
    | InstancesListed
    | ListingFailed
    | LaunchAnswered
    | AgentSaidHello
    | ClaimDisputed
    | AssignmentAsked
    | AgentReported
    | AgentNoticed
    | HookEnded
    | NoticeArrived
    | MachinesDescribed
)


def jobs_in(facts: Sequence[Fact]) -> Iterator[ForgeJob]:
    """What these facts say of jobs, in their order."""
    for fact in facts:
        match fact:
            case WebhookArrived():
                yield from fact.webhook.jobs
            case JobsListed():
                yield from fact.listing.jobs
            case JobRead() if fact.seen is not None:
                yield fact.seen
            case _:
                pass
