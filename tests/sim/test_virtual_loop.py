"""The virtual-time loop keeps asyncio's promises, and gives each seed its own repeatable order."""

import asyncio
import time
from datetime import timedelta

import pytest

from autoscaler.simulate.virtual_loop import EPOCH, Deadlock, VirtualClock, VirtualTimeLoop, run_virtually


def test_a_day_of_sleeping_takes_no_time() -> None:
    async def main(loop: VirtualTimeLoop) -> float:
        await asyncio.sleep(86_400)
        return loop.time()

    started = time.monotonic()
    assert run_virtually(main) == pytest.approx(86_400)
    assert time.monotonic() - started < 5


def test_the_clock_is_the_epoch_plus_the_loops_time() -> None:
    async def main(loop: VirtualTimeLoop) -> None:
        clock = VirtualClock(loop)
        await clock.sleep(90)
        assert abs(clock.now() - (EPOCH + timedelta(seconds=90))) < timedelta(milliseconds=1)
        assert clock.monotonic() == pytest.approx(90)

    run_virtually(main)


def test_timeouts_fire_at_their_virtual_time() -> None:
    async def main(loop: VirtualTimeLoop) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7):
                await asyncio.Event().wait()
        assert loop.time() == pytest.approx(7)

    run_virtually(main)


def test_waiting_for_nothing_is_a_deadlock() -> None:
    async def main(_: VirtualTimeLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_virtually(main)


def test_time_stands_still_for_work_in_threads() -> None:
    async def main(loop: VirtualTimeLoop) -> float:
        async with asyncio.timeout(1):
            await asyncio.to_thread(time.sleep, 0.05)
        return loop.time()

    assert run_virtually(main) < 0.001


def test_time_stands_still_for_external_work() -> None:
    async def main(loop: VirtualTimeLoop) -> float:
        reader, writer = await asyncio.open_connection(sock=None, host="127.0.0.1", port=await served(loop))
        with loop.external():
            await reader.read(1)
        writer.close()
        return loop.time()

    async def served(loop: VirtualTimeLoop) -> int:
        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"x")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        return port

    assert run_virtually(main) < 0.001


async def _order(_: VirtualTimeLoop) -> tuple[int, ...]:
    seen: list[int] = []

    async def note(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)

    await asyncio.gather(*(note(number) for number in range(12)))
    return tuple(seen)


def test_ready_callbacks_keep_their_order_without_a_seed() -> None:
    assert run_virtually(_order) == tuple(range(12))


def test_a_seed_shuffles_and_repeats() -> None:
    first = run_virtually(_order, shuffle_seed=1)
    assert first == run_virtually(_order, shuffle_seed=1)
    assert sorted(first) == list(range(12))
    assert len({run_virtually(_order, shuffle_seed=seed) for seed in range(8)}) > 4
