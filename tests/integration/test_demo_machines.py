"""What belongs to a demo is found by its folder, ended, and nothing else is."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoscaler.sandbox.demo_machines import end_processes, processes_of

WAIT = "import sys; print('up', flush=True); sys.stdin.read()"


@contextmanager
def a_process(cwd: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process without a terminal that waits for the end of its input."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT, *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_process_is_found_by_its_arguments_environment_or_working_folder(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "demo", tmp_path / "other"
    folder.mkdir()
    elsewhere.mkdir()
    with (
        a_process(elsewhere, f"--config={folder}/config.toml") as by_argument,
        a_process(elsewhere, env={"TMPDIR": str(folder)}) as by_environment,
        a_process(folder) as by_cwd,
        a_process(elsewhere) as stranger,
    ):
        found = processes_of(folder)
        assert found == sorted((by_argument.pid, by_environment.pid, by_cwd.pid))
        assert stranger.pid not in found
    assert processes_of(folder) == []


async def test_ending_a_demo_kills_what_is_its_own_and_spares_the_rest(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "demo", tmp_path / "other"
    folder.mkdir()
    elsewhere.mkdir()
    with a_process(folder) as own, a_process(elsewhere) as stranger:
        assert await end_processes(folder) == 0
        assert await asyncio.to_thread(own.wait, 10) == -9
        assert stranger.poll() is None


def test_a_child_that_shows_no_folder_is_found_through_its_parent(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "demo", tmp_path / "other"
    folder.mkdir()
    elsewhere.mkdir()
    spawn = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'], cwd='/')\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", spawn],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert processes_of(folder) == sorted((parent.pid, child))
    finally:
        parent.kill()
        parent.communicate()  # closes the input that the child waits on too
