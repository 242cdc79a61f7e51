"""A clock for tests: sleeping is an instant, and time passes by what was slept and stepped."""

from datetime import UTC, datetime, timedelta


class SteppingClock:
    """See `autoscaler.spi.Clock`."""

    def __init__(self, start: datetime = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed_s = 0.0
        self.slept_s = 0.0

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed_s)

    def monotonic(self) -> float:
        return self._elapsed_s

    async def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        self.step(seconds)

    def step(self, seconds: float) -> None:
        self._elapsed_s += seconds
