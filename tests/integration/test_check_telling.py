"""`autoscaler check --online` says when people could not be told why their jobs were interrupted."""

from pathlib import Path
from typing import Any

from autoscaler.check import check
from autoscaler.spi import Finding, Verdict
from tests.config_files import ENVIRON, minimal_document, write
from tests.contract.github_driver import GitHubDriver, app_identity, sandbox


async def found(driver: GitHubDriver, folder: Path, **changes: Any) -> list[Finding]:
    _, key = app_identity()
    document = minimal_document()
    document["autoscaler"] |= {"admin_listen": "127.0.0.1:0", "store": f"sqlite:///{folder}/autoscaler.db"}
    document["forge"][0] |= {
        "api_url": driver.api_url,
        "scopes": ["acme"],
        "credentials": {"app_id": "1234567", "private_key": {"env": "APP_KEY"}},
        **changes,
    }
    report = await check(write(document, folder), online=True, environ={**ENVIRON, "APP_KEY": key})
    return [one for one in report.findings if one.key == "forge[0].tell"]


async def test_a_missing_permission_is_a_warning_with_its_remedy(tmp_path: Path) -> None:
    async with sandbox() as driver:
        assert await found(driver, tmp_path) == []
        driver.face.permissions["checks"] = "read"
        (finding,) = await found(driver, tmp_path)
        assert await found(driver, tmp_path, tell=False) == []
    assert finding.verdict is Verdict.WARNING
    assert "checks: read at acme: grant repository permission Checks: write" in finding.message
    assert "tell = false" in finding.remedy
