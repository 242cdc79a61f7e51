"""Images of AWS: by id or by parameter, with the root disk that they have; what leads nowhere is said."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from autoscaler.spi import CapacityType, InvalidRequest, Offering, Shape, Verdict
from tests.aws_site import AMI, REGION
from tests.contract.aws_driver import AwsDriver, aws_driver

PARAMETER = "/runners/ubuntu"
REFERENCES = {"ami": f"resolve:ssm:{PARAMETER}"}


@pytest.fixture
async def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsDriver]:
    async with aws_driver(tmp_path, monkeypatch) as one:
        yield one


async def spot(driver: AwsDriver) -> list[Offering]:
    every = await driver.provider.offerings(Shape())
    return [one for one in every if one.capacity_pool.capacity_type is CapacityType.SPOT]


async def refused(driver: AwsDriver) -> list[str]:
    found = await driver.provider.check({"ubuntu": REFERENCES})
    return [one.message for one in found if one.verdict is Verdict.REFUSED and one.key == "image ubuntu" and one.remedy]


@pytest.mark.parametrize("references", [{"ami": AMI}, REFERENCES], ids=["by id", "by parameter"])
async def test_the_root_disk_that_the_image_has_is_the_one_encrypted(
    driver: AwsDriver, references: dict[str, str]
) -> None:
    site = driver.served.site
    site.ssm.parameters[REGION, PARAMETER] = AMI
    site.setup.images_by_id[REGION, AMI] = replace(site.setup.image(REGION, AMI), root="/dev/sda1")
    batch = driver.batch("b-1", count=1, offerings=await spot(driver), image=references, disk_gib=50.0)
    (machine,) = (await driver.provider.launch(batch)).instances
    (described,) = await driver.served.machines(InstanceIds=[machine.provider_id])
    assert (described["ImageId"], described["RootDeviceName"]) == (AMI, "/dev/sda1")
    (template,) = site.ec2.templates.templates.values()
    (disk,) = template.versions[0].block_devices
    assert disk.device == "/dev/sda1"
    assert (disk.volume["Encrypted"], disk.volume["VolumeSize"]) == ("true", "50")
    assert await refused(driver) == []


@pytest.mark.parametrize(("disk_gib", "expected"), [(0.0, None), (20.0, "30"), (30.4, "31")])
async def test_a_root_disk_is_never_smaller_than_its_image_nor_than_asked(
    driver: AwsDriver, disk_gib: float, expected: str | None
) -> None:
    site = driver.served.site
    site.setup.images_by_id[REGION, AMI] = replace(site.setup.image(REGION, AMI), disk_gib=30)
    batch = driver.batch("b-1", count=1, offerings=await spot(driver), disk_gib=disk_gib)
    assert len((await driver.provider.launch(batch)).instances) == 1
    (template,) = site.ec2.templates.templates.values()
    (disk,) = template.versions[0].block_devices
    assert disk.volume.get("VolumeSize") == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "does not exist"), ("a password", "no image's id"), ("ami-00000000000000bad", "ami-00000000000000bad")],
)
async def test_a_parameter_that_leads_nowhere_is_said_by_check_and_launch(
    driver: AwsDriver, value: str | None, text: str
) -> None:
    if value is not None:
        driver.served.site.ssm.parameters[REGION, PARAMETER] = value
    (message,) = await refused(driver)
    assert text in message
    with pytest.raises(InvalidRequest, match=text):
        await driver.provider.launch(driver.batch("b-1", count=1, offerings=await spot(driver), image=REFERENCES))
    assert driver.served.site.cloud.machines == {}
