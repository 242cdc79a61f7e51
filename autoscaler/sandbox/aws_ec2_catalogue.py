"""What EC2 offers and what is set up in it: regions, zones, machine types, prices over time, networks, images.

Everything is read from the world at the moment of the call, so that a price, a subnet or an image can change or go.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime

from autoscaler.sandbox.aws_access import Caller
from autoscaler.sandbox.aws_ec2_render import zone_id
from autoscaler.sandbox.aws_filters import Filters, page
from autoscaler.sandbox.aws_query import AwsError, Parameters, Xml, instant
from autoscaler.sandbox.aws_setup import AwsSetup, Image, MachineType, Subnet
from autoscaler.sandbox.cloud_capacity import Supply
from autoscaler.spi import CapacityType

PRODUCT = "Linux/UNIX"
_PAGES = (5, 1000)
_TYPE_PAGES = (5, 100)
_NO_TAGS: Mapping[str, str] = {}
_USAGE = {CapacityType.SPOT: "spot", CapacityType.ON_DEMAND: "on-demand"}

_OLD_FAMILIES = re.compile(r"([mc][1-4]|r3|t1|i2|g2|a1)\.")

Answer = dict[str, Xml]
Handler = Callable[[Caller, Parameters], Answer]


class Catalogue:
    """The read-only actions about what there is."""

    def __init__(self, setup: AwsSetup) -> None:
        self._setup = setup
        self.handlers: Mapping[str, Handler] = {
            "DescribeRegions": self._regions,
            "DescribeAvailabilityZones": self._zones,
            "DescribeInstanceTypes": self._types,
            "DescribeInstanceTypeOfferings": self._offerings,
            "DescribeSpotPriceHistory": self._prices,
            "DescribeSubnets": self._subnets,
            "DescribeSecurityGroups": self._groups,
            "DescribeImages": self._images,
        }

    def _regions(self, caller: Caller, parameters: Parameters) -> Answer:
        wanted = parameters.texts("RegionName")
        parameters.flag("AllRegions")
        rows: list[Xml] = [
            {"regionName": name, "regionEndpoint": f"ec2.{name}.amazonaws.com", "optInStatus": "opt-in-not-required"}
            for name in self._setup.regions
            if not wanted or name in wanted
        ]
        return {"regionInfo": rows}

    def _zones(self, caller: Caller, parameters: Parameters) -> Answer:
        names, ids = parameters.texts("ZoneName"), parameters.texts("ZoneId")
        parameters.flag("AllAvailabilityZones")
        readers: dict[str, Callable[[str], str]] = {
            "zone-name": str,
            "zone-id": zone_id,
            "region-name": lambda _: caller.region,
        }
        readers |= {"state": lambda _: "available", "zone-type": lambda _: "availability-zone"}
        found = Filters(parameters).apply(self._setup.zones(caller.region), readers, tags=lambda _: _NO_TAGS)
        rows: list[Xml] = [
            {
                "optInStatus": "opt-in-not-required",
                "regionName": caller.region,
                "zoneName": zone,
                "zoneId": zone_id(zone),
                "groupName": f"{caller.region}-zg-1",
                "networkBorderGroup": caller.region,
                "zoneType": "availability-zone",
                "zoneState": "available",
                "messageSet": [],
            }
            for zone in found
            if (not names or zone in names) and (not ids or zone_id(zone) in ids)
        ]
        return {"availabilityZoneInfo": rows}

    def _types(self, caller: Caller, parameters: Parameters) -> Answer:
        names = parameters.texts("InstanceType")
        known = {one.name: one for one in self._setup.types(caller.region)}
        for name in names:
            if name not in known:
                message = f"The following supplied instance types do not exist: [{name}]"
                raise AwsError("InvalidInstanceType", message)
        found = Filters(parameters).apply(
            [known[name] for name in names] if names else list(known.values()), _TYPE_READERS, tags=lambda _: _NO_TAGS
        )
        if names and parameters.text("MaxResults"):
            message = "The parameter InstanceTypes cannot be used with the parameter MaxResults"
            raise AwsError("InvalidParameterCombination", message)
        rows, following, _ = page(parameters, found, bounds=_TYPE_PAGES, default=100)
        return {"instanceTypeSet": [_show_type(one) for one in rows], "nextToken": following}

    def _offerings(self, caller: Caller, parameters: Parameters) -> Answer:
        kind = parameters.text("LocationType", "region")
        if kind not in ("region", "availability-zone", "availability-zone-id"):
            raise AwsError("InvalidParameterValue", f"Invalid location type {kind}")
        pairs = sorted(
            {
                (one.name, _location(kind, caller.region, zone))
                for one in self._setup.types(caller.region)
                for zone in one.zones
            }
        )
        readers: Mapping[str, Callable[[tuple[str, str]], str]] = {
            "instance-type": lambda pair: pair[0],
            "location": lambda pair: pair[1],
        }
        found = Filters(parameters).apply(pairs, readers, tags=lambda _: _NO_TAGS)
        rows, following, _ = page(parameters, found, bounds=_PAGES, default=1000)
        return {
            "instanceTypeOfferingSet": [
                {"instanceType": name, "locationType": kind, "location": location} for name, location in rows
            ],
            "nextToken": following,
        }

    def _prices(self, caller: Caller, parameters: Parameters) -> Answer:
        names, products = parameters.texts("InstanceType"), parameters.texts("ProductDescription")
        zone = parameters.text("AvailabilityZone")
        end = _instant(parameters.text("EndTime"), caller.now)
        start = _instant(parameters.text("StartTime"), end - 90 * 86_400)
        rows = [
            (pool.machine_type, pool.zone, at, usd)
            for supply in self._setup.supplies(caller.region)
            if (pool := supply.pool).capacity_type is CapacityType.SPOT
            and (not names or pool.machine_type in names)
            and zone in ("", pool.zone)
            for at, usd in _prices_between(supply, start, end)
        ]
        if products and not {PRODUCT, f"{PRODUCT} (Amazon VPC)"} & set(products):
            rows = []
        readers: Mapping[str, Callable[[tuple[str, str, float, float]], str]] = {
            "instance-type": lambda row: row[0],
            "availability-zone": lambda row: row[1],
            "product-description": lambda _: PRODUCT,
        }
        found = Filters(parameters).apply(rows, readers, tags=lambda _: _NO_TAGS)
        found.sort(key=lambda row: (-row[2], row[0], row[1]))
        shown, following, _ = page(parameters, found, bounds=(1, 1000), default=1000)
        return {"spotPriceHistorySet": [_show_price(*row) for row in shown], "nextToken": following or ""}

    def _subnets(self, caller: Caller, parameters: Parameters) -> Answer:
        ids = parameters.texts("SubnetId")
        found = [self._setup.subnet(caller.region, id_) for id_ in ids] or self._setup.subnets(caller.region)
        readers: Mapping[str, Callable[[Subnet], str]] = {
            "subnet-id": lambda one: one.id,
            "vpc-id": lambda one: one.vpc_id,
            "availability-zone": lambda one: one.zone,
        }
        found = Filters(parameters).apply(found, readers, tags=lambda one: one.tags)
        rows, following, _ = page(parameters, found, bounds=_PAGES)
        return {"subnetSet": [_show_subnet(one, caller) for one in rows], "nextToken": following}

    def _groups(self, caller: Caller, parameters: Parameters) -> Answer:
        ids = parameters.texts("GroupId")
        known = self._setup.groups_of(caller.region)
        for id_ in ids:
            self._setup.check_group(caller.region, id_)
        readers = {"group-id": lambda id_: id_, "vpc-id": lambda id_: known[id_]}
        found = Filters(parameters).apply(ids or list(known), readers, tags=lambda _: _NO_TAGS)
        rows, following, _ = page(parameters, found, bounds=_PAGES)
        return {
            "securityGroupInfo": [_show_group(id_, known[id_], caller) for id_ in rows],
            "nextToken": following,
        }

    def _images(self, caller: Caller, parameters: Parameters) -> Answer:
        ids = parameters.texts("ImageId")
        parameters.texts("Owner")
        parameters.flag("IncludeDeprecated")
        found = [self._setup.image(caller.region, id_) for id_ in ids] or self._setup.images(caller.region)
        readers: Mapping[str, Callable[[Image], str]] = {
            "image-id": lambda one: one.id,
            "architecture": lambda one: one.arch,
            "name": lambda one: one.name,
            "state": lambda _: "available",
        }
        found = Filters(parameters).apply(found, readers, tags=lambda one: one.tags)
        rows, following, _ = page(parameters, found, bounds=(1, 1000))
        return {"imagesSet": [_show_image(one, caller) for one in rows], "nextToken": following}


def _prices_between(supply: Supply, start: float, end: float) -> list[tuple[float, float]]:
    """The price in force at `start` and every change until `end`."""
    if supply.prices is None:
        return [(start, supply.price_usd_hour)]
    return supply.prices.between(start, end)


def _instant(text: str, default: float) -> float:
    if not text:
        return default
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise AwsError("InvalidParameterValue", f"Invalid timestamp {text}") from error


def _location(kind: str, region: str, zone: str) -> str:
    return {"region": region, "availability-zone": zone, "availability-zone-id": zone_id(zone)}[kind]


_TYPE_READERS: Mapping[str, Callable[[MachineType], "str | list[str]"]] = {
    "instance-type": lambda one: one.name,
    "processor-info.supported-architecture": lambda one: one.arch,
    "vcpu-info.default-vcpus": lambda one: str(one.cpus),
    "memory-info.size-in-mib": lambda one: f"{one.memory_gib * 1024:.0f}",
    "bare-metal": lambda one: str(".metal" in one.name).lower(),
    "current-generation": lambda one: str(_is_current(one)).lower(),
    "supported-usage-class": lambda one: [_USAGE[kind] for kind in sorted(one.capacity_types)],
}


def _is_current(one: MachineType) -> bool:
    return _OLD_FAMILIES.match(one.name) is None


def _show_type(one: MachineType) -> Xml:
    threads = 1 if one.arch == "arm64" else 2
    cpus = one.cpus
    shown: dict[str, Xml] = {
        "instanceType": one.name,
        "currentGeneration": _is_current(one),
        "freeTierEligible": False,
        "supportedUsageClasses": [_USAGE[kind] for kind in sorted(one.capacity_types)],
        "supportedRootDeviceTypes": ["ebs"],
        "supportedVirtualizationTypes": ["hvm"],
        "bareMetal": ".metal" in one.name,
        "hypervisor": "nitro",
        "processorInfo": {
            "supportedArchitectures": [one.arch],
            "sustainedClockSpeedInGhz": 3.5,
            "manufacturer": "AWS" if one.arch == "arm64" else "Intel",
        },
        "vCpuInfo": {
            "defaultVCpus": cpus,
            "defaultCores": max(1, cpus // threads),
            "defaultThreadsPerCore": min(threads, cpus),
        },
        "memoryInfo": {"sizeInMiB": int(one.memory_gib * 1024)},
        "instanceStorageSupported": False,
        "ebsInfo": {"ebsOptimizedSupport": "default", "encryptionSupport": "supported", "nvmeSupport": "required"},
        "networkInfo": {
            "networkPerformance": "Up to 12.5 Gigabit",
            "maximumNetworkInterfaces": 3,
            "ipv4AddressesPerInterface": 10,
            "ipv6AddressesPerInterface": 10,
            "ipv6Supported": True,
            "enaSupport": "required",
            "efaSupported": False,
        },
        "placementGroupInfo": {"supportedStrategies": ["cluster", "partition", "spread"]},
        "hibernationSupported": True,
        "burstablePerformanceSupported": one.name.startswith("t"),
        "dedicatedHostsSupported": True,
        "autoRecoverySupported": True,
        "supportedBootModes": ["uefi"] if one.arch == "arm64" else ["legacy-bios", "uefi"],
    }
    if one.gpus:
        gpu: dict[str, Xml] = {"name": "T4", "manufacturer": "NVIDIA", "count": one.gpus}
        shown["gpuInfo"] = {"gpus": [gpu | {"memoryInfo": {"sizeInMiB": 16_384}}]}
    return shown


def _show_price(machine_type: str, zone: str, at: float, usd: float) -> Xml:
    return {
        "instanceType": machine_type,
        "productDescription": PRODUCT,
        "spotPrice": f"{usd:.6f}",
        "timestamp": instant(at),
        "availabilityZone": zone,
        "availabilityZoneId": zone_id(zone),
    }


def _show_subnet(one: Subnet, caller: Caller) -> Xml:
    return {
        "subnetId": one.id,
        "subnetArn": f"arn:aws:ec2:{caller.region}:{caller.account}:subnet/{one.id}",
        "state": "available",
        "ownerId": caller.account,
        "vpcId": one.vpc_id,
        "cidrBlock": one.cidr,
        "availableIpAddressCount": one.free_addresses,
        "availabilityZone": one.zone,
        "availabilityZoneId": zone_id(one.zone),
        "defaultForAz": False,
        "mapPublicIpOnLaunch": False,
        "assignIpv6AddressOnCreation": False,
        "ipv6CidrBlockAssociationSet": [],
        "tagSet": [],
    }


def _show_group(id_: str, vpc_id: str, caller: Caller) -> Xml:
    return {
        "ownerId": caller.account,
        "groupId": id_,
        "groupName": f"name-of-{id_}",
        "groupDescription": "runners",
        "vpcId": vpc_id,
        "securityGroupArn": f"arn:aws:ec2:{caller.region}:{caller.account}:security-group/{id_}",
        "ipPermissions": [],
        "ipPermissionsEgress": [],
        "tagSet": [],
    }


def _show_image(one: Image, caller: Caller) -> Xml:
    disk: dict[str, Xml] = {
        "snapshotId": "snap-0123456789abcdef0",
        "volumeSize": one.disk_gib,
        "deleteOnTermination": True,
    }
    return {
        "imageId": one.id,
        "imageLocation": f"{caller.account}/{one.name}",
        "imageState": "available",
        "imageOwnerId": caller.account,
        "creationDate": "2026-11-01T00:00:00.000Z",
        "isPublic": False,
        "productCodes": [],
        "architecture": one.arch,
        "imageType": "machine",
        "name": one.name,
        "rootDeviceType": "ebs",
        "rootDeviceName": one.root,
        "blockDeviceMapping": [
            {"deviceName": one.root, "ebs": {**disk, "volumeType": "gp3", "encrypted": False}},
        ],
        "virtualizationType": "hvm",
        "hypervisor": "xen",
        "enaSupport": True,
        "platformDetails": "Linux/UNIX",
        "usageOperation": "RunInstances",
        "bootMode": "uefi-preferred",
        "tagSet": [],
    }
