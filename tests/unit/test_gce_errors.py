"""What Google's errors mean: HTTP answers as the SDK raises them, and errors of operations."""

from collections.abc import Mapping
from typing import Any

import pytest
import requests
from google.api_core import exceptions as api_errors
from google.auth import exceptions as auth_errors
from google.cloud import compute_v1

from autoscaler.calls import GateBusy
from autoscaler.spi import (
    CapacityPool,
    CapacityScope,
    CapacityType,
    CapacityUnavailable,
    InvalidRequest,
    OutcomeUnknown,
    ProviderError,
    ProviderName,
    QuotaExceeded,
    Throttled,
    Unauthorized,
)
from providers.gce_errors import (
    Context,
    NameExists,
    NotFound,
    OperationFault,
    fault_of,
    refuses_preemption_notice,
    translate,
    translate_operation,
)

LAUNCH = Context(
    doing="launch spot machines in us-central1",
    permission="compute.instances.create",
    is_write=True,
    region="us-central1",
    capacity_type=CapacityType.SPOT,
)
MACHINE_TYPES = ("a2-highgpu-1g", "a3-megagpu-8g", "c4-standard-4", "e2-standard-2", "g2-standard-4", "n2d-standard-8")
READ = Context(doing="list instances", permission="compute.instances.list")


def spot(machine_type: str) -> CapacityPool:
    return CapacityPool(
        provider=ProviderName("gce"),
        region="us-central1",
        zone="us-central1-a",
        machine_type=machine_type,
        capacity_type=CapacityType.SPOT,
    )


def answer(status: int, reason: str, message: str = "told so", headers: Mapping[str, str] | None = None) -> Exception:
    """The SDK's own exception for an answer of the API."""
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers or {})
    response.request = requests.Request("POST", "https://compute.googleapis.com/x").prepare()
    body = {"error": {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}}
    error: Exception = api_errors.format_http_response_error(response, "POST", "https://x", body)
    return error


def operation_fault(code: str, message: str = "told so", **detail: Any) -> OperationFault:
    details = [compute_v1.ErrorDetails(**detail)] if detail else []
    errors = [compute_v1.Errors(code=code, message=message, error_details=details)]
    (fault,) = translate_operation(iter(errors), LAUNCH)
    return fault


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (400, "invalid", InvalidRequest),
        (400, "anything", InvalidRequest),
        (401, "authError", Unauthorized),
        (403, "forbidden", Unauthorized),
        (403, "insufficientPermissions", Unauthorized),
        (403, "accessNotConfigured", Unauthorized),
        (403, "quotaExceeded", QuotaExceeded),
        (403, "rateLimitExceeded", Throttled),
        (404, "notFound", NotFound),
        (409, "alreadyExists", NameExists),
        (412, "conditionNotMet", InvalidRequest),
        (429, "anything", Throttled),
        (500, "backendError", OutcomeUnknown),
        (503, "backendError", OutcomeUnknown),
        (503, "neverHeardOf", OutcomeUnknown),
        (503, "resourcePoolExhausted", CapacityUnavailable),
    ],
)
def test_an_answer_to_a_write_means(status: int, reason: str, expected: type[ProviderError]) -> None:
    assert type(translate(answer(status, reason), LAUNCH)) is expected


def test_a_failed_read_is_transient() -> None:
    assert type(translate(answer(503, "backendError"), READ)) is ProviderError
    assert type(translate(requests.exceptions.ReadTimeout("slow"), READ)) is ProviderError
    assert type(translate(TimeoutError("slow"), READ)) is ProviderError


def test_a_write_that_broke_off_may_have_taken_effect() -> None:
    for error in (
        requests.exceptions.ReadTimeout("slow"),
        requests.exceptions.ConnectionError("reset"),
        TimeoutError(),
    ):
        assert type(translate(error, LAUNCH)) is OutcomeUnknown


def test_a_write_that_was_never_sent_has_not() -> None:
    refused = requests.exceptions.ConnectionError("NewConnectionError: refused")
    for error in (requests.exceptions.ConnectTimeout("slow"), refused, GateBusy("busy")):
        assert type(translate(error, LAUNCH)) is ProviderError
    assert type(translate(auth_errors.TransportError("no token server"), LAUNCH)) is ProviderError


