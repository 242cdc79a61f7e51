"""The admin API's handlers: read the view or the store, answer JSON. Who may ask is decided before (`admin.py`)."""

import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from aiohttp import web

from autoscaler.http.auth import Access, Caller
from autoscaler.http.costs import BadPeriod, costs_csv, costs_document, period_of, sums_of
from autoscaler.http.documents import (
    budget_document,
    condition_document,
    cooling_document,
    instance_document,
    instant,
    interruption_document,
    job_document,
    ledger_document,
    pool_documents,
    tick_document,
    trouble_document,
)
from autoscaler.http.history import history_document
from autoscaler.http.lookup import find, instance_of, job_of
from autoscaler.http.offerings import BEST, offerings_document
from autoscaler.http.openapi import DOCUMENT
from autoscaler.http.predictions import predictions_document
from autoscaler.http.stories import (
    job_story_document,
    job_why_document,
    machine_story_document,
    machine_why_document,
    outlook_of,
)
from autoscaler.http.view import DaemonView
from autoscaler.http.waits import waits_document
from autoscaler.model import Instance, Job, JobId, JobState, PoolControl
from autoscaler.spi import PoolName

CALLER = web.RequestKey("caller", Caller)
DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
MAX_SEQ = 2**62
EXPLAINED = 30
"""Jobs of one run that are explained one by one; a run with more is a matrix, and the first ones say enough."""
_CONTROLS = {"drain": PoolControl.DRAINING, "pause": PoolControl.PAUSED, "resume": PoolControl.ACTIVE}
_LIVE = (JobState.QUEUED, JobState.RUNNING, JobState.LOST)
_Row = TypeVar("_Row", Job, Instance)


def make_api_routes(view: DaemonView, access: Access) -> Sequence[web.RouteDef]:
    """Every route below /api/v1."""
    api = _Api(view, access)
    return [
        web.get("/api/v1/status", api.status),
        web.get("/api/v1/pools", api.pools),
        web.get("/api/v1/jobs", api.jobs),
        web.get("/api/v1/jobs/{job}", api.job),
        web.get("/api/v1/jobs/{job}/why", api.why),
        web.get("/api/v1/instances", api.instances),
        web.get("/api/v1/instances/{instance}", api.instance),
        web.get("/api/v1/instances/{instance}/why", api.instance_why),
        web.get("/api/v1/why", api.anything),
        web.get("/api/v1/offerings", api.offerings),
        web.get("/api/v1/interruptions", api.interruptions),
        web.get("/api/v1/predictions", api.predictions),
        web.get("/api/v1/waits", api.waits),
        web.get("/api/v1/ledger", api.ledger),
        web.get("/api/v1/costs", api.costs),
        web.get("/api/v1/costs.csv", api.costs_csv),
        web.get("/api/v1/history", api.history),
        web.get("/api/v1/openapi.json", api.openapi),
        *(web.post(f"/api/v1/pools/{{pool}}/{verb}", api.control(to)) for verb, to in _CONTROLS.items()),
    ]


