"""What Google's error codes mean: the one place where SDK exceptions and failed operations become `spi` errors.

Two sources: the HTTP answer (status, and `reason` in the body) and, for most of what a launch meets, the operation
(`error.errors[].code`, with `errorDetails`). Codes that the table does not know are logged with their text and count
as transient.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import requests.exceptions
import structlog
from google.api_core import exceptions as api_errors
from google.auth import exceptions as auth_errors

from autoscaler.calls import GateBusy
from autoscaler.spi import (
    CapacityScope,
    CapacityType,
    CapacityUnavailable,
    InvalidRequest,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    Throttled,
    Unauthorized,
)

_log = structlog.get_logger(__name__)

THROTTLED_S = 2.0
"""Rates are counted by the minute; nothing in the answer says when to come again unless Retry-After does."""


class NameExists(ProviderError):
    """A resource of this name is there already: an earlier try of ours took effect. Adopt it."""


class NotFound(InvalidRequest):
    """What the call was about does not exist."""


class Meaning(Enum):
    CAPACITY = auto()
    """Another zone or type may have it."""
    NOT_OFFERED = auto()
    """The zone does not have the type, today or tomorrow."""
    QUOTA = auto()
    ADDRESSES = auto()
    """The subnetwork has no address left: nothing of its region can be launched."""
    THROTTLED = auto()
    INVALID = auto()
    UNAUTHORIZED = auto()
    EXISTS = auto()
    TRANSIENT = auto()


_MEANINGS: Mapping[str, Meaning] = {
    **dict.fromkeys(
        (
            *("ZONE_RESOURCE_POOL_EXHAUSTED", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "RESOURCE_POOL_EXHAUSTED"),
            *("REGION_RESOURCE_POOL_EXHAUSTED", "STOCKOUT", "VM_MIN_COUNT_NOT_REACHED"),
            *("resourcePoolExhausted", "stockout", "INSUFFICIENT_RESOURCES"),
            *("insufficientCapacity", "INSUFFICIENT_CAPACITY"),
        ),
        Meaning.CAPACITY,
    ),
    **dict.fromkeys(("UNSUPPORTED_OPERATION", "unsupportedOperation"), Meaning.NOT_OFFERED),
    **dict.fromkeys(("QUOTA_EXCEEDED", "quotaExceeded", "LIMIT_EXCEEDED", "limitExceeded"), Meaning.QUOTA),
    **dict.fromkeys(("IP_SPACE_EXHAUSTED", "IP_SPACE_EXHAUSTED_WITH_DETAILS"), Meaning.ADDRESSES),
    **dict.fromkeys(
        (
            *("rateLimitExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED", "dailyLimitExceeded"),
            *("RESOURCE_OPERATION_RATE_EXCEEDED", "resourceOperationRateExceeded", "concurrentLimitExceeded"),
        ),
        Meaning.THROTTLED,
    ),
    **dict.fromkeys(
        (
            *("RESOURCE_NOT_FOUND", "INVALID_FIELD_VALUE", "INVALID_USAGE", "INVALID_ARGUMENT", "CONDITION_NOT_MET"),
            *("RESOURCE_PROJECT_NOT_FOUND", "UNSUPPORTED_MACHINE_TYPE", "INCOMPATIBLE_MACHINE_TYPE", "invalid"),
            *("badRequest", "required", "parseError", "invalidParameter", "notFound", "conditionNotMet"),
            *("resourceNotFound", "invalidArgument", "POLICY_VIOLATION", "conditionFailed"),
        ),
        Meaning.INVALID,
    ),
    **dict.fromkeys(
        (
            *("forbidden", "insufficientPermissions", "accessNotConfigured", "authError", "SERVICE_DISABLED"),
            *("PERMISSIONS_ERROR", "PERMISSION_DENIED", "SERVICE_ACCOUNT_ACCESS_DENIED", "IAM_PERMISSION_DENIED"),
            *("BILLING_NOT_ENABLED", "accountDisabled", "BILLING_DISABLED", "UNAUTHENTICATED", "UNAUTHORIZED"),
        ),
        Meaning.UNAUTHORIZED,
    ),
    **dict.fromkeys(
        ("alreadyExists", "RESOURCE_ALREADY_EXISTS", "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", "duplicate"),
        Meaning.EXISTS,
    ),
    **dict.fromkeys(
        (
            *("INTERNAL_ERROR", "backendError", "internalError", "internal", "RESOURCE_NOT_READY", "OPERATION_ABORTED"),
            *("resourceNotReady", "RESOURCE_IN_USE", "resourceInUseByAnotherResource", "OPERATION_CANCELED_BY_USER"),
            *("TIMEOUT", "UNAVAILABLE", "SERVICE_UNAVAILABLE", "serviceUnavailable"),
        ),
        Meaning.TRANSIENT,
    ),
}

_BY_STATUS: Mapping[int, Meaning] = {
    400: Meaning.INVALID,
    401: Meaning.UNAUTHORIZED,
    403: Meaning.UNAUTHORIZED,
    404: Meaning.INVALID,
    409: Meaning.EXISTS,
    412: Meaning.INVALID,
    413: Meaning.INVALID,
    429: Meaning.THROTTLED,
}

_NO_SUCH_TYPE = re.compile(r"machine ?types?\b.*(?:not exist|not found|not available|not supported)", re.I | re.S)
_NO_ROOM = re.compile(r"not have enough resources available", re.I)
_METRIC = re.compile(r"[Qq]uota '?([A-Z0-9_]+)'? exceeded")
_FAMILY_METRIC = re.compile(r"(?:PREEMPTIBLE_)?([A-Z][0-9]+[A-Z]?)_CPUS")
_GPU_METRIC = re.compile(r".*GPUS?(_.*)?")
_GPU_TYPES = "[ag][0-9]*-*"
"""Machine types that come with GPUs: the only ones that are launched here which draw on a quota of GPUs."""
_ZONE = r"([a-z]+(?:-[a-z]+)+[0-9]+-[a-z])"
_ZONE_NAMED = re.compile(rf"zones/{_ZONE}\b|in zone '?{_ZONE}\b|in the {_ZONE} zone\b(?!\(s\))")
"""Not the zones that Google proposes instead, as in "try your request in the us-central1-f zone(s)"."""
_TYPE = r"([a-z][a-z0-9]*-[a-z0-9-]+)"
_TYPE_NAMED = re.compile(rf"machineTypes/{_TYPE}|[Mm]achine type with name '{_TYPE}'|\bA {_TYPE} VM instance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What was being done: it fills in what an error leaves out. `doing` continues "cannot ..."."""

    doing: str
    permission: str
    is_write: bool = False
    region: str | None = None
    capacity_type: CapacityType | None = None
    family: str = "reads"
    """The rate budget that it draws on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationFault:
    """One error of a failed operation, with the zone and machine type that it names; "" where it names none."""

    error: ProviderError
    zone: str = ""
    machine_type: str = ""


def translate(error: Exception, context: Context) -> ProviderError:
    """What a call's exception means for the core."""
    match error:
        case ProviderError():
            return error
        case GateBusy():
            return ProviderError(f"cannot {context.doing}: too many calls run already; nothing was changed")
        case api_errors.GoogleAPICallError():
            return _of_answer(error, context)
        case auth_errors.TransportError():  # on the way to the token server: the call itself was never sent
            return ProviderError(f"cannot {context.doing}: no access token: {_short(error)}")
        case auth_errors.GoogleAuthError():
            return Unauthorized(
                f"cannot {context.doing}: no usable credentials: {_short(error)}; set `credentials` of the provider, "
                "or give the host Application Default Credentials"
            )
        case requests.exceptions.ConnectTimeout():
            return ProviderError(f"cannot {context.doing}: no connection: {_short(error)}")
        case requests.exceptions.RequestException() | OSError() | ValueError():
            if context.is_write and not _was_never_sent(error):
                return OutcomeUnknown(f"cannot tell whether we {context.doing}: {_short(error)}")
            return ProviderError(f"cannot {context.doing}: {_short(error)}")
        case _:
            return ProviderError(f"cannot {context.doing}: {type(error).__name__}: {_short(error)}")


