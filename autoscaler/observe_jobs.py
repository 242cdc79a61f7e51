"""Passive moves of jobs: webhooks, listings and single reads become rows, never backwards.

A job's events may be missing, late, doubled or out of order (specs: github-rest B2, gitlab 1.2). Status only ever
rises; a job id that ended stays ended. What a listing does not show any more, or whose machine is gone, is doubtful:
the forge is asked, and only its answer decides whether the job is done or lost.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from autoscaler.cut_off import CutOffs
from autoscaler.demand import match_pool
from autoscaler.facts import Fact, JobRead, JobsListed, WebhookArrived, jobs_in
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import EndReason, Instance, InstanceState, Job, JobId, JobState, Rules, SeenBy, job_id
from autoscaler.names import instance_named
from autoscaler.observe_requeues import Recoveries
from autoscaler.sightings import Sightings
from autoscaler.spi import Conclusion, Forge, ForgeJob, ForgeName, InstanceId, JobStatus, Scope
from autoscaler.states import REGISTERED_STATES, TIMER_ENDS, WORKING_STATES
from autoscaler.stolen import stolen_line

DONE_GRACE = timedelta(seconds=5)
"""How long after its machine ended well a job's completed webhook may take before the forge is asked."""
LOST_AFTER_DONE = timedelta(seconds=60)
"""A runner that said it finished its job may be ahead of the forge by this much before the job counts as lost."""
UNSURE_AGAIN = timedelta(seconds=30)
HEARD_AGAIN = timedelta(seconds=7)
"""An agent that lives calls within this time."""
LATE_SUCCESS = "late_success: it counted as lost, then its forge said that it had succeeded"

UNKNOWN_AGAIN = timedelta(seconds=60)
FORGOTTEN_AFTER = timedelta(minutes=10)
"""A forge also says that it knows no job to a token that lost its rights; somebody gives them back, or the run is
gone for good."""

_LIMITS = tuple(f"{ending}: " for ending in sorted(TIMER_ENDS))
_BEGUN = frozenset({JobState.RUNNING, JobState.LOST})
_RANK = {JobState.QUEUED: 1, JobState.RUNNING: 2, JobState.LOST: 2}


