"""EventBridge bodies: every kind of message that tells of a loss, those that do not, and what is no event."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.spi import NoticeKind
from providers.aws_events import Malformed, parse_event
from tests.aws_messages import AT, body, evicted, health, rebalance, state_change, warning

ONE, TWO = "i-0123456789abcdef0", "i-0fedcba9876543210"


def said(text: str) -> list[tuple[str, NoticeKind | None, datetime]]:
    return [(one.provider_id, one.kind, one.reclaim_at) for one in parse_event(text).announcements]


def test_a_spot_warning_is_a_reclaim_in_two_minutes() -> None:
    assert said(warning(ONE)) == [(ONE, NoticeKind.RECLAIM, AT + timedelta(minutes=2))]
    assert said(warning(ONE, action="stop")) == [(ONE, NoticeKind.RECLAIM, AT + timedelta(minutes=2))]


def test_hibernation_has_no_lead() -> None:
    assert said(warning(ONE, action="hibernate")) == [(ONE, NoticeKind.RECLAIM, AT)]


def test_a_rebalance_recommendation_is_no_reclaim() -> None:
    assert said(rebalance(ONE)) == [(ONE, NoticeKind.REBALANCE, AT)]


@pytest.mark.parametrize("state", ["stopping", "stopped", "shutting-down", "terminated"])
def test_a_machine_on_its_way_out_is_a_state_change(state: str) -> None:
    assert said(state_change(ONE, state)) == [(ONE, NoticeKind.STATE_CHANGE, AT)]


@pytest.mark.parametrize("state", ["pending", "running"])
def test_a_machine_that_comes_up_is_named_and_nothing_is_said_of_a_loss(state: str) -> None:
    assert said(state_change(ONE, state)) == [(ONE, None, AT)]


def test_planned_maintenance_names_every_machine_with_its_own_date_form() -> None:
    starts_at = datetime(2026, 12, 5, 15, 10, 9, tzinfo=UTC)
    assert said(health([ONE, TWO, "vol-1"], starts="Sat, 05 Dec 2026 15:10:09 GMT")) == [
        (ONE, NoticeKind.MAINTENANCE, starts_at),
        (TWO, NoticeKind.MAINTENANCE, starts_at),
    ]


def test_health_events_of_other_services_and_categories_say_nothing() -> None:
    assert said(health([ONE], service="RDS")) == []
    assert said(health([ONE], category="accountNotification")) == []


def test_an_eviction_names_every_machine() -> None:
    assert said(evicted([ONE, TWO])) == [(ONE, NoticeKind.RECLAIM, AT), (TWO, NoticeKind.RECLAIM, AT)]


def test_other_events_say_nothing() -> None:
    assert said(body("EC2 Spot Instance Request Fulfillment", {"instance-id": ONE})) == []
    assert said(body("EC2 Spot Instance Interruption Warning", {"instance-id": ONE}, source="aws.elsewhere")) == []


def test_the_arn_is_never_looked_at() -> None:
    for arn in (f"arn:aws:ec2:us-east-1b:instance/{TWO}", "garbage"):
        assert said(warning(ONE, resources=[arn]))[0][0] == ONE


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '"text"', "{}"),
        body("EC2 Spot Instance Interruption Warning", {}),
        body("EC2 Spot Instance Interruption Warning", {"instance-id": "i-1; rm -rf /"}),
        body("EC2 Spot Instance Interruption Warning", {"instance-id": 7}),
        body("EC2 Instance State-change Notification", {"instance-id": ONE}),
        body("EC2 Instance Rebalance Recommendation", "text"),
        body("EC2 Instance Rebalance Recommendation", {"instance-id": ONE}, time="yesterday"),
        body("EC2 Instance Rebalance Recommendation", {"instance-id": ONE}, time="2026-11-26T12:00:00"),
        body("EC2 Instance Rebalance Recommendation", {"instance-id": ONE}, id=None),
        health([ONE], starts="2026-12-05"),
        health([ONE], starts="Fri, 31 Dec 9999 23:59:59 GMT"),
        warning(ONE, at=datetime(9999, 12, 31, 23, 57, tzinfo=UTC)),
        body("AWS Service Event via CloudTrail", {"eventName": "BidEvictedEvent", "serviceEventDetails": None}),
        "[" * 100_000,
    ],
)
def test_what_is_no_event_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse_event(text)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=12,
    )
)
def test_whatever_the_detail_is_the_answer_is_an_event_or_malformed(detail: Any) -> None:
    for kind in ("EC2 Spot Instance Interruption Warning", "EC2 Instance State-change Notification"):
        try:
            assert parse_event(body(kind, detail)).event_id
        except Malformed:
            continue
    for text in (json.dumps(detail), body("AWS Health Event", detail, source="aws.health")):
        try:
            assert parse_event(text).announcements == ()
        except Malformed:
            continue
