"""Losses in the demo's report: the two sides of the equation, what a forge knows better, and times of recovery."""

from dataclasses import replace

import pytest

from autoscaler.model import EndReason, InstanceState, Interruption, JobId, JobState, LedgerEntry, Prediction
from autoscaler.sandbox.demo_decisions import prediction_document, spill_document, spill_of
from autoscaler.sandbox.demo_losses import (
    hurt_machines,
    loss_counts,
    losses_missed,
    lost_rows,
    outcome_of,
    recovery_document,
    replacement_document,
    told,
)
from autoscaler.sandbox.demo_records import Attempt
from autoscaler.spi import CapacityType, ForgeName, InstanceId, ProviderName
from tests.unit.demo_builders import SMALL, T0, a_demo, a_job, a_machine, a_row, at

S = InstanceState
JOB = JobId("github:x")
DEAD = ((0.0, S.REQUESTED), (1.0, S.LAUNCHED), (2.0, S.BUSY), (10.0, S.TERMINATED))
SPOT_WAITS = (
    "1 queued job has no machine; on_demand because predicted breach 0.91 on spot, 0.12 on demand, target 10 s, "
    "margin 0.2"
)
SPOT_OUT = (
    "1 queued job has no machine; on_demand because every spot capacity pool refuses; predicted breach 1.00 on spot, "
    "0.05 on demand, target 10 s, margin 0.2"
)


def taken(machine: str, *, noticed: float, announced: bool = True, job: JobId | None = JOB) -> Interruption:
    return Interruption(
        instance=InstanceId(machine),
        provider=ProviderName("here"),
        pool=SMALL,
        capacity_pool=None,
        noticed_at=at(noticed),
        sources=("agent",),
        is_announced=announced,
        job=job,
        cutoff_at=at(noticed + 3),
        ended_at=at(noticed + 6),
    )


def test_a_row_that_runs_lost_work_again_is_no_second_loss_until_it_is_lost_itself() -> None:
    first = a_row("a", JobState.REQUEUED, lost_at=at(5))
    again = a_row("b", JobState.DONE, predecessor=first.id, lost_at=at(5), started_at=at(9))
    lost_again = a_row("c", JobState.REQUEUED, predecessor=first.id, lost_at=at(12), started_at=at(9))
    waiting = a_row("d", JobState.QUEUED, predecessor=first.id, lost_at=at(5), started_at=None)
    at_once = a_row("e", JobState.DONE, predecessor=first.id, lost_at=at(5), started_at=at(4.2))
    assert lost_rows([first, again, lost_again, waiting, at_once]) == [first, lost_again]


def test_a_row_whose_predecessor_is_gone_is_lost_since_it_began() -> None:
    again = a_row("b", JobState.DONE, predecessor=JobId("github:gone"), lost_at=at(5), started_at=at(9))
    lost_again = a_row("c", JobState.REQUEUED, predecessor=JobId("github:gone"), lost_at=at(12), started_at=at(9))
    assert lost_rows([again, lost_again]) == [lost_again]


def test_a_loss_that_came_to_nothing_known_breaks_the_equation() -> None:
    rows = [a_row("a", JobState.REQUEUED), a_row("b", JobState.LOST), a_row("c", JobState.DONE, lost_at=at(5))]
    counts = loss_counts(rows)
    assert counts["interrupted"] == 3
    assert sum(counts[kind] for kind in ("requeued", "opted_out", "abandoned", "late_success")) == 1
    assert [outcome_of(row) for row in rows] == ["requeued", "open", "open"]


@pytest.mark.parametrize(
    ("finished", "conclusion", "state", "is_missed"),
    [
        (30.0, "failure", JobState.DONE, True),
        (30.0, "failure", JobState.REQUEUED, False),
        (30.0, "success", JobState.DONE, False),
        (7.0, "failure", JobState.DONE, False),
        (None, None, JobState.RUNNING, True),
    ],
)
def test_a_job_that_died_with_its_machine_and_counts_as_no_loss_is_missed(
    finished: float | None, conclusion: str | None, state: JobState, is_missed: bool
) -> None:
    end = None if finished is None else T0 + finished
    attempt = Attempt(queued_at=T0, started_at=T0 + 2, finished_at=end, runner="r1", conclusion=conclusion)
    job = replace(a_job("x", (0, 2, 30)), attempts=(attempt,), forge_job_ids=("x",))
    machine = a_machine("m1", *DEAD, ending=EndReason.VANISHED, runner_name="r1")
    missed = losses_missed(a_demo([job], [a_row("x", state)], [machine]))
    assert bool(missed) is is_missed


def test_recovery_on_github_begins_when_the_rest_of_the_run_has_ended() -> None:
    jobs = [a_job("lost", (0, 1, 8), (31, 33, 40)), a_job("slow", (0, 1, 30))]
    machine, interruption = a_machine("m1", *DEAD, ending=EndReason.INTERRUPTED), taken("m1", noticed=2)
    lost = a_row("lost-0", JobState.REQUEUED, instance=InstanceId("m1"), lost_at=at(5))
    rows = [lost, a_row("slow-0", JobState.DONE)]
    document = recovery_document(a_demo(jobs, rows, [machine], [interruption]))
    assert document["github"]["announced"] == {"count": 1, "p50": 3.0, "p95": 3.0, "max": 3.0}
    assert document["github"]["unannounced"]["count"] == 0


