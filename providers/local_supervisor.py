"""The supervisor of one local machine: a small process that starts its tree, outlives the daemon and ends the tree.

Run as a script (`python -I -S local_supervisor.py FOLDER KEY_FD`), standard library only, few imports: there is one per
machine. Its folder is its whole world:

    spec.json        what to run, written before the start     supervisor.json  our pid, before the tree starts
    alive            locked for as long as we live             running          exists once the tree runs
    terminate        somebody wants the end (SIGTERM)          interrupt.json   a reclaim is announced (SIGUSR1)
    machine/         the machine's own, removed at the end     end.json         how it ended; nothing of it is left
    notices/         ours; the machine may look: notice.json

Jobs may write anything into `machine/`, links to files of ours included, so nothing in there is ever opened from here.
As a subreaper it inherits whatever escapes by a double fork, so the end is certain: it kills and reaps until it has
no child.
"""

# pathlib alone would take a megabyte for every machine:
# ruff: noqa: PTH102, PTH106, PTH110, PTH123, PTH208

import ctypes
import fcntl
import json
import os
import signal
import sys
import time
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_WAKERS = {signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1}
_FOREVER_S = 3600.0
_ENTER = 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"'


class Ended(Exception):
    """The machine's life is over; the text says how."""


class Supervisor:
    """Owns one tree. Current folder is the instance's folder."""

    def __init__(self, spec: dict[str, Any], key_fd: int) -> None:
        self._spec = spec
        self._key_fd = key_fd
        self._main_pid = 0
        self._main_status: int | None = None
        self._reclaim_at: float | None = None
        self._die_at = time.monotonic() + float(spec["max_lifetime_s"])

    def run(self) -> str:
        """The machine's whole life; returns how it ended."""
        try:
            self._heed_files()
            self._wait(time.monotonic() + float(self._spec["boot_delay_s"]))
            for argv in self._spec["prepare"]:
                status = os.waitpid(self._spawn(argv), 0)[1]
                if status != 0:
                    raise Ended(f"{argv[0]} failed")
            self._heed_files()
            os.set_inheritable(self._key_fd, True)
            argv = [part.replace("{key_fd}", str(self._key_fd)) for part in self._spec["argv"]]
            self._main_pid = self._spawn([*make_cgroups(self._spec["cgroups"]), *argv])
            os.close(self._key_fd)
            write(".", "running", "")
            while True:
                self._wait(time.monotonic() + _FOREVER_S)
        except Ended as ended:
            return str(ended)
        except OSError as error:
            return f"cannot run: {error.strerror}"

    def _spawn(self, argv: list[str]) -> int:
        return os.posix_spawnp(
            argv[0], argv, self._spec["env"], setsigmask=[], setsigdef=list(_WAKERS | {signal.SIGINT, signal.SIGPIPE})
        )

    def _wait(self, until: float) -> None:
        """Serve signals until a time. Raises Ended."""
        while (now := time.monotonic()) < until:
            deadline = min(until, self._die_at, self._reclaim_at or until)
            woken = signal.sigtimedwait(_WAKERS, max(0.0, deadline - now))
            self._reap()
            if self._main_status is not None:
                code = os.waitstatus_to_exitcode(self._main_status)
                raise Ended(f"exit {code}" if code >= 0 else f"signal {-code}")
            if woken is not None and woken.si_signo in (signal.SIGTERM, signal.SIGUSR1):
                self._heed_files()
            if self._reclaim_at is not None and time.monotonic() >= self._reclaim_at:
                raise Ended("reclaimed")
            if time.monotonic() >= self._die_at:
                raise Ended("max_lifetime")

    def _heed_files(self) -> None:
        """The files are the truth, a signal only wakes: one that came before we listened is not lost."""
        if os.path.exists("terminate"):
            raise Ended("terminated")
        if self._reclaim_at is None and os.path.exists("interrupt.json"):
            with open("interrupt.json", encoding="utf-8") as file:
                reclaim = json.load(file)
            left_s = max(0.0, float(reclaim["reclaim_at"]) - time.time())
            self._reclaim_at = time.monotonic() + left_s
            if reclaim["is_announced"]:
                try:
                    write("notices", "notice.json", json.dumps({"reclaim_at": reclaim["reclaim_at"]}), mode=0o644)
                except OSError as error:  # a job may have filled the disk: it is reclaimed on time all the same
                    print(f"cannot announce: {error.strerror}", file=sys.stderr)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._main_pid:
                self._main_status = status

    def end_tree(self) -> None:
        """Kill and reap until nothing is left below us."""
        while True:
            for pid in descendants(os.getpid()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self._reap()
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            signal.sigtimedwait({signal.SIGCHLD}, 0.02)

    def remove_folder(self) -> None:
        """Remove the machine's folder; a job may have left folders that even their owner cannot write."""
        for argv in (["rm", "-rf", "machine"], ["chmod", "-R", "u+rwX", "machine"], ["rm", "-rf", "machine"]):
            if os.path.exists("machine"):
                os.waitpid(self._spawn(argv), 0)


def make_cgroups(cgroups: list[dict[str, Any]]) -> list[str]:
    """Make the groups that bound this machine; returns the command that enters them and then becomes what follows.
    One that cannot be made is left out: a bound is no wall, and the machine is wanted."""
    entrances = []
    for cgroup in cgroups:
        try:
            os.mkdir(cgroup["folder"])
            for name, value in cgroup["files"].items():
                with open(f"{cgroup['folder']}/{name}", "w", encoding="ascii") as file:
                    file.write(value)
        except OSError as error:
            print(f"no bound: {cgroup['folder']}: {error.strerror}", file=sys.stderr)
        else:
            entrances.append(f"{cgroup['folder']}/cgroup.procs")
    return ["sh", "-c", _ENTER, "enter", *entrances, "--"] if entrances else []


def remove_cgroups(cgroups: list[dict[str, Any]]) -> None:
    """End what is left in a machine's groups, and the groups."""
    for cgroup in cgroups:
        for _ in range(50):
            try:
                with open(f"{cgroup['folder']}/cgroup.procs", encoding="ascii") as file:
                    for pid in map(int, file.read().split()):
                        if pid > 0:  # 0 is one that we cannot see; to kill(2) it would be our own group
                            os.kill(pid, signal.SIGKILL)
                os.rmdir(cgroup["folder"])
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.02)  # one that was killed is not gone yet
            else:
                break


