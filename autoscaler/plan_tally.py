"""Part of plan: how many of many machines have come by some instant, as a distribution.

Pure. Machines come independently, each group with one chance, so that their number is a sum of binomials; what is not
known yet (jobs still to come bring machines along) adds a count of its own. Exact where few are undecided, and a normal
approximation that keeps the skewness (Volkova 1996) where many are. The chances themselves are estimates: the answer is
averaged over how far they may be off, all groups together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_NODES = ((-math.sqrt(3.0), 1 / 6), (0.0, 2 / 3), (math.sqrt(3.0), 1 / 6))
"""Gauss-Hermite: exact for polynomials up to the fifth degree."""
_CERTAIN = ((0.0, 1.0),)
_SURE = 250.0
"""From so many samples on, how far a chance may be off makes no difference."""
_FEW = 5.0
"""Up to this variance the number is worked out exactly, within ..."""
_WIDTH = 40
"""... so many on either side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """So many machines with the chance to have come; `weight` is how many samples that chance rests on."""

    count: int
    chance: float
    weight: float


class Tally:
    """The number that has come. `extra` and `extra_variance` are of what comes along."""

    def __init__(self, parts: Sequence[Part], *, extra: float = 0.0, extra_variance: float = 0.0) -> None:
        self._nodes = [
            (weight, _number([(one.count, _moved(one, by)) for one in parts], extra, extra_variance))
            for by, weight in (_NODES if any(one.weight < _SURE for one in parts) else _CERTAIN)
        ]

    def at_least(self, count: int) -> float:
        if count <= 0:
            return 1.0
        return min(1.0, math.fsum(weight * number.at_least(count) for weight, number in self._nodes))


def _moved(part: Part, by: float) -> float:
    """The chance if it is so many standard errors off."""
    chance = part.chance
    if by == 0.0 or not 1e-6 < chance < 1 - 1e-6:
        return chance
    error = min(1.0, 1.0 / math.sqrt(part.weight * chance * (1.0 - chance)))
    return 1.0 / (1.0 + (1.0 - chance) / chance * math.exp(-by * error))


class _Many:
    """By its first three moments."""

    def __init__(self, mean: float, variance: float, third: float) -> None:
        self._mean = mean
        self._deviation = math.sqrt(variance)
        self._skew = third / (variance * self._deviation)

    def at_least(self, count: int) -> float:
        at = (count - 0.5 - self._mean) / self._deviation
        density = math.exp(-at * at / 2) / math.sqrt(2 * math.pi)
        below = 0.5 * math.erfc(-at / math.sqrt(2.0)) + self._skew * (1.0 - at * at) * density / 6
        return min(1.0, max(0.0, 1.0 - below))


class _Few:
    """By its probabilities around what is nearly certain."""

    def __init__(self, base: int, missing: Sequence[float], more: Sequence[float]) -> None:
        self._base = base
        size = len(missing) + len(more) - 1
        by_difference = [0.0] * size
        for fewer, chance in enumerate(missing):
            for further, other in enumerate(more):
                by_difference[further - fewer + len(missing) - 1] += chance * other
        self._lowest = 1 - len(missing)
        self._from: list[float] = [0.0] * (size + 1)
        for at in range(size - 1, -1, -1):
            self._from[at] = self._from[at + 1] + by_difference[at]

    def at_least(self, count: int) -> float:
        at = count - self._base - self._lowest
        if at <= 0:
            return 1.0
        return self._from[at] if at < len(self._from) else 0.0


def _number(groups: Sequence[tuple[int, float]], extra: float, extra_variance: float) -> "_Many | _Few":
    variance = math.fsum(count * chance * (1.0 - chance) for count, chance in groups) + extra_variance
    if variance > _FEW:
        mean = math.fsum(count * chance for count, chance in groups) + extra
        third = math.fsum(count * chance * (1.0 - chance) * (1.0 - 2 * chance) for count, chance in groups)
        burst = extra_variance / extra if extra > 0 else 1.0
        return _Many(mean, variance, third + extra_variance * burst)
    base = sum(count for count, chance in groups if chance > 0.5)
    missing, more = [1.0], [1.0]
    for count, chance in groups:
        if chance > 0.5:
            missing = _added(missing, _binomial(count, 1.0 - chance))
        else:
            more = _added(more, _binomial(count, chance))
    if extra > 0.0:
        more = _added(more, _bursts(extra, extra_variance))
    return _Few(base, missing, more)


def _added(one: Sequence[float], other: Sequence[float]) -> list[float]:
    found = [0.0] * min(_WIDTH, len(one) + len(other) - 1)
    for at, chance in enumerate(one):
        if chance > 1e-12:
            for further, share in enumerate(other[: len(found) - at]):
                found[at + further] += chance * share
    while len(found) > 1 and found[-1] < 1e-9:
        found.pop()
    return found


def _binomial(count: int, chance: float) -> list[float]:
    """Its probabilities from 0 on, as far as they matter."""
    if chance <= 0.0:
        return [1.0]
    if chance >= 1.0:
        return [0.0] * min(count, _WIDTH - 1) + [1.0]
    odds, found = chance / (1.0 - chance), [math.exp(count * math.log1p(-chance))]
    for at in range(1, min(count, _WIDTH - 1) + 1):
        found.append(found[-1] * (count - at + 1) / at * odds)
        if found[-1] < 1e-9 and at > count * chance:
            break
    return found


def _bursts(mean: float, variance: float) -> list[float]:
    """Bursts of about the same size, Poisson many."""
    size = max(1, round(variance / mean))
    found = [0.0] * _WIDTH
    chance, expected = math.exp(-mean / size), mean / size
    for number in range(_WIDTH):
        if number * size >= _WIDTH:
            break
        found[number * size] = chance
        chance *= expected / (number + 1)
    return found
