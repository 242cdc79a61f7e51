"""Part of plan: words that several reasons share."""

import math
from datetime import datetime


def seconds(at: datetime, now: datetime) -> str:
    """The time until an instant, at least a second."""
    return f"{max(1, math.ceil((at - now).total_seconds()))} s"


def without_machine(jobs: int) -> str:
    return "1 queued job has no machine" if jobs == 1 else f"{jobs} queued jobs have no machine"
