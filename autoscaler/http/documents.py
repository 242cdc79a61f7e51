"""The JSON documents of the admin API: one pure function per thing, values in, plain JSON out.

Instants are RFC 3339 in UTC, durations seconds with `_s`, money USD. `openapi.py` describes the same shapes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from autoscaler.http.view import Condition, DaemonView, TickView, Trouble
from autoscaler.model import (
    Instance,
    InstanceMove,
    Interruption,
    Job,
    JobState,
    LedgerEntry,
    Pool,
    PoolControl,
    Prediction,
    Snapshot,
)
from autoscaler.spi import CapacityPool, RateBudget
from autoscaler.states import is_live
from autoscaler.why_story import TimelineEntry

Document = dict[str, Any]


def instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def instant_or_none(at: datetime | None) -> str | None:
    return None if at is None else instant(at)


def condition_document(condition: Condition) -> Document:
    return {
        "name": condition.name,
        "well": condition.is_well,
        "detail": condition.detail,
        "remedy": condition.remedy,
        "since": instant(condition.since),
    }


def trouble_document(trouble: Trouble) -> Document:
    return {"target": trouble.target, "text": trouble.text}


def interruption_document(one: Interruption) -> Document:
    return {
        "instance": one.instance,
        "provider": one.provider,
        "pool": one.pool,
        "capacity_pool": capacity_pool_document(one.capacity_pool) if one.capacity_pool else None,
        "job": one.job,
        "announced": one.is_announced,
        "game_day": one.is_game_day,
        "sources": list(one.sources),
        "noticed_at": instant(one.noticed_at),
        "reclaim_at": instant_or_none(one.reclaim_at),
        "cutoff_at": instant_or_none(one.cutoff_at),
        "ended_at": instant_or_none(one.ended_at),
        "hook_s": one.hook_s,
    }


def tick_document(tick: TickView) -> Document:
    return {
        "number": tick.number,
        "at": instant(tick.at),
        "took_s": tick.took_s,
        "plan_s": tick.plan_s,
        "actions": tick.actions,
    }


def job_document(job: Job) -> Document:
    return {
        "id": job.id,
        "forge": job.forge,
        "repo": job.repo,
        "run_id": job.run_id,
        "workflow": job.workflow,
        "name": job.name,
        "labels": list(job.labels),
        "state": job.state.value,
        "pool": job.pool,
        "unserved": job.unserved,
        "conclusion": job.conclusion.value if job.conclusion else None,
        "queued_at": instant(job.queued_at),
        "started_at": instant_or_none(job.started_at),
        "finished_at": instant_or_none(job.finished_at),
        "seen_by": job.seen_by.value,
        "runner_name": job.runner_name,
        "instance": job.instance,
        "url": job.url,
        "attempt": job.attempt,
        "reason": job.reason,
        "retry_at": instant_or_none(job.retry_at),
        "successor": job.successor,
        "predecessor": job.predecessor,
        "lost_at": instant_or_none(job.lost_at),
        "prediction": prediction_document(job.prediction) if job.prediction else None,
    }


def prediction_document(prediction: Prediction) -> Document:
    return {"wait_s": prediction.wait_s, "breach": prediction.breach, "target_s": prediction.target_s}


def instance_document(row: Instance, now: datetime) -> Document:
    return {
        "id": row.id,
        "pool": row.pool,
        "provider": row.provider,
        "provider_id": row.provider_id,
        "state": row.state.value,
        "since": instant(row.since),
        "created_at": instant(row.created_at),
        "capacity_pool": capacity_pool_document(row.capacity_pool) if row.capacity_pool else None,
        "price_usd_hour": row.price_usd_hour,
        "cost_usd": cost_usd(row, now),
        "runner_name": row.runner_name,
        "labels": list(row.demand.labels) if row.demand else [],
        "job": row.job,
        "ending": row.ending.value if row.ending else None,
        "detail": row.detail,
        "adopted": row.adopted,
    }


def cost_usd(row: Instance, now: datetime) -> float:
    """What the machine cost so far: its price for as long as it was ours."""
    until = now if is_live(row) else row.since
    return round(row.price_usd_hour * max(0.0, (until - row.created_at).total_seconds()) / 3600, 6)


def capacity_pool_document(pool: CapacityPool) -> Document:
    return {
        "provider": pool.provider,
        "region": pool.region,
        "zone": pool.zone,
        "machine_type": pool.machine_type,
        "capacity_type": pool.capacity_type.value,
    }


def budget_document(target: str, budget: RateBudget) -> Document:
    return {
        "target": target,
        "family": budget.family,
        "limit": budget.limit,
        "remaining": round(budget.remaining, 1),
        "refill_per_s": round(budget.refill_per_s, 3),
    }


def cooling_document(snapshot: Snapshot, now: datetime) -> Document:
    """How much is closed now: capacity pools by themselves, and scopes (quotas, subnets) whatever they cover."""
    return {
        "capacity_pools": sum(one.until > now for one in snapshot.cooldowns.values()),
        "scopes": sum(one.until > now for one in snapshot.scope_cooldowns),
    }


def move_document(move: InstanceMove) -> Document:
    return {
        "at": instant(move.at),
        "from": move.from_state.value if move.from_state else None,
        "to": move.to_state.value,
        "cause": move.cause,
    }


def ledger_document(seq: int, entry: LedgerEntry) -> Document:
    return {
        "seq": seq,
        "at": instant(entry.at),
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "pool": entry.pool,
        "reason": entry.reason,
        "outcome": entry.outcome,
        "evidence": entry.evidence,
    }


def timeline_document(line: TimelineEntry) -> Document:
    return {
        "at": instant(line.at),
        "kind": line.kind,
        "text": line.text,
        "attempt": line.attempt,
        "instance": line.instance,
    }


def pool_documents(view: DaemonView) -> list[Document]:
    """Every configured pool, by name, with what it has and what it lacks."""
    snapshot, now = view.snapshot(), view.now()
    jobs: dict[str, Counter[str]] = {}
    oldest: dict[str, datetime] = {}
    for job in snapshot.jobs.values():
        if job.pool is not None:
            jobs.setdefault(job.pool, Counter())[job.state.value] += 1
            if job.state is JobState.QUEUED:
                oldest[job.pool] = min(job.queued_at, oldest.get(job.pool, job.queued_at))
    fleet = _instances_by_pool(snapshot)
    reasons: dict[str, list[Document]] = {}
    for entry in view.blocked():
        reasons.setdefault(entry.pool, []).append({"jobs": entry.jobs, "reason": entry.reason})
    return [
        _pool_document(
            pool,
            control=snapshot.controls.get(pool.name, PoolControl.ACTIVE),
            jobs=jobs.get(pool.name, {}),
            oldest_wait_s=max(0.0, (now - oldest[pool.name]).total_seconds()) if pool.name in oldest else 0.0,
            instances=fleet.get(pool.name, {}),
            blocked=reasons.get(pool.name, ()),
            held_back="; ".join(text for (name, _), text in sorted(snapshot.held_back.items()) if name == pool.name),
        )
        for pool in sorted(view.rules().pools.values(), key=lambda pool: pool.name)
    ]


def _instances_by_pool(snapshot: Snapshot) -> Mapping[str, Counter[str]]:
    fleet: dict[str, Counter[str]] = {}
    for row in snapshot.instances.values():
        fleet.setdefault(row.pool, Counter())[row.state.value] += 1
    return fleet


def _pool_document(
    pool: Pool,
    *,
    control: PoolControl,
    jobs: Mapping[str, int],
    oldest_wait_s: float,
    instances: Mapping[str, int],
    blocked: Sequence[Document],
    held_back: str,
) -> Document:
    return {
        "name": pool.name,
        "control": control.value,
        "labels": list(pool.labels),
        "repos": list(pool.repos),
        "forges": sorted(pool.forges),
        "providers": list(pool.providers),
        "min": pool.min,
        "max": pool.max,
        "target_s": pool.target.total_seconds(),
        "queued": jobs.get("queued", 0),
        "running": jobs.get("running", 0),
        "lost": jobs.get("lost", 0),
        "oldest_wait_s": round(oldest_wait_s, 3),
        "instances": dict(sorted(instances.items())),
        "blocked": list(blocked),
        "held_back": held_back,
    }
