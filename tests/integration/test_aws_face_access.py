"""Who may call the sandbox's AWS: signatures, permissions, roles, clocks; and what it records of every call."""

from collections.abc import Awaitable
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from botocore.exceptions import ClientError

from autoscaler.sandbox.aws_access import all_but, only, permissions
from autoscaler.sandbox.aws_policy import policy_of
from tests.aws_site import ACCESS_KEY, REGION, SECRET, ServedAws, errors_of, ids_of, override, served_aws

DEPLOY = Path(__file__).parents[2] / "deploy" / "aws"
WRONG = {"secret": "another secret"}
UNKNOWN = {"access_key": "AKIAUNKNOWN000000000"}


async def refusal(call: Awaitable[Any]) -> dict[str, Any]:
    with pytest.raises(ClientError) as caught:
        await call
    response: dict[str, Any] = caught.value.response
    return response


async def code_of(call: Awaitable[Any]) -> tuple[str, int]:
    response = await refusal(call)
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


@pytest.mark.parametrize(
    ("service", "operation", "parameters", "wrong", "unknown"),
    [
        ("ec2", "describe_instances", {}, ("AuthFailure", 401), ("AuthFailure", 401)),
        ("sts", "get_caller_identity", {}, ("SignatureDoesNotMatch", 403), ("InvalidClientTokenId", 403)),
        (
            "sqs",
            "get_queue_url",
            {"QueueName": "notices"},
            ("SignatureDoesNotMatch", 403),
            ("InvalidClientTokenId", 403),
        ),
        (
            "pricing",
            "get_products",
            {"ServiceCode": "AmazonEC2"},
            ("InvalidSignatureException", 400),
            ("UnrecognizedClientException", 400),
        ),
    ],
)
async def test_a_wrong_secret_and_an_unknown_key_are_refused_in_each_service_own_words(
    service: str, operation: str, parameters: dict[str, Any], wrong: tuple[str, int], unknown: tuple[str, int]
) -> None:
    async with served_aws() as aws:
        assert await code_of(aws.ask(service, operation, key=WRONG, **parameters)) == wrong
        assert await code_of(aws.ask(service, operation, key=UNKNOWN, **parameters)) == unknown
        await aws.ask(service, operation, **parameters)


async def test_a_request_that_was_changed_on_its_way_is_refused() -> None:
    async with served_aws() as aws:
        signed: dict[str, Any] = {}
        client = aws.client("ec2")
        client.meta.events.register("before-send.ec2", lambda request, **_: signed.update(sent=request))
        await aws.ec2("describe_instances")
        headers = {name: _text(value) for name, value in signed["sent"].headers.items()}
        body = _text(signed["sent"].body)
        async with aiohttp.ClientSession() as session:
            for changed, status in ((body, 200), (body.replace("Instances", "Subnets"), 401)):
                headers["Content-Length"] = str(len(changed))
                async with session.post(f"{aws.url}/", data=changed, headers=headers) as response:
                    assert response.status == status
            async with session.post(f"{aws.url}/", data=body) as response:
                assert response.status == 403
                assert "MissingAuthenticationToken" in await response.text()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


async def test_a_clock_ten_minutes_off_is_refused_and_shown_by_the_date() -> None:
    async with served_aws() as aws:
        for offset_s in (600.0, -600.0):
            aws.site.faults.clock_skew_s = offset_s
            response = await refusal(aws.ec2("describe_instances"))
            assert response["Error"]["Code"] == "RequestExpired"
            said = parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"])
            ours = aws.site.driver.now + offset_s
            assert abs(said.timestamp() - ours) < timedelta(seconds=30).total_seconds()
            assert (await code_of(aws.ask("sts", "get_caller_identity"))) == ("SignatureDoesNotMatch", 403)
        aws.site.faults.clock_skew_s = 120.0
        await aws.ec2("describe_instances")


async def test_a_key_without_a_permission_is_told_which() -> None:
    async with served_aws() as aws:
        aws.site.access.grant(ACCESS_KEY, SECRET, allows=all_but("ec2:DescribeInstances", "sqs:*", "pricing:*"))
        response = await refusal(aws.ec2("describe_instances"))
        assert response["Error"]["Code"] == "UnauthorizedOperation"
        assert "is not authorized to perform: ec2:DescribeInstances" in response["Error"]["Message"]
        assert await code_of(aws.ask("sqs", "get_queue_url", QueueName="notices")) == ("AccessDenied", 403)
        products = aws.ask("pricing", "get_products", ServiceCode="AmazonEC2")
        assert await code_of(products) == ("AccessDeniedException", 400)
        await aws.ec2("describe_subnets")


async def test_a_fleet_that_may_be_made_but_not_its_machines_says_so_in_its_errors() -> None:
    async with served_aws() as aws:
        template_id = await aws.template()
        aws.site.access.grant(ACCESS_KEY, SECRET, allows=only("ec2:CreateFleet", "ec2:CreateTags"))
        assert errors_of(await aws.fleet(template_id)) == [("m7i.large", "UnauthorizedOperation")]
        aws.site.access.grant(ACCESS_KEY, SECRET, allows=only("ec2:RunInstances", "ec2:CreateTags"))
        with pytest.raises(ClientError, match="ec2:CreateFleet"):
            await aws.fleet(template_id)


