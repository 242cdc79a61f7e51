"""The demo's report: the keys of the simulation report, counted from what forges and store say at the end. Pure.

    forges' own records -> waits, done, lost forever      the daemon's rows -> losses and what became of them, money

A job is lost forever when it has no terminal state and its forge does not wait for us either: it believes that a
runner works on it, and there is none.
"""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from autoscaler.model import InstanceState, JobState
from autoscaler.sandbox.demo_costs import (
    billed_spans,
    caps_exceeded_s,
    cost_document,
    cost_ratio,
    launches,
    lives,
    lost_s,
    peak,
    shares,
)
from autoscaler.sandbox.demo_decisions import prediction_document, spill_document
from autoscaler.sandbox.demo_figures import quantile
from autoscaler.sandbox.demo_losses import (
    hurt_machines,
    loss_counts,
    losses_missed,
    losses_open,
    recovery_document,
    replacement_document,
    told,
)
from autoscaler.sandbox.demo_records import DemoRecords, JobRecord
from autoscaler.spi import Conclusion

Document = dict[str, Any]


def build_report(records: DemoRecords, *, was_stopped: bool = False) -> Document:
    """The report as a JSON document. `was_stopped`: a person ended it; jobs cut off by that are not lost by us."""
    waits = sorted(wait for job in records.jobs if (wait := job.wait_s) is not None)
    delays = sorted(_delay_s(job) for job in records.jobs if job.wait_s is not None)
    targets = {name: pool.target_s for name, pool in records.pools.items()}
    over_wait = _share_over(records, targets, lambda job: job.wait_s or 0.0)
    over_delay = _share_over(records, targets, _delay_s)
    cost = cost_document(billed_spans(records))
    on_demand_share, wasted_share = shares(records)
    events = event_log(records)
    return {
        "jobs": _counts(records, was_stopped),
        "by_forge": {
            forge: _counts(records, was_stopped, forge=forge) for forge in sorted({job.forge for job in records.jobs})
        },
        "by_pool": {
            pool: _counts(records, was_stopped, pool=pool)
            for pool in sorted({records.pool_name(job) for job in records.jobs})
        },
        "wait_s": {
            **_quantiles(waits),
            "mean": round(math.fsum(waits) / len(waits), 3) if waits else 0.0,
            "share_over_target": over_wait,
            "target": max(targets.values(), default=0.0),
        },
        "delay_s": {**_quantiles(delays), "share_over_target": over_delay},
        "cost_usd": cost,
        "cost_recorded_usd": round(records.recorded_usd, 9),
        "cost_ratio": cost_ratio(records, cost["total"]),
        "on_demand_share": round(on_demand_share, 4),
        "wasted_share": round(wasted_share, 4),
        "launches": launches(records.instances, records.moves),
        "instances_peak": peak(lives(records)),
        "instances_left": records.instances_left,
        **spill_document(records),
        "caps_exceeded": caps_exceeded_s(records),
        "makespan_ratio": makespan_ratio(records.jobs),
        "prediction": prediction_document(records),
        "recovery_s": recovery_document(records),
        "replacement_s": replacement_document(records),
        "interruptions": hurt_machines(records.interruptions),
        **told(records),
        "decisions": {
            "plans": records.decisions.plans,
            "plan_ms_p50": quantile(sorted(records.decisions.plan_ms), 50),
            "plan_ms_p99": quantile(sorted(records.decisions.plan_ms), 99),
        },
        "simulated_s": round(records.ended_at - records.started_at, 3),
        "wall_s": round(records.ended_at - records.started_at, 3),
        "events": len(events),
        "digest": hashlib.sha256("\n".join(events).encode()).hexdigest(),
        "world": dict(records.world),
        "faults": dict(records.faults),
        "crashes": records.crashes,
        "served_twice": served_twice(records),
        "losses_missed": losses_missed(records),
        "losses_open": [] if was_stopped else losses_open(records),
        "unfinished": sum(1 for job in records.jobs if job.conclusion is None),
        "unserved": _unserved(records),
        "registrations_left": records.registrations_left,
        "processes_left": records.processes_left,
        "was_stopped": was_stopped,
    }


def _unserved(records: DemoRecords) -> list[Document]:
    """Jobs that no pool served, with what the daemon said is missing."""
    return [
        {"forge": job.forge, "repo": job.repo, "name": job.name, "labels": list(job.labels), "reason": job.unserved}
        for job in sorted(records.stored_jobs, key=lambda job: (job.first_seen_at, job.id))
        if job.pool is None
    ]


# --------------------------------------------------------------------------- counts


def _counts(records: DemoRecords, was_stopped: bool, *, forge: str = "", pool: str = "") -> dict[str, int]:
    """Every count, of all jobs or of those of a forge or a pool."""

    def belongs(its_forge: str, its_pool: str) -> bool:
        return forge in ("", its_forge) and pool in ("", its_pool)

    jobs = [job for job in records.jobs if belongs(job.forge, records.pool_name(job))]
    rows = [row for row in records.stored_jobs if belongs(row.forge, row.pool or "-")]
    given_up = {row.forge_job_id for row in rows if row.state is JobState.ABANDONED}
    found = Counter(_outcome(job, given_up) for job in jobs)
    return {
        "submitted": len(jobs),
        "done": found["done"],
        **loss_counts(rows),
        "lost_forever": 0 if was_stopped else found["lost_forever"],
    }


