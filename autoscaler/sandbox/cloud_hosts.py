"""The sandbox's cloud machines as process trees of this host: each boots by running its user data, as cloud-init would.

    BOOTED      a metadata server, then `/bin/sh user-data` in an isolated tree   POWER_LOST   both end
    the tree ends by itself: the machine powered itself off

Built from the local provider's parts (folders, isolation, supervisors), but without its agent and keys: what runs on a
machine comes from its user data alone. Everything is below one folder and goes with `aclose`.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_machines import BROKEN, Event, Happening, Machine
from autoscaler.sandbox.metadata_site import MetadataSite
from autoscaler.spi import BatchToken, PoolName, ProviderId, ProviderName
from providers.local_isolation import SEARCH_PATH, Isolation, probe
from providers.local_machines import ID_PREFIX, Machines, Plan, is_alive

log = structlog.get_logger()

LOOK_S = 0.2
CLEAN_S = 30.0
KEPT_S = 600.0
LONGEST_LIFE_S = 24 * 3600.0
END_S = 10.0
_ENTER = "import os; os.execv('/bin/sh', ['/bin/sh', '{folder}/user-data'])"


class Metadata(Protocol):
    """A machine's metadata service and how the machine is told of it."""

    async def __call__(self, machine: Machine) -> tuple[MetadataSite, Mapping[str, str]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledProgram:
    """A program of an image: where the image says it is, and where it lies on this host. `key` tells how it is brought
    (github_runner: a folder of its own)."""

    key: str
    shown_as: str
    source: str


@dataclass(slots=True)
class _Host:
    """What runs of one machine."""

    provider_id: ProviderId
    site: MetadataSite
    folder: Path


@dataclass(slots=True)
class _Line:
    """What is to be done for one machine, in order."""

    tail: asyncio.Task[None] | None = None
    host: _Host | None = None


class CloudHosts:
    """Listens to a driver and runs its machines. `programs` are installed in every image. Several clouds may share a
    folder when their `name` differs."""

    def __init__(
        self,
        driver: CloudDriver,
        folder: Path,
        *,
        name: str,
        metadata: Metadata,
        programs: tuple[InstalledProgram, ...],
        isolation: str = "auto",
    ) -> None:
        self._driver = driver
        self._metadata = metadata
        self._programs = programs
        root = folder / name
        root.mkdir(parents=True, exist_ok=True)
        for passed in (folder, root):
            passed.chmod(0o711)
        self._isolation: Isolation = probe(root, isolation)
        self._machines = Machines(root / "hosts", ProviderName(name))
        for left in self._machines.read_all():  # a sandbox that was killed leaves its machines running
            self._machines.terminate(left.instance.provider_id)
        self._lines: dict[str, _Line] = {}
        self._writing = asyncio.Lock()
        self._is_closed = False
        self._watch = asyncio.create_task(self._watch_ends())
        driver.listen(self._hear)

    def log_of(self, machine_id: str) -> str:
        """The console of a machine's newest life; empty where it has none."""
        line = self._lines.get(machine_id)
        if line is None or line.host is None:
            return ""
        with contextlib.suppress(OSError):
            return (line.host.folder / "machine.log").read_text(errors="replace")
        return ""

    def _hear(self, event: Event) -> None:
        if self._is_closed:
            return
        if event.kind is Happening.BOOTED:
            self._next(event.machine.id, lambda line: self._boot(event.machine, line))
        elif event.kind is Happening.POWER_LOST and event.machine.id in self._lines:
            self._next(event.machine.id, self._end)

    def _next(self, id_: str, step: Callable[[_Line], Coroutine[Any, Any, None]]) -> None:
        """One step after the other for each machine."""
        line = self._lines.setdefault(id_, _Line())
        before = line.tail

        async def run() -> None:
            if before is not None:
                await asyncio.wait({before})
            try:
                await step(line)
            except Exception as error:
                # Nothing runs on it, or nobody knows what: a cloud ends such a machine.
                log.warning("cloud_host_failed", machine=id_, error=f"{type(error).__name__}: {error}")
                self._driver.account.fail(id_, self._driver.now, BROKEN)
                self._driver.settle()

        line.tail = asyncio.create_task(run())

    async def _boot(self, machine: Machine, line: _Line) -> None:
        life = machine.life
        if not machine.is_up or self._is_closed:
            return
        site, environ = await self._metadata(machine)
        try:
            async with self._writing:
                host = await asyncio.to_thread(self._start, machine, environ)
        except BaseException:
            await site.aclose()
            raise
        line.host = _Host(host.provider_id, site, host.folder)
        if machine.life != life:
            await self._end(line)

    def _start(self, machine: Machine, environ: Mapping[str, str]) -> "_Started":
        provider_id = ProviderId(f"{ID_PREFIX}{secrets.token_hex(8)}")
        machines = self._machines
        with machines.locked():
            uids = machines.free_uids() if self._isolation.drops_root else [os.getuid()]
            if not uids:
                raise OSError("no free uid is left for another machine")
            uid = uids[0]
            command = self._isolation.command(
                machines.root / provider_id,
                uid=uid,
                image={one.key: one.source for one in self._programs},
                program=("-c", _ENTER),
            )
            user_data = machine.wish.user_data
            for one in self._programs:
                user_data = user_data.replace(f'"{one.shown_as}"', f'"{command.image[one.key]}"')
            spec = {
                "boot_delay_s": 0.0,
                "max_lifetime_s": LONGEST_LIFE_S,
                "prepare": command.prepare,
                "argv": command.argv,
                "cgroups": [],
                "env": {"PATH": SEARCH_PATH, "TMPDIR": command.tmp, **environ},
            }
            plan = Plan(
                provider_id=provider_id,
                token=BatchToken(machine.id),
                pool=PoolName("-"),
                capacity_pool=machine.capacity_pool,
                price_usd_hour=machine.price_usd_hour,
                spec=spec,
                uid=uid,
            )
            made = machines.commit(plan, {"user-data": user_data.encode()})
            machines.start([(made, "")])
        return _Started(provider_id=provider_id, folder=made.folder)

    async def _end(self, line: _Line) -> None:
        host, line.host = line.host, None
        if host is None:
            return
        await asyncio.to_thread(self._machines.terminate, host.provider_id)
        await host.site.aclose()
        deadline = asyncio.get_running_loop().time() + END_S
        while not (host.folder / "end.json").exists() or await asyncio.to_thread(is_alive, host.folder):
            if asyncio.get_running_loop().time() > deadline:
                log.warning("cloud_host_left", folder=str(host.folder))
                return
            await asyncio.sleep(0.05)

    async def _watch_ends(self) -> None:
        """A tree that ended by itself is a machine that powered itself off. Folders of ended machines go in time."""
        clean_at = 0.0
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                ended = await asyncio.to_thread(self._ended, {id_: line.host for id_, line in self._lines.items()})
                if asyncio.get_running_loop().time() >= clean_at:
                    await asyncio.to_thread(self._clean)
                    clean_at = asyncio.get_running_loop().time() + CLEAN_S
            except OSError as error:
                log.warning("cloud_hosts_unreadable", error=str(error))
                continue
            for id_ in ended:
                self._driver.account.power_off_by_itself(id_, self._driver.now)
            if ended:
                self._driver.settle()

    def _clean(self) -> None:
        self._machines.clean(self._machines.read_all(), keep_ended_s=KEPT_S)

    @staticmethod
    def _ended(hosts: Mapping[str, _Host | None]) -> list[str]:
        return [id_ for id_, host in hosts.items() if host is not None and (host.folder / "end.json").exists()]

    async def aclose(self) -> None:
        """End every machine's processes and wait until they are gone."""
        self._is_closed = True
        self._watch.cancel()
        tails = {line.tail for line in self._lines.values() if line.tail is not None}
        if tails:
            await asyncio.wait(tails, timeout=END_S)
        ends: list[Awaitable[None]] = [self._end(line) for line in self._lines.values()]
        await asyncio.gather(self._watch, *ends, return_exceptions=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    provider_id: ProviderId
    folder: Path
