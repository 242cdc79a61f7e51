"""The metrics: their names and labels are a promise, their gauges follow the snapshot and never go stale."""

import re
from datetime import UTC, datetime, timedelta

from prometheus_client.parser import text_string_to_metric_families

from autoscaler.metrics import Metrics
from autoscaler.model import Caps, Cooldown, Instance, InstanceState, Job, JobState, Pool, Rules, SeenBy, Snapshot, Use
from autoscaler.model import job_id as make_job_id
from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    ForgeName,
    InstanceId,
    PoolName,
    ProviderName,
    RateBudget,
    Scope,
    Shape,
)
from tests.contract.store_builders import a_cost

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
PROMISED = {
    "jobs": ("pool", "state"),
    "job_wait_seconds": (),
    "job_breach_probability": (),
    "jobs_done_total": ("pool", "conclusion"),
    "instances": ("pool", "state", "capacity_type"),
    "launch_seconds": ("phase",),
    "launches_total": ("provider", "capacity_type", "outcome"),
    "interruptions_total": ("provider", "zone", "machine_type", "announced"),
    "notice_lead_seconds": (),
    "notices_dropped_total": ("provider", "reason"),
    "troubles": ("target",),
    "replace_seconds": (),
    "requeues_total": ("pool", "outcome"),
    "recovery_seconds": (),
    "lost_work_seconds_total": (),
    "interruption_hook_seconds": (),
    "spills_total": ("pool", "reason"),
    "cost_usd_total": ("pool", "capacity_type", "use"),
    "on_demand_equivalent_usd_total": (),
    "webhooks_total": ("forge", "outcome"),
    "intake_divergence": (),
    "rate_budget_remaining": ("target", "family"),
    "tick_seconds": (),
    "plan_seconds": (),
    "direction_changes_total": ("pool",),
    "orphans_total": (),
    "cooldowns": ("provider", "zone"),
    "error_budget_burn": ("pool",),
    "leader": (),
    "forge_calls_total": ("forge", "outcome"),
    "agent_calls_total": ("call", "outcome"),
}
SPOT = CapacityPool(
    provider=ProviderName("aws"), region="r", zone="r-a", machine_type="m7i.large", capacity_type=CapacityType.SPOT
)


def test_every_promised_metric_has_exactly_its_labels() -> None:
    metrics = Metrics()
    for name, labels in PROMISED.items():
        metric = getattr(metrics, name)
        assert metric._labelnames == labels, name
        registered = f"autoscaler_{name}".removesuffix("_total")
        assert metric._name == registered, name


def test_no_metric_is_exposed_that_is_not_promised() -> None:
    exposed = set(re.findall(r"^# TYPE autoscaler_(\S+) ", Metrics().render().decode(), flags=re.M))
    exposed = {name for name in exposed if not name.endswith("_created")}
    assert exposed == set(PROMISED)


def test_two_daemons_in_one_process_do_not_share_numbers() -> None:
    one, other = Metrics(), Metrics()
    one.orphans_total.inc()
    assert _value(one, "autoscaler_orphans_total") == 1
    assert _value(other, "autoscaler_orphans_total") == 0


def test_process_memory_and_collections_are_exposed() -> None:
    text = Metrics().render().decode()
    assert "process_resident_memory_bytes" in text
    assert "python_gc_collections_total" in text


def test_gauges_count_jobs_and_instances_of_the_snapshot() -> None:
    metrics = Metrics()
    metrics.observe_snapshot(_snapshot(jobs=3, unserved=1, instances=2), _rules("linux", "quiet"))
    assert _value(metrics, "autoscaler_jobs", pool="linux", state="queued") == 3
    assert _value(metrics, "autoscaler_jobs", pool="-", state="queued") == 1
    assert _value(metrics, "autoscaler_instances", pool="linux", state="busy", capacity_type="spot") == 2
    assert _value(metrics, "autoscaler_cooldowns", provider="aws", zone="r-a") == 1


def test_a_pool_without_jobs_reports_zero_rather_than_nothing() -> None:
    metrics = Metrics()
    metrics.observe_snapshot(_snapshot(jobs=1), _rules("linux", "quiet"))
    assert _value(metrics, "autoscaler_jobs", pool="quiet", state="lost") == 0


