"""What the client commands print for people. Pure: documents of the admin API in, text out.

Calm by intent: aligned columns, no frames, colour only for what needs a look and only at a terminal.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TextIO

from autoscaler.why_words import ago

Document = Mapping[str, Any]

_CONTROL_WORDS = {
    "active": "serves jobs again",
    "paused": "is paused: it launches nothing until it is resumed",
    "draining": "is draining: it launches nothing and lets its idle machines go, until it is resumed",
}


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours, or none: a pipe, `NO_COLOR` and a dumb terminal get plain text."""

    is_coloured: bool

    @classmethod
    def of(cls, stream: TextIO) -> "Palette":
        is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        return cls(stream.isatty() and not is_plain)

    def good(self, text: str) -> str:
        return self._painted("32", text)

    def bad(self, text: str) -> str:
        return self._painted("31;1", text)

    def quiet(self, text: str) -> str:
        return self._painted("2", text)

    def strong(self, text: str) -> str:
        return self._painted("1", text)

    def _painted(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.is_coloured and text else text


def status_text(status: Document, palette: Palette) -> str:
    """Health with remedies, totals, pools, and why anything waits."""
    return "\n".join(_status_lines(status, palette))


def _status_lines(status: Document, palette: Palette) -> Iterator[str]:
    now = instant(status["now"])
    word = palette.good("ready") if status["ready"] else palette.bad("NOT READY")
    yield f"{palette.strong(status['deployment'])}  {word}  {palette.quiet(f'{now:%Y-%m-%d %H:%M:%S} UTC')}"
    for condition in status["conditions"]:
        if condition["well"]:
            continue
        since = ago(now - instant(condition["since"]))
        yield f"  {palette.bad(condition['name'])}  for {since}: {clean(condition['detail'])}"
        if condition["remedy"]:
            yield f"    -> {clean(condition['remedy'])}"
    for trouble in status["troubles"]:
        yield f"  {palette.strong(clean(trouble['target']))}  {clean(trouble['text'])}"
    yield ""
    jobs, caps = status["jobs"], status["caps"]
    unserved = f", {palette.bad(str(status['unserved']))} served by no pool" if status["unserved"] else ""
    yield f"jobs       {jobs['queued']} queued, {jobs['running']} running, {jobs['lost']} lost{unserved}"
    yield f"instances  {status['instances']}{_of(caps['instances'])}"
    cooling = status["cooling"]
    if cooling["capacity_pools"] or cooling["scopes"]:
        scopes = cooling["scopes"]
        quotas = f" and {scopes} {'quota or subnet' if scopes == 1 else 'quotas or subnets'}" if scopes else ""
        yield f"cooling    {cooling['capacity_pools']} capacity pool{'s' * (cooling['capacity_pools'] != 1)}{quotas}"
    yield f"spent      {status['spent_today_usd']:.2f} USD today{_of(caps['usd_per_day'])}"
    yield ""
    yield from _table(_HEADINGS, [_pool_row(pool, palette) for pool in status["pools"]], palette)
    reasons = [reason for pool in status["pools"] for reason in _reasons(pool)]
    if reasons:
        yield ""
        yield from reasons
    if status["unserved"]:
        yield ""
        yield palette.quiet(
            "The status page and /api/v1/jobs list the jobs served by no pool; `why JOB` says what is missing."
        )


_HEADINGS = ("POOL", "QUEUED", "OLDEST", "TARGET", "RUNNING", "INSTANCES", "")


def _pool_row(pool: Document, palette: Palette) -> tuple[tuple[str, str], ...]:
    """Cells as (plain, painted): widths are counted on the plain text."""
    is_late = pool["queued"] > 0 and pool["oldest_wait_s"] > pool["target_s"]
    oldest = ago(timedelta(seconds=pool["oldest_wait_s"])) if pool["queued"] else "-"
    states = ", ".join(f"{count} {state}" for state, count in pool["instances"].items()) or "none"
    control = "" if pool["control"] == "active" else str(pool["control"])
    plain = (pool["name"], str(pool["queued"]), oldest, ago(timedelta(seconds=pool["target_s"])))
    rest = (str(pool["running"]), f"{states} (max {pool['max']})")
    cells = [(cell, cell) for cell in (*plain, *rest)]
    if is_late:
        cells[2] = (oldest, palette.bad(oldest))
    return (*cells, (control, palette.bad(control)))


def _table(headings: Sequence[str], rows: Sequence[tuple[tuple[str, str], ...]], palette: Palette) -> Iterator[str]:
    widths = [
        max(len(title), *(len(row[at][0]) for row in rows)) if rows else len(title) for at, title in enumerate(headings)
    ]
    yield palette.quiet("  ".join(title.ljust(width) for title, width in zip(headings, widths, strict=True)).rstrip())
    for row in rows:
        cells = [painted + " " * (width - len(plain)) for (plain, painted), width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def _reasons(pool: Document) -> Iterator[str]:
    if pool["held_back"]:
        yield f"{pool['name']}: {clean(pool['held_back'])}"
    for blocked in pool["blocked"]:
        jobs = "1 job waits" if blocked["jobs"] == 1 else f"{blocked['jobs']} jobs wait"
        yield f"{pool['name']}: {jobs}: {clean(blocked['reason'])}"


def control_text(control: Document) -> str:
    return f"pool {control['pool']} {_CONTROL_WORDS[control['control']]}"


def clean(text: str) -> str:
    """Text of others (names of jobs, error messages) without what would steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def _of(limit: float | None) -> str:
    return "" if limit is None else f" of {limit:g}"


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