async def test_calls_are_recorded_with_what_iam_sees_of_them() -> None:
    async with served_aws() as aws:
        (id_,) = ids_of(await aws.fleet(await aws.template()))
        aws.site.access.calls.clear()
        await aws.ec2("terminate_instances", InstanceIds=[id_])
        (call,) = aws.site.access.calls
        assert (call.permission, call.region) == ("ec2:TerminateInstances", REGION)
        assert call.resource == f"arn:aws:ec2:{REGION}:123456789012:instance/{id_}"
        assert call.context["aws:ResourceTag/autoscaler-deployment"] == "ci"


async def test_an_assumed_role_has_its_own_permissions_and_ends() -> None:
    async with served_aws() as aws:
        arn = "arn:aws:iam::123456789012:role/deployer"
        assume = {"RoleArn": arn, "RoleSessionName": "tests", "DurationSeconds": 900}
        assert await code_of(aws.ask("sts", "assume_role", **assume)) == ("AccessDenied", 403)
        aws.site.access.roles[arn] = only("ec2:DescribeSubnets")
        given = (await aws.ask("sts", "assume_role", **assume))["Credentials"]
        key = {
            "access_key": given["AccessKeyId"],
            "secret": given["SecretAccessKey"],
            "token": given["SessionToken"],
        }
        who = await aws.ask("sts", "get_caller_identity", key=key)
        assert who["Arn"] == "arn:aws:sts::123456789012:assumed-role/deployer/tests"
        await aws.ask("ec2", "describe_subnets", key=key)
        assert (await code_of(aws.ask("ec2", "describe_instances", key=key)))[0] == "UnauthorizedOperation"
        assert (await code_of(aws.ask("ec2", "describe_subnets", key=key | {"token": "forged"})))[0] == "AuthFailure"


async def test_a_region_that_the_account_does_not_have_knows_no_key_of_it() -> None:
    async with served_aws() as aws:
        elsewhere = aws.ask("ec2", "describe_instances", key={"region": "me-south-1"})
        assert await code_of(elsewhere) == ("AuthFailure", 401)


async def test_unknown_actions_and_parameters_are_refused() -> None:
    async with served_aws() as aws:
        assert await code_of(aws.ec2("describe_vpcs")) == ("InvalidAction", 400)
        unknown = aws.ec2("describe_instances", IncludeManagedResources=True)
        assert await code_of(unknown) == ("UnknownParameter", 400)


# --------------------------------------------------------------------------- the policies of deploy/aws


def deployed(aws: ServedAws, *, deployment: str = "ci") -> None:
    """Puts the controller's policy in force."""
    document = (DEPLOY / "controller-policy.json").read_text()
    allows = policy_of([document], partition="aws", account=aws.site.account, deployment=deployment)
    aws.site.access.grant(ACCESS_KEY, SECRET, allows=allows)


def tagged(deployment: str = "ci") -> dict[str, Any]:
    tags = [{"Key": "autoscaler-deployment", "Value": deployment}]
    kinds = ("instance", "volume", "network-interface", "spot-instances-request")
    return {"TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in kinds]}


async def launch_template(aws: ServedAws, deployment: str = "ci") -> str:
    tags = [{"Key": "autoscaler-deployment", "Value": deployment}]
    made = await aws.ec2(
        "create_launch_template",
        LaunchTemplateName="runners",
        LaunchTemplateData={"ImageId": "ami-0123456789abcdef0", **tagged(deployment)},
        TagSpecifications=[{"ResourceType": "launch-template", "Tags": tags}],
    )
    return str(made["LaunchTemplate"]["LaunchTemplateId"])


async def test_the_deployed_policy_lets_a_fleet_be_launched_and_ended() -> None:
    async with served_aws() as aws:
        deployed(aws)
        answer = await aws.fleet(await launch_template(aws), override())
        assert answer["Errors"] == []
        await aws.ec2("terminate_instances", InstanceIds=ids_of(answer))
        assert {"ec2:CreateFleet", "ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances"} <= permissions(
            aws.site.access.calls
        )


async def test_the_deployed_policy_lets_nobody_touch_what_another_deployment_made() -> None:
    async with served_aws() as aws:
        answer = await aws.fleet(await launch_template(aws, "other"), override())
        deployed(aws)
        ended = aws.ec2("terminate_instances", InstanceIds=ids_of(answer))
        # The fleet request's own tags say "ci" on the fleet alone; the machines are the other's.
        assert (await code_of(ended))[0] == "UnauthorizedOperation"
        with pytest.raises(ClientError, match="launch-template"):
            await aws.fleet(next(iter(aws.site.ec2.templates.templates)), override())
        with pytest.raises(ClientError, match="ec2:CreateTags"):
            await aws.ec2("create_tags", Resources=ids_of(answer), Tags=[{"Key": "k", "Value": "v"}])


def test_a_condition_that_is_not_known_is_no_silent_yes() -> None:
    statement = '{"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {"IpAddress": {"aws:SourceIp": "x"}}}'
    with pytest.raises(ValueError, match="IpAddress"):
        policy_of([f'{{"Statement": [{statement}]}}'])
