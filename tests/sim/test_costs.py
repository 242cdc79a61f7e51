"""The money of whole simulated days, crashes and lost machines included: the store's sums against the instances' and
jobs' own histories, added up by separate code."""

import math
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest

from autoscaler.model import Instance, InstanceState, JobState
from autoscaler.simulate.seeds import Day, case_of, run_case
from autoscaler.store.memory import MemoryDisk

FATES_OF_LOST_WORK = {JobState.LOST, JobState.REQUEUED, JobState.ABANDONED}
BOOTING = {InstanceState.LAUNCHED, InstanceState.STARTING}
WORKING = {InstanceState.BUSY, InstanceState.DRAINING}
Sums = dict[tuple[str, str, str], float]


@pytest.mark.parametrize("seed", [0, 3, 8, 19, 27])
def test_every_machine_second_is_charged_once_to_its_use_and_repo(seed: int) -> None:
    days: list[Day] = []

    async def play(day: Day) -> Any:
        days.append(day)
        day.daemon.start()

    outcome = run_case(case_of(seed), play)
    assert not outcome.violations, outcome.report()
    disk = days[0].daemon.watch.disk
    charged: Sums = defaultdict(float)
    for line in disk.costs.values():
        charged[line.pool, line.repo, line.use] += line.usd_nano / 1e9
    expected = from_histories(disk)
    assert {key: usd for key, usd in charged.items() if usd} == pytest.approx(expected, abs=1e-7)
    assert math.fsum(charged.values()) > 0


def from_histories(disk: MemoryDisk) -> Sums:
    sums: Sums = defaultdict(float)
    for row in disk.instances.values():
        if row.provider_id is None or row.state is not InstanceState.TERMINATED:
            continue
        moves = [move for _, move in disk.moves[row.id]]
        known = next(move for move in moves if move.to_state is not InstanceState.REQUESTED)
        unknown_s = (known.at - row.launched_at).total_seconds() if row.launched_at is not None else 0.0
        sums[row.pool, row.repo, "boot"] += unknown_s / 3600 * row.price_usd_hour
        for move, following in pairwise(moves):
            seconds = (following.at - move.at).total_seconds()
            if move.to_state is not InstanceState.REQUESTED and seconds > 0:
                sums[row.pool, row.repo, use_of(row, move.to_state, disk)] += seconds / 3600 * row.price_usd_hour
    return {key: usd for key, usd in sums.items() if usd > 1e-9}


def use_of(row: Instance, state: InstanceState, disk: MemoryDisk) -> str:
    if state in WORKING:
        # By the job's own word: a machine may have ended before anybody heard which job it ran.
        was_for_nothing = any(job.instance == row.id and job.state in FATES_OF_LOST_WORK for job in disk.jobs.values())
        return "lost" if was_for_nothing else "job"
    return "boot" if state in BOOTING else "idle"
