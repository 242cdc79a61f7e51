"""How a local machine's tree is kept apart from its host: a ladder of rungs, probed; the first that works is used.

    bwrap    own pid, ipc, uts and mount namespaces; of the host only what `local_view` names, own /tmp and /machine
    unshare  own pid, ipc, uts and mount namespaces; the host's files as far as the tree's uid may read them
    process  nothing but a session; the supervisor is the subreaper of all that escapes

As root the tree runs under an unprivileged uid of its own where that works. Where the uid is the daemon's own, only
bwrap keeps jobs from the daemon's files, environment and secrets: "auto" never takes another rung then. The network is
the host's on every rung. None of this stops a job that is out to break the kernel.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from providers.local_view import host_arguments, named_arguments, own_folder

_log = structlog.get_logger(__name__)

RUNGS = ("bwrap", "unshare", "process")
UIDS = range(60600, 61184)
"""For trees that drop root, one each: no account, no dynamic user and no container has these (systemd's UIDS-GIDS)."""
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
    binds: tuple[Path, ...] = ()

    @property
    def hides_the_daemon(self) -> bool:
        """Whether jobs cannot read what only the daemon's user may."""
        return self.rung == "bwrap" or self.drops_root

    def command(self, instance: Path, *, uid: int, image: Mapping[str, str], program: Sequence[str]) -> TreeCommand:
        """The tree of one machine. `instance` is its folder on the host, with `machine` and `notices` in it; `uid` is
        taken where root is dropped; `program` is what follows the interpreter, with "{folder}" and "{notices}" for
        the two folders as the tree sees them."""
        machine, notices = instance / "machine", instance / "notices"
        folder = "/machine" if self.rung == "bwrap" else str(machine)
        seen_notices = "/notices" if self.rung == "bwrap" else str(notices)
        tmp = "/tmp" if self.rung == "bwrap" else str(machine / "tmp")  # noqa: S108 - the machine's own
        prepare, seen, binds = self._place_image(machine, folder, image)
        if self.drops_root:
            prepare.append(("chown", "-hR", f"{uid}:{uid}", str(machine)))
        argv: list[str] = []
        if self.rung == "bwrap":
            argv += [*self._bwrap(machine, notices), *binds, "--chdir", "/", "--"]
        elif self.rung == "unshare":
            argv += ["setpriv", "--pdeathsig", "KILL", "unshare", *([] if _is_root() else ["--user", "-c"])]
            argv += ["--pid", "--fork", "--kill-child", "--mount-proc", "--ipc", "--uts", "--"]
        if self.drops_root:
            argv += ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--no-new-privs"]
            argv += ["--pdeathsig", "KILL", "--"]  # asked for again: a change of user clears it
        elif self.rung == "process":
            argv += ["setpriv", "--pdeathsig", "KILL", "--"]
        argv += [self.python, "-I", "-S"]
        argv += [part.replace("{folder}", folder).replace("{notices}", seen_notices) for part in program]
        return TreeCommand(prepare=tuple(prepare), argv=tuple(argv), folder=folder, tmp=tmp, image=seen)

    def _bwrap(self, machine: Path, notices: Path) -> list[str]:
        argv = ["bwrap", "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        argv.append("--unshare-cgroup-try")
        if self.drops_root:
            argv += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            argv += ["--unshare-user", *(("--uid", "1000", "--gid", "1000") if _is_root() else ())]
        argv += host_arguments()
        argv += ["--bind", str(machine / "tmp"), "/tmp"]  # noqa: S108 - the machine's own
        argv += named_arguments(self.python, self.binds, hidden=self.state_dir)
        return [*argv, "--ro-bind", str(notices), "/notices", "--bind", str(machine), "/machine"]

    def problem_with_image(self, image: Mapping[str, str]) -> str:
        """Why machines cannot be given this image; empty: they can."""
        state_dir = self.state_dir.resolve()
        for key, path in image.items():
            folder = Path(path) if key == "github_runner" else own_folder(Path(path))
            if folder is not None and state_dir.is_relative_to(folder.resolve()):
                return f"image.{key}: {folder} holds the machines' state folder {self.state_dir}"
        return ""

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
                # Its path may lie in a folder that the machine does not see.
                seen[key] = f"/machine/image/{key}/{source.name}"
                prepare.append(("mkdir", "-p", str(machine / "image" / key)))  # a mount point that bwrap made is root's
                if (folder_of_it := own_folder(source)) is not None:
                    binds += ["--ro-bind", str(folder_of_it), f"/machine/image/{key}"]
                else:
                    prepare.append(("touch", str(machine / "image" / key / source.name)))
                    binds += ["--ro-bind", str(source), seen[key]]
        return prepare, seen, binds


def probe(state_dir: Path, wanted: str, binds: tuple[Path, ...] = ()) -> Isolation:
    """The first rung from `wanted` ("auto": the top) that runs a small program here. Each step down is logged.

    Raises OSError when none does; "auto" does not count those on which jobs could read the daemon's secrets.
    """
    failed = ""
    for isolation in candidates(state_dir, wanted, binds=binds, is_root=_is_root()):
        if failed not in ("", isolation.rung):
            _log.warning("isolation_fell_back", from_rung=failed)
        if not (problem := _try(isolation)):
            _announce(isolation)
            return isolation
        failed = isolation.rung
        tried = {"isolation": failed, "drops_root": isolation.drops_root, "python": isolation.python}
        _log.info("isolation_probe_failed", **tried, why=problem)
    if wanted == "auto":
        raise OSError(
            "no isolation works here that keeps jobs from the daemon's own files and secrets: install bubblewrap (and "
            'allow user namespaces), or trust every job and say isolation = "process": jobs run as the daemon\'s user '
            "then, and can read its environment, keys and database"
        )
    raise OSError(f'"{wanted}" does not work here: see isolation_probe_failed in the log')


def candidates(state_dir: Path, wanted: str, *, binds: tuple[Path, ...], is_root: bool) -> Iterator[Isolation]:
    """What may be used, best first."""
    for rung in RUNGS if wanted == "auto" else (wanted,):
        for drops_root in (True, False) if is_root else (False,):
            for python in _pythons():
                found = Isolation(rung=rung, drops_root=drops_root, python=python, state_dir=state_dir, binds=binds)
                if wanted != "auto" or found.hides_the_daemon:
                    yield found


def _announce(isolation: Isolation) -> None:
    if _is_root() and not isolation.drops_root and isolation.rung != "bwrap":
        _log.warning("local_machines_run_as_root", isolation=isolation.rung)
    elif not isolation.hides_the_daemon:
        meaning = "jobs run as the daemon's user and can read its environment, keys and database"
        _log.warning("local_machines_share_the_daemons_user", isolation=isolation.rung, meaning=meaning)


def _try(isolation: Isolation) -> str:
    """Run the probe on a rung; returns what went wrong, or nothing."""
    instance = isolation.state_dir / f".probe-{os.getpid()}-{os.urandom(4).hex()}"
    make_folders(instance)
    try:
        command = isolation.command(instance, uid=UIDS[-1], image={}, program=("-c", _PROBE))
        for argv in (*command.prepare, command.argv):
            done = subprocess.run(  # noqa: S603 - our own command line
                argv, cwd=instance, env={"PATH": SEARCH_PATH}, capture_output=True, timeout=20, check=False
            )
            if done.returncode != 0:
                return done.stderr.decode("utf-8", "replace").strip()[-300:] or f"exit {done.returncode}"
        return "" if (instance / "machine" / "probe").exists() else "the program could not write to its folder"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        shutil.rmtree(instance, ignore_errors=True)


def make_passable(folder: Path) -> None:
    """Make a folder that trees of any uid may pass through, whatever the umask; one that is there stays as it is."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)


def make_folders(instance: Path) -> None:
    """Make a machine's folders, whatever the umask: its tree may have another uid and passes through the first."""
    for folder, mode in ((instance, 0o711), (instance / "machine", 0o700), (instance / "notices", 0o755)):
        folder.mkdir()
        folder.chmod(mode)


SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _is_root() -> bool:
    return os.getuid() == 0


def _pythons() -> tuple[str, ...]:
    """Interpreters for the agent, best first: the host's own is readable for everybody, ours may lie in a home."""
    own = os.path.realpath(sys.executable)
    found = ["/usr/bin/python3"] if Path("/usr/bin/python3").exists() else []
    return tuple(dict.fromkeys([*found, own]))
