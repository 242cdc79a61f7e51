"""Child: a core alone, holding as many rows as it is told to. What `plan` and a tick cost, and the memory they need."""

import gc
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from autoscaler import logs
from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.config import load
from autoscaler.core import Core, make_launcher
from autoscaler.health import Health
from autoscaler.metrics import Metrics
from autoscaler.model import Demand, Instance, InstanceState, Job, JobState, Prediction, SeenBy, Snapshot, job_id
from autoscaler.plan import plan
from autoscaler.spi import (
    BatchToken,
    ForgeName,
    InstanceId,
    PoolName,
    ProviderId,
    ProviderName,
    RunnerId,
    Scope,
    label_set,
)
from autoscaler.store import Changes, open_store
from benchmarks.children import memory_mb
from benchmarks.null_provider import PRICE_USD_HOUR, NullProvider
from benchmarks.site import Pool, Secrets, make_real_forges, write_config
from runners.bootstrap import boot_document

FLEET = (
    InstanceState.BUSY,
    InstanceState.LAUNCHED,
    InstanceState.BUSY,
    InstanceState.IDLE,
    InstanceState.BUSY,
    InstanceState.LAUNCHED,
    InstanceState.BUSY,
    InstanceState.REGISTERING,
    InstanceState.BUSY,
    InstanceState.LAUNCHED,
)
"""States of ten machines in a row: half of the fleet works, the rest comes, in the order in which jobs were queued."""


def pools_of(count: int) -> list[Pool]:
    """Half of the pools serve GitHub, half GitLab; each has a label of its own."""
    return [
        Pool(name=f"pool-{i}", forge="github", repo="acme/*", labels=("linux", f"size-{i}"))
        if i % 2
        else Pool(name=f"pool-{i}", forge="gitlab", repo="tools/*", labels=("linux", f"size-{i}"))
        for i in range(count)
    ]


