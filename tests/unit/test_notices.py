"""Hearing clouds: acknowledged once durable, repeated after failures, and silent machines looked at in one call."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, cast

from autoscaler.facts import Fact, MachinesDescribed, NoticeArrived
from autoscaler.live import LiveRows
from autoscaler.loop import Loop
from autoscaler.model import InstanceState, Interruption
from autoscaler.notices import NoticeWatch
from autoscaler.simulate.virtual_loop import VirtualClock, run_virtually
from autoscaler.spi import (
    CloudInstance,
    InstanceId,
    MachineState,
    Notice,
    NoticeKind,
    Provider,
    ProviderError,
    ProviderId,
    ProviderStatus,
)
from autoscaler.store.memory import MemoryStore
from tests.admin_world import instance
from tests.unit.observing import CLOUD, NOW, listed_machine, provider_id

S = InstanceState


@dataclass
class Queue:
    """The part of a provider that hears and describes, as a script: an error is raised, an answer is given once."""

    script: list[Sequence[Notice] | Exception] = field(default_factory=list)
    acknowledged: list[Notice] = field(default_factory=list)
    shown: dict[ProviderId, CloudInstance] = field(default_factory=dict)
    asked: list[tuple[float, tuple[ProviderId, ...]]] = field(default_factory=list)
    describe_fails: bool = False
    troubles: tuple[str, ...] = ()

    async def notices(self) -> Sequence[Notice]:
        if not self.script:
            return ()
        told = self.script.pop(0)
        if isinstance(told, Exception):
            raise told
        return told

    async def ack(self, notices: Sequence[Notice]) -> None:
        self.acknowledged += notices

    async def describe(self, ids: Sequence[ProviderId]) -> Sequence[CloudInstance]:
        self.asked.append((asyncio.get_running_loop().time(), tuple(ids)))
        if self.describe_fails:
            raise ProviderError("the cloud does not answer")
        return [self.shown[id_] for id_ in ids if id_ in self.shown]

    def status(self) -> ProviderStatus:
        return ProviderStatus(troubles=self.troubles)


@dataclass
class Mailbox:
    """What of the loop is used: it takes facts, and says when they are durable."""

    facts: list[Fact] = field(default_factory=list)
    durable: asyncio.Event = field(default_factory=asyncio.Event)

    def report(self, fact: Fact) -> None:
        self.facts.append(fact)

    async def consumed(self) -> None:
        await self.durable.wait()


@dataclass
class Stand:
    """A watch over a queue, rows and a mailbox, on the virtual clock."""

    queue: Queue
    rows: LiveRows
    mailbox: Mailbox
    watch: NoticeWatch
    clock: VirtualClock
    heard: dict[InstanceId, datetime]

    def have(self, *numbers: int, state: InstanceState = S.BUSY) -> None:
        """Machines whose agents were heard just now."""
        for number in numbers:
            row = instance(number, self.clock.now(), state, version=0, provider_id=provider_id(number), claim="ab" * 32)
            self.heard[self.rows.add_instance(row, cause="test").id] = self.clock.now()
            self.queue.shown[provider_id(number)] = replace(listed_machine(number), provider=CLOUD)

    @property
    def described(self) -> list[MachinesDescribed]:
        return [fact for fact in self.mailbox.facts if isinstance(fact, MachinesDescribed)]


def live(play: Callable[[Stand], Any]) -> None:
    async def main(loop: Any) -> None:
        clock = VirtualClock(loop)
        rows, queue, mailbox = LiveRows(MemoryStore()), Queue(), Mailbox()
        heard: dict[InstanceId, datetime] = {}
        watch = NoticeWatch(
            loop=cast(Loop, mailbox),
            rows=rows,
            providers={CLOUD: cast(Provider, queue)},
            heard_at=heard.get,
            clock=clock,
        )
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(_run(watch))
            await play(Stand(queue=queue, rows=rows, mailbox=mailbox, watch=watch, clock=clock, heard=heard))
            watching.cancel()

    run_virtually(main, shuffle_seed="notices")


async def _run(watch: NoticeWatch) -> None:
    async with asyncio.TaskGroup() as group:
        watch.start(group)


def told(number: int = 1, kind: NoticeKind = NoticeKind.RECLAIM) -> Notice:
    return Notice(provider_id=provider_id(number), kind=kind, reclaim_at=NOW, receipt=f"r-{number}", source="queue")


def test_notice_is_acknowledged_only_when_what_it_changed_is_durable() -> None:
    async def play(stand: Stand) -> None:
        stand.queue.script = [[told()]]
        await stand.clock.sleep(5)
        assert stand.mailbox.facts == [NoticeArrived(provider=CLOUD, notice=told())]
        assert not stand.queue.acknowledged
        stand.mailbox.durable.set()
        await stand.clock.sleep(0.1)
        assert stand.queue.acknowledged == [told()]

    live(play)


def test_notices_are_heard_on_while_earlier_ones_wait_to_be_durable() -> None:
    async def play(stand: Stand) -> None:
        stand.queue.script = [[told(number)] for number in range(1, 6)]
        await stand.clock.sleep(1)
        assert len(stand.mailbox.facts) == 5
        assert not stand.queue.acknowledged

    live(play)


def test_queue_that_fails_is_asked_again_and_shown_until_it_answers() -> None:
    async def play(stand: Stand) -> None:
        stand.queue.script = [ProviderError("access denied")] * 4
        await stand.clock.sleep(4)
        (trouble,) = stand.watch.troubles()
        assert trouble.target == CLOUD
        assert "access denied" in trouble.text
        stand.queue.script = [[told()]]
        await stand.clock.sleep(60)
        assert len(stand.mailbox.facts) == 1
        assert not stand.watch.troubles()

    live(play)


def test_what_a_provider_has_to_say_of_itself_is_shown() -> None:
    async def play(stand: Stand) -> None:
        stand.queue.troubles = ("notices: no message ever came",)
        (trouble,) = stand.watch.troubles()
        assert (trouble.target, trouble.text) == (CLOUD, "notices: no message ever came")
        await stand.clock.sleep(0)

    live(play)


def test_state_changes_of_many_machines_are_looked_at_in_one_call_each_second() -> None:
    async def play(stand: Stand) -> None:
        stand.have(1, 2, 3)
        kinds = [told(number, NoticeKind.STATE_CHANGE) for number in (1, 2, 3, 77)]
        stand.queue.script = [kinds]
        await stand.clock.sleep(1.5)
        ((at, ids),) = stand.queue.asked
        assert ids == (provider_id(1), provider_id(2), provider_id(3))
        assert at <= 1.1
        (fact,) = stand.described
        assert not fact.silent

    live(play)


def test_machine_that_falls_silent_is_asked_for_within_thirteen_seconds_and_with_all_others_at_once() -> None:
    async def play(stand: Stand) -> None:
        stand.have(*range(1, 41))
        await stand.clock.sleep(13.1)
        ((at, ids), *_) = stand.queue.asked
        assert 11 < at <= 13.1
        assert len(ids) == 40
        assert stand.described[0].silent == frozenset(ids)

    live(play)


def test_silent_machine_that_its_cloud_shows_running_is_asked_for_ever_more_rarely() -> None:
    async def play(stand: Stand) -> None:
        stand.have(1)
        await stand.clock.sleep(600)
        times = [at for at, _ in stand.queue.asked]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert gaps == sorted(gaps)
        assert gaps[-1] >= 60
        assert len(times) < 16

    live(play)


def test_machine_that_is_heard_again_is_let_alone_and_suspected_afresh_later() -> None:
    async def play(stand: Stand) -> None:
        stand.have(1)
        (machine,) = stand.heard
        await stand.clock.sleep(60)
        asked = len(stand.queue.asked)
        for _ in range(10):
            stand.heard[machine] = stand.clock.now()
            await stand.clock.sleep(5)
        assert len(stand.queue.asked) == asked
        await stand.clock.sleep(9)
        assert len(stand.queue.asked) > asked

    live(play)


def test_describe_that_fails_changes_nothing_and_is_repeated_with_back_off() -> None:
    async def play(stand: Stand) -> None:
        stand.have(1)
        stand.queue.describe_fails = True
        await stand.clock.sleep(120)
        assert not stand.described
        assert 3 <= len(stand.queue.asked) < 12
        stand.queue.describe_fails = False
        await stand.clock.sleep(40)
        assert stand.described

    live(play)


def test_machines_without_an_agent_yet_and_those_that_are_ending_are_nobodys_suspects() -> None:
    async def play(stand: Stand) -> None:
        stand.have(1, state=S.LAUNCHED)
        stand.have(2, state=S.TERMINATING)
        await stand.clock.sleep(60)
        assert not stand.queue.asked

    live(play)


def test_machine_that_outlives_its_reclaim_is_looked_at() -> None:
    async def play(stand: Stand) -> None:
        stand.have(1)
        (row,) = stand.rows.instances.values()
        stand.queue.shown[provider_id(1)] = replace(listed_machine(1), state=MachineState.RUNNING)
        stand.rows.record(
            Interruption(
                instance=row.id,
                provider=CLOUD,
                pool=row.pool,
                capacity_pool=row.capacity_pool,
                noticed_at=stand.clock.now(),
                sources=("queue",),
                is_announced=True,
                reclaim_at=stand.clock.now() + timedelta(seconds=20),
            )
        )
        for _ in range(8):
            stand.heard[row.id] = stand.clock.now()
            await stand.clock.sleep(5)
        ((at, ids), *_) = stand.queue.asked
        assert 25 <= at <= 28
        assert ids == (provider_id(1),)
        assert not stand.described[0].silent

    live(play)
