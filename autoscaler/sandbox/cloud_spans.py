"""Lengths of time that chance decides, as the sandbox's clouds and world files give them.

Pure values; chance comes from the caller's dice.
"""

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Lognormal:
    """A lognormal length of time, cut at both ends."""

    median_s: float
    sigma: float
    min_s: float
    max_s: float


Span = tuple[float, float] | Lognormal
"""A length of time in seconds: uniform between two, or lognormal."""


def limits(span: Span) -> tuple[float, float]:
    """The shortest and the longest that it can be."""
    return (span.min_s, span.max_s) if isinstance(span, Lognormal) else span


def faster(span: Span, speed: float) -> Span:
    """The same where time runs `speed` times as fast."""
    if isinstance(span, Lognormal):
        shorter = {"median_s": span.median_s / speed, "min_s": span.min_s / speed, "max_s": span.max_s / speed}
        return Lognormal(sigma=span.sigma, **shorter)
    return span[0] / speed, span[1] / speed


def drawn(span: Span, dice: random.Random) -> float:
    """One length of time out of a span."""
    if isinstance(span, Lognormal):
        return min(span.max_s, max(span.min_s, dice.lognormvariate(math.log(span.median_s), span.sigma)))
    return dice.uniform(*span)
