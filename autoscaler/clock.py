"""The real clock. The only place of the daemon that reads the time or sleeps; simulations have their own."""

import asyncio
import time
from datetime import UTC, datetime


class SystemClock:
    """`autoscaler.spi.Clock` over this machine's clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))
