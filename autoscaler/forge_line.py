"""The line to the forges: one bounded call at a time, whose outcome counts for the forge's health.

Shared by everything that asks a forge for something; what an answer means is its caller's business.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import structlog

from autoscaler.health import Health
from autoscaler.metrics import Metrics
from autoscaler.spi import (
    AlreadyRequeued,
    Forge,
    ForgeError,
    ForgeName,
    ForgeOutcomeUnknown,
    ForgeRefused,
    ForgeRefusedForGood,
    ForgeUnauthorized,
    JobNotFound,
    NotYet,
    RateLimited,
    RunnerBusy,
)

log = structlog.get_logger()

CALL_S = 30.0
REFUSAL_LASTS = timedelta(minutes=2)
"""How long a refused call counts as ill if it is not tried again: what needs it tries again each minute."""


class ForgeLine:
    """See the module docstring."""

    def __init__(self, forges: Mapping[ForgeName, Forge], *, metrics: Metrics, health: Health) -> None:
        self.forges = forges
        self._metrics = metrics
        self._health = health
        self._gates: defaultdict[ForgeName, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(16))

    def runs_jobs_alone(self, name: ForgeName) -> bool:
        """Whether the forge runs each lost job again by itself, and not as one of its run."""
        forge = self.forges.get(name)
        return forge is not None and forge.traits.requeues_at_once

    async def call(self, name: ForgeName, what: str, make: Callable[[Forge], Any], *, is_vital: bool = True) -> Any:
        """One bounded call; its outcome counts for the forge's health if it `is_vital`. Raises ForgeError only."""
        forge = self.forges.get(name)
        if forge is None:
            raise ForgeRefused(f"forge {name} is not configured any more")
        condition = f"forge/{name}"
        try:
            async with self._gates[name], asyncio.timeout(CALL_S):
                answer = await make(forge)
        except TimeoutError as error:
            self._metrics.forge_calls_total.labels(forge=name, outcome="timeout").inc()
            text = f"{what} took longer than {CALL_S:.0f} s"
            if is_vital:
                self._health.ill(condition, text, part=what, passes=True)
            raise (ForgeError if is_vital else ForgeOutcomeUnknown)(text) from error
        except ForgeError as error:
            self._metrics.forge_calls_total.labels(forge=name, outcome=type(error).__name__).inc()
            if not is_vital:
                raise
            if isinstance(error, RunnerBusy | JobNotFound | NotYet | AlreadyRequeued | ForgeRefusedForGood):
                self._health.well(condition, part=what)
            else:
                self._health.ill(
                    condition,
                    f"{what}: {one_line(error)}",
                    remedy=_remedy(error),
                    part=what,
                    passes=not isinstance(error, ForgeUnauthorized | ForgeRefused),
                    lasts=REFUSAL_LASTS,
                )
            raise
        except Exception as error:
            log.exception("forge_adapter_broke", forge=name, call=what)
            if is_vital:
                self._health.ill(condition, f"{what}: {type(error).__name__}", part=what, passes=True)
            raise ForgeOutcomeUnknown(f"{what}: {type(error).__name__}") from error
        self._metrics.forge_calls_total.labels(forge=name, outcome="ok").inc()
        if is_vital:
            self._health.well(condition, part=what)
        return answer


def _remedy(error: ForgeError) -> str:
    match error:
        case ForgeUnauthorized():
            return "check the credentials and the permissions that the README lists for this forge"
        case RateLimited():
            return f"nothing to do: calls go on in {error.retry_after_s:.0f} s"
        case _:
            return ""


def one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
