"""When a waiting job starts: by the machine it will most likely get, and by how long such machines took before."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from autoscaler.model import (
    Arrivals,
    Blocked,
    BlockedBy,
    ForgeView,
    InstanceState,
    Job,
    JobState,
    PoolControl,
    Prediction,
    Snapshot,
)
from autoscaler.spi import ForgeTraits
from autoscaler.why import answer, estimate
from autoscaler.why_outlook import Outlook
from autoscaler.why_start import AT_ONCE, Estimate
from autoscaler.why_unserved import unserved_trouble
from tests.admin_world import GITHUB, LINUX, OFFERING, SPOT, instance, job, pool, rules_of, snapshot_of

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
RULES = rules_of(pool(LINUX, "linux", "x64"))
TRAITS = ForgeTraits(seals_runners=False, removes_finished_runners=True, needs_queue_holder=False)
FORGE = ForgeView(name=GITHUB, traits=TRAITS, is_healthy=True, registrations_left=180, registrations_per_s=2)
TOOK = tuple(float(10 * n) for n in range(1, 21))
LEARNED = {(LINUX, SPOT.provider): Arrivals(seconds=TOOK)}


def earlier(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def about(found: Estimate, half_s: float, most_s: float | None = None) -> bool:
    """Within a tenth: what was measured is smoothed."""
    said = [(found.at, half_s)] + ([(found.by, most_s)] if most_s is not None else [])
    return all(at is not None and abs((at - NOW).total_seconds() - want) < 0.1 * want + 3 for at, want in said)


WAITING = job(1, earlier(30))


def world(*jobs: Job, **changes: Any) -> Snapshot:
    return snapshot_of(jobs or [WAITING], **{"offerings": {LINUX: (OFFERING,)}, "forges": {GITHUB: FORGE}, **changes})


def start(snapshot: Snapshot, blocked: Sequence[Blocked] = (), row: Job = WAITING) -> Estimate:
    return estimate(row, Outlook(snapshot, RULES, blocked, NOW))


def held(by: BlockedBy, reason: str = "pool linux is at its max of 2 instances", **changes: Any) -> list[Blocked]:
    return [Blocked(pool=LINUX, jobs=1, reason=reason, by=by, ids=(WAITING.id,), **changes)]


def test_a_booting_machine_takes_as_long_as_those_that_were_as_old_as_it_is() -> None:
    booting = replace(instance(1, earlier(40), InstanceState.LAUNCHED), created_at=earlier(100))
    found = start(world(instances=[booting], arrivals=LEARNED))
    assert about(found, 150 - 100)
    assert found.by is not None
    assert found.by >= later(200 - 100), "the next one may be slower than any so far"
    assert "20 machines of pool linux" in found.note


def test_before_any_machine_came_what_is_usual_counts() -> None:
    booting = replace(instance(1, earlier(5), InstanceState.LAUNCHED), created_at=earlier(10))
    found = start(world(instances=[booting]))
    assert about(found, 60 - 10, 107 - 10)
    assert found.note == "by what machines usually take"


def test_a_machine_later_than_all_before_it_gets_no_guess() -> None:
    booting = replace(instance(1, earlier(900), InstanceState.LAUNCHED), created_at=earlier(900))
    for learned in (LEARNED, {}):
        found = start(world(instances=[booting], arrivals=learned))
        assert found.at is None
        assert "longer than" in found.note


def test_an_online_runner_is_given_its_job_within_seconds() -> None:
    found = start(world(instances=[instance(1, earlier(1), InstanceState.IDLE)]))
    assert (found.at, found.by) == (NOW + AT_ONCE[0], NOW + AT_ONCE[1])


def test_refused_capacity_is_waited_for_and_then_a_boot() -> None:
    found = start(world(arrivals=LEARNED), held(BlockedBy.CAPACITY, again_at=later(45)))
    assert about(found, 45 + 105)
    assert found.by is not None
    assert found.by >= later(45 + 190)
    assert found.note == "if there is a machine at the next try"


def test_capacity_without_a_next_try_has_no_start() -> None:
    found = start(world(), held(BlockedBy.CAPACITY))
    assert found.at is None
    assert found.note


def test_behind_a_cap_the_jobs_that_run_now_have_to_end_first() -> None:
    running = [job(n, earlier(200), JobState.RUNNING, started_at=earlier(60 * n), name="build") for n in (2, 3)]
    snapshot = world(WAITING, *running, arrivals=LEARNED, hours={running[0].work: 0.1})
    assert about(start(snapshot, held(BlockedBy.CAP)), 360 - 180 + 105)
    second = replace(held(BlockedBy.SHARE)[0], ids=(running[0].id, WAITING.id))
    assert about(start(snapshot, [second]), 360 - 120 + 105)
    third = replace(second, ids=(running[0].id, running[1].id, WAITING.id))
    assert start(snapshot, [third]) == Estimate(note="nobody knows when the jobs before it will have ended")


def test_jobs_whose_repos_turn_it_is_start_before_those_that_wait_for_theirs() -> None:
    running = [job(n, earlier(200), JobState.RUNNING, started_at=earlier(60 * n), name="build") for n in (2, 3)]
    first = job(9, earlier(5), repo="acme/small")
    snapshot = world(WAITING, first, *running, arrivals=LEARNED, hours={running[0].work: 0.1})
    next_up = replace(held(BlockedBy.CAP)[0], ids=(first.id,))
    assert about(start(snapshot, [*held(BlockedBy.SHARE), next_up]), 360 - 120 + 105)


def test_a_cap_of_the_deployment_waits_for_any_of_its_jobs() -> None:
    other = job(2, earlier(200), JobState.RUNNING, started_at=earlier(60), pool=None)
    snapshot = world(WAITING, other, hours={other.work: 0.1}, arrivals=LEARNED)
    own = start(snapshot, held(BlockedBy.CAP))
    shared = start(snapshot, held(BlockedBy.CAP, "the deployment is at its cap of instances"))
    assert own.at is None
    assert about(shared, 300 + 105)


def test_the_days_money_has_no_start_but_a_reason() -> None:
    found = start(world(), held(BlockedBy.CAP, "the deployment reached its cap usd_per_day"))
    assert found.at is None
    assert "midnight UTC" in found.note


def test_without_better_knowledge_the_prediction_of_first_sight_is_told() -> None:
    row = replace(WAITING, prediction=Prediction(wait_s=90, breach=0.7, target_s=60))
    found = start(world(row), held(BlockedBy.CAP), row)
    assert found == Estimate(at=later(60), note="as it was predicted when it was first seen")


def test_a_rate_budget_refills_job_by_job() -> None:
    first = Blocked(pool=LINUX, jobs=9, reason="budget", by=BlockedBy.BUDGET, again_at=later(1))
    others = tuple(job(100 + n, earlier(60)).id for n in range(8))
    found = start(world(arrivals=LEARNED), [replace(first, ids=(*others, WAITING.id))])
    assert about(found, 1 + 8 / 2 + 105)


def test_the_plans_own_word_beats_a_machine_that_another_job_may_get() -> None:
    booting = instance(1, earlier(5), InstanceState.LAUNCHED)
    found = start(world(instances=[booting]), held(BlockedBy.OPERATOR, "pool linux is paused"))
    assert found == Estimate(note="an operator has to resume its pool first")


@pytest.mark.parametrize("control", [PoolControl.PAUSED, PoolControl.DRAINING])
def test_an_operators_hand_has_no_end_that_we_know(control: PoolControl) -> None:
    assert start(world(controls={LINUX: control})).note == "an operator has to resume its pool first"


def test_failing_boots_have_no_start() -> None:
    assert start(world(), held(BlockedBy.BOOTS, "x", again_at=later(9))).at is None


def test_a_lost_job_starts_when_the_rest_of_its_run_has_ended() -> None:
    lost = replace(WAITING, state=JobState.LOST)
    ends = {(lost.forge, lost.repo, lost.run_id): later(120)}
    known = start(world(lost, run_ends=ends), row=lost)
    assert known.at is not None
    assert timedelta(seconds=120) <= known.at - NOW <= timedelta(seconds=125)
    assert start(world(lost), row=lost).note == "nobody knows yet when the rest of its run ends"


def test_a_lost_job_of_a_forge_that_runs_it_again_at_once_needs_a_boot() -> None:
    lost, at_once = replace(WAITING, state=JobState.LOST), replace(FORGE, traits=replace(TRAITS, requeues_at_once=True))
    found = start(world(lost, forges={GITHUB: at_once}, arrivals=LEARNED), row=lost)
    assert about(found, 2 + 105)


def test_a_job_that_no_pool_serves_has_no_start_and_advice() -> None:
    row = replace(WAITING, pool=None, labels=("arm64", "linux"))
    told = answer(row, Outlook(world(row), RULES, (), NOW))
    assert told.start == Estimate(note="no pool serves it")
    assert told.advice.startswith(
        "Take arm64 off the job's labels (pool linux has the labels linux, x64), or add arm64 to"
    )
    assert 'unservable = "cancel_run"' in told.advice


def test_advice_names_the_repo_that_a_pool_does_not_serve_and_what_will_happen_else() -> None:
    rules = rules_of(pool(LINUX, "linux", "x64", cancels_unservable=True))
    row = replace(WAITING, pool=None, repo="acme/secret")
    told = answer(row, Outlook(world(row), rules, (), NOW))
    assert told.advice == (
        "Add acme/secret to the repos of pool linux. "
        "Otherwise its run is cancelled after 10 minutes, unless another job of it can be served: "
        'pool linux has unservable = "cancel_run".'
    )


def test_advice_without_any_pool_of_the_forge_is_to_configure_one() -> None:
    row = replace(WAITING, pool=None)
    assert answer(row, Outlook(world(row), rules_of(), (), NOW)).advice.startswith("Configure a pool for it")


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.DONE, JobState.REQUEUED, JobState.ABANDONED])
def test_what_does_not_wait_has_no_start_and_no_excuse(state: JobState) -> None:
    assert start(world(), row=replace(WAITING, state=state)) == Estimate()


def test_unserved_jobs_are_a_trouble_that_names_what_most_of_them_lack() -> None:
    rows = [replace(job(n, earlier(90 - n)), pool=None, labels=("arm64", "linux")) for n in range(3)]
    rows.append(replace(job(9, earlier(1)), pool=None, repo="acme/secret"))
    assert unserved_trouble(Outlook(world(*rows), RULES, (), NOW).unserved, RULES) == (
        "4 jobs are served by no pool: pool linux is nearest and lacks arm64; pool linux does not serve acme/secret; "
        "`autoscaler why github:0` says what to change"
    )
    assert unserved_trouble((), RULES) == ""
