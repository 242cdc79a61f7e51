"""The core at its edges: rows of sections that were taken out, and calls under way when the store is lost."""

import asyncio
from pathlib import Path

import pytest

from autoscaler import daemon
from autoscaler.clock import SystemClock
from autoscaler.config import load
from autoscaler.core import UNCONFIGURED, Core, make_launcher
from autoscaler.health import Health
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import InstanceState
from autoscaler.store.memory import MemoryStore
from tests.admin_world import instance
from tests.config_files import ENVIRON, minimal_document, write
from tests.unit.observing import NOW


@pytest.fixture
async def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Core:
    """Of a configuration whose forges and providers are gone, with one machine of before."""
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    config = load(write(minimal_document(), tmp_path))
    store = MemoryStore()
    await store.open()
    assert await store.acquire_lease("test")
    rows = LiveRows(store)
    rows.add_instance(instance(1, NOW, InstanceState.LAUNCHED, version=0), cause="test")
    await rows.flush()
    clock = SystemClock()
    one = Core(
        config=config,
        store=store,
        forges={},
        providers={},
        launcher=make_launcher(lambda: config, user_data_of=str, new_id=str),
        clock=clock,
        metrics=Metrics(),
        health=Health(clock),
    )
    await one.prepare()
    return one


async def test_machines_of_a_provider_that_was_taken_out_are_named(core: Core) -> None:
    (unwell,) = [one for one in core.conditions() if one.name == UNCONFIGURED]
    assert not unwell.is_well
    assert '1 machines, 0 runners and 0 jobs belong to provider "aws"' in unwell.detail
    assert "put the section back" in unwell.remedy
    await core.aclose(grace_s=0)


async def test_a_lost_lease_breaks_off_running_calls_at_once(core: Core) -> None:
    begun, broken_off = asyncio.Event(), asyncio.Event()

    async def launch() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            broken_off.set()
            raise

    core.applier._start("launch", launch)
    await begun.wait()
    async with asyncio.timeout(0.5):
        await daemon._close_core(core, [], is_ours=False)
    assert broken_off.is_set()
