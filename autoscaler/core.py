"""One daemon's working parts put together, free of sockets and signals: rows, loop, polls, desk.

The same object runs in production under `daemon` and in simulations on a virtual-time loop. It implements
`http.view.DaemonView` for the admin side.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

import structlog

from autoscaler.apply import Applier
from autoscaler.apply_forge import ForgeCalls
from autoscaler.apply_game_day import GameDays
from autoscaler.apply_launch import Launcher
from autoscaler.apply_requeue import RequeueCalls
from autoscaler.apply_tell import TellCalls
from autoscaler.config import Config
from autoscaler.experience import Experience
from autoscaler.facts import Fact, WebhookArrived
from autoscaler.forge_line import ForgeLine
from autoscaler.game_day import GameDay
from autoscaler.game_day_report import GameDayReport, GameDayReporter
from autoscaler.health import Health
from autoscaler.http.agents import AgentDesk
from autoscaler.http.limits import Refusals
from autoscaler.http.view import Condition, TickView, Trouble
from autoscaler.lessons import Lessons
from autoscaler.live import LiveRows
from autoscaler.loop import Loop
from autoscaler.metrics import Metrics
from autoscaler.model import Blocked, LedgerEntry, Pool, PoolControl, Rules, Snapshot
from autoscaler.notices import NoticeWatch
from autoscaler.observe import Observer
from autoscaler.observe_jobs import JobObserver
from autoscaler.observe_losses import LossObserver
from autoscaler.outbox import Outbox
from autoscaler.polls import Polls
from autoscaler.rules import rules_of
from autoscaler.scores import Calibration
from autoscaler.sightings import Sightings
from autoscaler.spi import (
    Clock,
    Forge,
    ForgeName,
    InvalidRequest,
    PoolName,
    Provider,
    ProviderName,
    ProviderTraits,
    RateBudget,
    Webhook,
)
from autoscaler.store import Store
from autoscaler.why_outlook import Outlook
from autoscaler.why_unserved import unserved_trouble

log = structlog.get_logger()


UNCONFIGURED = "config"
"""The condition that rows name a provider or forge without a section."""


def runner_prefix(deployment: str) -> str:
    """What every runner name of a deployment starts with; another deployment's name is never a prefix of it."""
    return f"{deployment}--"


