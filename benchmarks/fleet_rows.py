"""A store that already knows a fleet: each machine of a cloud launched for a job that still waits for it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoscaler.config import load
from autoscaler.model import Instance, InstanceState, Job, JobState, SeenBy, job_id
from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    ForgeName,
    InstanceId,
    PoolName,
    ProviderId,
    ProviderName,
    Scope,
    label_set,
)
from autoscaler.store import Changes, open_store
from benchmarks.clouds import SPOT_USD_HOUR
from benchmarks.site import GITHUB_LABELS, GITHUB_REPO

FIRST_JOB = 10_000_000


async def store_fleet(config_path: Path, *, provider: str, region: str, machines: Sequence[dict[str, Any]]) -> None:
    """Write the rows into the configured store, as a daemon before would have left them."""
    store = open_store(load(config_path).autoscaler.store)
    await store.open()
    try:
        await store.acquire_lease("bench")
        now = datetime.now(UTC)
        jobs = [_job(FIRST_JOB + number, now) for number in range(len(machines))]
        rows = [_instance(number, one, provider, region, now) for number, one in enumerate(machines)]
        await store.commit(Changes(jobs=jobs, instances=rows))
    finally:
        await store.aclose()


def _job(number: int, now: datetime) -> Job:
    forge = ForgeName("github")
    return Job(
        id=job_id(forge, str(number)),
        forge=forge,
        forge_job_id=str(number),
        repo=GITHUB_REPO,
        run_id=str(number // 4),
        run_attempt=1,
        workflow="ci",
        name=f"test ({number % 16})",
        labels=label_set(GITHUB_LABELS),
        scope=Scope(GITHUB_REPO.partition("/")[0]),
        state=JobState.QUEUED,
        queued_at=now,
        first_seen_at=now,
        seen_by=SeenBy.WEBHOOK,
        version=1,
        pool=PoolName("linux"),
    )


def _instance(number: int, machine: dict[str, Any], provider: str, region: str, now: datetime) -> Instance:
    place = CapacityPool(
        provider=ProviderName(provider),
        region=region,
        zone=machine["zone"],
        machine_type=machine["machine_type"],
        capacity_type=CapacityType.SPOT,
    )
    return Instance(
        id=InstanceId(f"i-{number:012x}"),
        pool=PoolName("linux"),
        provider=ProviderName(provider),
        token=BatchToken(machine["token"]),
        state=InstanceState.LAUNCHED,
        since=now,
        created_at=now,
        version=1,
        capacity_pool=place,
        price_usd_hour=SPOT_USD_HOUR,
        provider_id=ProviderId(machine["id"]),
        launched_at=datetime.fromtimestamp(machine["launched_at"], UTC),
    )
