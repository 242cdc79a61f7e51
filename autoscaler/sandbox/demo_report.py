"""The demo's report: the keys of the simulation report, counted from what the forges and the store say at the end.

Jobs come from the worlds (the forges' own records), machines and money from the daemon's store. A job is lost
forever when it was submitted and is in no terminal state although nothing at its forge holds it back.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoscaler.config import load
from autoscaler.demand import match_pool
from autoscaler.model import Instance, InstanceState, JobState
from autoscaler.rules import rules_of
from autoscaler.sandbox.demo_workload import Submission
from autoscaler.sandbox.github_model import JobRecord
from autoscaler.sandbox.gitlab_model import JobOutcome
from autoscaler.spi import CapacityType, ForgeName, label_set
from autoscaler.store import Store, open_store

EVERYTHING = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInput:
    github: Sequence[JobRecord]
    gitlab: Sequence[JobOutcome]
    submissions: Sequence[Submission]
    config: Path
    store: str
    started: float
    ended: float
    instances_left: int
    instances_peak: int
    faults: Mapping[str, float]
    seed: int
    crashes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One submitted job in the report's terms."""

    forge: str
    pool: str
    target_s: float
    queued: float | None
    started: float | None
    finished: float | None
    is_done: bool
    is_held: bool
    """Never queued because what it needs failed or never ended: its forge does not wait for us."""
    served: int


async def build_report(given: ReportInput) -> dict[str, Any]:
    """The report as a JSON document."""
    rules = rules_of(load(given.config))
    jobs = [*_github_jobs(given, rules), *_gitlab_jobs(given, rules)]
    store = open_store(given.store)
    await store.open()
    try:
        rows = await store.recent_instances(limit=EVERYTHING)
        stored = await store.recent_jobs(limit=EVERYTHING)
        cost, peak = await _cost(store, rows)
    finally:
        await store.aclose()
    states = Counter(job.state for job in stored)
    waits = sorted(job.started - job.queued for job in jobs if job.started is not None and job.queued is not None)
    over = [job for job in jobs if job.started and job.queued and job.started - job.queued > job.target_s]
    return {
        "jobs": _counts(jobs) | {"requeued": states[JobState.REQUEUED], "interrupted": states[JobState.REQUEUED]},
        "by_forge": {name: _counts(group) for name, group in sorted(_grouped(jobs, "forge").items())},
        "by_pool": {name: _counts(group) for name, group in sorted(_grouped(jobs, "pool").items())},
        "wait_s": _quantiles(waits)
        | {
            "mean": round(math.fsum(waits) / len(waits), 3) if waits else 0.0,
            "share_over_target": round(len(over) / len(waits), 4) if waits else 0.0,
            "target": max((job.target_s for job in jobs), default=0.0),
        },
        "cost_usd": cost,
        "launches": {
            "spot": sum(1 for row in rows if row.provider_id is not None and _is_spot(row)),
            "on_demand": sum(1 for row in rows if row.provider_id is not None and not _is_spot(row)),
            "started": 0,
            "refused": sum(1 for row in rows if row.ending == "refused"),
        },
        "instances_peak": max(peak, given.instances_peak),
        "instances_left": given.instances_left,
        "served_twice": sum(1 for job in jobs if job.served > 1),
        "world": {
            "boot_cold_s": [2, 6],
            "job_s": [1, 15],
            "runs": len(given.submissions),
            "seed": given.seed,
        },
        "faults": {**given.faults, "crashes": given.crashes},
        "wall_s": round(given.ended - given.started, 1),
    }


def _github_jobs(given: ReportInput, rules: Any) -> list[_Job]:
    return [
        _job(
            "github",
            record.repo,
            record.labels,
            rules,
            queued=record.first_queued_at,
            started=record.first_started_at,
            finished=record.finished_at,
            is_done=record.conclusion is not None,
            served=record.served,
        )
        for record in given.github
    ]


def _gitlab_jobs(given: ReportInput, rules: Any) -> list[_Job]:
    return [
        _job(
            "gitlab",
            outcome.repo,
            outcome.labels,
            rules,
            queued=outcome.first_pending_at,
            started=outcome.first_started_at,
            finished=outcome.finished_at,
            is_done=outcome.status in ("success", "failed", "canceled", "skipped"),
            served=outcome.served_count,
        )
        for outcome in given.gitlab
    ]


