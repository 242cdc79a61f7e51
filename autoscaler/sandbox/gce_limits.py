"""Compute Engine's rate quotas: requests per minute in groups, and a cap on bulk inserts at a time.

Numbers and rules from Google's page on rate quotas: 1,500 a minute in each group, counted in synchronized minutes (a
quota that is used up at 10:00:15 is full again at 10:01:00), refused with 403 rateLimitExceeded. Bulk inserts: 20 a
second, 10 at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from autoscaler.sandbox.gce_wire import rate_exceeded

_WINDOW_S = 60


class RateGroup(StrEnum):
    """Which quota a method draws on, by Google's names of the metrics."""

    QUERIES = "default"
    READS = "read_requests"
    LISTS = "list_requests"
    OPERATION_READS = "operation_read_requests"


@dataclass(slots=True, kw_only=True)
class GceLimits:
    """`are_on` False lifts them all. Mutable, so that a test can tighten them."""

    are_on: bool = True
    queries_per_minute: int = 1500
    reads_per_minute: int = 1500
    lists_per_minute: int = 1500
    operation_reads_per_minute: int = 1500
    bulk_inserts_per_second: int = 20
    concurrent_bulk_inserts: int = 10

    def per_minute(self, group: RateGroup) -> int:
        match group:
            case RateGroup.QUERIES:
                return self.queries_per_minute
            case RateGroup.READS:
                return self.reads_per_minute
            case RateGroup.LISTS:
                return self.lists_per_minute
            case RateGroup.OPERATION_READS:
                return self.operation_reads_per_minute


class GceMeter:
    """Counts calls per group and place (a region, a zone's region, or the whole project). Never sleeps."""

    def __init__(self, limits: GceLimits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._clock = clock
        self._used: dict[tuple[str, str], tuple[int, int]] = {}

    def charge(self, group: RateGroup, place: str) -> None:
        """Raises GceError; a refused call is not counted."""
        self._count(f"compute.googleapis.com/{group}", place, _WINDOW_S, self.limits.per_minute(group))

    def charge_bulk(self, place: str, running: int) -> None:
        """Raises GceError; `running` bulk inserts have not ended."""
        if self.limits.are_on and running >= self.limits.concurrent_bulk_inserts:
            raise rate_exceeded("compute.googleapis.com/concurrent_bulk_insert_operations")
        self._count("compute.googleapis.com/bulk_insert_requests", place, 1, self.limits.bulk_inserts_per_second)

    def _count(self, metric: str, place: str, window_s: int, limit: int) -> None:
        if not self.limits.are_on:
            return
        window = int(self._clock() // window_s)
        begun, used = self._used.get((metric, place), (window, 0))
        used = used if begun == window else 0
        if used >= limit:
            raise rate_exceeded(metric)
        self._used[metric, place] = (window, used + 1)
