"""What EC2's error codes mean: for a call, and for one offering of a fleet."""

from dataclasses import replace
from typing import Any

import pytest
from botocore import exceptions as sdk_errors

from autoscaler.calls import GateBusy
from autoscaler.spi import (
    CapacityPool,
    CapacityScope,
    CapacityType,
    CapacityUnavailable,
    InvalidRequest,
    Offering,
    OutcomeUnknown,
    ProviderError,
    ProviderName,
    QuotaExceeded,
    Throttled,
    Unauthorized,
)
from providers.aws_errors import Context, NotFound, TemplateGone, TokenBurnt, bad_ids, of_override, translate

REGION, ZONE = "us-east-1", "us-east-1a"
LAUNCH = Context(doing="launch", permission="ec2:CreateFleet", region=REGION, is_write=True)
READ = Context(doing="list machines", permission="ec2:DescribeInstances", region=REGION)
OFFERING = Offering(
    capacity_pool=CapacityPool(
        provider=ProviderName("aws"),
        region=REGION,
        zone=ZONE,
        machine_type="m7i.large",
        capacity_type=CapacityType.SPOT,
    ),
    cpus=2,
    memory_gib=8,
    arch="x86_64",
    price_usd_hour=0.04,
)
SPOT_OF_REGION = CapacityScope(region=REGION, capacity_type=CapacityType.SPOT)
STANDARD = "[acdhimrtz][0-9]*"


def answer(code: str, message: str = "said so") -> sdk_errors.ClientError:
    return sdk_errors.ClientError({"Error": {"Code": code, "Message": message}}, "CreateFleet")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        *((code, CapacityUnavailable) for code in ("InsufficientInstanceCapacity", "UnfulfillableCapacity")),
        *((code, CapacityUnavailable) for code in ("Unsupported", "InsufficientHostCapacity", "SpotMaxPriceTooLow")),
        *((code, QuotaExceeded) for code in ("MaxSpotInstanceCountExceeded", "VcpuLimitExceeded")),
        *((code, QuotaExceeded) for code in ("InsufficientFreeAddressesInSubnet", "MaxFleetCountExceeded")),
        *((code, QuotaExceeded) for code in ("ResourceLimitExceeded", "PendingVerification", "VolumeLimitExceeded")),
        *((code, Throttled) for code in ("RequestLimitExceeded", "Throttling", "ThrottlingException")),
        *((code, InvalidRequest) for code in ("InvalidParameterValue", "InvalidAMIID.NotFound", "OptInRequired")),
        *((code, InvalidRequest) for code in ("InvalidSubnetID.NotFound", "InvalidNewThing.NotFound")),
        *((code, InvalidRequest) for code in ("UnsupportedOperation", "IncorrectInstanceState", "TagLimitExceeded")),
        *((code, Unauthorized) for code in ("UnauthorizedOperation", "AuthFailure", "ExpiredToken")),
        *((code, Unauthorized) for code in ("RequestExpired", "SignatureDoesNotMatch", "InvalidClientTokenId")),
        *((code, TokenBurnt) for code in ("IdempotentParameterMismatch", "IdempotentInstanceTerminated")),
        ("InvalidLaunchTemplateName.NotFoundException", TemplateGone),
        ("InvalidLaunchTemplateId.NotFound", TemplateGone),
        ("InvalidInstanceID.NotFound", NotFound),
        ("AWS.SimpleQueueService.NonExistentQueue", NotFound),
        *((code, ProviderError) for code in ("InternalError", "ServiceUnavailable", "NobodyKnowsThis")),
    ],
)
def test_a_code_means(code: str, expected: type[ProviderError]) -> None:
    assert type(translate(answer(code), LAUNCH)) is expected


@pytest.mark.parametrize(
    ("code", "scope"),
    [
        (
            "MaxSpotInstanceCountExceeded",
            CapacityScope(region=REGION, machine_type=STANDARD, capacity_type=CapacityType.SPOT),
        ),
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", SPOT_OF_REGION),
        (
            "VcpuLimitExceeded",
            CapacityScope(region=REGION, machine_type=STANDARD, capacity_type=CapacityType.ON_DEMAND),
        ),
        ("InsufficientFreeAddressesInSubnet", CapacityScope(region=REGION, zone=ZONE)),
        ("VolumeLimitExceeded", CapacityScope(region=REGION)),
    ],
)
def test_a_quota_closes_no_more_than_it_says(code: str, scope: CapacityScope) -> None:
    error = of_override(code, "said so", OFFERING, LAUNCH)
    assert isinstance(error, QuotaExceeded)
    assert error.scope == scope


