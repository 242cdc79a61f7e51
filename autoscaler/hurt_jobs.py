"""Which jobs interruptions hurt, pool by pool, and what their error budgets do about it: `Snapshot.burns`.

Memory beside the rows, kept through them by `lessons`; the rule is in `error_budget`. A job is hurt when it was lost
with a spot machine, or when it started past its pool's target and a spot machine without a job was taken while it
waited: one job per such machine. Losses of game days are an operator's own and hurt nobody here. Each step of a pool's
spot share, down or up, is a line of the ledger and of the log; while it is down, the operator is told.
"""

import logging
from collections import defaultdict, deque
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from autoscaler.error_budget import (
    STEPS,
    Account,
    Window,
    booked,
    burn_of,
    faded,
    hurt_words,
    share_words,
    stepped,
)
from autoscaler.learned_texts import Unkept, take_rows
from autoscaler.live import LiveRows
from autoscaler.model import Burn, EndReason, Instance, Job, JobState, LedgerEntry, Pool, Rules
from autoscaler.spi import CapacityType, PoolName
from autoscaler.store import Learned

log = structlog.get_logger()

LOOK_EVERY = timedelta(seconds=10)
TAKEN_KEPT = 256
ACTION = "error_budget"
"""How the ledger calls a step."""

_NO_CLOUDS_DOING = (EndReason.CHAOS, EndReason.SELF_ENDED)
"""A machine that powers itself off was told to by its own job, most likely: on_demand would not keep it from that."""

_J = JobState
_Pool = tuple[PoolName]


