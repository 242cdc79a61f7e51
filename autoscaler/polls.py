"""The listings that keep the level true: jobs, runners and machines, each on its own interval.

Owns the periodic tasks beside the loop. Each lists completely or reports that it failed; a failing forge or cloud
never holds up another one, and its failure is on /readyz until it answers again. Nothing here moves a row.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from operator import methodcaller
from typing import Any

import structlog

from autoscaler.facts import InstancesListed, JobRead, JobsListed, ListingFailed, RunnersListed
from autoscaler.forge_line import REFUSAL_LASTS
from autoscaler.health import Health
from autoscaler.live import LiveRows
from autoscaler.loop import Loop
from autoscaler.metrics import Metrics
from autoscaler.model import job_id
from autoscaler.observe_jobs import JobObserver
from autoscaler.sightings import Sightings
from autoscaler.spi import (
    Clock,
    Forge,
    ForgeError,
    ForgeName,
    ForgeRefused,
    ForgeUnauthorized,
    JobNotFound,
    PoolName,
    Provider,
    ProviderError,
    ProviderName,
    RateLimited,
    Shape,
    Unauthorized,
)
from autoscaler.store import LeaseLost, Store, StoreError

log = structlog.get_logger()

LISTING_S = 120.0
LISTINGS = frozenset({"list_jobs", "list_runners"})
"""A forge is not well until these very calls work, whatever else does."""
PERIODIC = LISTINGS | {"recover_deliveries"}
OFFERINGS_EVERY = timedelta(minutes=10)
OFFERINGS_LOOK = timedelta(seconds=2)
"""How soon a pool that has no offerings of its shape (new, changed, its provider failed) is looked after."""
DELIVERIES_EVERY = timedelta(minutes=5)
SAMPLES_EVERY = timedelta(seconds=10)
PRUNE_EVERY = timedelta(minutes=10)
LEASE_EVERY = timedelta(seconds=2)
DELIVERIES_KEPT = timedelta(days=4)
SAMPLES_KEPT = timedelta(hours=6)
ACTIVE_FOR = timedelta(hours=1)
SINGLE_READS = 3
"""Up to so many jobs of one repo are read singly; more are cheaper by one listing."""


class Polls:
    """See the module docstring."""

    def __init__(
        self,
        *,
        loop: Loop,
        rows: LiveRows,
        store: Store,
        sightings: Sightings,
        jobs: JobObserver,
        forges: Mapping[ForgeName, Forge],
        providers: Mapping[ProviderName, Provider],
        clock: Clock,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._loop = loop
        self._rows = rows
        self._store = store
        self._seen = sightings
        self._jobs = jobs
        self._forges = forges
        self._providers = providers
        self._clock = clock
        self._health = health
        self._metrics = metrics
        self._reading: set[tuple[ForgeName, str]] = set()
        self._offered: dict[tuple[ProviderName, PoolName], tuple[Shape, datetime]] = {}

    async def prepare(self) -> None:
        """What the first tick needs: the offerings of every pool."""
        await asyncio.gather(*(self.list_offerings(name) for name in self._providers))

    def start(
        self,
        group: asyncio.TaskGroup,
        *,
        poll: Mapping[ForgeName, timedelta],
        list_runners: timedelta,
        list_instances: timedelta,
        retention: timedelta,
    ) -> None:
        """Start every periodic task in a group."""
        for forge in self._forges:
            group.create_task(self._every(poll[forge], partial(self.list_jobs, forge)))
            group.create_task(self._every(list_runners, partial(self.list_runners, forge)))
            group.create_task(self._every(DELIVERIES_EVERY, partial(self.recover_deliveries, forge)))
            group.create_task(self._read_unlabelled(forge))
        for provider in self._providers:
            group.create_task(self._every(list_instances, partial(self.list_instances, provider)))
            group.create_task(self._every(OFFERINGS_LOOK, partial(self.list_offerings, provider), delay=OFFERINGS_LOOK))
        group.create_task(self._every(SAMPLES_EVERY, self._sample))
        group.create_task(self._every(PRUNE_EVERY, partial(self.prune, retention)))
        group.create_task(self._every(LEASE_EVERY, self._check_lease))

    async def _every(
        self, interval: timedelta, work: Callable[[], Awaitable[None]], *, delay: timedelta = timedelta(0)
    ) -> None:
        if delay:
            await self._clock.sleep(delay.total_seconds())
        while True:
            started = self._clock.monotonic()
            await work()
            took_s = self._clock.monotonic() - started
            await self._clock.sleep(max(0.05, interval.total_seconds() - took_s))

    # ------------------------------------------------------------------ forges

    async def list_jobs(self, name: ForgeName) -> None:
        now = self._clock.now()
        active = self._jobs.active_repos[name]
        for repo in [repo for repo, at in active.items() if at + ACTIVE_FOR < now]:
            del active[repo]
        live = {job.repo for job in self._rows.jobs.values() if job.forge == name}
        listing = await self._ask_forge(
            name, f"{name}/jobs", "list_jobs", lambda forge: forge.list_jobs(frozenset(live | active.keys()))
        )
        if listing is None:
            return
        self._loop.report(JobsListed(forge=name, listing=listing, started_at=now))
        if not listing.is_complete:
            detail = f"list_jobs: not all could be listed: {listing.problem or 'the forge adapter does not say why'}"
            self._health.ill(f"forge/{name}", detail[:400], part="list_jobs")

    async def list_runners(self, name: ForgeName) -> None:
        started_at = self._clock.now()
        runners = await self._ask_forge(name, name, "list_runners", lambda forge: forge.list_runners())
        if runners is not None:
            self._loop.report(RunnersListed(forge=name, runners=runners, started_at=started_at))

    async def recover_deliveries(self, name: ForgeName) -> None:
        key = f"deliveries/{name}"
        now = self._clock.now()
        saved = self._rows.settings.get(key)
        since = datetime.fromisoformat(saved) if saved else now - timedelta(hours=1)
        recovery = await self._ask_forge(name, "", "recover_deliveries", lambda forge: forge.recover_deliveries(since))
        if recovery is None:
            return
        self._rows.set_setting(key, recovery.complete_until.isoformat())
        if recovery.failed:
            log.info("deliveries_recovered", forge=name, failed=recovery.failed, redelivered=recovery.redelivered)

    async def _read_unlabelled(self, name: ForgeName) -> None:
        """Ask for the labels of jobs whose webhook did not carry them, as soon as they are known."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._jobs.unlabelled_came[name].wait()
                self._jobs.unlabelled_came[name].clear()
                pending = self._jobs.unlabelled[name]
                fresh = {id_: repo for id_, repo in pending.items() if (name, id_) not in self._reading}
                for repo, count in Counter(fresh.values()).items():
                    ids = [id_ for id_, of in fresh.items() if of == repo]
                    self._reading.update((name, id_) for id_ in ids)
                    if count <= SINGLE_READS:
                        for id_ in ids:
                            group.create_task(self._read_one(name, repo, id_))
                    else:
                        group.create_task(self._read_repo(name, repo, ids))

    async def _read_one(self, name: ForgeName, repo: str, id_: str) -> None:
        seen = None
        try:
            seen = await self._ask_forge(name, "", "get_job", lambda forge: forge.get_job(repo, id_))
        except JobNotFound:
            self._jobs.unlabelled[name].pop(id_, None)
        self._reading.discard((name, id_))
        if seen is not None:
            self._loop.report(JobRead(job=job_id(name, id_), seen=seen))

    async def _read_repo(self, name: ForgeName, repo: str, ids: list[str]) -> None:
        now = self._clock.now()
        listing = await self._ask_forge(
            name, "", "list_jobs of one repo", lambda forge: forge.list_jobs(frozenset({repo}))
        )
        self._reading.difference_update((name, id_) for id_ in ids)
        if listing is not None:
            self._loop.report(JobsListed(forge=name, listing=listing, started_at=now, is_full=False))
            if repo in listing.repos:  # what a complete listing does not show is over
                for id_ in set(ids).difference(job.forge_job_id for job in listing.jobs):
                    self._jobs.unlabelled[name].pop(id_, None)

    async def _ask_forge(self, name: ForgeName, target: str, call: str, make: Callable[[Forge], Awaitable[Any]]) -> Any:
        """One listing or read; None and a condition on record when it fails. Lets JobNotFound through."""
        try:
            async with asyncio.timeout(LISTING_S):
                answer = await make(self._forges[name])
        except JobNotFound:
            self._health.well(f"forge/{name}", part=call)
            raise
        except Exception as error:
            if not isinstance(error, ForgeError | TimeoutError):
                log.exception("forge_adapter_broke", forge=name, call=call)
            text = " ".join(str(error).split())[:300] or type(error).__name__
            remedy = ""
            if isinstance(error, ForgeUnauthorized):
                remedy = "check the credentials and the permissions that the README lists for this forge"
            elif isinstance(error, RateLimited):
                remedy = f"nothing to do: calls go on in {error.retry_after_s:.0f} s"
            is_passing = call not in LISTINGS and not isinstance(error, ForgeUnauthorized | ForgeRefused)
            self._health.ill(
                f"forge/{name}",
                f"{call}: {text}",
                remedy=remedy,
                part=call,
                passes=is_passing,
                lasts=None if call in PERIODIC else REFUSAL_LASTS,
            )
            self._metrics.forge_calls_total.labels(forge=name, outcome=type(error).__name__).inc()
            log.warning("forge_listing_failed", forge=name, call=call, error=text)
            if target:
                self._loop.report(ListingFailed(target=target))
            return None
        self._metrics.forge_calls_total.labels(forge=name, outcome="ok").inc()
        if not (call == "list_jobs" and not answer.is_complete):
            self._health.well(f"forge/{name}", part=call)
        return answer

    # ------------------------------------------------------------------ clouds

    async def list_instances(self, name: ProviderName) -> None:
        started_at = self._clock.now()
        instances = await self._ask_provider(name, lambda provider: provider.list_instances())
        if instances is not None:
            self._loop.report(InstancesListed(provider=name, instances=instances, started_at=started_at))
        else:
            self._loop.report(ListingFailed(target=name))

    async def list_offerings(self, name: ProviderName) -> None:
        """Offerings of every pool that has none of its shape yet, or old ones. A failure keeps the old ones."""
        for pool in self._loop.rules.pools.values():
            shape, at = self._offered.get((name, pool.name), (None, None))
            is_fresh = shape == pool.shape and at is not None and self._clock.now() < at + OFFERINGS_EVERY
            if name not in pool.providers or is_fresh:
                continue
            found = await self._ask_provider(name, methodcaller("offerings", pool.shape))
            if found is None:
                return
            self._seen.note_offerings(pool.name, name, found)
            self._offered[name, pool.name] = pool.shape, self._clock.now()
            self._loop.replan()

    async def _ask_provider(self, name: ProviderName, make: Callable[[Provider], Awaitable[Any]]) -> Any:
        try:
            async with asyncio.timeout(LISTING_S):
                answer = await make(self._providers[name])
        except Exception as error:
            if not isinstance(error, ProviderError | TimeoutError):
                log.exception("provider_adapter_broke", provider=name)
            text = " ".join(str(error).split())[:300] or type(error).__name__
            remedy = "check the provider's credentials and permissions" if isinstance(error, Unauthorized) else ""
            self._health.ill(f"provider/{name}", text, remedy=remedy)
            log.warning("provider_listing_failed", provider=name, error=text)
            return None
        self._health.well(f"provider/{name}")
        return answer

    # ------------------------------------------------------------------ the store

    async def _sample(self) -> None:
        self._loop.take_samples(self._clock.now())

    async def prune(self, retention: timedelta) -> None:
        """Delete what is older than retention, in bounded steps. A store that fails is the loop's to report."""
        now = self._clock.now()
        try:
            while await self._store.prune(
                before=now - retention,
                deliveries_before=now - min(retention, DELIVERIES_KEPT),
                samples_before=now - SAMPLES_KEPT,
            ):
                await self._clock.sleep(0.1)
        except LeaseLost:
            raise
        except StoreError as error:
            log.warning("prune_failed", error=str(error))

    async def _check_lease(self) -> None:
        try:
            holds = await self._store.holds_lease()
        except StoreError as error:
            log.warning("lease_not_checked", error=str(error))
            return
        if not holds:
            self._health.ill("leader", "another daemon holds the store")
            raise LeaseLost("the store's lease was lost")
        self._health.well("leader")
        self._metrics.leader.set(1)
