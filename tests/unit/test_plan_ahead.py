"""Machines before their job is queued: for foreseen jobs, for lost ones, and beside machines that are late."""

from dataclasses import replace
from datetime import timedelta

from autoscaler.model import (
    Arrivals,
    EndReason,
    Foreseen,
    Instance,
    Job,
    JobState,
    Launch,
    Plan,
    PoolControl,
    Register,
    Release,
    Terminate,
)
from autoscaler.spi import PoolName, ProviderName, Scope
from tests.admin_world import GITHUB, LINUX, OFFERING, SPOT
from tests.unit.plan_world import (
    GITLAB,
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
TIMES = {(LINUX, AWS): Arrivals(seconds=(40, 42, 44, 46, 48, 50, 52, 54, 56, 90))}
"""The median is 50 s; a machine is late after 90 s, and overdue after 135 s."""


def soon(count: int = 1, *, due_s: float = 30, **changes: object) -> Foreseen:
    one = Foreseen(
        forge=GITHUB,
        scope=Scope("acme"),
        repo="acme/api",
        run_id="500",
        pool=LINUX,
        labels=("linux", "x64"),
        count=count,
        due_at=NOW + timedelta(seconds=due_s),
        hours=0.1,
        reason="build of acme/api is usually followed by 4 jobs test (linux)",
    )
    return replace(one, **changes)


def launched(made: Plan) -> int:
    return sum(action.count for action in actions_of(made, Launch))


def coming(number: int, *, age_s: float) -> Instance:
    since = NOW - timedelta(seconds=age_s)
    return machine(number, S.LAUNCHED, seconds=age_s / 2, created_at=since)


# ---------------------------------------------------------------------- foreseen jobs


def test_machines_for_foreseen_jobs_boot_so_that_they_are_up_when_the_jobs_are_queued() -> None:
    early, due = soon(4, due_s=51), soon(4, due_s=50)
    before = planned(world(foreseen=(early,), arrivals=TIMES))
    assert (before.actions, before.wake_at) == ((), NOW + timedelta(seconds=1))
    assert launched(planned(world(foreseen=(due,), arrivals=TIMES))) == 4


def test_a_pool_that_never_booted_is_taken_to_need_a_minute() -> None:
    assert planned(world(foreseen=(soon(due_s=61),))).actions == ()
    assert launched(planned(world(foreseen=(soon(due_s=60),)))) == 1


def test_machines_that_nobody_needs_cover_foreseen_jobs_first() -> None:
    spare = [runner(1, S.IDLE), machine(2, S.READY), machine(3, S.LAUNCHED)]
    assert launched(planned(world((), spare, foreseen=(soon(5),)))) == 2


def test_queued_jobs_have_the_first_claim_on_machines() -> None:
    made = planned(world([queued(1)], [machine(1, S.READY)], foreseen=(soon(),)))
    assert (len(actions_of(made, Register)), launched(made)) == (1, 1)


def test_a_foreseen_job_that_is_queued_is_covered_by_the_machine_that_was_launched_for_it() -> None:
    """As the job appears, it is foreseen no longer."""
    assert planned(world([queued(1)], [machine(1, S.LAUNCHED)])).actions == ()


def test_a_machine_for_a_foreseen_job_stays_until_the_job_had_its_time() -> None:
    idle = machine(1, S.READY, seconds=POOL.idle_timeout.total_seconds() + 1)
    late = soon(due_s=-POOL.idle_timeout.total_seconds() + 1)
    kept = planned(world((), [idle], foreseen=(late,)))
    assert (kept.actions, kept.wake_at) == ((), NOW + timedelta(seconds=1))
    given_up = planned(world((), [idle], foreseen=(soon(due_s=-POOL.idle_timeout.total_seconds()),)))
    assert only(given_up, Terminate).end_reason is EndReason.SURPLUS


def test_an_idle_runner_is_kept_for_a_foreseen_job_too() -> None:
    idle = [runner(number, S.IDLE, seconds=600) for number in (1, 2)]
    assert len(actions_of(planned(world((), idle, foreseen=(soon(),))), Release)) == 1


def test_foreseen_jobs_come_after_real_ones_under_a_cap() -> None:
    made = planned(world([queued(1), queued(2)], foreseen=(soon(5),)), replace(POOL, max=3))
    assert launched(made) == 3
    assert [one for one in made.blocked if one.ids] == []


def test_a_cap_that_only_foreseen_jobs_meet_is_in_nobodys_way() -> None:
    made = planned(world(foreseen=(soon(4),), arrivals=TIMES), replace(POOL, max=1))
    assert launched(made) == 1
    assert made.blocked == ()


def test_nothing_is_launched_for_foreseen_jobs_of_a_paused_pool_or_an_unknown_one() -> None:
    paused = world(foreseen=(soon(),), controls={LINUX: PoolControl.PAUSED})
    assert planned(paused).actions == ()
    assert planned(world(foreseen=(soon(pool=PoolName("gone")),))).actions == ()


def test_foreseen_jobs_count_for_min() -> None:
    assert launched(planned(world(foreseen=(soon(3),)), replace(POOL, min=2))) == 3


# ---------------------------------------------------------------------- lost jobs


def lost(number: int) -> Job:
    return replace(queued(number), state=JobState.LOST, forge=GITLAB)


def test_a_lost_job_that_comes_back_at_once_has_a_machine_launched_before_it_is_queued() -> None:
    forges = {GITHUB: forge(), GITLAB: forge(GITLAB)}
    made = planned(world([lost(1)], forges=forges))
    assert launched(made) == 1
    covered = planned(world([lost(1)], [machine(1, S.LAUNCHED)], forges=forges))
    assert launched(covered) == 0


def test_a_machine_that_waits_for_a_lost_job_is_no_surplus() -> None:
    forges = {GITHUB: forge(), GITLAB: forge(GITLAB)}
    idle = machine(1, S.READY, seconds=600)
    made = planned(world([lost(1)], [idle], forges=forges))
    assert actions_of(made, Terminate) == []


def test_replacements_come_after_queued_jobs() -> None:
    forges = {GITHUB: forge(), GITLAB: forge(GITLAB)}
    made = planned(world([lost(1), queued(2)], [machine(1, S.LAUNCHED)], forges=forges))
    assert launched(made) == 1


# ---------------------------------------------------------------------- late machines


def test_a_boot_that_is_late_is_raced_by_one_more_launch() -> None:
    jobs = [queued(1)]
    in_time = planned(world(jobs, [coming(1, age_s=89)], arrivals=TIMES))
    assert (in_time.actions, in_time.wake_at) == ((), NOW + timedelta(seconds=1))
    assert launched(planned(world(jobs, [coming(1, age_s=90)], arrivals=TIMES))) == 1


def test_where_all_boots_are_alike_a_race_waits_until_it_is_worth_it() -> None:
    """The slowest of them comes seconds after the others, and the one that races it a whole boot later."""
    alike = {(LINUX, AWS): Arrivals(seconds=tuple(60.0 + number / 10 for number in range(20)))}
    assert launched(planned(world([queued(1)], [coming(1, age_s=85)], arrivals=alike))) == 0
    assert launched(planned(world([queued(1)], [coming(1, age_s=92)], arrivals=alike))) == 1


def test_a_race_is_run_in_another_zone_where_there_is_one() -> None:
    """What holds the late one up may hold up its neighbours too."""
    there = replace(OFFERING, capacity_pool=replace(SPOT, zone="eu-central-1b"), price_usd_hour=0.06)
    late = coming(1, age_s=90)
    made = planned(world([queued(1)], [late], arrivals=TIMES, offerings={LINUX: (OFFERING, there)}))
    race = only(made, Launch)
    assert ([one.capacity_pool.zone for one in race.offerings], race.reason) == (["eu-central-1b"], "1 machine is late")
    alone = planned(world([queued(1)], [late], arrivals=TIMES))
    assert [one.capacity_pool.zone for one in only(alone, Launch).offerings] == ["eu-central-1a"]


def test_a_late_machine_is_raced_once() -> None:
    """Also when the one that races it is late too."""
    rows = [coming(1, age_s=100), coming(2, age_s=5)]
    assert planned(world([queued(1)], rows, arrivals=TIMES)).actions == ()
    both_late = [coming(1, age_s=400), coming(2, age_s=100)]
    assert planned(world([queued(1)], both_late, arrivals=TIMES)).actions == ()


def test_nothing_is_raced_when_no_job_waits_for_it_or_nobody_knows_what_is_late() -> None:
    late = coming(1, age_s=200)
    assert planned(world((), [late], arrivals=TIMES)).actions == ()
    few = {(LINUX, AWS): Arrivals(seconds=(40,) * 7)}
    assert planned(world([queued(1)], [late], arrivals=few)).actions == ()


def test_at_most_a_tenth_of_what_comes_is_raced() -> None:
    jobs = [queued(number) for number in range(30)]
    rows = [coming(number, age_s=100) for number in range(30)]
    assert launched(planned(world(jobs, rows, arrivals=TIMES), replace(POOL, max=100))) == 3


def test_runners_that_never_register_stop_counting() -> None:
    """Far beyond the slowest one known, half of what comes covers no job any more."""
    jobs = [queued(number) for number in range(30)]
    rows = [coming(number, age_s=136) for number in range(30)]
    assert launched(planned(world(jobs, rows, arrivals=TIMES), replace(POOL, max=100))) == 15


def test_boots_that_all_become_slow_at_once_double_the_machines_and_no_more() -> None:
    jobs, rows = [queued(number) for number in range(30)], [coming(number, age_s=300) for number in range(30)]
    for _ in range(20):
        made = planned(world(jobs, rows, arrivals=TIMES), replace(POOL, max=1000))
        rows += [coming(len(rows) + number, age_s=300) for number in range(launched(made))]
    assert 45 <= len(rows) <= 60


def test_the_loser_of_a_race_ends_as_surplus() -> None:
    idle = machine(1, S.READY, seconds=POOL.idle_timeout.total_seconds())
    assert only(planned(world((), [idle], arrivals=TIMES)), Terminate).end_reason is EndReason.SURPLUS


def test_a_runner_that_does_not_start_in_time_stops_counting_for_its_job() -> None:
    stuck = runner(1, S.REGISTERING, seconds=121)
    made = planned(world([queued(1)], [stuck]))
    (release,) = actions_of(made, Release)
    assert (release.end_reason, launched(made)) == (EndReason.BOOT_TIMEOUT, 1)
