"""The agent's command line: `python -I -S agent.pyz --folder F --boot FILE --evidence local|aws|gce`, and for local
`--instance ID --key-fd N [--notice FILE]`.

Everything here may be seen in the process list, so it carries no secret: the key comes through the pipe `--key-fd`.
"""

# pathlib alone would take a megabyte for every machine:
# ruff: noqa: PTH100, PTH123

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

from runners.agent.host import Host, aws_host, gce_host, local_host
from runners.agent.life import Life, log

_OPTIONS = ("--folder", "--boot", "--evidence", "--instance", "--key-fd", "--notice")


def hear_interrupts() -> None:
    """Whoever started us may ignore SIGINT (nohup, a shell's background jobs), and children inherit that: the runner
    would never hear that it must stop (actions/runner issue 2582)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main(argv: list[str]) -> int:
    """Exit codes: 0 the machine's life is over, 2 the command line or the boot document is wrong."""
    options = dict(zip(argv[::2], argv[1::2]))  # noqa: B905 - strict= is not in Python 3.9
    if len(argv) % 2 or any(name not in _OPTIONS for name in options):
        print(f"usage: agent {' X '.join(_OPTIONS)} X", file=sys.stderr)
        return 2
    _forbid_inspection()
    hear_interrupts()
    threading.stack_size(256 * 1024)
    try:
        folder = os.path.abspath(options["--folder"])
        with open(options["--boot"], encoding="utf-8") as file:
            boot = json.load(file)
        os.chdir(folder)
        life = Life(boot, folder=folder, host=_host(options, boot))
    except (KeyError, ValueError, OSError) as error:
        log(f"cannot start: {type(error).__name__}: {error}")
        return 2
    life.run()
    return 0


def _host(options: dict[str, str], boot: dict[str, Any]) -> Host:
    kind = options["--evidence"]
    if kind == "local":
        return local_host(options["--instance"], int(options["--key-fd"]), options.get("--notice", ""))
    if kind == "aws":
        return aws_host()
    if kind == "gce":
        return gce_host(boot["daemon_url"])
    raise ValueError(f"unknown evidence {kind!r}")


def _forbid_inspection() -> None:
    """Keep jobs of the same user from reading the claim key in this process (PR_SET_DUMPABLE: no ptrace, no core)."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        log("cannot forbid the inspection of this process")
