"""A real clock whose sleepers are in a hurry."""

from autoscaler.clock import SystemClock


class HurriedClock(SystemClock):
    """Pauses between polls and repeats last a tenth of what was asked for; what time it is, and when something times
    out, is as it is. For tests that are not about how long an adapter waits."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 10)
