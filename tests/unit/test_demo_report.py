"""The demo's report against sums made here by other means."""

import random
from typing import Any

import pytest

from autoscaler.model import EndReason, InstanceState, JobState
from autoscaler.sandbox.demo_progress import summary_text
from autoscaler.sandbox.demo_report import build_report
from autoscaler.spi import CapacityType, Conclusion, ProviderTraits
from tests.unit.demo_builders import DATA, LABELS, SMALL, a_demo, a_job, a_machine, a_row, at

S = InstanceState
KEYS = {
    "jobs", "by_forge", "by_pool", "wait_s", "delay_s", "cost_usd", "cost_ratio", "on_demand_share", "wasted_share",
    "launches", "instances_peak", "instances_left", "spills", "caps_exceeded", "makespan_ratio", "prediction",
    "decisions", "simulated_s", "wall_s", "events", "digest", "world", "faults",
}  # fmt: skip
COUNTS = {"submitted", "done", "abandoned", "interrupted", "requeued", "opted_out", "late_success", "lost_forever"}


def test_every_promised_key_is_there_even_without_a_single_job() -> None:
    report = build_report(a_demo())
    assert set(report) >= KEYS
    assert set(report["jobs"]) == COUNTS
    assert set(report["cost_usd"]) == {"total", "job", "idle", "boot", "lost", "stopped", "spot", "on_demand"}
    assert set(report["launches"]) == {"spot", "on_demand", "started", "refused"}
    assert set(report["wait_s"]) == {"p50", "p95", "p99", "mean", "share_over_target", "target"}
    assert set(report["delay_s"]) == {"p50", "p95", "p99", "share_over_target"}
    assert report["prediction"] == {"brier": None, "reliability": []}
    assert report["cost_ratio"] is None
    assert "0 launched" in summary_text(report)


def test_waits_are_recomputed_from_the_raw_times() -> None:
    dice = random.Random(7)
    spans = [(dice.uniform(0, 50), dice.uniform(0, 20)) for _ in range(200)]
    jobs = [a_job(f"j{n}", (queued, queued + wait, queued + wait + 3)) for n, (queued, wait) in enumerate(spans)]
    jobs.append(a_job("held", conclusion="skipped"))
    waits = sorted(wait for _, wait in spans)
    report = build_report(a_demo(jobs))
    assert report["wait_s"]["p50"] == pytest.approx(waits[99], abs=1e-3)
    assert report["wait_s"]["p95"] == pytest.approx(waits[189], abs=1e-3)
    assert report["wait_s"]["p99"] == pytest.approx(waits[197], abs=1e-3)
    assert report["wait_s"]["mean"] == pytest.approx(sum(waits) / 200, abs=1e-3)
    assert report["wait_s"]["share_over_target"] == sum(wait > 10 for wait in waits) / 200
    assert report["delay_s"]["p95"] == report["wait_s"]["p95"]
    assert report["jobs"]["done"] == report["jobs"]["submitted"] == 201


def _life(dice: random.Random, name: str, capacity_type: CapacityType) -> tuple[Any, dict[str, float], float]:
    """A machine's rows, what it cost by use, and its price, summed up beside the rows."""
    price = dice.choice((0.07, 0.2, 1.1))
    boot, idle, work, going = (dice.uniform(0.5, 9) for _ in range(4))
    asked = dice.uniform(0, 20)
    launched = asked + 0.7
    is_lost = dice.random() < 0.3
    machine = a_machine(
        name,
        (asked, S.REQUESTED),
        (launched, S.LAUNCHED),
        (launched + boot, S.READY),
        (launched + boot + idle / 2, S.REGISTERING),
        (launched + boot + idle, S.BUSY),
        (launched + boot + idle + work, S.TERMINATING),
        (launched + boot + idle + work + going, S.TERMINATED),
        capacity_type=capacity_type,
        price_usd_hour=price,
        job=f"github:{name}",
    )
    cents = {"boot": boot, "idle": idle + going, "lost" if is_lost else "job": work}
    return machine, {use: seconds * price / 3600 for use, seconds in cents.items()}, float(is_lost)


