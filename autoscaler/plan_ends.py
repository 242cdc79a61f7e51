"""Part of plan: machines that must end, by their deadlines, their job's end, or an operator's order.

Pure. A machine that may hold a registration is ended by Release (the forge must let the runner go first); Terminate
is for machines without one, whose job is done and confirmed, that passed max_job_runtime, or that are going already.
"""

import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from autoscaler.model import (
    Action,
    EndReason,
    Instance,
    InstanceState,
    Interruption,
    Job,
    JobState,
    Pool,
    Release,
    Rules,
    Snapshot,
    Terminate,
)
from autoscaler.spi import InstanceId
from autoscaler.states import REGISTERED_STATES, TIMER_ENDS, WORKING_STATES, end_reason_said

NO_POOL_BOOT = timedelta(minutes=10)
NO_POOL_RUNTIME = timedelta(hours=6)
"""Deadlines of machines whose pool left the configuration: nothing new is asked of them, their job may finish."""


RECLAIM_GRACE = timedelta(seconds=30)
"""How much later than it said a cloud may take a machine before we end it ourselves."""
OLD_SPREAD_S = 3600
"""Over so long the machines that stand by are replaced that were launched together."""


_TOLD_OF = REGISTERED_STATES | {InstanceState.LAUNCHED, InstanceState.READY}
"""States in which a machine ends because of what is said of it."""
_STANDING = frozenset({InstanceState.READY, InstanceState.IDLE})


@dataclass(slots=True)
class Ends:
    """`leaving` are the machines that these actions end: they cover no demand."""

    actions: list[Action] = field(default_factory=list)
    leaving: set[InstanceId] = field(default_factory=set)
    wake_at: datetime | None = None

    def wake(self, at: datetime) -> None:
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at


def plan_ends(snapshot: Snapshot, rules: Rules, now: datetime) -> Ends:
    """Every end that is due now, terminations batched per end reason."""
    ends = Ends()
    batches: dict[tuple[EndReason, str, bool], list[InstanceId]] = defaultdict(list)
    for instance in snapshot.instances.values():
        due = _due(instance, snapshot, rules, now, ends)
        if due is None:
            continue
        end_reason, reason, needs_release = due
        is_spoiled = _is_spoiled(instance, end_reason, snapshot)
        if needs_release:
            ends.actions.append(
                Release(instance=instance.id, end_reason=end_reason, reason=reason, is_spoiled=is_spoiled)
            )
        else:
            batches[end_reason, reason, is_spoiled].append(instance.id)
        ends.leaving.add(instance.id)
    for (end_reason, reason, is_spoiled), ids in batches.items():
        ends.actions.append(
            Terminate(instances=tuple(ids), end_reason=end_reason, reason=reason, is_spoiled=is_spoiled)
        )
    return ends


def _is_spoiled(instance: Instance, end_reason: EndReason, snapshot: Snapshot) -> bool:
    """Whether the end of a machine says that the next one of its pool will likely fare no better."""
    if instance.state is InstanceState.TERMINATING:
        return False
    said = snapshot.ending.get(instance.id, "")
    return end_reason is EndReason.BOOT_TIMEOUT or said.startswith(("runner_failed", "boot_timeout"))


def _due(
    instance: Instance, snapshot: Snapshot, rules: Rules, now: datetime, ends: Ends
) -> tuple[EndReason, str, bool] | None:
    """Why this machine must end now and whether its runner must be released first; None when it may stay."""
    pool, state = rules.pools.get(instance.pool), instance.state
    if state in WORKING_STATES:
        return _working_due(instance, snapshot, pool, now, ends)
    if state is InstanceState.TERMINATING:
        again_at = instance.since + rules.terminate_again_after
        if now < again_at:
            ends.wake(again_at)
            return None
        return instance.ending or EndReason.SURPLUS, "not gone yet: asked again", False
    if state in _TOLD_OF and (told := _told_due(instance, snapshot)) is not None:
        return told
    return _deadline_due(instance, pool, rules, now, ends)


def _told_due(instance: Instance, snapshot: Snapshot) -> tuple[EndReason, str, bool] | None:
    """What was said of a machine that has no job."""
    id_, is_registered = instance.id, instance.state in REGISTERED_STATES
    if id_ in snapshot.interruptions:
        return *_taken(snapshot.interruptions[id_]), is_registered
    if id_ in snapshot.disputed:
        return EndReason.DISPUTED, "two claims with valid evidence: replaced", is_registered
    if id_ in snapshot.ending:
        return _said_reason(instance, snapshot), f"its agent ended: {snapshot.ending[id_]}", is_registered
    if is_registered and id_ in snapshot.releasing:
        return (*snapshot.releasing[id_], True)
    return None


