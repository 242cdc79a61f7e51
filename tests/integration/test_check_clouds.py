"""`autoscaler check --online` finds what is wrong with a cloud's configuration before the daemon does."""

from pathlib import Path
from typing import Any

import pytest

from autoscaler.check import CheckReport, check
from autoscaler.spi import Verdict
from tests.aws_site import AMI, REGION
from tests.config_files import ENVIRON, minimal_document, write
from tests.contract.aws_driver import AwsDriver, aws_driver


def document_of(driver: AwsDriver, folder: Path, *, ami: str = AMI, **options: Any) -> dict[str, Any]:
    settings = driver.settings(**options)
    document = minimal_document()
    document["autoscaler"] |= {
        "listen": "127.0.0.1:0",
        "admin_listen": "127.0.0.1:0",
        "store": f"sqlite:///{folder}/autoscaler.db",
    }
    document["provider"] = [
        {
            "name": "aws",
            "kind": "aws",
            "regions": list(settings.regions),
            "endpoint_url": settings.endpoint_url,
            **settings.options,
        }
    ]
    document["image"][0]["references"] = {"aws": {"ami": ami}}
    document["pool"][0]["providers"] = ["aws"]
    return document


async def checked(document: dict[str, Any], folder: Path) -> CheckReport:
    return await check(write(document, folder), online=True, environ=ENVIRON)


async def test_a_cloud_that_is_right_has_no_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with aws_driver(tmp_path, monkeypatch) as driver:
        report = await checked(document_of(driver, tmp_path), tmp_path)
    refused = [one for one in report.findings if one.verdict is Verdict.REFUSED]
    assert [one.key for one in refused if one.key.startswith(("provider", "image", "pool"))] == []
    assert "provider[0].credentials" in {one.key for one in report.findings}


async def test_faults_of_a_cloud_are_named_by_their_key_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aws_driver(tmp_path, monkeypatch) as driver:
        networks = {REGION: {"subnets": ["subnet-00000000000000bad"], "security_groups": ["sg-00000000000000bad"]}}
        document = document_of(driver, tmp_path, ami="ami-00000000000000bad", networks=networks)
        report = await checked(document, tmp_path)
    assert report.exit_code == 3
    refused = {one.key: one for one in report.findings if one.verdict is Verdict.REFUSED}
    for key in (f"provider[0].networks.{REGION}.subnets", f"provider[0].networks.{REGION}.security_groups"):
        assert refused[key].remedy
    (image,) = (one for key, one in refused.items() if key.startswith("image "))
    assert "ami-00000000000000bad" in image.message
