"""Which capacity pools are closed for now, for how long and why.

Pure. A refusal closes its capacity pool, an account limit everything under its scope, the end of credentials or a
throttle a provider. Cooldowns double while refusals follow each other (15 s to 120 s, and to 5 min for what has been
dry for a quarter of an hour) and end by themselves: the next plan tries again. No hysteresis beyond that: measured, it
only costs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from autoscaler.model import Cooldown, Pool, ScopeCooldown, Snapshot, launch_key, throttle_key
from autoscaler.spi import CapacityPool, CapacityScope, ProviderName

FIRST_COOLDOWN = timedelta(seconds=15)
LONGEST_COOLDOWN = timedelta(seconds=120)
STUBBORN_FROM = 10
"""So many failures in a row are about a quarter of an hour."""
STUBBORN_COOLDOWN = timedelta(minutes=5)
BRIEF = 90
"""Characters of a cloud's error in the reason of a launch."""
LONGEST_WAIT = timedelta(seconds=15)
"""A provider that asks for a longer pause is out, as a capacity pool that refused for the first time is."""
LASTING_COOLDOWN = timedelta(hours=1)
"""For what a cloud does not have at all: a machine type that a zone never offers."""


class Closing(StrEnum):
    """Why an offering cannot be used now; the values are labels of the spill metric."""

    REFUSED = "refused"
    QUOTA = "quota"
    FAILING = "failing"
    WAITING = "waiting"
    """Its provider asked for a pause of seconds, or failed once: no reason to go elsewhere for more money."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closure:
    kind: Closing
    until: datetime
    reason: str


def cooled(
    capacity_pool: CapacityPool, *, before: Cooldown | None, now: datetime, reason: str, is_lasting: bool = False
) -> Cooldown:
    """The cooldown after one more refusal. Refusals are in a row when the next one comes within twice the last
    cooldown of its end. One that comes while it still cools was asked for beside the first, and is the same one."""
    if before is not None and now < before.until:
        return before
    failures = _in_a_row(before.until, before.failures, now) if before is not None else 1
    length = LASTING_COOLDOWN if is_lasting else _length(failures)
    return Cooldown(capacity_pool=capacity_pool, until=now + length, failures=failures, reason=reason)


def scope_cooled(
    provider: ProviderName, scope: CapacityScope, *, before: ScopeCooldown | None, now: datetime, reason: str
) -> ScopeCooldown:
    """The same for everything under a scope."""
    if before is not None and now < before.until:
        return before
    failures = _in_a_row(before.until, before.failures, now) if before is not None else 1
    return ScopeCooldown(
        provider=provider, scope=scope, until=now + _length(failures), failures=failures, reason=reason
    )


def is_forgotten(cooldown: Cooldown | ScopeCooldown, now: datetime) -> bool:
    """Whether the next refusal would be a first one again."""
    return now > cooldown.until + 2 * _length(cooldown.failures)


def _in_a_row(until: datetime, failures: int, now: datetime) -> int:
    return failures + 1 if now <= until + 2 * _length(failures) else 1


def _length(failures: int) -> timedelta:
    if failures >= STUBBORN_FROM:
        return STUBBORN_COOLDOWN
    doublings: int = min(failures - 1, 8)
    return min(FIRST_COOLDOWN * (1 << doublings), LONGEST_COOLDOWN)


# --------------------------------------------------------------------------- what is closed in one tick

Place = tuple[str, str, str, str]
"""A capacity pool as plain strings: a tick looks tens of thousands of them up."""


def place_of(capacity_pool: CapacityPool) -> Place:
    return (
        capacity_pool.provider,
        capacity_pool.zone,
        capacity_pool.machine_type,
        capacity_pool.capacity_type.value,
    )


class Closures:
    """Everything that is closed at one instant. Looks each capacity pool up once, whatever the number of pools."""

    def __init__(self, snapshot: Snapshot, now: datetime) -> None:
        self._snapshot = snapshot
        self._now = now
        self._known: dict[Place, Closure | None] = {
            place_of(cooldown.capacity_pool): Closure(
                kind=Closing.REFUSED, until=cooldown.until, reason=cooldown.reason
            )
            for cooldown in snapshot.cooldowns.values()
            if cooldown.until > now
        }
        self._scopes = [cooldown for cooldown in snapshot.scope_cooldowns if cooldown.until > now]

    def of(self, place: Place, capacity_pool: CapacityPool) -> Closure | None:
        """Why a capacity pool is closed; None: it is open. Its provider's pauses are `provider`'s to tell."""
        if not self._scopes:
            return self._known.get(place)
        if place not in self._known:
            self._known[place] = self._by_scope(capacity_pool)
        return self._known[place]

    def _by_scope(self, capacity_pool: CapacityPool) -> Closure | None:
        covering = [
            cooldown
            for cooldown in self._scopes
            if cooldown.provider == capacity_pool.provider and cooldown.scope.covers(capacity_pool)
        ]
        if not covering:
            return None
        last = max(covering, key=lambda cooldown: cooldown.until)
        return Closure(kind=Closing.QUOTA, until=last.until, reason=last.reason)

    def provider(self, pool: Pool, provider: ProviderName) -> Closure | None:
        """Why a provider launches nothing for a pool now."""
        again_at = self._snapshot.retry_after.get(launch_key(pool.name, provider), self._now)
        paused_until = self._snapshot.retry_after.get(throttle_key(provider), self._now)
        if again_at > self._now:
            held = self._snapshot.held_back.get((pool.name, provider))
            kind = Closing.FAILING if held else Closing.WAITING
            return Closure(kind=kind, until=again_at, reason=held or "the last launch failed")
        if paused_until > self._now:
            kind = Closing.WAITING if paused_until <= self._now + LONGEST_WAIT else Closing.FAILING
            return Closure(kind=kind, until=paused_until, reason=f"{provider} asks for fewer calls")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """Why none of several offerings can be used: the closures, and how many are there for nothing else but price."""

    word: str
    total: int
    closures: Sequence[Closure]
    dear: int = 0
    otherwise: "Outage | None" = None
    """Why what stands in for them cannot be used either."""

    def without(self, otherwise: "Outage") -> "Outage":
        """Nothing stands in for them."""
        return replace(self, otherwise=otherwise if otherwise.total else None)

    @property
    def is_waiting(self) -> bool:
        """Some would be asked in seconds: no reason to go elsewhere for more money."""
        return any(closure.kind is Closing.WAITING for closure in self.closures)

    @property
    def first(self) -> Closure:
        return first_of(self.closures)

    @property
    def again_at(self) -> datetime | None:
        later = self.otherwise.closures if self.otherwise is not None else ()
        return min((closure.until for closure in (*self.closures, *later)), default=None)

    @property
    def label(self) -> str:
        """What most of them suffer from, as a metric label."""
        counts: dict[str, int] = {}
        for closure in self.closures:
            counts[closure.kind] = counts.get(closure.kind, 0) + 1
        counts["dear"] = self.dear
        return max(counts, key=lambda kind: counts[kind]) if self.total else "none_fits"

    def __str__(self) -> str:
        return self._said() if self.otherwise is None else f"{self._said()}, and {self.otherwise}"

    def _said(self) -> str:
        if not self.total:
            return f"no {self.word} machine type of its providers fits the shape and the price limit"
        parts = [part for kind, say in _SAYINGS.items() if (part := self._part(kind, say))]
        if self.dear:
            parts.append(f"{self.dear if parts or self.total > 1 else 'it'} would cost more than on_demand")
        pools, are = f"all {self.total} {self.word} capacity pools", "are"
        if self.total == 1:
            pools, are = f"the only {self.word} capacity pool", "is"
        if len(parts) == 1 and not self.dear:
            return f"{pools} {self._only()}"
        return f"{pools} {are} out: {', '.join(parts)}"

    def _part(self, kind: Closing, say: Callable[[int], str]) -> str:
        found = [closure for closure in self.closures if closure.kind is kind]
        return f"{len(found)} {say(len(found))} ({_brief(first_of(found).reason)})" if found else ""

    def _only(self) -> str:
        first = first_of(self.closures)
        return f"{_SAYINGS[first.kind](self.total)}: {_brief(first.reason)}"


def _brief(reason: str) -> str:
    """A cloud's own words go on for lines; the whole of them stands with each cooldown."""
    return reason if len(reason) <= BRIEF else f"{reason[: BRIEF - 3].rsplit(' ', 1)[0]} ..."


def first_of(closures: Sequence[Closure]) -> Closure:
    """The one that ends first."""
    return min(closures, key=lambda closure: (closure.until, closure.reason))


_SAYINGS: Mapping[Closing, Callable[[int], str]] = {
    Closing.REFUSED: lambda count: "refuses" if count == 1 else "refuse",
    Closing.QUOTA: lambda count: "is over a quota" if count == 1 else "are over a quota",
    Closing.FAILING: lambda count: "cannot be asked",
    Closing.WAITING: lambda count: "waits" if count == 1 else "wait",
}
