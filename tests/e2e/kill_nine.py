"""kill -9 of the daemon at random moments of a burst; run as `python -m tests.e2e.kill_nine [KILLS] [SEED]`.

The demo runs a burst of jobs on both forges and revives its daemon; this program kills each daemon from outside, some
time after it started, until the kills are used up. Then the forges' records, the daemon's store and the provider's
listing are asked for forgotten jobs, jobs served twice, doubled machines and orphans.
"""

import asyncio
import csv
import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autoscaler.sandbox.demo_trace import COLUMNS
from tests.demo_process import PID, DemoProcess, running_demo

BURST_S = 6.0
SHORTEST_LIFE_S, LONGEST_LIFE_S = 0.3, 3.0
"""A daemon needs about a second until it acts, so kills hit start-up and work alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    pid: int
    after_s: float
    happening: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`problems` is empty when nothing was forgotten, doubled or left over."""

    kills: tuple[Kill, ...]
    report: dict[str, Any]
    problems: tuple[str, ...]


async def kill_nine(kills: int, seed: int) -> Outcome:
    """Run the burst with so many kills."""
    dice = random.Random(f"{seed}/kill-nine")
    with TemporaryDirectory(prefix="kill-nine-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        trace, store = folder / "burst.csv", folder / "kept.db"
        jobs = _write_burst(trace, dice, jobs=8 + 2 * kills)
        arguments = ("--jobs", str(trace), "--duration", str(BURST_S), "--store", f"sqlite:///{store}")
        async with running_demo(folder, *arguments) as demo:
            made = await _kill(demo, dice, kills)
            report = await demo.report(timeout_s=120 + 6 * kills)
            code = await demo.process.wait()
        return Outcome(kills=tuple(made), report=report, problems=tuple(_problems(report, store, jobs, code)))


def _write_burst(trace: Path, dice: random.Random, *, jobs: int) -> int:
    """Jobs of one to four seconds, in pairs of which the second needs the first, on both forges."""
    rows = []
    for number in range(jobs):
        pair = number // 2
        forge, repo = (("github", "acme/shop"), ("gitlab", "tools/etl"))[pair % 2]
        needs = f"j{number - 1}" if number % 2 else ""
        at_s = round(pair / (jobs / 2) * BURST_S * 0.8, 2)
        run = f"r{pair}"
        rows.append(
            (at_s, f"j{number}", run, forge, repo, "ci", f"part-{number % 2}", "linux", dice.uniform(1, 4), needs)
        )
    with trace.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return jobs


async def _kill(demo: DemoProcess, dice: random.Random, kills: int) -> list[Kill]:
    """Kill each daemon that comes, after a time of its own. Stops early only if the demo ends."""
    await demo.wait_for(r"jobs \d+ waiting")  # the burst has begun
    made: list[Kill] = []
    seen = 0
    while len(made) < kills and demo.process.returncode is None:
        match = await demo.wait_for(PID.pattern, after=seen)
        seen = next(n for n, line in enumerate(demo.lines) if match[0] in line) + 1
        started, life_s = time.monotonic(), dice.uniform(SHORTEST_LIFE_S, LONGEST_LIFE_S)
        await asyncio.sleep(life_s)  # the moment is the matter here: a daemon is killed wherever it happens to be
        os.kill(int(match[1]), signal.SIGKILL)
        made.append(Kill(pid=int(match[1]), after_s=time.monotonic() - started, happening=_last_progress(demo)))
    return made


def _last_progress(demo: DemoProcess) -> str:
    return next((line for line in reversed(demo.lines) if " running, " in line), "").split(" | ")[0].strip()


def _problems(report: dict[str, Any], store: Path, jobs: int, code: int) -> list[str]:
    found = [
        f"{key} is {report[key]}"
        for key in ("unfinished", "served_twice", "instances_left", "registrations_left", "processes_left")
        if report[key]
    ]
    done = report["jobs"]
    if not done["submitted"] == done["done"] == jobs or done["lost_forever"]:
        found.append(f"{jobs} jobs submitted, and the forges say {done}")
    if done["interrupted"]:
        found.append(f"{done['interrupted']} jobs lost their machines")
    if report["caps_exceeded"]:
        found.append(f"caps were exceeded for {report['caps_exceeded']} s")
    if code:
        found.append(f"the demo ended with code {code}")
    return [*found, *_store_problems(store, jobs)]


def _store_problems(store: Path, jobs: int) -> list[str]:
    """What the daemon's rows say, read with plain SQL: every job once, every machine once, none swept."""
    connection = sqlite3.connect(store)
    try:
        rows = [json.loads(body) for (body,) in connection.execute("SELECT body FROM instances")]
        live = connection.execute("SELECT count(*) FROM instances WHERE live = 1").fetchone()[0]
        known = connection.execute("SELECT count(*) FROM jobs WHERE state = 'done'").fetchone()[0]
        entries = [json.loads(body) for (body,) in connection.execute("SELECT body FROM ledger")]
    finally:
        connection.close()
    found = []
    if live:
        found.append(f"{live} rows of machines still live")
    if known > jobs:
        found.append(f"{known} job rows for {jobs} jobs")
    machines = Counter(row["provider_id"] for row in rows if row.get("provider_id"))
    found.extend(f"{count} rows for machine {machine}" for machine, count in machines.items() if count > 1)
    served = Counter(row["job"] for row in rows if row.get("job"))
    found.extend(f"{count} machines ran {job}" for job, count in served.items() if count > 1)
    swept = [
        entry["subject"] for entry in entries if entry["action"] == "sweep" and entry["subject"].startswith("local-")
    ]
    found.extend(f"machine {subject} was an orphan" for subject in swept)
    return found


def table(outcome: Outcome) -> str:
    """The kills and what came of them."""
    lines = [f"{'#':>3}  {'pid':>7}  {'alive':>6}  what went on"]
    lines += [
        f"{number:3}  {kill.pid:7}  {kill.after_s:5.2f}s  {kill.happening}"
        for number, kill in enumerate(outcome.kills, start=1)
    ]
    report = outcome.report
    jobs, wait = report["jobs"], report["wait_s"]
    lines += [
        "",
        f"{len(outcome.kills)} kills; {jobs['done']} of {jobs['submitted']} jobs done, {report['served_twice']} served "
        f"twice, {jobs['lost_forever']} lost; {report['launches']['spot']} machines launched, "
        f"{report['instances_left']} left; wait p50 {wait['p50']:.1f} s, p99 {wait['p99']:.1f} s; "
        f"{report['wall_s']:.0f} s in all",
        *(f"PROBLEM: {problem}" for problem in outcome.problems),
    ]
    return "\n".join(lines)


def main() -> int:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"{kills} kills, seed {seed}", flush=True)
    outcome = asyncio.run(kill_nine(kills, seed))
    print(table(outcome))
    return 1 if outcome.problems or len(outcome.kills) < kills else 0


if __name__ == "__main__":
    sys.exit(main())
