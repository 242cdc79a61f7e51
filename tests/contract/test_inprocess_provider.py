"""The in-process cloud keeps the contract of every provider."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from autoscaler.sandbox.cloud_account import CloudAccount, CloudTimes
from autoscaler.sandbox.cloud_capacity import Capacity
from autoscaler.sandbox.inprocess_cloud import Cloud, CloudWorld, evidence_of, local_supplies
from autoscaler.sandbox.inprocess_provider import InProcessProvider
from autoscaler.spi import BatchToken, Evidence, LaunchBatch, Offering, PoolName, ProviderId, ProviderName
from tests.contract.provider_contract import ProviderContract
from tests.hurried_clock import HurriedClock

NAME = ProviderName("local")


class CloudSite:
    """See `tests.contract.provider_contract.ProviderDriver`."""

    slots = 3

    def __init__(self) -> None:
        supplies = local_supplies(NAME, {"small": 0.01, "tiny": 0.02}, slots={"small": self.slots, "tiny": self.slots})
        account = CloudAccount(
            Capacity.of(supplies),
            times=CloudTimes(boot=(0.01, 0.05), end=(0.01, 0.05), notice_s=0.0),
            images=frozenset({"image"}),
        )
        self.cloud = Cloud(CloudWorld(account), HurriedClock())
        self.provider = self.restarted()

    @property
    def now(self) -> datetime:
        return datetime.now(UTC)

    def batch(self, token: str, *, count: int, offerings: Sequence[Offering]) -> LaunchBatch:
        return LaunchBatch(
            token=BatchToken(token),
            pool=PoolName("linux"),
            count=count,
            offerings=tuple(offerings),
            image={"runner": "image"},
            user_data="{}",
            max_lifetime=timedelta(minutes=5),
        )

    def restarted(self) -> InProcessProvider:
        return InProcessProvider(self.cloud, name=NAME, deployment="ours")

    def foreign(self) -> InProcessProvider:
        return InProcessProvider(self.cloud, name=NAME, deployment="theirs")

    def evidence(self, provider_id: ProviderId, *, claim: str, at: datetime) -> Evidence:
        machine = self.cloud.world.machine(provider_id)
        document = {"instance_id": provider_id, "time": "0", "signature": "00"}
        if machine is not None:
            document = evidence_of(machine, claim, at.timestamp())
        return Evidence(claim=claim, document=document, received_at=at, peer_address="127.0.0.1")


class TestInProcessProvider(ProviderContract):
    @pytest.fixture
    async def driver(self) -> AsyncIterator[CloudSite]:
        site = CloudSite()
        yield site
        site.cloud.stop()