def test_gauges_of_what_went_away_are_dropped() -> None:
    metrics = Metrics()
    metrics.observe_snapshot(_snapshot(jobs=3, instances=2), _rules("linux"))
    metrics.observe_snapshot(_snapshot(), _rules("other"))
    assert _value(metrics, "autoscaler_jobs", pool="linux", state="queued") is None
    assert _value(metrics, "autoscaler_instances", pool="linux", state="busy", capacity_type="spot") is None


def test_budgets_of_what_went_away_are_dropped_and_costs_are_counted_by_use() -> None:
    metrics = Metrics()
    budget = RateBudget(family="launch", limit=5, remaining=3, refill_per_s=1)
    metrics.observe_budgets([("aws", budget)])
    assert _value(metrics, "autoscaler_rate_budget_remaining", target="aws", family="launch") == 3
    metrics.observe_budgets([])
    assert _value(metrics, "autoscaler_rate_budget_remaining", target="aws", family="launch") is None
    metrics.observe_costs([a_cost(usd_nano=10**9), a_cost(use=Use.LOST, usd_nano=10**9)])
    labels = {"pool": "linux", "capacity_type": "spot"}
    assert _value(metrics, "autoscaler_cost_usd_total", use="job", **labels) == 1
    assert _value(metrics, "autoscaler_cost_usd_total", use="lost", **labels) == 1
    assert _value(metrics, "autoscaler_on_demand_equivalent_usd_total") == 3


def _value(metrics: Metrics, sample: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(metrics.render().decode()):
        for found in family.samples:
            if found.name == sample and found.labels == labels:
                return float(found.value)
    return None


def _rules(*names: str) -> Rules:
    return Rules(pools={PoolName(name): _pool(name) for name in names}, caps=Caps())


def _pool(name: str) -> Pool:
    minute = timedelta(minutes=1)
    return Pool(
        name=PoolName(name), forges=frozenset({ForgeName("github")}), repos=("org/*",), labels=("linux",),
        runner_group="", priority=0, image="base", providers=(ProviderName("aws"),), shape=Shape(), min=0, max=9,
        boot_timeout=minute, idle_timeout=minute, max_job_runtime=minute, target=minute,
    )  # fmt: skip


def _snapshot(*, jobs: int = 0, unserved: int = 0, instances: int = 0) -> Snapshot:
    rows = [_job(number, PoolName("linux")) for number in range(jobs)]
    rows += [_job(jobs + number, None) for number in range(unserved)]
    machines = [_instance(number) for number in range(instances)]
    return Snapshot(
        jobs={job.id: job for job in rows}, instances={row.id: row for row in machines}, forges={}, offerings={},
        cooldowns={SPOT: Cooldown(capacity_pool=SPOT, until=NOW, failures=1, reason="dry")},
    )  # fmt: skip


def _job(number: int, pool: PoolName | None) -> Job:
    return Job(
        id=make_job_id(ForgeName("github"), str(number)), forge=ForgeName("github"), forge_job_id=str(number),
        repo="org/app", run_id="1", run_attempt=1, workflow="ci", name="test", labels=("linux",), scope=Scope("org"),
        state=JobState.QUEUED, queued_at=NOW, first_seen_at=NOW, seen_by=SeenBy.WEBHOOK, pool=pool,
    )  # fmt: skip


def _instance(number: int) -> Instance:
    return Instance(
        id=InstanceId(f"i-{number}"), pool=PoolName("linux"), provider=ProviderName("aws"), token=BatchToken("b"),
        state=InstanceState.BUSY, since=NOW, created_at=NOW, capacity_pool=SPOT,
    )  # fmt: skip


def test_what_providers_drop_is_counted_once_however_often_it_is_asked() -> None:
    metrics = Metrics()
    for count in (3, 3, 5):
        metrics.observe_providers([("aws", "foreign", count)], ["aws", "aws"])
    text = metrics.render().decode()
    assert 'autoscaler_notices_dropped_total{provider="aws",reason="foreign"} 5.0' in text
    assert 'autoscaler_troubles{target="aws"} 2.0' in text
    metrics.observe_providers([], [])
    assert "autoscaler_troubles{" not in metrics.render().decode()
