"""Days on which people ask why: the whole daemon on the virtual clock, asked as the page asks it."""

from datetime import datetime
from typing import Any

from autoscaler.http.lookup import find
from autoscaler.http.stories import job_story_document, machine_story_document, outlook_of
from autoscaler.model import JobId, JobState
from autoscaler.sandbox.workload import JobSpec, RunSpec
from autoscaler.simulate.seeds import Day
from autoscaler.simulate.stage import GITHUB, GITLAB, Site
from autoscaler.spi import ForgeName
from autoscaler.why import estimate
from autoscaler.why_start import Estimate
from tests.sim.test_reclaims import one_running
from tests.sim.test_scenarios import both_forges, live, run_of, states


async def asked(day: Day, what: str) -> dict[str, Any]:
    """The answer of the running daemon about one job."""
    core = day.daemon.core
    assert core is not None
    (job,) = (await find(core, what)).jobs
    return await job_story_document(core, job, outlook_of(core))


@both_forges
def test_the_story_of_a_lost_job_is_whole_whichever_attempt_is_asked_for_also_after_a_crash(forge: ForgeName) -> None:
    async def play(day: Day) -> None:
        machine = await one_running(day, forge)
        day.stage.reclaim(machine, notice_s=30)
        await day.until(lambda: states(day) == [JobState.DONE, JobState.REQUEUED], within_s=1500)
        day.daemon.kill()
        day.daemon.start()
        await day.until(lambda: day.daemon.core)
        first, second = sorted(day.jobs(), key=lambda job: job.attempt)
        told = [await asked(day, job.id) for job in (first, second)]
        assert [one["id"] for one in told[0]["chain"]] == [first.id, second.id]
        assert told[0]["timeline"] == told[1]["timeline"]
        kinds = [(line["attempt"], line["kind"]) for line in told[0]["timeline"]]
        assert kinds.index((1, "loss")) < kinds.index((2, "job"))
        words = " ".join(line["text"] for line in told[0]["timeline"])
        assert "announced that it takes machine" in words
        assert "Queued again" in words
        assert "which is no failure of the job" in told[0]["why"]
        core = day.daemon.core
        assert core is not None
        ended = (await find(core, str(first.instance))).instance
        assert ended is not None
        assert (await machine_story_document(core, ended))["ended_by"] == "cloud"

    live(play)


def test_a_run_is_found_by_its_name_with_all_its_jobs() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        run_id = day.stage.submit(GITLAB, run_of(GITLAB, jobs=3))
        await day.until(lambda: states(day) == [JobState.DONE] * 3)
        core = day.daemon.core
        assert core is not None
        assert len((await find(core, f"Group/App/{run_id}")).jobs) == 3

    live(play)


def test_a_job_that_no_pool_serves_is_never_silent() -> None:
    async def play(day: Day) -> None:
        day.daemon.start()
        specs = (JobSpec(key="j", name="j", labels=("arm64",), duration_s=5.0),)
        run_id = day.stage.submit(GITHUB, RunSpec(repo="acme/web", workflow="CI", jobs=specs))
        core = await day.until(lambda: day.daemon.core)
        (told,) = await day.until(lambda: [one.text for one in core.troubles() if one.target == "jobs"])
        assert "1 job is served by no pool: pool linux is nearest and lacks arm64" in told
        (job,) = day.jobs()
        document = await asked(day, job.id)
        assert document["advice"].startswith("Take arm64 off the job's labels")
        assert document["estimated_start"] is None
        day.stage.cancel(GITHUB, run_id)
        await day.until(lambda: not [one for one in core.troubles() if one.target == "jobs"])

    live(play)


def test_estimated_starts_of_a_day_are_kept_as_often_as_they_say() -> None:
    """Each estimate is taken when it is first made; half of the jobs shall start by the first instant, nearly all by
    the second."""
    said: dict[JobId, Estimate] = {}

    async def play(day: Day) -> None:
        day.daemon.start()
        for wave in range(18):
            specs = tuple(JobSpec(key=f"j{n}", name=f"j{n}", labels=("linux",), duration_s=20.0) for n in range(4))
            day.stage.submit(GITHUB, RunSpec(repo="acme/web", workflow="CI", jobs=specs))
            for _ in range(80):
                await day.clock.sleep(0.5)
                note_estimates(day, said, learned=wave > 3)
        await day.until(lambda: set(states(day)) == {JobState.DONE}, within_s=1500)
        started = {job.id: job.started_at for job in day.jobs() if job.started_at is not None}
        on_time = [before(started[id_], one.at) for id_, one in said.items()]
        in_time = [before(started[id_], one.by) for id_, one in said.items()]
        assert len(said) >= 48
        assert 0.25 <= sum(on_time) / len(on_time) <= 0.85
        assert sum(in_time) / len(in_time) >= 0.9

    live(play, site=Site(boot=(15.0, 45.0)), max=40)


def note_estimates(day: Day, said: dict[JobId, Estimate], *, learned: bool) -> None:
    core = day.daemon.core
    if core is None or not learned:
        return
    outlook = outlook_of(core)
    for job in outlook.snapshot.jobs.values():
        if job.state is JobState.QUEUED and job.id not in said:
            told = estimate(job, outlook)
            if told.at is not None:
                said[job.id] = told


def before(started: datetime, at: datetime | None) -> bool:
    return at is not None and started <= at
