"""What the demo shows while it runs: a live region on a terminal, plain lines elsewhere, always on stderr.

Numbers of jobs come from the forges themselves; waits, machines and what just happened from the daemon's admin API,
and are said to be missing while the daemon is down.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from autoscaler.sandbox.demo_daemon import DaemonChild
from autoscaler.sandbox.demo_forges import Tally

LIVE_S, PLAIN_S = 0.5, 5.0
HAPPENINGS = 5
_BOOTING = ("requested", "launched", "starting")
_WORKING = ("busy", "draining")
_GOING = ("terminating", "stopping")
Document = Mapping[str, Any]


class Screen:
    """Lines that stay, and on a terminal a region below them that is drawn anew."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._drawn = 0
        self.is_live = out.isatty()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._erase()
        print("\n".join(_printable(line) for line in text.split("\n")), file=self._out, flush=True)

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the live region."""
        self._erase()
        size = shutil.get_terminal_size()
        shown = [_printable(line)[: max(20, size.columns - 1)] for line in lines[: max(3, size.lines - 1)]]
        self._out.write("".join(f"{line}\n" for line in shown))
        self._out.flush()
        self._drawn = len(shown)

    def _erase(self) -> None:
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}A\r\x1b[J")
            self._drawn = 0


def _printable(text: str) -> str:
    """Names come from traces and repos: nothing in them may steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


class Progress:
    """Shows how the demo goes until cancelled."""

    def __init__(self, screen: Screen, daemon: DaemonChild, *, duration_s: float, tally: Callable[[], Tally]) -> None:
        self._screen = screen
        self._daemon = daemon
        self._duration_s = duration_s
        self._tally = tally
        self._announced: set[str] = set()

    async def run(self) -> None:
        started = time.monotonic()
        while True:
            status = await self._daemon.ask("/api/v1/status")
            await self._announce_unserved(status)
            passed_s = time.monotonic() - started
            if self._screen.is_live:
                ledger = await self._daemon.ask(f"/api/v1/ledger?limit={HAPPENINGS}")
                self._screen.draw(self._region(passed_s, status, ledger))
            else:
                self._screen.say(self._line(passed_s, status))
            await asyncio.sleep(LIVE_S if self._screen.is_live else PLAIN_S)

    async def _announce_unserved(self, status: Document | None) -> None:
        """Say once of each job that no pool serves what is missing."""
        if status is None or status["unserved"] == 0:
            return
        answer = await self._daemon.ask("/api/v1/jobs?state=queued")
        for job in answer["jobs"] if answer is not None else ():
            if job["pool"] is None and job["id"] not in self._announced:
                self._announced.add(job["id"])
                self._screen.say(f"nobody serves {job['name']} of {job['repo']}: {job['unserved']}")

    def _line(self, passed_s: float, status: Document | None) -> str:
        parts = [f"{passed_s:4.0f} s  {self._jobs_text()}"]
        if status is None:
            return f"{parts[0]} | the daemon does not answer"
        for pool in status["pools"]:
            parts.append(f"{pool['name']}: {pool['queued']} waiting, {_machines_text(pool['instances'])}")
        return " | ".join(parts)

    def _jobs_text(self) -> str:
        tally = self._tally()
        held = f", {tally.held} held by needs" if tally.held else ""
        return f"jobs {tally.waiting} waiting, {tally.running} running, {tally.ended} done{held}"

    def _region(self, passed_s: float, status: Document | None, ledger: Document | None) -> list[str]:
        until = (
            f"new jobs until {self._duration_s:.0f} s" if passed_s < self._duration_s else "finishing what is queued"
        )
        killed = f", killed {self._daemon.crashes} times" if self._daemon.crashes else ""
        daemon = f"daemon {self._daemon.pid}{killed}" if self._daemon.pid else f"daemon down{killed}"
        lines = ["", f"{passed_s:4.0f} s  {until}   {self._jobs_text()}   {daemon}"]
        if status is None:
            return [*lines, "      the daemon does not answer; machines and jobs go on"]
        for pool in status["pools"]:
            lines.append(_pool_line(pool))
        if status["unserved"]:
            lines.append(f"  {'(no pool)':18}{status['unserved']:3} waiting, and nobody will serve them")
        lines.extend(
            f"  {condition['name']}: {condition['detail']}"
            for condition in status["conditions"]
            if not condition["well"]
        )
        if ledger is not None and ledger["ledger"]:
            lines.append("what just happened")
            lines.extend(
                f"  {entry['at'][11:19]}  {entry['action']:10} {entry['pool']:14} {entry['reason']}"
                for entry in ledger["ledger"]
            )
        return lines


