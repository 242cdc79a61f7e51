"""Notices from end to end: the sandbox's EC2 reclaims machines, its EventBridge and SQS tell it, with their faults."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.sandbox.aws_access import all_but
from autoscaler.spi import Notice, NoticeKind, ProviderId
from providers.aws_notices import AwsNotices
from tests.aws_site import ACCESS_KEY, REGION, SECRET, ServedAws, ids_of, override, served_aws
from tests.polling import until


class MovedClock(SystemClock):
    ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


@dataclass(slots=True, kw_only=True)
class Fleet:
    """Spot machines of ours, and a core that hears and acknowledges notices for ever."""

    served: ServedAws
    notices: AwsNotices
    clock: MovedClock
    ids: list[ProviderId] = field(default_factory=list)
    heard: list[Notice] = field(default_factory=list)

    async def launch(self, count: int) -> None:
        template = await self.served.template()
        answer = await self.served.fleet(template, override(), count=count)
        self.ids += [ProviderId(one) for one in ids_of(answer)]
        assert len(self.ids) == count
        machines = self.served.site.cloud.machines
        await until(lambda: all(machines[one].is_up for one in self.ids))

    async def listen(self) -> None:
        while True:
            notices = await self.notices.notices()
            self.heard += notices
            await self.notices.ack(notices)

    def reclaimed(self) -> Counter[ProviderId]:
        return Counter(one.provider_id for one in self.heard if one.kind is NoticeKind.RECLAIM)


Make = Callable[..., Fleet]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    calls, clock = Calls(), MovedClock()
    async with served_aws() as served:
        ids: list[ProviderId] = []
        notices = AwsNotices(
            {REGION: served.queue_url()},
            account=served.site.account,
            client=lambda region: served.client("sqs", region=region),
            knows=lambda provider_id: provider_id in ids,
            gates=calls,
            clock=clock,
            name="aws",
        )
        one = Fleet(served=served, notices=notices, clock=clock, ids=ids)
        listening = asyncio.create_task(one.listen())
        yield one
        listening.cancel()
        await notices.aclose()
        await calls.aclose(grace_s=6)


def waiting(fleet: Fleet) -> int:
    return len(fleet.served.site.sqs.queues[REGION, "notices"].messages)


async def test_fifty_machines_reclaimed_in_one_second_are_each_heard_of_once_within_five(fleet: Fleet) -> None:
    await fleet.launch(50)
    started_at = time.monotonic()
    for one in fleet.ids:
        fleet.served.site.reclaim(one, notice_s=6.0)
    await until(lambda: len(fleet.reclaimed()) == 50, timeout_s=10)
    assert time.monotonic() - started_at < 5
    assert set(fleet.reclaimed().values()) == {1}
    await until(lambda: waiting(fleet) == 0)


async def test_doubled_foreign_reordered_and_unreadable_messages_cost_nothing_but_a_count(fleet: Fleet) -> None:
    await fleet.launch(20)
    faults = fleet.served.site.faults
    faults.doubled, faults.foreign, faults.malformed, faults.reordered = 0.5, 0.5, 0.5, 0.3
    for one in fleet.ids:
        fleet.served.site.reclaim(one, notice_s=0.5)
    await until(lambda: len(fleet.reclaimed()) >= 19)  # the last one may wait for a message behind it
    await until(lambda: all(fleet.notices.dropped.get(reason) for reason in ("duplicate", "foreign", "malformed")))
    await until(lambda: waiting(fleet) == 0)
    assert set(fleet.reclaimed().values()) == {1}


async def test_late_messages_are_dropped(fleet: Fleet) -> None:
    await fleet.launch(3)
    fleet.served.site.faults.late = 1.0
    for one in fleet.ids:
        fleet.served.site.reclaim(one, notice_s=0.2)
    await until(lambda: fleet.notices.dropped.get("late", 0) >= 3)
    assert fleet.heard == []


async def test_a_rule_that_is_not_wired_is_told_when_a_machine_ends_unheard(fleet: Fleet) -> None:
    rule = fleet.served.site.bus.rules[REGION]
    rule.is_wired = False
    await fleet.launch(2)
    fleet.served.site.sqs.queues[REGION, "notices"].send("nothing of EventBridge's", time.time())
    await until(lambda: fleet.notices.dropped == {"malformed": 1})
    fleet.clock.ahead = timedelta(seconds=61)
    fleet.served.site.reclaim(fleet.ids[0], notice_s=0.0)
    fleet.notices.ended(fleet.ids[0], fleet.clock.now(), region=REGION)
    assert fleet.notices.troubles() == ()
    fleet.clock.ahead = timedelta(seconds=122)
    (trouble,) = fleet.notices.troubles()
    assert f"no message came for {fleet.ids[0]}" in trouble
    rule.is_wired = True
    fleet.served.site.reclaim(fleet.ids[1], notice_s=0.5)
    await until(lambda: fleet.reclaimed())
    assert fleet.notices.troubles() == ()


async def test_a_queue_without_its_policy_and_a_missing_permission_are_told(fleet: Fleet) -> None:
    served: Any = fleet.served
    await until(lambda: served.site.access.calls)
    served.site.access.grant(ACCESS_KEY, SECRET, allows=all_but("sqs:ReceiveMessage"))
    await until(lambda: any("allow sqs:ReceiveMessage" in one for one in fleet.notices.troubles()))
    served.site.sqs.queues[REGION, "notices"].policy = ""
    served.site.access.grant(ACCESS_KEY, SECRET)
    await until(lambda: any("does not let events.amazonaws.com" in one for one in fleet.notices.troubles()))
