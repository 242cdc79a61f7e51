"""Machines that must end: the deadline of every state, the end of their job, disputes, and never a live job."""

from dataclasses import replace
from datetime import timedelta

import pytest

from autoscaler.model import EndReason, InstanceState, JobState, Release, Terminate
from autoscaler.plan_ends import OLD_SPREAD_S
from autoscaler.spi import PoolName
from tests.admin_world import GITHUB, rules_of
from tests.unit.plan_world import (
    COMPLETE,
    GITLAB,
    NOW,
    POOL,
    S,
    actions_of,
    ago,
    forge,
    machine,
    only,
    planned,
    queued,
    runner,
    world,
)

RULES = rules_of(POOL)
LAUNCH_S = RULES.launch_timeout.total_seconds()
REGISTERING_S = RULES.registering_timeout.total_seconds()
AGAIN_S = RULES.terminate_again_after.total_seconds()


@pytest.mark.parametrize(
    ("state", "deadline_s", "end_reason"),
    [
        (S.REQUESTED, LAUNCH_S, EndReason.REFUSED),
        (S.LAUNCHED, 300, EndReason.BOOT_TIMEOUT),
        (S.READY, 60, EndReason.SURPLUS),
        (S.TERMINATING, AGAIN_S, EndReason.OPERATOR),
        (S.BUSY, 6 * 3600, EndReason.MAX_RUNTIME),
        (S.DRAINING, 6 * 3600, EndReason.MAX_RUNTIME),
    ],
)
def test_a_state_without_registration_or_past_max_runtime_ends_at_its_deadline(
    state: InstanceState, deadline_s: float, end_reason: EndReason
) -> None:
    ending = EndReason.OPERATOR if state is S.TERMINATING else None
    due = machine(1, state, seconds=deadline_s, ending=ending)
    made = only(planned(world((), [due])), Terminate)
    assert (made.instances, made.end_reason) == ((due.id,), end_reason)
    early = planned(world((), [replace(due, since=ago(deadline_s - 1))]))
    assert early.actions == ()
    assert early.wake_at == NOW + timedelta(seconds=1)


@pytest.mark.parametrize(
    ("state", "deadline_s", "end_reason"),
    [(S.REGISTERING, REGISTERING_S, EndReason.BOOT_TIMEOUT), (S.IDLE, 60, EndReason.SURPLUS)],
)
def test_a_registered_machine_is_released_at_its_deadline(
    state: InstanceState, deadline_s: float, end_reason: EndReason
) -> None:
    due = runner(1, state, seconds=deadline_s)
    assert only(planned(world((), [due])), Release).end_reason is end_reason
    early = planned(world((), [replace(due, since=ago(deadline_s - 1))]))
    assert early.actions == ()
    assert early.wake_at == NOW + timedelta(seconds=1)


def test_an_adopted_machine_that_never_spoke_waits_for_the_operator() -> None:
    assert planned(world((), [machine(1, S.LAUNCHED, seconds=9999, adopted=True)])).actions == ()


def test_a_termination_is_asked_for_again_with_its_first_reason() -> None:
    going = [machine(number, S.TERMINATING, seconds=AGAIN_S, ending=EndReason.CHAOS) for number in (1, 2)]
    made = only(planned(world((), going)), Terminate)
    assert made.end_reason is EndReason.CHAOS
    assert set(made.instances) == {row.id for row in going}


# ---------------------------------------------------------------------- the end of a job


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
def test_a_busy_machine_with_a_live_job_is_never_ended(state: JobState) -> None:
    job = replace(queued(1), state=state)
    row = runner(1, S.BUSY, job=job.id, seconds=6 * 3600 - 1)
    ending = {row.id: "job_done"}
    made = planned(world([job], [row], ending=ending, disputed=frozenset({row.id})))
    assert not actions_of(made, Terminate)
    assert not actions_of(made, Release)


def test_a_github_machine_ends_as_soon_as_its_job_is_done() -> None:
    made = only(planned(world((), [runner(1, S.BUSY, job=queued(1).id)])), Terminate)
    assert made.end_reason is EndReason.JOB_DONE


def test_a_gitlab_machine_gives_its_registration_back_with_its_end() -> None:
    at = {GITHUB: forge(), GITLAB: forge(GITLAB)}
    made = planned(world((), [runner(1, S.BUSY, job=queued(1).id, of=GITLAB)], forges=at, sealed=frozenset({"i-0001"})))
    assert only(made, Release).end_reason is EndReason.JOB_DONE


def test_a_busy_machine_whose_job_we_do_not_know_is_not_ended() -> None:
    assert planned(world((), [runner(1, S.BUSY, job=None)])).actions == ()


def test_the_pool_leaving_the_config_does_not_end_a_running_job() -> None:
    job = replace(queued(1), state=JobState.RUNNING)
    row = runner(1, S.BUSY, job=job.id, pool=PoolName("gone"), seconds=3600)
    assert planned(world([job], [row])).actions == ()


