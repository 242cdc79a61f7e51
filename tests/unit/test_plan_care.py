"""Keeping forges, rows and clouds in step: seals, withdrawals, doubts, queue holders, orphans, requeues."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from autoscaler.model import (
    Abandon,
    HoldQueue,
    Job,
    JobState,
    OrphanInstance,
    OrphanRunner,
    Plan,
    Requeue,
    Seal,
    Settle,
    SweepInstances,
    SweepRunner,
    Tell,
    Withdraw,
    job_id,
)
from autoscaler.plan_care import HOLD_AFTER, SETTLE_LIMIT, TELL_LIMIT
from autoscaler.spi import (
    BatchToken,
    CloudInstance,
    MachineState,
    PoolName,
    ProviderId,
    ProviderName,
    RunnerId,
    RunnerRef,
    Scope,
    Telling,
)
from tests.admin_world import GITHUB, LINUX, SPOT, rules_of
from tests.unit.plan_world import (
    COMPLETE,
    GITLAB,
    NOW,
    POOL,
    S,
    actions_of,
    ago,
    forge,
    only,
    planned,
    queued,
    runner,
    world,
)

BOTH = {GITHUB: forge(), GITLAB: forge(GITLAB)}
EVERYWHERE = replace(POOL, forges=frozenset())
RULES = rules_of(POOL)


# ---------------------------------------------------------------------- runners


def test_a_busy_gitlab_runner_is_sealed_once() -> None:
    row = runner(1, S.BUSY, of=GITLAB)
    assert only(planned(world((), [row], forges=BOTH)), Seal).instance == row.id
    assert planned(world((), [row], forges=BOTH, sealed=frozenset({row.id}))).actions == ()


def test_a_github_runner_needs_no_seal() -> None:
    assert planned(world((), [runner(1, S.BUSY)], forges=BOTH)).actions == ()


def test_a_registration_that_never_arrived_is_withdrawn() -> None:
    row = runner(1, S.REGISTERING)
    assert only(planned(world((), [row], secretless=frozenset({row.id}))), Withdraw).instance == row.id


def test_the_forge_is_asked_about_doubtful_jobs_a_few_at_a_time() -> None:
    doubtful = {job_id(GITHUB, f"{number:03}"): "its machine ended" for number in range(SETTLE_LIMIT + 5)}
    made = actions_of(planned(world(doubtful=doubtful)), Settle)
    assert len(made) == SETTLE_LIMIT
    assert {action.reason for action in made} == {"its machine ended"}


def test_doubtful_jobs_of_a_forge_that_is_down_hold_up_nobody_elses() -> None:
    down = [replace(queued(number), id=job_id(GITHUB, f"{number:03}")) for number in range(SETTLE_LIMIT + 5)]
    other = replace(queued(900), id=job_id(GITLAB, "900"), forge=GITLAB)
    doubtful = {job.id: "its machine ended" for job in (*down, other)}
    made = actions_of(planned(world([*down, other], forges=BOTH, doubtful=doubtful)), Settle)
    assert other.id in {action.job for action in made}, "its forge has turns of its own"
    assert len(made) == SETTLE_LIMIT + 1


def test_doubtful_jobs_that_wait_after_a_failure_take_no_turn() -> None:
    jobs = [replace(queued(number), id=job_id(GITHUB, f"{number:03}")) for number in range(SETTLE_LIMIT + 1)]
    doubtful = {job.id: "its machine ended" for job in jobs}
    held = {f"settle/{job.id}": NOW + timedelta(seconds=30) for job in jobs[:-1]}
    made = planned(world(jobs, doubtful=doubtful, retry_after=held), replace(POOL, max=0))
    assert only(made, Settle).job == jobs[-1].id
    assert made.wake_at == NOW + timedelta(seconds=30)


# ---------------------------------------------------------------------- queue holders


def waiting_at_gitlab(for_s: float, **changes: Any) -> Job:
    return replace(queued(1), forge=GITLAB, scope=Scope("acme"), queued_at=NOW - timedelta(seconds=for_s), **changes)


def held(job: Job, **changes: Any) -> Plan:
    paused = replace(EVERYWHERE, max=0)
    return planned(world([job], forges=changes.pop("forges", BOTH), **changes), paused)


def test_a_gitlab_job_that_waits_long_keeps_a_queue_holder() -> None:
    made = only(held(waiting_at_gitlab(HOLD_AFTER.total_seconds())), HoldQueue)
    assert (made.forge, made.scope, made.pool, made.labels) == (GITLAB, "acme", LINUX, POOL.labels)


def test_a_young_gitlab_job_does_not_yet() -> None:
    young = held(waiting_at_gitlab(HOLD_AFTER.total_seconds() - 5))
    assert young.actions == ()
    assert young.wake_at == NOW + timedelta(seconds=5)


def test_a_fresh_holder_is_not_made_again() -> None:
    fresh = {GITHUB: forge(), GITLAB: forge(GITLAB, holders=frozenset({(Scope("acme"), POOL.labels)}))}
    assert held(waiting_at_gitlab(3600), forges=fresh).actions == ()


def test_github_and_unserved_jobs_need_no_holder() -> None:
    assert held(replace(queued(1), queued_at=ago(3600))).actions == ()
    assert held(waiting_at_gitlab(3600, pool=None)).actions == ()


# ---------------------------------------------------------------------- orphans


def orphan_machine(sightings: int) -> OrphanInstance:
    machine = CloudInstance(
        provider=ProviderName("aws"),
        provider_id=ProviderId("i-orphan"),
        token=BatchToken("b-gone"),
        pool=LINUX,
        state=MachineState.RUNNING,
        capacity_pool=SPOT,
        price_usd_hour=0.04,
        launched_at=ago(600),
    )
    return OrphanInstance(instance=machine, sightings=sightings)


def orphan_runner(sightings: int, *, is_busy: bool = False) -> OrphanRunner:
    ref = RunnerRef(scope=Scope("acme"), runner_id=RunnerId("7"), name="ours--gone")
    return OrphanRunner(forge=GITHUB, runner=ref, is_busy=is_busy, sightings=sightings)


def test_an_orphan_machine_is_ended_after_two_complete_sightings() -> None:
    made = only(planned(world(orphan_instances=(orphan_machine(2),))), SweepInstances)
    assert (made.provider, made.ids) == ("aws", ("i-orphan",))
    assert planned(world(orphan_instances=(orphan_machine(1),))).actions == ()


def test_an_orphan_runner_is_removed_after_two_complete_sightings() -> None:
    assert only(planned(world(orphan_runners=(orphan_runner(2),))), SweepRunner).runner.name == "ours--gone"
    assert planned(world(orphan_runners=(orphan_runner(1),))).actions == ()


@pytest.mark.parametrize("missing", ["aws", "github"])
def test_nothing_is_swept_on_the_word_of_a_listing_that_failed(missing: str) -> None:
    orphans: dict[str, dict[str, Any]] = {
        "aws": {"orphan_instances": (orphan_machine(5),)},
        "github": {"orphan_runners": (orphan_runner(5),)},
    }
    assert planned(world(complete=COMPLETE - {missing}, **orphans[missing])).actions == ()


def test_a_busy_orphan_runner_is_left_to_its_job() -> None:
    assert planned(world(orphan_runners=(orphan_runner(9, is_busy=True),))).actions == ()


# ---------------------------------------------------------------------- lost jobs


def lost(number: int = 1, **changes: Any) -> Job:
    return replace(queued(number), state=JobState.LOST, run_id="500", **changes)


def test_the_lost_jobs_of_one_run_are_requeued_together() -> None:
    made = only(planned(world([lost(2), lost(1)])), Requeue)
    assert (made.forge, made.repo, made.run_id) == (GITHUB, "acme/shop", "500")
    assert made.jobs == (lost(1).id, lost(2).id)


def test_runs_are_requeued_apart() -> None:
    made = planned(world([lost(1), replace(lost(2), run_id="501")]))
    assert [action.run_id for action in actions_of(made, Requeue)] == ["500", "501"]


def test_a_forges_not_yet_is_waited_for() -> None:
    made = planned(world([lost(retry_at=NOW + timedelta(seconds=30))]))
    assert made.actions == ()
    assert made.wake_at == NOW + timedelta(seconds=30)
    only(planned(world([lost(retry_at=NOW)])), Requeue)


@pytest.mark.parametrize(
    ("job", "pool", "word"),
    [
        (lost(attempt=3), POOL, "attempts: 3 of 3 made"),
        (lost(), replace(POOL, requeue_enabled=False), "opted_out: pool linux does not requeue"),
        (lost(labels=("deploy", "linux")), replace(POOL, opt_out_labels=("deploy",)), "opted_out: label deploy"),
        (lost(pool=PoolName("gone")), POOL, "unservable: no pool serves it any more"),
    ],
)
def test_a_lost_job_that_may_not_run_again_is_abandoned_with_its_reason(job: Job, pool: Any, word: str) -> None:
    made = only(planned(world([job]), pool), Abandon)
    assert (made.job, made.reason) == (job.id, word)


def test_the_second_of_three_attempts_is_requeued() -> None:
    only(planned(world([lost(attempt=2)])), Requeue)


def test_a_gitlab_runner_is_sealed_as_soon_as_its_agent_says_that_a_job_started() -> None:
    row = runner(1, S.IDLE, of=GITLAB)
    assert not actions_of(planned(world((), [row], forges=BOTH)), Seal)
    made = planned(world((), [row], forges=BOTH, started=frozenset({row.id})))
    assert only(made, Seal).instance == row.id


# ---------------------------------------------------------------------- people are told

TELLING = replace(RULES, telling_forges=frozenset({GITHUB}))


def telling(number: int, **changes: Any) -> Telling:
    made = Telling(
        key=f"github:{number}/i-{number}",
        forge=GITHUB,
        repo="acme/shop",
        run_id="5",
        forge_job_id=str(number),
        job_name="test",
        commit="",
        url="",
        title="",
        text="",
    )
    return replace(made, **changes)


def test_people_are_told_a_few_at_a_time_after_everything_else() -> None:
    waiting = tuple(telling(number) for number in range(TELL_LIMIT + 3))
    made = planned(world([queued(1)], tellings=waiting), rules=TELLING)
    assert [action.telling for action in made.actions if isinstance(action, Tell)] == list(waiting[:TELL_LIMIT])
    assert not isinstance(made.actions[0], Tell)
    assert all(isinstance(action, Tell) for action in made.actions[-TELL_LIMIT:])


def test_nobody_is_told_where_that_is_turned_off() -> None:
    assert planned(world(tellings=(telling(1),))).actions == ()


@pytest.mark.parametrize("held", ["tell/github:1/i-1", "tell/github/acme", "tell/github"])
def test_telling_that_failed_waits_for_its_time_and_wakes_for_it(held: str) -> None:
    until = NOW + timedelta(seconds=9)
    made = planned(world(tellings=(telling(1),), retry_after={held: until}), rules=TELLING)
    assert (made.actions, made.wake_at) == ((), until)


def test_a_missing_permission_of_one_owner_holds_no_other_owner_back() -> None:
    other = telling(2, repo="globex/api")
    held = {"tell/github/acme": NOW + timedelta(seconds=9)}
    made = planned(world(tellings=(telling(1), other), retry_after=held), rules=TELLING)
    assert only(made, Tell).telling == other
