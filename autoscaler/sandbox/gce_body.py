"""What a caller of the sandbox's Compute Engine asks a machine to be: the JSON of an insert, checked as Google does.

Owns the fields that are served and the rules among them; a field that is not served is refused as one that Google does
not know. Whether image, subnetwork and machine type exist is asked of the catalogue.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoscaler.sandbox.gce_wire import GceError, Json, invalid, last_part, path_below_version, required

NOTICE_S = 120
_NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_METADATA_KEY = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_VALUE_BYTES = 256 * 1024
_ALL_BYTES = 512 * 1024
_LIFETIME_S = (30, 120 * 24 * 3600)
_LABELS = 64

_DURATION = {"seconds": None, "nanos": None}
_DISK_PARAMETERS = {"diskName", "diskSizeGb", "diskType", "labels", "sourceImage", "description"}
_SCHEDULING: Json = {
    **dict.fromkeys(("automaticRestart", "instanceTerminationAction", "onHostMaintenance", "preemptible")),
    "provisioningModel": None,
    "maxRunDuration": _DURATION,
    "preemptionNoticeDuration": _DURATION,
}
# None: a leaf, whatever it holds.
FIELDS: Json = {
    "labels": None,
    "description": None,
    "machineType": None,
    "disks": {
        **dict.fromkeys(("autoDelete", "boot", "deviceName", "diskSizeGb", "mode", "type", "interface")),
        "initializeParams": dict.fromkeys(_DISK_PARAMETERS),
    },
    "metadata": {"items": {"key": None, "value": None}, "fingerprint": None, "kind": None},
    "networkInterfaces": {
        **dict.fromkeys(("network", "subnetwork", "name", "nicType", "stackType")),
        "accessConfigs": dict.fromkeys(("name", "type", "networkTier")),
    },
    "scheduling": _SCHEDULING,
    "serviceAccounts": {"email": None, "scopes": None},
    "shieldedInstanceConfig": dict.fromkeys(("enableIntegrityMonitoring", "enableSecureBoot", "enableVtpm")),
    "tags": {"items": None, "fingerprint": None},
}
INSERT_FIELDS: Json = {**FIELDS, "name": None, "zone": None}
BULK_FIELDS: Json = {
    **dict.fromkeys(("count", "minCount", "namePattern")),
    "perInstanceProperties": {"*": {"name": None, "hostname": None}},
    "locationPolicy": {"locations": {"*": {"preference": None}}, "targetShape": None},
    "instanceFlexibilityPolicy": {"instanceSelections": {"*": {"machineTypes": None, "rank": None}}},
    "instanceProperties": FIELDS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long a machine may live and how it ends. `notice_s` is 0 where none was asked for."""

    is_spot: bool
    is_deleted_at_end: bool
    on_host_maintenance: str
    restarts: bool
    max_run_s: float | None
    notice_s: float

    def show(self) -> Json:
        shown: Json = {
            "onHostMaintenance": self.on_host_maintenance,
            "automaticRestart": self.restarts,
            "preemptible": self.is_spot,
            "provisioningModel": "SPOT" if self.is_spot else "STANDARD",
        }
        if self.is_spot or self.max_run_s is not None:
            shown["instanceTerminationAction"] = "DELETE" if self.is_deleted_at_end else "STOP"
        if self.max_run_s is not None:
            shown["maxRunDuration"] = {"seconds": str(int(self.max_run_s))}
        if self.notice_s:
            shown["preemptionNoticeDuration"] = {"seconds": str(int(self.notice_s))}
        return shown


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineBody:
    """All that machines of one request have in common, but their type. Paths are below the API's version."""

    image: str
    disk_gb: int | None
    disk_type: str
    deletes_disk: bool
    subnetwork: str
    has_external_ip: bool
    labels: Mapping[str, str]
    metadata: Mapping[str, str]
    tags: tuple[str, ...]
    service_account: str
    scopes: tuple[str, ...]
    schedule: Schedule
    shielded: Mapping[str, bool]


def read_json(raw: bytes) -> Json:
    try:
        body = json.loads(raw) if raw else {}
    except ValueError as error:
        raise GceError(400, "parseError", "Parse Error") from error
    if not isinstance(body, dict):
        raise GceError(400, "parseError", "Parse Error")
    return body


def check_fields(body: Any, fields: Json | None, where: str) -> None:
    """Raises GceError(400) for what is not served, in Google's words for a field that it does not know."""
    if fields is None:
        return
    if isinstance(body, list):
        for index, item in enumerate(body):
            check_fields(item, fields, f"{where}[{index}]")
    elif isinstance(body, Mapping):
        for key, value in body.items():
            if key not in fields and "*" not in fields:
                message = f"Invalid JSON payload received. Unknown name \"{key}\" at '{where}': Cannot find field."
                raise GceError(400, "badRequest", message)
            check_fields(value, fields.get(key, fields.get("*")), f"{where}.{key}")
    else:
        raise invalid(where, body, "Must be an object.")


