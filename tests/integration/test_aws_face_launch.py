"""CreateFleet, RunInstances and launch templates of the sandbox's EC2, asked by boto3.

A little longer than others: the three ways to launch share their builders and are compared with each other.
"""

import asyncio
import base64
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from autoscaler.sandbox.aws_access import all_but
from autoscaler.sandbox.aws_limits import AwsLimits, Bucket
from autoscaler.sandbox.aws_query import AwsError
from autoscaler.sandbox.cloud_faults import CloudFaults
from autoscaler.spi import CapacityPool, CapacityType
from tests.aws_site import (
    ACCESS_KEY,
    AMI,
    ARM_AMI,
    REGION,
    SECRET,
    errors_of,
    fleet_request,
    ids_of,
    in_thread,
    make_site,
    override,
    served_aws,
    subnet,
    supply,
    template_document,
)
from tests.polling import until

SPOT, ON_DEMAND = CapacityType.SPOT, CapacityType.ON_DEMAND
PERSISTENT: dict[str, Any] = {
    "MarketType": "spot",
    "SpotOptions": {"SpotInstanceType": "persistent", "InstanceInterruptionBehavior": "stop"},
}


def pool(machine_type: str, zone: str = "us-east-1a", capacity_type: CapacityType = SPOT) -> CapacityPool:
    return supply(machine_type, zone, capacity_type).pool


def run_request(template_id: str, **changed: Any) -> dict[str, Any]:
    request: dict[str, Any] = {
        "LaunchTemplate": {"LaunchTemplateId": template_id, "Version": "1"},
        "InstanceType": "m7i.large",
        "SubnetId": subnet("a"),
        "MinCount": 1,
        "MaxCount": 1,
    }
    return request | changed


async def refusal(call: Any) -> tuple[str, int, str]:
    """Code, HTTP status and message of the error that a call gets."""
    with pytest.raises(ClientError) as caught:
        await call
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Message"]


# --------------------------------------------------------------------------- CreateFleet


async def test_a_fleet_is_grouped_by_override_and_fills_what_is_cheap_and_roomy_first() -> None:
    site = make_site([supply("m7i.large", slots=2), supply("c7i.large", usd_hour=0.03, slots=3)])
    async with served_aws(site) as aws:
        answer = await aws.fleet(await aws.template(), override(), override("c7i.large"), count=5)
        groups = [(group["InstanceType"], len(group["InstanceIds"])) for group in answer["Instances"]]
        assert groups == [("c7i.large", 3), ("m7i.large", 2)]
        assert answer["Errors"][0]["ErrorCode"] == "InsufficientInstanceCapacity"
        assert {group["Lifecycle"] for group in answer["Instances"]} == {"spot"}
        assert answer["Instances"][0]["AvailabilityZoneId"] == "use1-az1"


async def test_a_fleet_is_an_answer_even_when_nothing_was_launched() -> None:
    site = make_site([supply("m7i.large", slots=0)])
    async with served_aws(site) as aws:
        answer = await aws.fleet(await aws.template(), override(), count=3)
        assert answer["Instances"] == []
        assert errors_of(answer) == [("m7i.large", "InsufficientInstanceCapacity")]
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200


async def test_errors_speak_of_overrides_and_come_with_full_success() -> None:
    site = make_site([supply("m7i.large", slots=1), supply("m7i.large", "us-east-1b", slots=9, usd_hour=0.05)])
    async with served_aws(site) as aws:
        options = {"AllocationStrategy": "lowest-price"}
        answer = await aws.fleet(await aws.template(), override(), override(letter="b"), count=4, SpotOptions=options)
        assert len(ids_of(answer)) == 4
        assert errors_of(answer) == [("m7i.large", "InsufficientInstanceCapacity")]


