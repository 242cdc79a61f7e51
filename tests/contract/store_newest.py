"""What the status page reads of every store: the newest moves of all instances and the jobs that ended last."""

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
