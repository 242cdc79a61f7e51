"""The body of a bulk insert: what a machine of ours is. Pure.

No secret goes in: the start-up script, the labels and the metadata can be read by whoever may read the project.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from google.cloud import compute_v1

from autoscaler.spi import CapacityType, InvalidRequest, LaunchBatch, Offering
from providers.gce_names import BATCH, DEPLOYMENT, NOTICE, POOL, STOPPABLE, label
from providers.gce_settings import GceSettings

NOTICE_S = 120
"""The only notice before a preemption that is known to be allowed."""
LIFETIME_MARGIN = timedelta(minutes=10)
"""The agent ends itself first, and says why."""
_SCOPE = "https://www.googleapis.com/auth/userinfo.email"
_SCRIPT_BYTES = 256 * 1024
"""The most that one metadata value may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Offerings of one region and capacity type that one call may use: every machine type in every zone of it, so that
    nothing is launched that nobody offered. In ranked order."""

    region: str
    capacity_type: CapacityType
    offerings: tuple[Offering, ...]

    @property
    def zones(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.capacity_pool.zone for one in self.offerings))

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.capacity_pool.machine_type for one in self.offerings))


def parts_of(offerings: Sequence[Offering]) -> list[Part]:
    """Ranked offerings as few calls: zones of a region that offer the same types go together."""
    types_in: dict[tuple[str, CapacityType, str], list[str]] = {}
    for one in offerings:
        pool = one.capacity_pool
        types_in.setdefault((pool.region, pool.capacity_type, pool.zone), []).append(pool.machine_type)
    grouped: dict[tuple[str, CapacityType, frozenset[str]], list[Offering]] = {}
    for one in offerings:
        pool = one.capacity_pool
        types = frozenset(types_in[pool.region, pool.capacity_type, pool.zone])
        grouped.setdefault((pool.region, pool.capacity_type, types), []).append(one)
    return [
        Part(region=region, capacity_type=capacity_type, offerings=tuple(found))
        for (region, capacity_type, _), found in grouped.items()
    ]


def image_path(references: Mapping[str, str]) -> str:
    """The source image as a path of the API. Raises InvalidRequest."""
    image = references.get("image", "")
    path = image.partition("/compute/v1/")[2] or image
    parts = path.split("/")
    is_image = len(parts) == 5 and parts[0] == "projects" and parts[2:4] == ["global", "images"]
    is_family = len(parts) == 6 and parts[0] == "projects" and parts[2:5] == ["global", "images", "family"]
    if not (is_image or is_family) or not all(parts):
        raise InvalidRequest(
            f'image reference "image" is "{image}"; write "projects/P/global/images/NAME" or '
            '"projects/P/global/images/family/NAME" for this provider'
        )
    return path


def bulk_insert(
    part: Part,
    batch: LaunchBatch,
    *,
    names: Sequence[str],
    denied_zones: Sequence[str],
    script: str,
    settings: GceSettings,
    deployment: str,
    with_notice: bool,
) -> compute_v1.BulkInsertInstanceResource:
    """`denied_zones`: Google allows zones that are not mentioned, so the others of the region are."""
    locations = {f"zones/{zone}": "ALLOW" for zone in part.zones} | {f"zones/{zone}": "DENY" for zone in denied_zones}
    body = compute_v1.BulkInsertInstanceResource(
        count=len(names),
        min_count=1,
        per_instance_properties={name: compute_v1.BulkInsertInstanceResourcePerInstanceProperties() for name in names},
        instance_properties=_properties(
            part, batch, script=script, settings=settings, deployment=deployment, with_notice=with_notice
        ),
        location_policy=compute_v1.LocationPolicy(
            locations={
                zone: compute_v1.LocationPolicyLocation(preference=preference)
                for zone, preference in sorted(locations.items())
            },
            target_shape="ANY",
        ),
    )
    if len(part.types) == 1:
        body.instance_properties.machine_type = part.types[0]
    else:
        body.instance_flexibility_policy = compute_v1.InstanceFlexibilityPolicy(
            instance_selections={
                f"rank-{rank:03}": compute_v1.InstanceFlexibilityPolicyInstanceSelection(
                    machine_types=[machine_type], rank=rank
                )
                for rank, machine_type in enumerate(part.types, start=1)
            }
        )
    return body


def _properties(
    part: Part, batch: LaunchBatch, *, script: str, settings: GceSettings, deployment: str, with_notice: bool
) -> compute_v1.InstanceProperties:
    if len(script.encode()) > _SCRIPT_BYTES:
        raise InvalidRequest("the start-up script is over 256 KB: put fewer certificates into the file of `tls`")
    network = settings.networks[part.region]
    interface = compute_v1.NetworkInterface(subnetwork=network.subnetwork)
    if network.has_external_ip:
        interface.access_configs = [compute_v1.AccessConfig(name="External NAT", type_="ONE_TO_ONE_NAT")]
    disk = compute_v1.AttachedDiskInitializeParams(source_image=image_path(batch.image), disk_type=settings.disk_type)
    if batch.disk_gib:
        disk.disk_size_gb = int(-(-batch.disk_gib // 1))
    texts = {DEPLOYMENT: deployment, POOL: batch.pool, BATCH: batch.token}
    # The metadata server says that a machine is taken, and not when.
    notice = {NOTICE: str(NOTICE_S)} if with_notice and part.capacity_type is CapacityType.SPOT else {}
    return compute_v1.InstanceProperties(
        disks=[compute_v1.AttachedDisk(boot=True, auto_delete=True, initialize_params=disk)],
        network_interfaces=[interface],
        tags=compute_v1.Tags(items=list(network.tags)),
        labels={key: label(text) for key, text in texts.items()},
        metadata=_metadata({**texts, **notice, "startup-script": script}, batch),
        service_accounts=[compute_v1.ServiceAccount(email=settings.service_account, scopes=[_SCOPE])],
        scheduling=_scheduling(part, batch, with_notice=with_notice),
        shielded_instance_config=compute_v1.ShieldedInstanceConfig(enable_vtpm=True, enable_integrity_monitoring=True),
    )


def _metadata(texts: Mapping[str, str], batch: LaunchBatch) -> compute_v1.Metadata:
    items = {**texts, "block-project-ssh-keys": "TRUE"}
    if batch.is_stoppable:
        items[STOPPABLE] = "true"
    return compute_v1.Metadata(items=[compute_v1.Items(key=key, value=value) for key, value in items.items()])


def _scheduling(part: Part, batch: LaunchBatch, *, with_notice: bool) -> compute_v1.Scheduling:
    is_spot = part.capacity_type is CapacityType.SPOT
    lifetime_s = int((batch.max_lifetime + LIFETIME_MARGIN).total_seconds())
    # Neither is a machine restarted after its host failed: its job is gone, and it would boot under an old claim.
    fields: dict[str, Any] = {
        "provisioning_model": "SPOT" if is_spot else "STANDARD",
        "instance_termination_action": "STOP" if is_spot and batch.is_stoppable else "DELETE",
        "automatic_restart": False,
        "max_run_duration": compute_v1.Duration(seconds=lifetime_s),
    }
    if is_spot:
        fields["on_host_maintenance"] = "TERMINATE"
        if with_notice:
            fields["preemption_notice_duration"] = compute_v1.Duration(seconds=NOTICE_S)
    elif any(one.gpus for one in part.offerings):
        fields["on_host_maintenance"] = "TERMINATE"  # machines with GPUs cannot be moved
    return compute_v1.Scheduling(**fields)
