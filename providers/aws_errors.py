"""What EC2's error codes mean: the one place where boto3's exceptions become `spi` errors.

Sources of the table: the EC2 API's error code reference, and what other launchers of fleets treat alike. A code that
the table does not know is logged with its text and counts as transient; the core cools what fails in a row.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import structlog
from botocore import exceptions as sdk_errors

from autoscaler.calls import GateBusy
from autoscaler.spi import (
    CapacityScope,
    CapacityType,
    CapacityUnavailable,
    InvalidRequest,
    Offering,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    Throttled,
    Unauthorized,
)

_log = structlog.get_logger(__name__)

THROTTLED_S = 1.0
"""EC2's buckets refill by the second; nothing in the answer says when to come again."""


class Meaning(Enum):
    CAPACITY = auto()
    """Another type, zone or capacity type may have it."""
    SPOT_QUOTA = auto()
    ON_DEMAND_QUOTA = auto()
    QUOTA = auto()
    """A limit on everything that is launched in the region."""
    ADDRESSES = auto()
    """The subnet has none left: its zone is closed."""
    THROTTLED = auto()
    INVALID = auto()
    TEMPLATE_GONE = auto()
    UNAUTHORIZED = auto()
    BURNT_TOKEN = auto()
    """An earlier call with this client token reached EC2."""
    NOT_FOUND = auto()
    TRANSIENT = auto()


class TemplateGone(InvalidRequest):
    """The launch template was deleted behind our back: make it anew, once."""


class TokenBurnt(OutcomeUnknown):
    """The client token was used before, with another request: what that one made is found by its tag."""


class NotFound(InvalidRequest):
    """What the call was about does not exist."""


def _each(meaning: Meaning, *codes: str) -> dict[str, Meaning]:
    return dict.fromkeys(codes, meaning)


