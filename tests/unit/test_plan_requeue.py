"""What plan makes of lost jobs beyond one requeue: machines for what will be queued again."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from autoscaler.model import Arrivals, InstanceState, Interruption, Job, JobState, Requeue, Snapshot
from autoscaler.plan_requeue import SETTLED_WITHIN, Replacements, replacements
from autoscaler.plan_tick import Purpose
from autoscaler.spi import ForgeName, InstanceId, PoolName, ProviderName
from tests.admin_world import GITHUB, LINUX, SPOT, pool, rules_of
from tests.unit.plan_world import GITLAB, NOW, POOL, ago, forge, only, planned, queued, runner, world

S = InstanceState
BOTH = {GITHUB: forge(), GITLAB: forge(GITLAB)}
SERVES_BOTH = replace(POOL, forges=frozenset({GITHUB, GITLAB}))
AWS = ProviderName("aws")


def lost(number: int = 1, **changes: Any) -> Job:
    return replace(queued(number), state=JobState.LOST, run_id="500", **changes)


def on_draining(job: Job, *, notice_s: float = 5, reclaim_s: float = 115, **changes: Any) -> dict[str, Any]:
    """A world in which the job runs on a machine that its cloud is taking."""
    row = runner(1, S.DRAINING, of=job.forge, job=job.id)
    running = replace(job, state=JobState.RUNNING, instance=row.id, started_at=ago(60))
    notice = Interruption(
        instance=row.id,
        provider=row.provider,
        pool=row.pool,
        capacity_pool=SPOT,
        noticed_at=ago(notice_s),
        sources=("queue",),
        is_announced=True,
        job=None,
        reclaim_at=NOW + timedelta(seconds=reclaim_s),
    )
    return {"jobs": [running], "machines": [row], "interruptions": {row.id: notice}, "forges": BOTH, **changes}


def needed(snapshot: Snapshot, *pools: Any) -> Replacements:
    return replacements(snapshot, rules_of(*(pools or (SERVES_BOTH,))), NOW)


def at_gitlab(number: int = 1, **changes: Any) -> Job:
    return lost(number, **{"forge": GITLAB, **changes})


def test_job_of_a_draining_machine_needs_another_one_at_the_notice_where_it_can_come_back_at_once() -> None:
    given = world(**on_draining(at_gitlab(attempt=2)))
    ((name, (want,)),) = needed(given).wants.items()
    assert (name, want.purpose, want.attempt) == (LINUX, Purpose.REPLACEMENT, 3)
    assert want.job is not None
    assert want.job.state is JobState.RUNNING


def test_lost_job_needs_a_machine_until_it_is_requeued_even_while_its_forge_says_not_yet() -> None:
    waiting = at_gitlab(retry_at=NOW + timedelta(seconds=20))
    assert [want.job for want in needed(world([waiting], forges=BOTH)).wants[LINUX]] == [waiting]
    back = replace(waiting, state=JobState.QUEUED)
    assert not needed(world([back], forges=BOTH)).wants


def test_machine_that_its_cloud_spared_needs_no_replacement_any_more() -> None:
    assert needed(world(**on_draining(at_gitlab(), notice_s=120, reclaim_s=-29))).wants
    assert not needed(world(**on_draining(at_gitlab(), notice_s=120, reclaim_s=-31))).wants


@pytest.mark.parametrize(
    ("job", "pool_now"),
    [
        (at_gitlab(attempt=3), SERVES_BOTH),
        (at_gitlab(), replace(SERVES_BOTH, requeue_enabled=False)),
        (at_gitlab(labels=("deploy", "linux")), replace(SERVES_BOTH, opt_out_labels=("deploy",))),
        (at_gitlab(pool=PoolName("gone")), SERVES_BOTH),
        (at_gitlab(forge=ForgeName("left the configuration")), SERVES_BOTH),
    ],
    ids=["attempts", "disabled", "opted out", "no pool", "no forge"],
)
def test_job_that_will_not_run_again_needs_no_machine(job: Job, pool_now: Any) -> None:
    assert not needed(world([job], forges=BOTH), pool_now).wants


def test_run_that_must_end_first_gets_its_machines_one_boot_before_its_expected_end() -> None:
    job, ends_at = lost(), NOW + timedelta(seconds=100)
    key = (job.forge, job.repo, job.run_id)
    booting = {(LINUX, AWS): Arrivals(seconds=(20.0, 40.0, 90.0))}
    early = needed(world([job], run_ends={key: ends_at}, arrivals=booting))
    assert not early.wants
    assert early.wake_at == ends_at - timedelta(seconds=40)
    later = ends_at - timedelta(seconds=40)
    due = replacements(world([job], run_ends={key: ends_at}, arrivals=booting), rules_of(POOL), later)
    assert [want.job for want in due.wants[LINUX]] == [job]
    assert due.wake_at is None


def test_a_minute_is_taken_for_a_boot_that_nobody_saw_yet() -> None:
    job, ends_at = lost(), NOW + timedelta(seconds=61)
    made = needed(world([job], run_ends={(job.forge, job.repo, job.run_id): ends_at}))
    assert made.wake_at == NOW + timedelta(seconds=1)


def test_run_whose_end_nobody_knows_gets_no_machine_before_its_jobs_are_queued() -> None:
    assert not needed(world([lost()])).wants
    assert not needed(world(**on_draining(lost()))).wants


def test_a_lost_job_and_a_draining_one_count_once_each_and_the_oldest_comes_first() -> None:
    given = on_draining(at_gitlab(7))
    given["jobs"] += [at_gitlab(9), at_gitlab(3)]
    given["interruptions"][InstanceId("i-gone")] = replace(
        next(iter(given["interruptions"].values())), instance=InstanceId("i-gone"), job=at_gitlab(9).id
    )
    wants = needed(world(**given)).wants[LINUX]
    assert [want.job.queued_at for want in wants if want.job] == [ago(97), ago(93), ago(91)]


def test_each_pool_gets_its_own() -> None:
    arm = pool(PoolName("arm"), "arm", forges=frozenset({GITLAB}))
    jobs = [at_gitlab(1), at_gitlab(2, pool=arm.name)]
    made = needed(world(jobs, forges=BOTH), SERVES_BOTH, arm)
    assert {name: len(wants) for name, wants in made.wants.items()} == {LINUX: 1, arm.name: 1}


def test_genuine_failures_may_run_again_with_lost_jobs_where_every_pool_of_the_run_allows_it() -> None:
    careful = pool(PoolName("careful"), "careful", requeues_failures=False)
    jobs = [lost(1), lost(2, pool=careful.name)]
    assert only(planned(world(jobs[:1]), POOL, careful), Requeue).with_failures
    assert not only(planned(world(jobs), POOL, careful), Requeue).with_failures


def test_lost_jobs_of_a_run_wait_for_the_word_on_another_one_that_their_forge_gave_up() -> None:
    """GitHub would run them again without it, and it only once they are done."""
    given_up = replace(queued(2), state=JobState.RUNNING, run_id="500", finished_at=ago(5))
    plan = planned(world([lost(1), given_up]))
    assert [action for action in plan.actions if isinstance(action, Requeue)] == []
    assert plan.wake_at is not None
    assert plan.wake_at <= ago(5) + SETTLED_WITHIN
    long_ago = replace(given_up, finished_at=ago(SETTLED_WITHIN.total_seconds()))
    assert only(planned(world([lost(1), long_ago])), Requeue).jobs == (lost(1).id,)
    elsewhere = replace(given_up, run_id="501")
    assert only(planned(world([lost(1), elsewhere])), Requeue).jobs == (lost(1).id,)
