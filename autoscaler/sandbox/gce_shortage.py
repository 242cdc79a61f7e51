"""What Compute Engine says when it has no machine: as errors of an operation, or of the call itself."""

from typing import assert_never

from autoscaler.sandbox.cloud_capacity import Shortage
from autoscaler.sandbox.gce_body import MachineBody
from autoscaler.sandbox.gce_ground import Ground
from autoscaler.sandbox.gce_operations import Fault
from autoscaler.sandbox.gce_wire import GceError, region_of

_UNAVAILABLE = "SERVICE UNAVAILABLE"


def fault_of(
    shortage: Shortage, *, project: str, zone: str, machine_type: str, body: MachineBody, ground: Ground
) -> Fault:
    match shortage:
        case Shortage.CAPACITY:
            return _stockout(project, zone, machine_type)
        case Shortage.ADDRESSES:
            return Fault(
                code="IP_SPACE_EXHAUSTED_WITH_DETAILS",
                message=f"IP space of '{body.subnetwork}' is exhausted.",
                http_status=503,
                http_message=_UNAVAILABLE,
                info_reason="ip_space_exhausted",
                metadatas={"zone": zone, "subnetwork": body.subnetwork},
            )
        case Shortage.QUOTA:
            return _quota(region_of(zone), body, ground)
        case Shortage.UNSUPPORTED:
            return Fault(
                code="UNSUPPORTED_OPERATION",
                message=f"{machine_type} is not supported in zone {zone} with this provisioning model.",
                http_status=400,
                http_message="BAD REQUEST",
                info_reason="unsupported_operation",
                metadatas={"zone": zone, "vmType": machine_type},
            )
        case _:
            assert_never(shortage)


def _stockout(project: str, zone: str, machine_type: str) -> Fault:
    where = f"projects/{project}/zones/{zone}"
    return Fault(
        code="ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
        message=f"The zone '{where}' does not have enough resources available to fulfill the request. "
        f"'(resource type:compute)'. A {machine_type} VM instance is currently unavailable in the {zone} zone.",
        http_status=503,
        http_message=_UNAVAILABLE,
        info_reason="stockout",
        metadatas={"zone": zone, "vmType": machine_type, "attachment": "", "zonesAvailable": ""},
    )


def _quota(region: str, body: MachineBody, ground: Ground) -> Fault:
    metric, limit = quota_metric(region, body, ground)
    return Fault(
        code="QUOTA_EXCEEDED",
        message=f"Quota '{metric}' exceeded.  Limit: {limit:.1f} in region {region}.",
        http_status=403,
        http_message="FORBIDDEN",
        quota={
            "metricName": f"compute.googleapis.com/{metric.lower()}",
            "limitName": f"{metric.replace('_', '-')}-per-project-region",
            "dimensions": {"region": region},
            "limit": limit,
        },
    )


def quota_metric(region: str, body: MachineBody, ground: Ground) -> tuple[str, float]:
    """The quota that such machines draw on, and its limit."""
    quotas = ground.quotas(region)
    metric = "PREEMPTIBLE_CPUS" if body.schedule.is_spot else "CPUS"
    return metric, quotas[metric][0]


def quota_error(region: str, body: MachineBody, ground: Ground) -> GceError:
    metric, limit = quota_metric(region, body, ground)
    message = f"Quota '{metric}' exceeded.  Limit: {limit:.1f} in region {region}."
    return GceError(403, "quotaExceeded", message, domain="usageLimits")


def stockout_error(region: str) -> GceError:
    """What a bulk insert answers where nothing at all can be had, and Google knows at once."""
    message = f"The region '{region}' does not have enough resources available to fulfill the request."
    return GceError(503, "insufficientCapacity", message)
