"""The calls of launches: ask, until the answer is known; what a failure holds back, and what it reports.

Part of apply. The token makes a repeat harmless. A refusal is data that `experience` cools what was asked for by;
what is held here are calls: of a provider that throttles, and of a pool at a provider whose configuration, credentials
or API fail.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from autoscaler.facts import Fact, LaunchAnswered
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import Instance, InstanceState, LedgerEntry, Pool, launch_key, throttle_key
from autoscaler.placement import batch_again
from autoscaler.sightings import Sightings
from autoscaler.spi import (
    BatchToken,
    CapacityUnavailable,
    Clock,
    InvalidRequest,
    LaunchBatch,
    Offering,
    OutcomeUnknown,
    Provider,
    ProviderError,
    ProviderName,
    QuotaExceeded,
    Throttled,
    Unauthorized,
)

log = structlog.get_logger()

LAUNCH_S = 60.0
LAUNCH_AGAIN_S = 5.0
AFTER_FAILURE = timedelta(seconds=5)
AFTER_MISCONFIGURED = timedelta(seconds=60)

_S = InstanceState


class Launcher:
    """What `Applier` needs to make machines of a pool: image references, user data, fresh ids."""

    def __init__(
        self,
        *,
        image_of: Callable[[Pool, ProviderName], Mapping[str, str]],
        user_data_of: Callable[[Pool, ProviderName], str],
        new_id: Callable[[str], str],
    ) -> None:
        self.image_of = image_of
        self.user_data_of = user_data_of
        self.new_id = new_id


class LaunchCalls:
    """See the module docstring."""

    def __init__(
        self,
        *,
        rows: LiveRows,
        sightings: Sightings,
        providers: Mapping[ProviderName, Provider],
        launcher: Launcher,
        clock: Clock,
        metrics: Metrics,
        report: Callable[[Fact], None],
        gates: Mapping[str, asyncio.Semaphore],
    ) -> None:
        self._rows = rows
        self._seen = sightings
        self._providers = providers
        self._launcher = launcher
        self._clock = clock
        self._metrics = metrics
        self._report = report
        self._gates = gates

    def new_id(self, kind: str) -> str:
        return self._launcher.new_id(kind)

    def offerings_again(self, pool: Pool, row: Instance) -> tuple[Offering, ...]:
        """Offerings like those that a row was committed with: its provider, its capacity type, not dearer."""
        offered = self._seen.offerings.get(pool.name, ())
        found = tuple(
            offering
            for offering in offered
            if offering.capacity_pool.provider == row.provider
            and row.capacity_pool is not None
            and offering.capacity_pool.capacity_type is row.capacity_pool.capacity_type
            and offering.price_usd_hour <= row.price_usd_hour
        )
        return batch_again(pool, found)

    async def launch(
        self,
        pool: Pool,
        provider_name: ProviderName,
        token: BatchToken,
        rows: list[Instance],
        offerings: tuple[Offering, ...],
        *,
        is_repeat: bool = False,
    ) -> None:
        """Ask for the rows' machines until the answer is known: the token makes a repeat harmless. `is_repeat`: an
        earlier life of the daemon may have asked."""
        try:
            batch = LaunchBatch(
                token=token,
                pool=pool.name,
                count=len(rows),
                offerings=offerings,
                image=self._launcher.image_of(pool, provider_name),
                user_data=self._launcher.user_data_of(pool, provider_name),
                max_lifetime=pool.max_lifetime,
                disk_gib=pool.shape.disk_gib,
                is_repeat=is_repeat,
            )
        except InvalidRequest as error:
            self._launch_failed(pool, provider_name, token, offerings, error)
            return
        while not await self._launch(pool, provider_name, batch):
            batch = replace(batch, is_repeat=True)
            await self._clock.sleep(LAUNCH_AGAIN_S)
            left = self._rows.of_token(token)
            if any(row.state is _S.REQUESTED for row in left):
                continue
            if any(row.state is _S.TERMINATING and row.provider_id is None for row in left):
                unknown = OutcomeUnknown("nobody knew until the deadline whether the launch took effect")
                self._report(
                    LaunchAnswered(token=token, result=None, error=str(unknown), offerings=offerings, failure=unknown)
                )
            return  # a listing settled it, or its deadline passed

    async def _launch(self, pool: Pool, provider_name: ProviderName, batch: LaunchBatch) -> bool:
        """One call; False when it may have taken effect and nobody knows."""
        started = self._clock.monotonic()
        try:
            async with self._gates[provider_name], asyncio.timeout(LAUNCH_S):
                result = await self._providers[provider_name].launch(batch)
        except ProviderError as error:
            # A repeat that failed before it asked says nothing about what was asked before.
            says_nothing = batch.is_repeat and not isinstance(
                error, InvalidRequest | CapacityUnavailable | QuotaExceeded
            )
            if isinstance(error, OutcomeUnknown) or says_nothing:
                return self._unsettled(batch.token, error)
            self._launch_failed(pool, provider_name, batch.token, batch.offerings, error)
        except Exception as error:
            return self._unsettled(batch.token, error)
        else:
            self._seen.held_back.pop((pool.name, provider_name), None)
            for refusal in result.refusals:
                if isinstance(refusal.error, Throttled):
                    until = self._clock.now() + timedelta(seconds=refusal.error.retry_after_s)
                    self._hold(throttle_key(provider_name), until)
            self._count(provider_name, batch.offerings, "launched", len(result.instances))
            for outcome, count in Counter(_OUTCOMES.get(type(r.error), "failed") for r in result.refusals).items():
                self._count(provider_name, batch.offerings, outcome, count)
            self._metrics.launch_seconds.labels(phase="launch").observe(self._clock.monotonic() - started)
            self._report(LaunchAnswered(token=batch.token, result=result, offerings=batch.offerings))
        return True

    def _unsettled(self, token: BatchToken, error: Exception) -> bool:
        log.warning("launch_unsettled", token=token, kind=type(error).__name__, error=_one_line(error))
        self._report(LaunchAnswered(token=token, result=None, error=_one_line(error), is_unknown=True))
        return False

    def _launch_failed(
        self,
        pool: Pool,
        provider: ProviderName,
        token: BatchToken,
        offerings: tuple[Offering, ...],
        error: ProviderError,
    ) -> None:
        now, key = self._clock.now(), launch_key(pool.name, provider)
        match error:
            case Throttled():
                self._hold(throttle_key(provider), now + timedelta(seconds=error.retry_after_s))
            case InvalidRequest() | Unauthorized():
                self._seen.held_back[pool.name, provider] = f"launching at {provider} fails: {_one_line(error)}"
                self._hold(key, now + AFTER_MISCONFIGURED)
            case CapacityUnavailable() | QuotaExceeded():
                pass  # what was asked for cools, and others are asked at once
            case _:
                self._hold(key, now + AFTER_FAILURE)
        self._count(provider, offerings, _OUTCOMES.get(type(error), "failed"), 1)
        log.warning("launch_failed", pool=pool.name, error=_one_line(error), kind=type(error).__name__)
        self._rows.note(
            LedgerEntry(
                at=now,
                actor="autoscaler",
                action="launch",
                subject=key,
                pool=pool.name,
                reason=_one_line(error),
                outcome="failed",
            )
        )
        self._report(
            LaunchAnswered(token=token, result=None, error=_one_line(error), offerings=offerings, failure=error)
        )

    def _hold(self, key: str, until: datetime) -> None:
        """Calls that run beside each other may be asked to wait for different times: the longest counts."""
        self._seen.retry_after[key] = max(until, self._seen.retry_after.get(key, until))

    def _count(self, provider: ProviderName, offerings: Sequence[Offering], outcome: str, count: int) -> None:
        if count:
            word = offerings[0].capacity_pool.capacity_type
            self._metrics.launches_total.labels(provider=provider, capacity_type=word, outcome=outcome).inc(count)


_OUTCOMES: Mapping[type[ProviderError], str] = {
    CapacityUnavailable: "refused",
    QuotaExceeded: "quota",
    Throttled: "throttled",
    InvalidRequest: "invalid",
    Unauthorized: "unauthorized",
}


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
