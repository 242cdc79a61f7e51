"""What a forge's failures do to readiness, to the waits after them, and to lost jobs: calls of a whole core."""

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from autoscaler.config import load
from autoscaler.core import Core, make_launcher
from autoscaler.health import Health
from autoscaler.http.view import Condition
from autoscaler.metrics import Metrics
from autoscaler.model import EndReason, InstanceState, Job, JobState, Requeue, Settle
from autoscaler.spi import (
    Conclusion,
    Forge,
    ForgeError,
    ForgeJob,
    ForgeName,
    ForgeOutcomeUnknown,
    ForgeRefused,
    ForgeRefusedForGood,
    ForgeRunner,
    ForgeUnauthorized,
    ForgeUnavailable,
    JobListing,
    JobStatus,
    Recovery,
    RequeueResult,
    Telling,
)
from autoscaler.store.memory import MemoryStore
from tests.admin_world import GITHUB, instance, job
from tests.config_files import ENVIRON, minimal_document, write
from tests.unit.observing import NOW, REPO, QuietForge, seen_job
from tests.unit.test_health import SetClock


class TroubledForge(QuietForge):
    """Answers every call, but for those that it is told to fail."""

    def __init__(self) -> None:
        self.fails: dict[str, ForgeError] = {}
        self.listing = JobListing(jobs=(), repos=frozenset({REPO}))
        self.shown = JobStatus.DONE
        self.rode_along: tuple[str, ...] = ()

    def _answer(self, call: str) -> None:
        if (error := self.fails.get(call)) is not None:
            raise error

    async def list_jobs(self, active: Collection[str]) -> JobListing:
        self._answer("list_jobs")
        return self.listing

    async def list_runners(self) -> Sequence[ForgeRunner]:
        self._answer("list_runners")
        return ()

    async def recover_deliveries(self, since: datetime) -> Recovery:
        self._answer("recover_deliveries")
        return Recovery(failed=0, redelivered=0, complete_until=since)

    async def get_job(self, repo: str, forge_job_id: str) -> ForgeJob:
        self._answer("get_job")
        conclusion = Conclusion.FAILURE if self.shown is JobStatus.DONE else None
        return seen_job(int(forge_job_id), self.shown, conclusion=conclusion)

    async def requeue(
        self,
        repo: str,
        run_id: str,
        forge_job_ids: Sequence[str],
        *,
        with_failures: bool = True,
        spared: Collection[str] = (),
    ) -> RequeueResult:
        self._answer("requeue")
        return RequeueResult(successors={}, rode_along=self.rode_along)

    async def tell(self, telling: Telling) -> None:
        self._answer("tell")

    async def end_job(self, repo: str, forge_job_id: str) -> None:
        self._answer("end_job")

    async def cancel_run(self, repo: str, run_id: str, forge_job_ids: Collection[str]) -> None:
        self._answer("cancel_run")


class World:
    """A core without its tasks: each call is made by the test."""

    def __init__(self, core: Core, forge: TroubledForge, clock: SetClock) -> None:
        self.core = core
        self.forge = forge
        self.clock = clock

    def condition(self) -> Condition:
        (one,) = [one for one in self.core.conditions() if one.name == "forge/github"]
        return one

    async def do(self, action: Requeue | Settle) -> None:
        call = self.core.applier._intend(action, self.clock.now())
        assert call is not None
        await call()

    def held_s(self, action: Requeue | Settle) -> float:
        return (self.core.sightings.retry_after[action.key] - self.clock.now()).total_seconds()


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    config = load(write(minimal_document(), tmp_path))
    store = MemoryStore()
    await store.open()
    assert await store.acquire_lease("test")
    clock, forge = SetClock(), TroubledForge()
    core = Core(
        config=config,
        store=store,
        forges={GITHUB: cast(Forge, forge)},
        providers={},
        launcher=make_launcher(lambda: config, user_data_of=str, new_id=str),
        clock=clock,
        metrics=Metrics(),
        health=Health(clock),
    )
    await core.prepare()
    yield World(core, forge, clock)
    await core.aclose(grace_s=0)


# ---------------------------------------------------------------------- readiness


async def test_a_listing_that_always_fails_is_not_hidden_by_the_one_that_works(world: World) -> None:
    world.forge.fails["list_runners"] = ForgeUnauthorized("404: no organisation no-such-org")
    for _ in range(2):
        await world.core.polls.list_runners(GITHUB)
        await world.core.polls.list_jobs(GITHUB)
        assert not world.condition().is_well
        assert "no-such-org" in world.condition().detail
        assert "credentials" in world.condition().remedy
    world.forge.fails.clear()
    await world.core.polls.list_runners(GITHUB)
    assert world.condition().is_well


async def test_a_listing_that_fails_by_chance_stays_on_record_until_it_works(world: World) -> None:
    world.forge.fails["list_jobs"] = ForgeUnavailable("502")
    await world.core.polls.list_jobs(GITHUB)
    await world.core.polls.list_runners(GITHUB)
    assert world.condition().detail == "list_jobs: 502"
    world.forge.fails.clear()
    await world.core.polls.list_jobs(GITHUB)
    assert world.condition().is_well


