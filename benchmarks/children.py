"""Child processes that a benchmark measures or needs, and what they may be asked: both ends of one pipe.

A child is a module of this package with `main(options) -> handlers`; calls are lines of JSON over stdin and stdout, so
that they are no load on what is measured over HTTP. A child ends when its stdin does: none outlives the benchmark.
"""

import asyncio
import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Self

Handlers = Mapping[str, Callable[..., Awaitable[Any]]]

_LINE = 1 << 28
_START_S = 60.0
_END_S = 30.0


class ChildFailed(Exception):
    """A child ended or answered with an error; the text is its own."""


class Child:
    """A running child. `log` holds what it wrote to stderr."""

    def __init__(self, process: asyncio.subprocess.Process, module: str, log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._module = module
        self._log = log
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, module: str, *, log: Path, **options: Any) -> tuple[Self, Any]:
        """Start `benchmarks.<module>`; returns the child and what it said when it was ready."""
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "benchmarks.children",
                module,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                limit=_LINE,
            )
        child = cls(process, module, log)
        async with asyncio.timeout(_START_S):
            return child, await child.call("start", **options)

    async def call(self, name: str, /, **arguments: Any) -> Any:
        """Ask the child. Raises ChildFailed."""
        id_ = next(self._ids)
        answer = self._answers[id_] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": id_, "call": name, "arguments": arguments}).encode() + b"\n")
        return await answer

    async def usage(self) -> "Usage":
        return Usage(**await self.call("usage"))

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            answer = self._answers.pop(told["id"])
            if answer.done():
                continue
            if "error" in told:
                answer.set_exception(ChildFailed(f"{self._module}: {told['error']}"))
            else:
                answer.set_result(told["result"])
        tail = self._log.read_text(errors="replace")[-2000:]
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ChildFailed(f"{self._module} ended; its log ends with:\n{tail}"))


class Usage:
    """CPU seconds and resident memory of a process so far."""

    def __init__(self, *, cpu_s: float, rss_mb: float, peak_rss_mb: float) -> None:
        self.cpu_s = cpu_s
        self.rss_mb = rss_mb
        self.peak_rss_mb = peak_rss_mb


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory of a process, now and at its peak, in MB of 10^6 bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {name: value for name, _, value in (line.partition(":") for line in lines)}
    now, peak = (float(found[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    return now, peak


# --------------------------------------------------------------------------- the child's end


async def _usage() -> dict[str, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    now, peak = memory_mb(os.getpid())
    return {"cpu_s": used.ru_utime + used.ru_stime, "rss_mb": now, "peak_rss_mb": peak}


async def _serve(start: Callable[..., Awaitable[tuple[Any, Handlers, Callable[[], Awaitable[None]]]]]) -> None:
    """Answer calls until stdin ends. `start(**options)` gives the ready message, the handlers and how to close."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what anybody prints must not end up between the answers
    handlers: dict[str, Callable[..., Awaitable[Any]]] = {"usage": _usage}
    close: Callable[[], Awaitable[None]] | None = None
    tasks: set[asyncio.Task[None]] = set()

    async def answer(asked: dict[str, Any]) -> None:
        nonlocal close
        told: dict[str, Any] = {"id": asked["id"]}
        try:
            if asked["call"] == "start":
                told["result"], more, close = await start(**asked["arguments"])
                handlers.update(more)
            else:
                told["result"] = await handlers[asked["call"]](**asked["arguments"])
        except Exception as error:
            told["error"] = f"{asked['call']}: {type(error).__name__}: {error}"
        out.write(json.dumps(told).encode() + b"\n")
        out.flush()

    while line := await reader.readline():
        task = asyncio.create_task(answer(json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if close is not None:
        await close()


def _main() -> None:
    from importlib import import_module

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(import_module(f"benchmarks.{sys.argv[1]}").start))


if __name__ == "__main__":
    _main()
