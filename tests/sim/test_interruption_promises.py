"""The twelve complaints of people whose jobs run on spot elsewhere (specs, interruption 9), each answered by name."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest

from autoscaler.config_types import RequeueConfig
from autoscaler.model import (
    Cooldown,
    Instance,
    InstanceState,
    Job,
    JobState,
    Launch,
    LedgerEntry,
    ScopeCooldown,
    launch_key,
)
from autoscaler.sandbox.cloud_machines import Event, Happening
from autoscaler.sandbox.workload import JobSpec, RunSpec
from autoscaler.simulate.faults import FaultRates
from autoscaler.simulate.seeds import Day
from autoscaler.simulate.stage import GITHUB, GITLAB, Site
from autoscaler.spi import CapacityScope, CapacityType, Conclusion, ForgeName, NoticeKind, ProviderId, ProviderName
from providers.aws_events import Malformed, parse_event
from tests.admin_world import LINUX, OFFERING, SPOT
from tests.aws_messages import warning
from tests.sim.test_scenarios import REPOS, both_forges, live, servings, states
from tests.unit.plan_world import NOW, POOL, actions_of, planned, queued, world

ROOMY = Site(boot=(2.0, 3.0), slots={"large": 120, "small": 120})
ON_DEMAND = Site(boot=(2.0, 3.0), on_demand_prices={"large": 0.1, "small": 0.05})
NOBODY_TELLS = FaultRates(agent_deaf=1.0, message_lost=1.0)


def run(forge: ForgeName, *jobs: JobSpec | str, duration_s: float = 200.0) -> RunSpec:
    specs = [
        job if isinstance(job, JobSpec) else JobSpec(key=job, name=job, labels=("linux",), duration_s=duration_s)
        for job in jobs
    ]
    return RunSpec(repo=REPOS[forge], workflow="CI", jobs=tuple(specs))


def machines_of(day: Day, jobs: Sequence[Job]) -> list[ProviderId]:
    rows = {row.id: row for row in day.rows()}
    found = [rows[job.instance].provider_id for job in jobs if job.instance is not None]
    return [machine for machine in found if machine is not None]


async def running(day: Day, count: int, *, within_s: float = 600.0) -> list[Job]:
    """All jobs, once so many run."""
    await day.until(lambda: states(day).count(JobState.RUNNING) == count, within_s=within_s)
    return [job for job in day.jobs() if job.state is JobState.RUNNING]


def ledger(day: Day, action: str) -> list[LedgerEntry]:
    return [entry for entry in day.daemon.watch.disk.ledger.values() if entry.action == action]


def requeued_once(day: Day) -> bool:
    """Every loss on record was answered with one requeue, and every job is done."""
    lost = [job for job in day.jobs() if job.state is JobState.REQUEUED]
    successors = Counter(job.predecessor for job in day.jobs() if job.predecessor is not None)
    return all(successors[job.id] == 1 for job in lost) and len(successors) == len(lost)


@both_forges
def test_01_notice_state_change_and_agent_tell_of_one_loss_and_its_job_is_requeued_exactly_once(
    forge: ForgeName,
) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(forge, run(forge, "build"))
        (machine,) = machines_of(day, await running(day, 1))
        day.stage.reclaim(machine, notice_s=30)
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=900)
        await day.clock.sleep(120)
        assert len(day.daemon.watch.disk.interruptions) == 1
        assert len(servings(day)) == 2
        assert requeued_once(day)

    live(play, rates=FaultRates(message_doubled=1.0))


@both_forges
@pytest.mark.parametrize("when", ["at boot", "mid-job"])
def test_02_loss_without_a_notice_is_found_within_the_reconcilers_period(forge: ForgeName, when: str) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(forge, run(forge, "build"))
        if when == "at boot":
            await day.until(lambda: [row.state for row in day.rows()] == [InstanceState.LAUNCHED])
            machine = day.rows()[0].provider_id
        else:
            (machine,) = machines_of(day, await running(day, 1))
        assert machine is not None
        day.stage.reclaim(machine, notice_s=0)
        within_s = 15 if when == "mid-job" else 2 * day.daemon.config.autoscaler.list_instances.total_seconds() + 15
        await day.until(lambda: day.rows()[0].state is InstanceState.TERMINATED, within_s=within_s)
        await day.until(lambda: JobState.DONE in states(day), within_s=900)
        assert len(servings(day)) == (1 if when == "at boot" else 2)

    live(play, rates=NOBODY_TELLS)


@both_forges
def test_03_fifty_machines_of_twenty_runs_lost_in_one_second_are_all_back_and_none_twice(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        for number in range(20):
            names = ("a", "b", "c") if number % 2 else ("a", "b")
            day.stage.submit(forge, run(forge, *names, duration_s=200))
        jobs = await running(day, 50, within_s=900)
        taken_at = day.clock.now()
        for machine in machines_of(day, jobs):
            day.stage.reclaim(machine, notice_s=0)
        await day.until(lambda: len(day.daemon.watch.disk.interruptions) == 50, within_s=20)
        told = [one.noticed_at - taken_at for one in day.daemon.watch.disk.interruptions.values()]
        assert max(told) < timedelta(seconds=15)
        await day.until(lambda: states(day).count(JobState.REQUEUED) == 50, within_s=120)
        again = [job for job in await running(day, 50) if job.lost_at is not None and job.started_at is not None]
        assert len(again) == 50
        took = [job.started_at - job.lost_at for job in again if job.started_at and job.lost_at]
        assert max(took) < timedelta(seconds=90)
        await day.until(lambda: states(day) == [JobState.DONE] * 50 + [JobState.REQUEUED] * 50, within_s=1500)
        assert len(servings(day)) == 100
        assert requeued_once(day)

    live(play, rates=NOBODY_TELLS, site=ROOMY, max=120)


def test_04_three_lost_jobs_of_one_run_are_all_run_again_once_github_allows_it() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        long = JobSpec(key="long", name="long", labels=("linux",), duration_s=300)
        run_id = day.stage.submit(GITHUB, run(GITHUB, "a", "b", "c", long))
        jobs = await running(day, 4)
        for machine in machines_of(day, [job for job in jobs if job.name != "long"]):
            day.stage.reclaim(machine, notice_s=0)
        await day.until(lambda: states(day).count(JobState.LOST) == 3, within_s=60)
        attempt = day.stage.github.world.run(int(run_id))
        await day.until(lambda: states(day).count(JobState.REQUEUED) == 3, within_s=400)
        assert attempt.attempt == 2
        assert attempt.jobs["long"].conclusion == "success"
        await day.until(lambda: states(day) == [JobState.DONE] * 4 + [JobState.REQUEUED] * 3, within_s=600)
        assert len(servings(day)) == 7

    live(play, rates=NOBODY_TELLS)


def test_05_graceful_reclaim_is_requeued_and_a_persons_cancel_or_a_genuine_failure_beside_it_is_not() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        reclaimed = [day.stage.submit(GITHUB, run(GITHUB, "reclaimed")) for _ in range(4)]
        cancelled = day.stage.submit(GITHUB, run(GITHUB, "cancelled"))
        broken = JobSpec(key="broken", name="broken", labels=("linux",), duration_s=40, fails=True)
        failed = day.stage.submit(GITHUB, run(GITHUB, broken))
        for machine in machines_of(day, await running(day, 6)):
            day.stage.reclaim(machine, notice_s=110)
        day.stage.cancel(GITHUB, cancelled)
        await day.until(lambda: states(day) == [JobState.DONE] * 6 + [JobState.REQUEUED] * 4, within_s=900)
        world = day.stage.github.world
        firsts = [world.jobs[one.job_ids[0]] for one in world.job_records() if str(one.run_id) in reclaimed]
        assert {job.conclusion for job in firsts} == {"cancelled", "failure"}, "a stopped runner does either"
        ended = {job.run_id: job.conclusion for job in day.jobs() if job.state is JobState.DONE}
        assert (ended[cancelled], ended[failed]) == (Conclusion.CANCELLED, Conclusion.FAILURE)
        assert {world.run(int(run_id)).attempt for run_id in reclaimed} == {2}
        assert world.run(int(cancelled)).attempt == world.run(int(failed)).attempt == 1

    live(play)


def test_06_retried_job_lands_on_on_demand_and_with_a_binding_label_no_other_job_takes_that_runner() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        binding = f"run-{5_000_000_001}"
        bound = JobSpec(key="bound", name="bound", labels=("linux", binding), duration_s=100)
        run_id = day.stage.submit(GITHUB, run(GITHUB, bound))
        assert binding == f"run-{run_id}"
        (machine,) = machines_of(day, await running(day, 1))
        day.stage.reclaim(machine, notice_s=30)
        await day.until(lambda: JobState.REQUEUED in states(day), within_s=300)
        for _ in range(3):  # jobs of others, which would gladly take its runner
            day.stage.submit(GITHUB, run(GITHUB, "other", duration_s=20))
        await day.until(lambda: states(day) == [JobState.DONE] * 4 + [JobState.REQUEUED], within_s=900)
        (again,) = (job for job in day.jobs() if job.attempt == 2)
        row = next(row for row in day.rows() if row.id == again.instance)
        assert _type_of(row) is CapacityType.ON_DEMAND
        assert row.demand is not None
        assert binding in row.demand.labels
        (line,) = ledger(day, "requeue_landed")
        assert (line.subject, line.outcome.partition(":")[0]) == (again.id, "on_demand")

    live(play, site=ON_DEMAND, requeue=RequeueConfig(on_demand_from=2))


def _type_of(row: Instance) -> CapacityType | None:
    return row.capacity_pool.capacity_type if row.capacity_pool is not None else None


@both_forges
@pytest.mark.parametrize("step", range(0, 40, 5))
def test_07_daemon_killed_at_any_step_from_the_message_to_the_requeue_loses_and_doubles_nothing(
    forge: ForgeName, step: int
) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(forge, run(forge, "build"))
        (machine,) = machines_of(day, await running(day, 1))
        left = iter(range(step))
        day.stage.reclaim(machine, notice_s=20)
        await day.until(lambda: day.stage.cloud.world.has_notices, within_s=3)
        day.reaper.kill_when(lambda _: next(left, None) is None)
        await day.until(lambda: day.daemon.lives == 2, within_s=120)
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=6000)
        assert len(servings(day)) == 2
        assert requeued_once(day)

    live(play, rates=FaultRates(agent_deaf=1.0))


def test_08_foreign_malformed_late_and_reordered_messages_change_nothing_and_a_dead_queue_hides_no_loss() -> None:
    (heard,) = parse_event(warning("i-0123456789abcdef0")).announcements
    assert heard.kind is NoticeKind.RECLAIM
    for text in ("", "{}", "[]", "not json", '{"detail-type": 7}'):
        with pytest.raises(Malformed):
            parse_event(text)

    async def play(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITHUB, run(GITHUB, "short", duration_s=20))
        (machine,) = machines_of(day, await running(day, 1))
        await day.until(lambda: states(day) == [JobState.DONE])
        cloud = day.stage.cloud.world
        taken = cloud.machines[machine].machine
        for state in (taken.state, taken.state):  # of a machine that finished: late, and twice
            cloud.note(Event(kind=Happening.WARNED, machine=taken, at=day.clock.now().timestamp(), state=state))
        await day.clock.sleep(60)
        assert not day.daemon.watch.disk.interruptions
        assert len(servings(day)) == 1

    live(play)

    async def unheard(day: Day) -> None:
        day.daemon.start()
        day.stage.submit(GITHUB, run(GITHUB, "build"))
        (machine,) = machines_of(day, await running(day, 1))
        day.stage.reclaim(machine, notice_s=10)
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=900)
        assert len(servings(day)) == 2

    live(unheard, rates=NOBODY_TELLS)


def test_09_spot_that_is_out_over_its_quota_or_failing_goes_on_demand_at_once_and_a_missing_permission_stops() -> None:
    spot, other = OFFERING, replace(OFFERING, capacity_pool=replace(SPOT, zone="eu-central-1b"))
    bought = replace(OFFERING, capacity_pool=replace(SPOT, capacity_type=CapacityType.ON_DEMAND), price_usd_hour=0.1)
    offered = {"offerings": {LINUX: (spot, other, bought)}}
    later = NOW + timedelta(seconds=60)

    def cooling(reason: str) -> dict[str, object]:
        return {
            "cooldowns": {
                one.capacity_pool: Cooldown(capacity_pool=one.capacity_pool, until=later, failures=1, reason=reason)
                for one in (spot, other)
            }
        }

    scope = CapacityScope(region=SPOT.region, capacity_type=CapacityType.SPOT)
    quota = ScopeCooldown(provider=SPOT.provider, scope=scope, until=later, failures=1, reason="spot quota")
    cases = (cooling("no capacity"), cooling("3 launches in here failed in a row"), {"scope_cooldowns": (quota,)})
    for trouble in cases:
        (made,) = actions_of(planned(world([queued(1)], **offered, **trouble), POOL), Launch)
        assert made.offerings[0].capacity_pool.capacity_type is CapacityType.ON_DEMAND, trouble
        assert made.spill, "and says why"
    held = {(LINUX, ProviderName("aws")): "credentials: not allowed to launch"}
    tried_at = {launch_key(LINUX, ProviderName("aws")): later}
    stopped = planned(world([queued(1)], **offered, held_back=held, retry_after=tried_at), POOL)
    assert not actions_of(stopped, Launch)
    assert "not allowed to launch" in stopped.blocked[0].reason


def test_10_spot_that_comes_and_goes_every_two_minutes_does_not_make_capacity_types_flap() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        account = day.stage.cloud.world.account
        for minute in range(0, 20):
            account.faults.refuse = 1.0 if minute // 2 % 2 else 0.0
            day.stage.submit(GITHUB, run(GITHUB, "a", "b", duration_s=25))
            await day.clock.sleep(60)
        account.faults.refuse = 0.0
        await day.until(lambda: set(states(day)) == {JobState.DONE}, within_s=900)
        bought = [_type_of(row) for row in sorted(day.rows(), key=lambda row: row.created_at) if row.provider_id]
        switches = sum(before is not after for before, after in pairwise(bought))
        assert switches <= 2 * 20 // 2, "no more than capacity itself came and went"
        waited = [job.started_at - job.queued_at for job in day.jobs() if job.started_at is not None]
        assert max(waited) < timedelta(seconds=60)

    live(play, site=ON_DEMAND)


@both_forges
def test_11_requeued_job_is_the_interrupted_one_and_never_the_last_one(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        first = day.stage.submit(forge, run(forge, "deploy"))
        (old,) = await running(day, 1)
        second = day.stage.submit(forge, run(forge, "deploy", duration_s=300))
        await running(day, 2)
        day.stage.reclaim(machines_of(day, [old])[0], notice_s=0)
        await day.until(lambda: states(day) == [JobState.DONE] * 2 + [JobState.REQUEUED], within_s=900)
        (again,) = (job for job in day.jobs() if job.attempt == 2)
        assert (again.run_id, again.predecessor, again.labels, again.commit) == (first, old.id, old.labels, old.commit)
        assert [job.attempt for job in day.jobs() if job.run_id == second] == [1]

    live(play, rates=NOBODY_TELLS)


@both_forges
def test_12_opted_out_job_that_is_interrupted_is_not_run_again_and_says_so(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        deploy = JobSpec(key="deploy", name="deploy", labels=("linux", "no-requeue"), duration_s=100)
        day.stage.submit(forge, run(forge, deploy))
        (machine,) = machines_of(day, await running(day, 1))
        day.stage.reclaim(machine, notice_s=0)
        await day.until(lambda: states(day) == [JobState.ABANDONED], within_s=900)
        await day.clock.sleep(700)
        (job,) = day.jobs()
        assert job.reason == "opted_out: label no-requeue"
        assert [(line.subject, line.reason) for line in ledger(day, "abandon")] == [(job.id, job.reason)]
        assert len(servings(day)) == 1
        if forge == GITLAB:  # which would have taken it for running for an hour or two
            assert day.stage.gitlab.world.job(int(job.forge_job_id)).finished_at is not None

    live(play, labels=("linux", "no-requeue"))
