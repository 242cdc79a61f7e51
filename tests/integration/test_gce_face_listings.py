"""Listings of the sandbox's Compute Engine: pages, filters, zones that fail, and the catalogue."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.api_core import exceptions as api_errors
from google.cloud import compute_v1 as gce

from autoscaler.spi import CapacityType
from tests.gce_site import (
    FAMILY,
    LARGE,
    PROJECT,
    REGION,
    SMALL,
    ZONES,
    ask,
)
from tests.integration.gce_cloud import Cloud, lawful_cloud


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with lawful_cloud(tmp_path) as made:
        yield made


async def test_a_listing_goes_over_pages_and_keeps_to_its_filter(cloud: Cloud) -> None:
    for number in range(3):
        await cloud.insert(f"ours-{number}", zone=ZONES[number])
    await cloud.insert("theirs", labels={"autoscaler-deployment": "other"})

    found = await cloud.listed(filter='labels.autoscaler-deployment = "tests"', max_results=2)
    other = await cloud.listed(filter='(labels.autoscaler-deployment = "other") AND (status != "TERMINATED")')

    assert sorted(one.name for one in found) == ["ours-0", "ours-1", "ours-2"]
    assert [one.name for one in other] == ["theirs"]


async def test_a_listing_may_fail_on_a_page_or_miss_a_zone(cloud: Cloud) -> None:
    for number in range(2):
        await cloud.insert(f"m-{number}", zone=ZONES[number])
    behaviour = cloud.site.face.behaviour
    behaviour.failing_page = 2
    with pytest.raises(api_errors.ServiceUnavailable):
        await cloud.listed(max_results=1)
    behaviour.failing_page, behaviour.unreachable = None, {ZONES[0]}
    with pytest.raises(api_errors.ServiceUnavailable):
        await cloud.listed()

    behaviour.fails_when_unreachable = False

    partial = await cloud.listed()

    assert [one.name for one in partial] == ["m-1"]


async def test_the_catalogue_tells_zones_types_images_and_quotas(cloud: Cloud) -> None:
    served = cloud.site
    served.account.capacity.quotas[REGION, CapacityType.ON_DEMAND] = 24
    await cloud.insert("one", provisioning_model="STANDARD", on_host_maintenance="MIGRATE")

    zones = await ask(served.client(gce.ZonesClient).list, project=PROJECT)
    types = await ask(served.client(gce.MachineTypesClient).aggregated_list, project=PROJECT)
    image = await ask(served.client(gce.ImagesClient).get_from_family, project=PROJECT, family="runners")
    region = await ask(served.client(gce.RegionsClient).get, project=PROJECT, region=REGION)
    subnetwork = await ask(
        served.client(gce.SubnetworksClient).get, project=PROJECT, region=REGION, subnetwork="runners"
    )
    project = await ask(served.client(gce.ProjectsClient).get, project=PROJECT)

    assert [zone.name for zone in zones] == sorted(ZONES)
    named = {one.name: one.guest_cpus for _, scope in types for one in scope.machine_types}
    assert named == {SMALL: 2, LARGE: 4}
    assert (image.name, image.family, image.disk_size_gb) == ("runners-1", "runners", 20)
    assert FAMILY.endswith(image.family)
    quotas = {quota.metric: (quota.limit, quota.usage) for quota in region.quotas}
    assert quotas["CPUS"] == (24.0, 2.0)
    assert subnetwork.ip_cidr_range == "10.128.0.0/20"
    assert project.name == PROJECT
