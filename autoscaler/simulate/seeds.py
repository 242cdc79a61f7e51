"""One seed, one day: configuration, workload and faults are drawn, the daemon lives through it, and rest is checked.

0 .. quiet_at            jobs arrive, faults strike, the daemon is killed
quiet_at .. rest         no faults, no new jobs: everything must come to rest within `REST_S`
rest                     the final invariants, among them that planning again plans nothing
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog

from autoscaler.config import AutoscalerConfig, Caps, Config, ImageConfig, PoolConfig, RequeueConfig
from autoscaler.config_types import Address, SpillConfig
from autoscaler.model import Instance, Job
from autoscaler.simulate.faults import NO_FAULTS, FaultRates, Faults, rates_of
from autoscaler.simulate.lives import Daemon, Reaper, track_lives
from autoscaler.simulate.rest import unrest
from autoscaler.simulate.stage import GITHUB, GITLAB, IMAGE, LOCAL, Site, Stage
from autoscaler.simulate.virtual_loop import VirtualClock, VirtualTimeLoop, run_virtually
from autoscaler.simulate.workload import Arrival, arrivals
from autoscaler.spi import ForgeName, ForgeSettings, PoolName, ProviderSettings, Scope

QUIET_AT_S = 900.0
REST_S = 6000.0
"""GitLab fails the job of a dead machine at one of its hourly checks, once it was silent for an hour."""
CHECK_EVERY_S = 5.0
CALM_S = 60.0
"""Rest must last: nothing may begin to move again within this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Everything that a simulated day is made of."""

    seed: int | str
    config: Config
    site: Site
    rates: FaultRates = NO_FAULTS
    work: tuple[Arrival, ...] = ()
    quiet_at_s: float = QUIET_AT_S
    github: tuple[str, ...] = ("acme",)
    """The deployment's registration scopes at GitHub."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a day ended. `violations` is empty where all is well; `digest` is the same for every run of a case."""

    seed: int | str
    violations: tuple[str, ...]
    digest: str
    ended_at_s: float
    jobs: int
    events: tuple[str, ...]
    faults: tuple[str, ...]

    def report(self) -> str:
        """For people: what was violated, the faults, and the events that name what is concerned."""
        lines = [f"seed {self.seed}: {len(self.violations)} violations at {self.ended_at_s:.0f} s", *self.violations]
        return "\n".join([*lines, "", "faults:", *self.faults[-200:], "", "events:", *self.events[-400:]])


def run_case(case: Case, play: Callable[["Day"], Coroutine[Any, Any, None]] | None = None) -> Outcome:
    """Live one case through on a loop of its own. `play` is a scenario's own part, run beside the rest."""

    async def main(loop: VirtualTimeLoop) -> Outcome:
        track_lives(loop)
        day = Day(case, loop)
        try:
            return await day.live(play)
        finally:
            day.stage.stop()

    with _quiet_logs():
        outcome: Outcome = run_virtually(main, shuffle_seed=f"{case.seed}/order")
    return outcome


def run_seed(seed: int) -> Outcome:
    """The case of a seed."""
    return run_case(case_of(seed))


