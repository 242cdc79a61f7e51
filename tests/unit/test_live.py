"""Live rows: changes become durable in order, are kept when the store fails, and look-ups follow the rows."""

from dataclasses import replace

import pytest

from autoscaler.live import LiveRows
from autoscaler.model import EndReason, InstanceState, JobState
from autoscaler.spi import RunnerId
from autoscaler.store import Changes, Conflict, LeaseLost, StoreError
from autoscaler.store.memory import MemoryDisk, MemoryStore
from tests.admin_world import instance, job
from tests.unit.observing import NOW, provider_id

S = InstanceState


class FlakyStore(MemoryStore):
    """Fails while `is_broken`."""

    is_broken = False

    async def commit(self, changes: Changes) -> None:
        if self.is_broken:
            raise StoreError("disk is full")
        await super().commit(changes)


@pytest.fixture
async def store() -> FlakyStore:
    made = FlakyStore(MemoryDisk())
    await made.open()
    assert await made.acquire_lease("test")
    return made


async def rows_of(store: MemoryStore) -> LiveRows:
    rows = LiveRows(store)
    rows.load(await store.load())
    return rows


async def test_many_changes_of_one_row_become_one_version(store: FlakyStore) -> None:
    rows = await rows_of(store)
    row = rows.add_instance(instance(1, NOW, S.REQUESTED, version=0), cause="asked")
    row = rows.move(row, S.LAUNCHED, now=NOW, cause="made", provider_id=provider_id(1))
    rows.move(row, S.READY, now=NOW, cause="hello")
    await rows.flush()
    stored = await store.instance(row.id)
    assert stored is not None
    assert (stored.state, stored.version) == (S.READY, 1)
    assert [move.to_state for move in await store.instance_moves(row.id)] == [S.REQUESTED, S.LAUNCHED, S.READY]


async def test_what_a_broken_store_did_not_take_is_written_by_the_next_flush(store: FlakyStore) -> None:
    rows = await rows_of(store)
    row = rows.add_instance(instance(1, NOW, S.REQUESTED, version=0), cause="asked")
    store.is_broken = True
    for _ in range(3):
        with pytest.raises(StoreError):
            await rows.flush()
    row = rows.move(row, S.LAUNCHED, now=NOW, cause="made")
    assert not rows.is_clean
    store.is_broken = False
    await rows.flush()
    assert rows.is_clean
    stored = await store.instance(row.id)
    assert stored is not None
    assert stored.state is S.LAUNCHED
    assert [move.cause for move in await store.instance_moves(row.id)] == ["asked", "made"]


async def test_another_writer_of_a_row_is_noticed(store: FlakyStore) -> None:
    rows = await rows_of(store)
    row = rows.add_job(job(1, NOW, version=0))
    await rows.flush()
    await store.commit(Changes(jobs=(replace(row, version=row.version + 1),)))
    rows.move_job(row, JobState.RUNNING)
    with pytest.raises(Conflict):
        await rows.flush()


async def test_a_lost_lease_is_noticed_by_the_flush(store: FlakyStore) -> None:
    rows = await rows_of(store)
    store.break_lease()
    other = MemoryStore(store.disk)
    await other.open()
    assert await other.acquire_lease("other")
    rows.add_job(job(1, NOW, version=0))
    with pytest.raises(LeaseLost):
        await rows.flush()
    assert not (await other.load()).jobs


async def test_a_new_life_loads_what_was_flushed_and_nothing_else(store: FlakyStore) -> None:
    rows = await rows_of(store)
    rows.add_job(job(1, NOW, version=0))
    await rows.flush()
    rows.add_job(job(2, NOW, version=0))
    after = await rows_of(store)
    assert [row.forge_job_id for row in after.jobs.values()] == ["1"]


async def test_look_ups_follow_the_row_and_end_with_it(store: FlakyStore) -> None:
    rows = await rows_of(store)
    row = rows.add_instance(instance(1, NOW, S.READY, version=0, claim="c" * 64, provider_id=provider_id(1)), cause="x")
    assert rows.by_claim("c" * 64) == row
    row = rows.move(row, S.REGISTERING, now=NOW, cause="y", runner_name="ours--1", runner_id=RunnerId("1"))
    assert rows.by_runner("ours--1") == row
    row = rows.move(row, S.READY, now=NOW, cause="z", runner_name="", runner_id=None)
    assert rows.by_runner("ours--1") is None
    assert rows.by_provider_id(row.provider, provider_id(1)) == row
    assert rows.of_token(row.token) == [row]
    rows.move(row, S.TERMINATED, now=NOW, cause="gone", ending=EndReason.VANISHED)
    assert rows.by_claim("c" * 64) is None
    assert rows.by_provider_id(row.provider, provider_id(1)) is None
    assert rows.of_token(row.token) == []
    assert rows.ended_claims["c" * 64] == row.id


async def test_a_runner_without_a_name_is_nobodys(store: FlakyStore) -> None:
    rows = await rows_of(store)
    rows.add_instance(instance(1, NOW, S.READY, version=0), cause="x")
    assert rows.by_runner("") is None


async def test_an_ended_job_is_remembered_and_no_longer_live(store: FlakyStore) -> None:
    rows = await rows_of(store)
    row = rows.add_job(job(1, NOW, version=0))
    rows.move_job(row, JobState.DONE)
    assert row.id not in rows.jobs
    assert rows.ended_jobs[row.id] is JobState.DONE
