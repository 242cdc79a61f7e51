"""Part of plan: when a forge will have registered runners for machines that come, as its rate budget allows.

Pure. A budget of registrations grows by so many a second up to what it holds in a minute; machines draw on it as they
come. While they boot a full budget does not grow, so that what counts is when they come, not when they were asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass

from autoscaler.model import ForgeView

FULL_S = 60.0
"""Budgets are counted by the minute: a full one holds what it grows by in so long."""
STEP_S = 1.0
STEPS = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Minting:
    """By second from now: how many machines are registered, and by how many registrations the budget has grown."""

    served: tuple[float, ...]
    grown: tuple[float, ...]
    per_s: float

    def served_s(self, count: float) -> float:
        """When so many are registered."""
        return _when(self.served, count, self.per_s)

    def grown_s(self, count: float) -> float:
        """When the budget has grown by so many."""
        return _when(self.grown, count, self.per_s)


def minting(view: ForgeView, arrived: Callable[[float], float]) -> Minting:
    """`arrived` is how many machines are expected to have come after so many seconds."""
    full = max(view.registrations_left, FULL_S * view.registrations_per_s)
    left, done, grown_by = view.registrations_left, 0.0, 0.0
    served, grown = [0.0], [0.0]
    for step in range(1, STEPS + 1):
        more = min(view.registrations_per_s * STEP_S, full - left)
        left, grown_by = left + more, grown_by + more
        taken = min(left, max(0.0, arrived(step * STEP_S) - done))
        left, done = left - taken, done + taken
        served.append(done)
        grown.append(grown_by)
    return Minting(served=tuple(served), grown=tuple(grown), per_s=view.registrations_per_s)


def _when(counts: tuple[float, ...], count: float, per_s: float) -> float:
    if count <= 0:
        return 0.0
    low, high = 0, len(counts) - 1
    if counts[high] < count:
        return high * STEP_S + (count - counts[high]) / max(1e-3, per_s)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if counts[middle] >= count else (middle + 1, high)
    return low * STEP_S
