"""Machines for queued jobs: each job covered once, within every cap and budget; and what happens to those left over."""

from dataclasses import replace
from datetime import timedelta

import pytest

from autoscaler.cooling import cooled
from autoscaler.model import (
    Caps,
    EndReason,
    InstanceState,
    Launch,
    Plan,
    PoolControl,
    Register,
    Release,
    Terminate,
    launch_key,
)
from autoscaler.spi import PoolName, ProviderName
from tests.admin_world import GITHUB, GPU, LINUX, OFFERING, SPOT, pool, rules_of
from tests.unit.plan_world import (
    COMPLETE,
    NOW,
    POOL,
    S,
    actions_of,
    forge,
    machine,
    only,
    planned,
    queued,
    runner,
    world,
)

AWS = ProviderName("aws")


def launched(made: Plan) -> int:
    return sum(action.count for action in actions_of(made, Launch))


# ---------------------------------------------------------------------- who covers a job


def test_an_empty_world_needs_nothing() -> None:
    assert planned(world()) == Plan(actions=())


def test_a_queued_job_gets_a_machine() -> None:
    made = only(planned(world([queued(1)])), Launch)
    assert (made.pool, made.count, made.offerings) == (LINUX, 1, (OFFERING,))
    assert made.reason == "1 queued job has no machine"


@pytest.mark.parametrize("state", [S.REQUESTED, S.LAUNCHED])
def test_a_machine_that_is_coming_covers_one_job(state: InstanceState) -> None:
    coming = machine(1, state)
    assert planned(world([queued(1)], [coming])).actions == ()
    assert only(planned(world([queued(1), queued(2)], [coming])), Launch).count == 1


def test_a_ready_machine_is_registered_for_exactly_what_the_oldest_job_asks() -> None:
    old, young = queued(1, "linux"), queued(2, "linux", "x64")
    made = planned(world([young, old], [machine(1, S.READY), machine(2, S.LAUNCHED)]))
    register = only(made, Register)
    assert register.demand.labels == ("linux",)
    assert (register.demand.forge, register.demand.scope, register.demand.group) == (GITHUB, "acme", "")
    assert "test (1)" in register.reason


def test_the_runner_group_of_the_pool_is_asked_for() -> None:
    grouped = replace(POOL, runner_group="trusted")
    made = planned(world([queued(1)], [machine(1, S.READY)]), grouped)
    assert only(made, Register).demand.group == "trusted"


@pytest.mark.parametrize("state", [S.REGISTERING, S.IDLE])
def test_a_registered_runner_covers_a_job_of_its_labels(state: InstanceState) -> None:
    assert planned(world([queued(1)], [runner(1, state)])).actions == ()


def test_a_runner_with_more_labels_covers_a_job_that_asks_for_fewer() -> None:
    assert planned(world([queued(1, "linux")], [runner(1, labels=("linux", "x64"))])).actions == ()


def test_a_runner_with_fewer_labels_covers_nothing_that_asks_for_more() -> None:
    made = planned(world([queued(1, "linux", "x64")], [runner(1, labels=("linux",))]))
    assert launched(made) == 1


def test_an_exact_runner_is_counted_before_a_wider_one() -> None:
    """The wider runner is then still there for the job that needs it."""
    narrow, wide = runner(1, labels=("linux",)), runner(2, labels=("linux", "x64"))
    assert planned(world([queued(1, "linux"), queued(2, "linux", "x64")], [wide, narrow])).actions == ()


def test_a_runner_of_another_scope_covers_nothing() -> None:
    elsewhere = replace(queued(1), repo="other/app", scope=type(queued(1).scope)("other"))
    assert launched(planned(world([elsewhere], [runner(1)]))) == 1


@pytest.mark.parametrize("state", [S.BUSY, S.DRAINING, S.TERMINATING])
def test_a_machine_at_work_or_on_its_way_out_covers_nothing(state: InstanceState) -> None:
    ending = EndReason.SURPLUS if state is S.TERMINATING else None
    working = runner(1, state, ending=ending, job=queued(9).id)
    assert launched(planned(world([queued(1)], [working]))) == 1


