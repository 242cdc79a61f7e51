"""The story of one piece of work over all its attempts, why its machine costs more, and how all of it is found."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from autoscaler.http.lookup import Found, find
from autoscaler.http.stories import job_story_document, machine_story_document, outlook_of
from autoscaler.model import (
    Instance,
    InstanceMove,
    InstanceState,
    Interruption,
    Job,
    JobState,
    LedgerEntry,
    job_id,
)
from autoscaler.spi import CapacityType, Conclusion, ForgeName, ProviderId
from autoscaler.store import Changes
from tests.admin_world import GITHUB, LINUX, SPOT, ExampleView, instance, job, pool, rules_of, snapshot_of

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
GITLAB = ForgeName("gitlab")
S = InstanceState
RULES = rules_of(pool(LINUX, "linux", "x64", forges=frozenset({GITHUB, GITLAB})))


def earlier(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def note(seconds: float, action: str, subject: str, reason: str, outcome: str = "done") -> LedgerEntry:
    return LedgerEntry(
        at=earlier(seconds),
        actor="autoscaler",
        action=action,
        subject=subject,
        pool=LINUX,
        reason=reason,
        outcome=outcome,
    )


async def view_of(*jobs: Job, instances: tuple[Instance, ...] = (), **changes: object) -> ExampleView:
    """Jobs that wait or run are live, all are stored."""
    live = [row for row in jobs if row.state in (JobState.QUEUED, JobState.RUNNING, JobState.LOST)]
    machines = [row for row in instances if row.state is not S.TERMINATED]
    view = ExampleView(snapshot_of(live, machines), RULES, at=NOW)
    await view.store.open()
    await view.store.acquire_lease("test")
    await view.store.commit(Changes(jobs=jobs, instances=instances, **changes))  # type: ignore[arg-type]
    return view


def attempts() -> tuple[Job, Job]:
    """A lost job and the one that runs its work again; its forge never said which that would be."""
    lost = replace(
        job(1, earlier(300), JobState.REQUEUED, run_id="77", started_at=earlier(250), finished_at=earlier(100)),
        instance=instance(1, earlier(90), S.TERMINATED).id,
        reason="1 job of the run lost its machine",
        lost_at=earlier(100),
    )
    again = job(2, earlier(80), run_id="77", attempt=2, predecessor=lost.id, lost_at=earlier(100))
    return lost, again


async def lost_and_found() -> ExampleView:
    lost, again = attempts()
    gone = instance(1, earlier(90), S.TERMINATED, job=lost.id)
    taken = Interruption(
        instance=gone.id,
        provider=SPOT.provider,
        pool=LINUX,
        capacity_pool=SPOT,
        noticed_at=earlier(120),
        sources=("agent",),
        is_announced=True,
        reclaim_at=earlier(90),
        cutoff_at=earlier(100),
        ended_at=earlier(90),
        job=lost.id,
        hook_s=4.5,
    )
    return await view_of(
        lost,
        again,
        instances=(gone,),
        interruptions=[taken],
        moves=[InstanceMove(instance=gone.id, at=earlier(250), from_state=S.IDLE, to_state=S.BUSY, cause="a job")],
        ledger=[
            note(95, "tell", lost.id, "a check run on its commit"),
            note(85, "requeue", lost.id, "1 job of the run lost its machine", "requeued"),
        ],
    )


async def test_why_of_any_attempt_tells_the_whole_story_in_order() -> None:
    view = await lost_and_found()
    stories = []
    for row in attempts():
        found = await find(view, row.id)
        document = await job_story_document(view, found.jobs[0], outlook_of(view))
        stories.append([(line["attempt"], line["text"]) for line in document["timeline"]])
        assert [one["id"] for one in document["chain"]] == ["github:1", "github:2"]
    assert stories[0] == stories[1]
    assert stories[0] == [
        (1, "Queued at github"),
        (1, "We learned of it by a webhook"),
        (1, "Started"),
        (1, "Machine i-0001 took the job: a job"),
        (1, "aws announced that it takes machine i-0001 back at 11:58:30 UTC (told by agent)"),
        (1, "Ended: lost with its machine"),
        (1, "People were told: a check run on its commit"),
        (1, "Queued again: 1 job of the run lost its machine"),
        (2, "Queued again, attempt 2 at github"),
        (2, "We learned of it by a webhook"),
    ]


async def test_why_of_a_lost_attempt_says_what_its_successor_waits_for() -> None:
    view = await lost_and_found()
    document = await job_story_document(view, attempts()[0], outlook_of(view))
    assert document["why"].startswith(
        "aws took its machine i-0001 back after a notice at 11:58:20 UTC, which is no failure of the job, "
        "and it was queued again as github:2"
    )
    assert document["why"].endswith("No provider of pool linux offers a machine of its shape.")


async def test_a_chain_that_bites_its_tail_ends() -> None:
    one, two = job(1, earlier(9), JobState.REQUEUED), job(2, earlier(8), JobState.REQUEUED)
    view = await view_of(
        replace(one, predecessor=two.id, successor=two.id), replace(two, predecessor=one.id, successor=one.id)
    )
    found = await find(view, "github:1")
    document = await job_story_document(view, found.jobs[0], outlook_of(view))
    assert len(document["chain"]) == 2


async def test_a_machine_on_demand_in_a_pool_with_spot_names_the_prediction_that_bought_it() -> None:
    waiting = job(1, earlier(30))
    bought = replace(SPOT, capacity_type=CapacityType.ON_DEMAND)
    row = instance(1, earlier(12), S.LAUNCHED, capacity_pool=bought)
    cause = "1 queued job has no machine; on_demand because predicted breach 0.83 on spot, 0.21 on demand, target 60 s"
    asked = InstanceMove(instance=row.id, at=row.created_at, from_state=None, to_state=S.REQUESTED, cause=cause)
    view = await view_of(waiting, instances=(row,), moves=[asked])
    document = await job_story_document(view, waiting, outlook_of(view))
    assert document["spilled"] == {
        "since": "2026-01-05T11:59:08.000Z",
        "reason": "because predicted breach 0.83 on spot, 0.21 on demand, target 60 s",
        "instance": "i-0001",
    }
    assert "(m7i.large in eu-central-1a, on demand)" in document["why"]
    assert document["why"].endswith(
        "It is on demand since 11:59:08 UTC because predicted breach 0.83 on spot, 0.21 on demand, target 60 s."
    )


# --------------------------------------------------------------------------- what people ask about


def names(found: Found) -> list[str]:
    return [job.id for job in found.jobs]


GITHUB_JOB = "https://github.example.com/acme/shop/actions/runs/77/job/1"
GITLAB_JOB = "https://gitlab.example.com/below/acme/deep/app/-/jobs/5"


async def asked_view() -> ExampleView:
    done = job(1, earlier(9000), JobState.DONE, run_id="77", url=GITHUB_JOB, conclusion=Conclusion.SUCCESS)
    sister = job(3, earlier(8000), JobState.DONE, run_id="77", conclusion=Conclusion.SUCCESS)
    live = job(2, earlier(20), run_id="78", repo="Acme/Other")
    lab = replace(
        job(5, earlier(7000), JobState.DONE, conclusion=Conclusion.FAILURE, repo="acme/deep/app", run_id="900"),
        id=job_id(GITLAB, "5"),
        forge=GITLAB,
        url=GITLAB_JOB,
    )
    machine = instance(7, earlier(50), S.BUSY, provider_id=ProviderId("i-0cloud"), runner_name="acme-ci--i-0007")
    ended = instance(8, earlier(900), S.TERMINATED)
    return await view_of(done, sister, live, lab, instances=(machine, ended))


async def test_jobs_are_found_by_each_of_their_names_live_or_long_done() -> None:
    view = await asked_view()
    for asked in ("github:1", "1", GITHUB_JOB, f"{GITHUB_JOB}?pr=4#step:2:1"):
        assert names(await find(view, asked)) == ["github:1"], asked
    assert names(await find(view, GITLAB_JOB)) == ["gitlab:5"]
    assert names(await find(view, "gitlab:5")) == ["gitlab:5"]


async def test_runs_are_found_whole_by_repo_and_run_or_address() -> None:
    view = await asked_view()
    run = "https://github.example.com/acme/shop/actions/runs/77"
    for asked in ("acme/shop/77", "Acme/SHOP/77/", run, f"{run}/attempts/2"):
        assert names(await find(view, asked)) == ["github:1", "github:3"], asked
    assert names(await find(view, "acme/other/78")) == ["github:2"], "live rows count before they are written"
    assert names(await find(view, "78")) == ["github:2"], "a bare run number, while one of its jobs lives"
    assert names(await find(view, "acme/deep/app/900")) == ["gitlab:5"]
    pipeline = "https://gitlab.example.com/below/acme/deep/app/-/pipelines/900"
    assert names(await find(view, pipeline)) == ["gitlab:5"], "a forge below a path of its host"


async def test_a_job_number_of_another_repo_is_not_what_an_address_names() -> None:
    view = await asked_view()
    found = await find(view, "https://github.example.com/acme/else/actions/runs/99/job/1")
    assert not found.jobs
    assert found.looked_for == ["the job 1 of acme/else at github or gitlab", "jobs of the run 99 of acme/else"]


async def test_machines_are_found_by_our_id_their_runners_name_and_their_clouds_id() -> None:
    view = await asked_view()
    for asked in ("i-0007", "acme-ci--i-0007", "i-0cloud"):
        found = await find(view, asked)
        assert found.instance is not None
        assert found.instance.id == "i-0007", asked
    ended = (await find(view, "acme-ci--i-0008")).instance
    assert ended is not None
    document = await machine_story_document(view, ended)
    assert document["ended_by"] == "unknown"


async def test_what_is_not_known_is_said_with_where_it_was_looked_for() -> None:
    view = await asked_view()
    assert (await find(view, "4711")).looked_for[0] == (
        "the job 4711 at github or gitlab, and live jobs of the run 4711"
    )
    assert (await find(view, "https://example.com/nothing")).looked_for == [
        "https://example.com/nothing is no address of a job or a run at GitHub or GitLab"
    ]
    assert (await find(view, "x" * 9999)).jobs == ()
