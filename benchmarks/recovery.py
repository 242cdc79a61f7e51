"""From a lost machine to its job running again elsewhere: announced, unannounced, fifty at once.

The daemon is the shipped one with the real adapters, the forges are the sandbox's over HTTP, the machines speak the
agent's protocol; their boots are short, and their cloud takes them back. A time of recovery begins when the work was
lost; on GitHub, which runs nothing again while a run goes on, when the last of its jobs that was not lost had ended.
The baseline, of the same run, is the same daemon without its requeues, and somebody who looks for failed jobs at GitLab
every ten seconds and has them run again.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import aiohttp

from benchmarks.figures import Figure, at_least, at_most, percentile, shown
from benchmarks.site import GITLAB_REPO
from benchmarks.stage import Stage, stage, until

NAME = "recovery"
BOOT_S = 3.0
JOB_S = 14.0
NOTICE_S = 8.0
LOOK_EVERY_S = 10.0
"""How often whoever has failed jobs run again by hand looks."""
NO_REQUEUE = "[pool.requeue]\nenabled = false\n"
ENDS_WITHIN_S = 180.0
Attempt = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of one round of reclaims. `at` is its moment, in monotonic seconds."""

    at: float
    machines: int
    launches: Sequence[dict[str, Any]]
    attempts: Sequence[Attempt]
    lost: Mapping[str, float]
    """When the work of each runner was lost, in epoch seconds."""


async def run(*, is_quick: bool) -> list[Figure]:
    """announced and unannounced reclaims until the jobs run again; 50 losses in one second across 20 runs"""
    runs = 4 if is_quick else 10
    by_hand = await _round(runs=0, gitlab_runs=runs, jobs=3, take=2, notice_s=NOTICE_S, is_by_hand=True)
    announced = await _round(runs=runs, gitlab_runs=runs, jobs=3, take=2, notice_s=NOTICE_S)
    unannounced = await _round(runs=runs, gitlab_runs=runs, jobs=3, take=2, notice_s=0.0)
    fifty = await _round(runs=10, gitlab_runs=10, jobs=4, take=5, of_two=True, notice_s=0.0)
    boot_s = percentile(_boots(announced.attempts), 0.5)
    hand = sorted(_recoveries(by_hand, "gitlab"))
    hand_s = percentile(hand, 0.95)
    ours_s = percentile(_recoveries(announced, "gitlab"), 0.95)
    baseline = f"by hand, looking every {LOOK_EVERY_S:g} s: p95 {hand_s:.1f} s, {hand_s / ours_s:.1f} times as long"
    figures = [shown(NAME, "boot: from queued to running on a cold machine, p50", f"{boot_s:.1f} s")]
    for what, one, allowed_s in (("announced", announced, 10.0), ("unannounced", unannounced, 30.0)):
        for forge in ("gitlab", "github"):
            told = baseline if forge == "gitlab" and one is announced else ""
            figures += _recovery_figures(f"{forge}: {what}", one, forge, boot_s + allowed_s, told)
    return [*figures, _replacements(announced), *_all_back(fifty)]


def _recovery_figures(what: str, taken: Taken, forge: str, limit_s: float, baseline: str) -> list[Figure]:
    found = _recoveries(taken, forge)
    lost = len(_lost_attempts(taken, forge))
    p95 = percentile(found, 0.95) if found else float("inf")
    spread = f"p50 {percentile(found, 0.5):.1f} s, most {max(found):.1f} s" if found else "none"
    return [
        at_most(NAME, f"{what}, running again elsewhere, p95", p95, round(limit_s, 1), "s", baseline=baseline),
        shown(NAME, f"{what}, of {lost} lost jobs {len(found)} ran again", spread),
    ]


def _replacements(taken: Taken) -> Figure:
    """GitLab's jobs can come back at once: their replacements are launched at the notice."""
    count = len(_lost_attempts(taken, "gitlab"))
    waits = sorted(one["at"] - taken.at for one in taken.launches if one["pool"] == "data" and one["at"] >= taken.at)
    late = waits[count - 1] if len(waits) >= count else float("inf")
    return at_most(NAME, f"gitlab: notice to the launch of the last of {count} replacements", late, 2, "s")


def _all_back(taken: Taken) -> list[Figure]:
    by_job = _by_job(taken.attempts)
    lost = [attempt for forge in ("gitlab", "github") for attempt in _lost_attempts(taken, forge)]
    allowed = {job: 1 + sum(one["runner"] in taken.lost for one in attempts) for job, attempts in by_job.items()}
    ran = {job: sum(bool(one["runner"]) for one in attempts) for job, attempts in by_job.items()}
    done = sum(attempts[-1]["conclusion"] == "success" for attempts in by_job.values())
    what = f"{taken.machines} machines lost in one second across 20 runs"
    return [
        at_least(NAME, f"{what}: jobs back", sum(ran[_job(one)] > 1 for one in lost), len(lost), "jobs"),
        at_most(NAME, f"{what}: run more often than lost", sum(ran[job] > allowed[job] for job in ran), 0, "jobs"),
        at_least(NAME, f"{what}: done in the end", done, len(by_job), "jobs"),
    ]


# --------------------------------------------------------------------------- what the forges say