def test_a_runner_that_is_busy_with_a_job_yet_unknown_covers_one_queued_job_for_a_while() -> None:
    """Its job is one of those we still take for queued: the listing of runners came before that of jobs."""
    jobs = [queued(1), queued(2)]
    assert launched(planned(world(jobs, [runner(1, S.BUSY, seconds=5)]))) == 1
    assert launched(planned(world(jobs, [runner(1, S.BUSY, seconds=125)]))) == 2
    assert launched(planned(world(jobs, [runner(1, S.BUSY, seconds=5, labels=("arm",))]))) == 2


def test_a_busy_runner_whose_job_a_later_listing_does_not_show_covers_nothing() -> None:
    """It runs something that is not ours to see: the job that it was made for needs another one."""
    busy = runner(1, S.BUSY, seconds=30)
    assert launched(planned(world([queued(1)], [busy], jobs_listed={GITHUB: NOW - timedelta(seconds=25)}))) == 0
    assert launched(planned(world([queued(1)], [busy], jobs_listed={GITHUB: NOW - timedelta(seconds=20)}))) == 1


def test_a_machine_whose_agent_ended_covers_nothing() -> None:
    gone = machine(1, S.READY)
    made = planned(world([queued(1)], [gone], ending={gone.id: "no_contact"}))
    assert launched(made) == 1
    assert only(replace(made, actions=made.actions[:1]), Terminate).end_reason is EndReason.NO_CONTACT


def test_a_job_that_no_pool_serves_gets_nothing() -> None:
    assert planned(world([replace(queued(1), pool=None, unserved="no pool")])).actions == ()


def test_each_of_many_jobs_is_covered_exactly_once() -> None:
    jobs = [queued(number) for number in range(1, 9)]
    machines = [runner(1), runner(2, S.REGISTERING), machine(3, S.READY), machine(4, S.LAUNCHED), machine(5, S.BUSY)]
    made = planned(world(jobs, machines))
    assert len(actions_of(made, Register)) == 1
    assert launched(made) == 8 - 2 - 1 - 1


# ---------------------------------------------------------------------- caps


def test_a_pool_never_grows_beyond_its_max() -> None:
    jobs = [queued(number) for number in range(1, 9)]
    working = [runner(1, S.BUSY, job=queued(9).id), machine(2, S.TERMINATING)]
    made = planned(world(jobs, working), replace(POOL, max=5))
    assert launched(made) == 3
    (blocked,) = made.blocked
    assert (blocked.pool, blocked.jobs) == (LINUX, 5)
    assert blocked.reason == "pool linux is at its max of 5 instances"


def test_the_deployment_never_grows_beyond_its_cap_of_instances() -> None:
    jobs = [queued(number) for number in range(1, 9)]
    rules = rules_of(POOL, caps=Caps(instances=4))
    made = planned(world(jobs, [runner(1, S.BUSY)]), rules=rules)
    assert launched(made) == 3
    assert "cap of instances" in made.blocked[0].reason


def test_what_lives_must_not_cost_more_than_the_cap_per_hour() -> None:
    jobs = [queued(number) for number in range(1, 9)]
    rules = rules_of(POOL, caps=Caps(usd_per_hour=0.0415 * 3.5))
    made = planned(world(jobs, [runner(1, S.BUSY)]), rules=rules)
    assert launched(made) == 2
    assert "usd_per_hour" in made.blocked[0].reason


def test_a_day_is_charged_with_the_longest_that_machines_may_run() -> None:
    """Six hours at most, each: the cap of a day is committed when a machine is asked for, not when it has run."""
    jobs = [queued(number) for number in range(1, 9)]
    rules = rules_of(POOL, caps=Caps(usd_per_day=0.0415 * 6 * 2.5))
    made = planned(world(jobs), rules=rules)
    assert launched(made) == 2
    assert "usd_per_day" in made.blocked[0].reason