def _outcome(job: JobRecord, given_up: set[str]) -> str:
    if job.forge_job_ids and job.forge_job_ids[-1] in given_up:
        return "given_up"
    if job.conclusion is not None:
        return "done"
    return "lost_forever" if job.is_running else "waiting"


def served_twice(records: DemoRecords) -> int:
    """Jobs that more runners took than our requeues explain. A genuine failure rides along, once per requeue, where
    several jobs of its run were lost: a forge runs all failed jobs of a run again, or one."""
    requeued = {(row.forge, row.forge_job_id) for row in records.stored_jobs if row.state is JobState.REQUEUED}
    lost_of_run = Counter((row.forge, row.run_id) for row in records.stored_jobs if row.state is JobState.REQUEUED)
    rode_along = {
        (row.forge, row.forge_job_id)
        for row in records.stored_jobs
        if row.conclusion is Conclusion.FAILURE and lost_of_run[row.forge, row.run_id] > 1
    }
    explained = requeued | rode_along
    return sum(
        1
        for job in records.jobs
        if len(job.runners) > 1 + sum((job.forge, id_) in explained for id_ in job.forge_job_ids)
    )


# --------------------------------------------------------------------------- times


def _delay_s(job: JobRecord) -> float:
    """All waits of a job plus its lost work."""
    waits = [
        max(0.0, one.started_at - one.queued_at)
        for one in job.attempts
        if one.started_at is not None and one.queued_at is not None
    ]
    return math.fsum(waits) + lost_s(job)


def _share_over(records: DemoRecords, targets: dict[str, float], measure: Callable[[JobRecord], float]) -> float:
    started = [job for job in records.jobs if job.wait_s is not None]
    over = [job for job in started if measure(job) > targets.get(records.pool_name(job), math.inf)]
    return round(len(over) / len(started), 4) if started else 0.0


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": quantile(values, share) for share in (50, 95, 99)}


def makespan_ratio(jobs: Iterable[JobRecord]) -> float:
    """Mean over runs: (last end - first submitted) / critical path of durations. Runs without a start do not count."""
    runs: dict[tuple[str, str], list[JobRecord]] = defaultdict(list)
    for job in jobs:
        runs[job.forge, job.run].append(job)
    ratios = []
    for members in runs.values():
        ran = {job.key: job for job in members if job.first_started_at is not None}
        ends = [one.finished_at for job in ran.values() for one in job.attempts if one.finished_at is not None]
        path_s = _critical_path_s(ran)
        if ends and path_s > 0:
            ratios.append((max(ends) - min(job.submitted_at for job in members)) / path_s)
    return round(math.fsum(ratios) / len(ratios), 3) if ratios else 0.0


def _critical_path_s(ran: dict[str, JobRecord]) -> float:
    """The longest chain of durations among the jobs of one run that ran."""
    ends: dict[str, float] = {}
    left = dict(ran)
    while left:
        ready = [key for key, job in left.items() if not any(need in left for need in job.needs)]
        for key in ready:
            job = left.pop(key)
            ends[key] = job.duration_s + max((ends.get(need, 0.0) for need in job.needs), default=0.0)
    return max(ends.values(), default=0.0)


# --------------------------------------------------------------------------- events


def event_log(records: DemoRecords) -> list[str]:
    """What happened, one JSON object each, in time order; `t` in seconds from the start."""
    found: list[tuple[float, str, Document]] = []
    for job in records.jobs:
        name = f"{job.forge}:{job.run}/{job.key}"
        for one in job.attempts:
            steps = ((one.queued_at, "job_queued"), (one.started_at, "job_started"), (one.finished_at, "job_done"))
            found.extend((at, kind, {"job": name}) for at, kind in steps if at is not None)
    for row in records.instances:
        place = row.capacity_pool.key if row.capacity_pool is not None else ""
        about = {"instance": row.id, "capacity_pool": place, "price_usd_hour": row.price_usd_hour}
        for move in records.moves.get(row.id, ()):
            kind = _MOVES.get(move.to_state)
            if move.to_state is InstanceState.TERMINATED and row.ending == "refused":
                kind = "launch_refused"
            if kind is not None:
                found.append((move.at.timestamp(), kind, {**about, "reason": move.cause}))
    found.sort(key=lambda event: (event[0], event[1], json.dumps(event[2], sort_keys=True)))
    return [json.dumps({"t": round(at - records.started_at, 3), "kind": kind, **about}) for at, kind, about in found]


_MOVES = {
    InstanceState.LAUNCHED: "launch",
    InstanceState.READY: "ready",
    InstanceState.STOPPED: "stop",
    InstanceState.STARTING: "start",
    InstanceState.DRAINING: "notice",
    InstanceState.TERMINATED: "terminate",
}