MEANINGS: Mapping[str, Meaning] = {
    **_each(
        Meaning.CAPACITY,
        *("InsufficientInstanceCapacity", "UnfulfillableCapacity", "Unsupported", "InsufficientCapacityOnHost"),
        *("InsufficientHostCapacity", "InsufficientVolumeCapacity", "VolumeTypeNotAvailableInZone"),
        *("ReservationCapacityExceeded", "SpotMaxPriceTooLow", "InsufficientCapacity"),
    ),
    **_each(Meaning.SPOT_QUOTA, "MaxSpotInstanceCountExceeded", "MaxSpotFleetRequestCountExceeded"),
    **_each(Meaning.ON_DEMAND_QUOTA, "VcpuLimitExceeded", "InstanceLimitExceeded"),
    **_each(
        Meaning.QUOTA,
        *("MaxFleetCountExceeded", "ResourceLimitExceeded", "ResourceCountExceeded", "RequestResourceCountExceeded"),
        *("PendingVerification", "VolumeLimitExceeded", "Client.VolumeLimitExceeded", "MaxIOPSLimitExceeded"),
        *("NetworkInterfaceLimitExceeded", "InsufficientAddressCapacity", "TargetCapacityLimitExceededException"),
    ),
    **_each(Meaning.ADDRESSES, "InsufficientFreeAddressesInSubnet"),
    **_each(
        Meaning.THROTTLED,
        *("RequestLimitExceeded", "Throttling", "ThrottlingException", "RequestThrottled", "TooManyRequestsException"),
        *("RequestThrottledException", "SlowDown", "EC2ThrottledException", "OverLimit"),
    ),
    **_each(
        Meaning.INVALID,
        *("InvalidParameterValue", "InvalidParameterCombination", "MissingParameter", "MissingInput"),
        *("InvalidAMIID.NotFound", "InvalidAMIID.Malformed", "InvalidAMIID.Unavailable", "InvalidSubnetID.NotFound"),
        *("InvalidGroup.NotFound", "InvalidGroupId.Malformed", "InvalidUserData.Malformed", "OptInRequired"),
        *("UnsupportedHibernationConfiguration", "OperationNotPermitted", "TagLimitExceeded", "ValidationError"),
        *("InvalidInstanceType", "InvalidParameter", "InvalidSnapshot.NotFound", "InvalidKeyPair.NotFound"),
        *("InvalidBlockDeviceMapping", "ValidationException", "InvalidParameterException", "UnknownParameter"),
        *("InvalidFleetConfig", "InvalidFleetConfiguration", "InvalidLaunchTemplateName.MalformedException"),
        *("InvalidSpotInstanceRequestID.Malformed", "IncorrectInstanceState", "InvalidTagKey.Malformed"),
        *("MaxConfigLimitExceededException", "InvalidAction", "InvalidRegion", "UnsupportedOperation"),
    ),
    **_each(
        Meaning.TEMPLATE_GONE,
        *("InvalidLaunchTemplateId.NotFound", "InvalidLaunchTemplateName.NotFoundException"),
        *("InvalidLaunchTemplateId.VersionNotFound", "InvalidLaunchTemplateId.Malformed"),
    ),
    **_each(
        Meaning.UNAUTHORIZED,
        *("UnauthorizedOperation", "AuthFailure", "AccessDenied", "AccessDeniedException", "InvalidClientTokenId"),
        *("AuthFailure.ServiceLinkedRoleCreationNotPermitted", "SignatureDoesNotMatch", "ExpiredToken", "Blocked"),
        *("UnrecognizedClientException", "RequestExpired", "ExpiredTokenException", "MissingAuthenticationToken"),
        *("IncompleteSignature", "NotAuthorized", "UnauthorizedSSOTokenError", "AccountProblem"),
    ),
    **_each(Meaning.BURNT_TOKEN, "IdempotentParameterMismatch", "IdempotentInstanceTerminated"),
    **_each(
        Meaning.NOT_FOUND,
        *("InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed", "InvalidSpotInstanceRequestID.NotFound"),
        *("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "NoSuchEntity", "ResourceNotFoundException"),
        *("NoSuchResourceException",),
    ),
    **_each(
        Meaning.TRANSIENT,
        *("InternalError", "InternalFailure", "ServerInternal", "ServiceUnavailable", "Unavailable", "RetryableError"),
        *("RequestTimeout", "RequestTimeoutException", "InternalServerException", "ServiceException"),
    ),
}

_NEVER_THERE = frozenset({"Unsupported", "UnsupportedOperation", "VolumeTypeNotAvailableInZone"})
"""The zone does not have the machine type at all: no use to ask again soon."""
_PROFILE = re.compile(r"instance profile", re.I)
_NOT_IN_ZONE = re.compile(r"not supported in (your|the) requested availability zone", re.I)
"""Fleets say so as InvalidFleetConfiguration, RunInstances as Unsupported."""
_FREE_TIER = re.compile(r"not eligible for free tier", re.I)
_FAMILY = re.compile(r"[a-z]+")
_STANDARD = frozenset("acdhimrtz")
_IDS = re.compile(r"\bi-[0-9a-zA-Z-]+")

_REMEDIES: Mapping[str, str] = {
    "InvalidAMIID.NotFound": "correct image.references.*.ami; images are of one region each",
    "InvalidAMIID.Unavailable": "the image was deregistered: bake it anew, and correct image.references.*.ami",
    "InvalidSubnetID.NotFound": "correct networks.<region>.subnets",
    "InvalidGroup.NotFound": "correct networks.<region>.security_groups",
    "InvalidUserData.Malformed": "the boot document is too long: shorten the certificates of autoscaler.tls",
    "OptInRequired": "sign the account up for EC2 in this region, or accept the image's terms",
    "PendingVerification": "AWS still verifies the account: it says by mail when it is done",
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": (
        "let the daemon's role call iam:CreateServiceLinkedRole for spot.amazonaws.com, or make the role once by hand"
    ),
    "SignatureDoesNotMatch": "correct the secret key, or this host's clock",
    "RequestExpired": "correct this host's clock: AWS refuses requests that are more than five minutes off",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What was being done: `doing` completes "cannot ...", `permission` is what it takes, as IAM writes it."""

    doing: str
    permission: str
    region: str
    is_write: bool = False
    family: str = "describes"
    machine_type: str = ""
    """Of the one capacity pool that a launch asks for."""


def translate(error: Exception, context: Context) -> ProviderError:
    """What an exception of boto3, or of a gate, means."""
    if isinstance(error, ProviderError):
        return error
    if isinstance(error, GateBusy):
        return ProviderError(f"cannot {context.doing}: no thread was free, nothing was asked")
    if isinstance(error, sdk_errors.ClientError):
        answer: Mapping[str, Any] = error.response.get("Error", {})
        code, text = str(answer.get("Code", "")), str(answer.get("Message", ""))
        if error.operation_name == "AssumeRole":
            return _of_role(code, text, context)
        meant = of_code(code, text, context)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if context.is_write and status >= 500 and type(meant) is ProviderError:
            return OutcomeUnknown(f"{meant}; it may have taken effect")
        return meant
    return _of_transport(error, context)


def _of_transport(error: Exception, context: Context) -> ProviderError:
    kind = type(error).__name__
    match error:
        case sdk_errors.NoCredentialsError() | sdk_errors.PartialCredentialsError() | sdk_errors.ProfileNotFound():
            return Unauthorized(f"cannot {context.doing}: no AWS credentials: {error}; see docs/deploy-aws.md")
        case sdk_errors.CredentialRetrievalError() | sdk_errors.NoAuthTokenError() | sdk_errors.TokenRetrievalError():
            return Unauthorized(f"cannot {context.doing}: credentials cannot be had: {kind}")
        case sdk_errors.ParamValidationError():
            return InvalidRequest(f"cannot {context.doing}: {' '.join(str(error).split())[:300]}")
        case (
            sdk_errors.EndpointConnectionError() | sdk_errors.ConnectTimeoutError() | sdk_errors.ProxyConnectionError()
        ):
            return ProviderError(f"cannot {context.doing}: {context.region} is not reached: {kind}")
        case sdk_errors.SSLError() if not context.is_write or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return ProviderError(f"cannot {context.doing}: TLS to {context.region} fails: {kind}")
    if context.is_write:
        return OutcomeUnknown(f"{context.doing}: no answer from {context.region} ({kind}); it may have taken effect")
    return ProviderError(f"cannot {context.doing}: no answer from {context.region} ({kind})")


def _of_role(code: str, text: str, context: Context) -> ProviderError:
    """Nothing was asked yet: the credentials to ask with could not be had."""
    said = f"cannot {context.doing}: the role is not given: {code}: {' '.join(text.split())[:300]}"
    match meaning_of(code, text):
        case Meaning.UNAUTHORIZED | Meaning.INVALID | Meaning.NOT_FOUND:
            remedy = _REMEDIES.get(code, "correct role_arn, and let the role's trust policy name who takes it")
            return Unauthorized(f"{said} ({remedy})")
        case Meaning.THROTTLED:
            return Throttled(said, retry_after_s=THROTTLED_S)
        case _:
            return ProviderError(said)


def of_code(code: str, text: str, context: Context) -> ProviderError:
    """What a code in an answer means, for a call as a whole."""
    meaning = meaning_of(code, text)
    remedy = _REMEDIES.get(code, "")
    said = f"cannot {context.doing}: {code}: {' '.join(text.split())[:300]}"
    if remedy:
        said += f" ({remedy})"
    match meaning:
        case Meaning.CAPACITY:
            return CapacityUnavailable(said, is_lasting=code in _NEVER_THERE)
        case Meaning.SPOT_QUOTA | Meaning.ON_DEMAND_QUOTA | Meaning.QUOTA | Meaning.ADDRESSES:
            scope = _scope(meaning, context.region, zone=None, machine_type=context.machine_type)
            return QuotaExceeded(said, scope=scope)
        case Meaning.THROTTLED:
            return Throttled(said, retry_after_s=THROTTLED_S)
        case Meaning.TEMPLATE_GONE:
            return TemplateGone(said)
        case Meaning.INVALID:
            return InvalidRequest(said)
        case Meaning.NOT_FOUND:
            return NotFound(said)
        case Meaning.UNAUTHORIZED:
            granted = "" if remedy else f" (grant {context.permission}; see deploy/aws)"
            return Unauthorized(said + granted)
        case Meaning.BURNT_TOKEN:
            return TokenBurnt(said)
        case _:
            return ProviderError(said)


def meaning_of(code: str, text: str = "") -> Meaning:
    found = MEANINGS.get(code)
    if code == "InvalidParameterValue" and _PROFILE.search(text):
        return Meaning.INVALID
    if found is Meaning.INVALID and (_FREE_TIER.search(text) or _NOT_IN_ZONE.search(text)):
        return Meaning.CAPACITY
    if found is None and code.startswith(("Invalid", "Missing", "Malformed")):
        found = Meaning.INVALID
    if found is None:
        _log.warning("aws_error_unknown", code=code, text=" ".join(text.split())[:300])
        return Meaning.TRANSIENT
    return found


def of_override(code: str, text: str, offering: Offering, context: Context) -> ProviderError:
    """What one entry of a fleet's Errors says about one offering. A code that nobody knows closes it for a while."""
    place = offering.capacity_pool
    said = f"{place.key}: {code}: {' '.join(text.split())[:200]}"
    meaning = meaning_of(code, text)
    if meaning in (Meaning.SPOT_QUOTA, Meaning.ON_DEMAND_QUOTA, Meaning.QUOTA, Meaning.ADDRESSES):
        scope = _scope(meaning, place.region, zone=place.zone, machine_type=place.machine_type)
        return QuotaExceeded(said, scope=scope)
    if code == "AuthFailure.ServiceLinkedRoleCreationNotPermitted":
        scope = CapacityScope(region=place.region, capacity_type=CapacityType.SPOT)
        return QuotaExceeded(f"{said} ({_REMEDIES[code]})", scope=scope)
    is_lasting = code in _NEVER_THERE or _NOT_IN_ZONE.search(text) is not None
    if meaning in (Meaning.CAPACITY, Meaning.TRANSIENT) or is_lasting:
        return CapacityUnavailable(said, is_lasting=is_lasting)
    return of_code(code, text, context)


def _scope(meaning: Meaning, region: str, *, zone: str | None, machine_type: str) -> CapacityScope:
    kin = _quota_kin(machine_type)
    match meaning:
        case Meaning.SPOT_QUOTA:
            return CapacityScope(region=region, machine_type=kin, capacity_type=CapacityType.SPOT)
        case Meaning.ON_DEMAND_QUOTA:
            return CapacityScope(region=region, machine_type=kin, capacity_type=CapacityType.ON_DEMAND)
        case Meaning.ADDRESSES:
            return CapacityScope(region=region, zone=zone)
        case _:
            return CapacityScope(region=region)


def _quota_kin(machine_type: str) -> str | None:
    """A glob of the types that share a quota of vCPUs: the standard families share one, others have their own (new
    accounts: 0 for GPUs). None where the type is not known."""
    family = _FAMILY.match(machine_type)
    if family is None:
        return None
    return "[acdhimrtz][0-9]*" if family[0] in _STANDARD else f"{family[0]}[0-9-]*"


def bad_ids(error: Exception) -> frozenset[str]:
    """Instance ids that an answer says it does not know, or cannot read."""
    if not isinstance(error, sdk_errors.ClientError):
        return frozenset()
    answer = error.response.get("Error", {})
    if answer.get("Code") not in ("InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"):
        return frozenset()
    return frozenset(_IDS.findall(str(answer.get("Message", ""))))
