"""How the sandbox's EC2 describes an instance: as long as the real answer (over 2.5 KB), and kept until it changes.

What the world does not know (interface ids, MAC addresses, volumes) is derived from the machine's id, so that it stays
the same for as long as the machine is known.
"""

import hashlib
from collections.abc import Mapping, Sequence

from autoscaler.sandbox.aws_ec2_specification import BlockDevice
from autoscaler.sandbox.aws_filters import tag_rows
from autoscaler.sandbox.aws_query import Raw, Xml, instant, render
from autoscaler.sandbox.aws_sts import profile_arn, profile_id
from autoscaler.sandbox.aws_world import Launched, Place
from autoscaler.sandbox.cloud_machines import Machine
from autoscaler.spi import CapacityType, MachineState

_ROOT = "/dev/xvda"
STATES: Mapping[MachineState, tuple[int, str]] = {
    MachineState.PENDING: (0, "pending"),
    MachineState.RUNNING: (16, "running"),
    MachineState.TERMINATING: (32, "shutting-down"),
    MachineState.TERMINATED: (48, "terminated"),
    MachineState.STOPPING: (64, "stopping"),
    MachineState.STOPPED: (80, "stopped"),
}
_GONE = (MachineState.TERMINATING, MachineState.TERMINATED)


class Rendered:
    """Instances as XML, rendered anew only when the machine changed."""

    def __init__(self, account: str) -> None:
        self._account = account
        self._kept: dict[str, tuple[tuple[object, ...], Raw]] = {}

    def instance(self, machine: Machine, launched: Launched) -> Raw:
        mark = (machine.state, machine.changed_at, machine.life, tuple(machine.tags.items()))
        kept = self._kept.get(machine.id)
        if kept is None or kept[0] != mark:
            shown = show_instance(machine, launched, account=self._account)
            kept = (mark, Raw("".join(render(key, value) for key, value in shown.items())))
            self._kept[machine.id] = kept
        return kept[1]

    def reservations(self, machines: Sequence[tuple[Machine, Launched]]) -> list[Xml]:
        """Machines under the reservations that they were launched in, in the order of their first one."""
        grouped: dict[str, list[Xml]] = {}
        for machine, launched in machines:
            grouped.setdefault(launched.reservation, []).append(self.instance(machine, launched))
        return [
            {
                "reservationId": reservation,
                "ownerId": self._account,
                "requesterId": "AIDAREQUESTER",
                "groupSet": [],
                "instancesSet": instances,
            }
            for reservation, instances in grouped.items()
        ]

    def forget(self, machine_id: str) -> None:
        self._kept.pop(machine_id, None)


def show_instance(machine: Machine, launched: Launched, *, account: str) -> dict[str, Xml]:
    """One instance, in the members that botocore's shape `Instance` has; attached things only while it has them."""
    specification, is_gone = launched.specification, machine.state in _GONE
    code, name = STATES[machine.state]
    is_spot = machine.capacity_pool.capacity_type is CapacityType.SPOT
    shown: dict[str, Xml] = {
        "instanceId": machine.id,
        "imageId": launched.place.image.id,
        "instanceState": {"code": code, "name": name},
        "privateDnsName": "" if is_gone else _dns(machine.address),
        "dnsName": "",
        "reason": _transition(machine),
        "keyName": specification.key_name or None,
        "amiLaunchIndex": launched.index,
        "productCodes": [],
        "instanceType": machine.capacity_pool.machine_type,
        "launchTime": instant(machine.started_at),
        "placement": {
            "availabilityZone": machine.capacity_pool.zone,
            "availabilityZoneId": zone_id(machine.capacity_pool.zone),
            "groupName": "",
            "tenancy": "default",
        },
        "monitoring": {"state": "enabled" if specification.monitoring == "true" else "disabled"},
        "architecture": launched.place.image.arch,
        "rootDeviceType": "ebs",
        "rootDeviceName": launched.place.image.root,
        "blockDeviceMapping": [] if is_gone else _show_disks(machine, specification.block_devices),
        "virtualizationType": "hvm",
        "clientToken": launched.client_token,
        "tagSet": tag_rows(machine.tags),
        "hypervisor": "xen",
        "networkInterfaceSet": [] if is_gone else [_show_interface(machine, launched.place, account)],
        "ebsOptimized": specification.ebs_optimized == "true",
        "enaSupport": True,
    }
    shown |= {} if is_gone else _show_network(machine, launched.place)
    shown |= _show_options(machine, launched)
    if profile := specification.instance_profile:
        profile_name = profile.rpartition("/")[2]
        shown["iamInstanceProfile"] = {"arn": profile_arn(account, profile_name), "id": profile_id(profile_name)}
    if is_spot:
        shown |= {"instanceLifecycle": "spot", "spotInstanceRequestId": machine.spot_request_id}
    if machine.reason:
        shown["stateReason"] = {"code": machine.reason, "message": f"{machine.reason}: {_MESSAGES[machine.reason]}"}
    return shown


