"""The client's side of a game day: follow it until it is over, tell the progress, say what it cost.

Talks through the calls that it is given; a daemon that is away for a while (it may be what the game day is about) is
asked again.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from autoscaler.client_text import clean

POLL_S = 1.0
_MANY = 20
"""Jobs that are told one by one."""

Document = dict[str, Any]


async def follow(
    report: Document,
    read: Callable[[], Awaitable[Document]],
    *,
    wait_s: float,
    away: type[Exception],
) -> Document:
    """The last report of a game day: when it is over, or when `wait_s` are. `read` raises `away` while nobody
    answers."""
    until, told = time.monotonic() + wait_s, ""
    while True:
        line = progress_text(report)
        if line != told:
            print(line, file=sys.stderr, flush=True)
            told = line
        if report["over"] or time.monotonic() >= until:
            return report
        await asyncio.sleep(POLL_S)
        try:
            report = await read()
        except away as error:
            line = f"the daemon does not answer, asked again: {str(error).splitlines()[0]}"
            if line != told:
                print(line, file=sys.stderr, flush=True)
                told = line


def progress_text(report: Mapping[str, Any]) -> str:
    """One line: how far it is."""
    jobs, machines = report["jobs"], len(report["machines"])
    words = [f"{report['taken']} of {machines} machines taken"]
    if report["spared"]:
        words.append(f"{report['spared']} ended before")
    words.append(f"{jobs['lost']} jobs lost")
    words.append(f"{jobs['running_again']} running again")
    if waiting := jobs["requeued"] - jobs["running_again"] + jobs["open"]:
        words.append(f"{waiting} on their way")
    return f"{report['id']}: {', '.join(words)}"


def report_text(report: Mapping[str, Any]) -> str:
    """What it cost, for people."""
    jobs = report["jobs"]
    how = "with notice" if report["announced"] else "without notice"
    lines = [
        f"game day {report['id']}: {len(report['machines'])} of {report['candidates']} machines of pool "
        f"{clean(report['pool'])}, {how}, asked for by {clean(report['actor'])}"
    ]
    if report["detail"]:
        lines.append(f"  {report['state']}: {clean(report['detail'])}")
    if not report["machines"]:
        return "\n".join(lines)
    lines += [
        f"  machines       {report['taken']} taken, {report['spared']} ended before, {report['going']} still up",
        f"  jobs           {jobs['hit']} on them: {jobs['kept']} ended in time, {jobs['running']} still run, "
        f"{jobs['lost']} lost",
        f"  lost           {jobs['requeued']} requeued, {jobs['opted_out']} opted out, {jobs['abandoned']} abandoned, "
        f"{jobs['late_success']} late successes, {jobs['open']} open",
        f"  running again  {_times(report)}",
        f"  lost work      ${report['lost_work_usd']:.4f}",
    ]
    hit = [one for one in report["hit"] if one["outcome"] != "kept"]
    for one in hit[:_MANY]:
        after = f", running again after {one['running_again_s']:.1f} s" if one["running_again_s"] is not None else ""
        lines.append(f"    {clean(one['job'])} {clean(one['name'])} ({clean(one['repo'])}): {one['outcome']}{after}")
    if len(hit) > _MANY:
        lines.append(f"    and {len(hit) - _MANY} more: see --json")
    if not report["over"]:
        lines.append(f"  not over yet: GET /api/v1/chaos/{report['id']} tells the rest")
    return "\n".join(lines)


def _times(report: Mapping[str, Any]) -> str:
    jobs, after = report["jobs"], report["running_again_s"]
    if after["max"] is None:
        return f"none of {jobs['requeued']}"
    return (
        f"{jobs['running_again']} of {jobs['requeued']}, after {after['p50']:.1f} s (p50), {after['p95']:.1f} s (p95), "
        f"{after['max']:.1f} s at most"
    )


def has_failed(report: Mapping[str, Any]) -> bool:
    """Whether no cloud took the order, or it is not over in the time there was."""
    return report["state"] == "failed" or not report["over"]
