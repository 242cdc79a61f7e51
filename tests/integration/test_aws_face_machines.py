"""Instances, spot requests and the catalogue of the sandbox's EC2, asked by boto3."""

import dataclasses
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from autoscaler.sandbox.cloud_capacity import Series
from autoscaler.spi import CapacityType
from tests.aws_site import (
    AMI,
    GROUP,
    QUICK,
    REGION,
    ServedAws,
    ids_of,
    make_site,
    override,
    served_aws,
    subnet,
    supply,
    usual_supplies,
)
from tests.polling import until

OURS = [{"Name": "tag:autoscaler-deployment", "Values": ["ci"]}]


async def refusal(call: Awaitable[Any]) -> tuple[str, str]:
    """Code and message of the error that a call gets."""
    with pytest.raises(ClientError) as caught:
        await call
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


async def launched(aws: ServedAws, count: int = 1, *overrides: dict[str, Any]) -> list[str]:
    return ids_of(await aws.fleet(await aws.template(), *overrides, count=count))


async def machine(aws: ServedAws, id_: str) -> dict[str, Any]:
    (found,) = await aws.machines(InstanceIds=[id_])
    return found


async def in_state(aws: ServedAws, id_: str, wanted: str) -> dict[str, Any]:
    """The machine once it is in a state."""

    async def found() -> dict[str, Any] | None:
        one = await machine(aws, id_)
        return one if one["State"]["Name"] == wanted else None

    result: dict[str, Any] = await until(found)
    return result


# --------------------------------------------------------------------------- describing


async def test_a_description_is_as_long_and_as_full_as_the_real_one() -> None:
    async with served_aws() as aws:
        (id_,) = await launched(aws)
        one = await machine(aws, id_)
        assert one["InstanceLifecycle"] == "spot"
        assert one["SpotInstanceRequestId"].startswith("sir-")
        assert {tag["Key"]: tag["Value"] for tag in one["Tags"]} == {
            "autoscaler-deployment": "ci",
            "autoscaler-batch": "b1",
        }
        assert one["MetadataOptions"]["HttpTokens"] == "required"
        assert one["NetworkInterfaces"][0]["PrivateIpAddress"] == one["PrivateIpAddress"]
        assert (one["ImageId"], one["SubnetId"]) == (AMI, subnet("a"))
        launch = aws.site.world.launched[id_]
        rendered = aws.site.ec2.instances.rendered(aws.site.cloud.machines[id_], launch)
        assert len(rendered.xml) >= 2_500


async def test_machines_are_described_under_the_reservation_that_made_them() -> None:
    async with served_aws() as aws:
        template_id = await aws.template()
        launches = [ids_of(await aws.fleet(template_id, count=count)) for count in (2, 1)]
        found = (await aws.ec2("describe_instances"))["Reservations"]
        assert [[one["InstanceId"] for one in reservation["Instances"]] for reservation in found] == launches


async def test_pages_hold_every_machine_once_and_end() -> None:
    async with served_aws() as aws:
        made = await launched(aws, 12)
        found = await aws.machines(Filters=OURS, MaxResults=5)
        assert sorted(one["InstanceId"] for one in found) == sorted(made)
        assert (await refusal(aws.ec2("describe_instances", MaxResults=4)))[0] == "InvalidParameterValue"
        assert (await refusal(aws.ec2("describe_instances", NextToken="junk")))[0] == "InvalidNextToken"


async def test_a_listing_can_fail_on_a_later_page() -> None:
    async with served_aws() as aws:
        await launched(aws, 12)
        aws.site.ec2.instances.failing_page = 3
        assert (await refusal(aws.machines(MaxResults=5)))[0] == "InternalError"
        aws.site.ec2.instances.failing_page = None
        assert len(await aws.machines(MaxResults=5)) == 12


@pytest.mark.parametrize(
    ("name", "values", "count"),
    [
        ("tag:autoscaler-deployment", ["other", "c*"], 3),
        ("tag:autoscaler-deployment", ["C*"], 0),
        ("tag-key", ["autoscaler-batch"], 3),
        ("instance-state-name", ["pending", "running"], 3),
        ("instance-state-name", ["terminated"], 0),
        ("instance-type", ["c7i.large"], 1),
        ("availability-zone", ["us-east-1b"], 1),
        ("instance-lifecycle", ["spot"], 3),
        ("client-token", ["token"], 3),
        ("subnet-id", [subnet("a")], 2),
    ],
)
async def test_filters_choose(name: str, values: list[str], count: int) -> None:
    site = make_site([supply("m7i.large", slots=1), supply("m7i.large", "us-east-1b", slots=1), supply("c7i.large")])
    async with served_aws(site) as aws:
        template_id = await aws.template()
        overrides = (override(usd) for usd in ("m7i.large", "c7i.large"))
        await aws.fleet(
            template_id,
            *overrides,
            override(letter="b"),
            count=3,
            ClientToken="token",
            SpotOptions={"AllocationStrategy": "diversified"},
        )
        assert len(await aws.machines(Filters=[{"Name": name, "Values": values}])) == count


