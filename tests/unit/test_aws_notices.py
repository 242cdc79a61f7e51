"""Notices from a real SQS protocol: boto3's client against moto's server, messages as EventBridge writes them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.spi import Notice, NoticeKind, ProviderId
from providers.aws_notices import AwsNotices
from providers.aws_queue import strangers_may_send
from providers.aws_silence import Silence
from tests.aws_messages import ACCOUNT, body, evicted, health, rebalance, state_change, warning
from tests.polling import until

REGION = "us-east-1"
OURS = [f"i-{number:017x}" for number in range(1, 61)]
FOREIGN = "i-0000000000000bad0"
POLICY = {
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "events.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": "*",
        }
    ]
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def sqs(endpoint: str) -> Any:
    return boto3.client(
        "sqs",
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id="k",
        aws_secret_access_key="s",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=15),
    )


@pytest.fixture
def queue(endpoint: str, request: pytest.FixtureRequest) -> str:
    name = f"q-{abs(hash(request.node.nodeid))}"
    url: str = sqs(endpoint).create_queue(QueueName=name, Attributes={"Policy": json.dumps(POLICY)})["QueueUrl"]
    return url


class SkewedClock(SystemClock):
    """The system's clock, `ahead` of the cloud's."""

    ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


class Listener:
    """Calls notices() for ever, as the core does; acknowledges nothing by itself."""

    def __init__(self, notices: AwsNotices) -> None:
        self.notices = notices
        self.heard: list[Notice] = []
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            self.heard += await self.notices.notices()

    async def ack(self, *notices: Notice) -> None:
        await self.notices.ack(notices)


Make = Callable[..., Listener]


@pytest.fixture
async def make(endpoint: str) -> AsyncIterator[Make]:
    made: list[Listener] = []
    calls = Calls()

    def listener(
        url: str, *, clock: SystemClock | None = None, at: str = endpoint, knows: Any = None, visibility_s: int = 30
    ) -> Listener:
        client = sqs(at)
        notices = AwsNotices(
            {REGION: url},
            account=ACCOUNT,
            client=lambda _: client,
            knows=knows or (lambda provider_id: provider_id in OURS),
            gates=calls,
            clock=clock or SystemClock(),
            name=f"aws{len(made)}",
            visibility_s=visibility_s,
        )
        made.append(Listener(notices))
        return made[-1]

    yield listener
    for one in made:
        one.task.cancel()
        await one.notices.aclose()
    await calls.aclose(grace_s=0.1)


def send(endpoint: str, url: str, *bodies: str) -> None:
    client = sqs(endpoint)
    for start in range(0, len(bodies), 10):
        entries = [{"Id": str(i), "MessageBody": text} for i, text in enumerate(bodies[start : start + 10])]
        assert not client.send_message_batch(QueueUrl=url, Entries=entries).get("Failed")


def left(endpoint: str, url: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = sqs(endpoint).get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(int(attributes[name]) for name in names)


def now() -> datetime:
    return datetime.now(UTC)


async def test_a_warning_becomes_a_notice_and_stays_in_the_queue_until_it_is_acknowledged(
    endpoint: str, queue: str, make: Make
) -> None:
    at = now().replace(microsecond=0)
    send(endpoint, queue, warning(OURS[0], at=at))
    listener = make(queue)
    (notice,) = await until(lambda: listener.heard)
    assert (notice.provider_id, notice.kind, notice.source) == (OURS[0], NoticeKind.RECLAIM, "queue")
    assert (notice.noticed_at, notice.reclaim_at) == (at, at + timedelta(minutes=2))
    assert left(endpoint, queue) == 1
    await listener.ack(notice)
    await until(lambda: left(endpoint, queue) == 0)
    assert listener.notices.troubles() == ()
    assert listener.notices.dropped == {}


async def test_a_message_of_several_machines_goes_when_all_are_acknowledged(
    endpoint: str, queue: str, make: Make
) -> None:
    send(endpoint, queue, health([OURS[0], FOREIGN, OURS[1]], at=now()))
    listener = make(queue)
    first, second = await until(lambda: listener.heard)
    assert (first.provider_id, second.provider_id) == (OURS[0], OURS[1])
    assert first.kind is NoticeKind.MAINTENANCE
    await listener.ack(first)
    send(endpoint, queue, rebalance(FOREIGN, at=now()))
    await until(lambda: listener.notices.dropped == {"foreign": 1} and left(endpoint, queue) == 1)
    await listener.ack(second, second)
    await until(lambda: left(endpoint, queue) == 0)


async def test_what_is_not_for_us_doubled_late_or_unreadable_is_counted_and_deleted(
    endpoint: str, queue: str, make: Make
) -> None:
    wanted = warning(OURS[0], at=now())
    send(
        *(endpoint, queue, wanted, wanted, warning(OURS[0], at=now()), evicted([OURS[0]], at=now())),
        *(warning(FOREIGN, at=now()), warning(OURS[1], at=now(), account="210987654321")),
        *(
            warning(OURS[2], at=now() - timedelta(minutes=6)),
            warning(OURS[4], at=now() + timedelta(minutes=6)),
            "no json",
            body("EC2 Spot Instance Interruption Warning", {}),
        ),
        *(state_change(OURS[3], "running", at=now()), body("EC2 Spot Instance Request Fulfillment", {}, at=now())),
    )
    listener = make(queue)
    expected = {"duplicate": 3, "foreign": 2, "late": 1, "future": 1, "malformed": 2, "irrelevant": 2}
    await until(lambda: dict(listener.notices.dropped) == expected)
    (notice,) = listener.heard
    await until(lambda: left(endpoint, queue) == 1)
    await listener.ack(notice)
    await until(lambda: left(endpoint, queue) == 0)


async def test_a_restarted_daemon_finds_what_was_read_and_not_acknowledged(
    endpoint: str, queue: str, make: Make
) -> None:
    send(endpoint, queue, warning(OURS[0], at=now()))
    died = make(queue, visibility_s=1)
    await until(lambda: died.heard)
    died.task.cancel()
    await died.notices.aclose()
    revived = make(queue)
    (notice,) = await until(lambda: revived.heard)
    assert notice == died.heard[0]
    await revived.ack(notice)
    await until(lambda: left(endpoint, queue) == 0)


async def test_a_message_that_comes_again_while_it_is_not_acknowledged_is_no_duplicate(
    endpoint: str, queue: str, make: Make
) -> None:
    clock = SkewedClock()
    send(endpoint, queue, warning(OURS[0], at=now()))
    listener = make(queue, visibility_s=1, clock=clock)
    (first,) = await until(lambda: listener.heard)
    clock.ahead = timedelta(seconds=31)  # nobody acknowledged it for so long
    send(endpoint, queue, warning(OURS[1], at=now()))
    await until(lambda: len(listener.heard) == 3)
    assert listener.heard[1:].count(first) == 1
    assert listener.notices.dropped == {}
    await listener.ack(*listener.heard)
    await until(lambda: left(endpoint, queue) == 0)


async def test_fifty_warnings_of_one_second_in_a_crowd_of_foreign_events_are_heard_within_five(
    endpoint: str, queue: str, make: Make
) -> None:
    listener = make(queue)
    crowd = [warning(one, at=now()) for one in OURS[:50]] + [state_change(FOREIGN, "terminated", at=now())] * 50
    crowd += [state_change(one, "shutting-down", at=now()) for one in OURS[:50]]
    await asyncio.to_thread(send, endpoint, queue, *crowd)
    sent_at = time.monotonic()
    await until(lambda: sum(one.kind is NoticeKind.RECLAIM for one in listener.heard) == 50, timeout_s=10)
    assert time.monotonic() - sent_at < 5
    await until(lambda: len(listener.heard) == 100)
    await listener.ack(*listener.heard)
    await until(lambda: left(endpoint, queue) == 0)


async def test_a_clock_ten_minutes_ahead_drops_nothing_and_its_times_are_our_own(
    endpoint: str, queue: str, make: Make
) -> None:
    clock = SkewedClock()
    clock.ahead = timedelta(minutes=10)
    send(endpoint, queue, warning(OURS[0], at=now()))
    listener = make(queue, clock=clock)
    (notice,) = await until(lambda: listener.heard)
    lead = notice.reclaim_at - clock.now()
    assert timedelta(seconds=90) < lead < timedelta(seconds=125)


async def test_a_queue_that_is_not_there_is_told_and_found_once_it_is(endpoint: str, make: Make) -> None:
    url = f"{endpoint}/123456789012/made-later"
    listener = make(url)
    (trouble,) = await until(lambda: listener.notices.troubles())
    assert trouble.startswith(f"notices: there is no queue {url}: correct notices.{REGION}")
    sqs(endpoint).create_queue(QueueName="made-later", Attributes={"Policy": json.dumps(POLICY)})
    send(endpoint, url, warning(OURS[0], at=now()))
    await until(lambda: listener.heard)
    assert listener.notices.troubles() == ()


async def test_a_cloud_that_is_not_reached_raises_nothing_and_is_told(make: Make) -> None:
    nowhere = "http://127.0.0.1:9"
    listener = make(f"{nowhere}/1/q", at=nowhere)
    (trouble,) = await until(lambda: listener.notices.troubles())
    assert "is not reached" in trouble
    assert not listener.task.done()


@pytest.mark.parametrize(
    "policy",
    [
        None,
        {"Statement": [{"Effect": "Allow", "Principal": {"AWS": "123456789012"}, "Action": "sqs:SendMessage"}]},
        {
            "Statement": {
                "Effect": "Deny",
                "Principal": {"Service": "events.amazonaws.com"},
                "Action": "sqs:SendMessage",
            }
        },
        {
            "Statement": {
                "Effect": "Allow",
                "Principal": {"Service": "events.amazonaws.com"},
                "Action": "sqs:GetQueueUrl",
            }
        },
    ],
)
async def test_a_policy_that_lets_no_event_in_is_told_at_start(
    policy: Any, endpoint: str, make: Make, request: pytest.FixtureRequest
) -> None:
    attributes = {} if policy is None else {"Policy": json.dumps(policy)}
    name = f"p-{abs(hash(request.node.nodeid))}"
    url = sqs(endpoint).create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
    listener = make(url)
    (trouble,) = await until(lambda: listener.notices.troubles())
    assert "does not let events.amazonaws.com do sqs:SendMessage" in trouble


RULE = "arn:aws:events:us-east-1:123456789012:rule/ours"


@pytest.mark.parametrize(
    ("changes", "is_open"),
    [
        ({}, True),
        ({"Principal": "*"}, True),
        ({"Principal": {"AWS": "*"}}, True),
        ({"Condition": {"Bool": {"aws:SecureTransport": "true"}}}, True),
        ({"Condition": {"ArnLike": {"aws:SourceArn": "*"}}}, True),
        ({"Condition": {"ArnNotEquals": {"aws:SourceArn": RULE}}}, True),
        ({"Condition": {"ArnEquals": {"aws:SourceArn": [RULE]}}}, False),
        ({"Condition": {"StringEquals": {"AWS:SourceAccount": ACCOUNT}}}, False),
        ({"Effect": "Deny"}, False),
    ],
)
def test_a_queue_is_open_to_strangers_unless_the_source_is_named(changes: dict[str, Any], is_open: bool) -> None:
    (statement,) = POLICY["Statement"]
    assert strangers_may_send(json.dumps({"Statement": [statement | changes]})) is is_open
    closed = statement | {"Condition": {"ArnEquals": {"aws:SourceArn": RULE}}}
    assert strangers_may_send(json.dumps({"Statement": [closed, statement | changes]})) is is_open


async def test_a_machine_that_nobody_has_listed_yet_is_told_on(endpoint: str, queue: str, make: Make) -> None:
    send(endpoint, queue, warning(FOREIGN, at=now()))
    listener = make(queue, knows=lambda _: None)
    (notice,) = await until(lambda: listener.heard)
    assert notice.provider_id == FOREIGN


# --------------------------------------------------------------------------- what never came


class SetClock(SystemClock):
    at = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def silence(clock: SetClock) -> Silence:
    made = Silence(clock, regions=[REGION])
    made.listening(REGION)
    clock.at += timedelta(minutes=1)
    return made


ENDED = ProviderId(OURS[0])


def test_an_end_without_a_message_is_told_after_a_minute_until_one_comes(silence: Silence, clock: SetClock) -> None:
    silence.expect(ENDED, clock.at, region=REGION)
    clock.at += timedelta(seconds=59)
    assert silence.troubles() == ()
    clock.at += timedelta(seconds=1)
    assert f"no message came for {ENDED}" in silence.troubles()[0]
    assert "rule" in silence.troubles()[0]
    silence.expect(ENDED, clock.at, region=REGION)
    silence.heard(REGION, [ProviderId(OURS[1])])
    assert silence.troubles() == ()
    clock.at += timedelta(minutes=5)
    assert silence.troubles() == (), "an old end is told once"


def test_a_message_before_or_after_the_end_is_enough(silence: Silence, clock: SetClock) -> None:
    silence.heard(REGION, [ENDED])
    clock.at += timedelta(minutes=3)
    silence.expect(ENDED, clock.at, region=REGION)
    later = ProviderId(OURS[1])
    silence.expect(later, clock.at, region=REGION)
    silence.heard(REGION, [later])
    clock.at += timedelta(minutes=5)
    assert silence.troubles() == ()


def test_ends_while_nobody_listened_say_nothing(silence: Silence, clock: SetClock) -> None:
    silence.expect(ENDED, clock.at - timedelta(seconds=1), region=REGION)
    silence.expect(ENDED, clock.at, region="without-a-queue")
    silence.expect(ProviderId(OURS[1]), clock.at, region=REGION)
    silence.pause(REGION)
    silence.expect(ProviderId(OURS[2]), clock.at, region=REGION)
    clock.at += timedelta(minutes=5)
    assert silence.troubles() == ()
