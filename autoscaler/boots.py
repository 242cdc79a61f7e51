"""How long machines take from the decision to launch them until their runner can take a job, as a distribution.

Pure. What was measured (`Snapshot.arrivals`) beats what is assumed: a lognormal prior stands in until there are
ENOUGH samples, and is worth nothing from then on. Each sample is spread a little in proportion to itself (a kernel in
logarithms), and a thin tail beyond all of them says that the next machine may be slower than any so far. All answers
come from one table per distribution, so that a tick may ask thousands of times.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from autoscaler.model import Arrivals, Pool
from autoscaler.spi import PoolName, ProviderName

PRIOR_MEDIAN_S = 60.0
PRIOR_SIGMA = 0.35
"""A cold boot from a baked image: 40 to 110 s (specs, policy 2)."""
ENOUGH = 8
"""So many samples make the prior worthless."""
PLENTY = 100
"""From so many samples on the table's own steps are smooth enough."""
SHARPEST, BLUNTEST = 0.03, 0.3
"""Bounds of how far a sample is spread, as a share of itself."""
TAIL_SIGMA = 1.0

_FIRST, _LAST, _STEP = math.log(0.25), math.log(6 * 3600.0), 0.05
_TABLE = [_FIRST + number * _STEP for number in range(int((_LAST - _FIRST) / _STEP) + 1)]
_SECONDS = [math.exp(at) for at in _TABLE]
_ROOT2 = math.sqrt(2.0)


class Boots:
    """One distribution. `weight` is how many samples it rests on: the fewer, the less it is to be believed."""

    __slots__ = ("_by", "weight")

    def __init__(self, by: Sequence[float], *, weight: float) -> None:
        self._by = by
        self.weight = weight

    def by(self, elapsed_s: float) -> float:
        """The share of machines that have come after so many seconds."""
        if elapsed_s <= 0.25:
            return 0.0
        at = (math.log(elapsed_s) - _FIRST) / _STEP
        below = int(at)
        if below >= len(self._by) - 1:
            return self._by[-1]
        low = self._by[below]
        return low + (self._by[below + 1] - low) * (at - below)

    def within(self, seconds: float, *, age_s: float) -> float:
        """The chance that a machine of an age that has not come yet comes within so many seconds."""
        if seconds <= 0.0:
            return 0.0
        gone = self.by(age_s)
        return min(1.0, max(0.0, (self.by(age_s + seconds) - gone) / max(1e-9, 1.0 - gone)))

    def quantile(self, share: float) -> float:
        """After how many seconds this share has come."""
        at = bisect_left(self._by, share)
        if at >= len(self._by):
            return math.exp(_TABLE[-1])
        if at == 0:
            return math.exp(_TABLE[0])
        low, high = self._by[at - 1], self._by[at]
        part = (share - low) / (high - low) if high > low else 1.0
        return math.exp(_TABLE[at - 1] + _STEP * part)


def _share_below(spread: float) -> float:
    return 0.5 * math.erfc(-spread / _ROOT2)


def lognormal(*, median_s: float, sigma: float, weight: float = 20.0) -> Boots:
    """What is assumed where nothing is measured."""
    return Boots(_lognormal(median_s, sigma), weight=weight)


def _lognormal(median_s: float, sigma: float) -> list[float]:
    middle = math.log(median_s)
    return [_share_below((at - middle) / sigma) for at in _TABLE]


def _mixed(parts: Sequence[tuple[float, Sequence[float]]]) -> list[float]:
    total = math.fsum(weight for weight, _ in parts)
    return [math.fsum(weight * by[at] for weight, by in parts) / total for at in range(len(_TABLE))]


PRIOR = lognormal(median_s=PRIOR_MEDIAN_S, sigma=PRIOR_SIGMA, weight=2.0)
"""What is believed before any machine came."""


def boots_of(seconds: Sequence[float], prior: Boots = PRIOR) -> Boots:
    """From samples in ascending order."""
    count = len(seconds)
    if not count:
        return prior
    tail = _lognormal(max(seconds[-1], 1.0) * 1.5, TAIL_SIGMA)
    parts: list[tuple[float, Sequence[float]]] = [(float(count), _kernels(seconds)), (0.5, tail)]
    if count < ENOUGH:
        parts.append((float(ENOUGH - count), prior._by))
    return Boots(_mixed(parts), weight=float(count + 1))


def _kernels(seconds: Sequence[float]) -> list[float]:
    """The mean of the samples' kernels. Far from a sample its kernel is 0 or 1: only those near are asked."""
    count = len(seconds)
    if count >= PLENTY:
        steps = [bisect_left(seconds, at) / count for at in _SECONDS]
        return [
            (before + 2 * here + after) / 4
            for before, here, after in zip([0.0, *steps], steps, [*steps[1:], 1.0], strict=False)
        ]
    logs = [math.log(max(0.25, one)) for one in seconds]
    quarter = logs[(3 * count) // 4] - logs[count // 4]
    width = min(BLUNTEST, max(SHARPEST, 0.4 * quarter * count**-0.2))
    below: list[float] = []
    for at in _TABLE:
        low, high = bisect_left(logs, at - 4 * width), bisect_left(logs, at + 4 * width)
        below.append((low + math.fsum(_share_below((at - one) / width) for one in logs[low:high])) / count)
    return below


# --------------------------------------------------------------------------- a pool's boots


_remembered: dict[tuple[PoolName, ProviderName], tuple[Arrivals, Boots]] = {}
"""By identity of what is never changed: a cache, not a state."""
_REMEMBERED = 1000


def pool_boots(pool: Pool, provider: ProviderName, arrivals: Mapping[tuple[PoolName, ProviderName], Arrivals]) -> Boots:
    """How long a pool's machines take at a provider."""
    key = pool.name, provider
    known = arrivals.get(key)
    if known is None:
        return PRIOR
    found = _remembered.get(key)
    if found is not None and found[0] is known:
        return found[1]
    if len(_remembered) >= _REMEMBERED:
        _remembered.clear()
    boots = boots_of(known.seconds)
    _remembered[key] = known, boots
    return boots


def cold_floor(pool: Pool, arrivals: Mapping[tuple[PoolName, ProviderName], Arrivals]) -> tuple[float, float]:
    """How soon a job starts for which a machine must boot, in seconds: half of them, and 95 of 100. From the provider
    whose machines come soonest."""
    found = [pool_boots(pool, provider, arrivals) for provider in pool.providers] or [PRIOR]
    best = min(found, key=lambda boots: (boots.quantile(0.95), boots.quantile(0.5)))
    return best.quantile(0.5), best.quantile(0.95)