async def test_filters_add_up_and_unknown_ones_are_refused() -> None:
    async with served_aws() as aws:
        await launched(aws)
        both = [*OURS, {"Name": "instance-type", "Values": ["c7i.large"]}]
        assert await aws.machines(Filters=both) == []
        strange = aws.ec2("describe_instances", Filters=[{"Name": "colour", "Values": ["red"]}])
        assert (await refusal(strange))[0] == "InvalidParameterValue"


async def test_a_new_machine_is_unknown_until_its_lag_is_over() -> None:
    site = make_site(times=dataclasses.replace(QUICK, shown_after=(0.4, 0.4)))
    async with served_aws(site) as aws:
        (id_,) = await launched(aws)
        assert (await refusal(aws.ec2("describe_instances", InstanceIds=[id_])))[0] == "InvalidInstanceID.NotFound"
        assert (await refusal(aws.ec2("terminate_instances", InstanceIds=[id_])))[0] == "InvalidInstanceID.NotFound"
        assert await aws.machines(Filters=OURS) == []
        assert len(await until(lambda: aws.machines(Filters=OURS))) == 1


async def test_an_ended_machine_is_forgotten_after_a_while() -> None:
    site = make_site(times=dataclasses.replace(QUICK, kept_s=0.3))
    async with served_aws(site) as aws:
        (id_,) = await launched(aws)
        await aws.ec2("terminate_instances", InstanceIds=[id_])

        async def is_gone() -> bool:
            return await aws.machines() == []

        await until(is_gone)
        assert (await refusal(aws.ec2("describe_instances", InstanceIds=[id_])))[0] == "InvalidInstanceID.NotFound"
        assert (await aws.ec2("describe_spot_instance_requests"))["SpotInstanceRequests"] == []
        assert aws.site.setup.subnet(REGION, subnet("a")).free_addresses == 65_531


async def test_other_regions_see_nothing() -> None:
    async with served_aws(make_site(regions=(REGION, "eu-central-1"))) as aws:
        (id_,) = await launched(aws)
        elsewhere = {"region": "eu-central-1"}
        assert (await aws.ask("ec2", "describe_instances", key=elsewhere))["Reservations"] == []
        ended = aws.ask("ec2", "terminate_instances", key=elsewhere, InstanceIds=[id_])
        assert (await refusal(ended))[0] == "InvalidInstanceID.NotFound"


# --------------------------------------------------------------------------- ending and stopping


async def test_one_unknown_id_fails_all_and_is_named() -> None:
    async with served_aws() as aws:
        made = await launched(aws, 2)
        strangers = ["i-00000000000000001", "i-00000000000000002"]
        code, message = await refusal(aws.ec2("terminate_instances", InstanceIds=[*made, strangers[0]]))
        assert (code, message) == ("InvalidInstanceID.NotFound", f"The instance ID '{strangers[0]}' does not exist")
        code, message = await refusal(aws.ec2("terminate_instances", InstanceIds=[made[0], *strangers]))
        assert message == f"The instance IDs '{', '.join(strangers)}' do not exist"
        malformed = aws.ec2("terminate_instances", InstanceIds=["machine-1"])
        assert (await refusal(malformed))[0] == "InvalidInstanceID.Malformed"
        assert {(await machine(aws, id_))["State"]["Name"] for id_ in made} <= {"pending", "running"}


