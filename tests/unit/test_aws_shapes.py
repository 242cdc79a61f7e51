"""The law of tests/aws_law.py itself: it knows a true exchange from an untrue one, and so can fail a test."""

from urllib.parse import urlencode

import pytest

from autoscaler.sandbox.aws_query import AwsError, Named, Parameters, Raw, ec2_answer, query_answer, render
from tests.aws_law import answer_violations, request_violations

CHANGE = {"instanceId": "i-1", "currentState": {"code": 32, "name": "shutting-down"}}


def answered(change: object) -> list[str]:
    text = ec2_answer("TerminateInstances", {"instancesSet": [change]}, request_id="r")  # type: ignore[list-item]
    return answer_violations("ec2", "TerminateInstances", text)


def test_a_true_answer_breaks_nothing() -> None:
    assert answered(CHANGE) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (CHANGE | {"colour": "red"}, "no member colour"),
        (CHANGE | {"currentState": {"code": 32, "name": "dying"}}, "'dying' is not among the values"),
        (CHANGE | {"currentState": {"code": "many", "name": "running"}}, "'many' is no integer"),
        (CHANGE | {"currentState": "running"}, "is no plain value"),
        (CHANGE | {"instanceId": {"a": "b"}}, "has parts"),
    ],
)
def test_an_untrue_answer_is_found(change: object, problem: str) -> None:
    (found,) = answered(change)
    assert problem in found


def test_a_list_with_the_wrong_element_is_found() -> None:
    rows = Named(element="member", values=[CHANGE])
    text = ec2_answer("TerminateInstances", {"instancesSet": rows}, request_id="r")
    assert "member where item is expected" in answer_violations("ec2", "TerminateInstances", text)[0]


def test_an_answer_of_the_query_protocol_is_looked_into() -> None:
    who = {"Arn": "a", "UserId": "u", "Account": "1"}
    namespace = "https://sts.amazonaws.com/doc/2011-06-15/"
    text = query_answer("GetCallerIdentity", who, namespace=namespace, request_id="r")
    assert answer_violations("sts", "GetCallerIdentity", text) == []
    text = query_answer("GetCallerIdentity", who | {"Name": "n"}, namespace=namespace, request_id="r")
    assert answer_violations("sts", "GetCallerIdentity", text) == [
        "GetCallerIdentity: no member Name in GetCallerIdentityResponse"
    ]


def test_a_json_answer_is_looked_into() -> None:
    assert answer_violations("sqs", "GetQueueUrl", '{"QueueUrl": "u"}') == []
    assert answer_violations("sqs", "GetQueueUrl", '{"QueueUrl": 7}') == ["GetQueueUrl.QueueUrl: 7 is no string"]
    assert answer_violations("sqs", "GetQueueUrl", '{"Url": "u"}') == [
        "GetQueueUrl: no member Url in GetQueueUrlResult"
    ]


def asked(parameters: dict[str, str]) -> list[str]:
    body = urlencode({"Action": "TerminateInstances", "Version": "2016-11-15", **parameters}).encode()
    return request_violations("ec2", "TerminateInstances", body)


def test_a_true_request_breaks_nothing() -> None:
    assert asked({"InstanceId.1": "i-1", "DryRun": "true"}) == []


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"InstanceIds.1": "i-1"}, "no member InstanceIds"),
        ({"InstanceId": "i-1"}, "is a list"),
        ({"DryRun": "yes"}, "'yes' is no boolean"),
    ],
)
def test_a_request_is_held_against_the_model(parameters: dict[str, str], problem: str) -> None:
    (found,) = asked(parameters)
    assert problem in found


# --------------------------------------------------------------------------- the wire layer


def test_nested_lists_of_a_request_are_read_in_order_of_their_numbers() -> None:
    body = urlencode({"A.10.B": "ten", "A.2.B": "two", "A.2.C.1": "x", "A.2.C.2": "y"}).encode()
    rows = Parameters.parse(body).structures("A")
    assert [row.text("B") for row in rows] == ["two", "ten"]
    assert rows[0].texts("C") == ["x", "y"]


def test_a_parameter_that_nobody_reads_is_refused() -> None:
    parameters = Parameters.parse(b"Action=Do&Known=1&Strange.1.Thing=2")
    parameters.text("Known")
    with pytest.raises(AwsError, match=r"UnknownParameter: .*Strange\.1\.Thing"):
        parameters.complete()


def test_a_dry_run_ends_before_anything_happens() -> None:
    with pytest.raises(AwsError, match="DryRunOperation"):
        Parameters.parse(b"Action=Do&DryRun=true").complete()


def test_what_makes_two_requests_the_same_leaves_out_the_token() -> None:
    one, two = (Parameters.parse(f"Action=Do&ClientToken={token}&A=1".encode()) for token in ("x", "y"))
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != Parameters.parse(b"Action=Do&A=2").fingerprint()


def test_xml_escapes_text_and_leaves_out_what_is_not_there() -> None:
    assert render("a", {"b": "<&>", "c": None, "d": [True, 2], "e": Raw("<f/>")}) == (
        "<a><b>&lt;&amp;&gt;</b><d><item>true</item><item>2</item></d><e><f/></e></a>"
    )
