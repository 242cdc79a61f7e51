"""The core at its edges: rows of sections that were taken out, and calls under way when the store is lost."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoscaler import daemon
from autoscaler.clock import SystemClock
from autoscaler.config import load
from autoscaler.core import UNCONFIGURED, Core, make_launcher
from autoscaler.health import Health
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import InstanceState
from autoscaler.spi import InvalidRequest, ProviderName
from autoscaler.store import Changes, StoreError
from autoscaler.store.memory import MemoryStore
from runners.bootstrap import boot_document
from tests.admin_world import LINUX, OFFERING, instance, pool
from tests.config_files import ENVIRON, minimal_document, write
from tests.unit.observing import NOW


class FailingStore(MemoryStore):
    """Takes nothing while it fails."""

    fails = False

    async def commit(self, changes: Changes) -> None:
        if self.fails:
            raise StoreError("disk is full")
        await super().commit(changes)


@pytest.fixture
async def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Core:
    """Of a configuration whose forges and providers are gone, with one machine of before."""
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    config = load(write(minimal_document(), tmp_path))
    store = FailingStore()
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


async def test_a_launch_of_what_a_reload_took_out_fails_and_ends_nothing_else(core: Core) -> None:
    row = core.rows.add_instance(instance(2, NOW, InstanceState.REQUESTED, version=0, provider_id=None), cause="test")
    await core.applier._launch_calls.launch(pool(LINUX, "linux"), row.provider, row.token, [row], (OFFERING,))
    assert "aws" in core.sightings.held_back[LINUX, ProviderName("aws")]
    await core.loop.tick()
    assert row.id not in core.rows.instances, "refused, so that another machine is asked for"
    await core.aclose(grace_s=0)


@pytest.mark.parametrize("kind", ["provider", "image", "pool"])
def test_a_section_that_a_reload_took_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    config = load(write(minimal_document(), tmp_path))
    left: dict[str, Any] = {f"{kind}s": ()}
    without = replace(config, **left)
    launcher = make_launcher(lambda: without, user_data_of=str, new_id=str)
    (section,) = getattr(config, f"{kind}s")
    with pytest.raises(InvalidRequest, match=f'no {kind} "{section.name}"'):
        launcher.user_data_of(pool(LINUX, "linux", image="ubuntu"), ProviderName("here"))


def test_an_images_hooks_travel_to_its_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    document = minimal_document()
    document["image"][0]["hooks"] = {
        "job_started": "/opt/started",
        "job_completed": "/opt/completed",
        "on_interruption": "/opt/save",
        "on_interruption_limit": "20s",
    }
    config = load(write(document, tmp_path))
    launcher = make_launcher(lambda: config, user_data_of=boot_document, new_id=str)
    boot = json.loads(launcher.user_data_of(pool(LINUX, "linux", image="ubuntu"), ProviderName("here")))
    assert boot["hook_limit_s"] == 20
    hooks = {name: path for name, path in boot["image"].items() if name.startswith("hook_")}
    assert hooks == {
        "hook_job_started": "/opt/started",
        "hook_job_completed": "/opt/completed",
        "hook_on_interruption": "/opt/save",
    }


async def test_who_gave_up_waiting_for_a_store_that_fails_is_forgotten(core: Core) -> None:
    store = core.store
    assert isinstance(store, FailingStore)
    store.fails = True
    for _ in range(3):
        core.rows.set_setting("any", "change")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await core.loop.consumed()
        with pytest.raises(StoreError):
            await core.loop.tick()
    assert not core.loop._waiting
    waiting = asyncio.create_task(core.loop.consumed())
    await asyncio.sleep(0)
    with pytest.raises(StoreError):
        await core.loop.tick()
    assert not waiting.done(), "who still waits is kept"
    store.fails = False
    await core.loop.tick()
    await waiting
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
