"""A listener under strangers: mute connections, too many of them, more bodies than there is room for."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import aiohttp
from aiohttp import web

from autoscaler.clock import SystemClock
from autoscaler.config_types import Address
from autoscaler.http.agent_routes import make_agent_routes
from autoscaler.http.agents import AgentDesk
from autoscaler.http.limits import BodyBudget, ConnectionLimits, address_key
from autoscaler.http.listener import listen
from autoscaler.http.webhooks import make_webhook_routes
from autoscaler.live import LiveRows
from autoscaler.metrics import Metrics
from autoscaler.model import InstanceState
from autoscaler.spi import Forge, ForgeName
from autoscaler.store.memory import MemoryStore
from tests.admin_world import instance, rules_of
from tests.polling import until
from tests.unit.observing import NOW

GITHUB = ForgeName("github")


class NoForge:
    """Its bodies never come to their end."""

    name = GITHUB


@asynccontextmanager
async def listening(limits: ConnectionLimits, bodies: BodyBudget | None = None) -> AsyncIterator[int]:
    """The port of a listener with webhooks and a page that answers at once."""

    async def fine(_: web.Request) -> web.Response:
        return web.Response(text="fine")

    app = web.Application(client_max_size=0)
    app.router.add_get("/", fine)
    forges = {GITHUB: cast(Forge, NoForge())}
    app.add_routes(
        make_webhook_routes(forges, MemoryStore(), Metrics(), SystemClock(), lambda *_: None, bodies or BodyBudget())
    )
    runner = await listen(app, Address(host="127.0.0.1", port=0), tls=None, name="test", limits=limits)
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the other side closed the connection without a word."""
    try:
        async with asyncio.timeout(10):
            return await reader.read(1) == b""
    except ConnectionError:
        return True


async def test_a_connection_that_asks_nothing_is_closed() -> None:
    async with listening(ConnectionLimits(total=10, head_timeout_s=0.2)) as port:
        for begin in (b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begin)
            assert await ended(reader)
            writer.close()


async def test_a_connection_that_has_asked_stays_open_for_more() -> None:
    limits = ConnectionLimits(total=10, head_timeout_s=0.2)
    async with listening(limits) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"fine")
        mute, mute_writer = await asyncio.open_connection("127.0.0.1", port)
        assert await ended(mute)
        mute_writer.close()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"fine")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_more_connections_than_the_limit_are_turned_away_until_one_ends() -> None:
    limits = ConnectionLimits(total=2)
    async with listening(limits) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        await until(lambda: limits.open == 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await ended(reader)
        writer.close()
        held[0][1].close()
        await until(lambda: limits.open == 1)
        async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}/") as answer:
            assert answer.status == 200
        held[1][1].close()
    assert limits.open == 0


async def test_bodies_of_strangers_share_one_budget_and_give_it_back() -> None:
    budget = BodyBudget(100_000)
    async with listening(ConnectionLimits(total=100), budget) as port:
        head = b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        for _, writer in connections:
            writer.write(head + b"Content-Length: 900000\r\n\r\n" + b"x" * 30_000)
        answered = [asyncio.create_task(reader.readline()) for reader, _ in connections]
        done, _ = await asyncio.wait(answered, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().split()[1] for task in done} == {b"503"}
        assert budget.left >= 0
        for task in answered:
            task.cancel()
        for _, writer in connections:
            writer.close()
        await until(lambda: budget.left == 100_000)


class Strangers(ConnectionLimits):
    """Loopback is an address like any other."""

    def _key(self, peer: str) -> str:
        return address_key(peer)


async def test_a_fleet_behind_one_address_holds_as_many_connections_as_it_has_machines() -> None:
    rows, keys = LiveRows(MemoryStore()), [f"{number:064x}" for number in range(1, 31)]
    for number, key in enumerate(keys, 1):
        claim = hashlib.sha256(bytes.fromhex(key)).hexdigest()
        rows.add_instance(instance(number, NOW, InstanceState.READY, version=0, claim=claim), cause="test")
    desk = AgentDesk(rows, {}, SystemClock(), rules=lambda: rules_of(), report=lambda _: None)
    limits = Strangers(total=100, per_address=5)
    app = web.Application(client_max_size=0)
    app.add_routes(make_agent_routes(desk, b""))
    runner = await listen(app, Address(host="127.0.0.1", port=0), tls=None, name="test", limits=limits)
    port, held = runner.addresses[0][1], []

    async def call(key: str) -> bytes:
        held.append(await asyncio.open_connection("127.0.0.1", port))
        reader, writer = held[-1]
        head = f"POST /agent/v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        told = {"seq": 1, "at": 1.0, "kind": "heartbeat", "detail": {}}
        body = json.dumps({"instance": f"i-{int(key, 16):04x}", "events": [told]})
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        async with asyncio.timeout(10):
            return (await reader.readline()).split()[1]

    assert [await call(key) for key in keys] == [b"200"] * 30
    assert [await call("ff") for _ in range(5)] == [b"401"] * 5
    assert await ended((await asyncio.open_connection("127.0.0.1", port))[0]), "strangers have no more room than before"
    assert limits.open == 35
    for _, writer in held:
        writer.close()
    await until(lambda: limits.open == 0)
    assert (limits.by_address, limits.by_caller) == ({}, {})
    await runner.cleanup()
