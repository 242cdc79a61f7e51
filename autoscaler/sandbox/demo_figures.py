"""Figures of the demo's report. Pure."""

import math
from collections.abc import Sequence


def quantile(values: Sequence[float], percent: int) -> float:
    """Nearest rank of sorted values; 0 of none."""
    return round(values[math.ceil(percent / 100 * len(values)) - 1], 3) if values else 0.0
