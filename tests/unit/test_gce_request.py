"""What a launch asks of Google: names, request ids, parts of the offerings, and the body of a bulk insert."""

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from google.cloud import compute_v1
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.spi import (
    BatchToken,
    CapacityPool,
    CapacityType,
    InvalidRequest,
    LaunchBatch,
    Offering,
    PoolName,
    ProviderName,
    ProviderSettings,
)
from providers.gce_names import label, name_prefix, names, place_in, place_of, request_id
from providers.gce_request import Part, bulk_insert, image_path, parts_of
from providers.gce_settings import GceSettings, parse

SPOT, ON_DEMAND = CapacityType.SPOT, CapacityType.ON_DEMAND
RFC1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL = re.compile(r"[a-z0-9_-]{1,63}")


def offering(zone: str, machine_type: str, capacity_type: CapacityType = SPOT, *, gpus: int = 0) -> Offering:
    pool = CapacityPool(
        provider=ProviderName("gce"),
        region=zone.rpartition("-")[0],
        zone=zone,
        machine_type=machine_type,
        capacity_type=capacity_type,
    )
    return Offering(capacity_pool=pool, cpus=4, memory_gib=16, arch="x86_64", price_usd_hour=0.1, gpus=gpus)


def batch(*offerings: Offering, **changes: Any) -> LaunchBatch:
    made = LaunchBatch(
        token=BatchToken("b-1"),
        pool=PoolName("Linux Large"),
        count=3,
        offerings=offerings,
        image={"image": "projects/p/global/images/ci"},
        user_data="{}",
        max_lifetime=timedelta(hours=1),
    )
    return replace(made, **changes)


def settings(**changes: Any) -> GceSettings:
    options = {
        "project": "my-project-123",
        "service_account": "runner@example.iam.gserviceaccount.com",
        "networks": {"us-central1": {"subnetwork": "ci", "tags": ["ci-runner"]}},
        "prices": {"n2-standard-4": {"spot": 0.05}},
        **changes,
    }
    return parse(
        ProviderSettings(
            name=ProviderName("gce"), kind="gce", regions=("us-central1",), endpoint_url="", options=options
        )
    )


def body_of(asked: LaunchBatch, *, with_notice: bool = True, **options: Any) -> compute_v1.BulkInsertInstanceResource:
    (part,) = parts_of(asked.offerings)
    return bulk_insert(
        part,
        asked,
        names=names("Our CI", asked.token, asked.count),
        denied_zones=["us-central1-f"],
        script="#!/bin/sh\n",
        settings=settings(**options),
        deployment="Our CI",
        with_notice=with_notice,
    )


# ------------------------------------------------------------------ names


@given(st.text(max_size=80), st.text(min_size=1, max_size=80))
def test_names_fit_whatever_the_deployment_and_the_token_are_called(deployment: str, token: str) -> None:
    made = names(deployment, BatchToken(token), 1200)
    assert len(set(made)) == 1200
    for name in (made[0], made[-1]):
        assert RFC1035.fullmatch(name)
        assert len(name) <= 63
        assert name.startswith(name_prefix(deployment))
        assert (place := place_of(f"us-central1-a/{name}")) is not None
        assert place.provider_id == f"us-central1-a/{name}"


@given(st.text(max_size=200))
def test_any_text_has_a_label(text: str) -> None:
    assert LABEL.fullmatch(label(text))


@given(st.text(max_size=20), st.text(max_size=20))
def test_other_texts_have_other_labels_and_prefixes(one: str, other: str) -> None:
    if one != other:
        assert label(one) != label(other)
        assert name_prefix(one) != name_prefix(other)


def test_a_label_that_is_one_stays_as_it_is() -> None:
    assert label("b-0123abcd") == "b-0123abcd"


@pytest.mark.parametrize("text", ["", "no-such-machine", "../..", "us-central1-a/", "us-central1-a/x/y", "A-a/b"])
def test_what_is_no_id_names_no_place(text: str) -> None:
    assert place_of(text) is None


def test_a_link_names_its_machine() -> None:
    link = "https://www.googleapis.com/compute/v1/projects/p/zones/us-central1-a/instances/ours-0"
    assert (found := place_in(link)) is not None
    assert found.provider_id == "us-central1-a/ours-0"
    assert place_in("https://www.googleapis.com/compute/v1/projects/p/zones/us-central1-a/disks/ours-0") is None
    assert place_in("") is None


