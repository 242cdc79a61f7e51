"""Processes below another one, and their end."""

# pathlib alone would take a megabyte for every machine:
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import os


def descendants(root: int) -> list[int]:
    """Every process below `root`, from one look at /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it has just ended
            children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def kill(pid: int, number: int) -> None:
    """A process that is gone, or that became another user's (where the agent is not root), is left alone: it must not
    keep the rest from being ended."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
