"""Every Prometheus metric of the daemon, in a registry of its own so that two daemons fit into one process.

Owns names, labels and buckets; each metric is the attribute named like it without the `autoscaler_` prefix. Cardinality
stays low: pool, forge, provider, zone, capacity type, reason; never an id of a job, an instance or a delivery. Gauges
that mirror the snapshot are filled when they are asked for (`observe_snapshot`), so that a tick pays nothing for them.
"""

from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from autoscaler.model import CostLine, Rules, Snapshot, Use
from autoscaler.money import NANO
from autoscaler.spi import RateBudget
from autoscaler.states import LIVE_JOB_STATES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNSERVED = "-"
"""The `pool` label of jobs that no pool serves; no pool can have this name."""

_WAITS = (1, 2, 5, 10, 15, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 1800, 3600, 7200)
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_LEADS = (1, 5, 10, 20, 30, 45, 60, 90, 100, 110, 115, 120, 180, 300)
_SHORT = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """All metrics of one daemon. `render()` is the answer of GET /metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._dropped: dict[tuple[str, str], int] = {}
        self._jobs()
        self._instances()
        self._interruptions()
        self._money()
        self._intake()
        self._loop()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def render(self) -> bytes:
        """The registry in the Prometheus text format (`CONTENT_TYPE`)."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"autoscaler_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"autoscaler_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"autoscaler_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _jobs(self) -> None:
        self.jobs = self._gauge("jobs", "Live jobs; pool '-' is served by no pool", "pool", "state")
        self.job_wait_seconds = self._histogram("job_wait_seconds", "From queued to running", _WAITS)
        self.job_breach_probability = self._histogram(
            "job_breach_probability", "Predicted chance to miss the wait target, when first seen", _SHARES
        )
        self.jobs_done_total = self._counter("jobs_done_total", "Jobs ended", "pool", "conclusion")

    def _instances(self) -> None:
        self.instances = self._gauge("instances", "Live instances", "pool", "state", "capacity_type")
        self.launch_seconds = self._histogram("launch_seconds", "Duration of each phase of a launch", _WAITS, "phase")
        self.launches_total = self._counter(
            "launches_total", "Launches by outcome", "provider", "capacity_type", "outcome"
        )
        self.orphans_total = self._counter("orphans_total", "Machines and registrations of ours without a row")
        self.cooldowns = self._gauge(
            "cooldowns", "Capacity pools not tried for a while; zone '*' is a quota over zones", "provider", "zone"
        )
        self.direction_changes_total = self._counter(
            "direction_changes_total", "Times a pool turned from growing to shrinking or back", "pool"
        )

    def _interruptions(self) -> None:
        self.interruptions_total = self._counter(
            "interruptions_total", "Reclaimed instances", "provider", "zone", "machine_type", "announced"
        )
        self.notices_dropped_total = self._counter(
            "notices_dropped_total", "Notices that changed nothing, by why", "provider", "reason"
        )
        self.troubles = self._gauge("troubles", "What the operator should look at although all is ready", "target")
        self.notice_lead_seconds = self._histogram("notice_lead_seconds", "From notice to reclaim", _LEADS)
        self.replace_seconds = self._histogram("replace_seconds", "From notice to a replacement being ready", _WAITS)
        self.requeues_total = self._counter("requeues_total", "Lost jobs asked to run again", "pool", "outcome")
        self.recovery_seconds = self._histogram("recovery_seconds", "From interruption to running again", _WAITS)
        self.lost_work_seconds_total = self._counter(
            "lost_work_seconds_total", "Job run time thrown away by interruptions"
        )
        self.interruption_hook_seconds = self._histogram(
            "interruption_hook_seconds", "Duration of the interruption hook", _LEADS
        )
        self.error_budget_burn = self._gauge(
            "error_budget_burn", "How fast interruptions use up the error budget; 1 is just as allowed", "pool"
        )

    def _money(self) -> None:
        self.spills_total = self._counter("spills_total", "On-demand chosen because of a breach", "pool", "reason")
        self.cost_usd_total = self._counter("cost_usd_total", "Money by what it bought", "pool", "capacity_type", "use")
        self.on_demand_equivalent_usd_total = self._counter(
            "on_demand_equivalent_usd_total", "What the same machines would have cost on demand"
        )

    def _intake(self) -> None:
        self.webhooks_total = self._counter(
            "webhooks_total", "Webhooks: accepted, duplicate, why they carried nothing, or why refused",
            "forge", "outcome",
        )  # fmt: skip
        self.intake_divergence = self._gauge("intake_divergence", "Jobs first seen by poll, not by webhook")
        self.forge_calls_total = self._counter("forge_calls_total", "Calls to a forge", "forge", "outcome")
        self.rate_budget_remaining = self._gauge("rate_budget_remaining", "Calls left now", "target", "family")
        self.agent_calls_total = self._counter("agent_calls_total", "Calls of agents", "call", "outcome")

    def _loop(self) -> None:
        self.tick_seconds = self._histogram("tick_seconds", "One observe, plan, apply", _SHORT)
        self.plan_seconds = self._histogram("plan_seconds", "The pure part of a tick", _SHORT)
        self.leader = self._gauge("leader", "1 while this daemon holds the store's lease")

    def observe_costs(self, lines: Iterable[CostLine]) -> None:
        """Count what ended machines cost. Work that turns out lost later stays under `job` here: /api/v1/costs has it
        right."""
        for line in lines:
            self.cost_usd_total.labels(pool=line.pool, capacity_type=line.capacity_type, use=line.use).inc(
                line.usd_nano / NANO
            )
            if line.use is not Use.LOST:
                self.on_demand_equivalent_usd_total.inc(line.on_demand_usd_nano / NANO)

    def observe_snapshot(self, snapshot: Snapshot, rules: Rules) -> None:
        """Fill the gauges that mirror the snapshot. Call at scrape time, on the loop's thread.

        Every configured pool reports each live job state, zero included, so that an alert on a pool never lacks
        its series; label sets that went away are dropped.
        """
        jobs = Tally((job.pool or UNSERVED, job.state.value) for job in snapshot.jobs.values())
        self.jobs.clear()
        for key in product([*rules.pools, UNSERVED], (state.value for state in LIVE_JOB_STATES)):
            jobs.setdefault(key, 0)
        for (pool, job_state), count in jobs.items():
            self.jobs.labels(pool=pool, state=job_state).set(count)
        instances = Tally(
            (row.pool, row.state.value, row.capacity_pool.capacity_type.value if row.capacity_pool else "")
            for row in snapshot.instances.values()
        )
        self.instances.clear()
        for (pool, state, capacity_type), count in instances.items():
            self.instances.labels(pool=pool, state=state, capacity_type=capacity_type).set(count)
        self.error_budget_burn.clear()
        for pool in rules.pools:
            burn = snapshot.burns.get(pool)
            self.error_budget_burn.labels(pool=pool).set(burn.share if burn is not None else 0.0)
        self.cooldowns.clear()
        cooling = Tally((one.provider, one.zone) for one in snapshot.cooldowns)
        cooling.update((one.provider, one.scope.zone or "*") for one in snapshot.scope_cooldowns)
        for (provider, zone), count in cooling.items():
            self.cooldowns.labels(provider=provider, zone=zone).set(count)

    def observe_providers(self, dropped: Iterable[tuple[str, str, int]], troubled: Iterable[str]) -> None:
        """Count what providers dropped since they were asked last, and show whose troubles there are. Call at scrape
        time."""
        for provider, reason, count in dropped:
            before = self._dropped.get((provider, reason), 0)
            self._dropped[provider, reason] = count
            self.notices_dropped_total.labels(provider=provider, reason=reason).inc(max(0, count - before))
        self.troubles.clear()
        for target, count in Tally(troubled).items():
            self.troubles.labels(target=target).set(count)

    def observe_budgets(self, budgets: Sequence[tuple[str, RateBudget]]) -> None:
        """Fill the gauge of what forges and clouds still let us call. Call at scrape time."""
        self.rate_budget_remaining.clear()
        for target, budget in budgets:
            self.rate_budget_remaining.labels(target=target, family=budget.family).set(budget.remaining)
