"""Machines that their clouds take: every word about one loss becomes one durable record, and the row follows it.

Owns the interruption records and the passive move busy -> draining. Evidence comes from the agent, from the cloud's
notices (a queue, its operations), from its listings, and from silence that the cloud confirmed; it may be doubled, late
or out of order. What it is about is looked up in our rows: a word about any other machine changes nothing.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from autoscaler.experience import Experience
from autoscaler.facts import AgentNoticed, HookEnded, NoticeArrived
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import EndReason, Instance, InstanceState, Interruption, LedgerEntry
from autoscaler.sightings import Sightings
from autoscaler.spi import CloudInstance, InstanceId, MachineState, Notice, NoticeKind
from autoscaler.states import WORKING_STATES

log = structlog.get_logger()

MAINTENANCE_NEAR = timedelta(minutes=10)
"""A host's maintenance is announced days ahead: only when it is this near is the machine as good as taken."""
NEXT_HEARTBEAT = timedelta(seconds=6)
"""A machine that is found gone was gone by the time at which its agent should have been heard again."""
STOP_GRACE = timedelta(seconds=30)
"""How long before a reclaim an agent ends its runner (`stop_grace_s`, at most half of the time left)."""
LONGEST_NOTICE = timedelta(hours=1)
"""No cloud warns of a reclaim earlier; what says so is held for one within that time, or a machine would drain for
ever, and instants beyond all dates could not be counted with."""
TOLD_LATE = timedelta(minutes=10)
"""A cloud's own time of a notice is believed as far back as this."""
CORRECTED_BY = timedelta(seconds=5)
"""A later word that is so much earlier than what the ledger says gets a line of its own; clocks and roundings less."""
_HOOK_OUTCOMES = {
    "ok": "ok",
    "failed": "failed",
    "timed_out": "stopped: its time was over",
    "job_ended": "stopped: its job had ended",
}
_TAKEN = (EndReason.INTERRUPTED, EndReason.CHAOS)
_UP = (MachineState.PENDING, MachineState.RUNNING)

_S = InstanceState