def _pool_line(pool: Document) -> str:
    waiting = f"{pool['queued']:3} waiting"
    if pool["queued"]:
        mark = "!" if pool["oldest_wait_s"] > pool["target_s"] else " "
        waiting += f", oldest {pool['oldest_wait_s']:4.1f} s of {pool['target_s']:.0f} s{mark}"
    return f"  {pool['name']:18}{waiting:38}{pool['running']:3} running   {_machines_text(pool['instances'])}"


def _machines_text(by_state: Mapping[str, int]) -> str:
    """Machines by what they are to a reader: booting, ready for a job, busy, going."""
    booting = sum(by_state.get(state, 0) for state in _BOOTING)
    busy = sum(by_state.get(state, 0) for state in _WORKING)
    going = sum(by_state.get(state, 0) for state in _GOING)
    ready = sum(by_state.values()) - booting - busy - going
    parts = [f"{count} {word}" for count, word in ((booting, "booting"), (ready, "ready"), (busy, "busy")) if count]
    if going:
        parts.append(f"{going} ending")
    return f"{sum(by_state.values())} machines" + (f" ({', '.join(parts)})" if parts else "")


def _recovery_lines(recovery: Mapping[str, Document]) -> list[str]:
    """How soon lost work ran again, from when its forge let it."""
    return [
        f"  back         {forge}, {kind}: p50 {times['p50']:.1f} s, p95 {times['p95']:.1f} s ({times['count']} jobs)"
        for forge, kinds in recovery.items()
        for kind, times in kinds.items()
        if times["count"]
    ]


def summary_text(report: Document) -> str:
    """The report for people."""
    jobs, wait, cost, launched = report["jobs"], report["wait_s"], report["cost_usd"], report["launches"]
    lines = ["", "What happened"]
    if "file" in (world := report["world"]):
        lines.append(f"  world        {world['file']}, {world['speed']:g}x as fast")
    trace = report["world"].get("trace")
    if trace is not None:
        lines.append(
            f"  replayed     {trace['replayed']} of the trace's {trace['jobs']} jobs, {trace['speed']:g}x as fast"
        )
    for kind, groups in (("", report["by_forge"]), ("pool ", report["by_pool"])):
        for name, counts in groups.items():
            shown = "(no pool)" if name == "-" else name
            lines.append(f"  {kind + shown:28}{counts['done']:4} of {counts['submitted']} jobs done")
    fate = "" if report["was_stopped"] else "; a person cancelled it"
    for job in report["unserved"]:
        lines.append(f"  unserved     {job['name']} of {job['repo']}: {job['reason']}{fate}")
    ratio = "" if report["cost_ratio"] is None else f", {report['cost_ratio']:.2f} of on-demand for the jobs alone"
    lines += [
        f"  losses       {jobs['interrupted']} machines lost under a job: {jobs['requeued']} requeued, "
        f"{jobs['opted_out']} opted out, {jobs['abandoned']} abandoned, {jobs['late_success']} late successes; "
        f"{jobs['lost_forever']} lost forever, {report['served_twice']} served twice",
        *_recovery_lines(report["recovery_s"]),
        f"  queue wait   p50 {wait['p50']:.1f} s, p95 {wait['p95']:.1f} s (target {wait['target']:.0f} s, "
        f"{wait['share_over_target']:.0%} over it)",
        f"  machines     {launched['spot'] + launched['on_demand']} launched, {report['instances_peak']} at a time, "
        f"{report['instances_left']} left; {report['registrations_left']} registrations, "
        f"{report['processes_left']} processes left",
        f"  cost         ${cost['total']:.4f} (jobs {cost['job']:.4f}, boot {cost['boot']:.4f}, "
        f"idle {cost['idle']:.4f}){ratio}",
        f"  decisions    {report['decisions']['plans']} plans, p50 {report['decisions']['plan_ms_p50']:.2f} ms, "
        f"p99 {report['decisions']['plan_ms_p99']:.2f} ms",
    ]
    if report["crashes"]:
        lines.append(f"  the daemon was killed {report['crashes']} times and went on from its store")
    return "\n".join(_printable(line) for line in lines)
