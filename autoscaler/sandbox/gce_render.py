"""A machine as Compute Engine shows it: as much as the real API sends, so that sizes and parsing times are true."""

import hashlib
from dataclasses import dataclass

from autoscaler.sandbox.gce_body import MachineBody
from autoscaler.sandbox.gce_catalogue import Image, architecture, cpu_platform
from autoscaler.sandbox.gce_wire import Json, fingerprint, instant

_GUEST_FEATURES = ("UEFI_COMPATIBLE", "VIRTIO_SCSI_MULTIQUEUE", "GVNIC", "SEV_CAPABLE", "SEV_LIVE_MIGRATABLE")
_LICENSE = "projects/debian-cloud/global/licenses/debian-12-bookworm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Showing:
    """All that a rendered machine depends on: equal showings look the same."""

    name: str
    number: str
    zone: str
    machine_type: str
    status: str
    address: str
    body: MachineBody
    image: Image
    network: str
    created_at: float
    started_at: float | None
    stopped_at: float | None


def show(machine: Showing, base: str) -> Json:
    """`base` is the address up to "/compute/v1/projects/P/"."""
    version = base.partition("projects/")[0]
    body = machine.body
    zone = f"{base}zones/{machine.zone}"
    shown: Json = {
        "kind": "compute#instance",
        "id": machine.number,
        "creationTimestamp": instant(machine.created_at),
        "name": machine.name,
        "tags": _tags(body),
        "machineType": f"{zone}/machineTypes/{machine.machine_type}",
        "status": machine.status,
        "zone": zone,
        "canIpForward": False,
        "networkInterfaces": [_interface(machine, version, base)],
        "disks": [_disk(machine, version, zone)],
        "metadata": _metadata(body),
        "selfLink": f"{zone}/instances/{machine.name}",
        "scheduling": body.schedule.show(),
        "cpuPlatform": cpu_platform(machine.machine_type) if machine.status == "RUNNING" else "Unknown CPU Platform",
        "labels": dict(body.labels),
        "labelFingerprint": fingerprint(*sorted(f"{key}={value}" for key, value in body.labels.items())),
        "startRestricted": False,
        "deletionProtection": False,
        "resourceStatus": {"scheduling": {}, "physicalHost": _host(machine)},
        "shieldedInstanceConfig": dict(body.shielded),
        "shieldedInstanceIntegrityPolicy": {"updateAutoLearnPolicy": True},
        "fingerprint": fingerprint(machine.name, machine.status),
        "satisfiesPzi": True,
    }
    if body.service_account:
        shown["serviceAccounts"] = [{"email": body.service_account, "scopes": list(body.scopes)}]
    if machine.started_at is not None:
        shown["lastStartTimestamp"] = instant(machine.started_at)
    if machine.stopped_at is not None:
        shown["lastStopTimestamp"] = instant(machine.stopped_at)
    return shown


def _host(machine: Showing) -> str:
    digest = hashlib.sha256(machine.number.encode()).hexdigest()
    return f"/{digest[:32]}/{digest[32:]}/{digest[8:40]}" if machine.status == "RUNNING" else ""


def _tags(body: MachineBody) -> Json:
    shown: Json = {"fingerprint": fingerprint(*body.tags)}
    return shown | ({"items": list(body.tags)} if body.tags else {})


def _metadata(body: MachineBody) -> Json:
    shown: Json = {"kind": "compute#metadata", "fingerprint": fingerprint(*sorted(body.metadata))}
    items = [{"key": key, "value": value} for key, value in body.metadata.items()]
    return shown | ({"items": items} if items else {})


def _interface(machine: Showing, version: str, base: str) -> Json:
    shown: Json = {
        "kind": "compute#networkInterface",
        "network": f"{base}global/networks/{machine.network}",
        "subnetwork": version + machine.body.subnetwork,
        "name": "nic0",
        "fingerprint": fingerprint(machine.number, machine.address),
        "stackType": "IPV4_ONLY",
    }
    if machine.address:
        shown["networkIP"] = machine.address
    if machine.body.has_external_ip:
        access: Json = {
            "kind": "compute#accessConfig",
            "type": "ONE_TO_ONE_NAT",
            "name": "External NAT",
            "networkTier": "PREMIUM",
        }
        if machine.status == "RUNNING":
            access["natIP"] = "203.0.113." + str(int(machine.number) % 254 + 1)
        shown["accessConfigs"] = [access]
    return shown


def _disk(machine: Showing, version: str, zone: str) -> Json:
    body = machine.body
    return {
        "kind": "compute#attachedDisk",
        "type": "PERSISTENT",
        "mode": "READ_WRITE",
        "source": f"{zone}/disks/{machine.name}",
        "deviceName": "persistent-disk-0",
        "index": 0,
        "boot": True,
        "autoDelete": body.deletes_disk,
        "licenses": [version + _LICENSE],
        "interface": "SCSI",
        "guestOsFeatures": [{"type": kind} for kind in _GUEST_FEATURES],
        "diskSizeGb": str(body.disk_gb or machine.image.disk_gb),
        "architecture": architecture(machine.image.arch),
    }
