"""What the sandbox's project finds in Compute Engine: regions with quotas, zones, machine types, images, subnetworks.

Values that tests may change while the face runs: an image goes, a zone is down, a subnetwork is full. What of it is
used is the world's to say.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from autoscaler.sandbox.gce_wire import Json, fingerprint, instant, not_found, number_for, region_of

_BEGINNING = 1_420_000_000.0
_CPU_PLATFORMS = ("Intel Cascade Lake", "Intel Ice Lake", "AMD Milan", "Ampere Altra")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    name: str
    cpus: int
    memory_gib: float
    arch: str = "x86_64"
    gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """`path` is "projects/P/global/images/NAME". `state` is "", or DEPRECATED, OBSOLETE or DELETED; the last two make
    no machine any more, and none of the three is what its family means."""

    path: str
    state: str = ""
    family: str = ""
    disk_gb: int = 10
    arch: str = "x86_64"
    created_at: float = _BEGINNING

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def family_path(self) -> str:
        return f"{self.path.rpartition('/')[0]}/family/{self.family}" if self.family else ""


@dataclass(slots=True, kw_only=True)
class Subnetwork:
    """`path` is "projects/P/regions/R/subnetworks/NAME"."""

    path: str
    cidr: str = "10.128.0.0/20"
    network: str = "default"

    @property
    def region(self) -> str:
        return self.path.split("/")[3]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(slots=True, kw_only=True)
class GceCatalogue:
    """`types` by zone. `down` zones exist and serve nothing. `number` is the project's."""

    project: str
    number: str
    types: dict[str, dict[str, MachineType]]
    images: dict[str, Image] = field(default_factory=dict)
    subnetworks: dict[str, Subnetwork] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)

    @property
    def zones(self) -> list[str]:
        return sorted(self.types)

    @property
    def regions(self) -> list[str]:
        return sorted({region_of(zone) for zone in self.types})

    def zones_of(self, region: str) -> list[str]:
        """Raises GceError(404)."""
        zones = [zone for zone in self.zones if region_of(zone) == region]
        if not zones:
            raise not_found(f"projects/{self.project}/regions/{region}")
        return zones

    def check_zone(self, zone: str) -> None:
        if zone not in self.types:
            raise not_found(f"projects/{self.project}/zones/{zone}")

    def image(self, path: str) -> Image:
        """By its own path or its family's newest. Raises GceError(404)."""
        if path in self.images:
            return self.images[path]
        family = [image for image in self.images.values() if image.family_path == path and not image.state]
        if not family:
            raise not_found(path)
        return max(family, key=lambda image: (image.created_at, image.path))

    def subnetwork(self, path: str) -> Subnetwork:
        """Raises GceError(404)."""
        if path not in self.subnetworks:
            raise not_found(path)
        return self.subnetworks[path]

    def add_images(self, images: Iterable[Image]) -> None:
        self.images |= {image.path: image for image in images}

    def add_subnetworks(self, subnetworks: Iterable[Subnetwork]) -> None:
        self.subnetworks |= {one.path: one for one in subnetworks}


