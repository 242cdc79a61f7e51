"""Lost jobs at the sandbox's GitHub: when its run is ended, which jobs run again together, and which never do."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest

from autoscaler.sandbox.github_model import WorldPolicy
from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.inprocess_github import GitHubInProcess, GitHubSite
from autoscaler.sandbox.workload import JobSpec, RunSpec
from autoscaler.spi import AlreadyRequeued, ForgeName, ForgeRefusedForGood, JobNotFound, NotYet, RequeueResult, Scope
from runners.github_payloads import JobPayload, RunPayload
from runners.github_reruns import FORCE_AFTER_S, LOOK_AGAIN_S, Rerun, next_step
from tests.unit.stepping_clock import SteppingClock

REPO = "acme/web"
NO_WAIT: Mapping[str, float] = MappingProxyType({})


class Site:
    """One run at GitHub, whose jobs are named by a letter each and begin at once on a machine of their own."""

    def __init__(
        self, *names: str, needs: Mapping[str, tuple[str, ...]] | None = None, protected: Mapping[str, float] = NO_WAIT
    ) -> None:
        self.clock = SteppingClock()
        self.world = GitHubWorld([REPO], policy=WorldPolicy(protected=protected))
        self.site = GitHubSite(self.world, self.clock, send=lambda _: None)
        self.forge = GitHubInProcess(self.site, name=ForgeName("gh"), scopes=[Scope("acme")], runner_prefix="ci-")
        given = needs or {}
        specs = tuple(JobSpec(key=name, name=name, labels=("linux",), needs=given.get(name, ())) for name in names)
        self.run_id = str(self.world.submit(RunSpec(repo=REPO, workflow="CI", jobs=specs), self.site.now))
        self.machines = 0

    @property
    def run_status(self) -> str:
        return self.world.run(int(self.run_id)).status

    def begin(self) -> None:
        """Every queued job starts on a machine of its own."""
        while "queued" in self.states().values():
            self.machines += 1
            runner = self.world.generate_jitconfig("acme", f"ci-{self.machines}", 1, ["linux"], self.site.now)
            self.world.connect(runner.id, self.site.now)
            assert self.world.take_job(runner.id, self.site.now) is not None
            self.clock.step(1)

    def end(self, name: str, conclusion: str = "success") -> None:
        """Its runner says how its job ended."""
        runner = next(r.id for r in self.world.runners.values() if r.job_id == int(self.id_of(name)))
        self.clock.step(1)
        self.world.complete(runner, conclusion, self.site.now)  # type: ignore[arg-type]  # one of the literals

    def id_of(self, name: str) -> str:
        return str(self.world.run(int(self.run_id)).jobs[name].id)

    def states(self) -> dict[str, str]:
        jobs = self.world.run(int(self.run_id)).jobs
        return {name: str(job.conclusion or job.status) for name, job in sorted(jobs.items())}

    async def requeue(self, *ids: str, with_failures: bool = True, spared: tuple[str, ...] = ()) -> RequeueResult:
        return await self.forge.requeue(REPO, self.run_id, ids, with_failures=with_failures, spared=spared)

    async def not_yet(self, *ids: str, is_told: bool | None = None) -> float:
        """A requeue that must wait, and does."""
        with pytest.raises(NotYet) as later:
            await self.requeue(*ids)
        assert is_told in (None, later.value.is_told)
        self.clock.step(later.value.retry_after_s)
        return later.value.retry_after_s


async def test_run_with_dead_jobs_alone_is_looked_at_twice_then_cancelled_then_ended_by_force_then_run_again() -> None:
    here = Site("a")
    here.begin()
    dead = here.id_of("a")
    assert await here.not_yet(dead) == LOOK_AGAIN_S
    assert here.world.job(int(dead)).cancel_asked_at is None
    await here.not_yet(dead)
    assert here.world.job(int(dead)).cancel_asked_at is not None
    assert here.run_status == "in_progress", "GitHub waits for the dead runner"
    waited = 0.0
    while here.run_status != "completed":
        waited += await here.not_yet(dead)
    assert waited <= FORCE_AFTER_S + 2 * LOOK_AGAIN_S
    await here.requeue(dead)
    assert here.states() == {"a": "queued"}


async def test_run_is_never_cancelled_while_another_job_of_it_lives() -> None:
    here = Site("a", "b")
    here.begin()
    for _ in range(4):
        await here.not_yet(here.id_of("a"), is_told=True)
    assert here.states() == {"a": "in_progress", "b": "in_progress"}
    assert not here.world.run(int(here.run_id)).cancelled
    here.end("b")
    for _ in range(2):
        await here.not_yet(here.id_of("a"))
    assert here.world.run(int(here.run_id)).cancelled


async def test_run_is_never_cancelled_while_a_job_waits_for_its_approval() -> None:
    here = Site("a", "deploy", protected={"deploy": 3600})
    here.begin()
    for _ in range(3):
        await here.not_yet(here.id_of("a"))
    assert not here.world.run(int(here.run_id)).cancelled


async def test_job_that_begins_between_two_looks_keeps_its_run_alive() -> None:
    """A job that another one needed is there a moment after that one ended."""
    here = Site("a", "b", "after", needs={"after": ("b",)})
    here.begin()
    dead = here.id_of("a")
    await here.not_yet(dead)
    here.end("b")
    await here.not_yet(dead)
    assert here.states() == {"a": "in_progress", "after": "queued", "b": "success"}


async def test_all_dead_jobs_of_a_run_run_again_in_one_attempt() -> None:
    here = Site("a", "b", "c")
    here.begin()
    here.end("c")
    ids = [here.id_of("a"), here.id_of("b")]
    while here.run_status != "completed":
        await here.not_yet(*ids)
    await here.requeue(*ids)
    assert here.states() == {"a": "queued", "b": "queued", "c": "success"}


async def test_one_lost_job_runs_again_alone_and_no_genuine_failure_with_it() -> None:
    here = Site("broken", "lost")
    here.begin()
    for name in ("broken", "lost"):
        here.end(name, "failure")
    result = await here.requeue(here.id_of("lost"))
    assert here.states() == {"broken": "failure", "lost": "queued"}
    assert result.rode_along == ()


async def test_genuine_failures_that_ride_along_are_named() -> None:
    here = Site("broken", "lost-1", "lost-2")
    here.begin()
    for name in ("broken", "lost-1", "lost-2"):
        here.end(name, "failure")
    result = await here.requeue(here.id_of("lost-1"), here.id_of("lost-2"))
    assert here.states() == {"broken": "queued", "lost-1": "queued", "lost-2": "queued"}
    assert result.rode_along == ("broken",)


async def test_sibling_that_a_matrix_cancelled_because_of_the_loss_runs_again_with_it() -> None:
    here = Site("lost", "sibling")
    here.begin()
    lost = here.id_of("lost")
    here.end("lost", "failure")
    here.end("sibling", "cancelled")
    await here.requeue(lost)
    assert here.states() == {"lost": "queued", "sibling": "queued"}


async def test_lost_jobs_go_one_after_the_other_where_genuine_failures_must_not_run_again() -> None:
    here = Site("broken", "lost-1", "lost-2")
    here.begin()
    for name in ("broken", "lost-1", "lost-2"):
        here.end(name, "failure")
    ids = [here.id_of("lost-1"), here.id_of("lost-2")]
    first = await here.requeue(*ids, with_failures=False)
    assert here.states() == {"broken": "failure", "lost-1": "queued", "lost-2": "failure"}
    assert (first.later, first.rode_along) == (frozenset({ids[1]}), ())
    with pytest.raises(NotYet):
        await here.requeue(ids[1], with_failures=False)
    here.begin()
    here.end("lost-1")
    await here.requeue(ids[1], with_failures=False)
    assert here.states() == {"broken": "failure", "lost-1": "success", "lost-2": "queued"}


async def test_lost_jobs_go_together_where_nothing_failed_by_itself() -> None:
    here = Site("fine", "lost-1", "lost-2")
    here.begin()
    here.end("fine")
    for name in ("lost-1", "lost-2"):
        here.end(name, "failure")
    result = await here.requeue(here.id_of("lost-1"), here.id_of("lost-2"), with_failures=False)
    assert here.states() == {"fine": "success", "lost-1": "queued", "lost-2": "queued"}
    assert not result.later


async def test_run_that_somebody_cancelled_after_the_loss_is_not_run_again() -> None:
    here = Site("lost", "other", "waiting", needs={"waiting": ("other",)})
    here.begin()
    lost = here.id_of("lost")
    here.end("lost", "cancelled")
    here.world.cancel(int(here.run_id), here.site.now)
    here.end("other", "cancelled")
    with pytest.raises(ForgeRefusedForGood, match="somebody cancelled run"):
        await here.requeue(lost)
    assert here.world.run(int(here.run_id)).attempt == 1


async def test_loss_that_ended_as_cancelled_is_run_again() -> None:
    """A runner that is stopped for its cloud cancels its job, and then the whole run counts as cancelled."""
    here = Site("fine", "lost")
    here.begin()
    here.end("fine")
    lost = here.id_of("lost")
    here.end("lost", "cancelled")
    assert here.world.run(int(here.run_id)).conclusion == "cancelled"
    await here.requeue(lost)
    assert here.states() == {"fine": "success", "lost": "queued"}


async def test_rerun_by_hand_is_found_and_nothing_is_run_twice() -> None:
    here = Site("lost")
    here.begin()
    lost = here.id_of("lost")
    here.end("lost", "failure")
    here.world.rerun_job(int(lost), here.site.now)
    with pytest.raises(AlreadyRequeued) as done:
        await here.requeue(lost)
    assert done.value.successor == here.id_of("lost")
    assert here.world.run(int(here.run_id)).attempt == 2


async def test_forgotten_run_is_not_found() -> None:
    here = Site("lost")
    with pytest.raises(JobNotFound):
        await here.forge.requeue(REPO, "12345", ["67890"])
    with pytest.raises(JobNotFound):
        await here.forge.cancel_run(REPO, "12345", [])


async def test_unservable_run_is_cancelled_once_and_again_is_success() -> None:
    here = Site("a", "b", needs={"b": ("a",)})
    for _ in range(2):
        await here.forge.cancel_run(REPO, here.run_id, [here.id_of("a")])
    assert here.states() == {"a": "cancelled", "b": "skipped"}


async def test_siblings_that_a_genuine_failure_had_cancelled_do_not_run_again_with_a_lost_job() -> None:
    here = Site("broken", "lost", "sibling")
    here.begin()
    lost = here.id_of("lost")
    here.end("broken", "failure")
    here.clock.step(10)
    here.end("sibling", "cancelled")
    here.end("lost", "failure")
    await here.requeue(lost)
    assert here.states() == {"broken": "failure", "lost": "queued", "sibling": "cancelled"}


async def test_cancel_of_the_run_is_known_although_its_dead_job_failed_later() -> None:
    here = Site("lost", "other")
    here.begin()
    lost = here.id_of("lost")
    here.world.cancel(int(here.run_id), here.site.now)
    here.end("other", "cancelled")
    here.clock.step(60)
    here.end("lost", "failure")
    with pytest.raises(ForgeRefusedForGood, match="somebody cancelled run"):
        await here.requeue(lost)


@pytest.mark.parametrize("ended", ["failure", "cancelled"])
async def test_job_that_must_not_run_again_is_left_out_and_is_neither_genuine_nor_a_persons_cancel(ended: str) -> None:
    here = Site("deploy", "lost-1", "lost-2")
    here.begin()
    for name in ("deploy", "lost-1", "lost-2"):
        here.end(name, ended)
    ids, deploy = [here.id_of("lost-1"), here.id_of("lost-2")], here.id_of("deploy")
    first = await here.requeue(*ids, spared=(deploy,))
    assert here.states() == {"deploy": ended, "lost-1": "queued", "lost-2": ended}
    assert (first.later, first.rode_along) == (frozenset({ids[1]}), ())
    here.begin()
    here.end("lost-1")
    await here.requeue(ids[1], spared=(deploy,))
    assert here.states() == {"deploy": ended, "lost-1": "success", "lost-2": "queued"}


async def test_run_is_ended_although_a_dead_job_of_it_shall_not_run_again() -> None:
    here = Site("deploy", "lost")
    here.begin()
    lost, deploy = here.id_of("lost"), here.id_of("deploy")
    for _ in range(3):
        with pytest.raises(NotYet) as later:
            await here.requeue(lost, spared=(deploy,))
        here.clock.step(later.value.retry_after_s)
    assert here.world.run(int(here.run_id)).cancelled


@pytest.mark.parametrize(("created", "is_told"), [(30, False), (0, True)])
def test_what_needs_a_dead_job_and_is_cancelled_with_the_run_that_we_end_is_no_persons_cancel(
    created: int, is_told: bool
) -> None:
    """It is made when the dead one has ended; what was queued before is alive, and keeps us from ending the run."""
    begin = datetime(2026, 1, 5, 12, tzinfo=UTC)
    shared = {"run_id": 1, "run_attempt": 1, "status": "completed", "conclusion": "cancelled"}
    dead = {"id": 1, "name": "build", "runner_name": "ci-1", "started_at": begin, "created_at": begin, **shared}
    after = {"id": 2, "name": "after", "created_at": begin + timedelta(seconds=created), **shared}
    ended = begin + timedelta(seconds=30)
    listed = [JobPayload.model_validate({**row, "completed_at": ended}) for row in (dead, after)]
    run = RunPayload.model_validate({"id": 1, "run_attempt": 1, "status": "completed"})
    if is_told:
        with pytest.raises(ForgeRefusedForGood, match="somebody cancelled"):
            next_step(REPO, run, listed, ["1"], with_failures=True)
    else:
        step = next_step(REPO, run, listed, ["1"], with_failures=True)
        assert isinstance(step, Rerun)
        assert step.job == "1"
