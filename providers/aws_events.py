"""What EventBridge tells of EC2's machines, parsed: one message body to the losses it announces. Pure.

| detail-type, source                                    | becomes                                                    |
|---|---|
| EC2 Spot Instance Interruption Warning, aws.ec2        | RECLAIM in two minutes (hibernate: at once)                |
| EC2 Capacity Reservation Instance Interruption Warning | the same                                                   |
| EC2 Instance Rebalance Recommendation, aws.ec2         | REBALANCE                                                  |
| EC2 Instance State-change Notification, aws.ec2        | STATE_CHANGE where the machine is going, else nothing      |
| AWS Health Event, aws.health: EC2, scheduledChange     | MAINTENANCE of each affected machine                       |
| AWS Service Event via CloudTrail: BidEvictedEvent      | RECLAIM of each machine that was evicted                   |

The ids are taken from `detail`: the ARN in `resources` comes in two forms (Amazon EC2 user guide, "Spot Instance
interruption notices"; AWS's own node termination handler has the other one).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from autoscaler.spi import NoticeKind, ProviderId

_LEAD = timedelta(minutes=2)
_GOING = frozenset({"stopping", "stopped", "shutting-down", "terminated"})
_FIRST_YEAR, _LAST_YEAR = 2000, 2200
_INSTANCE_ID = re.compile(r"i-[0-9a-f]{8,17}")
_WARNINGS = frozenset(
    {"EC2 Spot Instance Interruption Warning", "EC2 Capacity Reservation Instance Interruption Warning"}
)


class Malformed(Exception):
    """The body is not an event, or not one that its detail-type promises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """One machine and what is said of it. `key` tells the same thing said twice; `kind` None says nothing of a loss."""

    provider_id: ProviderId
    kind: NoticeKind | None
    reclaim_at: datetime
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One envelope. `account` is empty where the sender leaves it out."""

    event_id: str
    account: str
    at: datetime
    announcements: tuple[Announcement, ...]


def parse_event(body: str) -> Event:
    """Raises Malformed, whatever the body holds."""
    try:
        envelope = json.loads(body)
        event_id, at = _text(envelope, "id"), _instant(_text(envelope, "time"))
        return Event(
            event_id=event_id,
            account=str(envelope.get("account", "")),
            at=at,
            announcements=_announcements(envelope, at),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Malformed(f"{type(error).__name__}: {error}"[:200]) from None


def _announcements(envelope: Mapping[str, Any], at: datetime) -> tuple[Announcement, ...]:
    detail = envelope["detail"]
    match (_text(envelope, "source"), _text(envelope, "detail-type")):
        case ("aws.ec2", warning) if warning in _WARNINGS:
            lead = timedelta() if detail.get("instance-action") == "hibernate" else _LEAD
            return (_announce(detail["instance-id"], NoticeKind.RECLAIM, at + lead),)
        case ("aws.ec2", "EC2 Instance Rebalance Recommendation"):
            return (_announce(detail["instance-id"], NoticeKind.REBALANCE, at),)
        case ("aws.ec2", "EC2 Instance State-change Notification"):
            state = _text(detail, "state")
            kind = NoticeKind.STATE_CHANGE if state in _GOING else None
            return (_announce(detail["instance-id"], kind, at, what=state),)
        case ("aws.health", "AWS Health Event"):
            return _of_health(detail)
        case ("aws.ec2", "AWS Service Event via CloudTrail") if detail.get("eventName") == "BidEvictedEvent":
            evicted = detail["serviceEventDetails"]["instanceIdSet"]
            return tuple(_announce(one, NoticeKind.RECLAIM, at) for one in evicted)
        case _:
            return ()


def _of_health(detail: Mapping[str, Any]) -> tuple[Announcement, ...]:
    """Only what is planned for EC2; its times are as in e-mails."""
    if detail.get("service") != "EC2" or detail.get("eventTypeCategory") != "scheduledChange":
        return ()
    starts_at = parsedate_to_datetime(_text(detail, "startTime"))
    starts_at = starts_at.replace(tzinfo=UTC) if starts_at.tzinfo is None else starts_at.astimezone(UTC)
    what = f"{detail.get('eventTypeCode', '')} {starts_at:%Y-%m-%dT%H:%M}"
    entities = [_text(entity, "entityValue") for entity in detail["affectedEntities"]]
    return tuple(
        _announce(one, NoticeKind.MAINTENANCE, starts_at, what=what) for one in entities if one.startswith("i-")
    )


def _announce(instance_id: Any, kind: NoticeKind | None, reclaim_at: datetime, *, what: str = "") -> Announcement:
    if not isinstance(instance_id, str) or not _INSTANCE_ID.fullmatch(instance_id):
        raise ValueError("not an instance id")
    if not _FIRST_YEAR <= reclaim_at.year <= _LAST_YEAR:
        raise ValueError("a time that cannot be: sums with it would not be dates any more")
    key = f"{instance_id} {kind or ''} {what}"
    return Announcement(provider_id=ProviderId(instance_id), kind=kind, reclaim_at=reclaim_at, key=key)


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is not a text")
    return value


def _instant(text: str) -> datetime:
    parsed = datetime.fromisoformat(text)
    if parsed.tzinfo is None:
        raise ValueError("a time without a zone")
    return parsed.astimezone(UTC)
