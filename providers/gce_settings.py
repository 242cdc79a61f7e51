"""The options of a `kind = "gce"` provider section: parsed once, with errors that name the key.

project             the project that machines live in
service_account     e-mail of the account on machines; it needs no role (its identity token proves a machine)
zones               zones of the regions to use; default: every zone that is up
networks            region -> { subnetwork, tags, external_ip }; a name, or "projects/P/regions/R/subnetworks/S"
credentials         a reference to a key file (JSON, as Google writes them) or to an access token; default: what the
                    environment offers (Application Default Credentials)
disk_type           of root disks; default "pd-balanced"
prices              machine type, or region/machine type -> { spot, on_demand } in USD per hour; a type without a
                    price is not offered
interruption_frequencies
                    machine type glob -> percent of spot machines interrupted in a month, as a prior
preemption_notice   ask for a notice of 120 s before a spot machine is taken; default true
trust_anchors       whose keys sign identity tokens: path or https URL of a JSON document {key id: PEM certificate}
trust_peer_address  compare the address of a hello with that of the machine; default false
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from autoscaler.spi import CapacityType, ProviderName, ProviderSettings, Secret, SettingsError

GOOGLE_KEYS_URL = "https://www.googleapis.com/oauth2/v1/certs"
_THIS_HOST = frozenset({"localhost", "127.0.0.1", "::1"})
_HOURS_A_MONTH = 730.0
_PROJECT = re.compile(r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
_LOCATION = re.compile(r"[a-z]+(?:-[a-z]+)+[0-9]+")
_ZONE = re.compile(r"([a-z]+(?:-[a-z]+)+[0-9]+)-[a-z]")
_SUBNETWORK = re.compile(r"(?:projects/[a-z0-9.:-]+/regions/[a-z0-9-]+/subnetworks/)?[a-z](?:[a-z0-9-]*[a-z0-9])?")
_ACCOUNT = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_NAME = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_PRICED = re.compile(r"(?:[a-z]+(?:-[a-z]+)+[0-9]+/)?[a-z][a-z0-9-]*")
_KEYS = frozenset(
    (
        *("project", "service_account", "zones", "networks", "credentials", "disk_type", "prices"),
        *("interruption_frequencies", "preemption_notice", "trust_anchors", "trust_peer_address"),
    )
)
_NETWORK_KEYS = frozenset(("subnetwork", "tags", "external_ip"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Where machines of one region are attached. `subnetwork` is a path below /compute/v1/."""

    subnetwork: str
    tags: tuple[str, ...] = ()
    has_external_ip: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GceSettings:
    name: ProviderName
    project: str
    regions: tuple[str, ...]
    zones: tuple[str, ...]
    endpoint_url: str
    networks: Mapping[str, Network]
    credentials: Secret | None
    service_account: str
    disk_type: str
    prices: Mapping[tuple[str, str], Mapping[CapacityType, float]]
    """By (region, machine type); region "" is every region."""
    frequencies: Mapping[str, float]
    wants_notice: bool
    trust_anchors: str
    """A path, a URL, or the JSON document itself."""
    trusts_peer_address: bool

    @property
    def priced_types(self) -> frozenset[str]:
        return frozenset(machine_type for _, machine_type in self.prices)

    def price(self, region: str, machine_type: str, capacity_type: CapacityType) -> float | None:
        """USD per hour; None where the configuration says none."""
        for key in ((region, machine_type), ("", machine_type)):
            found = self.prices.get(key, {}).get(capacity_type)
            if found is not None:
                return found
        return None

    def interruptions_per_hour(self, machine_type: str) -> float | None:
        """From the published percent a month: -ln(1 - p) / 730 h. None where the configuration says nothing."""
        for glob, percent in self.frequencies.items():
            if fnmatchcase(machine_type, glob):
                return -math.log1p(-percent / 100) / _HOURS_A_MONTH
        return None

    def uses_zone(self, zone: str) -> bool:
        return zone in self.zones if self.zones else region_of(zone) in self.regions


def region_of(zone: str) -> str:
    return zone.rpartition("-")[0]


def parse(settings: ProviderSettings) -> GceSettings:
    """Raises SettingsError."""
    options = settings.options
    if unknown := sorted(set(options) - _KEYS):
        raise SettingsError(f"unknown option; allowed are {', '.join(sorted(_KEYS))}", key=unknown[0])
    project = _text(options, "project")
    if not _PROJECT.fullmatch(project):
        raise SettingsError('must be the id of a project, as in "my-project-123"', key="project")
    if not settings.regions:
        raise SettingsError('must name at least one region, as in ["us-central1"]', key="regions")
    for index, region in enumerate(settings.regions):
        if not _LOCATION.fullmatch(region):
            raise SettingsError('must be a region, as in "us-central1"', key=f"regions[{index}]")
    account = _text(options, "service_account")
    if not _ACCOUNT.fullmatch(account):
        raise SettingsError("must be the e-mail address of a service account", key="service_account")
    disk_type = _text(options, "disk_type", "pd-balanced")
    if not _NAME.fullmatch(disk_type):
        raise SettingsError('must be a disk type, as in "pd-balanced"', key="disk_type")
    return GceSettings(
        name=settings.name,
        project=project,
        regions=settings.regions,
        zones=_zones(options, settings.regions),
        endpoint_url=settings.endpoint_url.rstrip("/"),
        networks=_networks(options, project, settings.regions),
        credentials=_credentials(options),
        service_account=account,
        disk_type=disk_type,
        prices=_prices(options),
        frequencies=_frequencies(options),
        wants_notice=_flag(options, "preemption_notice", True),
        trust_anchors=_trust_anchors(options),
        trusts_peer_address=_flag(options, "trust_peer_address", False),
    )


