"""A role that the AWS adapter takes: its credentials are the ones in use, at the same endpoint, and renewed in time.

The daemon's own key may do nothing but take the role.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from autoscaler.sandbox.aws_access import Policy, all_but, anything, only
from autoscaler.sandbox.aws_sts import role_arn
from autoscaler.spi import CapacityType, Shape, Unauthorized, Verdict
from providers.aws import AwsProvider
from tests.aws_site import ACCESS_KEY, AMI, SECRET
from tests.contract.aws_driver import AwsDriver, aws_driver


@pytest.fixture
async def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsDriver]:
    async with aws_driver(tmp_path, monkeypatch) as one:
        one.served.site.access.grant(ACCESS_KEY, SECRET, allows=only("sts:AssumeRole"))
        yield one


def with_role(driver: AwsDriver, allows: Policy = anything) -> AwsProvider:
    role = role_arn(driver.served.site.account, "controller")
    driver.served.site.access.roles[role] = allows
    return driver.make("ours", role_arn=role)


def times_taken(driver: AwsDriver) -> int:
    return sum(1 for call in driver.served.site.access.calls if call.permission == "sts:AssumeRole")


async def test_everything_is_done_as_the_role(driver: AwsDriver) -> None:
    provider = with_role(driver)
    spot = [one for one in await provider.offerings(Shape()) if one.capacity_pool.capacity_type is CapacityType.SPOT]
    result = await provider.launch(driver.batch("b-1", count=1, offerings=spot))
    await provider.terminate([one.provider_id for one in result.instances])
    by_key = {call.access_key for call in driver.served.site.access.calls if call.permission != "sts:AssumeRole"}
    assert by_key
    assert ACCESS_KEY not in by_key
    assert times_taken(driver) == 1
    findings = await provider.check({"ubuntu": {"ami": AMI}})
    assert [one for one in findings if one.verdict is Verdict.REFUSED] == []
    assert any("assumed-role/controller/autoscaler" in one.message for one in findings)


async def test_credentials_that_end_soon_are_renewed(driver: AwsDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    access = driver.served.site.access
    take = access.assume
    monkeypatch.setattr(
        access, "assume", lambda arn, *, session, duration_s: take(arn, session=session, duration_s=300)
    )
    provider = with_role(driver)
    await provider.list_instances()
    before = times_taken(driver)
    assert before > 0
    await provider.list_instances()
    assert times_taken(driver) > before


async def test_a_role_that_is_not_given_is_named_with_what_to_do(driver: AwsDriver) -> None:
    unknown = driver.make("ours", role_arn=role_arn(driver.served.site.account, "nobody"))
    with pytest.raises(Unauthorized, match=r"role/nobody.*correct role_arn"):
        await unknown.list_instances()
    refused = [one for one in await unknown.check({}) if one.verdict is Verdict.REFUSED]
    assert [one.key for one in refused] == ["credentials"]
    assert "role_arn" in refused[0].message


async def test_what_the_role_may_not_do_is_named(driver: AwsDriver) -> None:
    provider = with_role(driver, all_but("ec2:DescribeInstances"))
    with pytest.raises(Unauthorized, match="grant ec2:DescribeInstances"):
        await provider.list_instances()


async def test_a_role_without_any_credentials_to_take_it_says_so(
    driver: AwsDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(Unauthorized, match="no AWS credentials"):
        await with_role(driver).list_instances()
