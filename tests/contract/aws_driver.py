"""The AWS adapter over the sandbox's EC2 with real boto3, as `ProviderContract` drives it."""

import functools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from autoscaler.calls import Calls
from autoscaler.sandbox.aws_access import anything
from autoscaler.sandbox.aws_limits import AwsLimits
from autoscaler.sandbox.cloud_account import CloudTimes
from autoscaler.sandbox.cloud_capacity import Supply
from autoscaler.sandbox.cloud_identity import AwsNotary
from autoscaler.spi import (
    BatchToken,
    Evidence,
    LaunchBatch,
    Offering,
    PoolName,
    ProviderId,
    ProviderName,
    ProviderSettings,
    Surroundings,
)
from providers.aws import AwsProvider, create
from tests.aws_site import (
    ACCESS_KEY,
    AMI,
    GROUP,
    QUICK,
    REGION,
    SECRET,
    ServedAws,
    make_site,
    served_aws,
    subnet,
    usual_supplies,
)
from tests.hurried_clock import HurriedClock

NAME = ProviderName("aws")
SLOTS = 3


@functools.cache
def _notary() -> AwsNotary:
    """One for all tests of a process: making its keys takes longer than most of them."""
    return AwsNotary((REGION,))


class AwsDriver:
    """See `tests.contract.provider_contract.ProviderDriver`. `served` is the cloud's side."""

    slots = SLOTS

    def __init__(self, served: ServedAws, folder: Path) -> None:
        self.served = served
        self._calls: list[Calls] = []
        self._made: list[AwsProvider] = []
        self.fis_role = f"arn:aws:iam::{served.site.account}:role/autoscaler-fis"
        served.site.access.roles[self.fis_role] = anything
        self.notary = _notary()
        self._anchors = self.notary.write_anchors(folder)
        self.provider = self.make("ours")

    def settings(self, **options: Any) -> ProviderSettings:
        given: dict[str, Any] = {
            "account": self.served.site.account,
            "networks": {REGION: {"subnets": [subnet("a"), subnet("b")], "security_groups": [GROUP]}},
            "notices": {REGION: self.served.queue_url()},
            "fis_role": self.fis_role,
            "trust_anchors": {region: str(path) for region, path in self._anchors.items()},
            **options,
        }
        regions = given.pop("regions", (REGION,))
        endpoint = given.pop("endpoint_url", self.served.url)
        return ProviderSettings(name=NAME, kind="aws", regions=tuple(regions), endpoint_url=endpoint, options=given)

    def make(self, deployment: str, **options: Any) -> AwsProvider:
        calls = Calls()
        surroundings = Surroundings(
            deployment=deployment, runner_prefix=f"{deployment}--", clock=HurriedClock(), gates=calls
        )
        made = create(self.settings(**options), surroundings)
        assert isinstance(made, AwsProvider)
        self._calls.append(calls)
        self._made.append(made)
        return made

    @property
    def now(self) -> datetime:
        return datetime.now(UTC)

    def batch(
        self,
        token: str,
        *,
        count: int,
        offerings: Sequence[Offering],
        image: Mapping[str, str] | None = None,
        **more: Any,
    ) -> LaunchBatch:
        return LaunchBatch(
            token=BatchToken(token),
            pool=PoolName("linux"),
            count=count,
            offerings=tuple(offerings),
            image=image or {"ami": AMI},
            user_data="{}",
            max_lifetime=timedelta(minutes=5),
            **more,
        )

    def restarted(self) -> AwsProvider:
        return self.make("ours")

    def foreign(self) -> AwsProvider:
        return self.make("theirs")

    def evidence(self, provider_id: ProviderId, *, claim: str, at: datetime) -> Evidence:
        machine = self.served.site.cloud.machines.get(provider_id)
        started = datetime.fromtimestamp(machine.started_at, UTC) if machine else at - timedelta(hours=1)
        document = {
            "accountId": self.served.site.account,
            "availabilityZone": machine.capacity_pool.zone if machine else f"{REGION}a",
            "imageId": AMI,
            "instanceId": provider_id if machine else "i-00000000000000000",
            "instanceType": machine.capacity_pool.machine_type if machine else "m7i.large",
            "pendingTime": f"{started:%Y-%m-%dT%H:%M:%SZ}",
            "privateIp": machine.address if machine else "10.0.0.1",
            "region": REGION,
            "version": "2017-09-30",
        }
        signed = self.notary.sign(REGION, json.dumps(document))
        return Evidence(claim=claim, document={"rsa2048": signed}, received_at=at, peer_address="127.0.0.1")

    async def aclose(self) -> None:
        for provider in self._made:
            await provider.aclose()
        for calls in self._calls:
            await calls.aclose()


def few_slots(supplies: Sequence[Supply], slots: int = SLOTS) -> list[Supply]:
    return [replace(one, slots=slots) for one in supplies if one.arch == "x86_64"]


@asynccontextmanager
async def aws_driver(
    folder: Path,
    monkeypatch: Any,
    *,
    supplies: Sequence[Supply] | None = None,
    times: CloudTimes = QUICK,
    limits: AwsLimits | None = None,
) -> AsyncIterator[AwsDriver]:
    """A served account and an adapter for it; the credentials come as boto3 finds them: from the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    site = make_site(supplies or few_slots(usual_supplies()), times=times, limits=limits)
    async with served_aws(site) as served:
        driver = AwsDriver(served, folder)
        try:
            yield driver
        finally:
            await driver.aclose()
