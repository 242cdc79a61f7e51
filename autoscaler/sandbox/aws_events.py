"""EventBridge between the sandbox's AWS and its queues: envelopes, a rule for each region, and what goes wrong.

A rule delivers what its pattern matches to its queue, if the queue's policy lets it. Faults double, delay, shuffle,
garble and mix in foreign messages. Envelopes as in specs A3.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from autoscaler.sandbox.aws_json import Json
from autoscaler.sandbox.aws_sqs import Queue, lets_events_send
from autoscaler.sandbox.cloud_faults import CloudFaults

WARNING = "EC2 Spot Instance Interruption Warning"
REBALANCE = "EC2 Instance Rebalance Recommendation"
STATE_CHANGE = "EC2 Instance State-change Notification"
FULFILLMENT = "EC2 Spot Instance Request Fulfillment"
HEALTH = "AWS Health Event"
CLOUDTRAIL = "AWS Service Event via CloudTrail"
USUAL_PATTERN: Mapping[str, Any] = {"source": ["aws.ec2"], "detail-type": [WARNING, STATE_CHANGE, REBALANCE]}
"""The pattern of specs A3."""


@dataclass(slots=True, kw_only=True)
class Rule:
    """What one region's bus sends to a queue. `is_wired` False: the rule has no target, nothing ever comes."""

    queue: Queue
    pattern: Mapping[str, Any] = field(default_factory=lambda: dict(USUAL_PATTERN))
    is_wired: bool = True


class EventBus:
    """The default buses of an account."""

    def __init__(self, *, account: str, faults: CloudFaults) -> None:
        self.rules: dict[str, Rule] = {}
        self._account = account
        self._faults = faults
        self._held: dict[str, str] = {}

    def emit(self, region: str, detail_type: str, detail: Json, *, at: float, now: float, **more: Any) -> None:
        """Sends one event of EC2 to whoever wants it."""
        self.deliver(region, envelope(region, detail_type, detail, account=self._account, at=at, **more), now=now)

    def deliver(self, region: str, event: Json, *, now: float) -> None:
        rule = self.rules.get(region)
        if rule is None or not rule.is_wired or not matches(rule.pattern, event) or not lets_events_send(rule.queue):
            return
        faults = self._faults
        body = json.dumps(self._late(event) if faults.strikes(faults.late, "late") else event)
        if faults.strikes(faults.reordered, "reordered") and region not in self._held:
            self._held[region] = body
            return
        bodies = [body, *self._followers(region, event, body)]
        if region in self._held:
            bodies.append(self._held.pop(region))
        for one in bodies:
            rule.queue.send(one, now)

    def flush(self, region: str, now: float) -> None:
        """What was held back behind a message that never came is sent after all."""
        if region in self._held:
            self.rules[region].queue.send(self._held.pop(region), now)

    def _late(self, event: Json) -> Json:
        """It was under way for long: its own time is long ago."""
        then = datetime.fromisoformat(event["time"]).timestamp() - self._faults.late_s
        return event | {"time": _time(then)}

    def _followers(self, region: str, event: Json, body: str) -> list[str]:
        faults, dice = self._faults, self._faults.dice("messages")
        bodies = []
        if faults.strikes(faults.doubled, "doubled"):
            bodies.append(body)
        if faults.strikes(faults.foreign, "foreign"):
            stranger = {"instance-id": f"i-{dice.getrandbits(68):017x}"}
            detail = {**event["detail"], **stranger}
            bodies.append(json.dumps(event | {"id": str(uuid.uuid4()), "account": "999999999999", "detail": detail}))
        if faults.strikes(faults.malformed, "malformed"):
            bodies.append(dice.choice(('{"detail-type": ', "[]", "not an event", '{"version":"0","detail":7}')))
        return bodies


def envelope(
    region: str, detail_type: str, detail: Json, *, account: str, at: float, resources: Sequence[str] = (), **more: Any
) -> Json:
    """An event as EventBridge hands it on."""
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": detail_type,
        "source": "aws.ec2",
        "account": account,
        "time": _time(at),
        "region": region,
        "resources": list(resources),
        "detail": detail,
    } | more


def matches(pattern: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """Exact values and prefixes, at any depth; all fields of the pattern, one value of each."""
    return all(key in event and _field_matches(wanted, event[key]) for key, wanted in pattern.items())


def _field_matches(wanted: Any, have: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(have, Mapping) and matches(wanted, have)
    values = have if isinstance(have, list) else [have]
    return any(_value_matches(one, value) for one in wanted for value in values)


def _value_matches(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, Mapping):
        prefix = wanted.get("prefix")
        return isinstance(prefix, str) and isinstance(value, str) and value.startswith(prefix)
    return bool(wanted == value)


def queue_policy(queue_arn: str) -> str:
    """EventBridge may send for rules of the queue's own account, nobody without TLS."""
    partition, _, region, account = queue_arn.split(":")[1:5]
    allow = {
        "Effect": "Allow",
        "Principal": {"Service": ["events.amazonaws.com"]},
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
        "Condition": {"ArnLike": {"aws:SourceArn": f"arn:{partition}:events:{region}:{account}:rule/*"}},
    }
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "sqs:*",
        "Resource": queue_arn,
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [allow, deny]})


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
