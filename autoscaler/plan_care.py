"""Part of plan: everything that keeps forges, rows and clouds in step and is not a machine's supply or end.

Pure. Seals busy runners that could take a second job (on the word of their agent too, since a forge may say so late),
withdraws registrations that never arrived, asks the forge about doubtful jobs, keeps the queues of scaled-to-zero pools
from being failed as stuck, and sweeps orphans seen in complete listings often enough. Tells people what happened to
their jobs, last of all. Lost jobs are `plan_requeue`'s.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from autoscaler.model import (
    Action,
    HoldQueue,
    Job,
    JobState,
    Rules,
    Seal,
    Settle,
    Snapshot,
    SweepInstances,
    SweepRunner,
    Tell,
    Withdraw,
)
from autoscaler.spi import ForgeName, Labels, PoolName, ProviderId, ProviderName, Scope
from autoscaler.states import REGISTERED_STATES, WORKING_STATES

HOLD_AFTER = timedelta(minutes=10)
"""GitLab fails a job after an hour without any matching runner in contact (specs: gitlab 3.4)."""
SETTLE_LIMIT = 20
"""Single-job reads of one forge per tick: the rest waits for the next tick or the next listing."""
TELL_LIMIT = 10
"""People are told this often per tick and forge: the rest waits, since nothing else may wait for it."""


@dataclass(slots=True)
class Care:
    actions: list[Action] = field(default_factory=list)
    wake_at: datetime | None = None

    def wake(self, at: datetime) -> None:
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at


def plan_care(snapshot: Snapshot, rules: Rules, now: datetime) -> Care:
    care = Care()
    _care_for_runners(snapshot, care)
    _settle(snapshot, now, care)
    _hold_queues(snapshot, rules, now, care)
    _sweep(snapshot, rules, care)
    _tell(snapshot, rules, now, care)
    return care


def _tell(snapshot: Snapshot, rules: Rules, now: datetime, care: Care) -> None:
    made: Counter[ForgeName] = Counter()
    for telling in snapshot.tellings:
        if telling.forge not in rules.telling_forges or telling.forge not in snapshot.forges:
            continue
        action = Tell(telling=telling, reason=f"{telling.job_name} lost its machine, and people should know why")
        keys = (action.key, action.owner_key, action.forge_key)
        held_until = max(snapshot.retry_after.get(key, now) for key in keys)
        if held_until > now:
            care.wake(held_until)
        elif made[telling.forge] < TELL_LIMIT:
            made[telling.forge] += 1
            care.actions.append(action)


def _settle(snapshot: Snapshot, now: datetime, care: Care) -> None:
    """What waits after a failure takes nobody's turn, and a forge with many doubtful jobs not another one's."""
    made: Counter[ForgeName | None] = Counter()
    for id_ in sorted(snapshot.doubtful):
        action = Settle(job=id_, reason=snapshot.doubtful[id_])
        job = snapshot.jobs.get(id_)
        forge = job.forge if job is not None else None
        if (retry_at := snapshot.retry_after.get(action.key, now)) > now:
            care.wake(retry_at)
        elif made[forge] < SETTLE_LIMIT:
            made[forge] += 1
            care.actions.append(action)


def _care_for_runners(snapshot: Snapshot, care: Care) -> None:
    sealing = {name for name, forge in snapshot.forges.items() if forge.traits.seals_runners}
    if sealing:
        for instance in snapshot.instances.values():
            is_said_busy = instance.id in snapshot.started and instance.state in REGISTERED_STATES
            if (
                (instance.state in WORKING_STATES or is_said_busy)
                and instance.demand is not None
                and instance.demand.forge in sealing
                and instance.runner_id is not None
                and instance.id not in snapshot.sealed
            ):
                care.actions.append(Seal(instance=instance.id, reason="its one job runs"))
    for waiting in sorted(snapshot.secretless):
        care.actions.append(Withdraw(instance=waiting, reason="its registration was lost before it arrived"))


def _hold_queues(snapshot: Snapshot, rules: Rules, now: datetime, care: Care) -> None:
    needing = {name for name, forge in snapshot.forges.items() if forge.traits.needs_queue_holder}
    if not needing:
        return
    wanted: dict[tuple[ForgeName, Scope, PoolName, Labels], Job] = {}
    for job in snapshot.jobs.values():
        if job.state is not JobState.QUEUED or job.forge not in needing or job.pool is None:
            continue
        if (pool := rules.pools.get(job.pool)) is None:
            continue
        if job.queued_at + HOLD_AFTER > now:
            care.wake(job.queued_at + HOLD_AFTER)
            continue
        key = (job.forge, job.scope, pool.name, pool.labels)
        wanted[key] = min(job, wanted.get(key, job), key=lambda one: (one.queued_at, one.id))
    for (forge, scope, name, labels), job in sorted(wanted.items(), key=lambda item: item[0]):
        if (scope, labels) not in snapshot.forges[forge].holders:
            reason = f"{job.name} of {job.repo} waits since {job.queued_at:%H:%M:%S} and no machine may be up"
            care.actions.append(HoldQueue(forge=forge, scope=scope, pool=name, labels=labels, reason=reason))


def _sweep(snapshot: Snapshot, rules: Rules, care: Care) -> None:
    ids: dict[ProviderName, list[ProviderId]] = defaultdict(list)
    for orphan in snapshot.orphan_instances:
        if orphan.sightings >= rules.orphan_sightings and orphan.instance.provider in snapshot.complete:
            ids[orphan.instance.provider].append(orphan.instance.provider_id)
    for provider, found in sorted(ids.items()):
        reason = f"no row knows {len(found)} machines that carry this deployment's name"
        care.actions.append(SweepInstances(provider=provider, ids=tuple(sorted(found)), reason=reason))
    for runner in snapshot.orphan_runners:
        if runner.sightings >= rules.orphan_sightings and not runner.is_busy and runner.forge in snapshot.complete:
            reason = "no row knows this runner of this deployment's name"
            care.actions.append(SweepRunner(forge=runner.forge, runner=runner.runner, reason=reason))