def _zones(options: Mapping[str, Any], regions: Sequence[str]) -> tuple[str, ...]:
    zones = _texts(options, "zones")
    for index, zone in enumerate(zones):
        if not _ZONE.fullmatch(zone) or region_of(zone) not in regions:
            raise SettingsError("must be a zone of one of the regions", key=f"zones[{index}]")
    return zones


def _networks(options: Mapping[str, Any], project: str, regions: Sequence[str]) -> dict[str, Network]:
    tables = _table(options, "networks")
    if missing := [region for region in regions if region not in tables]:
        raise SettingsError(f"has no network for {', '.join(missing)}", key="networks")
    networks: dict[str, Network] = {}
    for region, table in tables.items():
        where = f"networks.{region}"
        if region not in regions:
            raise SettingsError("is none of the regions", key=where)
        if not isinstance(table, Mapping):
            raise SettingsError("must be a table { subnetwork, tags, external_ip }", key=where)
        if unknown := sorted(set(table) - _NETWORK_KEYS):
            raise SettingsError("unknown key; allowed are subnetwork, tags, external_ip", key=f"{where}.{unknown[0]}")
        subnetwork = _text(table, "subnetwork", where=where)
        if not _SUBNETWORK.fullmatch(subnetwork):
            raise SettingsError('must be a name or "projects/P/regions/R/subnetworks/S"', key=f"{where}.subnetwork")
        if "/" not in subnetwork:
            subnetwork = f"projects/{project}/regions/{region}/subnetworks/{subnetwork}"
        tags = _texts(table, "tags", where=where)
        for index, tag in enumerate(tags):
            if not _NAME.fullmatch(tag):
                raise SettingsError("must be a network tag: letters, digits and -", key=f"{where}.tags[{index}]")
        networks[region] = Network(
            subnetwork=subnetwork, tags=tags, has_external_ip=_flag(table, "external_ip", False, where=where)
        )
    return networks


def _credentials(options: Mapping[str, Any]) -> Secret | None:
    credentials = options.get("credentials")
    if credentials is not None and not isinstance(credentials, Secret):
        raise SettingsError('must be a reference, as in { file = "key.json" }', key="credentials")
    return credentials


def _trust_anchors(options: Mapping[str, Any]) -> str:
    anchors = options.get("trust_anchors", GOOGLE_KEYS_URL)
    if isinstance(anchors, Secret):  # { file = ... }: its text
        return anchors.reveal()
    if not isinstance(anchors, str) or not re.fullmatch(r"https?://\S+|\S*[\w/.-]+\.json", anchors):
        raise SettingsError("must be the path of a .json file or a URL", key="trust_anchors")
    url = urlsplit(anchors)
    if url.scheme == "http" and url.hostname not in _THIS_HOST:
        raise SettingsError(
            'must begin with "https://": who could answer in its place could prove any machine', key="trust_anchors"
        )
    return anchors


def _prices(options: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[CapacityType, float]]:
    prices: dict[tuple[str, str], Mapping[CapacityType, float]] = {}
    for name, table in _table(options, "prices").items():
        where = f"prices.{name}"
        if not _PRICED.fullmatch(name):
            raise SettingsError("must be a machine type or region/machine type", key=where)
        if not isinstance(table, Mapping) or not table:
            raise SettingsError("must be a table { spot, on_demand } in USD per hour", key=where)
        if unknown := sorted(set(table) - set(CapacityType)):
            raise SettingsError("unknown key; allowed are spot, on_demand", key=f"{where}.{unknown[0]}")
        region, _, machine_type = name.rpartition("/")
        prices[region, machine_type] = {CapacityType(key): _price(table[key], f"{where}.{key}") for key in table}
    if not prices:
        raise SettingsError("must price at least one machine type: others are not offered", key="prices")
    return prices


def _frequencies(options: Mapping[str, Any]) -> dict[str, float]:
    frequencies: dict[str, float] = {}
    for glob, percent in _table(options, "interruption_frequencies", {}).items():
        where = f"interruption_frequencies.{glob}"
        frequencies[glob] = _price(percent, where)
        if frequencies[glob] >= 100:
            raise SettingsError("must be percent a month, below 100", key=where)
    return frequencies


def _price(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise SettingsError("must be a number, 0 or more", key=key)
    return float(value)


def _table(options: Mapping[str, Any], key: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    value = options.get(key, default)
    if not isinstance(value, Mapping):
        raise SettingsError("must be a table" if key in options else "is missing: give a table", key=key)
    return value


def _text(options: Mapping[str, Any], key: str, default: str | None = None, *, where: str = "") -> str:
    value = options.get(key, default)
    if not isinstance(value, str) or not value.strip():
        path = f"{where}.{key}" if where else key
        raise SettingsError("must be a text" if key in options else "is missing: give a text", key=path)
    return value


def _texts(options: Mapping[str, Any], key: str, *, where: str = "") -> tuple[str, ...]:
    value = options.get(key, [])
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(one, str) for one in value):
        raise SettingsError("must be a list of texts", key=f"{where}.{key}" if where else key)
    return tuple(value)


def _flag(options: Mapping[str, Any], key: str, default: bool, *, where: str = "") -> bool:
    value = options.get(key, default)
    if not isinstance(value, bool):
        raise SettingsError("must be true or false", key=f"{where}.{key}" if where else key)
    return value
