"""AWS's request limits: token buckets for each API, account and region, and for the machines that a call asks for.

Sizes from specs A9: RunInstances' and TerminateInstances' resource buckets are published, the classes are not all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from autoscaler.sandbox.aws_query import AwsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Holds `size` tokens and gains `refill_per_s` a second."""

    size: float
    refill_per_s: float


@dataclass(slots=True, kw_only=True)
class AwsLimits:
    """`are_on` False lifts them all. Mutable, so that a test can tighten them."""

    are_on: bool = True
    describe: Bucket = field(default_factory=lambda: Bucket(size=100, refill_per_s=20))
    describe_all: Bucket = field(default_factory=lambda: Bucket(size=50, refill_per_s=10))
    """Describing without filter, id or MaxResults."""
    mutate: Bucket = field(default_factory=lambda: Bucket(size=50, refill_per_s=5))
    launched_machines: Bucket = field(default_factory=lambda: Bucket(size=1000, refill_per_s=2))
    ended_machines: Bucket = field(default_factory=lambda: Bucket(size=1000, refill_per_s=20))


class AwsMeter:
    """Spends tokens. Never sleeps."""

    def __init__(self, limits: AwsLimits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._clock = clock
        self._levels: dict[tuple[str, str], tuple[float, float]] = {}

    def charge(self, region: str, action: str, bucket: Bucket, amount: float = 1) -> None:
        """Raises AwsError(RequestLimitExceeded); a refused call costs nothing."""
        if self.take(region, action, bucket, amount) < amount:
            raise limit_exceeded()

    def take(self, region: str, name: str, bucket: Bucket, amount: float) -> float:
        """All of `amount`, or nothing at all: what was taken."""
        if not self.limits.are_on:
            return amount
        now = self._clock()
        level, at = self._levels.get((region, name), (bucket.size, now))
        level = min(bucket.size, level + max(0.0, now - at) * bucket.refill_per_s)
        taken = amount if level >= amount else 0
        self._levels[region, name] = (level - taken, now)
        return taken

    def whole_tokens(self, region: str, name: str, bucket: Bucket) -> int:
        """How many could be taken now."""
        self.take(region, name, bucket, 0)
        return int(self._levels[region, name][0]) if self.limits.are_on else 2**31


def limit_exceeded() -> AwsError:
    return AwsError("RequestLimitExceeded", "Request limit exceeded.", status=503)
