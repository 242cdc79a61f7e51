"""What history teaches, beside what `experience` learns of capacity pools: run times, arrivals, what runs queue next,
how good predictions were, how much interruptions hurt.

Owns when the modules that learn hear of news, and when what they learned becomes durable; each of them owns what it
knows. News are the moves of rows, from whichever side: they are taken in once a tick, O(1) each. Nothing here grows
with history.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog

from autoscaler.arrivals import ArrivalTimes
from autoscaler.history import RunTimes
from autoscaler.hurt_jobs import ErrorBudgets
from autoscaler.learned_texts import KEPT_AT_ONCE
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import Job, JobState, Rules
from autoscaler.run_sizes import RunSizes
from autoscaler.scores import Scores
from autoscaler.spi import RunEvent
from autoscaler.stages import Stages

log = structlog.get_logger()

KEEP_EVERY = timedelta(seconds=10)
"""What a kill -9 makes forgotten at most. A first life is often a short one, and has the most to learn."""


class Lessons:
    """See the module docstring."""

    def __init__(self, rows: LiveRows, metrics: Metrics, now: datetime) -> None:
        self._rows = rows
        self._metrics = metrics
        self.run_times = RunTimes(rows.learned)
        self.arrivals = ArrivalTimes(rows.learned)
        self.stages = Stages(rows.learned, hours=self.run_times.hours, arrivals=lambda: self.arrivals.shown)
        self.stages.recall(rows.jobs, now)
        self.run_sizes = RunSizes(rows.learned)
        rows.job_news.clear()
        self.scores = Scores(rows.learned)
        self.budgets = ErrorBudgets(rows, rows.learned)
        learning = (self.run_times, self.run_sizes, self.arrivals, self.stages, self.scores, self.budgets)
        self._unkept = tuple(one.unkept for one in learning)
        self._due_at: datetime | None = None

    def take_in(self, rules: Rules, now: datetime) -> None:
        """Learn from what moved since the last tick, and keep it. What cannot be learned from is a bug of ours, but
        never a reason to stop: history makes decisions better, none depends on it."""
        jobs, self._rows.job_news = self._rows.job_news, []
        machines, self._rows.machine_news = self._rows.machine_news, []
        for before, job in jobs:
            try:
                self._job_moved(before, job, rules, now)
            except Exception:
                log.exception("lesson_refused", job=job.id)
        for was, row in machines:
            try:
                self.arrivals.machine_moved(was, row, rules, now)
                self.budgets.machine_moved(was, row, now)
            except Exception:
                log.exception("lesson_refused", instance=row.id)
        try:
            self.stages.reckon(rules.pools, now)
            self.run_sizes.reckon(now)
            self.budgets.reckon(rules, now)
        except Exception:
            log.exception("lesson_refused")
        self.keep(now)

    def _job_moved(self, before: Job | None, job: Job, rules: Rules, now: datetime) -> None:
        if job.state is JobState.DONE and job.id not in self._rows.lost:  # else it was done only to be found lost
            self.run_times.job_ended(job, now)
        self.stages.job_moved(job, now)
        if before is None:
            self.run_sizes.job_seen(job)
            return  # it begins to wait: nothing has happened to it yet
        self.budgets.job_moved(before, job, rules)
        if job.prediction is not None:
            if before.prediction is None:
                self._metrics.job_breach_probability.observe(job.prediction.breach)
            self.scores.job_moved(before, job, now)

    def runs_told(self, runs: Sequence[RunEvent]) -> None:
        """What a webhook says of runs, before the jobs that it may tell of are taken in."""
        for run in runs:
            if run.is_finished:
                self.stages.run_finished(run.forge, run.repo, run.run_id)

    def keep(self, now: datetime, *, is_last: bool = False) -> None:
        """Write what changed, each key at most once in KEEP_EVERY, a bounded number with one tick."""
        if is_last or self._due_at is None or now >= self._due_at:
            self._due_at = now + KEEP_EVERY
            for one in self._unkept:
                one.make_due()
        left = 10**9 if is_last else KEPT_AT_ONCE
        for one in self._unkept:
            rows = one.take(left)
            left -= len(rows)
            for row in rows:
                self._rows.learn(row)
                self._rows.learned.pop(row.key, None)  # the module that learned it has it
