"""Passive moves that agents cause by what they say: hello, asking for an assignment, the events of their runner.

What an agent says of its end stays on the row: it says it once, and may be gone after a restart.
"""

from datetime import datetime

import structlog

from autoscaler.facts import AgentReported, AgentSaidHello, AssignmentAsked
from autoscaler.live import LiveRows
from autoscaler.model import Instance, InstanceState
from autoscaler.observe_jobs import JobObserver
from autoscaler.observe_losses import LossObserver
from autoscaler.sightings import Sightings
from autoscaler.states import REGISTERED_STATES, TIMER_ENDS, end_reason_said

log = structlog.get_logger()

RECLAIMED = "reclaimed"
"""The cause of an agent that ends, or ends its runner, because of a notice."""

_AGENT_SAID = "agent: "
"""How `Instance.detail` begins where it is what the agent said of its end."""

_S = InstanceState


class AgentObserver:
    """See the module docstring."""

    def __init__(self, rows: LiveRows, sightings: Sightings, jobs: JobObserver, losses: LossObserver) -> None:
        self._rows = rows
        self._seen = sightings
        self._jobs = jobs
        self._losses = losses
        for row in rows.instances.values():
            if row.detail.startswith(_AGENT_SAID):
                sightings.ending[row.id] = row.detail.removeprefix(_AGENT_SAID)

    def hello(self, fact: AgentSaidHello, now: datetime) -> None:
        row = self._rows.instances.get(fact.instance)
        if row is None:
            return
        if row.state is _S.LAUNCHED:
            row = self._rows.move(row, _S.READY, now=now, cause="its agent said hello")
        if fact.runner_name and row.state is _S.READY and not row.runner_name:
            if self._rows.by_runner(fact.runner_name) is not None:
                # Its word alone: the job of that runner would be looked for here, and its machine seem to have none.
                log.warning("runner_of_another_machine_claimed", instance=row.id)
                return
            self._rows.move(
                row, _S.REGISTERING, now=now, cause="its agent runs a runner already", runner_name=fact.runner_name
            )

    def assignment_asked(self, fact: AssignmentAsked, now: datetime) -> None:
        """Its claim is durable before a hello is answered, the hello itself is not: after a kill -9 between the two the
        agent never says it again, and its asking shows that it is up."""
        self._seen.asking.add(fact.instance)
        row = self._rows.instances.get(fact.instance)
        if row is not None and row.state is _S.LAUNCHED:
            self._rows.move(row, _S.READY, now=now, cause="its agent asks for its assignment")

    def reported(self, fact: AgentReported, now: datetime) -> None:
        row = self._rows.instances.get(fact.instance)
        if row is None:
            return
        match fact.kind:
            case "assignment_received" | "runner_started" if row.state is _S.REGISTERING:
                if fact.kind == "runner_started":
                    self._rows.move(row, _S.IDLE, now=now, cause="its agent started the runner")
            case "runner_stopping" if fact.cause == RECLAIMED:
                self._losses.runner_ended(row, fact.at, now)
                self._jobs.agent_told(row, now)
            case "runner_stopping" if end_reason_said(fact.cause) in TIMER_ENDS:
                self._timer_ends(row, fact.cause)
            case "runner_exited":
                self._runner_exited(row, fact, now)
            case "job_started":
                self._seen.started.add(row.id)
            case "ending":
                self._ending(row, fact, now)
            case _:
                pass

    def _runner_exited(self, row: Instance, fact: AgentReported, now: datetime) -> None:
        if fact.ran_job:
            row = self._had_job(row, now)
        known, before = self._rows.interruptions.get(row.id), self._seen.ending.get(row.id, "")
        if end_reason_said(before) in TIMER_ENDS:
            said = before
        elif known is not None and known.cutoff_at is not None:
            said = RECLAIMED
        else:
            failed = ": ".join(part for part in (f"runner_failed {fact.cause}".strip(), fact.output) if part)
            said = "job_done" if fact.ran_job else failed
        self._jobs.agent_told(self._note_ending(row, said), now)

    def _ending(self, row: Instance, fact: AgentReported, now: datetime) -> None:
        if fact.cause == RECLAIMED:
            self._losses.runner_ended(row, None, now)
            if self._seen.ending.get(row.id) != RECLAIMED:
                self._jobs.agent_told(self._note_ending(row, RECLAIMED), now)
        elif end_reason_said(fact.cause) in TIMER_ENDS:
            self._timer_ends(row, fact.cause)
        elif row.id not in self._seen.ending:
            self._note_ending(row, fact.cause)

    def _timer_ends(self, row: Instance, cause: str) -> None:
        """One of its dead man's timers ran out. It says so before it ends the runner, as the forge may be quicker to
        say what became of the job."""
        if row.id not in self._seen.ending:
            row = self._note_ending(row, cause)
            self._jobs.passed_limit(row, end_reason_said(cause))

    def _had_job(self, row: Instance, now: datetime) -> Instance:
        """Its agent is ahead of the forge's word which job it was. If it ended as an idle machine does, that job would
        seem to have none, and another would be launched for it."""
        if row.state not in REGISTERED_STATES:
            return row
        return self._rows.move(row, _S.BUSY, now=now, cause="its agent says that it ran a job")

    def _note_ending(self, row: Instance, said: str) -> Instance:
        self._seen.ending[row.id] = said
        return self._rows.amend(row, detail=_AGENT_SAID + said)
