"""`autoscaler plan`: what the daemon would do now, and why. Reads everything, changes nothing.

    store (read beside a live daemon) + listings of forges and providers -> facts -> rows in memory -> plan -> report

The same observer and the same `plan` as in the daemon; there is no apply, and the rows are never flushed. What a
running daemon keeps in memory alone (cool-downs, retries, sealed runners) is not seen: the report is about a daemon
that starts now. Adapters are made as for `check`: the local provider makes its own folder where there is none.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from autoscaler import logs
from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.config import Config, load
from autoscaler.core import runner_prefix
from autoscaler.dry_run_report import Findings, ReadFailure, document, text
from autoscaler.experience import Experience
from autoscaler.facts import Fact, InstancesListed, JobRead, JobsListed, ListingFailed, RunnersListed, WebhookArrived
from autoscaler.lessons import Lessons
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import job_id
from autoscaler.observe import Observer
from autoscaler.observe_jobs import JobObserver
from autoscaler.observe_losses import LossObserver
from autoscaler.outbox import Outbox
from autoscaler.plan import plan
from autoscaler.plugins import make_forges, make_providers
from autoscaler.reloading import config_secrets
from autoscaler.rules import rules_of
from autoscaler.sightings import Sightings
from autoscaler.spi import (
    Clock,
    Forge,
    ForgeError,
    ForgeName,
    ForgeUnauthorized,
    JobNotFound,
    Offering,
    PoolName,
    Provider,
    ProviderError,
    ProviderName,
    Surroundings,
    Unauthorized,
)
from autoscaler.store.memory import MemoryStore
from autoscaler.store.reading import StoreReader, reading_store

LISTING_S = 60.0
JOBS_READ = 50
"""Jobs whose labels a webhook did not carry and that are asked for singly; the daemon asks for all of them."""

_T = TypeVar("_T")


async def dry_run(path: Path) -> tuple[dict[str, Any], str]:
    """The report as a JSON document and as text. Raises ConfigError, StoreError."""
    config = load(path)
    logs.configure(level="warning", secrets=config_secrets(config))
    found = await _look(config)
    scrubber = logs.Scrubber(config_secrets(config))
    scrubbed: dict[str, Any] = dict(scrubber(None, "", document(found)))
    return scrubbed, scrubber.text(text(found))


async def _look(config: Config) -> Findings:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        calls = Calls()
        stack.push_async_callback(calls.aclose)
        surroundings = Surroundings(
            deployment=config.autoscaler.name,
            runner_prefix=runner_prefix(config.autoscaler.name),
            clock=clock,
            gates=calls,
            public_url=lambda: config.autoscaler.public_url,
        )
        forges = make_forges(config, surroundings)
        for forge in forges.values():
            stack.push_async_callback(forge.aclose)
        providers = make_providers(config, surroundings)
        for provider in providers.values():
            stack.push_async_callback(provider.aclose)
        store = await stack.enter_async_context(reading_store(config.autoscaler.store))
        return await _Look(config, store, forges, providers, clock).findings()


@dataclass(frozen=True, slots=True)
class _Listed:
    """What listings came to: facts for the observer, offerings, and what failed."""

    facts: list[Fact]
    offerings: dict[PoolName, tuple[Offering, ...]]
    warnings: list[ReadFailure]


class _Look:
    """One look at the world, from one store, with rows of its own that nobody flushes."""

    def __init__(
        self,
        config: Config,
        store: StoreReader,
        forges: Mapping[ForgeName, Forge],
        providers: Mapping[ProviderName, Provider],
        clock: Clock,
    ) -> None:
        self._config = config
        self._store = store
        self._forges = forges
        self._providers = providers
        self._clock = clock
        self._rules = rules_of(config)
        self._rows = LiveRows(MemoryStore())
        self._seen = Sightings()
        self._jobs = JobObserver(self._rows, self._seen, forges, Metrics(), heard_at=lambda _: None)
        self._listed = _Listed(facts=[], offerings={}, warnings=[])

    async def findings(self) -> Findings:
        stored = await self._store.load()
        self._rows.load(stored)
        known = frozenset(self._rows.instances)
        self._jobs.load(self._clock.now())
        self._jobs.rematch(self._rules, self._clock.now())
        experience = Experience(self._rows, self._seen)
        observer = Observer(
            self._rows,
            self._seen,
            self._jobs,
            LossObserver(self._rows, self._seen, Metrics(), experience=experience, heard_at=lambda _: None),
            experience=experience,
            lessons=Lessons(self._rows, Metrics(), self._clock.now()),
            outbox=Outbox(self._rows, self._forges),
            runner_prefix=runner_prefix(self._config.autoscaler.name),
            providers=self._providers.keys(),
        )
        inbox = [WebhookArrived(seq=row.seq, forge=row.forge, webhook=row.webhook) for row in stored.inbox]
        await self._consume(observer, inbox)
        await self._list_everything()
        await self._consume(observer, self._listed.facts)
        await self._consume(observer, await self._read_unlabelled())
        self._seen.offerings = self._listed.offerings
        now = self._clock.now()
        unhealthy = {warning.target for warning in self._listed.warnings}
        snapshot = observer.snapshot(now, forges=self._forges, unhealthy=unhealthy, handed=set())
        return Findings(
            deployment=self._config.autoscaler.name,
            now=now,
            is_new_store=stored.is_new,
            snapshot=snapshot,
            rules=self._rules,
            planned=plan(snapshot, self._rules, now),
            warnings=tuple(self._listed.warnings),
            adopted=tuple(row for row in self._rows.instances.values() if row.adopted and row.id not in known),
        )

    async def _consume(self, observer: Observer, facts: Sequence[Fact]) -> None:
        """As a tick does: jobs that ended long ago are recalled from the store first."""
        for job in await self._store.jobs_by_ids(self._jobs.unknown_ids(facts)):
            if job.id not in self._rows.jobs:
                self._rows.remember_ended(job.id, job.state)
        observer.consume(facts, self._rules, self._clock.now())

    # ------------------------------------------------------------------ listings

    async def _list_everything(self) -> None:
        await asyncio.gather(
            *(self._list_jobs(name, forge) for name, forge in self._forges.items()),
            *(self._list_runners(name, forge) for name, forge in self._forges.items()),
            *(self._list_instances(name, provider) for name, provider in self._providers.items()),
            *(self._list_offerings(name, provider) for name, provider in self._providers.items()),
        )
        self._listed.warnings.sort(key=lambda warning: (warning.target, warning.call))

    async def _list_jobs(self, name: ForgeName, forge: Forge) -> None:
        now = self._clock.now()
        active = self._jobs.active_repos[name].keys() | {job.repo for job in self._rows.jobs.values()}
        listing = await self._ask(
            name,
            "list_jobs",
            forge.list_jobs(frozenset(active)),
            means="its new jobs are not seen, and no machine that could serve them is given up",
        )
        if listing is None:
            self._listed.facts.append(ListingFailed(target=f"{name}/jobs"))
        else:
            self._listed.facts.append(JobsListed(forge=name, listing=listing, started_at=now))

    async def _list_runners(self, name: ForgeName, forge: Forge) -> None:
        now = self._clock.now()
        runners = await self._ask(
            name,
            "list_runners",
            forge.list_runners(),
            means="which of its runners are online, busy or left over cannot be judged, and none is removed",
        )
        if runners is None:
            self._listed.facts.append(ListingFailed(target=name))
        else:
            self._listed.facts.append(RunnersListed(forge=name, runners=runners, started_at=now))

    async def _list_instances(self, name: ProviderName, provider: Provider) -> None:
        now = self._clock.now()
        instances = await self._ask(
            name,
            "list_instances",
            provider.list_instances(),
            means="whether its machines live cannot be judged, and none is swept",
        )
        if instances is None:
            self._listed.facts.append(ListingFailed(target=name))
        else:
            self._listed.facts.append(InstancesListed(provider=name, instances=instances, started_at=now))

    async def _list_offerings(self, name: ProviderName, provider: Provider) -> None:
        for pool in self._rules.pools.values():
            if name not in pool.providers:
                continue
            found = await self._ask(
                name, "offerings", provider.offerings(pool.shape), means=f"pool {pool.name} cannot launch there"
            )
            before = self._listed.offerings.get(pool.name, ())
            self._listed.offerings[pool.name] = (*before, *(found or ()))

    async def _read_unlabelled(self) -> list[Fact]:
        """Jobs of the inbox whose labels a webhook did not carry."""
        facts: list[Fact] = []
        for name, forge in self._forges.items():
            for id_, repo in list(self._jobs.unlabelled[name].items())[:JOBS_READ]:
                seen = await self._ask(name, "get_job", forge.get_job(repo, id_), means=f"job {id_} is not counted")
                if seen is not None:
                    facts.append(JobRead(job=job_id(name, id_), seen=seen))
        return facts

    async def _ask(self, target: str, call: str, asked: Awaitable[_T], *, means: str) -> _T | None:
        """One read; None and a warning that says what cannot be judged without it."""
        try:
            async with asyncio.timeout(LISTING_S):
                return await asked
        except JobNotFound:
            return None
        except (ForgeError, ProviderError, TimeoutError) as error:
            message = " ".join(str(error).split())[:300] or f"no answer in {LISTING_S:g} s"
            is_refused = isinstance(error, ForgeUnauthorized | Unauthorized)
            remedy = (
                "check its credentials and permissions; `autoscaler check --online` tries them" if is_refused else ""
            )
            self._listed.warnings.append(
                ReadFailure(target=target, call=call, message=message, means=means, remedy=remedy)
            )
            return None