def test_recovery_on_gitlab_begins_with_the_loss_and_what_never_ran_again_is_none() -> None:
    jobs = [a_job("lost", (0, 1, 8), (9, 12, 20), forge="gitlab"), a_job("never", (0, 1, 8), forge="gitlab")]
    forge = ForgeName("gitlab")
    rows = [a_row(f"{key}-0", JobState.REQUEUED, forge=forge, lost_at=at(5)) for key in ("lost", "never")]
    document = recovery_document(a_demo(jobs, rows))
    assert document["gitlab"]["unannounced"] == {"count": 1, "p50": 7.0, "p95": 7.0, "max": 7.0}


def test_a_replacement_counts_from_the_notice_and_only_for_jobs() -> None:
    first, moves = a_machine("m2", (13.5, S.REQUESTED), (15, S.READY))
    moves[0] = replace(moves[0], cause="1 lost job will be queued again")
    notices = [taken("m1", noticed=12), taken("m3", noticed=12.2, job=None), taken("m4", noticed=12.4)]
    document = replacement_document(a_demo(machines=[(first, moves)], interruptions=notices))
    assert document == {"count": 1, "p50": 1.5, "p95": 1.5, "max": 1.5}
    assert hurt_machines({one.instance: one for one in notices})["machines"] == 3


def test_people_that_could_not_be_told_are_counted_apart() -> None:
    def line(action: str, outcome: str) -> LedgerEntry:
        return LedgerEntry(at=at(1), actor="a", action=action, subject="s", pool="", reason="", outcome=outcome)

    ledger = [line("tell", "told"), line("tell", "not told: 403"), line("launch", "told")]
    assert told(a_demo(ledger=ledger)) == {"told": 1, "untold": 1}


def test_every_machine_on_demand_names_why_or_is_counted_as_unnamed() -> None:
    causes = {
        "breach": SPOT_WAITS,
        "outage": SPOT_OUT,
        "attempt": "1 queued job has no machine; on_demand from attempt 3 on",
        "error_budget": "2 queued jobs have no machine; on_demand because at most 50% of the machines may be spot",
        "unnamed": "1 queued job has no machine",
    }
    assert {kind: spill_of(cause) for kind, cause in causes.items()} == {kind: kind for kind in causes}
    machines = []
    for number, cause in enumerate(causes.values()):
        row, moves = a_machine(f"m{number}", (0, S.REQUESTED), (1, S.READY), capacity_type=CapacityType.ON_DEMAND)
        moves[0] = replace(moves[0], cause=cause)
        machines.append((row, moves))
    machines.append(a_machine("spot", (0, S.REQUESTED), (1, S.READY)))
    document = spill_document(a_demo(machines=machines))
    assert (document["spills"], document["spills_unnamed"]) == (3, 1)
    assert document["spills_by"] == dict.fromkeys(sorted(causes), 1)


def test_predictions_are_held_against_the_waits_that_forges_tell() -> None:
    def predicted(breach: float) -> Prediction:
        return Prediction(wait_s=5.0, breach=breach, target_s=10.0)

    jobs = [a_job("a", (0, 12, 20)), a_job("b", (0, 3, 20)), a_job("c", (0, 30, 40)), a_job("d", (0, None, None))]
    rows = [
        a_row("a-0", JobState.DONE, prediction=predicted(0.85)),
        a_row("b-0", JobState.DONE, prediction=predicted(0.05)),
        a_row("c-0", JobState.DONE, prediction=predicted(0.81)),
        a_row("d-0", JobState.QUEUED, prediction=predicted(1.0), started_at=None),
    ]
    document = prediction_document(a_demo(jobs, rows))
    assert document["brier"] == pytest.approx((0.15**2 + 0.05**2 + 0.19**2) / 3, abs=1e-4)
    assert document["reliability"] == [
        {"predicted": 0.05, "observed": 0.0, "jobs": 1},
        {"predicted": 0.83, "observed": 1.0, "jobs": 2},
    ]
    assert prediction_document(a_demo())["brier"] is None


def test_a_loss_whose_very_job_was_queued_again_counts_as_requeued_whatever_comes_of_it() -> None:
    waits = a_row("a", JobState.QUEUED, lost_at=at(5), started_at=None)
    ran = a_row("b", JobState.DONE, lost_at=at(5), started_at=at(9))
    lost_again = a_row("c", JobState.LOST, lost_at=at(12), started_at=at(9))
    assert [outcome_of(row) for row in (waits, ran, lost_again)] == ["requeued", "requeued", "open"]
    counts = loss_counts([waits, ran])
    assert (counts["interrupted"], counts["requeued"]) == (2, 2)
