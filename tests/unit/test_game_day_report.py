"""What a game day costs to report: its reports are asked for each second, while everything else has most to do."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from autoscaler.game_day import GameDay, GameDayState
from autoscaler.game_day_report import GameDayReporter, Outcome
from autoscaler.live import LiveRows
from autoscaler.model import EndReason, InstanceState, Interruption, Job, JobState
from autoscaler.store import Changes
from autoscaler.store.memory import MemoryStore
from tests.admin_world import LINUX, instance, job

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)


class CountingStore(MemoryStore):
    """Counts how often the jobs of a run are read."""

    def __init__(self) -> None:
        super().__init__()
        self.runs_read = 0

    async def jobs_of_run(self, repo: str, run_id: str, *, limit: int) -> Sequence[Job]:
        self.runs_read += 1
        return await super().jobs_of_run(repo, run_id, limit=limit)


async def test_a_run_is_read_once_for_a_report_however_many_jobs_of_it_were_lost() -> None:
    store, lost, again, machines, taken = CountingStore(), [], [], [], []
    for number in range(40):
        row = instance(number, NOW, InstanceState.TERMINATED, ending=EndReason.CHAOS)
        hit = job(
            number, NOW, JobState.REQUEUED, run_id=f"run {number % 2}", name=f"test ({number})", instance=row.id,
            started_at=NOW,
        )  # fmt: skip
        successor = replace(
            job(1000 + number, NOW, JobState.DONE, run_id=hit.run_id, name=hit.name, started_at=NOW, finished_at=NOW),
            attempt=2,
            started_at=NOW + timedelta(seconds=50),
        )
        machines.append(replace(row, job=hit.id))
        lost.append(hit)
        again.append(successor)
        taken.append(
            Interruption(
                instance=row.id,
                provider=row.provider,
                pool=LINUX,
                capacity_pool=row.capacity_pool,
                noticed_at=NOW,
                sources=("game_day",),
                is_announced=False,
                job=hit.id,
                cutoff_at=NOW,
                ended_at=NOW,
                is_game_day=True,
            )
        )
    await store.open()
    await store.acquire_lease("test")
    await store.commit(Changes(jobs=[*lost, *again], instances=machines, interruptions=taken))
    day = GameDay(
        id="g-1",
        pool=LINUX,
        share=1.0,
        is_announced=False,
        actor="operator with token 1",
        begun_at=NOW,
        candidates=40,
        machines=tuple(row.id for row in machines),
        state=GameDayState.ASKED,
    )

    told = await GameDayReporter(LiveRows(store), store, {}).report(day, NOW + timedelta(minutes=1))

    assert told.count(Outcome.REQUEUED) == 40
    assert told.back_after_s == [50.0] * 40
    assert store.runs_read == 2
