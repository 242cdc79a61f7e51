"""Where people at GitLab are told: on the merge request that their pipeline belongs to, and nowhere else."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from autoscaler.sandbox.gitlab_access import GitLabLimits
from autoscaler.spi import ForgeOutcomeUnknown, ForgeRefusedForGood, ForgeUnauthorized, RateLimited, Secret, Telling
from runners.gitlab_tell import NOTES_PER_MINUTE
from tests.contract.gitlab_site import RUNNER_TOKEN, Site, gitlab_site

REPO = "acme/api"


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with gitlab_site() as made:
        yield made


def lost(site: Site, *, ref: str) -> Telling:
    run_id, (job_id,) = site.submit("linux", ref=ref)
    return Telling(
        key=f"gl:{job_id}/i-0abc",
        forge=site.forge().name,
        repo=REPO,
        run_id=run_id,
        forge_job_id=job_id,
        job_name="job 0",
        commit=site.world.pipeline(int(run_id)).sha,
        url="",
        title="Infrastructure, not your test",
        text="The machine is gone.",
    )


def notes(site: Site, iid: int) -> list[str]:
    project = site.world.find_project(REPO)
    return [note.body for note in site.world.merge_requests.get(project.id, iid).notes]


@pytest.mark.parametrize("kind", ["head", "merge", "train"])
async def test_pipeline_of_a_merge_request_is_told_there(site: Site, kind: str) -> None:
    telling = lost(site, ref=f"refs/merge-requests/12/{kind}")

    await site.forge().tell(telling)

    (note,) = notes(site, 12)
    assert note.startswith("**Infrastructure, not your test**\n\nThe machine is gone.")
    assert note.endswith(f"<!-- autoscaler:{telling.key} -->")


async def test_pipeline_of_a_branch_is_told_at_the_branchs_newest_open_merge_request(site: Site) -> None:
    project = site.world.find_project(REPO)
    for _ in range(2):
        site.world.merge_requests.open(project.id, "feature")
    closed = site.world.merge_requests.open(project.id, "feature")
    closed.is_open = False
    telling = lost(site, ref="feature")

    await site.forge().tell(telling)
    await site.forge().tell(replace(telling, commit=""))

    assert [len(notes(site, iid)) for iid in (1, 2, 3)] == [0, 1, 0]


async def test_pipeline_without_an_open_merge_request_has_nobody_to_tell(site: Site) -> None:
    with pytest.raises(ForgeRefusedForGood, match="belongs to no open merge request"):
        await site.forge().tell(lost(site, ref="main"))


async def test_earlier_notes_of_others_change_nothing(site: Site) -> None:
    telling = lost(site, ref="refs/merge-requests/3/head")
    forge = site.forge()
    for number in range(120):
        other = site.world.merge_requests.get(site.world.find_project(REPO).id, 3)
        site.world.merge_requests.add_note(other, f"note {number}", site.world.pipeline(int(telling.run_id)).user, 1.0)

    for _ in range(2):
        await forge.tell(telling)

    assert len(notes(site, 3)) == 121


async def test_a_mark_that_somebody_else_wrote_keeps_nobody_from_being_told(site: Site) -> None:
    telling = lost(site, ref="refs/merge-requests/3/head")
    forge, mark = site.forge(), f"<!-- autoscaler:{telling.key} -->"
    there = site.world.merge_requests.get(site.world.find_project(REPO).id, 3)
    site.world.merge_requests.add_note(there, mark, site.world.pipeline(int(telling.run_id)).user, 1.0)

    for _ in range(2):
        await forge.tell(telling)

    assert [note.startswith("**Infrastructure") for note in notes(site, 3)] == [False, True]


async def test_token_that_may_not_write_says_what_it_needs(site: Site) -> None:
    forge = site.forge(credentials={"token": Secret(RUNNER_TOKEN)})
    with pytest.raises(ForgeUnauthorized, match="needs scope api and the role Reporter"):
        await forge.tell(lost(site, ref="refs/merge-requests/3/head"))


async def test_notes_are_paced(site: Site) -> None:
    telling = lost(site, ref="refs/merge-requests/3/head")
    forge = site.forge()
    for _ in range(NOTES_PER_MINUTE):
        await forge.tell(telling)
    with pytest.raises(RateLimited) as limited:
        await forge.tell(telling)
    assert (limited.value.family, limited.value.retry_after_s > 0) == ("notes", True)


async def test_lost_answer_to_a_note_makes_no_second_one(site: Site) -> None:
    telling = lost(site, ref="refs/merge-requests/3/head")
    forge = site.forge()
    site.lost_answers.add(f"POST /api/v4/projects/{REPO}/merge_requests/3/notes")
    with pytest.raises(ForgeOutcomeUnknown):
        await forge.tell(telling)
    assert len(notes(site, 3)) == 1
    site.lost_answers.clear()

    await forge.tell(telling)
    await forge.tell(telling)

    assert len(notes(site, 3)) == 1


async def test_telling_leaves_a_fifth_of_the_budget_to_others() -> None:
    async with gitlab_site(limits=GitLabLimits(api_per_minute=40)) as site:
        telling = lost(site, ref="refs/merge-requests/3/head")
        forge = site.forge()
        for _ in range(80):  # a minute may turn meanwhile, and GitLab counts anew
            await forge.get_job(REPO, telling.forge_job_id)
            (left,) = [budget.remaining for budget in forge.budgets() if budget.family == "core"]
            if left < 12:
                break

        with pytest.raises(RateLimited, match="others need the budget"):
            await forge.tell(telling)

        assert (await forge.get_job(REPO, telling.forge_job_id)).forge_job_id == telling.forge_job_id
        assert notes(site, 3) == []
