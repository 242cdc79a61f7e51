"""When a simulated day is at rest, and whether what became of its jobs is explained."""

import re
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from itertools import pairwise

from autoscaler.cut_off import INTERRUPTED, SILENCE
from autoscaler.model import InstanceState, Job, JobId, JobState, job_id
from autoscaler.plan import plan
from autoscaler.simulate.lives import Daemon
from autoscaler.simulate.stage import GITHUB, GITLAB, Stage
from autoscaler.spi import MachineState
from autoscaler.states import TIMER_ENDS

_HOLDER = "hold-"
_MARK = re.compile(r"<!-- autoscaler:(.+) -->")
_NEVER = ("opted_out: ", "attempts: ", *(f"{ending}: " for ending in sorted(TIMER_ENDS)))
"""How the reasons of rows begin that nothing of ours may run again."""
_IDLE = (InstanceState.READY, InstanceState.IDLE)


def unrest(stage: Stage) -> list[str]:
    """Everything that is not as it must be once faults have ended, as sentences; empty at rest."""
    found = [line for daemon in stage.daemons for line in _daemon_unrest(daemon)]
    found += _unexplained(stage)
    found += _unasked(stage)
    found += _run_in_spite(stage)
    found += _cancelled_alive(stage)
    found += _orphans(stage)
    told = told_of(stage)
    found += [line for daemon in stage.daemons for line in daemon.watch.untold(told)]
    return found


def told_of(stage: Stage) -> Counter[str]:
    """How often people were told of each loss, by its key."""
    keys = [one.external_id for one in stage.github.world.checks.everything()]
    notes = [_MARK.search(note.body) for note in stage.gitlab.world.merge_requests.everything()]
    return Counter([*keys, *(found[1] for found in notes if found is not None)])


def _daemon_unrest(daemon: Daemon) -> list[str]:
    core = daemon.core
    if core is None:
        return [f"{daemon.config.autoscaler.name} is not running"]
    mins = {str(pool.name): pool.min for pool in daemon.config.pools}
    left = daemon.watch.left_over(mins)
    if left or core.loop.snapshot is None:
        return left or ["no tick yet"]
    if {row.id: row.state for row in core.rows.instances.values()} != {
        row.id: row.state for row in daemon.watch.disk.instances.values() if row.state is not InstanceState.TERMINATED
    }:
        left.append("memory and disk differ")
    planned = plan(core.loop.snapshot, daemon.rules, core.now())
    left += [f"planning again plans {action.key}: {action.reason}" for action in planned.actions]
    return left


def _rows(stage: Stage) -> dict[JobId, Job]:
    return {id_: job for daemon in stage.daemons for id_, job in daemon.watch.disk.jobs.items()}


def _unexplained(stage: Stage) -> list[str]:
    """Jobs that have not ended, or ended badly through no fault of their own and without a recorded reason."""
    rows, found = _rows(stage), []
    for record in stage.github.world.job_records():
        if record.conclusion is None:
            found.append(f"github job {record.key} of run {record.run_id} has not ended")
            continue
        newest = stage.github.world.jobs[record.job_ids[-1]]
        is_cut = newest.conclusion == "cancelled" and f"{GITHUB}:{newest.id}" in stage.cut
        if is_cut or (newest.conclusion == "failure" and not newest.spec.fails):
            found += _excuse(stage, rows, job_id(GITHUB, str(newest.id)), f"github job {newest.id} {newest.spec.name}")
    for outcome in stage.gitlab.world.outcomes():
        if outcome.finished_at is None and outcome.status != "skipped":
            found.append(f"gitlab job {outcome.job_ids[-1]} is {outcome.status}")
            continue
        last = stage.gitlab.world.job(outcome.job_ids[-1])
        if last.id in stage.cancelled:
            continue
        if last.status in ("failed", "canceled") and not last.spec.fails:
            found += _excuse(stage, rows, job_id(GITLAB, str(last.id)), f"gitlab job {last.id} {last.failure_reason}")
    return found


def _unasked(stage: Stage) -> list[str]:
    """Reruns that no person asked for, although no job was lost that they ran again."""
    requeued = [job for job in _rows(stage).values() if job.state is JobState.REQUEUED]
    lost = {job.forge_job_id for job in requeued if job.forge == GITHUB}
    world = stage.github.world
    wanted = stage.run_again | {
        (record.run_id, world.jobs[new].attempt)
        for record in world.job_records()
        for old, new in pairwise(record.job_ids)
        if str(old) in lost
    }
    found = [
        f"attempt {attempt} of github run {run.id} was begun although no job of it was lost"
        for run in world.runs.values()
        for attempt in range(2, run.attempt + 1)
        if (run.id, attempt) not in wanted
    ]
    ids = {job.forge_job_id for job in requeued if job.forge == GITLAB}
    for outcome in stage.gitlab.world.outcomes():
        for id_ in outcome.job_ids[:-1]:
            job = stage.gitlab.world.job(id_)
            if str(id_) not in ids and job.failure_reason != "runner_provisioning_timeout":
                found.append(f"gitlab job {id_} was run again although it was not lost")
    return found