@pytest.mark.parametrize(
    ("machine_type", "closed", "open_"),
    [
        ("g5.xlarge", ("g5.2xlarge", "g6.xlarge"), ("m7i.large", "gr6.4xlarge", "p5.48xlarge")),
        ("m7i.large", ("c7gn.large", "t4g.small", "r8i.large"), ("g5.xlarge", "inf2.xlarge", "x2idn.16xlarge")),
        ("u-6tb1.metal", ("u-12tb1.112xlarge",), ("m7i.large",)),
        ("im4gn.large", ("im4gn.large",), ("m7i.large",)),
    ],
)
def test_a_quota_of_one_class_leaves_the_other_classes_open(
    machine_type: str, closed: tuple[str, ...], open_: tuple[str, ...]
) -> None:
    asked = replace(OFFERING, capacity_pool=replace(OFFERING.capacity_pool, machine_type=machine_type))
    error = of_override("MaxSpotInstanceCountExceeded", "said so", asked, LAUNCH)
    assert isinstance(error, QuotaExceeded)
    for name in (machine_type, *closed):
        assert error.scope.covers(replace(OFFERING.capacity_pool, machine_type=name)), name
    for name in open_:
        assert not error.scope.covers(replace(OFFERING.capacity_pool, machine_type=name)), name


@pytest.mark.parametrize(
    ("code", "is_lasting"),
    [
        ("InsufficientInstanceCapacity", False),
        ("NobodyKnowsThis", False),
        ("Unsupported", True),
        ("UnsupportedOperation", True),
    ],
)
def test_a_refused_offering_cools_for_as_long_as_it_makes_sense(code: str, is_lasting: bool) -> None:
    error = of_override(code, "said so", OFFERING, LAUNCH)
    assert isinstance(error, CapacityUnavailable)
    assert error.is_lasting is is_lasting


def test_a_fleet_that_knows_no_such_type_in_a_zone_is_not_wrong_as_a_whole() -> None:
    text = "Your requested instance type (m7i.large) is not supported in your requested Availability Zone (us-east-1e)."
    error = of_override("InvalidFleetConfiguration", text, OFFERING, LAUNCH)
    assert isinstance(error, CapacityUnavailable)
    assert error.is_lasting


def test_a_write_without_an_answer_may_have_taken_effect_and_a_read_has_not() -> None:
    for error in (
        sdk_errors.ReadTimeoutError(endpoint_url="x"),
        sdk_errors.ConnectionClosedError(endpoint_url="x"),
        sdk_errors.SSLError(endpoint_url="x", error="EOF occurred in violation of protocol"),
        TimeoutError(),
    ):
        assert type(translate(error, LAUNCH)) is OutcomeUnknown
        assert type(translate(error, READ)) is ProviderError


def test_a_write_that_broke_at_their_side_may_have_taken_effect() -> None:
    broken = answer("InternalError", "An internal error has occurred")
    broken.response["ResponseMetadata"] = {"HTTPStatusCode": 500}
    assert type(translate(broken, LAUNCH)) is OutcomeUnknown
    assert type(translate(broken, READ)) is ProviderError


@pytest.mark.parametrize(
    ("code", "expected"),
    [("AccessDenied", Unauthorized), ("ValidationError", Unauthorized), ("Throttling", Throttled)],
)
def test_a_role_that_is_not_given_is_no_fault_of_the_call(code: str, expected: type[ProviderError]) -> None:
    refused = sdk_errors.ClientError({"Error": {"Code": code, "Message": "said so"}}, "AssumeRole")
    error = translate(refused, LAUNCH)
    assert type(error) is expected
    assert "ec2:CreateFleet" not in str(error)


def test_a_write_that_was_never_sent_has_not_taken_effect() -> None:
    for error in (
        sdk_errors.ConnectTimeoutError(endpoint_url="x"),
        sdk_errors.EndpointConnectionError(endpoint_url="x"),
        sdk_errors.SSLError(endpoint_url="x", error="[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate"),
        GateBusy("no thread"),
    ):
        assert type(translate(error, LAUNCH)) is ProviderError


def test_missing_credentials_say_what_to_read_and_missing_permissions_which() -> None:
    nobody = translate(sdk_errors.NoCredentialsError(), READ)
    assert isinstance(nobody, Unauthorized)
    assert "deploy-aws" in str(nobody)
    assert "ec2:CreateFleet" in str(translate(answer("UnauthorizedOperation"), LAUNCH))


@pytest.mark.parametrize(
    ("error", "ids"),
    [
        (answer("InvalidInstanceID.NotFound", "The instance IDs 'i-0a, i-0b' do not exist"), {"i-0a", "i-0b"}),
        (answer("InvalidInstanceID.Malformed", 'Invalid id: "i-zz" (expecting "i-...")'), {"i-zz"}),
        (answer("UnauthorizedOperation", "i-0a"), set()),
        (TimeoutError("i-0a"), set()),
    ],
)
def test_the_ids_that_an_answer_does_not_know_are_read(error: Any, ids: set[str]) -> None:
    assert bad_ids(error) == ids
