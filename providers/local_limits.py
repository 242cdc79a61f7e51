"""Bounds for one local machine: how many processes, how much memory. Found once; asked for by the supervisor.

    cgroup v2   below a folder that systemd delegated to us (Delegate=pids memory, DelegateSubgroup=...)
    cgroup v1   below our own group, as root
    nproc       a bound on processes alone (RLIMIT_NPROC), where the machine has a uid of its own
    none        elsewhere: a bound per user would count the daemon's processes too

Disk is not bounded on any of them, nor CPU: `slots` says how many machines share those.
"""

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROCESSES = 8192
"""Threads count. Far beyond what builds use; a fork bomb ends there."""
_BOUNDS = {"pids": "pids.max", "memory": "memory.limit_in_bytes"}
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds machines here. `parents`: the folders to make groups in, by controller."""

    kind: str
    parents: Mapping[str, Path]

    def cgroups(self, name: str, memory_gib: float | None) -> list[dict[str, Any]]:
        """The groups of one machine as its supervisor makes them: a folder and the files to write there."""
        memory_file = "memory.max" if self.kind == "cgroup v2" else "memory.limit_in_bytes"
        found: dict[Path, dict[str, str]] = {}
        if "pids" in self.parents:
            found.setdefault(self.parents["pids"] / name, {})["pids.max"] = str(PROCESSES)
        if "memory" in self.parents and memory_gib is not None:
            found.setdefault(self.parents["memory"] / name, {})[memory_file] = str(int(memory_gib * 2**30))
        return [{"folder": str(folder), "files": files} for folder, files in found.items()]

    @property
    def command(self) -> tuple[str, ...]:
        """What a tree with a uid of its own is started through."""
        if self.kind != "nproc":
            return ()
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        most = PROCESSES if hard == resource.RLIM_INFINITY else min(PROCESSES, hard)
        return ("prlimit", f"--nproc={most}:{most}", "--")


NO_LIMITS = Limits(kind="none", parents={})


def find_limits(*, has_own_uid: bool, membership: str = "", mount: Path = _CGROUPS) -> Limits:
    """The best kind that works here. `membership` is what /proc/self/cgroup says, if not that."""
    lines = (membership or Path("/proc/self/cgroup").read_text(encoding="utf-8")).splitlines()
    groups = {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
    unified = _delegated(mount / groups.get("", "/").lstrip("/"))
    if unified is not None:
        return Limits(kind="cgroup v2", parents={"pids": unified, "memory": unified})
    parents: dict[str, Path] = {
        name: mount / name / groups[name].lstrip("/")
        for name in _BOUNDS
        if name in groups and _can_make_groups(mount / name / groups[name].lstrip("/"), name)
    }
    if "pids" in parents:
        return Limits(kind="cgroup v1", parents=parents)
    return Limits(kind="nproc", parents={}) if has_own_uid else NO_LIMITS


def _delegated(own: Path) -> Path | None:
    """The folder above our own group, if systemd gave it to us. Groups with processes in them, as our own, cannot give
    bounds to groups below them; and what was not delegated is systemd's alone."""
    parent = own.parent
    try:
        if os.getxattr(parent, "user.delegate") != b"1":
            return None
        if not {"pids", "memory"} <= set((parent / "cgroup.controllers").read_text(encoding="ascii").split()):
            return None
        (parent / "cgroup.subtree_control").write_text("+pids +memory", encoding="ascii")
    except OSError:
        return None
    return parent if os.access(parent, os.W_OK) else None


def _can_make_groups(parent: Path, controller: str) -> bool:
    probe = parent / f"autoscaler-probe-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        probe.mkdir()
    except OSError:
        return False
    try:
        return (probe / _BOUNDS[controller]).exists()
    finally:
        probe.rmdir()