def test_bad_credentials_say_what_to_set() -> None:
    error = translate(auth_errors.RefreshError("revoked"), READ)
    assert isinstance(error, Unauthorized)
    assert "credentials" in str(error)


def test_a_missing_permission_is_named() -> None:
    assert "compute.instances.create" in str(translate(answer(403, "forbidden"), LAUNCH))


def test_the_cloud_may_say_when_to_come_again() -> None:
    error = translate(answer(429, "rateLimitExceeded", headers={"Retry-After": "17"}), READ)
    assert isinstance(error, Throttled)
    assert error.retry_after_s == 17


def test_a_machine_type_that_a_zone_lacks_is_a_matter_of_capacity() -> None:
    message = "Machine type with name 'c3-standard-4' does not exist in zone 'us-central1-f'."
    assert type(translate(answer(400, "invalid", message), LAUNCH)) is CapacityUnavailable


def test_a_stockout_under_a_code_of_tomorrow_is_told_by_its_words() -> None:
    message = "The zone 'us-central1-a' does not have enough resources available to fulfill the request."
    assert type(operation_fault("RESOURCES_GONE_TODAY", message).error) is CapacityUnavailable
    assert type(translate(answer(503, "backendError", message), LAUNCH)) is CapacityUnavailable


def test_a_notice_that_the_api_does_not_take_is_told_from_other_slips() -> None:
    message = "Invalid value for field 'resource.instanceProperties.scheduling.preemptionNoticeDuration': not allowed"
    assert refuses_preemption_notice(translate(answer(400, "invalid", message), LAUNCH))
    assert not refuses_preemption_notice(translate(answer(400, "invalid", "Invalid value for field 'name'"), LAUNCH))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("ZONE_RESOURCE_POOL_EXHAUSTED", CapacityUnavailable),
        ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", CapacityUnavailable),
        ("STOCKOUT", CapacityUnavailable),
        ("UNSUPPORTED_OPERATION", CapacityUnavailable),
        ("VM_MIN_COUNT_NOT_REACHED", CapacityUnavailable),
        ("QUOTA_EXCEEDED", QuotaExceeded),
        ("IP_SPACE_EXHAUSTED_WITH_DETAILS", QuotaExceeded),
        ("RATE_LIMIT_EXCEEDED", Throttled),
        ("RESOURCE_NOT_FOUND", InvalidRequest),
        ("INVALID_FIELD_VALUE", InvalidRequest),
        ("PERMISSIONS_ERROR", Unauthorized),
        ("RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", NameExists),
        ("INTERNAL_ERROR", ProviderError),
        ("NEVER_HEARD_OF", ProviderError),
    ],
)
def test_an_error_of_an_operation_means(code: str, expected: type[ProviderError]) -> None:
    assert type(operation_fault(code).error) is expected


def test_a_stockout_names_its_zone_and_type() -> None:
    metadatas = {"zone": "us-central1-a", "vmType": "n2-standard-4", "attachment": "", "zonesAvailable": ""}
    fault = operation_fault(
        "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
        error_info=compute_v1.ErrorInfo(reason="stockout", metadatas=metadatas),
    )
    assert (fault.zone, fault.machine_type) == ("us-central1-a", "n2-standard-4")


