"""A forge as plan sees it: what may be registered there now, and whose queues are held."""

from datetime import datetime, timedelta

from autoscaler.model import ForgeView
from autoscaler.sightings import Sightings
from autoscaler.spi import Forge

HOLDER_LIFE = timedelta(minutes=30)


def forge_view(forge: Forge, seen: Sightings, now: datetime, *, is_healthy: bool) -> ForgeView:
    """A forge as of now. The scarcest of its registration budgets counts."""
    budgets = [budget for budget in forge.budgets() if budget.family == "registration"]
    holders = {
        (scope, labels)
        for (holder_forge, scope, labels), (_, refreshed) in seen.holders.items()
        if holder_forge == forge.name and refreshed + HOLDER_LIFE > now
    }
    return ForgeView(
        name=forge.name,
        traits=forge.traits,
        is_healthy=is_healthy,
        registrations_left=min((budget.remaining for budget in budgets), default=1e9),
        registrations_per_s=min((budget.refill_per_s for budget in budgets), default=1e9),
        holders=frozenset(holders),
    )