def translate_operation(errors: Iterator[Any], context: Context) -> list[OperationFault]:
    """The errors of a finished operation (`compute_v1.Errors` messages)."""
    faults: list[OperationFault] = []
    for one in errors:
        metadatas: dict[str, str] = {}
        metric = family = ""
        for detail in one.error_details:
            metadatas |= dict(detail.error_info.metadatas)
            metric = metric or detail.quota_info.metric_name.rpartition("/")[2].upper()
            family = family or detail.quota_info.dimensions.get("vm_family", "")
        zone, machine_type = _named_in(one.message)
        zone = metadatas.get("zone", "").rpartition("/")[2] or zone
        machine_type = metadatas.get("vmType", "").rpartition("/")[2] or machine_type
        error = _error(
            _meaning(one.code, one.message),
            code=one.code,
            text=one.message,
            context=context,
            metric=metric,
            family=family,
            is_named=bool(zone and machine_type),
        )
        faults.append(_fault(error, zone, machine_type))
    return faults


def fault_of(error: CapacityUnavailable | QuotaExceeded) -> OperationFault:
    """The same of an error that the call itself answered."""
    return _fault(error, *_named_in(str(error)))


def _fault(error: ProviderError, zone: str, machine_type: str) -> OperationFault:
    """Only a lack of capacity is of a zone and a type: a quota that one of them ran into binds all of its scope."""
    if not isinstance(error, CapacityUnavailable):
        return OperationFault(error=error)
    return OperationFault(error=error, zone=zone, machine_type=machine_type)


