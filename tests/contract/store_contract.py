"""What every store must do. An engine's test module inherits `StoreContract` and provides the `opener` fixture."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta

import pytest

from autoscaler.model import InstanceState, Job, JobState, PoolControl, job_id
from autoscaler.spi import ForgeName, InstanceId, PoolName
from autoscaler.store import Changes, Conflict, LeaseLost, Store, StoreError
from tests.contract.store_builders import (
    HUB,
    LINUX,
    T0,
    a_job,
    a_move,
    a_sample,
    a_webhook,
    an_entry,
    an_instance,
)
from tests.contract.store_costs import StoreCostsContract
from tests.contract.store_evidence import StoreEvidenceContract
from tests.contract.store_interruptions import StoreInterruptionsContract
from tests.contract.store_learned import StoreLearnedContract
from tests.contract.store_newest import StoreNewestContract

Opener = Callable[[], AbstractAsyncContextManager[Store]]
"""Opens one more store over the same data, without a lease."""


async def outcome(call: Awaitable[object]) -> object:
    try:
        return await call
    except StoreError as error:
        return type(error)


class StoreContract(
    StoreNewestContract, StoreCostsContract, StoreInterruptionsContract, StoreEvidenceContract, StoreLearnedContract
):
    """One suite for sqlite, postgres and memory."""

    groups_writes = True

    @pytest.fixture
    def opener(self) -> Opener:
        raise NotImplementedError

    async def lose_lease(self, holder: Store) -> None:
        """What the engine's lease can suffer without the holder's doing: the lock is free, the holder was not told."""
        raise NotImplementedError

    # ------------------------------------------------------------------ rows

    async def test_everything_committed_is_there_after_reopening(self, opener: Opener) -> None:
        changes = Changes(
            jobs=[a_job(2), a_job(1)],
            instances=[an_instance(2), an_instance(1)],
            controls={LINUX: PoolControl.PAUSED},
            settings={"watermark": "ünïcode 🚀", "second": "2"},
        )
        async with opener() as store:
            assert await store.acquire_lease("first")
            await store.commit(changes)
        async with opener() as store:
            stored = await store.load()
        assert list(stored.jobs) == [a_job(1), a_job(2)]
        assert list(stored.instances) == [an_instance(1), an_instance(2)]
        assert stored.controls == {LINUX: PoolControl.PAUSED}
        assert stored.settings == {"watermark": "ünïcode 🚀", "second": "2"}

    async def test_only_live_rows_are_loaded_and_ended_ones_stay_readable(self, opener: Opener) -> None:
        done, gone = a_job(1, state=JobState.DONE), an_instance(1, state=InstanceState.TERMINATED)
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(jobs=[done, a_job(2, state=JobState.LOST)], instances=[gone, an_instance(2)]))
            stored = await store.load()
            assert [job.id for job in stored.jobs] == ["hub:2"]
            assert [row.id for row in stored.instances] == ["i-2"]
            assert await store.job(done.id) == done
            assert await store.instance(gone.id) == gone
            assert await store.job(job_id(HUB, "404")) is None
            assert await store.instance(InstanceId("i-404")) is None

    async def test_a_store_is_new_until_it_held_an_instance_and_stays_old_when_all_are_pruned(
        self, opener: Opener
    ) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(jobs=[a_job(1)]))
            assert (await store.load()).is_new
            await store.commit(Changes(instances=[an_instance(1, state=InstanceState.TERMINATED)]))
            assert not (await store.load()).is_new
            late = T0 + timedelta(days=1)
            assert await store.prune(before=late, deliveries_before=late, samples_before=late) > 0
            assert await store.instance(InstanceId("i-1")) is None
            assert not (await store.load()).is_new

    async def test_jobs_come_back_by_ids_in_the_order_asked(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(jobs=[a_job(number) for number in range(1, 6)]))
            ids = [job_id(HUB, number) for number in ("4", "404", "2")]
            assert [job.forge_job_id for job in await store.jobs_by_ids(ids)] == ["4", "2"]
            assert list(await store.jobs_by_ids([])) == []

    async def test_a_value_that_is_empty_or_absent_comes_back_the_same(self, opener: Opener) -> None:
        bare = replace(
            a_job(1), pool=None, conclusion=None, started_at=None, url="", successor=None, runner_name="", labels=()
        )
        machine = replace(an_instance(1), capacity_pool=None, demand=None, provider_id=None, job=None, detail="")
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(jobs=[bare], instances=[machine]))
            assert await store.job(bare.id) == bare
            assert await store.instance(machine.id) == machine

    @pytest.mark.parametrize("name", ["x" * 300_000, "nul \0 inside", "lone \ud800 surrogate", "'; DROP TABLE jobs --"])
    async def test_awkward_texts_survive(self, opener: Opener, name: str) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            job = replace(a_job(1), name=name)
            await store.commit(Changes(jobs=[job], ledger=[an_entry(name, name)]))
            assert await store.job(job.id) == job
            (found,) = await store.ledger(limit=5)
            assert found[1].reason == name
            assert len(await store.ledger(limit=5, subject=name)) == 1
            assert await store.accept(HUB, a_webhook("d", name=name), T0) is not None
            assert (await store.load()).inbox[0].webhook == a_webhook("d", name=name)

    # ------------------------------------------------------------------ compare-and-set

    async def test_a_row_is_updated_only_from_the_version_before(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(jobs=[a_job(1)], instances=[an_instance(1)]))
            await store.commit(
                Changes(
                    jobs=[a_job(1, version=2, state=JobState.RUNNING)],
                    instances=[an_instance(1, version=2, state=InstanceState.LAUNCHED)],
                )
            )
            for stale in (
                Changes(jobs=[a_job(1, version=2)]),
                Changes(jobs=[a_job(1, version=4)]),
                Changes(jobs=[a_job(1)]),
                Changes(jobs=[a_job(9, version=2)]),
                Changes(jobs=[a_job(9, version=0)]),
                Changes(instances=[an_instance(1, version=2)]),
                Changes(instances=[an_instance(1)]),
                Changes(instances=[an_instance(9, version=5)]),
            ):
                with pytest.raises(Conflict):
                    await store.commit(stale)
            stored = await store.load()
            assert [(job.version, job.state) for job in stored.jobs] == [(2, JobState.RUNNING)]
            assert [(row.version, row.state) for row in stored.instances] == [(2, InstanceState.LAUNCHED)]

    async def test_a_conflict_writes_nothing_of_its_transaction(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(jobs=[a_job(1)]))
            seq = await store.accept(HUB, a_webhook("d1"), T0)
            assert seq is not None
            with pytest.raises(Conflict):
                await store.commit(
                    Changes(
                        jobs=[a_job(5), a_job(1)],
                        instances=[an_instance(5)],
                        moves=[a_move("i-5", "x")],
                        ledger=[an_entry("i-5", "x")],
                        consumed=[seq],
                        samples=[a_sample(1)],
                        controls={LINUX: PoolControl.DRAINING},
                        settings={"k": "v"},
                    )
                )
            stored = await store.load()
            assert [job.id for job in stored.jobs] == ["hub:1"]
            assert not stored.instances
            assert stored.is_new
            assert [row.seq for row in stored.inbox] == [seq]
            assert (stored.controls, stored.settings) == ({}, {})
            assert list(await store.ledger(limit=9)) == []
            assert list(await store.samples(T0)) == []
            assert list(await store.instance_moves(InstanceId("i-5"))) == []

    async def test_a_conflicting_member_of_a_group_fails_alone(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(jobs=[a_job(0)]))
            members = [a_job(number if number % 5 else 0) for number in range(1, 31)]
            results = await asyncio.gather(*(outcome(store.commit(Changes(jobs=[job]))) for job in members))
            assert results == [None if number % 5 else Conflict for number in range(1, 31)]
            assert len((await store.load()).jobs) == 25

    async def test_of_two_concurrent_writers_of_a_version_one_wins(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(jobs=[a_job(1)]))
            rivals = [replace(a_job(1, version=2), reason=str(number)) for number in range(20)]
            results = await asyncio.gather(*(outcome(store.commit(Changes(jobs=[job]))) for job in rivals))
            assert sorted(results, key=str).count(None) == 1
            assert results.count(Conflict) == 19
            winner = await store.job(rivals[0].id)
            assert winner == rivals[results.index(None)]

    async def test_following_versions_of_a_row_fit_into_one_transaction(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(jobs=[a_job(1), a_job(1, version=2), a_job(1, version=3)]))
            await store.commit(Changes(jobs=[a_job(1, version=4), a_job(1, version=5, state=JobState.RUNNING)]))
            with pytest.raises(Conflict):
                await store.commit(Changes(jobs=[a_job(1, version=6), a_job(1, version=8)]))
            found = await store.job(a_job(1).id)
            assert found == a_job(1, version=5, state=JobState.RUNNING)

    # ------------------------------------------------------------------ inbox

    async def test_webhooks_wait_in_order_of_arrival_until_consumed(self, opener: Opener) -> None:
        async with opener() as store:
            seqs = [await store.accept(HUB, a_webhook(f"d{number}"), T0) for number in (3, 1, 2)]
            inbox = (await store.load()).inbox
            assert [row.seq for row in inbox] == seqs == sorted(seq for seq in seqs if seq is not None)
            assert [row.webhook.delivery_id for row in inbox] == ["d3", "d1", "d2"]
            assert (inbox[0].forge, inbox[0].received_at, inbox[0].webhook) == (HUB, T0, a_webhook("d3"))
            await store.acquire_lease("a")
            await store.commit(Changes(consumed=[row.seq for row in inbox[:2]]))
            assert [row.webhook.delivery_id for row in (await store.load()).inbox] == ["d2"]

    async def test_a_delivery_is_accepted_once_per_forge_even_after_it_was_consumed(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            seq = await store.accept(HUB, a_webhook("d1"), T0)
            assert seq is not None
            assert await store.accept(HUB, a_webhook("d1"), T0) is None
            assert await store.accept(ForgeName("lab"), a_webhook("d1"), T0) is not None
            await store.commit(Changes(consumed=[seq]))
            assert await store.accept(HUB, a_webhook("d1"), T0) is None
            assert len((await store.load()).inbox) == 1

    async def test_of_simultaneous_deliveries_of_one_id_one_is_accepted(self, opener: Opener) -> None:
        async with opener() as store:
            seqs = await asyncio.gather(*(store.accept(HUB, a_webhook("same"), T0) for _ in range(40)))
            assert len([seq for seq in seqs if seq is not None]) == 1
            assert len((await store.load()).inbox) == 1

    async def test_two_hundred_concurrent_webhooks_and_commits_all_land(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            accepts = [store.accept(HUB, a_webhook(f"d{number}"), T0) for number in range(200)]
            commits = [store.commit(Changes(jobs=[a_job(number)])) for number in range(200)]
            results = await asyncio.gather(*(call for pair in zip(accepts, commits, strict=True) for call in pair))
            stored = await store.load()
            assert sorted(seq for seq in results if seq is not None) == [row.seq for row in stored.inbox]
            assert len(stored.inbox) == len(stored.jobs) == 200
            assert store.stats.rows == 400

    # ------------------------------------------------------------------ lease

    async def test_one_holder_at_a_time_and_the_next_one_after_it_left(self, opener: Opener) -> None:
        async with opener() as second:
            async with opener() as first:
                assert await first.acquire_lease("first")
                assert await first.acquire_lease("first")
                assert await first.holds_lease()
                assert not await second.acquire_lease("second")
                assert not await second.holds_lease()
            assert await second.acquire_lease("second")
            await second.commit(Changes(jobs=[a_job(1)]))

    async def test_without_the_lease_webhooks_are_accepted_and_nothing_can_be_committed(self, opener: Opener) -> None:
        async with opener() as holder, opener() as standby:
            assert await holder.acquire_lease("holder")
            assert await standby.accept(HUB, a_webhook("d1"), T0) is not None
            with pytest.raises(LeaseLost):
                await standby.commit(Changes(jobs=[a_job(1)]))
            assert [row.webhook.delivery_id for row in (await holder.load()).inbox] == ["d1"]
            assert not (await holder.load()).jobs

    async def test_a_holder_that_lost_its_lease_can_change_nothing_and_may_stand_by(self, opener: Opener) -> None:
        async with opener() as loser, opener() as winner:
            assert await loser.acquire_lease("loser")
            await loser.commit(Changes(jobs=[a_job(1)]))
            await self.lose_lease(loser)
            assert await winner.acquire_lease("winner")
            with pytest.raises(LeaseLost):
                await loser.commit(Changes(jobs=[a_job(2)]))
            assert not await loser.holds_lease()
            assert await winner.holds_lease()
            assert not await loser.acquire_lease("loser")
            await winner.commit(Changes(jobs=[a_job(3)]))
            assert [job.forge_job_id for job in (await winner.load()).jobs] == ["1", "3"]

    async def test_concurrent_webhooks_share_transactions(self, opener: Opener) -> None:
        """At least 8 rows per commit under 32 concurrent senders."""
        async with opener() as store:

            async def send(sender: int) -> None:
                for number in range(20):
                    assert await store.accept(HUB, a_webhook(f"{sender}-{number}"), T0) is not None

            await asyncio.gather(*(send(sender) for sender in range(32)))
            assert store.stats.rows == 640
            if self.groups_writes:
                assert store.stats.rows / store.stats.commits >= 8

    async def test_a_closed_store_refuses_calls(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
        with pytest.raises(StoreError):
            await store.accept(HUB, a_webhook("d"), T0)
        with pytest.raises(StoreError):
            await store.commit(Changes(jobs=[a_job(1)]))
        with pytest.raises(StoreError):
            await store.load()

    # ------------------------------------------------------------------ history

    async def test_recent_jobs_are_newest_first_and_filter_by_pool_and_state(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            jobs = [
                a_job(
                    number,
                    pool="arm" if number % 2 else "linux",
                    state=JobState.DONE if number % 3 == 0 else JobState.QUEUED,
                )
                for number in range(12)
            ]
            await store.commit(Changes(jobs=jobs))

            def numbers(found: Sequence[Job]) -> list[int]:
                return [int(job.forge_job_id) for job in found]

            assert numbers(await store.recent_jobs(limit=3)) == [11, 10, 9]
            assert numbers(await store.recent_jobs(limit=2, pool=PoolName("arm"))) == [11, 9]
            assert numbers(await store.recent_jobs(limit=9, state="done")) == [9, 6, 3, 0]
            assert numbers(await store.recent_jobs(limit=9, pool=PoolName("arm"), state="done")) == [9, 3]
            assert numbers(await store.recent_jobs(limit=9, pool=PoolName("none"))) == []

    async def test_recent_instances_are_newest_first_and_include_ended_ones(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            rows = [an_instance(1), an_instance(2, state=InstanceState.TERMINATED), an_instance(3)]
            rows[2] = replace(rows[2], pool=PoolName("arm"))
            await store.commit(Changes(instances=rows))
            assert [row.id for row in await store.recent_instances(limit=2)] == ["i-3", "i-2"]
            assert [row.id for row in await store.recent_instances(limit=9, pool=LINUX)] == ["i-2", "i-1"]

    async def test_an_instances_history_is_oldest_first(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            moves = [a_move("i-1", "one"), a_move("i-2", "other"), a_move("i-1", "two")]
            await store.commit(Changes(moves=moves))
            await store.commit(Changes(moves=[a_move("i-1", "three")]))
            found = await store.instance_moves(InstanceId("i-1"))
            assert list(found) == [moves[0], moves[2], a_move("i-1", "three")]

    async def test_the_ledger_is_newest_first_by_subject_and_by_page(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            entries = [an_entry(f"i-{number % 2}", str(number)) for number in range(6)]
            await store.commit(Changes(ledger=entries[:4]))
            await store.commit(Changes(ledger=entries[4:]))
            page = await store.ledger(limit=4)
            assert [entry for _, entry in page] == [entries[number] for number in (5, 4, 3, 2)]
            rest = await store.ledger(limit=4, before=page[-1][0])
            assert [entry for _, entry in rest] == [entries[1], entries[0]]
            assert [entry.reason for _, entry in await store.ledger(limit=2, subject="i-1")] == ["5", "3"]
            assert list(await store.ledger(limit=2, subject="i-9")) == []

    async def test_samples_are_oldest_first_from_an_instant_on(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(samples=[a_sample(2), a_sample(1), a_sample(2, "arm")]))
            await store.commit(Changes(samples=[replace(a_sample(2), queued=9)]))
            found = await store.samples(T0 + timedelta(minutes=2))
            assert list(found) == [a_sample(2, "arm"), replace(a_sample(2), queued=9)]
            assert len(await store.samples(T0)) == 3

    async def test_an_empty_text_deletes_a_setting_and_the_last_control_counts(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(settings={"a": "1", "b": "2"}, controls={LINUX: PoolControl.PAUSED}))
            await store.commit(Changes(settings={"a": "", "b": "3"}, controls={LINUX: PoolControl.ACTIVE}))
            stored = await store.load()
            assert stored.settings == {"b": "3"}
            assert stored.controls == {LINUX: PoolControl.ACTIVE}

    # ------------------------------------------------------------------ prune

    async def test_prune_removes_what_ended_long_ago_and_nothing_else(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            seqs = [await store.accept(HUB, a_webhook(f"d{number}"), T0) for number in range(2)]
            cut, late = T0 + timedelta(minutes=5), T0 + timedelta(minutes=9)
            await store.commit(
                Changes(
                    jobs=[a_job(1, state=JobState.DONE), a_job(2), a_job(9, state=JobState.DONE)],
                    instances=[
                        an_instance(1, state=InstanceState.TERMINATED),
                        an_instance(2),
                        an_instance(9, state=InstanceState.TERMINATED),
                    ],
                    moves=[a_move("i-1", "x"), a_move("i-9", "x")],
                    ledger=[an_entry("a", "old"), an_entry("b", "new", at=late)],
                    samples=[a_sample(1), a_sample(9)],
                    consumed=[seq for seq in seqs[:1] if seq is not None],
                )
            )
            while await store.prune(before=cut, deliveries_before=cut, samples_before=cut):
                pass
            assert [job.forge_job_id for job in await store.recent_jobs(limit=9)] == ["9", "2"]
            assert [row.id for row in await store.recent_instances(limit=9)] == ["i-9", "i-2"]
            assert not await store.instance_moves(InstanceId("i-1"))
            assert await store.instance_moves(InstanceId("i-9"))
            assert [entry.reason for _, entry in await store.ledger(limit=9)] == ["new"]
            assert list(await store.samples(T0)) == [a_sample(9)]
            assert [row.webhook.delivery_id for row in (await store.load()).inbox] == ["d1"]
            assert await store.accept(HUB, a_webhook("d0"), T0) is not None  # its delivery id went
            assert await store.accept(HUB, a_webhook("d1"), T0) is None

    async def test_prune_works_in_bounded_steps_until_nothing_is_left(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            await store.commit(Changes(ledger=[an_entry("s", str(number)) for number in range(5_000)]))
            late = T0 + timedelta(days=1)
            steps = []
            while gone := await store.prune(before=late, deliveries_before=late, samples_before=late):
                steps.append(gone)
            assert sum(steps) == 5_000
            assert len(steps) > 1
            assert list(await store.ledger(limit=1)) == []

    async def test_delivery_ids_outlive_the_webhooks_they_came_with(self, opener: Opener) -> None:
        async with opener() as store:
            await store.acquire_lease("a")
            seq = await store.accept(HUB, a_webhook("d1"), T0)
            assert seq is not None
            await store.commit(Changes(consumed=[seq]))
            late = T0 + timedelta(days=1)
            while await store.prune(before=late, deliveries_before=T0, samples_before=late):
                pass
            assert await store.accept(HUB, a_webhook("d1"), T0) is None
