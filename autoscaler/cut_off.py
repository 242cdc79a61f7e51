"""Whether a job that its forge gave up had been lost with its machine before: by our own record, never by guess.

Owns the windows of that comparison. A forge's failure may be genuine, and a cancellation a person's; it counts as our
loss only from the moment on at which the agent had ended the runner for its cloud, or the machine was gone. Where
nobody has told that moment yet, the job waits for whoever will: its agent, or its cloud.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from autoscaler.live import LiveRows
from autoscaler.model import EndReason, Instance, Interruption, Job
from autoscaler.sightings import Sightings
from autoscaler.spi import Conclusion, InstanceId
from autoscaler.states import TIMER_ENDS, WORKING_STATES

INTERRUPTED = (EndReason.VANISHED, EndReason.INTERRUPTED, EndReason.CHAOS)
CUT_OFF_WINDOW = timedelta(hours=3)
"""How long after its machine's end a forge may fail a job for it: GitHub's lease is minutes, GitLab's check hours."""
CANCELLED_WINDOW = timedelta(minutes=2)
"""A runner that its agent ends cancels its job at once: a later cancellation is a person's."""
CLOCK_SKEW = timedelta(seconds=2)
"""How far the clocks of a machine and of a forge may be apart."""
SILENCE = timedelta(seconds=20)
"""Four heartbeats: an agent that was not heard for so long before its job failed may have been gone already."""
AGENT_TELLS = timedelta(seconds=60)
"""How long an agent that is being reclaimed may take to tell whether it ended the runner."""
UNSURE_AT_MOST = timedelta(hours=1)
UNSURE = "its forge gave it up, and its agent was not heard since: its cloud tells whether the machine was gone"
UNTOLD = "its forge gave it up while its cloud takes its machine: its agent tells which came first"

_GIVEN_UP = (Conclusion.FAILURE, Conclusion.CANCELLED)


class CutOffs:
    """See the module docstring. `heard_at` is when a machine's agent called last; None: not yet, in this process."""

    def __init__(
        self, rows: LiveRows, sightings: Sightings, *, heard_at: Callable[[InstanceId], datetime | None]
    ) -> None:
        self._rows = rows
        self._seen = sightings
        self._heard_at = heard_at

    def awaited_word(self, job: Job, conclusion: Conclusion, finished_at: datetime, now: datetime) -> str:
        """Why it cannot be said yet what a job's failure or cancellation means; "" where it can."""
        machine = self._rows.instances.get(job.instance) if job.instance is not None else None
        if machine is None or machine.state not in WORKING_STATES or machine.id in self._seen.ending:
            return ""
        interruption = self._rows.interruptions.get(machine.id)
        if interruption is not None and conclusion in _GIVEN_UP:
            began = interruption.noticed_at - CLOCK_SKEW <= finished_at
            if interruption.cutoff_at is None and began and now <= finished_at + AGENT_TELLS:
                return UNTOLD
        if conclusion not in _GIVEN_UP or now > finished_at + UNSURE_AT_MOST:
            return ""
        heard, shown = self._heard_at(machine.id), self._seen.shown_up.get(machine.id)
        # A host that shuts down ends its runner seconds after its agent was heard last: only a word from later than the
        # job's end says that the machine outlived it.
        is_silent = (heard is None or heard < finished_at) and (shown is None or shown < finished_at)
        return UNSURE if is_silent else ""

    def ended_first(self, machine: Instance, conclusion: Conclusion | None, finished_at: datetime) -> bool:
        """Whether an ended machine was taken before its forge gave its job up."""
        if machine.ending not in INTERRUPTED:
            return False
        interruption = self._rows.interruption_of(machine.id)
        if interruption is None or interruption.cutoff_at is None:
            return conclusion is not Conclusion.CANCELLED
        return _is_since(interruption, conclusion or Conclusion.FAILURE, finished_at)

    def was_cut_off(self, runner: str, conclusion: Conclusion, finished_at: datetime) -> bool:
        """Whether the runner was ended for its cloud, or its machine gone, before the forge gave the job up."""
        if conclusion not in _GIVEN_UP:
            return False
        machine = self._rows.by_runner(runner)
        if machine is not None:
            return _is_since(self._rows.interruptions.get(machine.id), conclusion, finished_at)
        machine = self._rows.ended_runners.get(runner)
        if machine is None or machine.ending is EndReason.JOB_DONE or machine.ending in TIMER_ENDS:
            return False
        interruption = self._rows.interruption_of(machine.id)
        if interruption is not None:
            return _is_since(interruption, conclusion, finished_at)
        is_failure = conclusion is Conclusion.FAILURE and machine.ending in INTERRUPTED
        return is_failure and _is_within(machine, finished_at)


def was_cancelled_since(job: Job, conclusion: Conclusion, finished_at: datetime | None) -> bool:
    """Whether somebody cancelled a lost job, after its own end could have. Where we may have asked for that, nobody can
    tell."""
    if conclusion is not Conclusion.CANCELLED or finished_at is None or job.lost_at is None:
        return False
    return finished_at > job.lost_at + CANCELLED_WINDOW


def _is_within(machine: Instance, finished_at: datetime) -> bool:
    return machine.since <= finished_at <= machine.since + CUT_OFF_WINDOW


def _is_since(interruption: Interruption | None, conclusion: Conclusion, finished_at: datetime) -> bool:
    if interruption is None or interruption.cutoff_at is None:
        return False
    window = CUT_OFF_WINDOW if conclusion is Conclusion.FAILURE else CANCELLED_WINDOW
    return interruption.cutoff_at - CLOCK_SKEW <= finished_at <= interruption.cutoff_at + window
