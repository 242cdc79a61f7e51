"""EventBridge bodies for tests, as specs/cloud.md A3 has them."""

import json
import uuid
from datetime import UTC, datetime
from typing import Any

ACCOUNT = "123456789012"
AT = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


def body(detail_type: str, detail: Any, *, source: str = "aws.ec2", at: datetime = AT, **envelope: Any) -> str:
    event = {
        **{"version": "0", "id": str(uuid.uuid4()), "detail-type": detail_type, "source": source, "account": ACCOUNT},
        **{"time": at.strftime("%Y-%m-%dT%H:%M:%SZ"), "region": "us-east-1", "resources": [], "detail": detail},
    }
    return json.dumps(event | envelope)


def warning(instance_id: str, *, action: str = "terminate", at: datetime = AT, **envelope: Any) -> str:
    detail = {"instance-id": instance_id, "instance-action": action}
    return body("EC2 Spot Instance Interruption Warning", detail, at=at, **envelope)


def rebalance(instance_id: str, *, at: datetime = AT, **envelope: Any) -> str:
    return body("EC2 Instance Rebalance Recommendation", {"instance-id": instance_id}, at=at, **envelope)


def state_change(instance_id: str, state: str, *, at: datetime = AT, **envelope: Any) -> str:
    detail = {"instance-id": instance_id, "state": state}
    return body("EC2 Instance State-change Notification", detail, at=at, **envelope)


def health(
    ids: list[str],
    *,
    starts: str = "Sat, 05 Dec 2026 15:10:09 GMT",
    service: str = "EC2",
    category: str = "scheduledChange",
    at: datetime = AT,
) -> str:
    detail = {
        **{"service": service, "eventTypeCategory": category, "startTime": starts, "eventArn": "arn:aws:health:..."},
        **{"eventTypeCode": "AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED"},
        "affectedEntities": [{"entityValue": one, "tags": {}} for one in ids],
    }
    return body("AWS Health Event", detail, source="aws.health", at=at)


def evicted(ids: list[str], *, at: datetime = AT) -> str:
    detail = {"eventName": "BidEvictedEvent", "serviceEventDetails": {"instanceIdSet": ids}}
    return body("AWS Service Event via CloudTrail", detail, at=at)
