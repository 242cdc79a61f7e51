"""The folders of local machines: how they are written, read, started, ended and cleaned up. Blocking; no network.

Owns `<state_dir>/<deployment>/<provider id>/`. The folder with its `meta.json` is the machine's existence: it appears
as a whole, by a rename, before anything runs, so a crash leaves either no machine or one that a listing finds. A
folder without our `meta.json`, or of another provider, is not ours and is never touched.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    CloudInstance,
    MachineState,
    PoolName,
    ProviderId,
    ProviderName,
)
from providers.local_isolation import SEARCH_PATH, UIDS, make_folders, make_passable
from providers.local_supervisor import descendants, remove_cgroups, start_ticks

_SUPERVISOR = Path(__file__).with_name("local_supervisor.py")
ID_PREFIX = "local-"
_START_GRACE_S = 20.0
_TERMINATE_GRACE_S = 20.0
_DRAFT_AGE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A machine to be made: its tags, and what its supervisor is to run."""

    provider_id: ProviderId
    token: BatchToken
    pool: PoolName
    capacity_pool: CapacityPool
    price_usd_hour: float
    spec: Mapping[str, Any]
    uid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine as its folder shows it."""

    instance: CloudInstance
    folder: Path
    ended_at: float | None
    has_started: bool


class Machines:
    """All machines of one provider of one deployment on this host."""

    def __init__(self, root: Path, provider: ProviderName) -> None:
        self.root = root
        self._provider = provider
        self._ended: dict[ProviderId, Machine] = {}
        make_passable(root)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One launch at a time, over all processes and deployments: the lock goes with its holder. Nobody else may
        open it: to lock a file takes no more than that."""
        lock = os.open(self.root.parent / ".launch-lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(lock, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def free_uids(self) -> list[int]:
        """The uids that no machine of this state folder has and no process of this host; hold the lock. They begin
        anywhere, so that a machine seldom gets its predecessor's uid and with it what that left in shared folders."""
        taken = {entry.stat().st_uid for entry in os.scandir("/proc") if entry.name.isdigit() and _exists(entry)}
        for meta in self.root.parent.glob(f"*/{ID_PREFIX}*/meta.json"):
            if not meta.with_name("end.json").exists():
                taken.add(int((_read_json(meta) or {}).get("uid", 0)))
        start = secrets.randbelow(len(UIDS))
        return [uid for uid in (*UIDS[start:], *UIDS[:start]) if uid not in taken]

    def master_key(self) -> bytes:
        """The key that all machines' keys derive from: made once, readable by us alone."""
        path = self.root / "master.key"
        if not path.exists():
            temporary = self.root / f".new-key-{secrets.token_hex(4)}"
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            temporary.unlink()
        return path.read_bytes()

    # ------------------------------------------------------------------ reading

    def read_all(self) -> list[Machine]:
        """Every machine, ended ones included until they are cleaned up. Raises OSError rather than leave one out."""
        # Names alone: a listing of thousands of folders makes no Path of each.
        names = sorted(ProviderId(name) for name in os.listdir(self.root) if name.startswith(ID_PREFIX))  # noqa: PTH208
        known = self._ended
        found = [known.get(name) or self.read(name) for name in names]
        machines = [machine for machine in found if machine is not None]
        # An ended machine never changes again: most of a listing need not be read again.
        self._ended = {m.instance.provider_id: m for m in machines if m.ended_at is not None}
        return machines

    def read(self, provider_id: ProviderId) -> Machine | None:
        folder = self.root / provider_id
        if not provider_id.startswith(ID_PREFIX) or "/" in provider_id:
            return None
        meta = _read_json(folder / "meta.json")
        if meta == {} and is_alive(folder):
            raise OSError(f"{provider_id}: meta.json is unreadable and its supervisor lives")
        if not meta or meta.get("provider") != self._provider:
            return None
        end = _read_json(folder / "end.json")
        if end is None:
            end = self._settle(folder, meta)
        if end is not None:
            state = MachineState.TERMINATED
        elif (folder / "terminate").exists():
            state = MachineState.TERMINATING
        elif (folder / "running").exists():
            state = MachineState.RUNNING
        else:
            state = MachineState.PENDING
        return Machine(
            instance=_instance(provider_id, meta, state, end),
            folder=folder,
            ended_at=None if end is None else float(end.get("at", 0.0)),
            has_started=(folder / "supervisor.json").exists(),
        )

    def _settle(self, folder: Path, meta: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The end of a machine whose supervisor is gone or never came; None while it lives or may still come."""
        supervisor = _read_json(folder / "supervisor.json")
        if supervisor is None and time.time() - float(meta["launched_at"]) < _START_GRACE_S:
            return None
        with os.fdopen(os.open(folder / "alive", os.O_RDWR | os.O_CREAT, 0o600)) as alive:
            try:
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._escalate(folder, supervisor)
                return None
            # Holding the lock: a supervisor that still comes finds end.json and goes away.
            if (end := _read_json(folder / "end.json")) is not None:
                return end
            end = {"detail": "supervisor lost" if supervisor else "never started", "at": time.time()}
            remove_cgroups((_read_json(folder / "spec.json") or {}).get("cgroups", []))
            shutil.rmtree(folder / "machine", ignore_errors=True)
            _write_json(folder / "end.json", end)
            return end

    def _escalate(self, folder: Path, supervisor: Mapping[str, Any] | None) -> None:
        """Kill a supervisor that was asked to end long ago, and what it left: it may be stopped or stuck."""
        try:
            asked_s = time.time() - (folder / "terminate").stat().st_mtime
        except FileNotFoundError:
            return
        if not supervisor or asked_s < _TERMINATE_GRACE_S:
            return
        pid = int(supervisor["pid"])
        for member in (pid, *descendants(pid)) if start_ticks(pid) == supervisor["start_ticks"] else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)

    # ------------------------------------------------------------------ changing

    def commit(self, plan: Plan, files: Mapping[str, bytes]) -> Machine:
        """Make the machine exist, with files for its own folder; nothing runs yet."""
        draft = self.root / f".new-{secrets.token_hex(8)}"
        make_folders(draft)
        for name, content in files.items():
            (draft / "machine" / name).write_bytes(content)
        meta = {
            "provider": self._provider,
            "token": plan.token,
            "pool": plan.pool,
            "region": plan.capacity_pool.region,
            "zone": plan.capacity_pool.zone,
            "machine_type": plan.capacity_pool.machine_type,
            "capacity_type": plan.capacity_pool.capacity_type,
            "price_usd_hour": plan.price_usd_hour,
            "launched_at": time.time(),
            "uid": plan.uid,
        }
        _write_json(draft / "spec.json", plan.spec)
        _write_json(draft / "meta.json", meta)
        draft.rename(self.root / plan.provider_id)
        machine = self.read(plan.provider_id)
        if machine is None:
            raise OSError(f"{plan.provider_id}: the folder vanished")
        return machine

    def start(self, machines: Sequence[tuple[Machine, str]]) -> None:
        """Start the supervisors of (machine, its key in hex), side by side. Raises OSError when one cannot start."""
        starting = []
        try:
            for machine, key in machines:
                starting.append(_start_supervisor(machine.folder, key))
        finally:
            for process in starting:
                process.wait(30)

    def terminate(self, provider_id: ProviderId) -> None:
        machine = self.read(provider_id)
        if machine is None or machine.ended_at is not None:
            return
        with contextlib.suppress(FileExistsError):
            (machine.folder / "terminate").open("x").close()
        _signal_supervisor(machine.folder, signal.SIGTERM)

    def interrupt(self, provider_id: ProviderId, *, notice_s: float) -> None:
        """Reclaim a machine in `notice_s`; with 0 it vanishes unannounced."""
        machine = self.read(provider_id)
        if machine is None or machine.ended_at is not None or (machine.folder / "interrupt.json").exists():
            return
        reclaim = {"reclaim_at": time.time() + notice_s, "is_announced": notice_s > 0}
        _write_json(machine.folder / "interrupt.json", reclaim)
        _signal_supervisor(machine.folder, signal.SIGUSR1)

    def clean(self, machines: Sequence[Machine], *, keep_ended_s: float) -> frozenset[ProviderId]:
        """Remove what ended long ago, and drafts that a crash left behind; returns the machines removed."""
        now = time.time()
        for draft in self.root.glob(".new-*"):
            if draft.is_dir() and now - draft.stat().st_mtime > _DRAFT_AGE_S:
                shutil.rmtree(draft, ignore_errors=True)
        old = [
            machine for machine in machines if machine.ended_at is not None and now - machine.ended_at > keep_ended_s
        ]
        for machine in old:
            shutil.rmtree(machine.folder, ignore_errors=True)
        return frozenset(machine.instance.provider_id for machine in old)


def _start_supervisor(folder: Path, key: str) -> subprocess.Popen[bytes]:
    """The key travels in a pipe that only the supervisor inherits; it detaches by itself, so this ends at once."""
    reading, writing = os.pipe()
    try:
        os.write(writing, key.encode("ascii"))
        argv = [sys.executable, "-I", "-S", str(_SUPERVISOR), str(folder), str(reading)]
        return subprocess.Popen(  # noqa: S603 - our own program
            argv,
            pass_fds=(reading,),
            env={"PATH": SEARCH_PATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        os.close(reading)
        os.close(writing)


def _signal_supervisor(folder: Path, number: int) -> None:
    """Wake the supervisor; one that is not there yet reads the folder when it starts."""
    supervisor = _read_json(folder / "supervisor.json")
    if not supervisor:
        return
    try:
        process = os.pidfd_open(int(supervisor["pid"]))
    except ProcessLookupError:
        return
    try:
        # The descriptor pins the process: if it has the right start time now, the signal cannot hit another one.
        if start_ticks(int(supervisor["pid"])) == supervisor["start_ticks"]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)
    finally:
        os.close(process)


_RECLAIMED = "reclaimed"
"""How the supervisor's record says that the machine was taken, announced or not."""


def _instance(
    provider_id: ProviderId, meta: Mapping[str, Any], state: MachineState, end: Mapping[str, Any] | None
) -> CloudInstance:
    provider = ProviderName(meta["provider"])
    return CloudInstance(
        provider=provider,
        provider_id=provider_id,
        token=BatchToken(meta["token"]),
        pool=PoolName(meta["pool"]),
        state=state,
        capacity_pool=CapacityPool(
            provider=provider,
            region=meta["region"],
            zone=meta["zone"],
            machine_type=meta["machine_type"],
            capacity_type=CapacityType(meta["capacity_type"]),
        ),
        price_usd_hour=float(meta["price_usd_hour"]),
        launched_at=datetime.fromtimestamp(0, UTC) + timedelta(seconds=float(meta["launched_at"])),
        address="127.0.0.1",
        end_detail="" if end is None else str(end.get("detail", "unreadable")),
        ended_by_itself=end is not None and end.get("detail") == "exit 0",
        is_reclaimed=end is not None and end.get("detail") == _RECLAIMED,
    )


def _exists(entry: os.DirEntry[str]) -> bool:
    """Whether a process is still there; its owner is remembered with that."""
    try:
        entry.stat()
    except FileNotFoundError:
        return False
    return True


def is_alive(folder: Path) -> bool:
    """Whether a supervisor holds the lock of a machine's folder: the last of a machine to go."""
    try:
        with (folder / "alive").open() as alive:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _read_json(path: Path) -> Mapping[str, Any] | None:
    """None: no such file; empty: not readable as JSON (a host that lost power may leave an empty file)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(path)
