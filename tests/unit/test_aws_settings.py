"""The options of an AWS provider: each slip is named by its key."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from autoscaler.spi import ProviderName, ProviderSettings, SettingsError
from providers.aws_settings import AwsSettings, parse

REGION = "us-east-1"
NETWORK = {"subnets": ["subnet-0123456789abcdef0"], "security_groups": ["sg-0123456789abcdef0"]}
RIGHT: dict[str, Any] = {"account": "012345678901", "networks": {REGION: NETWORK}}
ROLE = "arn:aws:iam::012345678901:role/ci/autoscaler"


def parsed(regions: tuple[str, ...] = (REGION,), endpoint_url: str = "", **changes: Any) -> AwsSettings:
    options = {**RIGHT, **changes}
    return parse(
        ProviderSettings(
            name=ProviderName("aws"), kind="aws", regions=regions, endpoint_url=endpoint_url, options=options
        )
    )


def test_the_defaults_are_the_safe_ones() -> None:
    settings = parsed()
    assert settings.networks[REGION].subnets == ("subnet-0123456789abcdef0",)
    assert settings.metadata_hops == 1
    assert settings.prices is None
    assert not settings.trusts_peer_address
    unset = (settings.profile, settings.role_arn, settings.instance_profile, settings.kms_key, settings.fis_role)
    assert set(unset) == {""}
    assert (dict(settings.queues), dict(settings.anchors), dict(settings.frequencies)) == ({}, {}, {})


def test_what_is_said_is_kept(tmp_path: Path) -> None:
    anchor = tmp_path / "anchor.pem"
    anchor.write_text("PEM")
    settings = parsed(
        endpoint_url="http://127.0.0.1:1/",
        profile="ci",
        role_arn=ROLE,
        fis_role=ROLE,
        instance_profile="runner",
        kms_key="alias/ci",
        metadata_hops=2,
        trust_peer_address=True,
        notices={REGION: "https://sqs.us-east-1.amazonaws.com/012345678901/ci"},
        trust_anchors={REGION: str(anchor)},
        prices={"m7i.large": 1},
    )
    assert settings.endpoint_url == "http://127.0.0.1:1"
    assert (settings.role_arn, settings.fis_role) == (ROLE, ROLE)
    assert settings.anchors == {REGION: b"PEM"}
    assert settings.prices == {"m7i.large": 1.0}
    assert settings.trusts_peer_address


def test_a_frequency_a_month_becomes_a_rate_an_hour() -> None:
    settings = parsed(interruption_frequencies={"m7i.*": 50, "*": 0})
    assert settings.interruptions_per_hour(REGION, "m7i.large") == pytest.approx(math.log(2) / 730)
    assert settings.interruptions_per_hour(REGION, "c7i.large") == 0
    assert parsed().interruptions_per_hour(REGION, "m7i.large") is None


def test_the_advisors_file_is_read_by_region_and_type(tmp_path: Path) -> None:
    advisor = {"spot_advisor": {REGION: {"Linux": {"m7i.large": {"s": 70, "r": 0}, "c7i.large": {"s": 60, "r": 4}}}}}
    path = tmp_path / "advisor.json"
    path.write_text(json.dumps(advisor))
    settings = parsed(interruption_frequencies=str(path))
    assert settings.interruptions_per_hour(REGION, "m7i.large") == pytest.approx(-math.log(0.975) / 730)
    assert settings.interruptions_per_hour(REGION, "c7i.large") == pytest.approx(-math.log(0.75) / 730)
    assert settings.interruptions_per_hour("eu-west-1", "m7i.large") is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"spot_advisor": {"us-east-1": {"Linux": {"m7i.large": {"r": 9}}}}}']
)
def test_a_file_that_is_not_the_advisors_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "advisor.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match="Advisor") as refused:
        parsed(interruption_frequencies=str(path))
    assert refused.value.key == "interruption_frequencies"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"acount": "012345678901"}, "acount"),
        ({"account": None}, "account"),
        ({"account": 12345678901}, "account"),
        ({"account": "12345678901"}, "account"),
        ({"networks": None}, "networks"),
        ({"networks": {}}, f"networks.{REGION}"),
        ({"networks": {REGION: NETWORK, "eu-west-1": NETWORK}}, "networks.eu-west-1"),
        ({"networks": {REGION: {**NETWORK, "vpc": "vpc-1"}}}, f"networks.{REGION}.vpc"),
        ({"networks": {REGION: {**NETWORK, "subnets": []}}}, f"networks.{REGION}.subnets"),
        ({"networks": {REGION: {**NETWORK, "subnets": "subnet-1"}}}, f"networks.{REGION}.subnets"),
        ({"networks": {REGION: {**NETWORK, "subnets": ["sg-1"]}}}, f"networks.{REGION}.subnets[0]"),
        ({"networks": {REGION: {**NETWORK, "security_groups": ["sg-1", 2]}}}, f"networks.{REGION}.security_groups[1]"),
        ({"profile": "?!"}, "profile"),
        ({"role_arn": "autoscaler"}, "role_arn"),
        ({"fis_role": "arn:aws:iam::1:role/x"}, "fis_role"),
        ({"instance_profile": "arn:aws:iam::012345678901:instance-profile/x"}, "instance_profile"),
        ({"kms_key": "mine"}, "kms_key"),
        ({"notices": "https://sqs"}, "notices"),
        ({"notices": {REGION: "autoscaler-ci"}}, f"notices.{REGION}"),
        ({"notices": {"eu-west-1": "https://sqs"}}, "notices.eu-west-1"),
        ({"trust_anchors": {REGION: "/nowhere/at/all.pem"}}, f"trust_anchors.{REGION}"),
        ({"trust_anchors": {REGION: 5}}, f"trust_anchors.{REGION}"),
        ({"prices": {"m7i.large": -1}}, "prices.m7i.large"),
        ({"prices": {"m7i.large": "0.1"}}, "prices.m7i.large"),
        ({"prices": 5}, "prices"),
        ({"interruption_frequencies": {"m7i.*": 100}}, "interruption_frequencies.m7i.*"),
        ({"interruption_frequencies": "/nowhere/at/all.json"}, "interruption_frequencies"),
        ({"metadata_hops": 0}, "metadata_hops"),
        ({"metadata_hops": True}, "metadata_hops"),
        ({"metadata_hops": 1.5}, "metadata_hops"),
        ({"trust_peer_address": "yes"}, "trust_peer_address"),
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
        parsed(regions=(REGION, f"{REGION}a"))
    assert refused.value.key == "regions[1]"