class JobObserver:
    """Consumes what forges say about jobs. Memory beside the rows: doubts, activity of repos, jobs without labels."""

    def __init__(
        self,
        rows: LiveRows,
        sightings: Sightings,
        forges: Mapping[ForgeName, Forge],
        metrics: Metrics,
        *,
        heard_at: Callable[[InstanceId], datetime | None],
    ) -> None:
        """`heard_at` is when a machine's agent called last; None: not yet, in this process."""
        self._rows = rows
        self._seen = sightings
        self._forges = forges
        self._metrics = metrics
        self._cut_offs = CutOffs(rows, sightings, heard_at=heard_at)
        self._recoveries = Recoveries(rows, sightings, forges, metrics)
        self._doubts: dict[JobId, tuple[datetime, str]] = {}
        self._looked_at: datetime | None = None
        self._touched: dict[JobId, datetime] = {}
        self._ran_to_end: dict[JobId, datetime] = {}
        self._unknown_since: dict[JobId, datetime] = {}
        self.unserved_since: dict[JobId, datetime] = {}
        """When queued jobs were first without a pool, in this process."""
        self.unlabelled: dict[ForgeName, dict[str, str]] = defaultdict(dict)
        """Queued jobs whose labels a webhook did not carry, by forge: forge job id -> repo."""
        self.unlabelled_came: dict[ForgeName, asyncio.Event] = defaultdict(asyncio.Event)
        self.active_repos: dict[ForgeName, dict[str, datetime]] = defaultdict(dict)

    def load(self, now: datetime) -> None:
        """After a restart: jobs whose machine ended while we were away are doubtful at once."""
        self._recoveries.load()
        for job in self._rows.jobs.values():
            self.active_repos[job.forge][job.repo] = now
            self._note_served(job, now)
            if job.state is JobState.RUNNING and job.instance is not None and self._machine_of(job) is None:
                self._doubt(job.id, now, "its machine ended while the daemon was away")

    def _note_served(self, job: Job, now: datetime) -> None:
        if job.pool is not None:
            self.unserved_since.pop(job.id, None)
        else:
            self.unserved_since.setdefault(job.id, now)

    def rematch(self, rules: Rules, now: datetime) -> None:
        """The configuration changed: jobs find their scopes and pools anew."""
        for job in list(self._rows.jobs.values()):
            forge = self._forges.get(job.forge)
            if job.state is JobState.RUNNING or forge is None:
                continue
            scope = forge.scope_of(job.repo) or job.scope
            match = match_pool(
                forge=job.forge, repo=job.repo, labels=job.labels, run_id=job.run_id, pools=rules.pools.values()
            )
            if (match.pool, match.reason, scope) != (job.pool, job.unserved, job.scope):
                self._note_served(self._rows.amend_job(job, pool=match.pool, unserved=match.reason, scope=scope), now)

    def doubtful(self, now: datetime) -> dict[JobId, str]:
        """Jobs to ask their forge about now, and why."""
        self._looked_at = now
        due = {id_: reason for id_, (at, reason) in self._doubts.items() if at <= now and id_ in self._rows.jobs}
        for memory in (self._doubts, self._touched, self._ran_to_end, self._unknown_since, self.unserved_since):
            for gone in [id_ for id_ in memory if id_ not in self._rows.jobs]:
                del memory[gone]
        return due

    def unknown_ids(self, facts: Sequence[Fact]) -> list[JobId]:
        """Jobs in these facts that memory does not know: the store may know that they ended long ago."""
        found: dict[JobId, None] = {}
        for job in jobs_in(facts):
            id_ = job_id(job.forge, job.forge_job_id)
            if id_ not in self._rows.jobs and id_ not in self._rows.ended_jobs:
                found[id_] = None
        return list(found)

    def unknown_runners(self, facts: Sequence[Fact]) -> list[tuple[str, InstanceId]]:
        """Runners in these facts that may be of a machine whose end only the store remembers."""
        found: dict[str, InstanceId] = {}
        for seen in jobs_in(facts):
            name = seen.runner_name
            if not name or self._rows.by_runner(name) is not None or name in self._rows.ended_runners:
                continue
            if (instance := instance_named(name)) is not None:
                found[name] = instance
        return list(found.items())

    def next_doubt(self) -> datetime | None:
        """When a doubt comes due that the last snapshot did not show: those are asked about, or wait for a retry."""
        looked_at = self._looked_at
        return min((at for at, _ in self._doubts.values() if looked_at is None or at > looked_at), default=None)

    def _doubt(self, id_: JobId, at: datetime, reason: str) -> None:
        self._doubts.setdefault(id_, (at, reason))

    # ------------------------------------------------------------------ facts

    def webhook(self, fact: WebhookArrived, rules: Rules, now: datetime) -> None:
        self._rows.consume(fact.seq)
        if fact.forge not in self._forges:
            return  # accepted before its forge left the configuration
        for seen in fact.webhook.jobs:
            self._see(seen, SeenBy.WEBHOOK, rules, now)
        for run in fact.webhook.runs:
            self.active_repos[run.forge][run.repo] = now
            if run.is_finished:
                self._recoveries.run_ended(run.forge, run.repo, run.run_id, now)

    def listed(self, fact: JobsListed, rules: Rules, now: datetime) -> None:
        shown = set()
        for seen in fact.listing.jobs:
            id_ = job_id(seen.forge, seen.forge_job_id)
            shown.add(id_)
            before, touched = self._rows.jobs.get(id_), self._touched.get(id_)
            self._see(seen, SeenBy.POLL, rules, now)
            is_older_news = touched is not None and touched >= fact.started_at
            if before is not None and before.state in _BEGUN and seen.status is JobStatus.QUEUED and not is_older_news:
                self._doubt(id_, now, "a listing shows it in its queue again")
        for job in list(self._rows.jobs.values()):
            if job.forge != fact.forge or job.id in shown or job.repo not in fact.listing.repos:
                continue
            touched = self._touched.get(job.id)
            if job.state is not JobState.LOST and (touched is None or touched < fact.started_at):
                self._doubt(job.id, now, "a complete listing does not show it any more")

    def read(self, fact: JobRead, rules: Rules, now: datetime) -> None:
        self._doubts.pop(fact.job, None)
        job = self._rows.jobs.get(fact.job)
        if fact.seen is not None:
            self._unknown_since.pop(fact.job, None)
            self._see(fact.seen, SeenBy.WEBHOOK if job is not None else SeenBy.POLL, rules, now)
            job = self._rows.jobs.get(fact.job)
            if job is None or self._machine_of(job) is not None:
                return
            if fact.seen.status is JobStatus.QUEUED and job.state in _BEGUN:
                self._recoveries.back_in_queue(job, now)
                self._back_in_queue(job)
            elif fact.seen.status is not JobStatus.DONE and job.state is JobState.RUNNING:
                self._lost_or_not_yet(job, now)
        elif job is not None:
            self._unknown_at_forge(job, now)

    def _back_in_queue(self, job: Job) -> None:
        self._rows.move_job(
            job,
            JobState.QUEUED,
            started_at=None,
            runner_name="",
            instance=None,
            retry_at=None,
            finished_at=None,
            conclusion=None,
            reason="the forge put it back into its queue",
        )

    def _unknown_at_forge(self, job: Job, now: datetime) -> None:
        """A 404 may be a deleted run or a token that lost its rights: a machine at work is not ended on its word."""
        if self._machine_of(job) is not None:
            self._doubt(job.id, now + UNKNOWN_AGAIN, "the forge no longer knows it, and its machine still runs")
        elif job.state is JobState.LOST and now < self._unknown_since.setdefault(job.id, now) + FORGOTTEN_AFTER:
            self._rows.amend_job(job, retry_at=now + UNKNOWN_AGAIN, reason="the forge does not know it")
        elif job.state is JobState.LOST:
            self._recoveries.abandoned(job, "superseded: the forge forgot it", now)
        else:
            self._finish(job, Conclusion.UNKNOWN, now, reason="the forge no longer knows it")

    def _lost_or_not_yet(self, job: Job, now: datetime) -> None:
        """The forge still says that it runs. Without a machine it is lost, unless its runner said it finished."""
        if job.instance is None or self._machine_of(job) is not None or _passed_limit(job):
            return
        finished = self._ran_to_end.get(job.id)
        if finished is not None and now < finished + LOST_AFTER_DONE:
            self._doubt(job.id, now + DONE_GRACE, "its runner finished and the forge does not say so yet")
            return
        self._recoveries.lost(job, now)

    def machine_ended(self, instance: Instance, now: datetime, *, ran_to_end: bool) -> None:
        """Called when an instance row ends."""
        job = self._rows.jobs.get(instance.job) if instance.job is not None else None
        if job is None or job.state is not JobState.RUNNING:
            return
        if instance.ending in TIMER_ENDS and not _passed_limit(job):
            job = self._rows.amend_job(job, reason=f"{instance.ending}: its machine was ended")
        if ran_to_end:
            self._ran_to_end[job.id] = now
        gave_up_at = job.finished_at
        if gave_up_at is not None and self._cut_offs.ended_first(instance, job.conclusion, gave_up_at):
            self._doubts.pop(job.id, None)
            self._recoveries.lost(job, now, conclusion=None)
            return
        self._doubts.pop(job.id, None)
        self._doubt(job.id, now + DONE_GRACE if ran_to_end else now, "its machine ended")

    def passed_limit(self, instance: Instance, ending: EndReason) -> None:
        """The agent's own timer ends the runner: that is not a loss."""
        job = self._rows.jobs.get(instance.job) if instance.job is not None else None
        if job is not None and job.state is JobState.RUNNING:
            self._rows.amend_job(job, reason=f"{ending}: its agent ended the runner")

    def agent_told(self, instance: Instance, now: datetime) -> None:
        """How its runner ended is known now: a job that its forge gave up before need not wait any longer."""
        job = self._rows.jobs.get(instance.job) if instance.job is not None else None
        if job is not None and job.state is JobState.RUNNING and job.finished_at is not None:
            self._doubts[job.id] = now, "its agent told how its runner ended"

    def _machine_of(self, job: Job) -> Instance | None:
        return self._rows.instances.get(job.instance) if job.instance is not None else None

    # ------------------------------------------------------------------ one job

    def _see(self, seen: ForgeJob, seen_by: SeenBy, rules: Rules, now: datetime) -> None:
        id_ = job_id(seen.forge, seen.forge_job_id)
        self.active_repos[seen.forge][seen.repo] = now
        job = self._rows.jobs.get(id_)
        if seen.status is JobStatus.DONE and self._rows.lost:
            self._recoveries.job_ended(seen, now)
        if job is None:
            if id_ not in self._rows.ended_jobs:
                self._first_sight(id_, seen, seen_by, rules, now)
            return
        self._touched[id_] = now
        if seen.status.rank < _RANK[job.state]:
            return
        match seen.status:
            case JobStatus.RUNNING:
                self._started(job, seen, rules, now)
            case JobStatus.DONE:
                self._concluded(job, seen, rules, now)
            case JobStatus.CREATED | JobStatus.QUEUED:
                pass

    def _first_sight(self, id_: JobId, seen: ForgeJob, seen_by: SeenBy, rules: Rules, now: datetime) -> None:
        unlabelled = self.unlabelled[seen.forge]
        if seen.status is JobStatus.DONE:
            unlabelled.pop(seen.forge_job_id, None)
            self._rows.remember_ended(id_, JobState.DONE)
            self._machine_done_with(seen, id_, now)
            return
        if seen.status is JobStatus.CREATED:
            return
        runner_scope = self._runner_of(seen)
        scope = self._forges[seen.forge].scope_of(seen.repo) or runner_scope
        if scope is None:
            return
        if seen.labels is None:
            unlabelled[seen.forge_job_id] = seen.repo
            self.unlabelled_came[seen.forge].set()
            return
        if unlabelled.pop(seen.forge_job_id, None) is not None:
            seen_by = SeenBy.WEBHOOK
        match = match_pool(
            forge=seen.forge, repo=seen.repo, labels=seen.labels, run_id=seen.run_id, pools=rules.pools.values()
        )
        if match.is_hosted and match.pool is None and runner_scope is None:
            return
        job = Job(
            id=id_,
            forge=seen.forge,
            forge_job_id=seen.forge_job_id,
            repo=seen.repo,
            run_id=seen.run_id,
            run_attempt=seen.run_attempt,
            workflow=seen.workflow,
            name=seen.name,
            labels=seen.labels,
            scope=scope,
            state=JobState.QUEUED,
            queued_at=min(seen.queued_at or now, now),
            first_seen_at=now,
            seen_by=seen_by,
            pool=match.pool,
            unserved=match.reason,
            url=seen.url,
            commit=seen.commit,
        )
        if (heritage := self._recoveries.heritage(seen, id_, now)) is not None:
            job = replace(job, attempt=heritage.attempt + 1, predecessor=heritage.job, lost_at=heritage.lost_at)
        if seen_by is SeenBy.POLL:
            self._metrics.intake_divergence.inc()
        job = self._rows.add_job(job)
        self._touched[id_] = now
        self._note_served(job, now)
        if seen.status is JobStatus.RUNNING:
            self._started(job, seen, rules, now)

    def _runner_of(self, seen: ForgeJob) -> Scope | None:
        """The scope of the runner of ours that runs a job: it is ours to watch then, whoever's it is."""
        machine = self._rows.by_runner(seen.runner_name) if seen.status is JobStatus.RUNNING else None
        return machine.demand.scope if machine is not None and machine.demand is not None else None

    def _started(self, job: Job, seen: ForgeJob, rules: Rules, now: datetime) -> None:
        machine, before = self._rows.by_runner(seen.runner_name), job.instance
        if job.state is JobState.QUEUED:
            job = self._rows.move_job(
                job,
                JobState.RUNNING,
                started_at=min(seen.started_at or now, now),
                runner_name=seen.runner_name,
                instance=machine.id if machine is not None else None,
            )
            if job.pool is not None and job.started_at is not None:
                wait_s = max(0.0, (job.started_at - job.queued_at).total_seconds())
                self._metrics.job_wait_seconds.observe(wait_s)
            self._recoveries.started(job)
        elif job.state is JobState.RUNNING and machine is not None and job.instance is None:
            job = self._rows.amend_job(job, runner_name=seen.runner_name, instance=machine.id)
        if machine is not None:
            if job.instance != before:
                self._recoveries.placed(job, machine, rules, now)
            self._make_busy(machine, seen, job.id, now)
        elif job.instance is None:
            self._link_ended(job, seen, now)

    def _link_ended(self, job: Job, seen: ForgeJob, now: datetime) -> Job:
        """The machine of its runner was gone before we heard that the job began."""
        ended = self._rows.ended_runners.get(seen.runner_name)
        if ended is None:
            return job
        self._doubt(job.id, now, "its machine ended")
        reason = f"{ended.ending}: its machine was ended" if ended.ending in TIMER_ENDS else job.reason
        return self._rows.amend_job(job, runner_name=seen.runner_name, instance=ended.id, reason=reason)

    def _make_busy(self, machine: Instance, seen: ForgeJob, id_: JobId, now: datetime) -> None:
        cause = f"the forge says it runs {seen.name} of {seen.repo}"
        self._seen.note_served(machine.pool)
        if machine.state in REGISTERED_STATES:
            self._rows.move(machine, InstanceState.BUSY, now=now, cause=cause, job=id_, **_known_of(machine, seen))
        elif machine.state in WORKING_STATES and machine.job is None:
            self._rows.amend(machine, job=id_, **_known_of(machine, seen))
        else:
            return
        if (line := stolen_line(machine, seen, self._rows.jobs.get(id_), now)) is not None:
            self._rows.note(line)

    def _concluded(self, job: Job, seen: ForgeJob, rules: Rules, now: datetime) -> None:
        conclusion = seen.conclusion or Conclusion.UNKNOWN
        if job.state is JobState.LOST and conclusion is not Conclusion.SUCCESS:
            self._recoveries.given_up(job, conclusion, seen.finished_at, now)
            return
        if seen.runner_name and job.instance is None:
            machine = self._rows.by_runner(seen.runner_name) or self._rows.ended_runners.get(seen.runner_name)
            if machine is not None:
                job = self._rows.amend_job(job, instance=machine.id, runner_name=seen.runner_name)
        self._machine_done_with(seen, job.id, now)
        finished_at = min(seen.finished_at or now, now)
        is_ours = _passed_limit(job)
        if not is_ours and (word := self._cut_offs.awaited_word(job, conclusion, finished_at, now)):
            if job.state is JobState.QUEUED:
                self._started(job, seen, rules, now)
            self._wait_for(word, job.id, conclusion, finished_at, now)
            return
        started = job.started_at or seen.started_at
        reason = job.reason if is_ours else ""
        if job.state is JobState.LOST:
            reason = LATE_SUCCESS
            self._recoveries.succeeded(job)
        is_lost = not is_ours and self._cut_offs.was_cut_off(seen.runner_name, conclusion, finished_at)
        done = self._finish(
            job, conclusion, now, reason=reason, counts=not is_lost, started_at=started, finished_at=finished_at
        )
        if is_lost:
            self._recoveries.lost(done, now, conclusion=None)
        elif is_ours and conclusion is not Conclusion.SUCCESS:
            self._recoveries.spared(done)

    def _wait_for(self, word: str, id_: JobId, conclusion: Conclusion, finished_at: datetime, now: datetime) -> None:
        """It runs until that is known. That its forge gave it up is on the row, for the machine's end to find."""
        self._rows.amend_job(self._rows.jobs[id_], finished_at=finished_at, conclusion=conclusion, reason=word)
        is_news = now < finished_at + HEARD_AGAIN
        self._doubt(id_, now + (HEARD_AGAIN if is_news else UNSURE_AGAIN), word)

    def _machine_done_with(self, seen: ForgeJob, id_: JobId, now: datetime) -> None:
        """The machine whose runner ran a job that ended before we heard that it began."""
        machine = self._rows.by_runner(seen.runner_name)
        if machine is not None:
            self._make_busy(machine, seen, id_, now)

    def _finish(self, job: Job, conclusion: Conclusion, now: datetime, *, counts: bool = True, **fields: Any) -> Job:
        fields = {"finished_at": now, "reason": "", **fields}
        done = self._rows.move_job(job, JobState.DONE, conclusion=conclusion, **fields)
        self._touched.pop(job.id, None)
        self._ran_to_end.pop(job.id, None)
        if counts:
            self._metrics.jobs_done_total.labels(pool=job.pool or "", conclusion=conclusion).inc()
        return done


def _passed_limit(job: Job) -> bool:
    """Whether it is on record that a timer of ours ended it: its forge's word for that is a failure, and people ask
    why."""
    return job.reason.startswith(_LIMITS)


def _known_of(machine: Instance, seen: ForgeJob) -> dict[str, Any]:
    """What a job tells of the machine that runs it."""
    known: dict[str, Any] = {"repo": seen.repo, "workflow": seen.workflow}
    if machine.runner_id is None and seen.runner_id is not None:
        known["runner_id"] = seen.runner_id
    return known
