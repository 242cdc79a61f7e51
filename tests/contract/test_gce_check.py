"""`check` of the adapter for Google Cloud names each fault of a configuration before the daemon meets it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from autoscaler.spi import CapacityType, Finding, Provider, Verdict
from providers.gce_check import INSTANCE_PERMISSIONS
from tests.contract.test_gce_permissions import ROLE
from tests.gce_law import LawfulExchanges
from tests.gce_site import IMAGE, PRICES, REGION, ZONES, GceSite, serving

IMAGES = {"ubuntu": {"image": IMAGE, "github_runner": "/opt/actions-runner"}}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[GceSite]:
    law = LawfulExchanges()
    async with serving(tmp_path, middlewares=[law.middleware]) as made:
        yield made
    assert law.violations == []


async def faults(provider: Provider, image: str = IMAGE) -> dict[str, Finding]:
    """By key; each with what to do about it."""
    found = [one for one in await provider.check({"ubuntu": {"image": image}}) if one.verdict is not Verdict.OK]
    assert all(one.message and one.remedy for one in found)
    return {one.key: one for one in found}


async def test_a_configuration_that_works_has_no_fault(site: GceSite) -> None:
    found = await site.provider().check(IMAGES)
    assert [one.verdict for one in found] == [Verdict.OK]
    assert list(site.face.records) == []
    assert list(site.face.operations) == []


async def test_credentials_that_do_not_work(site: GceSite) -> None:
    site.face.access.grant("token")
    found = await faults(site.provider(token="another"))
    assert list(found) == ["credentials"]
    assert found["credentials"].verdict is Verdict.REFUSED


async def test_another_project(site: GceSite) -> None:
    assert list(await faults(site.provider(project="no-such-project"))) == ["project"]


async def test_a_region_that_does_not_exist(site: GceSite) -> None:
    networks = {"mars-north1": {"subnetwork": "runners"}}
    found = await faults(site.provider(regions=("mars-north1",), networks=networks))
    assert found["regions"].verdict is Verdict.REFUSED
    assert "mars-north1" in found["regions"].message


async def test_a_zone_that_does_not_exist(site: GceSite) -> None:
    found = await faults(site.provider(zones=[ZONES[0], "us-central1-x"]))
    assert "us-central1-x" in found["zones[1]"].message


async def test_a_subnetwork_that_does_not_exist(site: GceSite) -> None:
    found = await faults(site.provider(networks={REGION: {"subnetwork": "gone"}}))
    assert found[f"networks.{REGION}.subnetwork"].verdict is Verdict.REFUSED


async def test_a_subnetwork_of_another_region(site: GceSite) -> None:
    path = "projects/sandbox-project/regions/europe-west4/subnetworks/runners"
    found = await faults(site.provider(networks={REGION: {"subnetwork": path}}))
    assert found[f"networks.{REGION}.subnetwork"].verdict is Verdict.REFUSED


@pytest.mark.parametrize("reference", [IMAGE.replace("runners-1", "gone"), "ubuntu-2404", ""])
async def test_an_image_that_does_not_exist(site: GceSite, reference: str) -> None:
    assert (await faults(site.provider(), reference))["image ubuntu"].verdict is Verdict.REFUSED


async def test_a_quota_of_zero(site: GceSite) -> None:
    site.account.capacity.quotas[REGION, CapacityType.ON_DEMAND] = 0
    assert "CPUS" in (await faults(site.provider()))["regions"].message


async def test_a_price_for_a_type_that_no_zone_has(site: GceSite) -> None:
    found = await faults(site.provider(prices={**PRICES, "n9-mega-1": {"spot": 1.0}}))
    assert found["prices.n9-mega-1"].verdict is Verdict.WARNING
    found = await faults(site.provider(prices={"n9-mega-1": {"spot": 1.0}}))
    assert found["prices"].verdict is Verdict.REFUSED


async def test_permissions_that_are_missing(site: GceSite) -> None:
    reading = {"compute.*.list", "compute.*.get", "compute.subnetworks.use", "compute.images.useReadOnly"}
    site.face.access.grant("token", allowed=reading)
    found = await faults(site.provider(token="token"))
    assert list(found) == ["credentials"]
    allowed = {*reading, *INSTANCE_PERMISSIONS}
    site.face.access.grant("token", allowed=allowed - {"compute.instances.delete"})
    found = await faults(site.provider(token="token"))
    assert found["credentials"].message == "they lack compute.instances.delete"
    site.face.access.grant("token", allowed=allowed - {"compute.subnetworks.use"})
    assert list(await faults(site.provider(token="token"))) == [f"networks.{REGION}.subnetwork"]


@pytest.mark.parametrize(
    ("permission", "key"),
    [
        ("compute.regionOperations.get", "credentials"),
        ("compute.zoneOperations.get", "credentials"),
        ("compute.globalOperations.list", "credentials"),
        ("compute.instances.list", "credentials"),
        ("compute.images.useReadOnly", "image ubuntu"),
    ],
)
async def test_what_only_a_launch_would_miss_is_found_before(site: GceSite, permission: str, key: str) -> None:
    granted = frozenset(yaml.safe_load(ROLE.read_text())["includedPermissions"])
    site.face.access.grant("token", allowed=granted)
    assert await faults(site.provider(token="token")) == {}
    site.face.access.grant("token", allowed=granted - {permission})
    found = await faults(site.provider(token="token"))
    assert list(found) == [key]
    assert permission in found[key].message
    assert found[key].verdict is Verdict.REFUSED


async def test_keys_that_cannot_be_read(site: GceSite) -> None:
    found = await faults(site.provider(trust_anchors="/no/such/file.json"))
    assert list(found) == ["trust_anchors"]


async def test_a_permission_to_read_that_is_missing_is_named(site: GceSite) -> None:
    site.face.access.grant("token", allowed={"compute.zones.list", *INSTANCE_PERMISSIONS})
    found = await faults(site.provider(token="token"))
    for key, permission in {"regions": "compute.regions.get", "image ubuntu": "compute.images.get"}.items():
        assert permission in found[key].message


async def test_a_family_whose_images_are_gone(site: GceSite) -> None:
    family = f"{IMAGE.rpartition('/')[0]}/family/runners"
    assert await faults(site.provider(), family) == {}
    site.face.catalogue.images[IMAGE] = replace(site.face.catalogue.images[IMAGE], family="others")
    assert list(await faults(site.provider(), family)) == ["image ubuntu"]
