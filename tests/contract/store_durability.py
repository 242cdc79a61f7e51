"""A process that acknowledges webhooks until it, or its database, is killed; and what it acknowledged."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from autoscaler.store import open_store

ROOT = Path(__file__).parents[2]


async def acknowledged_until_killed(
    url: str, kill: Callable[[asyncio.subprocess.Process], Awaitable[None]], *, enough: int = 400
) -> set[str]:
    """Delivery ids acknowledged by a child that `kill` ends, in the middle of its work, after `enough` of them."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.contract.accepting_child",
        url,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert child.stdout is not None
    try:
        lines = [await child.stdout.readline() for _ in range(enough)]
        await kill(child)
        lines += (await child.stdout.read()).splitlines(keepends=True)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
    return {line.decode().strip() for line in lines if line.endswith(b"\n")}


async def waiting_deliveries(url: str) -> set[str]:
    """Delivery ids that a new process finds in the inbox."""
    store = open_store(url)
    await store.open()
    try:
        return {row.webhook.delivery_id for row in (await store.load()).inbox}
    finally:
        await store.aclose()