def test_the_pool_of_higher_priority_draws_on_the_caps_first() -> None:
    gpu = pool(GPU, "gpu", priority=1)
    jobs = [queued(1), replace(queued(2, "gpu"), pool=GPU)]
    rules = rules_of(POOL, gpu, caps=Caps(instances=1))
    made = planned(world(jobs, offerings={LINUX: (OFFERING,), GPU: (OFFERING,)}), rules=rules)
    assert only(made, Launch).pool == GPU
    assert made.blocked[0].pool == LINUX


def test_a_large_launch_is_split_into_batches() -> None:
    jobs = [queued(number) for number in range(1, 231)]
    made = planned(world(jobs, forges={GITHUB: forge(registrations_left=1000)}), replace(POOL, max=300))
    assert [action.count for action in actions_of(made, Launch)] == [100, 100, 30]


# ---------------------------------------------------------------------- what keeps machines from being launched


def test_every_capacity_pool_cooling_is_said_with_the_next_try() -> None:
    cooldown = cooled(SPOT, before=None, now=NOW, reason="no m7i.large in eu-central-1a")
    made = planned(world([queued(1)], cooldowns={SPOT: cooldown}))
    assert made.actions == ()
    assert "no m7i.large in eu-central-1a" in made.blocked[0].reason
    assert made.wake_at == cooldown.until


def test_a_pool_that_cannot_launch_says_why_and_is_tried_again() -> None:
    again_at = NOW + timedelta(seconds=30)
    held = {(LINUX, AWS): "launching fails: image gone"}
    made = planned(world([queued(1)], held_back=held, retry_after={launch_key(LINUX, AWS): again_at}))
    assert made.actions == ()
    assert made.blocked[0].reason == "launching fails: image gone; tried again in 30 s"
    assert made.wake_at == again_at
    later = planned(world([queued(1)], held_back=held), now=again_at)
    assert launched(later) == 1, "a pool that is held back for ever never recovers by itself"


@pytest.mark.parametrize(("control", "word"), [(PoolControl.PAUSED, "paused"), (PoolControl.DRAINING, "draining")])
def test_an_operators_hand_on_a_pool_keeps_it_from_launching(control: PoolControl, word: str) -> None:
    made = planned(world([queued(1)], controls={LINUX: control}))
    assert made.actions == ()
    assert made.blocked[0].reason == f"pool linux is {word} by an operator"


def test_a_paused_pool_still_gives_its_ready_machines_to_jobs() -> None:
    made = planned(world([queued(1)], [machine(1, S.READY)], controls={LINUX: PoolControl.PAUSED}))
    only(made, Register)


def test_the_registration_budget_paces_registrations() -> None:
    jobs = [queued(number) for number in range(1, 6)]
    ready = [machine(number, S.READY, seconds=1) for number in range(1, 6)]
    made = planned(world(jobs, ready, forges={GITHUB: forge(registrations_left=2.9)}))
    assert len(actions_of(made, Register)) == 2
    assert made.wake_at == NOW + timedelta(seconds=1)


def test_the_registration_budget_paces_launches_by_what_it_refills_in_a_boot() -> None:
    jobs = [queued(number) for number in range(1, 301)]
    made = planned(
        world(jobs, forges={GITHUB: forge(registrations_left=10, registrations_per_s=0.5)}), replace(POOL, max=1000)
    )
    assert launched(made) == 10 + 30
    assert "registration budget of github" in made.blocked[0].reason
    assert made.blocked[0].jobs == 260


def test_machines_on_their_way_have_their_share_of_the_budget() -> None:
    jobs = [queued(number) for number in range(1, 6)]
    coming = [machine(number, S.LAUNCHED) for number in range(1, 4)]
    made = planned(world(jobs, coming, forges={GITHUB: forge(registrations_left=4, registrations_per_s=0)}))
    assert launched(made) == 1


def test_ready_machines_that_wait_for_the_budget_have_their_share_of_it() -> None:
    jobs = [queued(number) for number in range(1, 10)]
    ready = [machine(number, S.READY, seconds=1) for number in range(1, 5)]
    view = forge(registrations_left=0, registrations_per_s=0.1)
    assert launched(planned(world(jobs, ready, forges={GITHUB: view}))) == 2