def _job(attempt: Attempt) -> tuple[str, Any, str]:
    return attempt["forge"], attempt["run"], attempt["key"]


def _by_job(attempts: Sequence[Attempt]) -> dict[tuple[str, Any, str], list[Attempt]]:
    found: dict[tuple[str, Any, str], list[Attempt]] = defaultdict(list)
    for one in attempts:
        found[_job(one)].append(one)
    return {job: sorted(those, key=lambda one: one["attempt"]) for job, those in found.items()}


def _boots(attempts: Sequence[Attempt]) -> list[float]:
    return [
        one["started_at"] - one["queued_at"]
        for one in attempts
        if one["attempt"] == 1 and one["started_at"] is not None and one["queued_at"] is not None
    ]


def _lost_attempts(taken: Taken, forge: str) -> list[Attempt]:
    return [one for one in taken.attempts if one["forge"] == forge and one["runner"] in taken.lost]


def _recoveries(taken: Taken, forge: str) -> list[float]:
    """Seconds from the loss, or from when the run allowed it, until the job ran again."""
    kept_until: dict[tuple[Any, int], float] = defaultdict(float)
    for one in taken.attempts:
        if one["runner"] not in taken.lost and one["finished_at"] is not None and one["forge"] == "github" == forge:
            run = one["run"], one["attempt"]
            kept_until[run] = max(kept_until[run], one["finished_at"])
    found = []
    for attempts in _by_job(taken.attempts).values():
        for lost, again in pairwise(attempts):
            if lost["forge"] == forge and lost["runner"] in taken.lost and again["started_at"] is not None:
                allowed_at = max(taken.lost[lost["runner"]], kept_until.get((lost["run"], lost["attempt"]), 0.0))
                found.append(max(0.0, again["started_at"] - allowed_at))
    return found


# --------------------------------------------------------------------------- one round


async def _round(
    *,
    runs: int,
    gitlab_runs: int,
    jobs: int,
    take: int,
    notice_s: float,
    of_two: bool = False,
    is_by_hand: bool = False,
) -> Taken:
    """Start runs on both forges, take machines of each run while all run, and let everything come to its end. `take` is
    how many of each run, or with `of_two` of two runs together."""
    count = (runs + gitlab_runs) * jobs
    async with (
        stage(
            lifted=True,
            is_tapped=False,
            forges_module="recovery_forges_child",
            forges_options={"boot_s": BOOT_S},
            daemon_module="recovery_daemon_child",
            pool_lines=NO_REQUEUE if is_by_hand else "",
        ) as on,
        on.booting(job_s=JOB_S),
        _by_hand(on) if is_by_hand else contextlib.nullcontext(),
    ):
        for forge, number in (("github", runs), ("gitlab", gitlab_runs)):
            if number:
                await on.forges.call("submit_runs", forge=forge, runs=number, jobs=jobs)

        async def all_busy() -> bool:
            return bool((await on.daemon.call("state"))["jobs"].get("running", 0) >= count)

        await until(all_busy, within_s=90, what=f"{count} jobs running", look_s=0.1)
        chosen = _chosen(await on.forges.call("busy"), take=take, of_two=of_two)
        at = time.monotonic()
        await asyncio.gather(
            on.daemon.call("reclaim", ids=chosen, notice_s=notice_s),
            on.forges.call("take", ids=chosen, notice_s=notice_s),
        )
        await on.forges_until(
            lambda state: state["succeeded"] == count, within_s=ENDS_WITHIN_S, what="every job succeeded"
        )
        return Taken(
            at=at,
            machines=len(chosen),
            launches=await on.daemon.call("launched", after=0, wait_s=0),
            attempts=await on.forges.call("attempts"),
            lost=await on.forges.call("lost"),
        )


def _chosen(busy: Sequence[tuple[str, str, str]], *, take: int, of_two: bool) -> list[str]:
    """Machines by run: `take` of each run, or of two runs in turn the whole and the half of that."""
    by_run: dict[tuple[str, str], list[str]] = defaultdict(list)
    for id_, forge, run in sorted(busy):
        by_run[forge, run].append(id_)
    found: list[str] = []
    for number, ids in enumerate(by_run.values()):
        share = (take + 1 - number % 2) // 2 if of_two else take
        found += ids[:share]
    return found


@contextlib.asynccontextmanager
async def _by_hand(on: Stage) -> AsyncIterator[None]:
    """Somebody has GitLab's failed jobs run again."""
    project = f"{on.gitlab_url}/api/v4/projects/{quote(GITLAB_REPO, safe='')}/jobs"

    async def look() -> None:
        async with aiohttp.ClientSession(headers={"PRIVATE-TOKEN": on.known.token}) as session:
            retried: set[int] = set()
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                async with session.get(project, params={"scope[]": "failed", "per_page": "100"}) as answer:
                    failed = {int(job["id"]) for job in await answer.json()}
                for id_ in sorted(failed - retried):
                    async with session.post(f"{project.rpartition('/')[0]}/jobs/{id_}/retry") as answer:
                        if answer.status == 201:
                            retried.add(id_)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        outcome = (await asyncio.gather(looking, return_exceptions=True))[0]
        if isinstance(outcome, Exception):
            raise outcome
