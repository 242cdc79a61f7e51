"""SQS, Pricing, FIS, Service Quotas, SSM and IAM of the sandbox's AWS, asked by boto3."""

import asyncio
import json
import time
from collections.abc import Awaitable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from autoscaler.sandbox.aws_fis import ACTION, TARGET
from autoscaler.spi import CapacityType
from tests.aws_site import REGION, ServedAws, ids_of, make_site, served_aws
from tests.polling import until

ROLE = "arn:aws:iam::123456789012:role/autoscaler-fis"
LINUX = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "regionCode": REGION,
    "productFamily": "Compute Instance",
}


async def code_of(call: Awaitable[Any]) -> str:
    with pytest.raises(ClientError) as caught:
        await call
    return str(caught.value.response["Error"]["Code"])


async def sqs(aws: ServedAws, operation: str, **parameters: Any) -> Any:
    return await aws.ask("sqs", operation, QueueUrl=aws.queue_url(), **parameters)


# --------------------------------------------------------------------------- SQS


async def test_a_message_is_hidden_while_it_is_handled_and_comes_back() -> None:
    async with served_aws() as aws:
        await sqs(aws, "send_message", MessageBody="one")
        attributes = {"MessageSystemAttributeNames": ["All"], "VisibilityTimeout": 1}
        (first,) = (await sqs(aws, "receive_message", **attributes))["Messages"]
        assert (first["Body"], first["Attributes"]["ApproximateReceiveCount"]) == ("one", "1")
        assert "Messages" not in await sqs(aws, "receive_message")
        (again,) = (await sqs(aws, "receive_message", WaitTimeSeconds=3, **attributes))["Messages"]
        assert (again["MessageId"], again["Attributes"]["ApproximateReceiveCount"]) == (first["MessageId"], "2")
        assert again["ReceiptHandle"] != first["ReceiptHandle"]
        await sqs(aws, "delete_message", ReceiptHandle=first["ReceiptHandle"])
        counted = await sqs(aws, "get_queue_attributes", AttributeNames=["All"])
        assert counted["Attributes"]["ApproximateNumberOfMessagesNotVisible"] == "0"


async def test_a_long_poll_ends_as_soon_as_a_message_comes() -> None:
    async with served_aws() as aws:
        begun = time.monotonic()
        polls = [asyncio.create_task(aws.messages(wait_s=15)) for _ in range(2)]
        await sqs(aws, "send_message", MessageBody="one")
        await sqs(aws, "send_message", MessageBody="two")
        received = [message["Body"] for messages in await asyncio.gather(*polls) for message in messages]
        assert sorted(received) == ["one", "two"]
        assert time.monotonic() - begun < 10


async def test_a_poll_that_finds_nothing_takes_its_time_and_no_more() -> None:
    async with served_aws() as aws:
        begun = time.monotonic()
        assert await aws.messages(wait_s=1) == []
        assert 0.9 < time.monotonic() - begun < 8


async def test_a_batch_deletes_ten_and_names_what_failed() -> None:
    async with served_aws() as aws:
        for number in range(12):
            await sqs(aws, "send_message", MessageBody=str(number))
        received = await aws.messages()
        assert len(received) == 10
        entries = [{"Id": str(n), "ReceiptHandle": one["ReceiptHandle"]} for n, one in enumerate(received)]
        entries[9]["ReceiptHandle"] = "junk"
        answer = await sqs(aws, "delete_message_batch", Entries=entries)
        assert (len(answer["Successful"]), answer["Failed"][0]["Code"]) == (9, "ReceiptHandleIsInvalid")
        assert len(aws.site.sqs.queues[REGION, "notices"].messages) == 3
        too_many = [{"Id": str(n), "ReceiptHandle": "x:y"} for n in range(11)]
        batch = sqs(aws, "delete_message_batch", Entries=too_many)
        assert await code_of(batch) == "AWS.SimpleQueueService.TooManyEntriesInBatchRequest"


async def test_old_messages_are_forgotten() -> None:
    async with served_aws() as aws:
        queue = aws.site.sqs.queues[REGION, "notices"]
        queue.send("old", aws.site.driver.now - 301)
        queue.send("new", aws.site.driver.now - 240)
        assert [message["Body"] for message in await aws.messages()] == ["new"]