def test_registrations_on_their_way_have_their_share_of_the_budget() -> None:
    jobs = [queued(number) for number in range(1, 10)]
    minting = [runner(number, S.REGISTERING, runner_id=None) for number in range(1, 4)]
    ready = [machine(number, S.READY, seconds=1) for number in range(4, 8)]
    view = forge(registrations_left=5, registrations_per_s=0)
    made = planned(world(jobs, minting + ready, forges={GITHUB: view}))
    assert len(actions_of(made, Register)) == 2
    assert launched(made) == 0


def test_an_action_that_failed_lately_waits_for_its_time() -> None:
    again_at = NOW + timedelta(seconds=5)
    made = planned(world([queued(1)], retry_after={launch_key(LINUX, AWS): again_at}))
    assert made.actions == ()
    assert made.wake_at == again_at
    assert launched(planned(world([queued(1)], retry_after={launch_key(LINUX, AWS): NOW}))) == 1


# ---------------------------------------------------------------------- min and surplus


def test_min_is_launched_without_any_job() -> None:
    made = only(planned(world(), replace(POOL, min=3)), Launch)
    assert (made.count, made.reason) == (3, "min = 3")


def test_min_counts_what_is_registered_ready_and_coming() -> None:
    standing = [runner(1), machine(2, S.READY), machine(3, S.LAUNCHED)]
    assert planned(world((), standing), replace(POOL, min=3)).actions == ()


def test_min_is_kept_when_the_others_are_let_go() -> None:
    ready = [machine(number, S.READY, seconds=100 - number) for number in range(1, 6)]
    made = only(planned(world((), ready), replace(POOL, min=2)), Terminate)
    assert len(made.instances) == 3


def test_a_ready_machine_that_nobody_needs_ends_after_its_patience() -> None:
    made = only(planned(world((), [machine(1, S.READY, seconds=60)])), Terminate)
    assert (made.end_reason, len(made.instances)) == (EndReason.SURPLUS, 1)
    young = planned(world((), [machine(1, S.READY, seconds=59)]))
    assert young.actions == ()
    assert young.wake_at == NOW + timedelta(seconds=1)


def test_an_idle_runner_is_released_before_its_machine_is_ended() -> None:
    made = only(planned(world((), [runner(1, seconds=61)])), Release)
    assert made.end_reason is EndReason.SURPLUS


def test_a_registering_machine_is_left_alone() -> None:
    assert planned(world((), [runner(1, S.REGISTERING, seconds=100)])).actions == ()


@pytest.mark.parametrize("missing", ["github/jobs", "aws"])
def test_nothing_is_surplus_while_a_listing_is_missing(missing: str) -> None:
    idle = [machine(1, S.READY, seconds=600), runner(2, seconds=600)]
    assert planned(world((), idle, complete=COMPLETE - {missing})).actions == ()


def test_a_known_job_gets_its_machine_even_while_listings_fail() -> None:
    assert launched(planned(world([queued(1)], complete=frozenset()))) == 1


def test_a_draining_pool_lets_its_idle_machines_go_at_once_and_keeps_no_min() -> None:
    standing = [machine(1, S.READY, seconds=1), runner(2, seconds=1), runner(3, S.BUSY)]
    made = planned(world((), standing, controls={LINUX: PoolControl.DRAINING}), replace(POOL, min=2))
    assert len(actions_of(made, Terminate)) == 1
    assert [action.instance for action in actions_of(made, Release)] == [standing[1].id]


def test_machines_of_a_pool_that_left_the_config_go_and_busy_ones_finish() -> None:
    gone = PoolName("gone")
    standing = [machine(1, S.READY, pool=gone), runner(2, pool=gone), runner(3, S.BUSY, pool=gone)]
    made = planned(world((), standing))
    assert actions_of(made, Terminate)[0].instances == (standing[0].id,)
    assert [action.instance for action in actions_of(made, Release)] == [standing[1].id]