def rows_of(size: int, pools: list[Pool], now: datetime) -> tuple[list[Job], list[Instance]]:
    """A fleet in balance: each working machine has its running job, each queued job a machine that comes or idles."""
    jobs, instances = [], []
    for i in range(size):
        pool, state = pools[i % len(pools)], FLEET[i // len(pools) % len(FLEET)]
        job = _job(i, pool, state, now - timedelta(seconds=60 + i % 240))
        jobs.append(job)
        instances.append(_instance(i, pool, state, job, now - timedelta(seconds=i % 30)))
    return jobs, instances


def _job(i: int, pool: Pool, state: InstanceState, queued_at: datetime) -> Job:
    forge, is_running = ForgeName(pool.forge), state is InstanceState.BUSY
    repo = pool.repo.replace("*", f"repo-{i % 200}")
    return Job(
        id=job_id(forge, str(10_000_000 + i)),
        forge=forge,
        forge_job_id=str(10_000_000 + i),
        repo=repo,
        run_id=str(5_000_000 + i // 4),
        run_attempt=1,
        workflow="ci",
        name=f"test ({i % 16})",
        labels=label_set(pool.labels),
        scope=Scope(repo.partition("/")[0]),
        state=JobState.RUNNING if is_running else JobState.QUEUED,
        queued_at=queued_at,
        first_seen_at=queued_at,
        seen_by=SeenBy.WEBHOOK,
        version=1,
        pool=PoolName(pool.name),
        started_at=queued_at if is_running else None,
        instance=_id(i) if is_running else None,
        prediction=Prediction(wait_s=30.0, breach=0.1, target_s=60.0),
        url=f"https://github.com/{repo}/actions/runs/{5_000_000 + i // 4}/job/{10_000_000 + i}",
    )


def _instance(i: int, pool: Pool, state: InstanceState, job: Job, since: datetime) -> Instance:
    is_registered = state is not InstanceState.LAUNCHED
    return Instance(
        id=_id(i),
        pool=PoolName(pool.name),
        provider=ProviderName("here"),
        token=BatchToken(f"b-{i // 50:012x}"),
        state=state,
        since=since,
        created_at=since,
        version=1,
        price_usd_hour=PRICE_USD_HOUR,
        provider_id=ProviderId(f"null-{i}"),
        claim=f"{i:064x}" if is_registered else "",
        demand=Demand(forge=job.forge, scope=job.scope, group="", labels=job.labels) if is_registered else None,
        runner_id=RunnerId(str(i)) if is_registered else None,
        runner_name=f"bench--{_id(i)}-1" if is_registered else "",
        job=job.id if state is InstanceState.BUSY else None,
    )


def _id(i: int) -> InstanceId:
    return InstanceId(f"i-{i:012x}")


def group_and_sort(snapshot: Snapshot) -> int:
    """The baseline: what any planner must at least do with these rows."""
    jobs: dict[object, list[Job]] = defaultdict(list)
    for job in snapshot.jobs.values():
        jobs[job.pool, job.state].append(job)
    instances: dict[object, list[Instance]] = defaultdict(list)
    for instance in snapshot.instances.values():
        instances[instance.pool, instance.state].append(instance)
    for group in jobs.values():
        group.sort(key=lambda job: (job.queued_at, job.id))
    for fleet in instances.values():
        fleet.sort(key=lambda instance: (instance.since, instance.id))
    return len(jobs) + len(instances)


def never_seen(snapshot: Snapshot) -> Snapshot:
    """As if all jobs had come at once: their waits are yet to be predicted."""
    return replace(snapshot, jobs={id_: replace(job, prediction=None) for id_, job in snapshot.jobs.items()})


def nothing_fits(snapshot: Snapshot) -> Snapshot:
    """The same rows at their worst: every job waits, bound to its run, and every machine idles for another one."""
    jobs = {
        id_: replace(job, state=JobState.QUEUED, labels=label_set((*job.labels, f"run-{job.run_id}")))
        for id_, job in snapshot.jobs.items()
    }
    machines = {}
    for number, (row, job) in enumerate(zip(snapshot.instances.values(), snapshot.jobs.values(), strict=True)):
        labels = label_set((*job.labels, f"run-{number}"))
        demand = Demand(forge=job.forge, scope=job.scope, group="", labels=labels)
        machines[row.id] = replace(row, state=InstanceState.IDLE, job=None, demand=demand)
    return replace(snapshot, jobs=jobs, instances=machines)


async def start(*, folder: str, size: int, pool_count: int) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
    """Store the rows, load a core from the store as a restart does, and let it tick once."""
    path = Path(folder)
    pools = pools_of(pool_count)
    config = load(write_config(path, known=Secrets.fresh(), pools=pools))
    logs.configure(level="warning")
    clock, calls = SystemClock(), Calls()
    store = open_store(config.autoscaler.store)
    await store.open()
    await store.acquire_lease("bench")
    jobs, instances = rows_of(size, pools, clock.now())
    await store.commit(Changes(jobs=jobs, instances=instances))
    del jobs, instances
    forges = make_real_forges(config, clock, calls)
    provider = NullProvider(ProviderName("here"))
    core = Core(
        config=config,
        store=store,
        forges=forges,
        providers={provider.name: provider},
        launcher=make_launcher(lambda: config, user_data_of=boot_document, new_id=lambda kind: f"{kind}-new"),
        clock=clock,
        metrics=Metrics(),
        health=Health(clock),
    )
    await core.prepare()
    core.sightings.sealed.update(id_ for id_, row in core.rows.instances.items() if row.state is InstanceState.BUSY)
    await core.loop.tick()

    async def measure(*, rounds: int) -> dict[str, Any]:
        return await _measure(core, clock, rounds)

    async def close() -> None:
        await core.aclose(grace_s=1)
        for forge in forges.values():
            await forge.aclose()
        await calls.aclose()
        await store.aclose()

    return {"launched": len(provider.launched)}, {"measure": measure}, close


async def _measure(core: Core, clock: SystemClock, rounds: int) -> dict[str, Any]:
    """Best of the rounds in milliseconds: what else the machine does only ever adds."""
    snapshot, rules = core.loop.snapshot, core.rules()
    assert snapshot is not None
    gc.collect()
    plans, baselines, ticks, idle = [], [], [], []
    for _ in range(rounds):
        baselines.append(_ms(lambda: group_and_sort(snapshot)))
        plans.append(_ms(lambda: plan(snapshot, rules, clock.now())))
        started = time.perf_counter()
        await core.loop.tick()
        idle.append((time.perf_counter() - started) * 1000)
        core.loop.replace_rules(rules)  # what a reload does: the next tick plans all of it
        started = time.perf_counter()
        await core.loop.tick()
        ticks.append((time.perf_counter() - started) * 1000)
    rss_mb = memory_mb(os.getpid())[1]
    worst, unseen = nothing_fits(snapshot), never_seen(snapshot)
    return {
        "first_sight_ms": min(_ms(lambda: plan(unseen, rules, clock.now())) for _ in range(3)),
        "worst_ms": min(_ms(lambda: plan(worst, rules, clock.now())) for _ in range(3)),
        "plan_ms": min(plans),
        "baseline_ms": min(baselines),
        "full_tick_ms": min(ticks),
        "idle_tick_ms": max(sorted(idle)[: max(1, len(idle) * 9 // 10)]),
        "rss_mb": rss_mb,
    }


def _ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000
