"""What is said of a job's wait when it is first seen: by what comes for it, and by who is before it."""

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.model import Caps, Job, Plan, PoolControl, Prediction, Snapshot
from autoscaler.spi import ProviderName
from tests.admin_world import GITHUB, LINUX
from tests.unit.plan_world import NOW, POOL, S, ago, forge, machine, planned, queued, runner, world
from tests.unit.test_plan_launch import BOUGHT, SPOTS, WIDE, cooling, with_offerings
from tests.unit.test_spill import boots, young

AWS = ProviderName("aws")
ALONE = {(GITHUB, queued(1).repo, queued(1).workflow, LINUX): (1,) * 8}
QUICK = {"arrivals": {(LINUX, AWS): boots(20, sigma=0.2)}, "run_sizes": ALONE}
LOOSE = replace(WIDE, target=timedelta(seconds=120))


def said_of(job: Job, made: Plan) -> Prediction:
    return made.predictions[job.id]


def case(jobs: list[Job], machines: Any = (), **changes: Any) -> Snapshot:
    return world(jobs, machines, **with_offerings(*SPOTS, *BOUGHT, **{**QUICK, **changes}))


def test_each_job_is_told_of_once() -> None:
    known = young(1, prediction=Prediction(wait_s=20, breach=0.1, target_s=60))
    new = young(2)
    made = planned(case([known, new]), WIDE)
    assert made.predictions.keys() == {new.id}
    assert said_of(new, made).target_s == 60


def test_a_cold_boot_is_as_late_as_boots_are() -> None:
    said = said_of(young(1), planned(case([young(1)]), WIDE))
    assert said.wait_s == pytest.approx(22, abs=3)
    assert said.breach < 0.02
    strict = replace(WIDE, target=timedelta(seconds=22))
    assert 0.3 < said_of(young(1), planned(case([young(1)]), strict)).breach < 0.7


def test_a_job_that_is_late_already_will_be_late() -> None:
    assert said_of(young(1, age_s=90), planned(case([young(1, age_s=90)]), WIDE)).breach == 1.0


def test_a_runner_that_is_up_is_there_at_once() -> None:
    said = said_of(young(1), planned(case([young(1)], [runner(1)]), WIDE))
    assert said.wait_s < 5
    assert said.breach < 0.01


def test_machines_on_their_way_have_come_a_part_of_it() -> None:
    old = machine(1, S.LAUNCHED, seconds=15, created_at=ago(18))
    assert said_of(young(1), planned(case([young(1)], [old]), WIDE)).wait_s < 10


def test_the_last_of_many_waits_for_the_last_machine() -> None:
    jobs = [young(number, run_id="1") for number in range(101, 141)]
    made = planned(case(jobs, run_sizes={(GITHUB, jobs[0].repo, jobs[0].workflow, LINUX): (40,) * 8}), WIDE)
    waits = [said_of(job, made).wait_s for job in jobs]
    assert waits == sorted(waits)
    assert waits[-1] > waits[0] + 8


def test_who_sees_the_first_jobs_of_a_large_run_knows_that_more_machines_come() -> None:
    """They are launched for the others, and serve whoever is first."""
    strict = replace(WIDE, target=timedelta(seconds=22))
    jobs = [young(number, run_id="1") for number in range(1, 4)]
    kind = GITHUB, jobs[0].repo, jobs[0].workflow, LINUX
    small, large = (planned(case(jobs, run_sizes={kind: (size,) * 8}), strict) for size in (3, 40))
    assert said_of(jobs[2], small).breach > 0.6
    assert said_of(jobs[2], large).breach < 0.15


def test_a_job_behind_a_cap_waits_for_a_machine_to_end_and_another_to_boot() -> None:
    full = replace(LOOSE, max=2)
    jobs = [young(number) for number in (1, 2)]
    busy = [machine(number, S.BUSY, job=queued(number).id, created_at=ago(400)) for number in (51, 52)]
    made = planned(case(jobs, busy, expected_life_h={LINUX: 1.0}), full)
    assert said_of(jobs[0], made).breach > 0.7
    soon = planned(case(jobs, busy, expected_life_h={LINUX: 0.005}), full)
    assert said_of(jobs[0], soon).breach < said_of(jobs[0], made).breach


def test_no_machine_comes_for_a_paused_pool() -> None:
    made = planned(case([young(1)], controls={LINUX: PoolControl.PAUSED}), WIDE)
    assert said_of(young(1), made).breach == 1.0


def test_the_registration_budget_spaces_the_starts() -> None:
    tight = {"forges": {GITHUB: forge(registrations_left=5, registrations_per_s=0.1)}}
    jobs = [young(number) for number in range(101, 131)]
    made = planned(case(jobs, **tight), LOOSE)
    assert said_of(jobs[0], made).breach < 0.05
    assert said_of(jobs[25], made).breach > 0.95


def test_spot_that_is_dry_is_waited_for_only_as_the_plan_does() -> None:
    dry = {"cooldowns": cooling(*SPOTS, seconds=100)}
    with_spill = said_of(young(1), planned(case([young(1)], **dry), WIDE))
    without = said_of(young(1), planned(case([young(1)], **dry), replace(WIDE, spill_enabled=False)))
    assert with_spill.breach < 0.1
    assert without.breach > 0.9


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats(0.0, 200.0), min_size=1, max_size=30),
    st.integers(0, 6),
    st.integers(0, 6),
    st.integers(1, 20),
    st.booleans(),
)
def test_whatever_comes_older_jobs_of_a_pool_start_first(
    ages: list[float], ready: int, coming: int, most: int, is_known: bool
) -> None:
    jobs = [young(number, age_s=age) for number, age in enumerate(sorted(ages, reverse=True), start=101)]
    rows = [machine(number, S.READY, seconds=1) for number in range(ready)]
    rows += [machine(20 + number, S.LAUNCHED, seconds=3 * number) for number in range(coming)]
    changes = {} if is_known else {"arrivals": {}}
    made = planned(case(jobs, rows, **changes), replace(POOL, max=most, spill_caps=Caps(usd_per_hour=1.0)))
    starts = [said_of(job, made).wait_s - (NOW - job.queued_at).total_seconds() for job in jobs]
    assert all(before <= after + 0.11 for before, after in pairwise(starts))
    assert all(0.0 <= said_of(job, made).breach <= 1.0 for job in jobs)