def test_a_request_id_depends_on_the_attempt_alone() -> None:
    first = request_id("ours", BatchToken("b-1"), "us-central1", SPOT, attempt=0)
    assert first == request_id("ours", BatchToken("b-1"), "us-central1", SPOT, attempt=0)
    others = {
        request_id("theirs", BatchToken("b-1"), "us-central1", SPOT, attempt=0),
        request_id("ours", BatchToken("b-2"), "us-central1", SPOT, attempt=0),
        request_id("ours", BatchToken("b-1"), "europe-west1", SPOT, attempt=0),
        request_id("ours", BatchToken("b-1"), "us-central1", ON_DEMAND, attempt=0),
        request_id("ours", BatchToken("b-1"), "us-central1", SPOT, attempt=1),
    }
    assert len(others | {first}) == 6


# ------------------------------------------------------------------ parts


def test_offerings_of_a_region_go_into_one_call_where_every_pair_was_offered() -> None:
    ranked = [offering(zone, name) for name in ("n2", "e2") for zone in ("us-central1-a", "us-central1-b")]
    (part,) = parts_of(ranked)
    assert part.zones == ("us-central1-a", "us-central1-b")
    assert part.types == ("n2", "e2")


def test_no_call_covers_a_pair_that_was_not_offered() -> None:
    ranked = [offering("us-central1-a", "n2"), offering("us-central1-b", "n2"), offering("us-central1-b", "e2")]
    for part in parts_of(ranked):
        pairs = {(one.capacity_pool.zone, one.capacity_pool.machine_type) for one in part.offerings}
        assert pairs == {(zone, name) for zone in part.zones for name in part.types}


@given(
    st.lists(
        st.builds(
            offering,
            st.sampled_from(["us-central1-a", "us-central1-b", "europe-west1-b"]),
            st.sampled_from(["n2", "e2", "c3"]),
            st.sampled_from([SPOT, ON_DEMAND]),
        ),
        unique=True,
    )
)
def test_parts_hold_each_offering_once_and_nothing_else(ranked: list[Offering]) -> None:
    parts = parts_of(ranked)
    assert sorted(o.capacity_pool for p in parts for o in p.offerings) == sorted(o.capacity_pool for o in ranked)
    for part in parts:
        assert {(o.capacity_pool.region, o.capacity_pool.capacity_type) for o in part.offerings} == {
            (part.region, part.capacity_type)
        }
        assert len(part.zones) * len(part.types) == len(part.offerings)
    if ranked:
        assert parts[0].offerings[0] == ranked[0]


# ------------------------------------------------------------------ the body


def test_a_spot_machine_ends_when_it_is_taken_and_after_its_lifetime() -> None:
    scheduling = body_of(batch(offering("us-central1-a", "n2"))).instance_properties.scheduling
    assert scheduling.provisioning_model == "SPOT"
    assert scheduling.instance_termination_action == "DELETE"
    assert scheduling.on_host_maintenance == "TERMINATE"
    assert scheduling.automatic_restart is False
    assert scheduling.max_run_duration.seconds == 3600 + 600
    assert scheduling.preemption_notice_duration.seconds == 120


def test_a_stoppable_spot_machine_stops_and_says_so_in_its_metadata() -> None:
    properties = body_of(batch(offering("us-central1-a", "n2"), is_stoppable=True)).instance_properties
    assert properties.scheduling.instance_termination_action == "STOP"
    assert {item.key: item.value for item in properties.metadata.items}["autoscaler-stoppable"] == "true"


def test_only_spot_machines_ask_for_a_notice_and_only_where_it_is_known() -> None:
    on_demand = body_of(batch(offering("us-central1-a", "n2", ON_DEMAND))).instance_properties.scheduling
    assert "preemption_notice_duration" not in on_demand
    assert on_demand.provisioning_model == "STANDARD"
    old = body_of(batch(offering("us-central1-a", "n2")), with_notice=False).instance_properties.scheduling
    assert "preemption_notice_duration" not in old


def test_a_machine_is_told_how_long_before_its_end_a_notice_comes() -> None:
    def told(*, with_notice: bool, capacity_type: CapacityType = CapacityType.SPOT) -> str | None:
        asked = batch(offering("us-central1-a", "n2", capacity_type))
        items = body_of(asked, with_notice=with_notice).instance_properties.metadata.items
        return next((item.value for item in items if item.key == "autoscaler-notice-s"), None)

    assert told(with_notice=True) == "120"
    assert told(with_notice=False) is None
    assert told(with_notice=True, capacity_type=CapacityType.ON_DEMAND) is None


