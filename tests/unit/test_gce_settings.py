"""The options of a Google Cloud provider: each slip is named by its key."""

import math
from typing import Any

import pytest

from autoscaler.spi import CapacityType, ProviderName, ProviderSettings, Secret, SettingsError
from providers.gce_settings import GOOGLE_KEYS_URL, GceSettings, parse

RIGHT: dict[str, Any] = {
    "project": "my-project-123",
    "service_account": "runner@my-project-123.iam.gserviceaccount.com",
    "networks": {"us-central1": {"subnetwork": "ci", "tags": ["ci-runner"], "external_ip": True}},
    "prices": {
        "n2-standard-4": {"spot": 0.05, "on_demand": 0.19},
        "us-central1/c3-standard-4": {"spot": 0.06},
    },
}


def parsed(regions: tuple[str, ...] = ("us-central1",), **changes: Any) -> GceSettings:
    return parse(
        ProviderSettings(
            name=ProviderName("gce"), kind="gce", regions=regions, endpoint_url="", options={**RIGHT, **changes}
        )
    )


def test_the_defaults_are_the_clouds_own() -> None:
    settings = parsed()
    assert settings.networks["us-central1"].subnetwork == "projects/my-project-123/regions/us-central1/subnetworks/ci"
    assert settings.networks["us-central1"].has_external_ip
    assert settings.trust_anchors == GOOGLE_KEYS_URL
    assert settings.wants_notice
    assert not settings.trusts_peer_address
    assert settings.credentials is None


def test_a_shared_subnetwork_is_named_by_its_path() -> None:
    path = "projects/host-project/regions/us-central1/subnetworks/shared"
    assert parsed(networks={"us-central1": {"subnetwork": path}}).networks["us-central1"].subnetwork == path


def test_a_price_of_a_region_wins_over_that_of_every_region() -> None:
    settings = parsed(prices={"n2-standard-4": {"spot": 0.05}, "us-central1/n2-standard-4": {"spot": 0.04}})
    assert settings.price("us-central1", "n2-standard-4", CapacityType.SPOT) == 0.04
    assert settings.price("europe-west1", "n2-standard-4", CapacityType.SPOT) == 0.05
    assert settings.price("us-central1", "n2-standard-4", CapacityType.ON_DEMAND) is None


def test_a_frequency_a_month_becomes_a_rate_an_hour() -> None:
    settings = parsed(interruption_frequencies={"n2-*": 50})
    assert settings.interruptions_per_hour("n2-standard-4") == pytest.approx(math.log(2) / 730)
    assert settings.interruptions_per_hour("e2-standard-4") is None


def test_zones_narrow_the_regions() -> None:
    settings = parsed(zones=["us-central1-a"])
    assert settings.uses_zone("us-central1-a")
    assert not settings.uses_zone("us-central1-b")
    assert parsed().uses_zone("us-central1-b")
    assert not parsed().uses_zone("europe-west1-b")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"project": "No Such"}, "project"),
        ({"project": 5}, "project"),
        ({"service_account": "nobody"}, "service_account"),
        ({"service_account": None}, "service_account"),
        ({"zones": ["europe-west1-b"]}, "zones[0]"),
        ({"zones": "us-central1-a"}, "zones"),
        ({"networks": {}}, "networks"),
        ({"networks": {"us-central1": "ci"}}, "networks.us-central1"),
        ({"networks": {"us-central1": {"subnetwork": "ci", "mtu": 1}}}, "networks.us-central1.mtu"),
        ({"networks": {"us-central1": {"subnetwork": "No/Way"}}}, "networks.us-central1.subnetwork"),
        ({"networks": {"us-central1": {"subnetwork": "ci", "tags": ["?!"]}}}, "networks.us-central1.tags[0]"),
        ({"networks": {"us-central1": {"subnetwork": "ci", "external_ip": "no"}}}, "networks.us-central1.external_ip"),
        ({"credentials": {"file": "x", "other": "y"}}, "credentials"),
        ({"disk_type": "?!"}, "disk_type"),
        ({"prices": {}}, "prices"),
        ({"prices": {"n2-standard-4": {}}}, "prices.n2-standard-4"),
        ({"prices": {"n2-standard-4": {"spot": -1}}}, "prices.n2-standard-4.spot"),
        ({"prices": {"n2-standard-4": {"reserved": 1}}}, "prices.n2-standard-4.reserved"),
        ({"prices": {"?!": {"spot": 1}}}, "prices.?!"),
        ({"interruption_frequencies": {"n2-*": 100}}, "interruption_frequencies.n2-*"),
        ({"preemption_notice": "yes"}, "preemption_notice"),
        ({"trust_anchors": "?!"}, "trust_anchors"),
        ({"trust_anchors": "http://keys.example.com/certs"}, "trust_anchors"),
        ({"trust_anchors": "http://keys.example.com/certs.json"}, "trust_anchors"),
        ({"trust_anchors": "http://127.0.0.1:80@keys.example.com/certs"}, "trust_anchors"),
        ({"trust_peer_address": 1}, "trust_peer_address"),
    ],
)
def test_a_slip_is_named_by_its_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parsed(**changes)
    assert refused.value.key == key


def test_regions_are_needed_and_are_regions() -> None:
    with pytest.raises(SettingsError, match="at least one region"):
        parsed(regions=())
    with pytest.raises(SettingsError) as refused:
        parsed(regions=("us-central1", "us-central1-a"))
    assert refused.value.key == "regions[1]"


def test_keys_by_reference_are_their_text() -> None:
    assert parsed(trust_anchors=Secret('{"k": "PEM"}')).trust_anchors == '{"k": "PEM"}'
    assert parsed(credentials=Secret("ya29.token")).credentials == Secret("ya29.token")