def _deadline_due(
    instance: Instance, pool: Pool | None, rules: Rules, now: datetime, ends: Ends
) -> tuple[EndReason, str, bool] | None:
    state = instance.state
    if state is InstanceState.REQUESTED:
        if _passed(instance, rules.launch_timeout, now, ends):
            return EndReason.REFUSED, "the cloud never showed the machine that was asked for", False
    elif state is InstanceState.LAUNCHED:
        limit = pool.boot_timeout if pool is not None else NO_POOL_BOOT
        if not instance.adopted and _passed(instance, limit, now, ends):
            return EndReason.BOOT_TIMEOUT, f"its agent said nothing within {limit}", False
    elif state is InstanceState.REGISTERING:
        if _passed(instance, rules.registering_timeout, now, ends):
            return EndReason.BOOT_TIMEOUT, f"its runner did not start within {rules.registering_timeout}", True
    elif state in _STANDING and pool is not None and pool.min and _is_old(instance, pool, now, ends):
        return EndReason.MAX_LIFETIME, "too old to be given a job that may run long", state is InstanceState.IDLE
    return None


def _said_reason(instance: Instance, snapshot: Snapshot) -> EndReason:
    """A dead man's timer of its agent is a reason of its own."""
    reason = end_reason_said(snapshot.ending.get(instance.id, ""))
    return reason if reason in TIMER_ENDS else EndReason.SELF_ENDED


def _working_due(
    instance: Instance, snapshot: Snapshot, pool: Pool | None, now: datetime, ends: Ends
) -> tuple[EndReason, str, bool] | None:
    job = snapshot.jobs.get(instance.job) if instance.job is not None else None
    if instance.job is not None and (job is None or _is_over(job)):
        forge = snapshot.forges.get(instance.demand.forge) if instance.demand is not None else None
        is_registered = forge is not None and not forge.traits.removes_finished_runners
        must_deregister = is_registered and instance.runner_id is not None
        if (interruption := snapshot.interruptions.get(instance.id)) is not None:
            return _taken_due(instance, interruption, job, snapshot, now, ends, must_deregister=must_deregister)
        if (said := _said_reason(instance, snapshot)) in TIMER_ENDS:
            return said, f"its agent ended: {snapshot.ending[instance.id]}", must_deregister
        return EndReason.JOB_DONE, "its job is done", must_deregister
    limit = pool.max_job_runtime if pool is not None else NO_POOL_RUNTIME
    if _passed(instance, limit, now, ends):
        return EndReason.MAX_RUNTIME, f"its job ran longer than max_job_runtime ({limit})", False
    return None


def _taken_due(
    instance: Instance,
    interruption: Interruption,
    job: Job | None,
    snapshot: Snapshot,
    now: datetime,
    ends: Ends,
    *,
    must_deregister: bool,
) -> tuple[EndReason, str, bool] | None:
    """A machine that its cloud is taking, with nothing left to do. Where it costs nothing if its cloud ends it, it is
    left to its cloud."""
    left_to_cloud = interruption.taken_by + RECLAIM_GRACE
    is_free = now < instance.created_at + snapshot.reclaimed_free.get(instance.provider, timedelta(0))
    if is_free and now < left_to_cloud:
        ends.wake(left_to_cloud)
        return None
    if job is None:
        return EndReason.JOB_DONE, "its job is done", must_deregister
    return *_taken(interruption), must_deregister


def _taken(interruption: Interruption) -> tuple[EndReason, str]:
    why = " for a game day" if interruption.is_game_day else ""
    return interruption.end_reason, f"its cloud takes it back{why} ({interruption.told_by})"


def _is_over(job: Job) -> bool:
    return job.state not in (JobState.QUEUED, JobState.RUNNING)


def _is_old(instance: Instance, pool: Pool, now: datetime, ends: Ends) -> bool:
    """Whether its own timer could end it in the middle of a job that it gets now. Those that were launched together
    go one after the other."""
    spread = timedelta(seconds=zlib.crc32(instance.id.encode()) % OLD_SPREAD_S)
    old_at = (instance.launched_at or instance.created_at) + pool.max_idle_age - spread
    if now < old_at:
        ends.wake(old_at)
        return False
    return True


def _passed(instance: Instance, limit: timedelta, now: datetime, ends: Ends) -> bool:
    deadline = instance.since + limit
    if now < deadline:
        ends.wake(deadline)
        return False
    return True
