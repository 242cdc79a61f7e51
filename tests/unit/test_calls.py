"""The bridge to blocking SDKs: bounded threads that time out, and the limiters."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.calls import Calls, GateBusy, TokenBucket, WindowLimit


@pytest.fixture
async def calls() -> AsyncIterator[Calls]:
    made = Calls()
    yield made
    await made.aclose(grace_s=5)


async def test_call_returns_the_result_from_another_thread(calls: Calls) -> None:
    def where(first: int, *, second: int) -> tuple[int, str]:
        return first + second, threading.current_thread().name

    result, thread = await calls.gate("sdk", threads=1).call(where, 1, second=2, timeout_s=5)

    assert result == 3
    assert thread == "sdk-1"


async def test_what_the_function_raises_reaches_the_caller(calls: Calls) -> None:
    def fail() -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        await calls.gate("sdk", threads=1).call(fail, timeout_s=5)


async def test_no_more_calls_run_than_the_gate_has_threads(calls: Calls) -> None:
    running, most, lock, together = 0, 0, threading.Lock(), threading.Barrier(3)

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(5)
        with lock:
            running -= 1

    gate = calls.gate("sdk", threads=3)
    await asyncio.gather(*(gate.call(work, timeout_s=10) for _ in range(12)))

    assert most == 3


async def test_timed_out_call_goes_on_and_keeps_its_slot_until_it_returns(calls: Calls) -> None:
    gate, release, effects = calls.gate("sdk", threads=1), threading.Event(), []

    def hang() -> None:
        release.wait(10)
        effects.append("done")

    with pytest.raises(TimeoutError, match="hang"):
        await gate.call(hang, timeout_s=0.05)
    with pytest.raises(GateBusy):
        await gate.call(effects.append, "second", timeout_s=0.05)
    release.set()
    await gate.call(effects.append, "third", timeout_s=5)

    assert effects == ["done", "third"]


async def test_waiting_for_a_slot_can_be_cancelled(calls: Calls) -> None:
    gate, release = calls.gate("sdk", threads=1), threading.Event()
    called: list[int] = []
    first = asyncio.create_task(gate.call(release.wait, 10, timeout_s=10))
    waiting = asyncio.create_task(gate.call(called.append, 1, timeout_s=10))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    await first

    assert called == []


async def test_closing_does_not_wait_for_a_stuck_call_and_names_it() -> None:
    calls, release = Calls(), threading.Event()

    def stuck_call() -> None:
        release.wait(30)

    with pytest.raises(TimeoutError):
        await calls.gate("cloud", threads=2).call(stuck_call, timeout_s=0.01)
    stuck = await calls.aclose(grace_s=0.01)
    release.set()

    assert [(call.gate, call.function.rpartition(".")[2]) for call in stuck] == [("cloud", "stuck_call")]


async def test_closed_gate_refuses_calls(calls: Calls) -> None:
    gate = calls.gate("sdk", threads=1)
    await calls.aclose()

    with pytest.raises(RuntimeError, match="closed"):
        await gate.call(int, timeout_s=1)


def test_virtual_time_loop_is_told_of_work_outside_of_it() -> None:
    class MarkedLoop(asyncio.SelectorEventLoop):
        depth = 0

        @contextlib.contextmanager
        def external(self) -> Iterator[None]:
            self.depth += 1
            try:
                yield
            finally:
                self.depth -= 1

    loop: Any = MarkedLoop()

    async def journey() -> tuple[int, int]:
        calls = Calls()
        inside = await calls.gate("sdk", threads=1).call(lambda: loop.depth, timeout_s=5)
        await calls.aclose()
        return inside, loop.depth

    try:
        assert loop.run_until_complete(journey()) == (1, 0)
    finally:
        loop.close()


def test_bucket_gives_its_store_then_its_refill() -> None:
    bucket = TokenBucket(capacity=2, refill_per_s=0.5, now=0)

    assert bucket.take(1, 0)
    assert bucket.take(1, 0)
    assert not bucket.take(1, 0)
    assert bucket.wait_s(1, 0) == 2
    assert bucket.take(1, 2)


def test_bucket_believes_the_server_until_its_window_resets() -> None:
    bucket = TokenBucket(capacity=5000, refill_per_s=5000 / 3600, now=0)

    bucket.observe(remaining=3, limit=60, resets_in_s=100, now=10)

    assert bucket.level(50) == 3
    assert bucket.wait_s(4, 50) == 60
    assert bucket.level(110) == 60
    assert bucket.wait_s(61, 50) == float("inf")


def test_blocked_bucket_gives_nothing_until_the_pause_is_over() -> None:
    bucket = TokenBucket(capacity=10, refill_per_s=1, now=0)
    bucket.block(30, 0)

    assert bucket.level(29) == 0
    assert bucket.wait_s(1, 10) == 20
    assert bucket.take(1, 30)


def test_window_gives_back_what_was_taken_when_it_is_over() -> None:
    limit = WindowLimit(limit=2, window_s=60)

    assert [limit.take(0), limit.take(10), limit.take(20)] == [True, True, False]
    assert limit.wait_s(20) == 40
    assert limit.take(60)
    assert limit.level(60) == 0


@given(st.lists(st.floats(0, 30), max_size=120))
def test_no_window_ever_holds_more_than_the_limit(gaps: list[float]) -> None:
    limit, now, taken = WindowLimit(limit=5, window_s=60), 0.0, []
    for gap in gaps:
        now += gap
        if limit.take(now):
            taken.append(now)

    assert all(sum(1 for other in taken if start <= other < start + 60) <= 5 for start in taken)