class Day:
    """One running case, for scenarios to reach into."""

    def __init__(self, case: Case, loop: VirtualTimeLoop) -> None:
        self.case = case
        self.loop = loop
        self.clock = VirtualClock(loop)
        self.faults = Faults(case.rates, case.seed, loop.time)
        self.stage = Stage(case.site, self.faults, self.clock)
        self.daemon = self.stage.add_daemon(case.config, github=case.github)
        self.reaper = Reaper(self.stage.daemons, self.faults, loop)
        self.submitted = 0

    async def live(self, play: Callable[["Day"], Coroutine[Any, Any, None]] | None) -> Outcome:
        for arrival in self.case.work:
            self.loop.call_at(arrival.at_s, self._arrive, arrival)
        dice = self.faults.dice("crash/when")
        for _ in range(self.case.rates.crashes):
            self.loop.call_at(dice.uniform(0, self.case.quiet_at_s), self.reaper.arm)
        if play is None:
            self.daemon.start()
        playing = self.loop.create_task(play(self)) if play is not None else None
        await self._until(self.case.quiet_at_s)
        if playing is not None and not self.stage.ended.is_set():
            await playing
        self._end_faults()
        await self._rest()
        return self._outcome()

    async def until(self, condition: Callable[[], Any], *, within_s: float = 600.0) -> Any:
        """The condition's value once it is true. Raises AssertionError when it takes longer."""
        deadline = self.loop.time() + within_s
        while not (value := condition()):
            assert self.loop.time() < deadline, f"not within {within_s:.0f} s"
            assert not self.stage.violations, self.stage.violations
            await asyncio.sleep(0.05)
        return value

    def rows(self) -> list[Instance]:
        """Every instance that the store ever held, oldest first."""
        return list(self.daemon.watch.disk.instances.values())

    def jobs(self) -> list[Job]:
        return list(self.daemon.watch.disk.jobs.values())

    def _arrive(self, arrival: Arrival) -> None:
        run_id = self.stage.submit(arrival.forge, arrival.run)
        if arrival.cancel_after_s is not None:
            self.loop.call_later(arrival.cancel_after_s, self.stage.cancel, arrival.forge, run_id)

    def _end_faults(self) -> None:
        self.faults.end()
        account = self.stage.cloud.world.account
        account.faults.end()
        account.times.shown_after = (0.0, 0.0)

    async def _until(self, at_s: float) -> None:
        """Wait for a time or for a violation."""
        try:
            async with asyncio.timeout_at(at_s):
                await self.stage.ended.wait()
        except TimeoutError:
            return

    async def _rest(self) -> None:
        """Wait for rest, see that it lasts, and say what is left where it does not come."""
        deadline = self.loop.time() + REST_S
        calm_since: float | None = None
        while not self.stage.ended.is_set():
            left = unrest(self.stage)
            now = self.loop.time()
            if left:
                calm_since = None
                if now >= deadline:
                    self.stage.violated(f"no rest {REST_S:.0f} s after the last fault: {'; '.join(left[:12])}")
                    return
            elif calm_since is None:
                calm_since = now
            elif now - calm_since >= CALM_S:
                return
            await self._until(now + CHECK_EVERY_S)

    def _outcome(self) -> Outcome:
        stage = self.stage
        for daemon in stage.daemons:
            for name in daemon.watch.secrets_in(stage.secrets):
                stage.violated(f"{daemon.config.autoscaler.name}: the store holds the {name}")
        events = tuple(stage.log.lines)
        digest = hashlib.sha256("\n".join((*events, *self.faults.log)).encode()).hexdigest()
        return Outcome(
            seed=self.case.seed,
            violations=tuple(stage.violations),
            digest=digest,
            ended_at_s=self.loop.time(),
            jobs=sum(len(daemon.watch.disk.jobs) for daemon in stage.daemons),
            events=events,
            faults=tuple(self.faults.log),
        )


