"""How a local machine's tree is kept apart from its host: a ladder of rungs, probed; the first that works is used.

    bwrap    own pid, ipc, uts and mount namespaces; the host read-only, homes and /run hidden, own /tmp and /machine
    unshare  own pid, ipc, uts and mount namespaces; the host's files as the user sees them
    process  nothing but a session; the supervisor is the subreaper of all that escapes

The network is the host's on every rung. As root the tree runs under an unprivileged uid of its own where that works.
None of this stops a job that is out to break the kernel.
"""

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)

RUNGS = ("bwrap", "unshare", "process")
_UID_BASE, _UID_COUNT = 61184, 4000  # within the range that systemd reserves for dynamic users: no account has one
_HIDDEN = frozenset({"proc", "dev", "tmp", "root", "home", "run", "lost+found"})
_PROBE = (
    "import sys, ctypes, json, queue, socket, subprocess, threading; sys.version_info >= (3, 9) or sys.exit(9); "
    "open('{folder}/probe', 'w').write('ok')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeCommand:
    """What the supervisor runs: `prepare` in order, then `argv`. The rest is as the tree sees it."""

    prepare: tuple[tuple[str, ...], ...]
    argv: tuple[str, ...]
    folder: str
    tmp: str
    image: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """A rung that was found to work. `drops_root`: the tree runs under an unprivileged uid although we are root."""

    rung: str
    drops_root: bool
    python: str
    state_dir: Path

    def command(
        self, *, machine: Path, provider_id: str, image: Mapping[str, str], program: Sequence[str]
    ) -> TreeCommand:
        """The tree of one machine. `machine` exists on the host; `program` is what follows the interpreter, with
        "{folder}" for the machine's folder."""
        folder = "/machine" if self.rung == "bwrap" else str(machine)
        tmp = "/tmp" if self.rung == "bwrap" else str(machine / "tmp")  # noqa: S108 - the machine's own
        uid = _UID_BASE + zlib.crc32(provider_id.encode()) % _UID_COUNT
        prepare, seen, binds = self._place_image(machine, folder, image)
        if self.drops_root:
            prepare.append(("chown", "-R", f"{uid}:{uid}", str(machine)))
        argv: list[str] = []
        if self.rung == "bwrap":
            argv += [*self._bwrap(machine), *binds, "--chdir", "/", "--"]
        elif self.rung == "unshare":
            argv += ["setpriv", "--pdeathsig", "KILL", "unshare", *([] if _is_root() else ["--user", "-c"])]
            argv += ["--pid", "--fork", "--kill-child", "--mount-proc", "--ipc", "--uts", "--"]
        if self.drops_root:
            argv += ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--no-new-privs"]
            argv += ["--pdeathsig", "KILL", "--"]  # asked for again: a change of user clears it
        elif self.rung == "process":
            argv += ["setpriv", "--pdeathsig", "KILL", "--"]
        argv += [self.python, "-I", "-S", *(part.replace("{folder}", folder) for part in program)]
        return TreeCommand(prepare=tuple(prepare), argv=tuple(argv), folder=folder, tmp=tmp, image=seen)

    def _bwrap(self, machine: Path) -> list[str]:
        argv = ["bwrap", "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        argv.append("--unshare-cgroup-try")
        if self.drops_root:
            argv += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            argv += ["--unshare-user", *(("--uid", "1000", "--gid", "1000") if _is_root() else ())]
        for entry in sorted(os.scandir("/"), key=lambda found: found.name):
            if entry.is_symlink():
                argv += ["--symlink", str(Path(entry.path).readlink()), entry.path]
            elif entry.is_dir() and entry.name not in _HIDDEN:
                argv += ["--ro-bind", entry.path, entry.path]
        argv += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run"]
        argv += ["--ro-bind-try", "/run/systemd/resolve", "/run/systemd/resolve", "--dir", "/root", "--dir", "/home"]
        for shared in ("/dev/shm", "/var/tmp"):  # noqa: S108 - the machine's own
            argv += ["--perms", "1777", "--tmpfs", shared]
        argv += ["--bind", str(machine / "tmp"), "/tmp"]  # noqa: S108 - the machine's own
        if self.state_dir.parts[1] not in _HIDDEN:
            argv += ["--tmpfs", str(self.state_dir)]
        prefix = _prefix(self.python)
        if prefix.parts[1] in _HIDDEN:
            argv += ["--ro-bind", str(prefix), str(prefix)]
        return [*argv, "--bind", str(machine), "/machine"]

    def _place_image(
        self, machine: Path, folder: str, image: Mapping[str, str]
    ) -> tuple[list[tuple[str, ...]], dict[str, str], list[str]]:
        """Give the machine the image's programs: (preparing commands, the image as the tree sees it, bwrap's binds).

        GitHub's run.sh writes beside itself, so its folder is the machine's own; under bwrap its big subfolders are
        mounted read-only instead of being copied (the .NET programs find their root by their own real path, so a
        symlink would lead them into the shared image).
        """
        prepare: list[tuple[str, ...]] = [("mkdir", "-p", "-m", "1777", str(machine / "tmp"))]
        seen = dict(image)
        binds: list[str] = []
        for key, path in image.items():
            source = Path(path)
            if key == "github_runner":
                seen[key] = f"{folder}/runner"
                prepare.append(("mkdir", "-p", str(machine / "runner")))
                if self.rung != "bwrap":
                    prepare.append(("cp", "-a", "--reflink=auto", f"{source}/.", str(machine / "runner")))
                    continue
                files = sorted(str(entry) for entry in source.iterdir() if not entry.is_dir())
                if files:
                    prepare.append(("cp", "-p", "--", *files, str(machine / "runner")))
                for entry in sorted(source.iterdir()):
                    if entry.is_dir():
                        binds += ["--ro-bind", str(entry), f"/machine/runner/{entry.name}"]
            elif self.rung == "bwrap" and source.is_absolute():
                # The whole folder: a program may bring files of its own, and its path may lie in a hidden home.
                seen[key] = f"/machine/image/{key}/{source.name}"
                prepare.append(("mkdir", "-p", str(machine / "image" / key)))  # a mount point that bwrap made is root's
                binds += ["--ro-bind", str(source.parent), f"/machine/image/{key}"]
        return prepare, seen, binds


def probe(state_dir: Path, wanted: str) -> Isolation:
    """The first rung from `wanted` ("auto": the top) that runs a small program here. Each step down is logged."""
    rungs = RUNGS if wanted == "auto" else (wanted,)
    for rung in rungs:
        for drops_root in (True, False) if _is_root() else (False,):
            for python in _pythons():
                isolation = Isolation(rung=rung, drops_root=drops_root, python=python, state_dir=state_dir)
                if not (problem := _try(isolation)):
                    if _is_root() and not drops_root and rung != "bwrap":
                        _log.warning("local_machines_run_as_root", isolation=rung)
                    return isolation
                _log.info("isolation_probe_failed", isolation=rung, drops_root=drops_root, python=python, why=problem)
        if rung != rungs[-1]:
            _log.warning("isolation_fell_back", from_rung=rung)
    raise OSError(f"no isolation works here: tried {', '.join(rungs)}")


def _try(isolation: Isolation) -> str:
    """Run the probe on a rung; returns what went wrong, or nothing."""
    machine = isolation.state_dir / f".probe-{os.getpid()}-{os.urandom(4).hex()}"
    machine.mkdir(mode=0o700)
    try:
        command = isolation.command(machine=machine, provider_id="probe", image={}, program=("-c", _PROBE))
        for argv in (*command.prepare, command.argv):
            done = subprocess.run(  # noqa: S603 - our own command line
                argv, cwd=machine, env={"PATH": SEARCH_PATH}, capture_output=True, timeout=20, check=False
            )
            if done.returncode != 0:
                return done.stderr.decode("utf-8", "replace").strip()[-300:] or f"exit {done.returncode}"
        return "" if (machine / "probe").exists() else "the program could not write to its folder"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        shutil.rmtree(machine, ignore_errors=True)


SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _is_root() -> bool:
    return os.getuid() == 0


def _pythons() -> tuple[str, ...]:
    """Interpreters for the agent, best first: the host's own is readable for everybody, ours may lie in a home."""
    own = os.path.realpath(sys.executable)
    found = ["/usr/bin/python3"] if Path("/usr/bin/python3").exists() else []
    return tuple(dict.fromkeys([*found, own]))


def _prefix(python: str) -> Path:
    return Path(python).parent.parent
