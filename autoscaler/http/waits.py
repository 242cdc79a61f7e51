"""GET /api/v1/waits: per pool its wait target, how well it is kept, what stands against it, and its error budget."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from autoscaler.http.documents import Document, instant, instant_or_none, prediction_document
from autoscaler.http.view import DaemonView
from autoscaler.model import BlockedBy, Instance, Job, JobState, Pool, Snapshot
from autoscaler.reach import reach_note, reach_of
from autoscaler.scores import Calibration
from autoscaler.spi import CapacityType, PoolName
from autoscaler.why import spill_of
from autoscaler.why_outlook import Outlook

ANNOUNCED = 5
"""Changes of a pool's share of spot that are shown, newest first."""
JOBS_COUNTED = 200
"""The newest jobs of a pool say how fast they come."""
_LINES = 40
"""Ledger lines about a pool that are looked through for them."""
_BUDGET_ACTION = "error_budget"


async def waits_document(view: DaemonView) -> Document:
    """Every configured pool, by name."""
    outlook = Outlook(view.snapshot(), view.rules(), view.blocked(), view.now())
    scored = {one.pool: one for one in view.predictions() if one.pool is not None}
    waiting = _waiting(outlook.snapshot)
    pools = sorted(outlook.rules.pools.values(), key=lambda pool: pool.name)
    return {
        "now": instant(outlook.now),
        "pools": [
            {
                **_target_fields(pool, waiting.get(pool.name, ()), outlook.now),
                **await _reach_fields(view, pool, outlook),
                **_kept_fields(scored.get(pool.name)),
                "prediction": _newest_prediction(waiting.get(pool.name, ())),
                "spill": await _spill(view, pool, outlook),
                "spilled_today_usd": round(outlook.snapshot.on_demand_today_usd.get(pool.name, 0.0), 4),
                "against": _against(pool, outlook),
                "budget": await _budget(view, pool, outlook.snapshot),
            }
            for pool in pools
        ],
    }


def _waiting(snapshot: Snapshot) -> Mapping[PoolName, Sequence[Job]]:
    found: dict[PoolName, list[Job]] = {}
    for job in snapshot.jobs.values():
        if job.state is JobState.QUEUED and job.pool is not None:
            found.setdefault(job.pool, []).append(job)
    return found


def _target_fields(pool: Pool, waiting: Sequence[Job], now: datetime) -> Document:
    ages = [max(0.0, (now - job.queued_at).total_seconds()) for job in waiting]
    target_s = pool.target.total_seconds()
    return {
        "name": pool.name,
        "target_s": target_s,
        "quantile": pool.wait_quantile,
        "waiting": len(ages),
        "late": sum(1 for age in ages if age > target_s),
        "oldest_wait_s": round(max(ages, default=0.0), 3),
    }


async def _reach_fields(view: DaemonView, pool: Pool, outlook: Outlook) -> Document:
    """Whether booting machines can keep the target, and what would: by how fast the last jobs came."""
    reach = reach_of(pool, outlook.snapshot.arrivals)
    if not reach.is_reachable:
        lately = await view.store.recent_jobs(limit=JOBS_COUNTED, pool=pool.name)
        jobs_per_s = None
        if len(lately) > 1:
            jobs_per_s = len(lately) / max(1.0, (outlook.now - lately[-1].first_seen_at).total_seconds())
        reach = reach_of(pool, outlook.snapshot.arrivals, jobs_per_s=jobs_per_s)
    return {
        "cold_s": round(reach.cold_s, 1),
        "target_reachable": reach.is_reachable,
        "target_note": reach_note(pool, reach),
    }


def _kept_fields(scored: Calibration | None) -> Document:
    """The share of jobs that waited beyond the target over the days that predictions are scored for."""
    jobs = scored.jobs if scored is not None else 0
    late = sum(each.observed * each.jobs for each in scored.bins) if scored is not None else 0.0
    return {"scored_jobs": jobs, "late_share": round(late / jobs, 4) if jobs else None}


def _newest_prediction(waiting: Sequence[Job]) -> Document | None:
    """What was predicted for the job that came last."""
    predicted = [job for job in waiting if job.prediction is not None]
    newest = max(predicted, key=lambda job: (job.first_seen_at, job.id), default=None)
    if newest is None or newest.prediction is None:
        return None
    return {**prediction_document(newest.prediction), "job": newest.id, "at": instant(newest.first_seen_at)}


async def _spill(view: DaemonView, pool: Pool, outlook: Outlook) -> Document | None:
    """The pool's machines that are on demand instead of spot, since when there are any, and why the newest is."""
    if not pool.spot_enabled:
        return None
    machines = [row for row in outlook.snapshot.instances.values() if row.pool == pool.name and _is_on_demand(row)]
    if not machines:
        return None
    newest = max(machines, key=lambda row: (row.created_at, row.id))
    spilled = spill_of(newest, await view.store.instance_moves(newest.id), outlook)
    return {
        "machines": len(machines),
        "since": instant(min(row.created_at for row in machines)),
        "reason": spilled.reason if spilled is not None else "",
        "newest": newest.id,
    }


def _is_on_demand(row: Instance) -> bool:
    return row.capacity_pool is not None and row.capacity_pool.capacity_type is CapacityType.ON_DEMAND


def _against(pool: Pool, outlook: Outlook) -> list[Document]:
    """What keeps jobs of the pool waiting now, by the last plan's word."""
    return [
        {
            "by": entry.by.value,
            "jobs": entry.jobs,
            "reason": entry.reason,
            "again_at": instant_or_none(entry.again_at),
        }
        for entry in outlook.blocked
        if entry.pool == pool.name and entry.jobs and entry.by is not BlockedBy.MOMENT
    ]


async def _budget(view: DaemonView, pool: Pool, snapshot: Snapshot) -> Document:
    burn = snapshot.burns.get(pool.name)
    lines = [entry for _, entry in await view.store.ledger(limit=_LINES, subject=pool.name)]
    announced = [entry for entry in lines if entry.action == _BUDGET_ACTION][:ANNOUNCED]
    return {
        "allowed": pool.error_budget,
        "burn": round(burn.share, 3) if burn is not None else None,
        "spot_share": burn.spot_share if burn is not None else 1.0,
        "reason": burn.reason if burn is not None else "",
        "announced": [
            {"at": instant(entry.at), "text": ": ".join(part for part in (entry.outcome, entry.reason) if part)}
            for entry in announced
        ],
    }
