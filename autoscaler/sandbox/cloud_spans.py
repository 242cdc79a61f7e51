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


def drawn(span: Span, dice: random.Random) -> float:
    """One length of time out of a span."""
    if isinstance(span, Lognormal):
        return min(span.max_s, max(span.min_s, dice.lognormvariate(math.log(span.median_s), span.sigma)))
    return dice.uniform(*span)