def _named_in(text: str) -> tuple[str, str]:
    """The zone and the machine type that a text is about; "" where it names none."""
    zone, machine_type = _ZONE_NAMED.search(text), _TYPE_NAMED.search(text)
    return (
        next(filter(None, zone.groups())) if zone else "",
        next(filter(None, machine_type.groups())) if machine_type else "",
    )


def refuses_preemption_notice(error: ProviderError) -> bool:
    """The API does not know, or does not allow, a notice before preemption here."""
    return isinstance(error, InvalidRequest) and re.search(r"preemption.?notice", str(error), re.I) is not None


def _of_answer(error: api_errors.GoogleAPICallError, context: Context) -> ProviderError:
    status = int(error.code or 0)
    reasons = [str(one.get("reason", "")) for one in error.errors if isinstance(one, Mapping)]
    if error.reason:
        reasons.append(str(error.reason))
    text = str(error.message)
    known = [reason for reason in reasons if reason in _MEANINGS]
    code = known[0] if known else reasons[0] if reasons else f"HTTP {status}"
    meaning = _meaning(code, text, otherwise=Meaning.TRANSIENT if status >= 500 else _BY_STATUS.get(status))
    if status >= 500 and meaning is Meaning.TRANSIENT and context.is_write:
        # The server may have acted before it failed; the same request id makes a repeat harmless.
        return OutcomeUnknown(f"cannot tell whether we {context.doing}: HTTP {status}: {_short(text)}")
    if status == 404 and meaning is Meaning.INVALID:
        return NotFound(f"cannot {context.doing}: {_short(text)}; {_REMEDIES[Meaning.INVALID]}")
    return _error(
        meaning,
        code=code,
        text=text,
        context=context,
        retry_after_s=_retry_after_s(error),
        is_named=all(_named_in(text)),
    )


