"""Reading DescribeInstances leanly: boto3 makes the call, its own parser is passed by.

boto3 turns 1,000 instances (2.5 MB of XML) into dictionaries of everything in 0.6 to 0.9 s; a listing each 30 s of
10,000 would keep a core busy for a third of the time. The few fields that we need take less than a third of that
(measured by benchmarks/fleets.py). The bytes are those of AWS's own endpoint, over TLS.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from xml.etree import ElementTree

_RAW = "AutoscalerRaw"
_EMPTY = b'<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"/>'
_EVENT = "before-parse.ec2.DescribeInstances"
_PIECE = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One instance, in EC2's own words. `launched_at` is its last start."""

    id: str
    state: str
    reason: str
    """StateReason.Code, as "Server.SpotInstanceTermination"."""
    transition: str
    """StateTransitionReason, which stays readable when the code is gone."""
    machine_type: str
    zone: str
    is_spot: bool
    spot_request: str
    launched_at: datetime
    address: str
    tags: Mapping[str, str]


def read_instances(ec2: Any, **parameters: Any) -> Iterator[Described]:
    """Every instance of every page, by a client that was `prepare`d. Blocking. Raises boto3's exceptions; any page
    that fails fails all."""
    token = ""
    while True:
        answer = ec2.describe_instances(**parameters, **({"NextToken": token} if token else {}))
        raw = answer.get(_RAW)
        if raw is None:
            raise RuntimeError("boto3 did not hand over the answer of DescribeInstances: is its version new?")
        root = yield from _read_page(raw)
        token = _text(root, "nextToken")
        if not token:
            return


def _read_page(raw: bytes) -> Generator[Described, None, ElementTree.Element]:
    """The instances of one answer; returns its root, emptied of them. It is read piece by piece: a page as a whole is
    100,000 elements at once, which the garbage collector walks through again and again while every thread waits."""
    parser: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(("end",))  # expat refuses entity expansion bombs
    item = instance_id = state = ""
    root: ElementTree.Element | None = None
    for at in range(0, max(1, len(raw)), _PIECE):
        parser.feed(raw[at : at + _PIECE])
        if at + _PIECE >= len(raw):
            parser.close()
        for _, element in cast("Iterator[tuple[str, ElementTree.Element]]", parser.read_events()):
            root = element  # the last one to end
            if not item:
                space = element.tag[: -len(_name(element))]
                item, instance_id, state = f"{space}item", f"{space}instanceId", f"{space}instanceState"
            if element.tag == item and element.find(instance_id) is not None and element.find(state) is not None:
                yield _described(element)
                element.clear()
    assert root is not None  # an answer without an element is one that the parser refuses
    return root


def prepare(ec2: Any) -> None:
    """Have a new client keep the body of good answers and give its parser an empty one. Once, before threads share
    it: a client that several of them change at once would lose answers."""
    ec2.meta.events.register(_EVENT, _take_body, unique_id=_RAW)


def _take_body(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    if response_dict["status_code"] < 300:
        customized_response_dict[_RAW] = response_dict["body"]
        response_dict["body"] = _EMPTY


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _child(element: ElementTree.Element, name: str) -> ElementTree.Element | None:
    for child in element:
        if _name(child) == name:
            return child
    return None


def _text(element: ElementTree.Element, *path: str) -> str:
    found: ElementTree.Element | None = element
    for name in path:
        found = None if found is None else _child(found, name)
    return "" if found is None else found.text or ""


def _described(item: ElementTree.Element) -> Described:
    parts = {_name(child): child for child in item}

    def text(name: str, *path: str) -> str:
        found = parts.get(name)
        return "" if found is None else _text(found, *path)

    tags = parts.get("tagSet")
    return Described(
        id=text("instanceId"),
        state=text("instanceState", "name"),
        reason=text("stateReason", "code"),
        transition=text("reason"),
        machine_type=text("instanceType"),
        zone=text("placement", "availabilityZone"),
        is_spot=text("instanceLifecycle") == "spot",
        spot_request=text("spotInstanceRequestId"),
        launched_at=datetime.fromisoformat(text("launchTime")),
        address=text("privateIpAddress"),
        tags={} if tags is None else {_text(tag, "key"): _text(tag, "value") for tag in tags},
    )
