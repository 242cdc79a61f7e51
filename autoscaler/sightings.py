"""What was observed or tried and is no row: kept in memory only, and learned anew after a restart.

Shared by observe, which fills it from facts, and apply, which notes what its calls came to. Nothing here may be needed
for correctness after a restart: that belongs into rows.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count, takewhile
from typing import TypeVar

from autoscaler.model import (
    Cooldown,
    EndReason,
    Interruption,
    Job,
    JobId,
    OrphanInstance,
    OrphanRunner,
    ScopeCooldown,
    Spoilage,
)
from autoscaler.spi import (
    CapacityPool,
    CapacityScope,
    CapacityType,
    ForgeName,
    InstanceId,
    Labels,
    Offering,
    PoolName,
    ProviderId,
    ProviderName,
    RunnerId,
    Scope,
)

FIRST_HOLD = timedelta(seconds=15)
LONGEST_HOLD = timedelta(minutes=10)


_V = TypeVar("_V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeued:
    """What a successor takes over from the job that it runs again: `attempt` is that job's."""

    attempt: int
    job: JobId | None = None
    lost_at: datetime | None = None
    noticed_at: datetime | None = None
    """When its cloud said that it takes the machine."""


@dataclass(slots=True)
class Sightings:
    """See the module docstring."""

    complete: set[str] = field(default_factory=set)
    runners_listed: dict[ForgeName, datetime] = field(default_factory=dict)
    """When the last complete listing of a forge's runners was asked for."""
    jobs_listed: dict[ForgeName, datetime] = field(default_factory=dict)
    """The same for its jobs."""
    bound_at: dict[InstanceId, datetime] = field(default_factory=dict)
    """When a row learned which machine it is: listings from before that may not show it yet."""
    addresses: dict[InstanceId, str] = field(default_factory=dict)
    """What clouds list as the addresses of machines."""
    shown_up: dict[InstanceId, datetime] = field(default_factory=dict)
    """When the last listing was asked for in which its cloud showed a machine that is up."""
    absences: dict[InstanceId, int] = field(default_factory=dict)
    orphan_instances: dict[tuple[ProviderName, ProviderId], OrphanInstance] = field(default_factory=dict)
    orphan_runners: dict[tuple[ForgeName, RunnerId], OrphanRunner] = field(default_factory=dict)
    cooldowns: dict[CapacityPool, Cooldown] = field(default_factory=dict)
    scope_cooldowns: dict[tuple[ProviderName, CapacityScope], ScopeCooldown] = field(default_factory=dict)
    offerings: dict[PoolName, tuple[Offering, ...]] = field(default_factory=dict)
    on_demand_usd_hour: dict[tuple[ProviderName, str, str], float] = field(default_factory=dict)
    """What machine types cost on demand, by provider, region and type."""
    held_back: dict[tuple[PoolName, ProviderName], str] = field(default_factory=dict)
    spoilage: dict[PoolName, Spoilage] = field(default_factory=dict)
    sealed: set[InstanceId] = field(default_factory=set)
    started: set[InstanceId] = field(default_factory=set)
    """Machines whose agent said that a job started: sooner than the forge, and only a hint."""
    asking: set[InstanceId] = field(default_factory=set)
    disputed: set[InstanceId] = field(default_factory=set)
    ending: dict[InstanceId, str] = field(default_factory=dict)
    holders: dict[tuple[ForgeName, Scope, Labels], tuple[str, datetime]] = field(default_factory=dict)
    """Queue holders by demand: their runner name and when they were refreshed."""
    retry_after: dict[str, datetime] = field(default_factory=dict)
    releasing: dict[InstanceId, tuple[EndReason, str]] = field(default_factory=dict)
    """Machines whose runner was asked to be let go and may be sealed already: they serve nobody any more."""
    rebalanced: set[InstanceId] = field(default_factory=set)
    """Machines of which their cloud said that it may have to take them soon."""
    maintenance: dict[InstanceId, tuple[datetime, str]] = field(default_factory=dict)
    """Machines whose host will be maintained, when, and who told; not near yet."""
    left_out: dict[InstanceId, int] = field(default_factory=dict)
    """How often in a row a cloud that was asked for a machine by its id left it out."""
    requeued: dict[str, Requeued] = field(default_factory=dict)
    """Jobs whose requeue was accepted and whose successor has not been seen yet, by `work_key`. Kept in the store's
    settings too: attempts are limited over restarts."""
    requeuing: set[JobId] = field(default_factory=set)
    """Lost jobs that their forge is being asked to run again: a successor that appears meanwhile is our doing."""
    hanging: dict[JobId, None] = field(default_factory=dict)
    """Lost jobs that their forge still ran when it was asked to run them again: it may have been asked to end them, so
    that a cancellation of theirs is ours. Kept in the store's settings too."""
    spared: dict[str, list[str]] = field(default_factory=dict)
    """Jobs that must not run again (lost ones that were given up, and what a timer of ours ended), as ids of their
    forge, by `run_key`: whoever runs others of their run again must not take them along. Kept in the store's settings
    too."""
    staged: dict[InstanceId, datetime] = field(default_factory=dict)
    """Machines that a game day was told to take, and until when their end counts as its doing; kept with game days."""

    def is_staged(self, instance: InstanceId, now: datetime) -> bool:
        until = self.staged.get(instance)
        return until is not None and now < until

    def note_requeued(self, work: str, heritage: Requeued) -> None:
        """A requeue was accepted: whoever turns up under this `work_key` takes the heritage over, in place of that of
        an earlier attempt. Jobs of one run may have one name: those of one attempt each leave their own."""
        known = self.requeued
        key = next(key for key in _numbered(work) if key not in known or known[key].attempt < heritage.attempt)
        _put_newest(known, key, heritage)

    def take_requeued(self, work: str) -> Requeued | None:
        """The newest one noted under a `work_key`, once."""
        noted = list(takewhile(self.requeued.__contains__, _numbered(work)))
        return self.requeued.pop(noted[-1]) if noted else None

    def note_spared(self, run: str, forge_job_id: str) -> None:
        """A job of the run of this `run_key` must not run again."""
        _put_newest(self.spared, run, [*self.spared.get(run, ()), forge_job_id])

    def note_offerings(self, pool: PoolName, provider: ProviderName, found: Sequence[Offering]) -> None:
        """What a provider offers a pool now, in place of what it offered."""
        others = [o for o in self.offerings.get(pool, ()) if o.capacity_pool.provider != provider]
        self.offerings[pool] = (*others, *found)
        for offering in found:
            place = offering.capacity_pool
            price = offering.on_demand_usd_hour
            if price is None and place.capacity_type is CapacityType.ON_DEMAND:
                price = offering.price_usd_hour
            if price is not None:
                self.on_demand_usd_hour[provider, place.region, place.machine_type] = price

    def on_demand_price(self, place: CapacityPool) -> float | None:
        """USD per hour of the same machine on demand; None where nobody says."""
        return self.on_demand_usd_hour.get((place.provider, place.region, place.machine_type))

    def note_spoiled(self, pool: PoolName, now: datetime, reason: str) -> None:
        """A machine ended without being of use. Those that end while the pool is held back anyway tell nothing new."""
        before = self.spoilage.get(pool)
        if before is not None and now < before.until:
            return
        count = before.count + 1 if before is not None else 1
        hold = min(FIRST_HOLD * (1 << min(count - 2, 8)), LONGEST_HOLD) if count > 1 else timedelta(0)
        self.spoilage[pool] = Spoilage(count=count, until=now + hold, reason=reason)

    def note_served(self, pool: PoolName) -> None:
        """A machine of the pool took a job: whatever was wrong is over."""
        self.spoilage.pop(pool, None)

    def forget(self, instance: InstanceId) -> None:
        for remembered in (self.sealed, self.started, self.asking, self.disputed, self.rebalanced):
            remembered.discard(instance)
        self.absences.pop(instance, None)
        self.bound_at.pop(instance, None)
        self.shown_up.pop(instance, None)
        self.addresses.pop(instance, None)
        self.left_out.pop(instance, None)
        self.maintenance.pop(instance, None)
        self.ending.pop(instance, None)
        self.releasing.pop(instance, None)