def test_money_is_recomputed_from_the_raw_histories() -> None:
    dice = random.Random(11)
    machines, rows, expected = [], [], {"job": 0.0, "idle": 0.0, "boot": 0.0, "lost": 0.0}
    by_type = {CapacityType.SPOT: 0.0, CapacityType.ON_DEMAND: 0.0}
    for number in range(60):
        capacity_type = dice.choice(tuple(by_type))
        machine, cents, is_lost = _life(dice, f"m{number}", capacity_type)
        machines.append(machine)
        rows.append(a_row(f"m{number}", JobState.REQUEUED if is_lost else JobState.DONE))
        by_type[capacity_type] += sum(cents.values())
        for use, usd in cents.items():
            expected[use] += usd
    cost = build_report(a_demo(rows=rows, machines=machines))["cost_usd"]
    for use, usd in expected.items():
        assert cost[use] == pytest.approx(usd, abs=1e-8), use
    assert cost["stopped"] == 0
    assert cost["spot"] == pytest.approx(by_type[CapacityType.SPOT], abs=1e-8)
    assert cost["spot"] + cost["on_demand"] == pytest.approx(cost["total"], abs=1e-8)
    assert sum(cost[use] for use in ("job", "idle", "boot", "lost", "stopped")) == pytest.approx(
        cost["total"], abs=1e-8
    )


def test_a_refused_launch_costs_nothing_and_a_living_machine_costs_until_the_end() -> None:
    refused = a_machine("r", (0, S.REQUESTED), (1, S.TERMINATED), provider_id=None, ending=EndReason.REFUSED)
    living = a_machine("l", (0, S.REQUESTED), (10, S.LAUNCHED), ending=None)
    report = build_report(a_demo(machines=[refused, living], instances_left=1))
    assert report["cost_usd"]["total"] == pytest.approx(90 * 0.36 / 3600, abs=1e-8)
    assert report["launches"] == {"spot": 1, "on_demand": 0, "started": 0, "refused": 1}
    assert report["instances_left"] == 1


def test_losses_are_what_the_rows_say_became_of_them() -> None:
    jobs = [
        a_job("lost", (0, 1, 5), (7, 9, 12)),
        a_job("opted", (0, 1, 5), conclusion="failure"),
        a_job("thrice", (0, 1, 5), conclusion="failure"),
        a_job("late", (0, 1, 5)),
        a_job("fine", (0, 1, 5), forge="gitlab", labels=LABELS[DATA]),
    ]
    rows = [
        a_row("lost-0", JobState.REQUEUED),
        a_row("lost-1", JobState.DONE),
        a_row("opted-0", JobState.ABANDONED, reason="opted_out: label no-retry"),
        a_row("thrice-0", JobState.ABANDONED, reason="attempts: 3 of 3 made"),
        a_row("late-0", JobState.DONE, reason="late_success: after all", lost_at=at(5)),
        a_row("unservable", JobState.ABANDONED, started_at=None, reason="unservable: no pool"),
    ]
    report = build_report(a_demo(jobs, rows))
    assert report["jobs"] == {
        "submitted": 5, "done": 3, "abandoned": 1, "interrupted": 4, "requeued": 1, "opted_out": 1, "late_success": 1,
        "lost_forever": 0,
    }  # fmt: skip
    assert report["by_forge"]["gitlab"]["interrupted"] == 0
    assert report["by_pool"]["small"]["requeued"] == 1
    assert report["served_twice"] == 0
    assert report["wasted_share"] == pytest.approx(4 / (4 + 3 + 4 * 4), abs=1e-4)
    assert report["delay_s"]["p99"] == pytest.approx(1 + 4 + 2)
    assert report["wait_s"]["p99"] == pytest.approx(1)


def test_a_job_without_end_or_runner_is_lost_but_a_queued_or_held_one_is_not() -> None:
    jobs = [
        a_job("gone", (0, 1, None), conclusion=None, is_running=True),
        a_job("queued", (0, None, None), conclusion=None),
        a_job("held", conclusion=None),
        a_job("skipped", (None, None, 5), conclusion="skipped"),
    ]
    report = build_report(a_demo(jobs))
    assert report["jobs"]["lost_forever"] == 1
    assert report["jobs"]["done"] == 1
    assert report["unfinished"] == 3
    assert build_report(a_demo(jobs), was_stopped=True)["jobs"]["lost_forever"] == 0


def test_a_second_runner_without_a_requeue_counts_as_served_twice() -> None:
    twice = a_job("twice", (0, 1, 5), (6, 7, 9))
    assert build_report(a_demo([twice]))["served_twice"] == 1
    assert build_report(a_demo([twice], [a_row("twice-0", JobState.REQUEUED)]))["served_twice"] == 0


def test_a_genuine_failure_may_ride_along_where_several_jobs_of_its_run_were_lost() -> None:
    failed = a_job("failed", (0, 1, 5), (6, 7, 9))
    genuine = a_row("failed-0", JobState.DONE, conclusion=Conclusion.FAILURE)
    lost = [a_row("a-0", JobState.REQUEUED), a_row("b-0", JobState.REQUEUED)]
    assert build_report(a_demo([failed], [genuine, *lost]))["served_twice"] == 0
    assert build_report(a_demo([failed], [genuine, lost[0]]))["served_twice"] == 1


