"""From configuration to the rules that decisions read."""

from datetime import timedelta

from autoscaler.config import Caps as ConfiguredCaps
from autoscaler.config import Config, PoolConfig
from autoscaler.model import Caps, Pool, Rules


def rules_of(config: Config) -> Rules:
    """The decision rules of a configuration."""
    return Rules(
        pools={pool.name: _pool(pool) for pool in config.pools},
        caps=_caps(config.autoscaler.caps),
        provider_caps={name: _caps(caps) for name, caps in config.provider_caps.items()},
        terminate_again_after=max(timedelta(seconds=5), config.autoscaler.list_instances),
        evidence_half_life=config.autoscaler.evidence_half_life,
        telling_forges=config.telling_forges,
    )


def _caps(caps: ConfiguredCaps) -> Caps:
    return Caps(instances=caps.instances, usd_per_hour=caps.usd_per_hour, usd_per_day=caps.usd_per_day)


def _pool(pool: PoolConfig) -> Pool:
    return Pool(
        name=pool.name,
        forges=frozenset(pool.forges),
        repos=pool.repos,
        labels=pool.labels,
        runner_group=pool.runner_group,
        priority=pool.priority,
        image=pool.image,
        providers=pool.providers,
        shape=pool.shape,
        min=pool.min,
        max=pool.max,
        boot_timeout=pool.boot_timeout,
        idle_timeout=pool.idle_timeout,
        max_job_runtime=pool.max_job_runtime,
        target=pool.wait.target,
        spot_enabled=pool.spot.enabled,
        max_spot_price_usd_hour=pool.spot.max_price,
        spot_spread=pool.spot.spread,
        spill_enabled=pool.spill.enabled,
        spill_caps=Caps(usd_per_hour=pool.spill.max_usd_per_hour, usd_per_day=pool.spill.max_usd_per_day),
        on_demand_from=pool.requeue.on_demand_from,
        requeue_enabled=pool.requeue.enabled,
        requeue_attempts=pool.requeue.attempts,
        opt_out_labels=pool.requeue.opt_out_labels,
        wait_quantile=pool.wait.quantile,
        spill_margin=pool.spill.margin,
        error_budget=pool.spot.error_budget,
        requeues_failures=pool.requeue.mixed_failures == "ride_along",
        cancels_unservable=pool.unservable == "cancel_run",
    )