def _meaning(code: str, text: str, *, otherwise: Meaning | None = None) -> Meaning:
    meaning = _MEANINGS.get(code, otherwise)
    if meaning in (None, Meaning.TRANSIENT) and _NO_ROOM.search(text):
        return Meaning.CAPACITY
    if meaning is None:
        _log.warning("gce_error_unknown", code=code, text=_short(text))
        return Meaning.TRANSIENT
    if meaning is Meaning.INVALID and _NO_SUCH_TYPE.search(text):
        return Meaning.NOT_OFFERED
    return meaning


_REMEDIES: Mapping[Meaning, str] = {
    Meaning.INVALID: "correct the provider's or the image's section: `autoscaler check --online` looks at each key",
    Meaning.QUOTA: "ask for more on the quota page of the project, or allow other machine types and regions",
    Meaning.ADDRESSES: "give the subnetwork a wider range, or the provider another subnetwork",
}


def _error(
    meaning: Meaning,
    *,
    code: str,
    text: str,
    context: Context,
    metric: str = "",
    family: str = "",
    is_named: bool = False,
    retry_after_s: float = THROTTLED_S,
) -> ProviderError:
    """`is_named`: the text says which zone and machine type it is about, and so which offering to leave for long."""
    said = f"cannot {context.doing}: {code}: {_short(text)}"
    if meaning in _REMEDIES:
        said = f"{said}; {_REMEDIES[meaning]}"
    makers: Mapping[Meaning, Callable[[], ProviderError]] = {
        Meaning.CAPACITY: lambda: CapacityUnavailable(said),
        Meaning.NOT_OFFERED: lambda: CapacityUnavailable(said, is_lasting=is_named),
        Meaning.QUOTA: lambda: QuotaExceeded(said, scope=_quota_scope(metric or _metric_in(text), family, context)),
        Meaning.ADDRESSES: lambda: QuotaExceeded(said, scope=CapacityScope(region=context.region)),
        Meaning.THROTTLED: lambda: Throttled(said, retry_after_s=retry_after_s),
        Meaning.INVALID: lambda: InvalidRequest(said),
        Meaning.UNAUTHORIZED: lambda: Unauthorized(f"{said}; the credentials need {context.permission}"),
        Meaning.EXISTS: lambda: NameExists(said),
        Meaning.TRANSIENT: lambda: ProviderError(said),
    }
    return makers[meaning]()


def _quota_scope(metric: str, family: str, context: Context) -> CapacityScope:
    """As narrow as the metric allows: spot machines draw on CPUS too where no PREEMPTIBLE_CPUS was granted, so that the
    capacity type of the launch counts, not the metric's. `family` is the one that a metric with families is about."""
    if _GPU_METRIC.fullmatch(metric):
        if metric.endswith("_ALL_REGIONS"):
            return CapacityScope(machine_type=_GPU_TYPES)
        return CapacityScope(region=context.region, machine_type=_GPU_TYPES, capacity_type=context.capacity_type)
    if metric.endswith("_ALL_REGIONS"):
        return CapacityScope()
    if not family and (found := _FAMILY_METRIC.fullmatch(metric)):
        family = found[1]
    if family:
        return CapacityScope(
            region=context.region, machine_type=f"{family.lower()}-*", capacity_type=context.capacity_type
        )
    if metric.endswith(("CPUS", "CPUS_PER_VM_FAMILY")) or not metric:
        return CapacityScope(region=context.region, capacity_type=context.capacity_type)
    return CapacityScope(region=context.region)


def _metric_in(text: str) -> str:
    found = _METRIC.search(text)
    return found[1] if found else ""


def _retry_after_s(error: api_errors.GoogleAPICallError) -> float:
    headers = getattr(error.response, "headers", None) or {}
    value = str(headers.get("Retry-After", ""))
    return float(value) if value.isdigit() else THROTTLED_S


def _was_never_sent(error: Exception) -> bool:
    """Refused before a byte of the request went out: the socket was never connected."""
    return isinstance(error, requests.exceptions.ConnectionError) and "NewConnectionError" in repr(error)


def _short(text: object) -> str:
    return " ".join(str(text).split())[:300]
