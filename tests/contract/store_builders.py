"""Values with every field set, as the store's tests write them."""

from datetime import UTC, datetime, timedelta

from autoscaler.model import (
    CostLine,
    Demand,
    EndReason,
    Instance,
    InstanceMove,
    InstanceState,
    Interruption,
    Job,
    JobState,
    LedgerEntry,
    SeenBy,
    Use,
    job_id,
)
from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    Conclusion,
    ForgeJob,
    ForgeName,
    InstanceId,
    JobStatus,
    PoolName,
    ProviderId,
    ProviderName,
    RunEvent,
    RunnerId,
    Scope,
    Webhook,
)
from autoscaler.store import Sample

T0 = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)
HUB = ForgeName("hub")
LINUX = PoolName("linux")
BEFORE_RUNS = """
DROP INDEX jobs_of_run;
ALTER TABLE jobs DROP COLUMN repo_run;
DELETE FROM schema_version WHERE version >= 7;
"""
"""Takes a database of either engine back to the schema that had no index of runs."""


def a_job(number: int = 1, *, version: int = 1, state: JobState = JobState.QUEUED, pool: str = "linux") -> Job:
    """Every field set, first seen `number` minutes after T0."""
    at = T0 + timedelta(minutes=number)
    return Job(
        id=job_id(HUB, str(number)),
        forge=HUB,
        forge_job_id=str(number),
        repo="org/repo",
        run_id="77",
        run_attempt=2,
        workflow="ci",
        name="build ☃ é 🚀",
        labels=("linux", "x64"),
        scope=Scope("org"),
        state=state,
        queued_at=at,
        first_seen_at=at,
        seen_by=SeenBy.POLL,
        version=version,
        pool=PoolName(pool),
        conclusion=Conclusion.FAILURE if state is JobState.DONE else None,
        started_at=at + timedelta(seconds=5),
        finished_at=at + timedelta(seconds=9) if state is JobState.DONE else None,
        runner_name="ci-1",
        instance=InstanceId("i-1"),
        url="https://hub.example/1",
        attempt=3,
        reason="because",
        retry_at=at,
        successor=job_id(HUB, "2"),
    )


def an_instance(number: int = 1, *, version: int = 1, state: InstanceState = InstanceState.REQUESTED) -> Instance:
    at = T0 + timedelta(minutes=number)
    return Instance(
        id=InstanceId(f"i-{number}"),
        pool=LINUX,
        provider=ProviderName("cloud"),
        token=BatchToken("t1"),
        state=state,
        since=at,
        created_at=at,
        version=version,
        capacity_pool=CapacityPool(
            provider=ProviderName("cloud"),
            region="r",
            zone="z",
            machine_type="m.large",
            capacity_type=CapacityType.SPOT,
        ),
        price_usd_hour=0.0123456789,
        provider_id=ProviderId("p-1"),
        claim="ab" * 32,
        demand=Demand(forge=HUB, scope=Scope("org"), group="", labels=("linux",)),
        runner_id=RunnerId("9"),
        runner_name="ci-1",
        job=job_id(HUB, "1"),
        ending=EndReason.JOB_DONE if state is InstanceState.TERMINATED else None,
        detail="exit 0",
        adopted=True,
    )


def a_cost(
    instance: str = "i-1", *, use: Use = Use.JOB, repo: str = "org/repo", minute: int = 1, usd_nano: int = 7
) -> CostLine:
    return CostLine(
        instance=InstanceId(instance),
        use=use,
        ended_at=T0 + timedelta(minutes=minute),
        provider=ProviderName("cloud"),
        pool=LINUX,
        capacity_type=CapacityType.SPOT,
        repo=repo,
        workflow="ci",
        milliseconds=61_000,
        usd_nano=usd_nano,
        on_demand_usd_nano=3 * usd_nano,
    )


def an_interruption(instance: str, *, minute: int = 1, ended_at: datetime | None = None) -> Interruption:
    """Every field set; `ended_at` once its machine has ended."""
    at = T0 + timedelta(minutes=minute)
    return Interruption(
        instance=InstanceId(instance),
        provider=ProviderName("cloud"),
        pool=LINUX,
        capacity_pool=an_instance().capacity_pool,
        noticed_at=at,
        sources=("agent", "queue"),
        is_announced=True,
        job=job_id(HUB, "1"),
        reclaim_at=at + timedelta(minutes=2),
        cutoff_at=at + timedelta(seconds=90),
        ended_at=ended_at,
    )


def a_move(instance: str, cause: str) -> InstanceMove:
    return InstanceMove(
        instance=InstanceId(instance),
        at=T0,
        from_state=InstanceState.REQUESTED,
        to_state=InstanceState.LAUNCHED,
        cause=cause,
    )


def an_entry(subject: str, reason: str, *, at: datetime = T0) -> LedgerEntry:
    return LedgerEntry(
        at=at, actor="plan", action="launch", subject=subject, pool="linux", reason=reason, outcome="done"
    )


def a_webhook(delivery: str, *, name: str = "build") -> Webhook:
    job = ForgeJob(
        forge=HUB,
        forge_job_id="1",
        repo="org/repo",
        run_id="77",
        run_attempt=1,
        workflow="ci",
        name=name,
        status=JobStatus.QUEUED,
        labels=None,
        queued_at=T0,
        runner_id=RunnerId("4"),
    )
    run = RunEvent(forge=HUB, repo="org/repo", run_id="77", run_attempt=1, is_finished=True)
    return Webhook(delivery_id=delivery, outcome="accepted", event="workflow_job", jobs=(job,), runs=(run,))


def a_sample(minute: int, pool: str = "linux") -> Sample:
    at = T0 + timedelta(minutes=minute)
    return Sample(at=at, pool=PoolName(pool), queued=3, running=2, oldest_wait_s=1.5, instances={"idle": 1, "busy": 2})
