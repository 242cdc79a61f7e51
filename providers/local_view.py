"""What a machine under bubblewrap sees of its host: an allow-list, all of it read-only.

    /usr, /bin, /lib...   programs and libraries; /usr/local/etc is left out
    /etc                  names, resolver, CA certificates (no keys), linker, locale, language runtimes; nothing else
    /sys                  as the host's: programs size themselves by it
    python                the interpreter's own folders, where they are not below /usr
    binds                 what the operator names

Without root the tree keeps the daemon's uid, so whatever is visible here and readable for the daemon is readable for
jobs: that is why nothing is visible that is not named. Homes, /opt, /srv, /var, /root and /run are empty or missing.
"""

import functools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Not profile.d, gitconfig, npmrc, pip.conf and the like: tokens are kept there. An operator may name them in `binds`.
_ETC = (
    *("alternatives", "bash.bashrc", "ca-certificates", "ca-certificates.conf", "crypto-policies", "debian_version"),
    *("ethertypes", "fonts", "gai.conf", "group", "host.conf", "hostname", "hosts", "inputrc", "java-*"),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload", "locale.alias", "locale.conf", "localtime"),
    *("login.defs", "lsb-release", "magic", "mailcap", "maven/logging", "maven/m2.conf", "mime.types", "networks"),
    *("nsswitch.conf", "os-release", "passwd", "perl", "pki/ca-trust", "pki/java", "pki/tls/cert.pem"),
    *("pki/tls/certs", "pki/tls/openssl.cnf", "profile", "protocols", "python*", "redhat-release", "resolv.conf"),
    *("rpc", "services", "shells", "ssl/cert.pem", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone", "xdg"),
)
_OURS = ("/", "/dev", "/machine", "/notices", "/proc", "/tmp", "/var/tmp")  # noqa: S108 - the machine's own
_SCRATCH_BYTES = 1 << 30
"""Each of the memory-backed folders, which else may take half of the host's memory each."""


def host_arguments() -> list[str]:
    """bwrap's arguments for what comes from every host, and for the folders that only look like a host's."""
    argv: list[str] = []
    for name in _SYSTEM:
        path = Path(name)
        if path.is_symlink():
            argv += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            argv += ["--ro-bind", name, name]
    if Path("/usr/local/etc").is_dir():
        argv += ["--tmpfs", "/usr/local/etc"]
    for pattern in _ETC:
        for path in sorted(Path("/etc").glob(pattern)):
            argv += ["--ro-bind-try", str(path), str(path)]
    argv += ["--ro-bind", "/sys", "/sys", "--proc", "/proc", "--dev", "/dev"]
    argv += [*_scratch("0755"), "/run", "--ro-bind-try", "/run/systemd/resolve", "/run/systemd/resolve"]
    argv += [*_scratch("1777"), "/dev/shm"]  # noqa: S108 - the machine's own
    argv += ["--dir", "/root", "--dir", "/home", "--symlink", "/run", "/var/run"]
    argv += ["--symlink", "/tmp", "/var/tmp"]  # noqa: S108 - the machine's own
    return argv


def named_arguments(python: str, binds: Sequence[Path], hidden: Path) -> list[str]:
    """bwrap's arguments for what this host alone has; they come last, as that may lie anywhere. What `hidden` holds is
    not shown, whatever it lies in."""
    argv: list[str] = []
    for path in (*_python_folders(python), *binds):
        argv += ["--ro-bind", str(path), str(path)]
    whole = [*(Path(name) for name in _SYSTEM), *_python_folders(python), *binds]
    if any(hidden.resolve().is_relative_to(path.resolve()) for path in whole if path.exists()):
        argv += ["--tmpfs", str(hidden)]
    return argv


def problem_with_bind(bind: Path) -> str:
    """What is wrong with a folder or file that an operator wants to be visible; empty: nothing."""
    if not bind.is_absolute() or ".." in bind.parts:
        return f"{bind} is not an absolute path"
    if str(bind) in _OURS:
        return f"{bind} is the machine's own"
    return "" if bind.exists() else f"{bind} does not exist on this host"


def _python_folders(python: str) -> list[Path]:
    """What an interpreter outside /usr needs: not its whole prefix, which may be a home."""
    if python.startswith("/usr/"):
        return []
    prefix = Path(sys.base_prefix)
    needed = [Path(python), *(prefix / name for name in ("bin", "lib", "lib64"))]
    return [path for path in needed if path.exists() and not path.is_relative_to("/usr")]


def _scratch(mode: str) -> list[str]:
    size = ["--size", str(_SCRATCH_BYTES)] if _bwrap_knows_size() else []
    return ["--perms", mode, *size, "--tmpfs"]


@functools.cache
def _bwrap_knows_size() -> bool:
    """bubblewrap 0.7 and newer do."""
    try:
        # Found on PATH, as the program that is run later is.
        done = subprocess.run(["bwrap", "--help"], capture_output=True, timeout=10, check=False)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"--size" in done.stdout + done.stderr


def own_folder(program: Path) -> Path | None:
    """A program in a folder of its own name (`gitlab-runner/gitlab-runner`) brings that folder; any other one is just
    a file: beside it may be anything."""
    return program.parent if program.parent.name == program.name else None