async def test_an_incomplete_listing_is_ill_and_its_jobs_count(world: World) -> None:
    world.forge.listing = JobListing(
        jobs=(seen_job(),), repos=frozenset({REPO}), is_complete=False, problem="GitHub refused: 404 of no-such-org"
    )
    await world.core.polls.list_jobs(GITHUB)
    await world.core.polls.list_runners(GITHUB)
    assert "no-such-org" in world.condition().detail
    await world.core.loop.tick()
    assert len(world.core.rows.jobs) == 1
    world.forge.listing = JobListing(jobs=(seen_job(),), repos=frozenset({REPO}))
    await world.core.polls.list_jobs(GITHUB)
    assert world.condition().is_well


async def test_a_rare_call_that_fails_by_chance_is_over_with_the_next_answer(world: World) -> None:
    world.forge.fails["recover_deliveries"] = ForgeUnavailable("502")
    await world.core.polls.recover_deliveries(GITHUB)
    assert not world.condition().is_well
    await world.core.polls.list_runners(GITHUB)
    assert world.condition().is_well


async def test_a_rare_call_that_is_not_permitted_stays_on_record(world: World) -> None:
    world.forge.fails["recover_deliveries"] = ForgeUnauthorized("403")
    await world.core.polls.recover_deliveries(GITHUB)
    world.clock.at += timedelta(minutes=4)
    await world.core.polls.list_runners(GITHUB)
    assert not world.condition().is_well


async def test_a_refused_action_stays_on_record_while_it_is_tried(world: World) -> None:
    action = settle(await running(world))
    world.forge.fails["get_job"] = ForgeUnauthorized("403")
    await world.do(action)
    await world.core.polls.list_runners(GITHUB)
    assert not world.condition().is_well
    world.clock.at += timedelta(minutes=3)
    assert world.condition().is_well, "nobody asks any more"


# ---------------------------------------------------------------------- waits


async def running(world: World) -> Job:
    row = job(1, NOW, JobState.RUNNING, version=0)
    return world.core.rows.add_job(row)


def settle(row: Job) -> Settle:
    return Settle(job=row.id, reason="its machine ended")


async def test_a_call_that_succeeds_ends_a_row_of_failures(world: World) -> None:
    action = settle(await running(world))
    waits = []
    for error in (ForgeUnavailable("502"), ForgeUnavailable("502"), None, ForgeUnavailable("502")):
        world.forge.fails = {"get_job": error} if error is not None else {}
        await world.do(action)
        if error is not None:
            waits.append(world.held_s(action))
            world.clock.at += timedelta(seconds=waits[-1])
    assert waits == [0.5, 1.0, 0.5]


# ---------------------------------------------------------------------- lost jobs


async def lost(world: World, **changes: Any) -> tuple[Job, Requeue]:
    row = world.core.rows.add_job(job(1, NOW, JobState.LOST, version=0, **changes))
    return row, Requeue(forge=row.forge, repo=row.repo, run_id=row.run_id, jobs=(row.id,), reason="its machine ended")


@pytest.mark.parametrize("error", [ForgeRefused("422 of a kind nobody knows"), ForgeOutcomeUnknown("timeout")])
async def test_a_lost_job_outlives_a_refusal_that_is_not_for_good(world: World, error: ForgeError) -> None:
    row, action = await lost(world)
    world.forge.fails["requeue"] = error
    await world.do(action)
    assert world.core.rows.jobs[row.id].state is JobState.LOST
    assert world.held_s(action) > 0
    world.forge.fails.clear()
    await world.do(action)
    assert row.id not in world.core.rows.jobs


async def test_a_lost_job_is_given_up_where_its_forge_refuses_for_good(world: World) -> None:
    row, action = await lost(world)
    world.forge.fails["requeue"] = ForgeRefusedForGood("created over a month ago")
    await world.do(action)
    (ended,) = await world.core.store.jobs_by_ids([row.id])
    assert ended.state is JobState.ABANDONED
    assert "over a month ago" in ended.reason
    assert world.condition().is_well, "it is an answer"


async def test_a_lost_job_outlives_a_configuration_without_its_forge(world: World) -> None:
    row, action = await lost(world, forge=ForgeName("taken-out"))
    await world.do(action)
    assert world.core.rows.jobs[row.id].state is JobState.LOST
    assert world.held_s(action) > 0


async def test_a_job_whose_runner_said_that_it_finished_is_not_ended_before_its_forge_gives_it_up(world: World) -> None:
    machine = instance(7, NOW, InstanceState.TERMINATED, ending=EndReason.JOB_DONE, runner_name="ours--7")
    world.core.rows.remember_runner("ours--7", machine)
    row, action = await lost(world, runner_name="ours--7", lost_at=world.clock.now())
    world.forge.shown = JobStatus.RUNNING
    await world.do(action)
    waiting = world.core.rows.jobs[row.id]
    assert (waiting.state, waiting.reason.partition(":")[0]) == (JobState.LOST, "its runner said that it finished")
    world.clock.at += timedelta(minutes=15)
    await world.do(action)
    assert row.id not in world.core.rows.jobs, "by then it was run again"


async def test_a_matrix_that_rides_along_does_not_fill_the_ledger_with_its_names(world: World) -> None:
    _, action = await lost(world)
    world.forge.rode_along = tuple(f"test ({number})" for number in range(4000))
    await world.do(action)
    (line,) = [entry for _, entry in await world.core._store.ledger(limit=9) if entry.action == "ride_along"]
    assert line.reason.endswith("test (18), test (19) and 3980 more")
