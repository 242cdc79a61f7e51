"""What people are still to be told: durable from the moment of the loss until it is said, or nobody can be told.

A telling is a settings row under "telling/" in the transaction that makes its job lost, so a daemon killed at any
point says it after its restart. Shared by observe, which fills it, and apply, which empties it. The words are
`tellings`'.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

import structlog

from autoscaler.live import LiveRows
from autoscaler.model import Job, JobState, LedgerEntry, Rules, job_id
from autoscaler.plan_requeue import not_requeued
from autoscaler.spi import Forge, ForgeName, Telling
from autoscaler.tellings import telling_key, telling_of

log = structlog.get_logger()

PREFIX = "telling/"
GIVEN_UP_AFTER = timedelta(hours=24)
"""By then nobody looks at the job any more."""
LOOKED_AT_EVERY = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A telling that was not said yet, and since when that is so."""

    telling: Telling
    since: datetime
    pool: str


class Outbox:
    """See the module docstring. Made once the rows are loaded."""

    def __init__(self, rows: LiveRows, forges: Mapping[ForgeName, Forge]) -> None:
        self._rows = rows
        self._forges = forges
        self._waiting: dict[str, Waiting] = {}
        self._tellings: tuple[Telling, ...] | None = None
        self._looked_at = datetime.min.replace(tzinfo=UTC)
        for name, text in list(rows.settings.items()):
            if name.startswith(PREFIX):
                self._recall(name, text)

    def _recall(self, name: str, text: str) -> None:
        try:
            kept = json.loads(text)
            waiting = Waiting(
                telling=Telling(**kept["telling"]), since=datetime.fromisoformat(kept["since"]), pool=kept["pool"]
            )
        except (ValueError, TypeError, KeyError):
            log.warning("telling_unreadable", setting=name)  # written by another version: nobody misses it for long
            self._rows.set_setting(name, "")
            return
        self._waiting[waiting.telling.key] = waiting

    # ------------------------------------------------------------------ observe

    def follow(self, rules: Rules, now: datetime) -> None:
        """Take in the jobs that became lost, and drop what need not be said any more. Call it before the flush that
        makes the losses durable; it reads the rows' news and leaves them to others."""
        for before, job in self._rows.job_news:
            was_lost = before is not None and before.state is JobState.LOST
            if was_lost and job.state is JobState.DONE:
                self.settle(telling_key(job), "not told: the job had ended well after all", now)
            elif not was_lost and job.state is JobState.LOST:
                self._hear_of(job, rules, now)
        if self._waiting and now >= self._looked_at + LOOKED_AT_EVERY:
            self._looked_at = now
            for key, waiting in list(self._waiting.items()):
                if waiting.telling.forge not in rules.telling_forges:
                    self.settle(key, f"not told: forge {waiting.telling.forge} has tell = false", now)
                elif now > waiting.since + GIVEN_UP_AFTER:
                    self.settle(key, "not told: it could not be said within a day", now)

    def _hear_of(self, job: Job, rules: Rules, now: datetime) -> None:
        if job.forge not in rules.telling_forges or job.forge not in self._forges:
            return
        machine = self._rows.instances.get(job.instance) if job.instance is not None else None
        telling = telling_of(
            job,
            loss=self._rows.interruption_of(job.instance) if job.instance is not None else None,
            machine=machine or self._rows.ended_runners.get(job.runner_name),
            pool=rules.pools.get(job.pool) if job.pool is not None else None,
            traits=self._forges[job.forge].traits,
            refusal=not_requeued(job, rules),
        )
        self._waiting[telling.key] = Waiting(telling=telling, since=now, pool=job.pool or "")
        kept = {"since": now.isoformat(), "pool": job.pool or "", "telling": asdict(telling)}
        self._rows.set_setting(PREFIX + telling.key, json.dumps(kept))
        self._tellings = None

    def tellings(self) -> tuple[Telling, ...]:
        """What is to be said, oldest first."""
        if self._tellings is None:
            self._tellings = tuple(waiting.telling for waiting in self._waiting.values())
        return self._tellings

    # ------------------------------------------------------------------ apply

    def waiting_since(self, key: str) -> datetime | None:
        """Since when this is to be said; None: it was said, or need not be."""
        waiting = self._waiting.get(key)
        return waiting.since if waiting is not None else None

    def settle(self, key: str, outcome: str, now: datetime) -> None:
        """It was said, or never will be: the ledger tells which."""
        waiting = self._waiting.pop(key, None)
        if waiting is None:
            return
        telling = waiting.telling
        self._tellings = None
        self._rows.set_setting(PREFIX + key, "")
        self._rows.note(
            LedgerEntry(
                at=now,
                actor="autoscaler",
                action="tell",
                subject=job_id(telling.forge, telling.forge_job_id),
                pool=waiting.pool,
                reason=telling.title,
                outcome=outcome,
            )
        )