def _run_in_spite(stage: Stage) -> list[str]:
    """Jobs of GitHub that ran again with others of their run although they must not, and no person asked for it."""
    world = stage.github.world
    never = {job.forge_job_id for job in _rows(stage).values() if job.forge == GITHUB and job.reason.startswith(_NEVER)}
    return [
        f"github job {old} was run again although it must not be"
        for record in world.job_records()
        for old, new in pairwise(record.job_ids)
        if str(old) in never and (record.run_id, world.jobs[new].attempt) not in stage.run_again
    ]


def _cancelled_alive(stage: Stage) -> list[str]:
    """Jobs of runs that we ended, although their machines were up: only runs of dead jobs may be ended."""
    machine_of = {job: id_ for id_, jobs in stage.took.items() for job in jobs}
    found = []
    for job in stage.github.world.jobs.values():
        asked_at, id_ = job.cancel_asked_at, machine_of.get(f"{GITHUB}:{job.id}")
        machine = stage.cloud.world.machines.get(id_) if id_ is not None else None
        if asked_at is None or machine is None or job.is_copy or job.run_id in stage.cancelled_runs:
            continue
        states = [state for at, state, _ in machine.machine.history if at <= asked_at]
        if states and states[-1] in (MachineState.PENDING, MachineState.RUNNING):
            found.append(f"github job {job.id} was cancelled by us while its machine {id_} was up")
    return found


def _excuse(stage: Stage, rows: Mapping[JobId, Job], id_: JobId, what: str) -> list[str]:
    row = rows.get(id_)
    if row is None and id_ in stage.cut:
        return []  # no webhook of it arrived, and before a listing could show it, its agent ended it for a reclaim
    if row is not None and row.state is JobState.ABANDONED and row.reason:
        return []
    if row is not None and (row.reason.startswith("max_runtime") or _ran_too_long(stage, row)):
        return []
    if row is not None and _ended_while_away(stage, row):
        return []
    state = f"{row.state} {row.reason}" if row is not None else "unknown"
    return [f"{what} failed through no fault of its own and its row is {state}"]


def _ran_too_long(stage: Stage, row: Job) -> bool:
    limits = {pool.name: pool.max_job_runtime for daemon in stage.daemons for pool in daemon.config.pools}
    if row.pool is None or row.started_at is None or row.finished_at is None:
        return False
    return row.finished_at - row.started_at >= limits[row.pool] - timedelta(seconds=2)


def _ended_while_away(stage: Stage, row: Job) -> bool:
    """A new life finds the machine gone and its job failed, and nobody remembers which came first."""
    for daemon in stage.daemons:
        machine = daemon.watch.disk.instances.get(row.instance) if row.instance is not None else None
        was_taken = machine is not None and (machine.ending in INTERRUPTED or row.id in stage.cut)
        if was_taken and machine is not None and row.finished_at is not None:
            return any(row.finished_at - SILENCE <= began <= machine.since for began in daemon.began)
    return False


def _orphans(stage: Stage) -> list[str]:
    """Machines and runners that no live row of their deployment knows."""
    disks = {daemon.config.autoscaler.name: daemon.watch.disk for daemon in stage.daemons}
    live = {name: [r for r in disk.instances.values() if r.state in _IDLE] for name, disk in disks.items()}
    found = []
    for machine in stage.cloud.world.machines.values():
        rows = live.get(machine.deployment, [])
        if machine.is_up and all(row.provider_id != machine.provider_id for row in rows):
            found.append(f"machine {machine.provider_id} is an orphan")
    names = {row.runner_name for rows in live.values() for row in rows}
    registered = [runner.name for runner in stage.github.world.runners.values()]
    # A dead machine's cancelled job stays `canceling` until GitLab's hourly check: until then its runner is busy.
    world = stage.gitlab.world
    registered += [runner.description for runner in world.list_runners() if not world.is_busy(runner)]
    ours = tuple(f"{name}--" for name in disks)
    found += [
        f"runner {name} is an orphan"
        for name in registered
        if name.startswith(ours) and _HOLDER not in name and name not in names
    ]
    return found
