"""What pages and people look up in every store: the newest moves of all instances, ended jobs, the jobs of a run."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta

from autoscaler.model import InstanceState, Job, JobState
from autoscaler.store import Changes, Store
from tests.contract.store_builders import T0, a_job, a_move, an_instance


class StoreNewestContract:
    """Part of `StoreContract`."""

    async def test_recent_moves_are_of_all_instances_and_newest_first(
        self, opener: Callable[[], AbstractAsyncContextManager[Store]]
    ) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            assert list(await store.recent_moves(limit=9)) == []
            await store.commit(Changes(instances=[an_instance(1)], moves=[a_move("i-1", "one"), a_move("i-2", "two")]))
            await store.commit(Changes(moves=[a_move("i-1", "three")]))
            assert [move.cause for move in await store.recent_moves(limit=9)] == ["three", "two", "one"]
            assert [move.cause for move in await store.recent_moves(limit=1)] == ["three"]

    async def test_moves_of_pruned_instances_are_no_longer_recent(
        self, opener: Callable[[], AbstractAsyncContextManager[Store]]
    ) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            gone = an_instance(1, state=InstanceState.TERMINATED)
            await store.commit(
                Changes(instances=[gone, an_instance(2)], moves=[a_move("i-1", "old"), a_move("i-2", "kept")])
            )
            late = T0 + timedelta(days=1)
            await store.prune(before=late, deliveries_before=late, samples_before=late)
            assert [move.cause for move in await store.recent_moves(limit=9)] == ["kept"]

    async def test_ended_jobs_come_by_their_end_and_live_ones_not_at_all(
        self, opener: Callable[[], AbstractAsyncContextManager[Store]]
    ) -> None:
        def ended(number: int, minutes: int, state: JobState = JobState.DONE) -> Job:
            return replace(a_job(number, state=state), finished_at=T0 + timedelta(minutes=minutes))

        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(
                Changes(
                    jobs=[
                        ended(1, 90),
                        ended(2, 30),
                        ended(3, 60, JobState.ABANDONED),
                        a_job(4, state=JobState.RUNNING),
                        a_job(5, state=JobState.LOST),
                    ]
                )
            )
            assert [job.forge_job_id for job in await store.ended_jobs(limit=9)] == ["1", "3", "2"]
            assert [job.forge_job_id for job in await store.ended_jobs(limit=2)] == ["1", "3"]

    async def test_jobs_of_a_run_are_found_by_repo_and_run_whatever_their_capitals_and_attempts(
        self, opener: Callable[[], AbstractAsyncContextManager[Store]]
    ) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            again = replace(a_job(3), run_attempt=3)
            others = [replace(a_job(1), run_id="7"), replace(a_job(4), repo="org/repo-7", run_id="7")]
            await store.commit(Changes(jobs=[*others, again, replace(a_job(2), repo="Org/Repo")]))
            found = await store.jobs_of_run("ORG/repo", "77", limit=9)
            assert [job.forge_job_id for job in found] == ["2", "3"]
            assert [job.forge_job_id for job in await store.jobs_of_run("org/repo", "77", limit=1)] == ["2"]
            assert list(await store.jobs_of_run("org", "repo/77", limit=9)) == list(found)
            assert list(await store.jobs_of_run("org/repo", "78", limit=9)) == []

    async def test_a_job_of_a_run_is_found_as_it_is_now(
        self, opener: Callable[[], AbstractAsyncContextManager[Store]]
    ) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            first = a_job(1)
            await store.commit(Changes(jobs=[first]))
            done = replace(first, version=2, state=JobState.DONE, run_id="78")
            await store.commit(Changes(jobs=[done]))
            assert list(await store.jobs_of_run("org/repo", "77", limit=9)) == []
            assert list(await store.jobs_of_run("org/repo", "78", limit=9)) == [done]

    async def test_names_too_long_for_an_index_are_found_by_run_too(
        self, opener: Callable[[], AbstractAsyncContextManager[Store]]
    ) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            long = replace(a_job(1), repo="group/" + "deep/" * 60 + "app")
            await store.commit(Changes(jobs=[long]))
            assert list(await store.jobs_of_run(long.repo, "77", limit=9)) == [long]
