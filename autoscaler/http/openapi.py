"""The OpenAPI 3.1 document of the admin API. Kept by hand; a test holds it against the routes and their answers."""

from typing import Any

from autoscaler.game_day import GameDayState
from autoscaler.game_day_report import Outcome
from autoscaler.http.costs import GROUPS
from autoscaler.model import BlockedBy, Use
from autoscaler.why_machine import EndedBy

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_INSTANT: Schema = {"type": "string", "format": "date-time"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_COUNTS: Schema = {"type": "object", "additionalProperties": _COUNT}


def _maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _record(**properties: Schema) -> Schema:
    """An object with exactly these properties, all required."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(name: str) -> Schema:
    return {"type": "array", "items": _ref(name)}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_PREDICTION: dict[str, Schema] = {"wait_s": _NUMBER, "breach": _NUMBER, "target_s": _NUMBER}
_JOB: dict[str, Schema] = {
    "id": _TEXT, "forge": _TEXT, "repo": _TEXT, "run_id": _TEXT, "workflow": _TEXT, "name": _TEXT, "labels": _TEXTS,
    "state": {"enum": ["queued", "running", "lost", "requeued", "done", "abandoned"]}, "pool": _maybe(_TEXT),
    "unserved": _TEXT, "conclusion": _maybe(_TEXT), "queued_at": _INSTANT, "started_at": _maybe(_INSTANT),
    "finished_at": _maybe(_INSTANT), "seen_by": {"enum": ["webhook", "poll"]}, "runner_name": _TEXT,
    "instance": _maybe(_TEXT), "url": _TEXT, "attempt": {"type": "integer", "minimum": 1}, "reason": _TEXT,
    "retry_at": _maybe(_INSTANT), "successor": _maybe(_TEXT), "predecessor": _maybe(_TEXT),
    "lost_at": _maybe(_INSTANT),
    "prediction": _maybe(_record(**_PREDICTION)),
}  # fmt: skip
_CAPACITY_POOL: dict[str, Schema] = {
    "provider": _TEXT, "region": _TEXT, "zone": _TEXT, "machine_type": _TEXT,
    "capacity_type": {"enum": ["spot", "on_demand"]},
}  # fmt: skip
_INSTANCE: dict[str, Schema] = {
    "id": _TEXT, "pool": _TEXT, "provider": _TEXT, "provider_id": _maybe(_TEXT), "state": _TEXT, "since": _INSTANT,
    "created_at": _INSTANT, "capacity_pool": _maybe(_record(**_CAPACITY_POOL)), "price_usd_hour": _NUMBER,
    "cost_usd": _NUMBER, "runner_name": _TEXT, "labels": _TEXTS, "job": _maybe(_TEXT), "ending": _maybe(_TEXT),
    "detail": _TEXT, "adopted": _FLAG,
}  # fmt: skip
_ANSWER: dict[str, Schema] = {
    "why": _TEXT, "estimated_start": _maybe(_INSTANT), "estimated_start_p95": _maybe(_INSTANT),
    "estimated_start_note": _TEXT, "advice": _TEXT,
    "spilled": _maybe(_record(since=_INSTANT, reason=_TEXT, instance=_TEXT)), "expected_instance": _maybe(_TEXT),
}  # fmt: skip
_MACHINE_ANSWER: dict[str, Schema] = {
    "why": _TEXT,
    "ended_by": _maybe({"enum": [by.value for by in EndedBy]}),
    "evidence": {"type": "array", "items": _record(at=_INSTANT, source=_TEXT, text=_TEXT)},
}
_GAME_DAY: dict[str, Schema] = {
    "id": _TEXT, "pool": _TEXT, "share": _NUMBER, "announced": _FLAG, "actor": _TEXT, "begun_at": _INSTANT,
    "state": {"enum": [one.value for one in GameDayState]}, "detail": _TEXT, "candidates": _COUNT, "machines": _TEXTS,
}  # fmt: skip
_CONTROL: Schema = {"enum": ["active", "paused", "draining"]}
_USES = _record(**{use.value: _NUMBER for use in Use})
_MONEY: dict[str, Schema] = {
    "usd": _NUMBER, "usd_by_use": _USES, "hours_by_use": _USES, "on_demand_equivalent_usd": _NUMBER,
    "savings_usd": _NUMBER,
}  # fmt: skip

_SCHEMAS: dict[str, Schema] = {
    "Error": _record(error=_TEXT),
    "Condition": _record(name=_TEXT, well=_FLAG, detail=_TEXT, remedy=_TEXT, since=_INSTANT),
    "Trouble": _record(target=_TEXT, text=_TEXT),
    "Tick": _record(number=_COUNT, at=_INSTANT, took_s=_NUMBER, plan_s=_NUMBER, actions=_COUNT),
    "Pool": _record(
        name=_TEXT, control=_CONTROL, labels=_TEXTS, repos=_TEXTS, forges=_TEXTS, providers=_TEXTS, min=_COUNT,
        max=_COUNT, target_s=_NUMBER, queued=_COUNT, running=_COUNT, lost=_COUNT, oldest_wait_s=_NUMBER,
        instances=_COUNTS, blocked={"type": "array", "items": _record(jobs=_COUNT, reason=_TEXT)}, held_back=_TEXT,
    ),
    "Budget": _record(target=_TEXT, family=_TEXT, limit=_NUMBER, remaining=_NUMBER, refill_per_s=_NUMBER),
    "Status": _record(
        deployment=_TEXT, now=_INSTANT, ready=_FLAG, access={"enum": ["token", "loopback_only"]},
        conditions=_list("Condition"), troubles=_list("Trouble"),
        tick=_maybe(_ref("Tick")), jobs=_COUNTS, unserved=_COUNT, instances=_COUNT,
        caps=_record(instances=_maybe(_COUNT), usd_per_hour=_maybe(_NUMBER), usd_per_day=_maybe(_NUMBER)),
        spent_today_usd=_NUMBER, cooling=_record(capacity_pools=_COUNT, scopes=_COUNT), budgets=_list("Budget"),
        pools=_list("Pool"),
    ),
    "Pools": _record(pools=_list("Pool")),
    "Job": _record(**_JOB),
    "Jobs": _record(jobs=_list("Job")),
    "TimelineEntry": _record(
        at=_INSTANT, kind={"enum": ["job", "machine", "decision", "loss"]}, text=_TEXT,
        attempt={"type": "integer", "minimum": 1}, instance=_maybe(_TEXT),
    ),
    "Attempt": _record(
        id=_TEXT, attempt={"type": "integer", "minimum": 1}, state=_JOB["state"], conclusion=_maybe(_TEXT),
        instance=_maybe(_TEXT), queued_at=_INSTANT, started_at=_maybe(_INSTANT), finished_at=_maybe(_INSTANT),
    ),
    "JobDetail": _record(
        **_JOB, **_ANSWER, nearest=_maybe(_record(pool=_TEXT, missing=_TEXTS, repo_served=_FLAG)),
        chain=_list("Attempt"), timeline=_list("TimelineEntry"),
    ),
    "Why": _record(id=_TEXT, state=_TEXT, **_ANSWER),
    "MachineWhy": _record(id=_TEXT, state=_TEXT, **_MACHINE_ANSWER),
    "Answers": _record(
        asked=_TEXT, total=_COUNT, jobs=_list("JobDetail"), instance=_maybe(_ref("InstanceDetail"))
    ),
    "Instance": _record(**_INSTANCE),
    "Instances": _record(instances=_list("Instance")),
    "Move": _record(**{"at": _INSTANT, "from": _maybe(_TEXT), "to": _TEXT, "cause": _TEXT}),
    "InstanceDetail": _record(
        **_INSTANCE, **_MACHINE_ANSWER, served=_maybe(_ref("Job")), interruption=_maybe(_ref("Interruption")),
        history=_list("Move"), timeline=_list("TimelineEntry"), ledger=_list("LedgerEntry"),
    ),
    "Evidence": _record(hours=_NUMBER, interruptions=_NUMBER, asked=_NUMBER, refused=_NUMBER),
    "Cooling": _record(
        kind={"enum": ["refused", "quota"]}, until=_INSTANT, reason=_TEXT, failures=_COUNT,
    ),
    "Standing": _record(
        pool=_TEXT, rank=_maybe({"type": "integer", "minimum": 1}), expected_job_usd=_maybe(_NUMBER), excluded=_TEXT
    ),
    "Offering": _record(
        **_CAPACITY_POOL, cpus=_NUMBER, memory_gib=_NUMBER, arch=_TEXT, gpus=_COUNT, price_usd_hour=_NUMBER,
        on_demand_usd_hour=_maybe(_NUMBER), risk_per_hour=_NUMBER, prior_per_hour=_NUMBER, evidence=_ref("Evidence"),
        cooling=_maybe(_ref("Cooling")), machines=_COUNT, pools=_list("Standing"),
    ),
    "CoolingScope": _record(
        provider=_TEXT, region=_maybe(_TEXT), zone=_maybe(_TEXT), machine_type=_maybe(_TEXT),
        capacity_type=_maybe(_CAPACITY_POOL["capacity_type"]), until=_INSTANT, reason=_TEXT, failures=_COUNT,
    ),
    "Offerings": _record(now=_INSTANT, total=_COUNT, offerings=_list("Offering"), scopes=_list("CoolingScope")),
    "LedgerEntry": _record(
        seq=_COUNT, at=_INSTANT, actor=_TEXT, action=_TEXT, subject=_TEXT, pool=_TEXT, reason=_TEXT, outcome=_TEXT,
        evidence=_TEXT,
    ),
    "EndedCost": _record(provider=_TEXT, usd=_NUMBER),
    "LiveCost": _record(pool=_TEXT, instances=_COUNT, usd_per_hour=_NUMBER, usd_so_far=_NUMBER),
    "MoneyCaps": _record(usd_per_hour=_maybe(_NUMBER), usd_per_day=_maybe(_NUMBER)),
    "Money": _record(**_MONEY),
    "MoneyOf": _record(name=_TEXT, **_MONEY),
    "Costs": _record(
        now=_INSTANT, since=_INSTANT, until=_INSTANT, includes_live=_FLAG, total=_ref("Money"),
        **{f"by_{group}": _list("MoneyOf") for group in GROUPS},
        ended_today=_list("EndedCost"), live=_list("LiveCost"), caps=_ref("MoneyCaps"),
    ),
    "Interruption": _record(
        instance=_TEXT, provider=_TEXT, pool=_TEXT, capacity_pool=_maybe(_record(**_CAPACITY_POOL)), job=_maybe(_TEXT),
        announced=_FLAG, game_day=_FLAG, sources=_TEXTS, noticed_at=_INSTANT, reclaim_at=_maybe(_INSTANT),
        cutoff_at=_maybe(_INSTANT), ended_at=_maybe(_INSTANT), hook_s=_maybe(_NUMBER),
    ),
    "Interruptions": _record(interruptions=_list("Interruption")),
    "ScoredBin": _record(predicted=_NUMBER, observed=_NUMBER, jobs=_COUNT),
    "Calibration": _record(pool=_maybe(_TEXT), jobs=_COUNT, brier=_maybe(_NUMBER), bins=_list("ScoredBin")),
    "Predictions": _record(now=_INSTANT, days=_COUNT, predictions=_list("Calibration")),
    "PoolWaits": _record(
        name=_TEXT, target_s=_NUMBER, quantile=_NUMBER, waiting=_COUNT, late=_COUNT, oldest_wait_s=_NUMBER,
        cold_s=_NUMBER, target_reachable=_FLAG, target_note=_TEXT, scored_jobs=_COUNT, late_share=_maybe(_NUMBER),
        prediction=_maybe(_record(**_PREDICTION, job=_TEXT, at=_INSTANT)),
        spill=_maybe(_record(machines=_COUNT, since=_INSTANT, reason=_TEXT, newest=_TEXT)),
        spilled_today_usd=_NUMBER,
        against={
            "type": "array",
            "items": _record(
                by={"enum": [by.value for by in BlockedBy]}, jobs=_COUNT, reason=_TEXT, again_at=_maybe(_INSTANT)
            ),
        },
        budget=_record(
            allowed=_NUMBER, burn=_maybe(_NUMBER), spot_share=_NUMBER, reason=_TEXT,
            announced={"type": "array", "items": _record(at=_INSTANT, text=_TEXT)},
        ),
    ),
    "Waits": _record(now=_INSTANT, pools=_list("PoolWaits")),
    "Ledger": _record(ledger=_list("LedgerEntry"), before=_maybe(_COUNT)),
    "HistoryPoint": _record(wait_s=_NUMBER, queued=_COUNT, running=_COUNT, instances=_COUNT),
    "History": _record(
        since=_INSTANT, until=_INSTANT, minutes=_COUNT, step_s=_NUMBER,
        pools={
            "type": "array",
            "items": _record(
                name=_TEXT, target_s=_NUMBER, points={"type": "array", "items": _maybe(_ref("HistoryPoint"))}
            ),
        },
    ),
    "PoolControl": _record(pool=_TEXT, control=_CONTROL),
    "GameDayOrder": {
        "type": "object", "required": ["pool", "share"], "additionalProperties": False,
        "properties": {
            "pool": _TEXT, "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "announced": {"type": "boolean", "default": True},
        },
    },
    "GameDay": _record(**_GAME_DAY),
    "GameDays": _record(game_days=_list("GameDay")),
    "HitJob": _record(
        job=_TEXT, repo=_TEXT, name=_TEXT, instance=_TEXT, outcome={"enum": [one.value for one in Outcome]},
        reason=_TEXT, lost_at=_maybe(_INSTANT), successor=_maybe(_TEXT), running_again_s=_maybe(_NUMBER),
        lost_work_usd=_NUMBER,
    ),
    "GameDayReport": _record(
        **_GAME_DAY, over=_FLAG, taken=_COUNT, spared=_COUNT, going=_COUNT,
        jobs=_record(hit=_COUNT, **{one.value: _COUNT for one in Outcome}, lost=_COUNT, running_again=_COUNT),
        running_again_s=_record(p50=_maybe(_NUMBER), p95=_maybe(_NUMBER), max=_maybe(_NUMBER)),
        lost_work_usd=_NUMBER, hit=_list("HitJob"),
    ),
}  # fmt: skip

_LIMIT: Schema = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000}}


def _query(name: str, schema: Schema = _TEXT) -> Schema:
    return {"name": name, "in": "query", "schema": schema}


def _operation(summary: str, answer: str, *parameters: Schema, path: tuple[str, ...] = ()) -> Schema:
    in_path = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in path]
    failed = {"description": "refused", "content": {"application/json": {"schema": _ref("Error")}}}
    done = {"description": summary, "content": {"application/json": {"schema": _ref(answer)}}}
    return {
        "summary": summary,
        "parameters": [*in_path, *parameters],
        "responses": {"200": done, "400": failed, "401": failed, "403": failed, "404": failed, "429": failed},
    }


def _paths() -> dict[str, Schema]:
    control = {
        f"/api/v1/pools/{{pool}}/{verb}": {"post": _operation(summary, "PoolControl", path=("pool",))}
        for verb, summary in (
            ("drain", "Launch nothing and let idle machines go"),
            ("pause", "Launch nothing"),
            ("resume", "Serve jobs again"),
        )
    }
    minutes = {"type": "integer", "minimum": 1, "maximum": 1440}
    reads = {
        "status": _operation("Health, counts and pools at a glance", "Status"),
        "pools": _operation("Every pool: limits, jobs, machines, what blocks it", "Pools"),
        "jobs": _operation("Live and recent jobs", "Jobs", _query("pool"), _query("state"), _LIMIT),
        "jobs/{job}": _operation("One job and its timeline", "JobDetail", path=("job",)),
        "jobs/{job}/why": _operation(
            "Why a job waits, in a sentence, and when it will start: half of such jobs do by `estimated_start`, "
            "95 of 100 by `estimated_start_p95`; null where nobody knows, and `estimated_start_note` says why",
            "Why", path=("job",),
        ),
        "why": _operation(
            "Whatever `q` names: a job by our id, its forge's id or its address, a run as repo/run or by its address, "
            "a machine by its id; each with its story, the first 30 jobs of a run",
            "Answers", _query("q"),
        ),
        "instances": _operation("Live and recent instances", "Instances", _query("pool"), _LIMIT),
        "instances/{instance}": _operation("One instance and its history", "InstanceDetail", path=("instance",)),
        "instances/{instance}/why": _operation(
            "Who ended a machine and on what evidence, or what it does", "MachineWhy", path=("instance",)
        ),
        "offerings": _operation(
            "Where machines may be launched: price, learned risk, what cools and why, rank in each pool. Those in use, "
            "cooling or among the `best` of a pool; with all=1 all of them",
            "Offerings", _query("pool"), _query("best", {"type": "integer", "minimum": 1, "maximum": 50}),
            _query("all", {"enum": ["0", "1"]}),
        ),
        "costs": _operation(
            "What machines cost in a period (today by default; UTC), by use, pool, repo, workflow and day",
            "Costs", _query("since"), _query("until"),
        ),
        "interruptions": _operation(
            "Machines that their clouds took or are taking, newest first, and who told of it", "Interruptions", _LIMIT
        ),
        "predictions": _operation(
            "How good predicted breaches were over the last days, of all pools together and of each, by tenths",
            "Predictions",
        ),
        "waits": _operation(
            "Per pool its wait target and the share of jobs beyond it, the newest prediction, what was bought on "
            "demand and why, what stands in the way, the error budget",
            "Waits",
        ),
        "ledger": _operation(
            "What was done and why, newest first; pass `before` of the last page for the next one",
            "Ledger", _query("subject"), _query("before", {"type": "integer", "minimum": 1}), _LIMIT,
        ),
        "history": _operation(
            "Waits and counts over time; without `minutes` the shortest of 5, 15 and 60 that holds all samples",
            "History", _query("minutes", minutes),
        ),
    }  # fmt: skip
    chaos = {
        "/api/v1/chaos": {"get": _operation("The last game days", "GameDays"), "post": _game_day_order()},
        "/api/v1/chaos/{game_day}": {
            "get": _operation("What a game day took and cost so far", "GameDayReport", path=("game_day",))
        },
    }
    document = {"/api/v1/openapi.json": {"get": {"summary": "This document", "responses": {"200": _ANY}}}}
    table = _operation("The same as a table: one line per sum", "Costs", _query("since"), _query("until"))
    table["responses"]["200"] = {"description": "the table", "content": {"text/csv": {"schema": _TEXT}}}
    document["/api/v1/costs.csv"] = {"get": table}
    gets = {f"/api/v1/{path}": {"get": operation} for path, operation in reads.items()}
    return {**gets, **control, **chaos, **document}


def _game_day_order() -> Schema:
    order = _operation("Interrupt a share of a pool's machines, and see what becomes of their jobs", "GameDayReport")
    order["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref("GameDayOrder")}}}
    order["responses"]["409"] = order["responses"]["400"]
    return order


_ANY: Schema = {"description": "OpenAPI 3.1", "content": {"application/json": {"schema": {"type": "object"}}}}

DOCUMENT: Schema = {
    "openapi": "3.1.0",
    "info": {"title": "CI runner autoscaler admin API", "version": "1"},
    "security": [{"bearer": []}, {"session": []}],
    "paths": _paths(),
    "components": {
        "schemas": _SCHEMAS,
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "session": {"type": "apiKey", "in": "cookie", "name": "autoscaler_session"},
        },
    },
}