def test_a_lost_listing_does_not_keep_a_done_machine_alive() -> None:
    made = planned(world((), [runner(1, S.BUSY, job=queued(1).id)], complete=COMPLETE - {"github/jobs"}))
    only(made, Terminate)


# ---------------------------------------------------------------------- agents that end, and disputed claims


@pytest.mark.parametrize("state", [S.LAUNCHED, S.READY])
def test_a_machine_whose_agent_ended_is_ended(state: InstanceState) -> None:
    row = machine(1, state)
    made = only(planned(world((), [row], ending={row.id: "boot_timeout"})), Terminate)
    assert (made.end_reason, made.reason) == (EndReason.BOOT_TIMEOUT, "its agent ended: boot_timeout")


@pytest.mark.parametrize("state", [S.REGISTERING, S.IDLE])
def test_a_registered_machine_whose_agent_ended_is_released_first(state: InstanceState) -> None:
    row = runner(1, state)
    made = only(planned(world([queued(1)], [row], ending={row.id: "runner_failed"}), replace(POOL, max=1)), Release)
    assert made.end_reason is EndReason.SELF_ENDED


@pytest.mark.parametrize("state", [S.LAUNCHED, S.READY])
def test_a_machine_with_two_valid_claims_is_replaced(state: InstanceState) -> None:
    row = machine(1, state)
    made = planned(world([queued(1)], [row], disputed=frozenset({row.id})))
    assert actions_of(made, Terminate)[0].end_reason is EndReason.DISPUTED
    assert len(made.actions) == 2, "the job gets another machine"


@pytest.mark.parametrize("state", [S.REGISTERING, S.IDLE])
def test_a_disputed_machine_with_a_registration_is_released_before_a_job_comes(state: InstanceState) -> None:
    row = runner(1, state)
    made = planned(world((), [row], disputed=frozenset({row.id})))
    assert only(made, Release).end_reason is EndReason.DISPUTED


def test_a_release_that_was_not_settled_is_asked_for_again_and_covers_nobody() -> None:
    row = runner(1)
    made = planned(world([queued(1)], [row], releasing={row.id: (EndReason.SURPLUS, "idle")}))
    assert actions_of(made, Release)[0].instance == row.id
    assert len(made.actions) == 2


# ---------------------------------------------------------------------- machines that stand by


STANDING = replace(POOL, min=1)


@pytest.mark.parametrize(("state", "action"), [(S.READY, Terminate), (S.IDLE, Release)])
def test_a_machine_that_stood_by_for_a_day_is_replaced_before_its_timer_ends_it_under_a_job(
    state: InstanceState, action: type[Terminate] | type[Release]
) -> None:
    """Its lifetime leaves a whole max_job_runtime to a job that it takes in its last moment here."""
    old_s = STANDING.max_idle_age.total_seconds()
    row = runner(1, state) if state is S.IDLE else machine(1, state)
    made = planned(world((), [replace(row, created_at=ago(old_s))]), STANDING)
    (ended,) = actions_of(made, action)
    assert ended.end_reason is EndReason.MAX_LIFETIME
    assert len(made.actions) == 2, "another one is launched"
    assert STANDING.max_lifetime - STANDING.max_idle_age == STANDING.max_job_runtime


def test_a_machine_that_stands_by_is_kept_for_most_of_a_day() -> None:
    young_s = STANDING.max_idle_age.total_seconds() - OLD_SPREAD_S - 1
    row = replace(machine(1, S.READY), created_at=ago(young_s), since=ago(young_s - 60))
    made = planned(world((), [row]), STANDING)
    assert made.actions == ()
    assert made.wake_at is not None
    assert made.wake_at <= NOW + timedelta(seconds=OLD_SPREAD_S + 1)


def test_machines_that_stand_by_and_were_launched_together_are_not_replaced_together() -> None:
    pool = replace(POOL, min=8)
    half_s = pool.max_idle_age.total_seconds() - OLD_SPREAD_S / 2
    rows = [replace(machine(number, S.READY), created_at=ago(half_s)) for number in range(1, 9)]
    ended = sum(len(action.instances) for action in actions_of(planned(world((), rows), pool), Terminate))
    assert 0 < ended < 8


def test_a_busy_machine_is_never_too_old() -> None:
    row = replace(runner(1, S.BUSY), created_at=ago(STANDING.max_lifetime.total_seconds() - 1))
    made = planned(world((), [row]), STANDING)
    assert not actions_of(made, Terminate)
    assert not actions_of(made, Release)


def test_machines_of_a_pool_without_min_end_by_idle_timeout_alone() -> None:
    assert POOL.max_lifetime == POOL.boot_timeout + POOL.idle_timeout + POOL.max_job_runtime
