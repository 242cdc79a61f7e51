"""What a benchmark found, and the table and JSON that show it."""

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number: what was measured, its target and its baseline in words, and whether the target was met.

    `is_met` is None for numbers that only explain others."""

    benchmark: str
    name: str
    figure: str
    target: str = ""
    baseline: str = ""
    is_met: bool | None = None

    @property
    def verdict(self) -> str:
        return "" if self.is_met is None else "met" if self.is_met else "MISSED"


def at_most(benchmark: str, name: str, value: float, limit: float, unit: str, *, baseline: str = "") -> Figure:
    """A figure whose target is an upper limit."""
    return Figure(
        benchmark=benchmark,
        name=name,
        figure=f"{_short(value)} {unit}",
        target=f"<= {limit:g} {unit}",
        baseline=baseline,
        is_met=value <= limit,
    )


def at_least(benchmark: str, name: str, value: float, limit: float, unit: str, *, baseline: str = "") -> Figure:
    """A figure whose target is a lower limit."""
    return Figure(
        benchmark=benchmark,
        name=name,
        figure=f"{_short(value)} {unit}",
        target=f">= {limit:g} {unit}",
        baseline=baseline,
        is_met=value >= limit,
    )


def shown(benchmark: str, name: str, figure: str, *, baseline: str = "") -> Figure:
    """A number without a target."""
    return Figure(benchmark=benchmark, name=name, figure=figure, baseline=baseline)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def table(figures: Sequence[Figure]) -> str:
    """All figures as aligned text."""
    rows = [("benchmark", "what", "figure", "target", "verdict", "baseline of the same run")]
    rows += [(f.benchmark, f.name, f.figure, f.target, f.verdict, f.baseline) for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    judged = [f for f in figures if f.is_met is not None]
    met = sum(f.is_met is True for f in judged)
    return "\n".join([*lines, "", f"{met} of {len(judged)} targets met. {surroundings()}"])


def as_json(figures: Sequence[Figure]) -> str:
    """All figures as one JSON document."""
    return json.dumps({"surroundings": surroundings(), "figures": [asdict(f) for f in figures]}, indent=2)


def surroundings() -> str:
    """What the absolute numbers depend on."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load averages {load}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