def test_a_short_life_pays_its_minimum_and_an_early_reclaim_nothing() -> None:
    states = ((0, S.REQUESTED), (10, S.LAUNCHED), (20, S.TERMINATED))
    traits = ProviderTraits(minimum_billed_s=60.0, reclaimed_free_s=3600.0)
    short = build_report(a_demo(machines=[a_machine("a", *states)], traits=traits))["cost_usd"]
    assert (short["boot"], short["idle"]) == (pytest.approx(0.001), pytest.approx(0.005))
    taken = a_machine("a", *states, is_ended_by_cloud=True)
    assert build_report(a_demo(machines=[taken], traits=traits))["cost_usd"]["total"] == 0


def test_seconds_above_a_cap_and_the_peak_come_from_the_histories() -> None:
    machines = [
        a_machine("a", (0, S.REQUESTED), (10, S.TERMINATED)),
        a_machine("b", (2, S.REQUESTED), (12, S.TERMINATED)),
        a_machine("c", (5, S.REQUESTED), (9, S.TERMINATED)),
        a_machine("d", (6, S.REQUESTED), (8, S.TERMINATED), pool=DATA),
    ]
    report = build_report(a_demo(machines=machines))
    assert report["instances_peak"] == 4
    assert report["caps_exceeded"] == pytest.approx(4)
    assert build_report(a_demo(machines=machines, cap_instances=3))["caps_exceeded"] == pytest.approx(4 + 2)


def test_a_machine_that_follows_another_at_the_same_instant_is_not_above_the_cap() -> None:
    machines = [
        a_machine("a", (0, S.REQUESTED), (5, S.TERMINATED)),
        a_machine("b", (0, S.REQUESTED), (9, S.TERMINATED)),
        a_machine("c", (5, S.REQUESTED), (9, S.TERMINATED)),
    ]
    assert build_report(a_demo(machines=machines))["caps_exceeded"] == 0


def test_cost_ratio_and_shares_compare_with_on_demand_for_the_useful_hours() -> None:
    jobs = [a_job("one", (0, 1, 37), runners=("r1",)), a_job("two", (0, 2, 14), runners=("r2",))]
    machines = [
        a_machine("m1", (0, S.LAUNCHED), (40, S.TERMINATED), runner_name="r1"),
        a_machine("m2", (0, S.LAUNCHED), (20, S.TERMINATED), runner_name="r2", capacity_type=CapacityType.ON_DEMAND),
    ]
    report = build_report(a_demo(jobs, machines=machines))
    assert report["cost_ratio"] == pytest.approx((60 * 0.36) / (48 * 0.72), abs=1e-4)
    assert report["on_demand_share"] == pytest.approx(12 / 48)


def test_makespan_is_measured_against_the_longest_chain_of_durations() -> None:
    jobs = [
        a_job("build", (0, 2, 6), duration_s=4.0),
        a_job("slow", (6, 8, 14), needs=("build",), duration_s=6.0),
        a_job("quick", (6, 7, 8), needs=("build",), duration_s=1.0),
        a_job("pack", (14, 16, 20), needs=("slow", "quick"), duration_s=4.0),
        a_job("alone", (0, 5, 15), run="run-2", duration_s=5.0),
        a_job("never", (0, None, 9), run="run-3", conclusion="cancelled"),
    ]
    assert build_report(a_demo(jobs))["makespan_ratio"] == pytest.approx((20 / 14 + 15 / 5) / 2, abs=1e-3)


def test_the_digest_follows_what_happened() -> None:
    one, other = a_demo([a_job("a", (0, 1, 2))]), a_demo([a_job("a", (0, 1, 3))])
    assert build_report(one)["digest"] == build_report(one)["digest"] != build_report(other)["digest"]
    assert build_report(one)["events"] == 3


def test_a_job_of_no_pool_is_told_with_what_is_missing() -> None:
    job = a_job("bench", (0, None, 9), labels=("large",), conclusion="cancelled")
    row = a_row("bench-0", JobState.DONE, pool=None, unserved="no pool has the label large", started_at=None)
    report = build_report(a_demo([job], [row]))
    assert report["by_pool"]["-"]["submitted"] == 1
    assert report["unserved"][0]["reason"] == "no pool has the label large"
    assert "no pool has the label large" in summary_text(report)
    assert SMALL not in report["by_pool"]
