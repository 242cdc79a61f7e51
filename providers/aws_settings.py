"""The options of a `kind = "aws"` provider section: parsed once, with errors that name the key.

account             the account's id: machines of any other one are strangers
networks            region -> { subnets, security_groups }: exactly one subnet for each zone to launch in
profile, role_arn   which of boto3's credentials to use; default: its own chain
instance_profile    name of a profile for machines; default: none, which is safest
notices             region -> URL of the SQS queue that EventBridge feeds
trust_anchors       region -> path of a PEM file: who signs identity documents there (AWS's RSA-2048 certificates)
prices              machine type -> USD per hour on demand; default: the Pricing API
interruption_frequencies
                    machine type glob -> percent of spot machines interrupted in a month, or the path of a JSON file in
                    the Spot Instance Advisor's format; a prior for what is learned
metadata_hops       hop limit of the metadata service; default 1: containers in a bridge network do not reach it
kms_key             key for the machines' disks; default: the account's own
trust_peer_address  compare the address of a hello with that of the machine; default false
fis_role            ARN of the role with which the Fault Injection Service interrupts machines, for game days
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from autoscaler.spi import ProviderName, ProviderSettings, SettingsError

_HOURS_A_MONTH = 730.0
_ACCOUNT = re.compile(r"[0-9]{12}")
_REGION = re.compile(r"[a-z]{2,5}(-[a-z]+)+-[0-9]+")
_SUBNET = re.compile(r"subnet-[0-9a-z]+")
_GROUP = re.compile(r"sg-[0-9a-z]+")
_NAME = re.compile(r"[\w+=,.@ -]+")
_KEY = re.compile(r"arn:[a-z-]+:kms:.+|alias/.+|(mrk-)?[0-9a-f-]{32,36}")
_ROLE = re.compile(r"arn:[a-z-]+:iam::[0-9]{12}:role/.+")
_A_ROLE = 'the ARN of a role, as in "arn:aws:iam::012345678901:role/name"'
_ADVISOR_PERCENT = (2.5, 7.5, 12.5, 17.5, 25.0)
"""The middle of each of the Spot Instance Advisor's ranges, by its index; the last one has no end."""
_KEYS = frozenset(
    (
        *("account", "networks", "profile", "role_arn", "instance_profile", "notices", "trust_anchors", "prices"),
        *("interruption_frequencies", "metadata_hops", "kms_key", "trust_peer_address", "fis_role"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    subnets: tuple[str, ...]
    security_groups: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsSettings:
    name: ProviderName
    account: str
    regions: tuple[str, ...]
    endpoint_url: str
    networks: Mapping[str, Network]
    profile: str
    role_arn: str
    instance_profile: str
    queues: Mapping[str, str]
    anchors: Mapping[str, bytes]
    """PEM texts by region."""
    prices: Mapping[str, float] | None
    frequencies: Mapping[str, float]
    """Percent a month by machine type glob."""
    advised: Mapping[tuple[str, str], float]
    """The same by (region, machine type), from the advisor's file."""
    metadata_hops: int
    kms_key: str
    trusts_peer_address: bool
    fis_role: str

    def interruptions_per_hour(self, region: str, machine_type: str) -> float | None:
        """From the published percent a month: -ln(1 - p) / 730 h. None where nothing is published."""
        percent = self.advised.get((region, machine_type))
        if percent is None:
            percent = next((one for glob, one in self.frequencies.items() if fnmatchcase(machine_type, glob)), None)
        return None if percent is None else -math.log1p(-percent / 100) / _HOURS_A_MONTH


def parse(settings: ProviderSettings) -> AwsSettings:
    """Raises SettingsError."""
    options = settings.options
    if unknown := sorted(set(options) - _KEYS):
        raise SettingsError(f"unknown option; allowed are {', '.join(sorted(_KEYS))}", key=unknown[0])
    if not settings.regions:
        raise SettingsError('must name at least one region, as in ["us-east-1"]', key="regions")
    for index, region in enumerate(settings.regions):
        if not _REGION.fullmatch(region):
            raise SettingsError('must be a region, as in "us-east-1"', key=f"regions[{index}]")
    account = _text(options, "account")
    if not _ACCOUNT.fullmatch(account):
        raise SettingsError('must be the account\'s id, 12 digits as a text, as in "012345678901"', key="account")
    frequencies, advised = _frequencies(options.get("interruption_frequencies", {}))
    hops = options.get("metadata_hops", 1)
    if isinstance(hops, bool) or not isinstance(hops, int) or not 1 <= hops <= 64:
        raise SettingsError("must be a whole number from 1 to 64", key="metadata_hops")
    return AwsSettings(
        name=settings.name,
        account=account,
        regions=settings.regions,
        endpoint_url=settings.endpoint_url.rstrip("/"),
        networks=_networks(options, settings.regions),
        profile=_like(options, "profile", _NAME, "the name of a profile"),
        role_arn=_like(options, "role_arn", _ROLE, _A_ROLE),
        instance_profile=_like(options, "instance_profile", _NAME, "the name of an instance profile"),
        queues=_queues(options, settings.regions),
        anchors={
            region: _read(Path(path), f"trust_anchors.{region}")
            for region, path in _by_region(options, "trust_anchors", settings.regions).items()
        },
        prices=_prices(options.get("prices")),
        frequencies=frequencies,
        advised=advised,
        metadata_hops=hops,
        kms_key=_like(options, "kms_key", _KEY, 'the id or ARN of a key, or "alias/name"'),
        trusts_peer_address=_flag(options, "trust_peer_address"),
        fis_role=_like(options, "fis_role", _ROLE, _A_ROLE),
    )


def _text(options: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = options.get(key, default)
    if value is None:
        raise SettingsError("is missing", key=key)
    if not isinstance(value, str):
        raise SettingsError("must be a text", key=key)
    return value.strip()


def _like(options: Mapping[str, Any], key: str, pattern: re.Pattern[str], what: str) -> str:
    """A text that looks right, or "" where there is none."""
    value = _text(options, key, "")
    if value and not pattern.fullmatch(value):
        raise SettingsError(f"must be {what}", key=key)
    return value


def _queues(options: Mapping[str, Any], regions: Sequence[str]) -> dict[str, str]:
    found = _by_region(options, "notices", regions)
    for region, url in found.items():
        if not url.startswith(("https://", "http://")):
            raise SettingsError("must be the URL of an SQS queue", key=f"notices.{region}")
    return found


def _flag(options: Mapping[str, Any], key: str) -> bool:
    value = options.get(key, False)
    if not isinstance(value, bool):
        raise SettingsError("must be true or false", key=key)
    return value


def _table(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingsError("must be a table", key=key)
    return value


def _by_region(options: Mapping[str, Any], key: str, regions: Sequence[str]) -> dict[str, str]:
    found = {}
    for region, value in _table(options.get(key, {}), key).items():
        if region not in regions:
            raise SettingsError(f"{region} is not among the regions", key=f"{key}.{region}")
        if not isinstance(value, str) or not value:
            raise SettingsError("must be a text", key=f"{key}.{region}")
        found[region] = value
    return found


def _networks(options: Mapping[str, Any], regions: Sequence[str]) -> dict[str, Network]:
    tables = _table(options.get("networks"), "networks")
    for region in tables:
        if region not in regions:
            raise SettingsError(f"{region} is not among the regions", key=f"networks.{region}")
    found = {}
    for region in regions:
        where = f"networks.{region}"
        table = _table(tables.get(region), where)
        if unknown := sorted(set(table) - {"subnets", "security_groups"}):
            raise SettingsError("allowed are subnets and security_groups", key=f"{where}.{unknown[0]}")
        found[region] = Network(
            subnets=_ids(table, "subnets", _SUBNET, where),
            security_groups=_ids(table, "security_groups", _GROUP, where),
        )
    return found


def _ids(table: Mapping[str, Any], key: str, pattern: re.Pattern[str], where: str) -> tuple[str, ...]:
    value = table.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise SettingsError("must be a list with at least one id", key=f"{where}.{key}")
    for index, one in enumerate(value):
        if not isinstance(one, str) or not pattern.fullmatch(one):
            kind = pattern.pattern.partition("-")[0]
            raise SettingsError(f'must be an id, as in "{kind}-0123456789abcdef0"', key=f"{where}.{key}[{index}]")
    return tuple(value)


def _prices(value: Any) -> dict[str, float] | None:
    return None if value is None else _numbers(value, "prices", most=math.inf)


def _numbers(value: Any, key: str, *, most: float) -> dict[str, float]:
    found = {}
    for name, number in _table(value, key).items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < most:
            bound = "0 or more" if most == math.inf else f"from 0 to below {most:g}"
            raise SettingsError(f"must be a number, {bound}", key=f"{key}.{name}")
        found[str(name)] = float(number)
    return found


def _frequencies(value: Any) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    key = "interruption_frequencies"
    if not isinstance(value, str):
        return _numbers(value, key, most=100.0), {}
    try:
        advisor = json.loads(_read(Path(value), key))["spot_advisor"]
        return {}, {
            (region, machine_type): _ADVISOR_PERCENT[int(rating["r"])]
            for region, systems in advisor.items()
            for machine_type, rating in systems.get("Linux", {}).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise SettingsError("the file is not in the Spot Instance Advisor's format", key=key) from None


def _read(path: Path, key: str) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}", key=key) from None