def test_a_machine_with_gpus_cannot_be_moved() -> None:
    asked = batch(offering("us-central1-a", "g2", ON_DEMAND, gpus=1))
    assert body_of(asked).instance_properties.scheduling.on_host_maintenance == "TERMINATE"


def test_texts_are_exact_in_the_metadata_and_made_fit_in_labels() -> None:
    properties = body_of(batch(offering("us-central1-a", "n2"))).instance_properties
    items = {item.key: item.value for item in properties.metadata.items}
    assert items["autoscaler-deployment"] == "Our CI"
    assert items["autoscaler-pool"] == "Linux Large"
    assert items["autoscaler-batch"] == "b-1"
    assert items["startup-script"] == "#!/bin/sh\n"
    assert dict(properties.labels) == {
        "autoscaler-deployment": label("Our CI"),
        "autoscaler-pool": label("Linux Large"),
        "autoscaler-batch": "b-1",
    }


def test_one_type_needs_no_selections_and_several_are_ranked() -> None:
    one = body_of(batch(offering("us-central1-a", "n2")))
    assert one.instance_properties.machine_type == "n2"
    assert "instance_flexibility_policy" not in one
    several = body_of(batch(offering("us-central1-a", "n2"), offering("us-central1-a", "e2")))
    assert not several.instance_properties.machine_type
    selections = several.instance_flexibility_policy.instance_selections.values()
    assert sorted((one.rank, list(one.machine_types)) for one in selections) == [(1, ["n2"]), (2, ["e2"])]


def test_other_zones_are_denied() -> None:
    locations = body_of(batch(offering("us-central1-a", "n2"))).location_policy.locations
    assert {zone: one.preference for zone, one in locations.items()} == {
        "zones/us-central1-a": "ALLOW",
        "zones/us-central1-f": "DENY",
    }


def test_the_disk_goes_with_the_machine_and_is_as_large_as_asked() -> None:
    (disk,) = body_of(batch(offering("us-central1-a", "n2"), disk_gib=49.5)).instance_properties.disks
    assert disk.boot
    assert disk.auto_delete
    assert disk.initialize_params.disk_size_gb == 50
    assert disk.initialize_params.source_image == "projects/p/global/images/ci"
    (plain,) = body_of(batch(offering("us-central1-a", "n2"))).instance_properties.disks
    assert "disk_size_gb" not in plain.initialize_params


def test_an_address_of_the_internet_is_given_only_where_configured() -> None:
    (closed,) = body_of(batch(offering("us-central1-a", "n2"))).instance_properties.network_interfaces
    assert not closed.access_configs
    networks = {"us-central1": {"subnetwork": "ci", "external_ip": True}}
    opened = body_of(batch(offering("us-central1-a", "n2")), networks=networks)
    assert opened.instance_properties.network_interfaces[0].access_configs[0].type_ == "ONE_TO_ONE_NAT"


def test_a_script_that_does_not_fit_says_so() -> None:
    asked = batch(offering("us-central1-a", "n2"))
    part = Part(region="us-central1", capacity_type=SPOT, offerings=asked.offerings)
    with pytest.raises(InvalidRequest, match="256 KB"):
        bulk_insert(
            part,
            asked,
            names=["x"],
            denied_zones=[],
            script="x" * (256 * 1024 + 1),
            settings=settings(),
            deployment="d",
            with_notice=False,
        )


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ("projects/p/global/images/ci-1", "projects/p/global/images/ci-1"),
        ("projects/p/global/images/family/ci", "projects/p/global/images/family/ci"),
        (
            "https://www.googleapis.com/compute/v1/projects/p/global/images/ci-1",
            "projects/p/global/images/ci-1",
        ),
    ],
)
def test_an_image_is_named_by_path_family_or_link(reference: str, path: str) -> None:
    assert image_path({"image": reference}) == path


@pytest.mark.parametrize("reference", ["", "ci-1", "projects/p/zones/z/images/i", "projects//global/images/i"])
def test_another_image_reference_says_what_to_write(reference: str) -> None:
    with pytest.raises(InvalidRequest, match="projects/P/global/images/NAME"):
        image_path({"image": reference})