async def test_a_queue_is_found_by_name_in_its_region() -> None:
    async with served_aws() as aws:
        url = (await aws.ask("sqs", "get_queue_url", QueueName="notices"))["QueueUrl"]
        assert url == aws.queue_url()
        missing = aws.ask("sqs", "get_queue_url", QueueName="other")
        assert await code_of(missing) == "AWS.SimpleQueueService.NonExistentQueue"
        elsewhere = aws.ask("sqs", "get_queue_url", key={"region": "eu-west-1"}, QueueName="notices")
        assert await code_of(elsewhere) == "AWS.SimpleQueueService.NonExistentQueue"
        attributes = (await sqs(aws, "get_queue_attributes", AttributeNames=["Policy", "QueueArn"]))["Attributes"]
        assert attributes["QueueArn"] == "arn:aws:sqs:us-east-1:123456789012:notices"
        allowed = json.loads(attributes["Policy"])["Statement"][0]
        assert "events.amazonaws.com" in allowed["Principal"]["Service"]


# --------------------------------------------------------------------------- prices and quotas


async def test_on_demand_prices_are_found_among_what_looks_like_them() -> None:
    async with served_aws() as aws:
        filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in LINUX.items()]
        answer = await aws.ask("pricing", "get_products", ServiceCode="AmazonEC2", Filters=filters)
        products = [json.loads(product) for product in answer["PriceList"]]
        assert len(products) == 4
        (large,) = (one for one in products if one["product"]["attributes"]["instanceType"] == "m7i.large")
        (term,) = large["terms"]["OnDemand"].values()
        (rate,) = term["priceDimensions"].values()
        assert (rate["unit"], float(rate["pricePerUnit"]["USD"])) == ("Hrs", pytest.approx(0.1))
        everything = await aws.ask("pricing", "get_products", ServiceCode="AmazonEC2")
        assert len(everything["PriceList"]) == 4 * 6


async def test_prices_come_in_pages_and_from_few_regions() -> None:
    async with served_aws() as aws:
        first = await aws.ask("pricing", "get_products", ServiceCode="AmazonEC2", MaxResults=20)
        rest = await aws.ask(
            "pricing", "get_products", ServiceCode="AmazonEC2", MaxResults=20, NextToken=first["NextToken"]
        )
        assert (len(first["PriceList"]), len(rest["PriceList"]), rest.get("NextToken")) == (20, 4, None)
        elsewhere = aws.ask("pricing", "get_products", key={"region": "us-west-2"}, ServiceCode="AmazonEC2")
        assert await code_of(elsewhere) == "UnknownOperationException"


async def test_quotas_are_those_of_the_account() -> None:
    async with served_aws() as aws:
        aws.site.cloud.capacity.quotas[REGION, CapacityType.SPOT] = 0.0
        asked = {"ServiceCode": "ec2", "QuotaCode": "L-34B43A08"}
        quota = (await aws.ask("service-quotas", "get_service_quota", **asked))["Quota"]
        assert (quota["Value"], quota["QuotaName"].startswith("All Standard")) == (0.0, True)
        unknown = aws.ask("service-quotas", "get_service_quota", ServiceCode="ec2", QuotaCode="L-0")
        assert await code_of(unknown) == "NoSuchResourceException"


async def test_parameters_and_instance_profiles_are_looked_up() -> None:
    async with served_aws() as aws:
        name = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
        aws.site.ssm.parameters[REGION, name] = "ami-1"
        assert (await aws.ask("ssm", "get_parameter", Name=name))["Parameter"]["Value"] == "ami-1"
        assert await code_of(aws.ask("ssm", "get_parameter", Name="/nothing")) == "ParameterNotFound"
        several = await aws.ask("ssm", "get_parameters", Names=[name, "/nothing"])
        assert [one["Value"] for one in several["Parameters"]] == ["ami-1"]
        assert several["InvalidParameters"] == ["/nothing"]
        aws.site.iam.instance_profiles["runner"] = "runner-role"
        profile = (await aws.ask("iam", "get_instance_profile", InstanceProfileName="runner"))["InstanceProfile"]
        assert profile["Roles"][0]["RoleName"] == "runner-role"
        missing = aws.ask("iam", "get_instance_profile", InstanceProfileName="other")
        assert await code_of(missing) == "NoSuchEntity"