def check_name(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise invalid(where, name, f"Must be a match of regex '{_NAME.pattern}'")
    return name


def read_body(properties: Json, where: str, *, knows_notice: bool) -> MachineBody:
    """Of an Instance or InstanceProperties. Raises GceError(400)."""
    disk = _boot_disk(properties, where)
    parameters = disk.get("initializeParams", {})
    interfaces = properties.get("networkInterfaces") or []
    if not interfaces:
        raise required(f"{where}.networkInterfaces")
    if "sourceImage" not in parameters:
        raise invalid(f"{where}.disks", "", "Boot disk must have a source specified")
    accounts = properties.get("serviceAccounts") or [{}]
    return MachineBody(
        image=path_below_version(parameters["sourceImage"]),
        disk_gb=whole_number(parameters.get("diskSizeGb", disk.get("diskSizeGb")), f"{where}.disks[0].diskSizeGb"),
        disk_type=last_part(parameters.get("diskType", "pd-standard")),
        deletes_disk=bool(disk.get("autoDelete", False)),
        subnetwork=path_below_version(interfaces[0].get("subnetwork", "")),
        has_external_ip=bool(interfaces[0].get("accessConfigs")),
        labels=_labels(properties.get("labels", {}), f"{where}.labels"),
        metadata=_metadata(properties.get("metadata", {}), f"{where}.metadata"),
        tags=tuple(properties.get("tags", {}).get("items", ())),
        service_account=accounts[0].get("email", ""),
        scopes=tuple(accounts[0].get("scopes", ())),
        schedule=_schedule(properties.get("scheduling", {}), f"{where}.scheduling", knows_notice=knows_notice),
        shielded={
            "enableSecureBoot": False,
            "enableVtpm": True,
            "enableIntegrityMonitoring": True,
            **properties.get("shieldedInstanceConfig", {}),
        },
    )


def _boot_disk(properties: Json, where: str) -> Json:
    for disk in properties.get("disks", ()):
        if disk.get("boot"):
            found: Json = disk
            return found
    raise invalid(f"{where}.disks", "", "No disks are specified; a boot disk is required.")


def _schedule(scheduling: Json, where: str, *, knows_notice: bool) -> Schedule:
    model = scheduling.get("provisioningModel", "SPOT" if scheduling.get("preemptible") else "STANDARD")
    if model not in ("SPOT", "STANDARD"):
        raise invalid(f"{where}.provisioningModel", model, "Must be one of SPOT, STANDARD.")
    is_spot = model == "SPOT"
    action = scheduling.get("instanceTerminationAction", "STOP")
    if action not in ("STOP", "DELETE"):
        raise invalid(f"{where}.instanceTerminationAction", action, "Must be one of DELETE, STOP.")
    max_run_s = _seconds(scheduling.get("maxRunDuration"), f"{where}.maxRunDuration")
    if max_run_s is not None and not _LIFETIME_S[0] <= max_run_s <= _LIFETIME_S[1]:
        raise invalid(f"{where}.maxRunDuration", max_run_s, "Must be between 30 seconds and 120 days.")
    if "instanceTerminationAction" in scheduling and not is_spot and max_run_s is None:
        raise invalid(
            f"{where}.instanceTerminationAction", action, "It needs a Spot VM, a maxRunDuration or a terminationTime."
        )
    maintenance = scheduling.get("onHostMaintenance", "TERMINATE" if is_spot else "MIGRATE")
    restarts = scheduling.get("automaticRestart", not is_spot)
    if is_spot and (restarts or maintenance != "TERMINATE"):
        why = "Spot VMs must have automaticRestart false and onHostMaintenance TERMINATE."
        raise invalid(where, model, why)
    return Schedule(
        is_spot=is_spot,
        is_deleted_at_end=action == "DELETE",
        on_host_maintenance=maintenance,
        restarts=restarts,
        max_run_s=max_run_s,
        notice_s=_notice(scheduling, where, is_spot=is_spot, knows_notice=knows_notice),
    )


def _notice(scheduling: Json, where: str, *, is_spot: bool, knows_notice: bool) -> float:
    field = f"{where}.preemptionNoticeDuration"
    asked_s = _seconds(scheduling.get("preemptionNoticeDuration"), field)
    if asked_s is None:
        return 0.0
    if not knows_notice:
        raise invalid(field, scheduling["preemptionNoticeDuration"], "The field is not supported in this project.")
    if not is_spot or asked_s != NOTICE_S:
        raise invalid(field, asked_s, f"It must be {NOTICE_S} seconds, for a Spot VM.")
    return asked_s


def _seconds(duration: Any, where: str) -> float | None:
    if duration is None:
        return None
    return whole_number(duration.get("seconds", 0), where)


def whole_number(value: Any, where: str) -> int | None:
    """An int64, which JSON carries as a text."""
    if value is None:
        return None
    if not str(value).isdigit():
        raise invalid(where, value, "Must be a whole number.")
    return int(value)


def _labels(labels: Json, where: str) -> Mapping[str, str]:
    if len(labels) > _LABELS:
        raise invalid(where, len(labels), f"No more than {_LABELS} labels are allowed.")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise invalid(where, key, "Label keys must be 1-63 lower-case letters, digits, _ or -.")
        if not _LABEL_VALUE.fullmatch(value):
            raise invalid(f"{where}.{key}", value, "Label values must be 0-63 lower-case letters, digits, _ or -.")
    return dict(labels)


def _metadata(metadata: Json, where: str) -> Mapping[str, str]:
    items: dict[str, str] = {}
    for index, item in enumerate(metadata.get("items", ())):
        key, value = item.get("key", ""), item.get("value", "")
        if not _METADATA_KEY.fullmatch(key) or key in items:
            raise invalid(f"{where}.items[{index}].key", key, "Keys are unique and match [a-zA-Z0-9-_]{1,128}.")
        if len(value.encode()) > _VALUE_BYTES:
            raise invalid(f"{where}.items[{index}].value", f"{value[:20]}...", "It is too long: 262144 bytes at most.")
        items[key] = value
    if sum(len(key) + len(value.encode()) for key, value in items.items()) > _ALL_BYTES:
        raise invalid(where, "", "Total metadata size exceeds 512 KB.")
    return items
