"""Game days in the admin API: who may begin one, and what is told of it.

A game day ends machines with jobs on them, so it needs more than other admin actions do: the configuration must allow
it, and the caller must hold an admin token, also on loopback.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from autoscaler.game_day import GameDay, GameDayRunning
from autoscaler.game_day_report import GameDayReport, HitJob, Outcome, quantile
from autoscaler.http.api import CALLER
from autoscaler.http.auth import Access
from autoscaler.http.documents import instant, instant_or_none
from autoscaler.http.view import DaemonView
from autoscaler.spi import PoolName

SWITCHED_OFF = "game days are switched off: set chaos = true in [autoscaler] of the configuration and reload (SIGHUP)"
NO_TOKEN = "a game day needs an admin token: set autoscaler.admin_tokens and call with one of them"  # noqa: S105 - a remedy, no token


class GameDayBody(BaseModel):
    """What is asked for. Unknown keys are mistakes: nobody shall believe that they limit what is taken."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    pool: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    announced: bool = True


def make_chaos_routes(view: DaemonView, access: Access) -> Sequence[web.RouteDef]:
    chaos = _Chaos(view, access)
    return [
        web.post("/api/v1/chaos", chaos.begin),
        web.get("/api/v1/chaos", chaos.listed),
        web.get("/api/v1/chaos/{game_day}", chaos.report),
    ]


class _Chaos:
    def __init__(self, view: DaemonView, access: Access) -> None:
        self._view = view
        self._access = access

    async def begin(self, request: web.Request) -> web.Response:
        if not self._view.allows_game_days:
            raise web.HTTPForbidden(text=SWITCHED_OFF)
        if self._access.mode != "token":
            raise web.HTTPForbidden(text=NO_TOKEN)
        try:
            asked = GameDayBody.model_validate_json(await request.read())
        except ValidationError as error:
            raise web.HTTPBadRequest(text=_mistakes(error)) from None
        try:
            report = await self._view.begin_game_day(
                PoolName(asked.pool),
                share=asked.share,
                is_announced=asked.announced,
                actor=request[CALLER].actor,
            )
        except KeyError:
            raise web.HTTPNotFound(text="no such pool") from None
        except GameDayRunning as running:
            raise web.HTTPConflict(text=f"game day {running} is not over yet: one at a time") from None
        return web.json_response(report_document(report))

    async def listed(self, _: web.Request) -> web.Response:
        return web.json_response({"game_days": [day_document(day) for day in self._view.game_days()]})

    async def report(self, request: web.Request) -> web.Response:
        try:
            report = await self._view.game_day(request.match_info["game_day"])
        except KeyError:
            raise web.HTTPNotFound(text="no such game day") from None
        return web.json_response(report_document(report))


def _mistakes(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in found[:5])


def day_document(day: GameDay) -> dict[str, Any]:
    return {
        "id": day.id,
        "pool": day.pool,
        "share": day.share,
        "announced": day.is_announced,
        "actor": day.actor,
        "begun_at": instant(day.begun_at),
        "state": day.state.value,
        "detail": day.detail,
        "candidates": day.candidates,
        "machines": list(day.machines),
    }


def report_document(report: GameDayReport) -> dict[str, Any]:
    """Counts add up: hit = kept + running + lost; lost = requeued + opted_out + abandoned + late_success + open."""
    back = report.back_after_s
    return {
        **day_document(report.day),
        "over": report.is_over,
        "taken": report.taken,
        "spared": report.spared,
        "going": report.going,
        "jobs": {
            "hit": len(report.jobs),
            **{outcome.value: report.count(outcome) for outcome in Outcome},
            "lost": report.lost,
            "running_again": len(back),
        },
        "running_again_s": {
            "p50": quantile(back, 0.5),
            "p95": quantile(back, 0.95),
            "max": back[-1] if back else None,
        },
        "lost_work_usd": round(sum(job.lost_usd for job in report.jobs), 6),
        "hit": [_hit_document(job) for job in report.jobs],
    }


def _hit_document(hit: HitJob) -> dict[str, Any]:
    return {
        "job": hit.job.id,
        "repo": hit.job.repo,
        "name": hit.job.name,
        "instance": hit.instance,
        "outcome": hit.outcome.value,
        "reason": hit.job.reason,
        "lost_at": instant_or_none(hit.lost_at),
        "successor": hit.successor,
        "running_again_s": hit.back_after_s,
        "lost_work_usd": round(hit.lost_usd, 6),
    }
