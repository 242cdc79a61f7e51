"""The user that runs the runner, and so the jobs: an unprivileged one where the agent is root on a cloud's machine.

Owns the choice, and the proof, once at the boot, that this user can be used and whether it reaches the metadata
service: the image's firewall rules should keep it out.
"""

# pathlib alone would take a megabyte for every machine:
# ruff: noqa: PTH101, PTH112, PTH116

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

from runners.agent.client import host_and_port

DEFAULT_USER = "runner"

_OPEN, _CLOSED = 3, 4
_PROBE = f"""\
import os, socket, sys
os.chdir(sys.argv[1])
try:
    socket.create_connection((sys.argv[2], int(sys.argv[3])), timeout=1).close()
except OSError:
    sys.exit({_CLOSED})
sys.exit({_OPEN})
"""


class User(NamedTuple):
    """`uid` None is the agent's own user: nothing is switched. `metadata` is closed, open or empty (there is none);
    `problem` is why a runner must not be started at all."""

    name: str
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None
    home: str = ""
    metadata: str = ""
    problem: str = ""
    remark: str = ""

    def about(self) -> dict[str, str]:
        """For the hello: informative."""
        return {"user": self.name, **({"metadata": self.metadata} if self.metadata else {})}

    def may_write(self, folder: str) -> bool:
        """Whether it may make files in a folder; a folder that is not there is somebody else's error."""
        try:
            found = os.stat(folder)
        except OSError:
            return True
        if self.uid is None:
            return True
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid in (self.groups or ()) else 0
        return bool(found.st_mode >> shift & 0o2)


def choose_user(image: dict[str, str], *, folder: str, metadata: str) -> User:
    """The image's `user`, else `runner` where that exists. A user that the image names and that cannot be used is a
    problem; without such a name the agent's own user stays, and `remark` says why."""
    own = User(str(os.getuid()), metadata="open" if metadata else "")
    named = image.get("user", "")
    if not metadata or os.getuid() != 0:
        return own
    import pwd  # only on cloud machines

    try:
        entry = pwd.getpwnam(named or DEFAULT_USER)
    except KeyError:
        return _stay(own, named, f"there is no user {named or DEFAULT_USER}")
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    user = User(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, _usable_home(entry.pw_dir, entry.pw_uid))
    os.chmod(folder, 0o711)  # noqa: S103 - its hooks and the socket are there
    code = _probe(user, folder, metadata)
    if code not in (_OPEN, _CLOSED):
        return _stay(own, named, f"user {user.name} cannot be used")
    return user._replace(metadata="open" if code == _OPEN else "closed")


def _stay(own: User, named: str, why: str) -> User:
    return own._replace(problem=why) if named else own._replace(remark=f"{why}: jobs run as the agent's own user")


def _usable_home(home: str, uid: int) -> str:
    return home if os.path.isdir(home) and os.stat(home).st_uid == uid else ""


def _probe(user: User, folder: str, metadata: str) -> int:
    """What the probe says, run as that user; -1 where it cannot be run."""
    host, port = host_and_port(metadata, 80)
    try:
        return subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-I", "-S", "-c", _PROBE, folder, host, str(port)],
            user=user.uid,
            group=user.gid,
            extra_groups=user.groups,
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        ).returncode
    except (OSError, ValueError, subprocess.SubprocessError):
        return -1