class _Api:
    def __init__(self, view: DaemonView, access: Access) -> None:
        self._view = view
        self._access = access

    async def status(self, _: web.Request) -> web.Response:
        view = self._view
        snapshot, conditions, tick = view.snapshot(), view.conditions(), view.last_tick()
        caps = view.rules().caps
        states = [job.state for job in snapshot.jobs.values()]
        return web.json_response(
            {
                "deployment": view.deployment,
                "now": instant(view.now()),
                "ready": all(condition.is_well for condition in conditions),
                "access": self._access.mode,
                "conditions": [condition_document(condition) for condition in conditions],
                "troubles": [trouble_document(trouble) for trouble in view.troubles()],
                "tick": tick_document(tick) if tick else None,
                "jobs": {state.value: states.count(state) for state in _LIVE},
                "unserved": sum(1 for job in snapshot.jobs.values() if job.pool is None),
                "instances": len(snapshot.instances),
                "caps": {
                    "instances": caps.instances,
                    "usd_per_hour": caps.usd_per_hour,
                    "usd_per_day": caps.usd_per_day,
                },
                "spent_today_usd": math.fsum(snapshot.spent_today_usd.values()),
                "cooling": cooling_document(snapshot, view.now()),
                "budgets": [budget_document(target, budget) for target, budget in view.budgets()],
                "pools": pool_documents(view),
            }
        )

    async def pools(self, _: web.Request) -> web.Response:
        return web.json_response({"pools": pool_documents(self._view)})

    async def jobs(self, request: web.Request) -> web.Response:
        """Live jobs first, oldest first, then recent ones of the store, newest first; the live row wins."""
        limit, pool = _limit(request), request.query.get("pool", "")
        state = request.query.get("state", "")
        if state and state not in {member.value for member in JobState}:
            raise web.HTTPBadRequest(text=f"state: one of {', '.join(JobState)}")
        live = sorted(self._view.snapshot().jobs.values(), key=lambda job: job.queued_at)
        stored = await self._view.store.recent_jobs(limit=limit, pool=PoolName(pool) if pool else None, state=state)
        rows = _live_first(live, stored)
        wanted = [job for job in rows if (not pool or job.pool == pool) and (not state or job.state == state)]
        return web.json_response({"jobs": [job_document(job) for job in wanted[:limit]]})

    async def job(self, request: web.Request) -> web.Response:
        job = await self._find_job(request)
        return web.json_response(await job_story_document(self._view, job, outlook_of(self._view)))

    async def why(self, request: web.Request) -> web.Response:
        return web.json_response(await job_why_document(self._view, await self._find_job(request)))

    async def anything(self, request: web.Request) -> web.Response:
        """Whatever `q` names: the jobs of a run, one job, or a machine; each with its story."""
        asked = request.query.get("q", "").strip()
        if not asked:
            raise web.HTTPBadRequest(text="q: a job's id or address, repo/run, or a machine's id")
        found, outlook = await find(self._view, asked), outlook_of(self._view)
        if not found.jobs and found.instance is None:
            tried = "; ".join(found.looked_for)
            raise web.HTTPNotFound(text=f"nothing is known of {asked!r}; looked for {tried}")
        jobs = [await job_story_document(self._view, job, outlook) for job in found.jobs[:EXPLAINED]]
        machine = await machine_story_document(self._view, found.instance) if found.instance is not None else None
        return web.json_response({"asked": asked, "total": len(found.jobs), "jobs": jobs, "instance": machine})

    async def instances(self, request: web.Request) -> web.Response:
        limit, pool = _limit(request), request.query.get("pool", "")
        live = sorted(self._view.snapshot().instances.values(), key=lambda row: row.created_at, reverse=True)
        stored = await self._view.store.recent_instances(limit=limit, pool=PoolName(pool) if pool else None)
        rows = [row for row in _live_first(live, stored) if not pool or row.pool == pool]
        now = self._view.now()
        return web.json_response({"instances": [instance_document(row, now) for row in rows[:limit]]})

    async def instance(self, request: web.Request) -> web.Response:
        return web.json_response(await machine_story_document(self._view, await self._find_instance(request)))

    async def instance_why(self, request: web.Request) -> web.Response:
        return web.json_response(await machine_why_document(self._view, await self._find_instance(request)))

    async def offerings(self, request: web.Request) -> web.Response:
        """By default those with machines, those that cool, and the best of each pool; `all=1` has them all."""
        pool = PoolName(request.query["pool"]) if request.query.get("pool") else None
        if pool is not None and pool not in self._view.rules().pools:
            raise web.HTTPNotFound(text="no such pool")
        best = _number(request, "best", 1, BEST) if "best" in request.query else BEST
        everything = request.query.get("all", "") == "1"
        return web.json_response(offerings_document(self._view, pool=pool, everything=everything, best=best))

    async def costs(self, request: web.Request) -> web.Response:
        """What machines cost from `since` until `until`; since midnight UTC by default, live ones included."""
        since, until = self._period(request)
        return web.json_response(await costs_document(self._view, since, until))

    async def costs_csv(self, request: web.Request) -> web.Response:
        since, until = self._period(request)
        text = costs_csv(await sums_of(self._view, since, until))
        name = f"costs-{since:%Y-%m-%d}.csv"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return web.Response(text=text, content_type="text/csv", charset="utf-8", headers=headers)

    def _period(self, request: web.Request) -> tuple[datetime, datetime]:
        try:
            return period_of(request.query.get("since", ""), request.query.get("until", ""), self._view.now())
        except BadPeriod as error:
            raise web.HTTPBadRequest(text=str(error)) from None

    async def interruptions(self, request: web.Request) -> web.Response:
        """Which machines their clouds took or are taking, newest first, and on what evidence."""
        found = await self._view.store.recent_interruptions(limit=_limit(request))
        return web.json_response({"interruptions": [interruption_document(one) for one in found]})

    async def predictions(self, _: web.Request) -> web.Response:
        return web.json_response(predictions_document(self._view))

    async def waits(self, _: web.Request) -> web.Response:
        return web.json_response(await waits_document(self._view))

    async def ledger(self, request: web.Request) -> web.Response:
        limit = _limit(request)
        before = _number(request, "before", 1, MAX_SEQ) if "before" in request.query else None
        rows = await self._view.store.ledger(limit=limit, subject=request.query.get("subject", ""), before=before)
        following = rows[-1][0] if len(rows) == limit else None
        return web.json_response({"ledger": [ledger_document(seq, entry) for seq, entry in rows], "before": following})

    async def history(self, request: web.Request) -> web.Response:
        """The asked number of minutes, or the shortest window that holds all samples of the last hour."""
        minutes = _number(request, "minutes", 1, 24 * 60) if "minutes" in request.query else None
        return web.json_response(await history_document(self._view, minutes=minutes))

    async def openapi(self, _: web.Request) -> web.Response:
        return web.json_response(DOCUMENT)

    def control(self, to: PoolControl) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            pool = PoolName(request.match_info["pool"])
            try:
                await self._view.set_control(pool, to, actor=request[CALLER].actor)
            except KeyError:
                raise web.HTTPNotFound(text="no such pool") from None
            return web.json_response({"pool": pool, "control": to.value})

        return handle

    async def _find_job(self, request: web.Request) -> Job:
        job = await job_of(self._view, JobId(request.match_info["job"]))
        if job is None:
            raise web.HTTPNotFound(text="no such job")
        return job

    async def _find_instance(self, request: web.Request) -> Instance:
        row = await instance_of(self._view, request.match_info["instance"])
        if row is None:
            raise web.HTTPNotFound(text="no such instance")
        return row


def _live_first(live: Sequence[_Row], stored: Sequence[_Row]) -> list[_Row]:
    rows: dict[str, _Row] = {row.id: row for row in stored}
    for row in live:
        rows.pop(row.id, None)
    return list(live) + list(rows.values())


def _limit(request: web.Request) -> int:
    return _number(request, "limit", 1, MAX_LIMIT) if "limit" in request.query else DEFAULT_LIMIT


def _number(request: web.Request, key: str, low: int, high: int) -> int:
    text: Any = request.query[key]
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
        raise web.HTTPBadRequest(text=f"{key}: a whole number from {low} to {high}")
    return int(text)