REQUEUED = "requeued"
"""The setting that holds `Sightings.requeued` as JSON, newest last."""
HANGING = "hanging"
"""The setting that holds `Sightings.hanging` as JSON, newest last."""
SPARED = "spared"
"""The setting that holds `Sightings.spared` as JSON, newest last."""
KEPT = 500
"""So many are written down; a thousand jobs that are lost at once are back before a restart."""
REMEMBERED = 10_000
"""A successor whose name is not its predecessor's (it may hold the number of its attempt) never takes its entry out."""


def run_key(forge: ForgeName, repo: str, run_id: str) -> str:
    return f"{forge}|{repo}|{run_id}"


def _numbered(key: str) -> Iterator[str]:
    return (key if number == 1 else f"{key}|{number}" for number in count(1))


def work_key(forge: ForgeName, repo: str, run_id: str, name: str) -> str:
    """The same piece of work over all its attempts."""
    return f"{forge}|{repo}|{run_id}|{name}"


def heritage_of(job: Job, known: Interruption | None) -> Requeued:
    """What the successor of a lost job takes over from it. `known` is the interruption of its machine."""
    noticed_at = known.noticed_at if known is not None and known.is_announced else None
    return Requeued(attempt=job.attempt, job=job.id, lost_at=job.lost_at, noticed_at=noticed_at)


def dump_requeued(requeued: Mapping[str, Requeued]) -> str:
    newest = list(requeued.items())[-KEPT:]
    return json.dumps({key: [one.attempt, one.job, _text(one.lost_at), _text(one.noticed_at)] for key, one in newest})


def load_requeued(text: str) -> dict[str, Requeued]:
    """Stores of earlier versions hold the attempt alone."""
    found = {}
    for key, value in json.loads(text or "{}").items():
        attempt, job, lost_at, noticed_at = value if isinstance(value, list) else (value, None, None, None)
        found[key] = Requeued(attempt=attempt, job=job, lost_at=_instant(lost_at), noticed_at=_instant(noticed_at))
    return found


def dump_hanging(hanging: Mapping[JobId, None]) -> str:
    return json.dumps(list(hanging)[-KEPT:]) if hanging else ""


def load_hanging(text: str) -> dict[JobId, None]:
    return dict.fromkeys(json.loads(text or "[]"))


def dump_spared(spared: Mapping[str, list[str]]) -> str:
    return json.dumps(dict(list(spared.items())[-KEPT:]))


def load_spared(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(text or "{}")
    return found


def _put_newest(memory: dict[str, _V], key: str, value: _V) -> None:
    memory.pop(key, None)
    memory[key] = value
    if len(memory) > REMEMBERED:
        del memory[next(iter(memory))]


def _text(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text is not None else None