_MESSAGES: Mapping[str, str] = {
    "Client.UserInitiatedShutdown": "User initiated shutdown",
    "Client.InstanceInitiatedShutdown": "Instance initiated shutdown",
    "Client.VolumeLimitExceeded": "Volume limit exceeded",
    "Client.InternalError": "Client error on launch",
    "Server.SpotInstanceTermination": "Instance terminated by spot service",
    "Server.SpotInstanceShutdown": "Instance stopped by spot service",
    "Server.InsufficientInstanceCapacity": "Insufficient capacity to satisfy instance request",
    "Server.InternalError": "Internal error on launch",
}


def zone_id(zone: str) -> str:
    """As AWS writes it: us-east-1a -> use1-az1. The letters of an account are shuffled in truth; not here."""
    region, letter = zone[:-1], zone[-1]
    area, direction, number = region.rsplit("-", 2)
    short = area.replace("-", "") + "".join(part[0] for part in _DIRECTION.get(direction, (direction,)))
    return f"{short}{number}-az{ord(letter) - ord('a') + 1}"


_DIRECTION: Mapping[str, tuple[str, ...]] = {
    "northeast": ("north", "east"),
    "northwest": ("north", "west"),
    "southeast": ("south", "east"),
    "southwest": ("south", "west"),
}


def _show_network(machine: Machine, place: Place) -> dict[str, Xml]:
    return {
        "privateIpAddress": machine.address,
        "subnetId": place.subnet.id,
        "vpcId": place.subnet.vpc_id,
        "sourceDestCheck": True,
        "groupSet": _show_groups(place.specification.groups),
    }


def _show_options(machine: Machine, launched: Launched) -> dict[str, Xml]:
    options = launched.specification.metadata_options
    metadata = {name[0].lower() + name[1:]: value for name, value in options.items()}
    threads = min(launched.cpus, 1 if launched.place.image.arch == "arm64" else 2)
    cores = launched.cpus // threads
    return {
        "cpuOptions": {"coreCount": cores, "threadsPerCore": threads},
        "capacityReservationSpecification": {"capacityReservationPreference": "open"},
        "hibernationOptions": {"configured": False},
        "metadataOptions": {"state": "applied", **metadata},
        "enclaveOptions": {"enabled": False},
        "bootMode": "uefi-preferred",
        "platformDetails": "Linux/UNIX",
        "usageOperation": "RunInstances",
        "usageOperationUpdateTime": instant(machine.launched_at),
        "privateDnsNameOptions": {
            "hostnameType": "ip-name",
            "enableResourceNameDnsARecord": False,
            "enableResourceNameDnsAAAARecord": False,
        },
        "maintenanceOptions": {"autoRecovery": "default", "rebootMigration": "default"},
        "currentInstanceBootMode": "uefi",
        "networkPerformanceOptions": {"bandwidthWeighting": "default"},
        "operator": {"managed": False},
    }


def _show_disks(machine: Machine, devices: tuple[BlockDevice, ...]) -> list[Xml]:
    shown: list[Xml] = []
    for device in devices or (BlockDevice(device=_ROOT, volume={}),):
        ebs: dict[str, Xml] = {
            "volumeId": f"vol-{_digits(machine.id, device.device)}",
            "status": "attached",
            "attachTime": instant(machine.launched_at),
            "deleteOnTermination": device.volume.get("DeleteOnTermination", "true"),
        }
        shown.append({"deviceName": device.device, "ebs": ebs})
    return shown


def _show_interface(machine: Machine, place: Place, account: str) -> Xml:
    digits = _digits(machine.id, "interface")
    mac = ":".join(("06", *(digits[at : at + 2] for at in range(0, 10, 2))))
    dns = _dns(machine.address)
    return {
        "networkInterfaceId": f"eni-{digits}",
        "subnetId": place.subnet.id,
        "vpcId": place.subnet.vpc_id,
        "description": "",
        "ownerId": account,
        "status": "in-use",
        "macAddress": mac,
        "privateIpAddress": machine.address,
        "privateDnsName": dns,
        "sourceDestCheck": True,
        "groupSet": _show_groups(place.specification.groups),
        "attachment": {
            "attachmentId": f"eni-attach-{digits}",
            "deviceIndex": 0,
            "status": "attached",
            "attachTime": instant(machine.launched_at),
            "deleteOnTermination": True,
            "networkCardIndex": 0,
        },
        "privateIpAddressesSet": [{"privateIpAddress": machine.address, "privateDnsName": dns, "primary": True}],
        "ipv6AddressesSet": [],
        "interfaceType": "interface",
        "operator": {"managed": False},
    }


def _show_groups(groups: tuple[str, ...]) -> list[Xml]:
    return [{"groupId": group, "groupName": f"name-of-{group}"} for group in groups]


def _dns(address: str) -> str:
    return f"ip-{address.replace('.', '-')}.ec2.internal" if address else ""


def _transition(machine: Machine) -> str:
    """The old text about the last change: "User initiated (2026-11-26 14:00:00 GMT)"."""
    at = f"({instant(machine.changed_at):%Y-%m-%d %H:%M:%S} GMT)"
    match machine.reason:
        case "":
            return ""
        case "Client.UserInitiatedShutdown":
            return f"User initiated {at}"
        case reason if reason.startswith("Server.Spot"):
            return f"{reason}: {_MESSAGES[reason]} {at}"
        case reason:
            return f"{reason} {at}"


def _digits(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:17]
