"""The runner's job hooks: small scripts that tell the agent over a unix socket what the runner is about to do.

A hook must never harm a job: 2 seconds at most, exit 0 always (a hook that fails fails the job). What it says is a
hint, from the job's own user; the forge is the truth.
"""

# pathlib alone would take a megabyte for every machine:
# ruff: noqa: PTH101, PTH103, PTH118, PTH123

from __future__ import annotations

import os
import shlex
import socket
import struct
import sys
import threading
from collections.abc import Callable

KINDS = ("job_started", "job_completed")

_TELL = """\
import os, socket, sys
folder, kind = sys.argv[1:3]
os.chdir(folder)  # the path of a unix socket may be 107 bytes long at most
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
    agent.settimeout(2)
    agent.connect("agent.sock")
    agent.sendall(kind.encode() + b"\\n")
    agent.recv(1)
"""

_SCRIPT = """\
#!/bin/bash
timeout 2 {python} -I -S {tell} {folder} {kind} </dev/null >/dev/null 2>&1 || true
{chained}
"""


def write_hooks(folder: str, chained: dict[str, str]) -> dict[str, str]:
    """Write the scripts below `folder`; returns kind -> absolute path. `chained` holds the image's own hooks by kind:
    they run after ours, and theirs is the exit code."""
    hooks = os.path.join(folder, "hooks")
    os.makedirs(hooks, exist_ok=True)
    tell = os.path.join(hooks, "tell.py")
    _write(tell, _TELL, 0o644)
    paths = {}
    for kind in KINDS:
        own = chained.get(kind, "")
        script = _SCRIPT.format(
            python=shlex.quote(sys.executable),
            tell=shlex.quote(tell),
            folder=shlex.quote(folder),
            kind=kind,
            chained=f"exec bash -e {shlex.quote(own)}" if own else "exit 0",
        )
        paths[kind] = os.path.join(hooks, f"{kind}.sh")
        _write(paths[kind], script, 0o755)
    return paths


def _write(path: str, text: str, mode: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


class HookListener:
    """Listens on `agent.sock` in the current folder and calls `heard(kind)` from a thread of its own. It believes
    root, the agent's own user and `uid`, the one that jobs run as."""

    def __init__(self, heard: Callable[[str], None], *, uid: int | None = None) -> None:
        self._heard = heard
        self._uids = {0, os.getuid(), os.getuid() if uid is None else uid}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind("agent.sock")
        if uid is not None:
            os.chmod("agent.sock", 0o666)  # noqa: S103 - who calls is checked for each connection
        self._socket.listen(8)
        threading.Thread(target=self._serve, name="hooks", daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                try:
                    self._hear(connection)
                except (OSError, ValueError):
                    continue  # a hook that was killed half-way says nothing

    def _hear(self, connection: socket.socket) -> None:
        connection.settimeout(2)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", credentials)[1] not in self._uids:
            return
        kind = connection.recv(64).decode("ascii").strip()
        if kind in KINDS:
            self._heard(kind)
        connection.sendall(b".")
