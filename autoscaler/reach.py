"""Whether a pool can keep its wait target with machines that must boot first, and how many ready ones would keep it.

Pure. Cold, a job waits at least as long as a machine of its pool takes; no spending makes that shorter. With n machines
ready a job waits only when more than n others came within one boot before it: jobs that come at random (Poisson) leave
that to the chance that the target allows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autoscaler.boots import ENOUGH, PRIOR, pool_boots
from autoscaler.model import Arrivals, Pool
from autoscaler.spi import PoolName, ProviderName

MOST = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """`cold_s` is the time by which the share of machines has come that the target names; `is_measured`: from the
    pool's own machines. `ready` is how many ready machines would keep the target, None where the load is not known."""

    cold_s: float
    is_reachable: bool
    is_measured: bool
    ready: int | None = None


def reach_of(
    pool: Pool, arrivals: Mapping[tuple[PoolName, ProviderName], Arrivals], *, jobs_per_s: float | None = None
) -> Reach:
    """By the provider whose machines come soonest. `jobs_per_s` is how fast jobs came lately."""
    boots = [pool_boots(pool, name, arrivals) for name in pool.providers] or [PRIOR]
    cold_s = min(one.quantile(pool.wait_quantile) for one in boots)
    is_reachable = cold_s <= pool.target.total_seconds()
    needed = None if is_reachable or jobs_per_s is None else ready_for(jobs_per_s * cold_s, pool.wait_quantile)
    return Reach(
        cold_s=cold_s,
        is_reachable=is_reachable,
        is_measured=sum(len(known.seconds) for (name, _), known in arrivals.items() if name == pool.name) >= ENOUGH,
        ready=needed,
    )


def ready_for(expected: float, share: float) -> int:
    """The fewest that are enough in this share of cases when so many are expected (the quantile of Poisson, Knuth's
    sum in logarithms, so that large loads do not underflow)."""
    if expected <= 0:
        return 1
    total, count, log_term = 0.0, 0, -expected
    while count < MOST:
        total += math.exp(log_term)
        if total >= share:
            return max(1, count)
        count += 1
        log_term += math.log(expected / count)
    return MOST


def reach_note(pool: Pool, reach: Reach) -> str:
    """For people, where the target cannot be kept cold; "" where it can."""
    if reach.is_reachable:
        return ""
    by = "its machines take" if reach.is_measured else "machines usually take"
    cold = f"{100 * pool.wait_quantile:.4g} % of them within {_seconds(reach.cold_s)}"
    told = f"cannot be met by booting: {by} longer ({cold})"
    if reach.ready is None:
        return f"{told}; machines that stand ready (min) would meet it"
    return f"{told}; {reach.ready} machines that stand ready (min) would meet it at the load of late"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