def _job(forge: str, repo: str, labels: Iterable[str], rules: Any, **times: Any) -> _Job:
    match = match_pool(
        forge=ForgeName(forge), repo=repo, labels=label_set(tuple(labels)), run_id="", pools=rules.pools.values()
    )
    pool = rules.pools[match.pool] if match.pool is not None else None
    return _Job(
        forge=forge,
        pool=pool.name if pool is not None else "",
        target_s=pool.target.total_seconds() if pool is not None else 0.0,
        is_held=times["queued"] is None and not times["is_done"],
        **times,
    )


def _grouped(jobs: Sequence[_Job], key: str) -> dict[str, list[_Job]]:
    groups: dict[str, list[_Job]] = defaultdict(list)
    for job in jobs:
        groups[getattr(job, key)].append(job)
    return groups


def _counts(jobs: Sequence[_Job]) -> dict[str, int]:
    done = sum(1 for job in jobs if job.is_done)
    return {
        "submitted": len(jobs),
        "done": done,
        "abandoned": 0,
        "interrupted": 0,
        "requeued": 0,
        "opted_out": 0,
        "late_success": 0,
        "lost_forever": len(jobs) - done,
    }


def _is_spot(row: Instance) -> bool:
    return row.capacity_pool is not None and row.capacity_pool.capacity_type is CapacityType.SPOT


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    """Nearest-rank quantiles of sorted values."""
    if not values:
        return {"p50": 0.0, "p95": 0.0, "p99": 0.0}
    return {
        f"p{share}": round(values[min(len(values) - 1, math.ceil(share / 100 * len(values)) - 1)], 3)
        for share in (50, 95, 99)
    }


async def _cost(store: Store, rows: Sequence[Instance]) -> tuple[dict[str, float], int]:
    """USD by what machines did with their time (boot, idle, job), and the most machines at one time."""
    spent: dict[str, float] = defaultdict(float)
    by_type: dict[str, float] = defaultdict(float)
    edges: list[tuple[float, int]] = []
    for row in rows:
        if row.provider_id is None:
            continue
        moves = await store.instance_moves(row.id)
        for move, following in zip(moves, moves[1:], strict=False):
            seconds = (following.at - move.at).total_seconds()
            usd = seconds * row.price_usd_hour / 3600
            spent[_USE[move.to_state]] += usd
            by_type["spot" if _is_spot(row) else "on_demand"] += usd
        if moves:
            edges.append((moves[0].at.timestamp(), 1))
            if moves[-1].to_state is InstanceState.TERMINATED:
                edges.append((moves[-1].at.timestamp(), -1))
    live = peak = 0
    for _, change in sorted(edges):
        live += change
        peak = max(peak, live)
    uses = {use: round(spent.get(use, 0.0), 6) for use in ("job", "idle", "boot", "lost", "stopped")}
    types = {name: round(by_type.get(name, 0.0), 6) for name in ("spot", "on_demand")}
    return {"total": round(math.fsum(spent.values()), 6), **uses, **types}, peak


_USE = {
    InstanceState.REQUESTED: "boot",
    InstanceState.LAUNCHED: "boot",
    InstanceState.READY: "idle",
    InstanceState.REGISTERING: "idle",
    InstanceState.IDLE: "idle",
    InstanceState.BUSY: "job",
    InstanceState.DRAINING: "job",
    InstanceState.STOPPING: "stopped",
    InstanceState.STOPPED: "stopped",
    InstanceState.STARTING: "boot",
    InstanceState.TERMINATING: "idle",
    InstanceState.TERMINATED: "idle",
}


def summary_text(report: Mapping[str, Any]) -> str:
    """The report for people."""
    jobs, wait, cost, launches = report["jobs"], report["wait_s"], report["cost_usd"], report["launches"]
    lines = ["", "What happened"]
    for name, counts in report["by_forge"].items():
        lines.append(f"  {name:12} {counts['done']:4} of {counts['submitted']} jobs done")
    for name, counts in report["by_pool"].items():
        lines.append(f"  pool {name or '(none)':12} {counts['done']:4} of {counts['submitted']} jobs done")
    lines += [
        f"  lost forever {jobs['lost_forever']}, served twice {report['served_twice']}",
        f"  queue wait   p50 {wait['p50']:.1f} s, p95 {wait['p95']:.1f} s (target {wait['target']:.0f} s, "
        f"{wait['share_over_target']:.0%} over it)",
        f"  machines     {launches['spot'] + launches['on_demand']} launched, {report['instances_peak']} at a time, "
        f"{report['instances_left']} left",
        f"  cost         ${cost['total']:.4f} (jobs {cost['job']:.4f}, boot {cost['boot']:.4f}, idle {cost['idle']:.4f})",
    ]
    if report["faults"].get("crashes"):
        lines.append(f"  the daemon was killed {report['faults']['crashes']} times")
    return "\n".join(lines)