# --------------------------------------------------------------------------- fault injection


def experiment(ids: list[str], *, minutes: int = 2, token: str = "t1") -> dict[str, Any]:
    arns = [f"arn:aws:ec2:{REGION}:123456789012:instance/{id_}" for id_ in ids]
    return {
        "clientToken": token,
        "description": "a game day",
        "roleArn": ROLE,
        "stopConditions": [{"source": "none"}],
        "targets": {"machines": {"resourceType": TARGET, "resourceArns": arns, "selectionMode": "ALL"}},
        "actions": {
            "interrupt": {
                "actionId": ACTION,
                "parameters": {"durationBeforeInterruption": f"PT{minutes}M"},
                "targets": {"SpotInstances": "machines"},
            }
        },
        "tags": {"autoscaler-deployment": "ci"},
    }


async def run_experiment(aws: ServedAws, **changed: Any) -> tuple[str, str]:
    """The status and its reason at the first look after the start."""
    made = await aws.ask("fis", "create_experiment_template", **changed)
    template_id = made["experimentTemplate"]["id"]
    started = await aws.ask("fis", "start_experiment", clientToken="s1", experimentTemplateId=template_id)
    assert started["experiment"]["state"]["status"] == "initiating"
    state = (await aws.ask("fis", "get_experiment", id=started["experiment"]["id"]))["experiment"]["state"]
    await aws.ask("fis", "delete_experiment_template", id=template_id)
    return state["status"], state["reason"]


async def running_spot(aws: ServedAws, count: int) -> list[str]:
    ids = ids_of(await aws.fleet(await aws.template(), count=count))

    async def all_run() -> bool:
        return {one["State"]["Name"] for one in await aws.machines(InstanceIds=ids)} == {"running"}

    await until(all_run)
    return ids


async def test_an_experiment_reclaims_spot_machines_with_all_announcements() -> None:
    async with served_aws() as aws:
        aws.site.access.roles[ROLE] = lambda _: True
        ids = await running_spot(aws, 2)
        queue = aws.site.sqs.queues[REGION, "notices"]
        queue.messages.clear()
        assert (await run_experiment(aws, **experiment(ids)))[0] == "running"

        async def ended() -> bool:
            found = await aws.machines(InstanceIds=ids)
            return {one.get("StateReason", {}).get("Code") for one in found} == {"Server.SpotInstanceTermination"}

        await until(ended)
        kinds = [json.loads(message.body)["detail-type"] for message in queue.messages.values()]
        assert kinds.count("EC2 Instance Rebalance Recommendation") == 2
        assert kinds.count("EC2 Spot Instance Interruption Warning") == 2


@pytest.mark.parametrize(
    ("count", "is_known", "reason"),
    [(0, True, "empty set"), (6, True, "more than 5"), (1, False, "assume role")],
)
async def test_an_experiment_fails_after_its_start(count: int, is_known: bool, reason: str) -> None:
    async with served_aws() as aws:
        if is_known:
            aws.site.access.roles[ROLE] = lambda _: True
        ids = await running_spot(aws, count) if count else ["i-00000000000000001"]
        status, why = await run_experiment(aws, **experiment(ids))
        assert status == "failed"
        assert reason in why
        assert len(aws.site.cloud.machines) == count
        assert all(one.is_up for one in aws.site.cloud.machines.values())


async def test_a_later_interruption_waits_and_is_gone_with_the_face() -> None:
    site = make_site()
    async with served_aws(site) as aws:
        site.access.roles[ROLE] = lambda _: True
        ids = await running_spot(aws, 1)
        assert (await run_experiment(aws, **experiment(ids, minutes=15)))[0] == "running"
        assert site.cloud.machines[ids[0]].reclaim_at is None
        assert site.cloud.machines[ids[0]].rebalanced_at is not None


async def test_a_template_must_make_sense() -> None:
    async with served_aws() as aws:
        for minutes in (1, 16):
            made = aws.ask("fis", "create_experiment_template", **experiment(["i-1"], minutes=minutes))
            assert await code_of(made) == "ValidationException"
        missing = aws.ask("fis", "start_experiment", clientToken="s", experimentTemplateId="EXT0")
        assert await code_of(missing) == "ResourceNotFoundException"
