"""The baselines of `fleets-aws`: what boto3 alone needs for the same. Blocking."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.aws_cloud_child import client, launch, make_template
from providers import aws_describe
from providers.aws_clients import PAGE

WARNING = "EC2 Spot Instance Interruption Warning"
QUIET_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a piece of work took on the clock, and the CPU of its thread."""

    wall_s: float
    cpu_s: float
    count: int


def spent(work: Callable[[], int]) -> Spent:
    wall, cpu = time.perf_counter(), time.thread_time()
    count = work()
    return Spent(wall_s=time.perf_counter() - wall, cpu_s=time.thread_time() - cpu, count=count)


def fleets_in_turn(url: str, secret: str, *, batch: int, total: int) -> Spent:
    """CreateFleet after CreateFleet."""
    ec2 = client("ec2", url, secret)
    template = make_template(ec2)
    return spent(lambda: sum(len(launch(ec2, template, batch)) for _ in range(total // batch)))


def describe_by_boto3(url: str, secret: str) -> Spent:
    """boto3's own paginator, parser included."""
    ec2 = client("ec2", url, secret)
    ec2.describe_instances(MaxResults=5)  # reads the service's model, connects
    pages = ec2.get_paginator("describe_instances")

    def work() -> int:
        found = pages.paginate(PaginationConfig={"PageSize": PAGE})
        return sum(len(one["Instances"]) for page in found for one in page["Reservations"])

    return spent(work)


def describe_leanly(url: str, secret: str) -> Spent:
    """The same pages as the adapter reads them."""
    ec2 = client("ec2", url, secret)
    aws_describe.prepare(ec2)
    ec2.describe_instances(MaxResults=5)
    return spent(lambda: sum(1 for _ in aws_describe.read_instances(ec2, MaxResults=PAGE)))


def hear(url: str, secret: str, queue_url: str, *, count: int, within_s: float) -> dict[str, float]:
    """Receive and delete until warnings of `count` machines came and the queue is quiet; when each was deleted first
    (epoch seconds)."""
    sqs = client("sqs", url, secret)
    heard: dict[str, float] = {}
    deadline = time.monotonic() + within_s
    last = time.monotonic()
    while time.monotonic() < deadline and (len(heard) < count or time.monotonic() < last + QUIET_S):
        messages: list[dict[str, Any]] = sqs.receive_message(
            QueueUrl=queue_url, MaxNumberOfMessages=10, WaitTimeSeconds=1
        ).get("Messages", [])
        if not messages:
            continue
        last = time.monotonic()
        entries = [{"Id": str(n), "ReceiptHandle": one["ReceiptHandle"]} for n, one in enumerate(messages)]
        sqs.delete_message_batch(QueueUrl=queue_url, Entries=entries)
        for event in (json.loads(one["Body"]) for one in messages):
            if event["detail-type"] == WARNING:
                heard.setdefault(event["detail"]["instance-id"], time.time())
    return heard