async def test_a_terminated_machine_says_who_ended_it_and_may_be_ended_again() -> None:
    async with served_aws() as aws:
        (id_,) = await launched(aws)
        answer = await aws.ec2("terminate_instances", InstanceIds=[id_])
        assert answer["TerminatingInstances"][0]["CurrentState"]["Name"] == "shutting-down"
        one = await in_state(aws, id_, "terminated")
        assert one["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
        assert one["StateTransitionReason"].startswith("User initiated (")
        assert one["NetworkInterfaces"] == []
        again = (await aws.ec2("terminate_instances", InstanceIds=[id_]))["TerminatingInstances"][0]
        assert (again["PreviousState"]["Name"], again["CurrentState"]["Name"]) == ("terminated", "terminated")


async def test_a_machine_that_powers_itself_off_ends_as_its_template_says() -> None:
    async with served_aws() as aws:
        ends, stops = await aws.template(), await aws.template("stops", InstanceInitiatedShutdownBehavior="stop")
        for template_id, state in ((ends, "terminated"), (stops, "stopped")):
            (id_,) = ids_of(await aws.fleet(template_id))
            aws.site.cloud.power_off_by_itself(id_, aws.site.driver.now)
            aws.site.settle()
            one = await in_state(aws, id_, state)
            assert one["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"


async def test_one_time_spot_cannot_be_stopped_and_on_demand_can() -> None:
    async with served_aws() as aws:
        (spot,) = await launched(aws)
        await in_state(aws, spot, "running")
        code, message = await refusal(aws.ec2("stop_instances", InstanceIds=[spot]))
        assert code == "UnsupportedOperation"
        assert "one-time Spot Instance request" in message
        capacity = {"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "on-demand"}
        template_id = next(iter(aws.site.ec2.templates.templates))
        (id_,) = ids_of(await aws.fleet(template_id, TargetCapacitySpecification=capacity))
        await in_state(aws, id_, "running")
        await aws.ec2("stop_instances", InstanceIds=[id_])
        await in_state(aws, id_, "stopped")
        await aws.ec2("start_instances", InstanceIds=[id_])
        await in_state(aws, id_, "running")


async def test_a_stopped_machine_does_not_start_without_capacity_and_stays_stopped() -> None:
    site = make_site([supply("m7i.large", capacity_type=CapacityType.ON_DEMAND, slots=1)])
    async with served_aws(site) as aws:
        capacity = {"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "on-demand"}
        template_id = await aws.template()
        (first,) = ids_of(await aws.fleet(template_id, TargetCapacitySpecification=capacity))
        await in_state(aws, first, "running")
        await aws.ec2("stop_instances", InstanceIds=[first])
        await in_state(aws, first, "stopped")
        (second,) = ids_of(await aws.fleet(template_id, TargetCapacitySpecification=capacity))
        assert (await refusal(aws.ec2("start_instances", InstanceIds=[first])))[0] == "InsufficientInstanceCapacity"
        assert (await machine(aws, first))["State"]["Name"] == "stopped"
        await aws.ec2("terminate_instances", InstanceIds=[second])
        await in_state(aws, second, "terminated")
        await aws.ec2("start_instances", InstanceIds=[first])


# --------------------------------------------------------------------------- spot requests


async def test_a_notice_shows_at_the_request_while_the_machine_still_runs() -> None:
    async with served_aws(make_site(times=dataclasses.replace(QUICK, notice_s=0.6))) as aws:
        (id_,) = await launched(aws)
        running = await in_state(aws, id_, "running")
        chosen = [{"Name": "instance-id", "Values": [id_]}]
        (request,) = (await aws.ec2("describe_spot_instance_requests", Filters=chosen))["SpotInstanceRequests"]
        assert (request["State"], request["Status"]["Code"]) == ("active", "fulfilled")
        assert request["SpotInstanceRequestId"] == running["SpotInstanceRequestId"]
        aws.site.reclaim(id_)
        (request,) = (await aws.ec2("describe_spot_instance_requests", Filters=chosen))["SpotInstanceRequests"]
        assert (request["State"], request["Status"]["Code"]) == ("closed", "instance-terminated-no-capacity")
        assert (await machine(aws, id_))["State"]["Name"] == "running"
        one = await in_state(aws, id_, "terminated")
        assert one["StateReason"]["Code"] == "Server.SpotInstanceTermination"


async def test_a_reclaim_without_notice_ends_the_machine_at_once() -> None:
    async with served_aws() as aws:
        (id_,) = await launched(aws)
        aws.site.reclaim(id_, notice_s=0)
        one = await machine(aws, id_)
        assert one["State"]["Name"] == "terminated"
        assert one["StateReason"]["Code"] == "Server.SpotInstanceTermination"


async def test_requests_that_are_not_there_are_named() -> None:
    async with served_aws() as aws:
        cancel = aws.ec2("cancel_spot_instance_requests", SpotInstanceRequestIds=["sir-nothing1"])
        assert (await refusal(cancel))[0] == "InvalidSpotInstanceRequestID.NotFound"


# --------------------------------------------------------------------------- the catalogue


async def test_types_and_where_they_are_offered() -> None:
    async with served_aws() as aws:
        answer = await aws.ec2("describe_instance_types", InstanceTypes=["m7g.large", "m7i.xlarge"])
        shown = {one["InstanceType"]: one for one in answer["InstanceTypes"]}
        assert shown["m7g.large"]["ProcessorInfo"]["SupportedArchitectures"] == ["arm64"]
        assert shown["m7i.xlarge"]["VCpuInfo"]["DefaultVCpus"] == 4
        assert shown["m7i.xlarge"]["MemoryInfo"]["SizeInMiB"] == 16 * 1024
        assert sorted(shown["m7i.xlarge"]["SupportedUsageClasses"]) == ["on-demand", "spot"]
        offered = await aws.ec2(
            "describe_instance_type_offerings",
            LocationType="availability-zone",
            Filters=[{"Name": "instance-type", "Values": ["m7*"]}],
        )
        assert {(one["InstanceType"], one["Location"]) for one in offered["InstanceTypeOfferings"]} == {
            (name, zone) for name in ("m7g.large", "m7i.large", "m7i.xlarge") for zone in ("us-east-1a", "us-east-1b")
        }
        unknown = aws.ec2("describe_instance_types", InstanceTypes=["t0.huge"])
        assert (await refusal(unknown))[0] == "InvalidInstanceType"


async def test_types_come_in_pages() -> None:
    supplies = [supply(f"m7i.{n}xlarge", cpus=n) for n in (2, 4, 8, 12, 16, 24, 48)]
    async with served_aws(make_site(supplies)) as aws:
        first = await aws.ec2("describe_instance_types", MaxResults=5)
        rest = await aws.ec2("describe_instance_types", MaxResults=5, NextToken=first["NextToken"])
        assert (len(first["InstanceTypes"]), len(rest["InstanceTypes"])) == (5, 2)
        assert "NextToken" not in rest


async def test_spot_prices_have_the_one_in_force_and_every_change() -> None:
    now = datetime.now(UTC)
    hour = 3600.0
    steps = Series(values=(0.05, 0.06, 0.07), gap_s=hour)
    changing = dataclasses.replace(supply("m7i.large"), prices=steps)
    async with served_aws(make_site([changing, *usual_supplies()[8:]])) as aws:
        latest = await aws.ec2(
            "describe_spot_price_history",
            StartTime=now,
            ProductDescriptions=["Linux/UNIX"],
            InstanceTypes=["m7i.large"],
        )
        (row,) = latest["SpotPriceHistory"]
        assert float(row["SpotPrice"]) == steps.at(now.timestamp())
        assert (row["AvailabilityZone"], row["ProductDescription"]) == ("us-east-1a", "Linux/UNIX")
        older = await aws.ec2(
            "describe_spot_price_history", StartTime=now - timedelta(hours=5), InstanceTypes=["m7i.large"]
        )
        moments = [row["Timestamp"] for row in older["SpotPriceHistory"]]
        assert len(moments) >= 5
        assert moments == sorted(moments, reverse=True)
        windows = await aws.ec2("describe_spot_price_history", ProductDescriptions=["Windows"])
        assert windows["SpotPriceHistory"] == []


async def test_networks_images_and_zones_are_described_and_missing_ones_named() -> None:
    async with served_aws() as aws:
        subnets = (await aws.ec2("describe_subnets", SubnetIds=[subnet("b")]))["Subnets"]
        assert [(one["AvailabilityZone"], one["AvailabilityZoneId"]) for one in subnets] == [("us-east-1b", "use1-az2")]
        groups = (await aws.ec2("describe_security_groups", GroupIds=[GROUP]))["SecurityGroups"]
        assert groups[0]["VpcId"] == subnets[0]["VpcId"]
        images = (await aws.ec2("describe_images", ImageIds=[AMI]))["Images"]
        assert (images[0]["Architecture"], images[0]["State"]) == ("x86_64", "available")
        zones = (await aws.ec2("describe_availability_zones"))["AvailabilityZones"]
        assert [one["ZoneName"] for one in zones] == ["us-east-1a", "us-east-1b"]
        regions = (await aws.ec2("describe_regions"))["Regions"]
        assert [one["RegionName"] for one in regions] == [REGION]
        for call, code in (
            (aws.ec2("describe_subnets", SubnetIds=["subnet-9"]), "InvalidSubnetID.NotFound"),
            (aws.ec2("describe_security_groups", GroupIds=["sg-9"]), "InvalidGroup.NotFound"),
            (aws.ec2("describe_images", ImageIds=["ami-9"]), "InvalidAMIID.NotFound"),
            (aws.ec2("describe_images", ImageIds=["an image"]), "InvalidAMIID.Malformed"),
        ):
            assert (await refusal(call))[0] == code


async def test_tags_are_added_to_machines() -> None:
    async with served_aws() as aws:
        (id_,) = await launched(aws)
        await aws.ec2("create_tags", Resources=[id_], Tags=[{"Key": "Name", "Value": "one & only"}])
        tags = {tag["Key"]: tag["Value"] for tag in (await machine(aws, id_))["Tags"]}
        assert tags["Name"] == "one & only"
