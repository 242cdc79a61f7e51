"""The lean reader of DescribeInstances says what boto3's own parser would, and fails where boto3 fails."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError

from providers.aws_describe import Described, prepare, read_instances

XMLNS = 'xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"'
SPOT = """<item>
  <instanceId>i-0a</instanceId><imageId>ami-1</imageId>
  <instanceState><code>48</code><name>terminated</name></instanceState>
  <reason>Server.SpotInstanceTermination: taken &amp; gone</reason>
  <stateReason><code>Server.SpotInstanceTermination</code><message>taken</message></stateReason>
  <instanceType>m7i.large</instanceType><launchTime>2026-11-26T10:00:01.000Z</launchTime>
  <placement><availabilityZone>us-east-1a</availabilityZone><tenancy>default</tenancy></placement>
  <instanceLifecycle>spot</instanceLifecycle><spotInstanceRequestId>sir-1</spotInstanceRequestId>
  <tagSet><item><key>autoscaler-pool</key><value>linux</value></item><item><key>empty</key><value/></item></tagSet>
</item>"""
PLAIN = """<item>
  <instanceId>i-0b</instanceId><instanceState><code>16</code><name>running</name></instanceState><reason/>
  <instanceType>c7i.large</instanceType><launchTime>2026-11-26T10:00:02+00:00</launchTime>
  <placement><availabilityZone>us-east-1b</availabilityZone></placement>
  <privateIpAddress>10.0.0.7</privateIpAddress>
</item>"""
REFUSED = (
    "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>no</Message></Error></Errors>"
    "<RequestID>r</RequestID></Response>"
)


def answer(*reservations: str, token: str = "") -> tuple[int, str]:
    items = "".join(f"<item><instancesSet>{one}</instancesSet></item>" for one in reservations)
    following = f"<nextToken>{token}</nextToken>" if token else ""
    body = f"<reservationSet>{items}</reservationSet>{following}"
    return 200, f"<DescribeInstancesResponse {XMLNS}><requestId>r</requestId>{body}</DescribeInstancesResponse>"


def client(*answers: tuple[int, str], asked: list[str] | None = None) -> Any:
    """boto3's client, whose connection gives these answers in turn."""
    ec2 = boto3.client(
        "ec2",
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}),
    )
    left = iter(answers)

    def send(request: AWSRequest, **_: Any) -> AWSResponse:
        if asked is not None:
            asked.append(str(request.body))
        status, body = next(left)
        return AWSResponse("http://127.0.0.1", status, {"content-type": "text/xml"}, Raw(body.encode()))

    ec2.meta.events.register("before-send.ec2.DescribeInstances", send)
    return ec2


class Raw:
    """What botocore reads a body from."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self._body


def lean(*answers: tuple[int, str], asked: list[str] | None = None) -> list[Described]:
    ec2 = client(*answers, asked=asked)
    prepare(ec2)
    return list(read_instances(ec2))


def of_boto3(one: dict[str, Any]) -> Described:
    return Described(
        id=one["InstanceId"],
        state=one["State"]["Name"],
        reason=one.get("StateReason", {}).get("Code", ""),
        transition=one.get("StateTransitionReason", ""),
        machine_type=one["InstanceType"],
        zone=one["Placement"]["AvailabilityZone"],
        is_spot=one.get("InstanceLifecycle") == "spot",
        spot_request=one.get("SpotInstanceRequestId", ""),
        launched_at=one["LaunchTime"],
        address=one.get("PrivateIpAddress", ""),
        tags={tag["Key"]: tag["Value"] for tag in one.get("Tags", ())},
    )


def test_it_reads_what_boto3_reads() -> None:
    given = answer(SPOT + PLAIN, PLAIN.replace("i-0b", "i-0c"))
    reservations = client(given).describe_instances()["Reservations"]
    expected = [of_boto3(one) for reservation in reservations for one in reservation["Instances"]]
    assert len(expected) == 3
    assert lean(given) == expected
    assert expected[0].launched_at == datetime(2026, 11, 26, 10, 0, 1, tzinfo=UTC)


def test_machines_are_whole_wherever_the_answer_is_cut_into_pieces() -> None:
    ids = [f"i-{number:x}" for number in range(500)]
    reservations = [PLAIN.replace("i-0b", id_) + SPOT.replace("i-0a", f"{id_}s") for id_ in ids]
    given = answer(*reservations, token="next")
    assert len(given[1]) > 500_000
    found = lean(given, answer())
    parsed = client(given).describe_instances()["Reservations"]
    assert found == [of_boto3(one) for reservation in parsed for one in reservation["Instances"]]
    assert len(found) == 1000


def test_an_item_that_only_names_a_machine_is_none() -> None:
    naming = "<networkInterfaceSet><item><instanceId>i-0f</instanceId></item></networkInterfaceSet></item>"
    assert [one.id for one in lean(answer(PLAIN.removesuffix("</item>") + naming))] == ["i-0b"]


def test_every_page_is_read() -> None:
    asked: list[str] = []
    found = lean(answer(SPOT, token="next=page"), answer(PLAIN), asked=asked)
    assert [one.id for one in found] == ["i-0a", "i-0b"]
    assert ["NextToken=next%3Dpage" in body for body in asked] == [False, True]


def test_an_empty_account_has_no_machines() -> None:
    assert lean(answer()) == []


def test_a_page_that_fails_fails_all_in_boto3s_words() -> None:
    with pytest.raises(ClientError, match="UnauthorizedOperation"):
        lean(answer(SPOT, token="next"), (403, REFUSED))


def test_a_client_that_was_not_prepared_is_noticed_and_no_empty_fleet() -> None:
    with pytest.raises(RuntimeError, match="did not hand over"):
        list(read_instances(client(answer(SPOT))))


@pytest.mark.parametrize("body", ["", "<html>", "<DescribeInstancesResponse><reservationSet>"])
def test_half_an_answer_is_no_empty_fleet(body: str) -> None:
    with pytest.raises(Exception, match=r"no element|mismatched|no close|unclosed"):
        lean((200, body))
