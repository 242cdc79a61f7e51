"""What a reload changes in a running daemon, and what a daemon makes of a store that is not its own."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from autoscaler import daemon
from autoscaler.config import load
from autoscaler.store import LeaseLost, Stored
from autoscaler.store.memory import MemoryStore
from tests.config_files import ENVIRON, minimal_document, write
from tests.integration.daemon_kit import Daemon, free_port, site
from tests.polling import until


def logged(one: Daemon, event: str) -> list[dict[str, Any]]:
    """The lines of this event, while the last line may still be on its way."""
    return [json.loads(line) for line in one.log.splitlines() if f'"{event}"' in line and line.endswith("}")]


async def test_a_reload_changes_tokens_and_names_what_waits_for_a_restart() -> None:
    async with site() as here:
        one = here.daemon()
        await one.start()
        old = one.admin_token
        (token_file,) = here.folder.rglob("admin-token")
        token_file.write_text("a-token-made-for-the-reload")
        text = one.config.read_text().replace('list_runners = "1s"', 'list_runners = "2s"')
        one.config.write_text(text)
        one.signal(signal.SIGHUP)
        (line,) = await until(lambda: logged(one, "config_reloaded"))
        assert line["needs_restart"] == ["autoscaler.list_runners"]
        assert (await one.get(f"{one.admin}/api/v1/status"))[0] == 401
        one.admin_token = "a-token-made-for-the-reload"
        assert (await one.get(f"{one.admin}/api/v1/status"))[0] == 200
        assert old not in one.log
        assert one.admin_token not in one.log
        assert await one.stop() == 0


async def test_the_public_listener_names_what_is_not_well_and_says_no_more() -> None:
    async with site() as here:
        one = here.daemon()
        await one.start()
        here.github_fault.kind = "revoked"
        reason = await one.unwell("forge/github", timeout_s=20)
        assert reason["detail"]
        status, shown = await one.get(f"{one.public}/readyz")
        assert (status, shown) == (503, {"ready": False, "reasons": [{"name": "forge/github"}]})
        await one.stop()


class TakenStore(MemoryStore):
    """Another daemon takes it over while this one reads it."""

    async def load(self) -> Stored:
        raise LeaseLost("taken over")


async def test_a_lease_lost_while_preparing_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    document = minimal_document()
    document["provider"][0]["state_dir"] = str(tmp_path / "machines")
    path = write(document, tmp_path)
    store = TakenStore()
    await store.open()
    assert await store.acquire_lease("test")
    with pytest.raises(LeaseLost):
        await daemon._serve(store, daemon._Process(path, load(path)))


class SlowStore(MemoryStore):
    """Does not answer until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def load(self) -> Stored:
        self.asked.set()
        await self.may_answer.wait()
        return await super().load()


async def preparing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[SlowStore, daemon._Process, asyncio.Task[None]]:
    """A daemon that has the lease and is reading its store."""
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    document = minimal_document()
    document["autoscaler"] |= {"listen": f"127.0.0.1:{free_port()}", "admin_listen": f"127.0.0.1:{free_port()}"}
    document["provider"][0]["state_dir"] = str(tmp_path / "machines")
    path = write(document, tmp_path)
    store = SlowStore()
    await store.open()
    assert await store.acquire_lease("test")
    process = daemon._Process(path, load(path))
    serving = asyncio.create_task(daemon._serve(store, process))
    await store.asked.wait()
    return store, process, serving


async def test_a_reload_while_preparing_is_in_force_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, process, serving = await preparing(tmp_path, monkeypatch)
    process._path.write_text(process._path.read_text().replace('"linux"', '"renamed"'))
    process.reload()
    store.may_answer.set()
    core = await until(lambda: process.core)
    assert set(core.rules().pools) == {"renamed"}
    process.stop.set()
    await serving


async def test_a_daemon_that_prepares_says_so_and_stops_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, process, serving = await preparing(tmp_path, monkeypatch)
    url = f"http://{process.config.autoscaler.admin_listen}/readyz"

    async def reasons() -> Any:
        async with aiohttp.ClientSession() as client:
            try:
                async with client.get(url) as answer:
                    return (answer.status, await answer.json())
            except aiohttp.ClientConnectorError:
                return None

    status, document = await until(reasons)
    assert status == 503
    assert daemon.PREPARING in str(document)
    process.stop.set()
    async with asyncio.timeout(5):
        await serving