def descendants(root: int) -> list[int]:
    """Every process below `root`, from one look at /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since the boot; with the pid it names a process for good. 0: no such."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def write(folder: str, name: str, text: str, *, mode: int = 0o600) -> None:
    """Write a file so that readers see all of it or none. What is there already is replaced, never opened: a link or a
    pipe in our way leads nowhere and stops nobody."""
    temporary = f".{name}-{os.urandom(8).hex()}"
    within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, mode, dir_fd=within), "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
        os.replace(temporary, name, src_dir_fd=within, dst_dir_fd=within)
    finally:
        os.close(within)


def _detach(folder: str) -> None:
    """Leave the daemon's session and its standard streams."""
    os.setsid()
    os.chdir(folder)
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open("machine.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _lock(alive: int) -> bool:
    """Take the lock that says we live. The provider holds it for a moment to look; another supervisor keeps it."""
    for _ in range(50):
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def main(folder: str, key_fd: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAKERS)
    if os.fork():
        os._exit(0)
    _detach(folder)
    alive = os.open("alive", os.O_RDWR | os.O_CREAT, 0o600)
    if not _lock(alive) or os.path.exists("end.json") or os.path.exists("supervisor.json"):
        return  # not the first one, or given up before we came
    write(".", "supervisor.json", json.dumps({"pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}))
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with open("spec.json", encoding="utf-8") as file:
        spec = json.load(file)
    supervisor = Supervisor(spec, key_fd)
    detail = supervisor.run()
    supervisor.end_tree()
    remove_cgroups(spec["cgroups"])
    supervisor.remove_folder()
    write(".", "end.json", json.dumps({"detail": detail, "at": time.time()}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
