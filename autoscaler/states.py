"""Both transition tables, and the only code that moves a row from one state to another.

Instances (deadline of each state in brackets; a passive move was observed, an active one was asked for):

    requested [launch_timeout]     -> launched       passive: the cloud answered or lists our token
                                   -> terminated     passive: refused, nothing was made
                                   -> terminating    active: outcome still unknown at the deadline
    launched [boot_timeout]        -> ready          passive: the agent said hello
                                   -> terminating    active: boot timeout, notice, not needed
                                   -> terminated     passive: vanished
    ready [idle_timeout]           -> registering    active: demand; intent committed before the forge is asked
                                   -> stopping, terminating    active: surplus;  -> terminated  passive: vanished
    registering [registering_timeout] -> idle        passive: the runner is online or its agent started it
                                   -> busy           passive: the forge says so first
                                   -> ready          active: the forge refused
                                   -> terminating, terminated
    idle [idle_timeout]            -> busy           passive: the forge says a job runs
                                   -> ready          active: deregistered, no job ran
                                   -> terminating    active: only after the forge let the runner go
                                   -> terminated     passive: vanished
    busy [max_job_runtime]         -> draining       passive: notice
                                   -> terminating    active: the job is done and confirmed
                                   -> terminated     passive: vanished, the job is lost
    draining [reclaim]             -> terminating, terminated
    stopping -> stopped -> starting -> launched | stopped;  each also -> terminating | terminated
    terminating [terminate_again_after, repeated] -> terminated  passive: a terminal state, or absent twice

Jobs:

    queued -> running | done | abandoned      abandoned -> queued (the configuration changed)
    running -> done | lost                    done -> lost (our interruption record predates the conclusion)
    lost -> requeued | abandoned | done (a late success)
    running, lost -> queued                   the forge says that it put the same job back into its queue
"""

from dataclasses import replace
from datetime import datetime

from autoscaler.model import EndReason, Instance, InstanceMove, InstanceState, Job, JobState

_I = InstanceState

INSTANCE_MOVES: dict[InstanceState, frozenset[InstanceState]] = {
    _I.REQUESTED: frozenset({_I.LAUNCHED, _I.TERMINATED, _I.TERMINATING}),
    _I.LAUNCHED: frozenset({_I.READY, _I.TERMINATING, _I.TERMINATED}),
    _I.READY: frozenset({_I.REGISTERING, _I.STOPPING, _I.TERMINATING, _I.TERMINATED}),
    _I.REGISTERING: frozenset({_I.IDLE, _I.BUSY, _I.READY, _I.TERMINATING, _I.TERMINATED}),
    _I.IDLE: frozenset({_I.BUSY, _I.READY, _I.TERMINATING, _I.TERMINATED}),
    _I.BUSY: frozenset({_I.DRAINING, _I.TERMINATING, _I.TERMINATED}),
    _I.DRAINING: frozenset({_I.TERMINATING, _I.TERMINATED}),
    _I.STOPPING: frozenset({_I.STOPPED, _I.TERMINATING, _I.TERMINATED}),
    _I.STOPPED: frozenset({_I.STARTING, _I.TERMINATING, _I.TERMINATED}),
    _I.STARTING: frozenset({_I.LAUNCHED, _I.STOPPED, _I.TERMINATING, _I.TERMINATED}),
    _I.TERMINATING: frozenset({_I.TERMINATED}),
    _I.TERMINATED: frozenset(),
}

_J = JobState

JOB_MOVES: dict[JobState, frozenset[JobState]] = {
    _J.QUEUED: frozenset({_J.RUNNING, _J.DONE, _J.ABANDONED}),
    _J.RUNNING: frozenset({_J.DONE, _J.LOST, _J.QUEUED}),
    _J.DONE: frozenset({_J.LOST}),
    _J.LOST: frozenset({_J.REQUEUED, _J.ABANDONED, _J.DONE, _J.QUEUED}),
    _J.ABANDONED: frozenset({_J.QUEUED}),
    _J.REQUEUED: frozenset(),
}

LIVE_JOB_STATES = frozenset({_J.QUEUED, _J.RUNNING, _J.LOST})
COMING_STATES = frozenset({_I.REQUESTED, _I.LAUNCHED, _I.READY})
"""Machines that hold no registration yet and may still get one."""
REGISTERED_STATES = frozenset({_I.REGISTERING, _I.IDLE})
"""Machines whose runner will take, or may already have taken, a job."""
WORKING_STATES = frozenset({_I.BUSY, _I.DRAINING})


TIMER_ENDS = frozenset({EndReason.BOOT_TIMEOUT, EndReason.NO_CONTACT, EndReason.MAX_RUNTIME, EndReason.MAX_LIFETIME})
"""Ends by a limit of ours, kept by us or by the agent's own timers: no cloud took the machine, and no job was lost."""
_SAID_ENDS = {
    "job_done": EndReason.JOB_DONE,
    "reclaimed": EndReason.INTERRUPTED,
    "boot_timeout": EndReason.BOOT_TIMEOUT,
    "no_contact": EndReason.NO_CONTACT,
    "max_runtime": EndReason.MAX_RUNTIME,
    "max_lifetime": EndReason.MAX_LIFETIME,
}


def end_reason_said(cause: str) -> EndReason:
    """What an agent's own word for its end comes to (docs/agent-protocol.md)."""
    return _SAID_ENDS.get(cause, EndReason.SELF_ENDED)


class IllegalMove(Exception):
    """A row was asked to leave its table: a bug in the caller, never a fault of the world."""


def is_live(instance: Instance) -> bool:
    return instance.state is not InstanceState.TERMINATED


def is_live_job(job: Job) -> bool:
    return job.state in LIVE_JOB_STATES


def move_instance(
    instance: Instance, to_state: InstanceState, *, now: datetime, cause: str, ending: EndReason | None = None
) -> tuple[Instance, InstanceMove]:
    """The row in its new state and the line of history that goes with it.

    `ending` is required with terminating and, unless already set, with terminated; the first reason stays.
    Raises IllegalMove.
    """
    if to_state not in INSTANCE_MOVES[instance.state]:
        raise IllegalMove(f"instance {instance.id}: {instance.state} -> {to_state} ({cause})")
    end = instance.ending or ending
    if to_state in (InstanceState.TERMINATING, InstanceState.TERMINATED) and end is None:
        raise IllegalMove(f"instance {instance.id}: {to_state} without an end reason ({cause})")
    moved = replace(instance, state=to_state, since=now, version=instance.version + 1, ending=end)
    line = InstanceMove(instance=instance.id, at=now, from_state=instance.state, to_state=to_state, cause=cause)
    return moved, line


def move_job(job: Job, to_state: JobState) -> Job:
    """The job in its new state. Raises IllegalMove."""
    if to_state not in JOB_MOVES[job.state]:
        raise IllegalMove(f"job {job.id}: {job.state} -> {to_state}")
    return replace(job, state=to_state, version=job.version + 1)
