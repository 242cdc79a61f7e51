"""What was observed or tried and is no row: kept in memory only, and learned anew after a restart.

Shared by observe, which fills it from facts, and apply, which notes what its calls came to. Nothing here may be needed
for correctness after a restart: that belongs into rows.
"""

from dataclasses import dataclass, field
from datetime import datetime

from autoscaler.model import Cooldown, EndReason, OrphanInstance, OrphanRunner
from autoscaler.spi import (
    CapacityPool,
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


@dataclass(slots=True)
class Sightings:
    """See the module docstring."""

    complete: set[str] = field(default_factory=set)
    absences: dict[InstanceId, int] = field(default_factory=dict)
    orphan_instances: dict[tuple[ProviderName, ProviderId], OrphanInstance] = field(default_factory=dict)
    orphan_runners: dict[tuple[ForgeName, RunnerId], OrphanRunner] = field(default_factory=dict)
    cooldowns: dict[CapacityPool, Cooldown] = field(default_factory=dict)
    offerings: dict[PoolName, tuple[Offering, ...]] = field(default_factory=dict)
    held_back: dict[PoolName, str] = field(default_factory=dict)
    sealed: set[InstanceId] = field(default_factory=set)
    asking: set[InstanceId] = field(default_factory=set)
    disputed: set[InstanceId] = field(default_factory=set)
    ending: dict[InstanceId, str] = field(default_factory=dict)
    holders: dict[tuple[ForgeName, Scope, Labels], tuple[str, datetime]] = field(default_factory=dict)
    """Queue holders by demand: their runner name and when they were refreshed."""
    retry_after: dict[str, datetime] = field(default_factory=dict)
    releasing: dict[InstanceId, tuple[EndReason, str]] = field(default_factory=dict)
    """Machines whose runner was asked to be let go and may be sealed already: they serve nobody any more."""
    requeued: dict[tuple[ForgeName, str, str, str], int] = field(default_factory=dict)
    """Attempts made by jobs whose requeue was accepted and whose successor has not been seen yet, by
    (forge, repo, run, name)."""

    def forget(self, instance: InstanceId) -> None:
        for remembered in (self.sealed, self.asking, self.disputed):
            remembered.discard(instance)
        self.absences.pop(instance, None)
        self.ending.pop(instance, None)
        self.releasing.pop(instance, None)
