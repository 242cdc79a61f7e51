"""The daemon's store as the demo sees it: empty before, all of it afterwards."""

from collections.abc import Sequence
from datetime import UTC, datetime

from autoscaler.model import Instance, InstanceMove, Job
from autoscaler.money import NANO
from autoscaler.sandbox.demo_options import DemoError
from autoscaler.spi import InstanceId
from autoscaler.store import Store, StoreError, open_store

EVERYTHING = 1_000_000


async def check_store_is_new(url: str) -> None:
    """The demo's forges start from nothing: rows of other jobs and machines would be taken for theirs."""
    try:
        store = open_store(url)
        await store.open()
    except (StoreError, ValueError) as error:
        raise DemoError(f"--store: {error}") from error
    try:
        if await store.recent_jobs(limit=1) or await store.recent_instances(limit=1):
            raise DemoError("--store: it holds jobs or machines already; the demo needs an empty one")
    finally:
        await store.aclose()


async def stored(
    url: str,
) -> tuple[Sequence[Job], Sequence[Instance], dict[InstanceId, Sequence[InstanceMove]], float]:
    """Jobs, machines with their moves, and what was recorded as spent, in USD."""
    store: Store = open_store(url)
    await store.open()
    try:
        instances = await store.recent_instances(limit=EVERYTHING)
        moves = {row.id: await store.instance_moves(row.id) for row in instances}
        costs = await store.costs(datetime.fromtimestamp(0, UTC), datetime.now(UTC))
        recorded_usd = sum(one.usd_nano for one in costs) / NANO
        return await store.recent_jobs(limit=EVERYTHING), instances, moves, recorded_usd
    finally:
        await store.aclose()
