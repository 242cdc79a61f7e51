"""What a launch asks of a machine, as a launch template or RunInstances says it: parsed, checked, merged, shown.

Both spell it alike: ImageId, UserData, SecurityGroupId.1, BlockDeviceMapping.1.Ebs..., TagSpecification.1.Tag.1.Key.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from autoscaler.sandbox.aws_filters import tag_rows
from autoscaler.sandbox.aws_query import AwsError, Named, Parameters, Xml

USER_DATA_LIMIT = 16_384
_MOST_TAGS = 50
_VOLUME_KEYS = (
    "Encrypted",
    "DeleteOnTermination",
    "Iops",
    "KmsKeyId",
    "SnapshotId",
    "VolumeSize",
    "VolumeType",
    "Throughput",
)
_METADATA_KEYS = ("HttpTokens", "HttpPutResponseHopLimit", "HttpEndpoint", "HttpProtocolIpv6", "InstanceMetadataTags")
_METADATA_DEFAULTS = {
    "HttpTokens": "optional",
    "HttpPutResponseHopLimit": "1",
    "HttpEndpoint": "enabled",
    "HttpProtocolIpv6": "disabled",
    "InstanceMetadataTags": "disabled",
}

Tags = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDevice:
    """One disk; `volume` by parameter name: {"VolumeSize": "50", "Encrypted": "true"}."""

    device: str
    volume: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """A launch's wishes; empty is "not said". `user_data` is base64 text. `tags` by resource type."""

    image_id: str = ""
    machine_type: str = ""
    subnet_id: str = ""
    zone: str = ""
    user_data: str = ""
    key_name: str = ""
    instance_profile: str = ""
    shutdown: str = ""
    security_groups: tuple[str, ...] = ()
    network_groups: tuple[str, ...] = ()
    public_address: str = ""
    block_devices: tuple[BlockDevice, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    monitoring: str = ""
    ebs_optimized: str = ""
    market: str = ""
    spot_type: str = ""
    interruption: str = ""
    max_price: str = ""
    tags: Mapping[str, Tags] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[str, ...]:
        return self.network_groups or self.security_groups

    @property
    def metadata_options(self) -> dict[str, str]:
        return _METADATA_DEFAULTS | dict(self.metadata)

    def with_wishes(self, other: "Specification") -> "Specification":
        """Those of the other win; tags come together, each resource type's own."""
        said = {f.name: getattr(other, f.name) for f in fields(other) if f.name != "tags" and getattr(other, f.name)}
        kinds = dict.fromkeys((*self.tags, *other.tags))
        tags = {kind: {**self.tags.get(kind, {}), **other.tags.get(kind, {})} for kind in kinds}
        return replace(self, **said, tags=tags)

    def decoded_user_data(self) -> bytes:
        return base64.b64decode(self.user_data)


def parse_specification(parameters: Parameters) -> Specification:
    """Raises AwsError for what AWS would refuse at once."""
    interfaces = parameters.structures("NetworkInterface")
    profile = parameters.structure("IamInstanceProfile")
    market = parameters.structure("InstanceMarketOptions")
    spot = market.structure("SpotOptions")
    metadata = parameters.structure("MetadataOptions")
    specification = Specification(
        image_id=parameters.text("ImageId"),
        machine_type=parameters.text("InstanceType"),
        subnet_id=parameters.text("SubnetId") or next((one.text("SubnetId") for one in interfaces), ""),
        zone=parameters.structure("Placement").text("AvailabilityZone"),
        user_data=_checked_user_data(parameters.text("UserData")),
        key_name=parameters.text("KeyName"),
        instance_profile=profile.text("Arn") or profile.text("Name"),
        shutdown=parameters.text("InstanceInitiatedShutdownBehavior"),
        security_groups=tuple(parameters.texts("SecurityGroupId")),
        network_groups=tuple(group for one in interfaces for group in one.texts("SecurityGroupId")),
        public_address=next((one.text("AssociatePublicIpAddress") for one in interfaces), ""),
        block_devices=tuple(map(_block_device, parameters.structures("BlockDeviceMapping"))),
        metadata={key: value for key in _METADATA_KEYS if (value := metadata.text(key))},
        monitoring=parameters.structure("Monitoring").text("Enabled"),
        ebs_optimized=parameters.text("EbsOptimized"),
        market=market.text("MarketType"),
        spot_type=spot.text("SpotInstanceType"),
        interruption=spot.text("InstanceInterruptionBehavior"),
        max_price=spot.text("MaxPrice"),
        tags=parse_tags(parameters),
    )
    for interface in interfaces:
        for known in ("DeviceIndex", "DeleteOnTermination", "InterfaceType", "NetworkCardIndex", "Description"):
            interface.text(known)
    if interfaces and specification.security_groups:
        message = "Network interfaces and an instance-level security groups may not be specified on the same request"
        raise AwsError("InvalidParameterCombination", message)
    return specification


def parse_tags(parameters: Parameters) -> dict[str, Tags]:
    """TagSpecification.1.ResourceType and its tags, by resource type."""
    return {
        one.required("ResourceType"): parse_tag_list(one.structures("Tag"))
        for one in parameters.structures("TagSpecification")
    }


def parse_tag_list(rows: list[Parameters]) -> Tags:
    """Raises AwsError: too many, too long, reserved, or one key twice."""
    tags: dict[str, str] = {}
    for row in rows:
        key, value = row.required("Key"), row.text("Value")
        if len(key) > 128 or len(value) > 256 or key in tags or key.startswith("aws:"):
            raise AwsError("InvalidParameterValue", f"Tag key or value is not allowed: {key}")
        tags[key] = value
    if len(tags) > _MOST_TAGS:
        raise AwsError("TagLimitExceeded", "You have reached the maximum number of tags: 50.")
    return tags


def _block_device(parameters: Parameters) -> BlockDevice:
    ebs = parameters.structure("Ebs")
    volume = {key: value for key in _VOLUME_KEYS if (value := ebs.text(key))}
    return BlockDevice(device=parameters.required("DeviceName"), volume=volume)


def _checked_user_data(text: str) -> str:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise AwsError("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data.") from None
    if len(raw) > USER_DATA_LIMIT:
        raise AwsError("InvalidUserData.Malformed", "User data is limited to 16384 bytes")
    return text


def check_tag_keys(specification: Specification) -> None:
    """Tags that the metadata service shows become paths there. Raises AwsError."""
    if specification.metadata_options["InstanceMetadataTags"] != "enabled":
        return
    for key in specification.tags.get("instance", {}):
        if "/" in key or " " in key or key in (".", ".."):
            message = f"'{key}' is not a valid tag key. Tag keys must match pattern ([0-9a-zA-Z\\-_+=,.@:]{{1,255}})"
            raise AwsError("InvalidParameterValue", message)


def show_specification(specification: Specification) -> dict[str, Xml]:
    """As DescribeLaunchTemplateVersions shows it."""
    interface: dict[str, Xml] | None = None
    if specification.network_groups or specification.public_address:
        interface = {
            "associatePublicIpAddress": specification.public_address == "true",
            "deviceIndex": 0,
            "groupSet": Named(element="groupId", values=specification.network_groups),
        }
    metadata = {_lower(key): value for key, value in specification.metadata.items()}
    profile = specification.instance_profile
    return {
        "ebsOptimized": specification.ebs_optimized or None,
        "iamInstanceProfile": {"arn" if profile.startswith("arn:") else "name": profile} if profile else None,
        "blockDeviceMappingSet": [_show_block_device(one) for one in specification.block_devices] or None,
        "networkInterfaceSet": [interface] if interface else None,
        "imageId": specification.image_id or None,
        "instanceType": specification.machine_type or None,
        "keyName": specification.key_name or None,
        "monitoring": {"enabled": specification.monitoring} if specification.monitoring else None,
        "instanceInitiatedShutdownBehavior": specification.shutdown or None,
        "userData": specification.user_data or None,
        "tagSpecificationSet": [
            {"resourceType": kind, "tagSet": tag_rows(tags)} for kind, tags in specification.tags.items()
        ]
        or None,
        "securityGroupIdSet": list(specification.security_groups) or None,
        "metadataOptions": metadata or None,
    }


def _show_block_device(one: BlockDevice) -> Xml:
    return {"deviceName": one.device, "ebs": {_lower(key): value for key, value in one.volume.items()}}


def _lower(name: str) -> str:
    return name[0].lower() + name[1:]