class Core:
    """See the module docstring. `prepare` once, then `run` until cancelled or broken."""

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        forges: Mapping[ForgeName, Forge],
        providers: Mapping[ProviderName, Provider],
        launcher: Launcher,
        clock: Clock,
        metrics: Metrics,
        health: Health,
    ) -> None:
        self._config = config
        self._store = store
        self._forges = forges
        self._providers = providers
        self._launcher = launcher
        self._clock = clock
        self.metrics = metrics
        self.health = health
        self._changed = asyncio.Condition()
        self._rules = rules_of(config)

    async def prepare(self) -> None:
        """Read the store and build the parts. The lease must be ours."""
        clock, health, metrics = self._clock, self.health, self.metrics
        rows = self.rows = LiveRows(self._store, self.traits())
        stored = await self._store.load()
        rows.load(stored)
        prefix = runner_prefix(self._config.autoscaler.name)
        sightings = self.sightings = Sightings()
        self.desk = AgentDesk(
            rows,
            self._providers,
            clock,
            rules=self.rules,
            report=self._report,
            consumed=self._consumed,
            refusals=Refusals(metrics.agent_calls_total),
            address_of=lambda machine: sightings.addresses.get(machine, ""),
        )
        jobs = self.jobs = JobObserver(rows, sightings, self._forges, metrics, heard_at=self.desk.last_contact)
        jobs.load(clock.now())
        experience = self._experience = Experience(rows, sightings)
        lessons = self._lessons = Lessons(rows, metrics, clock.now())
        losses = LossObserver(rows, sightings, metrics, experience=experience, heard_at=self.desk.last_contact)
        outbox = Outbox(rows, self._forges)
        observer = Observer(
            rows,
            sightings,
            jobs,
            losses,
            experience=experience,
            lessons=lessons,
            outbox=outbox,
            runner_prefix=prefix,
            providers=self._providers.keys(),
        )
        loop = self.loop = Loop(
            rows=rows,
            store=self._store,
            observer=observer,
            jobs=jobs,
            forges=self._forges,
            desk=self.desk,
            clock=clock,
            metrics=metrics,
            health=health,
            rules=self._rules,
            period=self._config.autoscaler.tick,
        )
        line = ForgeLine(self._forges, metrics=metrics, health=health)
        forge_calls = ForgeCalls(
            rows=rows,
            sightings=sightings,
            line=line,
            desk=self.desk,
            clock=clock,
            metrics=metrics,
            report=loop.report,
            runner_prefix=prefix,
        )
        requeue_calls = RequeueCalls(
            rows=rows, sightings=sightings, line=line, clock=clock, metrics=metrics, report=loop.report
        )
        self._tell_calls = TellCalls(rows=rows, outbox=outbox, sightings=sightings, line=line, clock=clock)
        self.applier = loop.applier = Applier(
            rows=rows,
            sightings=sightings,
            providers=self._providers,
            forge_calls=forge_calls,
            requeue_calls=requeue_calls,
            tell_calls=self._tell_calls,
            desk=self.desk,
            launcher=self._launcher,
            clock=clock,
            metrics=metrics,
            report=loop.report,
            pools=lambda: loop.rules.pools,
            settled=loop.replan,
            broke=loop.break_off,
        )
        self.polls = Polls(
            loop=loop,
            rows=rows,
            store=self._store,
            sightings=sightings,
            jobs=jobs,
            forges=self._forges,
            providers=self._providers,
            clock=clock,
            health=health,
            metrics=metrics,
        )
        self.notices = NoticeWatch(
            loop=loop, rows=rows, providers=self._providers, heard_at=self.desk.last_contact, clock=clock
        )
        self._game_days = GameDays(
            rows=rows,
            sightings=sightings,
            providers=self._providers,
            reporter=GameDayReporter(rows, self._store, self.traits()),
            clock=clock,
            new_id=self._launcher.new_id,
            broke=loop.break_off,
        )
        for row in stored.inbox:
            loop.report(WebhookArrived(seq=row.seq, forge=row.forge, webhook=row.webhook))
        loop.replace_rules(self._rules)
        await self.polls.prepare()
        self.applier.relaunch_unsettled(clock.now())
        self._note_unconfigured()
        log.info("daemon_prepared", jobs=len(rows.jobs), instances=len(rows.instances), inbox=len(stored.inbox))

    async def run(self) -> None:
        """Decide until cancelled; raises what broke it."""
        section = self._config.autoscaler
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.loop.run())
                group.create_task(self._tell_changes())
                self.notices.start(group)
                self.polls.start(
                    group,
                    poll={forge.name: forge.poll for forge in self._config.forges},
                    list_runners=section.list_runners,
                    list_instances=section.list_instances,
                    retention=section.retention,
                )
        except BaseExceptionGroup as failures:
            raise _first_of(failures) from None

    async def aclose(self, *, grace_s: float) -> None:
        """Let running calls end, make what they changed durable."""
        self.desk.close()
        await self._game_days.aclose()
        await self.applier.aclose(grace_s)
        self._experience.keep(self._clock.now(), half_life=self._rules.evidence_half_life, is_last=True)
        self._lessons.keep(self._clock.now(), is_last=True)

    def accepted(self, seq: int, forge: ForgeName, webhook: Webhook) -> None:
        """A webhook is durable: look at it with the next tick."""
        self.loop.report(WebhookArrived(seq=seq, forge=forge, webhook=webhook))

    def reload(self, config: Config) -> None:
        """Take over pools, caps and images; forges and providers keep what they were started with."""
        self._config = config
        self._rules = rules_of(config)
        self.loop.replace_rules(self._rules)

    @property
    def config(self) -> Config:
        return self._config

    def _report(self, fact: Fact) -> None:
        self.loop.report(fact)

    async def _consumed(self) -> None:
        await self.loop.consumed()

    def _note_unconfigured(self) -> None:
        """Rows of a provider or forge that was taken out of the file: nobody lists, ends or deregisters them."""
        machines = [row for row in self.rows.instances.values() if row.provider not in self._providers]
        runners = [row for row in self.rows.instances.values() if row.demand and row.demand.forge not in self._forges]
        jobs = [job for job in self.rows.jobs.values() if job.forge not in self._forges]
        found = {f'provider "{row.provider}"' for row in machines}
        found |= {f'forge "{row.demand.forge}"' for row in runners if row.demand}
        found |= {f'forge "{job.forge}"' for job in jobs}
        if not found:
            if not self.health.is_well(UNCONFIGURED):
                self.health.well(UNCONFIGURED)
            return
        left = f"{len(machines)} machines, {len(runners)} runners and {len(jobs)} jobs"
        self.health.ill(
            UNCONFIGURED,
            f"{left} belong to {', '.join(sorted(found))}, which the configuration names no more",
            remedy="put the section back, drain its pools and wait until nothing is left before taking it out",
        )

    async def _tell_changes(self) -> None:
        seen = -1
        while True:
            await self._clock.sleep(0.25)
            if self.rows.changed != seen:
                seen = self.rows.changed
                if not self.health.is_well(UNCONFIGURED):
                    self._note_unconfigured()
                async with self._changed:
                    self._changed.notify_all()

    # ------------------------------------------------------------------ DaemonView

    @property
    def deployment(self) -> str:
        return self._config.autoscaler.name

    @property
    def store(self) -> Store:
        return self._store

    def now(self) -> datetime:
        return self._clock.now()

    def snapshot(self) -> Snapshot:
        if self.loop.snapshot is not None:
            return self.loop.snapshot
        return Snapshot(jobs=self.rows.jobs, instances=self.rows.instances, forges={}, offerings={})

    def rules(self) -> Rules:
        return self._rules

    def traits(self) -> Mapping[ProviderName, ProviderTraits]:
        return {name: provider.traits for name, provider in self._providers.items()}

    def blocked(self) -> Sequence[Blocked]:
        return self.loop.blocked

    def budgets(self) -> Sequence[tuple[str, RateBudget]]:
        of_forges = [(str(name), budget) for name, forge in self._forges.items() for budget in forge.budgets()]
        clouds = [(str(name), budget) for name, cloud in self._providers.items() for budget in cloud.status().budgets]
        return [*of_forges, *clouds]

    def conditions(self) -> Sequence[Condition]:
        return self.health.conditions()

    def troubles(self) -> Sequence[Trouble]:
        unserved = unserved_trouble(Outlook(self.snapshot(), self._rules, (), self.now()).unserved, self._rules)
        own = [Trouble(target="jobs", text=unserved)] if unserved else []
        own += [Trouble(target=f"pool/{name}", text=text) for name, text in self._lessons.budgets.troubles()]
        return [*own, *self.notices.troubles(), *self.desk.alarms.troubles(), *self._tell_calls.troubles()]

    def dropped_notices(self) -> Sequence[tuple[str, str, int]]:
        return [
            (str(name), reason, count)
            for name, cloud in self._providers.items()
            for reason, count in cloud.status().dropped.items()
        ]

    def predictions(self) -> Sequence[Calibration]:
        return self._lessons.scores.calibrations(self._clock.now())

    def last_tick(self) -> TickView | None:
        return self.loop.last_tick

    async def wait_change(self, after: int) -> int:
        async with self._changed:
            await self._changed.wait_for(lambda: self.rows.changed > after)
        return self.rows.changed

    async def set_control(self, pool: PoolName, control: PoolControl, *, actor: str) -> None:
        if pool not in self._rules.pools:
            raise KeyError(pool)
        self.rows.set_control(pool, control)
        self.rows.note(
            LedgerEntry(
                at=self._clock.now(),
                actor=actor,
                action="control",
                subject=pool,
                pool=pool,
                reason="asked through the admin API",
                outcome=control,
            )
        )
        await self.rows.flush()
        self.loop.wake()

    @property
    def allows_game_days(self) -> bool:
        return self._config.autoscaler.chaos

    async def begin_game_day(self, pool: PoolName, *, share: float, is_announced: bool, actor: str) -> GameDayReport:
        if pool not in self._rules.pools:
            raise KeyError(pool)
        return await self._game_days.begin(pool, share=share, is_announced=is_announced, actor=actor)

    async def game_day(self, id_: str) -> GameDayReport:
        return await self._game_days.report(id_)

    def game_days(self) -> Sequence[GameDay]:
        return self._game_days.days()


