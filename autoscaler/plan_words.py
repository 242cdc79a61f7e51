"""Part of plan: words that several reasons share."""

import math
from collections.abc import Callable, Mapping
from datetime import datetime

from autoscaler.plan_tick import Purpose


def seconds(at: datetime, now: datetime) -> str:
    """The time until an instant, at least a second."""
    return f"{max(1, math.ceil((at - now).total_seconds()))} s"


def without_machine(jobs: int) -> str:
    return "1 queued job has no machine" if jobs == 1 else f"{jobs} queued jobs have no machine"


def wanted(counts: Mapping[Purpose, int], *, least: int) -> str:
    """What machines are launched for: "3 queued jobs have no machine, 2 jobs are foreseen"."""
    parts = [say(count) for purpose, say in _WANTED.items() if (count := counts.get(purpose, 0))]
    return ", ".join(parts) or f"min = {least}"


_WANTED: Mapping[Purpose, Callable[[int], str]] = {
    Purpose.JOB: without_machine,
    Purpose.REPLACEMENT: lambda count: (
        "1 lost job will be queued again" if count == 1 else f"{count} lost jobs will be queued again"
    ),
    Purpose.FORESEEN: lambda count: "1 job is foreseen" if count == 1 else f"{count} jobs are foreseen",
    Purpose.RACE: lambda count: "1 machine is late" if count == 1 else f"{count} machines are late",
}
