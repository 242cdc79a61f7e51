"""The daemon's store as the demo sees it: empty before, all of it afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from autoscaler.model import Instance, InstanceMove, Interruption, Job, LedgerEntry
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Everything in a store. `recorded_usd` is what was counted as spent."""

    jobs: Sequence[Job]
    instances: Sequence[Instance]
    moves: Mapping[InstanceId, Sequence[InstanceMove]]
    interruptions: Mapping[InstanceId, Interruption]
    ledger: Sequence[LedgerEntry]
    recorded_usd: float


async def stored(url: str) -> Stored:
    """All rows, the ledger's oldest first."""
    store: Store = open_store(url)
    await store.open()
    try:
        instances = await store.recent_instances(limit=EVERYTHING)
        costs = await store.costs(datetime.fromtimestamp(0, UTC), datetime.now(UTC))
        return Stored(
            jobs=await store.recent_jobs(limit=EVERYTHING),
            instances=instances,
            moves={row.id: await store.instance_moves(row.id) for row in instances},
            interruptions={one.instance: one for one in await store.recent_interruptions(limit=EVERYTHING)},
            ledger=[entry for _, entry in reversed(await store.ledger(limit=EVERYTHING))],
            recorded_usd=sum(one.usd_nano for one in costs) / NANO,
        )
    finally:
        await store.aclose()
