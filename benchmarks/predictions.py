"""How good predicted breaches are: what was said of each job when it was first seen against whether it started in time,
over days that differ in what makes jobs late. The baseline says the same of every job: the share that was late."""

import asyncio
import math
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from benchmarks.figures import Figure, at_most, shown
from benchmarks.predictions_world import Day, Weather

NAME = "predictions"
JOBS = 20_400
SEED = 1
CLOSE_POINTS = 3.0
LARGE_SHARE = 0.05
"""A tenth of the predictions is judged when it holds so many of the jobs."""
TENTHS = 10

DAYS = (
    Weather(name="target about a boot", runs_per_s=0.03, burst_jobs=40),
    Weather(name="slow boots", runs_per_s=0.05, target_s=75, slow=0.05, burst_jobs=80),
    Weather(name="quick boots", boot_s=28, boot_sigma=0.35, slow=0.1, silent=0.01, target_s=45, burst_jobs=60),
    Weather(name="spot refuses and runs dry", dry_share=0.4, refused=0.2, target_s=90, burst_jobs=30, boot_sigma=0.3),
    Weather(name="a cap binds", most=25, target_s=180, burst_jobs=40, runs_per_s=0.022),
    Weather(name="registrations are scarce", mint_per_s=0.5, burst_jobs=100, target_s=120),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was predicted of one job and what came."""

    breach: float
    is_late: bool


async def run(*, is_quick: bool) -> list[Figure]:
    """predicted breaches against what happened, over six days with refusals, slow boots, bursts, caps and budgets"""
    jobs = JOBS // (5 if is_quick else 1) // len(DAYS)
    found: dict[str, list[Outcome]] = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        pending = {pool.submit(live, number, jobs, SEED): day for number, day in enumerate(DAYS)}
        for future in as_completed(pending):
            name = pending[future].name
            found[name] = future.result()
            print(f"{NAME}: {name}: {len(found[name])} jobs", file=sys.stderr, flush=True)
    every = [one for day in DAYS for one in found[day.name]]
    return [
        *(_of_day(day.name, found[day.name]) for day in DAYS),
        shown(NAME, "simulated jobs", f"{len(every):,}"),
        at_most(
            NAME,
            "Brier score, all",
            brier(every),
            base_rate_brier(every),
            "",
            baseline=f"base rate {late_share(every):.3f} for every job: {base_rate_brier(every):.4f}",
        ),
        *_reliability(every),
    ]


def live(number: int, jobs: int, seed: int) -> list[Outcome]:
    """One day, in a process of its own."""
    weather = DAYS[number]
    day = asyncio.run(Day(weather, jobs=jobs, seed=seed).live())
    return [Outcome(breach=one.breach, is_late=one.waited_s > weather.target_s) for one in day.told]


def _of_day(name: str, outcomes: Sequence[Outcome]) -> Figure:
    baseline = f"base rate {late_share(outcomes):.3f}: {base_rate_brier(outcomes):.4f}"
    return shown(NAME, f"Brier score, {name}", f"{brier(outcomes):.4f}", baseline=baseline)


def _reliability(outcomes: Sequence[Outcome]) -> list[Figure]:
    figures: list[Figure] = []
    for tenth in range(TENTHS):
        members = [one for one in outcomes if min(TENTHS - 1, int(one.breach * TENTHS)) == tenth]
        if not members:
            continue
        predicted = math.fsum(one.breach for one in members) / len(members)
        observed, share = late_share(members), len(members) / len(outcomes)
        what = f"breach {tenth / TENTHS:.1f} to {(tenth + 1) / TENTHS:.1f}: {len(members):,} jobs, {share:.1%}"
        said = f"predicted {predicted:.3f}, observed {observed:.3f}"
        points = abs(observed - predicted) * 100
        if share >= LARGE_SHARE:
            figures.append(at_most(NAME, what, points, CLOSE_POINTS, "points", baseline=said))
        else:
            figures.append(shown(NAME, what, f"{points:.2g} points", baseline=said))
    return figures


def brier(outcomes: Sequence[Outcome]) -> float:
    return math.fsum((one.breach - one.is_late) ** 2 for one in outcomes) / len(outcomes)


def late_share(outcomes: Sequence[Outcome]) -> float:
    return sum(one.is_late for one in outcomes) / len(outcomes)


def base_rate_brier(outcomes: Sequence[Outcome]) -> float:
    """What the same share said of every job comes to, chosen with hindsight."""
    share = late_share(outcomes)
    return share * (1 - share)
