"""Rows of a finished demo for tests of its report: jobs, machines and their histories, by a few words."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from autoscaler.model import (
    EndReason,
    Instance,
    InstanceMove,
    InstanceState,
    Interruption,
    Job,
    JobId,
    JobState,
    SeenBy,
)
from autoscaler.sandbox.demo_records import Attempt, Decisions, DemoRecords, JobRecord, PoolFacts
from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    Conclusion,
    ForgeName,
    InstanceId,
    PoolName,
    ProviderId,
    ProviderName,
    ProviderTraits,
    Scope,
)

T0 = 1_700_000_000.0
SMALL, DATA = PoolName("small"), PoolName("data")
LABELS = {SMALL: ("linux", "x64"), DATA: ("data",)}


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(T0, UTC) + timedelta(seconds=seconds)


def a_job(key: str, *attempts: tuple[float | None, float | None, float | None], **fields: Any) -> JobRecord:
    """Attempts are (queued, started, finished) in seconds from the start."""
    settings: dict[str, Any] = {
        "forge": "github",
        "repo": "acme/shop",
        "run": "run-1",
        "key": key,
        "name": key,
        "labels": LABELS[SMALL],
        "needs": (),
        "duration_s": 1.0,
        "submitted_at": T0,
        "conclusion": "success",
        "is_running": False,
        "runners": tuple(f"runner-{key}-{n}" for n, one in enumerate(attempts) if one[1] is not None),
        "forge_job_ids": tuple(f"{key}-{n}" for n in range(len(attempts))),
    }
    times = [tuple(None if one is None else T0 + one for one in attempt) for attempt in attempts]
    rows = tuple(Attempt(queued_at=q, started_at=s, finished_at=f) for q, s, f in times)
    return JobRecord(attempts=rows, **{**settings, **fields})


def a_row(forge_job_id: str, state: JobState, **fields: Any) -> Job:
    settings: dict[str, Any] = {
        "forge": ForgeName("github"),
        "repo": "acme/shop",
        "run_id": "1",
        "run_attempt": 1,
        "workflow": "ci",
        "name": forge_job_id,
        "labels": LABELS[SMALL],
        "scope": Scope("acme"),
        "queued_at": at(0),
        "first_seen_at": at(0),
        "seen_by": SeenBy.WEBHOOK,
        "pool": SMALL,
        "started_at": at(1),
        "conclusion": Conclusion.SUCCESS if state is JobState.DONE else None,
    }
    told = {**settings, **fields}
    if state in (JobState.LOST, JobState.REQUEUED, JobState.ABANDONED) and told["started_at"] is not None:
        told.setdefault("lost_at", at(5))
    return Job(id=JobId(f"{told['forge']}:{forge_job_id}"), forge_job_id=forge_job_id, state=state, **told)


def a_machine(name: str, *states: tuple[float, InstanceState], **fields: Any) -> tuple[Instance, list[InstanceMove]]:
    """A machine with its history: (seconds from the start, state it entered)."""
    capacity_type = fields.pop("capacity_type", CapacityType.SPOT)
    settings: dict[str, Any] = {
        "pool": SMALL,
        "price_usd_hour": 0.36,
        "provider_id": ProviderId(f"local-{name}"),
        "ending": EndReason.JOB_DONE,
        "capacity_pool": CapacityPool(
            provider=ProviderName("here"), region="r", zone="a", machine_type="m", capacity_type=capacity_type
        ),
    }
    row = Instance(
        id=InstanceId(name),
        provider=ProviderName("here"),
        token=BatchToken("b"),
        state=states[-1][1],
        since=at(states[-1][0]),
        created_at=at(states[0][0]),
        **{**settings, **fields},
    )
    befores = [None, *(state for _, state in states)]
    moves = [
        InstanceMove(instance=row.id, at=at(seconds), from_state=before, to_state=state, cause="test")
        for before, (seconds, state) in zip(befores, states, strict=False)
    ]
    return row, moves


def a_demo(
    jobs: Sequence[JobRecord] = (),
    rows: Sequence[Job] = (),
    machines: Sequence[tuple[Instance, list[InstanceMove]]] = (),
    interruptions: Sequence[Interruption] = (),
    **fields: Any,
) -> DemoRecords:
    settings: dict[str, Any] = {
        "pools": {
            SMALL: PoolFacts(name=SMALL, target_s=10.0, max=2, on_demand_usd_hour=0.72),
            DATA: PoolFacts(name=DATA, target_s=10.0, max=8, on_demand_usd_hour=1.44),
        },
        "cap_instances": 24,
        "traits": ProviderTraits(),
        "ledger": (),
        "recorded_usd": 0.0,
        "decisions": Decisions(plans=3, plan_ms=(1.0, 2.0, 9.0)),
        "started_at": T0,
        "ended_at": T0 + 100,
        "instances_left": 0,
        "registrations_left": 0,
        "processes_left": 0,
        "crashes": 0,
        "world": {"seed": 1},
        "faults": {"crash": 6.0},
    }
    pool_of = {
        (job.forge, job.repo, job.labels): next((p for p, labels in LABELS.items() if labels == job.labels), None)
        for job in jobs
    }
    return DemoRecords(
        jobs=jobs,
        stored_jobs=rows,
        instances=[row for row, _ in machines],
        moves={row.id: moves for row, moves in machines},
        interruptions={one.instance: one for one in interruptions},
        pool_of=pool_of,
        **{**settings, **fields},
    )
