"""From what happens to machines to messages in a queue: envelopes, rules, policies, and the faults on the way."""

import json
from collections import Counter
from typing import Any

import pytest

from autoscaler.sandbox.aws_events import (
    CLOUDTRAIL,
    HEALTH,
    REBALANCE,
    STATE_CHANGE,
    WARNING,
    EventBus,
    Rule,
    envelope,
    matches,
    queue_policy,
)
from autoscaler.sandbox.aws_sqs import Queue
from autoscaler.sandbox.cloud_faults import CloudFaults
from tests.aws_site import REGION, ids_of, served_aws

ACCOUNT = "123456789012"
NOW = 1_800_000_000.0


def a_queue(**more: Any) -> Queue:
    queue = Queue("notices", account=ACCOUNT, region=REGION, now=NOW, **more)
    queue.policy = queue_policy(queue.arn)
    return queue


def a_bus(queue: Queue, **faults: float) -> EventBus:
    bus = EventBus(account=ACCOUNT, faults=CloudFaults(**faults))  # type: ignore[arg-type]
    bus.rules[REGION] = Rule(queue=queue)
    return bus


def emit(bus: EventBus, *ids: str) -> None:
    for id_ in ids:
        bus.emit(REGION, WARNING, {"instance-id": id_, "instance-action": "terminate"}, at=NOW, now=NOW)


def bodies(queue: Queue) -> list[str]:
    return [message.body for message in queue.messages.values()]


def ids(queue: Queue) -> list[str]:
    return [json.loads(body)["detail"]["instance-id"] for body in bodies(queue)]


async def test_a_reclaim_is_heard_as_warning_and_as_changes_of_state() -> None:
    async with served_aws() as aws:
        (id_,) = ids_of(await aws.fleet(await aws.template()))
        aws.site.cloud.rebalance(id_, aws.site.driver.now)
        aws.site.reclaim(id_, notice_s=0.05)
        heard: list[dict[str, Any]] = []
        while not any(event["detail"].get("state") == "terminated" for event in heard):
            heard += [json.loads(message["Body"]) for message in await aws.messages(wait_s=5)]
        kinds = Counter(event["detail-type"] for event in heard)
        assert kinds[WARNING] == kinds[REBALANCE] == 1
        states = {event["detail"]["state"] for event in heard if event["detail-type"] == STATE_CHANGE}
        assert {"pending", "terminated"} <= states
        (warning,) = (event for event in heard if event["detail-type"] == WARNING)
        assert warning["detail"] == {"instance-id": id_, "instance-action": "terminate"}
        assert (warning["source"], warning["account"], warning["region"]) == ("aws.ec2", ACCOUNT, REGION)
        assert len({event["id"] for event in heard}) == len(heard)


async def test_no_notice_is_no_warning() -> None:
    async with served_aws() as aws:
        (id_,) = ids_of(await aws.fleet(await aws.template()))
        aws.site.reclaim(id_, notice_s=0)
        heard = [json.loads(message["Body"]) for message in await aws.messages(wait_s=5)]
        assert {event["detail-type"] for event in heard} == {STATE_CHANGE}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda bus, queue: setattr(bus.rules[REGION], "is_wired", False),
        lambda bus, queue: bus.rules.clear(),
        lambda bus, queue: setattr(queue, "policy", ""),
        lambda bus, queue: setattr(bus.rules[REGION], "pattern", {"detail-type": [REBALANCE]}),
    ],
    ids=["no target", "no rule", "no policy", "another pattern"],
)
def test_a_queue_that_is_not_wired_never_hears(spoil: Any) -> None:
    queue = a_queue()
    bus = a_bus(queue)
    emit(bus, "i-1")
    assert ids(queue) == ["i-1"]
    spoil(bus, queue)
    emit(bus, "i-2")
    assert ids(queue) == ["i-1"]


def test_messages_are_doubled_and_mixed_with_strangers() -> None:
    queue = a_queue()
    emit(a_bus(queue, doubled=1.0, foreign=1.0, malformed=1.0), "i-1")
    first, second, foreign, malformed = bodies(queue)
    assert first == second
    stranger = json.loads(foreign)
    assert (stranger["account"], stranger["detail"]["instance-id"]) != (ACCOUNT, "i-1")
    assert malformed not in (first, foreign)


def test_late_messages_say_when_they_were_true() -> None:
    queue = a_queue()
    bus = a_bus(queue, late=1.0, late_s=400.0)
    emit(bus, "i-1")
    on_time = envelope(REGION, WARNING, {}, account=ACCOUNT, at=NOW - 400)
    assert json.loads(bodies(queue)[0])["time"] == on_time["time"]


def test_messages_change_places() -> None:
    queue = a_queue()
    bus = a_bus(queue, reordered=1.0)
    emit(bus, "i-1", "i-2", "i-3")
    assert ids(queue) == ["i-2", "i-1"]
    bus.flush(REGION, NOW)
    assert ids(queue) == ["i-2", "i-1", "i-3"]


def test_other_services_send_what_their_rule_lets_pass() -> None:
    queue = a_queue()
    bus = a_bus(queue)
    detail = {"service": "EC2", "eventTypeCategory": "scheduledChange", "affectedEntities": [{"entityValue": "i-1"}]}
    health = envelope(REGION, HEALTH, detail, account=ACCOUNT, at=NOW) | {"source": "aws.health"}
    bus.deliver(REGION, health, now=NOW)
    assert bodies(queue) == []
    bus.rules[REGION].pattern = {"source": ["aws.ec2", "aws.health"], "detail-type": [HEALTH, CLOUDTRAIL]}
    bus.deliver(REGION, health, now=NOW)
    bus.emit(REGION, CLOUDTRAIL, {"eventName": "BidEvictedEvent"}, at=NOW, now=NOW)
    assert [json.loads(body)["detail-type"] for body in bodies(queue)] == [HEALTH, CLOUDTRAIL]


@pytest.mark.parametrize(
    ("pattern", "holds"),
    [
        ({}, True),
        ({"source": ["aws.ec2"]}, True),
        ({"source": ["aws.s3", "aws.ec2"], "detail": {"state": ["running"]}}, True),
        ({"detail": {"state": [{"prefix": "run"}]}}, True),
        ({"detail": {"state": ["stopped"]}}, False),
        ({"detail": {"other": ["running"]}}, False),
        ({"resources": ["b"]}, True),
        ({"resources": ["c"]}, False),
    ],
)
def test_patterns_match_values_prefixes_and_lists(pattern: dict[str, Any], holds: bool) -> None:
    event = {"source": "aws.ec2", "detail": {"state": "running"}, "resources": ["a", "b"]}
    assert matches(pattern, event) is holds