class LossObserver:
    """See the module docstring. `heard_at` is when a machine's agent called last; None: not yet, in this process."""

    def __init__(
        self,
        rows: LiveRows,
        sightings: Sightings,
        metrics: Metrics,
        *,
        experience: Experience,
        heard_at: Callable[[InstanceId], datetime | None],
    ) -> None:
        self._rows = rows
        self._seen = sightings
        self._metrics = metrics
        self._experience = experience
        self.heard_at = heard_at

    # ------------------------------------------------------------------ words

    def notice_arrived(self, fact: NoticeArrived, now: datetime) -> None:
        notice = fact.notice
        source = notice.source or "queue"
        row = self._rows.by_provider_id(fact.provider, notice.provider_id)
        if row is not None:
            self._noticed(row, notice.kind, source, notice.reclaim_at, now, told_at=notice.noticed_at)
            return
        ended = self._rows.ended_machines.get((fact.provider, notice.provider_id))
        if ended is None:
            self._drop(fact.provider, "unknown")
        elif notice.kind is NoticeKind.RECLAIM and _is_unexplained(ended):
            self._explain(ended, notice, source, now)
        else:
            self._drop(fact.provider, "ended")

    def agent_noticed(self, fact: AgentNoticed, now: datetime) -> None:
        row = self._rows.instances.get(fact.instance)
        if row is not None:
            self._noticed(row, fact.kind, "agent", fact.reclaim_at, now)

    def listed(self, row: Instance, machine: CloudInstance, now: datetime) -> None:
        """What a listing says of a machine beside its state."""
        if not machine.is_reclaimed and machine.reclaim_at is None:
            return
        if row.state is _S.TERMINATING and row.ending not in _TAKEN:
            return
        self._merge(row, "listing", now, reclaim_at=machine.reclaim_at, is_announced=machine.state in _UP)

    def found_gone(self, row: Instance, now: datetime) -> None:
        """Its agent fell silent, and its cloud says that the machine is gone."""
        if row.state is not _S.TERMINATING:
            self._merge(row, "heartbeat", now, is_announced=False)

    def ended_without_a_word(self, row: Instance, now: datetime) -> None:
        """It is gone, and neither we nor its agent ended it: where a game day asked for that, its cloud may not say so,
        as it ended the machine like any that its owner ends."""
        is_ours = self._seen.is_staged(row.id, now) and row.state is not _S.TERMINATING
        if is_ours and row.id not in self._rows.interruptions:
            self._merge(row, "game_day", now, is_announced=False)

    def _noticed(
        self,
        row: Instance,
        kind: NoticeKind,
        source: str,
        reclaim_at: datetime,
        now: datetime,
        *,
        told_at: datetime | None = None,
    ) -> None:
        match kind:
            case NoticeKind.REBALANCE:
                is_news = row.id not in self._seen.rebalanced and not self._seen.is_staged(row.id, now)
                if row.capacity_pool is not None and is_news:
                    self._seen.rebalanced.add(row.id)
                    self._experience.note_rebalance(row.capacity_pool, now)
            case NoticeKind.MAINTENANCE if reclaim_at > now + MAINTENANCE_NEAR:
                self._seen.maintenance[row.id] = reclaim_at, source
            case NoticeKind.RECLAIM | NoticeKind.MAINTENANCE:
                if row.state is _S.TERMINATING and row.ending not in _TAKEN:
                    self._drop(row.provider, "ended")
                elif row.state in WORKING_STATES and row.job is not None and row.job not in self._rows.jobs:
                    self._drop(row.provider, "finished")
                else:
                    noticed_at, reclaim_at = _told_at(told_at, now), min(reclaim_at, now + LONGEST_NOTICE)
                    is_announced = reclaim_at > noticed_at
                    self._merge(
                        row, source, now, noticed_at=noticed_at, reclaim_at=reclaim_at, is_announced=is_announced
                    )
            case NoticeKind.STATE_CHANGE:
                pass  # no proof of anything: `notices` has the machine looked at

    def _drop(self, provider: str, reason: str) -> None:
        self._metrics.notices_dropped_total.labels(provider=provider, reason=reason).inc()

    # ------------------------------------------------------------------ the record

    def _merge(
        self,
        row: Instance,
        source: str,
        now: datetime,
        *,
        is_announced: bool,
        noticed_at: datetime | None = None,
        reclaim_at: datetime | None = None,
    ) -> None:
        before = self._rows.interruptions.get(row.id)
        if before is None:
            first = _first_record(row, source, noticed_at or now, reclaim_at=reclaim_at, is_announced=is_announced)
            self._first_word(row, first, now)
            return
        told = [at for at in (before.reclaim_at, reclaim_at) if at is not None]
        sources = before.sources if source in before.sources else (*before.sources, source)
        merged = replace(before, sources=sources, reclaim_at=min(told, default=None), job=row.job or before.job)
        if merged != before:
            self._rows.record(merged)
            self._correct(before, merged, source, now)

    def _correct(self, before: Interruption, merged: Interruption, source: str, now: datetime) -> None:
        """The ledger is never rewritten, and what it says of the time must be what the record says."""
        if merged.reclaim_at is None or not merged.is_announced:
            return
        if before.reclaim_at is not None and before.reclaim_at - merged.reclaim_at < CORRECTED_BY:
            return
        instead = f", not at {before.reclaim_at:%H:%M:%S}" if before.reclaim_at is not None else ""
        self._rows.note(
            LedgerEntry(
                at=now,
                actor=merged.provider,
                action="interruption_corrected",
                subject=merged.instance,
                pool=merged.pool,
                reason=f"its cloud takes it back at {merged.reclaim_at:%H:%M:%S}{instead}: told by {source}",
                outcome="earlier" if instead else "dated",
            )
        )

    def _first_word(self, row: Instance, first: Interruption, now: datetime) -> None:
        """Count it once, and say it once."""
        first = replace(first, is_game_day=self._seen.is_staged(row.id, now))
        self._rows.record(first)
        place = row.capacity_pool
        self._metrics.interruptions_total.labels(
            provider=row.provider,
            zone=place.zone if place is not None else "",
            machine_type=place.machine_type if place is not None else "",
            announced="yes" if first.is_announced else "no",
        ).inc()
        if place is not None and not first.is_game_day:
            self._experience.note_interrupted(place, now)
        if first.is_announced and first.reclaim_at is not None:
            self._metrics.notice_lead_seconds.observe(max(0.0, (first.reclaim_at - now).total_seconds()))
        when = f" at {first.reclaim_at:%H:%M:%S}" if first.reclaim_at is not None else ""
        what = f"its cloud takes it back{when}" if first.is_announced else "its cloud took it without a word before"
        self._rows.note(
            LedgerEntry(
                at=now,
                actor=row.provider,
                action="interruption",
                subject=row.id,
                pool=row.pool,
                reason=f"{what}{' for a game day' if first.is_game_day else ''}: {first.told_by}",
                outcome=f"it was {row.state}",
            )
        )
        log.info(
            "instance_interrupted",
            instance=row.id,
            pool=row.pool,
            source=first.sources[0],
            announced=first.is_announced,
            game_day=first.is_game_day,
        )

    def _explain(self, ended: Instance, notice: Notice, source: str, now: datetime) -> None:
        """A late word about a machine that ended and nobody knew why; it counts for a job that is not settled yet."""
        known = self._rows.interruption_of(ended.id)
        if known is not None:
            if source not in known.sources:
                self._rows.record(replace(known, sources=(*known.sources, source)))
            return
        told_at = min(_told_at(notice.noticed_at, now), ended.since)
        is_announced = notice.reclaim_at > told_at
        first = _first_record(ended, source, told_at, reclaim_at=notice.reclaim_at, is_announced=is_announced)
        cutoff_at = min(ended.since, _stop_at(first, ended.since))
        self._first_word(ended, replace(first, cutoff_at=cutoff_at, ended_at=ended.since), now)
        if ended.capacity_pool is not None and not self._seen.is_staged(ended.id, now):
            self._experience.note_explained(ended.capacity_pool, now)

    # ------------------------------------------------------------------ what follows

    def runner_ended(self, row: Instance, at: datetime | None, now: datetime) -> None:
        """Its agent ends, or ended, the runner because of the reclaim."""
        known = self._rows.interruptions.get(row.id)
        if known is None:
            self._merge(row, "agent", now, is_announced=True)
            known = self._rows.interruptions[row.id]
        if known.cutoff_at is None:
            self._rows.record(replace(known, cutoff_at=max(known.noticed_at, min(at or _stop_at(known, now), now))))

    def hook_ended(self, fact: HookEnded, now: datetime) -> None:
        """The image's on-interruption hook is over: once on the record, and in the life of its job."""
        known = self._rows.interruptions.get(fact.instance)
        if known is None or known.hook_s is not None:
            return
        self._rows.record(replace(known, hook_s=fact.seconds))
        self._metrics.interruption_hook_seconds.observe(fact.seconds)
        row = self._rows.instances.get(fact.instance)
        job = known.job or (row.job if row is not None else None)
        self._rows.note(
            LedgerEntry(
                at=now,
                actor="agent",
                action="interruption_hook",
                subject=job or fact.instance,
                pool=known.pool,
                reason=f"the image's on-interruption hook ran for {fact.seconds:.1f} s on {fact.instance}",
                outcome=_HOOK_OUTCOMES[fact.outcome] + (f", exit code {fact.exit_code}" if fact.exit_code else ""),
            )
        )

    def machine_ended(self, ended: Instance, now: datetime) -> None:
        """Called when an instance row ends, before its job is settled."""
        known = self._rows.interruptions.get(ended.id)
        if known is None:
            return
        heard = self.heard_at(ended.id)
        gone_by = min(now, heard + NEXT_HEARTBEAT) if heard is not None else now
        cutoff_at = known.cutoff_at or min(gone_by, _stop_at(known, now))
        self._rows.record(replace(known, ended_at=now, cutoff_at=cutoff_at, job=ended.job or known.job))

    def settle(self, now: datetime) -> None:
        """Rows follow the records, in whichever order job and notice became known."""
        for id_, (reclaim_at, source) in list(self._seen.maintenance.items()):
            row = self._rows.instances.get(id_)
            if row is None:
                del self._seen.maintenance[id_]
            elif reclaim_at <= now + MAINTENANCE_NEAR:
                del self._seen.maintenance[id_]
                self._noticed(row, NoticeKind.MAINTENANCE, source, reclaim_at, now)
        for known in list(self._rows.interruptions.values()):
            row = self._rows.instances.get(known.instance)
            if row is not None and row.state is _S.BUSY:
                cause = f"its cloud takes it back ({known.told_by})"
                self._rows.move(row, _S.DRAINING, now=now, cause=cause)


def _first_record(
    row: Instance, source: str, noticed_at: datetime, *, reclaim_at: datetime | None, is_announced: bool
) -> Interruption:
    return Interruption(
        instance=row.id,
        provider=row.provider,
        pool=row.pool,
        capacity_pool=row.capacity_pool,
        noticed_at=noticed_at,
        sources=(source,),
        is_announced=is_announced,
        job=row.job,
        reclaim_at=reclaim_at,
    )


def _told_at(told_at: datetime | None, now: datetime) -> datetime:
    """When the cloud said it, by its own clock as far as that can be true."""
    return now if told_at is None else min(now, max(told_at, now - TOLD_LATE))


def _is_unexplained(ended: Instance) -> bool:
    """It vanished, or powered itself off and its agent's last words did not arrive."""
    return ended.ending is EndReason.VANISHED or (ended.ending is EndReason.SELF_ENDED and not ended.detail)


def _stop_at(known: Interruption, now: datetime) -> datetime:
    """When its agent ended the runner, by the agent's own rule, where it did not say."""
    if known.reclaim_at is None or not known.is_announced:
        return now
    return known.reclaim_at - min(STOP_GRACE, (known.reclaim_at - known.noticed_at) / 2)