def _first_of(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one failure that matters: the others were cancelled because of it."""
    first = failures.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Section = TypeVar("_Section", bound=_Named)


def _named(sections: Sequence[_Section], kind: str, name: str) -> _Section:
    for section in sections:
        if section.name == name:
            return section
    raise InvalidRequest(f'the configuration has no {kind} "{name}" any more')


def make_launcher(
    config: Callable[[], Config],
    *,
    user_data_of: Callable[..., str],
    new_id: Callable[[str], str],
    ca_pem: str = "",
) -> Launcher:
    """How machines are made by this configuration. `user_data_of` is `runners.bootstrap.boot_document`.

    Both raise InvalidRequest for what a reload took out of the configuration since the launch was decided.
    """

    def image_of(pool: Pool, provider_name: ProviderName) -> Mapping[str, str]:
        now = config()
        settings = _named(now.providers, "provider", provider_name)
        return _named(now.images, "image", pool.image).reference_for(settings) or {}

    def user_data(pool: Pool, provider_name: ProviderName) -> str:
        now = config()
        chosen = _named(now.pools, "pool", pool.name)
        hooks = _named(now.images, "image", pool.image).hooks
        return user_data_of(
            daemon_url=now.autoscaler.public_url,
            provider=provider_name,
            boot_timeout=chosen.boot_timeout,
            max_lifetime=pool.max_lifetime + timedelta(minutes=5),
            image={**image_of(pool, provider_name), **hooks.for_machines()},
            ca_pem=ca_pem,
            hook_limit=hooks.on_interruption_limit,
        )

    return Launcher(image_of=image_of, user_data_of=user_data, new_id=new_id)
