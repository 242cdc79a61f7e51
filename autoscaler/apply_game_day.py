"""Carry out game days: who may, which machines, on record before any cloud is asked, and what their clouds said.

Part of apply. One game day at a time; never more machines than were asked for, and none of another pool. A daemon that
dies between the record and the answer does not ask again: what its clouds took by then counts as the game day's, and
the machines that they did not take run on.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import structlog

from autoscaler.game_day import (
    KEPT,
    OPEN_STATES,
    SETTING,
    GameDay,
    GameDayRunning,
    GameDayState,
    chosen,
    load_all,
    takeable,
)
from autoscaler.game_day_report import GameDayReport, GameDayReporter
from autoscaler.live import LiveRows
from autoscaler.model import Instance, LedgerEntry
from autoscaler.sightings import Sightings
from autoscaler.spi import Clock, PoolName, Provider, ProviderId, ProviderName
from autoscaler.store import Conflict, LeaseLost, StoreError

log = structlog.get_logger()

INTERRUPT_S = 120.0
"""AWS has its experiments looked at for some seconds, one after the other where there are many."""
UNANSWERED = "the daemon ended before the clouds answered: what they took counts, nothing is asked for again"


class GameDays:
    """See the module docstring. `broke` takes what no call may raise: a bug, or a store that is no longer ours."""

    def __init__(
        self,
        *,
        rows: LiveRows,
        sightings: Sightings,
        providers: Mapping[ProviderName, Provider],
        reporter: GameDayReporter,
        clock: Clock,
        new_id: Callable[[str], str],
        broke: Callable[[BaseException], None],
    ) -> None:
        self._rows = rows
        self._seen = sightings
        self._providers = providers
        self._reporter = reporter
        self._clock = clock
        self._new_id = new_id
        self._broke = broke
        self._task: asyncio.Task[None] | None = None
        self._beginning = asyncio.Lock()
        self._days = {day.id: day for day in load_all(rows.settings)}
        known = {day.key for day in self._days.values()}
        for name in [name for name in rows.settings if name.startswith(SETTING) and name not in known]:
            log.warning("game_day_unreadable", setting=name)
            rows.set_setting(name, "")
        for day in list(self._days.values()):
            self._stage(day)
            if day.state is GameDayState.ASKING:
                self._keep(replace(day, state=GameDayState.ASKED, detail=UNANSWERED))

    async def begin(self, pool: PoolName, *, share: float, is_announced: bool, actor: str) -> GameDayReport:
        """Choose machines, make the game day durable, then have the clouds asked in the background. Raises
        GameDayRunning and StoreError: then nothing was or will be asked."""
        async with self._beginning:  # the reports of earlier ones take time, in which another order may come
            return await self._begin(pool, share=share, is_announced=is_announced, actor=actor)

    async def _begin(self, pool: PoolName, *, share: float, is_announced: bool, actor: str) -> GameDayReport:
        for day in [day for day in self._days.values() if day.state in OPEN_STATES]:
            if not (await self.report(day.id)).is_over:
                raise GameDayRunning(day.id)
        now = self._clock.now()
        going = {*self._rows.interruptions, *self._seen.releasing, *self._seen.ending}
        found = takeable(self._rows.instances.values(), pool, going=going)
        id_ = self._new_id("g")
        machines = chosen(found, share, lot=id_)
        day = GameDay(
            id=id_,
            pool=pool,
            share=share,
            is_announced=is_announced,
            actor=actor,
            begun_at=now,
            candidates=len(found),
            machines=tuple(row.id for row in machines),
        )
        if not machines:
            nothing = f"pool {pool} has no machine with a runner: none is taken"
            day = replace(day, state=GameDayState.OVER, detail=nothing)
        self._stage(day)
        self._keep(day)
        self._note(day, now, outcome=day.detail or f"takes {', '.join(day.machines)}")
        try:
            await self._rows.flush()
        except StoreError:
            # The rows keep it for the next flush: it must not look as if it went on.
            self._keep(replace(day, state=GameDayState.FAILED, detail="the store failed: no cloud was asked"))
            for id_ in day.machines:
                self._seen.staged.pop(id_, None)
            raise
        if machines:
            self._task = asyncio.create_task(self._carry_out(day, machines))
            self._task.add_done_callback(self._settle)
        log.info("game_day_begun", game_day=id_, pool=pool, machines=len(machines), announced=is_announced)
        return await self._reporter.report(day, now)

    async def report(self, id_: str) -> GameDayReport:
        """What is on record of a game day; raises KeyError where there was none, StoreError."""
        day, now = self._days[id_], self._clock.now()
        found = await self._reporter.report(day, now)
        if found.is_over and self._days[id_] is day and day.state is GameDayState.ASKED:
            self._keep(replace(day, state=GameDayState.OVER))
            found = replace(found, day=self._days[id_])
        return found

    def days(self) -> Sequence[GameDay]:
        """Those on record, newest first."""
        return list(reversed(self._days.values()))

    async def aclose(self) -> None:
        """Its order is on record; the next daemon asks for nothing again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # ------------------------------------------------------------------ the order

    async def _carry_out(self, day: GameDay, machines: tuple[Instance, ...]) -> None:
        by_provider: dict[ProviderName, list[ProviderId]] = defaultdict(list)
        for row in machines:
            if row.provider_id is not None:
                by_provider[row.provider].append(row.provider_id)
        failures = []
        for name in sorted(by_provider):
            if failure := await self._interrupt(name, by_provider[name], is_announced=day.is_announced):
                failures.append(f"{name}: {failure}")
        is_failed = len(failures) == len(by_provider)
        day = replace(
            self._days[day.id],
            state=GameDayState.FAILED if is_failed else GameDayState.ASKED,
            detail="; ".join(failures),
        )
        self._keep(day)
        asked = "no cloud took the order" if is_failed else "the clouds took the order"
        self._note(day, self._clock.now(), outcome=f"{asked}; {day.detail}" if failures else asked)
        await self._rows.flush()

    async def _interrupt(self, name: ProviderName, ids: list[ProviderId], *, is_announced: bool) -> str:
        """Why the order came to nothing, or may have; "" where it was taken."""
        provider = self._providers.get(name)
        if provider is None:
            return "the configuration names it no more"
        try:
            async with asyncio.timeout(INTERRUPT_S):
                await provider.interrupt(ids, is_announced=is_announced)
        except TimeoutError:
            return f"no answer within {INTERRUPT_S:g} s; some machines may be taken"
        except Exception as error:
            log.warning("game_day_refused", provider=name, machines=len(ids), error=str(error)[:300])
            return " ".join(str(error).split())[:500] or type(error).__name__
        return ""

    def _settle(self, done: "asyncio.Task[None]") -> None:
        error = None if done.cancelled() else done.exception()
        if isinstance(error, StoreError) and not isinstance(error, LeaseLost | Conflict):
            log.warning("call_not_recorded", action="game_day", error=str(error))  # the rows keep it
        elif error is not None:
            self._broke(error)

    # ------------------------------------------------------------------ the record

    def _stage(self, day: GameDay) -> None:
        """From now on the end of its machines is its doing."""
        if day.counts_until > self._clock.now():
            self._seen.staged.update(dict.fromkeys(day.machines, day.counts_until))

    def _keep(self, day: GameDay) -> None:
        self._days[day.id] = day
        self._rows.set_setting(day.key, day.dump())
        for old in list(self._days)[:-KEPT]:
            self._rows.set_setting(self._days.pop(old).key, "")
        now = self._clock.now()
        for machine in [one for one, until in self._seen.staged.items() if until <= now]:
            del self._seen.staged[machine]

    def _note(self, day: GameDay, now: datetime, *, outcome: str) -> None:
        how = "with the notice of their cloud" if day.is_announced else "without notice"
        self._rows.note(
            LedgerEntry(
                at=now,
                actor=day.actor,
                action="game_day",
                subject=day.id,
                pool=day.pool,
                reason=f"interrupt {day.share:.4g} of its {day.candidates} machines with a runner, {how}",
                outcome=outcome,
            )
        )