class CatalogueViews:
    """The catalogue as JSON. `base` is the address up to "/compute/v1/projects/P/"; `quotas` gives a region's metrics
    as (limit, usage)."""

    def __init__(
        self, catalogue: GceCatalogue, base: str, quotas: Callable[[str], Mapping[str, tuple[float, float]]]
    ) -> None:
        self._catalogue = catalogue
        self._base = base
        self._version = base.partition("projects/")[0]
        self._quotas = quotas

    def project(self) -> Json:
        catalogue = self._catalogue
        return {
            "kind": "compute#project",
            "id": catalogue.number,
            "creationTimestamp": instant(_BEGINNING),
            "name": catalogue.project,
            "commonInstanceMetadata": {"kind": "compute#metadata", "fingerprint": fingerprint(catalogue.project)},
            "quotas": [{"metric": "NETWORKS", "limit": 30.0, "usage": 1.0}],
            "selfLink": self._base.rstrip("/"),
            "defaultServiceAccount": f"{catalogue.number}-compute@developer.gserviceaccount.com",
            "xpnProjectStatus": "UNSPECIFIED_XPN_PROJECT_STATUS",
            "defaultNetworkTier": "PREMIUM",
            "vmDnsSetting": "ZONAL_ONLY",
        }

    def zone(self, name: str) -> Json:
        self._catalogue.check_zone(name)
        return {
            "kind": "compute#zone",
            "id": number_for(name),
            "creationTimestamp": instant(_BEGINNING),
            "name": name,
            "description": name,
            "status": "DOWN" if name in self._catalogue.down else "UP",
            "region": f"{self._base}regions/{region_of(name)}",
            "selfLink": f"{self._base}zones/{name}",
            "availableCpuPlatforms": list(_CPU_PLATFORMS),
            "supportsPzs": False,
        }

    def region(self, name: str) -> Json:
        zones = self._catalogue.zones_of(name)
        return {
            "kind": "compute#region",
            "id": number_for(name),
            "creationTimestamp": instant(_BEGINNING),
            "name": name,
            "description": name,
            "status": "UP",
            "zones": [f"{self._base}zones/{zone}" for zone in zones],
            "quotas": [
                {"metric": metric, "limit": float(limit), "usage": float(usage)}
                for metric, (limit, usage) in sorted(self._quotas(name).items())
            ],
            "selfLink": f"{self._base}regions/{name}",
            "supportsPzs": False,
        }

    def machine_type(self, zone: str, name: str) -> Json:
        self._catalogue.check_zone(zone)
        found = self._catalogue.types[zone].get(name)
        if found is None:
            raise not_found(f"projects/{self._catalogue.project}/zones/{zone}/machineTypes/{name}")
        return self._machine_type(zone, found)

    def machine_types(self, zone: str) -> list[Json]:
        self._catalogue.check_zone(zone)
        return [self._machine_type(zone, found) for _, found in sorted(self._catalogue.types[zone].items())]

    def _machine_type(self, zone: str, found: MachineType) -> Json:
        shown: Json = {
            "kind": "compute#machineType",
            "id": number_for(found.name),
            "creationTimestamp": instant(_BEGINNING),
            "name": found.name,
            "description": f"{found.cpus} vCPUs, {found.memory_gib:g} GB RAM",
            "guestCpus": found.cpus,
            "memoryMb": int(found.memory_gib * 1024),
            "imageSpaceGb": 0,
            "maximumPersistentDisks": 128,
            "maximumPersistentDisksSizeGb": "263168",
            "zone": zone,
            "selfLink": f"{self._base}zones/{zone}/machineTypes/{found.name}",
            "isSharedCpu": False,
            "architecture": architecture(found.arch),
        }
        if found.gpus:
            kind = "nvidia-l4" if found.name.startswith("g2") else "nvidia-tesla-t4"
            shown["accelerators"] = [{"guestAcceleratorType": kind, "guestAcceleratorCount": found.gpus}]
        return shown

    def image(self, path: str) -> Json:
        found = self._catalogue.image(path)
        shown: Json = {
            "kind": "compute#image",
            "id": number_for(found.path),
            "creationTimestamp": instant(found.created_at),
            "name": found.name,
            "sourceType": "RAW",
            "status": "READY",
            "archiveSizeBytes": str(found.disk_gb * 2**30 // 3),
            "diskSizeGb": str(found.disk_gb),
            "labelFingerprint": fingerprint(found.path),
            "selfLink": self._version + found.path,
            "guestOsFeatures": [{"type": kind} for kind in ("UEFI_COMPATIBLE", "VIRTIO_SCSI_MULTIQUEUE", "GVNIC")],
            "architecture": architecture(found.arch),
        }
        if found.state:
            shown["deprecated"] = {"state": found.state}
        return shown | ({"family": found.family} if found.family else {})

    def subnetwork(self, path: str) -> Json:
        found = self._catalogue.subnetwork(path)
        network = ipaddress.ip_network(found.cidr)
        return {
            "kind": "compute#subnetwork",
            "id": number_for(found.path),
            "creationTimestamp": instant(_BEGINNING),
            "name": found.name,
            "network": f"{self._base}global/networks/{found.network}",
            "ipCidrRange": found.cidr,
            "gatewayAddress": str(network.network_address + 1),
            "region": f"{self._base}regions/{found.region}",
            "selfLink": self._version + found.path,
            "privateIpGoogleAccess": True,
            "fingerprint": fingerprint(found.path, found.cidr),
            "purpose": "PRIVATE",
            "stackType": "IPV4_ONLY",
            "allowSubnetCidrRoutesOverlap": False,
        }


def architecture(arch: str) -> str:
    return "ARM64" if arch == "arm64" else "X86_64"


def cpu_platform(machine_type: str) -> str:
    """What such a machine usually runs on."""
    family = re.match(r"[a-z]+[0-9]+[a-z]?", machine_type)
    name = family[0] if family else ""
    if name.startswith("t2a"):
        return "Ampere Altra"
    return "AMD Milan" if name.endswith(("d", "a")) else "Intel Ice Lake"


def usable_addresses(cidr: str) -> int:
    """Google keeps four of each range for itself."""
    return max(0, ipaddress.ip_network(cidr).num_addresses - 4)