def case_of(seed: int) -> Case:
    """Draw a whole case from a seed."""
    dice = random.Random(f"{seed}/case")  # noqa: S311 - repeatable, no secret
    rates = rates_of(dice, quiet_at=QUIET_AT_S, targets=(GITHUB, GITLAB, LOCAL))
    labels = (("linux",), ("linux", "x64"), ("linux", "x64", "gpu"))
    repos = [
        (GITHUB, "acme/web", labels),
        (GITHUB, "acme/api", labels[:2]),
        (GITLAB, "group/app", labels),
        (GITLAB, "group/lib", labels[:1]),
    ]
    work = arrivals(dice, jobs=dice.choice((15, 40, 60)), until_s=QUIET_AT_S * 0.7, repos=repos)
    caps = Caps(
        instances=dice.choice((None, None, 4, 9)),
        usd_per_hour=dice.choice((None, None, 0.2)),
    )
    idle_timeout = timedelta(seconds=dice.choice((4, 60, 60)))
    max_job_runtime = timedelta(minutes=dice.choice((2, 30, 30, 30)))
    least, most, most_gpu = dice.choice((0, 0, 1, 2)), dice.choice((3, 8, 20)), dice.choice((2, 6))
    pools = (
        make_pool(
            "gpu",
            ("linux", "x64", "gpu"),
            min=0,
            max=most_gpu,
            priority=1,
            idle_timeout=idle_timeout,
            max_job_runtime=max_job_runtime,
        ),
        make_pool(
            "linux", ("linux", "x64"), min=least, max=most, idle_timeout=idle_timeout, max_job_runtime=max_job_runtime
        ),
    )
    site = Site(
        slots={"large": dice.choice((2, 20)), "small": dice.choice((3, 20))},
        boot=dice.choice(((1.0, 4.0), (5.0, 30.0))),
        lease_s=dice.choice((120.0, 600.0)),
        on_demand_prices=dice.choice(({}, {"large": 0.1, "small": 0.05})),
    )
    spill = SpillConfig(enabled=dice.random() < 0.8, max_usd_per_hour=dice.choice((None, 0.15)))
    requeue = RequeueConfig(
        attempts=dice.choice((4, 4, 2)),
        opt_out_labels=dice.choice((("no-requeue",), ("gpu",))),
        mixed_failures=dice.choice(("ride_along", "wait")),
    )
    pools = (replace(pools[0], spill=spill, requeue=requeue), replace(pools[1], spill=spill, requeue=requeue))
    return Case(seed=seed, config=make_config("ci", pools, caps=caps), site=site, rates=rates, work=tuple(work))


def make_pool(name: str, labels: tuple[str, ...], **changes: Any) -> PoolConfig:
    """A pool of this simulation's one image and cloud."""
    values: dict[str, Any] = {
        "boot_timeout": timedelta(seconds=150),
        "idle_timeout": timedelta(seconds=60),
        "max_job_runtime": timedelta(minutes=30),
        "requeue": RequeueConfig(attempts=4),
    }
    return PoolConfig(name=PoolName(name), image="runner", labels=labels, providers=(LOCAL,), **{**values, **changes})


def make_config(name: str, pools: tuple[PoolConfig, ...], *, caps: Caps | None = None) -> Config:
    """A configuration of both forges and the one cloud. `name` is the deployment."""
    return Config(
        autoscaler=AutoscalerConfig(
            name=name,
            listen=Address(host="127.0.0.1", port=0),
            admin_listen=Address(host="127.0.0.1", port=0),
            public_url="http://daemon.simulated",
            store="memory://",
            caps=caps or Caps(),
        ),
        forges=(_forge(GITHUB, "github", "acme", poll_s=60), _forge(GITLAB, "gitlab", "group", poll_s=30)),
        providers=(ProviderSettings(name=LOCAL, kind="local", regions=(), endpoint_url=""),),
        images=(ImageConfig(name="runner", references={LOCAL: {"runner": IMAGE}}),),
        pools=pools,
        source=Path("simulated.toml"),
        telling_forges=frozenset({GITHUB, GITLAB}),
    )


def _forge(name: ForgeName, kind: str, scope: str, *, poll_s: float) -> ForgeSettings:
    return ForgeSettings(
        name=name,
        kind=kind,
        url="",
        api_url="",
        credentials={},
        webhook_secrets=(),
        scopes=(Scope(scope),),
        poll=timedelta(seconds=poll_s),
    )


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """The daemon's log lines cost more than its work; a simulation has its own log."""
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=False
    )
    try:
        yield
    finally:
        if before is not None:
            structlog.configure(**before)
        else:
            structlog.reset_defaults()


__all__ = ["Case", "Daemon", "Day", "Outcome", "case_of", "make_config", "make_pool", "run_case", "run_seed"]