@pytest.mark.parametrize(
    ("metric", "scope"),
    [
        ("PREEMPTIBLE_CPUS", CapacityScope(region="us-central1", capacity_type=CapacityType.SPOT)),
        ("CPUS", CapacityScope(region="us-central1", capacity_type=CapacityType.SPOT)),
        ("N2_CPUS", CapacityScope(region="us-central1", machine_type="n2-*", capacity_type=CapacityType.SPOT)),
        ("CPUS_ALL_REGIONS", CapacityScope()),
        ("CPUS_PER_VM_FAMILY", CapacityScope(region="us-central1", capacity_type=CapacityType.SPOT)),
        ("INSTANCES", CapacityScope(region="us-central1")),
        ("SSD_TOTAL_GB", CapacityScope(region="us-central1")),
    ],
)
def test_a_quota_closes_as_little_as_its_metric_allows(metric: str, scope: CapacityScope) -> None:
    in_text = operation_fault("QUOTA_EXCEEDED", f"Quota '{metric}' exceeded.  Limit: 24.0 in region us-central1.")
    in_detail = operation_fault(
        "QUOTA_EXCEEDED",
        quota_info=compute_v1.QuotaExceededInfo(metric_name=f"compute.googleapis.com/{metric.lower()}"),
    )
    for fault in (in_text, in_detail):
        assert isinstance(fault.error, QuotaExceeded)
        assert fault.error.scope == scope


@pytest.mark.parametrize("metric", ["NVIDIA_L4_GPUS", "PREEMPTIBLE_NVIDIA_A100_GPUS", "GPUS_ALL_REGIONS"])
def test_a_quota_of_gpus_leaves_machines_without_any_alone(metric: str) -> None:
    fault = operation_fault("QUOTA_EXCEEDED", f"Quota '{metric}' exceeded.  Limit: 0.0 in region us-central1.")
    assert isinstance(fault.error, QuotaExceeded)
    closed = {name for name in MACHINE_TYPES if fault.error.scope.covers(spot(name))}
    assert closed == {"a2-highgpu-1g", "a3-megagpu-8g", "g2-standard-4"}


def test_a_quota_of_a_machine_family_closes_that_family() -> None:
    fault = operation_fault(
        "QUOTA_EXCEEDED",
        "Quota 'CPUS_PER_VM_FAMILY' exceeded.  Limit: 0.0 in region us-central1.",
        quota_info=compute_v1.QuotaExceededInfo(
            metric_name="compute.googleapis.com/cpus_per_vm_family",
            dimensions={"region": "us-central1", "vm_family": "C4"},
        ),
    )
    assert isinstance(fault.error, QuotaExceeded)
    assert {name for name in MACHINE_TYPES if fault.error.scope.covers(spot(name))} == {"c4-standard-4"}


def test_a_type_that_a_zone_never_has_is_left_for_long_and_alone() -> None:
    message = "Machine type with name 'c4-standard-4' does not exist in zone 'us-central1-f'."
    error = translate(answer(400, "invalid", message), LAUNCH)
    assert isinstance(error, CapacityUnavailable)
    assert error.is_lasting
    fault = fault_of(error)
    assert (fault.zone, fault.machine_type) == ("us-central1-f", "c4-standard-4")


def test_what_is_unsupported_without_a_name_is_asked_for_again_soon() -> None:
    error = operation_fault("UNSUPPORTED_OPERATION", "This operation is not supported.").error
    assert isinstance(error, CapacityUnavailable)
    assert not error.is_lasting


@pytest.mark.parametrize(
    ("message", "zone", "machine_type"),
    [
        (
            "The zone 'projects/p/zones/us-central1-a' does not have enough resources available to fulfill the "
            "request. '(resource type:compute)'. Try your request in the us-central1-f zone(s).",
            "us-central1-a",
            "",
        ),
        (
            "A n2-standard-4 VM instance is currently unavailable in the europe-west4-b zone. Consider trying your "
            "request in the europe-west4-c zone(s), which currently has capacity to accommodate your request.",
            "europe-west4-b",
            "n2-standard-4",
        ),
        ("The region 'us-central1' does not have enough resources. Try the us-east1-b zone(s).", "", ""),
    ],
)
def test_a_stockout_without_details_names_them_in_its_text(message: str, zone: str, machine_type: str) -> None:
    fault = operation_fault("ZONE_RESOURCE_POOL_EXHAUSTED", message)
    assert (fault.zone, fault.machine_type) == (zone, machine_type)


def test_errors_of_the_configuration_and_of_quotas_say_what_to_do() -> None:
    for code in ("INVALID_FIELD_VALUE", "QUOTA_EXCEEDED", "IP_SPACE_EXHAUSTED"):
        assert "; " in str(operation_fault(code).error)