class ErrorBudgets:
    """See the module docstring."""

    def __init__(self, rows: LiveRows, learned: MutableMapping[str, Learned]) -> None:
        self.unkept = Unkept[_Pool](ACTION, self._text)
        self._rows = rows
        self._accounts: dict[PoolName, Account] = {}
        self._taken: defaultdict[PoolName, deque[datetime]] = defaultdict(lambda: deque(maxlen=TAKEN_KEPT))
        self._unbooked: dict[PoolName, tuple[int, int]] = {}
        self._looked_at: datetime | None = None
        self.burns: Mapping[PoolName, Burn] = {}
        """What plan sees; another object when, and only when, something changed."""
        take_rows(learned, ACTION, self._read)

    # ------------------------------------------------------------------ news

    def job_moved(self, before: Job, job: Job, rules: Rules) -> None:
        pool = rules.pools.get(job.pool) if job.pool is not None else None
        if pool is None or before.state is job.state:
            return
        if job.state is _J.LOST:
            self._count(pool, jobs=1, hurt=1 if self._is_spot_loss(job) else 0)
        elif job.state is _J.DONE and before.state is _J.LOST:
            self._count(pool, hurt=-1 if self._is_spot_loss(before) else 0)
        elif job.state is _J.DONE and job.started_at is not None and job.id not in self._rows.lost:
            self._count(pool, jobs=1)
        elif job.state is _J.RUNNING and before.state is _J.QUEUED and self._was_kept_waiting(job, pool):
            self._count(pool, hurt=1)

    def machine_moved(self, was: Instance, row: Instance, now: datetime) -> None:
        """A spot machine that was taken before it had a job keeps somebody waiting who counted on it."""
        is_taken = row.ending is EndReason.INTERRUPTED and was.ending is not EndReason.INTERRUPTED
        if is_taken and row.job is None and _is_spot(row):
            self._taken[row.pool].append(now)

    def _was_kept_waiting(self, job: Job, pool: Pool) -> bool:
        taken = self._taken.get(pool.name)
        if not taken or job.started_at is None or job.started_at - job.queued_at <= pool.target:
            return False
        for at in taken:
            if job.queued_at <= at <= job.started_at:
                taken.remove(at)
                return True
        return False

    def _is_spot_loss(self, job: Job) -> bool:
        known = self._rows.interruption_of(job.instance) if job.instance is not None else None
        if known is not None and known.is_game_day:
            return False
        machine = self._rows.instances.get(job.instance) if job.instance is not None else None
        machine = machine or self._rows.ended_runners.get(job.runner_name)
        return machine is None or (_is_spot(machine) and machine.ending not in _NO_CLOUDS_DOING)

    def _count(self, pool: Pool, *, jobs: int = 0, hurt: int = 0) -> None:
        known = self._unbooked.get(pool.name, (0, 0))
        self._unbooked[pool.name] = known[0] + jobs, known[1] + hurt

    # ------------------------------------------------------------------ what follows

    def reckon(self, rules: Rules, now: datetime) -> None:
        """Book what was counted in this tick, take the steps that are due, show plan how the budgets stand."""
        for name, (jobs, hurt) in self._unbooked.items():
            self._accounts[name] = booked(self._accounts.get(name) or Account(at=now), now, jobs=jobs, hurt=hurt)
            self.unkept.add((name,), now)
            if hurt > 0:
                self._looked_at = None
        self._unbooked = {}
        if self._looked_at is not None and now < self._looked_at + LOOK_EVERY:
            return
        self._looked_at = now
        burns: dict[PoolName, Burn] = {}
        for name, account in self._accounts.items():
            pool = rules.pools.get(name)
            if pool is None:
                continue
            after = stepped(account, pool.error_budget, now)
            if after.step != account.step:
                self._accounts[name] = after
                self._announce(pool, account, after, now)
            burns[name] = burn_of(faded(after, now), pool.error_budget)
        if burns != self.burns:
            self.burns = burns

    def _announce(self, pool: Pool, before: Account, after: Account, now: datetime) -> None:
        self.unkept.add((pool.name,), now)
        self.unkept.make_due()
        words = share_words(after.spot_share)
        self._rows.note(
            LedgerEntry(
                at=now,
                actor="autoscaler",
                action=ACTION,
                subject=pool.name,
                pool=pool.name,
                reason=hurt_words(after, pool.error_budget),
                outcome=f"{words} (before: {before.spot_share:.1%})".replace(".0%", "%"),
            )
        )
        is_cut = after.step > before.step
        log.log(
            logging.WARNING if is_cut else logging.INFO,
            "spot_share_cut" if is_cut else "spot_share_raised",
            pool=pool.name,
            spot_share=after.spot_share,
            burn_last_hour=round(after.short.burn(pool.error_budget), 2),
            burn_last_day=round(after.long.burn(pool.error_budget), 2),
        )

    def troubles(self) -> list[tuple[PoolName, str]]:
        """Pools whose spot share is cut, and what to do."""
        return [
            (name, f"{burn.reason}. It comes back by itself; more machine types and zones make interruptions rarer")
            for name, burn in sorted(self.burns.items())
            if burn.spot_share < 1
        ]

    # ------------------------------------------------------------------ as text

    def _text(self, key: _Pool) -> Any:
        account = self._accounts.get(key[0])
        if account is None:
            return None
        windows = (account.short.jobs, account.short.hurt, account.long.jobs, account.long.hurt)
        stepped_at = account.stepped_at.timestamp() if account.stepped_at is not None else None
        return [account.at.timestamp(), [round(one, 3) for one in windows], account.step, stepped_at]

    def _read(self, parts: tuple[str, ...], value: Any) -> None:
        (pool,) = parts
        at, (short_jobs, short_hurt, long_jobs, long_hurt), step, stepped_at = value
        self._accounts[PoolName(pool)] = Account(
            at=datetime.fromtimestamp(float(at), UTC),
            short=Window(jobs=float(short_jobs), hurt=float(short_hurt)),
            long=Window(jobs=float(long_jobs), hurt=float(long_hurt)),
            step=min(max(0, int(step)), len(STEPS) - 1),
            stepped_at=datetime.fromtimestamp(float(stepped_at), UTC) if stepped_at is not None else None,
        )


def _is_spot(row: Instance) -> bool:
    """Of a machine that no cloud ever answered for nobody knows; it was asked for as spot most likely."""
    return row.capacity_pool is None or row.capacity_pool.capacity_type is CapacityType.SPOT
