"""`autoscaler demo` as a child of a test: started, watched on stderr, its report read from stdout, its traces found."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoscaler.sandbox.demo_machines import processes_of

PID = re.compile(r"daemon pid (\d+), status page (http://\S+)/login#token=(\S+)")


@dataclass(slots=True, kw_only=True)
class DemoProcess:
    """The running demo. `folder` is where it makes its own folder; `lines` is what it said so far on stderr."""

    process: asyncio.subprocess.Process
    folder: Path
    lines: list[str] = field(default_factory=list)
    said: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def wait_for(self, pattern: str, *, timeout_s: float = 40.0, after: int = 0) -> re.Match[str]:
        """The first line from number `after` on that matches. Raises TimeoutError with what was said."""
        try:
            async with asyncio.timeout(timeout_s), self.said:
                while True:
                    for line in self.lines[after:]:
                        if (match := re.search(pattern, line)) is not None:
                            return match
                    await self.said.wait()
        except TimeoutError:
            raise TimeoutError(f"nothing like {pattern!r} in\n" + "\n".join(self.lines)) from None

    def daemon_pids(self) -> list[int]:
        return [int(match[1]) for line in self.lines if (match := PID.search(line)) is not None]

    def own_folders(self) -> list[Path]:
        """What the demo made in its temporary folder."""
        return list(self.folder.glob("autoscaler-demo-*"))

    async def report(self, *, timeout_s: float = 100.0) -> dict[str, Any]:
        """Wait for the end; the JSON document on stdout. stdout must hold nothing else."""
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout_s):
            text = await self.process.stdout.read()
            await self.process.wait()
        try:
            document = json.loads(text)
        except ValueError:
            raise AssertionError(f"stdout is no JSON document: {text!r}\n" + "\n".join(self.lines)) from None
        assert isinstance(document, dict)
        return document

    def assert_nothing_left(self) -> None:
        assert self.own_folders() == []
        assert processes_of(self.folder) == []


@asynccontextmanager
async def running_demo(folder: Path, *arguments: str) -> AsyncIterator[DemoProcess]:
    """`autoscaler demo --json ARGUMENTS` with its temporary files below `folder`; killed with all it has at exit."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "autoscaler", "demo", "--json", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
        start_new_session=True,
    )
    demo = DemoProcess(process=process, folder=folder)
    reader = asyncio.create_task(_read(demo))
    try:
        yield demo
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for pid in processes_of(folder):
            os.kill(pid, signal.SIGKILL)
        await reader


async def _read(demo: DemoProcess) -> None:
    assert demo.process.stderr is not None
    async for line in demo.process.stderr:
        async with demo.said:
            demo.lines.append(line.decode(errors="replace").rstrip("\n"))
            demo.said.notify_all()