async def test_on_demand_is_filled_by_priority() -> None:
    async with served_aws() as aws:
        answer = await aws.fleet(
            await aws.template(),
            override("m7i.xlarge", Priority=0.0),
            override("c7i.large", Priority=1.0),
            OnDemandOptions={"AllocationStrategy": "prioritized"},
            TargetCapacitySpecification={"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "on-demand"},
        )
        (group,) = answer["Instances"]
        assert (group["InstanceType"], group["Lifecycle"]) == ("m7i.xlarge", "on-demand")
        (machine,) = await aws.machines(InstanceIds=group["InstanceIds"])
        assert "InstanceLifecycle" not in machine
        assert "SpotInstanceRequestId" not in machine


async def test_diversified_spreads_over_the_overrides() -> None:
    async with served_aws() as aws:
        answer = await aws.fleet(
            await aws.template(),
            override(),
            override("c7i.large", "b"),
            count=6,
            SpotOptions={"AllocationStrategy": "diversified"},
        )
        assert sorted(len(group["InstanceIds"]) for group in answer["Instances"]) == [3, 3]


@pytest.mark.parametrize(
    ("arrange", "code"),
    [
        (
            lambda site: site.setup.refusals.update({pool("m7i.large"): "UnfulfillableCapacity"}),
            "UnfulfillableCapacity",
        ),
        (lambda site: site.cloud.capacity.quotas.update({(REGION, SPOT): 0.0}), "MaxSpotInstanceCountExceeded"),
        (
            lambda site: setattr(site.setup.subnet(REGION, subnet("a")), "free_addresses", 0),
            "InsufficientFreeAddressesInSubnet",
        ),
        (lambda site: site.setup.images_by_id.pop((REGION, AMI)), "InvalidAMIID.NotFound"),
        (lambda site: site.setup.subnets_by_id.pop((REGION, subnet("a"))), "InvalidSubnetID.NotFound"),
        (lambda site: site.setup.groups.clear(), "InvalidGroup.NotFound"),
        (lambda site: site.cloud.capacity.supplies.pop(pool("m7i.large")), "Unsupported"),
    ],
    ids=["scripted", "quota", "addresses", "image", "subnet", "group", "type"],
)
async def test_what_a_fleet_cannot_have_is_named_in_its_errors(arrange: Any, code: str) -> None:
    async with served_aws() as aws:
        template_id = await aws.template()
        arrange(aws.site)
        answer = await aws.fleet(template_id, override(), count=2)
        assert errors_of(answer) == [("m7i.large", code)]
        assert ids_of(answer) == []


async def test_the_image_must_fit_the_machine() -> None:
    async with served_aws() as aws:
        answer = await aws.fleet(await aws.template(), override("m7g.large"))
        assert errors_of(answer) == [("m7g.large", "InvalidParameterValue")]
        answer = await aws.fleet(await aws.template("arm", ImageId=ARM_AMI), override("m7g.large"))
        (machine,) = await aws.machines(InstanceIds=ids_of(answer))
        assert machine["Architecture"] == "arm64"


async def test_two_subnets_of_one_zone_are_refused() -> None:
    async with served_aws() as aws:
        aws.site.setup.add_subnet(
            REGION, type(aws.site.setup.subnets(REGION)[0])(id="subnet-2", zone="us-east-1a", vpc_id="v")
        )
        request = fleet_request(await aws.template(), override(), override() | {"SubnetId": "subnet-2"})
        assert (await refusal(aws.ec2("create_fleet", **request)))[0] == "InvalidParameterCombination"


# --------------------------------------------------------------------------- client tokens


async def test_the_same_token_and_request_give_the_same_machines() -> None:
    async with served_aws() as aws:
        request = fleet_request(await aws.template(), count=3, ClientToken="t1")
        first, second = await aws.ec2("create_fleet", **request), await aws.ec2("create_fleet", **request)
        assert ids_of(first) == ids_of(second)
        assert len(await aws.machines()) == 3


async def test_a_token_with_another_request_is_a_mismatch_also_after_a_failure() -> None:
    site = make_site([supply("m7i.large", slots=0)])
    async with served_aws(site) as aws:
        template_id = await aws.template()
        assert ids_of(await aws.fleet(template_id, count=1, ClientToken="t1")) == []
        request = fleet_request(template_id, count=2, ClientToken="t1")
        assert (await refusal(aws.ec2("create_fleet", **request)))[0] == "IdempotentParameterMismatch"
        run = run_request(template_id, ClientToken="t2", InstanceMarketOptions={"MarketType": "spot"})
        assert (await refusal(aws.ec2("run_instances", **run)))[0] == "InsufficientInstanceCapacity"
        run["SubnetId"] = subnet("b")
        assert (await refusal(aws.ec2("run_instances", **run)))[0] == "IdempotentParameterMismatch"


async def test_a_throttled_attempt_does_not_burn_its_token() -> None:
    async with served_aws() as aws:
        template_id = await aws.template()
        aws.face.troubles.fail_next(
            "CreateFleet", AwsError("RequestLimitExceeded", "Request limit exceeded.", status=503)
        )
        request = fleet_request(template_id, ClientToken="t1")
        assert (await refusal(aws.ec2("create_fleet", **request)))[:2] == ("RequestLimitExceeded", 503)
        assert len(ids_of(await aws.fleet(template_id, count=2, ClientToken="t1"))) == 2


async def test_a_lost_answer_took_effect_and_its_repeat_finds_the_machines() -> None:
    async with served_aws() as aws:
        request = fleet_request(await aws.template(), count=2, ClientToken="t1")
        aws.face.troubles.next_lost["CreateFleet"] = 1
        with pytest.raises(ConnectionClosedError):
            await aws.ec2("create_fleet", **request)
        made = {machine["InstanceId"] for machine in await aws.machines()}
        assert len(made) == 2
        assert set(ids_of(await aws.ec2("create_fleet", **request))) == made


async def test_an_answer_that_never_comes_took_effect_too() -> None:
    async with served_aws() as aws:
        request = fleet_request(await aws.template(), count=2, ClientToken="t1")
        aws.face.troubles.next_hung["CreateFleet"] = 1
        with pytest.raises(ReadTimeoutError):
            await in_thread(aws.client("ec2", read_timeout_s=0.3).create_fleet, **request)
        assert len(await aws.machines()) == 2
        assert len(ids_of(await aws.ec2("create_fleet", **request))) == 2
        assert len(await aws.machines()) == 2


async def test_spot_needs_its_service_linked_role() -> None:
    async with served_aws() as aws:
        aws.site.iam.has_spot_role = False
        template_id = await aws.template()
        aws.site.access.grant(ACCESS_KEY, SECRET, allows=all_but("iam:CreateServiceLinkedRole"))
        errors = errors_of(await aws.fleet(template_id))
        assert errors == [("m7i.large", "AuthFailure.ServiceLinkedRoleCreationNotPermitted")]
        on_demand = {"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "on-demand"}
        assert len(ids_of(await aws.fleet(template_id, TargetCapacitySpecification=on_demand))) == 1
        aws.site.access.grant(ACCESS_KEY, SECRET)
        assert len(ids_of(await aws.fleet(template_id))) == 1
        assert aws.site.iam.has_spot_role


async def test_an_image_may_be_named_by_a_parameter() -> None:
    async with served_aws() as aws:
        template_id = await aws.template(ImageId="resolve:ssm:/runners/image")
        assert errors_of(await aws.fleet(template_id)) == [("m7i.large", "InvalidParameterValue")]
        aws.site.ssm.parameters[REGION, "/runners/image"] = AMI
        (machine,) = await aws.machines(InstanceIds=ids_of(await aws.fleet(template_id)))
        assert machine["ImageId"] == AMI


async def test_answers_of_writes_are_lost_by_share_and_reads_are_not() -> None:
    site = make_site(faults=CloudFaults(lost_answer=1.0))
    async with served_aws(site) as aws:
        with pytest.raises(ConnectionClosedError):
            await aws.template()
        assert (await aws.ec2("describe_launch_templates"))["LaunchTemplates"][0]["LaunchTemplateName"] == "runners"


# --------------------------------------------------------------------------- faults by share


async def test_spot_is_refused_by_share_and_on_demand_is_not() -> None:
    site = make_site(faults=CloudFaults(refuse=1.0))
    async with served_aws(site) as aws:
        template_id = await aws.template()
        assert errors_of(await aws.fleet(template_id)) == [("m7i.large", "InsufficientInstanceCapacity")]
        answer = await aws.fleet(
            template_id,
            TargetCapacitySpecification={"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "on-demand"},
        )
        assert len(ids_of(answer)) == 1


async def test_a_stillborn_machine_gets_an_id_and_ends_with_its_reason() -> None:
    site = make_site(faults=CloudFaults(stillborn=1.0, stillborn_reasons=("Client.VolumeLimitExceeded",)))
    async with served_aws(site) as aws:
        (id_,) = ids_of(await aws.fleet(await aws.template()))

        async def ended() -> Any:
            (machine,) = await aws.machines(InstanceIds=[id_])
            return machine if machine["State"]["Name"] == "terminated" else None

        machine = await until(ended)
        assert machine["StateReason"]["Code"] == "Client.VolumeLimitExceeded"


async def test_calls_fail_by_share() -> None:
    site = make_site(faults=CloudFaults(throttle=1.0))
    async with served_aws(site) as aws:
        assert (await refusal(aws.ec2("describe_instances")))[:2] == ("RequestLimitExceeded", 503)
        assert (await refusal(aws.ask("sts", "get_caller_identity")))[0] == "Throttling"
        assert (await refusal(aws.ask("sqs", "get_queue_url", QueueName="notices")))[0] == "RequestThrottled"
        site.faults.throttle, site.faults.internal_error = 0.0, 1.0
        assert (await refusal(aws.ec2("describe_instances")))[:2] == ("InternalError", 500)
        site.faults.end()
        assert await aws.machines() == []


# --------------------------------------------------------------------------- request limits


async def test_the_rate_of_new_machines_limits_a_fleet_and_refills() -> None:
    limits = AwsLimits(launched_machines=Bucket(size=3, refill_per_s=0.0))
    async with served_aws(make_site(limits=limits)) as aws:
        template_id = await aws.template()
        answer = await aws.fleet(template_id, count=5)
        assert len(ids_of(answer)) == 3
        assert errors_of(answer) == [("m7i.large", "RequestLimitExceeded")]
        assert ids_of(await aws.fleet(template_id)) == []
        limits.launched_machines = Bucket(size=3, refill_per_s=1000.0)
        await asyncio.sleep(0)
        assert len(ids_of(await until(lambda: aws.fleet(template_id, count=2)))) == 2


async def test_each_api_has_a_bucket_of_its_own() -> None:
    limits = AwsLimits(mutate=Bucket(size=1, refill_per_s=0.0), describe=Bucket(size=2, refill_per_s=0.0))
    async with served_aws(make_site(limits=limits)) as aws:
        template_id = await aws.template()
        assert (await refusal(aws.template("another")))[0] == "RequestLimitExceeded"
        assert len(ids_of(await aws.fleet(template_id))) == 1
        assert len(await aws.machines(MaxResults=5)) == 1
        assert len(await aws.machines(MaxResults=5)) == 1
        assert (await refusal(aws.ec2("describe_instances", MaxResults=5)))[0] == "RequestLimitExceeded"
        assert len(await aws.machines()) == 1, "unfiltered describes have another bucket"


# --------------------------------------------------------------------------- RunInstances


async def test_run_instances_fails_as_a_call_where_a_fleet_would_answer() -> None:
    site = make_site([supply("m7i.large", capacity_type=ON_DEMAND, slots=1)])
    async with served_aws(site) as aws:
        template_id = await aws.template()
        code, status, message = await refusal(
            aws.ec2("run_instances", **run_request(template_id, MinCount=2, MaxCount=2))
        )
        assert (code, status) == ("InsufficientInstanceCapacity", 500)
        assert "us-east-1a" in message
        answer = await aws.ec2("run_instances", **run_request(template_id, MaxCount=2))
        assert len(answer["Instances"]) == 1


async def test_a_persistent_spot_request_is_stopped_when_reclaimed_and_keeps_its_machine() -> None:
    async with served_aws() as aws:
        run = run_request(await aws.template(), InstanceMarketOptions=PERSISTENT)
        (made,) = (await aws.ec2("run_instances", **run))["Instances"]
        id_ = made["InstanceId"]

        async def state() -> str:
            (machine,) = await aws.machines(InstanceIds=[id_])
            return str(machine["State"]["Name"])

        async def is_in(wanted: str) -> bool:
            return await state() == wanted

        await until(lambda: is_in("running"))
        aws.site.reclaim(id_, notice_s=0)
        await until(lambda: is_in("stopped"))
        (machine,) = await aws.machines(InstanceIds=[id_])
        assert machine["StateReason"]["Code"] == "Server.SpotInstanceShutdown"
        (request,) = (await aws.ec2("describe_spot_instance_requests"))["SpotInstanceRequests"]
        assert (request["State"], request["Status"]["Code"]) == ("disabled", "instance-stopped-no-capacity")
        await aws.ec2("start_instances", InstanceIds=[id_])
        await until(lambda: is_in("running"))


async def test_a_persistent_request_launches_again_until_it_is_cancelled() -> None:
    async with served_aws() as aws:
        run = run_request(await aws.template(), InstanceMarketOptions=PERSISTENT)
        (made,) = (await aws.ec2("run_instances", **run))["Instances"]
        await aws.ec2("terminate_instances", InstanceIds=[made["InstanceId"]])

        async def living() -> list[str]:
            found = await aws.machines(Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}])
            return [machine["InstanceId"] for machine in found]

        (another,) = await until(living)
        assert another != made["InstanceId"]
        requests = (await aws.ec2("describe_spot_instance_requests"))["SpotInstanceRequests"]
        assert [request["InstanceId"] for request in requests] == [another]
        await aws.ec2("cancel_spot_instance_requests", SpotInstanceRequestIds=[requests[0]["SpotInstanceRequestId"]])
        await aws.ec2("terminate_instances", InstanceIds=[another])

        async def all_ended() -> bool:
            return {machine["State"]["Name"] for machine in await aws.machines()} == {"terminated"}

        await until(all_ended)
        assert await living() == []


async def test_a_dry_run_changes_nothing_and_says_what_would_be() -> None:
    async with served_aws() as aws:
        template_id = await aws.template()
        for call in (
            aws.ec2("create_fleet", **fleet_request(template_id, ClientToken="t", DryRun=True)),
            aws.ec2("run_instances", **run_request(template_id, DryRun=True)),
        ):
            assert (await refusal(call))[:2] == ("DryRunOperation", 412)
        assert await aws.machines() == []
        assert len(ids_of(await aws.fleet(template_id, count=2, ClientToken="t"))) == 2


# --------------------------------------------------------------------------- launch templates


async def test_a_template_tells_what_it_was_given() -> None:
    async with served_aws() as aws:
        template_id = await aws.template()
        answer = await aws.ec2("describe_launch_template_versions", LaunchTemplateId=template_id)
        (version,) = answer["LaunchTemplateVersions"]
        given, shown = template_document(), version["LaunchTemplateData"]
        assert {name: shown[name] for name in given} == given


async def test_a_template_has_one_name_one_life_and_may_change_behind_our_back() -> None:
    async with served_aws() as aws:
        template_id = await aws.template()
        code = (await refusal(aws.template()))[0]
        assert code == "InvalidLaunchTemplateName.AlreadyExistsException"
        specification = aws.site.ec2.templates.templates[template_id].versions[0]
        aws.site.ec2.templates.change(template_id, specification)
        (row,) = (await aws.ec2("describe_launch_templates", LaunchTemplateNames=["runners"]))["LaunchTemplates"]
        assert (row["DefaultVersionNumber"], row["LatestVersionNumber"]) == (2, 2)
        await aws.ec2("delete_launch_template", LaunchTemplateId=template_id)
        request = fleet_request(template_id)
        assert (await refusal(aws.ec2("create_fleet", **request)))[0] == "InvalidLaunchTemplateId.NotFound"
        by_name = aws.ec2("describe_launch_templates", LaunchTemplateNames=["runners"])
        assert (await refusal(by_name))[0] == "InvalidLaunchTemplateName.NotFoundException"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"UserData": base64.b64encode(b"x" * 16_385).decode()}, "InvalidUserData.Malformed"),
        ({"UserData": "no base64!"}, "InvalidUserData.Malformed"),
        (
            {"TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "a/b", "Value": ""}]}]},
            "InvalidParameterValue",
        ),
        (
            {
                "TagSpecifications": [
                    {"ResourceType": "instance", "Tags": [{"Key": f"k{n}", "Value": ""} for n in range(51)]}
                ]
            },
            "TagLimitExceeded",
        ),
        ({"NetworkInterfaces": [{"DeviceIndex": 0, "Groups": ["sg-1"]}]}, "InvalidParameterCombination"),
    ],
)
async def test_a_template_that_cannot_launch_is_refused(changed: dict[str, Any], code: str) -> None:
    async with served_aws() as aws:
        assert (await refusal(aws.template(**changed)))[0] == code


async def test_an_instance_profile_must_exist() -> None:
    async with served_aws() as aws:
        template_id = await aws.template(IamInstanceProfile={"Name": "runner"})
        answer = await aws.fleet(template_id)
        assert errors_of(answer) == [("m7i.large", "InvalidParameterValue")]
        aws.site.iam.instance_profiles["runner"] = "runner-role"
        (machine,) = await aws.machines(InstanceIds=ids_of(await aws.fleet(template_id)))
        assert machine["IamInstanceProfile"]["Arn"].endswith("instance-profile/runner")
